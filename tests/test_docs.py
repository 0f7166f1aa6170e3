"""What the documentation shows is so: its programs run, its links lead somewhere, its tables hold.

Programs. Every fenced block of Python in README.md and docs/*.md is executed, a page's blocks in
order and in one namespace. Nothing in them is replaced. Instead each page runs in a folder of its
own that holds small stand-ins under the names that pages use for models and datasets of the hub:
`from_pretrained` and `load_dataset` take an existing folder for what it is. The models are random
and tiny, the datasets have a few rows in the columns of the real ones. A block of `text` directly
below a block of Python is what that one prints. A block that cannot run is marked
```python no-run: why, and is compiled all the same.

Tables that repeat what the code says stand between two markers, <!-- name:begin --> and
<!-- name:end -->. Those named in TABLES are rendered from the code here: when a test says that one
is out of date, paste what it expected.
"""

import contextlib
import gc
import inspect
import io
import itertools
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from rapidfireai import cli
from rapidfireai.automl import RFSFTConfig
from rapidfireai.automl.renamed import OLD_NAMES, Refused, Renamed
from rapidfireai.automl.trainer_configs import TrainerTemplate
from rapidfireai.automl.trainer_kwargs import ENGINE_OWNED
from rapidfireai.core.run import RunStatus
from rapidfireai.testing.tiny import (
    instruction_rows,
    preference_rows,
    prompt_rows,
    tiny_model,
    tiny_tokenizer,
)
from rapidfireai.training import arguments, fork_check, registry
from rapidfireai.training.columns import FORMATS, Schema
from rapidfireai.training.registry import TRAINERS, DataKind, TrainerSpec
from rapidfireai.workers.memory import Tier
from tests.training import agents

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "rapidfireai"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
AGENT = "Qwen/Qwen3-0.6B"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    remark: str
    """What follows the language, such as "no-run: needs a GPU"."""
    text: str
    line: int
    """Of its first line, from 1."""
    end: int
    """Of the closing fence."""


def blocks(page: Path) -> list[Block]:
    found = []
    lines = page.read_text(encoding="utf-8").splitlines()
    numbers = iter(range(len(lines)))
    for start in numbers:
        if not lines[start].startswith("```"):
            continue
        language, _, remark = lines[start].removeprefix("```").partition(" ")
        end = next((n for n in numbers if lines[n] == "```"), None)
        assert end is not None, f"{page}:{start + 1}: the block is not closed"
        text = "".join(line + "\n" for line in lines[start + 1 : end])
        found.append(Block(language, remark, text, line=start + 2, end=end + 1))
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in blocks(page):
        lines[block.line - 2 : block.end] = [""] * (block.end - block.line + 2)
    return "\n".join(lines)


