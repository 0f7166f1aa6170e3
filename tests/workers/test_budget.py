"""How many tokens a pass may have: what pays, what fits, and what has failed."""

import pytest

from rapidfireai.workers.budget import NUM_BEFORE_GROWTH, TokenBudget

NARROW, WIDE = "16 tokens a batch", "128 tokens a batch"


def seen(budget: TokenBudget, per_token: int, offset: int, *sizes: int) -> None:
    for num_tokens in sizes:
        budget.passed(NARROW, num_tokens, offset + per_token * num_tokens)


def test_without_knowing_memory_the_knee_alone_counts() -> None:
    budget = TokenBudget(1000)
    budget.passed(NARROW, 64)
    assert budget.limit(NARROW) == budget.limit(WIDE) == 1000
    seen(budget, 10, 0, 64)
    assert budget.limit(NARROW) == 1000, "nobody knows how much is free"


@pytest.mark.parametrize(
    ("sizes", "offset", "expected"),
    [
        ((64,), 0, 50),  # a line through the origin and one pass
        ((64, 64), 0, 50),
        ((64, 128, 256), 100, 40),  # 100 bytes whatever the number of tokens, 10 for each
        ((64, 256), 10_000, 0),  # there is no room for the part that does not grow
    ],
)
def test_as_many_tokens_as_fit_by_the_passes_seen(
    sizes: tuple[int, ...], offset: int, expected: int
) -> None:
    budget = TokenBudget(1000)
    seen(budget, 10, offset, *sizes)
    assert budget.limit(NARROW, free_bytes=500) == expected
    assert budget.limit(NARROW, free_bytes=10**9) == 1000
    assert budget.limit(WIDE, free_bytes=500) == 1000, "of another kind nothing is known"


def test_no_pass_that_was_seen_would_be_judged_smaller_than_it_was() -> None:
    budget = TokenBudget(1000)
    passes = [(64, 700), (128, 1300), (128, 1900), (256, 2500), (512, 5200)]
    for num_tokens, num_bytes in passes:
        budget.passed(NARROW, num_tokens, num_bytes)
    for num_tokens, num_bytes in passes:
        assert budget.limit(NARROW, free_bytes=num_bytes) <= num_tokens


def test_passes_that_need_no_more_with_more_tokens_are_held_to_the_worst_rate() -> None:
    budget = TokenBudget(1000)
    for num_tokens, num_bytes in ((64, 640), (128, 320)):
        budget.passed(NARROW, num_tokens, num_bytes)
    assert budget.limit(NARROW, free_bytes=500) == 50


def test_out_of_memory_cuts_the_budget_and_full_passes_widen_it_again_carefully() -> None:
    budget = TokenBudget(1000)
    budget.failed(800)
    assert budget.limit(NARROW) == 400
    for _ in range(10 * NUM_BEFORE_GROWTH):
        budget.passed(NARROW, 100)
    assert budget.limit(NARROW) == 400, "small passes prove nothing"
    limits = []
    for _ in range(20):
        for _ in range(NUM_BEFORE_GROWTH):
            budget.passed(NARROW, budget.limit(NARROW))
        limits.append(budget.limit(NARROW))
    assert limits[:3] == [600, 700, 750]
    assert limits == sorted(limits)
    assert limits[-1] < 800, "that has failed"
    budget.failed(700)
    assert budget.limit(NARROW) == 350
