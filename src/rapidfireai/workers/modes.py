"""Whether passes are shared or done one by one: measured both ways, and the quicker way kept.

Both ways give a run the same numbers, those of plain TRL, as far as matrix products do not round
otherwise with more rows. So measuring changes none, and what was chosen decides about time alone.
It knows no torch.
"""

import statistics
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from rapidfireai.core.events import Event, ModeChosen, PassMode
from rapidfireai.core.ids import RunId

_ORDER = (PassMode.FUSED, PassMode.SLICED, PassMode.SLICED, PassMode.FUSED)
"""By turns, mirrored: what slowly gets faster or slower meanwhile falls on both ways alike."""

NUM_WARM_UP = 4
"""Passes of a kind that do not count: kernels are looked for, layers built."""

NUM_MEASURED = 12
"""Passes of a kind that count, half of them each way."""


@dataclass(slots=True)
class Trial:
    """One kind of pass of one gang, measured until it is decided."""

    members: frozenset[RunId]
    gang: frozenset[RunId]
    """The members as they are now."""
    num_passes: int = 0
    measured: dict[PassMode, list[float]] = field(
        default_factory=lambda: {mode: [] for mode in PassMode}
    )
    """Seconds for each token."""
    tokens: list[float] = field(default_factory=list)
    """Tokens of a run in a pass, on average."""

    @property
    def mode(self) -> PassMode:
        """How the next pass is done."""
        return _ORDER[self.num_passes % len(_ORDER)]

    @property
    def is_over(self) -> bool:
        """Whether enough has been measured."""
        return self.num_passes >= NUM_WARM_UP + NUM_MEASURED

    def take(self, seconds: float, num_tokens: int, num_runs: int) -> None:
        """Account for a pass that was done in `mode`."""
        if self.num_passes >= NUM_WARM_UP:
            self.measured[self.mode].append(seconds / num_tokens)
            self.tokens.append(num_tokens / num_runs)
        self.num_passes += 1

    def cost_s(self, mode: PassMode) -> float:
        """Seconds that a pass took for each run in it."""
        return statistics.median(self.measured[mode]) * statistics.fmean(self.tokens)


@dataclass(slots=True)
class _Choice:
    members: frozenset[RunId]
    mode: PassMode
    fused_s: float | None
    sliced_s: float | None
    told: set[RunId] = field(default_factory=set)
    """Runs of which it has been reported."""


class PassModes:
    """Chooses how passes are done; used by one thread.

    Args:
        measures: Whether to measure both ways; without that all passes are shared.
    """

    def __init__(self, *, measures: bool) -> None:
        self._measures = measures
        self._choices: dict[str, list[_Choice]] = {}
        """By kind of pass, the latest last."""
        self._trials: dict[str, Trial] = {}
        self._events: list[Event] = []

    def recall(self, events: Iterable[Event]) -> None:
        """Keep to what earlier processes have chosen, as far as gangs are alike."""
        for event in events:
            if not isinstance(event, ModeChosen) or not event.members:
                continue
            members, choices = frozenset(event.members), self._choices.setdefault(event.kind, [])
            seconds = (event.fused_s, event.sliced_s)
            if not choices or (choices[-1].members, choices[-1].fused_s, choices[-1].sliced_s) != (
                members,
                *seconds,
            ):
                choices.append(_Choice(members, event.mode, *seconds))
            choices[-1].told.add(event.run_id)

    def choose(self, kind: str, members: Collection[RunId]) -> tuple[PassMode, Trial | None]:
        """How the next pass is done, and the trial that wants to know how long it took, if any.

        Args:
            kind: Of the pass: passes of other kinds are measured apart.
            members: The gang, all runs that share passes at the moment.
        """
        gang = frozenset(members)
        if not self._measures or len(gang) < 2:
            return PassMode.FUSED, None
        for choice in reversed(self._choices.get(kind, [])):
            if _alike(choice.members, gang):
                self._tell(kind, choice, gang)
                return choice.mode, None
        trial = self._trials.get(kind)
        if trial is None or not _alike(trial.members, gang):
            trial = self._trials[kind] = Trial(gang, gang)
        trial.gang = gang
        return trial.mode, trial

    def took(self, kind: str, seconds: float, num_tokens: int, num_runs: int) -> None:
        """Account for a pass that a trial was returned for."""
        trial = self._trials[kind]
        trial.take(seconds, num_tokens, num_runs)
        if not trial.is_over:
            return
        del self._trials[kind]
        fused_s, sliced_s = trial.cost_s(PassMode.FUSED), trial.cost_s(PassMode.SLICED)
        mode = PassMode.FUSED if fused_s < sliced_s else PassMode.SLICED
        choice = _Choice(trial.members, mode, fused_s, sliced_s)
        self._choices.setdefault(kind, []).append(choice)
        self._tell(kind, choice, trial.gang)

    def take_events(self) -> list[Event]:
        """What was chosen and has not been handed out yet."""
        events, self._events = self._events, []
        return events

    def _tell(self, kind: str, choice: _Choice, gang: frozenset[RunId]) -> None:
        for run_id in sorted(gang - choice.told):
            self._events.append(
                ModeChosen(
                    run_id=run_id,
                    mode=choice.mode,
                    reason="measured both ways",
                    kind=kind,
                    members=tuple(sorted(choice.members)),
                    fused_s=choice.fused_s,
                    sliced_s=choice.sliced_s,
                )
            )
        choice.told |= gang


def _alike(one: frozenset[RunId], other: frozenset[RunId]) -> bool:
    """Whether three quarters of the larger gang are in both: what was measured still holds."""
    return 4 * len(one & other) >= 3 * max(len(one), len(other))
