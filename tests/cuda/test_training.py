"""Training on one GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers import run_config

from quintet.config.optimizer import AdamWConfig
from quintet.data.batch import Batch
from quintet.model import build_model
from quintet.train.compute import Compute, pinned, to_device
from quintet.train.objective import LossModule, Objective
from quintet.train.optimizer import build_optimizer, set_rounding
from quintet.train.rehearsal import rehearse_steps
from quintet.train.step import TorchEngine

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


def test_what_is_rounded_at_random_is_drawn_alike_on_a_gpu() -> None:
    found = []
    for noise in (0, 1000):
        torch.manual_seed(3)
        model = torch.nn.Linear(64, 64, device="cuda")
        optimizer = build_optimizer(AdamWConfig(state_precision="bf16"), model)
        for step in range(1, 6):
            for parameter in model.parameters():
                parameter.grad = torch.linspace(1, 2, parameter.numel(), device="cuda").view_as(parameter)
            torch.rand(noise, device="cuda")
            set_rounding(optimizer, 7, step)
            optimizer.step()
        found.append([state["exp_avg_rms"].clone() for state in optimizer.state.values()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("passes", [1, 4])
def test_the_peak_of_the_rehearsal_is_that_of_the_run(passes: int) -> None:
    device, length = torch.device("cuda", 0), 256
    config = run_config(
        data={"sequence_length": length},
        model={"layers": 8, "width": 512, "attention": {"heads": 8}},
        train={"steps": 4, "batch_size": 8 * passes, "micro_batch_size": 8},
    )
    model = build_model(config.model, 4096, length, seed=1).to(device)
    objective = Objective(config.loss, config.model, vocab_size=4096, mask_id=0, seed=1)
    optimizer, scaler = build_optimizer(config.optimizer, model), torch.amp.GradScaler("cuda", enabled=False)
    compute = Compute(device, "bf16", False, "for the test")
    engine = TorchEngine(LossModule(model, objective), model, optimizer, scaler, config, config.batch, compute)
    torch.cuda.reset_peak_memory_stats(device)
    rehearse_steps(engine, objective, held_out=8)
    rehearsed = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    ids = np.random.default_rng(0).integers(0, 4096, (8 * passes, length))
    for step in (1, 2, 3):
        engine.accumulate(Batch(ids, ids, np.zeros(len(ids), np.int64), ids.size), step)
        engine.update(1e-3, step)
    assert torch.cuda.max_memory_allocated(device) == pytest.approx(rehearsed, rel=0.03)


def test_a_run_with_the_promise_continues_bit_for_bit(train: Callable[..., str]) -> None:
    strict = ON_GPU | {"deterministic": True, "precision": "bf16", "compile": False}
    kept = {"every": 2, "keep": None}
    whole = losses(train(name="whole", train=strict, checkpoint=kept))
    again = losses(train(name="again", train=strict, checkpoint=kept))
    assert whole == again
    train(name="cut", train=strict | {"steps": 2}, checkpoint=kept, schedule={"kind": "constant"})
    longer = losses(train(name="cut", train=strict, checkpoint=kept, schedule={"kind": "constant"}))
    at_once = losses(train(name="at_once", train=strict, checkpoint=kept, schedule={"kind": "constant"}))
    assert longer == at_once


def test_tf32_products_are_near_those_of_fp32_and_not_the_same(train: Callable[..., str]) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no tf32")
    wide = {"width": 128, "attention": {"heads": 2}}
    found = [losses(train(name=name, model=wide, train=ON_GPU | {"precision": name})) for name in ("fp32", "tf32")]
    assert found[0] == pytest.approx(found[1], abs=0.02)
    assert found[0] != found[1]


def test_a_batch_is_copied_from_pinned_memory_and_a_step_does_not_wait() -> None:
    array = pinned(np.arange(1000), torch.device("cuda", 0))
    assert torch.from_numpy(array).is_pinned()
    assert torch.equal(to_device(torch.from_numpy(array), torch.device("cuda", 0)).cpu(), torch.arange(1000))
