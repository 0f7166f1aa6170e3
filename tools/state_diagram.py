"""Print the life of a run as a Mermaid diagram, drawn from `core.run.TRANSITIONS`.

    PYTHONPATH=src python tools/state_diagram.py

`docs/architecture.md` shows it between its `states` markers; a test keeps the two equal.
"""

import sys

from rapidfireai.core.run import TERMINAL, TRANSITIONS, RunStatus


def state_diagram() -> str:
    """The diagram as a fenced block of Markdown, without a newline at its end."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {RunStatus.QUEUED}"]
    for source, targets in TRANSITIONS.items():
        edges: dict[RunStatus, list[str]] = {}
        for event, target in targets.items():
            if target is not source:
                edges.setdefault(target, []).append(event.__name__)
        lines += [f"    {source} --> {to}: {', '.join(names)}" for to, names in edges.items()]
    lines += [f"    {status} --> [*]" for status in RunStatus if status in TERMINAL]
    return "\n".join([*lines, "```"])


if __name__ == "__main__":
    sys.stdout.write(state_diagram() + "\n")
