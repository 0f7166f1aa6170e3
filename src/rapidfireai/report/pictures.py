"""Learning curves and parallel coordinates as SVG.

Two pictures do not make a plotting library worth its weight in every installation, and a page that
is sent to somebody may load nothing from elsewhere.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from rapidfireai.core.events import Json
from rapidfireai.core.run import RunStatus
from rapidfireai.report.findings import Findings, Standing

_WIDTH: Final = 920
_COLORS: Final = ("#1b6ca8", "#c8553d", "#4a8f5b", "#8b5fbf", "#b8860b", "#3aa6a0")
_GREY: Final = "#9aa0a6"
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 96.0, 14.0, 40.0


def learning_curves(findings: Findings) -> str:
    """The metric after each chunk: the first runs in colour, pruned ones end with a cross."""
    height = 380.0
    standings = findings.standings
    low, high = _view([v for s in standings for v in s.curve], findings)
    longest = max(len(s.curve) for s in standings)
    inner = (_WIDTH - _LEFT - _RIGHT, height - _TOP - _BOTTOM)

    def at(chunk: int, value: float) -> tuple[float, float]:
        x = _LEFT + inner[0] * ((chunk - 1) / max(longest - 1, 1))
        share = (min(max(value, low), high) - low) / (high - low)
        return x, _TOP + inner[1] * (1 - share)

    parts = [_text(_LEFT + inner[0] / 2, height - 6, "chunk", anchor="middle")]
    for value in _ticks(low, high):
        y = at(1, value)[1]
        parts.append(_line([(_LEFT, y), (_WIDTH - _RIGHT, y)], "var(--grid)", 1))
        parts.append(_text(_LEFT - 8, y + 4, f"{value:g}", anchor="end"))
    for chunk in sorted({1, *range(0, longest + 1, max(1, longest // 8))} - {0}):
        parts.append(_text(at(chunk, low)[0], height - 24, str(chunk), anchor="middle"))
    labels: list[tuple[float, float, str, str]] = []
    for standing in reversed(standings):
        points = [at(c, v) for c, v in enumerate(standing.curve, 1) if math.isfinite(v)]
        if not points:
            continue
        color, width = _color(standing), 2.2 if standing.place <= len(_COLORS) else 1.2
        title = f"run {standing.run.id}, {standing.run.status.value}: {standing.value:.4g}"
        parts.append(_line(points, color, width, title))
        x, y = points[-1]
        if standing.run.status in (RunStatus.PRUNED, RunStatus.STOPPED, RunStatus.FAILED):
            cross = f"M{x - 4:.1f},{y - 4:.1f}l8,8m0,-8l-8,8"
            parts.append(f'<path d="{cross}" stroke="{color}" stroke-width="2"/>')
        if standing.place <= len(_COLORS):
            labels.append((x + 8, y + 4, f"run {standing.run.id}", color))
    parts += [_text(x, y, label, color=color) for x, y, label, color in _apart(labels)]
    return _svg(height, f"{findings.objective.metric} after each chunk", parts)


def parallel_coordinates(findings: Findings) -> str:
    """A line for each run through the values of its knobs to its metric; empty without knobs."""
    if not findings.knobs:
        return ""
    height = 340.0
    first = [s for s in findings.standings if s.group == findings.standings[0].group]
    axes: list[tuple[str, list[Json]]] = [
        (knob, [findings.value_of(s.run, knob) for s in first]) for knob in findings.knobs[:8]
    ]
    axes.append((findings.objective.metric, [s.value for s in first]))
    left, right, top = 90.0, 100.0, 34.0
    span = (_WIDTH - left - right) / max(len(axes) - 1, 1)
    bottom = height - 22.0
    shares = [_shares(values, is_last=i == len(axes) - 1) for i, (_, values) in enumerate(axes)]
    parts = []
    for place, (name, values) in enumerate(axes):
        x = left + span * place
        parts.append(_line([(x, top), (x, bottom)], "var(--axis)", 1))
        parts.append(_text(x, 18, name, anchor="middle", weight="600"))
        for share, label in _axis_labels(values, shares[place]):
            y = bottom - share * (bottom - top)
            last = place == len(axes) - 1
            parts.append(
                _text(x + (8 if last else -8), y + 4, label, anchor="start" if last else "end")
            )
    for number in reversed(range(len(first))):
        points = [
            (left + span * place, bottom - shares[place][number] * (bottom - top))
            for place in range(len(axes))
        ]
        standing = first[number]
        width = 2.2 if standing.place <= len(_COLORS) else 1.0
        title = f"run {standing.run.id}, number {standing.place}: {standing.value:.4g}"
        parts.append(_line(points, _color(standing), width, title))
    return _svg(height, "knobs and what came of them", parts)


def _color(standing: Standing) -> str:
    return _COLORS[standing.place - 1] if standing.place <= len(_COLORS) else _GREY


def _view(values: Iterable[float], findings: Findings) -> tuple[float, float]:
    """The part of the scale that is worth seeing: what is far worse than most is cut off."""
    finite = sorted(v for v in values if math.isfinite(v))
    if not finite:
        return 0.0, 1.0
    low, high = finite[0], finite[-1]
    q10, q90 = finite[len(finite) // 10], finite[-1 - len(finite) // 10]
    reach = 1.0 * (q90 - q10)
    if findings.objective.direction == "minimize":
        high = min(high, q90 + reach) if reach else high
    else:
        low = max(low, q10 - reach) if reach else low
    if low == high:
        low, high = low - 0.5, high + 0.5
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    unit = 10 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
    begin = math.ceil(low / step)
    return [round(step * k, 10) for k in range(begin, math.floor(high / step) + 1)]


def _shares(values: Sequence[Json], *, is_last: bool) -> list[float]:
    """Where values stand on their axis, 0 to 1; what spans decades by its logarithm."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        finite = [float(v) for v in values if math.isfinite(v)]
        low, high = min(finite, default=0.0), max(finite, default=1.0)
        is_log = not is_last and low > 0 and high / low >= 20
        scaled = [math.log(v) if is_log else float(v) for v in values]
        if is_log:
            low, high = math.log(low), math.log(high)
        return [
            (v - low) / (high - low) if math.isfinite(v) and high > low else 0.5 for v in scaled
        ]
    names = sorted(set(map(str, values)))
    return [(names.index(str(v)) + 0.5) / len(names) for v in values]


