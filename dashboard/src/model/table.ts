// The rows of the table: which are shown, in which order, in which groups.

import type { Json, RunRow } from "../api/types";
import { formatKnob, shortKnob } from "./format";

export type Knobs = Readonly<Record<string, Json>>;
export type KnobsOfRuns = ReadonlyMap<number, Knobs>;

export interface Column {
  id: string;
  label: string;
  /** Of what kind its values are; decides about alignment and sorting. */
  kind: "number" | "text";
  value: (row: RunRow) => Json | undefined;
}

const STATUS_ORDER = [
  "running", "waiting", "queued", "interrupted", "completed", "stopped", "pruned", "failed", "deleted",
];

const FIRST_COLUMNS: readonly Column[] = [
  { id: "run", label: "Run", kind: "number", value: (row) => row.run_id },
  { id: "status", label: "Status", kind: "number", value: (row) => STATUS_ORDER.indexOf(row.status) },
  { id: "progress", label: "Progress", kind: "number", value: progressOf },
  { id: "sparkline", label: "Curve", kind: "number", value: (row) => row.loss },
  { id: "eta", label: "Time to go", kind: "number", value: (row) => row.remaining_s ?? undefined },
];

const LAST_COLUMNS: readonly Column[] = [
  { id: "active", label: "Trained for", kind: "number", value: (row) => row.active_s ?? undefined },
  { id: "trainer", label: "Trainer", kind: "text", value: (row) => row.trainer_type ?? undefined },
  { id: "model", label: "Model", kind: "text", value: (row) => row.model_name ?? undefined },
  { id: "name", label: "Name", kind: "text", value: (row) => row.name },
];

/** The share of a run's steps that is done; undefined before it is known. */
export function progressOf(row: RunRow): number | undefined {
  if (row.status === "completed") return 1;
  return row.num_steps ? Math.min(1, row.step / row.num_steps) : undefined;
}

/** All columns there are, in the order in which a person would look for them. */
export function allColumns(metrics: readonly string[], knobs: readonly string[], of: KnobsOfRuns): Column[] {
  const measured = [...metrics].sort((a, b) => rankOf(a) - rankOf(b)).map((name): Column => ({
    id: name,
    label: name,
    kind: "number",
    value: (row) => row.metrics[name] ?? undefined,
  }));
  const configured = knobs.map((name): Column => ({
    id: name,
    label: shortKnob(name),
    kind: "text",
    value: (row) => of.get(row.run_id)?.[name],
  }));
  const devices = measured.findIndex((column) => rankOf(column.id) === DEVICE_RANK);
  const split = devices < 0 ? measured.length : devices;
  return [...FIRST_COLUMNS, ...measured.slice(0, split), ...configured, ...measured.slice(split), ...LAST_COLUMNS];
}

const DEVICE_RANK = 3;

/** Losses first, what the device did last. */
function rankOf(metric: string): number {
  if (metric === "loss") return 0;
  if (/memory|percent|runtime|_per_second/.test(metric)) return DEVICE_RANK;
  return metric.startsWith("eval_") ? 1 : 2;
}

/** The columns that are shown where nobody has chosen any. */
export function usualColumns(metrics: readonly string[], knobs: readonly string[]): string[] {
  const wanted = ["loss", "eval_loss", "eval_reward", "reward", "eval_mean_token_accuracy"];
  const measured = wanted.filter((name) => metrics.includes(name)).slice(0, 3);
  const memory = ["device_memory_gib", "host_memory_gib"].filter((name) => metrics.includes(name));
  return ["run", "status", "progress", "sparkline", "eta", ...measured, ...memory.slice(0, 1), ...knobs.slice(0, 4)];
}

/**
 * Whether a row passes a filter: all words have to be found. A word may name a column, as in
 * `status:failed` or `lr:1e-4`, or compare, as in `loss<2`.
 */
export function matcher(filter: string, columns: readonly Column[], of: KnobsOfRuns): (row: RunRow) => boolean {
  const tests = filter.trim().toLowerCase().split(/\s+/).filter(Boolean).map((word) => wordTest(word, columns, of));
  return (row) => tests.every((test) => test(row));
}

