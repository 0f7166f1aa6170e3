"""From the user's dataset to the columns that a trainer reads.

Columns that TRL reads already pass as they are. Well-known others are mapped, and a note says how.
Everything else is an error that names the columns found and those expected.
"""

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from datasets import Dataset, IterableDataset, load_from_disk

from rapidfireai.errors import DatasetError
from rapidfireai.faults import reach
from rapidfireai.training.columns import FORMATS, Format, Row, Schema
from rapidfireai.training.config import CUSTOM, RunConfig, as_json
from rapidfireai.training.registry import DataKind, trainer_spec

AnyDataset = Any
"""`datasets.Dataset` or `IterableDataset`."""


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

    What is formatted or was in memory is written below `folder`: `Dataset.map` caches by file, so
    that trainers which tokenise the same rows in the same way do it once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done: dict[tuple[Any, ...], tuple[AnyDataset, tuple[str, ...]]] = {}
        self._kept: list[object] = []
        self._on_disk: dict[int, AnyDataset] = {}

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
        text_field = config.training_args.get("dataset_text_field")
        templated = chat or config.training_args.get("chat_template_path") is not None
        further = () if custom else trainer_spec(config.trainer_type).further_columns
        key = (id(dataset), id(config.formatting_func), kind, chat, templated, text_field, further)
        if key not in self._done:
            self._kept += [dataset, config.formatting_func]
            reach("data.formatting")
            request = _Request(name=name, config=config, kind=kind, chat=chat)
            if config.formatting_func is not None:
                formatted, row = self._apply(config.formatting_func, dataset, request)
                notes: tuple[str, ...] = ()
            else:
                formatted, row, notes = self._recognise(dataset, request)
            missing = [column for column in request.further if column not in row]
            if missing:
                raise DatasetError(
                    f"{name} has the columns {', '.join(sorted(row))}; {config.trainer_type} reads "
                    f"{' and '.join(missing)} as well. Add it, or let formatting_func return it."
                )
            if not templated and kind is not None and FORMATS[kind].is_conversation(row):
                raise DatasetError(
                    f"{name} holds chat messages, but the tokenizer has no chat template. Set "
                    "tokenizer.chat_template in create_model, or give plain text."
                )
            self._done[key] = (self._file_backed(formatted), notes)
            reach("data.formatted")
        return self._done[key]

    def _apply(
        self, function: Callable[[Row], Any], dataset: AnyDataset, request: "_Request"
    ) -> tuple[AnyDataset, Row]:
        """The dataset as the function makes it, and its first row."""
        row = next(iter(dataset))
        checked = _Checked(function, request)
        made = checked(row)
        # Columns that the function did not return would be misread where TRL knows their names
        # too; those that reward functions may want are kept.
        keep = request.kind in (None, DataKind.PROMPT)
        result = {**row, **made} if keep else made
        if request.kind is not None:
            fmt = FORMATS[request.kind]
            if not (fmt.reads(result, request.text_field) or fmt.reads_implicitly(result)):
                raise _column_error(request, result, fmt)
        drop = [column for column in row if column not in result]
        try:
            return self._map(dataset, checked, drop), result
        except DatasetError:
            raise
        except (ValueError, TypeError, NotImplementedError, OverflowError) as error:  # PyArrow's
            raise DatasetError(
                f"formatting_func {checked.name} returned values for {request.name} that do not go "
                f"into one table: {error}. A column needs the same type in every row."
            ) from error

    def _recognise(
        self, dataset: AnyDataset, request: "_Request"
    ) -> tuple[AnyDataset, Row, tuple[str, ...]]:
        """The dataset in TRL's columns, its first row, and how columns were mapped."""
        row = next(iter(dataset))
        if request.kind is None:
            return dataset, row, ()
        fmt = FORMATS[request.kind]
        if fmt.reads(row, request.text_field):
            return dataset, row, ()
        schema = next((schema for schema in fmt.known if schema.fits(row)), None)
        if schema is not None and all(column in row for column in fmt.besides):
            used = {schema.request, schema.context, *schema.replies.values()}
            keep = set(row) - used if fmt.keeps_columns else {*fmt.besides, *request.further}
            drop = [column for column in row if column not in keep]
            converter = _Converter(schema, request)
            note = f"{request.name}: {schema.describe(request.chat)}"
            return self._map(dataset, converter, drop), converter(row), (note,)
        if fmt.reads_implicitly(row):
            return dataset, row, ()
        raise _column_error(request, row, fmt)

    def _map(
        self, dataset: AnyDataset, function: Callable[[Row], dict[str, Any]], drop: list[str]
    ) -> AnyDataset:
        if not isinstance(dataset, Dataset):
            return dataset.map(function, remove_columns=drop)
        return dataset.map(
            function,
            remove_columns=drop,
            # Never an earlier result: its key would not change with an imported function's source.
            load_from_cache_file=False,
            new_fingerprint=uuid4().hex,
            cache_file_name=str(self._new_folder() / "formatted.arrow"),
        )

    def _file_backed(self, dataset: AnyDataset) -> AnyDataset:
        if not isinstance(dataset, Dataset) or dataset.cache_files:
            return dataset
        if id(dataset) not in self._on_disk:
            folder = self._new_folder()
            dataset.save_to_disk(folder)
            self._on_disk[id(dataset)] = load_from_disk(folder)
        return self._on_disk[id(dataset)]

    def _new_folder(self) -> Path:
        # Not one of an earlier attempt, whose files may still be mapped into memory.
        self._folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="", dir=self._folder))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """What a dataset is to be formatted for."""

    name: str
    config: RunConfig
    kind: DataKind | None
    chat: bool

    @property
    def further(self) -> tuple[str, ...]:
        """Columns that this trainer reads besides those of its kind."""
        return () if self.kind is None else trainer_spec(self.config.trainer_type).further_columns

    @property
    def text_field(self) -> str | None:
        name: str | None = self.config.training_args.get("dataset_text_field")
        return name


