"""The facade: what a user makes, starts and asks for results."""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rapidfireai.background import FitHandle
from rapidfireai.control import WAIT_S, give, leads_on, open_store
from rapidfireai.core.clock import SystemClock
from rapidfireai.core.commands import Command, CommandRecord, CommandStatus, Verb
from rapidfireai.core.engine import Listener
from rapidfireai.core.fork import OptimizerState, Schedule
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.errors import CommandRejectedError, ConfigError, UnknownArgumentError
from rapidfireai.export import export as export_run
from rapidfireai.fit import Fit
from rapidfireai.paths import ExperimentFolder, experiments_root
from rapidfireai.request import FitRequest
from rapidfireai.results import best_run, commands_frame, results_frame, run_ids, runs_frame
from rapidfireai.selection import select
from rapidfireai.store import SqliteStore
from rapidfireai.surroundings import check_not_launched, experiment_log
from rapidfireai.tracking import Settings

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from rapidfireai.report import Findings

logger = logging.getLogger(__name__)


class Experiment:
    """N configurations, trained at once and compared.

    Args:
        experiment_name: Names the folder that everything is kept in. An experiment of that name
            that was interrupted or killed is continued; if it has ended, the new one gets a number,
            and the log says so. A search or configuration given here
            instead is what `run_fit` trains, and the experiment is called "experiment".
        mode: "fit". Accepted so that existing scripts run; there is nothing to choose.
        experiment_path: Folder of all experiments. Default: $RF_EXPERIMENT_PATH, or
            `rapidfire_experiments` below $RF_HOME (~/rapidfireai).

    Raises:
        ConfigError: The name, the mode or the path cannot be used.
        ExperimentPathError: The folder cannot be written.
    """

    def __init__(
        self,
        experiment_name: Any = "experiment",
        mode: str = "fit",
        experiment_path: str | os.PathLike[str] | None = None,
    ) -> None:
        if mode != "fit":
            raise ConfigError(f"mode={mode!r} is not known; only 'fit' is, and it is the default")
        self._config_group = None
        if experiment_name is None or isinstance(experiment_name, int | float):
            raise ConfigError(
                f"experiment_name={experiment_name!r} cannot be used; it is a name, or a search or "
                "configuration to train"
            )
        if not isinstance(experiment_name, str):
            self._config_group, experiment_name = experiment_name, "experiment"
        self._root = experiments_root(experiment_path)
        self._name = experiment_name
        self._fit: Fit | None = None
        self._handle: FitHandle | None = None
        self._ended = False
        self._folder = self._claim()

    @property
    def name(self) -> str:
        """The experiment's name; numbered if the one asked for was taken."""
        return self._folder.name

    @property
    def path(self) -> Path:
        """Folder that holds all the experiment keeps."""
        return self._folder.path

    @classmethod
    def find(
        cls, experiment_name: str, experiment_path: str | os.PathLike[str] | None = None
    ) -> "Experiment":
        """The experiment of that name that was begun last, also one that has ended.

        Raises:
            ConfigError: There is none.
        """
        root = experiments_root(experiment_path)
        folder = ExperimentFolder.latest(root, experiment_name)
        if folder is None:
            raise ConfigError(f"there is no experiment {experiment_name!r} in {root}")
        return cls._of(folder)

    @classmethod
    def _of(cls, folder: ExperimentFolder) -> "Experiment":
        found = object.__new__(cls)
        found._config_group = None
        found._root, found._name, found._folder = folder.path.parent, folder.name, folder
        found._fit = found._handle = None
        found._ended = True
        return found

    def report(
        self,
        html: str | os.PathLike[str] | None = None,
        objective: str | None = None,
        *,
        console: "Console | None" = None,
    ) -> "Findings":
        """Rank the runs, and tell what was pruned when and why; also while they train.

        Args:
            html: Write a page with pictures there as well.
            objective: Such as "minimize:eval_loss"; None takes the evaluation's reward or loss if
                every run reports it, else the training's.
            console: Print there; None prints nothing.

        Raises:
            ConfigError: The objective cannot be used, or no run has finished a chunk.
        """
        from rapidfireai.report import as_html, find, show

        with closing(self._open_store()) as store:
            findings = find(store, objective)
        if console is not None:
            show(findings, console)
        if html is not None:
            Path(html).write_text(as_html(findings, SystemClock().now()), encoding="utf-8")
        return findings

    def run_fit(  # noqa: PLR0913 - the incumbent's users know these names
        self,
        config_group: Any = None,
        create_model: Callable[[dict[str, Any]], tuple[Any, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        num_chunks: int = 4,
        seed: int = 42,
        num_gpus: int = 1,
        *,
        model: str | os.PathLike[str] | None = None,
        create_trainer: Callable[[Mapping[str, Any], Any], Any] | None = None,
        background: bool = False,
        memory_limit_gib: float | None = None,
        host_memory_limit_gib: float | None = None,
        checkpoint_every_s: float = 60.0,
        tool_timeout_s: float | None = 300.0,
        policy: Any = None,
        trackers: Sequence[str | Settings | Listener] | None = None,
        fuse: str = "auto",
        fuse_generation: bool = False,
        **incumbent: Any,
    ) -> FitHandle | None:
        """Train all configurations side by side, chunk by chunk, until each has ended.

        A configuration that fails is marked so, and the others go on. Ctrl-C and SIGTERM write all
        runs down; a second Ctrl-C does not wait for the step to end. Called again with the same
        arguments, also by another process, what was interrupted or killed goes on and ends with the
        same numbers; runs that ended are not repeated.

        Args:
            config_group: A search over configurations, a configuration, or a list of these.
            create_model: Model configuration -> (model, tokenizer). Called once for each distinct
                base: what it reads of its argument decides which configurations share one. Without
                it models are loaded by name.
            train_dataset: `datasets.Dataset` or `IterableDataset`. Columns that TRL does not read
                are recognised if they are well known, or mapped by `formatting_func`.
            eval_dataset: Likewise, or a dictionary of these. Runs are evaluated on it at the end of
                each chunk.
            num_chunks: Chunks an epoch, or of the run if `max_steps` ends it before.
            seed: For every run that sets none.
            num_gpus: Devices of one run; 1.
            model: Name or path of the model for configurations that name none.
            create_trainer: (configuration, `TrainerContext`) -> `transformers.Trainer`, for
                trainers other than TRL's. Configurations may then be plain dictionaries.
            background: Return at once, once everything is checked and training begins.
            memory_limit_gib: GiB of device memory for what runs hold besides the base; paused runs
                beyond it move to host memory, or to disk. None: what the device has.
            host_memory_limit_gib: GiB of host memory for paused runs that had to leave the device;
                those beyond it go to disk. None: no limit.
            checkpoint_every_s: Seconds of a run's own training between two checkpoints, at least;
                more where writing one takes more than a fiftieth of that.
            tool_timeout_s: Seconds that one call of a tool, or of an environment's method, may
                take; a run whose tool takes longer fails. None: no limit.
            policy: What prunes, resumes and clones runs by what they measure at the ends of chunks:
                "auto" for the recommended one, a policy of `rapidfireai.policies` or of your own,
                or a list of these. None leaves every run to its end.
            trackers: Where the metrics go besides: names ("mlflow", "tensorboard", "trackio",
                "wandb"), their settings as `rapidfireai.tracking` has them, and listeners of your
                own, which are told of every event. None: what $RF_TRACKERS or config.toml in the
                home folder says, else MLflow if it is installed; [] for none. See docs/trackers.md.
            fuse: "auto" lets LoRA runs on one base share their passes through it where that is
                measured to be quicker, "on" wherever it can be, "off" nowhere; see docs/fused.md.
            fuse_generation: Whether fused runs also share the passes in which they generate texts,
                as GRPO and RLOO do: token by token, each run sampling by itself.
            incumbent: The names `param_config`, `create_model_fn` and `monte_carlo_simulations`,
                which scripts for RapidFire AI's own package use.

        Returns:
            None, or with `background` a handle.

        Raises:
            RapidFireError: Something given cannot work. Nothing has been trained.
            KeyboardInterrupt: Ctrl-C, after all runs have been saved.
        """
        check_not_launched()
        self._check_free()
        if not isinstance(background, bool):
            raise ConfigError(f"background={background!r} cannot be used; it is True or False")
        if num_gpus != 1:
            raise ConfigError(
                f"num_gpus={num_gpus!r}: a run trains on one device here; leave it out"
            )
        renamed = _renamed(incumbent, config_group=config_group, create_model=create_model)
        request = FitRequest(
            config_group=renamed["config_group"] or self._config_group,
            create_model=renamed["create_model"],
            create_trainer=create_trainer,
            model=model,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            num_chunks=num_chunks,
            seed=seed,
            memory_limit_gib=memory_limit_gib,
            host_memory_limit_gib=host_memory_limit_gib,
            checkpoint_every_s=checkpoint_every_s,
            tool_timeout_s=tool_timeout_s,
            policy=policy,
            trackers=trackers,
            fuse=fuse,
            fuse_generation=fuse_generation,
        )
        if self._folder.store.exists() and not _is_unfinished(self._folder):
            self._folder = self._claim()
        fit = self._fit = Fit(request, self._folder)
        if not background:
            fit.run(threading.Event())
            return None
        self._handle = FitHandle(fit, self.get_runs_info)
        return self._handle

    def get_results(self) -> "pd.DataFrame":
        """All metrics: a row for each run and step, a column for each metric.

        `loss` is the loss of that very step; `logged_loss` what the trainer logged, which is the
        average since its last log. `eval_*` come from the ends of chunks and from the run's own
        evaluations.
        """
        with closing(self._open_store()) as store:
            runs = {run.id for run in _shown(store)}
            return results_frame([row for row in store.metrics() if row.run_id in runs])

    def get_runs_info(self) -> "pd.DataFrame":
        """All runs: a row for each with status, progress, latest metrics, configuration, path.

        Deleted ones are not there.
        """
        with closing(self._open_store()) as store:
            return runs_frame(_shown(store), store.metrics())

    def best(self, metric: str = "eval_loss", mode: str | None = None) -> "pd.Series[Any]":
        """The row of `get_runs_info` whose latest value of the metric is best.

        Args:
            metric: A column of `get_runs_info`.
            mode: "min", "max", or None for what the metric's name suggests.

        Raises:
            ConfigError: No run has the metric.
        """
        return best_run(self.get_runs_info(), metric, mode)

    def stop(
        self, run: Any = None, *, where: str | None = None, reason: str = ""
    ) -> list[CommandRecord]:
        """End runs where they are. What they learned is kept, and they can be resumed.

        As for all verbs here: a run that trains is reached at its next step, by whichever process
        trains it. Where none does, the command is carried out at once.

        Args:
            run: Number of a run, or several; a row or the table of `get_runs_info` will do.
            where: Instead of `run`: a condition that chooses the runs, such as
                `"eval_loss > 3 and status == 'waiting'"`, over their state, knobs and metrics.
            reason: Stored with the command and the run.

        Returns:
            What became of the command, for each run.

        Raises:
            ConfigError: The runs are not given, or given twice; the condition cannot be read.
            CommandRejectedError: It is impossible, or too late, for one of them; the others are
                done.
        """
        return self._command(Verb.STOP, run, where, reason=reason)

    def resume(
        self, run: Any = None, *, where: str | None = None, reason: str = ""
    ) -> list[CommandRecord]:
        """Let stopped, pruned or failed runs go on where they are, bit for bit; as `stop`.

        Where nothing trains the experiment, they go on when the script is run again.
        """
        return self._command(Verb.RESUME, run, where, reason=reason)

    def prune(
        self, run: Any = None, *, where: str | None = None, reason: str
    ) -> list[CommandRecord]:
        """Stop runs as not promising; as `stop`. `resume` takes it back."""
        return self._command(Verb.PRUNE, run, where, reason=reason)

    def delete(
        self, run: Any = None, *, where: str | None = None, reason: str = ""
    ) -> list[CommandRecord]:
        """Remove runs, and ten minutes later their files; as `stop`. `restore` takes it back."""
        return self._command(Verb.DELETE, run, where, reason=reason)

    def restore(
        self, run: Any = None, *, where: str | None = None, reason: str = ""
    ) -> list[CommandRecord]:
        """Have deleted runs back as they were; as `stop`."""
        return self._command(Verb.RESTORE, run, where, reason=reason)

    def pin(
        self, run: Any = None, *, where: str | None = None, reason: str = ""
    ) -> list[CommandRecord]:
        """Protect runs from being pruned, by policies above all, and deleted; as `stop`."""
        return self._command(Verb.PIN, run, where, reason=reason)

    def unpin(
        self, run: Any = None, *, where: str | None = None, reason: str = ""
    ) -> list[CommandRecord]:
        """End the protection of `pin`; as `stop`."""
        return self._command(Verb.UNPIN, run, where, reason=reason)

    def clone(  # noqa: PLR0913 - what a clone consists of
        self,
        run: Any = None,
        modify: Mapping[str, Any] | None = None,
        *,
        where: str | None = None,
        warm_start: bool = False,
        optimizer: str = "keep",
        schedule: str = "continue",
        reason: str = "",
    ) -> list[CommandRecord]:
        """Make new runs out of old ones, with some knobs changed; as `stop`.

        A clone inherits its parent's functions and data. Where nothing trains the experiment, it
        is made when the script is run again.

        Args:
            run: Number of a run, or several.
            where: Instead of `run`: a condition that chooses the runs.
            modify: Knobs of the configuration, such as `learning_rate` or `lora_rank`, and their
                new values: numbers, strings, booleans, lists or None.
            warm_start: Begin with the parent's weights and progress instead of from the start.
            optimizer: With a warm start, "keep" the optimizer's state or "reset" it.
            schedule: With a warm start, "continue" the learning rate's schedule or "restart" it.
            reason: Stored with the command.

        Returns:
            What became of the command, for each run; `new_run_id` is the clone's number.

        Raises:
            CommandRejectedError: A knob or value is not possible, or there is nothing to start
                from.
        """
        return self._command(
            Verb.CLONE,
            run,
            where,
            modify=dict(modify or {}),
            warm_start=warm_start,
            optimizer=_choice("optimizer", optimizer, OptimizerState),
            schedule=_choice("schedule", schedule, Schedule),
            reason=reason,
        )

    def export(
        self,
        run: Any,
        folder: str | os.PathLike[str],
        merge: bool = False,
        *,
        base: str | os.PathLike[str] | None = None,
    ) -> Path:
        """Write a run's model to a folder of its own, which plain `from_pretrained` loads.

        It holds model or adapter, tokenizer, trainer state and configuration: as the run ended,
        or as the latest checkpoint of one that goes on has them.

        Args:
            run: Number of a run, or a row of `get_runs_info`.
            folder: New or empty; appears as a whole or not at all.
            merge: Write the full model, with the adapter in its weights.
            base: For `merge`: name or path of the base, if the adapter does not say.

        Returns:
            The folder.

        Raises:
            ConfigError: There is no such run, nothing of it is on disk, or it cannot be merged.
            ExperimentPathError: The folder cannot be written.
        """
        run_id, *others = run_ids(run)
        if others:
            raise ConfigError(f"run={run!r} names several runs; export one at a time")
        target = Path(folder).expanduser().absolute()
        given = None if base is None else os.fspath(base)
        export_run(self._folder, run_id, target, merge=merge, base=given)
        return target

    def get_commands(self) -> "pd.DataFrame":
        """All commands: who asked for what, when, why, and what became of it."""
        with closing(self._open_store()) as store:
            return commands_frame(store.commands())

    def _command(
        self, verb: Verb, run: Any, where: str | None, **further: Any
    ) -> list[CommandRecord]:
        if (run is None) is (where is None):
            raise ConfigError(
                f"{verb} takes either run=..., a number or several, or where=..., a condition"
            )
        if where is None:
            chosen = run_ids(run)
        else:
            with closing(open_store(self._folder)) as store:
                chosen = select(where, store, deleted=verb is Verb.RESTORE)
        commands = [Command(verb=verb, run_id=run_id, **further) for run_id in chosen]
        # The thread that trains cannot wait for itself, as in a callback of the user's.
        waits = self._fit is None or threading.get_ident() != self._fit.thread_id
        settled = give(self._folder, commands, wait_s=WAIT_S if waits else 0.0)
        rejected = [one.outcome for one in settled if one.status is CommandStatus.REJECTED]
        if rejected:
            raise CommandRejectedError("; ".join(rejected))
        return settled

    def get_log_file_path(self) -> Path:
        """The experiment's log."""
        return self._folder.log

    def cancel_current(self) -> None:
        """Save and stop all runs of a `run_fit` in the background. Nothing to do without one."""
        if self._handle is not None:
            self._handle.cancel()

    def end(self) -> None:
        """Close the experiment, stopping what trains in the background; results stay readable.

        Idempotent.
        """
        self.cancel_current()
        self._ended = True

    def _claim(self) -> ExperimentFolder:
        latest = ExperimentFolder.latest(self._root, self._name)
        if latest is not None and _is_unfinished(latest):
            return latest
        folder = ExperimentFolder.claim(self._root, self._name)
        if folder.name != self._name:
            with experiment_log(folder):
                logger.info(
                    "the experiment %r has ended already: this one is %r", self._name, folder.name
                )
        return folder

    def _open_store(self) -> SqliteStore:
        if not self._folder.store.exists():
            raise ConfigError(
                f"the experiment {self.name!r} has no results yet; call run_fit(...) first"
            )
        return SqliteStore(self._folder.store)

    def _check_free(self) -> None:
        if self._ended:
            raise ConfigError(
                f"the experiment {self.name!r} has been ended; make a new Experiment(...)"
            )
        if self._handle is not None and not self._handle.done:
            raise ConfigError(
                f"the experiment {self.name!r} trains in the background; wait for it with "
                "handle.wait(), or handle.cancel() it"
            )


C = TypeVar("C", bound=StrEnum)


def _choice(name: str, given: str, choices: type[C]) -> C:
    try:
        return choices(given)
    except ValueError:
        allowed = " or ".join(repr(choice.value) for choice in choices)
        raise ConfigError(f"{name}={given!r} is not known; it is {allowed}") from None


def _shown(store: SqliteStore) -> list[Run]:
    return [run for run in store.runs() if run.status is not RunStatus.DELETED]


def _is_unfinished(folder: ExperimentFolder) -> bool:
    with closing(SqliteStore(folder.store)) as store:
        if any(run.unfinished for run in store.runs()) or leads_on(store):
            return True
    if not folder.study.exists():
        return False
    from rapidfireai.automl.optuna_search import is_open

    # Its process may have been killed after a run's end, before the next one was proposed.
    return is_open(folder.study)


_INCUMBENT_NAMES = {"param_config": "config_group", "create_model_fn": "create_model"}
_INCUMBENT_IGNORED = {
    "monte_carlo_simulations": "the scheduler simulates nothing",
}


def _renamed(incumbent: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """The arguments after the incumbent's names have been translated.

    Raises:
        ConfigError: A name is not known, or says the same as another.
    """
    for name, value in incumbent.items():
        if name in _INCUMBENT_IGNORED:
            logger.info("%s=%r has no effect: %s", name, value, _INCUMBENT_IGNORED[name])
            continue
        if name not in _INCUMBENT_NAMES:
            raise UnknownArgumentError(f"run_fit has no argument {name!r}; see help(run_fit)")
        ours = _INCUMBENT_NAMES[name]
        if given[ours] is not None:
            raise ConfigError(f"{name} and {ours} mean the same; give one of them")
        given[ours] = value
    return given
