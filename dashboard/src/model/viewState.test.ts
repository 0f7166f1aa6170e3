import { describe, expect, it } from "vitest";
import { DEFAULT_VIEW, formatRoute, parseRoute } from "./viewState";

describe("routes", () => {
  it("come back as they were", () => {
    const view = {
      ...DEFAULT_VIEW,
      tab: "parallel" as const,
      selected: [3, 17],
      metrics: ["loss", "eval_loss"],
      x: "tokens" as const,
      smoothing: 0.9,
      logY: true,
      filter: "lr:1e-3 & more",
      sort: "-loss",
      columns: ["status", "training_args.learning_rate"],
      shown: "all" as const,
    };
    const route = { page: "experiment" as const, name: "first/ü experiment?", view };
    expect(parseRoute(formatRoute(route))).toEqual(route);
  });

  it("leave out what is as usual", () => {
    expect(formatRoute({ page: "experiment", name: "a", view: DEFAULT_VIEW })).toBe("#/experiments/a");
  });

  it("have a page for each run", () => {
    expect(parseRoute("#/experiments/a/runs/12")).toMatchObject({ view: { run: 12 } });
  });

  it("take nonsense for nothing", () => {
    expect(parseRoute("#/elsewhere")).toEqual({ page: "overview" });
    expect(parseRoute("#/experiments/a?sel=x,-1,2&smooth=7&x=y")).toMatchObject({
      view: { selected: [2], smoothing: 0, x: "step" },
    });
  });
});
