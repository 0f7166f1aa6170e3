"""What a person who clones a run may change, and what that would mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rapidfireai.core import schema
from rapidfireai.core.commands import Command, Verb
from rapidfireai.core.events import Json
from rapidfireai.core.fork import Schedule
from rapidfireai.core.run import Run
from rapidfireai.core.schema import PEFT, TRAINING, Schema, knobs_of, value_of

_BATCH: Final = ("per_device_train_batch_size", "gradient_accumulation_steps")

_SECTIONS: Final = ("model", TRAINING, PEFT, "trainer_kwargs", "generation_config")
"""Of a configuration; what else it holds are functions and facts about it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """An argument that a clone may have another value of."""

    name: str
    """In full, such as "training_args.learning_rate"; `modify` takes it as it is."""
    type: tuple[str, ...]
    """Types of JSON Schema that a value may have; empty: any."""
    default: Json = None
    allowed: str = ""
    """The possible values in words."""
    enum: tuple[Json, ...] = ()
    """Values that are possible besides those of the types."""
    value: Json = None
    """The parent's."""
    is_set: bool = False
    """Whether the parent's configuration gives it."""
    used: tuple[Json, ...] = field(default=())
    """Different values that runs of the experiment have been given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a warm start would leave to be trained, as far as arguments tell."""

    step: int
    """At which the clone would begin, in its own steps."""
    num_steps: int | None
    """Of the whole clone; None: the parent has not begun, so nobody knows."""
    remaining_steps: int | None
    estimated: bool
    """Whether only the process that trains can say it exactly."""
    text: str
    """The same for people."""


def knobs(
    run: Run, schemas: Mapping[str, Schema], used: Mapping[str, tuple[Json, ...]]
) -> list[Knob]:
    """All that may be changed in a run's configuration, what it sets itself first.

    Args:
        run: The parent.
        schemas: Of the experiment's kinds of configurations, by name.
        used: Values that runs of the experiment have been given, by the knobs' full names.
    """
    found = [
        Knob(
            name=full,
            type=tuple(known["type"]) if known else (),
            default=known.get("default") if known else None,
            allowed=str(known.get("allowed", "")) if known else "",
            enum=tuple(known.get("enum", ())) if known else (),
            value=value_of(run.config, full, schemas),
            is_set=_is_set(run.config, full),
            used=used.get(full, ()),
        )
        for full, known in knobs_of(run.config, schemas).items()
    ]
    return sorted(found, key=lambda knob: not knob.is_set)


def flat(config: Mapping[str, Json]) -> dict[str, Json]:
    """The arguments of a stored configuration by their full names."""
    if TRAINING not in config:  # of the user's own create_trainer
        return dict(config)
    found = {"trainer_type": config.get("trainer_type")}
    for section in _SECTIONS:
        for name, value in (config.get(section) or {}).items():
            found[f"{section}.{name}"] = value
    return found


def differences(command: Command, run: Run, schemas: Mapping[str, Schema]) -> dict[str, list[Json]]:
    """For a clone's command the knobs that it changes: the parent's value and the new one.

    Raises:
        ConfigError: A knob or value is not possible.
    """
    if command.verb is not Verb.CLONE:
        return {}
    return schema.differences(run.config, command.modify, schemas)


def forecast(command: Command, run: Run, schemas: Mapping[str, Schema]) -> Forecast | None:
    """What a warm start means for the steps that remain; None for any other command.

    Raises:
        ConfigError: A knob or value is not possible.
    """
    if command.verb is not Verb.CLONE or not command.warm_start:
        return None
    new = {full: value for full, (_, value) in differences(command, run, schemas).items()}

    in_force = arguments_in_force(run)

    def value(name: str) -> Any:
        full = f"{TRAINING}.{name}"
        return new.get(full, in_force.get(name, _stored(run, full, schemas)))

    before, after = _batch(in_force), _batch({name: value(name) for name in _BATCH})
    is_other_batch = before != after
    step = run.step * before // after if is_other_batch else run.step
    num_steps = run.num_steps
    is_estimate = is_other_batch
    if (value("max_steps") or 0) > 0:
        num_steps = value("max_steps")
    elif num_steps is not None:
        epochs = in_force.get("num_train_epochs") or 1
        factor = (value("num_train_epochs") or epochs) / epochs * before / after
        is_estimate = is_estimate or factor != 1
        num_steps = round(num_steps * factor)
    remaining = None if num_steps is None else max(0, num_steps - step)
    return Forecast(
        step=step,
        num_steps=num_steps,
        remaining_steps=remaining,
        estimated=is_estimate,
        text=_told(command, step, num_steps, remaining, is_estimate),
    )


def _told(
    command: Command, step: int, num_steps: int | None, remaining: int | None, is_estimate: bool
) -> str:
    if remaining is None:
        return "how many steps remain shows when the clone is made"
    if remaining == 0:
        return (
            f"nothing would remain to be trained: it would begin at step {step} of {num_steps}; "
            "give more max_steps or num_train_epochs"
        )
    about = "about " if is_estimate else ""
    schedule = (
        "goes on where the parent's is"
        if command.schedule is Schedule.CONTINUE
        else "begins anew, over the steps that remain"
    )
    return (
        f"begins at {about}step {step} of {num_steps}: {about}{remaining} remain; the learning "
        f"rate's schedule {schedule}; the optimizer's state is "
        f"{'kept' if command.optimizer == 'keep' else 'reset'}"
    )


def arguments_in_force(run: Run) -> Mapping[str, Json]:
    """The trainer's arguments after defaults and adaptation; empty before its trainer stands."""
    return run.resolved.get(TRAINING) or {}


def _batch(values: Mapping[str, Any]) -> int:
    """Samples in a step of a run on one device."""
    size, accumulation = (values.get(name) for name in _BATCH)
    return max(1, int(size or 1)) * max(1, int(accumulation or 1))


def _stored(run: Run, full: str, schemas: Mapping[str, Schema]) -> Json:
    return value_of(run.config, full, schemas) if TRAINING in run.config else None


def _is_set(config: Mapping[str, Json], full: str) -> bool:
    section, _, name = full.rpartition(".")
    return name in ((config.get(section) or {}) if section else config)
