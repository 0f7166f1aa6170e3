// The store of the experiment that is shown, for components.

import { createContext, use, useEffect, useState, useSyncExternalStore } from "react";
import { ExperimentStore } from "./experimentStore";

const StoreContext = createContext<ExperimentStore | null>(null);
export const StoreProvider = StoreContext.Provider;

/** A store that lives as long as the component shows the experiment; null at first. */
export function useNewStore(name: string): ExperimentStore | null {
  const [store, setStore] = useState<ExperimentStore | null>(null);
  useEffect(() => {
    const opened = new ExperimentStore(name);
    setStore(opened);
    return () => opened.close();
  }, [name]);
  return store?.name === name ? store : null;
}

/** The store; the component is drawn again whenever something in it has changed. */
export function useExperiment(): ExperimentStore {
  const store = use(StoreContext);
  if (store === null) throw new Error("there is no experiment around this component");
  useSyncExternalStore(store.subscribe, store.getVersion);
  return store;
}
