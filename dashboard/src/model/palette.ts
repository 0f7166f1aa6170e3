// The colours of runs: Okabe and Ito's, which people with any colour vision tell apart, and a
// second mark (dashes) where there are more runs than colours.

const LIGHT = ["#0072b2", "#d55e00", "#008f6b", "#b0578d", "#a87800", "#2f8fc4", "#5b4fb0", "#4d4d4d"];
const DARK = ["#4ba3e3", "#f28a3c", "#2fc79a", "#e090bf", "#e6b422", "#7cc8f2", "#a79bf0", "#c4c4c4"];

const DASHES: readonly (readonly number[])[] = [[], [7, 4], [2, 3]];

export interface RunStyle {
  color: string;
  dash: readonly number[];
}

/** How the curve of a run looks. It never changes, whatever else is shown. */
export function runStyle(runId: number, isDark: boolean): RunStyle {
  const colors = isDark ? DARK : LIGHT;
  const index = runId - 1;
  return {
    color: colors[index % colors.length] as string,
    dash: DASHES[Math.floor(index / colors.length) % DASHES.length] as readonly number[],
  };
}

const RAMP: readonly (readonly [number, number, number])[] = [
  [0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56],
];

/** Cividis, a ramp that is read alike by all; 0 is dark, 1 bright. */
export function rampColor(share: number, isDark: boolean): string {
  // Its ends would vanish in the page's background.
  const place = (isDark ? 0.25 + 0.75 * clamp(share) : 0.85 * clamp(share)) * (RAMP.length - 1);
  const low = Math.min(RAMP.length - 2, Math.floor(place));
  const from = RAMP[low] as readonly [number, number, number];
  const to = RAMP[low + 1] as readonly [number, number, number];
  const mix = from.map((one, i) => Math.round(one + ((to[i] as number) - one) * (place - low)));
  return `rgb(${mix.join(",")})`;
}

function clamp(share: number): number {
  return Math.min(1, Math.max(0, share));
}
