"""Where a run's chunks end, in optimizer steps.

A chunk is a span of the run's own sample order: with C chunks an epoch, boundary k is the first
optimizer step at which k/C of the epoch's samples are consumed. A run shorter than an epoch, or
over a dataset without a length, is divided into C chunks itself. The trainer's sampler decides the
order of the samples, so chunks change nothing in what a trainer computes.
"""

from rapidfireai.errors import ConfigError


def chunk_ends(
    *,
    num_steps: int,
    steps_per_epoch: int | None,
    samples_per_step: int,
    samples_per_epoch: int,
    num_chunks: int,
) -> tuple[int, ...]:
    """Steps after which a chunk ends: strictly increasing, the last is `num_steps`.

    All counts are integers, so that a boundary never hangs on how a fraction is rounded.

    Args:
        num_steps: Optimizer steps of the whole run, at least 1.
        steps_per_epoch: Optimizer steps of an epoch, at least 1; None for a dataset without a
            length, for which the two counts of samples are ignored.
        samples_per_step: Samples that a full step consumes, at least 1. The last step of an epoch
            may consume fewer.
        samples_per_epoch: Samples that an epoch consumes, at least 1.
        num_chunks: Chunks an epoch. Where there are fewer steps than chunks, each step is a chunk.

    Raises:
        ConfigError: `num_chunks` is below 1.
    """
    if num_chunks < 1:
        raise ConfigError(f"num_chunks is {num_chunks}; it must be 1 or more.")
    if steps_per_epoch is None or num_steps < steps_per_epoch:
        return _divide(num_steps, 1, num_steps, num_chunks)
    in_epoch = _divide(steps_per_epoch, samples_per_step, samples_per_epoch, num_chunks)
    ends = (start + end for start in range(0, num_steps, steps_per_epoch) for end in in_epoch)
    return (*(end for end in ends if end < num_steps), num_steps)


def _divide(
    num_steps: int, samples_per_step: int, num_samples: int, num_chunks: int
) -> tuple[int, ...]:
    """First step at which k/C of the samples are consumed, for k = 1..C, without repetition.

    The last is `num_steps` in any case: a sampler that drops or repeats samples at the end of an
    epoch must neither lose the rest of the epoch nor make a chunk of its own out of it.
    """
    inner = (-(-k * num_samples // (num_chunks * samples_per_step)) for k in range(1, num_chunks))
    return tuple(sorted({*(end for end in inner if end < num_steps), num_steps}))
