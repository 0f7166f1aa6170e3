"""MLflow: an experiment is an MLflow experiment, a run an MLflow run.

Only `MlflowClient` is used, which has no current run, experiment or tracking URI of the process.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import urlsplit

from rapidfireai.core.run import ENDED, Run, RunStatus
from rapidfireai.errors import ConfigError, TrackerRefusedError
from rapidfireai.tracking._protocol import Point, Tracker, parameters, state

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TAG: Final = "rapidfireai"
"""What the names of our tags begin with."""

_STATUSES: Final[Mapping[RunStatus, str]] = {
    RunStatus.QUEUED: "SCHEDULED",
    RunStatus.RUNNING: "RUNNING",
    RunStatus.WAITING: "RUNNING",
    RunStatus.COMPLETED: "FINISHED",
    RunStatus.FAILED: "FAILED",
    RunStatus.STOPPED: "KILLED",
    RunStatus.PRUNED: "KILLED",
    RunStatus.INTERRUPTED: "KILLED",
    RunStatus.DELETED: "KILLED",
}
"""MLflow knows no others; ours is in a tag beside it."""

_KIND: Final = "custom_model_development"
"""Of experiments, which decides what MLflow's pages show of them first: runs and their curves."""

_NOT_IN_NAMES: Final = re.compile(r"[^\w\-. :/]", re.ASCII)
_MAX_TAG: Final = 5000
_MAX_PARAMETER: Final = 6000
_MAX_PARAMETERS: Final = 100
"""In one request."""

_REFUSED: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})

_PATIENCE: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""What is sent is repeated by us, for days if need be; MLflow's own repetitions take minutes, in
which nobody would learn that the server is down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MLflow:
    """MLflow as a tracker: `run_fit(trackers=[MLflow(...)])`, or "mlflow" for the defaults."""

    tracking_uri: str | None = None
    """None: $MLFLOW_TRACKING_URI, or else a store of the experiment's own in its folder."""
    experiment: str | None = None
    """Name of the MLflow experiment; None: $MLFLOW_EXPERIMENT_NAME, or the experiment's."""
    log_models: bool = False
    """Keep each ended run's model or adapter as an artifact."""

    name: ClassVar[str] = "mlflow"
    library: ClassVar[str] = "mlflow"
    install: ClassVar[str] = 'pip install "mlflow>=3.10"'

    @property
    def is_remote(self) -> bool:
        """Whether a server is asked."""
        return self.tracking_uri is not None and urlsplit(self.tracking_uri).scheme in (
            "http",
            "https",
        )

    @property
    def where(self) -> str:
        """The URI."""
        return without_password(self.tracking_uri or "")

    def settled(self, folder: Path) -> "MLflow":
        """With the URI and experiment that are meant. See `Settings.settled`."""
        for field in ("tracking_uri", "experiment"):
            value = getattr(self, field)
            if value is not None and not (isinstance(value, str) and value):
                raise ConfigError(f"MLflow({field}={value!r}) cannot be used; it is a string")
        if not isinstance(self.log_models, bool):
            raise ConfigError(f"MLflow(log_models={self.log_models!r}) is either True or False")
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local_uri(folder)
        scheme = urlsplit(uri).scheme
        if scheme and scheme.partition("+")[0] not in _SCHEMES:
            raise ConfigError(
                f"tracking_uri={uri!r} cannot be used: MLflow knows {', '.join(sorted(_SCHEMES))}. "
                "Give the address of a server, such as http://localhost:5000, or leave it out to "
                "have the experiment's own store"
            )
        if scheme == "sqlite" and find_spec("alembic") is None:
            raise ConfigError(
                "MLflow's local store needs more than mlflow-skinny: "
                f"{self.install}, or give a server with MLflow(tracking_uri=...)"
            )
        name = self.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        return replace(self, tracking_uri=uri, experiment=name)

    def connect(self, experiment: str) -> Tracker:
        """Find the MLflow experiment, or make it. See `Settings.connect`."""
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        assert self.tracking_uri is not None, "settled"
        client = MlflowClient(tracking_uri=self.tracking_uri)
        try:
            found = _experiment_id(client, self.experiment or experiment, self._artifacts())
        except MlflowException as error:
            if error.error_code in _REFUSED:
                raise TrackerRefusedError(
                    f"MLflow at {without_password(self.tracking_uri)} refuses: {error}; set "
                    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                    "MLFLOW_TRACKING_TOKEN"
                ) from error
            raise
        return _Connection(client, found, self.log_models)

    def _artifacts(self) -> str | None:
        """Where a store of the experiment's own keeps files."""
        path = local_path(self.tracking_uri or "")
        return None if path is None else (path.parent / "artifacts").as_uri()


