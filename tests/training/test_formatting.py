"""Datasets: what is recognised, what is refused, and that each is prepared once."""

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, load_from_disk

from rapidfireai import Experiment
from rapidfireai.automl import RFLoraConfig, RFModelConfig, RFSFTConfig
from rapidfireai.errors import DatasetError
from rapidfireai.testing.tiny import instruction_rows, tiny_model, tiny_tokenizer
from rapidfireai.training.columns import FORMATS, Schema
from rapidfireai.training.config import CUSTOM, RunConfig
from rapidfireai.training.formatting import Formatter, check_dataset
from rapidfireai.training.registry import DataKind

Row = dict[str, Any]

TRAINER = {
    DataKind.DEMONSTRATION: "SFT",
    DataKind.CONVERSATION: "GKD",
    DataKind.PREFERENCE: "DPO",
    DataKind.PROMPT: "GRPO",
    DataKind.UNPAIRED_PREFERENCE: "KTO",
}


def config(trainer: str = "SFT", function: Any = None, **args: Any) -> RunConfig:
    return RunConfig(trainer_type=trainer, training_args=args, formatting_func=function)


def formatted(
    dataset: Any, folder: Path, run: RunConfig, *, chat: bool = False
) -> tuple[list[Row], tuple[str, ...]]:
    result, notes = Formatter(folder).format(dataset, "train_dataset", run, chat=chat)
    return list(result), notes


def error(dataset: Any, folder: Path, run: RunConfig, *, chat: bool = False) -> str:
    with pytest.raises(DatasetError) as caught:
        Formatter(folder).format(dataset, "train_dataset", run, chat=chat)
    return str(caught.value)


def user(text: str) -> list[Row]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


SCHEMAS = [(kind, schema) for kind, fmt in FORMATS.items() for schema in fmt.known]


def _label(value: object) -> str:
    if isinstance(value, Schema):
        return "+".join(value.columns)
    return str(value)


class TestKnownSchemas:
    @staticmethod
    def _expected(kind: DataKind, schema: Schema, chat: bool) -> Row:
        request = f"the {schema.request}"
        replies = {target: f"the {column}" for target, column in schema.replies.items()}
        if schema.joined:
            return {"messages": [*user(request), *assistant(replies["messages"])]}
        expected: Row = {"prompt": request}
        if chat:
            expected["prompt"] = user(request)
        elif replies:
            expected["prompt"] = f"### Instruction:\n{request}\n\n### Response:\n"
        for target, text in replies.items():
            expected[target] = assistant(text) if chat else text
        if kind is DataKind.UNPAIRED_PREFERENCE:
            expected["label"] = True
        if kind is DataKind.PROMPT:
            expected["unrelated"] = 7
        return expected

    @pytest.mark.parametrize(("kind", "schema"), SCHEMAS, ids=_label)
    @pytest.mark.parametrize("chat", [False, True])
    def test_each_is_mapped(
        self, kind: DataKind, schema: Schema, chat: bool, tmp_path: Path
    ) -> None:
        row: Row = {column: f"the {column}" for column in schema.columns}
        if kind is DataKind.UNPAIRED_PREFERENCE:
            row["label"] = True
        row["unrelated"] = 7
        if kind is DataKind.CONVERSATION and not chat:
            message = error(Dataset.from_list([row]), tmp_path, config(TRAINER[kind]))
            assert "holds chat messages, but the tokenizer has no chat template" in message
            return
        rows, notes = formatted(
            Dataset.from_list([row] * 2), tmp_path, config(TRAINER[kind]), chat=chat
        )
        expected = self._expected(kind, schema, chat)
        assert rows == [expected] * 2
        (note,) = notes
        assert note.startswith("train_dataset: columns mapped to what the trainer reads: ")
        first = "messages" if schema.joined else "prompt"
        for target, column in {first: schema.request, **schema.replies}.items():
            named = column if column == target else f"-> {target}"
            assert named in note or column == target

    @pytest.mark.parametrize("chat", [False, True])
    def test_the_note_says_how(self, chat: bool, tmp_path: Path) -> None:
        rows = instruction_rows(2)
        _, notes = formatted(rows, tmp_path, config(), chat=chat)
        form = "chat messages, by the tokenizer's chat template" if chat else "plain text"
        assert notes == (
            "train_dataset: columns mapped to what the trainer reads: instruction (+ context) -> "
            f"prompt, response -> completion; as {form}",
        )

    @pytest.mark.parametrize(
        ("row", "request_text"),
        [
            ({"instruction": "Sum.", "input": "1 2", "output": "3"}, "Sum.\n\n1 2"),
            ({"instruction": "Sum.", "input": "", "output": "3"}, "Sum."),
            ({"instruction": "Sum.", "input": None, "output": "3"}, "Sum."),
            ({"instruction": "Sum.", "context": "1 2", "response": "3"}, "Sum.\n\n1 2"),
            ({"question": "Sum?", "context": "1 2", "answer": "3"}, "Sum?\n\n1 2"),
        ],
    )
    def test_a_context_is_appended(self, row: Row, request_text: str, tmp_path: Path) -> None:
        rows, _ = formatted(Dataset.from_list([row]), tmp_path, config(), chat=True)
        assert rows == [{"prompt": user(request_text), "completion": assistant("3")}]

    def test_the_first_that_fits_wins(self, tmp_path: Path) -> None:
        row = {"instruction": "i", "input": "c", "output": "o", "response": "r"}
        rows, _ = formatted(Dataset.from_list([row]), tmp_path, config(), chat=True)
        assert rows == [{"prompt": user("i\n\nc"), "completion": assistant("o")}]

    def test_columns_of_other_types_do_not_fit(self, tmp_path: Path) -> None:
        row = {"question": "Who?", "context": {"text": "a"}, "answer": "b"}
        assert "has the columns answer, context, question" in error(
            Dataset.from_list([row]), tmp_path, config()
        )

    def test_a_later_row_without_text_is_an_error(self, tmp_path: Path) -> None:
        rows = [{"question": "a", "answer": "b"}, {"question": "c", "answer": None}]
        message = error(Dataset.from_list(rows), tmp_path, config())
        assert "train_dataset has a row without text in answer" in message
        assert "formatting_func" in message

    def test_labels_are_needed_for_unpaired_preferences(self, tmp_path: Path) -> None:
        dataset = Dataset.from_list([{"question": "a", "answer": "b"}])
        assert "KTO reads one of: " in error(dataset, tmp_path, config("KTO"))


