"""What each policy does to runs whose curves are known."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import optuna
import pytest

from rapidfireai.core.commands import Command, CommandStatus, Verb
from rapidfireai.core.engine import Engine
from rapidfireai.core.ids import RunId
from rapidfireai.core.policy import Policy
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.errors import ConfigError
from rapidfireai.policies import (
    CurvePolicy,
    MedianPolicy,
    OptunaPruner,
    PopulationBased,
    Round,
    SuccessiveHalving,
    ThresholdPolicy,
    as_policies,
)
from rapidfireai.testing.simulation import CommandDesk, FakeClock, SimulatedExecutor, queued_runs

NAN = float("nan")


class Clones:
    """Makes clones that do as their parents do, by a constant."""

    def __init__(self, executor: SimulatedExecutor, curves: Mapping[int, Sequence[float]]) -> None:
        self._executor, self._curves = executor, dict(curves)

    def resume(self, run: Run) -> None:
        """Nothing to do."""

    def clone(self, parent: Run, command: Command, run_id: RunId) -> Run:
        curve = [value - 0.1 for value in self._curves[parent.id]]
        self._curves[run_id] = curve
        self._executor.add(run_id, [1.0] * len(curve), curve)
        config = {"training_args": {**parent.config["training_args"], **command.modify}}
        return Run(
            id=run_id, name="clone", config=config, path="", parent_id=parent.id,
            fork={}, step=parent.step, chunks_done=parent.chunks_done,
        )  # fmt: skip


class Lab:
    """An engine on simulated runs with these curves."""

    def __init__(
        self,
        curves: Mapping[int, Sequence[float]],
        policy: Policy,
        *,
        pinned: Sequence[int] = (),
        configs: Mapping[int, Mapping[str, object]] | None = None,
    ) -> None:
        losses = {RunId(number): curve for number, curve in curves.items()}
        executor = SimulatedExecutor(
            FakeClock(), 1, {i: [1.0] * len(c) for i, c in losses.items()}, losses=losses
        )
        runs = [
            replace(run, pinned=run.id in pinned, config=(configs or {}).get(run.id, {}))
            for run in queued_runs(losses)
        ]
        self.desk = CommandDesk()
        engine = Engine(runs, executor, self.desk, [], [policy], Clones(executor, curves))
        engine.run()
        self.runs = {run.id: run for run in engine.runs}

    def ended(self, status: RunStatus) -> dict[int, int]:
        """Chunks that the runs of a status did."""
        return {i: run.chunks_done for i, run in self.runs.items() if run.status is status}

    @property
    def pruned(self) -> dict[int, int]:
        return self.ended(RunStatus.PRUNED)

    def reason(self, run_id: int) -> str:
        return self.runs[RunId(run_id)].notes[-1]


def power(c: float, a: float, b: float, num: int = 24, start: int = 0) -> list[float]:
    return [c + a * max(t - start, 1) ** -b for t in range(1, num + 1)]


def flat(value: float, num: int = 8) -> list[float]:
    return [value] * num


class TestMedian:
    CURVES: Mapping[int, Sequence[float]] = {1: flat(1.0), 2: flat(2.0), 3: flat(3.0), 4: flat(4.0)}

    def test_prunes_what_stays_behind(self) -> None:
        lab = Lab(self.CURVES, MedianPolicy(warm_up=2, min_peers=3, patience=2))
        assert lab.pruned == {3: 3, 4: 3}
        assert lab.reason(4) == (
            "pruned: after chunk 3 its best, 4, is worse than 2, the median of 3 others "
            "(MedianPolicy by eval_loss)"
        )

    def test_needs_peers(self) -> None:
        assert Lab(self.CURVES, MedianPolicy(min_peers=4)).pruned == {}

    def test_pin_protects(self) -> None:
        lab = Lab(self.CURVES, MedianPolicy(warm_up=1, patience=1), pinned=[4])
        assert lab.pruned == {3: 1}
        assert not [r for r in lab.desk.commands.values() if r.status is CommandStatus.REJECTED]

    def test_maximises(self) -> None:
        policy = MedianPolicy(warm_up=1, patience=1, objective="maximize:eval_loss")
        assert set(Lab(self.CURVES, policy).pruned) == {1, 2}

    def test_one_noisy_chunk_kills_nobody(self) -> None:
        noisy = [1.0, 1.0, 9.0, 1.0, 1.0, 1.0]
        curves = {1: noisy, 2: flat(2.0, 6), 3: flat(2.0, 6), 4: flat(2.0, 6)}
        assert 1 not in Lab(curves, MedianPolicy(warm_up=1, patience=2)).pruned


class TestThreshold:
    def test_prunes_beyond_the_bound_persistently(self) -> None:
        curves = {1: flat(1.0), 2: flat(5.0), 3: [5.0, 5.0, 1.0, 5.0, 5.0, 1.0, 1.0, 1.0]}
        assert Lab(curves, ThresholdPolicy(bound=4.0, patience=3, warm_up=0)).pruned == {2: 3}

    def test_prunes_what_is_no_number(self) -> None:
        lab = Lab({1: flat(1.0), 2: [1.0, NAN, *flat(NAN, 6)]}, ThresholdPolicy())
        assert lab.pruned == {2: 2}
        assert "it is nan" in lab.reason(2)

    def test_prunes_a_stall(self) -> None:
        falling = [8.0 - t for t in range(8)]
        lab = Lab({1: falling, 2: flat(1.0)}, ThresholdPolicy(stall=3, warm_up=0))
        assert lab.pruned == {2: 4}


class TestHalving:
    CURVES: Mapping[int, Sequence[float]] = {n: flat(float(n), 9) for n in range(1, 10)}

    def test_a_third_goes_on_at_each_rung(self) -> None:
        lab = Lab(self.CURVES, SuccessiveHalving())
        assert sorted(lab.pruned.values()) == [1] * 6 + [3] * 2
        assert lab.ended(RunStatus.COMPLETED) == {1: 9}

    def test_a_paused_run_is_promoted_when_a_better_one_is_lost(self) -> None:
        class AndStopsTwo(SuccessiveHalving):
            def judge(self, round: Round) -> list[Command]:
                stops = [
                    Command(verb=Verb.STOP, run_id=RunId(number), reason="enough")
                    for number in (1, 2)
                    if round.chunk == 2 and number in round.fresh
                ]
                return [*super().judge(round), *stops]

        lab = Lab(self.CURVES, AndStopsTwo())
        promoted = [r.command for r in lab.desk.commands.values() if r.command.verb is Verb.RESUME]
        assert [command.run_id for command in promoted] == [4]
        assert "among the best 2 of chunk 1 by now" in promoted[0].reason
        assert set(lab.ended(RunStatus.COMPLETED)) == {3}


def test_the_population_replaces_its_worst_by_varied_copies_of_its_best() -> None:
    curves = {n: flat(float(n), 6) for n in range(1, 5)}
    configs = {n: {"training_args": {"learning_rate": 0.1 * n}} for n in curves}
    policy = PopulationBased({"learning_rate": (1e-3, 1.0)}, every=2, seed=3)
    lab = Lab(curves, policy, configs=configs)
    assert lab.pruned[4] == 2
    first = lab.runs[RunId(5)]
    assert first.parent_id == 1
    rate = first.config["training_args"]["learning_rate"]
    assert rate == pytest.approx(0.08) or rate == pytest.approx(0.125)
    again = Lab(curves, PopulationBased({"learning_rate": (1e-3, 1.0)}, seed=3), configs=configs)
    assert again.runs[RunId(5)].config == first.config
    size = [run for run in lab.runs.values() if run.status is RunStatus.COMPLETED]
    assert len(size) == len(curves)


class TestCurves:
    def test_pauses_all_but_the_winner_long_before_the_end(self) -> None:
        curves = {n: power(1.0 + n / 4, 1.5, 0.7) for n in range(1, 7)}
        lab = Lab(curves, CurvePolicy())
        assert set(lab.ended(RunStatus.COMPLETED)) == {1}
        assert max(lab.pruned.values()) < 16
        assert "it would win with a probability of" in lab.reason(6)

    def test_a_run_that_begins_late_is_waited_for(self) -> None:
        curves = {n: power(2.0 + n / 8, 1.5, 0.7) for n in range(1, 7)}
        curves[7] = power(1.0, 2.0, 0.9, start=10)
        lab = Lab(curves, CurvePolicy())
        assert 7 in lab.ended(RunStatus.COMPLETED)

    def test_when_the_leader_diverges_the_next_best_goes_on(self) -> None:
        curves = {n: power(1.0 + n / 4, 1.5, 0.7) for n in range(1, 7)}
        curves[1][18:] = [9.0, 15.0, 30.0, 60.0, 90.0, 99.0]
        lab = Lab(curves, CurvePolicy())
        assert "has diverged" in lab.reason(1)
        assert 2 in lab.ended(RunStatus.COMPLETED)

    def test_a_leader_that_loses_a_part_time_and_again_may_win(self) -> None:
        curves = {n: power(1.0 + n / 4, 1.5, 0.7) for n in range(1, 7)}
        for chunk in (5, 6, 13, 14):
            curves[1][chunk] += 0.6
        lab = Lab(curves, CurvePolicy())
        assert 1 in lab.ended(RunStatus.COMPLETED)

    def test_a_run_that_falls_slowly_at_first_and_then_faster_is_waited_for(self) -> None:
        curves = {n: power(2.0 + n / 8, 1.0, 0.7) for n in range(1, 7)}
        curves[7] = [1.0 + 2.2 / (1 + (t / 8) ** 2) for t in range(1, len(curves[1]) + 1)]
        lab = Lab(curves, CurvePolicy())
        assert 7 in lab.ended(RunStatus.COMPLETED)

    def test_runs_of_different_losses_are_not_compared(self) -> None:
        curves = {n: power(1.0 + n / 2, 1.0, 0.7) for n in range(1, 7)}
        kinds = {n: {"trainer_type": "SFT" if n % 2 else "DPO"} for n in curves}
        lab = Lab(curves, CurvePolicy(), configs=kinds)
        assert set(lab.ended(RunStatus.COMPLETED)) == {1, 2}


def test_optunas_pruners_take_the_others_as_complete() -> None:
    curves = {1: flat(1.0), 2: flat(2.0), 3: flat(3.0), 4: flat(4.0)}
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=2, n_min_trials=3)
    lab = Lab(curves, OptunaPruner(pruner))
    assert lab.pruned == {3: 2, 4: 2}
    assert "Optuna's MedianPruner" in lab.reason(4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MedianPolicy(objective="eval_loss"), "'minimize:eval_loss'"),
        (lambda: MedianPolicy(objective="less:eval_loss"), "a direction and a metric"),
        (lambda: MedianPolicy(warm_up=0), "warm_up=0"),
        (lambda: CurvePolicy(risk=2), "between 0 and 0.5"),
        (lambda: ThresholdPolicy(bound="much"), "a number, or None"),  # type: ignore[arg-type]
        (lambda: PopulationBased({}), "what is to be perturbed"),
        (lambda: PopulationBased({"learning_rate": (1, 0)}), "less than the second"),
        (lambda: OptunaPruner("median"), "one of optuna.pruners"),  # type: ignore[arg-type]
        (lambda: as_policies(MedianPolicy), r"did you mean MedianPolicy\(\)"),
        (lambda: as_policies("median"), "Give 'auto'"),
    ],
)
def test_what_cannot_be_used_is_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
