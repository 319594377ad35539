"""How long a run is, whichever keys say so."""

from __future__ import annotations

from quintet.config.duration import rounded_up
from quintet.config.training import TrainConfig


def total_steps(train: TrainConfig, batch_samples: int, sequence_length: int, epoch_samples: int) -> int:
    """Optimizer steps of a run: the fewest of what steps, tokens and epochs say."""
    ends = [] if train.steps is None else [train.steps]
    if train.tokens is not None:
        ends.append(-(-train.tokens // (batch_samples * sequence_length)))
    if train.epochs is not None:
        ends.append(rounded_up(train.epochs, epoch_samples, batch_samples))
    return min(ends)