def programs(page: Path) -> Iterator[tuple[Block, str | None]]:
    """The blocks of Python, each with what it is said to print."""
    lines = page.read_text(encoding="utf-8").splitlines()
    shown = {
        block.line: block.text
        for block in blocks(page)
        if block.language == "text" and not block.remark
    }
    for block in blocks(page):
        if block.language == "python":
            below = next((n for n in range(block.end, len(lines)) if lines[n]), block.end)
            yield block, shown.get(below + 2)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small stand-ins for what pages and examples load from the hub."""
    folder = tmp_path_factory.mktemp("hub")
    tiny_model(hidden_size=16, num_layers=1).save_pretrained(folder / MODEL)
    tiny_tokenizer().save_pretrained(folder / MODEL)
    agents.teach(folder / AGENT, num_steps=0)
    pairs = [
        {
            "chosen": [_message("user", row["prompt"]), _message("assistant", row["chosen"])],
            "rejected": [_message("user", row["prompt"]), _message("assistant", row["rejected"])],
        }
        for row in preference_rows()
    ]
    summaries = [
        {"prompt": row["instruction"], "completion": row["response"]} for row in instruction_rows()
    ]
    problems = [{"question": row["prompt"], "answer": "so #### 4"} for row in prompt_rows()]
    dolly = [{**row, "context": "", "category": "open_qa"} for row in instruction_rows()]
    for name, rows in {
        "databricks/databricks-dolly-15k": dolly,
        "trl-lib/ultrafeedback_binarized": pairs,
        "trl-lib/tldr": summaries,
        "trl-lib/kto-mix-14k": [
            {**row, "label": number % 2 == 0} for number, row in enumerate(summaries)
        ],
        "openai/gsm8k": problems,
    }.items():
        (folder / name).mkdir(parents=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name / "train.jsonl").write_text(text)
    card = "---\nconfigs:\n- config_name: main\n  data_files: train.jsonl\n---\n"
    (folder / "openai/gsm8k/README.md").write_text(card)
    return folder


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """Each run collects garbage as it begins and ends; what was imported is left out of that."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def workplace(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: what the hub has is there, and so is all that is written."""
    for name in hub.iterdir():
        (tmp_path / name.name).symlink_to(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RF_EXPERIMENT_PATH", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hub / "cache")
    torch.set_num_threads(1)
    return tmp_path


@every_page
@pytest.mark.usefixtures("workplace")
def test_programs_run_and_print_what_is_shown(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block, shown in programs(page):
        place = f"{page.relative_to(ROOT)}:{block.line}"
        # Blank lines in front, so that a traceback has the page's line numbers.
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        if block.remark.startswith("no-run"):
            assert re.fullmatch(r"no-run: \S.*", block.remark), f"{place}: say why it cannot run"
            continue
        assert not block.remark, f"{place}: {block.remark!r} means nothing"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if shown is not None:
            assert _stripped(printed.getvalue()) == _stripped(shown), place


@every_page
def test_files_of_yaml_train(
    page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that have a name; what a dry run shows is what stands below."""
    found = blocks(page)
    for file, below in itertools.pairwise(found):
        if file.language != "yaml" or not file.remark:
            continue
        (workplace / file.remark).write_text(file.text)
        command, *shown = below.text.splitlines()
        assert cli.main(shlex.split(command.removeprefix("$ rapidfireai "))) == 0
        assert capsys.readouterr().out.splitlines() == shown
        assert cli.main(["fit", file.remark]) == 0


def _stripped(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


DOLLY, PAIRS, GSM8K = (
    "databricks/databricks-dolly-15k",
    "trl-lib/ultrafeedback_binarized",
    "openai/gsm8k",
)
SHORT = ("--max-completion-length", "8")
EXAMPLES: dict[str, tuple[str, ...]] = {
    "sft": ("--dataset", DOLLY),
    "dpo": ("--dataset", PAIRS),
    "grpo": ("--dataset", GSM8K, *SHORT),
    "rloo": ("--dataset", GSM8K, *SHORT),
    "kto": ("--dataset", "trl-lib/kto-mix-14k"),
    "reward": ("--dataset", PAIRS),
    "vlm": ("--model", "tiny"),
    "agent": ("--model", AGENT, "--max-completion-length", "48"),
    "custom_trainer": ("--dataset", DOLLY),
    "best_of_n": ("--dataset", DOLLY, *SHORT, "--num-held-out", "3"),
}
"""By name, what makes each of them small."""


def test_every_example_is_tested() -> None:
    found = {path.stem for path in ROOT.glob("examples/*.py")}
    assert found == set(EXAMPLES)
    assert [path.name for path in ROOT.glob("examples/*.yaml")] == ["sft.yaml"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_train_local_models(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", MODEL, "--max-steps", "2", "--num-chunks", "2"]
    options += ["--experiment-path", "here", *EXAMPLES[name]]
    example = ROOT / "examples" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(example), *options])
    runpy.run_path(str(example), run_name="__main__")
    check_trained(capsys.readouterr().out, workplace / "here")


def test_the_example_without_python_trains(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(ROOT / "examples" / "sft.yaml")
    assert cli.main(["fit", file, "--set", "max_steps=2", "--path", "here", "--json"]) == 0
    check_trained(capsys.readouterr().out, workplace / "here")


def check_trained(printed: str, experiments: Path) -> None:
    """That all runs were trained, and said so."""
    assert printed.count("completed") >= 2
    assert "failed" not in printed
    (experiment,) = experiments.iterdir()
    adapters = list(experiment.glob("runs/*/final/adapter_model.safetensors"))
    assert len(adapters) == printed.count("completed")


# Links


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    plain = re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading.lower().strip())
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        assert file.is_relative_to(ROOT), f"{page.name} links out of the repository: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target} has no such heading"


def test_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {str(page.relative_to(ROOT)) for page in PAGES} - {"README.md"}
    assert {name for name in pages if f"]({name})" in readme} == pages


@every_page
def test_files_of_the_project_that_pages_name_are_there(page: Path) -> None:
    for name in re.findall(r"`([\w./]+\.py)`", prose(page)):
        assert (ROOT / name).exists() or (PACKAGE / name).exists(), f"{page.name}: {name}"


# Tables


def table(page: Path, name: str) -> str:
    """What stands between the markers of that name."""
    text = page.read_text(encoding="utf-8")
    _, begin, rest = text.partition(f"<!-- {name}:begin -->\n")
    inner, end, _ = rest.partition(f"<!-- {name}:end -->\n")
    assert begin, f"{page.name} has no line <!-- {name}:begin -->"
    assert end, f"{page.name} has no line <!-- {name}:end --> below it"
    return inner


def first_cells(rows: str) -> list[str]:
    """The first column, below the titles and the rule."""
    return [line.split("|")[1].strip(" `") for line in rows.splitlines() if line[:1] == "|"][2:]


def rendered(*rows: tuple[str, ...]) -> str:
    """A table; the first row has the titles."""
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    return "".join([lines[0], "|---" * len(rows[0]) + "|\n", *lines[1:]])


def code(name: object) -> str:
    return f"`{name}`"


KINDS: Mapping[DataKind, str] = {
    DataKind.DEMONSTRATION: "how to reply",
    DataKind.CONVERSATION: "how to reply, as messages",
    DataKind.PREFERENCE: "which of two replies is better",
    DataKind.UNPAIRED_PREFERENCE: "whether a reply is good",
    DataKind.PROMPT: "what to reply to",
}


def data_table() -> str:
    rows = []
    for kind, form in FORMATS.items():
        trainers = ", ".join(spec.name for spec in TRAINERS.values() if spec.data_kind is kind)
        sets = [_columns(sorted(columns)) for columns in (*form.native, *form.implicit)]
        label = ["label"] if kind is DataKind.UNPAIRED_PREFERENCE else []
        known = [_recognised(schema, label) for schema in form.known]
        rows.append((trainers, KINDS[kind], "<br>".join(sets), "<br>".join(known)))
    return rendered(("trainers", "rows show", "columns that TRL reads", "recognised"), *rows)


def _columns(names: list[str]) -> str:
    # The usual order of TRL's documentation.
    order = ["prompt", "completion", "chosen", "rejected", "label"]
    return " + ".join(map(code, sorted(names, key=lambda n: order.index(n) if n in order else 0)))


def _recognised(schema: Schema, further: list[str]) -> str:
    names = " + ".join(map(code, [schema.request, *schema.replies.values(), *further]))
    return f"{names} + [`{schema.context}`]" if schema.context else names


def trainers_table() -> str:
    rows = [
        (
            code(name),
            code(TrainerTemplate.classes[name].__name__),
            code(spec.trainer.replace(":", ".")),
            KINDS[spec.data_kind],
            _needed(spec),
            "experimental" if spec.experimental else "",
        )
        for name, spec in TRAINERS.items()
    ]
    titles = ("`trainer_type`", "arguments", "trainer", "rows show", "needs", "")
    return rendered(titles, *rows)


def _needed(spec: TrainerSpec) -> str:
    """Keywords of RFModelConfig that the trainer cannot do without."""
    parameters = inspect.signature(spec.load_trainer().__init__).parameters.values()
    needed = [
        code(parameter.name)
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.name not in {"self", *ENGINE_OWNED}
    ]
    return ", ".join([*needed, " or ".join(map(code, spec.needs_one_of))]).strip(", ")


def refused_table() -> str:
    options = [(code(name), reason) for name, (_, reason) in arguments.REFUSED.items()]
    trainers = [(code(name), reason) for name, reason in registry.REFUSED.items()]
    return rendered(("refused", "because"), *trainers, *options)


def fixed_table() -> str:
    rows = [(code(name), reason) for name, reason in fork_check.FIXED.items()]
    return rendered(("cannot be changed", "because"), *rows)


def short_form_table() -> str:
    rank_alone = RFSFTConfig(lora_rank=8).lora
    assert rank_alone is not None
    assert rank_alone.lora_alpha == 16
    known = RFSFTConfig().known_arguments()
    rows = []
    for name in (name for name in known if name.startswith("lora_")):
        target = name if name in ("lora_alpha", "lora_dropout") else name.removeprefix("lora_")
        target = "r" if target == "rank" else target
        defaults = RFSFTConfig(lora_dropout=0.0).lora
        default = "twice the rank" if target == "lora_alpha" else getattr(defaults, target)
        rows.append((code(name), code(target), str(default)))
    return rendered(("argument", "stands for", "if it is left out"), *rows)


TABLES: Mapping[tuple[str, str], Callable[[], str]] = {
    ("data", "data"): data_table,
    ("trainers", "trainers"): trainers_table,
    ("trainers", "refused"): refused_table,
    ("configurations", "short-form"): short_form_table,
    ("warm_start", "fixed"): fixed_table,
}


@pytest.mark.parametrize(("page", "name"), TABLES)
def test_tables_say_what_the_code_says(page: str, name: str) -> None:
    assert table(ROOT / "docs" / f"{page}.md", name) == TABLES[page, name]()


def test_old_names_are_answered_as_the_table_says() -> None:
    lines = table(ROOT / "docs" / "configurations.md", "old-names").splitlines()[2:]
    for line in lines:
        old, answer = (cell.strip() for cell in line.split("|")[1:3])
        row = OLD_NAMES[old.strip("`")]
        if isinstance(row, Renamed):
            assert answer == code(row.new)
        else:
            assert answer.startswith("refused" if isinstance(row, Refused) else "dropped"), old
        for value in getattr(row, "harmless", None) or ():
            assert code(value if value is None else json.dumps(value)) in answer, old


def test_every_status_and_every_tier_is_explained() -> None:
    life = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert all(f"| `{status}` |" in life for status in RunStatus)
    memory = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    assert all(f"| {tier} |" in memory for tier in Tier)


def test_every_part_of_the_package_is_in_the_picture_of_layers() -> None:
    parts = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert set(first_cells(table(ROOT / "docs" / "architecture.md", "layers"))) == parts
