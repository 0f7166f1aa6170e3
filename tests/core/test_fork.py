"""Where a clone begins: no row twice, none left out, and no step too many or too few."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapidfireai.core.fork import (
    ForkPlan,
    Length,
    OptimizerState,
    Schedule,
    Standing,
    Walk,
    plan_fork,
)
from rapidfireai.errors import ConfigError

RANDOM = "SeedableRandomSampler"


def batches(batch_size: int, accumulation: int = 1, num_rows: int = 64, **more: int) -> Walk:
    return Walk(
        num_rows=num_rows,
        group=batch_size,
        batch_size=batch_size,
        accumulation=accumulation,
        order=RANDOM,
        **more,  # type: ignore[arg-type]
    )


def epochs(number: float) -> Length:
    return Length(max_steps=-1, num_epochs=number)


def steps(number: int) -> Length:
    return Length(max_steps=number, num_epochs=3.0)


def transformers_steps(walk: Walk, length: Length) -> int:
    """How many steps a run does that trains alone."""
    return (
        length.max_steps
        if length.max_steps > 0
        else math.ceil(length.num_epochs * walk.epoch_steps)
    )


def rows_of_steps(walk: Walk, offset: int = 0) -> Iterator[range]:
    """The rows of an epoch's steps, from the offset on, as a data loader hands them out."""
    assert walk.num_rows is not None
    stops = [*range(offset + walk.group, walk.num_rows + 1, walk.group)]
    if not walk.drops_last and (stops[-1] if stops else offset) < walk.num_rows:
        stops.append(walk.num_rows)
    groups = [range(start, stop) for start, stop in zip([offset, *stops], stops, strict=False)]
    made = [group for group in groups for _ in range(walk.repeats)]
    for start in range(0, len(made), walk.accumulation):
        taken = made[start : start + walk.accumulation]
        yield range(taken[0].start, taken[-1].stop)


walks = st.builds(
    lambda group, repeats, accumulation, drops: Walk(
        num_rows=48,
        group=group,
        repeats=repeats,
        batch_size=group,
        accumulation=accumulation,
        drops_last=drops or repeats > 1,
        order=RANDOM,
    ),
    st.integers(1, 17),
    st.integers(1, 3),
    st.integers(1, 5),
    st.booleans(),
)
plain_walks = walks.filter(lambda walk: walk.repeats == 1)
lengths = st.one_of(
    st.builds(steps, st.integers(1, 120)),
    st.builds(epochs, st.floats(0.1, 5, allow_nan=False)),
)


def standing(walk: Walk, step: int) -> Standing:
    """Of a run that has trained so many steps; as it is seen in front of the next one's data."""
    epoch, within = divmod(step, walk.epoch_steps)
    total = walk.num_batches(walk.num_rows or 0)
    return Standing(
        step=step,
        epoch=epoch,
        num_batches=min(within * walk.accumulation, total),
        walk=walk,
    )


class TestUnmodified:
    @given(walks, lengths, st.data())
    def test_it_is_where_its_parent_is(
        self, walk: Walk, length: Length, data: st.DataObject
    ) -> None:
        total = transformers_steps(walk, length)
        parent = standing(walk, data.draw(st.integers(0, total - 1)))
        plan = plan_fork(parent, walk, length)
        assert (plan.step, plan.num_steps) == (parent.step, total)
        assert (plan.epoch, plan.offset, plan.num_batches) == (parent.epoch, 0, parent.num_batches)
        assert plan.num_epochs == math.ceil(
            total / walk.epoch_steps if length.max_steps > 0 else length.num_epochs
        )
        assert plan.schedule_start == 0
        assert not plan.renumbered

    @given(walks, lengths)
    def test_of_one_that_is_over_nothing_remains(self, walk: Walk, length: Length) -> None:
        parent = standing(walk, transformers_steps(walk, length))
        with pytest.raises(ConfigError, match="nothing remains to be trained"):
            plan_fork(parent, walk, length)

    def test_an_epoch_that_is_over_is_behind_it(self) -> None:
        walk = batches(8)
        end = Standing(step=8, epoch=0, num_batches=8, walk=walk, completed=True)
        plan = plan_fork(end, walk, epochs(2))
        assert (plan.epoch, plan.num_batches, plan.remaining) == (1, 0, 8)


