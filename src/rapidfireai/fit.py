"""One call of `run_fit`: from the user's arguments to trained runs."""

import importlib.metadata
import logging
import math
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidfireai._version import __version__
from rapidfireai.automl.schemas import schemas_of
from rapidfireai.control import purge_expired
from rapidfireai.core.clock import SystemClock
from rapidfireai.core.continuation import Continuation, match_runs
from rapidfireai.core.engine import Engine, Listener
from rapidfireai.core.events import RunRecovered, RunStopped
from rapidfireai.core.ids import RunId
from rapidfireai.core.policy import Policy
from rapidfireai.core.run import Run, RunStatus, apply
from rapidfireai.errors import ConfigError
from rapidfireai.faults import reach
from rapidfireai.live import progress_view
from rapidfireai.paths import ExperimentFolder, home
from rapidfireai.preparation import ScriptPreparer, SpecBook
from rapidfireai.server.home import running
from rapidfireai.store import ExperimentRecord, PatientStore, Recorder, Room, SqliteStore, Store
from rapidfireai.surroundings import (
    EndAtOnce,
    Ending,
    experiment_log,
    old_objects_set_aside,
    quiet_libraries,
)

if TYPE_CHECKING:
    from rapidfireai.training.build import RunSpec
    from rapidfireai.training.config import RunConfig
    from rapidfireai.training.workload import TrainingWorkload
    from rapidfireai.workers.memory import MemoryTiers

logger = logging.getLogger(__name__)

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
_GIB = 2**30

_LOCK_WAIT_S = 1.0
_SWEEP_S = 30.0
"""Seconds between two looks for deleted runs that cannot be restored any more."""


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
    checkpoint_every_s: float
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
        for name in ("memory_limit_gib", "host_memory_limit_gib", "checkpoint_every_s"):
            _check_size(name, getattr(self, name))
        for name, takes in (
            ("create_model", "the model configuration and returns (model, tokenizer)"),
            ("create_trainer", "(config, context) and returns a transformers.Trainer"),
        ):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} has to be a function that takes {takes}"
                )
        self._check_values()
        self._check_hooks()

    def _check_values(self) -> None:
        if self.checkpoint_every_s is None:
            raise ConfigError("checkpoint_every_s=None cannot be used; it has to be a number >= 0")
        if self.model is not None and not isinstance(self.model, str | os.PathLike):
            raise ConfigError(f"model={self.model!r} cannot be used; it has to be a name or a path")
        if isinstance(self.eval_dataset, Mapping) and not (
            self.eval_dataset and all(isinstance(name, str) for name in self.eval_dataset)
        ):
            raise ConfigError(
                f"eval_dataset={self.eval_dataset!r} cannot be used; a dictionary has to hold at "
                "least one dataset, by name"
            )

    def _check_hooks(self) -> None:
        for name, method in (("policies", "on_chunk"), ("trackers", "on_event")):
            if not isinstance(getattr(self, name), list | tuple):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} cannot be used; it has to be a list"
                )
            for item in getattr(self, name):
                if not callable(getattr(item, method, None)):
                    raise ConfigError(
                        f"{name} holds {item!r}, which has no method {method}(); see "
                        f"rapidfireai.core for what one needs"
                    )


