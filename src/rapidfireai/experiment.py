"""The facade: what a user makes, starts and asks for results."""

import importlib.metadata
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidfireai._version import __version__
from rapidfireai.core.clock import SystemClock
from rapidfireai.core.engine import Engine
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.errors import ConfigError
from rapidfireai.paths import ExperimentFolder, experiments_root
from rapidfireai.progress import ProgressLines
from rapidfireai.results import best_run, results_frame, runs_frame
from rapidfireai.store import ExperimentRecord, Recorder, SqliteStore, Store

if TYPE_CHECKING:
    import pandas as pd

    from rapidfireai.training.workload import TrainingWorkload

logger = logging.getLogger(__name__)

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


class Experiment:
    """N configurations, trained at once and compared.

    Args:
        experiment_name: Names the folder that everything is kept in. If there is one of that name,
            the new one gets a number, and the log says so.
        mode: "fit". Accepted so that existing scripts run; there is nothing to choose.
        experiment_path: Folder of all experiments. Default: $RF_EXPERIMENT_PATH, or
            `rapidfire_experiments` below $RF_HOME (~/rapidfireai).

    Raises:
        ConfigError: The name or the mode cannot be used.
        ExperimentPathError: The folder cannot be written.
    """

    def __init__(
        self,
        experiment_name: str,
        mode: str = "fit",
        experiment_path: str | os.PathLike[str] | None = None,
    ) -> None:
        if mode != "fit":
            raise ConfigError(f"mode={mode!r} is not known; only 'fit' is, and it is the default")
        self._root = experiments_root(experiment_path)
        self._name = experiment_name
        self._folder = ExperimentFolder.claim(self._root, experiment_name)
        self._store: Store | None = None
        self._ended = False
        with self._logging():
            if self.name != experiment_name:
                logger.info(
                    "there is an experiment named %r already: this one is %r",
                    experiment_name,
                    self.name,
                )

    @property
    def name(self) -> str:
        """The experiment's name; numbered if the one asked for was taken."""
        return self._folder.name

    @property
    def path(self) -> Path:
        """Folder that holds all the experiment keeps."""
        return self._folder.path

    def run_fit(
        self,
        config_group: Any,
        create_model: Callable[[dict[str, Any]], tuple[Any, Any]],
        train_dataset: Any,
        eval_dataset: Any = None,
        num_chunks: int = 4,
        seed: int = 42,
    ) -> None:
        """Train all configurations by turns, chunk by chunk, until each has ended.

        A configuration that fails is marked so, and the others go on. Ctrl-C saves and stops all;
        a second Ctrl-C does not wait for the step to end.

        Args:
            config_group: A search over configurations, a configuration, or a list of these.
            create_model: Model configuration -> (model, tokenizer). Called once for each distinct
                base: what it reads of its argument decides which configurations share one.
            train_dataset: `datasets.Dataset` or `IterableDataset`. Columns that TRL does not read
                are recognised if they are well known, or mapped by `formatting_func`.
            eval_dataset: Likewise, or a dictionary of these. Runs are evaluated on it at the end of
                each chunk.
            num_chunks: Chunks an epoch, or of the run if `max_steps` ends it before.
            seed: For every run that sets none.

        Raises:
            RapidFireError: Something given cannot work. Nothing has been trained.
            KeyboardInterrupt: Ctrl-C, after all runs have been saved.
        """
        self._check_open()
        if self._store is not None:
            self._folder = ExperimentFolder.claim(self._root, self._name)
            self._store.close()
            self._store = None
        with self._logging(), _quiet_libraries():
            _check_integer("num_chunks", num_chunks, least=1)
            _check_integer("seed", seed, least=0)
            if not callable(create_model):
                raise ConfigError(
                    f"create_model={create_model!r} has to be a function that takes the model "
                    "configuration and returns (model, tokenizer)"
                )
            runs, workload = self._plan(
                config_group, create_model, train_dataset, eval_dataset, num_chunks, seed
            )
            workload.prepare()
            self._store = SqliteStore(self._folder.store)
            clock = SystemClock()
            self._store.create(
                ExperimentRecord(
                    name=self.name,
                    created_s=clock.now(),
                    seed=seed,
                    num_chunks=num_chunks,
                    versions=_versions(),
                    settings={"device": str(workload.device)},
                ),
                runs,
            )
            self._train(runs, workload, Recorder(self._store, clock))

    def get_results(self) -> "pd.DataFrame":
        """All metrics: a row for each run and step, a column for each metric.

        `loss` is the loss of that very step; `logged_loss` what the trainer logged, which is the
        average since its last log. `eval_*` come from the ends of chunks and from the run's own
        evaluations.
        """
        return results_frame(self._open_store().metrics())

    def get_runs_info(self) -> "pd.DataFrame":
        """All runs: a row for each with status, progress, latest metrics, configuration, path."""
        store = self._open_store()
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

    def end(self) -> None:
        """Close the experiment; its results stay readable. Idempotent."""
        self._ended = True

    def _plan(
        self,
        config_group: Any,
        create_model: Any,
        train_dataset: Any,
        eval_dataset: Any,
        num_chunks: int,
        seed: int,
    ) -> tuple[list[Run], "TrainingWorkload"]:
        from rapidfireai.automl.search import as_run_configs
        from rapidfireai.training.workload import (
            RunSpec,
            TrainingData,
            TrainingWorkload,
            default_device,
        )

        configs = as_run_configs(config_group, seed)
        specs = [
            RunSpec(
                run_id=RunId(number),
                config=config,
                folder=self._folder.run(RunId(number)),
                final=self._folder.final(RunId(number)),
            )
            for number, config in enumerate(configs, start=1)
        ]
        workload = TrainingWorkload(
            specs,
            create_model,
            TrainingData(train=train_dataset, eval=eval_dataset),
            num_chunks=num_chunks,
            seed=seed,
            folder=self._folder.data,
            device=default_device(),
        )
        runs = [
            Run(
                id=spec.run_id,
                name=f"run-{spec.run_id}",
                config=spec.config.to_json(),
                path=str(spec.final),
            )
            for spec in specs
        ]
        return runs, workload

    def _train(self, runs: list[Run], workload: "TrainingWorkload", recorder: Recorder) -> None:
        from rapidfireai.workers.in_process import InProcessExecutor

        logger.info(
            "experiment %r: %d configurations on %s, %s",
            self.name,
            len(runs),
            workload.device,
            self.path,
        )
        with closing(InProcessExecutor(workload)) as executor:
            engine = Engine(runs, executor, recorder, [ProgressLines()])
            try:
                engine.run()
            except KeyboardInterrupt:
                logger.warning("interrupted: saving all runs")
                engine.stop([run.id for run in runs], "interrupted by the user")
                raise
            finally:
                recorder.flush()

    def _open_store(self) -> Store:
        if self._store is None:
            raise ConfigError(
                f"the experiment {self.name!r} has no results yet; call run_fit(...) first"
            )
        return self._store

    def _check_open(self) -> None:
        if self._ended:
            raise ConfigError(
                f"the experiment {self.name!r} has been ended; make a new Experiment(...)"
            )

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """Send the package's messages to the experiment's log, and to the screen unless the
        application has set logging up by itself."""
        package = logging.getLogger("rapidfireai")
        handlers: list[logging.Handler] = [logging.FileHandler(self._folder.log, delay=True)]
        handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        if not logging.getLogger().handlers and not package.handlers:
            handlers.append(logging.StreamHandler())
            handlers[1].setFormatter(logging.Formatter("%(message)s"))
        level = package.level
        if package.getEffectiveLevel() > logging.INFO:
            package.setLevel(logging.INFO)
        for handler in handlers:
            package.addHandler(handler)
        try:
            yield
        finally:
            package.setLevel(level)
            for handler in handlers:
                package.removeHandler(handler)
                handler.close()


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Progress bars of libraries off and `Dataset.map`'s cache on, as long as runs train."""
    import datasets
    import transformers

    bars = datasets.are_progress_bars_disabled()
    transformers_bars = transformers.logging.is_progress_bar_enabled()
    caching = datasets.is_caching_enabled()
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    datasets.enable_caching()
    try:
        yield
    finally:
        if not bars:
            datasets.enable_progress_bars()
        if transformers_bars:
            transformers.logging.enable_progress_bar()
        if not caching:
            datasets.disable_caching()


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value!r} cannot be used; it has to be an integer >= {least}")


def _versions() -> dict[str, str]:
    versions = {library: importlib.metadata.version(library) for library in _LIBRARIES}
    return {"rapidfireai": __version__, **versions}
