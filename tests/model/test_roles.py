"""Roles of parameters against what transformers' Trainer lets decay, over the architectures that it knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.checkpoints import build_outline, causal_kinds
from torch import nn

from quintet.config.model import TransformerConfig
from quintet.config.optimizer import AdamWConfig
from quintet.model import build_model
from quintet.model.init import roles
from quintet.train.optimizer import DECAYING, build_optimizer

transformers = pytest.importorskip("transformers")

# Gains and biases with two dimensions and more, and what else stands apart from matrices.
CHOSEN: dict[str, dict[str, Any]] = {
    "cohere": {"use_qk_norm": True},
    "gpt_oss": {},
    "recurrent_gemma": {},
    "mamba": {},
    "xlnet": {},
    "rwkv": {},
    "deepseek_v3": {},
    "gpt2": {},
    "bloom": {},
    "llama": {},
    "phi": {"qk_layernorm": True},
    "roberta-prelayernorm": {},
}
NOT_TO_DECAY = ("A_log", "scale")


def owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def assert_differences_have_a_reason(model: nn.Module) -> None:
    theirs = set(transformers.Trainer.get_decay_parameter_names(None, model))
    role = roles(model)
    ours = {name for name in role if role[name] in DECAYING}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name in ours - theirs & shapes.keys():
        # They leave out all whose path has "layernorm" in it: the whole of a model of that name, a network in a norm.
        assert "layernorm" in name, name
        assert isinstance(owner(model, name), nn.Linear | nn.Embedding), name
    for name in theirs - ours & shapes.keys():
        if name not in shapes:
            continue  # the other name of a tied matrix
        along_one_axis = shapes[name].numel() == max(shapes[name], default=1)
        by_another_name = "Norm" in type(owner(model, name)).__name__
        assert along_one_axis or by_another_name or name.endswith(NOT_TO_DECAY), (name, shapes[name])


@pytest.mark.parametrize("kind", list(CHOSEN))
def test_what_decays_is_what_transformers_lets_decay_but_for_vectors(kind: str) -> None:
    model = build_outline(kind, **CHOSEN[kind])
    assert model is not None
    assert_differences_have_a_reason(model)


@pytest.mark.slow
def test_what_decays_is_what_transformers_lets_decay_in_every_architecture() -> None:
    tried = 0
    for kind in causal_kinds():
        model = build_outline(kind)
        if model is not None:
            assert_differences_have_a_reason(model)
            tried += 1
    assert tried > 100


MANY_DIMENSIONS = {
    "cohere": ("self_attn.q_norm.weight", "self_attn.k_norm.weight"),
    "gpt_oss": ("experts.gate_up_proj_bias", "experts.down_proj_bias"),
    "recurrent_gemma": ("rg_lru.input_gate_bias", "rg_lru.recurrent_gate_bias"),
}


@pytest.mark.parametrize("kind", list(MANY_DIMENSIONS))
def test_gains_and_biases_of_two_dimensions_stay_where_they_are(kind: str) -> None:
    model = build_outline(kind, **CHOSEN[kind])
    named = {n: p for n, p in model.named_parameters() if n.endswith(MANY_DIMENSIONS[kind])}
    assert named
    assert all(parameter.dim() > 1 for parameter in named.values())
    decay = {
        id(parameter): group["weight_decay"]
        for group in build_optimizer(AdamWConfig(weight_decay=0.1), model).param_groups
        for parameter in group["params"]
    }
    assert {decay[id(parameter)] for parameter in named.values()} == {0.0}
    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    assert {decay[id(parameter)] for parameter in matrices} == {0.1}


def test_adapters_are_matrices() -> None:
    peft = pytest.importorskip("peft")
    model = build_outline("mixtral")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
    found = {name: role for name, role in roles(adapted).items() if "lora_" in name}
    assert found
    assert set(found.values()) == {"matrix"}


def test_a_layer_with_one_output_is_a_matrix_and_one_of_a_single_feature_none() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(8, 1)
            self.mix = nn.Parameter(torch.ones(1, 1, 8))
            self.pairs = nn.Parameter(torch.ones(1, 2, 2))
            self.decay = nn.Parameter(torch.ones(4, 8))
            self.decay._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]

    expected = {"gate.weight": "matrix", "gate.bias": "bias", "mix": "vector", "pairs": "matrix", "decay": "vector"}
    assert roles(Scaled()) == expected


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_roles_in_our_own_transformer(norm: str, position: str) -> None:
    section = {
        "layers": 2,
        "width": 16,
        "attention": {"heads": 2, "bias": True, "qk_norm": "head"},
        "feedforward": {"kind": "gated", "bias": True},
        "norm": {"kind": norm},
        "position": {"kind": position},
        "head": {"bias": True},
        "tie_embeddings": False,
    }
    model = build_model(TransformerConfig.model_validate(section), 11, 8, seed=0)
    for name, role in roles(model).items():
        if name in ("embedding.weight", "position.weight"):
            assert role in DECAYING
        elif name.endswith("bias"):
            assert role == "bias"
        else:
            assert role == ("gain" if "norm" in name else "matrix"), name
