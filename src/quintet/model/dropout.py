"""Dropout with a mask that follows from the sample and not from its batch, and the rate of all dropouts of a model."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CALLS = 2  # of one dropout in a forward pass, at most
# Odd constants whose products mix well: golden ratio and the finaliser of Wellons' lowbias32, as int32.
_GOLDEN, _FIRST, _SECOND = -1640531527, 2146121005, -2073254261


class KeyedDropout(nn.Dropout):
    """Dropout of [samples, …, features] with a mask that is a hash of the sample's key, the position and the feature.

    So what is dropped of a sample depends neither on the samples beside it nor on the number of processes, a recomputed
    pass drops the same, and nothing has to be stored. ``keys``, int32 [calls, samples], are set by `set_dropout_keys`
    before a pass; without them the mask comes from PyTorch's generator.

    With a schedule the rate is also there as scalars on the device, ``limit`` int32 and ``scale`` fp32
    (`follow_schedule`): a number would be compiled into the pass, which each new rate would compile anew.
    """

    keys: Tensor | None = None
    limit: Tensor | None = None
    scale: Tensor | None = None

    def set_rate(self, rate: float) -> None:
        """Drop a share ``rate`` from now on."""
        self.p = rate
        if self.limit is not None and self.scale is not None:
            self.limit.fill_(_limit(rate))
            self.scale.fill_(1.0 / (1.0 - rate) if rate < 1.0 else 0.0)

    def forward(self, input: Tensor, call: int = 0) -> Tensor:
        """``input``, floats [samples, …, features], with a share ``p`` set to 0 and the others scaled by 1 / (1 - p);
        ``call`` distinguishes two uses in one pass."""
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
    """The rate with which attention weights are dropped, by the kernel of attention, which takes a number.

    With a schedule, ``scheduled``, that kernel is called outside of what is compiled.
    """

    scheduled = False

    @property
    def drops(self) -> bool:
        """True if weights are dropped in training, now or at another step of the schedule."""
        return self.scheduled or self.p > 0.0


def follow_schedule(model: nn.Module, device: torch.device) -> None:
    """Let the rates of ``model``, on ``device``, change from step to step without compiling it anew."""
    for module in model.modules():
        if isinstance(module, KeyedDropout):
            module.limit = torch.zeros((), dtype=torch.int32, device=device)
            module.scale = torch.zeros((), device=device)
            module.set_rate(module.p)
        elif isinstance(module, WeightDropout):
            module.scheduled = True


def _limit(rate: float) -> int:
    """The integer of 32 bits below which the hashes are a share ``rate`` of all; one less for the share 1."""
    return min(round(rate * 2**32) - 2**31, 2**31 - 1)


def dropped(keys: Tensor, shape: Sequence[int], rate: float | Tensor) -> Tensor:
    """True where a tensor of ``shape`` [samples, …, features] is dropped: bool of that shape, with ``keys`` int32
    [samples]; ``rate`` may be its limit, an int32 scalar, among the hashes.

    A position of a sample has a hash, and so has a feature; their sum, mixed by two products (Steele, Lea and Flood
    2014, Fast Splittable Pseudorandom Number Generators, on such finalisers), is compared with the rate. On a CPU these
    passes over int32 take a quarter of the time of PyTorch's generator (benchmarks/dropout.py).
    """
    samples, *between, features = shape
    positions = torch.arange(_product(between), device=keys.device, dtype=torch.int32)
    rows = mixed(keys[:, None] + positions * _GOLDEN).view(samples, *between, 1)
    columns = mixed(torch.arange(1, features + 1, device=keys.device, dtype=torch.int32) * _GOLDEN)
    found = (rows + columns) * _FIRST
    found = (found ^ (found >> 15)) * _SECOND
    return found < (rate if isinstance(rate, Tensor) else _limit(rate))


def mixed(values: Tensor) -> Tensor:
    """A permutation of int32 ``values`` [...] in which each bit of them changes half of all bits.

    >>> mixed(torch.tensor([0, 1], dtype=torch.int32)).unique().numel()
    2
    """
    values = (values ^ (values >> 16)) * _FIRST
    values = (values ^ (values >> 15)) * _SECOND
    return values ^ (values >> 16)


def set_dropout_keys(model: nn.Module, base: int, first: int, samples: int, device: torch.device) -> None:
    """Key every KeyedDropout of ``model`` for a pass over ``samples`` samples, numbered from ``first`` in their batch;
    ``base`` is the key of the step.
    """
    every = [module for module in model.modules() if isinstance(module, KeyedDropout) and _in_use(module)]
    if not every:
        return
    # All of it on the device: a copy from the host would wait for what the device has still to do.
    numbers = torch.arange(first, first + samples, dtype=torch.int32, device=device) * _GOLDEN
    low, high = (base & 0xFFFFFFFF) - 2**31, (base >> 32) - 2**31
    of_samples = mixed(mixed(numbers + low) + high)
    salts = torch.arange(1, 1 + _CALLS * len(every), dtype=torch.int32, device=device) * _GOLDEN
    keys = mixed(of_samples[None] ^ mixed(salts)[:, None]).view(len(every), _CALLS, samples)
    for module, own in zip(every, keys, strict=True):
        module.keys = own


def _in_use(module: KeyedDropout) -> bool:
    return module.p > 0.0 or module.limit is not None


def _product(sizes: Sequence[int]) -> int:
    found = 1
    for size in sizes:
        found *= size
    return found


def set_dropout(model: nn.Module, rate: float) -> None:
    """Give every dropout of ``model`` the ``rate``, including those that models of the transformers library keep as a
    plain number beside their attention."""
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
    """True for an attribute with this name and ``value`` that the transformers library uses as a rate; not for
    layerdrop, which leaves out whole layers.

    >>> is_dropout_rate("attention_dropout", 0.1), is_dropout_rate("use_dropout", True)
    (True, False)
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and ("dropout" in name or name.endswith("pdrop"))


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """Switch dropout off within, and leave ``model`` in the mode that it had, also after an error."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
