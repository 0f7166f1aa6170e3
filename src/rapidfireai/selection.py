"""Which runs a condition means: the values of each that it can ask for."""

from collections.abc import Iterator, Mapping, Sequence

from rapidfireai.core.conditions import Condition
from rapidfireai.core.events import Json
from rapidfireai.core.ids import RunId
from rapidfireai.core.run import Run, RunStatus
from rapidfireai.core.schema import PEFT, TRAINING, Schema
from rapidfireai.results import latest_metrics
from rapidfireai.store import MetricRow, Store


def select(condition: str, store: Store, *, deleted: bool = False) -> list[RunId]:
    """The runs that meet a condition.

    Args:
        condition: See `core.conditions`.
        store: The experiment's.
        deleted: Look among the runs that have been deleted, instead of among the others.

    Raises:
        ConfigError: The condition cannot be read.
        UnknownArgumentError: No run has what it asks for.
    """
    wanted = Condition(condition)
    runs = [run for run in store.runs() if (run.status is RunStatus.DELETED) is deleted]
    found = run_values(runs, store.metrics(), store.schemas())
    if found:
        wanted.check_names(name for values in found.values() for name in values)
    return [run_id for run_id, values in found.items() if wanted.holds(values)]


def run_values(
    runs: Sequence[Run], rows: Sequence[MetricRow], schemas: Mapping[str, Schema]
) -> dict[RunId, dict[str, Json]]:
    """What conditions can ask for: each run's state, knobs and latest metrics, by name.

    A knob stands there under its full name and its last part, with its default where it is not
    set. Trainers log the present learning rate under the knob's name: the knob is meant.
    """
    metrics = latest_metrics(runs, rows)
    return {
        run.id: {**metrics[run.id], **dict(_knobs(run.config, schemas)), **_state(run)}
        for run in runs
    }


def _state(run: Run) -> dict[str, Json]:
    return {
        "id": run.id,
        "status": run.status.value,
        "step": run.step,
        "num_steps": run.num_steps,
        "chunks_done": run.chunks_done,
        "num_chunks": run.num_chunks,
        "loss": run.loss,
        "active_s": run.active_s,
        "pinned": run.pinned,
        "parent_id": run.parent_id,
    }


def _knobs(config: Mapping[str, Json], schemas: Mapping[str, Schema]) -> Iterator[tuple[str, Json]]:
    peft = config.get(PEFT) or {}
    for section, kind in ((PEFT, peft.get("method")), (TRAINING, config.get("trainer_type"))):
        for name, known in schemas.get(str(kind), {}).items():
            yield from ((name, known.get("default")), (f"{section}.{name}", known.get("default")))
    for name, value in config.items():
        if isinstance(value, Mapping):
            for inner, leaf in value.items():
                yield from ((inner, leaf), (f"{name}.{inner}", leaf))
        elif value is not None:
            yield name, value
    if "r" in peft:
        yield "lora_rank", peft["r"]
