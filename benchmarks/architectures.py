"""Abilities of every causal language model in transformers: cache, batches, beams, shared prefixes, packed documents.

Each architecture of AutoModelForCausalLM is probed on a small copy with its default configuration, exactly as `quintet
train` does when it builds a model (`quintet.model.hf.trial`). The context is longer than every attention window and
longer than the original range of scaled positions. Prints the page docs/reference/architectures.md.

    python benchmarks/architectures.py [TYPE ...] > docs/reference/architectures.md
"""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from quintet.config.model import HuggingFaceConfig
from quintet.model.cache import Abilities
from quintet.model.hf.trial import NOTHING, try_abilities

CONTEXT = 1 << 30  # tokens, longer than every window
# Settings that make a default configuration valid, or typical of its family.
CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "nemotron": {"head_dim": 128},
    "phi3": {
        "max_position_embeddings": 131_072,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 48,
            "long_factor": [4.0] * 48,
            "original_max_position_embeddings": 4_096,
            "factor": 32.0,
        },
    },
    "xmod": {"default_language": "en_XX"},
}
HEAD = """# Architectures of transformers

A model with `kind: huggingface` runs the code of the transformers library. How that code handles a cache, padded
batches and packed documents differs between families. Quintet therefore probes a small copy with large weights when it
builds a model, and keeps the result under `~/.cache/quintet/abilities` for this configuration and this version of the
library. An ability counts only if it gives the logits of one unpadded text in one forward pass. The table is for the
default configuration of each architecture, with a context longer than its windows, and for transformers {version}. Your
model may differ; its own probe decides.

| column | yes | otherwise |
|---|---|---|
| cache | a new token costs one position | each new token costs a pass over the whole text |
| batch | texts of different lengths are generated together | only texts of equal length are |
| beams | beams reorder their cache | each new token costs a pass over each beam |
| shared | a benchmark computes a question once for all its answers | it computes the question for each answer |
| one shape | `--static-cache` works | the cache grows |
| documents | `model.documents: true` separates packed documents | refused |

A number beside *cache* is the length at which the positions change: a text that grows past it is computed once more
there, and shorter and longer texts are not batched together. "from padding id + 1" is the first position, in generation
as in training.

| architecture | cache | batch | beams | shared | one shape | documents | positions |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types (default: all)")
    chosen = parser.parse_args().types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    print(HEAD.format(version=transformers.__version__))
    skipped: list[str] = []
    for name in chosen:
        print(name, file=sys.stderr, flush=True)
        try:
            print(row(name, abilities(name)), flush=True)
        except Exception as error:  # the library raises many kinds for a configuration that it cannot build
            skipped.append(f"{name} ({(str(error).strip() or type(error).__name__).splitlines()[0][:80]})")
    if skipped:
        print(
            "\nMissing from the table, because the default configuration cannot be probed: " + "; ".join(skipped) + "."
        )


def default_model(name: str) -> Any:
    """Build the architecture ``name`` with its default configuration on the meta device, as a decoder if it has the
    choice."""
    settings = transformers.AutoConfig.for_model(name, **CHANGES.get(name, {}))
    if getattr(settings, "is_decoder", True) is False:
        settings.is_decoder = True
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(settings)


def abilities(name: str) -> Abilities:
    """Probe the architecture ``name`` with its default configuration. Raises ValueError if it cannot be probed."""
    config = HuggingFaceConfig(kind="huggingface", name_or_path=name, pretrained=False)
    probed = try_abilities(config, default_model(name), CONTEXT, linear_head=False)
    if not probed.causal:
        raise ValueError("it attends to the tokens that it should predict")
    if probed == NOTHING:
        raise ValueError("a small copy cannot be run")
    return probed


def row(name: str, can: Abilities) -> str:
    """Return one row of the table."""
    ways = [can.cache, can.batch, can.reorder, can.shared, can.static, can.documents]
    words = ["yes" if way else "–" for way in ways]
    if can.boundary is not None:
        words[0] += f", apart from {can.boundary:,} on"
    positions = {"from zero": "", "after padding id": "from padding id + 1", "own": "cannot be told"}[can.positions]
    return f"| {name} | {' | '.join(words)} | {positions} |"


if __name__ == "__main__":
    main()
