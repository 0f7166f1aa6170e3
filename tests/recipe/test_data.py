"""Rows come from files, folders, names and mixtures; what is missing is named."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict

from rapidfireai.errors import DatasetError
from rapidfireai.recipe.data import Data


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = Dataset.from_list([{"text": f"row {n}", "n": n} for n in range(8)])
    rows.to_json("rows.jsonl")
    rows.to_json("rows.json.gz", compression="gzip")
    rows.to_csv("rows.csv")
    rows.to_parquet("rows.parquet")
    rows.select(range(2)).to_json("test.jsonl")
    DatasetDict({"train": rows, "test": rows.select(range(3))}).save_to_disk("saved")
    (tmp_path / "folder").mkdir()
    rows.to_json("folder/train.jsonl")
    rows.select(range(4)).to_json("folder/test.jsonl")
    return tmp_path


def loaded(*, evaluates: bool = False, **given: Any) -> tuple[int, int | None]:
    train, evaluation = Data(given=given, evaluates=evaluates).load(seed=1)
    return len(train), None if evaluation is None else len(evaluation)


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({"dataset_name": "rows.jsonl"}, (8, None)),
        ({"dataset_name": "rows.json.gz"}, (8, None)),
        ({"dataset_name": "./rows.csv"}, (8, None)),
        ({"dataset_name": "rows.parquet"}, (8, None)),
        ({"dataset_name": "rows.jsonl", "dataset_train_split": "train[:3]"}, (3, None)),
        ({"dataset_name": "rows.jsonl", "test_split_size": 0.25}, (6, 2)),
        ({"dataset_name": "folder"}, (8, None)),
        ({"dataset_name": "folder", "dataset_test_split": "test"}, (8, 4)),
        ({"dataset_name": "folder", "evaluates": True}, (8, 4)),
        ({"dataset_name": "saved", "dataset_test_split": "test"}, (8, 3)),
        (
            {
                "dataset_name": {"train": "rows.jsonl", "test": ["test.jsonl", "rows.jsonl"]},
                "dataset_test_split": "test",
            },
            (8, 10),
        ),
        (
            {"datasets": [{"path": "rows.jsonl"}, {"path": "rows.json.gz", "split": "train"}]},
            (16, None),
        ),
        ({"datasets": [{"path": "json", "data_files": "test.jsonl"}]}, (2, None)),
        (
            {
                "datasets": [
                    {"path": "rows.jsonl", "columns": ["text"], "fraction": 0.5},
                    {"path": "folder", "split": "test", "columns": ["text"], "fraction": 0.5},
                ],
                "test_split_size": 0.5,
            },
            (4, 4),
        ),
    ],
)
def test_rows_are_found(given: dict[str, Any], sizes: tuple[int, int | None]) -> None:
    assert loaded(**given) == sizes


def test_streams() -> None:
    train, _ = Data(
        given={"dataset_name": "rows.jsonl", "dataset_streaming": True}, evaluates=False
    ).load(seed=1)
    assert isinstance(train, datasets.IterableDataset)
    assert [row["n"] for row in train] == list(range(8))


def test_what_is_taken_away_depends_on_the_seed_alone() -> None:
    data = Data(given={"dataset_name": "rows.jsonl", "test_split_size": 0.25}, evaluates=False)
    first, again, other = (data.load(seed)[1]["n"] for seed in (1, 1, 2))
    assert list(first) == list(again)
    assert list(first) != list(other)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "either dataset_name.*or datasets"),
        ({"dataset_name": "rows.jsonl", "datasets": [{"path": "rows.csv"}]}, "either"),
        ({"dataset_name": "none.jsonl"}, r"no file 'none.jsonl' \(looked for /.*none.jsonl\)"),
        ({"dataset_name": "./none"}, "no file './none'"),
        ({"dataset_name": {"train": "none.csv"}}, "no file 'none.csv'"),
        ({"dataset_name": "no-such/dataset"}, "no-such/dataset"),
        ({"dataset_name": "rows.jsonl", "dataset_train_split": "dev"}, "dev.*train"),
        ({"dataset_name": "saved", "dataset_train_split": "dev"}, "dev"),
        ({"dataset_name": "rows.jsonl", "evaluates": True}, "test"),
        ({"dataset_name": "rows.jsonl", "streaming": True}, "streaming belongs to datasets"),
        ({"datasets": [{"path": "rows.csv"}], "dataset_config": "main"}, "belongs to dataset_name"),
        ({"datasets": [{"path": "rows.csv"}], "evaluates": True}, "test_split_size"),
        ({"datasets": [{"pth": "rows.csv"}]}, "no key 'pth'; did you mean 'path'"),
        ({"datasets": [{"name": "main"}]}, "has no path"),
        ({"datasets": [{"path": "rows.csv", "fraction": "half"}]}, "fraction='half'"),
        ({"datasets": [{"path": "none.csv"}]}, "no file 'none.csv'"),
        ({"datasets": [{"path": "json", "data_files": "none.json"}]}, "no file 'none.json'"),
        (
            {"dataset_name": "folder", "dataset_test_split": "test", "test_split_size": 0.5},
            "give one of them",
        ),
        (
            {"dataset_name": "rows.csv", "dataset_streaming": True, "test_split_size": 0.5},
            "stream",
        ),
        ({"dataset_name": {"train": "rows.csv", "test": "test.jsonl"}}, "several"),
        ({"dataset_name": "rows.csv", "test_split_size": 20}, "rows.csv.*test_size=20"),
    ],
)
def test_what_cannot_be_loaded(given: dict[str, Any], told: str) -> None:
    with pytest.raises(DatasetError, match=told):
        loaded(**given)


def test_a_file_of_unknown_form(files: Path) -> None:
    (files / "rows.xls").write_text("")
    with pytest.raises(DatasetError, match=r"'rows\.xls'.*known: \.json"):
        loaded(dataset_name="rows.xls")
