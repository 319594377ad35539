"""Tests of what only a GPU shows; with ``device`` each also runs on a CPU, as far as that goes, among the slow ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from quintet.plan.counting import Counter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip each test of this folder that needs a GPU, with the reason, where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and this machine has none"))


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.cuda), pytest.param("cpu", marks=pytest.mark.slow)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """A GPU with an index, or the CPU."""
    return torch.device("cuda", 0) if request.param == "cuda" else torch.device("cpu")


@contextmanager
def peak_bytes(device: torch.device, *models: nn.Module) -> Iterator[list[int]]:
    """A list that gets the most bytes of tensors alive at once within: as the allocator of a GPU counts them, on a CPU
    those that operations give, and the weights of ``models``."""
    found: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.append(torch.cuda.max_memory_allocated(device))
        return
    counter = Counter()
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            counter.see(tensor)
    with counter:
        counter.enter("within")
        yield found
    found.append(counter.peaks["within"][0])
