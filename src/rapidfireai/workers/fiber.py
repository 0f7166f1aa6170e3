"""A function that can be paused in the middle: a thread that runs only while it is resumed.

At any moment either the resuming thread or the fiber runs, never both: they hand a baton to and
fro. A fiber keeps its whole stack while paused, so whatever a library holds in local variables -
a data loader's position, an optimizer - survives the pause for free.
"""

import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

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
        self._go.acquire()
        # Who holds the baton is decided by `_is_back`; the queue only wakes the waiting owner. A
        # lock would not do: Ctrl-C may strike before or after it is taken, and nobody can tell.
        self._is_back = False
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._is_away = False
        """Whether the owner still has to take back what it handed over."""
        self._given: In | None = None
        self._taken: Out | None = None
        self._error: BaseException | None = None
        self._closing = False
        self.interrupted = False
        """Whether Ctrl-C arrived while the fiber ran; the owner acts on it between two steps."""
        self.interruption: KeyboardInterrupt | None = None
        """The latest of these, as it was raised: a handler may have raised one of its own."""
        self.done = False
        # A daemon, so that a fiber which never returns cannot keep the process alive.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name=name, daemon=True
        )

    def resume(self, value: In | None = None) -> Out:
        """Let the fiber run until its next pause or its end, and return what it handed out.

        One that a second Ctrl-C left running is waited for first; what it hands out then is lost
        unless it is its last.

        Args:
            value: What `pause` returns inside the fiber.

        Raises:
            BaseException: What the body raised.
            KeyboardInterrupt: A second Ctrl-C; the fiber still runs.
        """
        assert not self._closing, "a fiber that is closed cannot be resumed"
        if self._is_away:
            self._wait()
        else:
            assert not self.done, "a fiber that is done cannot be resumed"
        if not self.done:
            self._given = value
            self._hand_over()
        taken, error, self._taken, self._error = self._taken, self._error, None, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame, and all that the body held
        return taken  # type: ignore[return-value]  # None only where Out allows it

    def pause(self, value: Out) -> In | None:
        """Called inside the fiber: hand the value out and wait for the next `resume`.

        Raises:
            FiberClosed: The fiber is to end; let it pass.
        """
        if self._closing:  # somebody did not let it pass
            raise FiberClosed
        self._taken = value
        self._hand_back()
        self._go.acquire()
        if self._closing:
            raise FiberClosed
        return self._given

    def close(self) -> None:
        """Unwind a paused fiber. Idempotent; errors on the way out are dropped.

        One that a second Ctrl-C left running is not waited for; it ends at its next pause.
        """
        if self._closing or self.done or not self._is_started:
            self._closing = True
            return
        self._closing = True
        if self._is_away:
            self._go.release()
            return
        self._hand_over()
        self._error = self._taken = None

    @property
    def _is_started(self) -> bool:
        return self._thread.ident is not None

    def _hand_over(self) -> None:
        if not self._is_started:
            self._thread.start()
        self._is_back, self._is_away = False, True
        self._wait(self._go.release)

    def _wait(self, release: Callable[[], None] | None = None) -> None:
        """Wait until the baton is back, in spite of a first Ctrl-C.

        Python raises KeyboardInterrupt after any call, also one that has done its work: whatever
        may have been interrupted is looked at again.
        """
        was_interrupted = False
        while True:
            try:
                if release is not None:
                    once, release = release, None
                    once()
                while not self._is_back:
                    self._wake.get()
                if self.done:
                    self._thread.join()
                self._is_away = False
                return
            except KeyboardInterrupt as interruption:
                if was_interrupted:
                    raise
                was_interrupted = self.interrupted = True
                self.interruption = interruption.with_traceback(None)

    def _hand_back(self) -> None:
        self._is_back = True
        self._wake.put(None)

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
            self._hand_back()
