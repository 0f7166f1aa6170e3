"""Files are read as people write them, and nothing in them is lost."""

from pathlib import Path

import pytest

from rapidfireai.errors import ConfigError
from rapidfireai.recipe.document import parse, read_mapping


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5E3", 1500.0),
        ("-2e+1", -20.0),
        ("1.0e-4", 1e-4),
        ("7", 7),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("off", "off"),
        ("null", None),
        ("[1e-4, 3e-4]", [1e-4, 3e-4]),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
    ],
)
def test_values_are_what_they_look_like(text: str, value: object) -> None:
    read = parse(text)
    assert read == value
    assert type(read) is type(value)


def test_a_key_that_stands_there_twice(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("max_steps: 4\nseed: 1\nmax_steps: 8\n")
    with pytest.raises(ConfigError, match=r"twice\.yaml.*'max_steps' stands there twice.*line 3"):
        read_mapping(file)


@pytest.mark.parametrize("text", ["a: [1, 2", "- 1\n- 2\n", "", "1: 2", "!!python/name:os.system"])
def test_what_is_no_file_of_keys_and_values(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read_mapping(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml cannot be read"):
        read_mapping(tmp_path / "missing.yaml")
