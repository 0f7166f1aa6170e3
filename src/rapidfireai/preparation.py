"""Runs of a script that come later than the others: clones, and ended runs that are resumed."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rapidfireai.automl.schemas import modified
from rapidfireai.core.commands import Command
from rapidfireai.core.events import Json
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.core.schema import Schema, changed, differences
from rapidfireai.errors import ConfigError
from rapidfireai.paths import ExperimentFolder

if TYPE_CHECKING:
    from rapidfireai.training.build import RunSpec
    from rapidfireai.training.fork import Fork
    from rapidfireai.training.workload import TrainingWorkload


class SpecBook:
    """What each run of a script is made of; clones inherit from their parents.

    Args:
        specs: Of the script's configurations.
        folder: The experiment's.
    """

    def __init__(self, specs: "Iterable[RunSpec]", folder: ExperimentFolder) -> None:
        self._specs = {spec.run_id: spec for spec in specs}
        self._folder = folder

    def get(self, run: Run) -> "RunSpec":
        """What the run is made of.

        Raises:
            ConfigError: Its configuration, or its parent's, is not in the script.
        """
        if run.id not in self._specs:
            raise ConfigError(
                f"run {run.id} cannot be trained: its configuration, data or functions are no "
                "longer in the script; run the script that it comes from"
            )
        return self._specs[run.id]

    def add(self, spec: "RunSpec") -> None:
        """Know what one more run is made of."""
        self._specs[spec.run_id] = spec

    def add_stored(self, clones: Sequence[Run]) -> "list[RunSpec | None]":
        """What stored clones are made of; None where the parent is not in the script.

        Args:
            clones: By id, so that parents come before their children.
        """
        from rapidfireai.training.fork import Fork

        for run in clones:
            assert run.parent_id is not None, "a clone has a parent"
            parent = self._specs.get(run.parent_id)
            if parent is not None:
                knobs = {full: new for full, (_, new) in run.modified.items()}
                fork = None if run.fork is None else Fork.from_json(run.fork)
                self.derive(parent, run.id, knobs, fork)
        return [self._specs.get(run.id) for run in clones]

    def derive(
        self,
        parent: "RunSpec",
        run_id: RunId,
        knobs: Mapping[str, Json],
        fork: "Fork | None",
    ) -> "RunSpec":
        """A clone of what a run is made of."""
        spec = replace(
            parent,
            run_id=run_id,
            config=modified(parent.config, knobs),
            identity="",
            folder=self._folder.run(run_id),
            final=self._folder.final(run_id),
            fork=fork,
        )
        self._specs[run_id] = spec
        return spec

    def folder(self, run_id: RunId) -> Path:
        """All that a run's trainer writes."""
        return self._folder.run(run_id)

    def discard(self, run_id: RunId) -> None:
        """Forget a run that came to nothing."""
        self._specs.pop(run_id, None)


class ScriptPreparer:
    """Makes clones and resumed runs ready; implements `core.commands.Preparer`.

    Args:
        book: What the runs are made of.
        workload: That trains them.
        schemas: Of their kinds of configurations.
    """

    def __init__(
        self, book: SpecBook, workload: "TrainingWorkload", schemas: Mapping[str, Schema]
    ) -> None:
        self._book = book
        self._workload = workload
        self._schemas = schemas

    def resume(self, run: Run) -> None:
        """Have an ended run ready to go on. See `Preparer.resume`."""
        self._workload.add(self._book.get(run))

    def clone(self, parent: Run, command: Command, run_id: RunId) -> Run:
        """Make a new run out of an old one. See `Preparer.clone`."""
        spec = self._book.get(parent)
        modified_knobs = differences(parent.config, command.modify, self._schemas)
        knobs = {full: new for full, (_, new) in modified_knobs.items()}
        # An attempt that was cut short may have left something there.
        shutil.rmtree(self._book.folder(run_id), ignore_errors=True)
        try:
            fork = self._fork(parent, spec, command, run_id, knobs) if command.warm_start else None
            clone = self._book.derive(spec, run_id, knobs, fork)
            self._workload.add(clone)
        except BaseException:
            self._book.discard(run_id)
            shutil.rmtree(self._book.folder(run_id), ignore_errors=True)
            raise
        return Run(
            id=run_id,
            name=f"run-{run_id}",
            config=changed(parent.config, knobs),
            path=str(clone.final),
            parent_id=parent.id,
            modified=modified_knobs,
            # It enters the round at which its parent stands.
            chunks_done=0 if fork is None else parent.chunks_done,
            fork=None if fork is None else {**fork.to_json(), "parent_step": parent.step},
            notes=() if fork is None else fork.notes,
        )

    def _fork(
        self,
        parent: Run,
        spec: "RunSpec",
        command: Command,
        run_id: RunId,
        knobs: Mapping[str, Json],
    ) -> "Fork":
        from rapidfireai.training.checkpoint import copy_checkpoint, latest_state
        from rapidfireai.training.fork_check import ForkChoices, check_fork

        source = latest_state(spec.folder)
        if source is None or (source.progress.step != parent.step and not parent.ended):
            raise ConfigError(
                f"run {parent.id} could not be written down as it stands, so there is nothing to "
                "start from: clone it with warm_start=False"
            )
        checked = check_fork(
            spec.config,
            source,
            modified(spec.config, knobs),
            ForkChoices(optimizer=command.optimizer, schedule=command.schedule),
            device=spec.device,
            default_seed=spec.default_seed,
        )
        copy = copy_checkpoint(source.folder, self._book.folder(run_id) / "fork")
        return checked.at(copy.folder)
