"""What each causal language model of the transformers library can do besides reading one text from its beginning.

For each architecture of AutoModelForCausalLM, in the configuration that it has by default, a small copy is tried as
`quintet train` tries it when it builds the model (`quintet.model.hf.trial`), with a context beyond all windows and
beyond the length that its positions were made for at first. Prints the page docs/reference/architectures.md.

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

CONTEXT = 1 << 30  # beyond every window
# What the defaults of the library leave open or contradict, or leave out of what the family is known for.
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

A model with `kind: huggingface` is built of the transformers library's own code. What that code makes of a cache, of
rows side by side and of packed documents differs from family to family, so Quintet tries it when it builds a model, on
a small copy with large weights, and keeps the result under `~/.cache/quintet/abilities` for the same configuration and
the same version of the library. A way of reading counts only if it gives the logits of plain reading: one text, alone,
whole. The table holds for the default configuration of each architecture, with a context beyond its windows, and for
transformers {version}. A model of yours may differ; its own trial decides.

| column | yes | otherwise |
|---|---|---|
| cache | a new token costs one position | the whole text is read anew for each token |
| batch | texts of different lengths are written side by side | texts of one length are written together |
| beams | beams keep their cache | beams are read anew for each token |
| shared | a benchmark reads a question once for all its answers | it is read anew for each answer |
| one shape | `--static-cache` | the cache grows |
| documents | `model.documents: true` keeps packed documents apart | refused |

Where a number stands beside *cache*, texts of more tokens have other positions: a text that grows beyond it is read
anew there, and shorter and longer texts are read apart. "from padding id + 1" says where positions begin, in writing as
in training.

| architecture | cache | batch | beams | shared | one shape | documents | positions |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="types of models; all when not given")
    chosen = parser.parse_args().types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    print(HEAD.format(version=transformers.__version__))
    left_out: list[str] = []
    for name in chosen:
        print(name, file=sys.stderr, flush=True)
        try:
            print(row(name, abilities(name)), flush=True)
        except Exception as error:  # whatever the library raises for a configuration that it cannot build
            left_out.append(f"{name} ({(str(error).strip() or type(error).__name__).splitlines()[0][:80]})")
    if left_out:
        print("\nNot tried with its defaults, and so not in the table: " + "; ".join(left_out) + ".")


def default_model(name: str) -> Any:
    """The architecture ``name`` in its default configuration, without weights; as a decoder, where it can be one."""
    settings = transformers.AutoConfig.for_model(name, **CHANGES.get(name, {}))
    if getattr(settings, "is_decoder", True) is False:
        settings.is_decoder = True
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(settings)


def abilities(name: str) -> Abilities:
    """What the architecture ``name`` can do in its default configuration."""
    config = HuggingFaceConfig(kind="huggingface", name_or_path=name, pretrained=False)
    found = try_abilities(config, default_model(name), CONTEXT, linear_head=False)
    if not found.causal:
        raise ValueError("it sees the tokens that it is to predict")
    if found == NOTHING:
        raise ValueError("no small copy of it can be read")
    return found


def row(name: str, can: Abilities) -> str:
    """One line of the table."""
    ways = [can.cache, can.batch, can.reorder, can.shared, can.static, can.documents]
    words = ["yes" if way else "–" for way in ways]
    if can.boundary is not None:
        words[0] += f", apart from {can.boundary:,} on"
    positions = {"from zero": "", "after padding id": "from padding id + 1", "own": "cannot be told"}[can.positions]
    return f"| {name} | {' | '.join(words)} | {positions} |"


if __name__ == "__main__":
    main()
