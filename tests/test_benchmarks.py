"""The benchmarks run and print all of their rows. What they measure is no test's business."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import (
    _case,
    commands,
    fused,
    fused_profile,
    gsm8k,
    policies,
    policies_sim,
    reuse,
    scheduler,
    time_slicing,
    trackers,
)
from transformers import LlamaForCausalLM


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """A benchmark is a process of its own, and sets variables for it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


MACHINE = ("date", "CPU", "GPU", "torch threads", "system", "versions")

TIME_SLICING = (
    "same adapters both ways, bit for bit",
    "**total time, engine : plain**",
    "**processor time, engine : plain**",
    "plain: all",
    "plain: building trainers",
    "plain: in steps",
    "plain: between steps of a configuration",
    "plain: saving and freeing",
    "engine: all",
    "engine: building trainers",
    "engine: in steps",
    "engine: between steps of a configuration",
    "engine: saving and freeing",
    "engine: all can be compared after",
    "**sooner than plain has trained all**",
    "the same, as far as building trainers lets anybody",
    "sooner than plain's last has done its first chunk",
    "**hand-off between two runs, p50 / p95**",
    "chunk boundary, p50 / p95",
    "plain: gap between two steps, p50 / p95",
    "engine: gap between two steps, p50 / p95",
    "resuming a run by a new trainer",
    "total time with that at each chunk : plain",
)

FUSED = (
    "**32 wide, 2 layers, 32 tokens, N=2: fused, times as fast as by turns, processor time**",
    "32 wide, 2 layers, 32 tokens, N=2: the same in wall time",
    "32 wide, 2 layers, 32 tokens, N=2: fused, times as fast as stock TRL, processor time",
    "32 wide, 2 layers, 32 tokens, N=2: auto, times as fast as by turns, processor time",
    "32 wide, 2 layers, 32 tokens, N=2: stock",
    "32 wide, 2 layers, 32 tokens, N=2: by turns",
    "32 wide, 2 layers, 32 tokens, N=2: fused",
    "32 wide, 2 layers, 32 tokens, N=2: auto",
)

REUSE = {
    "DPO": ("by turns, nothing kept", "stock", "by turns", "fused"),
    "GRPO": ("by turns", "fused", "fused, generating together"),
}

FUSED_PROFILE = (
    "adapters in shared passes",
    "shared passes, frozen layers",
    "processor time of a run's step",
)

SCHEDULER = (
    "**decision, one worker idle, p50 / p95**",
    "decision, all workers idle",
    "take a run out and file it again, p50 / p95",
    "engine, an event, without a store",
    "engine, an event, with the store in memory",
    "engine, an event, with the store in SQLite",
)

COMMANDS = (
    "from one step to the next, p50 / p95",
    "**pin, unpin: p95 beyond a step's median**",
    "pin, unpin: given to settled, p50 / p95",
    "stop: given to settled, p50 / p95",
    "resume: given to settled, p50 / p95",
)


TRACKERS = (
    "a step without trackers",
    "**processor time of the training process for a step, all four - none**",
    "**time from the first step to the last, all four : none**",
    "time of run_fit, all four : none",
    "time of run_fit, all four - none",
)


def printed(output: str) -> dict[str, list[str]]:
    """The table's rows by name, as the other cells."""
    lines = [line for line in output.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in cells} == {6}, "what, median, from - to, times, goal, note"
    return {row[0]: row[1:] for row in cells[1:]}


def check(output: str, saved: Path, names: tuple[str, ...]) -> dict[str, list[str]]:
    """What both benchmarks have in common; returns the table."""
    report: dict[str, Any] = json.loads(saved.read_text())
    table = printed(output)
    missing = set(names) - table.keys()
    assert not missing
    assert all(cells[0] for cells in table.values()), "a row without a figure"
    assert [row["name"] for row in report["rows"]] == list(table)
    assert all(f"- {name}: " in output for name in MACHINE)
    assert set(report["environment"]) == set(MACHINE)
    assert report["command"] in output
    return table


