import { describe, expect, it } from "vitest";
import type { CommandMessage } from "../api/types";
import { marksOf, shownRuns, USUAL_CURVES } from "./charts";
import { actionOf, BINDINGS } from "./keys";
import { lineage } from "./lineage";
import { testRow } from "./testRows";
import { ableTo, undoing, whyNot } from "./verbs";

const press = { ctrlKey: false, metaKey: false, altKey: false, isTyped: false };

describe("keys", () => {
  it("are each bound once", () => {
    const keys = BINDINGS.flatMap((binding) => binding.keys);
    expect(new Set(keys).size).toBe(keys.length);
  });
  it("do what they say, in capitals too", () => {
    expect(actionOf({ ...press, key: "s" })).toBe("stop");
    expect(actionOf({ ...press, key: "S" })).toBe("stop");
    expect(actionOf({ ...press, key: "?" })).toBe("help");
  });
  it("stay the browser's with modifiers, and the field's where they are typed", () => {
    expect(actionOf({ ...press, key: "r", ctrlKey: true })).toBeNull();
    expect(actionOf({ ...press, key: "s", isTyped: true })).toBeNull();
    expect(actionOf({ ...press, key: "Escape", isTyped: true })).toBe("escape");
  });
});

describe("verbs", () => {
  const running = testRow({ run_id: 1 });
  const stopped = testRow({ run_id: 2, status: "stopped" });
  const pinned = testRow({ run_id: 3, pinned: true });
  const deleted = testRow({ run_id: 4, status: "deleted" });
  it("are offered where they can be", () => {
    expect(ableTo("stop", [running, stopped, pinned, deleted])).toEqual([running, pinned]);
    expect(ableTo("resume", [running, stopped])).toEqual([stopped]);
    expect(ableTo("restore", [running, deleted])).toEqual([deleted]);
    expect(whyNot("prune", pinned)).toContain("unpin");
    expect(whyNot("delete", pinned)).toContain("unpin");
  });
  const command = (changes: Partial<CommandMessage>): CommandMessage => ({
    command_id: 1, verb: "stop", run_id: 2, by: "http", reason: "", modify: {}, warm_start: false,
    optimizer: "keep", schedule: "continue", given_s: 0, status: "applied", settled_s: 1,
    latency_s: 1, outcome: "", step: 7, new_run_id: null, ...changes,
  });
  it("are taken back by their opposites", () => {
    expect(undoing(command({}))).toEqual({ verb: "resume", run_id: 2 });
    expect(undoing(command({ verb: "delete" }))).toEqual({ verb: "restore", run_id: 2 });
    expect(undoing(command({ verb: "clone", new_run_id: 9 }))).toEqual({ verb: "delete", run_id: 9 });
    expect(undoing(command({ status: "rejected" }))).toBeNull();
  });
  it("leave marks where they were carried out", () => {
    expect(marksOf([command({}), command({ status: "rejected" }), command({ verb: "pin" })])).toEqual([
      { runId: 2, step: 7, letter: "S", text: "stop at step 7, by http" },
    ]);
  });
});

it("draws only so many curves by itself", () => {
  const many = Array.from({ length: 300 }, (_, i) => testRow({ run_id: i + 1 }));
  expect(shownRuns(many, [], "auto")).toHaveLength(USUAL_CURVES);
  expect(shownRuns(many, [], "all")).toHaveLength(300);
  expect(shownRuns(many, [7, 9], "selected")).toEqual([7, 9]);
});

it("lays out families", () => {
  const lines = lineage([
    testRow({ run_id: 1 }), testRow({ run_id: 2 }), testRow({ run_id: 3, parent_id: 1 }),
    testRow({ run_id: 4, parent_id: 3 }), testRow({ run_id: 5, parent_id: 1 }),
  ], true);
  expect(lines.map((line) => [line.row.run_id, line.depth])).toEqual([[1, 0], [3, 1], [4, 2], [5, 1]]);
});
