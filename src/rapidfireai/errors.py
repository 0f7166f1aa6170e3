"""Every error that the package raises on purpose.

    RapidFireError
    ├── ConfigError (ValueError)          the user's input; raised before any training starts
    │   ├── UnknownArgumentError          a name that nobody knows; names the nearest
    │   ├── DatasetError                  columns or rows that cannot be trained on
    │   └── ObjectiveError                no run has the metric that runs are to be compared by
    ├── CommandRejectedError              what was asked of a run is impossible, or too late
    ├── CreateModelError                  the user's create_model raised or returned something else
    ├── ExperimentPathError (OSError)     the experiment's folder cannot be used
    ├── ExperimentBusyError               another process trains the experiment
    ├── StoreError                        the experiment's database cannot be used
    │   └── StaleRunError                 somebody else changed the run in between
    ├── TrackerError                      a tracker does not take what it is sent
    │   └── TrackerRefusedError           nor will it before somebody changes something
    ├── IllegalTransitionError            an event that a run's status does not allow
    ├── RewardError                       a reward function raised, or returned no rewards
    ├── DivergedError                     a run's loss is not finite any more
    ├── SharedWeightsError                a run wrote to weights that it shares with others
    └── NeverYieldedError                 a trainer trained without ever offering a pause

A message says what was given, what is allowed, and what to do next.
"""


class RapidFireError(Exception):
    """Base of all errors of this package."""


class ConfigError(RapidFireError, ValueError):
    """The user's input cannot work; nothing has been started."""


class UnknownArgumentError(ConfigError):
    """An argument that the target does not have."""


class DatasetError(ConfigError):
    """A dataset that cannot be trained on as it is."""


class ObjectiveError(ConfigError):
    """What runs are to be compared by cannot be used; shows at the first chunk's end at the latest.

    Everything that was trained by then has been written down.
    """


class CommandRejectedError(RapidFireError):
    """A command that could not be applied; nothing has changed."""


class CreateModelError(RapidFireError):
    """`create_model` raised, or returned something other than a model and a tokenizer."""


class ExperimentPathError(RapidFireError, OSError):
    """The experiment's folder cannot be created or written."""


class ExperimentBusyError(RapidFireError):
    """Another process trains the experiment at this moment."""


class StoreError(RapidFireError):
    """The experiment's database cannot be used."""


class StaleRunError(StoreError):
    """The stored run is not in the state that the change started from."""


class TrackerError(RapidFireError):
    """A tracker does not take what it is sent; it is sent again later."""


class TrackerRefusedError(TrackerError):
    """A tracker will not take anything before its settings, its server or a key are changed."""


class IllegalTransitionError(RapidFireError):
    """An event that the run's status does not allow."""

    def __init__(self, run_id: int, status: str, event: str) -> None:
        super().__init__(f"run {run_id} is {status}: {event} is not possible from there")
        self.run_id = run_id
        self.status = status
        self.event = event


class RewardError(RapidFireError):
    """A reward function raised, or returned something else than a reward for each completion."""


class DivergedError(RapidFireError):
    """The loss stopped being a finite number."""


class SharedWeightsError(RapidFireError):
    """A run wrote to weights that it shares with other runs."""


class NeverYieldedError(RapidFireError):
    """A trainer went through its training without ever passing a point where it can be paused."""