NATIVE = [
    (TRAINER[kind], sorted(columns))
    for kind, fmt in FORMATS.items()
    for columns in (*fmt.native, *fmt.implicit)
]


class TestAsTheyAre:
    @pytest.mark.parametrize(("trainer", "columns"), NATIVE, ids=str)
    def test_columns_that_trl_reads(self, trainer: str, columns: list[str], tmp_path: Path) -> None:
        row = {column: "x" for column in columns}
        rows, notes = formatted(Dataset.from_list([row]), tmp_path, config(trainer))
        assert rows == [row]
        assert notes == ()

    def test_they_win_over_known_schemas(self, tmp_path: Path) -> None:
        row = {"instruction": "i", "input": "", "output": "o", "text": "t"}
        rows, notes = formatted(Dataset.from_list([row]), tmp_path, config())
        assert rows == [row]
        assert notes == ()

    def test_but_less_telling_ones_do_not(self, tmp_path: Path) -> None:
        row = {"question": "q", "chosen": "c", "rejected": "r"}
        rows, _ = formatted(Dataset.from_list([row]), tmp_path, config("DPO"), chat=True)
        assert rows[0]["prompt"] == user("q")

    def test_a_text_field_of_the_users(self, tmp_path: Path) -> None:
        dataset = Dataset.from_list([{"story": "once"}])
        formatter = Formatter(tmp_path)
        named = config(dataset_text_field="story")
        result, _ = formatter.format(dataset, "train_dataset", named, chat=False)
        assert list(result) == [{"story": "once"}]
        # What one configuration may train on is no excuse for another.
        with pytest.raises(DatasetError, match="has the columns story"):
            formatter.format(dataset, "train_dataset", config(), chat=False)

    def test_conversations_need_a_chat_template(self, tmp_path: Path) -> None:
        dataset = Dataset.from_list([{"messages": user("a") + assistant("b")}])
        message = error(dataset, tmp_path, config())
        assert "holds chat messages, but the tokenizer has no chat template" in message
        assert "create_model" in message
        assert formatted(dataset, tmp_path, config(), chat=True)[1] == ()
        brought_along = config(chat_template_path="somewhere")
        assert formatted(dataset, tmp_path, brought_along)[1] == ()

    def test_an_own_trainer_gets_what_was_given(self, tmp_path: Path) -> None:
        dataset = Dataset.from_list([{"anything": user("a")}])
        assert formatted(dataset, tmp_path, config(CUSTOM)) == ([{"anything": user("a")}], ())


