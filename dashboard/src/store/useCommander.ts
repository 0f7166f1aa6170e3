// Who gives the commands of the page, for components.

import { createContext, use, useEffect, useState, useSyncExternalStore } from "react";
import { Commander, type Notice } from "./commander";
import type { ExperimentStore } from "./experimentStore";

const CommanderContext = createContext<Commander | null>(null);
export const CommanderProvider = CommanderContext.Provider;

export function useNewCommander(store: ExperimentStore | null): Commander | null {
  const [commander, setCommander] = useState<Commander | null>(null);
  useEffect(() => {
    if (store === null) return;
    const opened = new Commander(store);
    setCommander(opened);
    return () => opened.close();
  }, [store]);
  return store === null ? null : commander;
}

export function useCommander(): Commander {
  const commander = use(CommanderContext);
  if (commander === null) throw new Error("nobody gives commands around this component");
  return commander;
}

export function useNotices(commander: Commander): readonly Notice[] {
  return useSyncExternalStore(commander.subscribe, commander.getNotices);
}
