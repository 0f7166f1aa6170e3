"""Trackers: MLflow, TensorBoard, Trackio and W&B get what the store holds, behind the training.

A process beside the one that trains reads the store, from where it was the last time, and sends
what is new. So nothing that a tracker does or fails to do reaches the training.
"""

from rapidfireai.tracking._protocol import Point, Settings, Tracker
from rapidfireai.tracking.choice import TRACKERS
from rapidfireai.tracking.mlflow import MLflow
from rapidfireai.tracking.tensorboard import TensorBoard
from rapidfireai.tracking.trackio import Trackio
from rapidfireai.tracking.wandb import WandB

__all__ = [
    "TRACKERS",
    "MLflow",
    "Point",
    "Settings",
    "TensorBoard",
    "Tracker",
    "Trackio",
    "WandB",
]
