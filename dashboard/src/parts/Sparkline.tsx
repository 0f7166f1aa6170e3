import { memo } from "react";
import { runStyle } from "../model/palette";
import { useIsDark } from "./ThemeContext";

const WIDTH = 88;
const HEIGHT = 22;

interface Props {
  values: readonly (number | null)[];
  runId: number;
}

/** The loss from the first step to the latest, in little. */
export const Sparkline = memo(function Sparkline({ values, runId }: Props) {
  const { color } = runStyle(runId, useIsDark());
  const finite = values.filter((value) => value !== null);
  if (finite.length < 2) return <span className="faint">–</span>;
  const min = Math.min(...finite);
  const span = Math.max(...finite) - min || 1;
  let path = "";
  values.forEach((value, i) => {
    if (value === null) return;
    const x = 1 + (i / (values.length - 1)) * (WIDTH - 2);
    const y = HEIGHT - 2 - ((value - min) / span) * (HEIGHT - 4);
    path += `${path ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
  });
  return (
    <svg className="sparkline" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} aria-hidden="true">
      <path d={path} fill="none" stroke={color} strokeWidth="1.5" />
    </svg>
  );
});
