"""One call of `run_fit`: from the user's arguments to trained runs."""

import importlib.metadata
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from rapidfireai._version import __version__
from rapidfireai.automl.schemas import schemas_of
from rapidfireai.control import expired, remove_files
from rapidfireai.core.clock import SystemClock
from rapidfireai.core.continuation import Continuation, match_runs
from rapidfireai.core.engine import Engine
from rapidfireai.core.events import RunRecovered, RunStopped
from rapidfireai.core.ids import RunId
from rapidfireai.core.policy import Policy
from rapidfireai.core.run import Run, RunStatus, apply
from rapidfireai.errors import ConfigError, ObjectiveError, RapidFireError
from rapidfireai.faults import reach
from rapidfireai.live import progress_view
from rapidfireai.paths import ExperimentFolder, home
from rapidfireai.preparation import ScriptPreparer, SpecBook
from rapidfireai.request import FitRequest
from rapidfireai.server.home import running
from rapidfireai.store import (
    ExperimentRecord,
    History,
    PatientStore,
    Recorder,
    Room,
    SqliteStore,
    Store,
)
from rapidfireai.surroundings import (
    EndAtOnce,
    Ending,
    experiment_log,
    old_objects_set_aside,
    quiet_libraries,
)
from rapidfireai.tracking.process import Senders, settled, start

if TYPE_CHECKING:
    from rapidfireai.automl.optuna_search import OptunaStudy
    from rapidfireai.training.build import RunSpec
    from rapidfireai.training.config import RunConfig
    from rapidfireai.training.workload import TrainingWorkload
    from rapidfireai.workers.memory import MemoryTiers
    from rapidfireai.workers.peak import PeakMemory

logger = logging.getLogger(__name__)

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
_GIB = 2**30

_LOCK_WAIT_S = 1.0
_SWEEP_S = 30.0
"""Seconds between two looks for deleted runs that cannot be restored any more."""

