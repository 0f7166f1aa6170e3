"""A real notebook in a real kernel: training in the foreground, in the background, interrupted."""

from typing import Any

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

MAX_LINES = 15
"""Of what one cell may show of a training with two runs."""

CELLS = {
    "setup": """
        import signal
        import torch
        from rapidfireai import Experiment
        from rapidfireai.automl import List, RFGridSearch, RFSFTConfig
        from rapidfireai.testing.tiny import instruction_rows, tiny_model, tiny_tokenizer

        torch.set_num_threads(1)
        arguments = {"lora_rank": 4, "max_steps": 4, "max_length": 64}
        search = RFGridSearch(RFSFTConfig(learning_rate=List([1e-3, 1e-2]), **arguments))
        train, test = instruction_rows(32), instruction_rows(6, seed=1)

        def create_model(config):
            return tiny_model(), tiny_tokenizer()
    """,
    "foreground": """
        experiment = Experiment("foreground", experiment_path=".")
        experiment.run_fit(search, create_model, train, test, num_chunks=2)
    """,
    "its table": """
        experiment.get_runs_info()[["run_id", "status", "step", "eval_loss"]]
    """,
    "background": """
        background = Experiment("background", experiment_path=".")
        handle = background.run_fit(search, create_model, train, num_chunks=2, background=True)
    """,
    "meanwhile": """
        "running" if not handle.done else "done"
    """,
    "its end": """
        handle.wait()
        handle.status()["status"].to_list()
    """,
    # Does what the notebook's stop button does, in the round in which the order of runs is certain.
    "interrupted": """
        class StopButton:
            pressed = False

            def on_event(self, before, event, after):
                if (after.id, after.step, self.pressed) == (2, 1, False):
                    self.pressed = True
                    signal.raise_signal(signal.SIGINT)

        interrupted = Experiment("interrupted", experiment_path=".")
        interrupted.run_fit(search, create_model, train, num_chunks=2, trackers=[StopButton()])
    """,
    "what is left": """
        info = interrupted.get_runs_info()
        steps = interrupted.get_results().groupby("run_id")["step"].max()
        [*info["status"], *info["step"].to_list(), *steps.to_list()]
    """,
    "continued": """
        interrupted.run_fit(search, create_model, train, num_chunks=2)
    """,
    "compared": """
        interrupted.end()
        losses = [one.get_results()["loss"].to_list() for one in (interrupted, background)]
        [*interrupted.get_runs_info()["status"], len(losses[0]), losses[0] == losses[1]]
    """,
}


def dedented(text: str) -> str:
    return "\n".join(line[8:] for line in text.splitlines()).strip()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What the cells show."""
    folder = tmp_path_factory.mktemp("notebook")
    tags = {"interrupted": {"tags": ["raises-exception"]}}
    cells = [
        new_code_cell(dedented(text), metadata=tags.get(name, {})) for name, text in CELLS.items()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "jupyter"))
        NotebookClient(
            new_notebook(cells=cells),
            timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
        ).execute()
    return {name: cell.outputs for name, cell in zip(CELLS, cells, strict=True)}


def text_of(output: Any) -> str:
    """What an output says to a person."""
    if output.output_type == "stream":
        return str(output.text)
    if output.output_type == "error":
        return f"{output.ename}: {output.evalue}"
    return str(output.data["text/plain"])


def shown(outputs: list[Any]) -> str:
    return "\n".join(text_of(output) for output in outputs)


def test_foreground(outputs: dict[str, list[Any]]) -> None:
    text = shown(outputs["foreground"])
    assert "2 runs: 2 completed" in text
    assert "Ranking by eval_loss" in text
    (table,) = outputs["its table"]
    assert "completed" in table.data["text/html"]
    assert "eval_loss" in table.data["text/html"]


def test_background(outputs: dict[str, list[Any]]) -> None:
    # What a thread prints belongs to the cell that started it, but this client adds what comes
    # after that cell's end to the next one, or loses it: the last output alone is certain.
    assert text_of(outputs["meanwhile"][-1]) in ("'running'", "'done'")
    assert text_of(outputs["its end"][-1]) == "['completed', 'completed']"
    assert "2 configurations on cpu" in shown(outputs["background"])


def test_interrupted_and_continued(outputs: dict[str, list[Any]]) -> None:
    errors = [output for output in outputs["interrupted"] if output.output_type == "error"]
    assert [error.ename for error in errors] == ["KeyboardInterrupt"]
    text = shown(outputs["interrupted"])
    assert "2 runs: 2 interrupted" in text
    assert "run the same script again" in text
    assert shown(outputs["what is left"]) == "['interrupted', 'interrupted', 2, 1, 2, 1]"
    assert "2 runs: 2 completed" in shown(outputs["continued"])
    assert shown(outputs["compared"]) == "['completed', 'completed', 8, True]"


@pytest.mark.parametrize("name", [name for name in CELLS if name != "setup"])
def test_tidy(name: str, outputs: dict[str, list[Any]]) -> None:
    text = shown(outputs[name])
    assert "Traceback" not in text
    assert "Warning" not in text
    assert len(text.splitlines()) <= MAX_LINES, text
    widest = max(map(len, text.splitlines()), default=0)
    assert widest < 200, text
