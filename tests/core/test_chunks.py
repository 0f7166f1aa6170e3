"""Where chunks end: examples, and exact fractions as the oracle."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapidfireai.core.chunks import chunk_ends
from rapidfireai.errors import ConfigError

counts = st.integers(1, 200)
few = st.integers(1, 12)


def ends(num_samples: int, batch: int, num_chunks: int, num_steps: int) -> tuple[int, ...]:
    """Ends for a loader that yields every sample once an epoch, the last batch maybe short."""
    return chunk_ends(
        num_steps=num_steps,
        steps_per_epoch=-(-num_samples // batch),
        samples_per_step=batch,
        samples_per_epoch=num_samples,
        num_chunks=num_chunks,
    )


def first_steps(consumed: list[Fraction], num_chunks: int) -> set[int]:
    """For each k the first step after which k/C is consumed, by looking at every step."""
    return {
        next(step for step, share in enumerate(consumed, 1) if share >= Fraction(k, num_chunks))
        for k in range(1, num_chunks + 1)
    }


@pytest.mark.parametrize(
    ("num_samples", "batch", "num_chunks", "num_steps", "expected"),
    [
        pytest.param(80, 8, 1, 10, (10,), id="one chunk"),
        pytest.param(80, 8, 5, 10, (2, 4, 6, 8, 10), id="even"),
        pytest.param(80, 8, 4, 10, (3, 5, 8, 10), id="boundaries within a step"),
        pytest.param(81, 8, 4, 11, (3, 6, 8, 11), id="short last batch"),
        pytest.param(80, 8, 2, 20, (5, 10, 15, 20), id="two epochs"),
        pytest.param(80, 8, 2, 17, (5, 10, 15, 17), id="max_steps in the second epoch"),
        pytest.param(80, 8, 2, 15, (5, 10, 15), id="max_steps on a boundary"),
        pytest.param(80, 8, 2, 7, (4, 7), id="max_steps below an epoch"),
        pytest.param(80, 8, 4, 1, (1,), id="a single step"),
        pytest.param(24, 8, 10, 6, (1, 2, 3, 4, 5, 6), id="more chunks than steps"),
        pytest.param(3, 8, 4, 2, (1, 2), id="batch above the dataset"),
    ],
)
def test_examples(
    num_samples: int, batch: int, num_chunks: int, num_steps: int, expected: tuple[int, ...]
) -> None:
    assert ends(num_samples, batch, num_chunks, num_steps) == expected


def test_same_samples_whatever_the_batch_size() -> None:
    assert [8 * end for end in ends(96, 8, 4, 12)] == [2 * end for end in ends(96, 2, 4, 48)]


@given(num_samples=counts, batch=few, num_chunks=few, epochs=st.integers(1, 4))
def test_whole_epochs_match_exact_fractions(
    num_samples: int, batch: int, num_chunks: int, epochs: int
) -> None:
    per_epoch = -(-num_samples // batch)
    consumed = [
        Fraction(min(step * batch, num_samples), num_samples) for step in range(1, per_epoch + 1)
    ]
    in_epoch = first_steps(consumed, num_chunks)
    expected = sorted(epoch * per_epoch + end for epoch in range(epochs) for end in in_epoch)
    assert ends(num_samples, batch, num_chunks, epochs * per_epoch) == tuple(expected)


@given(num_samples=counts, batch=few, num_chunks=few, extra=counts)
def test_max_steps_beyond_an_epoch_cuts_the_chunks_off(
    num_samples: int, batch: int, num_chunks: int, extra: int
) -> None:
    per_epoch = -(-num_samples // batch)
    num_steps = per_epoch + extra
    whole = ends(num_samples, batch, num_chunks, num_steps + per_epoch - num_steps % per_epoch)
    expected = (*(end for end in whole if end < num_steps), num_steps)
    assert ends(num_samples, batch, num_chunks, num_steps) == expected


@given(num_steps=counts, num_chunks=few, longer=counts, batch=few, num_samples=counts)
def test_less_than_an_epoch_and_no_length_divide_the_run(
    num_steps: int, num_chunks: int, longer: int, batch: int, num_samples: int
) -> None:
    consumed = [Fraction(step, num_steps) for step in range(1, num_steps + 1)]
    expected = tuple(sorted(first_steps(consumed, num_chunks)))
    for steps_per_epoch in (None, num_steps + longer):
        got = chunk_ends(
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
            samples_per_step=batch,
            samples_per_epoch=num_samples,
            num_chunks=num_chunks,
        )
        assert got == expected


@given(
    num_steps=counts,
    steps_per_epoch=st.none() | counts,
    samples_per_step=few,
    samples_per_epoch=counts,
    num_chunks=few,
)
def test_holds_for_any_counts_also_for_samplers_that_drop_or_repeat(
    num_steps: int,
    steps_per_epoch: int | None,
    samples_per_step: int,
    samples_per_epoch: int,
    num_chunks: int,
) -> None:
    got = chunk_ends(
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
        samples_per_step=samples_per_step,
        samples_per_epoch=samples_per_epoch,
        num_chunks=num_chunks,
    )
    assert got[0] >= 1
    assert got[-1] == num_steps
    assert list(got) == sorted(set(got)), "strictly increasing"
    if steps_per_epoch is not None:
        epochs = -(-num_steps // steps_per_epoch)
        assert len(got) <= num_chunks * epochs
        epoch_ends = set(range(steps_per_epoch, num_steps, steps_per_epoch))
        assert epoch_ends <= set(got), "an epoch's end is a chunk's end"


def test_exact_where_floats_are_not() -> None:
    # In floats 49 * (1 / 49) falls short of 1, as for 30 other values here.
    for num_samples in range(1, 500):
        assert ends(num_samples, 1, num_samples, num_samples) == tuple(range(1, num_samples + 1))


@pytest.mark.parametrize("num_chunks", [0, -1])
def test_no_chunks_is_the_users_mistake(num_chunks: int) -> None:
    with pytest.raises(ConfigError, match=f"num_chunks is {num_chunks}; it must be 1 or more"):
        ends(80, 8, num_chunks, 10)
