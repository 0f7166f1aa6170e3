import { describe, expect, it } from "vitest";
import { formatDuration, formatKnob, formatNumber, listRuns, plural, shortKnob } from "./format";

describe("formatNumber", () => {
  it.each([
    [1.23456, "1.235"], [0, "0"], [12345.6, "12346"], [1e-5, "1e-5"], [2.5e7, "2.5e7"],
    [null, "–"], [Number.NaN, "–"], [Number.POSITIVE_INFINITY, "∞"],
  ])("%s", (value, text) => expect(formatNumber(value)).toBe(text));
});

describe("formatKnob", () => {
  it("does not round", () => expect(formatKnob(0.123456789)).toBe("0.123456789"));
  it("is short for small rates", () => expect(formatKnob(0.0001)).toBe("1e-4"));
  it("writes as Python does", () => expect([null, true].map(formatKnob)).toEqual(["None", "True"]));
});

describe("formatDuration", () => {
  it.each([
    [0.0042, "4.2 ms"], [0.25, "250 ms"], [3.14, "3.1 s"], [42, "42 s"], [200, "3 m 20 s"],
    [3900, "1 h 05 m"], [3599.7, "1 h 00 m"], [null, "–"],
  ])("%s", (value, text) => expect(formatDuration(value)).toBe(text));
});

it("counts and lists", () => {
  expect([plural(1, "run"), plural(1200, "run")]).toEqual(["1 run", "1,200 runs"]);
  expect(listRuns([4])).toBe("run 4");
  expect(listRuns([1, 2, 7])).toBe("runs 1, 2 and 7");
  expect(shortKnob("training_args.learning_rate")).toBe("learning_rate");
});
