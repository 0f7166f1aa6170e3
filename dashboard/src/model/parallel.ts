// Parallel coordinates: where a value lies on its axis, and which runs pass all brushes.

import type { Json } from "../api/types";
import { formatKnob, formatNumber } from "./format";

export interface Tick {
  /** 0 at the bottom, 1 at the top. */
  place: number;
  label: string;
}

export interface Axis {
  id: string;
  label: string;
  kind: "linear" | "log" | "choice";
  ticks: Tick[];
  /** null where the run has no such value. */
  place: (value: Json | undefined) => number | null;
}

/** An axis for the values that runs have: numbers by size, by magnitude if they span several. */
export function makeAxis(id: string, label: string, values: readonly (Json | undefined)[]): Axis {
  const given = values.filter((value) => value !== undefined && value !== null);
  const numbers = given.filter((value) => typeof value === "number" && Number.isFinite(value)) as number[];
  if (given.length === 0 || numbers.length < given.length) return choiceAxis(id, label, values);
  const min = Math.min(...numbers);
  const max = Math.max(...numbers);
  const isLog = min > 0 && max / min >= 20;
  const scale = isLog ? Math.log10 : (value: number) => value;
  const low = scale(min);
  const span = scale(max) - low;
  const place = (value: Json | undefined) =>
    typeof value === "number" && Number.isFinite(value)
      ? span === 0 ? 0.5 : (scale(value) - low) / span
      : null;
  const distinct = [...new Set(numbers)].sort((a, b) => a - b);
  const marks = distinct.length <= 6 ? distinct : evenMarks(min, max, isLog);
  const ticks = marks.map((value) => ({
    place: place(value) as number,
    label: distinct.length <= 6 ? formatKnob(Number(value.toPrecision(6))) : formatNumber(value),
  }));
  return { id, label, kind: isLog ? "log" : "linear", ticks, place };
}

function choiceAxis(id: string, label: string, values: readonly (Json | undefined)[]): Axis {
  const names = [...new Set(values.filter((value) => value !== undefined).map(formatKnob))];
  names.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const placeOf = (name: string) => {
    const index = names.indexOf(name);
    return index < 0 ? null : names.length === 1 ? 0.5 : index / (names.length - 1);
  };
  return {
    id,
    label,
    kind: "choice",
    ticks: names.map((name) => ({ place: placeOf(name) as number, label: name })),
    place: (value) => (value === undefined ? null : placeOf(formatKnob(value))),
  };
}

function evenMarks(min: number, max: number, isLog: boolean): number[] {
  const count = 5;
  return Array.from({ length: count }, (_, i) => {
    const share = i / (count - 1);
    return isLog ? min * (max / min) ** share : min + (max - min) * share;
  });
}

/** Part of an axis, as [from, to] in places. */
export type Brush = readonly [number, number];

/** Whether a run with these places passes all brushes; one without a value passes none. */
export function passes(
  places: ReadonlyMap<string, number | null>,
  brushes: ReadonlyMap<string, Brush>,
): boolean {
  for (const [axis, [from, to]] of brushes) {
    const place = places.get(axis);
    if (place === null || place === undefined || place < from || place > to) return false;
  }
  return true;
}
