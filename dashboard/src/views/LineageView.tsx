import type { RunRow } from "../api/types";
import { formatKnob, formatNumber, shortKnob } from "../model/format";
import { lineage, type LineageLine } from "../model/lineage";
import { Empty } from "../parts/Empty";
import { Icon } from "../parts/Icon";
import { StatusPill } from "../parts/StatusPill";
import { Swatch } from "../parts/Swatch";
import { useExperiment } from "../store/useExperiment";
import { useChangeView } from "../store/useRoute";

/** Which run was cloned from which, and what was changed. */
export function LineageView({ onClone }: { onClone: (run: RunRow) => void }) {
  const { runs } = useExperiment();
  const change = useChangeView();
  const lines = lineage(runs, true);
  if (lines.length === 0) {
    return (
      <Empty title="No run has been cloned yet">
        <p>
          A clone is a run with some knobs changed; a warm one goes on from its parent's weights. Put the cursor on a
          run and press <kbd>c</kbd>.
        </p>
        <button type="button" onClick={() => change({ tab: "runs" })}>To the runs</button>
      </Empty>
    );
  }
  return (
    <div className="page">
      <ul className="lineage">
        {lines.map((line) => <Line key={line.row.run_id} line={line} onClone={onClone} onOpen={(run) => change({ run })} />)}
      </ul>
    </div>
  );
}

interface LineProps {
  line: LineageLine;
  onClone: (run: RunRow) => void;
  onOpen: (runId: number) => void;
}

function Line({ line: { row, depth }, onClone, onOpen }: LineProps) {
  const changes = Object.entries(row.modified);
  const step = row.fork?.["step"];
  return (
    <li style={{ marginInlineStart: `${depth * 28}px` }} className={depth > 0 ? "is-clone" : undefined}>
      <Swatch runId={row.run_id} />
      <button type="button" className="link" onClick={() => onOpen(row.run_id)}>run {row.run_id}</button>
      <StatusPill status={row.status} />
      {row.fork !== null && <span className="tag">warm{typeof step === "number" ? ` from step ${step}` : ""}</span>}
      {depth > 0 && changes.length === 0 && <span className="faint">unchanged</span>}
      {changes.map(([name, [before, after]]) => (
        <span key={name} className="change" title={name}>
          {shortKnob(name)} <span className="diff-old">{formatKnob(before)}</span>
          <span aria-label="became"> → </span>
          <span className="diff-new">{formatKnob(after)}</span>
        </span>
      ))}
      <span className="spacer" />
      <span className="faint">loss {formatNumber(row.loss)}</span>
      {row.status !== "deleted" && (
        <button type="button" className="quiet" onClick={() => onClone(row)}><Icon name="clone" /> Clone</button>
      )}
    </li>
  );
}
