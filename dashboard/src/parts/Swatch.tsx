import { runStyle } from "../model/palette";
import { useIsDark } from "./ThemeContext";

/** The stroke with which a run's curves are drawn. */
export function Swatch({ runId }: { runId: number }) {
  const { color, dash } = runStyle(runId, useIsDark());
  return (
    <svg className="swatch" viewBox="0 0 18 8" aria-hidden="true">
      <path d="M1 4h16" stroke={color} strokeWidth="3" strokeDasharray={dash.join(" ")} />
    </svg>
  );
}
