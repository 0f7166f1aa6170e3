// What a person looks at, as the address of the page holds it: links can be shared.

import type { XAxis } from "../api/types";

export type Tab = "runs" | "timeline" | "parallel" | "compare" | "lineage" | "log";
export const TABS: readonly Tab[] = ["runs", "timeline", "parallel", "compare", "lineage", "log"];

export type Shown = "auto" | "selected" | "all";

export interface ViewState {
  tab: Tab;
  /** The run whose own page is open. */
  run: number | null;
  selected: readonly number[];
  /** Charts, by the names under which rows show the metrics; empty: those that fit. */
  metrics: readonly string[];
  x: XAxis;
  smoothing: number;
  logX: boolean;
  logY: boolean;
  filter: string;
  /** A column and a sign: "-loss" has the greatest first. */
  sort: string;
  group: string;
  /** Columns of the table; empty: those that fit. */
  columns: readonly string[];
  shown: Shown;
}

export const DEFAULT_VIEW: ViewState = {
  tab: "runs",
  run: null,
  selected: [],
  metrics: [],
  x: "step",
  smoothing: 0,
  logX: false,
  logY: false,
  filter: "",
  sort: "",
  group: "",
  columns: [],
  shown: "auto",
};

export type Route = { page: "overview" } | { page: "experiment"; name: string; view: ViewState };

/** The route of an address's fragment; what it does not know, it takes for not given. */
export function parseRoute(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#/, "").split("?", 2);
  const parts = path.split("/").filter(Boolean);
  if (parts[0] !== "experiments" || parts[1] === undefined) return { page: "overview" };
  const view = parseView(new URLSearchParams(query));
  const name = safeDecode(parts[1]);
  const run = parts[2] === "runs" ? positive(parts[3]) : null;
  const tab = TABS.find((one) => one === parts[2]) ?? "runs";
  return { page: "experiment", name, view: { ...view, run, tab: run === null ? tab : "runs" } };
}

/** The fragment of a route; what is as usual is left out. */
export function formatRoute(route: Route): string {
  if (route.page === "overview") return "#/";
  const { name, view } = route;
  const base = `#/experiments/${encodeURIComponent(name)}`;
  const place = view.run !== null ? `/runs/${view.run}` : view.tab === "runs" ? "" : `/${view.tab}`;
  const query = formatView(view).toString();
  return base + place + (query && `?${query}`);
}

function parseView(query: URLSearchParams): ViewState {
  const list = (name: string) => (query.get(name) ?? "").split(",").filter(Boolean);
  const smoothing = Number(query.get("smooth") ?? 0);
  const x = query.get("x");
  const shown = query.get("show");
  return {
    ...DEFAULT_VIEW,
    selected: list("sel").map(positive).filter((id) => id !== null),
    metrics: list("metrics"),
    x: x === "samples" || x === "tokens" || x === "time" ? x : "step",
    smoothing: smoothing > 0 && smoothing < 1 ? smoothing : 0,
    logX: query.get("logx") === "1",
    logY: query.get("logy") === "1",
    filter: query.get("q") ?? "",
    sort: query.get("sort") ?? "",
    group: query.get("group") ?? "",
    columns: list("cols"),
    shown: shown === "selected" || shown === "all" ? shown : "auto",
  };
}

function formatView(view: ViewState): URLSearchParams {
  const query = new URLSearchParams();
  const put = (name: string, value: string, usual = "") => {
    if (value !== usual) query.set(name, value);
  };
  put("sel", view.selected.join(","));
  put("metrics", view.metrics.join(","));
  put("x", view.x, "step");
  put("smooth", String(view.smoothing), "0");
  put("logx", view.logX ? "1" : "");
  put("logy", view.logY ? "1" : "");
  put("q", view.filter);
  put("sort", view.sort);
  put("group", view.group);
  put("cols", view.columns.join(","));
  put("show", view.shown, "auto");
  return query;
}

function positive(text: string | undefined): number | null {
  const value = Number(text);
  return Number.isSafeInteger(value) && value > 0 ? value : null;
}

function safeDecode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