_SCHEMES: Final = frozenset(
    {"http", "https", "file", "sqlite", "mysql", "postgresql", "mssql", "databricks", "uc"}
)

_SQLITE: Final = "sqlite:///"


def local_uri(folder: Path) -> str:
    """The URI of a store in a folder of the experiment's."""
    return f"{_SQLITE}{folder / 'mlflow.db'}"


def local_path(uri: str) -> Path | None:
    """The file of a store on this machine; None for all others."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def without_password(uri: str) -> str:
    """A URI that may be shown and logged."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def metric_key(name: str) -> str:
    """A metric's name in characters that MLflow takes, different for different names."""
    return _NOT_IN_NAMES.sub(lambda found: f"_x{ord(found[0]):02X}_", name)


def _experiment_id(client: "MlflowClient", name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            tags = {"mlflow.experimentKind": _KIND}
            return str(client.create_experiment(name, artifacts, tags))
        except MlflowException:
            # Another process may have made it meanwhile.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackerRefusedError(
            f"the MLflow experiment {name!r} has been deleted there: restore it, or give another "
            "name with MLflow(experiment=...)"
        )
    return str(found.experiment_id)


class _Connection:
    """A `Tracker`."""

    def __init__(self, client: "MlflowClient", experiment_id: str, log_models: bool) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._log_models = log_models

    def begin(self, run: Run, identity: str, parent: str | None, time_s: float) -> str:
        """Find the MLflow run by a tag, or make it. See `Tracker.begin`."""
        from mlflow.entities import Param

        key = self._find(identity)
        if key is None:
            tags = {f"{TAG}.id": identity}
            if parent is not None:
                tags["mlflow.parentRunId"] = parent
            made = self._client.create_run(
                self._experiment_id, start_time=_ms(time_s), tags=tags, run_name=run.name
            )
            key = str(made.info.run_id)
        given = [
            Param(metric_key(name), _cut(str(value), _MAX_PARAMETER))
            for name, value in parameters(run).items()
        ]
        for first in range(0, len(given), _MAX_PARAMETERS):
            self._client.log_batch(key, params=given[first : first + _MAX_PARAMETERS])
        return key

    def held(self, key: str, points: Sequence[Point]) -> set[tuple[str, int]]:
        """Ask for the histories. See `Tracker.held`."""
        return {
            (name, metric.step)
            for name in {point.name for point in points}
            for metric in self._client.get_metric_history(key, metric_key(name))
        }

    def log(self, key: str, points: Sequence[Point]) -> None:
        """Send them in one request. See `Tracker.log`."""
        from mlflow.entities import Metric

        metrics = [
            Metric(metric_key(point.name), point.value, _ms(point.time_s), point.step)
            for point in points
        ]
        self._client.log_batch(key, metrics=metrics)

    def update(self, key: str, run: Run, time_s: float) -> None:
        """Set status and tags. See `Tracker.update`."""
        from mlflow.entities import RunTag

        tags = [
            RunTag(f"{TAG}.{name}", _cut(str(value), _MAX_TAG))
            for name, value in state(run).items()
        ]
        self._client.log_batch(key, tags=tags)
        status = _STATUSES[run.status]
        if run.status in ENDED:
            self._client.set_terminated(key, status, _ms(time_s))
            if self._log_models and Path(run.path).is_dir():
                self._client.log_artifacts(key, run.path, "model")
        else:
            self._client.update_run(key, status)

    def close(self) -> None:
        """Nothing is held."""

    def _find(self, identity: str) -> str | None:
        found = self._client.search_runs(
            [self._experiment_id], f"tags.`{TAG}.id` = '{identity}'", max_results=1
        )
        return str(found[0].info.run_id) if found else None


def _cut(text: str, limit: int) -> str:
    """A text that MLflow takes; one that is cut says so."""
    if len(text) <= limit:
        return text
    note = f"... ({len(text)} characters; all are in the experiment's folder)"
    return text[: limit - len(note)] + note


def _ms(time_s: float) -> int:
    return round(time_s * 1000)
