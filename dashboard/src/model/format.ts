// Numbers, times and values as people read them.

import type { Json } from "../api/types";

const MISSING = "–";

/** A measured value: four significant digits, exponents only where they are shorter. */
export function formatNumber(value: number | null | undefined): string {
  if (value === null || value === undefined || Number.isNaN(value)) return MISSING;
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "-∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return tidyExponent(value.toExponential(2));
  if (size >= 1000) return value.toFixed(0);
  return value.toPrecision(4);
}

/** A value of a configuration: as it was written, not rounded. */
export function formatKnob(value: Json | undefined): string {
  if (value === undefined) return MISSING;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") {
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e6)
      ? tidyExponent(value.toExponential())
      : String(value);
  }
  if (typeof value === "string") return value;
  return JSON.stringify(value);
}

/** Seconds as "12 s", "3 m 20 s", "1 h 05 m". */
export function formatDuration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return MISSING;
  if (seconds < 0.0095) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 0.9995) return `${Math.round(seconds * 1e3)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${pad(whole % 60)} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 60 * 48) return `${Math.floor(minutes / 60)} h ${pad(minutes % 60)} m`;
  return `${Math.round(minutes / 60 / 24)} days`;
}

/** How long ago something was, or when it will be. */
export function formatAgo(time_s: number, now_s: number): string {
  const past = now_s - time_s;
  return past < 5 ? "just now" : `${formatDuration(past)} ago`;
}

/** A time of day, with the date where it is another day's. */
export function formatClock(time_s: number, now_s: number): string {
  const time = new Date(time_s * 1000);
  const clock = time.toLocaleTimeString([], { hour12: false });
  const sameDay = time.toDateString() === new Date(now_s * 1000).toDateString();
  return sameDay ? clock : `${time.toLocaleDateString()} ${clock}`;
}

/** The last part of a knob's full name, which is enough where it is unique. */
export function shortKnob(full: string): string {
  return full.slice(full.lastIndexOf(".") + 1);
}

/** "1 run", "3 runs". */
export function plural(count: number, noun: string): string {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** Run numbers as "1, 2 and 7", and no more than a few of them. */
export function listRuns(ids: readonly number[]): string {
  if (ids.length > 4) return `${ids.length} runs`;
  const last = ids.at(-1);
  if (ids.length === 1) return `run ${last}`;
  return `runs ${ids.slice(0, -1).join(", ")} and ${last}`;
}

function tidyExponent(text: string): string {
  return text.replace(/\.?0*e/, "e").replace("e+", "e");
}

function pad(value: number): string {
  return String(value).padStart(2, "0");
}
