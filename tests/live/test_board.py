import logging
import math
from collections.abc import Sequence

import pytest

from rapidfireai.core.events import (
    MetricSource,
    RunInterrupted,
    RunNoted,
    RunRecovered,
    RunStopped,
)
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run
from rapidfireai.live.board import Board, knobs
from rapidfireai.testing.simulation import FakeClock
from tests.live.feed import ID, Feed, runs

NAN = math.nan


def feed_of(number: int) -> tuple[Board, Feed]:
    some = runs(number)
    board = Board(some, FakeClock())
    return board, Feed(some, board)


def test_a_run_that_nobody_announced_is_taken_in() -> None:
    board = Board([], FakeClock())
    Feed(runs(1), board).start()
    assert list(board.rows) == [1]


def test_tokens_per_second_count_the_time_of_the_step_they_were_logged_at() -> None:
    board, feed = feed_of(1)
    feed.start()
    feed.step(step=1)
    feed.metrics({"num_tokens": 600.0}, step=3, source=MetricSource.LOG)
    assert board.rows[ID].tokens_per_s is None
    feed.step(step=3)
    assert board.rows[ID].tokens_per_s == 200.0
    feed.step(step=4)
    assert board.rows[ID].tokens_per_s == 200.0


def test_runs_are_compared_by_evaluations_and_rewards_only() -> None:
    board, feed = feed_of(1)
    feed.start()
    feed.metrics(
        {"reward": 1.0, "grad_norm": 9.0, "loss": 3.0, "epoch": 0.5}, source=MetricSource.LOG
    )
    feed.metrics({"eval_entropy": 6.0, "eval_f1": 0.5, "eval_runtime": 3.0, "eval_num_tokens": 5.0})
    feed.metrics({"cpu_percent": 99.0}, source=MetricSource.DEVICE)
    assert board.standing().names == ["reward", "eval_f1", "eval_entropy"]


def test_device_metrics_are_kept_by_run_and_for_all() -> None:
    board, feed = feed_of(2)
    feed.start(1)
    feed.metrics({"run_memory_gib": 1.0}, 1, source=MetricSource.DEVICE)
    feed.metrics({"host_memory_gib": 4.0}, 1, source=MetricSource.DEVICE)
    assert board.rows[ID].device == {"run_memory_gib": 1.0, "host_memory_gib": 4.0}
    assert board.rows[RunId(2)].device == {}
    assert board.device == {"host_memory_gib": 4.0}


@pytest.mark.parametrize(
    ("values", "metric", "order"),
    [
        pytest.param([{}, {}, {}], "loss", [1, 2, 3], id="nothing evaluated"),
        pytest.param(
            [{"eval_loss": 3.0}, {"eval_loss": 1.0}, {"eval_loss": 2.0}],
            "eval_loss",
            [2, 3, 1],
            id="lowest first",
        ),
        pytest.param(
            [{"eval_loss": NAN}, {"eval_loss": math.inf}, {"eval_loss": 2.0}],
            "eval_loss",
            [3, 2, 1],
            id="NaN last",
        ),
        pytest.param(
            [{"reward": 3.0, "eval_loss": 0.0}, {"reward": 1.0}, {"reward": 5.0}],
            "reward",
            [3, 1, 2],
            id="highest reward first",
        ),
        pytest.param(
            [{"eval_a_loss": 2.0, "eval_b_loss": 0.0}, {"eval_a_loss": 1.0}, {"eval_a_loss": 3.0}],
            "eval_a_loss",
            [2, 1, 3],
            id="several datasets",
        ),
        pytest.param(
            [{"eval_loss": 9.0}, {"eval_loss": 8.0}, {}], "eval_loss", [2, 1, 3], id="most have it"
        ),
        pytest.param([{"eval_loss": 9.0}, {}, {}], "loss", [1, 2, 3], id="few have it"),
    ],
)
def test_runs_are_ranked(values: Sequence[dict[str, float]], metric: str, order: list[int]) -> None:
    board, feed = feed_of(3)
    for run_id, metrics in enumerate(values, start=1):
        feed.start(run_id)
        feed.step(run_id, loss=float(run_id))
        feed.metrics(metrics, run_id)
    standing = board.standing()
    assert standing.metric == metric
    assert [row.run.id for row in standing.rows] == order
    assert standing.best is standing.rows[0]