def test_time_slicing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--configs", "2", "--chunks", "2", "--steps", "4", "--repeats", "1"]
    saved = tmp_path / "report.json"
    time_slicing.main(
        [*arguments, "--rebuilds", "1", "--eval-rows", "2", "--no-warm-up", "--json", str(saved)]
    )
    table = check(capsys.readouterr().out, saved, TIME_SLICING)
    assert table[TIME_SLICING[0]][0] == "2 of 2"


def test_fused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shapes", "32x2", "--tokens", "32", "--configs", "2", "--steps", "4"]
    saved = tmp_path / "report.json"
    fused.main([*arguments, "--repeats", "1", "--json", str(saved)])
    check(capsys.readouterr().out, saved, FUSED)


def test_fused_with_micro_batches_in_a_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 600}  # fmt: skip
    monkeypatch.setattr(_case, "SHAPES", {"0.0B": shape})
    monkeypatch.setattr(fused, "SHAPES", {"0.0B": shape})
    saved = tmp_path / "report.json"
    arguments = ["--shapes", "0.0B", "--tokens", "32", "--configs", "2", "--steps", "4"]
    more = ["--accumulation", "2", "--repeats", "1", "--json", str(saved)]
    fused.main([*arguments, *more])
    name, split = "0.0B, 32 tokens, N=2", "stock, 2 micro-batches as one"
    best = f"{name}: fused, times as fast as {split}, plain TRL's best split, wall time"
    check(capsys.readouterr().out, saved, (f"{name}: fused", f"{name}: {split}", best))


@pytest.mark.parametrize(("name", "billions"), [("0.135B", 0.135), ("1.2B", 1.2), ("8B", 8.0)])
def test_shapes_are_as_large_as_they_are_called(name: str, billions: float) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(_case.llama(name))
    assert model.num_parameters() / 1e9 == pytest.approx(billions, rel=0.05)


def test_fused_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "report.json"
    fused_profile.main(["--configs", "2", "--steps", "12", "--json", str(saved)])
    check(capsys.readouterr().out, saved, FUSED_PROFILE)


