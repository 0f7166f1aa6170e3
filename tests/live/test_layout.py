import logging
import math

import pytest

from rapidfireai.core.events import MetricSource
from rapidfireai.live.board import Board
from rapidfireai.live.layout import Layout, format_s, format_value
from rapidfireai.live.table import Line, text
from rapidfireai.testing.simulation import FakeClock
from tests.live.feed import ID, Feed, runs


class Scene:
    """A board, its feed and its layout."""

    def __init__(self, number: int, **knobs: list[object]) -> None:
        some = runs(number, **knobs)
        self.clock = FakeClock()
        self.board = Board(some, self.clock)
        self.feed = Feed(some, self.board)
        self.layout = Layout(self.board)

    def live(self, width: int = 120, height: int = 40) -> list[str]:
        return texts(self.layout.live(width, height))

    def final(self, width: int = 120) -> list[str]:
        return texts(self.layout.final(width))


def texts(lines: list[Line]) -> list[str]:
    return [text(line) for line in lines]


def styles(lines: list[Line]) -> dict[str, str]:
    return {span.text.strip(): span.style for line in lines for span in line if span.style}


def cells(lines: list[str], run_id: int) -> list[str]:
    """The entries of a run's row."""
    return next(line.split() for line in lines if line.split()[:1] == [str(run_id)])


@pytest.fixture
def four() -> Scene:
    """Four runs: one trains, one waits, one has failed, one is queued."""
    scene = Scene(4, learning_rate=[1e-3, 3e-4], seed=[7])
    for run_id in (1, 2, 3):
        scene.feed.start(run_id, notes=("bf16 is off",))
        for step in range(1, 11):
            scene.feed.metrics({"num_tokens": step * 500.0}, run_id, step, source=MetricSource.LOG)
            scene.feed.step(run_id, step, loss=3.0 / step + run_id)
        scene.feed.metrics({"eval_loss": 2.0 - run_id / 10, "eval_f1": 0.5}, run_id, 10)
        memory = {"run_memory_gib": 0.25, "host_memory_gib": 1.25, "cpu_percent": 197.6}
        scene.feed.metrics(memory, run_id, source=MetricSource.DEVICE)
    scene.feed.chunk(2)
    scene.feed.fail(3)
    scene.clock.advance_to(83.0)
    return scene


def test_live_table(four: Scene) -> None:
    assert four.live() == [
        "4 runs: 1 running, 1 waiting, 1 queued, 1 failed · 1:23 elapsed · about 1:40 to go"
        " · CPU 198 % · memory 1.2 GiB",
        "",
        "run  status     learning_rate  chunk  step                 loss  eval_loss  eval_f1"
        "      speed   memory  to go",
        "  1  running            0.001    0/4  ━━────────  10/40  1.3000     1.9000   0.5000"
        "  500 tok/s  256 MiB   0:30",
        "  2  waiting           0.0003    1/4  ━━────────  10/40  2.3000     1.8000   0.5000"
        "  500 tok/s  256 MiB   0:30",
        "  3  failed             0.001    0/4  ━━────────  10/40  3.3000     1.7000   0.5000"
        "  500 tok/s  256 MiB",
        "  4  queued            0.0003",
        "",
        "runs 1-3: bf16 is off",
        "run 3: failed at step 10: ValueError: boom",
    ]


def test_final_table(four: Scene) -> None:
    assert four.final() == [
        "4 runs: 1 running, 1 waiting, 1 queued, 1 failed · 1:23 elapsed · about 1:40 to go",
        "",
        "Ranking by eval_loss, lowest first",
        "run  learning_rate    loss  eval_loss  eval_f1   step  trained  status",
        "  2         0.0003  2.3000     1.8000   0.5000  10/40     0:10  waiting",
        "  1          0.001  1.3000     1.9000   0.5000  10/40     0:10  running",
        "  4         0.0003                                        0:00  queued",
        "  3          0.001  3.3000     1.7000   0.5000  10/40     0:10  failed",
        "",
        "runs 1-3: bf16 is off",
        "run 3: failed at step 10: ValueError: boom",
    ]


