"""From the user's dataset to the columns that a trainer reads.

Columns that TRL reads already pass as they are. Well-known others are mapped, and a note says how.
Everything else is an error that names the columns found and those expected.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_from_disk

from rapidfireai.errors import DatasetError
from rapidfireai.training.config import CUSTOM, RunConfig, as_json
from rapidfireai.training.registry import DataKind, trainer_spec

Row = Mapping[str, Any]
AnyDataset = Any
"""`datasets.Dataset` or `IterableDataset`."""


@dataclass(frozen=True, slots=True)
class Schema:
    """Columns under which datasets are published, and how they map to TRL's."""

    request: str
    """Column with the user's words."""
    replies: Mapping[str, str]
    """TRL's column -> the dataset's column with the assistant's words."""
    context: str | None = None
    """Column, possibly empty or absent, that is appended to the request."""

    def fits(self, row: Row) -> bool:
        """Whether the row has the columns, as plain strings."""
        return all(isinstance(row.get(c), str) for c in (self.request, *self.replies.values()))

    def convert(self, row: Row, chat: bool) -> dict[str, Any]:
        """The row in TRL's columns, as a conversation if `chat`."""
        user = row[self.request]
        if self.context and row.get(self.context):
            user = f"{user}\n\n{row[self.context]}"
        replies = {target: row[column] for target, column in self.replies.items()}
        if not chat:
            prompt = f"### Instruction:\n{user}\n\n### Response:\n" if replies else user
            return {"prompt": prompt, **replies}
        return {
            "prompt": [{"role": "user", "content": user}],
            **{
                target: [{"role": "assistant", "content": text}] for target, text in replies.items()
            },
        }

    def describe(self, chat: bool) -> str:
        """How columns are mapped, for the note to the user."""
        request = f"{self.request} (+ {self.context})" if self.context else self.request
        pairs = [(request, "prompt"), *((c, target) for target, c in self.replies.items())]
        mapping = ", ".join(f"{column} -> {target}" for column, target in pairs if column != target)
        form = "chat messages, by the tokenizer's chat template" if chat else "plain text"
        return f"columns mapped to what the trainer reads: {mapping}; as {form}"


@dataclass(frozen=True, slots=True)
class Format:
    """What one kind of trainer reads: the first of `native`, `known`, `implicit` that fits."""

    native: tuple[frozenset[str], ...]
    known: tuple[Schema, ...] = ()
    implicit: tuple[frozenset[str], ...] = ()
    """Columns that TRL reads as well, but with less to go by."""
    keeps_columns: bool = False
    """Whether further columns mean something to the trainer (reward functions get them)."""

    def expected(self) -> str:
        """The accepted sets of columns, for error messages."""
        sets = [sorted(columns) for columns in (*self.native, *self.implicit)]
        sets += [[s.request, *s.replies.values()] for s in self.known]
        return ", ".join(" + ".join(dict.fromkeys(columns)) for columns in sets)


def _sets(*names: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(name.split("+")) for name in names)


_REQUESTS = ("question", "instruction", "query", "problem")

FORMATS: Mapping[DataKind, Format] = {
    DataKind.DEMONSTRATION: Format(
        native=_sets("messages", "prompt+completion", "text", "conversations", "input_ids"),
        known=tuple(
            Schema(request, {"completion": reply}, context)
            for request, reply, context in (
                ("instruction", "output", "input"),
                ("instruction", "response", "context"),
                ("instruction", "completion", None),
                ("question", "answer", "context"),
                ("question", "response", None),
                ("query", "response", None),
                ("problem", "solution", None),
                ("prompt", "response", None),
                ("input", "output", None),
            )
        ),
    ),
    DataKind.PREFERENCE: Format(
        native=_sets("prompt+chosen+rejected"),
        known=tuple(Schema(r, {"chosen": "chosen", "rejected": "rejected"}) for r in _REQUESTS),
        implicit=_sets("chosen+rejected"),
    ),
    DataKind.PROMPT: Format(
        native=_sets("prompt"),
        known=tuple(Schema(request, {}) for request in _REQUESTS),
        keeps_columns=True,
    ),
    DataKind.UNPAIRED_PREFERENCE: Format(
        native=_sets("prompt+completion+label", "prompt+chosen+rejected"),
        known=tuple(
            Schema(request, {"completion": reply})
            for request in _REQUESTS
            for reply in ("answer", "response", "completion")
        ),
        implicit=_sets("completion+label", "chosen+rejected"),
    ),
}


