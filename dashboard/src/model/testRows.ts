import type { RunRow } from "../api/types";

/** A run for tests. */
export function testRow(changes: Partial<RunRow> & { run_id: number }): RunRow {
  return {
    name: `run-${changes.run_id}`, status: "running", step: 0, num_steps: 100, chunks_done: 0,
    num_chunks: 4, active_s: 0, remaining_s: null, loss: null, metrics: {}, sparkline: [],
    pinned: false, trainer_type: "SFT", model_name: "tiny", samples_per_step: 4, worker_id: 0,
    parent_id: null, modified: {}, fork: null, error: null, passes: "", num_notes: 0, deleted_from: null,
    undo_until_s: null, purged: false, version: 1, ...changes,
  };
}
