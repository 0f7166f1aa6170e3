"""Optuna's study behind a search: its space, its memory, what it is told."""

from pathlib import Path

import optuna
import pytest

from rapidfireai.automl import List, Range, RFGridSearch, RFLoraConfig, RFModelConfig, RFSFTConfig
from rapidfireai.automl.optuna_search import OptunaStudy, RFOptuna
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.errors import ConfigError, ObjectiveError

SPACE = RFModelConfig(
    peft_config=List([None, RFLoraConfig(r=List([4, 8]), target_modules=["q_proj"])]),
    training_args=RFSFTConfig(learning_rate=Range(1e-5, 1e-2, log=True), max_steps=4),
)


def search(**given: object) -> RFOptuna:
    return RFOptuna(SPACE, **{"n_initial": 3, "budget": 6, "seed": 1, **given})  # type: ignore[arg-type]


def run(number: int, status: RunStatus, chunks: int = 2, **further: object) -> Run:
    return Run(
        id=RunId(number), name="", config={}, path="", status=status, chunks_done=chunks,
        **further,  # type: ignore[arg-type]
    )  # fmt: skip


def show(study: OptunaStudy, runs: list[Run], metrics: dict[int, dict[str, float]]) -> None:
    for one in runs:
        if one.id in metrics:
            study.on_chunk(one, metrics[one.id], runs)


class TestSpace:
    def test_ranges_and_lists_live_in_one_space(self) -> None:
        configs = search(n_initial=20, budget=20).get_runs(0)
        rates = [config.training_args["learning_rate"] for config in configs]
        assert len(set(rates)) == 20 and all(1e-5 <= rate <= 1e-2 for rate in rates)
        assert {None if c.peft is None else c.peft.arguments["r"] for c in configs} == {None, 4, 8}

    def test_knobs_of_an_alternative_are_asked_for_only_if_it_is_chosen(self) -> None:
        study = search(n_initial=20, budget=20).begin(None, 0)
        for trial, config in zip(study.trials, study.configs(), strict=True):
            has_rank = any(name.endswith(".r") for name in trial.params)
            assert has_rank is (config.peft is not None)

    def test_the_same_seed_proposes_the_same(self) -> None:
        assert search().get_runs(5) == search().get_runs(9), "its own seed counts"
        assert search(seed=None).get_runs(5) != search(seed=None).get_runs(9)


