import { useEffect, useMemo, useState } from "react";
import { api } from "../api/client";
import type { ChosenMode, Json, RunDetail, RunRow } from "../api/types";
import { marksOf, usualCharts } from "../model/charts";
import { formatDuration, formatKnob, formatNumber, shortKnob } from "../model/format";
import type { ViewState } from "../model/viewState";
import { Empty, Skeleton } from "../parts/Empty";
import { Icon } from "../parts/Icon";
import { LogLines } from "../parts/LogLines";
import { RunProgress } from "../parts/Progress";
import { StatusPill } from "../parts/StatusPill";
import { Swatch } from "../parts/Swatch";
import { VerbBar } from "../parts/VerbBar";
import { useCommander } from "../store/useCommander";
import { useExperiment } from "../store/useExperiment";
import { useKeys } from "../store/useKeys";
import { useChangeView } from "../store/useRoute";
import { Curves } from "./Charts";
import { ChartTools } from "./ChartTools";
import { CommandLog } from "./CommandLog";
import { useRunVerbs } from "./useRunVerbs";

interface Props {
  runId: number;
  view: ViewState;
  onClone: (run: RunRow) => void;
  onHelp: () => void;
  hasDialog: boolean;
}

/** All about one run. */
export function RunPage({ runId, view, onClone, onHelp, hasDialog }: Props) {
  const store = useExperiment();
  const commander = useCommander();
  const change = useChangeView();
  const actOn = useRunVerbs(onClone);
  const row = store.rows.get(runId);
  const ids = useMemo(() => [runId], [runId]);
  const names = useMemo(() => [...new Set(store.metrics.map((one) => one.shown))], [store.metrics]);
  const marks = useMemo(() => marksOf(store.commands), [store.commands]);
  useKeys((action) => {
    if (row !== undefined && actOn(action, [row])) return;
    if (action === "help") onHelp();
    if (action === "escape") change({ run: null });
    if (action === "next" || action === "previous") {
      const all = store.runs.map((run) => run.run_id);
      const next = all[all.indexOf(runId) + (action === "next" ? 1 : -1)];
      if (next !== undefined) change({ run: next });
    }
  }, !hasDialog);
  if (row === undefined) {
    return (
      <Empty title={`There is no run ${runId}`}>
        <button type="button" onClick={() => change({ run: null })}>All runs</button>
      </Empty>
    );
  }
  const charts = view.metrics.length > 0 ? view.metrics.filter((name) => names.includes(name)) : usualCharts(store.metrics);
  return (
    <div className="page run-page">
      <header className="run-head">
        <button type="button" className="quiet" onClick={() => change({ run: null })}><Icon name="back" /> Runs</button>
        <h2><Swatch runId={runId} /> run {runId}</h2>
        <StatusPill status={row.status} />
        {row.pinned && <span className="tag"><Icon name="pin" /> pinned</span>}
        <RunProgress row={row} />
        <span className="spacer" />
        <VerbBar runs={[row]} onAct={(action) => actOn(action, [row])} onRestore={() => void commander.ask("restore", [row])} />
      </header>
      <Facts row={row} />
      <ChartTools view={view} names={names} charts={charts} hasRuns={false} />
      <Curves charts={charts} ids={ids} marks={marks} view={view} highlighted={null} onHighlight={ignore} />
      <Detail row={row} />
      <section aria-label="Log">
        <h2>Log</h2>
        <LogLines runId={runId} />
      </section>
      <CommandLog runId={runId} />
    </div>
  );
}

function ignore(): void {
  // There is only one curve: nothing to tell apart.
}

function Facts({ row }: { row: RunRow }) {
  const change = useChangeView();
  const facts: [string, string][] = [
    ["Loss", formatNumber(row.loss)],
    ["Trained for", formatDuration(row.active_s)],
    ["Time to go", formatDuration(row.remaining_s)],
    ["Chunks", row.num_chunks === null ? "–" : `${row.chunks_done} of ${row.num_chunks}`],
    ["Trainer", row.trainer_type ?? "–"],
    ["Model", row.model_name ?? "–"],
  ];
  return (
    <dl className="facts">
      {facts.map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}
      {row.parent_id !== null && (
        <div>
          <dt>Cloned from</dt>
          <dd><button type="button" className="link" onClick={() => change({ run: row.parent_id })}>run {row.parent_id}</button></dd>
        </div>
      )}
    </dl>
  );
}

