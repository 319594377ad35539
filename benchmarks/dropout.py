"""The cost of dropout keyed by the sample on a CPU, against PyTorch's: one call, and a step of the quickstart's model.

    python benchmarks/dropout.py [SAMPLES]

The variants alternate, so that other load slows all of them, and the fastest of several rounds counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from quintet.config.model import TransformerConfig
from quintet.model import build_model
from quintet.model.dropout import KeyedDropout, set_dropout_keys
from quintet.train.model import checkpoint_activations

LENGTH, WIDTH, VOCAB, RATE, ROUNDS = 256, 384, 4096, 0.1, 7


def fastest(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the least milliseconds of each of ``ways``, which alternate."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def one_call(samples: int) -> dict[str, float]:
    """Forward and backward through one dropout of [samples, LENGTH, WIDTH]."""
    x = torch.randn(samples, LENGTH, WIDTH, requires_grad=True)
    keyed = KeyedDropout(RATE)
    set_dropout_keys(keyed, 1, 0, samples, x.device)
    ones = torch.ones_like(x)
    compiled = torch.compile(keyed)
    return fastest(
        {
            "PyTorch's": lambda: F.dropout(x, RATE).backward(ones),
            "keyed": lambda: keyed(x).backward(ones),
            "keyed, compiled": lambda: compiled(x).backward(ones),
        }
    )


def step(samples: int) -> dict[str, float]:
    """Forward and backward through the quickstart's model with rate RATE on embeddings, residuals and features."""
    sections = {"feedforward": {"kind": "gated", "dropout": RATE}, "embedding_dropout": RATE, "residual_dropout": RATE}
    without = {"feedforward": {"kind": "gated"}}
    ids = torch.randint(VOCAB, (samples, LENGTH))

    def model_of(values: dict[str, object], *, keyed: bool) -> nn.Module:
        config = TransformerConfig.model_validate({"layers": 6, "width": WIDTH, "attention": {"heads": 6}} | values)
        model = build_model(config, VOCAB, LENGTH, seed=0)
        checkpoint_activations(model.blocks, "none")
        if keyed:
            set_dropout_keys(model, 1, 0, samples, ids.device)
        return model

    def run(model: nn.Module) -> Callable[[], object]:
        return lambda: F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()

    return fastest(
        {
            "none": run(model_of(without, keyed=False)),
            "PyTorch's": run(model_of(sections, keyed=False)),
            "keyed": run(model_of(sections, keyed=True)),
        }
    )


def main() -> None:
    """Print both tables in milliseconds, and the claimed ratio."""
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    torch.manual_seed(0)
    for title, found in (("one call", one_call(samples)), ("a step", step(samples))):
        print(f"{title} of {samples} samples, ms:", ", ".join(f"{name} {ms:.1f}" for name, ms in found.items()))
    ratio = found["keyed"] / found["PyTorch's"]
    print(f"a step with keyed dropout takes {ratio:.3f} of one with PyTorch's")


if __name__ == "__main__":
    main()
