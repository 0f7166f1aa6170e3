// The keyboard: one table for what keys do and for the help that lists them.

export type Action =
  | "next" | "previous" | "toggle" | "toggleAll" | "clear" | "open"
  | "stop" | "resume" | "clone" | "prune" | "delete" | "pin"
  | "undo" | "filter" | "help" | "escape";

interface Binding {
  action: Action;
  keys: readonly string[];
  help: string;
}

export const BINDINGS: readonly Binding[] = [
  { action: "next", keys: ["j", "ArrowDown"], help: "next run" },
  { action: "previous", keys: ["k", "ArrowUp"], help: "previous run" },
  { action: "toggle", keys: ["x", " "], help: "select the run, or no longer" },
  { action: "toggleAll", keys: ["a"], help: "select all runs that are shown, or none" },
  { action: "open", keys: ["Enter"], help: "open the run's page" },
  { action: "stop", keys: ["s"], help: "stop" },
  { action: "resume", keys: ["r"], help: "resume" },
  { action: "clone", keys: ["c"], help: "clone and modify" },
  { action: "prune", keys: ["p"], help: "prune" },
  { action: "delete", keys: ["d", "Delete"], help: "delete" },
  { action: "pin", keys: ["b"], help: "pin, or no longer" },
  { action: "undo", keys: ["u"], help: "undo the last command" },
  { action: "filter", keys: ["/"], help: "filter runs" },
  { action: "help", keys: ["?"], help: "show this" },
  { action: "escape", keys: ["Escape"], help: "close, or select nothing" },
];

export interface Press {
  key: string;
  ctrlKey: boolean;
  metaKey: boolean;
  altKey: boolean;
  /** Whether the key goes into a text field or a control that uses it itself. */
  isTyped: boolean;
}

/** What a key asks for; null if nothing. Keys that are typed or come with modifiers stay theirs. */
export function actionOf(press: Press): Action | null {
  if (press.ctrlKey || press.metaKey || press.altKey) return null;
  if (press.isTyped && press.key !== "Escape") return null;
  const key = press.key.length === 1 ? press.key.toLowerCase() : press.key;
  return BINDINGS.find((one) => one.keys.includes(key))?.action ?? null;
}

/** How a key is called on a keyboard. */
export function keyLabel(key: string): string {
  const names: Record<string, string> = {
    ArrowDown: "↓", ArrowUp: "↑", " ": "Space", Delete: "Del", Escape: "Esc",
  };
  return names[key] ?? key;
}
