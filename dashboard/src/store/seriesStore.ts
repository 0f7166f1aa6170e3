// The curves of one experiment: read once in a thinned out form, then kept up by the stream.

import { api } from "../api/client";
import type { SeriesPart } from "../api/stream";
import type { RunRow, Series, XAxis } from "../api/types";
import { appendPoint, type Curve, thinned } from "../model/series";

const MAX_RUNS_PER_REQUEST = 250;
const MAX_POINTS = 1200;

interface Sheet {
  metric: string;
  x: XAxis;
  curves: Map<number, Curve>;
  /** Runs that are being read, with what the stream has told of them meanwhile. */
  loading: Map<number, SeriesPart[]>;
}

export class SeriesStore {
  private readonly sheets = new Map<string, Sheet>();
  private readonly wanted = new Map<Sheet, Set<number>>();
  private isScheduled = false;

  constructor(
    private readonly experiment: string,
    private readonly rowOf: (runId: number) => RunRow | undefined,
    private readonly changed: () => void,
    private readonly failed: (error: unknown) => void,
  ) {}

  /** The curves of some runs, as far as they are here; the others are fetched. */
  curves(metric: string, x: XAxis, runs: readonly number[]): Curve[] {
    const sheet = this.sheet(metric, x);
    const found: Curve[] = [];
    for (const runId of runs) {
      const curve = sheet.curves.get(runId);
      if (curve === undefined) this.want(sheet, runId);
      else if (curve.steps.length > 0) found.push(curve);
    }
    return found;
  }

  isLoading(metric: string, x: XAxis): boolean {
    const sheet = this.sheets.get(key(metric, x));
    return sheet === undefined || sheet.loading.size > 0 || this.wanted.has(sheet);
  }

  takeIn(parts: readonly SeriesPart[]): void {
    for (const part of parts) {
      for (const sheet of this.sheets.values()) {
        if (sheet.metric === part.shown) this.takeInPart(sheet, part);
      }
    }
  }

  /** Read the run's curves anew: its steps are trained again. */
  forget(runId: number): void {
    for (const sheet of this.sheets.values()) sheet.curves.delete(runId);
  }

  clear(): void {
    this.sheets.clear();
    this.wanted.clear();
  }

  private sheet(metric: string, x: XAxis): Sheet {
    const name = key(metric, x);
    let sheet = this.sheets.get(name);
    if (sheet === undefined) {
      sheet = { metric, x, curves: new Map(), loading: new Map() };
      this.sheets.set(name, sheet);
    }
    return sheet;
  }

  private takeInPart(sheet: Sheet, part: SeriesPart): void {
    sheet.loading.get(part.run_id)?.push(part);
    const curve = sheet.curves.get(part.run_id);
    if (curve === undefined) return;
    part.steps.forEach((step, i) => {
      const x = this.place(sheet.x, curve, step, part.times_s[i] as number);
      if (x !== null) appendPoint(curve, step, x, part.values[i] ?? Number.NaN);
    });
    if (curve.steps.length > MAX_POINTS) {
      sheet.curves.set(part.run_id, thinned(curve, MAX_POINTS / 2));
    }
  }

  /** Where a new point lies on the horizontal axis. */
  private place(x: XAxis, curve: Curve, step: number, time_s: number): number | null {
    switch (x) {
      case "step":
        return step;
      case "time":
        return time_s;
      case "samples": {
        const size = this.rowOf(curve.runId)?.samples_per_step;
        return size ? step * size : null;
      }
      case "tokens": {
        // The trainer counts them now and then; until it does, at the pace so far.
        const row = this.rowOf(curve.runId);
        const tokens = row?.metrics.num_tokens;
        if (!row || !tokens || row.step === 0) return null;
        const last = curve.x.at(-1);
        return Math.max(last ?? 0, (tokens / row.step) * step);
      }
    }
  }

  private want(sheet: Sheet, runId: number): void {
    if (sheet.loading.has(runId)) return;
    const ids = this.wanted.get(sheet) ?? new Set();
    ids.add(runId);
    this.wanted.set(sheet, ids);
    if (this.isScheduled) return;
    this.isScheduled = true;
    queueMicrotask(() => {
      this.isScheduled = false;
      for (const [wantedSheet, wantedIds] of this.wanted) void this.load(wantedSheet, [...wantedIds]);
      this.wanted.clear();
    });
  }

  private async load(sheet: Sheet, ids: readonly number[]): Promise<void> {
    for (const id of ids) sheet.loading.set(id, []);
    for (let start = 0; start < ids.length; start += MAX_RUNS_PER_REQUEST) {
      const some = ids.slice(start, start + MAX_RUNS_PER_REQUEST);
      const points = Math.round(Math.min(500, Math.max(160, 20_000 / ids.length)));
      try {
        const answer = await api.series(this.experiment, sheet.metric, sheet.x, some, points);
        this.keep(sheet, some, answer.series);
      } catch (error) {
        for (const id of ids.slice(start)) {
          sheet.loading.delete(id);
          // Not asked for again at every frame; what comes by the stream is shown.
          sheet.curves.set(id, emptyCurve(id));
        }
        this.failed(error);
        return;
      }
    }
  }

  private keep(sheet: Sheet, ids: readonly number[], series: readonly Series[]): void {
    for (const id of ids) sheet.curves.set(id, emptyCurve(id));
    for (const one of series) sheet.curves.set(one.run_id, toCurve(one));
    for (const id of ids) {
      const missed = sheet.loading.get(id) ?? [];
      sheet.loading.delete(id);
      for (const part of missed) this.takeInPart(sheet, part);
    }
    this.changed();
  }
}

function key(metric: string, x: XAxis): string {
  return `${x} ${metric}`;
}

function emptyCurve(runId: number): Curve {
  return { runId, steps: [], x: [], y: [] };
}

function toCurve(series: Series): Curve {
  const curve = emptyCurve(series.run_id);
  series.steps.forEach((step, i) => {
    const x = series.x === null ? step : series.x[i];
    if (x === null || x === undefined) return;
    curve.steps.push(step);
    curve.x.push(x);
    curve.y.push(series.values[i] ?? Number.NaN);
  });
  return curve;
}
