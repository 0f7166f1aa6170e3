// What stands beside the axes of charts.

import type { XAxis } from "../api/types";
import { formatDuration, formatNumber } from "../model/format";

export function xTicks(splits: readonly (number | null)[], x: XAxis): string[] {
  return splits.map((value) => {
    if (value === null) return "";
    return x === "time" ? (value === 0 ? "0" : formatDuration(value)) : compact(value);
  });
}

export function yTicks(splits: readonly (number | null)[]): string[] {
  const given = splits.filter((value) => value !== null);
  const gaps = given.slice(1).map((value, i) => Math.abs(value - (given[i] as number)));
  const gap = Math.min(...gaps);
  return splits.map((value) => {
    if (value === null) return "";
    const size = Math.abs(value);
    if (size >= 1e5 || (size < 1e-3 && size > 0)) return formatNumber(value);
    const digits = Number.isFinite(gap) && gap > 0 ? Math.max(0, Math.min(6, -Math.floor(Math.log10(gap)))) : 2;
    return size >= 1e4 ? compact(value) : String(Number(value.toFixed(digits)));
  });
}

/** Where on the axis, in words. */
export function xLabel(value: number, x: XAxis): string {
  if (x === "time") return formatDuration(value);
  const count = Math.round(value).toLocaleString("en");
  return x === "step" ? `step ${count}` : `${count} ${x}`;
}

function compact(value: number): string {
  const size = Math.abs(value);
  if (size >= 1e9) return `${Number((value / 1e9).toPrecision(3))}G`;
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  return String(Number(value.toPrecision(4)));
}
