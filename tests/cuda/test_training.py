"""Training on one GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(600)]
ON_GPU = {"steps": 4, "batch_size": 8, "device": "cuda", "precision": "fp32", "log_every": 1}


def losses(name: str) -> list[float]:
    rows = [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text("utf-8").splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "hsdp"])
def test_one_process_with_one_gpu_trains_by_every_way(train: Callable[..., str], kind: str) -> None:
    """The losses are those of a run that needs no group; `set_device` gets a device with an index."""
    ways = {"none": {"kind": "none"}, kind: {"kind": kind}}
    found = {way: losses(train(name=way, train=ON_GPU, parallel=parallel)) for way, parallel in ways.items()}
    assert found[kind] == pytest.approx(found["none"], abs=1e-4)
    assert torch.cuda.current_device() == 0
