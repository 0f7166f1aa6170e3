"""Where an experiment lives: its record, runs, events and metrics, on disk or in memory."""

from rapidfireai.store._protocol import EventRow, ExperimentRecord, MetricRow, Store
from rapidfireai.store.disk import PatientStore, Room
from rapidfireai.store.memory import MemoryStore
from rapidfireai.store.reader import SqliteReader
from rapidfireai.store.recorder import Recorder
from rapidfireai.store.sqlite import SqliteStore

__all__ = [
    "EventRow",
    "ExperimentRecord",
    "MemoryStore",
    "MetricRow",
    "PatientStore",
    "Recorder",
    "Room",
    "SqliteReader",
    "SqliteStore",
    "Store",
]
