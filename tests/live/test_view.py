"""The view as a whole, on terminals that are none and on no terminal at all."""

import io
import logging
import random
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import rich
import torch
from rich.console import Console

from rapidfireai.core.engine import Engine, Listener
from rapidfireai.core.events import (
    ChunkAssigned,
    Event,
    RunFailed,
    RunInterrupted,
    RunNoted,
    RunRecovered,
    RunStopped,
)
from rapidfireai.core.ids import RunId, WorkerId
from rapidfireai.core.run import Run
from rapidfireai.live import message_handler, progress_view
from rapidfireai.live.view import MAX_SHARE, MIN_INTERVAL_S, Pace
from rapidfireai.testing.simulation import CommandDesk, FakeClock, SimulatedExecutor
from tests.live.feed import ID, Feed, Tty, frames, runs, terminal

package = logging.getLogger("rapidfireai")


class Ticking:
    """Passes events on, a second after the other: late enough for each to be drawn."""

    def __init__(self, listener: Listener, clock: FakeClock) -> None:
        self._listener = listener
        self._clock = clock

    def on_event(self, before: Run, event: Event, after: Run) -> None:
        self._clock.advance_to(self._clock.now() + 1.0)
        self._listener.on_event(before, event, after)


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """What the experiment's log gets."""
    records: list[logging.LogRecord] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    keeper, level = Keeper(), package.level
    package.addHandler(keeper)
    package.setLevel(logging.INFO)
    yield records
    package.removeHandler(keeper)
    package.setLevel(level)


def simulate(
    some: list[Run], listener: Listener, failures: tuple[int, ...] = (), num_chunks: int = 5
) -> None:
    """Train the runs in simulated time, chunks of one step and one second."""
    executor = SimulatedExecutor(
        FakeClock(),
        num_workers=1,
        durations_s={run.id: [1.0] * num_chunks for run in some},
        failures={RunId(run_id): 2 for run_id in failures},
    )
    Engine(some, executor, CommandDesk(), [listener]).run()


@contextmanager
def view(some: list[Run], console: Console) -> Iterator[Listener]:
    clock = FakeClock()
    with progress_view(some, console=console, clock=clock) as listener:
        yield Ticking(listener, clock)


def test_a_terminal_shows_the_table_and_ends_with_the_ranking() -> None:
    console, some = terminal(), runs(3, learning_rate=[1e-3, 1e-4])
    with view(some, console) as listener:
        simulate(some, listener, failures=(2,))
    *live, final = frames(console)
    assert any("  1  waiting            0.001    1/5  ━━────────  1/5  1.0000" in it for it in live)
    assert not any("Ranking" in frame for frame in live)
    assert final.splitlines()[2:] == [
        "Ranking by loss, lowest first",
        "run  learning_rate    loss  step  trained  status",
        "  1          0.001  0.2000   5/5     0:05  completed",
        "  3          0.001  0.2000   5/5     0:05  completed",
        "  2         0.0001  0.5000   2/5     0:03  failed",
        "",
        "run 2: failed at step 2: told to fail at chunk 2",
    ]


def test_a_hundred_runs_fit_the_screen() -> None:
    console, some = terminal(width=60, height=20), runs(100, learning_rate=[1e-3, 1e-4])
    with view(some, console) as listener:
        simulate(some, listener, num_chunks=1)
    for frame in frames(console)[:-1]:
        lines = frame.splitlines()
        assert max(map(len, lines)) <= 60
        assert len(lines) == 19
        assert re.match(r"\.\.\. and 85 more: ", lines[-1])
    assert len(frames(console)) > 300


def test_a_terminal_without_unicode_gets_ascii() -> None:
    console, some = terminal(encoding="ascii"), runs(2, name=["Müller-and-a-long-name", "ß"])
    with view(some, console) as listener:
        logging.getLogger("rapidfireai").warning("naïve")
        simulate(some, listener)
    shown = "\n".join(frames(console))
    assert "##--------  1/5" in shown
    assert "M?ller-and-a-lo~" in shown
    assert "2 runs: 2 completed | " in shown


