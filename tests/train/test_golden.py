"""Loss curves that must not move: they guard everything between the run file and the weights.

The curves were recorded in fp32 with the versions of constraints.txt. Rounding differs between processors, and twenty
steps amplify it little, so the tolerance is far below what any real change of the numerics would cause.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers import run_values

from quintet.config.schema import RunConfig
from quintet.data.batch import Batch
from quintet.model import build_model
from quintet.train.compute import Compute
from quintet.train.engine import TorchEngine, step_if_finite
from quintet.train.loss import LossModule, Objective
from quintet.train.optimizer import build_optimizer, set_learning_rate
from quintet.train.schedule import learning_rate

CURVES = Path(__file__).parent / "golden.json"
STEPS, VOCAB, LENGTH = 20, 97, 24

RECIPES: dict[str, dict[str, object]] = {
    "llama_like": {"model": {"layers": 2, "width": 48, "attention": {"heads": 4, "kv_heads": 2}}},
    "gpt2_like": {
        "model": {
            "layers": 2,
            "width": 48,
            "attention": {"heads": 4, "bias": True},
            "feedforward": {"kind": "plain", "activation": "gelu_tanh", "bias": True},
            "norm": {"kind": "layer"},
            "position": {"kind": "learned"},
        },
        "schedule": {"kind": "linear", "warmup_steps": 5},
    },
    "untied_wsd": {
        "model": {
            "layers": 1,
            "width": 32,
            "attention": {"heads": 2},
            "tie_embeddings": False,
            "embedding_dropout": 0.1,
            "residual_dropout": 0.1,
        },
        "schedule": {"kind": "wsd", "warmup_steps": 3, "decay_fraction": 0.5},
        "train": {"steps": STEPS, "micro_batch_size": 4, "accumulation": 2, "clip_norm": 0.5},
    },
}


def batch(step: int) -> Batch:
    """Sequences that count upwards by a step of their own, so that there is something to learn."""
    draw = np.random.default_rng(step)
    start, stride = draw.integers(0, VOCAB, (8, 1)), draw.integers(1, 4, (8, 1))
    ids = (start + stride * np.arange(LENGTH + 1)) % VOCAB
    return Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), np.zeros(8, dtype=np.int64), 8 * LENGTH)


def curve(recipe: dict[str, object]) -> list[float]:
    train = {"steps": STEPS, "batch_size": 8}
    values = run_values(data={"sequence_length": LENGTH}, train=train, optimizer={"lr": 5e-3}) | recipe
    config = RunConfig.model_validate(values)
    compute = Compute(torch.device("cpu"), "fp32", False, "golden")
    model = build_model(config.model, VOCAB, LENGTH, config.seed)
    optimizer = build_optimizer(config.optimizer, model)
    objective = Objective(config.loss, config.model, VOCAB, mask_id=VOCAB, seed=config.seed)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    engine = TorchEngine(LossModule(model, objective), model, optimizer, scaler, config, config.batch, compute)
    losses = []
    for step in range(1, STEPS + 1):
        losses.append(engine.accumulate(batch(step), step).item())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm or float("inf"))
        set_learning_rate(optimizer, learning_rate(config.schedule, config.optimizer.lr, step, STEPS))
        step_if_finite(optimizer, norm)
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_keeps_its_loss_curve(name: str) -> None:
    golden = json.loads(CURVES.read_text())[name]
    assert golden[-1] < golden[0] - 0.3  # a curve that learns nothing would guard nothing
    assert curve(RECIPES[name]) == pytest.approx(golden, rel=2e-4)


if __name__ == "__main__":  # record anew, after a change that is meant to move them
    CURVES.write_text(json.dumps({name: curve(recipe) for name, recipe in RECIPES.items()}, indent=1) + "\n")
