"""What all tests share. Models train on one thread: they are too small for two."""

import os
import signal
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# MLflow is on where it is installed; tests that want a tracker say so.
os.environ["RF_TRACKERS"] = "none"
# Read when Trackio is imported, which other libraries do of themselves.
_trackio_folder = tempfile.TemporaryDirectory(prefix="trackio-")
os.environ["TRACKIO_DIR"] = _trackio_folder.name
# A shell starts what it puts in the background with Ctrl-C ignored; tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)