def check_dataset(dataset: AnyDataset, name: str) -> None:
    """Refuse what is no dataset, or an empty one.

    Raises:
        DatasetError: It is; the message says what is allowed.
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        raise DatasetError(
            f"{name} is a {type(dataset).__name__}; it has to be a datasets.Dataset or "
            "IterableDataset, such as Dataset.from_list(rows) or load_dataset(..., split=...) give."
        )
    if next(iter(dataset), None) is None:
        raise DatasetError(f"{name} is empty; it needs at least one row.")


class Formatter:
    """Brings datasets into the columns that trainers read, each distinct combination once.

    Formatted datasets are written below `folder`: `Dataset.map` caches by file, so that trainers
    which tokenise the same rows in the same way do it once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done: dict[tuple[Any, ...], tuple[AnyDataset, tuple[str, ...]]] = {}
        self._kept: list[object] = []

    def format(
        self, dataset: AnyDataset, name: str, config: RunConfig, *, chat: bool
    ) -> tuple[AnyDataset, tuple[str, ...]]:
        """The dataset in TRL's columns, and notes on what was done.

        Args:
            name: "train_dataset" or "eval_dataset", for messages.
            chat: Whether the tokenizer has a chat template.

        Raises:
            DatasetError: The columns cannot be trained on, or the formatting function failed.
        """
        custom = config.trainer_type == CUSTOM
        kind = None if custom else trainer_spec(config.trainer_type).data_kind
        # Identity is a sound key here: `_kept` keeps the objects, hence their ids, alive.
        key = (id(dataset), id(config.formatting_func), kind, config.trainer_type, chat)
        if key not in self._done:
            self._kept += [dataset, config.formatting_func]
            formatted, notes = self._format(dataset, name, config, kind, chat)
            self._done[key] = (self._on_disk(formatted), notes)
        return self._done[key]

    def _format(
        self, dataset: AnyDataset, name: str, config: RunConfig, kind: DataKind | None, chat: bool
    ) -> tuple[AnyDataset, tuple[str, ...]]:
        notes: tuple[str, ...] = ()
        if config.formatting_func is not None:
            dataset = _apply(config.formatting_func, dataset, name, kind)
        if kind is None:
            return dataset, notes
        fmt = FORMATS[kind]
        row = next(iter(dataset))
        columns = set(row)
        text_field = config.training_args.get("dataset_text_field")
        if any(needed <= columns for needed in fmt.native) or text_field in columns:
            return dataset, notes
        if config.formatting_func is None:
            schema = next((schema for schema in fmt.known if schema.fits(row)), None)
            if schema is not None and (kind is not DataKind.UNPAIRED_PREFERENCE or "label" in row):
                notes = (f"{name}: {schema.describe(chat)}",)
                return _convert(dataset, schema, chat, fmt), notes
        if any(needed <= columns for needed in fmt.implicit):
            return dataset, notes
        raise _column_error(name, config, sorted(columns), fmt)

    def _on_disk(self, dataset: AnyDataset) -> AnyDataset:
        if not isinstance(dataset, Dataset) or dataset.cache_files:
            return dataset
        folder = self._folder / str(len(self._done))
        dataset.save_to_disk(folder)
        return load_from_disk(folder)


def _apply(
    function: Callable[[Row], Any], dataset: AnyDataset, name: str, kind: DataKind | None
) -> AnyDataset:
    what = as_json(function)

    def checked(row: Row) -> dict[str, Any]:
        try:
            made = function(row)
        except Exception as error:
            raise DatasetError(
                f"formatting_func {what} raised {type(error).__name__}: {error} on a row of {name} "
                f"with the columns {sorted(row)}. It has to take any row and return a dict of "
                "columns, or a string for SFT."
            ) from error
        if isinstance(made, str) and kind is DataKind.DEMONSTRATION:
            return {"text": made}
        if isinstance(made, Mapping):
            return dict(made)
        allowed = "a dict of columns"
        if kind is DataKind.DEMONSTRATION:
            allowed += " or a string"
        raise DatasetError(
            f"formatting_func {what} returned a {type(made).__name__} for a row of {name}; it has "
            f"to return {allowed}."
        )

    row = next(iter(dataset))
    made = checked(row)
    # Columns that the function did not return would be misread where TRL knows their names too;
    # those that reward functions may want are kept.
    keep = kind in (None, DataKind.PROMPT)
    drop = [] if keep else [column for column in row if column not in made]
    return dataset.map(checked, remove_columns=drop)


def _convert(dataset: AnyDataset, schema: Schema, chat: bool, fmt: Format) -> AnyDataset:
    used = {schema.request, schema.context, *schema.replies.values()}
    row = next(iter(dataset))
    keep = set(row) - used if fmt.keeps_columns else {"label"}
    drop = [column for column in row if column not in keep]
    return dataset.map(lambda row: schema.convert(row, chat), remove_columns=drop)


def _column_error(name: str, config: RunConfig, columns: list[str], fmt: Format) -> DatasetError:
    found = ", ".join(columns)
    if config.formatting_func is not None:
        source = f"formatting_func {as_json(config.formatting_func)} leaves {name} with the columns"
        advice = "Let it return one of these sets of columns."
    else:
        source = f"{name} has the columns"
        advice = (
            "Rename the columns, or give RFModelConfig(formatting_func=...) a function from a row "
            "to a dict of these columns."
        )
    return DatasetError(
        f"{source} {found}; {config.trainer_type} reads one of: {fmt.expected()}. {advice}"
    )
