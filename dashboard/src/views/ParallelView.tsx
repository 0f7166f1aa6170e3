// Parallel coordinates of knobs and a metric: brush axes to select runs; and which knob matters.

import { useMemo, useState } from "react";
import { plural, shortKnob } from "../model/format";
import { importances } from "../model/importance";
import { type Axis, type Brush, makeAxis, passes } from "../model/parallel";
import type { ViewState } from "../model/viewState";
import { Empty } from "../parts/Empty";
import { useExperiment } from "../store/useExperiment";
import { useChangeView } from "../store/useRoute";
import { ParallelPlot } from "./ParallelPlot";

const DEVICE = /memory|percent|utili[sz]ation|runtime|_per_second/;

export function ParallelView({ view }: { view: ViewState }) {
  const store = useExperiment();
  const change = useChangeView();
  const names = [...new Set(store.metrics.map((one) => one.shown))].filter((name) => !DEVICE.test(name));
  const usual = names.includes("eval_loss") ? "eval_loss" : names.includes("loss") ? "loss" : names[0];
  const [chosen, setChosen] = useState<string | null>(null);
  const metric = chosen ?? usual ?? "loss";
  const [brushes, setBrushes] = useState<ReadonlyMap<string, Brush>>(new Map());
  const runs = useMemo(() => store.runs.filter((run) => run.status !== "deleted"), [store.runs]);
  const axes = useMemo(() => {
    const knobs = store.differing.map((name) =>
      makeAxis(name, shortKnob(name), runs.map((run) => store.knobs.get(run.run_id)?.[name])));
    return [...knobs, makeAxis(metric, metric, runs.map((run) => run.metrics[metric] ?? undefined))];
  }, [store.differing, store.knobs, runs, metric]);
  const lines = useMemo(() => runs.map((run) => ({
    runId: run.run_id,
    places: new Map(axes.map((axis) => [axis.id, axis.place(
      axis.id === metric ? (run.metrics[metric] ?? undefined) : store.knobs.get(run.run_id)?.[axis.id],
    )])),
  })), [runs, axes, store.knobs, metric]);
  const passing = brushes.size === 0 ? [] : lines.filter((line) => passes(line.places, brushes)).map((line) => line.runId);

  if (store.differing.length === 0) {
    return (
      <Empty title="These runs have the same configuration">
        <p>Parallel coordinates show what differing knobs do. Search over one, or clone a run and change some.</p>
      </Empty>
    );
  }
  const brush = (axis: Axis, part: Brush | null) => {
    const next = new Map(brushes);
    if (part === null) next.delete(axis.id);
    else next.set(axis.id, part);
    setBrushes(next);
    const ids = next.size === 0 ? [] : lines.filter((line) => passes(line.places, next)).map((line) => line.runId);
    change({ selected: ids });
  };
  return (
    <div className="page">
      <div className="tools">
        <label className="field">
          Metric
          <select value={metric} onChange={(event) => {
            setChosen(event.target.value);
            setBrushes(new Map([...brushes].filter(([id]) => id !== metric)));
          }}>
            {names.map((name) => <option key={name}>{name}</option>)}
          </select>
        </label>
        <span className="faint" aria-live="polite">
          {brushes.size === 0 ? `${plural(runs.length, "run")}; drag along an axis to select some of them` : `${plural(passing.length, "run")} selected`}
        </span>
        {brushes.size > 0 && (
          <>
            <button type="button" onClick={() => { setBrushes(new Map()); change({ selected: [] }); }}>Clear</button>
            <button type="button" onClick={() => change({ tab: "runs" })}>Show them in the table</button>
          </>
        )}
      </div>
      <ParallelPlot
        axes={axes}
        lines={lines}
        colored={metric}
        brushes={brushes}
        selected={brushes.size > 0 ? new Set(passing) : new Set(view.selected)}
        onBrush={brush}
        onOpen={(run) => change({ run })}
      />
      <KnobImportance metric={metric} />
    </div>
  );
}

/** Below this nobody should read a direction into it. */
const WEAK = 0.05;

function KnobImportance({ metric }: { metric: string }) {
  const { runs, knobs, differing } = useExperiment();
  const measured = runs.flatMap((run) => {
    const value = run.metrics[metric];
    return run.status === "deleted" || value === null || value === undefined
      ? []
      : [{ knobs: knobs.get(run.run_id) ?? {}, value }];
  });
  const found = importances(differing, measured);
  return (
    <section className="importance" aria-label="Importance of knobs">
      <h2>Which knob matters for {metric}</h2>
      {found.length === 0 ? (
        <p className="faint">Four runs with a value are needed to tell; there {measured.length === 1 ? "is" : "are"} {measured.length}.</p>
      ) : (
        <>
          <ul className="bars">
            {found.map(({ knob, share, direction }) => (
              <li key={knob}>
                <span title={knob}>{shortKnob(knob)}</span>
                <span className="bar-track"><span className="bar" style={{ width: `${share * 100}%` }} /></span>
                <span className="number">{Math.round(share * 100)} %</span>
                <span className="faint">{share < WEAK || direction === 0 ? "" : `more of it, ${direction > 0 ? "more" : "less"} of the metric`}</span>
              </li>
            ))}
          </ul>
          <p className="faint">
            The share of the differences between {plural(measured.length, "run")} (by rank) that goes along with the knob alone, less
            what chance would give. Knobs that were changed together cannot be told apart.
          </p>
        </>
      )}
    </section>
  );
}
