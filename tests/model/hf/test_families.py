"""The families of Hugging Face's models against their own classes, with random weights, in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quintet.config.generation import GenerationSettings
from quintet.config.model import TransformerConfig
from quintet.model import Transformer, build_model
from quintet.model.generate import beam_search, generate
from quintet.model.hf.files import find_checkpoint, read_config
from quintet.model.hf.settings import model_section
from quintet.model.hf.weights import export_weights, pretrained_weights

transformers = pytest.importorskip("transformers")

VOCAB, CONTEXT, LAYERS = 61, 48, 3
NO_SPECIAL_IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SIZES: dict[str, Any] = NO_SPECIAL_IDS | {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
GPT2: dict[str, Any] = NO_SPECIAL_IDS | {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": CONTEXT,
}
UNCAPPED = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "query_pre_attn_scalar": 20}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **more}}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "gpt2 unlike": ("gpt2", GPT2 | {"n_inner": 40, "activation_function": "relu", "tie_word_embeddings": False}),
    "llama": ("llama", SIZES),
    "llama unlike": (
        "llama",
        SIZES | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 16},
    ),
    "llama 3.1": (
        "llama",
        SIZES
        | rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    ),
    "llama linear": ("llama", SIZES | rope("linear", factor=4.0)),
    "llama yarn": ("llama", SIZES | rope("yarn", factor=4.0, original_max_position_embeddings=12)),
    "mistral": ("mistral", SIZES | {"sliding_window": None}),
    "mistral window": ("mistral", SIZES | {"sliding_window": 7}),
    "qwen2": ("qwen2", SIZES),
    "qwen2 window": ("qwen2", SIZES | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}),
    "qwen3": ("qwen3", SIZES | {"head_dim": 16}),
    "phi": ("phi", SIZES),
    "gemma": ("gemma", SIZES | {"head_dim": 16}),
    "gemma2": ("gemma2", SIZES | UNCAPPED | {"head_dim": 16, "layer_types": ["full_attention"] * LAYERS}),
    "gemma2 window": (
        "gemma2",
        SIZES | UNCAPPED | {"sliding_window": 9, "layer_types": ["sliding_attention"] * LAYERS},
    ),
    "olmo": ("olmo", SIZES),
    "olmo2": ("olmo2", SIZES),
}
BOTH_FIT = {"mistral": "llama"}
"""The family that an export names for a model of two families."""


def made(kind: str, settings: dict[str, Any], folder: Path) -> Any:
    """A model of the library with changed gains and biases, saved in ``folder``."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 0.1))
    model.generation_config.update(**NO_SPECIAL_IDS)
    model.save_pretrained(folder)
    return model


def imported(folder: Path) -> Transformer:
    config = TransformerConfig.model_validate(model_section(read_config(find_checkpoint(str(folder))), str(folder)))
    assert config.vocab_size is not None
    assert config.context_length is not None
    start = pretrained_weights(str(folder), config, config.vocab_size, config.context_length)
    assert not start.notes
    return build_model(config, config.vocab_size, config.context_length, seed=0, weights=start.weights).eval()  # pyright: ignore


@pytest.fixture(scope="module", params=list(FAMILIES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Transformer]:
    folder = tmp_path_factory.mktemp("checkpoint")
    theirs = made(*FAMILIES[request.param], folder)
    return request.param, theirs, imported(folder)


def prompt(seed: int, length: int) -> list[int]:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def written_by(theirs: Any, ids: list[int], **settings: Any) -> list[int]:
    inputs = torch.tensor([ids])
    out = theirs.generate(inputs, attention_mask=torch.ones_like(inputs), do_sample=False, pad_token_id=0, **settings)
    return out[0, len(ids) :].tolist()


def their_logits(theirs: Any, ids: Tensor) -> Tensor:
    return theirs(ids, use_cache=False).logits


def assert_equal_to_1e5(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item()))


@torch.no_grad()
def test_imported_logits_are_theirs(pair) -> None:
    _, theirs, ours = pair
    ids = torch.tensor([prompt(0, CONTEXT), prompt(1, CONTEXT)])
    assert_equal_to_1e5(ours(ids), their_logits(theirs, ids))


def test_imported_parameters_are_as_many(pair) -> None:
    _, theirs, ours = pair
    assert sum(parameter.numel() for parameter in ours.parameters()) == theirs.num_parameters()


