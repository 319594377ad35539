"""Floating-point operations of models of the transformers library against PyTorch's own counter on a real run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import causal_kinds
from torch.utils.flop_counter import FlopCounterMode

from quintet.config.model import HuggingFaceConfig
from quintet.errors import UserError
from quintet.model.cache import Abilities
from quintet.model.hf import loading
from quintet.model.hf.count import check_numbers, count_pretrained, pretrained_flops
from quintet.model.hf.loading import build_pretrained

transformers = pytest.importorskip("transformers")

ROWS, LENGTH = 96, 24
# By all the names that families have for sizes; what a family does not know it leaves alone.
SMALL: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "num_key_value_heads": 4,
    "head_dim": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 24,
    "v_head_dim": 20,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CHOSEN: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "bloom": {},
    "deepseek_v3": LATENT,  # heads of two widths
    "minicpm3": LATENT,
    "aria_text": {"moe_num_experts": 4, "moe_topk": 3, "moe_num_shared_experts": 1},  # experts by another name
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 24},
    "mixtral": EXPERTS,
    "gpt_oss": EXPERTS | {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8},
    "gemma2": {"sliding_window": 7},
    "granite": {},
    "phi3": {},
    "olmo2": {},
    "cohere2": {"layer_types": ["full_attention", "sliding_attention"]},
    # Their weights are drawn where no device is told, tokens are split by numbers, and experts are found by them.
    "diffllama": {},
    "jetmoe": EXPERTS,
    "longcat_flash": LATENT | {"moe_topk": 2, "zero_expert_num": 0, "expert_ffn_hidden_size": 16, "num_layers": 2},
    "mamba": {"state_size": 4, "time_step_rank": 4},  # no attention at all
}


@pytest.fixture(autouse=True)
def _no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial of each model takes longer than the test, and its result changes no count."""
    monkeypatch.setattr(loading, "find_abilities", lambda *_, **__: Abilities())


def described(folder: Path, kind: str, settings: dict[str, Any], **keys: Any) -> HuggingFaceConfig:
    transformers.AutoConfig.for_model(kind, **SMALL | settings).save_pretrained(folder)
    return HuggingFaceConfig(kind="huggingface", name_or_path=str(folder), pretrained=False, **keys)


def counted(config: HuggingFaceConfig, length: int) -> tuple[float, float]:
    """The FLOPs per token of a real run by PyTorch's counter."""
    model = build_pretrained(config, ROWS, length, seed=0).eval()
    # Fused kernels and grouped products are not in the counter's table; loops of plain products are.
    for choose in (model.causal.set_attn_implementation, model.causal.set_experts_implementation):
        with contextlib.suppress(ValueError):
            choose("eager")
    with FlopCounterMode(display=False) as forward:
        logits = model(torch.arange(length)[None] * 7 % ROWS)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    return forward.get_total_flops() / length, backward.get_total_flops() / length


@pytest.mark.parametrize("kind", list(CHOSEN))
def test_operations_are_those_that_pytorch_counts(kind: str, tmp_path: Path) -> None:
    config = described(tmp_path, kind, CHOSEN[kind])
    found = pretrained_flops(config, ROWS, LENGTH, LENGTH)
    assert (found.forward, found.backward) == pytest.approx(counted(config, LENGTH), abs=1)
    assert found.note is None


def test_experts_that_compute_nothing_cost_nothing(tmp_path: Path) -> None:
    config = described(tmp_path / "all", "longcat_flash", CHOSEN["longcat_flash"])
    some = described(tmp_path / "some", "longcat_flash", CHOSEN["longcat_flash"] | {"zero_expert_num": 4})
    full, half = (pretrained_flops(one, ROWS, LENGTH, LENGTH).forward for one in (config, some))
    router, expert = (
        2 * 4 * 32,
        2 * 3 * 32 * 16,
    )  # of 2 chosen experts one does nothing, and the router is twice as wide
    assert full - half == expert - router


def test_a_model_without_an_end_of_positions_is_laid_out() -> None:
    config = HuggingFaceConfig(kind="huggingface", name_or_path="xlnet", pretrained=False, config={"n_layer": 1})
    assert count_pretrained(config, 200, 100_000).total > 10_000_000


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3", "aria_text", "jetmoe", "longcat_flash"])
def test_a_long_sequence_is_counted_from_two_short_ones(kind: str, tmp_path: Path) -> None:
    config = described(tmp_path, kind, CHOSEN[kind])
    found = pretrained_flops(config, ROWS, 900, 900)
    assert (found.forward, found.backward) == pytest.approx(counted(config, 900), abs=1)


