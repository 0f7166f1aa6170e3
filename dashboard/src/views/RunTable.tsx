// The table of runs. Only the lines that can be seen are there, so that a thousand runs scroll like
// ten.

import { memo, useEffect, useLayoutEffect, useRef, useState } from "react";
import type { Json, RunRow } from "../api/types";
import { formatDuration, formatKnob, formatNumber, plural } from "../model/format";
import { type Column, type Line, visibleLines } from "../model/table";
import { Icon } from "../parts/Icon";
import { RunProgress } from "../parts/Progress";
import { Sparkline } from "../parts/Sparkline";
import { StatusPill } from "../parts/StatusPill";
import { Swatch } from "../parts/Swatch";

const LINE_PX = 34;

interface Props {
  lines: readonly Line[];
  columns: readonly Column[];
  sort: string;
  selected: ReadonlySet<number>;
  cursor: number | null;
  hovered: number | null;
  closed: ReadonlySet<string>;
  onSort: (sort: string) => void;
  onToggle: (ids: readonly number[], isOn?: boolean) => void;
  onCursor: (runId: number) => void;
  onHover: (runId: number | null) => void;
  onOpen: (runId: number) => void;
  onClose: (closed: ReadonlySet<string>) => void;
}

export function RunTable(props: Props) {
  const { lines, columns, cursor, closed, onClose } = props;
  const scroller = useRef<HTMLDivElement>(null);
  const [seen, setSeen] = useState({ top: 0, height: 600 });
  useWatchedScroll(scroller, setSeen);
  useVisibleCursor(scroller, lines, cursor);

  const [first, last] = visibleLines(lines.length, seen.top, seen.height, LINE_PX);
  const runs = lines.flatMap((line) => (line.kind === "run" ? [line.row.run_id] : []));
  const areAll = runs.length > 0 && runs.every((id) => props.selected.has(id));
  if (lines.length === 0) {
    return <p className="nothing">No run passes the filter. Clear it to see all.</p>;
  }
  return (
    <div className="table-scroll" ref={scroller} tabIndex={0} role="region" aria-label="Table of runs">
      <table className="runs-table" aria-rowcount={lines.length + 1}>
        <thead>
          <tr aria-rowindex={1}>
            <th className="cell-check" scope="col">
              <input
                type="checkbox"
                aria-label="Select all runs"
                checked={areAll}
                onChange={() => props.onToggle(runs, !areAll)}
              />
            </th>
            {columns.map((column) => (
              <SortHead key={column.id} column={column} sort={props.sort} onSort={props.onSort} />
            ))}
          </tr>
        </thead>
        <tbody>
          {first > 0 && <tr aria-hidden="true" style={{ height: first * LINE_PX }} />}
          {lines.slice(first, last).map((line, i) =>
            line.kind === "group" ? (
              <GroupLine
                key={`group ${line.key}`}
                line={line}
                width={columns.length + 1}
                isClosed={closed.has(line.key)}
                onToggle={() => {
                  const next = new Set(closed);
                  if (!next.delete(line.key)) next.add(line.key);
                  onClose(next);
                }}
              />
            ) : (
              <RunLine
                key={line.row.run_id}
                row={line.row}
                index={first + i + 2}
                columns={columns}
                values={columns.map((column) => column.value(line.row)).map(formatKey).join("|")}
                isSelected={props.selected.has(line.row.run_id)}
                isCursor={line.row.run_id === cursor}
                isHovered={line.row.run_id === props.hovered}
                onToggle={props.onToggle}
                onCursor={props.onCursor}
                onHover={props.onHover}
                onOpen={props.onOpen}
              />
            ))}
          {last < lines.length && <tr aria-hidden="true" style={{ height: (lines.length - last) * LINE_PX }} />}
        </tbody>
      </table>
    </div>
  );
}

function formatKey(value: Json | undefined): string {
  return value === undefined ? "" : String(value);
}

function useWatchedScroll(
  scroller: { current: HTMLDivElement | null },
  setSeen: (seen: { top: number; height: number }) => void,
): void {
  useLayoutEffect(() => {
    const element = scroller.current;
    if (element === null) return;
    const look = () => setSeen({ top: element.scrollTop, height: element.clientHeight });
    look();
    element.addEventListener("scroll", look, { passive: true });
    const observer = new ResizeObserver(look);
    observer.observe(element);
    return () => {
      element.removeEventListener("scroll", look);
      observer.disconnect();
    };
  }, [scroller, setSeen]);
}

/** Scrolls where the cursor goes. */
function useVisibleCursor(scroller: { current: HTMLDivElement | null }, lines: readonly Line[], cursor: number | null): void {
  useEffect(() => {
    const element = scroller.current;
    const index = lines.findIndex((line) => line.kind === "run" && line.row.run_id === cursor);
    if (element === null || index < 0) return;
    const head = LINE_PX;
    const top = index * LINE_PX;
    if (top < element.scrollTop) element.scrollTop = top;
    const bottom = top + LINE_PX + head;
    if (bottom > element.scrollTop + element.clientHeight) element.scrollTop = bottom - element.clientHeight;
    // Only the cursor's moves count, not those of the lines below it.
  }, [cursor]);
}

