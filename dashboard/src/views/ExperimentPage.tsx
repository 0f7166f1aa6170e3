import { useState } from "react";
import type { RunRow } from "../api/types";
import { formatDuration, plural } from "../model/format";
import { type Tab, TABS, type ViewState } from "../model/viewState";
import { Empty, Skeleton } from "../parts/Empty";
import { Help } from "../parts/Help";
import { Icon } from "../parts/Icon";
import { Locked } from "../parts/Locked";
import { Shell } from "../parts/Shell";
import { Toasts } from "../parts/Toasts";
import { CommanderProvider, useNewCommander } from "../store/useCommander";
import { StoreProvider, useExperiment, useNewStore } from "../store/useExperiment";
import { useChangeView } from "../store/useRoute";
import type { Theme } from "../store/useTheme";
import { CloneDialog } from "./CloneDialog";
import { CompareView } from "./CompareView";
import { LineageView } from "./LineageView";
import { LogView } from "./LogView";
import { ParallelView } from "./ParallelView";
import { RunPage } from "./RunPage";
import { RunsView } from "./RunsView";
import { TimelineView } from "./TimelineView";
import { TrackerLine } from "./TrackerLine";

interface Props {
  name: string;
  view: ViewState;
  theme: Theme;
  onToggleTheme: () => void;
}

export function ExperimentPage({ name, view, theme, onToggleTheme }: Props) {
  const store = useNewStore(name);
  const commander = useNewCommander(store);
  if (store === null || commander === null) return null;
  return (
    <StoreProvider value={store}>
      <CommanderProvider value={commander}>
        <Opened view={view} theme={theme} onToggleTheme={onToggleTheme} />
        <Toasts />
      </CommanderProvider>
    </StoreProvider>
  );
}

function Opened({ view, theme, onToggleTheme }: Omit<Props, "name">) {
  const store = useExperiment();
  const [cloned, setCloned] = useState<RunRow | null>(null);
  const [hasHelp, setHasHelp] = useState(false);
  const heading = (
    <>
      <span className="crumb" aria-hidden="true">/</span>
      <h1 className="head-title" title={store.name}>{store.name}</h1>
    </>
  );
  const tools = (
    <>
      <State />
      <button type="button" className="quiet" onClick={() => setHasHelp(true)} aria-label="Keyboard and help" title="Keyboard and help (?)">
        <Icon name="help" />
      </button>
    </>
  );
  return (
    <Shell heading={heading} tools={tools} theme={theme} onToggleTheme={onToggleTheme}>
      {store.problem?.isUnauthorised ? (
        <Locked />
      ) : !store.isLoaded ? (
        store.problem ? <Empty title="This experiment cannot be shown"><p>{store.problem.message}</p><p className="faint">It is tried again every few seconds.</p><p><a href="#/">All experiments</a></p></Empty> : <Skeleton lines={8} />
      ) : (
        <>
          <Tabs tab={view.tab} />
          <Banner />
          <TrackerLine name={store.name} />
          <Tabbed view={view} onClone={setCloned} onHelp={() => setHasHelp(true)} hasDialog={cloned !== null || hasHelp} />
        </>
      )}
      {cloned !== null && <CloneDialog run={cloned} onClose={() => setCloned(null)} />}
      {hasHelp && <Help onClose={() => setHasHelp(false)} />}
    </Shell>
  );
}

interface TabbedProps {
  view: ViewState;
  onClone: (run: RunRow) => void;
  onHelp: () => void;
  hasDialog: boolean;
}

function Tabbed({ view, onClone, onHelp, hasDialog }: TabbedProps) {
  if (view.run !== null) return <RunPage runId={view.run} view={view} onClone={onClone} onHelp={onHelp} hasDialog={hasDialog} />;
  switch (view.tab) {
    case "runs":
      return <RunsView view={view} onClone={onClone} onHelp={onHelp} hasDialog={hasDialog} />;
    case "timeline":
      return <TimelineView />;
    case "parallel":
      return <ParallelView view={view} />;
    case "compare":
      return <CompareView view={view} />;
    case "lineage":
      return <LineageView onClone={onClone} />;
    case "log":
      return <LogView />;
  }
}

const TAB_LABELS: Record<Tab, string> = {
  runs: "Runs",
  timeline: "Timeline",
  parallel: "Parallel",
  compare: "Compare",
  lineage: "Lineage",
  log: "Log",
};

function Tabs({ tab }: { tab: Tab }) {
  const change = useChangeView();
  return (
    <nav className="tabs" aria-label="Views of the experiment">
      {TABS.map((one) => (
        <button
          key={one}
          type="button"
          aria-current={one === tab ? "page" : undefined}
          onClick={() => change({ tab: one, run: null })}
        >
          {TAB_LABELS[one]}
        </button>
      ))}
    </nav>
  );
}

/** Whether somebody trains, whether this page is told of it, and how long it takes. */
function State() {
  const { connection, trainedBy, runs, isLoaded } = useExperiment();
  if (!isLoaded) return null;
  if (connection === "lost") {
    return <span className="pill status-interrupted"><Icon name="interrupted" />reconnecting</span>;
  }
  const unfinished = runs.filter((run) => ["queued", "running", "waiting", "interrupted"].includes(run.status));
  if (trainedBy === null) {
    return unfinished.length > 0
      ? <span className="pill status-interrupted"><Icon name="interrupted" />interrupted</span>
      : <span className="pill status-completed"><Icon name="completed" />ended</span>;
  }
  const remaining = remainingSeconds(unfinished);
  return (
    <span className="pill status-running" title={`trained by process ${trainedBy}; ${plural(unfinished.length, "run")} unfinished`}>
      <Icon name="running" />
      training{remaining === null ? "" : `, ${formatDuration(remaining)} to go`}
    </span>
  );
}

function remainingSeconds(runs: readonly RunRow[]): number | null {
  const known = runs.map((run) => run.remaining_s).filter((value) => value !== null);
  if (known.length === 0) return null;
  const sum = known.reduce((total, value) => total + value, 0);
  return (sum / known.length) * runs.length;
}

function Banner() {
  const { connection, problem, trainedBy, runs } = useExperiment();
  if (connection === "lost") {
    return (
      <p className="banner" role="alert">
        <Icon name="interrupted" /> The server does not answer. What you see is the latest that is known; this page
        goes on by itself once it is back.
      </p>
    );
  }
  if (problem !== null) {
    return <p className="banner" role="alert"><Icon name="failed" /> {problem.message}</p>;
  }
  const isLeft = runs.some((run) => ["queued", "running", "waiting", "interrupted"].includes(run.status));
  if (trainedBy === null && isLeft) {
    return (
      <p className="banner">
        <Icon name="interrupted" /> Nobody trains this experiment. Run the same script again and it goes on where it
        was; commands are carried out at once, clones then.
      </p>
    );
  }
  return null;
}