def test_unknown_columns_name_those_found_and_those_expected(tmp_path: Path) -> None:
    dataset = Dataset.from_list([{"frage": "a", "antwort": "b"}])
    assert error(dataset, tmp_path, config()) == (
        "train_dataset has the columns antwort, frage; SFT reads one of: messages, completion + "
        "prompt, text, conversations, input_ids, instruction + output, instruction + response, "
        "instruction + completion, question + answer, question + response, query + response, "
        "problem + solution, prompt + response, input + output. Rename the columns, or give "
        "RFModelConfig(formatting_func=...) a function from a row to a dict of these columns."
    )


@pytest.mark.parametrize("trainer", TRAINER.values())
def test_every_kind_says_what_it_expects(trainer: str, tmp_path: Path) -> None:
    message = error(Dataset.from_list([{"frage": "a"}]), tmp_path, config(trainer))
    assert f"has the columns frage; {trainer} reads one of: " in message


def as_dict(row: Row) -> Row:
    return {"prompt": row["a"], "completion": row["b"]}


def as_text(row: Row) -> str:
    return f"{row['a']} {row['b']}"


def as_messages(row: Row) -> Row:
    return {"messages": user(row["a"]) + assistant(row["b"])}


def in_place(row: Row) -> Row:
    row["text"] = row.pop("a") + row["b"]
    return row


def with_the_name_of_a_column(row: Row) -> Row:
    return {"prompt": row["prompt"].upper(), "completion": row["completion"]}


ROWS = [{"a": "one", "b": "two"}, {"a": "three", "b": "four"}]


