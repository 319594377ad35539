"""Tokens per second of greedy generation, by kind of cache and number of prompts in a batch.

    python benchmarks/generation.py [--tokens 400] [--width 384] [--layers 6]

The model is that of the quickstart with random weights. Compilation counts: each measurement starts cold.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from quintet.config.generation import GenerationSettings
from quintet.config.model import TransformerConfig
from quintet.model import build_model
from quintet.model.generate import generate

CACHES: dict[str, dict[str, Any]] = {
    "growing": {},
    "static": {"static": True},
    "static, compiled": {"static": True, "compile": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=400, help="new tokens per text")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8, 32], help="prompts in a batch")
    options = parser.parse_args()
    config = TransformerConfig.model_validate({"width": options.width, "layers": options.layers})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(config, 4096, options.tokens + 8, seed=0).to(device).eval()
    settings = GenerationSettings(max_tokens=options.tokens, temperature=0.0)
    print(f"{options.tokens} new tokens per text on {device}; tokens/s over the whole batch")
    print(f"{'prompts':>8}" + "".join(f"{name:>20}" for name in CACHES))
    for count in options.prompts:
        speeds = []
        for cache in CACHES.values():
            began = time.perf_counter()
            steps = sum(1 for _ in generate(model, [[1, 2, 3]] * count, settings, **cache))
            speeds.append(count * steps / (time.perf_counter() - began))
        print(f"{count:>8}" + "".join(f"{speed:>20,.0f}" for speed in speeds))


if __name__ == "__main__":
    main()
