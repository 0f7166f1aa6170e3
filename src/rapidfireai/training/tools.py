"""Tools and environments of the user's, with a limit on the time that one call may take.

While a tool works, the run's trainer waits for it, and with it every other run. A call that takes
too long is given up, and its run fails.

Nobody can end a thread that waits for a socket. So a run's tools and environments work in a thread
of their own, always the same one, as connections and the like want it; if it hangs, it is left
alone.
"""

import asyncio
import contextvars
import ctypes
import functools
import inspect
import queue
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import torch

Job = tuple[Future[Any], Callable[[], Any]]


class ToolTimeoutError(BaseException):
    """A tool took longer than it may. No Exception: TRL tells those to the model, which goes on."""


class TimeLimit:
    """Calls functions of one run in a thread of its own, and waits no longer than the limit.

    Args:
        limit_s: Seconds for one call; None: no limit, and no thread.
    """

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._hung: ToolTimeoutError | None = None
        self._classes: dict[type, type] = {}
        # The thread knows the queue only, and ends with what it serves.
        weakref.finalize(self, self._jobs.put, None)

    @property
    def is_off(self) -> bool:
        """Whether nothing is limited."""
        return self._limit_s is None

    def tool(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same tool, limited; its name, arguments and documentation are what the model sees."""
        if inspect.iscoroutinefunction(function):
            return self._limited_async(function)

        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            return self.call(function, *args, **kwargs)

        return limited

    def factory(self, make: Callable[[], Any]) -> Callable[[], Any]:
        """A function that makes the same environments, with limited methods."""

        @functools.wraps(make, updated=())
        def limited() -> Any:
            environment = self.call(make)
            # TRL looks for tools in the class.
            environment.__class__ = self._limited_class(type(environment))
            return environment

        return limited

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the function returns.

        Raises:
            ToolTimeoutError: It takes too long, or another one did before.
            BaseException: What it raises.
        """
        if self._hung is not None:
            raise self._hung
        if threading.current_thread() is self._thread:
            return function(*args, **kwargs)  # one tool calls another
        done: Future[Any] = Future()
        context, grad = contextvars.copy_context(), torch.is_grad_enabled()

        def work() -> Any:
            with torch.set_grad_enabled(grad):
                return context.run(function, *args, **kwargs)

        self._start().put((done, work))
        try:
            return done.result(self._limit_s)
        except FutureTimeoutError as error:
            if done.done():  # the function's own
                raise
            self._give_up(function)
            raise self._hung_error(function) from error

    def _start(self) -> "queue.SimpleQueue[Job | None]":
        if self._thread is None:
            self._thread = threading.Thread(
                target=_serve, args=(self._jobs,), name="tools", daemon=True
            )
            self._thread.start()
        return self._jobs

    def _give_up(self, function: Callable[..., Any]) -> None:
        """End what can be ended: a loop in Python notices, what waits for the system does not."""
        assert self._thread is not None, "something was called there"
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(ToolTimeoutError)
        )
        self._hung = self._hung_error(function)

    def _hung_error(self, function: Callable[..., Any]) -> ToolTimeoutError:
        name = getattr(function, "__qualname__", type(function).__name__)
        return ToolTimeoutError(
            f"{name} took more than {self._limit_s:g} s. Give it a time limit of its own, after "
            "which it answers or raises, or a longer one to all: run_fit(tool_timeout_s=...)"
        )

    def _limited_class(self, cls: type) -> type:
        if cls not in self._classes:
            methods = {
                name: self._method(cls, name, method)
                for name, method in inspect.getmembers(cls, inspect.isfunction)
                if not name.startswith("_")
            }
            about = {"__module__": cls.__module__, "__doc__": cls.__doc__, "__slots__": ()}
            self._classes[cls] = type(cls.__name__, (cls,), {**about, **methods})
        return self._classes[cls]

    def _method(self, cls: type, name: str, method: Callable[..., Any]) -> Any:
        limited = self.tool(method)
        is_static = isinstance(inspect.getattr_static(cls, name), staticmethod)
        return staticmethod(limited) if is_static else limited

    def _limited_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """TRL awaits several at once, in a thread of its own."""

        @functools.wraps(function)
        async def limited(*args: Any, **kwargs: Any) -> Any:
            try:
                return await asyncio.wait_for(function(*args, **kwargs), self._limit_s)
            except TimeoutError as error:
                # TRL would take it for the tool's answer; whoever is called next raises it.
                self._hung = self._hung_error(function)
                raise self._hung from error

        return limited

    def check(self) -> None:
        """Raise what an asynchronous tool could not.

        Raises:
            ToolTimeoutError: A call took too long.
        """
        if self._hung is not None:
            raise self._hung


def limited_tools(given: Mapping[str, Any], limit: TimeLimit) -> dict[str, Any]:
    """A trainer's arguments, with limits on its tools and environments.

    Args:
        given: The arguments.
        limit: For all of them.
    """
    limited, environments = dict(given), given.get("environment_factory")
    if limit.is_off:
        return limited
    if given.get("tools"):
        limited["tools"] = [limit.tool(tool) for tool in given["tools"]]
    if isinstance(environments, Mapping):
        limited["environment_factory"] = {
            name: limit.factory(make) for name, make in environments.items()
        }
    elif environments is not None:
        limited["environment_factory"] = limit.factory(environments)
    return limited


def _serve(jobs: "queue.SimpleQueue[Job | None]") -> None:
    while (job := jobs.get()) is not None:
        done, work = job
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it is the caller's to raise
            done.set_exception(error)
        else:
            done.set_result(result)
        del job, done, work