def _axis_labels(values: Sequence[Json], shares: Sequence[float]) -> list[tuple[float, str]]:
    """Labels that do not run into each other."""
    labels: list[tuple[float, str]] = []
    pairs = dict(zip(shares, values, strict=True))
    ends = {min(pairs), max(pairs)}
    for share in sorted(pairs, key=lambda share: (share not in ends, share)):
        if all(abs(share - other) > 0.06 for other, _ in labels):
            value = pairs[share]
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            labels.append((share, text if len(text) <= 14 else text[:13] + "…"))
    return labels


def _apart(labels: list[tuple[float, float, str, str]]) -> list[tuple[float, float, str, str]]:
    """Moves labels down where they would cover each other."""
    placed: list[tuple[float, float, str, str]] = []
    for x, y, label, color in sorted(labels, key=lambda one: one[1]):
        near = [other[1] for other in placed if abs(other[0] - x) < 56]
        y = max([y, *(top + 14 for top in near)])
        placed.append((x, y, label, color))
    return placed


def _line(points: Sequence[tuple[float, float]], color: str, width: float, title: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}" '
        f'stroke-linejoin="round">{inner}</polyline>'
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", color: str = "", weight: str = ""
) -> str:
    style = (f' fill="{color}"' if color else "") + (f' font-weight="{weight}"' if weight else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'


def _svg(height: float, label: str, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
