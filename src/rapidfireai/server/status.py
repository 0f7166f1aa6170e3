"""What `rapidfireai status` says: the server, the experiments, and who trains them."""

from pathlib import Path

from rapidfireai.core.events import Json
from rapidfireai.server.answers import trackers_answer
from rapidfireai.server.catalog import Catalog
from rapidfireai.server.home import ServerHome


def status(home_path: Path, experiments: Path) -> dict[str, Json]:
    """The state of things, whether a server runs or not.

    Args:
        home_path: The home folder.
        experiments: Folder of all experiments, unless a server says that it serves another.

    Returns:
        JSON: `server`, None if none runs, with the `link` that lets a browser in; `experiments`,
        each as `messages.Experiment`, with its `trackers` as `messages.Tracker`.
    """
    home = ServerHome(home_path)
    record = home.running()
    server: Json = None
    if record is not None:
        server = {
            "pid": record.pid,
            "url": record.url,
            "link": record.link(home.token()),
            "version": record.version,
            "log": str(home.log),
        }
        experiments = Path(record.experiments)
    catalog = Catalog(experiments)
    try:
        summaries = [
            {**one, "trackers": [] if one["problem"] is not None else _trackers(catalog, one)}
            for one in catalog.summaries()
        ]
    finally:
        catalog.close()
    return {"server": server, "experiments_path": str(experiments), "experiments": summaries}


def _trackers(catalog: Catalog, summary: dict[str, Json]) -> list[Json]:
    with catalog.view(summary["name"]) as view:
        return trackers_answer(view)


def told(found: dict[str, Json]) -> list[str]:
    """The same as lines for people."""
    server = found["server"]
    lines = ["server: none runs; `rapidfireai start` starts one"]
    if server is not None:
        lines = [f"server: process {server['pid']} at {server['link']}"]
    lines.append(f"experiments in {found['experiments_path']}:")
    for one in found["experiments"]:
        if one["problem"] is not None:
            lines.append(f"  {one['name']}: {one['problem']}")
            continue
        counts = ", ".join(f"{num} {name}" for name, num in one["statuses"].items())
        by = f" by process {one['trained_by']}" if one["trained_by"] else ""
        lines.append(f"  {one['name']}: {one['state']}{by}, {one['progress']:.0%} ({counts})")
        lines += [f"    {tracker['name']}: {tracker['told']}" for tracker in one["trackers"]]
    return lines if found["experiments"] else [*lines, "  none"]