class TestStudy:
    def test_a_place_that_gets_free_is_filled_until_the_budget_is_spent(self) -> None:
        study = search().begin(None, 0)
        study.bind([RunId(1), RunId(2), RunId(3)])
        runs = [run(number, RunStatus.WAITING, 1) for number in (1, 2, 3)]
        assert study.next(runs) is None
        show(study, runs, {number: {"eval_loss": float(number)} for number in (1, 2, 3)})
        for number in (4, 5, 6):
            runs[number - 4] = run(number - 3, RunStatus.COMPLETED, 1)
            assert study.next(runs) is not None
            study.begun(RunId(number))
            runs.append(run(number, RunStatus.QUEUED, 0))
        runs[3:] = [run(number, RunStatus.FAILED, 0) for number in (4, 5, 6)]
        assert study.next(runs) is None
        states = [trial.state.name for trial in study.trials]
        assert states == ["COMPLETE"] * 3 + ["FAIL"] * 3
        assert [trial.value for trial in study.trials[:3]] == [1.0, 2.0, 3.0]

    def test_a_run_that_is_ahead_is_told_of_once_its_last_values_are_known(self) -> None:
        study = search().begin(None, 0)
        study.bind([RunId(1), RunId(2), RunId(3)])
        done = run(1, RunStatus.COMPLETED, 2)
        runs = [done, run(2, RunStatus.WAITING, 1), run(3, RunStatus.WAITING, 1)]
        assert study.next(runs) is None
        study.on_chunk(done, {"eval_loss": 0.5}, runs)
        assert study.next(runs) is not None
        assert study.trials[0].value == 0.5

    def test_a_new_process_goes_on(self, tmp_path: Path) -> None:
        place = tmp_path / "study.log"
        first = search().begin(place, 0)
        configs = first.configs()
        # As kill -9 in the middle of a line leaves it.
        with place.open("ab") as file:
            file.write(b'{"op_code": 4, "wor')
        second = search().begin(place, 0)
        assert second.configs() == configs
        second.bind([RunId(1), RunId(2), RunId(3)])
        undisturbed = search().begin(None, 0)
        undisturbed.bind([RunId(1), RunId(2), RunId(3)])
        runs = [
            run(1, RunStatus.COMPLETED, 1),
            run(2, RunStatus.WAITING, 1),
            run(3, RunStatus.WAITING, 1),
        ]
        metrics = {number: {"eval_loss": float(number)} for number in (1, 2, 3)}
        show(second, runs, metrics)
        show(undisturbed, runs, metrics)
        assert second.next(runs) == undisturbed.next(runs)

    def test_a_persons_clone_is_told_if_it_is_in_the_space(self) -> None:
        study = search().begin(None, 0)
        study.bind([RunId(1), RunId(2), RunId(3)])
        modified = {"training_args.learning_rate": [1e-3, 2e-3]}
        clone = run(7, RunStatus.COMPLETED, 1, parent_id=RunId(1), modified=modified)
        other = run(
            8, RunStatus.COMPLETED, 1, parent_id=RunId(1),
            modified={"training_args.weight_decay": [0.0, 0.1]},
        )  # fmt: skip
        runs = [*(run(n, RunStatus.WAITING, 1) for n in (1, 2, 3)), clone, other]
        show(study, runs, {number: {"eval_loss": 1.0} for number in (1, 2, 3, 7, 8)})
        assert study.next(runs) is None
        told = [t for t in study.trials if t.user_attrs]
        assert [t.params["training_args.learning_rate"] for t in told] == [2e-3]
        assert study.next(runs) is None and len(study.trials) == 4, "once"
        assert len(study.configs()) == 3, "a clone is none of the search's runs"

    def test_a_pruned_run_that_went_on_is_told_once_more(self) -> None:
        study = search().begin(None, 0)
        study.bind([RunId(1), RunId(2), RunId(3)])
        others = [run(number, RunStatus.WAITING, 1) for number in (2, 3)]
        runs = [run(1, RunStatus.PRUNED, 1), *others]
        show(study, runs, {number: {"eval_loss": 3.0} for number in (1, 2, 3)})
        assert study.next(runs) is not None
        study.begun(RunId(4))
        runs = [run(1, RunStatus.COMPLETED, 2), *others, run(4, RunStatus.QUEUED, 0)]
        show(study, runs[:1], {1: {"eval_loss": 0.5}})
        assert study.next(runs) is None and study.next(runs) is None
        first, *_, last = study.trials
        assert (first.state.name, last.state.name) == ("PRUNED", "COMPLETE")
        assert last.value == 0.5 and last.params == first.params
        assert len(study.trials) == 5 and len(study.configs()) == 4

    def test_several_objectives_make_a_front(self) -> None:
        study = search(objective=["minimize:eval_loss", "maximize:eval_accuracy"]).begin(None, 0)
        study.bind([RunId(1), RunId(2), RunId(3)])
        runs = [run(n, RunStatus.COMPLETED, 1) for n in (1, 2)] + [run(3, RunStatus.WAITING, 1)]
        metrics = {n: {"eval_loss": float(n), "eval_accuracy": n / 10} for n in (1, 2, 3)}
        show(study, runs, metrics)
        assert study.next(runs) is not None
        assert [t.values for t in study.trials[:2]] == [[1.0, 0.1], [2.0, 0.2]]

    def test_an_objective_that_nobody_reports(self) -> None:
        study = search(objective="minimize:eval_bleu").begin(None, 0)
        study.bind([RunId(1), RunId(2), RunId(3)])
        runs = [run(n, RunStatus.WAITING, 1) for n in (1, 2, 3)]
        with pytest.raises(ObjectiveError, match=r"'eval_bleu'.*eval_loss, loss"):
            show(study, runs, {n: {"loss": 1.0, "eval_loss": 1.0} for n in (1, 2, 3)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": 2}, "budget=2 is less than n_initial=3"),
        ({"objective": "eval_loss"}, "'minimize:eval_loss' or 'maximize:eval_loss'"),
        ({"objective": []}, "give one such as"),
        ({"n_initial": 0}, "n_initial=0"),
        ({"sampler": "tp"}, "did you mean 'tpe'.*one of optuna.samplers"),
        ({"sampler": "cmaes"}, "pip install cmaes"),
        ({"sampler": 3}, "one of optuna.samplers"),
        ({"pruner": "medain"}, "did you mean 'median'"),
        ({"pruner": 3}, "optuna.pruners"),
        ({"granularity": "epoch"}, "num_chunks=1"),
        (
            {"objective": ["minimize:a", "minimize:b"], "pruner": optuna.pruners.NopPruner()},
            "one objective only",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(**given)


def test_it_is_no_part_of_another_search() -> None:
    with pytest.raises(ConfigError, match="give it to run_fit by itself"):
        RFGridSearch([search()])