class Fit:
    """Checks a request, then trains it; goes on where an earlier process ended.

    Args:
        request: What to train.
        folder: The experiment's; with a store, its runs are taken up again.

    Raises:
        RapidFireError: Something given cannot work; nothing has been trained.
    """

    def __init__(self, request: FitRequest, folder: ExperimentFolder) -> None:
        from rapidfireai.training.workload import default_device

        self.thread_id: int | None = None
        """Of the thread that trains; None while none does."""
        self._request = request
        self._folder = folder
        self._device = default_device()
        self._ending = Ending()
        self._clock = SystemClock()
        self._next_sweep_s = 0.0
        self._room = Room(lambda: self._ending.is_asked_for)
        with ExitStack() as stack:
            stack.enter_context(folder.locked(wait_s=_LOCK_WAIT_S))
            stack.enter_context(experiment_log(folder))
            stack.enter_context(quiet_libraries())
            # Prepared data of an earlier process may be half-written.
            shutil.rmtree(folder.data, ignore_errors=True)
            specs, continuation = self._plan()
            self._workload = self._make_workload(specs, continuation)
            self._workload.prepare()
            self._schemas = schemas_of(spec.config for spec in specs)
            self._runs = self._store_runs(specs, continuation)
            logger.info(
                "experiment %r: %d configurations on %s; all is kept in %s",
                folder.name,
                len(self._runs),
                self._device,
                folder.path,
            )
            _tell_of_server(folder)
            # Held until the training is over.
            self._held = stack.pop_all()

    def run(self, cancelled: threading.Event) -> None:
        """Train until every run has ended.

        Args:
            cancelled: Once set, all runs are saved and stopped.

        Raises:
            KeyboardInterrupt: Ctrl-C, after all runs have been written down.
            SystemExit: SIGTERM, likewise.
        """
        from rapidfireai.workers.in_process import InProcessExecutor
        from rapidfireai.workers.process_state import Isolated
        from rapidfireai.workers.telemetry import DeviceMonitor

        executor = InProcessExecutor(self._workload, self._memory(), DeviceMonitor(self._device))
        with (
            self._held,
            old_objects_set_aside(),
            closing(PatientStore(self._folder.store, self._room)) as store,
            closing(executor),
            progress_view(self._runs, store.metrics()) as view,
        ):
            recorder = Recorder(store, self._clock)
            engine = Engine(
                self._runs,
                executor,
                recorder,
                [view, *map(Isolated, self._request.trackers)],
                self._request.policies,
                ScriptPreparer(self._book, self._workload, self._schemas),
            )
            self.thread_id = threading.get_ident()
            try:
                self._drive(engine, cancelled)
            finally:
                self.thread_id = None
                recorder.flush()

    def _drive(self, engine: Engine, cancelled: threading.Event) -> None:
        ending = self._ending
        try:
            with ending.heeding_signals():
                try:
                    while not (self._is_done(engine) or ending.is_asked_for):
                        if cancelled.is_set():
                            engine.stop([run.id for run in engine.runs], "cancelled by the user")
                        else:
                            engine.step()
                        self._sweep(engine)
                except KeyboardInterrupt:  # not from a signal of ours
                    ending.ask()
                if not engine.ended:
                    logger.warning("interrupted: writing all runs down")
                    engine.interrupt("interrupted by the user")
                    logger.warning("run the same script again to go on where they are")
        except EndAtOnce:
            logger.warning("left at once; the same script again goes on from the last checkpoints")
        if ending.is_asked_for:
            raise ending.error()

    def _is_done(self, engine: Engine) -> bool:
        """Whether nothing is left to train, also after what was asked for in the last step."""
        if engine.ended:
            engine.heed_commands()
        return engine.ended

    def _sweep(self, engine: Engine) -> None:
        """Now and then remove what deleted runs have left behind."""
        now_s = self._clock.now()
        if now_s >= self._next_sweep_s:
            self._next_sweep_s = now_s + _SWEEP_S
            for run_id in purge_expired(self._folder, engine.runs, now_s):
                engine.purge(run_id)

    def end_soon(self) -> None:
        """Have all runs written down after the step in progress, as Ctrl-C does. Any thread may."""
        self._ending.ask()

    def _plan(self) -> "tuple[list[RunSpec], Continuation]":
        """What to run, under the numbers that earlier processes gave it."""
        from rapidfireai.training.build import RunSpec
        from rapidfireai.training.identity import digest, run_identity

        request, folder = self._request, self._folder
        configs = self._configs()
        surroundings = {
            name: digest(getattr(request, name))
            for name in ("create_model", "create_trainer", "train_dataset", "eval_dataset", "seed")
        }
        identities = [run_identity(config, surroundings) for config in configs]
        stored = self._stored_runs()
        originals = [run for run in stored if run.parent_id is None]
        continuation = match_runs(originals, identities)
        numbers = count(1 + max((run.id for run in stored), default=0))
        specs = []
        for config, identity, known in zip(configs, identities, continuation.known, strict=True):
            run_id = RunId(next(numbers)) if known is None else known.id
            specs.append(
                RunSpec(
                    run_id=run_id,
                    config=config,
                    identity=identity,
                    folder=folder.run(run_id),
                    final=folder.final(run_id),
                    default_seed=request.seed,
                    num_chunks=request.num_chunks,
                    device=self._device,
                    checkpoint_every_s=request.checkpoint_every_s,
                )
            )
        self._book = SpecBook(specs, folder)
        clones = [run for run in stored if run.parent_id is not None]
        inherited = self._book.add_stored(clones)
        return (
            [*specs, *(spec for spec in inherited if spec is not None)],
            continuation.with_clones(clones, [spec is not None for spec in inherited]),
        )

    def _make_workload(
        self, specs: "list[RunSpec]", continuation: "Continuation"
    ) -> "TrainingWorkload":
        from rapidfireai.training.loading import load_by_name
        from rapidfireai.training.workload import Makers, TrainingData, TrainingWorkload

        request = self._request
        return TrainingWorkload(
            [
                spec
                for spec, known in zip(specs, continuation.known, strict=True)
                if known is None or known.unfinished
            ],
            Makers(
                create_model=request.create_model or load_by_name,
                create_trainer=request.create_trainer,
            ),
            TrainingData(train=request.train_dataset, eval=request.eval_dataset),
            folder=self._folder.data,
            device=self._device,
            room=self._room,
        )

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

    def _stored_runs(self) -> list[Run]:
        if not self._folder.store.exists():
            return []
        with closing(SqliteStore(self._folder.store)) as store:
            return store.runs()

    def _store_runs(self, specs: "list[RunSpec]", continuation: Continuation) -> list[Run]:
        """Bring the store to where this process begins, and return all runs."""
        new = [
            Run(
                id=spec.run_id,
                name=f"run-{spec.run_id}",
                config=spec.config.to_json(),
                identity=spec.identity,
                path=str(spec.final),
            )
            for spec, known in zip(specs, continuation.known, strict=True)
            if known is None
        ]
        if not continuation.all_known:
            self._create_store(new)
        with closing(SqliteStore(self._folder.store)) as store:
            if continuation.all_known:
                store.add_runs(new)
                self._take_up(store, specs, continuation, len(new))
            for name, schema in self._schemas.items():
                store.save_schema(name, schema)
            return store.runs()

    def _create_store(self, runs: list[Run]) -> None:
        """Begin the experiment: once its store is there under its name, it holds the runs."""
        place = self._folder.store
        unfinished = place.with_name(f"{place.name}.unfinished")
        for left_over in (*place.parent.glob(f"{place.name}-*"), unfinished):
            left_over.unlink(missing_ok=True)
        with closing(SqliteStore(unfinished)) as store:
            store.create(self._record(), runs)
        reach("store.new")
        os.replace(unfinished, place)

    def _take_up(
        self, store: Store, specs: "list[RunSpec]", continuation: Continuation, num_new: int
    ) -> None:
        from rapidfireai.training.checkpoint import latest_checkpoint

        clock = self._clock
        num_continued = 0
        for spec, run in zip(specs, continuation.known, strict=True):
            if run is None or not run.unfinished:
                continue
            num_continued += 1
            if run.status is RunStatus.QUEUED:
                continue
            checkpoint = latest_checkpoint(spec.checkpoints)
            event = RunRecovered(
                run_id=run.id,
                step=0 if checkpoint is None else checkpoint.progress.step,
                chunks_done=0 if checkpoint is None else checkpoint.progress.chunks_done,
                active_s=0.0 if checkpoint is None else checkpoint.progress.active_s,
            )
            store.record(run, event, apply(run, event), clock.now())
            reach("run.recovered")
        missing = [run for run in continuation.missing if run.unfinished]
        for run in missing:
            stopped = RunStopped(
                run_id=run.id,
                reason="its configuration, data or functions are no longer in the script",
                active_s=run.active_s,
            )
            store.record(run, stopped, apply(run, stopped), clock.now())
        logger.info(
            "continuing experiment %r: %d runs go on, %d had ended, %d are new; %d are no longer "
            "in the script and have been stopped",
            self._folder.name,
            num_continued,
            len(continuation.all_known) - num_continued - len(missing),
            num_new,
            len(missing),
        )

    def _record(self) -> ExperimentRecord:
        request = self._request
        return ExperimentRecord(
            name=self._folder.name,
            created_s=self._clock.now(),
            seed=request.seed,
            num_chunks=request.num_chunks,
            versions={
                "rapidfireai": __version__,
                **{library: importlib.metadata.version(library) for library in _LIBRARIES},
            },
            settings={"device": str(self._device)},
        )

    def _memory(self) -> "MemoryTiers":
        from rapidfireai.workers.memory import MemoryTiers

        request = self._request
        return MemoryTiers(
            self._device,
            self._folder.path / "paused",
            hot_limit_bytes=_bytes(request.memory_limit_gib),
            warm_limit_bytes=_bytes(request.host_memory_limit_gib),
        )


def _tell_of_server(folder: ExperimentFolder) -> None:
    """Say where the experiment can be watched, if a server shows it. Its token is not for logs."""
    server = running(home())
    if server is not None and Path(server.experiments) == folder.path.parent:
        logger.info(
            "watch it at %s (`rapidfireai status` prints the link that lets a browser in)",
            server.experiment_url(folder.name),
        )


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value!r} cannot be used; it has to be an integer >= {least}")


def _check_size(name: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 <= value < math.inf):  # type: ignore[operator]
        raise ConfigError(f"{name}={value!r} cannot be used; it has to be a number >= 0, or None")


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else round(gib * _GIB)
