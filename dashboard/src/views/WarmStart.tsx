import type { Forecast, RunRow } from "../api/types";

export interface WarmStartChoice {
  isOn: boolean;
  optimizer: "keep" | "reset";
  schedule: "continue" | "restart";
}

interface Props {
  run: RunRow;
  choice: WarmStartChoice;
  forecast: Forecast | null;
  onChange: (choice: WarmStartChoice) => void;
}

/** Whether the clone goes on from its parent, and what that means. */
export function WarmStart({ run, choice, forecast, onChange }: Props) {
  const isPossible = run.step > 0;
  return (
    <fieldset className="warm">
      <legend>Start</legend>
      <label>
        <input type="radio" name="start" checked={!choice.isOn} onChange={() => onChange({ ...choice, isOn: false })} />
        <span><strong>Cold</strong>: from the base model, step 0</span>
      </label>
      <label>
        <input
          type="radio"
          name="start"
          value="warm"
          checked={choice.isOn}
          disabled={!isPossible}
          onChange={() => onChange({ ...choice, isOn: true })}
        />
        <span>
          <strong>Warm</strong>: {isPossible ? `from run ${run.run_id}'s weights and place in the data` : "run has no finished step yet"}
        </span>
      </label>
      {choice.isOn && (
        <div className="warm-choices">
          <label className="stacked">
            Optimizer's state
            <select
              value={choice.optimizer}
              onChange={(event) => onChange({ ...choice, optimizer: event.target.value as "keep" | "reset" })}
            >
              <option value="keep">keep: go on with the parent's moments</option>
              <option value="reset">reset: begin without any</option>
            </select>
          </label>
          <label className="stacked">
            Learning rate's schedule
            <select
              value={choice.schedule}
              onChange={(event) => onChange({ ...choice, schedule: event.target.value as "continue" | "restart" })}
            >
              <option value="continue">continue: as if it had been in force from the start</option>
              <option value="restart">restart: warm-up and all, over the steps that remain</option>
            </select>
          </label>
          {forecast !== null && <p className="forecast" aria-live="polite">The clone {forecast.text}.</p>}
        </div>
      )}
    </fieldset>
  );
}
