// The form of a clone: what is typed becomes a value, or a reason why it cannot be one.

import type { Json, Knob } from "../api/types";
import { formatKnob } from "./format";

export type Parsed = { ok: true; value: Json } | { ok: false; problem: string };

/** How a knob is put in: a list of choices, a switch, or text. */
export type Input = { kind: "choice"; choices: Json[] } | { kind: "text" };

export function inputOf(knob: Knob): Input {
  const kinds = knob.type.filter((type) => type !== "null");
  const orNone: Json[] = knob.type.includes("null") ? [null] : [];
  if (kinds.length === 1 && kinds[0] === "boolean" && knob.enum.length === 0) {
    return { kind: "choice", choices: [true, false, ...orNone] };
  }
  if (kinds.length === 0 && knob.enum.length > 0) {
    return { kind: "choice", choices: [...new Set([...knob.enum, ...orNone])] };
  }
  return { kind: "text" };
}

/** What a text stands for, given the types that the knob may have. */
export function parseKnob(text: string, knob: Knob): Parsed {
  const trimmed = text.trim();
  const { type } = knob;
  const isAny = type.length === 0;
  const accepts = (kind: string) => isAny || type.includes(kind);
  const choice = knob.enum.find((one) => formatKnob(one) === trimmed);
  if (choice !== undefined) return { ok: true, value: choice };
  if (trimmed === "None" && accepts("null")) return { ok: true, value: null };
  if ((trimmed === "True" || trimmed === "False") && accepts("boolean")) {
    return { ok: true, value: trimmed === "True" };
  }
  const number = Number(trimmed);
  if (trimmed !== "" && Number.isFinite(number)) {
    if (accepts("number")) return { ok: true, value: number };
    if (type.includes("integer") && Number.isSafeInteger(number)) return { ok: true, value: number };
  }
  if (/^[[{]/.test(trimmed) && (accepts("array") || accepts("object"))) {
    return parseJson(trimmed, knob);
  }
  if (accepts("string") && (trimmed !== "" || type.includes("string"))) {
    return { ok: true, value: trimmed };
  }
  return { ok: false, problem: `allowed: ${knob.allowed || type.join(", ")}` };
}

function parseJson(text: string, knob: Knob): Parsed {
  try {
    const value = JSON.parse(text) as Json;
    const kind = Array.isArray(value) ? "array" : "object";
    if (knob.type.length === 0 || knob.type.includes(kind)) return { ok: true, value };
  } catch {
    return { ok: false, problem: "this is no JSON: lists are written as [\"q_proj\", \"v_proj\"]" };
  }
  return { ok: false, problem: `allowed: ${knob.allowed}` };
}

/** Whether two values of a configuration are the same. */
export function sameValue(a: Json | undefined, b: Json | undefined): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}
