"""What is said of real experiments: which runs are compared, and by what."""

from pathlib import Path

import optuna
import pytest

from rapidfireai import Experiment
from rapidfireai.automl import Range, RFOptuna
from rapidfireai.cli import main
from rapidfireai.testing.tiny import text_rows
from tests.recovery import create_model, lora, sft


def test_losses_of_different_kinds_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [
        lora(r, sft(max_steps=2, loss_type=loss_type))
        for loss_type in ("nll", "dft")
        for r in (2, 4)
    ]
    experiment = Experiment("lab", experiment_path=tmp_path)
    experiment.run_fit(configs, create_model, text_rows(16), num_chunks=2)
    findings = experiment.report()
    assert findings.objective.metric == "loss"
    places = {
        int(standing.run.id): (standing.group, standing.place) for standing in findings.standings
    }
    first, second = places[1][0], places[3][0]
    assert first != second
    assert {places[1], places[2]} == {(first, 1), (first, 2)}
    assert {places[3], places[4]} == {(second, 1), (second, 2)}
    assert "2 groups" in findings.why

    page = tmp_path / "report.html"
    assert main(["report", "--path", str(tmp_path), "--html", str(page)]) == 0
    told = capsys.readouterr().out
    for text in (told, page.read_text()):
        assert all(f"Ranking, group {number} of 2" in text for number in (1, 2))


def test_a_search_with_two_objectives(tmp_path: Path) -> None:
    metrics = ["eval_loss", "eval_mean_token_accuracy"]
    search = RFOptuna(
        lora(4, sft(max_steps=2, learning_rate=Range(1e-4, 1e-1, log=True))),
        n_initial=2,
        budget=5,
        objective=["minimize:eval_loss", "maximize:eval_mean_token_accuracy"],
        seed=3,
    )
    experiment = Experiment("lab", experiment_path=tmp_path)
    experiment.run_fit(search, create_model, text_rows(16), text_rows(6, seed=1), num_chunks=2)
    runs = experiment.get_runs_info()
    assert list(runs["status"]) == ["completed"] * 5

    backend = optuna.storages.journal.JournalFileBackend(str(experiment.path / "study.log"))
    study = optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))
    assert [trial.values for trial in study.trials] == runs[metrics].to_numpy().tolist()
    rates = [trial.params["training_args.learning_rate"] for trial in study.trials]
    configured = [config["training_args"]["learning_rate"] for config in runs["config"]]
    assert rates == configured and len(set(rates)) == 5
    front = {trial.number for trial in study.best_trials}
    best = runs[["eval_loss"]].to_numpy().argmin()
    assert best in front or runs["eval_loss"].duplicated().any()
    assert experiment.report(objective="maximize:eval_mean_token_accuracy").standings
