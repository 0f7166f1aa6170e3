import { BINDINGS, keyLabel } from "../model/keys";
import { Dialog } from "./Dialog";

export function Help({ onClose }: { onClose: () => void }) {
  return (
    <Dialog title="Keyboard" onClose={onClose}>
      <dl className="keys">
        {BINDINGS.map((binding) => (
          <div key={binding.action}>
            <dt>
              {binding.keys.map((key) => <kbd key={key}>{keyLabel(key)}</kbd>)}
            </dt>
            <dd>{binding.help}</dd>
          </div>
        ))}
      </dl>
      <p className="faint">
        Commands go to the selected runs, or to the one under the cursor if none is selected. In a chart, drag
        to zoom and double-click to see all again. The filter takes words such as <code>failed</code>,{" "}
        <code>status:running</code>, <code>learning_rate:1e-4</code> and <code>loss&lt;2</code>.
      </p>
    </Dialog>
  );
}
