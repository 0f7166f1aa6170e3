"""Which way passes are done: measured, kept, told, and recalled."""

from itertools import chain

import pytest

from rapidfireai.core.events import Event, ModeChosen, PassMode, RunNoted
from rapidfireai.core.ids import RunId
from rapidfireai.workers.modes import NUM_MEASURED, NUM_WARM_UP, PassModes

A, B, C, D, E = map(RunId, range(1, 6))
KIND = "16 tokens a batch"
FUSED, SLICED = PassMode.FUSED, PassMode.SLICED


def do_passes(modes: PassModes, num: int, gang: list[RunId], kind: str = KIND) -> list[PassMode]:
    """Passes of 32 tokens a run, of which a shared one takes 2 s and others 1 s for each run."""
    done = []
    for _ in range(num):
        mode, trial = modes.choose(kind, gang)
        done.append(mode)
        if trial is not None:
            seconds = 2.0 if mode is FUSED else float(len(gang))
            modes.took(kind, seconds, 32 * len(gang), len(gang))
    return done


def told(modes: PassModes) -> list[tuple[RunId, PassMode, tuple[RunId, ...]]]:
    events = modes.take_events()
    assert all(isinstance(event, ModeChosen) for event in events)
    return [(e.run_id, e.mode, e.members) for e in events if isinstance(e, ModeChosen)]


@pytest.fixture
def modes() -> PassModes:
    return PassModes(measures=True)


def test_both_ways_are_measured_by_turns_equally_often(modes: PassModes) -> None:
    done = do_passes(modes, NUM_WARM_UP + NUM_MEASURED, [A, B, C, D])
    assert done[:8] == [FUSED, SLICED, SLICED, FUSED] * 2
    assert done[NUM_WARM_UP:].count(FUSED) == done[NUM_WARM_UP:].count(SLICED) == NUM_MEASURED / 2


@pytest.mark.parametrize(("gang", "kept"), [([A, B, C, D], FUSED), ([A, B], SLICED)])
def test_the_quicker_one_is_kept(gang: list[RunId], kept: PassMode, modes: PassModes) -> None:
    """Two runs take as long together as alone, so that sharing saves nothing."""
    assert not told(modes)
    do_passes(modes, NUM_WARM_UP + NUM_MEASURED, gang)
    (first, *_) = events = modes.take_events()
    assert [event.run_id for event in events] == gang
    assert isinstance(first, ModeChosen)
    assert (first.mode, first.kind) == (kept, KIND)
    assert (first.fused_s, first.sliced_s) == (2.0 / len(gang), 1.0)
    assert set(do_passes(modes, 5, gang)) == {kept}
    assert not told(modes)


def test_the_beginning_does_not_count(modes: PassModes) -> None:
    for _ in range(NUM_WARM_UP):
        modes.choose(KIND, [A, B, C])
        modes.took(KIND, 1000.0, 32, 3)
    do_passes(modes, NUM_MEASURED, [A, B, C])
    assert told(modes) == [(run_id, FUSED, (A, B, C)) for run_id in (A, B, C)]


def test_one_slow_pass_decides_nothing(modes: PassModes) -> None:
    do_passes(modes, NUM_WARM_UP, [A, B, C])
    assert modes.choose(KIND, [A, B, C])[0] is FUSED
    modes.took(KIND, 1000.0, 96, 3)
    do_passes(modes, NUM_MEASURED - 1, [A, B, C])
    assert {mode for _, mode, _ in told(modes)} == {FUSED}


def test_kinds_of_passes_are_measured_apart(modes: PassModes) -> None:
    do_passes(modes, NUM_WARM_UP + NUM_MEASURED, [A, B, C, D])
    wide = do_passes(modes, 4, [A, B, C, D], "128 tokens a batch")
    assert wide == [FUSED, SLICED, SLICED, FUSED]


def test_who_joins_a_gang_that_stays_much_the_same_is_told(modes: PassModes) -> None:
    do_passes(modes, NUM_WARM_UP + NUM_MEASURED, [A, B, C])
    told(modes)
    assert do_passes(modes, 4, [A, B, C, D]) == [FUSED] * 4
    assert told(modes) == [(D, FUSED, (A, B, C))]


def test_another_gang_is_measured_again_and_the_old_one_is_remembered(modes: PassModes) -> None:
    do_passes(modes, NUM_WARM_UP + NUM_MEASURED, [A, B, C, D])
    told(modes)
    assert SLICED in do_passes(modes, NUM_WARM_UP + NUM_MEASURED, [A, B])
    assert told(modes) == [(run_id, SLICED, (A, B)) for run_id in (A, B)]
    assert do_passes(modes, 4, [A, B, C, D]) == [FUSED] * 4


def test_a_trial_of_a_gang_that_changes_begins_anew(modes: PassModes) -> None:
    do_passes(modes, NUM_WARM_UP + NUM_MEASURED - 1, [A, B, C])
    assert do_passes(modes, NUM_WARM_UP + NUM_MEASURED, [D, E])[0] is FUSED
    assert told(modes) == [(run_id, SLICED, (D, E)) for run_id in (D, E)]


def test_a_run_alone_and_without_measuring_nothing_is_tried(modes: PassModes) -> None:
    assert modes.choose(KIND, [A]) == (FUSED, None)
    assert PassModes(measures=False).choose(KIND, [A, B]) == (FUSED, None)


def test_what_another_process_chose_is_recalled(modes: PassModes) -> None:
    events: list[Event] = []
    for gang in ([A, B, C, D], [A, B]):
        do_passes(modes, NUM_WARM_UP + NUM_MEASURED, gang)
        events += modes.take_events()
    start = ModeChosen(run_id=A, mode=FUSED, reason="shares its passes")
    later = PassModes(measures=True)
    later.recall(chain([start, RunNoted(run_id=A, note="bf16")], events))
    assert do_passes(later, 4, [A, B]) == [SLICED] * 4
    assert do_passes(later, 4, [A, B, C, D, E]) == [FUSED] * 4
    assert told(later) == [(E, FUSED, (A, B, C, D))]