class _Checked:
    """The user's formatting function, with errors that say what it has to do."""

    def __init__(self, function: Callable[[Row], Any], request: _Request) -> None:
        self.name = as_json(function)
        self._function = function
        self._dataset = request.name
        self._takes_text = request.kind is DataKind.DEMONSTRATION
        self._first: dict[str, str | None] | None = None

    def __call__(self, row: Row) -> dict[str, Any]:
        made = self._made(dict(row))
        kinds = {name: _kind(value) for name, value in sorted(made.items())}
        if self._first is None:
            self._first = kinds
        # Values of several types go into one column nevertheless, as JSON that no trainer reads.
        elif kinds.keys() != self._first.keys() or any(
            kinds[name] != kind and None not in (kinds[name], kind)
            for name, kind in self._first.items()
        ):
            raise DatasetError(
                f"formatting_func {self.name} returned {_listed(self._first)} for the first row of "
                f"{self._dataset}, and {_listed(kinds)} for another; it has to return the same "
                "columns with the same types for all."
            )
        return made

    def _made(self, row: dict[str, Any]) -> dict[str, Any]:
        columns = sorted(row)
        try:
            made = self._function(row)
        except Exception as error:
            raise DatasetError(
                f"formatting_func {self.name} raised {type(error).__name__}: {error} on a row of "
                f"{self._dataset} with the columns {columns}. It has to take any row and return a "
                "dict of columns, or a string for SFT."
            ) from error
        if isinstance(made, str) and self._takes_text:
            return {"text": made}
        if isinstance(made, Mapping):
            return dict(made)
        allowed = "a dict of columns or a string" if self._takes_text else "a dict of columns"
        raise DatasetError(
            f"formatting_func {self.name} returned a {type(made).__name__} for a row of "
            f"{self._dataset}; it has to return {allowed}."
        )


def _kind(value: Any) -> str | None:
    """The value's type, as far as it has to be the same in all rows; None may be anywhere."""
    if value is None:
        return None
    for kind, types in (("text", str), ("a list", list | tuple), ("a dict", Mapping)):
        if isinstance(value, types):
            return kind
    return "a value"


def _listed(kinds: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "nothing"


class _Converter:
    """A known schema as a function of a row."""

    def __init__(self, schema: Schema, request: _Request) -> None:
        self._schema = schema
        self._dataset = request.name
        self._chat = request.chat

    def __call__(self, row: Row) -> dict[str, Any]:
        if not self._schema.fits(row):
            empty = [c for c in self._schema.columns if not isinstance(row.get(c), str)]
            raise DatasetError(
                f"{self._dataset} has a row without text in {', '.join(empty)}. Filter such rows "
                "out, or give RFModelConfig(formatting_func=...) a function that can handle them."
            )
        return self._schema.convert(row, self._chat)


def _column_error(request: _Request, columns: Collection[str], fmt: Format) -> DatasetError:
    name, config = request.name, request.config
    found = ", ".join(sorted(columns)) or "none"
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
