// A chart of many curves: uPlot keeps axes, scales, cursor and zoom; the curves are drawn here,
// each over x values of its own.

import { useEffect, useMemo, useRef } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import type { XAxis } from "../api/types";
import { runStyle } from "../model/palette";
import { type Curve, extentBetween, padded, smoothed } from "../model/series";
import { useIsDark } from "../parts/ThemeContext";
import { drawCurves, type Mark } from "./drawCurves";
import { nearestCurve } from "./nearestCurve";
import { xLabel, xTicks, yTicks } from "./ticks";
import { Tooltip, type TooltipState } from "./tooltip";

export interface ChartProps {
  title: string;
  curves: readonly Curve[];
  marks: readonly Mark[];
  x: XAxis;
  /** Seconds since the Unix epoch from which time is counted. */
  origin_s: number;
  smoothing: number;
  logX: boolean;
  logY: boolean;
  highlighted: number | null;
  onHighlight: (runId: number | null) => void;
  /** Changes whenever curves have grown. */
  version: number;
  height: number;
}

const SYNC = uPlot.sync("charts");

export function Chart(props: ChartProps) {
  const host = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const isDark = useIsDark();
  const shown = useMemo(
    () => props.curves.map((curve) => prepared(curve, props)),
    // `version` stands for what has grown inside the curves.
    [props.curves, props.smoothing, props.x, props.origin_s, props.version],
  );
  const latest = useRef({ props, shown, isDark });
  latest.current = { props, shown, isDark };

  useEffect(() => {
    const element = host.current;
    if (element === null) return;
    const tooltip = new Tooltip(element);
    const made = makePlot(element, latest, tooltip);
    plot.current = made;
    const observer = new ResizeObserver(() => {
      if (element.clientWidth > 0) made.setSize({ width: element.clientWidth, height: props.height });
    });
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
      tooltip.remove();
      plot.current = null;
    };
    // The scales' kinds are fixed when a plot is made.
  }, [props.logX, props.logY, props.x, props.height, isDark]);

  useDrawn(plot, shown, props);

  return <div ref={host} className="chart-plot" role="img" aria-label={described(props)} />;
}

export interface Shown extends Curve {
  /** Before smoothing; null where nothing is smoothed. */
  raw: readonly number[] | null;
}

type Latest = { current: { props: ChartProps; shown: readonly Shown[]; isDark: boolean } };

function prepared(curve: Curve, { smoothing, x, origin_s }: ChartProps): Shown {
  const xs = x === "time" ? curve.x.map((at) => at - origin_s) : curve.x;
  if (smoothing === 0) return { ...curve, x: xs, raw: null };
  return { ...curve, x: xs, y: smoothed(xs, curve.y, smoothing), raw: curve.y };
}

/** Draws anew, no more often than a quarter of the time allows. */
function useDrawn(plot: { current: uPlot | null }, shown: readonly Shown[], props: ChartProps): void {
  const cost = useRef({ last_ms: 0, end_ms: 0 });
  useEffect(() => {
    const draw = () => {
      const made = plot.current;
      if (made === null) return;
      const start_ms = performance.now();
      if (!zoomed.has(made)) fit(made, shown, xRange(shown, props.logX), props.logY);
      else fit(made, shown, [made.scales.x?.min ?? 0, made.scales.x?.max ?? 1], props.logY);
      made.redraw(false, false);
      const end_ms = performance.now();
      cost.current = { last_ms: end_ms - start_ms, end_ms };
    };
    const { last_ms, end_ms } = cost.current;
    const wait_ms = last_ms < 4 ? 0 : end_ms + 3 * last_ms - performance.now();
    if (wait_ms <= 0) {
      draw();
      return;
    }
    const timer = setTimeout(draw, wait_ms);
    return () => clearTimeout(timer);
  }, [plot, shown, props.marks, props.highlighted, props.logX, props.logY]);
}

/** Plots in which somebody looks at a part. */
const zoomed = new WeakSet<uPlot>();

/** Shows a part of x, and lets y reach over what is to be seen there. */
function fit(plot: uPlot, shown: readonly Shown[], [from, to]: [number, number], logY: boolean): void {
  const extent = extentBetween(shown, from, to, logY);
  const [low, high] = extent ? padded(extent, logY) : [logY ? 0.1 : 0, 1];
  plot.batch(() => {
    plot.setScale("x", { min: from, max: to });
    plot.setScale("y", { min: low, max: high });
  });
}

