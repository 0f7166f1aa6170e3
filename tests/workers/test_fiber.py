"""Fibers: a hand-over loses nothing, leaks nothing, and can always be ended."""

import contextvars
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from rapidfireai.workers.fiber import Fiber, FiberClosed

Body = Callable[[Fiber[str, str]], str]


def fiber(body: Body) -> Fiber[str, str]:
    return Fiber(body, "test")


def echo(me: Fiber[str, str]) -> str:
    """Hands back what it is given until that is "end"."""
    given = me.pause("ready")
    while given != "end":
        given = me.pause(f"got {given}")
    return "ended"


def num_threads() -> int:
    return sum(thread.name == "test" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    assert num_threads() == 0
    yield
    assert num_threads() == 0


def test_values_go_both_ways() -> None:
    one = fiber(echo)
    assert one.resume() == "ready"
    assert one.resume("a") == "got a"
    assert one.resume() == "got None"
    assert not one.done
    assert one.resume("end") == "ended"
    assert one.done


def test_only_one_side_runs_at_any_moment() -> None:
    order: list[str] = []

    def body(me: Fiber[str, str]) -> str:
        for number in range(3):
            order.append(f"fiber {number}")
            me.pause("")
        return ""

    one = fiber(body)
    for number in range(4):
        order.append(f"owner {number}")
        one.resume()
    order.append("owner 4")
    assert order == [
        "owner 0", "fiber 0", "owner 1", "fiber 1", "owner 2", "fiber 2", "owner 3", "owner 4",
    ]  # fmt: skip


def test_the_stack_is_kept_while_paused() -> None:
    def deep(me: Fiber[str, str], level: int) -> int:
        if level == 0:
            me.pause("bottom")
            return 0
        return 1 + deep(me, level - 1)

    one = fiber(lambda me: str(deep(me, 50)))
    assert one.resume() == "bottom"
    assert one.resume() == "50"


def test_an_error_is_raised_where_the_fiber_is_resumed() -> None:
    def failing(me: Fiber[str, str]) -> str:
        me.pause("first")
        raise ValueError("from the body")

    one = fiber(failing)
    one.resume()
    with pytest.raises(ValueError, match="from the body") as caught:
        one.resume()
    assert one.done
    assert "failing" in "".join(traceback.format_exception(caught.value))


def test_an_error_may_be_any_exception() -> None:
    class Unwind(BaseException):
        pass

    def failing(me: Fiber[str, str]) -> str:
        raise Unwind

    with pytest.raises(Unwind):
        fiber(failing).resume()


def test_many_fibers_take_turns() -> None:
    fibers = [fiber(echo) for _ in range(50)]
    for one in fibers:
        one.resume()
    for turn in range(4):
        answers = [one.resume(f"{turn}.{number}") for number, one in enumerate(fibers)]
        assert answers == [f"got {turn}.{number}" for number in range(50)]
    assert {one.resume("end") for one in reversed(fibers)} == {"ended"}


class TestClose:
    def test_it_unwinds_the_stack(self) -> None:
        seen: list[str] = []

        def body(me: Fiber[str, str]) -> str:
            try:
                with recorded(seen):
                    me.pause("inside")
            finally:
                seen.append("finally")
            return "never"

        one = fiber(body)
        one.resume()
        one.close()
        assert seen == ["exit", "finally"]
        assert one.done

    def test_except_exception_lets_it_pass(self) -> None:
        seen: list[str] = []

        def body(me: Fiber[str, str]) -> str:
            while True:
                try:
                    me.pause("step")
                except Exception:  # noqa: BLE001 - as careless callbacks do
                    seen.append("swallowed")

        one = fiber(body)
        one.resume()
        one.close()
        assert one.done
        assert seen == []

    def test_a_body_that_swallows_it_gets_it_again_at_its_next_pause(self) -> None:
        seen: list[str] = []

        def body(me: Fiber[str, str]) -> str:
            for number in range(3):
                try:
                    me.pause("step")
                except BaseException:  # noqa: BLE001 - as more careless ones do
                    seen.append(f"swallowed {number}")
            me.pause("last")
            return "never"

        one = fiber(body)
        one.resume()
        one.close()
        assert one.done
        assert seen == ["swallowed 0", "swallowed 1", "swallowed 2"]

    def test_a_finally_that_pauses_does_not_hang(self) -> None:
        def body(me: Fiber[str, str]) -> str:
            try:
                me.pause("step")
            finally:
                me.pause("on the way out")
            return "never"

        one = fiber(body)
        one.resume()
        one.close()
        assert one.done

    def test_errors_on_the_way_out_are_dropped(self) -> None:
        def body(me: Fiber[str, str]) -> str:
            try:
                return str(me.pause("step"))
            except FiberClosed:
                raise RuntimeError("in the way") from None

        one = fiber(body)
        one.resume()
        one.close()
        assert one.done

    def test_a_fiber_that_never_ran_does_not_run(self) -> None:
        seen: list[str] = []
        one = fiber(lambda me: seen.append("ran") or "")  # type: ignore[func-returns-value]
        one.close()
        one.close()
        assert seen == []

    def test_a_fiber_that_is_done_stays_so(self) -> None:
        one = fiber(lambda me: "result")
        assert one.resume() == "result"
        one.close()
        one.close()
        assert one.done

    def test_it_is_idempotent(self) -> None:
        one = fiber(echo)
        one.resume()
        one.close()
        one.close()
        assert one.done


@contextmanager
def recorded(seen: list[str]) -> Iterator[None]:
    try:
        yield
    finally:
        seen.append("exit")


class TestThreadLocals:
    """What a trainer keeps in the thread that it runs in needs no swapping."""

    def test_grad_mode_survives_pauses_and_does_not_leak(self) -> None:
        def body(me: Fiber[str, str]) -> str:
            with torch.no_grad():
                me.pause(str(torch.is_grad_enabled()))
                with torch.enable_grad():
                    me.pause(str(torch.is_grad_enabled()))
                me.pause(str(torch.is_grad_enabled()))
            return str(torch.is_grad_enabled())

        one, other = fiber(body), fiber(body)
        with torch.no_grad():
            assert one.resume() == "False"
        assert torch.is_grad_enabled()
        assert other.resume() == "False"
        assert one.resume() == "True"
        assert other.resume() == "True"
        assert one.resume() == "False"
        assert torch.is_grad_enabled()
        assert [one.resume(), other.resume(), other.resume()] == ["True", "False", "True"]

    def test_inference_mode_does_not_leak(self) -> None:
        def body(me: Fiber[str, str]) -> str:
            with torch.inference_mode():
                me.pause("inside")
                return str(torch.is_inference_mode_enabled())

        one = fiber(body)
        one.resume()
        assert not torch.is_inference_mode_enabled()
        assert one.resume() == "True"

    def test_autocast_survives_pauses_and_does_not_leak(self) -> None:
        product = torch.ones(2, 2)

        def body(me: Fiber[str, str]) -> str:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                me.pause(str((product @ product).dtype))
                me.pause(str((product @ product).dtype))
            return str((product @ product).dtype)

        one, other = fiber(body), fiber(body)
        assert one.resume() == "torch.bfloat16"
        assert (product @ product).dtype == torch.float32
        assert other.resume() == "torch.bfloat16"
        assert one.resume() == "torch.bfloat16"
        assert one.resume() == "torch.float32"
        assert other.resume() == "torch.bfloat16"
        assert other.resume() == "torch.float32"

    def test_saved_tensor_hooks_do_not_leak(self) -> None:
        packed: list[str] = []

        def body(me: Fiber[str, str]) -> str:
            with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: packed.append("fiber") or tensor,  # type: ignore[func-returns-value]
                lambda tensor: tensor,
            ):
                me.pause("inside")
            return ""

        one = fiber(body)
        one.resume()
        torch.ones(2, requires_grad=True).exp()
        assert packed == []
        one.resume()

    def test_context_variables_are_the_fibers_own(self) -> None:
        variable = contextvars.ContextVar("variable", default="unset")

        def body(me: Fiber[str, str]) -> str:
            before = variable.get()
            variable.set("fiber")
            me.pause(before)
            return variable.get()

        variable.set("owner")
        one = fiber(body)
        assert one.resume() == "owner"
        assert variable.get() == "owner"
        variable.set("changed")
        assert one.resume() == "fiber"


