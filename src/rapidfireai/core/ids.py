"""Identifiers, as distinct types so that one is not passed for another."""

from typing import NewType

RunId = NewType("RunId", int)
"""Number of a run within its experiment, from 1."""

WorkerId = NewType("WorkerId", int)
"""Number of a worker (one per device) within its experiment, from 0."""