class TestFormattingFunction:
    @pytest.mark.parametrize("lazy", [False, True])
    @pytest.mark.parametrize(
        ("function", "first"),
        [
            (as_dict, {"prompt": "one", "completion": "two"}),
            (as_text, {"text": "one two"}),
            (as_messages, {"messages": user("one") + assistant("two")}),
            (in_place, {"b": "two", "text": "onetwo"}),
        ],
    )
    def test_what_it_returns_is_trained_on(
        self, function: Callable[[Row], Any], first: Row, lazy: bool, tmp_path: Path
    ) -> None:
        dataset: Any = Dataset.from_list(ROWS)
        if lazy:
            dataset = dataset.to_iterable_dataset()
        rows, notes = formatted(dataset, tmp_path, config(function=function), chat=True)
        assert rows[0] == first
        assert len(rows) == 2
        assert notes == ()

    def test_columns_that_it_does_not_return_are_gone(self, tmp_path: Path) -> None:
        row = {"messages": "would be read instead", "prompt": "a", "completion": "b"}
        rows, _ = formatted(
            Dataset.from_list([row]), tmp_path, config(function=with_the_name_of_a_column)
        )
        assert rows == [{"prompt": "A", "completion": "b"}]

    def test_but_not_where_reward_functions_may_want_them(self, tmp_path: Path) -> None:
        rows, _ = formatted(
            Dataset.from_list(ROWS),
            tmp_path,
            config("GRPO", function=lambda row: {"prompt": row["a"]}),
        )
        assert rows[0] == {"a": "one", "b": "two", "prompt": "one"}

    def test_it_is_given_plain_dictionaries(self, tmp_path: Path) -> None:
        types: list[type] = []

        def function(row: Row) -> str:
            types.append(type(row))
            return "x"

        formatted(Dataset.from_list(ROWS), tmp_path, config(function=function))
        assert set(types) == {dict}

    def test_a_value_may_be_missing(self, tmp_path: Path) -> None:
        def function(row: Row) -> Row:
            return {"text": row["a"], "note": None if row["a"] == "one" else "n"}

        rows, _ = formatted(Dataset.from_list(ROWS), tmp_path, config(function=function))
        assert [row["note"] for row in rows] == [None, "n"]

    def test_it_wins_over_columns_that_are_known(self, tmp_path: Path) -> None:
        rows, _ = formatted(
            instruction_rows(1), tmp_path, config(function=lambda row: {"text": "mine"})
        )
        assert rows == [{"text": "mine"}]

    def test_an_error_on_the_first_row(self, tmp_path: Path) -> None:
        message = error(Dataset.from_list([{"x": "one"}]), tmp_path, config(function=as_dict))
        assert message == (
            f"formatting_func {__name__}.as_dict raised KeyError: 'a' on a row of train_dataset "
            "with the columns ['x']. It has to take any row and return a dict of columns, or a "
            "string for SFT."
        )

    def test_an_error_on_a_later_row(self, tmp_path: Path) -> None:
        def function(row: Row) -> str:
            if row["a"] == "three":
                raise ValueError("no threes")
            return "x"

        message = error(Dataset.from_list(ROWS), tmp_path, config(function=function))
        assert "raised ValueError: no threes on a row of train_dataset" in message

    @pytest.mark.parametrize(
        ("trainer", "function", "message"),
        [
            ("SFT", lambda row: None, "returned a NoneType for a row of train_dataset; it has to"),
            ("SFT", lambda row: ["a"], "has to return a dict of columns or a string."),
            ("DPO", lambda row: "text", "returned a str for a row of train_dataset; it has to "
             "return a dict of columns."),
            ("DPO", lambda row: {"chosen": "a"}, "leaves train_dataset with the columns chosen; "
             "DPO reads one of: chosen + prompt + rejected"),
            ("SFT", lambda row: {"prompt": "a"}, "leaves train_dataset with the columns prompt; "),
            ("SFT", lambda row: {}, "leaves train_dataset with the columns none; SFT reads one of"),
            ("GRPO", lambda row: {"question": "a"}, "leaves train_dataset with the columns a, b, "
             "question; GRPO reads one of: prompt"),
            ("SFT", lambda row: {"text": row["a"] if row["a"] == "one" else ["x"]},
             "returned text (text) for the first row of train_dataset, and text (a list) for"),
            ("SFT", lambda row: {"text": "a"} if row["a"] == "one" else {"txt": "a"},
             "returned text (text) for the first row of train_dataset, and txt (text) for"),
            ("SFT", lambda row: {"messages": [{"role": "user", "content": "a"}]},
             "holds chat messages, but the tokenizer has no chat template"),
            ("SFT", lambda: "x", "raised TypeError"),
        ],
    )  # fmt: skip
    def test_what_it_must_not_return(
        self, trainer: str, function: Any, message: str, tmp_path: Path
    ) -> None:
        text = error(Dataset.from_list(ROWS), tmp_path, config(trainer, function))
        assert message in text
        assert "<lambda>" in text or "chat template" in text

    # The file that datasets leaves open when it fails.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_values_that_no_table_can_hold(self, tmp_path: Path) -> None:
        huge = config(function=lambda row: {"text": "a", "number": 2**70})
        message = error(Dataset.from_list(ROWS), tmp_path, huge)
        gc.collect()
        assert "returned values for train_dataset that do not go into one table" in message

    def test_rows_that_only_come_later_fail_when_they_come(self, tmp_path: Path) -> None:
        def function(row: Row) -> str:
            if row["a"] == "three":
                raise ValueError("no threes")
            return "x"

        stream = Dataset.from_list(ROWS).to_iterable_dataset()
        result, _ = Formatter(tmp_path).format(
            stream, "train_dataset", config(function=function), chat=False
        )
        with pytest.raises(DatasetError, match="no threes"):
            list(result)


def test_streams_are_recognised_too(tmp_path: Path) -> None:
    stream = IterableDataset.from_generator(lambda: iter([{"question": "a", "answer": "b"}] * 2))
    rows, notes = formatted(stream, tmp_path, config(), chat=True)
    assert rows == [{"prompt": user("a"), "completion": assistant("b")}] * 2
    assert len(notes) == 1


NO_DATASETS: Mapping[str, tuple[Any, str]] = {
    "list": ([{"text": "a"}], "is a list"),
    "path": ("data.jsonl", "is a str"),
    "dict": ({"text": ["a"]}, "is a dict"),
    "DatasetDict": (DatasetDict(train=Dataset.from_list([{"text": "a"}])), "is a DatasetDict"),
    "None": (None, "is a NoneType"),
}


@pytest.mark.parametrize("name", NO_DATASETS)
def test_what_is_no_dataset(name: str) -> None:
    dataset, message = NO_DATASETS[name]
    with pytest.raises(DatasetError) as caught:
        check_dataset(dataset, "train_dataset")
    assert str(caught.value).startswith(f"train_dataset {message}; it has to be a datasets.Dataset")


