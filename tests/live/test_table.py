import pytest

from rapidfireai.live.table import Column, Line, Span, crop, shorten, table, text


def column(title: str, *cells: str, importance: int = 0, left: bool = False) -> Column:
    lines: list[Line] = [(Span(cell),) if cell else () for cell in cells]
    return Column(title=title, cells=lines, importance=importance, left=left)


def shown(*columns: Column, width: int = 80) -> list[str]:
    return [text(line) for line in table(columns, width)]


def test_columns_are_as_wide_as_their_widest_entry() -> None:
    assert shown(column("n", "1", "100"), column("name", "a", "b", left=True)) == [
        "  n  name",
        "  1  a",
        "100  b",
    ]


def test_wide_characters_count_twice() -> None:
    assert shown(column("n", "漢字", "ab")) == ["   n", "漢字", "  ab"]


def test_what_does_not_fit_is_left_out_by_importance() -> None:
    columns = (
        column("aaaa", "x", importance=2),
        column("bbbb", "x", importance=0),
        column("cc", "x", importance=3),
        column("dddd", "x", importance=1),
    )
    assert shown(*columns, width=20)[0] == "aaaa  bbbb  cc  dddd"
    assert shown(*columns, width=19)[0] == "aaaa  bbbb  dddd"
    assert shown(*columns, width=14)[0] == "bbbb  cc  dddd"
    assert shown(*columns, width=4)[0] == "bbbb"
    assert shown(*columns, width=1) == []


def test_empty_columns_are_left_out() -> None:
    assert shown(column("a", "1", ""), column("b", "", "")) == ["a", "1", ""]
    assert shown() == []


@pytest.mark.parametrize(
    ("width", "expected"),
    [(6, "abcdef"), (5, "abcd…"), (4, "abc…"), (3, "ab…"), (1, "…")],
)
def test_crop_marks_what_is_missing(width: int, expected: str) -> None:
    line = (Span("abc", "bold"), Span("def"))
    assert text(crop(line, width)) == expected
    assert crop(line, width)[0].style in ("bold", "")


def test_shorten() -> None:
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdef", 4) == "abc…"
    assert shorten("漢字漢字", 5) == "漢字…"
