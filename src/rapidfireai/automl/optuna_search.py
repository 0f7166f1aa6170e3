"""A search that learns from runs: Optuna proposes, the engine trains.

Optuna's study is kept in the experiment's folder, one line for each change, so that the script run
again goes on with the same trials. Trials and runs are matched by order: the configurations of all
trials are what the script describes.
"""

import logging
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidfireai.automl.knobs import Knob, List, Range, filled
from rapidfireai.automl.optuna_names import check_sampler, new_sampler, pruner_named
from rapidfireai.automl.search import Search
from rapidfireai.core.commands import Command
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.errors import ConfigError, ObjectiveError
from rapidfireai.policies import OptunaPruner
from rapidfireai.policies.arguments import at_least
from rapidfireai.policies.objective import Direction, Objective
from rapidfireai.policies.optuna_pruner import require_optuna, unannounced
from rapidfireai.training.config import RunConfig

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)


class RFOptuna(Search):
    """Lets Optuna choose: `n_initial` runs at once, and another one whenever one has ended.

    Args:
        configs: As for every search. A `Range` becomes a float or an integer of Optuna's, a `List`
            a choice; knobs inside an alternative are chosen only where the alternative is.
        n_initial: Runs that train at the same time.
        budget: Runs altogether, at least `n_initial`; clones of yours do not count.
        objective: Such as "minimize:eval_loss"; or several as a list or with commas between them,
            for a Pareto front. A metric of evaluations may be named without "eval_".
        sampler: "tpe", "random" or "cmaes", seeded anew for each trial, so that it proposes the
            same after a crash; or one of `optuna.samplers`.
        pruner: "median", "hyperband" or one of `optuna.pruners`; None prunes nothing. With one
            objective only.
        seed: None uses `run_fit`'s.
        trainer_type: As for every search.
        granularity: "chunk", when runs are looked at. Accepted so that existing scripts run; for
            once an epoch give `run_fit` num_chunks=1.

    Raises:
        ConfigError: An argument cannot be used, or Optuna is not installed.
    """

    def __init__(  # noqa: PLR0913 - Optuna's own parts
        self,
        configs: Any,
        n_initial: int = 16,
        budget: int = 40,
        objective: str | Sequence[str] = "minimize:eval_loss",
        *,
        sampler: "optuna.samplers.BaseSampler | str | None" = None,
        pruner: "optuna.pruners.BasePruner | str | None" = None,
        seed: int | None = None,
        trainer_type: str | None = None,
        granularity: str = "chunk",
    ) -> None:
        super().__init__(configs, trainer_type)
        optuna = require_optuna()
        self.n_initial = at_least("n_initial", n_initial, 1)
        self.budget = at_least("budget", budget, 1)
        if self.budget < self.n_initial:
            raise ConfigError(
                f"budget={budget!r} is less than n_initial={n_initial!r}: the budget counts all "
                "runs, the first ones too"
            )
        several = objective.split(",") if isinstance(objective, str) else objective
        if not isinstance(several, list | tuple) or not several:
            raise ConfigError(
                f"objective={objective!r} cannot be used: give one such as 'minimize:eval_loss', "
                "or a list of these"
            )
        self.objectives = tuple(map(Objective.parse, several))
        if granularity != "chunk":
            raise ConfigError(
                f"granularity={granularity!r} cannot be used; it is 'chunk', when runs are looked "
                "at: for once an epoch give run_fit(num_chunks=1)"
            )
        if isinstance(sampler, str):
            check_sampler(sampler)
        elif sampler is not None and not isinstance(sampler, optuna.samplers.BaseSampler):
            raise ConfigError(f"sampler={sampler!r} cannot be used; give one of optuna.samplers")
        chosen = pruner_named(pruner) if isinstance(pruner, str) else pruner
        if pruner is not None and len(self.objectives) > 1:
            raise ConfigError(
                "pruner goes with one objective only: leave it out, or give one objective"
            )
        if chosen is not None:
            OptunaPruner(chosen)  # errors now
        self.sampler, self.pruner = sampler, chosen
        self.seed = None if seed is None else at_least("seed", seed, 0)
        self.get_runs(seed=0)  # errors now, not when training starts

    def get_runs(self, seed: int) -> list[RunConfig]:
        """Returns the first runs, before anything has been learned."""
        return self.begin(None, seed).configs()

    def begin(self, place: Path | None, seed: int) -> "OptunaStudy":
        """Begin the search, or go on with it.

        Args:
            place: File of the study; None keeps it in memory.
            seed: For a search that has none.
        """
        return OptunaStudy(self, place, seed if self.seed is None else self.seed)

    def config(self, trial: Any) -> RunConfig:
        """The run that a trial of Optuna's stands for."""

        def choose(path: str, knob: Knob) -> Any:
            if isinstance(knob, Range):
                suggest = trial.suggest_int if knob.whole else trial.suggest_float
                step = {} if knob.step is None else {"step": knob.step}
                return suggest(path, knob.start, knob.end, log=knob.log, **step)
            assert isinstance(knob, List), "there are two kinds of knobs"
            labels = _labels(knob)
            return labels.index(trial.suggest_categorical(path or "configuration", labels))

        return self._leaf(filled(self._space(), choose))


