"""Optuna's pruners, for runs that train at the same time."""

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rapidfireai.core.commands import Command
from rapidfireai.core.ids import RunId
from rapidfireai.errors import ConfigError
from rapidfireai.policies.rounds import Round, RoundPolicy

if TYPE_CHECKING:
    import optuna


def require_optuna() -> Any:
    """The module.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ConfigError(
            'this needs Optuna, which is not installed: pip install "optuna>=5"'
        ) from error
    return optuna


@contextmanager
def unannounced() -> Iterator[None]:
    """Keep Optuna from telling the user's terminal about studies that are none of the user's."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


class OptunaPruner(RoundPolicy):
    """Prunes as one of Optuna's pruners says.

    Most of these compare a trial with complete ones. Here all train at the same time, so for each
    run the others count as complete up to where they are. Steps are chunks, from 1.

    Args:
        pruner: Such as `optuna.pruners.PercentilePruner(50.0, n_startup_trials=3)`.
        objective: See `RoundPolicy`.

    Raises:
        ConfigError: It is none of Optuna's pruners, an argument cannot be used, or Optuna is not
            installed.
    """

    def __init__(
        self, pruner: "optuna.pruners.BasePruner", *, objective: str | None = None
    ) -> None:
        super().__init__(objective)
        if not isinstance(pruner, require_optuna().pruners.BasePruner):
            raise ConfigError(
                f"pruner={pruner!r} cannot be used; it has to be one of optuna.pruners, such as "
                "optuna.pruners.PercentilePruner(50.0)"
            )
        self._pruner = pruner
        self._races: dict[str, _Race] = {}

    def judge(self, round: Round) -> list[Command]:
        """Ask the pruner about each run, in the order of their numbers."""
        if round.group not in self._races:
            self._races[round.group] = _Race(self._pruner)
        race = self._races[round.group]
        for run_id in round.fresh:
            race.report(run_id, round.curves[run_id][-1], round.chunk)
        name = type(self._pruner).__name__
        return [
            self.prune(
                run_id,
                f"after chunk {round.chunk}, at {self.value(round.curves[run_id][-1])}, "
                f"Optuna's {name} gives it up",
            )
            for run_id in round.prunable()
            if race.should_prune(run_id)
        ]


class _Race:
    """Runs that can be compared, as the running trials of a study in memory."""

    def __init__(self, pruner: "optuna.pruners.BasePruner") -> None:
        import optuna

        class Peers(optuna.Study):
            """Shows running trials as complete to whoever asks for complete ones only."""

            def get_trials(
                self,
                deepcopy: bool = True,
                states: "Container[optuna.trial.TrialState] | None" = None,
            ) -> "list[optuna.trial.FrozenTrial]":
                complete = optuna.trial.TrialState.COMPLETE
                if states is None or complete not in states:
                    return super().get_trials(deepcopy=deepcopy, states=states)
                peers = super().get_trials(deepcopy=True)
                for trial in peers:
                    trial.state = complete
                return [trial for trial in peers if trial.number != self.asking]

            asking: int | None = None

        storage = optuna.storages.InMemoryStorage()
        with unannounced():
            storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "runs")
        self._study = Peers(study_name="runs", storage=storage, pruner=pruner)
        self._trials: dict[RunId, optuna.Trial] = {}

    def report(self, run_id: RunId, cost: float, chunk: int) -> None:
        if run_id not in self._trials:
            self._trials[run_id] = self._study.ask()
        self._trials[run_id].report(cost, chunk)

    def should_prune(self, run_id: RunId) -> bool:
        trial = self._trials[run_id]
        self._study.asking = trial.number
        return trial.should_prune()
