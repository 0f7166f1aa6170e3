// The device's timeline: turns in lanes, found by place, with those who share a worker at a time.

import type { Turn } from "../api/types";

export interface Lane {
  label: string;
  runId: number | null;
  turns: readonly Turn[];
}

export interface Span {
  from: number;
  to: number;
}

/** A lane for each worker, then one for each run that has had a turn. */
export function lanesOf(turns: readonly Turn[]): Lane[] {
  const workers = groupBy(turns, (turn) => turn.worker_id);
  const runs = groupBy(turns, (turn) => turn.run_id);
  return [
    ...[...workers].sort(([a], [b]) => a - b).map(([id, own]) => ({ label: `worker ${id}`, runId: null, turns: own })),
    ...[...runs].sort(([a], [b]) => a - b).map(([id, own]) => ({ label: `run ${id}`, runId: id, turns: own })),
  ];
}

/** From the first turn's begin to the last one's end; a turn that goes on ends now. */
export function wholeSpan(turns: readonly Turn[], now_s: number): Span {
  if (turns.length === 0) return { from: now_s - 1, to: now_s };
  const from = Math.min(...turns.map((turn) => turn.start_s));
  const to = Math.max(...turns.map((turn) => turn.end_s ?? now_s));
  return { from, to: Math.max(to, from + 0.001) };
}

/** The other runs that held the same worker at the same time. */
export function companions(turn: Turn, turns: readonly Turn[], now_s: number): number[] {
  const end_s = turn.end_s ?? now_s;
  return turns
    .filter((other) =>
      other !== turn && other.run_id !== turn.run_id && other.worker_id === turn.worker_id &&
      other.start_s < end_s && (other.end_s ?? now_s) > turn.start_s)
    .map((other) => other.run_id);
}

/** Seconds between turns in which a worker had nobody, and those of turns in which nobody trained. */
export function handOvers(turns: readonly Turn[]): { gaps_s: number; overhead_s: number; mean_s: number | null } {
  let gaps_s = 0;
  let overhead_s = 0;
  let count = 0;
  for (const turn of turns) {
    gaps_s += turn.gap_s ?? 0;
    if (turn.end_s === null || turn.active_s === null) continue;
    overhead_s += Math.max(0, turn.end_s - turn.start_s - turn.active_s);
    count += 1;
  }
  return { gaps_s, overhead_s, mean_s: count === 0 ? null : (gaps_s + overhead_s) / count };
}

function groupBy<K>(turns: readonly Turn[], keyOf: (turn: Turn) => K): Map<K, Turn[]> {
  const groups = new Map<K, Turn[]>();
  for (const turn of turns) {
    const members = groups.get(keyOf(turn));
    if (members) members.push(turn);
    else groups.set(keyOf(turn), [turn]);
  }
  return groups;
}
