"""The process-wide state that a trainer takes for its own, one set for each run.

Trainers draw from global random generators and keep mixed precision, gradient accumulation and
data loader state in three dictionaries that all instances of accelerate's state classes share. Two
trainers in one process would overwrite each other's. A `ProcessState` holds one run's values while
the run is paused and puts them in place while it runs.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState, PartialState

from rapidfireai.core.engine import Listener
from rapidfireai.core.events import Event
from rapidfireai.core.run import Run

# Set by `full_determinism` and never reset by transformers.
_ENVIRONMENT = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING",
    "FLASH_ATTENTION_DETERMINISTIC",
    "ASCEND_LAUNCH_BLOCKING",
    "HCCL_DETERMINISTIC",
)


@dataclass(frozen=True, slots=True)
class RngState:
    """The states of all global random generators."""

    python: Any
    numpy: Any
    torch_cpu: torch.Tensor
    cuda: list[torch.Tensor]

    @classmethod
    def capture(cls) -> "RngState":
        """The generators as they stand now."""
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(),
            torch_cpu=torch.get_rng_state(),
            # Not only once CUDA is in use: what a run begins with has to be what it goes back to.
            cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        )

    def equals(self, other: "RngState") -> bool:
        """Whether the generators would draw the same numbers."""
        return (
            self.python == other.python
            and all(map(np.array_equal, self.numpy, other.numpy))
            and torch.equal(self.torch_cpu, other.torch_cpu)
            and all(map(torch.equal, self.cuda, other.cuda))
        )

    def plain(self) -> dict[str, Any]:
        """In types that `torch.load(weights_only=True)` reads."""
        name, keys, *rest = self.numpy
        return {
            "python": [self.python[0], list(self.python[1]), self.python[2]],
            "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
            "torch_cpu": self.torch_cpu,
            "cuda": self.cuda,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "RngState":
        """What `plain` gave."""
        version, words, gauss = plain["python"]
        name, keys, *rest = plain["numpy"]
        return cls(
            python=(version, tuple(words), gauss),
            numpy=(name, keys.numpy().astype(np.uint32), *rest),
            torch_cpu=plain["torch_cpu"],
            cuda=plain["cuda"],
        )

    def restore(self) -> None:
        """Set the generators to this state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch_cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


@dataclass(frozen=True, slots=True)
class _Flags:
    """Switches that options such as `full_determinism` and `tf32` set for the whole process."""

    deterministic: bool
    deterministic_warn_only: bool
    cudnn_deterministic: bool
    cudnn_benchmark: bool
    fp32_precision: str | None
    """None before torch 2.9, which has only the two that follow."""
    matmul_precision: str | None
    """None while torch refuses to tell, as `fp32_precision` contradicts it; likewise below."""
    cudnn_tf32: bool | None
    verbosity: int
    environment: tuple[str | None, ...]

    @classmethod
    def capture(cls) -> "_Flags":
        return cls(
            deterministic=torch.are_deterministic_algorithms_enabled(),
            deterministic_warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            cudnn_deterministic=torch.backends.cudnn.deterministic,
            cudnn_benchmark=torch.backends.cudnn.benchmark,
            fp32_precision=getattr(torch.backends, "fp32_precision", None),
            matmul_precision=_unless_refused(torch.get_float32_matmul_precision),
            cudnn_tf32=_unless_refused(lambda: torch.backends.cudnn.allow_tf32),
            verbosity=transformers.logging.get_verbosity(),
            environment=tuple(os.environ.get(name) for name in _ENVIRONMENT),
        )

    def restore(self) -> None:
        torch.use_deterministic_algorithms(
            self.deterministic, warn_only=self.deterministic_warn_only
        )
        torch.backends.cudnn.deterministic = self.cudnn_deterministic
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        self._restore_precision()
        transformers.logging.set_verbosity(self.verbosity)
        for name, value in zip(_ENVIRONMENT, self.environment, strict=True):
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _restore_precision(self) -> None:
        # First the one that the others can be read under; and none that is right already, since
        # torch keeps whether a precision was ever set.
        if getattr(torch.backends, "fp32_precision", None) != self.fp32_precision:
            torch.backends.fp32_precision = self.fp32_precision  # type: ignore[attr-defined]
        now = _Flags.capture()
        if self.matmul_precision not in (None, now.matmul_precision):
            torch.set_float32_matmul_precision(self.matmul_precision)
        if self.cudnn_tf32 not in (None, now.cudnn_tf32):
            torch.backends.cudnn.allow_tf32 = self.cudnn_tf32


def _unless_refused(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        return None


@dataclass(slots=True)
class _Bound:
    """One complete set of process-wide state."""

    partial: dict[str, Any]
    accelerator: dict[str, Any]
    gradient: dict[str, Any]
    rng: RngState
    flags: _Flags

    @classmethod
    def capture(cls) -> "_Bound":
        return cls(
            partial=PartialState._shared_state,  # noqa: SLF001
            accelerator=AcceleratorState._shared_state,  # noqa: SLF001
            gradient=GradientState._shared_state,  # noqa: SLF001
            rng=RngState.capture(),
            flags=_Flags.capture(),
        )

    def bind(self, now: _Flags | None = None) -> None:
        """Put it in place; `now` are the flags that are in place, if that is known."""
        # The dictionaries are rebound, not copied: instances made while they were bound keep
        # theirs, and accelerate's own reset clears only the one that is bound.
        PartialState._shared_state = self.partial  # noqa: SLF001
        AcceleratorState._shared_state = self.accelerator  # noqa: SLF001
        GradientState._shared_state = self.gradient  # noqa: SLF001
        self.rng.restore()
        if self.flags != (now or _Flags.capture()):
            self.flags.restore()


class ProcessState:
    """One run's set of process-wide state. Starts with the surrounding random state and flags, and
    with accelerate as in a fresh process.

    Its methods are called by the thread that owns all fibers, while no fiber runs. At most one
    state is entered at a time.
    """

    def __init__(self) -> None:
        self._own: _Bound | None = None
        self._outer: _Bound | None = None

    @property
    def entered(self) -> bool:
        """Whether this state is the process's at the moment."""
        return self._outer is not None

    def enter(self) -> None:
        """Put this state in place and keep the surrounding one. Nothing to do if entered."""
        if self._outer is not None:
            return
        self._outer = _Bound.capture()
        if self._own is None:
            self._own = _Bound({}, {}, {}, self._outer.rng, self._outer.flags)
        self._own.bind(self._outer.flags)

    def leave(self) -> None:
        """Keep this state and put the surrounding one back. Nothing to do if not entered."""
        if self._outer is None:
            return
        self._own = _Bound.capture()
        outer, self._outer = self._outer, None
        outer.bind(self._own.flags)

    def take_over(self, other: "ProcessState") -> None:
        """`other.leave()` and `enter()`, without putting the surrounding state back in between."""
        if other is self or other._outer is None:  # noqa: SLF001 - one of its own kind
            return
        assert self._outer is None, "two states cannot both be entered"
        self._outer, other._outer = other._outer, None  # noqa: SLF001
        other._own = now = _Bound.capture()  # noqa: SLF001
        if self._own is None:
            self._own = _Bound({}, {}, {}, self._outer.rng, self._outer.flags)
        self._own.bind(now.flags)

    def __enter__(self) -> "ProcessState":
        self.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class Isolated:
    """A listener of the user's that may draw random numbers; see `core.engine.Listener`.

    Within a chunk the training run's generators are the process's, and events come at every step.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        """Pass the event on, and put the generators back."""
        rng = RngState.capture()
        try:
            self._listener.on_event(before, event, after)
        finally:
            rng.restore()
