"""Dropout whose mask depends on the sample and not on its batch, and the dropout rates of a model."""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CALLS = 2  # at most, of one dropout in a forward pass
# Odd constants whose products mix well: golden ratio and the finaliser of Wellons' lowbias32, as int32.
_GOLDEN, _FIRST, _SECOND = -1640531527, 2146121005, -2073254261


class KeyedDropout(nn.Dropout):
    """Dropout of [samples, …, features] with a mask that is a hash of the sample's key, the position and the feature.

    So the mask of a sample depends neither on the other samples nor on the number of processes, recomputation drops the
    same features, and nothing has to be stored. `set_dropout_keys` sets ``keys``, int32 [calls, samples], before a
    pass; without them the mask comes from PyTorch's generator.

    With a schedule (`follow_schedule`) the rate is also held by two scalars on the device, ``limit`` int32 and
    ``scale`` fp32, because a Python number would be compiled into the pass, and each new rate would compile it again.
    """

    keys: Tensor | None = None
    limit: Tensor | None = None
    scale: Tensor | None = None

    def set_rate(self, rate: float) -> None:
        """Set the dropout rate."""
        self.p = rate
        if self.limit is not None and self.scale is not None:
            self.limit.fill_(_limit(rate))
            self.scale.fill_(1.0 / (1.0 - rate) if rate < 1.0 else 0.0)

    def forward(self, input: Tensor, call: int = 0) -> Tensor:
        """Return ``input``, floats [samples, …, features], with a share ``p`` set to 0 and the others scaled by
        1 / (1 - p); ``call`` distinguishes two uses in one pass."""
        if not self.training:
            return input
        if self.limit is not None and self.scale is not None:
            if self.keys is not None:
                mask = dropped(self.keys[call], input.shape, self.limit)
            else:
                drawn = torch.rand(input.shape, device=input.device)
                mask = drawn < (self.limit.float() + 2.0**31) * 2.0**-32
            return input.masked_fill(mask, 0.0) * self.scale
        if self.p == 0.0:
            return input
        if self.keys is None or self.p == 1.0:
            return F.dropout(input, self.p, training=True)
        return input.masked_fill(dropped(self.keys[call], input.shape, self.p), 0.0) * (1.0 / (1.0 - self.p))


class WeightDropout(nn.Dropout):
    """The dropout rate of attention weights, which the attention kernel takes as a Python number.

    With a schedule (``scheduled``) that kernel is called outside of compiled code.
    """

    scheduled = False

    @property
    def drops(self) -> bool:
        """True if weights are dropped in training at any step."""
        return self.scheduled or self.p > 0.0


def follow_schedule(model: nn.Module, device: torch.device) -> None:
    """Let the rates of ``model``, on ``device``, change from step to step without recompiling it."""
    for module in model.modules():
        if isinstance(module, KeyedDropout):
            module.limit = torch.zeros((), dtype=torch.int32, device=device)
            module.scale = torch.zeros((), device=device)
            module.set_rate(module.p)
        elif isinstance(module, WeightDropout):
            module.scheduled = True


def _limit(rate: float) -> int:
    """Return the limit for ``rate``: of all int32 hashes, this fraction is below it.

    At a rate of 1 the limit is the largest int32, so that one of the 2**32 hashes is not below it.
    """
    return min(round(rate * 2**32) - 2**31, 2**31 - 1)


def dropped(keys: Tensor, shape: Sequence[int], rate: float | Tensor) -> Tensor:
    """Return the mask of a tensor of ``shape`` [samples, …, features]: bool of that shape, True for dropped elements.

    ``keys`` are int32 [samples]; ``rate`` is a number, or its limit among the hashes as an int32 scalar. Each position
    of a sample has a hash, and each feature has one; their sum, mixed by two products (Steele, Lea and Flood 2014, Fast
    Splittable Pseudorandom Number Generators), is compared with the limit. On a CPU these passes over int32 take a
    quarter of the time of PyTorch's generator (benchmarks/dropout.py).
    """
    samples, *between, features = shape
    positions = torch.arange(math.prod(between), device=keys.device, dtype=torch.int32)
    rows = mixed(keys[:, None] + positions * _GOLDEN).view(samples, *between, 1)
    columns = mixed(torch.arange(1, features + 1, device=keys.device, dtype=torch.int32) * _GOLDEN)
    hashes = (rows + columns) * _FIRST
    hashes = (hashes ^ (hashes >> 15)) * _SECOND
    return hashes < (rate if isinstance(rate, Tensor) else _limit(rate))


def mixed(values: Tensor) -> Tensor:
    """Return a permutation of int32 ``values`` [...] in which a change of one bit changes half of all bits.

    >>> mixed(torch.tensor([0, 1], dtype=torch.int32)).unique().numel()
    2
    """
    values = (values ^ (values >> 16)) * _FIRST
    values = (values ^ (values >> 15)) * _SECOND
    return values ^ (values >> 16)


def set_dropout_keys(model: nn.Module, base: int, first: int, samples: int, device: torch.device) -> None:
    """Set the keys of each KeyedDropout of ``model`` for a pass over ``samples`` samples, numbered from ``first`` in
    their batch; ``base`` is the key of the step.
    """
    dropouts = [
        module
        for module in model.modules()
        if isinstance(module, KeyedDropout) and (module.p > 0.0 or module.limit is not None)
    ]
    if not dropouts:
        return
    # All of it happens on the device, because a copy from the host would wait for the device's queue.
    numbers = torch.arange(first, first + samples, dtype=torch.int32, device=device) * _GOLDEN
    low, high = (base & 0xFFFFFFFF) - 2**31, (base >> 32) - 2**31
    sample_keys = mixed(mixed(numbers + low) + high)
    salts = torch.arange(1, 1 + _CALLS * len(dropouts), dtype=torch.int32, device=device) * _GOLDEN
    keys = mixed(sample_keys[None] ^ mixed(salts)[:, None]).view(len(dropouts), _CALLS, samples)
    for module, own_keys in zip(dropouts, keys, strict=True):
        module.keys = own_keys


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set the ``rate`` of each dropout of ``model``, including those that models of the transformers library hold as a
    number in their attention modules."""
    for module in model.modules():
        if isinstance(module, KeyedDropout):
            module.set_rate(rate)
            continue
        if isinstance(module, nn.Dropout):
            module.p = rate
            continue
        for name, value in list(vars(module).items()):
            if is_dropout_rate(name, value):
                setattr(module, name, rate)


def is_dropout_rate(name: str, value: object) -> bool:
    """Return True if an attribute with this name and ``value`` is a dropout rate of the transformers library.
    The rate of layerdrop, which skips whole layers, is not a dropout rate.

    >>> is_dropout_rate("attention_dropout", 0.1), is_dropout_rate("use_dropout", True)
    (True, False)
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and ("dropout" in name or name.endswith("pdrop"))


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """Put ``model`` in evaluation mode inside the context, and restore its mode on exit."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