/** From the first x of all curves to the last. */
function xRange(shown: readonly Shown[], logX: boolean): [number, number] {
  let min = Number.POSITIVE_INFINITY;
  let max = Number.NEGATIVE_INFINITY;
  for (const { x } of shown) {
    const first = logX ? x.find((at) => at > 0) : x[0];
    const last = x.at(-1);
    if (first === undefined || last === undefined) continue;
    min = Math.min(min, first);
    max = Math.max(max, last);
  }
  if (min > max) return [1, 2];
  if (min === max) return logX ? [min / 2, max * 2] : [min - 1, max + 1];
  return [min, max];
}

/** Zooms to what has been dragged over. */
function zoom(plot: uPlot, { props, shown }: Latest["current"]): void {
  const { left, width } = plot.select;
  if (width < MIN_DRAG_PX) return;
  zoomed.add(plot);
  const range: [number, number] = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
  plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  fit(plot, shown, range, props.logY);
}

const MIN_DRAG_PX = 6;

function makePlot(element: HTMLElement, latest: Latest, tooltip: Tooltip): uPlot {
  const { props, isDark } = latest.current;
  const text = isDark ? "#9aa4b2" : "#5c6673";
  const grid = { stroke: isDark ? "#2a313b" : "#e6e9ee", width: 1 };
  const font = "11px system-ui, sans-serif";
  const axis = { stroke: text, grid, ticks: { ...grid, size: 4 }, font };
  return new uPlot(
    {
      width: element.clientWidth || 400,
      height: props.height,
      legend: { show: false },
      padding: [8, 12, 0, 0],
      scales: {
        x: { time: false, auto: false, distr: props.logX ? 3 : 1, range: (_, min, max) => [min, max] },
        y: { auto: false, distr: props.logY ? 3 : 1, range: (_, min, max) => [min, max] },
      },
      axes: [
        { ...axis, size: 28, space: 60, values: (_, splits) => xTicks(splits, props.x) },
        { ...axis, size: 52, space: 32, values: (_, splits) => yTicks(splits) },
      ],
      series: [{}, { show: true, paths: () => null, points: { show: false } }],
      cursor: {
        points: { show: false },
        sync: { key: SYNC.key, scales: ["x", null] },
        drag: { x: true, y: false, setScale: false },
        bind: {
          dblclick: (plot) => () => {
            const { props: now, shown } = latest.current;
            zoomed.delete(plot);
            fit(plot, shown, xRange(shown, now.logX), now.logY);
            return null;
          },
        },
        y: false,
      },
      hooks: {
        draw: [(plot) => drawCurves(plot, latest.current.shown, latest.current.props, isDark)],
        setSelect: [(plot) => zoom(plot, latest.current)],
        ready: [(plot) => fit(plot, latest.current.shown, xRange(latest.current.shown, props.logX), props.logY)],
        setCursor: [(plot) => pointAt(plot, latest, tooltip)],
      },
    },
    // The curves are drawn by the hook; uPlot itself has nothing to draw.
    [[1, 2], [null, null]],
    element,
  );
}

/** Shows what is under the cursor. Only the chart under the mouse looks for the nearest curve. */
function pointAt(plot: uPlot, latest: Latest, tooltip: Tooltip): void {
  const { props, shown, isDark } = latest.current;
  const { left = -1, top = -1 } = plot.cursor;
  const isHere = plot.over.matches(":hover");
  if (left < 0 || !isHere) {
    tooltip.show(null);
    return;
  }
  const found = nearestCurve(plot, shown, left, top);
  if (found?.curve.runId !== props.highlighted) props.onHighlight(found?.curve.runId ?? null);
  if (found === null) {
    tooltip.show(null);
    return;
  }
  const { curve, index } = found;
  const state: TooltipState = {
    left: plot.valToPos(curve.x[index] as number, "x"),
    top: plot.valToPos(curve.y[index] as number, "y"),
    width: plot.over.clientWidth,
    color: runStyle(curve.runId, isDark).color,
    title: `run ${curve.runId}`,
    value: curve.y[index] as number,
    raw: curve.raw?.[index] ?? null,
    place: `${xLabel(curve.x[index] as number, props.x)}${props.x === "step" ? "" : `, step ${curve.steps[index]}`}`,
    notes: props.marks
      .filter((mark) => mark.runId === curve.runId && Math.abs(plot.valToPos(xOfStep(curve, mark.step), "x") - left) < 8)
      .map((mark) => mark.text),
  };
  tooltip.show(state);
}

function xOfStep(curve: Curve, step: number): number {
  const index = curve.steps.findIndex((one) => one >= step);
  return curve.x[index < 0 ? curve.x.length - 1 : index] as number;
}

function described({ title, curves, x }: ChartProps): string {
  const runs = curves.length === 1 ? "1 run" : `${curves.length} runs`;
  return `${title} of ${runs} by ${x}; the table has the latest values`;
}