@pytest.mark.parametrize("trainer", REUSE)
def test_reuse(trainer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--trainer", trainer, "--width", "32", "--layers", "2", "--configs", "2"]
    saved = tmp_path / "report.json"
    reuse.main([*arguments, "--steps", "4", "--repeats", "1", "--json", str(saved)])
    baseline, *others = REUSE[trainer]
    titles = [f"N=2: {way}, times as fast as {baseline}" for way in others]
    check(
        capsys.readouterr().out,
        saved,
        (
            *(f"**{title}, processor time**" for title in titles),
            *(f"{title}, wall time" for title in titles),
            *(f"N=2: {way}, processor time" for way in REUSE[trainer]),
        ),
    )


def test_scheduler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "report.json"
    scheduler.main(["--runs", "20", "--workers", "4", "--repeats", "1", "--json", str(saved)])
    check(capsys.readouterr().out, saved, SCHEDULER)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "report.json"
    commands.main(["--runs", "2", "--commands", "4", "--steps", "4000", "--json", str(saved)])
    check(capsys.readouterr().out, saved, COMMANDS)


def test_trackers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "report.json"
    trackers.main(
        ["--runs", "2", "--chunks", "2", "--steps", "2", "--repeats", "1", "--json", str(saved)]
    )
    check(capsys.readouterr().out, saved, TRACKERS)


def test_policies_sim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "report.json"
    policies_sim.main(["--first-seed", "2000", "--experiments", "2", "--json", str(saved)])
    table = check(capsys.readouterr().out, saved, ("everything", "MedianPolicy()", "**auto**"))
    assert table["everything"][0].endswith("0.0% saved")


def test_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "report.json"
    arguments = [
        "--chunks",
        "2",
        "--steps",
        "2",
        "--ranks",
        "4",
        "--learning-rates",
        "1e-3",
        "1e-4",
        "--seeds",
        "1",
    ]
    policies.main([*arguments, "--json", str(saved)])
    table = check(capsys.readouterr().out, saved, ("**steps, policy : everything**",))
    ratio = float(table["**steps, policy : everything**"][0])
    assert ratio == 1, "two chunks are too few to decide"


GSM8K = (
    *(f"sft: learning rate {rate}, rank {rank}: eval_loss"
      for rate in ("0.001", "0.0001") for rank in (8, 32)),
    *(f"dpo: learning rate {rate}, beta {beta}, rank 16: eval_rewards/accuracies"
      for rate in ("0.0001", "1e-05") for beta in ("0.03", "0.3")),
    *(f"kto: learning rate {rate}, beta {beta}, rank 16: eval_loss"
      for rate in ("0.0001", "1e-05") for beta in ("0.03", "0.3")),
    *(f"reward: learning rate {rate}, rank {rank}: eval_accuracy"
      for rate in ("0.001", "0.0001") for rank in (8, 32)),
    *(f"grpo: learning rate 0.0001, beta {beta}, temperature {temperature}, rank 16: "
      "rewards/correct/mean" for beta in ("0", "0.04") for temperature in ("0.7", "1")),
)  # fmt: skip


def write_problems(folder: Path, *, solved: bool) -> None:
    """GSM8K in small, with solutions by models or without."""
    solution = "a <<1+1=2>>2\n"
    rows = [{"question": f"q {n}", "answer": f"{solution}#### {n}"} for n in range(12)]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if solved:
        models = [
            {
                "question": row["question"],
                "ground_truth": "",
                "good": {"is_correct": True, "solution": f"b A: {n}"},
                "bad": {"is_correct": n == 3, "solution": f"c A: {n + 1}"},
            }
            for n, row in enumerate(rows)
        ]
        (folder / gsm8k.SOLUTIONS).write_text("".join(json.dumps(m) + "\n" for m in models))


def test_gsm8k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "report.json"
    write_problems(tmp_path, solved=True)
    arguments = ["--data", str(tmp_path), "--model", "tiny", "--steps", "2", "--batch-size", "2"]
    arguments += ["--chunks", "2", "--eval-rows", "2", "--max-completion-length", "4"]
    gsm8k.main([*arguments, "--threads", "1", "--json", str(saved)])
    output = capsys.readouterr().out
    table = check(output, saved, GSM8K)
    assert not [cells for cells in table.values() if cells[0] in ("failed", "completed")]
    assert "incorrect solutions: by four language models" in output


def test_incorrect_solutions_of_gsm8k(tmp_path: Path) -> None:
    write_problems(tmp_path, solved=True)
    by_models = gsm8k.load(str(tmp_path))
    assert len(by_models.pairs) == 11, "one was solved by all"
    assert all(
        good.startswith("b A:") and bad.startswith("c A:") for _, good, bad in by_models.pairs
    )
    (tmp_path / gsm8k.SOLUTIONS).unlink()
    made = gsm8k.load(str(tmp_path))
    assert made.origin == "references with a changed number"
    assert len(made.pairs) == 12
    for _, good, bad in made.pairs:
        assert "<<" not in good + bad
        assert gsm8k.numbers(good)[-1] != gsm8k.numbers(bad)[-1]


def test_a_corrupted_solution_is_wrong_in_its_last_step_too() -> None:
    rng = random.Random(0)
    text = "She has 2 + 3 = <<2+3=5>>5.\nThen 5 * 1,000 = $<<5*1000=5000>>5,000.\n#### 5,000"
    wrong = gsm8k.corrupted(text, rng)
    last = gsm8k.numbers(wrong)[-1]
    assert last != "5000"
    assert gsm8k.numbers(wrong) == ["2", "3", "5", "5", "1000", last, last]


@pytest.mark.parametrize(
    "arguments", [["--chunks", "3", "--steps", "4"], ["--configs", "1"]], ids=" ".join
)
def test_turns_that_cannot_be_taken(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        time_slicing.main(arguments)
    assert "chunks" in capsys.readouterr().err