@pytest.mark.parametrize("width", [10, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("height", [1, 4, 8, 12, 40])
def test_nothing_is_wider_or_higher_than_the_terminal(four: Scene, width: int, height: int) -> None:
    lines = four.live(width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_a_narrow_table_keeps_what_matters(four: Scene) -> None:
    assert four.live(width=60)[2:4] == [
        "run  status     learning_rate  chunk    loss  eval_loss",
        "  1  running            0.001    0/4  1.3000     1.9000",
    ]
    assert four.final(width=40)[3] == "run    loss  eval_loss   step  status"


def test_colours_say_who_runs_who_leads_and_what_went_wrong(four: Scene) -> None:
    of = styles(four.layout.live(120, 40))
    assert (of["running"], of["failed"]) == ("bold cyan", "red")
    assert of["1.8000"] == "bold green"
    assert "1.9000" not in of
    assert of["failed at step 10: ValueError: boom"] == "red"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_losses_that_are_no_numbers_are_shown_as_such(loss: float) -> None:
    scene = Scene(2)
    scene.feed.start()
    scene.feed.step(loss=loss)
    lines = scene.layout.live(120, 40)
    assert str(loss) in cells(texts(lines), 1)
    assert styles(lines)[str(loss)] == "red"


def test_there_is_no_ranking_where_nothing_was_measured() -> None:
    scene = Scene(1)
    scene.feed.start()
    scene.feed.step(loss=math.nan)
    scene.feed.fail()
    assert scene.final() == [
        "1 run: 1 failed · 0:00 elapsed",
        "",
        "run 1: failed at step 1: ValueError: boom",
    ]
    assert scene.layout.ranking(120) == []


def test_without_tokens_the_speed_is_that_of_steps() -> None:
    scene = Scene(1)
    scene.feed.start()
    scene.feed.step(step=5)
    assert "1.0 steps/s" in scene.live()[3]


def test_the_gpu_is_described_when_there_is_one() -> None:
    scene = Scene(1)
    scene.feed.start()
    scene.feed.metrics(
        {
            "host_memory_gib": 3.0,
            "device_memory_used_gib": 61.23,
            "device_memory_total_gib": 79.1,
            "device_memory_peak_gib": 12.34,
            "device_utilization_percent": 87.0,
        },
        source=MetricSource.DEVICE,
    )
    lines = scene.live()
    assert lines[0].endswith(" · GPU 87 % · memory 61.2 of 79 GiB")
    assert "12.3 GiB" in lines[3]


def many() -> Scene:
    scene = Scene(100)
    for run_id in range(1, 81):
        scene.feed.start(run_id)
        scene.feed.step(run_id, loss=1.0 + run_id / 100)
        if run_id % 10 == 0:
            scene.feed.fail(run_id)
        elif run_id != 77:
            scene.feed.chunk(run_id)
    return scene


def test_of_many_runs_those_that_matter_are_shown() -> None:
    lines = many().live(height=24)
    assert len(lines) == 24
    rows = [line.split() for line in lines[3:] if line.split()[:1] and line.split()[0].isdigit()]
    assert rows[0][:2] == ["77", "running"]
    assert [row[0] for row in rows[1:5]] == ["1", "2", "3", "4"]
    hidden = 100 - len(rows)
    assert f"... and {hidden} more: {hidden - 28} waiting, 20 queued, 8 failed" in lines


def test_of_many_runs_the_best_are_ranked_at_the_end() -> None:
    lines = many().final()
    start = lines.index("Ranking by loss, lowest first")
    ranked = [line.split()[0] for line in lines[start + 2 : start + 22]]
    assert ranked == [str(number) for number in range(1, 23) if number % 10]
    assert lines[start + 22] == "... and 80 more: 1 running, 51 waiting, 20 queued, 8 failed"


def test_a_message_of_many_runs_names_some() -> None:
    assert many().live()[-1] == "runs 10, 20, 30, 40, ...: failed at step 1: ValueError: boom"


def test_only_the_latest_messages_are_shown_and_at_the_end_those_about_runs() -> None:
    scene = Scene(1)
    for number in range(30):
        scene.board.messages.add(f"note {number}", logging.INFO, ID)
    scene.board.messages.add("something else", logging.INFO)
    assert scene.live()[-5:] == [*(f"run 1: note {n}" for n in range(26, 30)), "something else"]
    assert scene.live(height=11)[-2:] == ["", "something else"]
    final = scene.final()
    assert final[2] == "... and 10 earlier messages"
    assert final[-1] == "run 1: note 29"


def test_messages_cannot_move_the_cursor() -> None:
    scene = Scene(1)
    scene.board.messages.add("a\x1b[31mred\x1b[0m\rb\tc\nd\x07", logging.WARNING)
    assert scene.live()[-3:] == ["ared", "  b c", "  d"]
    scene.board.messages.add("", logging.WARNING)
    assert scene.live()[-1] == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1e-05, "1e-05"),
        (0.1 + 0.2, "0.3"),
        (8, "8"),
        (True, "True"),
        (["q_proj", "v_proj"], "q_proj,v_proj"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/S…"),
    ],
)
def test_values_of_knobs_are_short(value: object, shown: str) -> None:
    scene = Scene(2, knob=[value, "other"])
    assert shown in cells(scene.live(), 1)


def test_knobs_of_runs_that_come_later_are_shown_too() -> None:
    scene = Scene(1, learning_rate=[1e-3])
    assert "learning_rate" not in scene.live()[2]
    scene.feed.runs |= {run.id: run for run in runs(2, learning_rate=[1e-3, 1e-4])[1:]}
    scene.feed.start(2)
    assert "learning_rate" in scene.live()[2]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0:00"), (42, "0:42"), (725, "12:05"), (11230, "3:07:10"), (59.7, "1:00")],
)
def test_format_s(seconds: float, expected: str) -> None:
    assert format_s(seconds) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0.0000"),
        (1.23456, "1.2346"),
        (-12.5, "-12.5000"),
        (1e-5, "1.00e-05"),
        (123456.0, "1.23e+05"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_format_value(value: float, expected: str) -> None:
    assert format_value(value) == expected
