import type { RunRow } from "../api/types";
import { progressOf } from "../model/table";

/** How much of its steps a run has done. */
export function RunProgress({ row }: { row: RunRow }) {
  const share = progressOf(row);
  const steps = row.num_steps === null ? `${row.step}` : `${row.step}/${row.num_steps}`;
  return <Progress share={share ?? 0} text={steps} label={`step ${steps}`} tone={row.status} />;
}

interface Props {
  share: number;
  text: string;
  label: string;
  tone: string;
}

export function Progress({ share, text, label, tone }: Props) {
  const percent = Math.round(share * 100);
  return (
    <span className="progress" title={`${label}, ${percent} %`}>
      <span
        className={`progress-track tone-${tone}`}
        role="progressbar"
        aria-label={label}
        aria-valuenow={percent}
        aria-valuemin={0}
        aria-valuemax={100}
      >
        <span className="progress-bar" style={{ width: `${percent}%` }} />
      </span>
      <span className="progress-text">{text}</span>
    </span>
  );
}
