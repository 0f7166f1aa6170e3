// The form for a clone: what may be changed, what that changes, and what a warm start means.

import { type FormEvent, useEffect, useMemo, useState } from "react";
import { api } from "../api/client";
import type { Checked, CommandRequest, Json, Knob, RunRow } from "../api/types";
import { formatKnob, shortKnob } from "../model/format";
import { parseKnob, sameValue } from "../model/knobForm";
import { Dialog } from "../parts/Dialog";
import { Skeleton } from "../parts/Empty";
import { Icon } from "../parts/Icon";
import { useCommander } from "../store/useCommander";
import { useExperiment } from "../store/useExperiment";
import { KnobField } from "./KnobField";
import { WarmStart, type WarmStartChoice } from "./WarmStart";

const CHECK_MS = 250;

export function CloneDialog({ run, onClose }: { run: RunRow; onClose: () => void }) {
  const store = useExperiment();
  const commander = useCommander();
  const [knobs, setKnobs] = useState<readonly Knob[] | null>(null);
  const [texts, setTexts] = useState<Readonly<Record<string, string>>>({});
  const [filter, setFilter] = useState("");
  const [reason, setReason] = useState("");
  const [warm, setWarm] = useState<WarmStartChoice>({ isOn: false, optimizer: "keep", schedule: "continue" });
  const [problem, setProblem] = useState<string | null>(null);
  const [isSending, setIsSending] = useState(false);

  useEffect(() => {
    api.knobs(store.name, run.run_id).then(setKnobs, (error: Error) => setProblem(error.message));
  }, [store.name, run.run_id]);

  const { modify, problems } = useMemo(() => readForm(knobs ?? [], texts), [knobs, texts]);
  const command: CommandRequest = {
    verb: "clone",
    run_id: run.run_id,
    modify,
    warm_start: warm.isOn,
    reason: reason.trim(),
    ...(warm.isOn && { optimizer: warm.optimizer, schedule: warm.schedule }),
  };
  const checked = useChecked(store.name, command);
  const refusal = checked?.refusal ?? null;
  const canSend = knobs !== null && Object.keys(problems).length === 0 && refusal === null && !isSending;

  const send = async (event: FormEvent) => {
    event.preventDefault();
    if (!canSend) return;
    setIsSending(true);
    try {
      await commander.clone(command);
      onClose();
    } catch (error) {
      setProblem(error instanceof Error ? error.message : String(error));
      setIsSending(false);
    }
  };

  return (
    <Dialog title={`Clone run ${run.run_id}`} onClose={onClose} isWide>
      <form className="clone" onSubmit={(event) => void send(event)}>
        <div className="clone-body">
          <section className="clone-knobs" aria-label="Knobs">
            <input
              type="search"
              value={filter}
              placeholder="Find a knob, such as learning_rate"
              aria-label="Find a knob"
              onChange={(event) => setFilter(event.target.value)}
            />
            {knobs === null ? <Skeleton lines={6} /> : (
              <KnobList
                knobs={knobs}
                texts={texts}
                problems={problems}
                filter={filter}
                onChange={(name, text) => setTexts((before) => ({ ...before, [name]: text }))}
              />
            )}
          </section>
          <section className="clone-side" aria-label="What the clone will be">
            <h3>Changes</h3>
            <Changes knobs={knobs ?? []} modify={modify} />
            <WarmStart run={run} choice={warm} forecast={checked?.forecast ?? null} onChange={setWarm} />
            <label className="stacked">
              Why (kept with the command)
              <input value={reason} maxLength={500} onChange={(event) => setReason(event.target.value)} />
            </label>
            {(problem ?? refusal) !== null && (
              <p className="problem" role="alert"><Icon name="failed" /> {problem ?? refusal}</p>
            )}
            {store.trainedBy === null && (
              <p className="hint">Nobody trains the experiment now: the clone is made when the script is run again.</p>
            )}
          </section>
        </div>
        <footer className="dialog-foot">
          <button type="button" onClick={onClose}>Cancel</button>
          <button type="submit" className="primary" disabled={!canSend}>
            <Icon name="clone" /> {Object.keys(modify).length === 0 ? "Clone unchanged" : "Clone"}
          </button>
        </footer>
      </form>
    </Dialog>
  );
}

interface Form {
  modify: Record<string, Json>;
  problems: Record<string, string>;
}

/** What the texts change; a text that says what the parent has changes nothing. */
function readForm(knobs: readonly Knob[], texts: Readonly<Record<string, string>>): Form {
  const form: Form = { modify: {}, problems: {} };
  for (const knob of knobs) {
    const text = texts[knob.name];
    if (text === undefined || text === formatKnob(knob.value)) continue;
    const parsed = parseKnob(text, knob);
    if (!parsed.ok) form.problems[knob.name] = parsed.problem;
    else if (!sameValue(parsed.value, knob.value)) form.modify[knob.name] = parsed.value;
  }
  return form;
}

/** What the server would say, a moment after the last key. */
function useChecked(experiment: string, command: CommandRequest): Checked | null {
  const [checked, setChecked] = useState<Checked | null>(null);
  const text = JSON.stringify(command);
  useEffect(() => {
    let isOver = false;
    const timer = setTimeout(() => {
      api.check(experiment, [JSON.parse(text) as CommandRequest]).then(
        ([first]) => !isOver && setChecked(first ?? null),
        (error: Error) => !isOver && setChecked({ refusal: error.message, differences: {}, forecast: null }),
      );
    }, CHECK_MS);
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [experiment, text]);
  return checked;
}

interface KnobListProps {
  knobs: readonly Knob[];
  texts: Readonly<Record<string, string>>;
  problems: Readonly<Record<string, string>>;
  filter: string;
  onChange: (name: string, text: string) => void;
}

function KnobList({ knobs, texts, problems, filter, onChange }: KnobListProps) {
  const wanted = filter.trim().toLowerCase();
  const fields = (some: readonly Knob[]) => some.map((knob) => (
    <KnobField
      key={knob.name}
      knob={knob}
      text={texts[knob.name] ?? formatKnob(knob.value)}
      problem={problems[knob.name] ?? null}
      onChange={onChange}
    />
  ));
  if (wanted !== "") {
    const found = knobs.filter((knob) => knob.name.toLowerCase().includes(wanted));
    return found.length === 0
      ? <p className="faint">There is no knob of that name.</p>
      : <div className="knob-list">{fields(found.slice(0, 40))}</div>;
  }
  const set = knobs.filter((knob) => knob.is_set || knob.name in texts);
  return (
    <div className="knob-list">
      {fields(set)}
      <p className="faint">{knobs.length - set.length} more arguments have their defaults: find them by name.</p>
    </div>
  );
}

function Changes({ knobs, modify }: { knobs: readonly Knob[]; modify: Readonly<Record<string, Json>> }) {
  const names = Object.keys(modify);
  if (names.length === 0) return <p className="faint">None yet: the clone would be a copy.</p>;
  const values = new Map(knobs.map((knob) => [knob.name, knob.value]));
  return (
    <table className="diff">
      <thead><tr><th scope="col">knob</th><th scope="col">parent</th><th scope="col">clone</th></tr></thead>
      <tbody>
        {names.map((name) => (
          <tr key={name}>
            <th scope="row" title={name}>{shortKnob(name)}</th>
            <td className="diff-old">{formatKnob(values.get(name))}</td>
            <td className="diff-new">{formatKnob(modify[name])}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
