"""Logits, greedy texts and beams of the same weights in Hugging Face's own Llama and GPT-2."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quintet.config.model import TransformerConfig
from quintet.model import Transformer, build_model
from quintet.model.generate import GenerationSettings, beam_search, generate

VOCAB, CONTEXT = 61, 48
WIDTH, HEADS, LAYERS, HIDDEN = 32, 4, 3, 56


def llama(kv_heads: int, tied: bool) -> tuple[torch.nn.Module, Transformer]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(kv_heads)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=kv_heads,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=1e-6,
            initializer_range=0.3 if tied else 0.2,  # enough for texts that do not repeat one token
            tie_word_embeddings=tied,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    config = TransformerConfig.model_validate(
        {
            "layers": LAYERS,
            "width": WIDTH,
            "attention": {"heads": HEADS, "kv_heads": kv_heads},
            "feedforward": {"kind": "gated", "width": HIDDEN},
            "norm": {"kind": "rms", "eps": 1e-6},
            "tie_embeddings": tied,
        }
    )
    state = {name.removeprefix("model."): value for name, value in theirs.state_dict().items()}
    mapped = {"embedding.weight": state["embed_tokens.weight"], "norm.weight": state["norm.weight"]}
    if not tied:
        mapped["head.weight"] = state["lm_head.weight"]
    for layer in range(LAYERS):
        old, new = f"layers.{layer}.", f"blocks.{layer}."
        projections = [state[f"{old}self_attn.{name}_proj.weight"] for name in "qkv"]
        mapped[f"{new}attention.qkv.weight"] = torch.cat(projections)
        mapped[f"{new}attention.output.weight"] = state[f"{old}self_attn.o_proj.weight"]
        mapped[f"{new}attention_norm.weight"] = state[f"{old}input_layernorm.weight"]
        mapped[f"{new}feedforward_norm.weight"] = state[f"{old}post_attention_layernorm.weight"]
        for name in ("gate", "up", "down"):
            mapped[f"{new}feedforward.{name}.weight"] = state[f"{old}mlp.{name}_proj.weight"]
    return theirs, with_weights(config, mapped)


def gpt2() -> tuple[torch.nn.Module, Transformer]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=CONTEXT,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)  # they start at zero, which would hide a lost one
        theirs.transformer.wpe.weight.mul_(4)  # so that a greedy text does not repeat one token for ever
    config = TransformerConfig.model_validate(
        {
            "layers": LAYERS,
            "width": WIDTH,
            "attention": {"heads": HEADS, "bias": True},
            "feedforward": {"kind": "plain", "activation": "gelu_tanh", "bias": True},
            "norm": {"kind": "layer"},
            "position": {"kind": "learned"},
        }
    )
    state = {name.removeprefix("transformer."): value for name, value in theirs.state_dict().items()}
    names = {
        "ln_1": "attention_norm",
        "ln_2": "feedforward_norm",
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.output",
        "mlp.c_fc": "feedforward.up",
        "mlp.c_proj": "feedforward.down",
    }
    mapped = {"embedding.weight": state["wte.weight"], "position.weight": state["wpe.weight"]}
    for leaf in ("weight", "bias"):
        mapped[f"norm.{leaf}"] = state[f"ln_f.{leaf}"]
        for layer in range(LAYERS):
            for old, new in names.items():
                # Conv1D keeps its matrices the other way round.
                mapped[f"blocks.{layer}.{new}.{leaf}"] = state[f"h.{layer}.{old}.{leaf}"].t()
    return theirs, with_weights(config, mapped)


def with_weights(config: TransformerConfig, state: dict[str, Tensor]) -> Transformer:
    model = build_model(config, VOCAB, CONTEXT, seed=0)
    model.load_state_dict(state)
    return model.eval()


PAIRS = {
    "llama": lambda: llama(HEADS, tied=False),
    "llama grouped": lambda: llama(2, tied=True),
    "llama multi-query": lambda: llama(1, tied=False),
    "gpt2": gpt2,
}


@pytest.fixture(scope="module", params=list(PAIRS))
def pair(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, Transformer]:
    pytest.importorskip("transformers")
    return PAIRS[request.param]()


def prompt(seed: int, length: int) -> list[int]:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def written_by(theirs: torch.nn.Module, ids: list[int], **settings) -> list[int]:
    inputs = torch.tensor([ids])
    mask = torch.ones_like(inputs)
    out = theirs.generate(inputs, attention_mask=mask, do_sample=False, pad_token_id=0, **settings)  # pyright: ignore
    return out[0, len(ids) :].tolist()


@torch.no_grad()
def test_logits_are_theirs(pair) -> None:
    theirs, ours = pair
    ids = torch.tensor([prompt(0, CONTEXT), prompt(1, CONTEXT)])
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_gradients_are_theirs(pair) -> None:
    theirs, ours = pair
    ids = torch.tensor([prompt(0, CONTEXT)])
    weight = torch.randn(1, CONTEXT, VOCAB, generator=torch.Generator().manual_seed(2))
    expected = torch.autograd.grad((theirs(ids).logits * weight).sum(), theirs.get_input_embeddings().weight)[0]
    found = torch.autograd.grad((ours(ids) * weight).sum(), ours.embedding.weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_texts_are_theirs(pair, seed: int) -> None:
    theirs, ours = pair
    ids = prompt(seed, 5)
    settings = GenerationSettings(max_tokens=20, temperature=0.0)
    found = list(generate(ours, ids, settings, end_id=None))
    assert found == written_by(theirs, ids, max_new_tokens=20)
    assert len(set(found)) > 3  # a text that repeats one token would say little


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [1, 3, 5])
def test_beams_are_theirs(pair, beams: int, length_penalty: float) -> None:
    theirs, ours = pair
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
        assert beam_search(ours, ids, beams, 12, end, length_penalty) == expected
    assert ends or beams > 1
