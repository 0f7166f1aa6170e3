// How much of what a metric does among runs each knob explains by itself.

import type { Json } from "../api/types";
import { formatKnob } from "./format";

export interface Importance {
  knob: string;
  /** 0 to 1: share of the metric's variance between runs that goes along with the knob. */
  share: number;
  /** For a numeric knob, whether the metric grows (1) or shrinks (-1) with it; 0 if neither. */
  direction: number;
}

const MIN_RUNS = 4;

/**
 * For each knob the share of the variance of the metric's ranks between the groups of runs with
 * equal values, less what as many groups would explain by chance (epsilon squared). Of knobs that
 * were changed together none can be told from the other.
 */
export function importances(
  knobs: readonly string[],
  runs: readonly { knobs: Readonly<Record<string, Json>>; value: number }[],
): Importance[] {
  if (runs.length < MIN_RUNS) return [];
  const ranks = ranksOf(runs.map((run) => run.value));
  const result = knobs.map((knob) => {
    const values = runs.map((run) => run.knobs[knob]);
    return { knob, share: explained(values.map(formatKnob), ranks), direction: direction(values, ranks) };
  });
  return result.sort((a, b) => b.share - a.share);
}

function explained(keys: readonly string[], ranks: readonly number[]): number {
  const groups = new Map<string, number[]>();
  keys.forEach((key, i) => {
    const members = groups.get(key) ?? [];
    members.push(ranks[i] as number);
    groups.set(key, members);
  });
  const count = ranks.length;
  if (groups.size < 2 || groups.size >= count) return continuous(keys, ranks);
  const mean = (count + 1) / 2;
  const total = sum(ranks.map((rank) => (rank - mean) ** 2));
  const within = sum([...groups.values()].flatMap((members) => {
    const own = sum(members) / members.length;
    return members.map((rank) => (rank - own) ** 2);
  }));
  if (total === 0) return 0;
  const noise = within / (count - groups.size);
  return Math.max(0, Math.min(1, (total - within - (groups.size - 1) * noise) / total));
}

/** Where every run has a value of its own: the squared correlation of the ranks. */
function continuous(keys: readonly string[], ranks: readonly number[]): number {
  const numbers = keys.map(Number);
  if (numbers.some(Number.isNaN)) return 0;
  const r = correlation(ranksOf(numbers), ranks);
  const count = ranks.length;
  return Math.max(0, 1 - ((1 - r * r) * (count - 1)) / (count - 2));
}

function direction(values: readonly (Json | undefined)[], ranks: readonly number[]): number {
  if (!values.every((value) => typeof value === "number")) return 0;
  const r = correlation(ranksOf(values as number[]), ranks);
  return Math.abs(r) < 0.2 ? 0 : Math.sign(r);
}

/** Ranks from 1; equal values share the mean of theirs. */
function ranksOf(values: readonly number[]): number[] {
  const order = values.map((_, i) => i).sort((a, b) => (values[a] as number) - (values[b] as number));
  const ranks = new Array<number>(values.length);
  for (let start = 0; start < order.length; ) {
    let end = start;
    while (end + 1 < order.length && values[order[end + 1] as number] === values[order[start] as number]) end++;
    for (let i = start; i <= end; i++) ranks[order[i] as number] = (start + end) / 2 + 1;
    start = end + 1;
  }
  return ranks;
}

function correlation(a: readonly number[], b: readonly number[]): number {
  const meanA = sum(a) / a.length;
  const meanB = sum(b) / b.length;
  const spreadA = sum(a.map((one) => (one - meanA) ** 2));
  const spreadB = sum(b.map((one) => (one - meanB) ** 2));
  if (spreadA === 0 || spreadB === 0) return 0;
  return sum(a.map((one, i) => (one - meanA) * ((b[i] as number) - meanB))) / Math.sqrt(spreadA * spreadB);
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
