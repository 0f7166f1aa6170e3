import { type PointerEvent, useEffect, useRef, useState } from "react";
import type { Turn } from "../api/types";
import { formatDuration } from "../model/format";
import { runStyle } from "../model/palette";
import { companions, type Lane, type Span } from "../model/turns";
import { useIsDark } from "../parts/ThemeContext";
import { useWidth } from "../store/useWidth";

const LANE = 26;
const LABEL = 72;
const HEAD = 22;
const MIN_DRAG_PX = 6;

interface Props {
  lanes: readonly Lane[];
  turns: readonly Turn[];
  span: Span;
  now_s: number;
  /** The time that is 0 on the axis. */
  origin_s: number;
  onZoom: (span: Span | null) => void;
  onOpen: (runId: number) => void;
}

/** Turns as bars, a lane for each worker and each run. */
export function Lanes({ lanes, turns, span, now_s, origin_s, onZoom, onOpen }: Props) {
  const [host, width] = useWidth();
  const canvas = useRef<HTMLCanvasElement>(null);
  const isDark = useIsDark();
  const [hovered, setHovered] = useState<{ turn: Turn; left: number; top: number } | null>(null);
  const [drag, setDrag] = useState<{ from: number; to: number } | null>(null);
  const height = HEAD + lanes.length * LANE;
  const scale = { span, left: LABEL, width: Math.max(1, width - LABEL - 8) };

  useEffect(() => {
    const ctx = canvas.current?.getContext("2d");
    if (!canvas.current || !ctx || width === 0) return;
    const pixel = devicePixelRatio || 1;
    canvas.current.width = width * pixel;
    canvas.current.height = height * pixel;
    ctx.scale(pixel, pixel);
    drawAxis(ctx, scale, origin_s, height, isDark);
    lanes.forEach((lane, i) => drawLane(ctx, lane, HEAD + i * LANE, scale, now_s, isDark));
  }, [lanes, span, now_s, origin_s, width, height, isDark]);

  const place = (event: PointerEvent) => {
    const box = event.currentTarget.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };
  const timeAt = (x: number) => span.from + ((x - scale.left) / scale.width) * (span.to - span.from);
  const turnAt = (x: number, y: number): Turn | null => {
    const lane = lanes[Math.floor((y - HEAD) / LANE)];
    const slack = (3 * (span.to - span.from)) / scale.width;
    const time = timeAt(x);
    return lane?.turns.findLast((turn) => turn.start_s - slack <= time && (turn.end_s ?? now_s) + slack >= time) ?? null;
  };
  const end = () => {
    if (drag !== null && Math.abs(drag.to - drag.from) >= MIN_DRAG_PX) {
      onZoom({ from: timeAt(Math.min(drag.from, drag.to)), to: timeAt(Math.max(drag.from, drag.to)) });
    } else if (hovered !== null) {
      onOpen(hovered.turn.run_id);
    }
    setDrag(null);
  };
  return (
    <div className="lanes" ref={host}>
      <canvas
        ref={canvas}
        style={{ width: "100%", height }}
        role="img"
        aria-label={`${turns.length} turns of ${lanes.length} workers and runs over ${formatDuration(span.to - span.from)}`}
        onPointerDown={(event) => {
          event.currentTarget.setPointerCapture(event.pointerId);
          const { x } = place(event);
          setDrag({ from: x, to: x });
        }}
        onPointerMove={(event) => {
          const { x, y } = place(event);
          if (drag !== null) setDrag({ ...drag, to: x });
          const turn = turnAt(x, y);
          setHovered(turn === null ? null : { turn, left: x, top: y });
        }}
        onPointerUp={end}
        onPointerLeave={() => setHovered(null)}
        onDoubleClick={() => onZoom(null)}
      />
      {drag !== null && Math.abs(drag.to - drag.from) >= MIN_DRAG_PX && (
        <div className="lane-drag" style={{ left: Math.min(drag.from, drag.to), width: Math.abs(drag.to - drag.from), height }} />
      )}
      {hovered !== null && drag === null && (
        <TurnTip turn={hovered.turn} turns={turns} now_s={now_s} left={hovered.left} top={hovered.top} isRight={hovered.left > width / 2} />
      )}
    </div>
  );
}

interface Scale {
  span: Span;
  left: number;
  width: number;
}

function toX(time_s: number, { span, left, width }: Scale): number {
  return left + ((time_s - span.from) / (span.to - span.from)) * width;
}

