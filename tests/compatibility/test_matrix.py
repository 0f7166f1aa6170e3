"""Every row of docs/compatibility.md: run, and written down as it came out.

`pytest tests/compatibility --write-compatibility` writes the page; without it the page has to say
what is seen.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from rapidfireai.training.registry import TRAINERS
from tests.compatibility import adapters, options, page, trainers, trl_trainers, vision
from tests.compatibility.trial import Seen, Trial, refusal, see
from tests.training.solo import SoloRuns

SECTIONS: Mapping[str, tuple[Trial, ...]] = {
    "trainers": trainers.TRIALS,
    "models": vision.TRIALS,
    "adapters": adapters.TRIALS,
    "options": options.OPTIONS,
    "optimizers": options.OPTIMIZERS,
    "data": options.DATA,
}


def _slug(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", name).strip("_")


class Groups:
    """What each group of trials has shown; each is trained once, when the first of it is asked."""

    def __init__(self, solo: SoloRuns, folder: Path) -> None:
        self._solo = solo
        self._folder = folder
        self._begun: set[str] = set()
        self._seen: dict[str, Mapping[str, Seen | AssertionError]] = {}

    def see(self, section: str, trial: Trial) -> Seen:
        """What came of the trial.

        Raises:
            AssertionError: It failed, or gave other numbers than alone.
        """
        group = [t for t in SECTIONS[section] if t is trial or (t.group and t.group == trial.group)]
        key = f"{section}-{trial.group or _slug(trial.name)}"
        if trial.attempt is not None:
            return refusal(trial.attempt, self._folder / key)
        assert key not in self._begun or key in self._seen, "its group has failed as a whole"
        if key not in self._begun:
            self._begun.add(key)
            self._seen[key] = see(group, self._folder / key, self._solo)
        seen = self._seen[key][trial.name]
        if isinstance(seen, AssertionError):
            raise seen
        return seen


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Groups]:
    solo = SoloRuns()
    yield Groups(solo, tmp_path_factory.mktemp("trials"))
    solo.close()


@pytest.mark.parametrize(
    ("section", "trial"),
    [
        pytest.param(
            section,
            trial,
            id=f"{section}-{_slug(trial.name)}",
            marks=[pytest.mark.exam] if trial.exam else [],
        )
        for section, trials in SECTIONS.items()
        for trial in trials
    ],
)
@pytest.mark.filterwarnings("ignore")  # what TRL and PEFT say of their own options
def test_row(section: str, trial: Trial, groups: Groups, writes_page: bool) -> None:
    row = page.line(trial, groups.see(section, trial))
    if writes_page:
        page.write(section, [trial.name for trial in SECTIONS[section]], trial.name, row)
    assert page.lines(section).get(trial.name) == row


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_has_every_row_of_the_table(section: str) -> None:
    assert list(page.lines(section)) == [trial.name for trial in SECTIONS[section]]


def test_every_trainer_of_trl_has_a_row() -> None:
    known = {spec.trainer for spec in TRAINERS.values()}
    names = {
        path.partition(":")[2].removesuffix("Trainer") for path in trl_trainers.found() - known
    }
    rows = {trial.name.strip("`") for trial in trainers.TRIALS}
    assert names <= rows, "TRL has trainers that no trial has tried"
    assert known <= trl_trainers.found()
    assert set(TRAINERS) <= rows


def test_every_method_of_peft_has_a_row() -> None:
    methods = {config.__name__ for config in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    rows = {trial.name.strip("`") for trial in adapters.TRIALS} | {"LoraConfig"}
    assert methods <= rows, "PEFT has methods that no trial has tried"


def test_the_page_names_the_tested_versions() -> None:
    pins = (page.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    versions = page.table("versions").strip()
    assert all(entry.replace(" ", "==") in pins for entry in versions.split(", ")), versions
