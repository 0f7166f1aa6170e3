import type { RefObject } from "react";
import { plural } from "../model/format";
import type { Column } from "../model/table";
import type { ViewState } from "../model/viewState";
import { Icon } from "../parts/Icon";
import { useChangeView } from "../store/useRoute";

interface Props {
  view: ViewState;
  columns: readonly Column[];
  shownColumns: readonly Column[];
  search: RefObject<HTMLInputElement | null>;
  counts: { shown: number; all: number; selected: number };
  showsDeleted: boolean;
  onShowDeleted: (shows: boolean) => void;
}

/** What decides about the table's rows and columns. */
export function TableTools({ view, columns, shownColumns, search, counts, showsDeleted, onShowDeleted }: Props) {
  const change = useChangeView();
  const setColumn = (id: string, isOn: boolean) => {
    const ids = new Set(shownColumns.map((column) => column.id));
    if (isOn) ids.add(id);
    else ids.delete(id);
    change({ columns: columns.map((column) => column.id).filter((one) => ids.has(one)) });
  };
  return (
    <div className="tools">
      <label className="search">
        <Icon name="search" />
        <input
          ref={search}
          type="search"
          value={view.filter}
          placeholder="Filter, such as status:running or loss<2"
          aria-label="Filter runs"
          onChange={(event) => change({ filter: event.target.value })}
        />
      </label>
      <span className="faint counts" aria-live="polite">
        {counts.shown === counts.all ? plural(counts.all, "run") : `${counts.shown} of ${plural(counts.all, "run")}`}
        {counts.selected > 0 && `, ${counts.selected} selected`}
      </span>
      {counts.selected > 0 && (
        <button type="button" className="quiet" onClick={() => change({ selected: [] })}>Clear selection</button>
      )}
      <span className="spacer" />
      <label className="field">
        Group by
        <select value={view.group} onChange={(event) => change({ group: event.target.value })}>
          <option value="">nothing</option>
          {columns
            .filter((column) => column.kind === "text" || column.id === "status")
            .map((column) => <option key={column.id} value={column.id}>{column.label}</option>)}
        </select>
      </label>
      <details className="menu">
        <summary><Icon name="columns" /> Columns</summary>
        <div className="menu-body" role="group" aria-label="Columns">
          {columns.map((column) => (
            <label key={column.id} title={column.id}>
              <input
                type="checkbox"
                checked={shownColumns.includes(column)}
                disabled={column.id === "run"}
                onChange={(event) => setColumn(column.id, event.target.checked)}
              />
              {column.label}
            </label>
          ))}
          {view.columns.length > 0 && (
            <button type="button" onClick={() => change({ columns: [] })}>As usual</button>
          )}
        </div>
      </details>
      <label className="field">
        <input type="checkbox" checked={showsDeleted} onChange={(event) => onShowDeleted(event.target.checked)} />
        Deleted
      </label>
    </div>
  );
}
