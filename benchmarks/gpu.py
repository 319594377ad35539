"""The cost of a run on a GPU: speed, memory, checkpoints and generation, and what continues bit for bit.

    python benchmarks/gpu.py --out gpu.json                # one GPU, a few minutes; the sections are independent
    python benchmarks/gpu.py --device cpu --tiny           # tiny models, to check that the script runs

Prints one line per figure. A section that fails records its error, and the next one runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from quintet.config.generation import GenerationSettings
from quintet.config.model import CausalAttentionConfig, TransformerConfig
from quintet.config.optimizer import AdamWConfig
from quintet.config.train import CheckpointConfig
from quintet.libraries import is_installed
from quintet.model import Model, build_model
from quintet.model.build import narrow_weights
from quintet.model.generate import generate, tokens_ahead
from quintet.model.kernels import attend, choose_kernel, prepare_mask, varying_lengths
from quintet.model.mask import lay_out
from quintet.track.jsonl import read_metrics
from quintet.train.checkpoint import Checkpointer
from quintet.train.checkpoint_files import Progress
from quintet.train.compute import Compute, choose_device, device_memory, measure_peak_flops
from quintet.train.cross_entropy import default_chunk, linear_cross_entropy
from quintet.train.optimizer import build_optimizer

Figures = Iterator[tuple[str, float | str]]
SECTIONS: dict[str, Callable[[argparse.Namespace], Figures]] = {}


def section(function: Callable[[argparse.Namespace], Figures]) -> Callable[[argparse.Namespace], Figures]:
    """Register ``function``, which yields names and figures, under its name."""
    SECTIONS[function.__name__] = function
    return function


def run_file(options: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """Return a run file with a model of GPT-2's size, or a tiny one."""
    tiny = options.tiny
    steps, batch = (6, 4) if tiny else (40, 32)
    return {
        "data": {"sources": [{"kind": "text", "path": "corpus"}], "sequence_length": 64 if tiny else 1024},
        "tokenizer": {"kind": "byte"},
        "model": {"layers": 2, "width": 64} if tiny else {"layers": 12, "width": 768, "attention": {"heads": 12}},
        "train": {"steps": steps, "batch_size": batch, "log_every": 2, "device": options.device},
        "schedule": {"kind": "constant", "warmup_steps": 0},
        "evaluate": {"every": None, "samples": 8},
        "sample": {"prompts": []},
        "checkpoint": {"every": None},
    } | changes


def train(name: str, values: dict[str, Any], *overrides: str) -> list[dict[str, float]]:
    """Train the run ``name``, and return its records."""
    file = Path(f"{name}.yaml")
    file.write_text(yaml.safe_dump({"name": name, **values}))
    line = [sys.executable, "-m", "quintet", "train", "--no-report", str(file), *overrides]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    return read_metrics(Path("runs") / name / "metrics.jsonl")


