import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rapidfireai.demo.dataset import (
    MAX_ANSWER_CHARS,
    MAX_CALL_CHARS,
    _summary,
    entries,
    standard_library,
)
from rapidfireai.errors import DatasetError

ROOT = Path(__file__).parents[2]
ENTRIES = list(entries())
QUESTIONS = standard_library()
ROWS = [*QUESTIONS.train, *QUESTIONS.held_out]


def test_there_are_as_many_rows_as_asked_for() -> None:
    assert (len(QUESTIONS.train), len(QUESTIONS.held_out)) == (384, 64)
    few = standard_library(num_train=3, num_held_out=2)
    assert (len(few.train), len(few.held_out)) == (3, 2)


def test_same_seed_gives_same_rows_and_another_seed_others() -> None:
    assert standard_library() == QUESTIONS
    assert standard_library(seed=1).train != QUESTIONS.train


@pytest.mark.parametrize("preamble", ["", "import torch, datasets"])
def test_another_process_gives_the_same_rows(preamble: str) -> None:
    program = (
        f"{preamble}\nimport dataclasses, json\n"
        "from rapidfireai.demo.dataset import standard_library\n"
        "print(json.dumps(dataclasses.asdict(standard_library())))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT / "src")},
    ).stdout
    assert json.loads(output) == {"train": QUESTIONS.train, "held_out": QUESTIONS.held_out}


def test_no_object_is_both_trained_on_and_held_out() -> None:
    object_of = {e.summary: e.name for e in ENTRIES}
    object_of |= {f"That is `{e.name}`.": e.name for e in ENTRIES}
    object_of |= {f"The call is `{e.call}`.": e.name for e in ENTRIES if e.call}
    train = {object_of[row["response"]] for row in QUESTIONS.train}
    held_out = {object_of[row["response"]] for row in QUESTIONS.held_out}
    assert (len(train), len(held_out)) == (384, 64)
    assert train.isdisjoint(held_out)


def test_entries_differ_in_name_and_summary() -> None:
    assert len({e.name for e in ENTRIES}) == len({e.summary for e in ENTRIES}) == len(ENTRIES)


def test_rows_are_clean() -> None:
    for row in ROWS:
        question, answer = row["instruction"], row["response"]
        assert list(row) == ["instruction", "response"]
        for text in (question, answer):
            assert text.isascii()
            assert text.isprintable()
            assert text == " ".join(text.split())
            assert text[0].isupper()
            assert ">>>" not in text
        assert question[-1] in "?."
        assert answer[-1] == "."
        assert len(answer) <= MAX_ANSWER_CHARS
        assert len(question) <= MAX_ANSWER_CHARS + MAX_CALL_CHARS


def test_questions_are_of_several_kinds() -> None:
    kinds = ("That is `", "The call is `")
    counts = [sum(row["response"].startswith(kind) for row in ROWS) for kind in kinds]
    assert min(*counts, len(ROWS) - sum(counts)) > len(ROWS) // 10


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the  number\nof items.\n\nMore.", "Return the number of items."),
        ("f(x) -> int\n\nReturn the number of items.", "Return the number of items."),
        ("Return the number of items", "Return the number of items."),
        ("Return ``x`` and nothing else.", "Return `x` and nothing else."),
        (f"Return the first one. {'Very ' * 50}long.", "Return the first one."),
        ("Very " * 50, None),
        ("return the number of items.", None),
        ("Return it.", None),
        ("Example of use: >>> f(1)", None),
        ("Return the number of μops.", None),
        ("Deprecated since 3.9, use g instead.", None),
        ("f(x)", None),
        ("", None),
        (None, None),
    ],
)
def test_summary(docstring: str | None, expected: str | None) -> None:
    assert _summary(docstring) == expected


def test_more_rows_than_objects_is_an_error() -> None:
    with pytest.raises(DatasetError, match="100064 rows are wanted, but only"):
        standard_library(num_train=100_000)
