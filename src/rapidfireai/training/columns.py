"""The columns that trainers read, and the well-known others that are mapped to them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from rapidfireai.training.registry import DataKind

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Schema:
    """Columns under which datasets are published, and how they map to TRL's."""

    request: str
    """Column with the user's words."""
    replies: Mapping[str, str]
    """TRL's column -> the dataset's column with the assistant's words."""
    context: str | None = None
    """Column, possibly empty or absent, that is appended to the request."""
    joined: bool = False
    """Whether request and reply go into one conversation, in the column `messages`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it needs."""
        return tuple(dict.fromkeys((self.request, *self.replies.values())))

    def fits(self, row: Row) -> bool:
        """Whether the row has the columns, as plain strings."""
        context = row.get(self.context) if self.context else None
        return isinstance(context, str | None) and all(
            isinstance(row.get(column), str) for column in self.columns
        )

    def convert(self, row: Row, chat: bool) -> dict[str, Any]:
        """The row in TRL's columns, as a conversation if `chat`."""
        user = row[self.request]
        if self.context and row.get(self.context):
            user = f"{user}\n\n{row[self.context]}"
        replies = {target: row[column] for target, column in self.replies.items()}
        if self.joined:
            said = [{"role": "assistant", "content": text} for text in replies.values()]
            return {"messages": [{"role": "user", "content": user}, *said]}
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
        first = "messages" if self.joined else "prompt"
        pairs = [(request, first), *((c, target) for target, c in self.replies.items())]
        mapping = ", ".join(f"{column} -> {target}" for column, target in pairs if column != target)
        in_chat = chat or self.joined
        form = "chat messages, by the tokenizer's chat template" if in_chat else "plain text"
        return f"columns mapped to what the trainer reads: {mapping}; as {form}"


@dataclass(frozen=True, slots=True)
class Format:
    """What one kind of trainer reads: the first of `native`, `known`, `implicit` that fits."""

    native: tuple[frozenset[str], ...]
    known: tuple[Schema, ...] = ()
    implicit: tuple[frozenset[str], ...] = ()
    """Columns that TRL reads as well, but with less to go by."""
    besides: tuple[str, ...] = ()
    """Columns that a known schema needs as well; they are taken over as they are."""
    keeps_columns: bool = False
    """Whether further columns mean something to the trainer (reward functions get them)."""

    def expected(self) -> str:
        """The accepted sets of columns, for error messages."""
        sets = [sorted(columns) for columns in (*self.native, *self.implicit)]
        sets += [[*schema.columns, *self.besides] for schema in self.known]
        return ", ".join(dict.fromkeys(" + ".join(columns) for columns in sets))

    def reads(self, columns: Collection[str], text_field: str | None) -> bool:
        """Whether TRL reads these columns as they are."""
        return text_field in columns or any(needed <= set(columns) for needed in self.native)

    def reads_implicitly(self, columns: Collection[str]) -> bool:
        """Whether TRL makes do with these columns."""
        return any(needed <= set(columns) for needed in self.implicit)

    def is_conversation(self, row: Row) -> bool:
        """Whether one of the columns that TRL reads holds messages."""
        values = [
            row.get(column) for columns in (*self.native, *self.implicit) for column in columns
        ]
        return any(
            isinstance(value, list)
            and bool(value)
            and isinstance(value[0], Mapping)
            and ("role" in value[0] or "from" in value[0])
            for value in values
        )


def _sets(*names: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(name.split("+")) for name in names)


_REQUESTS = ("question", "instruction", "query", "problem")
_DEMONSTRATIONS = (
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
"""Request, reply and context."""

FORMATS: Mapping[DataKind, Format] = {
    DataKind.DEMONSTRATION: Format(
        native=_sets("messages", "prompt+completion", "text", "conversations", "input_ids"),
        known=tuple(
            Schema(request, {"completion": reply}, context)
            for request, reply, context in _DEMONSTRATIONS
        ),
    ),
    DataKind.CONVERSATION: Format(
        native=_sets("messages"),
        known=tuple(
            Schema(request, {"messages": reply}, context, joined=True)
            for request, reply, context in (*_DEMONSTRATIONS, ("prompt", "completion", None))
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
        besides=("label",),
    ),
}
