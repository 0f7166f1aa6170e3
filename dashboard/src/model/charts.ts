// Which charts and which curves are shown where nobody has chosen any, and what was done to runs.

import type { CommandMessage, MetricName, RunRow } from "../api/types";
import type { Mark } from "../charts/drawCurves";
import type { Shown } from "./viewState";

const WANTED = ["loss", "eval_loss", "eval_reward", "reward", "rewards/margins", "eval_mean_token_accuracy", "learning_rate"];

/** The charts that are shown at first: the losses, and what else says how good a run is. */
export function usualCharts(metrics: readonly MetricName[]): string[] {
  const names = new Set(metrics.map((one) => one.shown));
  const usual = WANTED.filter((name) => names.has(name)).slice(0, 3);
  return usual.length > 0 ? usual : [...names].slice(0, 1);
}

/** More curves than this nobody tells apart, and they take their time. */
export const USUAL_CURVES = 100;

/**
 * The runs whose curves are shown: all that the table shows, unless a selection narrows them; of
 * very many only the first in the table's order, if not all are asked for.
 */
export function shownRuns(rows: readonly RunRow[], selected: readonly number[], shown: Shown): number[] {
  const ids = rows.map((row) => row.run_id);
  if (shown === "all") return ids;
  if (shown === "selected") {
    const wanted = new Set(selected);
    return ids.filter((id) => wanted.has(id));
  }
  return ids.slice(0, USUAL_CURVES);
}

const LETTERS: Partial<Record<string, string>> = {
  stop: "S", resume: "R", prune: "P", delete: "D", clone: "C",
};

/** Marks for the commands that were carried out at a step. */
export function marksOf(commands: readonly CommandMessage[]): Mark[] {
  return commands.flatMap((command): Mark[] => {
    const letter = LETTERS[command.verb];
    if (letter === undefined || command.status !== "applied" || command.step === null) return [];
    const into = command.new_run_id === null ? "" : ` as run ${command.new_run_id}`;
    const why = command.reason === "" ? "" : `: ${command.reason}`;
    const text = `${command.verb}${into} at step ${command.step}, by ${command.by}${why}`;
    return [{ runId: command.run_id, step: command.step, letter, text }];
  });
}