/** Read once, and anew when the run has come to another state. */
function Detail({ row }: { row: RunRow }) {
  const { name } = useExperiment();
  const [detail, setDetail] = useState<RunDetail | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  useEffect(() => {
    let isOver = false;
    api.run(name, row.run_id).then(
      (found) => !isOver && setDetail(found),
      (error: Error) => !isOver && setProblem(error.message),
    );
    return () => {
      isOver = true;
    };
  }, [name, row.run_id, row.status, row.num_notes, row.passes]);
  if (problem !== null) return <p className="problem">{problem}</p>;
  if (detail === null || detail.row.run_id !== row.run_id) return <Skeleton lines={5} />;
  return (
    <>
      {row.error !== null && (
        <section className="failure" aria-label="Failure">
          <h2><Icon name="failed" /> {row.error}</h2>
          {detail.traceback !== null && <pre className="traceback" tabIndex={0} aria-label="Traceback">{detail.traceback}</pre>}
          <p className="hint">
            The other runs are not affected. Mend the cause and resume it (<kbd>r</kbd>), or clone it with other values
            (<kbd>c</kbd>).
          </p>
        </section>
      )}
      {detail.notes.length > 0 && (
        <section aria-label="Notes">
          <h2>Notes</h2>
          <ul className="notes">{detail.notes.map((note, i) => <li key={i}>{note}</li>)}</ul>
        </section>
      )}
      {detail.modes.length > 0 && (
        <section aria-label="Passes">
          <h2>Passes through the base</h2>
          <ul className="notes">{detail.modes.map((mode) => <li key={mode.kind}>{modeText(mode)}</li>)}</ul>
        </section>
      )}
      <Configuration detail={detail} />
      <section aria-label="Folder">
        <h2>Folder</h2>
        <p><code className="path">{detail.path}</code></p>
        {detail.mlflow_page !== null && (
          <p><a href={detail.mlflow_page} target="_blank" rel="noreferrer">This run in MLflow</a></p>
        )}
      </section>
    </>
  );
}

/** How passes are computed, and what was measured. */
function modeText(mode: ChosenMode): string {
  const said = `${mode.kind || "All"}: ${mode.mode}, ${mode.reason}`;
  if (mode.fused_s === null || mode.sliced_s === null) return said;
  const gain = (mode.sliced_s / mode.fused_s).toFixed(2);
  return `${said}: ${gain} times as fast together as alone, runs ${mode.members.join(", ")}`;
}

function Configuration({ detail }: { detail: RunDetail }) {
  const { knobs } = useExperiment();
  const given = Object.entries(knobs.get(detail.row.run_id) ?? {});
  const inForce = flattened(detail.resolved);
  return (
    <section aria-label="Configuration">
      <h2>Configuration</h2>
      <KnobTable rows={given} />
      {inForce.length > 0 && (
        <details>
          <summary>All {inForce.length} arguments in force</summary>
          <KnobTable rows={inForce} />
        </details>
      )}
    </section>
  );
}

/** The arguments of all sections by their full names. */
function flattened(sections: Readonly<Record<string, Json>>): [string, Json][] {
  return Object.entries(sections).flatMap(([section, values]): [string, Json][] =>
    values !== null && typeof values === "object" && !Array.isArray(values)
      ? Object.entries(values).map(([name, value]) => [`${section}.${name}`, value])
      : [[section, values]]);
}

function KnobTable({ rows }: { rows: readonly (readonly [string, Json])[] }) {
  return (
    <table className="knob-table">
      <tbody>
        {rows.map(([name, value]) => (
          <tr key={name}>
            <th scope="row" title={name}>{shortKnob(name)}</th>
            <td>{formatKnob(value)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