class TestOtherBatches:
    @given(plain_walks, plain_walks, st.data())
    def test_each_row_once(self, before: Walk, after: Walk, data: st.DataObject) -> None:
        """Of the epoch that the clone enters in its middle."""
        done = data.draw(st.integers(0, before.epoch_steps - 1))
        parent = standing(before, done)
        try:
            plan = plan_fork(parent, after, epochs(3))
        except ConfigError:
            pytest.fail("two epochs remain")
        behind = [row for step in list(rows_of_steps(before))[:done] for row in step]
        if plan.epoch == 0:
            mine = list(rows_of_steps(after, plan.offset + plan.num_batches * after.group))
            seen = behind + [row for step in mine for row in step]
        else:
            mine, seen = [], behind
        # A last batch that is not full is left out if the run leaves such out.
        left_out = 48 - len(seen)
        assert seen == list(range(len(seen)))
        assert left_out < after.group if after.drops_last else left_out == 0
        whole = 3 - 1
        assert (
            plan.remaining
            == len(mine) + (whole - (plan.epoch > 0) + (plan.epoch > 0)) * after.epoch_steps
        )

    @given(walks, walks, st.data())
    def test_it_stands_where_a_run_of_its_own_arguments_would(
        self, before: Walk, after: Walk, data: st.DataObject
    ) -> None:
        done = data.draw(st.integers(0, 3 * before.epoch_steps))
        parent = standing(before, done)
        plan = plan_fork(parent, after, epochs(10))
        if not plan.renumbered:
            assert plan.step == done
            return
        consumed = parent.consumed if plan.epoch == parent.epoch else 0
        alone = [s for s in rows_of_steps(after) if s.stop <= consumed]
        in_epoch = plan.step - plan.epoch * after.epoch_steps
        assert in_epoch == (len(alone) if after.repeats == 1 else after.steps_behind(consumed)) or (
            consumed == 48 and not after.drops_last
        )

    @given(walks, walks, lengths, st.data())
    def test_the_steps_that_remain_are_there(
        self, before: Walk, after: Walk, length: Length, data: st.DataObject
    ) -> None:
        """The epochs that the trainer goes through hold as many steps as it is to do."""
        parent = standing(before, data.draw(st.integers(0, 3 * before.epoch_steps)))
        try:
            plan = plan_fork(parent, after, length)
        except ConfigError as error:
            assert "nothing remains" in str(error)
            return
        first = after.num_steps(48 - plan.offset) - plan.num_batches // after.accumulation
        there = first + (plan.num_epochs - plan.epoch - 1) * after.epoch_steps
        assert 0 < plan.remaining <= there
        if length.max_steps > 0:
            assert plan.num_steps == length.max_steps

    @given(walks, st.integers(0, 48))
    def test_an_epoch_entered_in_its_middle_is_counted_like_a_whole_one(
        self, walk: Walk, offset: int
    ) -> None:
        frame = walk.frame(offset)
        assert frame.num_skipped % walk.accumulation == 0
        mine = len(list(rows_of_steps(walk, offset)))
        assert frame.num_batches - frame.num_skipped == walk.num_batches(48 - offset)
        assert (
            -(-frame.num_batches // walk.accumulation)
            == frame.num_skipped // walk.accumulation + mine
        )

    @pytest.mark.parametrize(
        ("before", "after", "done", "expected"),
        [
            # step, steps of the whole run, rows behind it in the epoch
            (batches(4), batches(8), 5, (2, 16, 20)),  # 44 rows remain: 6 steps, and 8 more
            (batches(8), batches(4), 3, (6, 32, 24)),
            (batches(4), batches(6), 5, (3, 22, 20)),  # 44 rows remain: 8 steps, and 11 more
            (batches(4), batches(2, accumulation=2), 5, (5, 32, 20)),
            (batches(4, num_rows=66), batches(8, num_rows=66), 5, (2, 17, 20)),  # 6 + 9, one fewer
        ],
    )
    def test_known_cases(
        self, before: Walk, after: Walk, done: int, expected: tuple[int, int, int]
    ) -> None:
        plan = plan_fork(standing(before, done), after, epochs(2))
        assert (plan.step, plan.num_steps, plan.offset) == expected

    def test_in_the_epoch_that_is_trained_in_part(self) -> None:
        # 1.5 epochs of 16 steps end at row 32 of the second, 8 rows from here.
        plan = plan_fork(standing(batches(4), 22), batches(8), epochs(1.5))
        assert (plan.step, plan.remaining) == (11, 1)

    def test_prompts_of_a_generation_batch_count_as_used(self) -> None:
        walk = Walk(
            num_rows=12, group=2, repeats=4, copies=4, batch_size=4, accumulation=2,
            drops_last=True, order="RepeatSampler",
        )  # fmt: skip
        parent = Standing(step=1, epoch=0, num_batches=2, walk=walk)
        assert plan_fork(parent, walk, epochs(1)).num_batches == 2
        again = plan_fork(parent, walk, epochs(1), realigns=True)
        assert (again.step, again.offset, again.num_batches, again.remaining) == (1, 2, 0, 10)
        other = replace(walk, copies=2, group=4)
        plan = plan_fork(parent, other, epochs(1))
        assert (plan.offset, plan.remaining) == (2, 4)

    @given(plain_walks, plain_walks, plain_walks, st.data())
    def test_a_clone_of_a_clone(
        self, first: Walk, second: Walk, third: Walk, data: st.DataObject
    ) -> None:
        """Goes on with exactly the next row."""
        walk = replace(second, drops_last=False)
        plan = plan_fork(
            standing(first, data.draw(st.integers(0, first.epoch_steps))), walk, epochs(4)
        )
        num_batches = data.draw(
            st.integers(0, walk.num_batches(48 - plan.offset) - plan.num_batches)
        )
        clone = Standing(
            step=plan.step + num_batches // walk.accumulation,
            epoch=plan.epoch,
            offset=plan.offset,
            num_batches=plan.num_batches + num_batches,
            walk=walk,
        )
        after = replace(third, drops_last=False)
        again = plan_fork(clone, after, epochs(4))
        rows = plan.offset + clone.num_batches * walk.group
        assert again.num_rows == again.epoch * 48 + (
            min(rows, 48) if again.epoch == plan.epoch else 0
        )


class TestSchedule:
    def test_continues_or_restarts(self) -> None:
        parent = standing(batches(4), 5)
        assert plan_fork(parent, batches(4), epochs(2)).schedule_start == 0
        plan = plan_fork(parent, batches(4), epochs(2), schedule=Schedule.RESTART)
        assert plan.schedule_start == plan.step == 5

    def test_a_clone_of_one_that_had_restarted_continues_that(self) -> None:
        parent = replace(standing(batches(4), 12), schedule_start=4)
        assert plan_fork(parent, batches(4), epochs(2)).schedule_start == 4
        assert plan_fork(parent, batches(8), epochs(2)).schedule_start == 2


STREAM = Walk(
    num_rows=None, group=4, batch_size=4, accumulation=1, order="_InfiniteConstantSampler"
)


class TestRefusals:
    def test_nothing_remains_of_steps(self) -> None:
        with pytest.raises(ConfigError, match=r"max_steps=12; give max_steps above 12"):
            plan_fork(standing(batches(4), 12), batches(4), steps(12))

    def test_nothing_remains_of_epochs(self) -> None:
        with pytest.raises(ConfigError, match="num_train_epochs=1 end there; give more"):
            plan_fork(standing(batches(4), 16), batches(4), epochs(1))

    def test_a_stream_goes_on_only_in_the_parents_batches(self) -> None:
        parent = Standing(step=3, epoch=0, num_batches=3, walk=STREAM)
        plan = plan_fork(parent, STREAM, steps(10))
        assert (plan.step, plan.num_batches, plan.remaining, plan.num_rows) == (3, 3, 7, 12)
        with pytest.raises(ConfigError, match="the data is a stream"):
            plan_fork(parent, replace(STREAM, group=8, batch_size=8), steps(10))

    def test_an_order_that_hangs_on_the_batches(self) -> None:
        walk = replace(batches(4), order="LengthGroupedSampler")
        assert plan_fork(standing(walk, 3), walk, epochs(1)).step == 3
        with pytest.raises(ConfigError, match=r"the order of the data \(LengthGroupedSampler\)"):
            plan_fork(standing(walk, 3), replace(walk, group=8), epochs(1))

    def test_other_data(self) -> None:
        parent = standing(batches(4), 3)
        with pytest.raises(ConfigError, match="has 60 rows, and the parent's had 64"):
            plan_fork(parent, batches(4, num_rows=60), epochs(1))
        with pytest.raises(ConfigError, match="drawn by SequentialSampler instead of"):
            plan_fork(parent, replace(batches(4), order="SequentialSampler"), epochs(1))


def test_a_plan_in_words() -> None:
    plan = plan_fork(standing(batches(8, num_rows=800), 50), batches(8, num_rows=800), epochs(1))
    assert plan.describe() == (
        "starts at step 50 of 100 with 400 samples behind it: 50 steps remain"
    )
    last = plan_fork(standing(batches(8), 7), batches(8), epochs(1))
    assert last.describe().endswith("1 step remains")


def test_all_of_it_goes_through_json() -> None:
    parent = standing(batches(4), 5)
    assert Standing.from_json(json.loads(json.dumps(parent.to_json()))) == parent
    plan = plan_fork(parent, batches(6), epochs(2), schedule=Schedule.RESTART)
    assert ForkPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert [*OptimizerState] == ["keep", "reset"]
    assert [*Schedule] == ["continue", "restart"]
