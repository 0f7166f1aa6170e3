// Keys that are pressed anywhere on the page, as actions.

import { useEffect, useRef } from "react";
import { type Action, actionOf } from "../model/keys";

const USED_BY_CONTROLS = new Set(["Enter", " ", "ArrowDown", "ArrowUp"]);

export function useKeys(act: (action: Action) => void, isActive: boolean): void {
  const latest = useRef(act);
  latest.current = act;
  useEffect(() => {
    if (!isActive) return;
    const onKeyDown = (event: KeyboardEvent) => {
      const target = event.target instanceof HTMLElement ? event.target : null;
      const action = actionOf({
        key: event.key,
        ctrlKey: event.ctrlKey,
        metaKey: event.metaKey,
        altKey: event.altKey,
        isTyped: takesKey(target, event.key),
      });
      if (action === null) return;
      event.preventDefault();
      latest.current(action);
    };
    window.addEventListener("keydown", onKeyDown);
    return () => window.removeEventListener("keydown", onKeyDown);
  }, [isActive]);
}

function takesKey(target: HTMLElement | null, key: string): boolean {
  if (target === null) return false;
  if (target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]")) return true;
  return USED_BY_CONTROLS.has(key) && target.closest("button, a, summary, input") !== null;
}
