"""Each part against its formula, values and gradients."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.config.model import Activation, TransformerConfig
from quintet.config.norm import LayerNormConfig, NoNormConfig, RMSNormConfig
from quintet.config.position import RopeConfig
from quintet.model.norm import RMSNorm, build_norm
from quintet.model.position import Rope, SinusoidalPosition, rotate, scaled_frequencies, split_and_rotate
from quintet.model.transformer import ACTIVATIONS, build_feedforward


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
    norm = RMSNorm(RMSNormConfig(eps=0.1), width)

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


def rope_of(features: int, context: int = 1000, **keys) -> Rope:
    return Rope(RopeConfig.model_validate(keys), context, features)


@pytest.mark.parametrize("pairs", ["halves", "interleaved"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("turned", [8, 4])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_splitting_with_rotation_on_a_cpu_equals_the_plain_formula(
    heads: int, kv_heads: int, turned: int, batched: bool, pairs: str
) -> None:
    rope = rope_of(turned, theta=100.0, pairs=pairs).double()
    positions = torch.arange(3, 14)
    rotation = rope(torch.stack([positions, positions.flip(0)]) if batched else positions)
    qkv = random(2, 11, (heads + 2 * kv_heads) * 8)

    def plain(qkv: Tensor) -> Tensor:
        per_head = qkv.view(2, 11, -1, 8).transpose(1, 2)
        rotated = rotate(per_head[:, : heads + kv_heads], rotation)
        return torch.cat([rotated, per_head[:, heads + kv_heads :]], dim=1)

    def ours(qkv: Tensor) -> Tensor:
        return torch.cat(split_and_rotate(qkv, heads, kv_heads, rotation), dim=1)

    for found, expected in zip(values_and_gradients(ours, qkv), values_and_gradients(plain, qkv), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("pairs", ["halves", "interleaved"])
def test_rotation_turns_pairs_of_features_as_complex_numbers(pairs: str) -> None:
    x = random(20, 8, dtype=torch.float32).detach()  # six features turn, two do not
    rope = rope_of(6, theta=50.0, pairs=pairs)
    data, found = x.numpy(), rotate(x[None, None], rope(torch.arange(20)))[0, 0].numpy()

    def numbers(values: np.ndarray) -> np.ndarray:
        return values[:, :3] + 1j * values[:, 3:6] if pairs == "halves" else values[:, 0:6:2] + 1j * values[:, 1:6:2]

    turned = numbers(data) * np.exp(1j * np.arange(20)[:, None] * 50.0 ** (-np.arange(3) / 3))
    np.testing.assert_allclose(numbers(found), turned, atol=1e-5)
    np.testing.assert_array_equal(found[:, 6:], data[:, 6:])


def test_products_of_rotated_vectors_depend_on_their_distance_alone() -> None:
    rope = rope_of(16)
    query, key = random(1, 16, dtype=torch.float32).detach(), random(1, 16, dtype=torch.float32).detach() + 1

    def product(query_at: int, key_at: int) -> float:
        at = (torch.tensor([place]) for place in (query_at, key_at))
        return float((rotate(query[None, None], rope(next(at))) * rotate(key[None, None], rope(next(at)))).sum())

    assert product(7, 2) == pytest.approx(product(905, 900), abs=1e-4)
    assert product(7, 2) != pytest.approx(product(8, 2), abs=1e-2)


SCALINGS = {
    "linear": ({"factor": 4.0}, {"factor": 4.0}),
    "yarn": (
        {"factor": 4.0, "original_context": 64, "beta_fast": 8.0},
        {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8.0},
    ),
    "llama3": (
        {"factor": 8.0, "original_context": 256, "low_freq_factor": 1.5, "high_freq_factor": 5.0},
        {"factor": 8.0, "original_max_position_embeddings": 256, "low_freq_factor": 1.5, "high_freq_factor": 5.0},
    ),
}


@pytest.mark.parametrize("kind", list(SCALINGS))
@pytest.mark.parametrize("features", [16, 64])
def test_scaled_frequencies_are_those_of_transformers(kind: str, features: int) -> None:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    ours, theirs = SCALINGS[kind]
    config = LlamaConfig(
        hidden_size=features,
        num_attention_heads=1,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": kind, "rope_theta": 5000.0, **theirs},
    )
    expected, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    rope_config = RopeConfig.model_validate({"theta": 5000.0, "scaling": {"kind": kind, **ours}})
    found, found_factor = scaled_frequencies(rope_config, features)
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=0)
    assert found_factor == pytest.approx(factor)


def test_ntk_scaling_stretches_the_longest_wavelength_by_the_factor_and_keeps_the_shortest() -> None:
    plain, _ = scaled_frequencies(RopeConfig(), 32)
    scaled, _ = scaled_frequencies(RopeConfig.model_validate({"scaling": {"kind": "ntk", "factor": 3.0}}), 32)
    assert float(plain[-1] / scaled[-1]) == pytest.approx(3.0)
    assert float(plain[0] / scaled[0]) == pytest.approx(1.0)
    assert (scaled <= plain).all()


@pytest.mark.parametrize("width", [8, 7])
def test_sinusoidal_positions_are_those_of_the_paper(width: int) -> None:
    table = SinusoidalPosition(30, width, 10_000.0)
    expected = [
        [(math.cos if i % 2 else math.sin)(p / 10_000 ** ((i - i % 2) / width)) for i in range(width)]
        for p in range(5, 30)
    ]
    torch.testing.assert_close(table(torch.arange(5, 30)), torch.tensor(expected), rtol=0, atol=1e-6)


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
