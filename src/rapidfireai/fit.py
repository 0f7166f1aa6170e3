"""One call of `run_fit`: from the user's arguments to trained runs."""

import importlib.metadata
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rapidfireai._version import __version__
from rapidfireai.core.clock import SystemClock
from rapidfireai.core.engine import Engine, Listener
from rapidfireai.core.ids import RunId
from rapidfireai.core.policy import Policy
from rapidfireai.core.run import Run
from rapidfireai.errors import ConfigError
from rapidfireai.paths import ExperimentFolder
from rapidfireai.progress import ProgressLines
from rapidfireai.store import ExperimentRecord, Recorder, SqliteStore

if TYPE_CHECKING:
    import torch

    from rapidfireai.training.config import RunConfig
    from rapidfireai.training.workload import TrainingWorkload

logger = logging.getLogger(__name__)

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
_GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class FitRequest:
    """What the user asks for; see `Experiment.run_fit`.

    Raises:
        ConfigError: A value cannot be used.
    """

    config_group: Any
    create_model: Callable[[dict[str, Any]], tuple[Any, Any]] | None
    create_trainer: Callable[[Mapping[str, Any], Any], Any] | None
    model: str | os.PathLike[str] | None
    train_dataset: Any
    eval_dataset: Any
    num_chunks: int
    seed: int
    memory_limit_gib: float | None
    host_memory_limit_gib: float | None
    policies: Sequence[Policy]
    trackers: Sequence[Listener]

    def __post_init__(self) -> None:
        if self.config_group is None:
            raise ConfigError(
                "there is nothing to train: give run_fit(config_group, ...) a search such as "
                "RFGridSearch([...]), or a configuration"
            )
        if self.train_dataset is None:
            raise ConfigError(
                "train_dataset is missing: give run_fit(train_dataset=...) a datasets.Dataset"
            )
        _check_integer("num_chunks", self.num_chunks, least=1)
        _check_integer("seed", self.seed, least=0)
        for name in ("memory_limit_gib", "host_memory_limit_gib"):
            _check_size(name, getattr(self, name))
        for name, takes in (
            ("create_model", "the model configuration and returns (model, tokenizer)"),
            ("create_trainer", "(config, context) and returns a transformers.Trainer"),
        ):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} has to be a function that takes {takes}"
                )
        for name, method in (("policies", "on_chunk"), ("trackers", "on_event")):
            for item in getattr(self, name):
                if not callable(getattr(item, method, None)):
                    raise ConfigError(
                        f"{name} holds {item!r}, which has no method {method}(); see "
                        f"rapidfireai.core for what one needs"
                    )