def test_failed_runs_come_last_and_do_not_choose_the_metric() -> None:
    board, feed = feed_of(3)
    for run_id in (1, 2, 3):
        feed.start(run_id)
        feed.step(run_id, loss=float(run_id))
    feed.metrics({"eval_loss": 1.0}, 3)
    feed.fail(1)
    feed.fail(2)
    standing = board.standing()
    assert standing.metric == "eval_loss"
    assert [row.run.id for row in standing.rows] == [3, 1, 2]


def test_nobody_is_best_before_there_is_a_value() -> None:
    board, feed = feed_of(1)
    assert board.standing().best is None
    feed.start()
    feed.step(loss=NAN)
    assert board.standing().best is None
    assert Board([], FakeClock()).standing().best is None


def test_remaining_time_takes_runs_without_a_pace_for_average_ones() -> None:
    board, feed = feed_of(3)
    assert board.remaining_s() is None
    feed.start(1, num_steps=10)
    feed.step(1, step=4)
    feed.chunk(1)
    feed.start(2, num_steps=10)
    assert board.remaining_s() == 6 + 10 + 10
    feed.start(3, num_steps=10)  # on a second worker
    assert board.remaining_s() == (6 + 10 + 10) / 2


def test_runs_that_have_ended_take_no_more_time() -> None:
    board, feed = feed_of(1)
    feed.start(num_steps=10)
    feed.step(step=4)
    feed.fail()
    assert board.remaining_s() == 0


def test_a_message_of_several_runs_is_one() -> None:
    board, feed = feed_of(3)
    feed.start(1, notes=("bf16 is off", "columns mapped"))
    feed.start(2, notes=("bf16 is off",))
    feed.start(3)
    feed.send(RunNoted(run_id=RunId(3), note="bf16 is off"))
    feed.send(RunStopped(run_id=RunId(3), reason="pruned", active_s=1.0))
    feed.fail(1)
    messages = board.messages.all()
    assert [(message.text, message.run_ids, message.level) for message in messages] == [
        ("columns mapped", [1], logging.INFO),
        ("bf16 is off", [1, 2, 3], logging.INFO),
        ("stopped: pruned", [3], logging.INFO),
        ("failed at step 0: ValueError: boom", [1], logging.ERROR),
    ]
    assert board.messages.all() == messages


def test_a_run_that_was_interrupted_and_taken_up_again_says_so() -> None:
    board, feed = feed_of(1)
    feed.start()
    feed.send(RunInterrupted(run_id=ID, reason="interrupted by the user", active_s=1.0))
    feed.send(RunRecovered(run_id=ID, step=8, chunks_done=2, active_s=1.0))
    assert [message.text for message in board.messages.all()] == [
        "interrupted by the user",
        "taken up again at step 8",
    ]


def test_old_messages_are_forgotten() -> None:
    board = Board([], FakeClock())
    for number in range(1000):
        board.messages.add(f"message {number}", logging.INFO)
    messages = board.messages.all()
    assert len(messages) == 200
    assert messages[-1].text == "message 999"


def test_elapsed_time_is_the_clocks() -> None:
    clock = FakeClock(100.0)
    board = Board([], clock)
    clock.advance_to(142.0)
    assert board.elapsed_s == 42.0


def run_with(run_id: int, **config: object) -> Run:
    return Run(id=RunId(run_id), name="", config=config, path="")


def test_knobs_are_what_differs() -> None:
    some = [
        run_with(1, training_args={"learning_rate": 1e-3, "seed": 1}, peft={"r": 8}),
        run_with(2, training_args={"learning_rate": 1e-4, "seed": 1}, peft=None),
    ]
    assert knobs(some) == {"learning_rate": {1: 1e-3, 2: 1e-4}, "r": {1: 8}}
    assert knobs(some[:1]) == {}


def test_knobs_of_one_name_are_told_apart() -> None:
    some = [run_with(i, model={"dropout": i}, peft={"dropout": i}) for i in (1, 2)]
    assert list(knobs(some)) == ["model.dropout", "peft.dropout"]
