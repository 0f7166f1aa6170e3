"""Real experiments on real screens: a pseudo-terminal and a notebook."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import nbformat
import pyte
from nbclient import NotebookClient

TRAIN = """
import sys, tempfile
from transformers import TrainerCallback
from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFLoraConfig, RFModelConfig, RFSFTConfig
from rapidfireai.testing.tiny import text_rows, tiny_model, tiny_tokenizer

class Talk(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            print("printed by the user")
            sys.stderr.write("written to stderr\\n")
            if args.learning_rate == 1e-3:
                raise ValueError("told to fail")

config = RFModelConfig(
    model_name="tiny",
    peft_config=RFLoraConfig(r=4),
    callbacks=[Talk()],
    training_args=RFSFTConfig(
        learning_rate=List([1e-2, 1e-3]), max_steps=6, per_device_train_batch_size=2
    ),
)
with tempfile.TemporaryDirectory() as folder:
    Experiment("tiny", experiment_path=folder).run_fit(
        RFGridSearch(config, trainer_type="SFT"),
        create_model=lambda config: (tiny_model(), tiny_tokenizer()),
        train_dataset=text_rows(16),
        eval_dataset=text_rows(4, seed=1),
        num_chunks=2,
    )
print("the end")
"""

SIMULATE = """
import threading, time
from rapidfireai.core.engine import Engine
from rapidfireai.live import progress_view
from rapidfireai.testing.simulation import CommandDesk, FakeClock, SimulatedExecutor, queued_runs

class Slow(SimulatedExecutor):
    def receive(self):
        time.sleep(0.05)
        return super().receive()

def train():
    runs = queued_runs([1, 2, 3])
    executor = Slow(FakeClock(), 1, {run.id: [1.0] * 10 for run in runs})
    with progress_view(runs) as listener:
        Engine(runs, executor, CommandDesk(), [listener]).run()
"""

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    # What libraries warn of while they are imported is not the view's.
    "PYTHONWARNINGS": "ignore",
    "TERM": "xterm-256color",
}


def in_terminal(program: Path, width: int, height: int) -> pyte.Screen:
    """The screen as the program leaves it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    environment = {k: v for k, v in ENVIRONMENT.items() if k not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, program], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ):
        os.close(theirs)
        screen = pyte.Screen(width, height)
        stream = pyte.ByteStream(screen)
        while written := _read(ours):
            stream.feed(written)
    os.close(ours)
    return screen


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux says that nobody writes to a pseudo-terminal any more
        return b""


def test_an_experiment_leaves_a_tidy_terminal(tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(TRAIN)
    screen = in_terminal(program, width=110, height=40)
    lines = [line.rstrip() for line in screen.display]
    table = next(i for i, line in enumerate(lines) if line.startswith("2 runs: "))
    # Above the table what was printed, then the table's last state, and nothing of those before.
    assert lines[table - 4 : table] == ["printed by the user", "written to stderr"] * 2
    assert lines[table].startswith("2 runs: 1 completed, 1 failed · 0:")
    assert lines[table + 2] == "Ranking by eval_loss, lowest first"
    assert lines[table + 3].split()[:4] == ["run", "learning_rate", "loss", "eval_loss"]
    assert lines[table + 4].split()[:2] == ["1", "0.01"]
    assert lines[table + 5].split()[:2] == ["2", "0.001"]
    below = lines[table + 6 :]
    assert "run 2: failed at step 2: ValueError: told to fail" in below
    assert [line for line in below if line][-1] == "the end"
    assert not screen.cursor.hidden


def test_a_notebook_has_one_output(tmp_path: Path) -> None:
    begin = "thread = threading.Thread(target=train); thread.start()"
    cells = [SIMULATE, "train()", begin, "thread.join()"]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in cells]
    )
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.execute(env=ENVIRONMENT, cwd=str(tmp_path))
    outputs = [cell.outputs for cell in notebook.cells]
    assert [len(output) for output in outputs] == [0, 1, 1, 0]
    for (output,) in (outputs[1], outputs[2]):
        lines = output.data["text/plain"].splitlines()
        assert lines[0].startswith("3 runs: 3 completed · 0:0")
        assert lines[2] == "Ranking by loss, lowest first"
        assert output.data["text/html"].startswith("<pre style=")
        assert "<span" in output.data["text/html"]
