"""Training on one GPU; what a CPU can show of it, it shows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.cuda.conftest import peak_bytes
from tests.helpers import run_config, tiny_values
from torch._dynamo.utils import counters

from quintet.config.optimizer import AdamWConfig
from quintet.config.schema import RunConfig
from quintet.data.batch import Batch
from quintet.model import Model, build_model
from quintet.model.dropout import follow_schedule, set_dropout, set_dropout_keys
from quintet.model.init import first_values
from quintet.train.build import _compile_blocks
from quintet.train.compute import Compute, pinned, to_device
from quintet.train.dry_run import dry_run
from quintet.train.engine import TorchEngine
from quintet.train.loss import LossModule, Objective
from quintet.train.optimizer import build_optimizer, set_rounding
from quintet.train.parallel.group import process_group
from quintet.train.parallel.parallelize import load_sharded, make_mesh, replicate, shard
from quintet.train.parallel.strategy import Strategy

pytestmark = pytest.mark.timeout(600)
HERE = {"steps": 4, "batch_size": 8, "precision": "fp32", "log_every": 1}
ROWS = 256  # ids of the models here


def losses(name: str) -> list[float]:
    rows = [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text("utf-8").splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def config_of(device: torch.device, passes: int = 1, **sections: Any) -> RunConfig:
    """A run of a model that is larger on a GPU, whose allocator rounds."""
    large = device.type == "cuda"
    shape = {"layers": 8, "width": 512, "attention": {"heads": 8}} if large else {"layers": 2, "width": 64}
    return run_config(
        data={"sequence_length": 256 if large else 32},
        model=shape | sections.pop("model", {}),
        train={"steps": 4, "batch_size": 8 * passes, "micro_batch_size": 8, "device": device.type},
        **sections,
    )


def engine_of(config: RunConfig, model: Model, loss_module: Any, compute: Compute) -> TorchEngine:
    optimizer = build_optimizer(config.optimizer, model)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=False)
    return TorchEngine(loss_module, model, optimizer, scaler, config, config.batch, compute)


def objective_of(config: RunConfig) -> Objective:
    return Objective(config.loss, config.model, vocab_size=ROWS, mask_id=0, seed=1)


def batch_of(config: RunConfig) -> Batch:
    ids = np.random.default_rng(0).integers(0, ROWS, (config.batch.samples, config.data.sequence_length))
    return Batch(ids, ids, np.zeros(len(ids), np.int64), ids.size)


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "hsdp"])
def test_one_process_trains_by_every_way(train: Callable[..., str], device: torch.device, kind: str) -> None:
    """The losses are those of a run that needs no group; `set_device` gets a device with an index."""
    ways = {"none": {"kind": "none"}, kind: {"kind": kind}}
    on = HERE | {"device": device.type}
    found = {way: losses(train(name=way, train=on, parallel=parallel)) for way, parallel in ways.items()}
    assert found[kind] == pytest.approx(found["none"], abs=1e-4)
    assert device.type == "cpu" or torch.cuda.current_device() == device.index


def test_what_is_rounded_at_random_is_drawn_alike(device: torch.device) -> None:
    found = []
    for noise in (0, 1000):
        torch.manual_seed(3)
        model = torch.nn.Linear(64, 64, device=device)
        optimizer = build_optimizer(AdamWConfig(state_precision="bf16"), model)
        for step in range(1, 6):
            for parameter in model.parameters():
                parameter.grad = torch.linspace(1, 2, parameter.numel(), device=device).view_as(parameter)
            torch.rand(noise, device=device)
            set_rounding(optimizer, 7, step)
            optimizer.step()
        found.append([state["exp_avg_rms"].clone() for state in optimizer.state.values()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("passes", [1, 4])
def test_the_peak_of_the_dry_run_is_that_of_the_run(device: torch.device, passes: int) -> None:
    config = config_of(device, passes)
    model = build_model(config.model, ROWS, config.data.sequence_length, seed=1).to(device)
    objective = objective_of(config)
    compute = Compute(device, "bf16", compile=False, reason="for the test")
    engine = engine_of(config, model, LossModule(model, objective), compute)
    with peak_bytes(device, model) as tried:
        dry_run(engine, objective, held_out=8)
    with peak_bytes(device, model) as measured:
        for step in (1, 2, 3):
            engine.accumulate(batch_of(config), step)
            engine.update(1e-3, step)
    assert measured[0] == pytest.approx(tried[0], rel=0.03)


@contextmanager
def sharded(
    device: torch.device, passes: int, precision: str, **sections: Any
) -> Iterator[tuple[RunConfig, TorchEngine]]:
    """The engine of a run whose weights are sharded over the one process, unless `parallel` is ddp."""
    config = config_of(device, passes, **sections)
    compute = Compute(device, precision, compile=False, reason="")
    with process_group(config):
        outline = build_model(config.model, ROWS, config.data.sequence_length, seed=1, meta=True)
        model = build_model(config.model, ROWS, config.data.sequence_length, seed=1, meta=True)
        loss_module = LossModule(model, objective_of(config))
        if config.parallel.kind == "fsdp":
            shard(loss_module, Strategy(config.parallel, ""), make_mesh((1, 1), device.type), compute)
        else:
            model = build_model(config.model, ROWS, config.data.sequence_length, seed=1).to(device)
            yield config, engine_of(config, model, LossModule(model, loss_module.objective), compute)
            return
        load_sharded(model, first_values(outline, config.model, 1), device)  # pyright: ignore[reportArgumentType]
        yield config, engine_of(config, model, loss_module, compute)


@pytest.mark.parametrize(
    ("gather", "gain", "same"), [("fp32", True, True), ("bf16", False, True), ("bf16", True, False)]
)
def test_in_bf16_gathered_gains_of_norms_alone_differ_from_ddp(
    device: torch.device, gather: str, gain: bool, same: bool
) -> None:
    found: list[list[float]] = []
    norm = {"norm": {"kind": "rms", "gain": gain}}
    for parallel in ({"kind": "ddp"}, {"kind": "fsdp", "gather": gather}):
        with sharded(device, 1, "bf16", model=dict(norm), parallel=parallel) as (config, engine):
            steps = range(1, 6)
            found.append([step_of(engine, config, step) for step in steps])
    difference = max(abs(one - other) for one, other in zip(*found, strict=True))
    assert difference <= (1e-6 if device.type == "cuda" else 0.0) if same else 0 < difference < 1e-2


def step_of(engine: TorchEngine, config: RunConfig, step: int) -> float:
    loss = engine.accumulate(batch_of(config), step).item()
    engine.update(1e-2, step)
    return loss


def test_gradients_that_are_reduced_after_each_pass_are_the_same_in_less_memory(device: torch.device) -> None:
    """Summed once a step, a process holds the whole gradient beside its part, which here is as large."""
    peaks, gradients, weights = [], [], 0
    for reduced in ("each", "last"):
        parallel = {"kind": "fsdp", "reduce_passes": reduced}
        with sharded(device, 3, "fp32", parallel=parallel) as (config, engine):
            engine.accumulate(batch_of(config), 1)
            engine.optimizer.zero_grad()
            with peak_bytes(device, engine.model) as peak:
                engine.accumulate(batch_of(config), 1)
            parameters = list(engine.model.parameters())
            gradients.append([p.grad.full_tensor().cpu() for p in parameters if p.grad is not None])  # pyright: ignore
            weights = sum(4 * parameter.numel() for parameter in parameters)
        peaks += peak
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert peaks[0] <= peaks[1] + 0.05 * weights


def test_a_run_with_the_promise_continues_bit_for_bit(train: Callable[..., str], device: torch.device) -> None:
    strict = HERE | {"device": device.type, "deterministic": True, "precision": "bf16", "compile": False}
    kept = {"every": 2, "keep": None}
    whole = losses(train(name="whole", train=strict, checkpoint=kept))
    again = losses(train(name="again", train=strict, checkpoint=kept))
    assert whole == again
    train(name="cut", train=strict | {"steps": 2}, checkpoint=kept, schedule={"kind": "constant"})
    longer = losses(train(name="cut", train=strict, checkpoint=kept, schedule={"kind": "constant"}))
    at_once = losses(train(name="at_once", train=strict, checkpoint=kept, schedule={"kind": "constant"}))
    assert longer == at_once


def test_samples_of_the_likeliest_keep_the_promise(train: Callable[..., str], device: torch.device) -> None:
    """PyTorch refuses running sums of floats on a GPU there."""
    strict = HERE | {"device": device.type, "deterministic": True, "compile": False}
    written = {"prompts": ["the"], "max_tokens": 8, "top_p": 0.8, "every": 2}
    train(name="strict", train=strict, sample=written, evaluate={"required": True})


def test_a_schedule_of_dropout_compiles_a_block_once(device: torch.device) -> None:
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    found, graphs = [], []
    for compiled in (False, True):
        config = config_of(device, model={"residual_dropout": 0.1, "embedding_dropout": 0.1})
        model = build_model(config.model, ROWS, 32, seed=0).to(device)
        follow_schedule(model, device)
        ids = torch.arange(128, device=device).reshape(4, 32) % ROWS
        torch._dynamo.reset()
        for block in model.blocks if compiled else ():
            block.compile(backend=backend)
        for step, rate in enumerate((0.0, 0.1, 0.5, 0.2)):
            set_dropout(model, rate)
            torch.manual_seed(step)  # from which attention weights are dropped
            set_dropout_keys(model, step, 0, 4, device)
            found.append(model(ids).square().mean().item())
            graphs.append(counters["stats"]["unique_graphs"])
    assert found[4:] == pytest.approx(found[:4], rel=1e-4)
    assert len(set(graphs[4:])) == 1  # what the first rate compiled serves the others


def test_blocks_within_ddp_are_one_graph(device: torch.device, cutting_ddp: None) -> None:
    """With buckets of gradients that are smaller than a block."""
    config = config_of(device, parallel={"kind": "ddp", "bucket_mb": 1})
    compute = Compute(device, "fp32", compile=True, reason="")
    torch._dynamo.reset()
    counters.clear()
    with process_group(config):
        model = build_model(config.model, ROWS, config.data.sequence_length, seed=0).to(device)
        if device.type == "cuda":
            _compile_blocks(model, compute)
        else:  # no compiler of C++ is needed to see it
            torch._dynamo.config.optimize_ddp = False
            for block in model.blocks:
                block.compile(backend="aot_eager")
        assert config.parallel.kind == "ddp"
        engine = engine_of(
            config, model, replicate(LossModule(model, objective_of(config)), config.parallel, compute), compute
        )
        for step in (1, 2):
            engine.accumulate(batch_of(config), step)
            engine.update(1e-3, step)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.usefixtures("train")  # for its folder and its corpus
def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint(device: torch.device) -> None:
    """SIGUSR1, as the batch script sends it ahead of the time limit, reaches a run that torchrun's agent started."""
    on = HERE | {"device": device.type, "steps": 100_000, "log_every": 1, "compile": False}
    values = {"name": "long"} | tiny_values(train=on, checkpoint={"every": None})
    Path("long.yaml").write_text(yaml.safe_dump(values), "utf-8")
    line = [sys.executable, "-m", "quintet", "train", "--no-report", "--nproc", "1", "long.yaml"]
    process = subprocess.Popen(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    try:
        log, end = Path("runs/long/metrics.jsonl"), time.monotonic() + 300
        while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(200) == 128 + signal.SIGUSR1
    finally:
        process.kill()
    assert list(Path("runs/long/checkpoints").glob("step-*/state.json"))


@pytest.mark.cuda
def test_tf32_products_are_near_those_of_fp32_and_not_the_same(train: Callable[..., str]) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no tf32")
    wide, on = {"width": 128, "attention": {"heads": 2}}, HERE | {"device": "cuda"}
    found = [losses(train(name=name, model=wide, train=on | {"precision": name})) for name in ("fp32", "tf32")]
    assert found[0] == pytest.approx(found[1], abs=0.02)
    assert found[0] != found[1]


@pytest.mark.cuda
def test_a_batch_is_copied_from_pinned_memory_and_a_step_does_not_wait() -> None:
    array = pinned(np.arange(1000), torch.device("cuda", 0))
    assert torch.from_numpy(array).is_pinned()
    assert torch.equal(to_device(torch.from_numpy(array), torch.device("cuda", 0)).cpu(), torch.arange(1000))
