// Curves: points in the order of x, smoothed, and looked up.

/** A curve as it is drawn. `y` is NaN where the value is not finite. */
export interface Curve {
  runId: number;
  steps: number[];
  x: number[];
  y: number[];
}

const MAX_SPAN = 600;

/**
 * An exponential moving average that does not depend on how densely the points lie.
 *
 * The weight of the past shrinks with the distance in x, measured in 600ths of the whole width (in
 * points, where there are fewer), so that a thinned out series is smoothed like the full one. The
 * start is not biased towards 0.
 */
export function smoothed(x: readonly number[], y: readonly number[], weight: number): number[] {
  if (weight <= 0 || x.length < 3) return y.slice();
  const width = (x[x.length - 1] as number) - (x[0] as number) || 1;
  const span = Math.min(MAX_SPAN, y.length);
  const result = new Array<number>(y.length);
  let sum = 0;
  let total = 0;
  let before = x[0] as number;
  for (let i = 0; i < y.length; i++) {
    const value = y[i] as number;
    if (Number.isNaN(value)) {
      result[i] = Number.NaN;
      continue;
    }
    const distance = Math.max(0.25, (((x[i] as number) - before) / width) * span);
    const kept = weight ** (total === 0 ? 1 : distance);
    sum = sum * kept + value * (1 - kept);
    total = total * kept + (1 - kept);
    before = x[i] as number;
    result[i] = sum / total;
  }
  return result;
}

/** The index of the value that lies nearest to `at` in ascending numbers; -1 if there is none. */
export function nearestIndex(ascending: readonly number[], at: number): number {
  let low = 0;
  let high = ascending.length - 1;
  if (high < 0) return -1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((ascending[middle] as number) < at) low = middle + 1;
    else high = middle;
  }
  const before = low - 1;
  if (before >= 0 && at - (ascending[before] as number) < (ascending[low] as number) - at) {
    return before;
  }
  return low;
}

export interface Extent {
  min: number;
  max: number;
}

/** The least and greatest y between two x, over all curves; null if there is nothing to see. */
export function extentBetween(
  curves: readonly Curve[],
  from: number,
  to: number,
  positiveOnly = false,
): Extent | null {
  let min = Number.POSITIVE_INFINITY;
  let max = Number.NEGATIVE_INFINITY;
  for (const { x, y } of curves) {
    for (let i = 0; i < x.length; i++) {
      const at = x[i] as number;
      const value = y[i] as number;
      if (at < from || at > to || Number.isNaN(value) || (positiveOnly && value <= 0)) continue;
      if (value < min) min = value;
      if (value > max) max = value;
    }
  }
  return min <= max ? { min, max } : null;
}

/** The extent with some air; a single value gets a range of its own size. */
export function padded({ min, max }: Extent, isLog: boolean): [number, number] {
  if (isLog) return min === max ? [min / 2, max * 2] : [min / 1.1, max * 1.1];
  const air = min === max ? Math.abs(min) * 0.1 || 1 : (max - min) * 0.06;
  return [min - air, max + air];
}

/**
 * Take a value into the series of a run: appended, or put in place of the one at its step.
 *
 * @returns false if it lies before the last one, where the server's thinned out series is right.
 */
export function appendPoint(curve: Curve, step: number, x: number, y: number): boolean {
  const last = curve.steps.length - 1;
  const lastStep = curve.steps[last];
  if (lastStep !== undefined && step < lastStep) return false;
  const place = lastStep === step ? last : last + 1;
  curve.steps[place] = step;
  curve.x[place] = x;
  curve.y[place] = y;
  return true;
}

/**
 * Thin a curve that has grown: of each bucket of neighbours the extremes are kept, and all of the
 * last points.
 */
export function thinned(curve: Curve, limit: number): Curve {
  const count = curve.steps.length;
  if (count <= limit) return curve;
  const size = Math.ceil((2 * count) / limit);
  const picked: number[] = [0];
  for (let start = 1; start < count - 1; start += size) {
    const end = Math.min(count - 1, start + size);
    let low = start;
    let high = start;
    for (let i = start; i < end; i++) {
      if ((curve.y[i] as number) < (curve.y[low] as number)) low = i;
      if ((curve.y[i] as number) > (curve.y[high] as number)) high = i;
    }
    picked.push(Math.min(low, high));
    if (low !== high) picked.push(Math.max(low, high));
  }
  picked.push(count - 1);
  const take = (values: number[]) => picked.map((i) => values[i] as number);
  return { runId: curve.runId, steps: take(curve.steps), x: take(curve.x), y: take(curve.y) };
}
