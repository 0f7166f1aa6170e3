import { describe, expect, it } from "vitest";
import type { Json } from "../api/types";
import { allColumns, groupRows, matcher, sortRows, usualColumns, visibleLines } from "./table";
import { testRow } from "./testRows";

const rows = [
  testRow({ run_id: 1, status: "failed", metrics: { loss: 3 } }),
  testRow({ run_id: 2, status: "running", metrics: { loss: 1 } }),
  testRow({ run_id: 3, status: "running", metrics: {} }),
  testRow({ run_id: 12, status: "completed", metrics: { loss: 2 }, pinned: true }),
];
const knobs = new Map<number, Record<string, Json>>([
  [1, { "training_args.learning_rate": 1e-3 }],
  [2, { "training_args.learning_rate": 1e-4 }],
  [3, { "training_args.learning_rate": 1e-3 }],
  [12, { "training_args.learning_rate": 1e-3 }],
]);
const columns = allColumns(["loss", "learning_rate"], ["training_args.learning_rate"], knobs);
const ids = (filter: string) => rows.filter(matcher(filter, columns, knobs)).map((row) => row.run_id);

describe("matcher", () => {
  it.each<[string, number[]]>([
    ["", [1, 2, 3, 12]],
    ["status:failed", [1]],
    ["failed", [1]],
    ["12", [12]],
    ["run 3", [3]],
    ["loss<2", [2]],
    ["loss>=2 learning_rate:1e-3", [1, 12]],
    ["learning_rate=0.0001", [2]],
    ["learning_rate=0.001", [1, 3, 12]],
    ["pinned", [12]],
    ["nothing of this", []],
  ])("%s", (filter, expected) => expect(ids(filter)).toEqual(expected));
});

describe("sortRows", () => {
  const sorted = (sort: string) => sortRows(rows, sort, columns).map((row) => row.run_id);
  it("has pinned runs first and those without a value last, whichever way", () => {
    expect(sorted("loss")).toEqual([12, 2, 1, 3]);
    expect(sorted("-loss")).toEqual([12, 1, 2, 3]);
  });
  it("goes by number otherwise", () => expect(sorted("")).toEqual([12, 1, 2, 3]));
});

describe("groupRows", () => {
  it("puts a heading before each group, and closes some", () => {
    const lines = groupRows(rows, "training_args.learning_rate", columns, new Set(["1e-4"]));
    expect(lines.map((line) => (line.kind === "group" ? line.label : line.row.run_id))).toEqual([
      "learning_rate: 0.001", 1, 3, 12, "learning_rate: 1e-4",
    ]);
  });
});

it("shows what varies", () => {
  expect(usualColumns(["loss", "host_memory_gib"], ["training_args.learning_rate"])).toContain("loss");
  expect(visibleLines(1000, 3400, 340, 34)).toEqual([92, 118]);
  expect(visibleLines(3, 0, 340, 34)).toEqual([0, 3]);
});