GANG_SIZE = 16
"""Runs that share a pass at the most. Each of them is held on the device while it trains."""


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
        self._study: OptunaStudy | None = None
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
            # They take a while to begin, as the preparation does.
            self._senders = stack.enter_context(self._told_trackers())
            self._workload = self._make_workload(specs, continuation)
            # A search may come with adapters yet.
            has_adapters = self._study is not None or any(spec.config.peft for spec in specs)
            self._may_share = has_adapters and self._request.fuse != "off"
            self._workload.prepare()
            self._senders.await_reached()
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
        from rapidfireai.policies import as_policies
        from rapidfireai.workers.gang import Gang
        from rapidfireai.workers.in_process import InProcessExecutor
        from rapidfireai.workers.modes import PassModes
        from rapidfireai.workers.peak import PeakMemory
        from rapidfireai.workers.process_state import Isolated
        from rapidfireai.workers.telemetry import DeviceMonitor

        peak = PeakMemory(self._device)
        modes = PassModes(measures=self._request.fuse == "auto")
        executor = InProcessExecutor(
            self._workload,
            self._memory(peak),
            DeviceMonitor(self._device, peak),
            Gang(self._device, peak=peak),
            modes,
            num_workers=GANG_SIZE if self._may_share else 1,
        )
        with (
            self._held,
            old_objects_set_aside(),
            closing(PatientStore(self._folder.store, self._room)) as store,
            closing(executor),
            progress_view(self._runs, store.metrics()) as view,
        ):
            recorder = Recorder(store, self._clock)
            modes.recall(row.event for row in store.events())
            policies = as_policies(self._request.policy)
            if self._study is not None:
                policies = (self._study, *policies)
            engine = Engine(
                self._runs,
                executor,
                recorder,
                [view, *map(Isolated, self._request.listeners)],
                policies,
                ScriptPreparer(self._book, self._workload, self._schemas),
                supply=None if self._study is None else self,
            )
            self._recall(engine, store, policies)
            self.thread_id = threading.get_ident()
            try:
                self._drive(engine, cancelled)
            finally:
                self.thread_id = None
                recorder.flush()
            if policies:
                self._write_report(store)

    @contextmanager
    def _told_trackers(self) -> Iterator[Senders]:
        """The processes that tell trackers, until the training is over and they know of it."""
        trackers = settled(self._folder, self._request.chosen_trackers())
        senders = start(self._folder, trackers)
        try:
            yield senders
        finally:
            if self._folder.store.exists():
                senders.end()
            else:  # nothing is to be told
                senders.kill()

    def _recall(self, engine: Engine, store: Store, policies: Sequence[Policy]) -> None:
        """Let policies know what an earlier process has seen."""
        from rapidfireai.policies import described

        for policy in policies:
            logger.info("policy: %s", described(policy))
        if policies:
            history = History(store)
            given = [record.command for record in store.commands()]
            engine.recall(history.begin, history.moments(), given)

    def _write_report(self, store: Store) -> None:
        """Say at the end what was decided, and what came of it."""
        from rapidfireai.report import as_html, find

        try:
            page = as_html(find(store), self._clock.now())
            self._folder.report.write_text(page, encoding="utf-8")
        except (ConfigError, OSError) as error:
            # What was trained is there all the same.
            logger.warning("there is no report: %s", error)
        else:
            logger.info("report: %s", self._folder.report)

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
                except ObjectiveError as error:
                    engine.interrupt(str(error))
                    raise
                if not engine.ended:
                    logger.warning("interrupted: writing all runs down")
                    engine.interrupt("interrupted by the user")
                    logger.warning("run the same script again to go on where they are")
        except EndAtOnce:
            logger.warning("left at once; the same script again goes on from the last checkpoints")
        if ending.is_asked_for:
            raise ending.error()
        if self._study is not None:
            self._study.end()

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
            for run_id in expired(engine.runs, now_s):
                # First of all: a run whose files are gone must not be restored.
                engine.purge(run_id)
                remove_files(self._folder, run_id)

    def end_soon(self) -> None:
        """Have all runs written down after the step in progress, as Ctrl-C does. Any thread may."""
        self._ending.ask()

    def _plan(self) -> "tuple[list[RunSpec], Continuation]":
        """What to run, under the numbers that earlier processes gave it."""
        from rapidfireai.training.identity import digest, run_identity

        request, folder = self._request, self._folder
        configs = self._configs()
        surroundings = self._surroundings = {
            name: digest(getattr(request, name))
            for name in ("create_model", "create_trainer", "train_dataset", "eval_dataset", "seed")
        }
        if request.fuse_generation:
            surroundings["fuse_generation"] = "on"
        identities = [run_identity(config, surroundings) for config in configs]
        stored = self._stored_runs()
        originals = [run for run in stored if run.parent_id is None]
        continuation = match_runs(originals, identities)
        numbers = count(1 + max((run.id for run in stored), default=0))
        specs = [
            self._spec(config, identity, RunId(next(numbers)) if known is None else known.id)
            for config, identity, known in zip(configs, identities, continuation.known, strict=True)
        ]
        if self._study is not None:
            self._study.bind([spec.run_id for spec in specs])
        self._book = SpecBook(specs, folder)
        clones = [run for run in stored if run.parent_id is not None]
        inherited = self._book.add_stored(clones)
        return (
            [*specs, *(spec for spec in inherited if spec is not None)],
            continuation.with_clones(clones, [spec is not None for spec in inherited]),
        )

    def _spec(self, config: "RunConfig", identity: str, run_id: RunId) -> "RunSpec":
        from rapidfireai.training.build import RunSpec

        request, folder = self._request, self._folder
        return RunSpec(
            run_id=run_id,
            config=config,
            identity=identity,
            folder=folder.run(run_id),
            final=folder.final(run_id),
            default_seed=request.seed,
            num_chunks=request.num_chunks,
            device=self._device,
            checkpoint_every_s=request.checkpoint_every_s,
            tool_timeout_s=request.tool_timeout_s,
            fuse=request.fuse,
            fuse_generation=request.fuse_generation,
        )

    def next(self, runs: Sequence[Run], run_id: RunId) -> Run | None:
        """The next run of a search that learns from runs. See `core.engine.Supply`."""
        from rapidfireai.training.identity import run_identity

        study = self._study
        assert study is not None, "only a search is asked"
        while (config := study.next(runs)) is not None:
            (config,) = self._named([config])
            spec = self._spec(config, run_identity(config, self._surroundings), run_id)
            try:
                self._workload.add(spec)
            except RapidFireError as error:
                study.refused(str(error))
                continue
            self._book.add(spec)
            self._schemas.update(schemas_of([config]))
            return replace(_new_run(spec), notes=(study.begun(run_id),))
        return None

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
        from rapidfireai.automl.optuna_search import RFOptuna
        from rapidfireai.automl.search import as_run_configs

        request, folder = self._request, self._folder
        if isinstance(request.config_group, RFOptuna):
            if not folder.store.exists():
                # Of an attempt that was refused before it trained.
                folder.study.unlink(missing_ok=True)
            self._study = request.config_group.begin(folder.study, request.seed)
            return self._named(self._study.configs())
        custom = request.create_trainer is not None
        return self._named(as_run_configs(request.config_group, request.seed, custom=custom))

    def _named(self, configs: "list[RunConfig]") -> "list[RunConfig]":
        """With the model's name where they have none."""
        if self._request.model is None:
            return configs
        name = os.fspath(self._request.model)
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
            _new_run(spec)
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

    def _memory(self, peak: "PeakMemory") -> "MemoryTiers":
        from rapidfireai.workers.memory import MemoryTiers

        request = self._request
        return MemoryTiers(
            self._device,
            self._folder.paused,
            hot_limit_bytes=_bytes(request.memory_limit_gib),
            warm_limit_bytes=_bytes(request.host_memory_limit_gib),
            peak=peak,
        )


def _new_run(spec: "RunSpec") -> Run:
    return Run(
        id=spec.run_id,
        name=f"run-{spec.run_id}",
        config=spec.config.to_json(),
        identity=spec.identity,
        path=str(spec.final),
    )


def _tell_of_server(folder: ExperimentFolder) -> None:
    """Say where the experiment can be watched, if a server shows it. Its token is not for logs."""
    server = running(home())
    if server is not None and Path(server.experiments) == folder.path.parent:
        logger.info(
            "watch it at %s (`rapidfireai status` prints the link that lets a browser in)",
            server.experiment_url(folder.name),
        )


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else round(gib * _GIB)