function drawAxis(ctx: CanvasRenderingContext2D, scale: Scale, origin_s: number, height: number, isDark: boolean): void {
  ctx.clearRect(0, 0, scale.left + scale.width + 20, height);
  ctx.font = "11px system-ui, sans-serif";
  ctx.fillStyle = isDark ? "#9aa4b2" : "#5c6673";
  ctx.strokeStyle = isDark ? "#2a313b" : "#e6e9ee";
  const count = Math.max(2, Math.floor(scale.width / 120));
  const gap = niceGap((scale.span.to - scale.span.from) / count);
  const first = Math.ceil((scale.span.from - origin_s) / gap) * gap;
  for (let time = first; time <= scale.span.to - origin_s; time += gap) {
    const x = Math.round(toX(time + origin_s, scale)) + 0.5;
    ctx.beginPath();
    ctx.moveTo(x, HEAD - 4);
    ctx.lineTo(x, height);
    ctx.stroke();
    ctx.fillText(time === 0 ? "0" : formatDuration(time), x + 3, 12);
  }
}

const GAPS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400];

function niceGap(gap: number): number {
  return GAPS.find((one) => one >= gap) ?? Math.ceil(gap / 86400) * 86400;
}

function drawLane(ctx: CanvasRenderingContext2D, lane: Lane, top: number, scale: Scale, now_s: number, isDark: boolean): void {
  ctx.save();
  ctx.fillStyle = isDark ? "#c9d1db" : "#323a45";
  ctx.fillText(lane.label, 4, top + 17);
  ctx.beginPath();
  ctx.rect(scale.left, top, scale.width, LANE);
  ctx.clip();
  for (const turn of lane.turns) drawTurn(ctx, turn, top + 4, scale, now_s, isDark);
  ctx.restore();
}

function drawTurn(ctx: CanvasRenderingContext2D, turn: Turn, top: number, scale: Scale, now_s: number, isDark: boolean): void {
  const height = LANE - 8;
  const x = toX(turn.start_s, scale);
  const end = toX(turn.end_s ?? now_s, scale);
  if (end < scale.left || x > scale.left + scale.width) return;
  const width = Math.max(1.5, end - x - (end - x > 4 ? 1 : 0));
  const { color } = runStyle(turn.run_id, isDark);
  ctx.fillStyle = color;
  ctx.globalAlpha = turn.end === null ? 0.65 : 1;
  ctx.fillRect(x, top, width, height);
  const idle_s = turn.end_s !== null && turn.active_s !== null ? turn.end_s - turn.start_s - turn.active_s : 0;
  const idle = (idle_s / (scale.span.to - scale.span.from)) * scale.width;
  if (idle > 1.5) hatch(ctx, x, top, Math.min(idle, width), height, isDark);
  if (turn.end === "failed") {
    ctx.fillStyle = isDark ? "#ff8f85" : "#b3261e";
    ctx.fillRect(x + width - 3, top - 2, 3, height + 4);
  }
  ctx.globalAlpha = 1;
  if (width > 22) {
    ctx.fillStyle = isDark ? "#101418" : "#ffffff";
    ctx.fillText(String(turn.chunk + 1), x + Math.min(idle, width - 14) + 4, top + 13);
  }
}

function hatch(ctx: CanvasRenderingContext2D, x: number, top: number, width: number, height: number, isDark: boolean): void {
  ctx.save();
  ctx.beginPath();
  ctx.rect(x, top, width, height);
  ctx.clip();
  ctx.fillStyle = isDark ? "rgb(16 20 24 / 55%)" : "rgb(255 255 255 / 62%)";
  ctx.fillRect(x, top, width, height);
  ctx.strokeStyle = isDark ? "rgb(255 255 255 / 30%)" : "rgb(0 0 0 / 28%)";
  ctx.beginPath();
  for (let at = x - height; at < x + width; at += 5) {
    ctx.moveTo(at, top + height);
    ctx.lineTo(at + height, top);
  }
  ctx.stroke();
  ctx.restore();
}

interface TipProps {
  turn: Turn;
  turns: readonly Turn[];
  now_s: number;
  left: number;
  top: number;
  isRight: boolean;
}

function TurnTip({ turn, turns, now_s, left, top, isRight }: TipProps) {
  const others = companions(turn, turns, now_s);
  const length_s = (turn.end_s ?? now_s) - turn.start_s;
  const lines = [
    `${formatDuration(length_s)}${turn.end === null ? " so far" : `, then ${turn.end}`}`,
    turn.active_s !== null && `${formatDuration(turn.active_s)} training`,
    turn.started_s !== null && `${formatDuration(turn.started_s - turn.start_s)} to build its trainer`,
    turn.gap_s !== null && `${formatDuration(turn.gap_s)} after the turn before`,
    others.length > 0 ? `in a gang with run ${others.join(", ")}` : "alone on the worker",
  ];
  return (
    <div className="tooltip" style={{ left, top, transform: `translate(${isRight ? "calc(-100% - 12px)" : "12px"}, 8px)` }}>
      <div className="tooltip-title">run {turn.run_id}, chunk {turn.chunk + 1}</div>
      {lines.filter((line) => line !== false).map((line) => <div key={line} className="tooltip-place">{line}</div>)}
    </div>
  );
}