@pytest.mark.parametrize(
    "dataset",
    [
        Dataset.from_list([]),
        Dataset.from_dict({"text": []}),
        Dataset.from_list([{"text": "a"}]).filter(lambda row: False),
        Dataset.from_list([{"text": "a"}]).to_iterable_dataset().filter(lambda row: False),
    ],
    ids=["without columns", "without rows", "filtered", "stream"],
)
def test_empty_datasets(dataset: Any) -> None:
    with pytest.raises(DatasetError, match="eval_dataset is empty; it needs at least one row"):
        check_dataset(dataset, "eval_dataset")


class Counted:
    """A formatting function that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, row: Row) -> Row:
        self.calls += 1
        return {"prompt": row["instruction"], "completion": row["response"]}


class TestOnce:
    def test_equal_preparations_are_one(self, tmp_path: Path) -> None:
        function, dataset = Counted(), instruction_rows(20)
        formatter = Formatter(tmp_path)
        results = [
            formatter.format(dataset, "train_dataset", run, chat=True)[0]
            for run in (
                config(function=function),
                config(function=function, learning_rate=1.0),
                config("GOLD", function=function),
            )
        ]
        assert results[0] is results[1] is results[2]
        assert function.calls == 1 + 20

    def test_different_ones_are_not(self, tmp_path: Path) -> None:
        dataset = instruction_rows(4)
        formatter = Formatter(tmp_path)
        results = [
            formatter.format(data, "train_dataset", run, chat=chat)[0]
            for data, run, chat in (
                (dataset, config(), True),
                (dataset, config(), False),
                (dataset, config(function=Counted()), True),
                (dataset, config("GRPO"), True),
                (instruction_rows(4), config(), True),
            )
        ]
        assert len(set(map(id, results))) == len(results)

    def test_a_function_is_never_taken_for_an_earlier_one(self, tmp_path: Path) -> None:
        # Dataset.map's own cache knows imported functions by name: an edited one would go unseen.
        instruction_rows(3).save_to_disk(tmp_path / "mine")
        before = set((tmp_path / "mine").iterdir())
        for word in ("first", "second"):
            as_dict.__globals__["_WORD"] = word
            rows, _ = formatted(
                load_from_disk(tmp_path / "mine"), tmp_path / "data", config(function=_with_word)
            )
            assert rows == [{"text": word}] * 3
        assert set((tmp_path / "mine").iterdir()) == before

    def test_what_was_in_memory_is_put_into_a_file_once(self, tmp_path: Path) -> None:
        dataset = Dataset.from_list([{"text": "a", "prompt": "b"}])
        formatter = Formatter(tmp_path)
        one, _ = formatter.format(dataset, "train_dataset", config(), chat=False)
        other, _ = formatter.format(dataset, "train_dataset", config("GRPO"), chat=False)
        assert one is other
        assert one.cache_files
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_second_attempt_writes_to_files_of_its_own(self, tmp_path: Path) -> None:
        first, _ = Formatter(tmp_path).format(instruction_rows(9), "train", config(), chat=False)
        rows = list(first)
        Formatter(tmp_path).format(instruction_rows(9, seed=1), "train", config(), chat=False)
        assert list(first) == rows

    def test_trainers_tokenise_once(self, tmp_path: Path) -> None:
        torch.set_num_threads(1)
        num_files = {}
        for num_runs in (1, 3):
            function = Counted()
            experiment = Experiment("once", experiment_path=tmp_path)
            experiment.run_fit(
                [
                    RFModelConfig(
                        peft_config=RFLoraConfig(r=number, target_modules=["q_proj"]),
                        training_args=RFSFTConfig(max_steps=1, max_length=32),
                        formatting_func=function,
                    )
                    for number in range(1, num_runs + 1)
                ],
                create_model=lambda config: (tiny_model(), tiny_tokenizer()),
                train_dataset=instruction_rows(20),
                eval_dataset={
                    "one": instruction_rows(5, seed=1),
                    "two": instruction_rows(5, seed=2),
                },
            )
            info = experiment.get_runs_info()
            assert list(info["status"]) == ["completed"] * num_runs
            assert {"eval_one_loss", "eval_two_loss"} <= set(info)
            assert function.calls == 3 + 20 + 5 + 5
            files = (experiment.path / "data").rglob("cache-*.arrow")
            num_files[num_runs] = len(list(files))
        # Three datasets, and TRL goes over each several times.
        assert num_files[1] >= 3 * 2
        assert num_files[3] == num_files[1]


def _with_word(row: Row) -> str:
    return str(globals()["_WORD"])
