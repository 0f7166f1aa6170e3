"""What has been chosen about how a run's passes are computed, as JSON and in words."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rapidfireai.core.events import Json, ModeChosen

Choice = Mapping[str, Json]
"""A `ModeChosen` without its run, and the `step` at which it came."""


def chosen(before: Sequence[Choice], event: ModeChosen, step: int) -> tuple[Choice, ...]:
    """The choices with one more, which replaces an earlier one for the same kind of pass."""
    choice = {
        "kind": event.kind,
        "mode": event.mode.value,
        "reason": event.reason,
        "members": list(event.members),
        "fused_s": event.fused_s,
        "sliced_s": event.sliced_s,
        "step": step,
    }
    return (*(one for one in before if one["kind"] != event.kind), choice)


def gain(choice: Choice) -> float | None:
    """How many times as fast as alone passes are when they are shared; None if not measured."""
    fused_s, sliced_s = choice["fused_s"], choice["sliced_s"]
    return sliced_s / fused_s if fused_s and sliced_s else None


def summary(choices: Sequence[Choice]) -> str:
    """The choices in a line: "fused: 16 tokens a batch 1.62x; sliced: 128 tokens a batch 0.9x".

    Empty if nothing was to be chosen. What was measured stands for the rest.
    """
    measured = [choice for choice in choices if gain(choice) is not None]
    if not measured:
        return "; ".join(f"{choice['mode']}: {choice['reason']}" for choice in choices)
    by_mode: dict[str, list[str]] = defaultdict(list)
    for choice in sorted(measured, key=lambda choice: _natural(choice["kind"])):
        by_mode[choice["mode"]].append(f"{choice['kind']} {gain(choice):.2f}x")
    return "; ".join(f"{mode}: {', '.join(kinds)}" for mode, kinds in sorted(by_mode.items()))


def in_words(choice: Choice) -> str:
    """One choice, with what was measured for it."""
    text = f"{choice['kind'] or 'passes'}: {choice['mode']}, {choice['reason']}"
    times = gain(choice)
    if times is None:
        return text
    return (
        f"{text}: {times:.2f} times as fast together ({1000 * choice['fused_s']:.3g} ms a pass) as "
        f"alone ({1000 * choice['sliced_s']:.3g} ms), runs {', '.join(map(str, choice['members']))}"
    )


def _natural(kind: str) -> tuple[int, str]:
    """Kinds begin with a number of tokens."""
    number, _, rest = kind.partition(" ")
    return (int(number), rest) if number.isdecimal() else (0, kind)
