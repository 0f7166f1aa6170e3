// Light or dark: as the system has it, until somebody chooses.

import { useEffect, useState, useSyncExternalStore } from "react";

export type Theme = "light" | "dark";

const KEY = "rapidfireai.theme";
const query = window.matchMedia("(prefers-color-scheme: dark)");

function subscribe(listener: () => void): () => void {
  query.addEventListener("change", listener);
  return () => query.removeEventListener("change", listener);
}

function stored(): Theme | null {
  try {
    const value = localStorage.getItem(KEY);
    return value === "light" || value === "dark" ? value : null;
  } catch {
    return null; // storage is switched off
  }
}

export function useTheme(): [Theme, () => void] {
  const isSystemDark = useSyncExternalStore(subscribe, () => query.matches);
  const [chosen, setChosen] = useState(stored);
  const theme = chosen ?? (isSystemDark ? "dark" : "light");
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
  }, [theme]);
  const toggle = () => {
    const other = theme === "dark" ? "light" : "dark";
    setChosen(other);
    try {
      localStorage.setItem(KEY, other);
    } catch {
      // Then it lasts as long as the page.
    }
  };
  return [theme, toggle];
}