class Fit:
    """Checks a request, then trains it.

    Args:
        request: What to train.
        folder: The experiment's, without a store.

    Raises:
        RapidFireError: Something given cannot work; nothing has been trained.
    """

    def __init__(self, request: FitRequest, folder: ExperimentFolder) -> None:
        self._request = request
        self._folder = folder
        with self._surroundings():
            self._runs, self._workload, self._device = self._plan()
            self._workload.prepare()
            self._create_store()

    def run(self, cancelled: threading.Event) -> None:
        """Train until every run has ended.

        Args:
            cancelled: Once set, all runs are saved and stopped.

        Raises:
            KeyboardInterrupt: Ctrl-C, after all runs have been saved and stopped.
        """
        from rapidfireai.workers.in_process import InProcessExecutor

        logger.info(
            "experiment %r: %d configurations on %s; all is kept in %s",
            self._folder.name,
            len(self._runs),
            self._device,
            self._folder.path,
        )
        with (
            self._surroundings(),
            closing(SqliteStore(self._folder.store)) as store,
            closing(InProcessExecutor(self._workload, self._memory())) as executor,
        ):
            recorder = Recorder(store, SystemClock())
            engine = Engine(
                self._runs,
                executor,
                recorder,
                [ProgressLines(), *self._request.trackers],
                self._request.policies,
            )
            try:
                while not engine.ended:
                    if cancelled.is_set():
                        engine.stop([run.id for run in self._runs], "cancelled by the user")
                    else:
                        engine.step()
            except KeyboardInterrupt:
                logger.warning("interrupted: saving all runs")
                engine.stop([run.id for run in self._runs], "interrupted by the user")
                raise
            finally:
                recorder.flush()

    def _plan(self) -> "tuple[list[Run], TrainingWorkload, torch.device]":
        from rapidfireai.training.build import RunSpec
        from rapidfireai.training.loading import load_by_name
        from rapidfireai.training.workload import (
            Makers,
            TrainingData,
            TrainingWorkload,
            default_device,
        )

        request, folder = self._request, self._folder
        device = default_device()
        specs = [
            RunSpec(
                run_id=RunId(number),
                config=config,
                folder=folder.run(RunId(number)),
                final=folder.final(RunId(number)),
                default_seed=request.seed,
                num_chunks=request.num_chunks,
                device=device,
            )
            for number, config in enumerate(self._configs(), start=1)
        ]
        workload = TrainingWorkload(
            specs,
            Makers(
                create_model=request.create_model or load_by_name,
                create_trainer=request.create_trainer,
            ),
            TrainingData(train=request.train_dataset, eval=request.eval_dataset),
            folder=folder.data,
            device=device,
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
        return runs, workload, device

    def _configs(self) -> "list[RunConfig]":
        from rapidfireai.automl.search import as_run_configs

        request = self._request
        custom = request.create_trainer is not None
        configs = as_run_configs(request.config_group, request.seed, custom=custom)
        if request.model is None:
            return configs
        name = os.fspath(request.model)
        return [
            config
            if config.model.get("model_name")
            else replace(config, model={**config.model, "model_name": name})
            for config in configs
        ]

    def _create_store(self) -> None:
        request, clock = self._request, SystemClock()
        record = ExperimentRecord(
            name=self._folder.name,
            created_s=clock.now(),
            seed=request.seed,
            num_chunks=request.num_chunks,
            versions={
                "rapidfireai": __version__,
                **{library: importlib.metadata.version(library) for library in _LIBRARIES},
            },
            settings={"device": str(self._device)},
        )
        with closing(SqliteStore(self._folder.store)) as store:
            store.create(record, self._runs)

    def _memory(self) -> Any:
        from rapidfireai.workers.memory import MemoryTiers

        request = self._request
        return MemoryTiers(
            self._device,
            self._folder.path / "paused",
            hot_limit_bytes=_bytes(request.memory_limit_gib),
            warm_limit_bytes=_bytes(request.host_memory_limit_gib),
        )

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        with experiment_log(self._folder), _quiet_libraries():
            yield


class FitHandle:
    """A `run_fit` that goes on in the background.

    Training draws from the process's random generators. Code that draws from them as well while
    it goes on, in another cell or thread, is not kept apart from it.
    """

    def __init__(self, fit: Fit, status: Callable[[], Any]) -> None:
        self._fit = fit
        self._status = status
        self._cancelled = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="rapidfireai-fit", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether every run has ended."""
        return not self._thread.is_alive()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until every run has ended.

        Args:
            timeout_s: None waits as long as it takes.

        Returns:
            Whether every run has ended.

        Raises:
            Exception: What ended the training before its time; a failing run is none.
        """
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error
        return self.done

    def status(self) -> Any:
        """All runs as they are now; the table of `Experiment.get_runs_info`."""
        return self._status()

    def cancel(self) -> None:
        """Save and stop all runs, and wait for that. Idempotent."""
        self._cancelled.set()
        self.wait()

    def _run(self) -> None:
        try:
            self._fit.run(self._cancelled)
        except BaseException as error:  # noqa: BLE001 - raised by wait()
            self._error = error


@contextmanager
def experiment_log(folder: ExperimentFolder) -> Iterator[None]:
    """Send the package's messages to the experiment's log, and to the screen unless the
    application has set logging up by itself."""
    package = logging.getLogger("rapidfireai")
    handlers: list[logging.Handler] = [logging.FileHandler(folder.log, delay=True)]
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


def _check_size(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, int | float) or value < 0):
        raise ConfigError(f"{name}={value!r} cannot be used; it has to be a number >= 0, or None")


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else round(gib * _GIB)
