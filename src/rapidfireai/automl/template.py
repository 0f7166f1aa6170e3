"""Templates: configurations whose arguments may be knobs.

A template records what the user set, and nothing else, and checks each argument at once against the
class that it stands for, without building that class.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from rapidfireai.automl.argument_types import Argument, shown
from rapidfireai.automl.knobs import Composite, List, fresh, knobs_in
from rapidfireai.automl.renamed import OLD_NAMES, OLD_VALUES, Dropped, Refused, Renamed
from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError, UnknownArgumentError


class Template(Composite):
    """Named arguments of some class, each a value or a knob.

    Attributes are arguments: reading gives what was set or the default, setting is checked and
    counts, `del` goes back to the default.

    Raises:
        UnknownArgumentError: The class has no such argument.
        ConfigError: A value has the wrong type, or an old argument cannot be translated.
    """

    old_names: ClassVar[Mapping[str, Renamed | Dropped | Refused]] = OLD_NAMES
    """What to answer to names that are not arguments (any more)."""
    _arguments: dict[str, Any]
    _notes: list[str]

    def __init__(self, **arguments: Any) -> None:
        self._reset({}, [])
        for name, value in arguments.items():
            row = self.old_names.get(name)
            if isinstance(row, Renamed) and row.new in arguments and not self._has(name):
                raise ConfigError(
                    f"{self._title}: {name} and {row.new} are the same argument; give {row.new}"
                )
            setattr(self, name, value)

    @abstractmethod
    def known_arguments(self) -> Mapping[str, Argument]:
        """Returns every argument of the class that the template stands for."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What was set, by name."""
        return dict(self._arguments)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was translated or dropped on the way, for the user to read."""
        return tuple(dict.fromkeys(self._notes))

    def copy(self) -> Self:
        """Returns an independent template with the same arguments."""
        return self.with_parts({name: fresh(value) for name, value in self._arguments.items()})

    def parts(self) -> Mapping[str, Any]:
        """Returns the arguments that were set, in the order in which they were."""
        return self._arguments

    def with_parts(self, parts: Mapping[str, Any]) -> Self:
        """Returns a template with these arguments, which are taken as checked."""
        twin = object.__new__(type(self))
        twin._reset(dict(parts), list(self._notes))
        return twin

    @property
    def _title(self) -> str:
        return type(self).__name__

    def _reset(self, arguments: dict[str, Any], notes: list[str]) -> None:
        object.__setattr__(self, "_arguments", arguments)
        object.__setattr__(self, "_notes", notes)

    def _has(self, name: str) -> bool:
        return name in self.known_arguments()

    def __getattr__(self, name: str) -> Any:
        # Only called where Python found nothing; a private name here means a half-built object.
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._arguments:
            return self._arguments[name]
        known = self.known_arguments()
        if name not in known:
            raise AttributeError(f"{self._title} has no {name}; {did_you_mean(name, known)}")
        return fresh(known[name].default)

    def __setattr__(self, name: str, value: Any) -> None:
        known = self.known_arguments()
        if name not in known:
            self._set_unknown(name, value)
            return
        row = OLD_VALUES.get((name, value)) if isinstance(value, str) else None
        if row is None:
            self._arguments[name] = known[name].checked(value, self._title)
        else:
            self._drop(name, value, row)

    def __delattr__(self, name: str) -> None:
        if name not in self._arguments:
            raise AttributeError(f"{self._title}: {name} is not set")
        del self._arguments[name]

    def _set_unknown(self, name: str, value: Any) -> None:
        """Answers to a name that is not among the known arguments."""
        row = self.old_names.get(name)
        if isinstance(row, Dropped | Refused):
            self._drop(name, value, row)
        elif row is not None and self._has(row.new):
            new_value = _converted(value, row)
            setattr(self, row.new, new_value)
            self._notes.append(f"{name}={shown(value)} became {row.new}={shown(new_value)}")
        else:
            known = self.known_arguments()
            raise UnknownArgumentError(
                f"{self._title} has no argument {name!r}; {did_you_mean(name, known)}"
            )

    def _drop(self, name: str, value: Any, row: Dropped | Refused) -> None:
        if isinstance(row, Refused):
            if value in row.harmless:
                return
            raise ConfigError(f"{self._title}: {name}={shown(value)} cannot be used; {row.instead}")
        if row.harmless is not None and value not in row.harmless:
            raise ConfigError(
                f"{self._title}: {name}={shown(value)} is not possible: {row.why}; leave it out"
            )
        self._arguments.pop(name, None)
        self._notes.append(f"{name}={shown(value)} was left out: {row.why}")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, Template)
        return self._arguments == other._arguments

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._arguments.items())
        return f"{self._title}({arguments})"

    def __dir__(self) -> Iterator[str]:
        yield from super().__dir__()
        yield from self.known_arguments()


def _converted(value: Any, row: Renamed) -> Any:
    if isinstance(value, List):
        return List([_converted(item, row) for item in value.values])
    return row.convert(value) if not any(knobs_in(value)) else value