@pytest.mark.parametrize("keys", [{"lora": {"rank": 3}}, {"freeze": "core"}, {"gradient_checkpointing": True}])
def test_what_is_frozen_or_computed_again_is_known(keys: dict[str, Any], tmp_path: Path) -> None:
    config = described(tmp_path, "llama", {}, **keys)
    expected = counted(config.model_copy(update={"gradient_checkpointing": False}), LENGTH)
    found = pretrained_flops(config, ROWS, LENGTH, LENGTH)
    assert (found.forward, found.backward) == pytest.approx(expected, abs=1)


def test_a_model_that_cannot_be_traced_counts_by_its_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = described(tmp_path, "llama", {"tie_word_embeddings": True})
    traced = pretrained_flops(config, ROWS, 64, LENGTH)

    def fail(*_: object) -> None:
        raise NotImplementedError("nonzero")

    monkeypatch.setattr("quintet.model.hf.count._traced", fail)
    found = pretrained_flops(config, ROWS, 65, LENGTH)
    assert found.note == (
        "counted from the matrices of LlamaForCausalLM, attention left out: what it does depends on numbers in the text"
    )
    attention = 2 * 2 * 2 * 4 * 8 * LENGTH
    assert (found.forward + attention, found.backward + 2 * attention) == (traced.forward, traced.backward)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_operations_are_those_that_pytorch_counts_in_every_architecture(tmp_path: Path) -> None:
    wrong, by_matrices, tried = {}, set(), 0
    for kind in causal_kinds():
        try:
            config = described(tmp_path / kind, kind, SMALL | EXPERTS | CHOSEN.get(kind, {}))
            if count_pretrained(config, ROWS, LENGTH).total > 5_000_000:
                continue  # it has its sizes by other names
            expected = counted(config, LENGTH)
        except Exception:  # it is not built from these settings, which each type says in its own way
            continue
        tried += 1
        found = pretrained_flops(config, ROWS, LENGTH, LENGTH)
        if found.note is not None:
            by_matrices.add(kind)
        elif (found.forward, found.backward) != pytest.approx(expected, rel=2e-4, abs=1):
            wrong[kind] = (found.forward / expected[0], found.backward / max(expected[1], 1))
    assert tried > 40
    assert not wrong
    assert by_matrices <= {"blt"}  # where it cuts a text into patches depends on the text


TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 300}
GPT2 = {"n_embd": 32, "n_head": 2, "n_layer": 1, "vocab_size": 300}


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("llama", {**TINY, "num_attention_heads": 2}, "num_attention_heads: 2, num_key_value_heads: 32"),
        ("mistral", {**TINY, "num_attention_heads": 2}, "num_attention_heads: 2, num_key_value_heads: 8"),
        ("mixtral", {**TINY, "num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads: 3"),
        ("gemma", {**TINY, "num_attention_heads": 6, "num_key_value_heads": 4, "head_dim": 8}, "head_dim: 8"),
        ("llama", {**TINY, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 15}, "even rotary"),
        ("llama", {**TINY, "num_attention_heads": 3, "num_key_value_heads": 3}, "not a multiple"),
        ("gpt2", {**GPT2, "n_head": 3}, "divisible"),
    ],
)
def test_numbers_that_do_not_fit_one_another_are_refused(kind: str, keys: dict[str, Any], message: str) -> None:
    config = HuggingFaceConfig(kind="huggingface", name_or_path=kind, pretrained=False, config=keys)
    # At check without numbers, and where the model is built and read.
    for look in (lambda: check_numbers(config), lambda: build_pretrained(config, 256, 16, seed=0)):
        with pytest.raises(UserError, match=f"^model.config: {kind} .*{message}") as refused:
            look()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("llama", {**TINY, "num_attention_heads": 4, "num_key_value_heads": 1}),
        ("gemma", {**TINY, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8}),
        ("mixtral", {**TINY, "num_attention_heads": 4, "num_key_value_heads": 2}),
        ("gpt2", GPT2),
        ("deepseek_v3", {**TINY, "num_attention_heads": 2}),  # its heads of keys are not those of its configuration
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 300}),
    ],
)
def test_numbers_that_fit_one_another_are_accepted(kind: str, keys: dict[str, Any]) -> None:
    check_numbers(HuggingFaceConfig(kind="huggingface", name_or_path=kind, pretrained=False, config=keys))
