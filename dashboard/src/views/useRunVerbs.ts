// What keys and buttons do to runs, alike on all pages that show runs.

import type { RunRow, Verb } from "../api/types";
import type { Action } from "../model/keys";
import { useCommander } from "../store/useCommander";

const VERBS: Partial<Record<Action, Verb>> = {
  stop: "stop",
  resume: "resume",
  prune: "prune",
  delete: "delete",
};

/** Carries out an action on runs; returns whether it was one of these. */
export function useRunVerbs(onClone: (run: RunRow) => void): (action: Action, runs: readonly RunRow[]) => boolean {
  const commander = useCommander();
  return (action, runs) => {
    const verb = VERBS[action];
    if (verb !== undefined) {
      void commander.ask(verb, runs);
      return true;
    }
    switch (action) {
      case "pin":
        void commander.ask(runs.length > 0 && runs.every((run) => run.pinned) ? "unpin" : "pin", runs);
        return true;
      case "undo":
        void commander.undo();
        return true;
      case "clone": {
        const [run] = runs;
        if (run !== undefined && run.status !== "deleted") onClone(run);
        else void commander.ask("clone", runs);
        return true;
      }
      default:
        return false;
    }
  };
}