@pytest.mark.parametrize(
    ("is_tty", "environment"),
    [
        pytest.param(False, {}, id="file"),
        pytest.param(False, {"FORCE_COLOR": "1"}, id="CI"),
        pytest.param(True, {"TERM": "dumb"}, id="dumb terminal"),
        pytest.param(True, {"TERM": "xterm", "TTY_INTERACTIVE": "0"}, id="told not to"),
    ],
)
def test_elsewhere_there_are_plain_lines(
    is_tty: bool, environment: dict[str, str], logged: list[logging.LogRecord]
) -> None:
    file = Tty(is_tty=is_tty)
    some = runs(2, learning_rate=[1e-3, 1e-4])
    with view(some, Console(file=file, _environ=environment)) as listener:
        simulate(some, listener, failures=(2,))
    assert file.written == ""
    assert [record.getMessage() for record in logged] == [
        "run 1  5 steps in 5 chunks",
        "run 1  chunk 1/5  step 1/5  loss 1.0000  0:04 to go",
        "run 2  5 steps in 5 chunks",
        "run 2  chunk 1/5  step 1/5  loss 1.0000  0:04 to go",
        "run 1  chunk 2/5  step 2/5  loss 0.5000  0:03 to go",
        "run 2  chunk 2/5  step 2/5  loss 0.5000  0:03 to go",
        "run 1  chunk 3/5  step 3/5  loss 0.3333  0:02 to go",
        "run 2  failed at step 2: told to fail at chunk 2",
        "run 1  chunk 4/5  step 4/5  loss 0.2500  0:01 to go",
        "run 1  chunk 5/5  step 5/5  loss 0.2000  completed in 0:05",
        "Ranking by loss, lowest first",
        "run  learning_rate    loss  step  trained  status",
        "  1          0.001  0.2000   5/5     0:05  completed",
        "  2         0.0001  0.5000   2/5     0:03  failed",
    ]


def test_every_end_of_a_run_is_a_line(logged: list[logging.LogRecord]) -> None:
    some = runs(1)
    with view(some, Console(file=io.StringIO())) as listener:
        feed = Feed(some, listener)
        feed.start()
        feed.send(RunNoted(run_id=ID, note="moved to host memory"))
        feed.send(RunInterrupted(run_id=ID, reason="interrupted by the user", active_s=0.0))
        feed.send(RunRecovered(run_id=ID, step=3, chunks_done=0, active_s=0.0))
        feed.send(RunStopped(run_id=ID, reason="pruned", active_s=0.0))
    assert [record.getMessage() for record in logged[1:]] == [
        "run 1  note: moved to host memory",
        "run 1  interrupted at step 0: interrupted by the user",
        "run 1  taken up again at step 3",
        "run 1  stopped at step 3: pruned",
    ]


def test_what_a_failing_run_leaves_behind_is_a_line(logged: list[logging.LogRecord]) -> None:
    some = runs(1)
    with view(some, Console(file=io.StringIO())) as listener:
        feed = Feed(some, listener)
        feed.start()
        feed.send(
            RunFailed(run_id=ID, error="boom", traceback="", active_s=0.0, notes=("not saved",))
        )
    assert [record.getMessage() for record in logged[1:]] == [
        "run 1  failed at step 0: boom",
        "run 1  note: not saved",
    ]


def test_a_note_of_several_runs_is_one_line(logged: list[logging.LogRecord]) -> None:
    some = runs(2)
    with view(some, Console(file=io.StringIO())) as listener:
        feed = Feed(some, listener)
        feed.start(1, notes=("bf16 is off",))
        feed.start(2, notes=("bf16 is off", "columns mapped"))
    assert [record.getMessage() for record in logged if "note" in record.getMessage()] == [
        "run 1  note: bf16 is off",
        "run 2  note: columns mapped",
    ]


def test_evaluations_are_in_the_lines(logged: list[logging.LogRecord]) -> None:
    some = runs(1)
    with view(some, Console(file=io.StringIO())) as listener:
        feed = Feed(some, listener)
        feed.start()
        feed.step()
        feed.metrics({"eval_entropy": 6.0, "eval_loss": 2.5, "eval_f1": 0.5, "eval_bleu": 0.25})
        feed.chunk()
    assert "loss 2.0000  eval_loss 2.5000  eval_f1 0.5000  eval_bleu 0.2500  0:39 to go" in (
        logged[1].getMessage()
    )


def test_the_log_has_the_lines_in_a_terminal_too(logged: list[logging.LogRecord]) -> None:
    some = runs(1)
    with view(some, terminal()) as listener:
        simulate(some, listener)
    messages = [record.getMessage() for record in logged]
    assert "run 1  chunk 5/5  step 5/5  loss 0.2000  completed in 0:05" in messages
    assert "Ranking by loss, lowest first" in messages


