// The stream of changes, held open. It goes on from what was seen last, also after a restart of the
// server; while it is lost it is tried again at growing intervals.

import type { CommandMessage, EventMessage, RunRow, Source } from "./types";

export interface SeriesPart {
  run_id: number;
  source: Source;
  name: string;
  shown: string;
  steps: number[];
  values: (number | null)[];
  times_s: number[];
}

export interface Batch {
  trained_by: number | null;
  series: SeriesPart[];
  events: EventMessage[];
  commands: CommandMessage[];
  runs: RunRow[];
}

export type Connection = "connecting" | "live" | "lost";

interface Listener {
  onBatch: (batch: Batch) => void;
  /** Something was missed: all has to be read anew. */
  onReset: () => void;
  onConnection: (connection: Connection) => void;
  /** The stream cannot be opened: perhaps the token is no longer valid. */
  onRefused: () => void;
}

const LONGEST_WAIT_MS = 5000;

export class Stream {
  private source: EventSource | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private attempts = 0;

  constructor(
    private readonly experiment: string,
    private cursor: string,
    private readonly listener: Listener,
  ) {
    this.open();
  }

  close(): void {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  private open(): void {
    const query = new URLSearchParams({ after: this.cursor });
    const source = new EventSource(`/api/v1/experiments/${encodeURIComponent(this.experiment)}/stream?${query}`);
    this.source = source;
    source.addEventListener("hello", (event) => this.heard(event));
    source.addEventListener("batch", (event) => {
      this.heard(event);
      this.listener.onBatch(JSON.parse(event.data) as Batch);
    });
    source.addEventListener("reset", (event) => {
      this.heard(event);
      this.listener.onReset();
    });
    source.onerror = () => this.retry();
  }

  private heard(event: MessageEvent): void {
    if (event.lastEventId) this.cursor = event.lastEventId;
    this.attempts = 0;
    this.listener.onConnection("live");
  }

  private retry(): void {
    this.close();
    this.listener.onConnection("lost");
    this.attempts += 1;
    if (this.attempts % 3 === 0) this.listener.onRefused();
    const wait = Math.min(LONGEST_WAIT_MS, 250 * 2 ** this.attempts);
    this.timer = setTimeout(() => this.open(), wait);
  }
}
