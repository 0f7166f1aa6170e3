import { useEffect } from "react";
import { DarkProvider } from "../parts/ThemeContext";
import { useRoute } from "../store/useRoute";
import { useTheme } from "../store/useTheme";
import { ExperimentPage } from "./ExperimentPage";
import { Overview } from "./Overview";

export function App() {
  const route = useRoute();
  const [theme, toggleTheme] = useTheme();
  const name = route.page === "experiment" ? route.name : null;
  useEffect(() => {
    document.title = name === null ? "rapidfireai" : `${name} · rapidfireai`;
  }, [name]);
  return (
    <DarkProvider value={theme === "dark"}>
      {route.page === "overview" ? (
        <Overview theme={theme} onToggleTheme={toggleTheme} />
      ) : (
        <ExperimentPage key={route.name} name={route.name} view={route.view} theme={theme} onToggleTheme={toggleTheme} />
      )}
    </DarkProvider>
  );
}
