// The main page of an experiment: charts, the table of runs, and the log of commands.

import { useDeferredValue, useMemo, useRef, useState } from "react";
import type { RunRow } from "../api/types";
import type { Action } from "../model/keys";
import { allColumns, groupRows, type Line, matcher, sortRows, usualColumns } from "../model/table";
import type { ViewState } from "../model/viewState";
import { Empty } from "../parts/Empty";
import { VerbBar } from "../parts/VerbBar";
import { useCommander } from "../store/useCommander";
import { useExperiment } from "../store/useExperiment";
import { useKeys } from "../store/useKeys";
import { useChangeView } from "../store/useRoute";
import { useStable } from "../store/useStable";
import { Charts } from "./Charts";
import { CommandLog } from "./CommandLog";
import { RunTable } from "./RunTable";
import { TableTools } from "./TableTools";
import { useRunVerbs } from "./useRunVerbs";

interface Props {
  view: ViewState;
  onClone: (run: RunRow) => void;
  onHelp: () => void;
  hasDialog: boolean;
}

export function RunsView({ view, onClone, onHelp, hasDialog }: Props) {
  const store = useExperiment();
  const commander = useCommander();
  const change = useChangeView();
  const [cursor, setCursor] = useState<number | null>(null);
  const [hovered, setHovered] = useState<number | null>(null);
  const [closed, setClosed] = useState<ReadonlySet<string>>(new Set());
  const [showsDeleted, setShowsDeleted] = useState(false);
  const search = useRef<HTMLInputElement>(null);
  const actOn = useRunVerbs(onClone);
  const { columns, shownColumns, rows, lines } = useLines(view, closed, showsDeleted);
  const selected = useMemo(() => new Set(view.selected), [view.selected]);

  const chosen = useMemo(() => {
    const ids = view.selected.length > 0 ? view.selected : cursor === null ? [] : [cursor];
    return ids.map((id) => store.rows.get(id)).filter((row) => row !== undefined);
  }, [view.selected, cursor, store.runs]);

  const toggle = useStable((ids: readonly number[], isOn?: boolean) => {
    const next = new Set(view.selected);
    const on = isOn ?? !ids.every((id) => next.has(id));
    for (const id of ids) {
      if (on) next.add(id);
      else next.delete(id);
    }
    change({ selected: [...next].sort((a, b) => a - b) });
  });
  const open = useStable((run: number) => change({ run }));

  const move = (by: number) => {
    const ids = lines.flatMap((line) => (line.kind === "run" ? [line.row.run_id] : []));
    const at = cursor === null ? -1 : ids.indexOf(cursor);
    const next = ids[Math.max(0, Math.min(ids.length - 1, at + by))];
    if (next !== undefined) setCursor(next);
  };

  const act = (action: Action) => {
    if (actOn(action, chosen)) return;
    switch (action) {
      case "next": return move(1);
      case "previous": return move(-1);
      case "toggle": return cursor === null ? undefined : toggle([cursor]);
      case "toggleAll": return toggle(rows.map((row) => row.run_id));
      case "open": return cursor === null ? undefined : change({ run: cursor });
      case "filter": return search.current?.focus();
      case "help": return onHelp();
      case "escape":
        if (document.activeElement === search.current) search.current?.blur();
        else change({ selected: [] });
    }
  };
  useKeys(act, !hasDialog);

  if (store.runs.length === 0) {
    return <Empty title="No runs yet"><p>They appear as soon as the script has prepared its data.</p></Empty>;
  }
  return (
    <div className="runs">
      <Charts view={view} rows={rows} highlighted={hovered ?? null} onHighlight={setHovered} />
      <section className="table-panel" aria-label="Runs">
        <TableTools
          view={view}
          columns={columns}
          shownColumns={shownColumns}
          search={search}
          counts={{ shown: rows.length, all: store.runs.length, selected: view.selected.length }}
          showsDeleted={showsDeleted}
          onShowDeleted={setShowsDeleted}
        />
        <VerbBar runs={chosen} onAct={act} onRestore={() => void commander.ask("restore", chosen)} />
        <RunTable
          lines={lines}
          columns={shownColumns}
          sort={view.sort}
          selected={selected}
          cursor={cursor}
          hovered={hovered}
          closed={closed}
          onSort={(sort) => change({ sort })}
          onToggle={toggle}
          onCursor={setCursor}
          onHover={setHovered}
          onOpen={open}
          onClose={setClosed}
        />
      </section>
      <CommandLog />
    </div>
  );
}

function useLines(view: ViewState, closed: ReadonlySet<string>, showsDeleted: boolean) {
  const { metrics, differing, knobs, runs } = useExperiment();
  const columns = useMemo(
    () => allColumns([...new Set(metrics.map((one) => one.shown))], allKnobs(differing, knobs), knobs),
    [metrics, differing, knobs],
  );
  const ids = view.columns.length > 0
    ? view.columns
    : usualColumns(metrics.map((one) => one.shown), differing);
  const shownColumns = columns.filter((column) => ids.includes(column.id));
  const filter = useDeferredValue(view.filter);
  const rows = useMemo(() => {
    const passes = matcher(filter, columns, knobs);
    const kept = runs.filter((row) => (showsDeleted || row.status !== "deleted") && passes(row));
    return sortRows(kept, view.sort, columns);
  }, [runs, filter, columns, knobs, view.sort, showsDeleted]);
  const lines: Line[] = useMemo(
    () => groupRows(rows, view.group, columns, closed),
    [rows, view.group, columns, closed],
  );
  return { columns, shownColumns, rows, lines };
}

/** The knobs by which runs differ first, then the others. */
function allKnobs(differing: readonly string[], knobs: ReadonlyMap<number, Readonly<Record<string, unknown>>>): string[] {
  const [first] = knobs.values();
  const names = new Set([...differing, ...Object.keys(first ?? {})]);
  names.delete("trainer_type");
  return [...names];
}
