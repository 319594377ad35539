"""Small checkpoints of the transformers library, and the models that Quintet builds of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet.config.model import HuggingFaceConfig
from quintet.model import build_model
from quintet.model.cache import Abilities
from quintet.model.hf import loading
from quintet.model.hf.pretrained import PretrainedModel

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

ROWS, VOCAB, LENGTH = 264, 257, 24
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": ROWS,
    "max_position_embeddings": 64,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": ROWS, "n_positions": 64}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "gpt2": lambda: transformers.GPT2Config(**GPT2, bos_token_id=256, eos_token_id=256),
    # A cap on the logits, and a window shorter than the texts in every other layer.
    "gemma2": lambda: transformers.Gemma2Config(**SHAPE, head_dim=8, sliding_window=7),
    "granite": lambda: transformers.GraniteConfig(**SHAPE, logits_scaling=4.0),
    # Attention in the second layer alone.
    "bamba": lambda: transformers.BambaConfig(
        **SHAPE, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8
    ),
    "mixtral": lambda: transformers.MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
}
FAMILIES = ["llama", "gpt2", "gemma2"]
EVERY = list(CONFIGS)
PACKING = [name for name in EVERY if name != "bamba"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of each family, with weights large enough that what a token sees matters."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, config in CONFIGS.items():
        torch.manual_seed(EVERY.index(name))
        model = transformers.AutoModelForCausalLM.from_config(config())
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.25)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def _few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that can do everything, as the tests of the trial show, are not tried anew with each configuration."""
    tried = loading.find_abilities

    def find(config: HuggingFaceConfig, causal: Any, *sizes: int, **named: Any) -> Abilities:
        known = causal.config.model_type in ("llama", "gpt2", "gemma2", "mixtral")
        return Abilities() if known else tried(config, causal, *sizes, **named)

    monkeypatch.setattr(loading, "find_abilities", find)


@pytest.fixture
def build(checkpoints: Path) -> Callable[..., PretrainedModel]:
    def call(name: str, **keys: Any) -> PretrainedModel:
        config = HuggingFaceConfig(kind="huggingface", name_or_path=str(checkpoints / name), **keys)
        model = build_model(config, VOCAB, LENGTH, seed=3)
        assert isinstance(model, PretrainedModel)
        return model

    return call


def library(checkpoints: Path, name: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoints / name, dtype=torch.float32).eval()


def texts(batch: int = 2, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def gradients(model: PretrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
