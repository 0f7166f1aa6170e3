// Commands as a person gives them: several at a time, with one message about how it went, and a
// way back.

import { ApiError } from "../api/client";
import type { CommandMessage, CommandRequest, RunRow, Verb } from "../api/types";
import { listRuns } from "../model/format";
import { ableTo, done, type Request, undoing, VERB_LABELS, whyNot } from "../model/verbs";
import type { ExperimentStore } from "./experimentStore";

export interface Notice {
  id: number;
  kind: "pending" | "done" | "problem";
  text: string;
  /** What takes it back. */
  undo: readonly Request[];
}

interface Given {
  noticeId: number;
  verb: Verb;
  ids: readonly number[];
  isUndo: boolean;
}

const SHOWN_MS = 9000;
const PROBLEM_MS = 15000;

export class Commander {
  notices: readonly Notice[] = [];
  private waiting: Given[] = [];
  private undoStack: { noticeId: number; requests: readonly Request[] }[] = [];
  private nextId = 1;
  private readonly listeners = new Set<() => void>();
  private readonly unsubscribe: () => void;

  constructor(private readonly store: ExperimentStore) {
    this.unsubscribe = store.subscribe(() => this.settle());
  }

  subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  getNotices = (): readonly Notice[] => this.notices;

  close(): void {
    this.unsubscribe();
  }

  /** Ask runs for something; those that cannot be asked for it are left out, and that is said. */
  async ask(verb: Verb, runs: readonly RunRow[]): Promise<void> {
    const able = ableTo(verb, runs);
    const first = runs[0];
    if (first === undefined) {
      this.notify("problem", `${VERB_LABELS[verb]}: select runs first`);
    } else if (able.length === 0) {
      const why = runs.length === 1 ? `run ${first.run_id} is ${whyNot(verb, first)}` : "none of these runs can be";
      this.notify("problem", `${VERB_LABELS[verb]}: ${why}`);
    } else {
      await this.give(verb, able.map((run) => ({ verb, run_id: run.run_id })), false);
    }
  }

  /** Clone; the server's refusal is thrown for the form to show. */
  async clone(command: CommandRequest): Promise<void> {
    const [given] = await this.store.give([command]);
    if (given?.status === "rejected") throw new ApiError(422, "rejected", given.outcome);
    if (given) this.watch("clone", [given], false);
  }

  /** Take back what was done last. */
  async undo(noticeId?: number): Promise<void> {
    const index = noticeId === undefined
      ? this.undoStack.length - 1
      : this.undoStack.findIndex((one) => one.noticeId === noticeId);
    const [last] = index < 0 ? [] : this.undoStack.splice(index, 1);
    if (last === undefined) {
      this.notify("problem", "There is nothing to undo");
      return;
    }
    this.dismiss(last.noticeId);
    const verb = last.requests[0]?.verb;
    if (verb) await this.give(verb, last.requests, true);
  }

  dismiss(id: number): void {
    this.notices = this.notices.filter((one) => one.id !== id);
    this.tell();
  }

  private async give(verb: Verb, commands: readonly Request[], isUndo: boolean): Promise<void> {
    try {
      this.watch(verb, await this.store.give(commands), isUndo);
    } catch (error) {
      this.notify("problem", `${VERB_LABELS[verb]}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }

  private watch(verb: Verb, given: readonly CommandMessage[], isUndo: boolean): void {
    const runs = listRuns(given.map((one) => one.run_id));
    const noticeId = this.notify("pending", `${VERB_LABELS[verb]} ${runs}: asked, happens at the next step`);
    this.waiting.push({ noticeId, verb, ids: given.map((one) => one.command_id), isUndo });
    this.settle();
  }

  private settle(): void {
    if (this.waiting.length === 0) return;
    const byId = new Map(this.store.commands.map((one) => [one.command_id, one]));
    this.waiting = this.waiting.filter((given) => {
      const commands = given.ids.map((id) => byId.get(id)).filter((one) => one !== undefined);
      const isSettled = commands.length === given.ids.length && commands.every((one) => one.status !== "pending");
      if (isSettled) this.report(given, commands);
      return !isSettled;
    });
  }

  private report({ noticeId, verb, isUndo }: Given, commands: readonly CommandMessage[]): void {
    const applied = commands.filter((one) => one.status === "applied");
    const rejected = commands.filter((one) => one.status === "rejected");
    const sentences: string[] = [];
    if (applied.length > 0) {
      const clones = applied.map((one) => one.new_run_id).filter((id) => id !== null);
      const into = verb === "clone" && clones.length > 0 ? ` as ${listRuns(clones)}` : "";
      sentences.push(`${done(verb)} ${listRuns(applied.map((one) => one.run_id))}${into}`);
    }
    if (rejected.length === 1) sentences.push(`refused: ${rejected[0]?.outcome}`);
    if (rejected.length > 1) sentences.push(`${rejected.length} refused: ${rejected[0]?.outcome}`);
    const undo = isUndo ? [] : applied.map(undoing).filter((one) => one !== null);
    if (undo.length > 0) this.undoStack.push({ noticeId, requests: undo });
    const kind = rejected.length > 0 ? "problem" : "done";
    this.notices = this.notices.map((one) =>
      one.id === noticeId ? { id: noticeId, kind, text: sentences.join(". "), undo } : one);
    this.expire(noticeId, kind);
    this.tell();
  }

  private notify(kind: Notice["kind"], text: string): number {
    const id = this.nextId++;
    this.notices = [...this.notices, { id, kind, text, undo: [] }].slice(-4);
    if (kind !== "pending") this.expire(id, kind);
    this.tell();
    return id;
  }

  private expire(id: number, kind: Notice["kind"]): void {
    setTimeout(() => this.dismiss(id), kind === "problem" ? PROBLEM_MS : SHOWN_MS);
  }

  private tell(): void {
    for (const listener of this.listeners) listener();
  }
}
