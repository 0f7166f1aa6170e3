"""What the package costs and gains, measured; see docs/benchmarks.md. Not part of the package."""

import os

# MLflow is on where it is installed; who measures trackers says so.
os.environ.setdefault("RF_TRACKERS", "none")
