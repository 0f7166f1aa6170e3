"""A function that can be paused in the middle: a thread that runs only while it is resumed.

At any moment either the resuming thread or the fiber runs, never both: they hand a baton to and
fro. A fiber keeps its whole stack while paused, so whatever a library holds in local variables -
a data loader's position, an optimizer - survives the pause for free.
"""

import contextvars
import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

Out = TypeVar("Out")
In = TypeVar("In")


class FiberClosed(BaseException):
    """Raised inside a paused fiber to unwind its stack. Not an Exception, so that it passes."""


class Fiber(Generic[In, Out]):
    """Runs `body(fiber)` in a thread of its own, from one `resume` to the next `pause`.

    Args:
        body: Calls `fiber.pause(value)` to hand a value out and wait. What it returns is handed
            out last; what it raises, `resume` raises.
        name: Shown in stack dumps.
    """

    def __init__(self, body: Callable[["Fiber[In, Out]"], Out], name: str) -> None:
        self._body = body
        self._go = threading.Lock()
        self._back = threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._given: In | None = None
        self._taken: Out | None = None
        self._error: BaseException | None = None
        self._running = False
        self._closing = False
        self.interrupted = False
        """Whether Ctrl-C arrived while the fiber ran; the owner acts on it between two steps."""
        self.done = False
        # A daemon, so that a fiber which never returns cannot keep the process alive.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name=name, daemon=True
        )
        self._started = False

    def resume(self, value: In | None = None) -> Out:
        """Let the fiber run until its next pause or its end, and return what it handed out.

        Args:
            value: What `pause` returns inside the fiber.

        Raises:
            BaseException: What the body raised.
        """
        assert not self.done, "a fiber that is done cannot be resumed"
        self._given = value
        if not self._started:
            self._started = True
            self._thread.start()
        self._hand_over()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        taken, self._taken = self._taken, None
        return cast(Out, taken)

    def pause(self, value: Out) -> In | None:
        """Called inside the fiber: hand the value out and wait for the next `resume`.

        Raises:
            FiberClosed: The fiber is to end; let it pass.
        """
        self._taken = value
        self._back.release()
        self._go.acquire()
        if self._closing:
            raise FiberClosed
        return self._given

    def close(self) -> None:
        """Unwind a paused fiber. Idempotent; errors on the way out are dropped.

        One that a second Ctrl-C left running is not waited for; it ends at its next pause.
        """
        self._closing = True
        if self.done or not self._started or self._running:
            return
        self._hand_over()
        self._error = self._taken = None

    def _hand_over(self) -> None:
        self._running = True
        self._go.release()
        try:
            self._back.acquire()
        except KeyboardInterrupt:
            # The fiber is in the middle of a step: let it reach its next pause. A second Ctrl-C
            # does not wait.
            self.interrupted = True
            self._back.acquire()
        self._running = False
        if self.done:
            self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._taken = self._body(self)
        except FiberClosed:
            pass
        except BaseException as error:  # noqa: BLE001 - handed to the resuming thread
            self._error = error
        finally:
            self.done = True
            self._back.release()
