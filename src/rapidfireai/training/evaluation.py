"""An evaluation that leaves no trace in the trainer.

Chunk ends are the engine's, not the trainer's: what is evaluated there must not move a random
generator, reach a callback (early stopping would count it) or enter the trainer's log.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch

from rapidfireai.faults import reach
from rapidfireai.training.generation import GenerationMetrics
from rapidfireai.workers.process_state import RngState

# TRL's trainers collect metrics and samples here, in lists by "train" and "eval".
_COLLECTED = ("_metrics", "_logs", "_total_train_tokens")


def evaluate_quietly(trainer: Any) -> dict[str, float]:
    """`trainer.evaluate()` with everything put back as it was; its metrics as numbers.

    Metrics of speed are left out: they say more about the machine than about the run.
    """
    with _undisturbed(trainer), _weights_kept(trainer):
        reach("evaluation.begun")
        metrics = trainer.evaluate()
        reach("evaluation.measured")
    return _untimed(metrics)


def scored(trainer: Any, scoring: GenerationMetrics) -> Callable[..., dict[str, float]]:
    """The trainer's `evaluate` with metrics over generated texts added to what it returns.

    They are logged in a row of their own, after the evaluation's. The trainer chooses its best
    checkpoint by what is returned, so `metric_for_best_model` may name one of them.
    """
    evaluate = trainer.evaluate

    def evaluate_and_score(
        eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        metrics: dict[str, float] = evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        several = eval_dataset is None and isinstance(trainer.eval_dataset, dict)
        # Several sets come back here one by one, by name; other data has no references.
        if several or not (eval_dataset is None or isinstance(eval_dataset, str)):
            return metrics
        with _undisturbed(trainer):
            scores = scoring.score(trainer, eval_dataset, metric_key_prefix)
        trainer.log(dict(scores))
        return {**metrics, **scores}

    return evaluate_and_score


def told_by_set(trainer: Any, measured: dict[str, float]) -> Callable[..., dict[str, float]]:
    """The trainer's `evaluate`, which also writes down what it measures on each of several sets.

    What TRL adds to a set's metrics bears the same name for all of them, as in
    `eval_mean_token_accuracy`: of several values the trainer returns, and stores, the last.

    Args:
        measured: Is given the metrics, each named after its set as in `eval_one_loss`.
    """
    evaluate = trainer.evaluate

    def evaluate_and_tell(*args: Any, **kwargs: Any) -> dict[str, float]:
        metrics: dict[str, float] = evaluate(*args, **kwargs)
        # As the trainer calls itself for each of them.
        name, prefix = kwargs.get("eval_dataset"), kwargs.get("metric_key_prefix", "")
        if isinstance(name, str):
            shared = prefix.removesuffix(name)
            for metric, value in _untimed(metrics).items():
                known = metric.startswith(f"{prefix}_")
                measured[metric if known else f"{prefix}_{metric.removeprefix(shared)}"] = value
        return metrics

    return evaluate_and_tell


def numbers(values: Any) -> dict[str, float]:
    """The entries that are numbers."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _untimed(metrics: Any) -> dict[str, float]:
    return {name: value for name, value in numbers(metrics).items() if not _is_timing(name)}


def _is_timing(name: str) -> bool:
    return name == "epoch" or name.endswith(("_runtime", "_per_second", "_preparation_time"))


@contextlib.contextmanager
def _weights_kept(trainer: Any) -> Iterator[None]:
    """Bring the weights back that an optimizer exchanges for an evaluation.

    Schedule-free optimizers do, and would bring them back by a computation that rounds.
    """
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    groups = optimizer.param_groups if hasattr(optimizer, "eval") else ()
    settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    weights = [weight for group in groups for weight in group["params"]]
    values = [weight.detach().clone() for weight in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, values, strict=True):
                weight.copy_(value)
        for group, setting in zip(groups, settings, strict=True):
            group.update(setting)


@contextlib.contextmanager
def _undisturbed(trainer: Any) -> Iterator[None]:
    rng = RngState.capture()
    handler = trainer.callback_handler
    callbacks, eval_dataloader = handler.callbacks, handler.eval_dataloader
    control = dict(vars(trainer.control))
    state = {**vars(trainer.state), "log_history": list(trainer.state.log_history)}
    training = {module: module.training for module in trainer.model.modules()}
    collected = {
        name: copy.deepcopy(getattr(trainer, name)) for name in _COLLECTED if hasattr(trainer, name)
    }
    handler.callbacks = []
    # Else `bf16_full_eval` would cast the weights, as it does for an evaluation after training.
    in_train, trainer.is_in_train = trainer.is_in_train, True
    try:
        yield
    finally:
        for name, value in collected.items():
            setattr(trainer, name, value)
        for module, mode in training.items():
            module.training = mode
        vars(trainer.state).update(state)
        vars(trainer.control).update(control)
        trainer.is_in_train = in_train
        handler.callbacks, handler.eval_dataloader = callbacks, eval_dataloader
        rng.restore()
