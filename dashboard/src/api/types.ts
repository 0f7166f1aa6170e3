// What the server answers and takes, as its OpenAPI description has it.

export type RunStatus =
  | "queued"
  | "running"
  | "waiting"
  | "completed"
  | "stopped"
  | "pruned"
  | "failed"
  | "interrupted"
  | "deleted";

export type Verb =
  | "stop"
  | "resume"
  | "prune"
  | "delete"
  | "restore"
  | "pin"
  | "unpin"
  | "clone";

export type Source = "step" | "log" | "chunk" | "device";
export type XAxis = "step" | "samples" | "tokens" | "time";
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

export interface ServerStatus {
  version: string;
  pid: number;
  started_s: number;
  now_s: number;
  experiments_path: string;
  num_listeners: number;
}

export interface Best {
  run_id: number;
  metric: string;
  value: number;
}

export interface Experiment {
  name: string;
  state: "training" | "interrupted" | "ended" | "unreadable";
  problem: string | null;
  trained_by: number | null;
  created_s: number | null;
  seed: number | null;
  num_chunks: number | null;
  versions: Record<string, string>;
  settings: Record<string, Json>;
  num_runs: number;
  statuses: Partial<Record<RunStatus, number>>;
  progress: number | null;
  remaining_s: number | null;
  best: Best | null;
}

export interface Tracker {
  name: string;
  state: "current" | "sending" | "failing" | "behind";
  where: string;
  num_waiting: number;
  num_runs_waiting: number;
  problem: string | null;
  since_s: number | null;
  told: string;
  page: string | null;
}

export interface RunRow {
  run_id: number;
  name: string;
  status: RunStatus;
  step: number;
  num_steps: number | null;
  chunks_done: number;
  num_chunks: number | null;
  active_s: number | null;
  remaining_s: number | null;
  loss: number | null;
  metrics: Record<string, number | null>;
  sparkline: (number | null)[];
  pinned: boolean;
  trainer_type: string | null;
  model_name: string | null;
  samples_per_step: number | null;
  worker_id: number | null;
  parent_id: number | null;
  modified: Record<string, [Json, Json]>;
  fork: Record<string, Json> | null;
  error: string | null;
  passes: string;
  num_notes: number;
  deleted_from: RunStatus | null;
  undo_until_s: number | null;
  purged: boolean;
  version: number;
}

export interface Runs {
  version: number;
  cursor: string;
  trained_by: number | null;
  runs: RunRow[];
}

export interface ChosenMode {
  kind: string;
  mode: "fused" | "sliced";
  reason: string;
  members: number[];
  fused_s: number | null;
  sliced_s: number | null;
  step: number;
}

export interface RunDetail {
  row: RunRow;
  config: Record<string, Json>;
  resolved: Record<string, Json>;
  modes: ChosenMode[];
  notes: string[];
  traceback: string | null;
  path: string;
  mlflow_page: string | null;
}

export interface Configs {
  differing: string[];
  configs: Record<string, Record<string, Json>>;
}

export interface Knob {
  name: string;
  type: string[];
  default: Json;
  allowed: string;
  enum: Json[];
  value: Json;
  is_set: boolean;
  used: Json[];
}

export interface MetricName {
  source: Source;
  name: string;
  shown: string;
  maximised: boolean;
}

export interface Series {
  run_id: number;
  steps: number[];
  values: (number | null)[];
  x: (number | null)[] | null;
}

export interface SeriesOfRuns {
  source: Source;
  metric: string;
  x: XAxis;
  cursor: string;
  series: Series[];
}

export interface EventMessage {
  seq: number;
  time_s: number;
  type: string;
  run_id: number;
  data: Record<string, Json>;
}

export interface Turn {
  seq: number;
  run_id: number;
  worker_id: number;
  chunk: number;
  start_s: number;
  started_s: number | null;
  end_s: number | null;
  end: string | null;
  active_s: number | null;
  gap_s: number | null;
}

export interface Timeline {
  turns: Turn[];
  busy_s: number;
  active_s: number;
  span_s: number;
  utilisation: number | null;
  first_seq: number;
  last_seq: number;
}

export interface LogPart {
  lines: string[];
  first: number;
  next: number;
  size: number;
}

export interface CommandRequest {
  verb: Verb;
  run_id: number;
  reason?: string;
  modify?: Record<string, Json>;
  warm_start?: boolean;
  optimizer?: "keep" | "reset";
  schedule?: "continue" | "restart";
}

export interface CommandMessage {
  command_id: number;
  verb: Verb;
  run_id: number;
  by: string;
  reason: string;
  modify: Record<string, Json>;
  warm_start: boolean;
  optimizer: "keep" | "reset";
  schedule: "continue" | "restart";
  given_s: number;
  status: "pending" | "applied" | "rejected";
  settled_s: number | null;
  latency_s: number | null;
  outcome: string;
  step: number | null;
  new_run_id: number | null;
}

export interface Forecast {
  step: number;
  num_steps: number | null;
  remaining_steps: number | null;
  estimated: boolean;
  text: string;
}

export interface Checked {
  refusal: string | null;
  differences: Record<string, [Json, Json]>;
  forecast: Forecast | null;
}
