"""How long a run is, whichever keys say so."""

from __future__ import annotations

import math

from quintet.config.training import TrainConfig


def total_steps(train: TrainConfig, batch_samples: int, sequence_length: int, epoch_samples: int) -> int:
    """Optimizer steps of a run, whichever of steps, tokens and epochs says how long it is."""
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return math.ceil(train.tokens / (batch_samples * sequence_length))
    assert train.epochs is not None
    return math.ceil(train.epochs * epoch_samples / batch_samples)