def test_messages_are_below_the_table_once_and_their_handlers_come_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's handlers count as if the application had set logging up.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    handler = message_handler()
    package.addHandler(handler)
    try:
        console, some = terminal(), runs(1)
        with view(some, console) as listener:
            for _ in range(3):
                logging.getLogger("rapidfireai.x").warning("from the package")
                logging.getLogger("trl.trainer").warning("from a library")
                with warnings.catch_warnings():
                    warnings.simplefilter("always")
                    warnings.warn("old name", FutureWarning, stacklevel=1)
            simulate(some, listener)
            assert handler not in package.handlers
        assert package.handlers == [handler]
        assert logging.getLogger("trl").handlers == []
        assert warnings.showwarning.__module__ == "warnings"
    finally:
        package.removeHandler(handler)
    end = frames(console)[-1]
    for text in ("from the package", "from a library", "FutureWarning: old name"):
        assert end.count(text) == 1
    assert "chunk 5/5" not in end
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_messages_outside_of_a_view_are_not_red_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for is_notebook, stream in ((False, sys.stderr), (True, sys.stdout)):
        monkeypatch.setattr(rich, "get_console", lambda it=is_notebook: Console(force_jupyter=it))
        handler = message_handler()
        assert isinstance(handler, logging.StreamHandler)
        assert handler.stream is stream


def test_what_the_application_prints_by_a_handler_of_its_own_is_above_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`logging.basicConfig` has kept the stderr of before, which the view has to exchange."""
    console, some = terminal(), runs(1)
    monkeypatch.setattr(sys, "stdout", console.file)
    monkeypatch.setattr(sys, "stderr", console.file)
    handler = logging.StreamHandler()
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with view(some, console) as listener:
        simulate(some, listener)
        logging.getLogger("application").warning("from the application")
        assert handler.stream is not console.file
    assert handler.stream is sys.stderr is console.file
    shown = frames(console)
    above = next(frame for frame in shown if "from the application" in frame)
    assert above.startswith("from the application\n1 run: ")
    assert not any("chunk 5/5" in frame for frame in shown)


def test_what_the_application_logs_goes_its_own_way(caplog: pytest.LogCaptureFixture) -> None:
    console, some = terminal(), runs(1)
    with view(some, console) as listener, caplog.at_level(logging.INFO):
        logging.getLogger("trl").warning("from a library")
        simulate(some, listener)
    assert "from a library" in caplog.messages
    assert not any("from a library" in frame for frame in frames(console))


def test_a_failing_terminal_is_given_up_and_the_runs_go_on(
    logged: list[logging.LogRecord],
) -> None:
    console, some = terminal(), runs(2)
    with view(some, console) as listener:
        console.file.close()
        simulate(some, listener)
    given_up = [record for record in logged if record.exc_info]
    assert [record.getMessage() for record in given_up] == ["the live view has been given up"]
    assert logged[-1].getMessage().startswith("  2 ")
    assert sys.stdout is not None


def test_drawing_takes_no_random_numbers() -> None:
    some = runs(5, learning_rate=[1e-3, 1e-4])
    before = (
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]
        torch.get_rng_state().tolist(),
    )
    with view(some, terminal()) as listener:
        simulate(some, listener)
    assert before == (
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]
        torch.get_rng_state().tolist(),
    )


def test_who_trains_now_is_drawn_at_once() -> None:
    """The step that follows may take long, and nothing is drawn during a step."""
    console, some = terminal(), runs(2)
    with progress_view(some, console=console, clock=FakeClock()) as listener:
        feed = Feed(some, listener)
        feed.start(1)
        feed.step(1)
        feed.metrics({"eval_loss": 1.2345}, 1)
        feed.chunk(1)
        feed.send(ChunkAssigned(run_id=RunId(2), worker_id=WorkerId(0), chunk=0))
        shown = frames(console)[-1].splitlines()
    assert re.match(r"  1  waiting      1/4 .* 1\.2345 ", shown[-2])
    assert re.match(r"  2  running", shown[-1])


@pytest.mark.parametrize("cost_s", [0.0, 0.001, 0.01, 0.2])
def test_drawing_keeps_to_its_share_and_its_interval(
    cost_s: float,
) -> None:
    clock = FakeClock()
    pace = Pace(clock)
    num_frames = 0
    while clock.now() < 1000.0:
        clock.advance_to(clock.now() + 0.003)
        if pace.is_due(urgent=False):
            num_frames += 1
            with pace.drawing():
                clock.advance_to(clock.now() + cost_s)
    assert num_frames <= 1000.0 / MIN_INTERVAL_S + 1
    assert num_frames * cost_s <= 1.05 * MAX_SHARE * 1000.0 + 0.3
    assert num_frames >= min(1000.0 / MIN_INTERVAL_S, MAX_SHARE * 1000.0 / max(cost_s, 1e-9)) * 0.9


def test_urgent_frames_come_out_of_the_same_share() -> None:
    clock = FakeClock()
    pace = Pace(clock)
    spent_s = 0.0
    while clock.now() < 100.0:
        clock.advance_to(clock.now() + 0.001)
        if pace.is_due(urgent=True):
            with pace.drawing():
                clock.advance_to(clock.now() + 0.004)
            spent_s += 0.004
    assert spent_s == pytest.approx(MAX_SHARE * 100.0, rel=0.2)
