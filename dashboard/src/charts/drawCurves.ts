// Draws curves and the marks of commands onto the canvas of a chart.

import type uPlot from "uplot";
import { runStyle } from "../model/palette";
import type { ChartProps, Shown } from "./Chart";

/** A command that was carried out at a step of a run. */
export interface Mark {
  runId: number;
  step: number;
  letter: string;
  text: string;
}

export function drawCurves(plot: uPlot, shown: readonly Shown[], props: ChartProps, isDark: boolean): void {
  const { ctx, bbox } = plot;
  const scale = { x: toPixels(plot, "x"), y: toPixels(plot, "y") };
  const pixel = devicePixelRatio || 1;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.lineJoin = "round";
  const isCrowded = shown.length > 40;
  const front = shown.find((curve) => curve.runId === props.highlighted);
  for (const curve of shown) {
    if (curve.runId !== props.highlighted) drawOne(curve, false);
  }
  if (front) drawOne(front, true);
  ctx.restore();
  ctx.save();
  drawMarks(plot, shown, props, scale, isDark);
  ctx.restore();

  function drawOne(curve: Shown, isFront: boolean): void {
    const { color, dash } = runStyle(curve.runId, isDark);
    const isBehind = props.highlighted !== null && !isFront && front !== undefined;
    ctx.strokeStyle = color;
    ctx.globalAlpha = isBehind ? 0.22 : isCrowded && !isFront ? 0.55 : 1;
    if (curve.raw !== null && !isBehind && !isCrowded) {
      ctx.globalAlpha *= 0.25;
      ctx.lineWidth = pixel;
      ctx.setLineDash([]);
      stroke(ctx, curve.x, curve.raw, scale);
      ctx.globalAlpha *= 4;
    }
    ctx.lineWidth = (isFront ? 2.6 : isCrowded ? 1 : 1.7) * pixel;
    ctx.setLineDash(isCrowded ? [] : dash.map((length) => length * pixel));
    stroke(ctx, curve.x, curve.y, scale);
  }
}

interface Pixels {
  x: (value: number) => number;
  y: (value: number) => number;
}

/** From values to pixels of the canvas, without asking uPlot for each. */
function toPixels(plot: uPlot, key: "x" | "y"): (value: number) => number {
  const { left, top, width, height } = plot.bbox;
  const scale = plot.scales[key];
  const isLog = scale?.distr === 3;
  const map = isLog ? Math.log10 : (value: number) => value;
  const low = map(scale?.min ?? 0);
  const span = map(scale?.max ?? 1) - low || 1;
  if (key === "x") return (value) => left + ((map(value) - low) / span) * width;
  return (value) => top + height - ((map(value) - low) / span) * height;
}

function stroke(ctx: CanvasRenderingContext2D, x: readonly number[], y: readonly number[], to: Pixels): void {
  ctx.beginPath();
  let isDown = false;
  let px = 0;
  let py = 0;
  for (let i = 0; i < y.length; i++) {
    px = to.x(x[i] as number);
    py = to.y(y[i] as number);
    if (!Number.isFinite(py) || !Number.isFinite(px)) {
      isDown = false;
    } else if (isDown) {
      ctx.lineTo(px, py);
    } else {
      ctx.moveTo(px, py);
      isDown = true;
    }
  }
  // A run's only point so far would not be seen as a line.
  if (y.length === 1 && isDown) ctx.arc(px, py, 1.5, 0, 2 * Math.PI);
  ctx.stroke();
}

function drawMarks(plot: uPlot, shown: readonly Shown[], props: ChartProps, to: Pixels, isDark: boolean): void {
  const { ctx, bbox } = plot;
  const pixel = devicePixelRatio || 1;
  const byRun = new Map(shown.map((curve) => [curve.runId, curve]));
  ctx.setLineDash([]);
  ctx.globalAlpha = 1;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ctx.font = `600 ${9 * pixel}px system-ui, sans-serif`;
  for (const mark of props.marks) {
    const curve = byRun.get(mark.runId);
    if (!curve || curve.x.length === 0) continue;
    const found = curve.steps.findIndex((step) => step >= mark.step);
    const index = found < 0 ? curve.steps.length - 1 : found;
    const x = to.x(curve.x[index] as number);
    const y = to.y(curve.y[index] as number);
    if (!Number.isFinite(y) || x < bbox.left || x > bbox.left + bbox.width) continue;
    const { color } = runStyle(mark.runId, isDark);
    ctx.beginPath();
    ctx.arc(x, y, 7 * pixel, 0, 2 * Math.PI);
    ctx.fillStyle = isDark ? "#171b21" : "#ffffff";
    ctx.fill();
    ctx.lineWidth = 1.5 * pixel;
    ctx.strokeStyle = color;
    ctx.stroke();
    ctx.fillStyle = color;
    ctx.fillText(mark.letter, x, y + 0.5 * pixel);
  }
}
