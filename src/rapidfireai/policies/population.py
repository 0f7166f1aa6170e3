"""Population-based training: the worst make room for varied copies of the best."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from rapidfireai.core.commands import Command, Verb
from rapidfireai.core.events import Json
from rapidfireai.core.run import Run
from rapidfireai.errors import ConfigError
from rapidfireai.policies.arguments import at_least, between
from rapidfireai.policies.objective import ranks
from rapidfireai.policies.rounds import Round, RoundPolicy

_SECTIONS = ("training_args", "peft", "peft_config", "model", "trainer_kwargs")


class PopulationBased(RoundPolicy):
    """Every few chunks prunes the worst runs, and clones the best with perturbed knobs, warm.

    A clone begins with the weights and the progress of its parent, so the population keeps its
    size and its pace.

    Source: Jaderberg et al. 2017 (https://arxiv.org/abs/1711.09846), exploit by truncation, explore
    by perturbation. Changed: copies are runs of their own, so that every step can be looked up.

    Args:
        knobs: What is perturbed: for a knob such as "learning_rate" the least and the largest value
            as a pair of numbers, or the values to choose from as a list: its neighbour is taken.
        every: Chunks between two exchanges.
        quantile: Share of the runs that make room; at least one run does.
        factors: A number is multiplied by one of them.
        seed: Of what is drawn.
        objective: See `RoundPolicy`.

    Raises:
        ConfigError: An argument cannot be used.
    """

    def __init__(
        self,
        knobs: Mapping[str, tuple[float, float] | list[Any]],
        *,
        every: int = 2,
        quantile: float = 0.25,
        factors: tuple[float, ...] = (0.8, 1.25),
        seed: int = 0,
        objective: str | None = None,
    ) -> None:
        super().__init__(objective)
        if not isinstance(knobs, Mapping) or not knobs:
            raise ConfigError(
                f"knobs={knobs!r} cannot be used; give what is to be perturbed, such as "
                '{"learning_rate": (1e-5, 1e-2)}'
            )
        for name, space in knobs.items():
            _check_space(name, space)
        self._knobs = dict(knobs)
        self._every = at_least("every", every, 1)
        self._quantile = between("quantile", quantile, 0, 0.5)
        self._factors = tuple(between("factors", factor, 0, 100) for factor in factors)
        self._seed = at_least("seed", seed, 0)

    def judge(self, round: Round) -> list[Command]:
        """Exchange the worst for the best."""
        if round.chunk % self._every:
            return []
        going = {run_id: cost for run_id, cost in round.costs().items() if run_id in round.fresh}
        order = ranks(going)
        num = min(max(1, int(len(order) * self._quantile)), len(order) // 2)
        best, worst = order[:num], order[len(order) - num :]
        decisions = []
        for place, run_id in enumerate(worst):
            if round.runs[run_id].pinned:
                continue
            parent = best[place]
            rng = random.Random(f"{self._seed} {round.chunk} {run_id}")
            modify = self._perturbed(round.runs[parent], rng)
            costs = f"{self.value(going[run_id])} against {self.value(going[parent])}"
            decisions += [
                self.prune(
                    run_id,
                    f"at chunk {round.chunk} it makes room for a clone of run {parent}: {costs}",
                ),
                Command(
                    verb=Verb.CLONE,
                    run_id=parent,
                    modify=modify,
                    warm_start=True,
                    reason=f"in place of run {run_id} after chunk {round.chunk}: {costs}",
                ),
            ]
        return decisions

    def _perturbed(self, run: Run, rng: random.Random) -> dict[str, Json]:
        return {name: self._vary(name, _value(run, name), rng) for name in self._knobs}

    def _vary(self, name: str, value: Any, rng: random.Random) -> Any:
        space = self._knobs[name]
        if isinstance(space, list):
            if value not in space:
                return rng.choice(space)
            place = space.index(value)
            near = [space[i] for i in (place - 1, place + 1) if 0 <= i < len(space)]
            return rng.choice(near or space)
        low, high = space
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(
                f"{name}={value!r} cannot be perturbed: it is not a number in the runs' "
                "configurations; give a list of values instead"
            )
        varied = min(max(value * rng.choice(self._factors), low), high)
        return round(varied) if isinstance(value, int) else varied


def _check_space(name: str, space: Any) -> None:
    if isinstance(space, list) and space:
        return
    is_pair = isinstance(space, tuple) and len(space) == 2
    if not is_pair or not all(isinstance(end, int | float) for end in space):
        raise ConfigError(
            f"knobs[{name!r}]={space!r} cannot be used; it is the least and the largest value as "
            "a pair, or a list of values"
        )
    if not space[0] < space[1]:
        raise ConfigError(f"knobs[{name!r}]={space!r}: the first has to be less than the second")


def _value(run: Run, name: str) -> Json:
    """What a knob is in a run: as resolved, or as configured."""
    section, _, last = name.rpartition(".")
    places: Sequence[Mapping[str, Json]] = [run.resolved, run.config]
    for place in places:
        for key in (section,) if section else (*_SECTIONS, None):
            values = place if key is None else place.get(key)
            if isinstance(values, Mapping) and values.get(last) is not None:
                return values[last]
    return None
