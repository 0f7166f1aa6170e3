// What stands beside the cursor in a chart. It moves with the mouse, so React is not asked.

import { formatNumber } from "../model/format";

export interface TooltipState {
  left: number;
  top: number;
  width: number;
  color: string;
  title: string;
  value: number;
  raw: number | null;
  place: string;
  notes: readonly string[];
}

export class Tooltip {
  private readonly element = document.createElement("div");

  constructor(private readonly host: HTMLElement) {
    this.element.className = "tooltip";
    this.element.hidden = true;
    host.append(this.element);
  }

  show(state: TooltipState | null): void {
    this.element.hidden = state === null;
    if (state === null) return;
    const { element } = this;
    element.replaceChildren(
      line("tooltip-title", state.title),
      line("tooltip-value", formatNumber(state.value)),
      line("tooltip-place", state.place),
    );
    if (state.raw !== null) element.append(line("tooltip-place", `not smoothed ${formatNumber(state.raw)}`));
    for (const note of state.notes) element.append(line("tooltip-note", note));
    element.style.borderLeftColor = state.color;
    const over = this.host.querySelector<HTMLElement>(".u-over");
    const x = (over?.offsetLeft ?? 0) + state.left;
    const y = (over?.offsetTop ?? 0) + state.top;
    const isRight = state.left > state.width / 2;
    element.style.transform = `translate(${isRight ? "calc(-100% - 12px)" : "12px"}, -50%)`;
    element.style.left = `${x}px`;
    element.style.top = `${Math.max(30, y)}px`;
  }

  remove(): void {
    this.element.remove();
  }
}

function line(className: string, text: string): HTMLElement {
  const element = document.createElement("div");
  element.className = className;
  element.textContent = text;
  return element;
}
