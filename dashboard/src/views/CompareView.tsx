import { useState } from "react";
import { formatKnob, formatNumber, shortKnob } from "../model/format";
import { sameValue } from "../model/knobForm";
import type { ViewState } from "../model/viewState";
import { Empty } from "../parts/Empty";
import { StatusPill } from "../parts/StatusPill";
import { Swatch } from "../parts/Swatch";
import { useExperiment } from "../store/useExperiment";
import { useChangeView } from "../store/useRoute";

const USUAL = 6;

/** The configurations and latest metrics of selected runs side by side. */
export function CompareView({ view }: { view: ViewState }) {
  const store = useExperiment();
  const change = useChangeView();
  const [onlyDiffering, setOnlyDiffering] = useState(true);
  const chosen = view.selected.length > 0 ? view.selected : store.runs.filter((run) => run.status !== "deleted").slice(0, USUAL).map((run) => run.run_id);
  const runs = chosen.map((id) => store.rows.get(id)).filter((run) => run !== undefined);
  if (runs.length < 2) {
    return (
      <Empty title="Select two runs or more to compare them">
        <p>In the table of runs, <kbd>x</kbd> selects the run under the cursor.</p>
        <button type="button" onClick={() => change({ tab: "runs" })}>To the runs</button>
      </Empty>
    );
  }
  const knobsOf = (id: number) => store.knobs.get(id) ?? {};
  const names = [...new Set(runs.flatMap((run) => Object.keys(knobsOf(run.run_id))))];
  const differs = (name: string) => runs.some((run) => !sameValue(knobsOf(run.run_id)[name], knobsOf(runs[0]?.run_id ?? 0)[name]));
  const shownKnobs = names.filter((name) => !onlyDiffering || differs(name));
  const metrics = [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))];
  return (
    <div className="page compare">
      <div className="tools">
        <span className="faint">
          {view.selected.length > 0 ? `${runs.length} selected runs` : `the first ${runs.length} runs; select others in the table`}
        </span>
        <label className="field">
          <input type="checkbox" checked={onlyDiffering} onChange={(event) => setOnlyDiffering(event.target.checked)} />
          Only what differs
        </label>
      </div>
      <div className="wide">
        <table className="compare-table">
          <thead>
            <tr>
              <th scope="col">knob</th>
              {runs.map((run) => (
                <th key={run.run_id} scope="col">
                  <button type="button" className="link" onClick={() => change({ run: run.run_id })}>
                    <Swatch runId={run.run_id} /> run {run.run_id}
                  </button>
                  <StatusPill status={run.status} />
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {shownKnobs.length === 0 && (
              <tr><td colSpan={runs.length + 1} className="faint">These configurations are the same.</td></tr>
            )}
            {shownKnobs.map((name) => (
              <tr key={name} className={differs(name) ? "differs" : undefined}>
                <th scope="row" title={name}>{shortKnob(name)}</th>
                {runs.map((run) => <td key={run.run_id}>{formatKnob(knobsOf(run.run_id)[name])}</td>)}
              </tr>
            ))}
            <tr className="section-line"><th scope="rowgroup" colSpan={runs.length + 1}>latest metrics</th></tr>
            {metrics.map((name) => {
              const isMaximised = store.metrics.find((one) => one.shown === name)?.maximised ?? false;
              const best = bestOf(runs.map((run) => run.metrics[name]), isMaximised, name);
              return (
                <tr key={name}>
                  <th scope="row">{name}</th>
                  {runs.map((run) => {
                    const value = run.metrics[name];
                    return (
                      <td key={run.run_id} className={value !== undefined && value === best ? "is-best" : undefined}>
                        {formatNumber(value)}{value !== undefined && value === best && <span className="best-mark"> best</span>}
                      </td>
                    );
                  })}
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </div>
  );
}

const JUDGED = /loss|accuracy|reward|perplexity|f1|bleu|rouge|margin|precision|recall|exact/;

/** The best of some values; undefined where the metric says nothing about how good a run is. */
function bestOf(values: readonly (number | null | undefined)[], isMaximised: boolean, name: string): number | undefined {
  const given = values.filter((value) => value !== null && value !== undefined);
  if (!JUDGED.test(name) || new Set(given).size < 2) return undefined;
  return isMaximised ? Math.max(...given) : Math.min(...given);
}