def press_ctrl_c(is_noticed: Callable[[], bool]) -> None:
    """Ctrl-C while the owner waits; returns once the owner has noticed.

    One that arrives right before the owner begins to wait is only noticed afterwards. Nobody can
    tell from here, so that it is pressed again, like people do.
    """
    never = threading.Event()
    while True:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        for _ in range(500):
            if is_noticed():
                return
            never.wait(0.001)


def interrupt_owner(me: Fiber[str, str]) -> None:
    press_ctrl_c(lambda: me.interrupted)


class TestCtrlC:
    def test_the_step_is_finished(self) -> None:
        def body(me: Fiber[str, str]) -> str:
            interrupt_owner(me)
            given = me.pause("the whole step")
            return f"and then {given}"

        one = fiber(body)
        assert one.resume() == "the whole step"
        assert one.interrupted
        assert one.resume("stop") == "and then stop"

    def test_what_a_handler_raised_is_kept(self) -> None:
        class Terminated(KeyboardInterrupt):
            pass

        def handle(number: int, frame: object) -> None:
            raise Terminated

        def body(me: Fiber[str, str]) -> str:
            signal.raise_signal(signal.SIGTERM)
            return "result"

        one = fiber(body)
        assert one.interruption is None
        before = signal.signal(signal.SIGTERM, handle)
        try:
            assert one.resume() == "result"
        finally:
            signal.signal(signal.SIGTERM, before)
        assert isinstance(one.interruption, Terminated)

    def test_a_signal_that_only_shows_once_the_baton_is_back(self) -> None:
        # Raised in this thread, the signal does not wake the owner: Python sees to it when the
        # owner's waiting call has succeeded.
        def body(me: Fiber[str, str]) -> str:
            for number in range(20):
                signal.raise_signal(signal.SIGINT)
                me.pause(f"step {number}")
            return "end"

        one = fiber(body)
        for number in range(20):
            one.interrupted = False
            assert one.resume() == f"step {number}"
            assert one.interrupted
        one.interrupted = False
        assert one.resume() == "end"
        assert not one.interrupted

    def test_the_last_value_is_not_lost(self) -> None:
        def body(me: Fiber[str, str]) -> str:
            signal.raise_signal(signal.SIGINT)
            return "result"

        one = fiber(body)
        assert one.resume() == "result"
        assert one.done
        assert one.interrupted

    def test_nor_is_an_error(self) -> None:
        def body(me: Fiber[str, str]) -> str:
            interrupt_owner(me)
            raise ValueError("from the body")

        one = fiber(body)
        with pytest.raises(ValueError, match="from the body"):
            one.resume()
        assert one.interrupted

    def test_one_during_close_does_not_leave_the_fiber_behind(self) -> None:
        def body(me: Fiber[str, str]) -> str:
            try:
                return str(me.pause("step"))
            finally:
                interrupt_owner(me)

        one = fiber(body)
        one.resume()
        one.close()
        assert one.done
        assert one.interrupted


