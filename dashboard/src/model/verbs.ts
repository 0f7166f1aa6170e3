// What can be asked of a run as it is, and what takes it back. The server decides; this is so that
// nobody is offered what it would refuse.

import type { CommandMessage, RunRow, Verb } from "../api/types";

const UNFINISHED = new Set(["queued", "running", "waiting", "interrupted"]);
const ENDED_EARLY = new Set(["stopped", "pruned", "failed"]);

/** Why the run cannot be asked for it now; null if it can. */
export function whyNot(verb: Verb, run: RunRow): string | null {
  if (run.status === "deleted" && verb !== "restore") {
    return run.purged ? "deleted, and its files are gone" : "deleted: restore it first";
  }
  switch (verb) {
    case "stop":
      return UNFINISHED.has(run.status) ? null : `${run.status} already`;
    case "prune":
      if (!UNFINISHED.has(run.status)) return `${run.status} already`;
      return run.pinned ? "pinned: unpin it first" : null;
    case "resume":
      if (ENDED_EARLY.has(run.status)) return null;
      return UNFINISHED.has(run.status) ? "goes on anyway" : "has done all its steps: clone it with a warm start";
    case "delete":
      return run.pinned ? "pinned: unpin it first" : null;
    case "restore":
      if (run.status !== "deleted") return "not deleted";
      return run.purged ? "its files are gone" : null;
    case "pin":
      return run.pinned ? "pinned already" : null;
    case "unpin":
      return run.pinned ? null : "not pinned";
    case "clone":
      return null;
  }
}

/** The runs that can be asked for it. */
export function ableTo(verb: Verb, runs: readonly RunRow[]): RunRow[] {
  return runs.filter((run) => whyNot(verb, run) === null);
}

const INVERSE: Partial<Record<Verb, Verb>> = {
  stop: "resume",
  prune: "resume",
  resume: "stop",
  delete: "restore",
  restore: "delete",
  pin: "unpin",
  unpin: "pin",
};

export interface Request {
  verb: Verb;
  run_id: number;
}

/** What takes back a command that was applied; null if nothing does. */
export function undoing(command: CommandMessage): Request | null {
  if (command.status !== "applied") return null;
  if (command.verb === "clone") {
    return command.new_run_id === null ? null : { verb: "delete", run_id: command.new_run_id };
  }
  const verb = INVERSE[command.verb];
  return verb ? { verb, run_id: command.run_id } : null;
}

const DONE: Record<Verb, string> = {
  stop: "Stopped",
  resume: "Resumed",
  prune: "Pruned",
  delete: "Deleted",
  restore: "Restored",
  pin: "Pinned",
  unpin: "Unpinned",
  clone: "Cloned",
};

export const VERB_LABELS: Record<Verb, string> = {
  stop: "Stop",
  resume: "Resume",
  prune: "Prune",
  delete: "Delete",
  restore: "Restore",
  pin: "Pin",
  unpin: "Unpin",
  clone: "Clone",
};

/** "Stopped", for a message once it is done. */
export function done(verb: Verb): string {
  return DONE[verb];
}
