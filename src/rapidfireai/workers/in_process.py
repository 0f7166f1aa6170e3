"""The executor for one device: tasks run in the engine's own process, one at a time."""

from collections.abc import Sequence

from rapidfireai.core.events import (
    ChunkFinished,
    Event,
    MetricsLogged,
    MetricSource,
    RunCompleted,
    RunFailed,
    RunStopped,
)
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.scheduler import Assign
from rapidfireai.workers.memory import MemoryTiers
from rapidfireai.workers.task import Task, Workload
from rapidfireai.workers.telemetry import DeviceMonitor, own_bytes

_WORKER = WorkerId(0)
_ENDS_CHUNK = (ChunkFinished, RunCompleted, RunFailed)
_ENDS_RUN = (RunCompleted, RunFailed)


class InProcessExecutor:
    """Runs the tasks of a workload by turns; implements `core.executor.Executor`.

    Paused runs stay in memory as `memory` has room for them; `monitor` is read at chunk ends.

    `receive` does the work: it resumes the task of the open order for one step. Ctrl-C during a
    step takes effect as KeyboardInterrupt out of the next `receive`, with nothing lost.
    """

    def __init__(self, workload: Workload, memory: MemoryTiers, monitor: DeviceMonitor) -> None:
        self._workload = workload
        self._memory = memory
        self._monitor = monitor
        self._tasks: dict[RunId, Task] = {}
        self._open: RunId | None = None
        self._interrupted = False

    @property
    def workers(self) -> Sequence[WorkerId]:
        """The one worker."""
        return (_WORKER,)

    def assign(self, order: Assign) -> None:
        """Take the order; `receive` carries it out."""
        assert self._open is None, "the worker has an order already"
        if order.run_id not in self._tasks:
            self._tasks[order.run_id] = self._workload.task(order.run_id)
        self._memory.before_training(order.run_id)
        self._open = order.run_id

    def receive(self) -> Sequence[Event]:
        """Let the assigned run do one step.

        Raises:
            KeyboardInterrupt: Ctrl-C arrived during the step before.
        """
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt
        if self._open is None:
            return ()
        task = self._tasks[self._open]
        events = list(task.resume())
        self._interrupted = task.interrupted
        if isinstance(events[-1], _ENDS_RUN):
            self._memory.forget(self._open)
            del self._tasks[self._open]
        elif isinstance(events[-1], ChunkFinished):
            self._memory.after_training(self._open, task)
        if isinstance(events[-1], _ENDS_CHUNK):
            self._open = None
        if isinstance(events[-1], ChunkFinished | RunCompleted):
            events.insert(-1, self._measured(events[-1], task))
        return events

    def _measured(self, end: ChunkFinished | RunCompleted, task: Task) -> MetricsLogged:
        """What the device and the process do at a chunk's end, and what the run holds."""
        values = self._monitor.read()
        if isinstance(end, ChunkFinished):
            values["run_memory_gib"] = own_bytes(task.own_tensors()) / 2**30
        return MetricsLogged(
            run_id=end.run_id, step=end.step, source=MetricSource.DEVICE, values=values
        )

    def stop(self, run_id: RunId, reason: str) -> Sequence[Event]:
        """End the run where it stands."""
        if self._open == run_id:
            self._open = None
        task = self._tasks.pop(run_id, None)
        if task is None:
            return (RunStopped(run_id=run_id, reason=reason, active_s=0.0),)
        self._memory.before_training(run_id)
        events = task.stop(reason)
        self._memory.forget(run_id)
        return events

    def save(self, run_id: RunId) -> None:
        """Write the run down as it stands."""
        task = self._tasks.get(run_id)
        if task is not None:
            self._memory.before_training(run_id)
            task.save()
            if run_id != self._open:
                self._memory.after_training(run_id, task)

    def close(self) -> None:
        """Abandon all tasks."""
        self._open = None
        for task in self._tasks.values():
            task.close()
        self._tasks.clear()
        self._memory.close()
