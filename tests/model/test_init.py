from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from quintet.config.model import TransformerConfig
from quintet.model import build_model

VOCAB, CONTEXT, WIDTH = 300, 64, 128


def parameters(init: dict[str, Any], seed: int = 1, **shape: Any) -> dict[str, torch.Tensor]:
    values: dict[str, Any] = {
        "layers": 4,
        "width": WIDTH,
        "attention": {"heads": 4, "kv_heads": 2, "bias": True},
        "feedforward": {"kind": "gated", "bias": True},
        "norm": {"kind": "layer"},
        "position": {"kind": "learned"},
        "tie_embeddings": False,
        "head": {"bias": True},
        "init": init,
        **shape,
    }
    return dict(build_model(TransformerConfig.model_validate(values), VOCAB, CONTEXT, seed).named_parameters())


def std(value: torch.Tensor) -> float:
    """Root of the mean square, with a standard error of at most 1 % for the sizes used here."""
    return value.detach().square().mean().sqrt().item()


KINDS = [{"kind": "normal"}, {"kind": "xavier"}, {"kind": "kaiming"}]


@pytest.mark.parametrize("init", KINDS, ids=lambda init: init["kind"])
def test_gains_start_at_one_and_biases_at_zero(init: dict[str, Any]) -> None:
    for name, value in parameters(init).items():
        if "norm.weight" in name:
            assert (value == 1).all(), name
        elif name.endswith("bias"):
            assert (value == 0).all(), name
        else:
            assert value.std() > 0, name


def test_normal_weights_have_the_std_and_residual_writers_a_scaled_one() -> None:
    for name, value in parameters({"kind": "normal", "std": 0.05}).items():
        if value.dim() == 2:
            writes = name.endswith(("output.weight", "down.weight"))
            assert std(value) == pytest.approx(0.05 / (math.sqrt(8) if writes else 1), rel=0.04), name
            assert value.mean().item() == pytest.approx(0, abs=0.002)


def test_without_the_residual_scale_all_matrices_have_one_std() -> None:
    for name, value in parameters({"kind": "normal", "std": 0.05, "scale_residual": False}).items():
        if value.dim() == 2:
            assert std(value) == pytest.approx(0.05, rel=0.04), name


def test_xavier_fills_the_bounds_of_each_projection_by_itself() -> None:
    found = parameters({"kind": "xavier", "gain": 0.5})
    queries, keys, values = found["blocks.1.attention.qkv.weight"].split([128, 64, 64])
    matrices = [queries, keys, values, *(v for n, v in found.items() if "feedforward." in n and v.dim() == 2)]
    matrices.append(found["head.weight"])
    for matrix in matrices:
        bound = 0.5 * math.sqrt(6 / sum(matrix.shape))
        assert matrix.abs().max().item() <= bound
        assert matrix.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert std(matrix) == pytest.approx(bound / math.sqrt(3), rel=0.03)


@pytest.mark.parametrize("kind", ["xavier", "kaiming"])
def test_embeddings_are_normal_with_two_hundredths_where_fans_mean_nothing(kind: str) -> None:
    found = parameters({"kind": kind}, tie_embeddings=True)
    assert std(found["embedding.weight"]) == pytest.approx(0.02, rel=0.03)
    assert std(found["position.weight"]) == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("nonlinearity", ["gelu", "relu", "leaky_relu", "tanh", "sigmoid", "silu", "linear"])
def test_kaiming_has_the_gain_of_pytorch(nonlinearity: Any, mode: str) -> None:
    found = parameters({"kind": "kaiming", "mode": mode, "nonlinearity": nonlinearity})
    known = {"gelu": "relu", "silu": "relu"}.get(nonlinearity, nonlinearity)
    gain = torch.nn.init.calculate_gain(known, 0.01 if known == "leaky_relu" else None)  # pyright: ignore
    for name in ("blocks.0.feedforward.down.weight", "blocks.2.feedforward.up.weight"):
        matrix = found[name]
        fan = matrix.shape[1] if mode == "fan_in" else matrix.shape[0]
        assert std(matrix) == pytest.approx(gain / math.sqrt(fan), rel=0.03)
    keys = found["blocks.0.attention.qkv.weight"][128:192]
    assert std(keys) == pytest.approx(gain / math.sqrt(128 if mode == "fan_in" else 64), rel=0.04)


def test_none_leaves_what_pytorchs_modules_do() -> None:
    found = parameters({"kind": "none"})
    assert std(found["embedding.weight"]) == pytest.approx(1, rel=0.03)
    assert std(found["position.weight"]) == pytest.approx(1, rel=0.03)
    for name, fan_in in (("blocks.0.attention.qkv", 128), ("blocks.0.feedforward.down", 384), ("head", 128)):
        for leaf in ("weight", "bias"):
            value = found[f"{name}.{leaf}"]
            assert value.abs().max().item() <= 1 / math.sqrt(fan_in)
            assert std(value) == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.2 if leaf == "bias" else 0.03), name


@pytest.mark.parametrize("init", [*KINDS, {"kind": "none"}], ids=lambda init: init["kind"])
def test_the_seed_decides_and_the_global_generator_is_left_alone(init: dict[str, Any]) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = parameters(init)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = parameters(init), parameters(init, seed=2)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        if value.std() > 0:
            assert not torch.equal(value, other[name]), name


@pytest.mark.parametrize("init", [*KINDS, {"kind": "none"}], ids=lambda init: init["kind"])
def test_weights_of_a_layer_depend_on_nothing_but_their_name(init: dict[str, Any]) -> None:
    few = parameters(init, layers=2)
    others = {"norm": {"kind": "rms"}, "position": {"kind": "rope"}, "tie_embeddings": True}
    many = parameters(init, layers=8, **others)
    shared = [name for name in few if name in many and few[name].std() > 0]
    assert len(shared) > 8
    for name in shared:
        if init["kind"] == "none" and name.startswith("head"):
            continue  # PyTorch draws a module's weight and bias in one go, and a tied head has no weight
        scaled = init["kind"] == "normal" and name.endswith(("output.weight", "down.weight"))
        torch.testing.assert_close(few[name], many[name] * (2 if scaled else 1), rtol=1e-6, atol=0, msg=name)


def test_no_two_layers_start_alike() -> None:
    found = parameters({"kind": "normal"})
    first, second = (found[f"blocks.{layer}.feedforward.up.weight"] for layer in (0, 1))
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item()) < 0.05
