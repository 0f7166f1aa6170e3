// The address of the page as state.

import { useCallback, useMemo, useSyncExternalStore } from "react";
import { formatRoute, parseRoute, type Route, type ViewState } from "../model/viewState";

function subscribe(listener: () => void): () => void {
  window.addEventListener("hashchange", listener);
  window.addEventListener("popstate", listener);
  return () => {
    window.removeEventListener("hashchange", listener);
    window.removeEventListener("popstate", listener);
  };
}

export function useRoute(): Route {
  const hash = useSyncExternalStore(subscribe, () => window.location.hash);
  return useMemo(() => parseRoute(hash), [hash]);
}

export type ChangeView = (changes: Partial<ViewState>) => void;

/** Changes the view; another place is a step that the browser's "back" takes back. */
export function useChangeView(): ChangeView {
  return useCallback((changes) => {
    const route = parseRoute(window.location.hash);
    if (route.page !== "experiment") return;
    const hash = formatRoute({ ...route, view: { ...route.view, ...changes } });
    const isOtherPlace = "tab" in changes || "run" in changes;
    const change = isOtherPlace ? "pushState" : "replaceState";
    window.history[change](null, "", hash);
    window.dispatchEvent(new HashChangeEvent("hashchange"));
  }, []);
}
