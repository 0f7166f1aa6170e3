"""Print the life of a run as a Mermaid diagram, drawn from `core.run.TRANSITIONS`.

    PYTHONPATH=src python tools/state_diagram.py

`docs/architecture.md` shows it between its `states` markers; a test keeps the two equal.
"""

import sys

from rapidfireai.core.events import RunDeleted
from rapidfireai.core.run import AS_BEFORE, SETTLED, TRANSITIONS, RunStatus


def state_diagram() -> str:
    """The diagram as a fenced block of Markdown, without a newline at its end."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {RunStatus.QUEUED}"]
    for source, targets in TRANSITIONS.items():
        edges: dict[RunStatus, list[str]] = {}
        for event, target in targets.items():
            # A deleted run that is restored is what it was: any that can be deleted.
            for reached in _deletable() if target is AS_BEFORE else [target]:
                if reached is not source:
                    edges.setdefault(reached, []).append(event.__name__)
        lines += [f"    {source} --> {to}: {', '.join(names)}" for to, names in edges.items()]
    lines += [f"    {status} --> [*]" for status in RunStatus if status in SETTLED]
    return "\n".join([*lines, "```"])


def _deletable() -> list[RunStatus]:
    return [status for status, targets in TRANSITIONS.items() if RunDeleted in targets]


if __name__ == "__main__":
    sys.stdout.write(state_diagram() + "\n")
