"""The rate of all dropouts of a model at once, and a model without any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def set_dropout(model: nn.Module, rate: float) -> None:
    """Give every dropout of ``model`` the ``rate``, also those that models of the transformers library keep as a plain
    number beside their attention."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
            continue
        for name, value in list(vars(module).items()):
            if is_dropout_rate(name, value):
                setattr(module, name, rate)


def is_dropout_rate(name: str, value: object) -> bool:
    """Whether an attribute ``name`` of ``value`` is a rate, as the transformers library names them; layerdrop, which
    leaves out whole layers, is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and ("dropout" in name or name.endswith("pdrop"))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off within, and ``model`` as it was afterwards, also after an error."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