class OptunaStudy:
    """A search in progress; implements `core.policy.Policy`.

    Args:
        search: What is searched.
        place: File of the study; None keeps it in memory.
        seed: Of the trials.
    """

    def __init__(self, search: RFOptuna, place: Path | None, seed: int) -> None:
        import optuna

        self._search = search
        self._seed = seed
        self._storage = _storage(place)
        if not self._storage.get_all_studies():
            directions = [
                optuna.study.StudyDirection.MINIMIZE
                if objective.direction is Direction.MINIMIZE
                else optuna.study.StudyDirection.MAXIMIZE
                for objective in search.objectives
            ]
            with unannounced():
                self._storage.create_new_study(directions, "search")
        self._study = optuna.Study("search", self._storage)
        self._numbers: dict[RunId, int] = {}
        """The trial of each run."""
        self._values: dict[RunId, dict[str, float]] = {}
        self._told_of: set[RunId] = set()
        """Runs whose results Optuna knows as trials that it did not propose."""
        self._pruner = (
            None
            if search.pruner is None
            else OptunaPruner(search.pruner, objective=str(search.objectives[0]))
        )
        self._unchecked = True
        self._shown: dict[RunId, int] = {}
        """Chunks that each run has been shown after."""
        self._names: set[str] = set()
        while len(self._trials()) < search.n_initial:
            self._ask()

    @property
    def trials(self) -> "list[optuna.trial.FrozenTrial]":
        """Optuna's trials, clones at the end among them."""
        return self._study.get_trials(deepcopy=True)

    def configs(self) -> list[RunConfig]:
        """The runs of all trials so far, in order."""
        import optuna

        return [
            self._search.config(optuna.trial.FixedTrial(trial.params, trial.number))
            for trial in self._trials()
        ]

    def bind(self, run_ids: Sequence[RunId]) -> None:
        """Say under which numbers the runs of `configs` go."""
        numbers = [trial.number for trial in self._trials()]
        self._numbers |= dict(zip(run_ids, numbers, strict=True))

    def next(self, runs: Sequence[Run]) -> RunConfig | None:
        """Learn from what has ended, and propose a run if a place is free."""
        num_open = 0
        for run in runs:
            # Until a run that ran ahead is shown at its end, its last values are not known.
            if run.unfinished or self._shown.get(run.id, 0) < run.chunks_done:
                num_open += 1
            else:
                self._tell(run)
        if num_open >= self._search.n_initial or len(self._trials()) >= self._search.budget:
            return None
        return self._search.config(self._ask())

    def begun(self, run_id: RunId) -> str:
        """Say under which number the run goes that was proposed last, and describe it."""
        number = self._trials()[-1].number
        self._numbers[run_id] = number
        return f"trial {len(self._trials())} of {self._search.budget}"

    def refused(self, why: str) -> None:
        """The run that was proposed last cannot be trained."""
        import optuna

        number = self._trials()[-1].number
        logger.warning("trial %d of the search cannot be trained: %s", number, why)
        self._study.tell(number, state=optuna.trial.TrialState.FAIL)

    def end(self) -> None:
        """Say that no further run will be proposed; `is_open` knows."""
        self._study.set_user_attr(_ENDED, True)

    def on_chunk(
        self, run: Run, metrics: Mapping[str, float], runs: Sequence[Run]
    ) -> Sequence[Command]:
        """Take note of a run's values, and prune as the pruner says. See `Policy.on_chunk`."""
        metrics = self._named(metrics)
        self._check(run, metrics, runs)
        self._shown[run.id] = run.chunks_done
        wanted = [objective.metric for objective in self._search.objectives]
        self._values[run.id] = {name: metrics[name] for name in wanted if name in metrics}
        if len(wanted) == 1 and wanted[0] in metrics:
            self._report(run, metrics[wanted[0]])
        return [] if self._pruner is None else self._pruner.on_chunk(run, metrics, runs)

    def _named(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """With the objectives under their own names, also those that are reported as "eval_..."."""
        short = {
            objective.metric: metrics[f"eval_{objective.metric}"]
            for objective in self._search.objectives
            if objective.metric not in metrics and f"eval_{objective.metric}" in metrics
        }
        return {**metrics, **short}

    def _check(self, run: Run, metrics: Mapping[str, float], runs: Sequence[Run]) -> None:
        """Find out whether anybody reports the objectives, once all have done a chunk."""
        self._names |= metrics.keys()
        others = [r for r in runs if r.unfinished and r.id != run.id]
        if not self._unchecked or any(r.id not in self._shown for r in others):
            return
        self._unchecked = False
        for objective in self._search.objectives:
            if objective.metric not in self._names:
                raise ObjectiveError(
                    f"no run reports the objective {objective.metric!r} at the end of its first "
                    f"chunk; what they report is {', '.join(sorted(self._names))}. All runs are "
                    "written down: correct the objective and run the script again"
                )

    def _trials(self) -> "list[optuna.trial.FrozenTrial]":
        """Those that were proposed, in order."""
        return [t for t in self._study.get_trials(deepcopy=False) if _RUN not in t.user_attrs]

    def _ask(self) -> Any:

        number = len(self._study.get_trials(deepcopy=False))
        sampler = self._search.sampler or "tpe"
        if isinstance(sampler, str):
            seed = random.Random(f"{self._seed} {number}").randrange(2**32)
            sampler = new_sampler(sampler, seed, min(10, self._search.n_initial))
        self._study.sampler = sampler
        trial = self._study.ask()
        # Now: the knobs are what the study has to keep of it.
        self._search.config(trial)
        return trial

    def _report(self, run: Run, value: float) -> None:
        import optuna

        number = self._numbers.get(run.id)
        if number is None:
            return
        trial = self._study.get_trials(deepcopy=False)[number]
        if trial.state.is_finished() or run.chunks_done in trial.intermediate_values:
            return
        # The only handle of a trial that an earlier process asked for.
        handle = optuna.Trial(self._study, trial._trial_id)  # noqa: SLF001
        handle.report(value, run.chunks_done)

    def _tell(self, run: Run) -> None:
        """Say how a run has ended, once."""
        import optuna

        state = optuna.trial.TrialState
        values = self._final(run)
        ended = state.FAIL if run.status is RunStatus.FAILED else state.PRUNED
        if run.status is RunStatus.COMPLETED:
            ended = state.FAIL if values is None else state.COMPLETE
        number = self._numbers.get(run.id)
        proposed = None if number is None else self._study.get_trials(deepcopy=False)[number]
        if proposed is not None and not proposed.state.is_finished():
            self._study.tell(
                proposed.number, values if ended is state.COMPLETE else None, state=ended
            )
        elif (
            ended is state.COMPLETE
            and run.id not in self._told_of
            and (proposed is None or proposed.state is not state.COMPLETE)
        ):
            # A clone; or a run that went on after its trial had been told of as pruned or failed,
            # which in Optuna is for good.
            self._told_of.add(run.id)
            self._tell_beside(run, values)

    def _final(self, run: Run) -> list[float] | None:
        measured = self._values.get(run.id, {})
        values = [measured.get(o.metric, math.nan) for o in self._search.objectives]
        return None if any(map(math.isnan, values)) else values

    def _tell_beside(self, run: Run, values: list[float] | None) -> None:
        """Let the sampler learn from a run as a further trial, if it is one of the space."""
        import optuna

        if any(t.user_attrs.get(_RUN) == run.id for t in self._study.get_trials(deepcopy=False)):
            return
        own = self._numbers.get(run.id)
        parent = self._numbers.get(run.parent_id) if run.parent_id is not None else own
        if parent is None:
            return
        trial = self._study.get_trials(deepcopy=False)[parent]
        params, foreign = dict(trial.params), []
        for full, (_, new) in run.modified.items():
            name = _param_of(full, trial.params)
            distribution = None if name is None else trial.distributions[name]
            if name is None or distribution is None or not _fits(distribution, new):
                foreign.append(full)
            else:
                params[name] = new
        if foreign:
            logger.info(
                "run %d tells the search nothing: %s is not in its space",
                run.id,
                ", ".join(foreign),
            )
            return
        self._study.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions=trial.distributions,
                values=values,
                user_attrs={_RUN: run.id},
            )
        )


