"""A training step of GPT-2's architecture on this machine's CPU: Quintet, nanoGPT, litgpt and transformers.

    git clone https://github.com/karpathy/nanoGPT
    pip install litgpt
    python benchmarks/peers.py --nanogpt nanoGPT

6 layers of width 256, a vocabulary of 4,096, 16 samples of 256 tokens: forward, backward, clipping, AdamW. The variants
alternate over several rounds, each in a separate process. The table shows medians with the range, in wall and CPU time.
Projects that are not installed are skipped. nanoGPT's train.py computes in fp32 on a CPU, and compiles by default.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

LAYERS, WIDTH, HEADS, VOCABULARY, LENGTH, SAMPLES = 6, 256, 4, 4096, 256, 16
WARM_UP, STEPS = 3, 8
RUN_FILE = f"""
name: peers
data: {{sources: [{{kind: python_stdlib}}], sequence_length: {LENGTH}}}
tokenizer: {{kind: bpe, vocab_size: {VOCABULARY}}}
model:
  layers: {LAYERS}
  width: {WIDTH}
  attention: {{kind: causal, heads: {HEADS}, bias: true}}
  feedforward: {{kind: plain, activation: gelu, bias: true}}
  norm: {{kind: layer}}
  position: {{kind: learned}}
train: {{steps: 100, batch_size: {SAMPLES}}}
"""
Step = Callable[[torch.Tensor, torch.Tensor], Any]


def quintet(precision: str) -> Step:
    import numpy as np

    from quintet.config.load import load_run_config
    from quintet.data.batch import Batch
    from quintet.model import build_model
    from quintet.train import compute, engine, objective
    from quintet.train.engine import step_if_finite
    from quintet.train.optimizer import build_optimizer

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(RUN_FILE, encoding="utf-8")
        config = load_run_config([file], [f"train.precision={precision}"]).config
    compute.make_deterministic("auto", torch.device("cpu"))
    compute.keep_freed_memory()
    chosen = compute.choose_compute(config.train)
    model = build_model(config.model, VOCABULARY, LENGTH, seed=1)
    loss = objective.LossModule(model, objective.Objective(config.loss, config.model, VOCABULARY, mask_id=0, seed=1))
    optimizer = build_optimizer(config.optimizer, model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    ours = engine.TorchEngine(loss, model, optimizer, scaler, config, config.batch, chosen)
    number = 0

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        nonlocal number
        rows = np.zeros(SAMPLES, dtype=np.int64)
        ours.accumulate(Batch(inputs.numpy(), targets.numpy(), rows, config.batch.tokens), number)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step_if_finite(optimizer, torch.tensor(1.0))
        optimizer.zero_grad()
        number += 1

    return step


def plain(model: torch.nn.Module, loss_of: Callable[..., torch.Tensor], context: Any = None) -> Step:
    """Return a training step as the other projects write it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        with context or nullcontext():
            loss = loss_of(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def nanogpt(folder: str, compiled: bool) -> Step:
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    shape = {"block_size": LENGTH, "vocab_size": VOCABULARY, "n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH}
    model = module.GPT(module.GPTConfig(**shape, dropout=0.0, bias=True))
    forward: Any = torch.compile(model) if compiled else model
    return plain(model, lambda inputs, targets: forward(inputs, targets)[1])


def litgpt(bf16: bool) -> Step:
    from litgpt import GPT, Config

    shape = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": LENGTH, "padded_vocab_size": VOCABULARY}
    model = GPT(Config(**shape, vocab_size=VOCABULARY, rotary_percentage=0.25, parallel_residual=False))
    model = model.bfloat16() if bf16 else model

    def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(inputs).float().flatten(0, 1), targets.flatten())

    return plain(model, loss_of)


def transformers(bf16: bool) -> Step:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    model = GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))

    def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(inputs).logits.float().flatten(0, 1), targets.flatten())

    return plain(model, loss_of, torch.autocast("cpu", torch.bfloat16) if bf16 else None)


def variants(nanogpt_folder: str | None) -> dict[str, Callable[[], Step]]:
    known: dict[str, Callable[[], Step]] = {
        "Quintet, default": lambda: quintet("auto"),
        "Quintet, fp32": lambda: quintet("fp32"),
    }
    if nanogpt_folder:
        known["nanoGPT, default (fp32, compiled)"] = lambda: nanogpt(nanogpt_folder, True)
        known["nanoGPT, fp32, not compiled"] = lambda: nanogpt(nanogpt_folder, False)
    if importlib.util.find_spec("litgpt"):
        known["litgpt, fp32"] = lambda: litgpt(False)
        known["litgpt, bf16-true"] = lambda: litgpt(True)
    if importlib.util.find_spec("transformers"):
        known["transformers, fp32"] = lambda: transformers(False)
        known["transformers, bf16 autocast"] = lambda: transformers(True)
    return known


def measure(step: Step) -> tuple[float, float]:
    """Return the median wall and CPU seconds of a step."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (SAMPLES, LENGTH + 1), generator=draw)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    walls, cpus = [], []
    for _ in range(WARM_UP + STEPS):
        wall, cpu = time.perf_counter(), time.process_time()
        step(inputs, targets)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls[WARM_UP:]), statistics.median(cpus[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", help="measure only this one, in this process")
    options = parser.parse_args()
    known = variants(options.nanogpt)
    if options.variant:
        print(json.dumps(measure(known[options.variant]())))
        return
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in known}
    for _ in range(options.rounds):
        for name, rows in times.items():
            command = [sys.executable, __file__, "--variant", name]
            command += ["--nanogpt", options.nanogpt] if options.nanogpt else []
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rows.append(tuple(json.loads(output.splitlines()[-1])))
    own = statistics.median(cpu for _, cpu in times["Quintet, default"])
    print(f"{torch.get_num_threads()} threads of {os.cpu_count()}, torch {torch.__version__}")
    print("| variant | tokens a second | range | CPU ms a step | times Quintet's CPU time |")
    print("|---|---|---|---|---|")
    for name, rows in times.items():
        speeds = sorted(SAMPLES * LENGTH / wall for wall, _ in rows)
        cpu = statistics.median(cpu for _, cpu in rows)
        middle = statistics.median(speeds)
        print(f"| {name} | {middle:,.0f} | {speeds[0]:,.0f}–{speeds[-1]:,.0f} | {1e3 * cpu:,.0f} | {cpu / own:.2f} |")


if __name__ == "__main__":
    main()