@section
def training(options: argparse.Namespace) -> Figures:
    """Tokens per second, model FLOPs utilization and memory with the default settings and with others."""
    variants = {"default": [], "not compiled": ["train.compile=false"], "strict": ["train.deterministic=true"]}
    if options.device == "cuda":
        variants |= {"tf32": ["train.precision=tf32"], "fp32": ["train.precision=fp32"]}
    for name, overrides in variants.items():
        rows = [row for row in train(f"training-{len(name)}", run_file(options), *overrides) if "speed/mfu" in row]
        rows = rows[len(rows) // 2 :]
        yield f"{name}: tokens/s", max(row["speed/tokens_per_second"] for row in rows)
        yield f"{name}: MFU", max(row["speed/mfu"] for row in rows)
        yield f"{name}: GB", max(row.get("speed/memory_bytes", 0.0) for row in rows) / 1e9


@section
def machine(options: argparse.Namespace) -> Figures:
    """GB of the device, and the TFLOP/s of large matrix products by precision, which the MFU is relative to."""
    device = choose_device(options.device)
    yield "GB", (device_memory(device, 1) or 0) / 1e9
    for precision in ("fp32", "bf16"):
        peak = measure_peak_flops(Compute(device, precision, compile=False, reason=""))
        yield f"{precision}: TFLOP/s", peak / 1e12


@section
def optimizers(options: argparse.Namespace) -> Figures:
    """Milliseconds of a step of AdamW and GB of its state, with averages in fp32 and in 16 bits."""
    count = 2**12 if options.tiny else 2**27
    for precision in ("fp32", "bf16", "fp16"):
        model = torch.nn.Linear(1, count, bias=False, device=options.device)
        optimizer = build_optimizer(AdamWConfig.model_validate({"state_precision": precision}), model)
        times: list[float] = []
        for _ in range(6):
            model.weight.grad = torch.ones_like(model.weight)
            wait_for(options.device)
            start = time.perf_counter()
            optimizer.step()
            wait_for(options.device)
            times.append(time.perf_counter() - start)
        state = optimizer.state[model.weight].values()
        yield f"{precision}: ms", 1000 * min(times)
        yield f"{precision}: GB", sum(tensor.nbytes for tensor in state) / 1e9


@section
def loss(options: argparse.Namespace) -> Figures:
    """TFLOP/s of head and loss, forward and backward, by the number of tokens per chunk."""
    tokens, rows, width = (64, 301, 32) if options.tiny else (8192, 50304, 768)
    hidden = torch.randn(tokens, width, device=options.device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(rows, width, device=options.device, requires_grad=True)
    targets = torch.randint(rows, (tokens,), device=options.device)
    for chunk in (None, 4096, 8192):
        times: list[float] = []
        for _ in range(5):
            wait_for(options.device)
            start = time.perf_counter()
            with torch.autocast(options.device, torch.bfloat16):
                linear_cross_entropy(hidden, weight, None, targets, chunk=chunk).backward()
            wait_for(options.device)
            times.append(time.perf_counter() - start)
        name = default_chunk(rows, options.device) if chunk is None else chunk
        yield (
            f"chunk {name}{' (default)' if chunk is None else ''}: TFLOP/s",
            6 * tokens * rows * width / min(times) / 1e12,
        )


@section
def parallel(options: argparse.Namespace) -> Figures:
    """The last loss of a run in one process under each strategy. In fp32 all are equal."""
    ways: dict[str, dict[str, Any]] = {kind: {"kind": kind} for kind in ("ddp", "fsdp", "hsdp")}
    if is_installed("deepspeed"):
        ways["deepspeed"] = {"kind": "deepspeed", "config": {"zero_optimization": {"stage": 1}}}
    for kind, way in ways.items():
        records = train(f"parallel-{kind}", run_file(options, parallel=way))
        yield kind, [row["train/loss"] for row in records if "train/loss" in row][-1]


@section
def resume(options: argparse.Namespace) -> Figures:
    """The greatest difference in loss between a run continued half-way and an uninterrupted one."""
    half = 3 if options.tiny else 20
    values = run_file(options, checkpoint={"every": half})
    for deterministic in ("true", "auto"):
        whole = train(f"whole-{deterministic}", values, f"train.deterministic={deterministic}")
        train(f"halves-{deterministic}", values, f"train.deterministic={deterministic}", f"train.steps={half}")
        halves = train(f"halves-{deterministic}", values, f"train.deterministic={deterministic}")
        losses = [[row["train/loss"] for row in rows if "train/loss" in row] for rows in (whole, halves)]
        yield (
            f"deterministic: {deterministic}: greatest difference",
            max(abs(a - b) for a, b in zip(*losses, strict=True)),
        )


@section
def checkpoint(options: argparse.Namespace) -> Figures:
    """Seconds that a checkpoint blocks training, and seconds until it is on the disk, for the first and for later
    ones."""
    size = 2**20 if options.tiny else 2**30
    state = {"model": {f"weight-{index}": torch.zeros(size // 4, device=options.device) for index in range(8)}}
    checkpointer = Checkpointer(
        Path("checkpoints").resolve(), CheckpointConfig(keep=1), device=torch.device(options.device)
    )
    yield "GB", 8 * size / 1e9
    for step in (1, 2, 3):
        wait_for(options.device)
        start = time.perf_counter()
        checkpointer.save(Progress(step=step), state)
        yield f"save {step}: s blocked", time.perf_counter() - start
        checkpointer.wait()
        yield f"save {step}: s total", time.perf_counter() - start
    checkpointer.close()


@section
def generation(options: argparse.Namespace) -> Figures:
    """Tokens per second and synchronizations of the host, by cache, batch size and precision of the weights."""
    shape = {"layers": 2, "width": 64} if options.tiny else {"layers": 24, "width": 1024, "attention": {"heads": 16}}
    config = TransformerConfig.model_validate(shape)
    device, tokens = torch.device(options.device), 24 if options.tiny else 256
    settings = GenerationSettings(max_tokens=tokens, temperature=0.0)
    for weights in ("wide", "narrow", "int8", "float8"):
        model = build_model(config, 4096, 1024, seed=0)
        narrow_weights(model, weights, torch.bfloat16)
        model.to(device).eval()
        for cache in (False, True) if device.type == "cuda" else (False,):
            for count in (1, 32):
                written(model, count, settings, compiled=cache)  # compiles
                speed, waits = written(model, count, settings, compiled=cache)
                name = f"{weights}, {'compiled' if cache else 'growing'} cache, {count} prompts"
                yield f"{name}: tokens/s", speed
                yield f"{name}: waits", waits


def written(model: Model, count: int, settings: GenerationSettings, *, compiled: bool) -> tuple[float, int]:
    """Return tokens per second over a batch of ``count`` texts, and how often the host waited for the device."""
    device = model.device
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        ahead = tokens_ahead(device)
        steps = generate(model, [[1, 2, 3]] * count, settings, ahead=ahead, static=compiled, compile=compiled)
        length = sum(1 for _ in steps)
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchroniz" in str(warning.message) for warning in warned)
    return length * count / (time.perf_counter() - start), waits


@section
def masks(options: argparse.Namespace) -> Figures:
    """Milliseconds and GB of windowed attention over a long prompt, with the chosen kernel and with plain SDPA."""
    device, length = torch.device(options.device), 1024 if options.tiny else 16384
    config = CausalAttentionConfig(window=256)
    ranges = lay_out(config, torch.zeros(1, length, dtype=torch.long, device=device)).ranges
    with torch.no_grad(), varying_lengths():
        chosen = choose_kernel(config, ranges, device, torch.bfloat16, cached=True, dropping=False)
        for kernel in (chosen, "sdpa"):
            queries, keys, values = torch.randn(3, 1, 16, length, 64, device=device, dtype=torch.bfloat16)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            wait_for(options.device)
            start = time.perf_counter()
            attend(queries, keys, values, prepare_mask(ranges, kernel, device))
            wait_for(options.device)
            yield f"{kernel}: ms", 1000 * (time.perf_counter() - start)
            if device.type == "cuda":
                yield f"{kernel}: GB", torch.cuda.max_memory_allocated() / 1e9


def wait_for(device: str) -> None:
    """Wait until all work queued on ``device`` is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Run the sections in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, for a CPU")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    results: dict[str, dict[str, float | str]] = {}
    out = None if options.out is None else options.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("corpus").mkdir()
        draw = random.Random(1)
        text = " ".join(draw.choices(["the", "cat", "sat", "on", "a", "mat"], k=20_000 if options.tiny else 1_000_000))
        Path("corpus/0.txt").write_text(text)
        for name in options.only:
            figures = results[name] = {}
            try:
                for figure, value in SECTIONS[name](options):
                    figures[figure] = value
                    print(f"{name}: {figure}: {value:.6g}", flush=True)
            except Exception as error:
                figures["failed"] = f"{type(error).__name__}: {error}"
                print(f"{name}: failed: {figures['failed'].splitlines()[0]}", flush=True)
            if out is not None:
                out.write_text(json.dumps(results, indent=1))
    if any("failed" in figures for figures in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
