"""Batches in which another number of tokens has a loss each time: the same loss, and memory that does not grow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from quintet.config.documents import IGNORED
from quintet.train.loss import linear_cross_entropy

_STEPS = """
import psutil, torch
from quintet.config.documents import IGNORED
from quintet.train.loss import linear_cross_entropy
torch.manual_seed(0)
weight, process, sizes = torch.randn(1241, 128, requires_grad=True), psutil.Process(), torch.randperm(700)[:120] + 100
for step, size in enumerate(sizes.tolist()):
    targets = torch.full((1600,), IGNORED)
    targets[torch.randperm(1600)[:size]] = 7
    hidden = torch.randn(1600, 128, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        linear_cross_entropy(hidden, weight, None, targets).backward()
    if step == 20:
        before = process.memory_info().rss
print(process.memory_info().rss - before)
"""


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_any_number_of_tokens_with_a_loss_equals_torchs_cross_entropy(count: int) -> None:
    random = torch.Generator().manual_seed(count)
    targets = torch.full((300,), IGNORED)
    places = torch.randperm(300, generator=random)[:count]
    targets[places] = torch.randint(50, (count,), generator=random)
    hidden = torch.randn(300, 16, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, generator=random, dtype=torch.float64, requires_grad=True)
    ours = linear_cross_entropy(hidden, weight, None, targets)
    theirs = F.cross_entropy(hidden[places] @ weight.T, targets[places], reduction="sum")
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(theirs, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is measured otherwise elsewhere")
def test_memory_does_not_grow_with_each_new_number() -> None:
    # A kernel each, as without the rounding, takes 200 MB where bf16 is oneDNN's.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", _STEPS], capture_output=True, text=True, env=environment, check=True)
    assert int(done.stdout) < 100e6
