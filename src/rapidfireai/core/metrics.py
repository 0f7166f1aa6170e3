"""What the names of metrics say."""

from typing import Final

from rapidfireai.core.events import MetricSource

_MAXIMISED: Final = (
    "accuracy", "reward", "f1", "bleu", "rouge", "margin", "precision", "recall", "exact",
)  # fmt: skip


def shown_name(source: MetricSource, name: str) -> str:
    """A metric's name for people: the step's own loss is `loss`, the trainer's `logged_loss`."""
    return "logged_loss" if source is MetricSource.LOG and name == "loss" else name


def is_maximised(name: str) -> bool:
    """Whether more of a metric is better, as far as its name tells."""
    # An evaluation set's name may be one of the words, as in "eval_reward_loss".
    return not name.endswith("loss") and any(word in name for word in _MAXIMISED)
