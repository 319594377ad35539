"""A small model and batches for tests of the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import run_config

from quintet.config.documents import IGNORED
from quintet.config.schema import RunConfig
from quintet.data.batch import Batch
from quintet.model import Transformer, build_model
from quintet.train.compute import Compute

VOCAB, LENGTH = 61, 16


def config_of(**sections: Any) -> RunConfig:
    shape = {"layers": 2, "width": 32, "attention": {"heads": 2}}
    given = {"data": {"sequence_length": LENGTH}, "model": shape, "train": {"steps": 10, "batch_size": 32}} | sections
    return run_config(**given)


@pytest.fixture
def make_config() -> Callable[..., RunConfig]:
    return config_of


@pytest.fixture
def model() -> Transformer:
    return build_model(config_of().model, VOCAB, LENGTH, seed=3)


@pytest.fixture
def cpu() -> Compute:
    return Compute(torch.device("cpu"), "fp32", False, "for the test")


@pytest.fixture
def ragged_batch() -> Batch:
    """32 samples whose targets are masked unevenly: one sample wholly, the others from 0 to nearly all of them."""
    draw = np.random.default_rng(0)
    inputs, targets = draw.integers(0, VOCAB, (2, 32, LENGTH))
    share = np.linspace(0, 0.95, 32)[:, None]
    targets[draw.random((32, LENGTH)) < share] = IGNORED
    targets[7] = IGNORED
    return Batch(inputs, targets, np.zeros(32, dtype=np.int64), int((targets != IGNORED).sum()))
