import type uPlot from "uplot";
import { nearestIndex } from "../model/series";
import type { Shown } from "./Chart";

const REACH_PX = 40;

/** The point that lies nearest to the cursor; null if none is within reach. */
export function nearestCurve(
  plot: uPlot,
  shown: readonly Shown[],
  left: number,
  top: number,
): { curve: Shown; index: number } | null {
  const at = plot.posToVal(left, "x");
  let best: { curve: Shown; index: number } | null = null;
  let bestDistance = REACH_PX;
  for (const curve of shown) {
    const index = nearestIndex(curve.x, at);
    const y = curve.y[index];
    if (y === undefined || Number.isNaN(y)) continue;
    const dx = plot.valToPos(curve.x[index] as number, "x") - left;
    const dy = plot.valToPos(y, "y") - top;
    // Upwards and downwards counts more: one moves along a curve.
    const distance = Math.hypot(dx / 3, dy);
    if (distance < bestDistance) {
      bestDistance = distance;
      best = { curve, index };
    }
  }
  return best;
}
