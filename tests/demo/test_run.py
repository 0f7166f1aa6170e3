import io
from pathlib import Path

import pytest
from rich.console import Console

from rapidfireai.demo.dataset import Questions, standard_library
from rapidfireai.demo.run import QUICK, held_out_loss, load, run, train
from rapidfireai.testing.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random model where the demo expects SmolLM2; experiments go below `tmp_path`."""
    monkeypatch.setenv("RF_EXPERIMENT_PATH", str(tmp_path / "experiments"))
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def questions() -> Questions:
    """Those short enough for a tokenizer that knows hardly a word."""
    everything = standard_library()
    train_rows, held_out = (
        [row for row in rows if len(row["instruction"] + row["response"]) < 90]
        for rows in (everything.train, everything.held_out)
    )
    return Questions(train=train_rows, held_out=held_out)


def test_ranks_runs_and_asks_the_best(folder: Path, questions: Questions) -> None:
    written = io.StringIO()
    run(folder, questions, QUICK, Console(file=written, width=120))
    output = written.getvalue()
    ranking = output[output.index("Ranking") : output.index("Held-out questions")]
    assert sorted(line[:5] for line in ranking.splitlines() if line.startswith("run ")) == [
        f"run {number}" for number in (1, 2, 3, 4)
    ]
    assert "base" in ranking
    assert questions.held_out[4]["instruction"] in output
    assert "experiments/demo" in output


def test_loss_is_the_one_that_runs_are_ranked_by(folder: Path, questions: Questions) -> None:
    rows = questions.held_out[:4]
    experiment = train(folder, questions.train, rows, QUICK)
    best = experiment.best("eval_loss")
    model, tokenizer = load(folder, best["path"])
    assert held_out_loss(model, tokenizer, rows) == pytest.approx(best["eval_loss"], rel=1e-5)
