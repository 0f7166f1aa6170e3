import { useMemo } from "react";
import type { RunRow, XAxis } from "../api/types";
import { Chart } from "../charts/Chart";
import type { Mark } from "../charts/drawCurves";
import { marksOf, shownRuns, USUAL_CURVES, usualCharts } from "../model/charts";
import type { ViewState } from "../model/viewState";
import { useExperiment } from "../store/useExperiment";
import { useChangeView } from "../store/useRoute";
import { ChartTools } from "./ChartTools";

interface Props {
  view: ViewState;
  rows: readonly RunRow[];
  highlighted: number | null;
  onHighlight: (runId: number | null) => void;
}

/** The charts of an experiment's metrics. */
export function Charts({ view, rows, highlighted, onHighlight }: Props) {
  const { metrics, commands } = useExperiment();
  const names = useMemo(() => [...new Set(metrics.map((one) => one.shown))], [metrics]);
  const charts = view.metrics.length > 0 ? view.metrics.filter((name) => names.includes(name)) : usualCharts(metrics);
  const ids = useMemo(() => shownRuns(rows, view.selected, view.shown), [rows, view.selected, view.shown]);
  const marks = useMemo(() => marksOf(commands), [commands]);
  const selected = view.selected.length === 1 ? (view.selected[0] as number) : null;
  return (
    <section className="charts" aria-label="Charts">
      <ChartTools view={view} names={names} charts={charts} />
      <Curves charts={charts} ids={ids} marks={marks} view={view} highlighted={highlighted ?? selected} onHighlight={onHighlight} />
      {ids.length < rows.length && <Omitted shown={ids.length} all={rows.length} view={view} />}
    </section>
  );
}

interface CurvesProps {
  charts: readonly string[];
  ids: readonly number[];
  marks: readonly Mark[];
  view: Pick<ViewState, "x" | "smoothing" | "logX" | "logY">;
  highlighted: number | null;
  onHighlight: (runId: number | null) => void;
}

/** One chart for each metric, over the same runs. */
export function Curves({ charts, ids, marks, view, highlighted, onHighlight }: CurvesProps) {
  if (charts.length === 0) {
    return <p className="nothing">The curves begin with the first step.</p>;
  }
  return (
    <div className={`chart-grid chart-grid-${Math.min(3, charts.length)}`}>
      {charts.map((metric) => (
        <MetricChart
          key={metric}
          metric={metric}
          ids={ids}
          marks={marks}
          view={view}
          highlighted={highlighted}
          onHighlight={onHighlight}
        />
      ))}
    </div>
  );
}

const X_NAMES: Record<XAxis, string> = { step: "step", samples: "samples", tokens: "tokens", time: "time" };

function MetricChart({ metric, ids, marks, view, highlighted, onHighlight }: Omit<CurvesProps, "charts"> & { metric: string }) {
  const store = useExperiment();
  const x = view.x;
  const curves = useMemo(() => store.series.curves(metric, x, ids), [store, store.version, metric, x, ids]);
  const isLoading = curves.length === 0 && store.series.isLoading(metric, x);
  return (
    <figure className="chart">
      <figcaption>
        {metric} <span className="faint">by {X_NAMES[x]}</span>
      </figcaption>
      <Chart
        title={metric}
        curves={curves}
        marks={marks}
        x={x}
        origin_s={store.summary?.created_s ?? 0}
        smoothing={view.smoothing}
        logX={view.logX}
        logY={view.logY}
        highlighted={highlighted}
        onHighlight={onHighlight}
        version={store.version}
        height={220}
      />
      {curves.length === 0 && (
        <p className="chart-empty">{isLoading ? "loading" : `no values of ${metric} by ${X_NAMES[x]} in these runs`}</p>
      )}
    </figure>
  );
}

function Omitted({ shown, all, view }: { shown: number; all: number; view: ViewState }) {
  const change = useChangeView();
  return (
    <p className="faint note">
      {shown} of {all} runs are drawn
      {view.shown === "auto" ? `, the first ${USUAL_CURVES} in the table's order. ` : ", those that are selected. "}
      <button type="button" className="link" onClick={() => change({ shown: "all" })}>Draw all</button>
    </p>
  );
}
