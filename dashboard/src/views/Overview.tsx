import { useEffect, useState } from "react";
import { api, ApiError } from "../api/client";
import type { Experiment, RunStatus } from "../api/types";
import { formatAgo, formatDuration, formatNumber, plural } from "../model/format";
import { Empty, Skeleton } from "../parts/Empty";
import { Icon } from "../parts/Icon";
import { Locked } from "../parts/Locked";
import { Progress } from "../parts/Progress";
import { Shell } from "../parts/Shell";
import { StatusPill } from "../parts/StatusPill";
import type { Theme } from "../store/useTheme";

const LOOK_MS = 2000;

interface Seen {
  experiments: readonly Experiment[] | null;
  path: string;
  now_s: number;
  problem: ApiError | null;
}

export function Overview({ theme, onToggleTheme }: { theme: Theme; onToggleTheme: () => void }) {
  const { experiments, path, now_s, problem } = useExperiments();
  return (
    <Shell heading={null} theme={theme} onToggleTheme={onToggleTheme}>
      <div className="page">
        <h1>Experiments</h1>
        {path !== "" && <p className="faint path">{path}</p>}
        {problem?.isUnauthorised ? (
          <Locked />
        ) : (
          <>
            {problem !== null && (
              <p className="banner" role="alert">
                <Icon name="interrupted" /> {problem.message}; trying again.
              </p>
            )}
            {experiments === null ? <Skeleton lines={4} /> : <ExperimentList experiments={experiments} now_s={now_s} />}
          </>
        )}
      </div>
    </Shell>
  );
}

function useExperiments(): Seen {
  const [seen, setSeen] = useState<Seen>({ experiments: null, path: "", now_s: 0, problem: null });
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout>;
    let isOver = false;
    const look = async () => {
      try {
        const [experiments, server] = await Promise.all([api.experiments(), api.server()]);
        if (isOver) return;
        setSeen({ experiments, path: server.experiments_path, now_s: server.now_s, problem: null });
      } catch (error) {
        if (isOver) return;
        const problem = error instanceof ApiError ? error : new ApiError(0, "page", String(error));
        setSeen((before) => ({ ...before, problem }));
        if (problem.isUnauthorised) return;
      }
      timer = setTimeout(() => void look(), document.hidden ? 5 * LOOK_MS : LOOK_MS);
    };
    void look();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, []);
  return seen;
}

function ExperimentList({ experiments, now_s }: { experiments: readonly Experiment[]; now_s: number }) {
  if (experiments.length === 0) {
    return (
      <Empty title="No experiments yet">
        <p>They appear here as soon as a script trains one in this folder:</p>
        <pre>{`from rapidfireai import Experiment, List, RFGridSearch, RFSFTConfig

search = RFGridSearch(RFSFTConfig(learning_rate=List([1e-3, 1e-4])))
Experiment(search).run_fit(model=model, train_dataset=rows)`}</pre>
        <p>
          Or run <code>rapidfireai demo</code>, which trains four configurations of a small model in minutes.
        </p>
      </Empty>
    );
  }
  return (
    <ul className="cards">
      {experiments.map((one) => <ExperimentCard key={one.name} experiment={one} now_s={now_s} />)}
    </ul>
  );
}

const STATES = {
  training: { icon: "running", text: "training", tone: "running" },
  interrupted: { icon: "interrupted", text: "interrupted", tone: "interrupted" },
  ended: { icon: "completed", text: "ended", tone: "completed" },
  unreadable: { icon: "failed", text: "unreadable", tone: "failed" },
} as const;

function ExperimentCard({ experiment, now_s }: { experiment: Experiment; now_s: number }) {
  const { icon, text, tone } = STATES[experiment.state];
  const { best, progress } = experiment;
  return (
    <li className="card">
      <div className="card-head">
        <a className="card-title" href={`#/experiments/${encodeURIComponent(experiment.name)}`}>
          {experiment.name}
        </a>
        <span className={`pill status-${tone}`}>
          <Icon name={icon} />
          {text}
        </span>
      </div>
      {experiment.problem !== null && <p className="problem">{experiment.problem}</p>}
      {progress !== null && (
        <Progress share={progress} text={`${Math.round(progress * 100)} %`} label="progress of all runs" tone={tone} />
      )}
      <dl className="facts">
        <div>
          <dt>Best run</dt>
          <dd>
            {best === null ? "none yet" : (
              <a href={`#/experiments/${encodeURIComponent(experiment.name)}/runs/${best.run_id}`}>
                run {best.run_id}, {best.metric} {formatNumber(best.value)}
              </a>
            )}
          </dd>
        </div>
        <div>
          <dt>Time to go</dt>
          <dd>{experiment.remaining_s === null ? "–" : formatDuration(experiment.remaining_s)}</dd>
        </div>
        <div>
          <dt>Begun</dt>
          <dd>{experiment.created_s === null ? "–" : formatAgo(experiment.created_s, now_s)}</dd>
        </div>
      </dl>
      <div className="pills">
        <span className="faint">{plural(experiment.num_runs, "run")}</span>
        {(Object.entries(experiment.statuses) as [RunStatus, number][]).map(([status, count]) => (
          <span key={status} className="counted">
            {count} <StatusPill status={status} />
          </span>
        ))}
      </div>
      {experiment.state === "interrupted" && (
        <p className="hint">Nobody trains it. Run the same script again and it goes on where it was.</p>
      )}
    </li>
  );
}
