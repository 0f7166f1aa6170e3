// Requests to the server. All problems become an ApiError with the server's own words.

import type {
  Checked, CommandMessage, CommandRequest, Configs, Experiment, Knob, LogPart, MetricName,
  RunDetail, Runs, SeriesOfRuns, ServerStatus, Timeline, Tracker, XAxis,
} from "./types";

const BASE = "/api/v1";

export class ApiError extends Error {
  constructor(readonly status: number, readonly code: string, message: string) {
    super(message);
    this.name = "ApiError";
  }

  /** Whether a valid token is missing. */
  get isUnauthorised(): boolean {
    return this.status === 401;
  }
}

async function request<T>(path: string, init?: RequestInit): Promise<T> {
  let response: Response;
  try {
    response = await fetch(BASE + path, { credentials: "same-origin", ...init });
  } catch {
    throw new ApiError(0, "unreachable", "the server cannot be reached");
  }
  const body: unknown = await response.json().catch(() => null);
  if (!response.ok) {
    const problem = (body ?? {}) as { code?: unknown; message?: unknown };
    const message = typeof problem.message === "string" ? problem.message : `the server answered ${response.status}`;
    throw new ApiError(response.status, String(problem.code ?? ""), message);
  }
  return body as T;
}

function post<T>(path: string, body: unknown): Promise<T> {
  return request<T>(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

const of = (experiment: string) => `/experiments/${encodeURIComponent(experiment)}`;

export const api = {
  server: () => request<ServerStatus>("/server"),
  experiments: () =>
    request<{ experiments: Experiment[] }>("/experiments").then((answer) => answer.experiments),
  experiment: (name: string) => request<Experiment>(of(name)),
  trackers: (name: string) =>
    request<{ trackers: Tracker[] }>(`${of(name)}/trackers`).then((answer) => answer.trackers),
  runs: (name: string) => request<Runs>(`${of(name)}/runs`),
  run: (name: string, runId: number) => request<RunDetail>(`${of(name)}/runs/${runId}`),
  configs: (name: string) => request<Configs>(`${of(name)}/configs`),
  knobs: (name: string, runId: number) =>
    request<{ knobs: Knob[] }>(`${of(name)}/runs/${runId}/knobs`).then((answer) => answer.knobs),
  metrics: (name: string) =>
    request<{ metrics: MetricName[] }>(`${of(name)}/metrics`).then((answer) => answer.metrics),
  series: (name: string, metric: string, x: XAxis, runs: readonly number[], points: number) => {
    const query = new URLSearchParams({ metric, x, points: String(points), runs: runs.join(",") });
    return request<SeriesOfRuns>(`${of(name)}/series?${query}`);
  },
  timeline: (name: string) => request<Timeline>(`${of(name)}/timeline?limit=20000`),
  log: (name: string, runId: number | null, after: number | null) => {
    const query = new URLSearchParams();
    if (runId !== null) query.set("run_id", String(runId));
    if (after !== null) query.set("after", String(after));
    return request<LogPart>(`${of(name)}/log?${query}`);
  },
  commands: (name: string) =>
    request<{ commands: CommandMessage[] }>(`${of(name)}/commands`).then((answer) => answer.commands),
  give: (name: string, commands: readonly CommandRequest[]) =>
    post<{ commands: CommandMessage[] }>(`${of(name)}/commands`, { commands }).then((answer) => answer.commands),
  check: (name: string, commands: readonly CommandRequest[]) =>
    post<{ checked: Checked[] }>(`${of(name)}/commands/check`, { commands }).then((answer) => answer.checked),
};
