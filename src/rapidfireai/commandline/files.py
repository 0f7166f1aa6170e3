"""Verbs about files: `export`, `clean`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidfireai.commandline.experiments import add_experiment, chosen
from rapidfireai.commandline.output import format_size, print_json, print_line, print_table
from rapidfireai.core.ids import RunId
from rapidfireai.errors import ConfigError
from rapidfireai.paths import ExperimentFolder, experiments_root

if TYPE_CHECKING:
    from rapidfireai.cleaning import Waste


def add(verbs: Any) -> None:
    """Add the verbs to the command's parser."""
    export = verbs.add_parser(
        "export",
        help="write a run's model to a folder of its own",
        description="Writes model or adapter, tokenizer, trainer state and configuration of a run "
        "to a folder that plain from_pretrained loads: as the run ended, or as the latest "
        "checkpoint of one that goes on has it.",
    )
    export.add_argument("run", type=int, metavar="RUN", help="the run's number")
    export.add_argument("folder", type=Path, metavar="DIR", help="new or empty")
    export.add_argument(
        "--merge", action="store_true", help="the full model, with the adapter in its weights"
    )
    export.add_argument(
        "--base",
        metavar="PATH",
        help="for --merge: the base, if the adapter does not say or it has moved",
    )
    add_experiment(export)
    export.set_defaults(verb=_export)

    clean = verbs.add_parser(
        "clean",
        help="remove what experiments can do without, after asking",
        description="Shows what an experiment could do without, with sizes, and removes it once "
        "that is confirmed: files of deleted runs, checkpoints of completed runs (not their "
        "models), prepared data, tensors of paused runs, half-written files. An experiment that a "
        "process trains is left alone.",
    )
    clean.add_argument("--all", action="store_true", help="all experiments")
    clean.add_argument("--yes", action="store_true", help="do not ask")
    clean.add_argument("--dry-run", action="store_true", help="only show what could go")
    add_experiment(clean)
    clean.set_defaults(verb=_clean)


def _export(options: argparse.Namespace) -> int:
    from rapidfireai.export import export

    folder = chosen(options)
    step = export(
        folder, RunId(options.run), options.folder, merge=options.merge, base=options.base
    )
    target = options.folder.expanduser().absolute()
    if options.json:
        print_json({"run_id": options.run, "step": step, "path": str(target)})
    else:
        print_line(f"run {options.run} as of step {step} is in {target}")
    return 0


def _clean(options: argparse.Namespace) -> int:
    from rapidfireai.cleaning import clean, find_waste

    if options.all and options.experiment is not None:
        raise ConfigError("--all and --experiment exclude each other; give one of them")
    if options.all:
        folders = ExperimentFolder.all(experiments_root(options.path))
    else:
        folders = [chosen(options)]
    busy = {folder.name: pid for folder in folders if (pid := folder.trained_by()) is not None}
    found = {folder: find_waste(folder) for folder in folders if folder.name not in busy}
    num_bytes = sum(waste.num_bytes for wastes in found.values() for waste in wastes)
    is_confirmed = not options.dry_run and any(found.values())
    if not options.json:
        _show(found, busy)
        is_confirmed = is_confirmed and (options.yes or _confirm(num_bytes))
    elif is_confirmed and not options.yes:
        raise ConfigError("with --json nobody can be asked; add --yes or --dry-run")
    if is_confirmed:
        for folder, wastes in found.items():
            clean(folder, wastes)
    if options.json:
        print_json({"removed": is_confirmed, "busy": busy, "found": _values(found)})
    elif is_confirmed:
        print_line(f"{format_size(num_bytes)} freed")
    return 1 if busy and not options.all else 0


def _show(found: Mapping[ExperimentFolder, Sequence["Waste"]], busy: dict[str, int]) -> None:
    for name, pid in busy.items():
        print_line(f"{name} is being trained by process {pid} and left alone")
    rows = [
        (
            folder.name,
            waste.kind.value if waste.run_id is None else f"{waste.kind} {waste.run_id}",
            format_size(waste.num_bytes),
            str(waste.path.relative_to(folder.path)),
            waste.remark,
        )
        for folder, wastes in found.items()
        for waste in wastes
    ]
    if rows:
        print_table(("experiment", "what", "size", "where", "remark"), rows)
    elif found:
        print_line("there is nothing to remove")


def _confirm(num_bytes: int) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("nobody is there to be asked; add --yes or --dry-run")
    sys.stdout.write(f"Remove all of this, {format_size(num_bytes)}? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _values(found: Mapping[ExperimentFolder, Sequence["Waste"]]) -> list[dict[str, Any]]:
    return [
        {
            "experiment": folder.name,
            "kind": waste.kind.value,
            "run_id": waste.run_id,
            "num_bytes": waste.num_bytes,
            "path": str(waste.path),
            "remark": waste.remark,
        }
        for folder, wastes in found.items()
        for waste in wastes
    ]
