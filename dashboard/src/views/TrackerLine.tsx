import { useEffect, useState } from "react";
import { api } from "../api/client";
import type { Tracker } from "../api/types";
import { Icon } from "../parts/Icon";

const LOOK_MS = 5000;

const LABELS: Record<string, string> = {
  mlflow: "MLflow",
  tensorboard: "TensorBoard",
  trackio: "Trackio",
  wandb: "W&B",
};

const ICONS = { current: "completed", sending: "running", failing: "failed", behind: "interrupted" } as const;

/** Where else the experiment's values go, and whether they have arrived. Nothing without trackers. */
export function TrackerLine({ name }: { name: string }) {
  const trackers = useTrackers(name);
  if (trackers.length === 0) return null;
  return (
    <ul className="trackers" aria-label="Trackers">
      {trackers.map((one) => (
        <li key={one.name} title={one.where} className={`tracker-${one.state}`}>
          <Icon name={ICONS[one.state]} />
          {one.page === null ? label(one) : <a href={one.page} target="_blank" rel="noreferrer">{label(one)}</a>}
          <span className="faint">{one.told}</span>
        </li>
      ))}
    </ul>
  );
}

function label(tracker: Tracker): string {
  return LABELS[tracker.name] ?? tracker.name;
}

function useTrackers(name: string): readonly Tracker[] {
  const [trackers, setTrackers] = useState<readonly Tracker[]>([]);
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout>;
    let isOver = false;
    const look = async () => {
      const found = await api.trackers(name).catch(() => null); // the page says it where the server is gone
      if (isOver) return;
      if (found !== null) setTrackers(found);
      timer = setTimeout(() => void look(), document.hidden ? 6 * LOOK_MS : LOOK_MS);
    };
    void look();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [name]);
  return trackers;
}
