import type { XAxis } from "../api/types";
import type { Shown, ViewState } from "../model/viewState";
import { useChangeView } from "../store/useRoute";

const X_AXES: readonly XAxis[] = ["step", "samples", "tokens", "time"];

interface Props {
  view: ViewState;
  names: readonly string[];
  charts: readonly string[];
  /** Whether there are several runs to choose from. */
  hasRuns?: boolean;
}

/** Which metrics are charted, over what, and how. */
export function ChartTools({ view, names, charts, hasRuns = true }: Props) {
  const change = useChangeView();
  const setChart = (name: string, isOn: boolean) => {
    const wanted = isOn ? [...charts, name] : charts.filter((one) => one !== name);
    change({ metrics: wanted });
  };
  return (
    <div className="tools">
      <details className="menu">
        <summary>Metrics</summary>
        <div className="menu-body" role="group" aria-label="Metrics">
          {names.map((name) => (
            <label key={name}>
              <input
                type="checkbox"
                checked={charts.includes(name)}
                onChange={(event) => setChart(name, event.target.checked)}
              />
              {name}
            </label>
          ))}
          {view.metrics.length > 0 && <button type="button" onClick={() => change({ metrics: [] })}>As usual</button>}
        </div>
      </details>
      <label className="field">
        x
        <select value={view.x} aria-label="Horizontal axis" onChange={(event) => change({ x: event.target.value as XAxis })}>
          {X_AXES.map((axis) => <option key={axis}>{axis}</option>)}
        </select>
      </label>
      <label className="field">
        Smoothing
        <input
          type="range"
          min="0"
          max="0.99"
          step="0.01"
          value={view.smoothing}
          aria-valuetext={view.smoothing === 0 ? "none" : String(view.smoothing)}
          onChange={(event) => change({ smoothing: Number(event.target.value) })}
        />
        <output>{view.smoothing === 0 ? "off" : view.smoothing.toFixed(2)}</output>
      </label>
      <label className="field">
        <input type="checkbox" checked={view.logX} onChange={(event) => change({ logX: event.target.checked })} />
        log x
      </label>
      <label className="field">
        <input type="checkbox" checked={view.logY} onChange={(event) => change({ logY: event.target.checked })} />
        log y
      </label>
      {hasRuns && <label className="field">
        Draw
        <select value={view.shown} aria-label="Curves drawn" onChange={(event) => change({ shown: event.target.value as Shown })}>
          <option value="auto">runs of the table</option>
          <option value="selected">selected runs</option>
          <option value="all">all, however many</option>
        </select>
      </label>}
    </div>
  );
}
