import { type PointerEvent, useEffect, useRef, useState } from "react";
import { rampColor } from "../model/palette";
import type { Axis, Brush } from "../model/parallel";
import { useIsDark } from "../parts/ThemeContext";
import { useWidth } from "../store/useWidth";

const HEIGHT = 380;
const TOP = 44;
const BOTTOM = 22;
const SIDE = 70;
const MIN_GAP = 165;
const MIN_BRUSH = 0.015;

interface PlotLine {
  runId: number;
  places: ReadonlyMap<string, number | null>;
}

interface Props {
  axes: readonly Axis[];
  lines: readonly PlotLine[];
  /** The axis whose values colour the lines. */
  colored: string;
  brushes: ReadonlyMap<string, Brush>;
  selected: ReadonlySet<number>;
  onBrush: (axis: Axis, brush: Brush | null) => void;
  onOpen: (runId: number) => void;
}

export function ParallelPlot({ axes, lines, colored, brushes, selected, onBrush, onOpen }: Props) {
  const [host, hostWidth] = useWidth();
  const canvas = useRef<HTMLCanvasElement>(null);
  const isDark = useIsDark();
  const [hovered, setHovered] = useState<number | null>(null);
  const width = Math.max(hostWidth, 2 * SIDE + MIN_GAP * (axes.length - 1));
  const xOf = (index: number) => axes.length === 1 ? width / 2 : SIDE + (index * (width - 2 * SIDE)) / (axes.length - 1);
  const yOf = (place: number) => TOP + (1 - place) * (HEIGHT - TOP - BOTTOM);

  useEffect(() => {
    const element = canvas.current;
    const ctx = element?.getContext("2d");
    if (!element || !ctx || hostWidth === 0) return;
    const pixel = devicePixelRatio || 1;
    element.width = width * pixel;
    element.height = HEIGHT * pixel;
    ctx.scale(pixel, pixel);
    const isNarrowed = selected.size > 0;
    const draw = (line: PlotLine, isFront: boolean) => {
      const value = line.places.get(colored);
      ctx.strokeStyle = value === null || value === undefined ? (isDark ? "#5c6673" : "#aab2bd") : rampColor(value, isDark);
      ctx.globalAlpha = isFront ? 1 : isNarrowed && !selected.has(line.runId) ? 0.1 : lines.length > 200 ? 0.4 : 0.85;
      ctx.lineWidth = isFront ? 3.5 : 1.6;
      ctx.beginPath();
      axes.forEach((axis, i) => {
        const place = line.places.get(axis.id);
        if (place === null || place === undefined) return;
        const x = xOf(i);
        const y = yOf(place);
        if (i === 0) ctx.moveTo(x, y);
        else {
          const middle = (xOf(i - 1) + x) / 2;
          const before = line.places.get(axes[i - 1]?.id ?? "");
          if (before === null || before === undefined) ctx.moveTo(x, y);
          else ctx.bezierCurveTo(middle, yOf(before), middle, y, x, y);
        }
      });
      ctx.stroke();
    };
    for (const line of lines) if (line.runId !== hovered) draw(line, false);
    const front = lines.find((line) => line.runId === hovered);
    if (front) draw(front, true);
  }, [axes, lines, colored, selected, isDark, hovered, width, hostWidth]);

  const nearest = (event: PointerEvent): number | null => {
    const box = event.currentTarget.getBoundingClientRect();
    return nearestLine(axes, lines, xOf, yOf, event.clientX - box.left, event.clientY - box.top);
  };
  return (
    <div className="parallel" ref={host}>
      <div className="parallel-plot" style={{ width, height: HEIGHT }}>
        <canvas ref={canvas} style={{ width, height: HEIGHT }} aria-hidden="true" />
        <svg
          width={width}
          height={HEIGHT}
          role="group"
          aria-label={`Parallel coordinates of ${lines.length} runs over ${axes.map((axis) => axis.label).join(", ")}`}
          onPointerMove={(event) => setHovered(nearest(event))}
          onPointerLeave={() => setHovered(null)}
          onDoubleClick={() => hovered !== null && onOpen(hovered)}
        >
          {axes.map((axis, i) => (
            <AxisMark key={axis.id} axis={axis} x={xOf(i)} yOf={yOf} brush={brushes.get(axis.id) ?? null} onBrush={onBrush} />
          ))}
        </svg>
        {hovered !== null && <output className="parallel-hover">run {hovered}; double-click opens it</output>}
      </div>
    </div>
  );
}

