"""The effect of each optimization of the CPU path on a training step of the quickstart.

    python benchmarks/training_step.py

The variants alternate over three rounds, each in a separate process. Prints the medians, their ratio to the default,
and the share of the measured speed of matrix products that a step reaches.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

RUN_FILE = Path(__file__).resolve().parents[1] / "examples/quickstart.yaml"
VARIANTS = [
    "product",
    "memory given back",
    "PyTorch's attention",
    "unfused head and loss",
    "one chunk of logits",
    "fp32",
]
ROUNDS, WARM_UP, STEPS = 3, 3, 8


def unfused(hidden, weight, bias, targets, **_):
    """Head and loss as PyTorch's own operations."""
    logits = F.linear(hidden, weight, bias).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def measure(variant: str) -> tuple[float, float]:
    """Seconds of one step, and its share of the peak."""
    from quintet.config.load import load_run_config
    from quintet.data.batch import Batch
    from quintet.model import build_model
    from quintet.model.count import flops_per_token
    from quintet.train import compute, engine, objective
    from quintet.train.engine import step_if_finite
    from quintet.train.optimizer import build_optimizer

    overrides = ["train.precision=fp32"] if variant == "fp32" else []
    overrides += ["model.attention.backend=sdpa"] if variant == "PyTorch's attention" else []
    overrides += ["loss.chunk=8192"] if variant == "one chunk of logits" else []
    config = load_run_config([RUN_FILE], overrides).config
    compute.make_deterministic("auto", torch.device("cpu"))
    if variant != "memory given back":
        compute.keep_freed_memory()
    if variant == "unfused head and loss":
        objective.linear_cross_entropy = unfused
    chosen = compute.choose_compute(config.train)
    vocabulary, shape = config.tokenizer.vocab_size, config.batch
    model = build_model(config.model, vocabulary, shape.sequence_length, seed=1)
    loss_mask = objective.Objective(config.loss, config.model, vocabulary, mask_id=0, seed=1)
    optimizer = build_optimizer(config.optimizer, model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    one = engine.TorchEngine(objective.LossModule(model, loss_mask), model, optimizer, scaler, config, shape, chosen)
    ids = np.random.default_rng(0).integers(0, vocabulary, (shape.samples, shape.sequence_length + 1))
    inputs, targets = ids[:, :-1].copy(), ids[:, 1:].copy()
    batch = Batch(inputs, targets, np.zeros(shape.samples, dtype=np.int64), shape.tokens)
    times = []
    for number in range(WARM_UP + STEPS):
        start = time.perf_counter()
        one.accumulate(batch, number)
        step_if_finite(optimizer, torch.tensor(1.0))
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[WARM_UP:])
    flops = flops_per_token(config.model, vocabulary, shape.sequence_length).total * shape.tokens
    return seconds, flops / seconds / compute.measure_peak_flops(chosen, 1.0)


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    found: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(ROUNDS):
        for variant in VARIANTS:
            output = subprocess.run(
                [sys.executable, __file__, variant], capture_output=True, text=True, check=True
            ).stdout
            found[variant].append(tuple(json.loads(output.splitlines()[-1])))
    own = statistics.median(seconds for seconds, _ in found["product"])
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {RUN_FILE.name}")
    print(f"{'variant':24} {'ms a step':>10} {'ratio':>6} {'of peak':>8}")
    for variant, rows in found.items():
        seconds = statistics.median(row[0] for row in rows)
        share = statistics.median(row[1] for row in rows)
        print(f"{variant:24} {1e3 * seconds:10.0f} {seconds / own:6.2f} {share:8.0%}")


if __name__ == "__main__":
    main()
