"""Which stored runs the configurations of a script are."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rapidfireai.core.continuation import match_runs
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus


def runs(*identities: str) -> list[Run]:
    """Stored runs, numbered from 1."""
    return [
        Run(id=RunId(number), name=f"run-{number}", config={}, path="", identity=identity)
        for number, identity in enumerate(identities, start=1)
    ]


def ids(found: tuple[Run | None, ...]) -> list[int | None]:
    return [None if run is None else run.id for run in found]


def test_a_new_experiment_knows_nobody() -> None:
    continuation = match_runs([], ["a", "b"])
    assert continuation.known == (None, None)
    assert continuation.missing == continuation.all_known == ()


def test_the_same_script_again_has_the_same_runs() -> None:
    continuation = match_runs(runs("a", "b", "c"), ["a", "b", "c"])
    assert ids(continuation.known) == [1, 2, 3]
    assert continuation.missing == ()


def test_another_order_in_the_script_changes_nothing() -> None:
    assert ids(match_runs(runs("a", "b", "c"), ["c", "a", "b"]).known) == [3, 1, 2]


def test_a_changed_configuration_is_new_and_the_old_one_missing() -> None:
    continuation = match_runs(runs("a", "b"), ["a", "B"])
    assert ids(continuation.known) == [1, None]
    assert ids(continuation.missing) == [2]
    assert ids(continuation.all_known) == [1, 2]


def test_an_added_one_is_new() -> None:
    continuation = match_runs(runs("a", "b"), ["a", "new", "b"])
    assert ids(continuation.known) == [1, None, 2]
    assert continuation.missing == ()


def test_equal_ones_are_told_apart_by_their_order() -> None:
    assert ids(match_runs(runs("a", "a", "a"), ["a", "a", "a"]).known) == [1, 2, 3]
    fewer = match_runs(runs("a", "b", "a"), ["b", "a"])
    assert ids(fewer.known) == [2, 1]
    assert ids(fewer.missing) == [3]
    more = match_runs(runs("a", "b"), ["a", "a", "b"])
    assert ids(more.known) == [1, None, 2]


def test_ended_runs_are_known_too() -> None:
    (stored,) = runs("a")
    stored = replace(stored, status=RunStatus.COMPLETED)
    assert match_runs([stored], ["a"]).known == (stored,)


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abcd")))
def test_every_run_is_known_once_or_missing(stored: list[str], wanted: list[str]) -> None:
    all_runs = runs(*stored)
    continuation = match_runs(all_runs, wanted)
    assert sorted(continuation.all_known, key=lambda run: run.id) == all_runs
    for run, identity in zip(continuation.known, wanted, strict=True):
        assert run is None or run.identity == identity
    unmatched = [w for w, run in zip(wanted, continuation.known, strict=True) if run is None]
    assert not {run.identity for run in continuation.missing} & set(unmatched)