_RUN = "run"
"""Names the run of a trial that was not proposed."""

_ENDED = "ended"


def is_open(place: Path) -> bool:
    """Whether the search that is kept there may propose further runs.

    Changes nothing: another process may be the file's writer.
    """
    optuna = require_optuna()
    storage = _journal(place)
    studies = storage.get_all_studies()
    return bool(studies) and _ENDED not in optuna.Study("search", storage).user_attrs


def _labels(knob: List) -> list[Any]:
    """What Optuna calls the alternatives: themselves where it can, else their place and text."""
    plain = all(item is None or isinstance(item, bool | int | float | str) for item in knob.values)
    if plain and len(set(map(repr, knob.values))) == len(set(knob.values)) == len(knob.values):
        return knob.values
    return [f"{place}: {str(item)[:60]}" for place, item in enumerate(knob.values)]


def _param_of(full: str, params: Mapping[str, Any]) -> str | None:
    """The knob of the space that a configuration's knob, such as "peft.r", is."""
    section, _, name = full.rpartition(".")
    sections = {section, "peft_config"} if section == "peft" else {section}
    for param in params:
        above, _, last = param.rpartition(".")
        if last == name and above.rpartition(".")[2].partition("[")[0] in sections:
            return param
    return None


def _fits(distribution: Any, value: Any) -> bool:
    import optuna

    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return value in distribution.choices
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and distribution.low <= value <= distribution.high


def _storage(place: Path | None) -> "optuna.storages.BaseStorage":
    import optuna

    if place is None:
        return optuna.storages.InMemoryStorage()
    if place.exists():
        # A process that was killed may have left half a line, and its lock: who trains an
        # experiment is its only writer.
        whole, _, _ = place.read_bytes().rpartition(b"\n")
        place.write_bytes(whole + b"\n" if whole else b"")
        for lock in place.parent.glob(f"{place.name}.lock*"):
            lock.unlink()
    return _journal(place)


def _journal(place: Path) -> "optuna.storages.JournalStorage":
    import optuna.storages.journal

    backend = optuna.storages.journal.JournalFileBackend(str(place))
    return optuna.storages.JournalStorage(backend)