class Stubborn:
    """A fiber whose step goes on after the second Ctrl-C, until it is let go."""

    def __init__(self, then: Callable[[Fiber[str, str]], str]) -> None:
        self.let_go = threading.Event()
        self._raised = threading.Event()
        self._then = then
        self.fiber = fiber(self._body)
        with pytest.raises(KeyboardInterrupt):
            self.fiber.resume()
        self._raised.set()

    def _body(self, me: Fiber[str, str]) -> str:
        interrupt_owner(me)
        press_ctrl_c(self._raised.is_set)
        assert self.let_go.wait(timeout=60)
        return self._then(me)


class TestSecondCtrlC:
    def test_it_does_not_wait_and_close_ends_the_fiber_at_its_next_pause(self) -> None:
        seen: list[str] = []

        def then(me: Fiber[str, str]) -> str:
            try:
                return str(me.pause("step"))
            except FiberClosed:
                seen.append("closed")
                raise

        stubborn = Stubborn(then)
        assert not stubborn.fiber.done
        stubborn.fiber.close()
        assert seen == []
        stubborn.let_go.set()
        stubborn.fiber._thread.join(timeout=60)
        assert seen == ["closed"]
        assert stubborn.fiber.done

    def test_resuming_waits_for_the_step_first(self) -> None:
        def then(me: Fiber[str, str]) -> str:
            return f"given {me.pause('step')}"

        stubborn = Stubborn(then)
        stubborn.let_go.set()
        assert stubborn.fiber.resume("stop") == "given stop"

    def test_resuming_gives_what_it_ended_with(self) -> None:
        stubborn = Stubborn(lambda me: "result")
        stubborn.let_go.set()
        stubborn.fiber._thread.join(timeout=60)
        assert stubborn.fiber.resume("stop") == "result"
