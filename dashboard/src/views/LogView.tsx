import { LogLines } from "../parts/LogLines";
import { CommandLog } from "./CommandLog";

/** The experiment's log, and all commands. */
export function LogView() {
  return (
    <div className="page">
      <section aria-label="Log">
        <h2>Log</h2>
        <LogLines runId={null} />
      </section>
      <CommandLog />
    </div>
  );
}
