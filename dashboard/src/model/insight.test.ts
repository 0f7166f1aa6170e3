import { describe, expect, it } from "vitest";
import type { Knob, Turn } from "../api/types";
import { importances } from "./importance";
import { inputOf, parseKnob } from "./knobForm";
import { makeAxis, passes } from "./parallel";
import { companions, handOvers, lanesOf, wholeSpan } from "./turns";

describe("axes", () => {
  it("are logarithmic where values span magnitudes", () => {
    const axis = makeAxis("lr", "lr", [1e-4, 1e-3, 1e-2]);
    expect(axis.kind).toBe("log");
    expect(axis.place(1e-3)).toBeCloseTo(0.5);
  });
  it("take anything else as choices", () => {
    const axis = makeAxis("s", "s", ["linear", "cosine", undefined, 3]);
    expect(axis.kind).toBe("choice");
    expect(axis.ticks.map((tick) => tick.label)).toEqual(["3", "cosine", "linear"]);
    expect(axis.place(undefined)).toBeNull();
  });
  it("let through what all brushes hold", () => {
    const places = new Map([["a", 0.5], ["b", 0.9]]);
    expect(passes(places, new Map([["a", [0, 1] as const]]))).toBe(true);
    expect(passes(places, new Map([["a", [0, 1] as const], ["b", [0, 0.5] as const]]))).toBe(false);
    expect(passes(places, new Map([["c", [0, 1] as const]]))).toBe(false);
  });
});

describe("importances", () => {
  const runs = [1e-4, 1e-3, 1e-2].flatMap((lr) => [2, 4, 8].map((r) => ({
    knobs: { lr, r }, value: -Math.log(lr) + r * 1e-3,
  })));
  it("finds the knob that decides", () => {
    const [first, second] = importances(["r", "lr"], runs);
    expect(first).toMatchObject({ knob: "lr", direction: -1 });
    expect(first?.share).toBeGreaterThan(0.8);
    expect(second?.share).toBeLessThan(0.1);
  });
  it("says nothing of few runs", () => expect(importances(["lr"], runs.slice(0, 3))).toEqual([]));
});

const knob = (changes: Partial<Knob>): Knob => ({
  name: "training_args.x", type: ["number"], default: null, allowed: "float", enum: [], value: null,
  is_set: true, used: [], ...changes,
});

describe("knobs", () => {
  it("are read as their types have it", () => {
    expect(parseKnob("3e-4", knob({}))).toEqual({ ok: true, value: 3e-4 });
    expect(parseKnob("1.5", knob({ type: ["integer"], allowed: "int" }))).toMatchObject({ ok: false });
    expect(parseKnob("None", knob({ type: ["integer", "null"] }))).toEqual({ ok: true, value: null });
    expect(parseKnob("fast", knob({}))).toEqual({ ok: false, problem: "allowed: float" });
    expect(parseKnob('["q_proj"]', knob({ type: ["array", "string"] }))).toEqual({ ok: true, value: ["q_proj"] });
    expect(parseKnob("[q", knob({ type: ["array"] })).ok).toBe(false);
    expect(parseKnob("", knob({})).ok).toBe(false);
    expect(parseKnob("7", knob({ type: ["string"] }))).toEqual({ ok: true, value: "7" });
  });
  it("with few values are lists", () => {
    expect(inputOf(knob({ type: ["boolean"] }))).toEqual({ kind: "choice", choices: [true, false] });
    expect(inputOf(knob({ type: [], enum: ["a", "b"] }))).toEqual({ kind: "choice", choices: ["a", "b"] });
    expect(inputOf(knob({}))).toEqual({ kind: "text" });
  });
});

describe("turns", () => {
  const turn = (changes: Partial<Turn>): Turn => ({
    seq: 1, run_id: 1, worker_id: 0, chunk: 0, start_s: 0, started_s: null, end_s: 10, end: "paused",
    active_s: 8, gap_s: 1, ...changes,
  });
  const turns = [turn({}), turn({ run_id: 2, start_s: 5, end_s: null, end: null, active_s: null }), turn({ start_s: 20, end_s: 30 })];
  it("have lanes, a span, and companions", () => {
    expect(lanesOf(turns).map((lane) => lane.label)).toEqual(["worker 0", "run 1", "run 2"]);
    expect(wholeSpan(turns, 40)).toEqual({ from: 0, to: 40 });
    expect(companions(turns[0] as Turn, turns, 40)).toEqual([2]);
  });
  it("cost what is not training", () => {
    expect(handOvers(turns)).toEqual({ gaps_s: 3, overhead_s: 4, mean_s: 3.5 });
  });
});
