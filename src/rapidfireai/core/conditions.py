"""Conditions over runs, as people write them: `eval_loss > 3 and status == "waiting"`.

The language is a small part of Python's expressions: comparisons (also chained, and `in` lists),
`and`, `or`, `not`, names, numbers, strings. Nothing is executed. What a run does not have is
unknown: a comparison with it neither holds nor fails, so `not` does not turn it into a match.
"""

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from rapidfireai.core.events import Json
from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError, UnknownArgumentError

_MAX_CHARACTERS: Final = 1000

_Values = Mapping[str, Json]
_Test = Callable[[_Values], bool | None]
_Term = Callable[[_Values], Json]

_ORDERS: Final[Mapping[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Condition:
    """A condition that each run meets or not.

    Args:
        text: As written.

    Raises:
        ConfigError: It is not of the language.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._names: set[str] = set()
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(
                f'where={text!r} is no condition; write one such as "eval_loss > 3 and '
                "status == 'waiting'\""
            )
        if len(text) > _MAX_CHARACTERS:
            raise ConfigError(
                f"the condition has {len(text)} characters; up to {_MAX_CHARACTERS} can be read"
            )
        try:
            tree = ast.parse(text.strip(), mode="eval")
            self._test = self._read_test(tree.body)
        except SyntaxError as error:
            raise ConfigError(f"the condition {text!r} cannot be read: {error.msg}") from None
        except (ValueError, RecursionError, MemoryError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the condition {text!r} cannot be read: {error}") from None

    def check_names(self, known: Iterable[str]) -> None:
        """Find misspelt names.

        Args:
            known: All that any run has.

        Raises:
            UnknownArgumentError: No run has what the condition asks for.
        """
        known = set(known)
        for name in sorted(self._names - known):
            raise UnknownArgumentError(
                f"no run has {name!r}, which the condition {self._text!r} asks for; "
                f"{did_you_mean(name, sorted(known))}"
            )

    def holds(self, values: _Values) -> bool:
        """Whether a run with these values meets the condition.

        Raises:
            ConfigError: Two values are compared that have no order.
        """
        return self._test(values) is True

    def _read_test(self, node: ast.expr) -> _Test:
        match node:
            case ast.BoolOp():
                tests = [self._read_test(value) for value in node.values]
                decided_by = isinstance(node.op, ast.Or)
                return lambda values: _joined([test(values) for test in tests], decided_by)
            case ast.UnaryOp(op=ast.Not()):
                test = self._read_test(node.operand)
                return lambda values: _negated(test(values))
            case ast.Compare():
                return self._read_comparison(node)
            case ast.Constant(value=bool() as value):
                return lambda values: value
            case ast.Name() | ast.Attribute() | ast.BinOp():
                name, term = ast.unparse(node), self._read_term(node)
                return lambda values: self._truth(name, term(values))
            case _:
                raise self._not_understood(node)

    def _read_comparison(self, node: ast.Compare) -> _Test:
        terms = [self._read_term(term) for term in (node.left, *node.comparators)]

        def test(values: _Values) -> bool | None:
            found = [term(values) for term in terms]
            pairs = zip(node.ops, found, found[1:], strict=False)
            return _joined([self._compare(op, a, b) for op, a, b in pairs], decided_by=False)

        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.Is | ast.IsNot) and not (
                isinstance(right, ast.Constant) and right.value in (None, True, False)
            ):
                raise self._not_understood(node)
        return test

    def _compare(self, op: ast.cmpop, left: Json, right: Json) -> bool | None:
        is_equality = isinstance(op, ast.Eq | ast.Is)
        if is_equality or isinstance(op, ast.NotEq | ast.IsNot):
            if left is _NOTHING or right is _NOTHING:
                other = right if left is _NOTHING else left
                return (other is None or other is _NOTHING) is is_equality
            if left is None or right is None:
                return None
            return (left == right) is is_equality
        if left in (None, _NOTHING) or right in (None, _NOTHING):
            return None
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, list | str) or (
                isinstance(right, str) and not isinstance(left, str)
            ):
                raise ConfigError(f"in {self._text!r}: {right!r} is no list to look for {left!r}")
            return (left in right) is isinstance(op, ast.In)
        try:
            return _ORDERS[type(op)](left, right)
        except TypeError:
            raise ConfigError(
                f"in {self._text!r}: {left!r} and {right!r} cannot be compared by size"
            ) from None

    def _read_term(self, node: ast.expr) -> _Term:
        match node:
            case ast.Constant(value=None):
                return lambda values: _NOTHING
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return lambda values: value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return lambda values: -value
            case ast.List() | ast.Tuple():
                terms = [self._read_term(element) for element in node.elts]
                return lambda values: [term(values) for term in terms]
            case _:
                name = self._read_name(node)
                self._names.add(name)
                return lambda values: values.get(name)

    def _read_name(self, node: ast.expr) -> str:
        """`loss`; a full name, `peft.r`; or one of a trainer's, `rewards/margins`."""
        match node:
            case ast.Name():
                return node.id
            case ast.Attribute():
                return f"{self._read_name(node.value)}.{node.attr}"
            case ast.BinOp(op=ast.Div()):
                return f"{self._read_name(node.left)}/{self._read_name(node.right)}"
            case _:
                raise self._not_understood(node)

    def _truth(self, name: str, value: Json) -> bool | None:
        if value is None or isinstance(value, bool):
            return value
        raise ConfigError(
            f"in {self._text!r}: {name} is {value!r}, which is neither true nor false; compare it "
            "with something"
        )

    def _not_understood(self, node: ast.expr) -> ConfigError:
        return ConfigError(
            f"the condition {self._text!r} cannot be read: {ast.unparse(node)!r} is more than "
            "names, numbers, strings, comparisons, `in [...]`, and, or, not"
        )


_NOTHING: Final = object()
"""None as it is written in a condition. `x == None` is the one question that a run without an x
answers."""


def _joined(results: list[bool | None], decided_by: bool) -> bool | None:
    """`or` is decided by True, `and` by False; failing that, one unknown makes all unknown."""
    if decided_by in results:
        return decided_by
    return None if None in results else not decided_by


def _negated(result: bool | None) -> bool | None:
    return None if result is None else not result
