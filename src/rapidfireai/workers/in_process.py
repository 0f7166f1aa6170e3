"""The executor for one device: tasks run in the engine's own process, one at a time.

Tasks that share passes through their base, a gang, work on their chunks together, each up to its
next pass; a task that does not is let alone for a whole chunk.
"""

import time
from collections.abc import Mapping, Sequence

import torch

from rapidfireai.core.events import (
    ChunkFinished,
    Event,
    MetricsLogged,
    MetricSource,
    PassMode,
    RunCompleted,
    RunFailed,
    RunStarted,
    RunStopped,
)
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.scheduler import Assign
from rapidfireai.workers.gang import Backward, Forward, Gang, kind_of
from rapidfireai.workers.memory import MemoryTiers
from rapidfireai.workers.modes import PassModes
from rapidfireai.workers.task import Task, Workload
from rapidfireai.workers.telemetry import DeviceMonitor, own_bytes

_ENDS_CHUNK = (ChunkFinished, RunCompleted, RunFailed)
_ENDS_RUN = (RunCompleted, RunFailed)


class InProcessExecutor:
    """Runs the tasks of a workload by turns; implements `core.executor.Executor`.

    Paused runs stay in memory as `memory` has room for them; `monitor` is read at chunk ends.

    `receive` does the work: it resumes tasks until one has something to tell. Ctrl-C meanwhile
    takes effect as KeyboardInterrupt out of the next `receive`, with nothing lost.

    Args:
        workload: Makes the tasks.
        memory: Keeps them within the device's memory.
        monitor: Of the device.
        gang: Answers tasks that share passes.
        modes: Chooses which of them do.
        num_workers: Orders that may be open at a time: the most tasks that share a pass.
    """

    def __init__(
        self,
        workload: Workload,
        memory: MemoryTiers,
        monitor: DeviceMonitor,
        gang: Gang,
        modes: PassModes,
        num_workers: int = 1,
    ) -> None:
        self._workload = workload
        self._memory = memory
        self._monitor = monitor
        self._gang = gang
        self._modes = modes
        self._workers = tuple(map(WorkerId, range(num_workers)))
        self._tasks: dict[RunId, Task] = {}
        self._open: dict[RunId, int] = {}
        """Runs with an order, and the chunk that they work on."""
        self._begun: set[RunId] = set()
        """Those of them whose tensors are on the device."""
        self._current: Task | None = None
        """The last that worked; the process's state may still be its own."""
        self._interrupted = False

    @property
    def workers(self) -> Sequence[WorkerId]:
        """Places for open orders; all of them are on the one device."""
        return self._workers

    def assign(self, order: Assign) -> None:
        """Take the order; `receive` carries it out."""
        assert len(self._open) < len(self._workers), "every worker has an order already"
        if order.run_id not in self._tasks:
            self._tasks[order.run_id] = self._workload.task(order.run_id)
        self._open[order.run_id] = order.chunk

    def receive(self) -> Sequence[Event]:
        """Let the assigned runs work until one of them has something to tell.

        Raises:
            KeyboardInterrupt: Ctrl-C arrived during the step before.
        """
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt
        events: list[Event] = []
        while self._open and not events:
            events = self._advance()
        return events

    def _advance(self) -> list[Event]:
        """One move: a step of a run that works alone, or all of a gang up to its next passes."""
        least = min(self._open.values())
        for run_id, chunk in self._open.items():
            if chunk == least and run_id in self._begun and not self._tasks[run_id].is_fused:
                return self._resume(run_id)
        # No more than one chunk ahead, so that runs stay comparable.
        turn = [run_id for run_id, chunk in self._open.items() if chunk <= least + 1]
        # Who worked last goes on first, which saves an exchange of the process's state.
        for run_id in sorted(turn, key=lambda run_id: self._tasks[run_id] is not self._current):
            if self._may_begin(run_id, turn) or self._goes_on(run_id):
                events = self._resume(run_id)
                if events:
                    return events
        return self._pass_on([run_id for run_id in turn if self._waits(run_id)])

    def _may_begin(self, run_id: RunId, turn: Sequence[RunId]) -> bool:
        """Whether the run's order is due to begin, and there is memory for it. If there is not,
        it waits as long as others of a gang have theirs to do."""
        if run_id in self._begun:
            return False
        others = any(other in self._begun and self._tasks[other].is_fused for other in turn)
        return not others or self._memory.has_room(run_id)

    def _goes_on(self, run_id: RunId) -> bool:
        """Whether a run of a gang has all that it needs until its next pass."""
        task = self._tasks[run_id]
        if run_id not in self._begun or not task.is_fused:
            return False
        return task.request is None or task.request.is_answered

    def _waits(self, run_id: RunId) -> bool:
        """Whether the run waits for a pass."""
        task = self._tasks.get(run_id)
        return task is not None and task.request is not None and not task.request.is_answered

    def _pass_on(self, run_ids: list[RunId]) -> list[Event]:
        """Take runs that wait for a forward pass through that and the backward pass."""
        runs = {id(self._tasks[run_id].request): run_id for run_id in run_ids}
        requests = [r for r in (self._tasks[i].request for i in run_ids) if isinstance(r, Forward)]
        events: list[Event] = []
        for cohort in self._gang.cohorts(requests):
            gang = [runs[id(r)] for r in requests if r.base is cohort[0].base]
            if len(cohort) == 1:
                events += self._through(cohort, runs)
            else:
                events += self._in_chosen_mode(cohort, runs, gang)
        return [*self._modes.take_events(), *events]

    def _in_chosen_mode(
        self, cohort: list[Forward], runs: Mapping[int, RunId], gang: Sequence[RunId]
    ) -> list[Event]:
        """Take runs through a pass together or each by itself, as is chosen, and measure it if that
        is not settled yet: up to the end of the backward pass, their own heads included."""
        kind = kind_of(cohort)
        mode, trial = self._modes.choose(kind, gang)
        num_splits = self._gang.num_splits
        begin_s = 0.0 if trial is None else self._now_s()
        events: list[Event] = []
        for part in [cohort] if mode is PassMode.FUSED else [[request] for request in cohort]:
            events += self._through(part, runs, measured=trial is not None)
        if trial is not None and self._gang.num_splits == num_splits:
            num_tokens = sum(request.num_tokens for request in cohort)
            self._modes.took(kind, self._now_s() - begin_s, num_tokens, len(cohort))
        return events

    def _through(
        self, left: list[Forward], runs: Mapping[int, RunId], *, measured: bool = False
    ) -> list[Event]:
        """Take runs through a pass together, or through fewer at a time where there is no memory
        for that."""
        events: list[Event] = []
        while left:
            answered = self._gang.forward(left, measured=measured)
            left = left[len(answered) :]
            members = [runs[id(request)] for request in answered]
            for run_id in members:
                events += self._resume(run_id)
            asking = [
                task.request
                for task in map(self._tasks.get, members)
                if task is not None and isinstance(task.request, Backward)
            ]
            self._gang.backward(answered, asking)
        return events

    def _now_s(self) -> float:
        """Seconds, to tell what a pass takes: of the processor, or where a GPU does the work."""
        if self._gang.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self._gang.device)
        return time.perf_counter()

    def _resume(self, run_id: RunId) -> list[Event]:
        task = self._tasks[run_id]
        if run_id not in self._begun:
            self._memory.before_training(run_id)
            self._begun.add(run_id)
        self._turn_to(task)
        events = list(task.resume())
        self._interrupted |= task.interrupted
        if any(isinstance(event, RunStarted) for event in events):
            self._memory.begun(run_id, task)
        if events:
            self._settle(run_id, task, events)
        return events

    def _turn_to(self, task: Task | None) -> None:
        """Have nobody but this task hold the process's state."""
        current, self._current = self._current, task
        if current is None or current is task:
            return
        if task is None:
            current.step_aside()
        else:
            task.take_over(current)

    def _settle(self, run_id: RunId, task: Task, events: list[Event]) -> None:
        """Keep account of an order that may have ended."""
        end = events[-1]
        if isinstance(end, _ENDS_RUN):
            self._memory.forget(run_id)
            del self._tasks[run_id]
        elif isinstance(end, ChunkFinished):
            self._memory.after_training(run_id, task)
        if isinstance(end, _ENDS_CHUNK):
            self._close_order(run_id)
            self._turn_to(None)
        if isinstance(end, ChunkFinished | RunCompleted):
            events.insert(-1, self._measured(end, task))

    def _close_order(self, run_id: RunId) -> None:
        self._open.pop(run_id, None)
        self._begun.discard(run_id)

    def _measured(self, end: ChunkFinished | RunCompleted, task: Task) -> MetricsLogged:
        """What the device and the process do at a chunk's end, and what the run holds."""
        values = self._monitor.read()
        if isinstance(end, ChunkFinished):
            values["run_memory_gib"] = own_bytes(task.own_tensors()) / 2**30
        return MetricsLogged(
            run_id=end.run_id, step=end.step, source=MetricSource.DEVICE, values=values
        )

    def stop(self, run_id: RunId, reason: str) -> Sequence[Event]:
        """End the run where it stands; in the middle of a step, after that step."""
        events = self._end_step(run_id)
        if run_id not in self._tasks and events:
            return events
        self._close_order(run_id)
        task = self._tasks.pop(run_id, None)
        if task is None:
            return (RunStopped(run_id=run_id, reason=reason, active_s=0.0),)
        self._turn_to(task)
        self._memory.before_training(run_id)
        events += task.stop(reason)
        self._turn_to(None)
        self._memory.forget(run_id)
        return events

    def save(self, run_id: RunId) -> Sequence[Event]:
        """Write the run down as it stands; in the middle of a step, after that step."""
        events = self._end_step(run_id)
        task = self._tasks.get(run_id)
        if task is not None:
            self._turn_to(task)
            self._memory.before_training(run_id)
            task.save()
            self._turn_to(None)
            if run_id not in self._begun:
                self._memory.after_training(run_id, task)
        return events

    def _end_step(self, run_id: RunId) -> list[Event]:
        """Let a run of a gang go on to its next step boundary, if it is not at one."""
        events: list[Event] = []
        while run_id in self._tasks and self._tasks[run_id].request is not None:
            events += self._pass_on([run_id]) if self._waits(run_id) else self._resume(run_id)
        return events

    def close(self) -> None:
        """Abandon all tasks."""
        self._open.clear()
        self._begun.clear()
        self._turn_to(None)
        for task in self._tasks.values():
            task.close()
        self._tasks.clear()
        self._gang.close()
        self._memory.close()