def test_gradients_are_theirs(pair) -> None:
    _, theirs, ours = pair
    ids = torch.tensor([prompt(0, CONTEXT)])
    weight = torch.randn(1, CONTEXT, VOCAB, generator=torch.Generator().manual_seed(2))
    expected = torch.autograd.grad((their_logits(theirs, ids) * weight).sum(), theirs.get_input_embeddings().weight)[0]
    found = torch.autograd.grad((ours(ids) * weight).sum(), ours.embedding.weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_greedy_texts_are_theirs_side_by_side(pair) -> None:
    _, theirs, ours = pair
    prompts = [prompt(seed, length) for seed, length in ((0, 5), (1, 11), (2, 2))]
    steps = list(generate(ours, prompts, GenerationSettings(max_tokens=30, temperature=0.0)))
    for row, ids in enumerate(prompts):
        found = [step[row] for step in steps]
        assert found == written_by(theirs, ids, max_new_tokens=30)
    assert len({token for step in steps for token in step}) > 2  # texts that repeat one token would say little


@torch.no_grad()
def test_exported_logits_are_ours(pair) -> None:
    name, theirs, ours = pair
    found = export_weights(ours, NO_SPECIAL_IDS)
    assert not isinstance(found, list)
    assert found.config.model_type == BOTH_FIT.get(name, FAMILIES[name][0])
    ids = torch.tensor([prompt(3, CONTEXT)])
    assert_equal_to_1e5(their_logits(loaded(found), ids), ours(ids))
    if name not in BOTH_FIT:
        for key, value in found.tensors.items():
            torch.testing.assert_close(value, theirs.state_dict()[key], rtol=0, atol=1e-6)


def loaded(exported: Any) -> Any:
    """The library's model with the exported weights; missing ones are tied to others."""
    model = transformers.AutoModelForCausalLM.from_config(exported.config, attn_implementation="eager").eval()
    found = model.load_state_dict(exported.tensors, strict=False)
    assert not found.unexpected_keys
    assert found.missing_keys in ([], ["lm_head.weight"])
    assert not found.missing_keys or exported.config.tie_word_embeddings
    return model


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [1, 3, 5])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_beams_are_theirs(name: str, beams: int, length_penalty: float, tmp_path: Path) -> None:
    theirs = made(*FAMILIES[name], tmp_path)
    ours = imported(tmp_path)
    ends = 0
    for seed in range(3):
        ids = prompt(seed, 4)
        end = written_by(theirs, ids, max_new_tokens=8)[4]  # an end that the search may well meet
        settings = {"num_beams": beams, "eos_token_id": end, "max_new_tokens": 12, "early_stopping": False}
        if beams > 1:
            settings["length_penalty"] = length_penalty
        expected = written_by(theirs, ids, **settings)
        expected = expected[: expected.index(end)] if end in expected else expected
        ends += len(expected) < 12
        assert beam_search(ours, ids, beams, 12, {end}, length_penalty) == expected
    assert ends or beams > 1


NATIVE: dict[str, tuple[dict[str, Any], str]] = {
    "defaults": ({}, "llama"),
    "neighbours turn together": ({"position": {"pairs": "interleaved"}}, "llama"),
    "neighbours, with a norm of heads": (
        {"position": {"pairs": "interleaved"}, "attention": {"heads": 4, "kv_heads": 2, "qk_norm": "head"}},
        "qwen3",
    ),
    "neighbours, with a norm of all heads": (
        {
            "block": "output_norm",
            "position": {"pairs": "interleaved"},
            "attention": {"heads": 4, "kv_heads": 2, "qk_norm": "projection"},
        },
        "olmo2",
    ),
    "neighbours, biases, a part of each head": (
        {
            "block": "parallel",
            "position": {"pairs": "interleaved", "fraction": 0.5},
            "attention": {"heads": 4, "bias": True},
            "feedforward": {"kind": "plain", "bias": True},
            "norm": {"kind": "layer"},
            "head": {"bias": True},
        },
        "phi",
    ),
    "shared parts": ({"tie_feedforward": True, "tie_attention_output": True, "tie_embeddings": False}, "llama"),
    "padded vocabulary": ({"pad_vocab_size_multiple": 16}, "llama"),
    "a larger theta": ({"position": {"scaling": {"kind": "ntk", "factor": 4}}}, "llama"),
    "documents": ({"attention": {"heads": 4, "mask": "causal_document", "restart_positions": True}}, "llama"),
    "squared relu": ({"feedforward": {"activation": "relu2"}}, "llama"),
}


def native(section: dict[str, Any]) -> Transformer:
    values = {"layers": LAYERS, "width": 32, "attention": {"heads": 4}, "init": {"std": 0.2}} | section
    model = build_model(TransformerConfig.model_validate(values), VOCAB, CONTEXT, seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.2
                )
    assert isinstance(model, Transformer)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", list(NATIVE))
def test_a_model_of_ours_is_exported_as_what_computes_the_same(name: str) -> None:
    section, family = NATIVE[name]
    model = native(section)
    found = export_weights(model, NO_SPECIAL_IDS)
    assert not isinstance(found, list)
    assert found.config.model_type == family
    assert found.config.vocab_size == VOCAB
    ids = torch.tensor([prompt(0, CONTEXT), prompt(1, CONTEXT)])
    documents = torch.zeros_like(ids)
    assert_equal_to_1e5(their_logits(loaded(found), ids), model(ids, documents=documents))


@pytest.mark.parametrize(
    ("section", "obstacle"),
    [
        ({"block": "post_norm"}, "model.block: post_norm here, pre_norm in llama"),
        ({"attention": {"kind": "bidirectional", "heads": 4}}, "model.attention.kind: bidirectional here"),
        ({"attention": {"mask": "prefix", "heads": 4}}, "model.attention.mask: prefix here, causal in llama"),
        ({"position": {"kind": "sinusoidal"}}, "model.position.kind: sinusoidal here, rope in llama"),
        ({"position": {"learned": True}}, "model.position.learned: True here, False in llama"),
        ({"position": {"fraction": 0.5}}, "model.position.fraction: 0.5 here, 1.0 in llama"),
        ({"embedding_scale": 2.0}, "model.embedding_scale: 2.0 here, 1.0 in llama"),
        ({"norm": {"kind": "layer"}}, "model.attention.norm.kind: layer here"),
    ],
)
def test_what_keeps_a_model_from_every_family_is_said(section: dict[str, Any], obstacle: str) -> None:
    found = export_weights(native(section), NO_SPECIAL_IDS)
    assert isinstance(found, list)
    assert any(line.startswith(obstacle) for line in found), found


def start(folder: Path, change: dict[str, Any], rows: int = VOCAB, context: int = CONTEXT) -> Any:
    section = model_section(read_config(folder), str(folder))
    for part, value in change.items():
        section[part] = section.get(part, {}) | value if isinstance(value, dict) else value
    return pretrained_weights(str(folder), TransformerConfig.model_validate(section), rows, context)