function wordTest(word: string, columns: readonly Column[], of: KnobsOfRuns): (row: RunRow) => boolean {
  const compared = /^([^<>:=]+)(<=|>=|<|>|=|:)(.+)$/.exec(word);
  if (compared) {
    const [, name = "", sign = "", wanted = ""] = compared;
    const column = findColumn(name, columns);
    if (column) return (row) => holds(shownValue(column, row), sign, wanted);
  }
  return (row) => {
    const knobs = of.get(row.run_id) ?? {};
    const texts = [`run ${row.run_id}`, row.name, row.status, row.trainer_type, row.model_name, row.pinned ? "pinned" : ""];
    return (
      String(row.run_id) === word ||
      texts.some((text) => text?.toLowerCase().includes(word)) ||
      Object.entries(knobs).some(([name, value]) =>
        `${shortKnob(name)}=${formatKnob(value)}`.toLowerCase().includes(word))
    );
  };
}

function findColumn(name: string, columns: readonly Column[]): Column | undefined {
  const is = (text: string) => text.toLowerCase() === name;
  // A knob goes before a metric of its name, such as the learning rate that trainers log.
  const named = columns.filter((one) => is(one.id) || is(one.label));
  return (
    named.find((one) => one.kind === "text") ??
    named[0] ??
    columns.find((one) => one.label.toLowerCase().startsWith(name))
  );
}

function shownValue(column: Column, row: RunRow): Json | undefined {
  return column.id === "status" ? row.status : column.value(row);
}

function holds(value: Json | undefined, sign: string, wanted: string): boolean {
  const number = Number(wanted);
  if (typeof value === "number" && !Number.isNaN(number)) {
    switch (sign) {
      case "<": return value < number;
      case ">": return value > number;
      case "<=": return value <= number;
      case ">=": return value >= number;
      default: return value === number;
    }
  }
  return (sign === ":" || sign === "=") && formatKnob(value).toLowerCase().includes(wanted);
}

/** Rows in order; what has no value comes last whichever way, pinned ones first. */
export function sortRows(rows: readonly RunRow[], sort: string, columns: readonly Column[]): RunRow[] {
  const sign = sort.startsWith("-") ? -1 : 1;
  const column = columns.find((one) => one.id === sort.replace(/^-/, ""));
  const keyed = rows.map((row) => ({ row, key: column?.value(row) }));
  keyed.sort((a, b) =>
    Number(b.row.pinned) - Number(a.row.pinned) ||
    compareKeys(a.key, b.key, sign) ||
    a.row.run_id - b.row.run_id);
  return keyed.map(({ row }) => row);
}

function compareKeys(a: Json | undefined, b: Json | undefined, sign: number): number {
  const missing = (key: Json | undefined) => key === undefined || key === null;
  if (missing(a) || missing(b)) return Number(missing(a)) - Number(missing(b));
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * formatKnob(a).localeCompare(formatKnob(b), "en", { numeric: true });
}

export type Line =
  | { kind: "group"; key: string; label: string; rows: readonly RunRow[] }
  | { kind: "run"; row: RunRow };

/** The rows as lines of the table, with a heading before each group. */
export function groupRows(rows: readonly RunRow[], group: string, columns: readonly Column[], closed: ReadonlySet<string>): Line[] {
  const column = columns.find((one) => one.id === group);
  if (!column) return rows.map((row) => ({ kind: "run", row }));
  const groups = new Map<string, RunRow[]>();
  for (const row of rows) {
    const key = formatKnob(shownValue(column, row));
    const members = groups.get(key);
    if (members) members.push(row);
    else groups.set(key, [row]);
  }
  const keys = [...groups.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  return keys.flatMap((key): Line[] => {
    const members = groups.get(key) as RunRow[];
    const head: Line = { kind: "group", key, label: `${column.label}: ${key}`, rows: members };
    return closed.has(key) ? [head] : [head, ...members.map((row): Line => ({ kind: "run", row }))];
  });
}

/** The lines that are near what can be seen of a long list. */
export function visibleLines(count: number, scrollTop: number, height: number, lineHeight: number): [number, number] {
  const spare = 8;
  const first = Math.max(0, Math.floor(scrollTop / lineHeight) - spare);
  const last = Math.min(count, Math.ceil((scrollTop + height) / lineHeight) + spare);
  return [Math.min(first, count), last];
}
