import { useEffect, useState } from "react";
import type { CommandMessage } from "../api/types";
import { formatClock, formatDuration, formatKnob, shortKnob } from "../model/format";
import { VERB_LABELS } from "../model/verbs";
import { Icon } from "../parts/Icon";
import { useExperiment } from "../store/useExperiment";

const FEW = 8;
const ICONS = { pending: "queued", applied: "completed", rejected: "failed" } as const;
const TONES = { pending: "queued", applied: "completed", rejected: "failed" } as const;

/** What was asked, by whom, and what became of it; the latest first. */
export function CommandLog({ runId = null }: { runId?: number | null }) {
  const { commands } = useExperiment();
  const [showsAll, setShowsAll] = useState(false);
  const now_s = useNow();
  const all = commands.filter((one) => runId === null || one.run_id === runId || one.new_run_id === runId).toReversed();
  const shown = showsAll ? all : all.slice(0, FEW);
  return (
    <section className="command-log" aria-label="Commands">
      <h2>Commands</h2>
      {all.length === 0 ? (
        <p className="faint">
          None so far. Select runs with <kbd>x</kbd>, then <kbd>s</kbd> stops, <kbd>r</kbd> resumes, <kbd>c</kbd>{" "}
          clones, <kbd>p</kbd> prunes; <kbd>?</kbd> shows all keys.
        </p>
      ) : (
        <ol className="commands">
          {shown.map((command) => <CommandLine key={command.command_id} command={command} now_s={now_s} />)}
        </ol>
      )}
      {all.length > FEW && (
        <button type="button" className="link" onClick={() => setShowsAll(!showsAll)}>
          {showsAll ? "Only the latest" : `All ${all.length}`}
        </button>
      )}
    </section>
  );
}

function CommandLine({ command, now_s }: { command: CommandMessage; now_s: number }) {
  const changes = Object.entries(command.modify).map(([name, value]) => `${shortKnob(name)}=${formatKnob(value)}`);
  return (
    <li data-command={command.command_id}>
      <time dateTime={new Date(command.given_s * 1000).toISOString()}>{formatClock(command.given_s, now_s)}</time>
      <span className={`pill status-${TONES[command.status]}`}>
        <Icon name={ICONS[command.status]} />
        {command.status}
      </span>
      <span className="command-text">
        <strong>{VERB_LABELS[command.verb]} run {command.run_id}</strong>
        {changes.length > 0 && <code>{changes.join(", ")}</code>}
        {command.warm_start && <span className="tag">warm start</span>}
        {command.outcome !== "" && <span>{command.outcome}</span>}
        <span className="faint">
          by {command.by}{command.reason !== "" && `: ${command.reason}`}
          {command.latency_s !== null && `, after ${formatDuration(command.latency_s)}`}
        </span>
      </span>
    </li>
  );
}

function useNow(): number {
  const [now_s, setNow] = useState(() => Date.now() / 1000);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now() / 1000), 30_000);
    return () => clearInterval(timer);
  }, []);
  return now_s;
}
