"""The demo's data: questions and answers about Python's standard library, from its own docstrings.

Everything comes from the interpreter that runs the demo: nothing is downloaded, and the same
interpreter and seed give the same rows. Of the model it is only known that a row should fit 128
tokens, which the length limits below see to.
"""

import importlib
import inspect
import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from rapidfireai.errors import DatasetError

MODULES = (
    "argparse", "array", "ast", "asyncio", "base64", "binascii", "bisect", "builtins", "calendar",
    "cmath", "codecs", "collections", "colorsys", "concurrent.futures", "configparser",
    "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "dis",
    "email.utils", "enum", "filecmp", "fileinput", "fnmatch", "fractions", "functools", "gc",
    "getpass", "glob", "gzip", "hashlib", "heapq", "hmac", "html", "http.cookies", "io",
    "ipaddress", "itertools", "json", "keyword", "linecache", "locale", "logging", "math",
    "mimetypes", "numbers", "operator", "os", "os.path", "pathlib", "pickle", "pkgutil",
    "platform", "pprint", "queue", "quopri", "random", "re", "sched", "secrets", "selectors",
    "shelve", "shlex", "shutil", "signal", "socket", "stat", "statistics", "string", "struct",
    "subprocess", "sys", "sysconfig", "tarfile", "tempfile", "textwrap", "threading", "time",
    "timeit", "tokenize", "traceback", "types", "unicodedata", "urllib.parse", "uuid", "warnings",
    "weakref", "zipfile", "zlib",
)  # fmt: skip
"""Modules that import without side effects, that every build of Python has, and that torch does not
write to (as it does to `inspect`), so that rows do not depend on what else was imported."""

CLASSES = (
    "builtins.bytes", "builtins.dict", "builtins.float", "builtins.int", "builtins.list",
    "builtins.set", "builtins.str", "collections.Counter", "collections.OrderedDict",
    "collections.deque", "datetime.date", "datetime.datetime", "decimal.Decimal",
    "pathlib.Path", "random.Random", "statistics.NormalDist", "threading.Event", "zipfile.ZipFile",
)  # fmt: skip
"""Classes whose methods are asked about too."""

MAX_NAME_CHARS = 48
MAX_CALL_CHARS = 90
MAX_ANSWER_CHARS = 200

Kind = Literal["function", "method", "class"]
Row = dict[str, str]

