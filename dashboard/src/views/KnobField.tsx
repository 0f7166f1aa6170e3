import { useId } from "react";
import type { Knob } from "../api/types";
import { formatKnob, shortKnob } from "../model/format";
import { inputOf } from "../model/knobForm";

interface Props {
  knob: Knob;
  text: string;
  problem: string | null;
  onChange: (name: string, text: string) => void;
}

/** One argument: its name, what it may be, and a field for its value. */
export function KnobField({ knob, text, problem, onChange }: Props) {
  const id = useId();
  const input = inputOf(knob);
  const isChanged = text !== formatKnob(knob.value);
  const others = knob.used.map(formatKnob).filter((used) => used !== formatKnob(knob.value));
  const hint = [
    shortened(knob.allowed),
    `default ${formatKnob(knob.default)}`,
    others.length > 0 && `also ${others.slice(0, 4).join(", ")} in this experiment`,
  ].filter(Boolean).join("; ");
  const shared = {
    id,
    name: knob.name,
    "aria-invalid": problem !== null,
    "aria-describedby": `${id}-hint`,
  };
  return (
    <div className={isChanged ? "knob-field is-changed" : "knob-field"}>
      <label htmlFor={id} title={knob.name}>{shortKnob(knob.name)}</label>
      {input.kind === "choice" ? (
        <select {...shared} value={text} onChange={(event) => onChange(knob.name, event.target.value)}>
          {input.choices.map(formatKnob).includes(text) || <option>{text}</option>}
          {input.choices.map((choice) => <option key={formatKnob(choice)}>{formatKnob(choice)}</option>)}
        </select>
      ) : (
        <input
          {...shared}
          value={text}
          list={`${id}-used`}
          spellCheck={false}
          autoComplete="off"
          onChange={(event) => onChange(knob.name, event.target.value)}
        />
      )}
      {input.kind === "text" && (
        <datalist id={`${id}-used`}>{others.map((used) => <option key={used} value={used} />)}</datalist>
      )}
      <span id={`${id}-hint`} className={problem === null ? "faint" : "problem"}>{problem ?? hint}</span>
    </div>
  );
}

const MAX_HINT = 70;

/** A long list of choices would push all other knobs away; the field offers it anyway. */
function shortened(allowed: string): string {
  return allowed.length > MAX_HINT ? `${allowed.slice(0, MAX_HINT)}…` : allowed;
}
