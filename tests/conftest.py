"""What all tests share. Models train on one thread: they are too small for two."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# MLflow is on where it is installed; tests that want a tracker say so.
os.environ["RF_TRACKERS"] = "none"
