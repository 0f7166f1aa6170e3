// All that the page knows of one experiment: read once, then kept up by the stream. What comes in
// is taken in at once and shown with the next frame.

import { api, ApiError } from "../api/client";
import { type Batch, type Connection, Stream } from "../api/stream";
import type {
  CommandMessage, CommandRequest, Configs, EventMessage, Experiment, MetricName, RunRow,
} from "../api/types";
import type { Knobs } from "../model/table";
import { SeriesStore } from "./seriesStore";

/** After these a run's steps may be trained a second time. */
const TRAINED_AGAIN = new Set(["RunStarted", "RunRecovered", "RunResumed"]);

const MAX_EVENTS = 500;

/** Before what could not be read is tried again: it may be about to begin. */
const RETRY_MS = 2000;

export class ExperimentStore {
  rows = new Map<number, RunRow>();
  /** In the order of their numbers; a new array whenever one of them changes. */
  runs: readonly RunRow[] = [];
  knobs: ReadonlyMap<number, Knobs> = new Map();
  differing: readonly string[] = [];
  metrics: readonly MetricName[] = [];
  commands: readonly CommandMessage[] = [];
  events: readonly EventMessage[] = [];
  summary: Experiment | null = null;
  trainedBy: number | null = null;
  connection: Connection = "connecting";
  problem: ApiError | null = null;
  isLoaded = false;
  /** Changes with whatever is shown. */
  version = 0;
  readonly series: SeriesStore;

  private stream: Stream | null = null;
  private readonly listeners = new Set<() => void>();
  private frame: number | null = null;
  private isClosed = false;
  private isReading = false;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(readonly name: string) {
    this.series = new SeriesStore(name, (id) => this.rows.get(id), () => this.changed(), (error) => this.fail(error));
    void this.load();
  }

  subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  getVersion = (): number => this.version;

  close(): void {
    this.isClosed = true;
    this.stream?.close();
    clearTimeout(this.timer);
    if (this.frame !== null) cancelAnimationFrame(this.frame);
  }

  /** Give commands; what becomes of them comes by the stream. */
  async give(commands: readonly CommandRequest[]): Promise<CommandMessage[]> {
    const given = await api.give(this.name, commands);
    this.takeInCommands(given);
    this.changed();
    return given;
  }

  private async load(): Promise<void> {
    try {
      const [runs, summary, configs, metrics, commands] = await Promise.all([
        api.runs(this.name), api.experiment(this.name), api.configs(this.name),
        api.metrics(this.name), api.commands(this.name),
      ]);
      if (this.isClosed) return;
      this.rows = new Map(runs.runs.map((row) => [row.run_id, row]));
      this.runs = runs.runs;
      this.trainedBy = runs.trained_by;
      this.summary = summary;
      this.metrics = metrics;
      this.takeInConfigs(configs);
      this.takeInCommands(commands);
      this.series.clear();
      this.problem = null;
      this.isLoaded = true;
      this.follow(runs.cursor);
    } catch (error) {
      this.fail(error);
      if (!this.isClosed && !this.problem?.isUnauthorised) {
        this.timer = setTimeout(() => void this.load(), RETRY_MS);
      }
    }
    this.changed();
  }

  private follow(cursor: string): void {
    this.stream?.close();
    this.stream = new Stream(this.name, cursor, {
      onBatch: (batch) => this.takeIn(batch),
      onReset: () => void this.load(),
      onConnection: (connection) => {
        if (connection === this.connection) return;
        this.connection = connection;
        this.changed();
      },
      onRefused: () => void api.server().catch((error: unknown) => {
        if (error instanceof ApiError && error.isUnauthorised) this.fail(error);
      }),
    });
  }

  private takeIn(batch: Batch): void {
    this.trainedBy = batch.trained_by;
    const areNew = batch.runs.some((row) => !this.rows.has(row.run_id));
    for (const event of batch.events) {
      if (TRAINED_AGAIN.has(event.type)) this.series.forget(event.run_id);
    }
    if (batch.runs.length > 0) {
      for (const row of batch.runs) this.rows.set(row.run_id, row);
      this.runs = [...this.rows.values()].sort((a, b) => a.run_id - b.run_id);
    }
    this.series.takeIn(batch.series);
    this.takeInCommands(batch.commands);
    if (batch.events.length > 0) this.events = [...this.events, ...batch.events].slice(-MAX_EVENTS);
    this.takeInMetrics(batch);
    if (areNew) void this.readConfigs();
    this.changed();
  }

  private takeInMetrics(batch: Batch): void {
    const known = new Set(this.metrics.map((one) => one.shown));
    if (batch.series.some((part) => !known.has(part.shown))) void this.readConfigs();
  }

  /** What the stream does not tell: configurations and the names of metrics. */
  private async readConfigs(): Promise<void> {
    if (this.isReading) return;
    this.isReading = true;
    try {
      const [configs, metrics] = await Promise.all([api.configs(this.name), api.metrics(this.name)]);
      this.takeInConfigs(configs);
      this.metrics = metrics;
      this.changed();
    } catch (error) {
      this.fail(error);
    } finally {
      this.isReading = false;
    }
  }

  private takeInConfigs({ configs, differing }: Configs): void {
    this.knobs = new Map(Object.entries(configs).map(([id, knobs]) => [Number(id), knobs]));
    this.differing = differing;
  }

  private takeInCommands(commands: readonly CommandMessage[]): void {
    if (commands.length === 0) return;
    const byId = new Map(this.commands.map((one) => [one.command_id, one]));
    for (const command of commands) {
      // An answer to a request may come after the stream has told how it ended.
      if (command.status === "pending" && byId.has(command.command_id)) continue;
      byId.set(command.command_id, command);
    }
    this.commands = [...byId.values()].sort((a, b) => a.command_id - b.command_id);
  }

  private fail(error: unknown): void {
    if (this.isClosed) return;
    this.problem = error instanceof ApiError ? error : new ApiError(0, "page", String(error));
    this.changed();
  }

  private changed(): void {
    if (this.isClosed || this.frame !== null) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.version += 1;
      for (const listener of this.listeners) listener();
    });
  }
}
