import { describe, expect, it } from "vitest";
import { appendPoint, extentBetween, nearestIndex, padded, smoothed, thinned } from "./series";

const curve = (y: number[]) => ({
  runId: 1,
  steps: y.map((_, i) => i + 1),
  x: y.map((_, i) => i + 1),
  y,
});

describe("smoothed", () => {
  it("leaves a constant as it is, from the first point on", () => {
    for (const value of smoothed([1, 2, 3, 4], [5, 5, 5, 5], 0.9)) expect(value).toBeCloseTo(5, 12);
  });

  it("changes nothing without a weight", () => {
    expect(smoothed([1, 2, 3], [3, 1, 2], 0)).toEqual([3, 1, 2]);
  });

  it("steps over values that are missing", () => {
    const result = smoothed([1, 2, 3, 4], [1, Number.NaN, 1, 1], 0.5);
    expect(result[1]).toBeNaN();
    expect(result[3]).toBe(1);
  });

  it("brings values closer to each other", () => {
    const noisy = Array.from({ length: 100 }, (_, i) => (i % 2 ? 1 : -1));
    const result = smoothed(noisy.map((_, i) => i), noisy, 0.99);
    expect(Math.max(...result.slice(50).map(Math.abs))).toBeLessThan(0.5);
  });
});

describe("nearestIndex", () => {
  it("finds the nearest on either side", () => {
    expect(nearestIndex([1, 5, 9], 2)).toBe(0);
    expect(nearestIndex([1, 5, 9], 4)).toBe(1);
    expect(nearestIndex([1, 5, 9], 100)).toBe(2);
    expect(nearestIndex([1, 5, 9], -100)).toBe(0);
    expect(nearestIndex([], 1)).toBe(-1);
  });
});

describe("extents", () => {
  it("looks only at what is between", () => {
    expect(extentBetween([curve([10, 2, 3, -5])], 2, 3)).toEqual({ min: 2, max: 3 });
    expect(extentBetween([curve([10, 2, 3, -5])], 0, 9, true)).toEqual({ min: 2, max: 10 });
    expect(extentBetween([], 0, 1)).toBeNull();
  });

  it("gives a single value room", () => {
    const [low, high] = padded({ min: 2, max: 2 }, false);
    expect(low).toBeLessThan(2);
    expect(high).toBeGreaterThan(2);
  });
});

describe("appendPoint", () => {
  it("appends, replaces the last, and refuses what lies before it", () => {
    const one = curve([3, 2]);
    expect(appendPoint(one, 3, 3, 1)).toBe(true);
    expect(appendPoint(one, 3, 3, 0.5)).toBe(true);
    expect(one.y).toEqual([3, 2, 0.5]);
    expect(appendPoint(one, 1, 1, 9)).toBe(false);
  });
});

describe("thinned", () => {
  it("loses neither ends nor peaks", () => {
    const values = Array.from({ length: 5000 }, (_, i) => Math.sin(i / 50));
    values[1234] = 99;
    const result = thinned(curve(values), 500);
    expect(result.steps.length).toBeLessThanOrEqual(502);
    expect(Math.max(...result.y)).toBe(99);
    expect(result.steps[0]).toBe(1);
    expect(result.steps.at(-1)).toBe(5000);
    expect(result.steps).toEqual([...result.steps].sort((a, b) => a - b));
  });
});
