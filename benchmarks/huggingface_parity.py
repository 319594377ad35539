"""Agreement of imported and exported models with the classes of transformers, by family.

For each family, a model of transformers with random weights is saved, imported as Quintet's transformer, and exported
again. The table shows the largest difference between fp32 logits relative to the largest logit, the number of equal
tokens in a greedy text of 200, and the difference in the number of parameters. The exit code is 1 if a logit differs by
more than 1e-5 or a text differs.

    python benchmarks/huggingface_parity.py [--checkpoint FOLDER ...]

--checkpoint adds real checkpoints.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from quintet.config.generation import GenerationSettings
from quintet.config.model import TransformerConfig
from quintet.model import Transformer, build_model
from quintet.model.generate import generate
from quintet.model.hf.files import read_config
from quintet.model.hf.settings import model_section
from quintet.model.hf.weights import export_weights, pretrained_weights

NO_ENDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SIZES: dict[str, Any] = NO_ENDS | {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
GPT2 = NO_ENDS | {"vocab_size": 1000, "n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 512}
UNCAPPED = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "layer_types": ["full_attention"] * SIZES["num_hidden_layers"],
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("gpt2", GPT2),
    "Llama 2": ("llama", SIZES | {"num_key_value_heads": 8}),
    "Llama 3.1": ("llama", SIZES | {"rope_parameters": LLAMA31}),
    "Mistral, window 64": ("mistral", SIZES | {"sliding_window": 64}),
    "Qwen 2": ("qwen2", SIZES),
    "Qwen 3": ("qwen3", SIZES | {"head_dim": 64}),
    "Phi": ("phi", SIZES),
    "Gemma": ("gemma", SIZES | {"head_dim": 64}),
    "Gemma 2, uncapped": ("gemma2", SIZES | UNCAPPED | {"head_dim": 64}),
    "OLMo": ("olmo", SIZES),
    "OLMo 2": ("olmo2", SIZES),
}
PROMPT, TOKENS, LIMIT = 20, 200, 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", action="append", default=[], help="folder of a checkpoint")
    transformers.utils.logging.disable_progress_bar()
    print(f"{'family':<20} {'direction':<10} {'max logit difference':>20} {'equal tokens':>17} {'parameters':>11}")
    failures = 0
    with tempfile.TemporaryDirectory() as place:
        for number, (name, (kind, settings)) in enumerate(FAMILIES.items()):
            folder = Path(place) / str(number)
            made(kind, settings).save_pretrained(folder)
            failures += compared(name, folder)
    for folder in parser.parse_args().checkpoint:
        failures += compared(Path(folder).name, Path(folder))
    sys.exit(failures > 0)


def made(kind: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.dim() > 1 else 0.1))
    return model


@torch.no_grad()
def compared(name: str, folder: Path) -> int:
    """Print both rows of a checkpoint, and return how many of them exceed a limit."""
    theirs = load(folder)
    config = TransformerConfig.model_validate(model_section(read_config(folder), str(folder)))
    assert config.vocab_size is not None
    assert config.context_length is not None
    start = pretrained_weights(str(folder), config, config.vocab_size, config.context_length)
    ours = build_model(config, config.vocab_size, config.context_length, seed=0, weights=start.weights).eval()
    assert isinstance(ours, Transformer)
    exported = export_weights(ours, NO_ENDS)
    assert not isinstance(exported, list), exported
    reloaded = transformers.AutoModelForCausalLM.from_config(exported.config).eval()
    reloaded.load_state_dict(exported.tensors, strict=False)
    count = sum(parameter.numel() for parameter in ours.parameters())
    return row(name, "in", ours, theirs, count - theirs.num_parameters()) + row(
        name, "out", ours, reloaded, reloaded.num_parameters() - count
    )


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def row(name: str, direction: str, ours: Transformer, theirs: Any, parameters: int) -> int:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(ours.vocab_size, (2, min(ours.context_length, 256)), generator=generator)
    expected = theirs(ids, use_cache=False).logits
    difference = ((ours(ids) - expected).abs().max() / expected.abs().max()).item()
    prompt = ids[0, :PROMPT].tolist()
    texts = generate(ours, [prompt], GenerationSettings(max_tokens=TOKENS, temperature=0.0))
    agreed = equal_prefix([step[0] for step in texts], written_by(theirs, ids[:1, :PROMPT]))
    print(f"{name:<20} {direction:<10} {difference:>20.1e} {agreed:>11}/{TOKENS} {parameters:>+11}")
    return int(difference > LIMIT or agreed < TOKENS or parameters != 0)


def written_by(theirs: Any, prompt: Tensor) -> list[int]:
    out = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, PROMPT:].tolist()


def equal_prefix(found: list[int | None], expected: list[int]) -> int:
    """Return the number of tokens before the first that differs."""
    return next(
        (place for place, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other), len(expected)
    )


if __name__ == "__main__":
    main()
