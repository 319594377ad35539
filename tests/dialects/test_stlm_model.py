"""STLM: each key of the model changes what its document says, in the model that is really built."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.dialects.conftest import Made, Make, changes, each_changes
from tests.dialects.stlm_runs import EXPERIMENT, HF, dropouts, only_in, own, refused, shapes
from tests.dialects.stlm_runs import base as base  # a fixture
from tests.dialects.stlm_runs import checkpoint as checkpoint  # a fixture
from tests.dialects.stlm_runs import make_hf as make_hf  # a fixture
from tests.dialects.stlm_runs import place as place  # a fixture
from torch import nn

DIALECT = "stlm"


def sees_later_tokens(made: Made) -> bool:
    """True if a later token changes the logits of a position."""
    model, ids = own(made).eval(), torch.arange(8)[None] + 30
    other = ids.clone()
    other[0, -1] = 99
    with torch.no_grad():
        return not torch.allclose(model(ids)[:, :-1], model(other)[:, :-1])


@changes("model.core_model_type")
def test_core_model_type(make: Make) -> None:
    assert type(own(make())).__name__ == "Transformer"
    assert "core_model_type: hf_core needs the name of a checkpoint" in refused(make, HF)
    assert "'cascade' belongs to an experiment" in refused(make, {"model.core_model_type": "cascade"})
    inner = {"model.core_model_type": "ffn_lora_sharing", "model.k_interior_layers": 0, "model.num_layers": 4}
    sharing: Any = make({**inner, "model.lora_rank": 2, "model.lora_alpha": 3}).config.model.sharing  # pyright: ignore
    assert (sharing.first_blocks, sharing.last_blocks, sharing.rank, sharing.scale) == (1, 0, 2, 1.5)
    assert make(inner).config.model.sharing.same == ("attention_output", "feedforward")  # pyright: ignore


@changes("model.k_interior_layers", "model.lora_rank", "model.lora_alpha")
def test_shared_inside(make: Make) -> None:
    """Of 6 blocks the first two and the last one share nothing, and the others differ by matrices of rank 2."""
    inner = {"model.core_model_type": "ffn_lora_sharing", "model.num_layers": 6, "model.lora_rank": 2}
    parameters = shapes(make({**inner, "model.k_interior_layers": 1}))
    blocks = {int(name.split(".")[1]) for name in parameters if name.startswith("blocks.") and "up.weight" in name}
    assert blocks == {0, 1, 5}
    ranks = {min(shape) for name, shape in parameters.items() if "difference" in name}
    assert ranks == {2}
    other: Any = make({**inner, "model.k_interior_layers": 0, "model.lora_alpha": 3}).config.model.sharing  # pyright: ignore
    assert (other.first_blocks, other.last_blocks, other.scale) == (1, 0, 1.5)
    assert make({**inner, "model.k_interior_layers": 0}).config.model.sharing.scale == 0.5  # pyright: ignore


@changes("model.embedding_dim")
def test_embedding_width(make: Make) -> None:
    """It repeats the width; another width is an experiment."""
    assert shapes(make({"model.embedding_dim": 16}))["embedding.weight"][1] == 16
    assert EXPERIMENT in refused(make, {"model.embedding_dim": 8})


@each_changes("part", ("model.ffn_weight_tying", "up.weight"), ("model.c_proj_weight_tying", "output.weight"))
def test_tied_in_all_blocks(make: Make, key: str, part: str) -> None:
    apart, together = make(), make({key: True})
    counts = [sum(part in name for name in shapes(made)) for made in (apart, together)]
    assert counts == [2, 1]
    assert sum("norm.weight" in name for name in shapes(together)) == 5


@changes("model.freeze_core")
def test_freeze_core(make_hf: Make) -> None:
    def trained(changes: dict[str, Any]) -> set[str]:
        parameters = own(make_hf(changes)).named_parameters()
        return {name.split("inner.")[-1] for name, parameter in parameters if parameter.requires_grad}

    assert trained({}) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert trained({"model.freeze_core": False}) > trained({})


@changes("model.model_string")
def test_model_string(make_hf: Make) -> None:
    import transformers

    made = make_hf()
    library = transformers.AutoModelForCausalLM.from_pretrained(made.config.model.name_or_path)  # pyright: ignore
    model, ids = own(made).eval(), torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids), library(ids).logits, atol=1e-5)
    assert made.run.tokenizer.decode(made.run.tokenizer.encode("the cat")) == "the cat"


@changes("model.flash_attention")
def test_flash(make: Make) -> None:
    assert make({"model.flash_attention": True}).config.model.attention.backend == "flash"  # pyright: ignore
    assert make({"model.flash_attention": False}).config.model.attention.backend == "auto"  # pyright: ignore


@changes("model.use_lora", "model.lora_targets")
def test_lora(make_hf: Make) -> None:
    pytest.importorskip("peft")
    made = make_hf({"model.use_lora": True, "model.lora_targets": ["q_proj"]})
    parameters = own(made).named_parameters()
    trained = {name: tuple(parameter.shape) for name, parameter in parameters if parameter.requires_grad}
    assert sorted(trained.values()) == [(8, 16), (16, 8)]
    assert all("q_proj" in name for name in trained)
    wider = make_hf({"model.use_lora": True, "model.lora_targets": ["q_proj", "v_proj"]})
    assert sum(parameter.requires_grad for parameter in own(wider).parameters()) == 4


def test_a_checkpoint_keeps_its_embedding_head_and_tokenizer(make_hf: Make) -> None:
    """A new embedding or head would have other ids than the checkpoint."""
    kept = "hf_core keeps the embedding, the head and the tokenizer of its checkpoint"
    for name in ("embedding_model_type", "lm_head_type"):
        assert kept in refused(make_hf, {f"model.{name}": "generic"})
    named = make_hf({"model.tokenizer_type": "gpt2"})
    assert named.config.tokenizer.kind == "huggingface"
    assert any("model.tokenizer_type: not read, because hf_embedder" in note for note in named.loaded.notes)


@each_changes("value", ("model.embedding_model_type", "hf_embedder"), ("model.lm_head_type", "hf_head"))
def test_a_part_of_hf_core(make: Make, key: str, value: str) -> None:
    assert "works with core_model_type: hf_core only" in refused(make, {key: value})


@changes("model.embedding_weight_tying")
def test_tied_embedding(make: Make) -> None:
    assert "head.weight" not in shapes(make())
    assert only_in(make({"model.embedding_weight_tying": False}), make()) == {"head.weight"}


@each_changes(
    "find bias",
    ("model.lm_head_normalization", lambda m: m.norm, "model.lm_head_bias"),
    ("model.ffn.normalization", lambda m: m.blocks[0].feedforward_norm, "model.ffn.bias"),
    ("model.attn.normalization", lambda m: m.blocks[0].attention_norm, "model.attn.bias"),
)
def test_the_norm_of_a_place(make: Make, key: str, find: Callable[[Any], Any], bias: str) -> None:
    """Only this norm changes, and it has the bias of its section."""
    x = torch.randn(3, 16) + 1
    rms, layer, none = (make({key: kind, bias: True}) for kind in ("rms_norm", "layer_norm", "none"))
    expected = [F.rms_norm(x, (16,), eps=1e-6), F.layer_norm(x, (16,), eps=1e-5), x]
    for made, values in zip((rms, layer, none), expected, strict=True):
        assert torch.allclose(find(own(made))(x), values, atol=1e-6)
    assert find(own(layer)).bias is not None
    assert find(own(make({key: "layer_norm"}))).bias is None
    assert sum(isinstance(module, nn.LayerNorm) for module in own(layer).modules()) < 5


@changes("model.norm_bias")
def test_norm_bias(make: Make) -> None:
    """It decides for both norms of each block, over the other biases; the head has its own bias."""
    layer = {f"model.{part}": "layer_norm" for part in ("attn.normalization", "ffn.normalization")}
    layer["model.lm_head_normalization"] = "layer_norm"
    norms = {"blocks.0.attention_norm.bias", "blocks.0.feedforward_norm.bias"}
    with_biases = shapes(make(layer | {"model.norm_bias": True})).keys()
    assert norms <= with_biases
    assert "norm.bias" not in with_biases
    without = shapes(make(layer | {"model.norm_bias": False, "model.attn.bias": True, "model.ffn.bias": True})).keys()
    assert not norms & without
    assert "blocks.0.attention.output.bias" in without


@each_changes(
    "count name",
    ("model.embedding_dropout", 1, "dropout"),
    ("model.lm_head_dropout", 1, "dropout"),
    ("model.ffn.ffn_dropout", 2, "feedforward_dropout"),
    ("model.attn.attn_dropout", 2, "attention.input_dropout"),
)
def test_one_dropout(make: Make, key: str, count: int, name: str) -> None:
    rates = dropouts(make({key: 0.25}))
    assert set(rates.values()) == {0.25}
    assert len(rates) == count
    assert all(module.endswith(name) for module in rates)
    assert not dropouts(make({key: False}))


@changes("model.positional_encoding_type")
def test_positions(make: Make) -> None:
    """Learned vectors are parameters; without positions bidirectional attention does not see the order of tokens."""

    def knows_order(kind: str) -> bool:
        made = make({"model.positional_encoding_type": kind, "model.attn.attn_type": "bidirectional"})
        model, ids = own(made).eval(), torch.arange(30, 38)[None]
        with torch.no_grad():
            return not torch.allclose(model(ids).flip(1), model(ids.flip(1)), atol=1e-5)

    assert [knows_order(kind) for kind in ("none", "rope", "sincos", "learned")] == [False, True, True, True]
    added = only_in(make({"model.positional_encoding_type": "learned"}), make())
    assert added == {"position.weight"}
    assert "position.weight" not in shapes(make({"model.positional_encoding_type": "sincos"}))


WIDE = {"model.ffn.ffn_dim": 2048}


def weight_std(made: Made) -> float:
    """Standard deviation of the weights of the first feed-forward layer."""
    return float(own(made).blocks[0].feedforward.up.weight.detach().std())


@changes("model.initialization_fn")
def test_initialization(make: Make) -> None:
    fan_in, fan_out = 16, 2048
    kaiming, xavier, none, null = (
        weight_std(make(WIDE | {"model.initialization_fn": kind})) for kind in ("kaiming", "xavier", "none", None)
    )
    assert kaiming == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
    assert xavier == pytest.approx(math.sqrt(2 / (fan_in + fan_out)), rel=0.02)
    assert none == null == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.02)


@changes("model.gain")
def test_gain(make: Make) -> None:
    one, two = (weight_std(make(WIDE | {"model.initialization_fn": "xavier", "model.gain": g})) for g in (1.0, 2.0))
    assert two == pytest.approx(2 * one, rel=1e-4)
    assert "is for initialization_fn: xavier" in refused(make, {"model.gain": 2.0})


@changes("model.mode")
def test_mode(make: Make) -> None:
    assert weight_std(make(WIDE | {"model.mode": "fan_out"})) == pytest.approx(math.sqrt(2 / 2048), rel=0.02)


@changes("model.nonlinearity")
def test_nonlinearity(make: Make) -> None:
    assert weight_std(make(WIDE | {"model.nonlinearity": "tanh"})) == pytest.approx(5 / 3 / math.sqrt(16), rel=0.02)
    assert weight_std(make(WIDE | {"model.nonlinearity": "linear"})) == pytest.approx(1 / math.sqrt(16), rel=0.02)


@changes("model.ffn.ffn_type")
def test_ffn_type(make: Make) -> None:
    made = make({"model.ffn.ffn_type": "silu_ffn"})
    ffn, x = own(made).blocks[0].feedforward, torch.randn(5, 16)
    assert torch.allclose(ffn(x), ffn.down(F.silu(ffn.gate(x)) * ffn.up(x)))
    assert only_in(made, make()) == {"0.feedforward.gate.weight", "1.feedforward.gate.weight"}


@changes("model.ffn.activation")
def test_activation(make: Make) -> None:
    x = torch.randn(5, 16)
    functions = {
        "gelu": F.gelu,
        "relu": F.relu,
        "leakyrelu": lambda x: F.leaky_relu(x, 0.01),
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "none": lambda x: x,
    }
    for name, function in functions.items():
        ffn = own(make({"model.ffn.activation": name})).blocks[0].feedforward
        assert torch.allclose(ffn(x), ffn.down(function(ffn.up(x))), atol=1e-6), name


def heads(make: Make, q: int | None, kv: int) -> tuple[int, int]:
    """Query heads and key heads of the model."""
    attention = own(make({"model.attn.num_q_heads": q, "model.attn.num_kv_heads": kv})).blocks[0].attention
    assert attention.qkv.weight.shape == ((attention.heads + 2 * attention.kv_heads) * 16 // attention.heads, 16)
    return attention.heads, attention.kv_heads


@changes("model.attn.num_kv_heads", "model.attn.num_q_heads")
def test_kv_heads(make: Make) -> None:
    assert heads(make, None, 4) == (4, 4)
    assert heads(make, 4, 2) == (4, 2)
    assert heads(make, 2, 4) == (4, 2)  # STLM's own files have them swapped
    assert "does not divide" in refused(make, {"model.attn.num_q_heads": 4, "model.attn.num_kv_heads": 3})


@changes("model.attn.group_size")
def test_group_size(make: Make) -> None:
    assert heads(make, 4, 4) == (4, 4)
    without = make({"model.attn.num_heads": 4, "model.attn.group_size": 4}, without=["model.attn.num_kv_heads"])
    assert (own(without).blocks[0].attention.heads, own(without).blocks[0].attention.kv_heads) == (4, 1)
    assert "does not divide the 2 heads" in refused(make, {"model.attn.group_size": 3})


@changes("model.attn.is_causal")
def test_is_causal(make: Make) -> None:
    generic = {"model.attn.attn_type": "generic"}
    assert not sees_later_tokens(make(generic | {"model.attn.is_causal": True}))
    assert sees_later_tokens(make(generic | {"model.attn.is_causal": False}))
    assert "contradicts" in refused(make, {"model.attn.is_causal": False})


@changes("model.attn.attn_type")
def test_attn_type(make: Make) -> None:
    assert not sees_later_tokens(make())
    both = make({"model.attn.attn_type": "bidirectional"})
    assert sees_later_tokens(both)
    assert any("next_token_mlm hides" in note for note in both.loaded.notes)


@each_changes(
    "value name expected",
    ("model.hidden_dim", 32, "embedding.weight", (300, 32)),
    ("model.ffn.ffn_dim", 515, "blocks.0.feedforward.up.weight", (515, 16)),
)
def test_a_size(make: Make, key: str, value: int, name: str, expected: tuple[int, ...]) -> None:
    assert shapes(make({key: value}))[name] == expected


@each_changes(
    "expected",
    ("model.ffn.bias", {"feedforward.up.bias", "feedforward.down.bias"}),
    ("model.attn.bias", {"attention.qkv.bias", "attention.output.bias"}),
)
def test_biases(make: Make, key: str, expected: set[str]) -> None:
    assert {name.split(".", 1)[-1] for name in only_in(make({key: True}), make())} == expected


@changes("model.attn.head_dim")
def test_head_dim(make: Make) -> None:
    assert make({"model.attn.head_dim": 6}).config.model.attention.head_dim == 6  # pyright: ignore


@changes("model.num_layers")
def test_num_layers(make: Make) -> None:
    assert len(own(make({"model.num_layers": 3})).blocks) == 3


@changes("model.lm_head_bias")
def test_lm_head_bias(make: Make) -> None:
    assert only_in(make({"model.lm_head_bias": True}), make()) == {"head.bias"}