interface AxisProps {
  axis: Axis;
  x: number;
  yOf: (place: number) => number;
  brush: Brush | null;
  onBrush: (axis: Axis, brush: Brush | null) => void;
}

function AxisMark({ axis, x, yOf, brush, onBrush }: AxisProps) {
  const start = useRef<number | null>(null);
  const [drawn, setDrawn] = useState<Brush | null>(null);
  const shown = drawn ?? brush;
  const placeAt = (event: PointerEvent<SVGRectElement>) => {
    const box = event.currentTarget.getBoundingClientRect();
    return 1 - (event.clientY - box.top - 10) / (box.height - 20);
  };
  const spanTo = (event: PointerEvent<SVGRectElement>): Brush => {
    const from = start.current ?? 0;
    const to = placeAt(event);
    return [Math.min(from, to), Math.max(from, to)];
  };
  return (
    <g>
      <line x1={x} x2={x} y1={yOf(1)} y2={yOf(0)} className="axis-line" />
      <text x={x} y={18} className="axis-label" textAnchor="middle">{axis.label.length > 22 ? `${axis.label.slice(0, 21)}…` : axis.label}</text>
      <text x={x} y={32} className="axis-kind" textAnchor="middle">{axis.kind === "log" ? "log" : ""}</text>
      {axis.ticks.map((tick) => (
        <g key={tick.label}>
          <line x1={x - 4} x2={x} y1={yOf(tick.place)} y2={yOf(tick.place)} className="axis-line" />
          <text x={x - 7} y={yOf(tick.place) + 3.5} className="axis-tick" textAnchor="end">
            {tick.label.length > 14 ? `${tick.label.slice(0, 13)}…` : tick.label}
          </text>
        </g>
      ))}
      {shown !== null && (
        <rect x={x - 8} width={16} y={yOf(shown[1])} height={Math.max(2, yOf(shown[0]) - yOf(shown[1]))} className="brush" />
      )}
      <rect
        x={x - 14}
        width={28}
        y={yOf(1) - 10}
        height={yOf(0) - yOf(1) + 20}
        className="brush-area"
        data-axis={axis.id}
        onPointerDown={(event) => {
          event.currentTarget.setPointerCapture(event.pointerId);
          start.current = placeAt(event);
        }}
        onPointerMove={(event) => start.current !== null && setDrawn(spanTo(event))}
        onPointerUp={(event) => {
          const span = spanTo(event);
          start.current = null;
          setDrawn(null);
          onBrush(axis, span[1] - span[0] < MIN_BRUSH ? null : span);
        }}
      >
        <title>{`Drag to select by ${axis.label}; click to select by it no longer`}</title>
      </rect>
    </g>
  );
}

const REACH_PX = 12;

/** The run whose line passes nearest to a point, measured between the axes around it. */
function nearestLine(
  axes: readonly Axis[],
  lines: readonly PlotLine[],
  xOf: (index: number) => number,
  yOf: (place: number) => number,
  x: number,
  y: number,
): number | null {
  const right = axes.findIndex((_, i) => xOf(i) >= x);
  if (right < 1) return null;
  const share = (x - xOf(right - 1)) / (xOf(right) - xOf(right - 1));
  const eased = share * share * (3 - 2 * share);
  let best: number | null = null;
  let bestDistance = REACH_PX;
  for (const line of lines) {
    const from = line.places.get(axes[right - 1]?.id ?? "");
    const to = line.places.get(axes[right]?.id ?? "");
    if (from === null || from === undefined || to === null || to === undefined) continue;
    const distance = Math.abs(yOf(from) + (yOf(to) - yOf(from)) * eased - y);
    if (distance < bestDistance) {
      bestDistance = distance;
      best = line.runId;
    }
  }
  return best;
}
