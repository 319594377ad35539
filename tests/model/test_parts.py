"""Each part against its formula, values and gradients."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.config.model import (
    Activation,
    LayerNormConfig,
    NoNormConfig,
    RMSNormConfig,
    RopeConfig,
    SinusoidalPositionConfig,
    TransformerConfig,
)
from quintet.model.attention import attend
from quintet.model.feedforward import ACTIVATIONS, build_feedforward
from quintet.model.norm import RMSNorm, build_norm
from quintet.model.position import build_added_position, build_rope, rotate, split_heads


def values_and_gradients(function, *tensors: Tensor) -> list[Tensor]:
    out = function(*tensors)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), tensors)]


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("width", [1, 7, 32])
def test_rms_norm_equals_pytorchs_in_value_and_gradients(width: int) -> None:
    x, weight = random(3, 5, width), random(width)
    norm = RMSNorm(width, eps=0.1)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    def theirs(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (width,), weight, 0.1)

    for found, expected in zip(
        values_and_gradients(ours, x, weight), values_and_gradients(theirs, x, weight), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("config", [RMSNormConfig(eps=0.5), LayerNormConfig(kind="layer", eps=0.5)])
def test_norms_follow_their_formula(config) -> None:
    x = random(4, 6, dtype=torch.float32)
    data = x.detach().numpy()
    centred = data - data.mean(-1, keepdims=True) if config.kind == "layer" else data
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.5)
    np.testing.assert_allclose(build_norm(config, 6)(x).detach().numpy(), expected, rtol=1e-5)


def test_no_norm_changes_nothing() -> None:
    x = random(2, 3)
    assert build_norm(NoNormConfig(kind="none"), 3)(x) is x


@pytest.mark.parametrize("config", [RMSNormConfig(), LayerNormConfig(kind="layer")])
def test_under_autocast_a_norm_computes_wide_and_rounds_once(config) -> None:
    norm, x = build_norm(config, 64), random(5, 64, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = norm(x)
    assert torch.equal(narrow, norm(x).bfloat16())


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_splitting_with_rotation_on_a_cpu_equals_the_plain_formula(heads: int, kv_heads: int) -> None:
    rope = build_rope(RopeConfig(theta=100.0), 32, head_dim=8)
    assert rope is not None
    tables = tuple(table.double() for table in rope(3, 11))
    qkv = random(2, 11, (heads + 2 * kv_heads) * 8)

    def plain(qkv: Tensor) -> Tensor:
        per_head = qkv.view(2, 11, -1, 8).transpose(1, 2)
        turned = rotate(per_head[:, : heads + kv_heads], *tables)
        return torch.cat([turned, per_head[:, heads + kv_heads :]], dim=1)

    def ours(qkv: Tensor) -> Tensor:
        return torch.cat(split_heads(qkv, heads, kv_heads, tables), dim=1)  # pyright: ignore[reportArgumentType]

    for found, expected in zip(values_and_gradients(ours, qkv), values_and_gradients(plain, qkv), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_rotation_turns_pairs_of_features_as_complex_numbers() -> None:
    rope = build_rope(RopeConfig(theta=50.0), 20, head_dim=6)
    assert rope is not None
    x = random(20, 6, dtype=torch.float32).detach()
    numbers = x[:, :3].numpy() + 1j * x[:, 3:].numpy()
    turned = numbers * np.exp(1j * np.arange(20)[:, None] * 50.0 ** (-np.arange(3) / 3))
    found = rotate(x, *rope(0, 20)).numpy()
    np.testing.assert_allclose(found[:, :3] + 1j * found[:, 3:], turned, atol=1e-5)


def test_products_of_rotated_vectors_depend_on_their_distance_alone() -> None:
    rope = build_rope(RopeConfig(), 1000, head_dim=16)
    assert rope is not None
    query, key = random(1, 16, dtype=torch.float32).detach(), random(1, 16, dtype=torch.float32).detach() + 1

    def product(query_at: int, key_at: int) -> float:
        return float((rotate(query, *rope(query_at, 1)) * rotate(key, *rope(key_at, 1))).sum())

    assert product(7, 2) == pytest.approx(product(905, 900), abs=1e-4)
    assert product(7, 2) != pytest.approx(product(8, 2), abs=1e-2)


@pytest.mark.parametrize("width", [8, 7])
def test_sinusoidal_positions_are_those_of_the_paper(width: int) -> None:
    table = build_added_position(SinusoidalPositionConfig(kind="sinusoidal"), 30, width)
    assert table is not None
    expected = [
        [(math.cos if i % 2 else math.sin)(p / 10_000 ** ((i - i % 2) / width)) for i in range(width)]
        for p in range(5, 30)
    ]
    torch.testing.assert_close(table(5, 25), torch.tensor(expected), rtol=0, atol=1e-6)


CLOSED_FORMS = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "none": lambda x: x,
}


@pytest.mark.parametrize("name", get_args(Activation))
def test_activations_follow_their_formula(name: Activation) -> None:
    points = [-3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0]
    expected = torch.tensor([CLOSED_FORMS[name](x) for x in points])
    torch.testing.assert_close(ACTIVATIONS[name](torch.tensor(points)), expected)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_feedforward_follows_its_formula(kind: str, bias: bool) -> None:
    part = {"kind": kind, "activation": "tanh", "width": 5, "bias": bias}
    network = build_feedforward(TransformerConfig.model_validate({"width": 64, "feedforward": part}))
    x = random(3, 64, dtype=torch.float32)
    parameters = {name: value.numpy() for name, value in network.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ parameters[f"{name}.weight"].T + parameters.get(f"{name}.bias", 0.0)

    data = x.numpy()
    inner = np.tanh(linear("gate", data)) * linear("up", data) if kind == "gated" else np.tanh(linear("up", data))
    np.testing.assert_allclose(network(x).numpy(), linear("down", inner), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "positions"), [(6, 6), (1, 6), (4, 9), (1, 1)])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_follows_its_formula(kv_heads: int, length: int, positions: int, dtype: torch.dtype) -> None:
    queries = random(2, 4, length, 8).to(dtype)
    keys, values = (random(2, kv_heads, positions, 8).to(dtype) + shift for shift in (0, 1))
    wide_keys, wide_values = (part.double().repeat_interleave(4 // kv_heads, 1) for part in (keys, values))
    scores = queries.double() @ wide_keys.mT / math.sqrt(8)
    past = torch.arange(positions)[None, :] <= torch.arange(positions - length, positions)[:, None]
    expected = scores.masked_fill(~past, -math.inf).softmax(-1) @ wide_values
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(attend(queries, keys, values).double(), expected, rtol=tolerance, atol=tolerance)


def test_dropped_attention_weights_are_dropped_whole_and_the_rest_is_scaled_up() -> None:
    length = 64
    values = torch.eye(length).expand(1, 1, length, length)
    torch.manual_seed(0)
    # With identity as values the output is the matrix of weights; equal scores make each row 1 / (row + 1).
    zeros = torch.zeros(1, 1, length, length)
    weights = attend(zeros, zeros, values, dropout=0.25)[0, 0] * torch.arange(1, length + 1)[:, None]
    past = weights[torch.ones(length, length, dtype=torch.bool).tril()]
    assert torch.allclose(past[past != 0], torch.tensor(1 / 0.75))
    assert (past == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
