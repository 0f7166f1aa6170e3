"""What is said of how a run's passes are computed."""

from rapidfireai.core.events import ModeChosen, PassMode
from rapidfireai.core.ids import RunId
from rapidfireai.core.modes import Choice, chosen, gain, in_words, summary

GANG = (RunId(1), RunId(2))


def measured(kind: str, fused_s: float, sliced_s: float) -> ModeChosen:
    return ModeChosen(
        run_id=RunId(1),
        mode=PassMode.FUSED if fused_s < sliced_s else PassMode.SLICED,
        reason="measured both ways",
        kind=kind,
        members=GANG,
        fused_s=fused_s,
        sliced_s=sliced_s,
    )


START = ModeChosen(run_id=RunId(1), mode=PassMode.FUSED, reason="shares its passes")
ALONE = ModeChosen(run_id=RunId(1), mode=PassMode.SLICED, reason="it trains all weights")


def choices(*events: ModeChosen) -> tuple[Choice, ...]:
    found: tuple[Choice, ...] = ()
    for step, event in enumerate(events):
        found = chosen(found, event, step)
    return found


def test_the_latest_choice_for_a_kind_counts() -> None:
    wide, again = measured("128 tokens a batch", 2.0, 1.0), measured("128 tokens a batch", 1.0, 1.5)
    found = choices(START, wide, measured("16 tokens a batch", 0.5, 0.75), again)
    assert [(one["kind"], one["mode"], one["step"]) for one in found] == [
        ("", "fused", 0),
        ("16 tokens a batch", "fused", 2),
        ("128 tokens a batch", "fused", 3),
    ]
    assert [gain(one) for one in found] == [None, 1.5, 1.5]


def test_a_summary_tells_what_was_measured_or_why_nothing_was() -> None:
    assert summary(()) == ""
    assert summary(choices(ALONE)) == "sliced: it trains all weights"
    assert summary(choices(START)) == "fused: shares its passes"
    found = choices(
        START,
        measured("128 tokens a batch", 2.0, 1.0),
        measured("32 tokens a batch", 0.5, 0.75),
        measured("16 tokens a batch", 0.5, 1.0),
    )
    assert summary(found) == (
        "fused: 16 tokens a batch 2.00x, 32 tokens a batch 1.50x; sliced: 128 tokens a batch 0.50x"
    )


def test_a_choice_is_told_with_what_was_measured() -> None:
    start, wide = choices(START, measured("128 tokens a batch", 0.02, 0.01))
    assert in_words(start) == "passes: fused, shares its passes"
    assert in_words(wide) == (
        "128 tokens a batch: sliced, measured both ways: 0.50 times as fast together (20 ms a "
        "pass) as alone (10 ms), runs 1, 2"
    )
