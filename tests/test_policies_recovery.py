"""Scripts with a policy, or a search that learns, decide the same whenever they are killed."""

import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from rapidfireai import Experiment
from rapidfireai.cli import main
from rapidfireai.core.run import RunStatus
from rapidfireai.errors import ObjectiveError
from rapidfireai.policies import MedianPolicy
from rapidfireai.store import SqliteStore
from rapidfireai.testing.tiny import text_rows
from tests import recovery
from tests.children import Children
from tests.recovery import Fault, Script, create_model, lora, sft


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    server = Children(("tests.recovery", "trl.trainer.sft_trainer", "optuna"))
    yield server
    server.close()


def run(script: Script, folder: Path, children: Children) -> int:
    plain = recovery.plain(replace(script, folder=str(folder)))
    printed = folder / "printed.txt"
    return children.start("tests.recovery:run", plain, output=printed).wait()


@pytest.mark.parametrize(
    ("decides", "kills"), [("median", (24, 20)), ("optuna", (22, 18))], ids=["policy", "search"]
)
def test_kill_9(decides: str, kills: tuple[int, int], tmp_path: Path, children: Children) -> None:
    script = Script("SFT", folder="", decides=decides, checkpoint_every=2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run(script, whole, children) == 0, (whole / "printed.txt").read_text()
    for number in kills:
        fault = Fault(event=True, number=number)
        assert run(replace(script, fault=fault), killed, children) == -signal.SIGKILL
    assert run(script, killed, children) == 0, (killed / "printed.txt").read_text()
    assert recovery.left_behind(killed / "exam") == recovery.left_behind(whole / "exam")
    assert recovery.decisions(killed / "exam") == recovery.decisions(whole / "exam")
    if decides == "median":
        assert recovery.decisions(whole / "exam"), "something was decided"
    else:
        assert len(recovery.left_behind(whole / "exam")["runs"]) == 4


def test_kill_9_between_a_run_and_the_next_one_of_a_search(
    tmp_path: Path, children: Children
) -> None:
    script = Script("SFT", folder="", decides="one by one", checkpoint_every=2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run(script, whole, children) == 0, (whole / "printed.txt").read_text()
    events = [line["event"] for line in recovery.life_log(whole) if "event" in line]
    fault = Fault(event=True, number=1 + events.index("RunCompleted"))
    assert run(replace(script, fault=fault), killed, children) == -signal.SIGKILL
    with closing(SqliteStore(killed / "exam" / "experiment.db")) as store:
        assert [run.status for run in store.runs()] == [RunStatus.COMPLETED]
    assert run(script, killed, children) == 0, (killed / "printed.txt").read_text()
    assert recovery.left_behind(killed / "exam") == recovery.left_behind(whole / "exam")
    assert len(recovery.left_behind(whole / "exam")["runs"]) == 2
    # It has ended now: what the same script begins is another experiment.
    assert Experiment("exam", experiment_path=whole).path != whole / "exam"


def test_an_objective_that_nobody_reports_ends_the_training_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [lora(2, sft(max_steps=4)), lora(4, sft(max_steps=4))]
    rows = text_rows(16)
    experiment = Experiment("lab", experiment_path=tmp_path)
    with pytest.raises(ObjectiveError, match=r"what they report is .*eval_loss"):
        experiment.run_fit(
            configs, create_model, rows, text_rows(6), num_chunks=2,
            policy=MedianPolicy(objective="minimize:eval_los"),
        )  # fmt: skip
    assert list(experiment.get_runs_info()["status"]) == ["interrupted"] * 2
    again = Experiment("lab", experiment_path=tmp_path)
    again.run_fit(configs, create_model, rows, text_rows(6), num_chunks=2, policy="auto")
    assert list(again.get_runs_info()["status"]) == ["completed"] * 2

    assert (again.path / "report.html").exists()
    page = tmp_path / "report.html"
    assert main(["report", "lab", "--path", str(tmp_path), "--html", str(page)]) == 0
    told = capsys.readouterr().out
    assert "runs by eval_loss" in told and "16 of 16 steps" not in told
    assert "8 of 8 steps were trained: 0% saved" in told
    html = page.read_text()
    assert html.count("<svg") == 2 and "http" not in html.replace("http://www.w3.org/2000/svg", "")
    findings = again.report(objective="maximize:eval_mean_token_accuracy")
    assert [s.place for s in findings.standings] == [1, 2]
    assert main(["report", "nothing", "--path", str(tmp_path)]) == 1
