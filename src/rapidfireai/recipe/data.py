"""The datasets that a file names: by a name on the hub, by files, or as a mixture of several."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rapidfireai.automl.argument_types import arguments_of, shown
from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError, DatasetError

_BUILDERS: Final = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
"""Ending of a file -> what `datasets` calls its form."""
_PACKED: Final = (".gz", ".bz2", ".xz", ".zst")

_ONE: Final = ("dataset_config", "dataset_train_split", "dataset_test_split", "dataset_streaming")
_MIXTURE: Final = ("streaming",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Where rows come from.

    Args:
        given: The keys of the file that say so, with their values.
        evaluates: Whether the file asks for evaluations by the trainer itself.

    Raises:
        DatasetError: A file is not there, or keys do not go together.
    """

    given: Mapping[str, Any]
    evaluates: bool

    def __post_init__(self) -> None:
        one, several = self.given.get("dataset_name"), self.given.get("datasets")
        if (one is None) is (several is None):
            raise DatasetError(
                "say which rows to train on: give either dataset_name, a file or a name on the "
                "hub, or datasets, a list of these to mix"
            )
        idle = _ONE if several is not None else _MIXTURE
        for key in idle:
            if key in self.given:
                other = "dataset_name" if several is not None else "datasets"
                raise DatasetError(f"{key} belongs to {other}, which is not given; leave it out")
        if several is not None:
            _check_mixture(several)
        elif isinstance(one, dict):
            for name in _files(one):
                _check_there(name)
        else:
            _check_there(str(one))
        self._check_splits()

    def _check_splits(self) -> None:
        if self._test_size is not None:
            if "dataset_test_split" in self.given:
                raise DatasetError("test_split_size and dataset_test_split: give one of them")
            if self._streaming:
                raise DatasetError(
                    "test_split_size cannot be taken of a stream, which has no length: leave it "
                    "out, or do not stream"
                )
        elif self.evaluates and "datasets" in self.given:
            raise DatasetError("eval_strategy needs rows: give test_split_size, such as 0.1")

    @property
    def _test_size(self) -> float | None:
        size: float | None = self.given.get("test_split_size")
        return size

    @property
    def _streaming(self) -> bool:
        return bool(self.given.get("streaming") or self.given.get("dataset_streaming"))

    def load(self, seed: int) -> tuple[Any, Any]:
        """The rows to train on, and those to evaluate on or None.

        Args:
            seed: For taking `test_split_size` away.

        Raises:
            DatasetError: They cannot be loaded.
        """
        import datasets

        try:
            train = self._mixture() if "datasets" in self.given else self._split("train")
            if self._test_size is not None:
                parts = train.train_test_split(test_size=self._test_size, seed=seed)
                return parts["train"], parts["test"]
            if self.evaluates or self.given.get("dataset_test_split") is not None:
                return train, self._split("test")
        except (datasets.exceptions.DatasetsError, OSError, ValueError, KeyError) as error:
            raise DatasetError(
                f"the rows of {shown(dict(self.given))} cannot be loaded: {type(error).__name__}: "
                f"{' '.join(str(error).split())}"
            ) from error
        return train, None

    def _split(self, purpose: str) -> Any:
        import datasets

        name, split = (
            self.given["dataset_name"],
            self.given.get(f"dataset_{purpose}_split", purpose),
        )
        if isinstance(name, str) and _is_saved(Path(name)):
            saved = datasets.load_from_disk(name)
            return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        return datasets.load_dataset(
            **_source(name),
            name=self.given.get("dataset_config"),
            split=split,
            streaming=self._streaming,
        )

    def _mixture(self) -> Any:
        import trl
        from trl.scripts.utils import DatasetConfig

        configs = [
            DatasetConfig(**{**one, **_source(one["path"])})
            if one.get("data_files") is None
            else DatasetConfig(**one)
            for one in self.given["datasets"]
        ]
        mixture = trl.DatasetMixtureConfig(datasets=configs, streaming=self._streaming)
        return trl.get_dataset(mixture)["train"]


def _check_mixture(entries: Iterable[Mapping[str, Any]]) -> None:
    from trl.scripts.utils import DatasetConfig

    known = arguments_of(DatasetConfig)
    for entry in entries:
        for key, value in entry.items():
            if key not in known:
                raise DatasetError(
                    f"an entry of datasets has no key {key!r}; {did_you_mean(key, known)}"
                )
            try:
                known[key].checked(value, "an entry of datasets")
            except ConfigError as error:
                raise DatasetError(str(error)) from error
        if entry.get("path") is None:
            raise DatasetError(f"the entry {shown(entry)} of datasets has no path")
        if entry.get("data_files") is None:
            _check_there(str(entry["path"]))
        else:
            for name in _files(entry["data_files"]):
                _check_there(name)


def _files(names: Any) -> list[str]:
    """The names in a mapping of splits to files, in a list of these, or of one."""
    if isinstance(names, Mapping):
        return [name for item in names.values() for name in _files(item)]
    if isinstance(names, list):
        return [name for item in names for name in _files(item)]
    return [str(names)]


def _check_there(name: str) -> None:
    """Refuse what can only be meant as a file or folder, and is none."""
    if "://" in name or "*" in name:
        return
    path = Path(name).expanduser()
    is_path = _builder(name) is not None or name.startswith((".", "/", "~"))
    if is_path and not path.exists():
        raise DatasetError(f"there is no file {name!r} (looked for {path.absolute()})")
    if path.is_file() and _builder(name) is None:
        raise DatasetError(
            f"{name!r} has an ending that says nothing of its form; known: {', '.join(_BUILDERS)}"
        )


def _source(name: Any) -> dict[str, Any]:
    """Arguments of `load_dataset` for what the file names."""
    if isinstance(name, Mapping):
        forms = {_builder(file) for file in _files(name)}
        if len(forms) > 1 or None in forms:
            raise ConfigError(
                f"dataset_name has files of several or of unknown forms: {_files(name)}; known "
                f"endings: {', '.join(_BUILDERS)}"
            )
        return {"path": forms.pop(), "data_files": dict(name)}
    form = _builder(name)
    if form is None:
        path = Path(name).expanduser()
        return {"path": str(path) if path.is_dir() else name}
    return {"path": form, "data_files": str(Path(name).expanduser()) if "://" not in name else name}


def _builder(name: str) -> str | None:
    """The form of a file, by its ending; None for what is no name of such a file."""
    path = Path(name)
    if path.suffix in _PACKED:
        path = path.with_suffix("")
    return _BUILDERS.get(path.suffix.lower())


def _is_saved(folder: Path) -> bool:
    """Whether it was written by `save_to_disk`."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
