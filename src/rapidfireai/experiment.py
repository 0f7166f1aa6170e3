"""The facade: what a user makes, starts and asks for results."""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidfireai.background import FitHandle
from rapidfireai.core.engine import Listener
from rapidfireai.core.policy import Policy
from rapidfireai.errors import ConfigError, UnknownArgumentError
from rapidfireai.fit import Fit, FitRequest
from rapidfireai.paths import ExperimentFolder, experiments_root
from rapidfireai.results import best_run, results_frame, runs_frame
from rapidfireai.store import SqliteStore
from rapidfireai.surroundings import experiment_log

if TYPE_CHECKING:
    import pandas as pd

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
        ConfigError: The name or the mode cannot be used.
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
        policies: Sequence[Policy] = (),
        trackers: Sequence[Listener] = (),
        fuse: str = "off",
        **incumbent: Any,
    ) -> FitHandle | None:
        """Train all configurations by turns, chunk by chunk, until each has ended.

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
            policies: Asked at each chunk's end which runs to stop.
            trackers: Told of every event.
            fuse: "on" lets LoRA runs on one base share their passes through it, which saves work
                where their batches are small; see docs/fused.md. "off" trains by turns only.
            incumbent: The names `param_config`, `create_model_fn` and `monte_carlo_simulations`,
                which scripts for RapidFire AI's own package use.

        Returns:
            None, or with `background` a handle.

        Raises:
            RapidFireError: Something given cannot work. Nothing has been trained.
            KeyboardInterrupt: Ctrl-C, after all runs have been saved.
        """
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
            policies=policies,
            trackers=trackers,
            fuse=fuse,
        )
        if self._folder.store.exists() and not _is_unfinished(self._folder):
            self._folder = self._claim()
        fit = Fit(request, self._folder)
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
            return results_frame(store.metrics())

    def get_runs_info(self) -> "pd.DataFrame":
        """All runs: a row for each with status, progress, latest metrics, configuration, path."""
        with closing(self._open_store()) as store:
            return runs_frame(store.runs(), store.metrics())

    def best(self, metric: str = "eval_loss", mode: str | None = None) -> "pd.Series[Any]":
        """The row of `get_runs_info` whose latest value of the metric is best.

        Args:
            metric: A column of `get_runs_info`.
            mode: "min", "max", or None for what the metric's name suggests.

        Raises:
            ConfigError: No run has the metric.
        """
        return best_run(self.get_runs_info(), metric, mode)

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


def _is_unfinished(folder: ExperimentFolder) -> bool:
    with closing(SqliteStore(folder.store)) as store:
        return any(run.unfinished for run in store.runs())


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