function SortHead({ column, sort, onSort }: { column: Column; sort: string; onSort: (sort: string) => void }) {
  const isUp = sort === column.id;
  const isDown = sort === `-${column.id}`;
  const next = isUp ? `-${column.id}` : isDown ? "" : column.id;
  return (
    <th
      scope="col"
      className={`col-${column.kind}`}
      aria-sort={isUp ? "ascending" : isDown ? "descending" : "none"}
      title={column.id}
    >
      <button type="button" onClick={() => onSort(next)}>
        {column.label}
        {isUp && <Icon name="up" />}
        {isDown && <Icon name="down" />}
      </button>
    </th>
  );
}

interface GroupProps {
  line: Extract<Line, { kind: "group" }>;
  width: number;
  isClosed: boolean;
  onToggle: () => void;
}

function GroupLine({ line, width, isClosed, onToggle }: GroupProps) {
  const losses = line.rows.map((row) => row.loss).filter((loss) => loss !== null);
  const mean = losses.length > 0 ? losses.reduce((sum, one) => sum + one, 0) / losses.length : null;
  return (
    <tr className="group-line">
      <th colSpan={width} scope="rowgroup">
        <button type="button" aria-expanded={!isClosed} onClick={onToggle}>
          <Icon name={isClosed ? "up" : "down"} /> {line.label}
        </button>
        <span className="faint">
          {plural(line.rows.length, "run")}{mean !== null && `, mean loss ${formatNumber(mean)}`}
        </span>
      </th>
    </tr>
  );
}

interface RunLineProps extends Pick<Props, "columns" | "onToggle" | "onCursor" | "onHover" | "onOpen"> {
  row: RunRow;
  index: number;
  /** The cells' values, by which a line knows that it has to be drawn again. */
  values: string;
  isSelected: boolean;
  isCursor: boolean;
  isHovered: boolean;
}

const RunLine = memo(
  function RunLine(props: RunLineProps) {
    const { row, columns, isSelected, isCursor, isHovered } = props;
    const classes = [
      "run-line",
      isSelected && "is-selected",
      isCursor && "is-cursor",
      isHovered && "is-hovered",
      row.status === "deleted" && "is-deleted",
    ];
    return (
      <tr
        className={classes.filter(Boolean).join(" ")}
        aria-rowindex={props.index}
        aria-selected={isSelected}
        data-run={row.run_id}
        onClick={() => props.onCursor(row.run_id)}
        onMouseEnter={() => props.onHover(row.run_id)}
        onMouseLeave={() => props.onHover(null)}
      >
        <td className="cell-check">
          <input
            type="checkbox"
            aria-label={`Select run ${row.run_id}`}
            checked={isSelected}
            onChange={() => props.onToggle([row.run_id])}
          />
        </td>
        {columns.map((column) => (
          <td key={column.id} className={`col-${column.kind} cell-${column.id}`}>
            <Cell column={column} row={row} onOpen={props.onOpen} />
          </td>
        ))}
      </tr>
    );
  },
  (before, after) =>
    before.row === after.row &&
    before.index === after.index &&
    before.values === after.values &&
    before.columns.length === after.columns.length &&
    before.columns.every((column, i) => column.id === after.columns[i]?.id) &&
    before.isSelected === after.isSelected &&
    before.isCursor === after.isCursor &&
    before.isHovered === after.isHovered &&
    before.onToggle === after.onToggle,
);

function Cell({ column, row, onOpen }: { column: Column; row: RunRow; onOpen: (runId: number) => void }) {
  switch (column.id) {
    case "run":
      return (
        <span className="run-name">
          <Swatch runId={row.run_id} />
          <button type="button" className="link" onClick={() => onOpen(row.run_id)} title={row.name}>
            run {row.run_id}
          </button>
          {row.pinned && <span className="mark" title="pinned"><Icon name="pin" /></span>}
          {row.parent_id !== null && (
            <span className="mark" title={`cloned from run ${row.parent_id}`}><Icon name="clone" />{row.parent_id}</span>
          )}
        </span>
      );
    case "status":
      return <span title={row.error ?? undefined}><StatusPill status={row.status} /></span>;
    case "progress":
      return <RunProgress row={row} />;
    case "sparkline":
      return <Sparkline values={row.sparkline} runId={row.run_id} />;
    case "eta":
    case "active":
      return formatDuration(column.value(row) as number | undefined);
    default: {
      const value = column.value(row);
      if (column.kind === "number") return formatNumber(value as number | undefined);
      return <span className="knob" title={formatKnob(value)}>{formatKnob(value)}</span>;
    }
  }
}
