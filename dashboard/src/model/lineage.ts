// Who was cloned from whom, as a tree in lines.

import type { RunRow } from "../api/types";

export interface LineageLine {
  row: RunRow;
  depth: number;
  /** For each level of indentation whether a line goes on there. */
  rails: boolean[];
  isLast: boolean;
}

/** All families: runs by number, clones below their parent. */
export function lineage(rows: readonly RunRow[], onlyFamilies: boolean): LineageLine[] {
  const known = new Set(rows.map((row) => row.run_id));
  const children = new Map<number, RunRow[]>();
  const roots: RunRow[] = [];
  for (const row of [...rows].sort((a, b) => a.run_id - b.run_id)) {
    if (row.parent_id !== null && known.has(row.parent_id)) {
      const siblings = children.get(row.parent_id) ?? [];
      siblings.push(row);
      children.set(row.parent_id, siblings);
    } else {
      roots.push(row);
    }
  }
  const lines: LineageLine[] = [];
  const walk = (row: RunRow, rails: boolean[], isLast: boolean) => {
    lines.push({ row, depth: rails.length, rails, isLast });
    const clones = children.get(row.run_id) ?? [];
    clones.forEach((clone, i) => walk(clone, [...rails, !isLast], i === clones.length - 1));
  };
  const shown = onlyFamilies ? roots.filter((row) => children.has(row.run_id)) : roots;
  shown.forEach((row) => walk(row, [], true));
  return lines;
}