_CALL = re.compile(r"[\w.]+\(")
_SENTENCE_END = re.compile(r"(?<=\.) (?=[A-Z])")
_UNCLEAN = re.compile(r">>>|::|[{}|\\<>*]|->|\bTODO\b|deprecated|accurate signature", re.IGNORECASE)
# An object's address, a set in the order of the day, a path of this machine, no names at all.
_NOT_WRITABLE = re.compile(r"0x|[<{]|[/\\]\w|\(\*args, \*\*kw")


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """Rows with the columns `instruction` and `response`; the two parts share no object."""

    train: list[Row]
    held_out: list[Row]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One documented object of the standard library."""

    name: str
    """As one would write it, such as `textwrap.dedent` or `str.join`."""
    kind: Kind
    summary: str
    """The first sentences of its docstring."""
    call: str | None
    """Name and parameters; None if Python does not know them or they are long."""


def standard_library(*, num_train: int = 384, num_held_out: int = 64, seed: int = 0) -> Questions:
    """Draws questions about the standard library, one for each object.

    Args:
        num_train: Number of rows to train on.
        num_held_out: Number of rows about objects that no row of the other part is about.
        seed: Decides which objects are drawn, their order and what is asked of each.

    Raises:
        DatasetError: There are too few documented objects, as under `python -OO`.
    """
    found = list(entries())
    wanted = num_train + num_held_out
    if len(found) < wanted:
        raise DatasetError(
            f"{wanted} rows are wanted, but only {len(found)} objects of the standard library have "
            "a usable docstring: ask for fewer, and run Python without -OO, which drops docstrings"
        )
    rng = random.Random(seed)
    rows = [_row(entry, rng) for entry in rng.sample(found, wanted)]
    return Questions(train=rows[num_held_out:], held_out=rows[:num_held_out])


def entries() -> Iterator[Entry]:
    """Every object worth a question, ordered by module and name; no two share a summary."""
    seen = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # looking at a deprecated name warns
        for name, kind, thing in _objects():
            summary = _summary(thing.__doc__)
            if summary is None or summary in seen or len(name) > MAX_NAME_CHARS:
                continue
            seen.add(summary)
            yield Entry(name=name, kind=kind, summary=summary, call=_call(name, kind, thing))


def _objects() -> Iterator[tuple[str, Kind, Any]]:
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        prefix = "" if module_name == "builtins" else f"{module_name}."
        for name in _public_names(module):
            thing = getattr(module, name, None)
            # Without __all__, what the module imported for itself looks public too.
            if not hasattr(module, "__all__") and getattr(thing, "__module__", "") != module_name:
                continue
            if inspect.isclass(thing):
                yield f"{prefix}{name}", "class", thing
            elif inspect.isroutine(thing):
                yield f"{prefix}{name}", "function", thing
    for class_name in CLASSES:
        module_name, _, name = class_name.rpartition(".")
        owner = getattr(importlib.import_module(module_name), name)
        for method in _public_names(owner):
            thing = getattr(owner, method)
            if inspect.isroutine(thing):
                yield f"{class_name.removeprefix('builtins.')}.{method}", "method", thing


def _public_names(owner: ModuleType | type) -> list[str]:
    names = getattr(owner, "__all__", None) or vars(owner)
    # Hooks are there to be replaced, and pytest does.
    return sorted(name for name in names if not name.startswith("_") and name[-4:] != "hook")


def _summary(docstring: object) -> str | None:
    """The first sentences of the first paragraph, as one line; None if it is no clean prose."""
    if not isinstance(docstring, str):
        return None
    paragraphs = [
        " ".join(paragraph.split())
        for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring))
        if not _CALL.match(paragraph)
    ]
    if not paragraphs or _UNCLEAN.search(paragraphs[0]) or not paragraphs[0].isascii():
        return None
    summary = ""
    for sentence in _SENTENCE_END.split(paragraphs[0].replace("``", "`")):
        longer = f"{summary} {sentence}".strip()
        if len(longer) > MAX_ANSWER_CHARS:
            break
        summary = longer
    if summary[-1:].isalnum():
        summary += "."
    is_prose = summary[:1].isupper() and summary.endswith(".") and summary.count(" ") >= 3
    return summary if is_prose else None


def _call(name: str, kind: Kind, thing: Any) -> str | None:
    """Name and parameters as one would write them; None if unknown, long or variable."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):  # C code without a signature
        return None
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if not (kind == "method" and parameter.name == "self")
    ]
    plain = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    call = f"{name}{plain}".replace("(/, ", "(").replace("(/)", "()")
    return None if len(call) > MAX_CALL_CHARS or _NOT_WRITABLE.search(call) else call


def _row(entry: Entry, rng: random.Random) -> Row:
    ask = rng.choices([_purpose, _search, _usage], weights=[6, 2, 2])[0]
    if ask is _usage and entry.call is None:
        ask = _purpose
    instruction, response = ask(entry, rng)
    return {"instruction": instruction, "response": response}


def _purpose(entry: Entry, rng: random.Random) -> tuple[str, str]:
    name = entry.name
    if entry.kind == "class":
        questions = [
            f"What is `{name}` in Python?",
            f"What is the class `{name}` for?",
            f"Describe the Python class `{name}` briefly.",
        ]
    else:
        questions = [
            f"What does `{name}` do?",
            f"In Python, what is `{name}` for?",
            f"Explain the {entry.kind} `{name}` of Python briefly.",
            f"I found `{entry.call or name}` in a program. What does it do?",
        ]
    return rng.choice(questions), entry.summary


def _search(entry: Entry, rng: random.Random) -> tuple[str, str]:
    owner, _, _ = entry.name.rpartition(".")
    if entry.kind == "method":
        place = f"{entry.kind} of `{owner}`"
    else:
        place = f"{entry.kind} of the module `{owner}`" if owner else f"built-in {entry.kind}"
    questions = [
        f"Which {place} fits this description? {entry.summary}",
        f"I am looking for a {place}: {entry.summary} What is its name?",
    ]
    return rng.choice(questions), f"That is `{entry.name}`."


def _usage(entry: Entry, rng: random.Random) -> tuple[str, str]:
    questions = [
        f"How do I call `{entry.name}`?",
        f"Which arguments does `{entry.name}` take?",
        f"What is the signature of `{entry.name}`?",
    ]
    return rng.choice(questions), f"The call is `{entry.call}`."
