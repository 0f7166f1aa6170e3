// Which run's which chunk held the device when, what handing over cost, and the memory meanwhile.

import { useEffect, useMemo, useState } from "react";
import { api } from "../api/client";
import type { Timeline } from "../api/types";
import { formatDuration, plural } from "../model/format";
import { handOvers, lanesOf, type Span, wholeSpan } from "../model/turns";
import { Empty, Skeleton } from "../parts/Empty";
import { useExperiment } from "../store/useExperiment";
import { useChangeView } from "../store/useRoute";
import { Curves } from "./Charts";
import { Lanes } from "./Lanes";

const LOOK_MS = 2000;
const MEASURED = /memory_(gib|used_gib|peak_gib)$|utili[sz]ation|cpu_percent/;

export function TimelineView() {
  const store = useExperiment();
  const change = useChangeView();
  const { timeline, now_s, problem } = useTimeline(store.name, store.trainedBy !== null);
  const [zoom, setZoom] = useState<Span | null>(null);
  const lanes = useMemo(() => lanesOf(timeline?.turns ?? []), [timeline]);
  const ids = useMemo(() => store.runs.filter((run) => run.status !== "deleted").map((run) => run.run_id), [store.runs]);
  const measured = [...new Set(store.metrics.filter((one) => one.source === "device").map((one) => one.shown))];
  if (problem !== null && timeline === null) return <p className="problem">{problem}</p>;
  if (timeline === null) return <Skeleton lines={6} />;
  if (timeline.turns.length === 0) {
    return <Empty title="No run has had a turn yet"><p>The first chunk begins once data and model are ready.</p></Empty>;
  }
  const whole = wholeSpan(timeline.turns, now_s);
  return (
    <div className="page">
      <Sums timeline={timeline} />
      <div className="tools">
        <span className="faint">
          Colours are runs, numbers are chunks, hatched is building and handing over. Drag to zoom, double-click for
          all.
        </span>
        {zoom !== null && <button type="button" onClick={() => setZoom(null)}>Whole time</button>}
      </div>
      <Lanes lanes={lanes} turns={timeline.turns} span={zoom ?? whole} now_s={now_s} origin_s={whole.from} onZoom={setZoom} onOpen={(run) => change({ run })} />
      <section aria-label="Device" className="charts">
        <h2>Memory and load</h2>
        {measured.length === 0 ? (
          <p className="faint">Measured at the ends of chunks; there is nothing yet.</p>
        ) : (
          <Curves
            charts={measured.filter((name) => MEASURED.test(name)).slice(0, 6)}
            ids={ids}
            marks={[]}
            view={{ x: "time", smoothing: 0, logX: false, logY: false }}
            highlighted={null}
            onHighlight={ignore}
          />
        )}
      </section>
    </div>
  );
}

function ignore(): void {
  // The lanes above are not highlighted along with a curve.
}

function useTimeline(name: string, isTraining: boolean) {
  const [timeline, setTimeline] = useState<Timeline | null>(null);
  const [now_s, setNow] = useState(0);
  const [problem, setProblem] = useState<string | null>(null);
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout>;
    let isOver = false;
    const look = async () => {
      try {
        const [found, server] = await Promise.all([api.timeline(name), api.server()]);
        if (isOver) return;
        setTimeline(found);
        setNow(server.now_s);
        setProblem(null);
      } catch (error) {
        if (!isOver) setProblem(error instanceof Error ? error.message : String(error));
      }
      if (!isOver && isTraining) timer = setTimeout(() => void look(), LOOK_MS);
    };
    void look();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [name, isTraining]);
  return { timeline, now_s, problem };
}

function Sums({ timeline }: { timeline: Timeline }) {
  const { gaps_s, overhead_s, mean_s } = handOvers(timeline.turns);
  const facts: [string, string][] = [
    ["Turns", plural(timeline.turns.length, "turn")],
    ["Workers busy", timeline.utilisation === null ? "–" : `${(timeline.utilisation * 100).toFixed(1)} %`],
    ["Of it training", timeline.busy_s > 0 ? `${((timeline.active_s / timeline.busy_s) * 100).toFixed(1)} %` : "–"],
    ["Building, saving, handing over", formatDuration(overhead_s)],
    ["Between turns", formatDuration(gaps_s)],
    ["Both, for each turn", formatDuration(mean_s)],
  ];
  return (
    <dl className="facts">
      {facts.map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}
    </dl>
  );
}
