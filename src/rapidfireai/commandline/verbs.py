"""Verbs that control runs: `stop-run`, `resume-run`, `prune-run`, ..., `clone-run`."""

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from rapidfireai.commandline.experiments import add_experiment, chosen
from rapidfireai.commandline.output import print_json, print_line
from rapidfireai.core.commands import Command, CommandRecord, CommandStatus, Verb
from rapidfireai.core.ids import RunId
from rapidfireai.errors import ConfigError

if TYPE_CHECKING:
    from rapidfireai.paths import ExperimentFolder

PENDING_STATUS: Final = 3
"""Exit status where a command is still in force, but nobody has come to it in time."""

_EXIT: Final = (
    "Exit status: 0 if everything was applied, 1 if something was rejected, "
    f"{PENDING_STATUS} if something is still pending."
)

_HELP: Final = {
    Verb.STOP: "end runs where they are; they can be resumed",
    Verb.RESUME: "let stopped, pruned or failed runs go on",
    Verb.PRUNE: "stop runs as not promising",
    Verb.DELETE: "remove runs; for ten minutes they can be restored",
    Verb.RESTORE: "undo a deletion",
    Verb.PIN: "protect runs from being pruned and deleted",
    Verb.UNPIN: "end that protection",
    Verb.CLONE: "make new runs out of old ones, with other knobs",
}


def add(verbs: Any) -> None:
    """Add the verbs to the command's parser."""
    for verb in Verb:
        parser = verbs.add_parser(
            f"{verb}-run",
            help=_HELP[verb],
            description=f"{_HELP[verb].capitalize()}. {_EXIT}",
        )
        parser.add_argument("run", type=int, nargs="*", metavar="RUN", help="numbers of runs")
        parser.add_argument(
            "--where",
            metavar="CONDITION",
            help="instead of numbers: all runs such as \"eval_loss > 3 and status == 'waiting'\"",
        )
        parser.add_argument(
            "--reason",
            default="",
            required=verb is Verb.PRUNE,
            help="why; kept with the command",
        )
        if verb is Verb.CLONE:
            _add_clone(parser)
        parser.add_argument("--dry-run", action="store_true", help="only say what would happen")
        waiting = parser.add_mutually_exclusive_group()
        waiting.add_argument(
            "--wait",
            type=_seconds,
            metavar="SECONDS",
            help="how long to wait for the process that trains (default: 60)",
        )
        waiting.add_argument(
            "--no-wait",
            dest="wait",
            action="store_const",
            const=0.0,
            help="leave the command there and return",
        )
        add_experiment(parser)
        parser.set_defaults(verb=_control, command=verb, wait=None)


def _add_clone(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_knob,
        metavar="KNOB=VALUE",
        help="a knob and its new value, such as learning_rate=1e-4; may be given again",
    )
    parser.add_argument(
        "--warm-start",
        action="store_true",
        help="begin with the parent's weights and progress instead of anew",
    )
    parser.add_argument(
        "--optimizer",
        choices=("keep", "reset"),
        default="keep",
        help="for a warm start: the optimizer's state (default: keep)",
    )
    parser.add_argument(
        "--schedule",
        choices=("continue", "restart"),
        default="continue",
        help="for a warm start: the learning rate's schedule (default: continue)",
    )


def _control(options: argparse.Namespace) -> int:
    from rapidfireai.control import WAIT_S, give

    folder = chosen(options)
    commands = _asked_for(options, folder)
    if not commands:
        if options.json:
            print_json([])
        else:
            print_line("no run meets the condition")
        return 0
    if options.dry_run:
        return _dry_run(folder, commands, as_json=options.json)
    wait_s = WAIT_S if options.wait is None else options.wait
    settled = give(folder, commands, wait_s=wait_s)
    if options.json:
        print_json([record.to_json() for record in settled])
    else:
        for record in settled:
            print_line(_told(record))
    statuses = {record.status for record in settled}
    if CommandStatus.REJECTED in statuses:
        return 1
    return PENDING_STATUS if CommandStatus.PENDING in statuses else 0


def _asked_for(options: argparse.Namespace, folder: "ExperimentFolder") -> list[Command]:
    from rapidfireai.control import open_store
    from rapidfireai.selection import select

    verb: Verb = options.command
    if bool(options.run) is (options.where is not None):
        raise ConfigError(
            f"{verb}-run takes either numbers of runs, or --where with a condition that chooses "
            "them"
        )
    run_ids = [RunId(number) for number in dict.fromkeys(options.run)]
    if options.where is not None:
        with closing(open_store(folder)) as store:
            run_ids = select(options.where, store, deleted=verb is Verb.RESTORE)
    further: dict[str, Any] = {}
    if verb is Verb.CLONE:
        further = {
            "modify": _modify(options.set),
            "warm_start": options.warm_start,
            "optimizer": options.optimizer,
            "schedule": options.schedule,
        }
    return [
        Command(verb=verb, run_id=run_id, by="cli", reason=options.reason, **further)
        for run_id in run_ids
    ]


def _modify(knobs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    modify = dict(knobs)
    if len(modify) < len(knobs):
        raise ConfigError("--set names a knob twice; give each one value")
    return modify


def _dry_run(folder: "ExperimentFolder", commands: Sequence[Command], *, as_json: bool) -> int:
    from rapidfireai.control import check, differences

    refusals = check(folder, commands)
    modified = [
        differences(folder, command) if refused is None and command.verb is Verb.CLONE else {}
        for command, refused in zip(commands, refusals, strict=True)
    ]
    found = list(zip(commands, refusals, modified, strict=True))
    if as_json:
        print_json(
            [
                {"verb": command.verb, "run_id": command.run_id, "rejected": why, "modified": diff}
                for command, why, diff in found
            ]
        )
        return 1 if any(refusals) else 0
    for command, refused, diff in found:
        told = "would be carried out" if refused is None else f"would be rejected: {refused}"
        print_line(f"{command}: {told}")
        for name, (old, new) in diff.items():
            print_line(f"  {name}: {json.dumps(old)} -> {json.dumps(new)}")
    return 1 if any(refusals) else 0


def _told(record: CommandRecord) -> str:
    match record.status:
        case CommandStatus.APPLIED:
            return record.outcome
        case CommandStatus.REJECTED:
            return f"{record.command}: rejected: {record.outcome}"
        case CommandStatus.PENDING if record.command.verb is Verb.CLONE:
            return f"{record.command}: pending; it is made when the script goes on"
        case CommandStatus.PENDING:
            return f"{record.command}: pending; `rapidfireai commands` shows what becomes of it"


def _knob(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KNOB=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        # As Python spells them; everything else is a string.
        return name, {"True": True, "False": False, "None": None}.get(value, value)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds >= 0")
    return seconds
