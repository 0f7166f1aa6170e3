import type { RunRow, Verb } from "../api/types";
import type { Action } from "../model/keys";
import { plural } from "../model/format";
import { ableTo, VERB_LABELS, whyNot } from "../model/verbs";
import { Icon, type IconName } from "./Icon";

const BUTTONS: readonly { verb: Verb; action: Action; icon: IconName; key: string }[] = [
  { verb: "stop", action: "stop", icon: "stopped", key: "s" },
  { verb: "resume", action: "resume", icon: "resume", key: "r" },
  { verb: "clone", action: "clone", icon: "clone", key: "c" },
  { verb: "prune", action: "prune", icon: "pruned", key: "p" },
  { verb: "pin", action: "pin", icon: "pin", key: "b" },
  { verb: "delete", action: "delete", icon: "deleted", key: "d" },
];

interface Props {
  runs: readonly RunRow[];
  onAct: (action: Action) => void;
  onRestore: () => void;
}

/** What can be asked of some runs, as buttons. */
export function VerbBar({ runs, onAct, onRestore }: Props) {
  const arePinned = runs.length > 0 && runs.every((run) => run.pinned);
  const areDeleted = runs.length > 0 && runs.every((run) => run.status === "deleted");
  if (areDeleted) {
    return (
      <div className="verbs" role="group" aria-label="Commands">
        <button type="button" disabled={ableTo("restore", runs).length === 0} onClick={onRestore}>
          <Icon name="undo" /> Restore
        </button>
      </div>
    );
  }
  return (
    <div className="verbs" role="group" aria-label={`Commands for ${plural(runs.length, "run")}`}>
      {BUTTONS.map(({ verb, action, icon, key }) => {
        const wanted = verb === "pin" && arePinned ? "unpin" : verb;
        const able = verb === "clone" ? runs.slice(0, 1) : ableTo(wanted, runs);
        const [first] = runs;
        const why = first === undefined ? "select runs first" : runs.length === 1 ? whyNot(wanted, first) : "none can be";
        return (
          <button
            key={verb}
            type="button"
            disabled={able.length === 0}
            title={able.length === 0 ? `${VERB_LABELS[wanted]}: ${why}` : `${VERB_LABELS[wanted]} (${key})`}
            onClick={() => onAct(action)}
          >
            <Icon name={icon} /> {VERB_LABELS[wanted]}
          </button>
        );
      })}
    </div>
  );
}
