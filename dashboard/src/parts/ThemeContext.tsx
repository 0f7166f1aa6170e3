import { createContext, use } from "react";

const DarkContext = createContext(false);
export const DarkProvider = DarkContext.Provider;

/** Whether the page is dark, for what is drawn in colours of its own. */
export function useIsDark(): boolean {
  return use(DarkContext);
}
