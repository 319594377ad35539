from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import REPOSITORY
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from quintet.config.model import TransformerConfig
from quintet.model.count import count_parameters, flops_per_token
from quintet.model.transformer import Transformer


@st.composite
def configs(draw: st.DrawFn) -> TransformerConfig:
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    norm = draw(
        st.sampled_from([{"kind": "rms"}, {"kind": "layer"}, {"kind": "layer", "bias": False}, {"kind": "none"}])
    )
    booleans = st.booleans()
    values: dict[str, Any] = {
        "layers": draw(st.integers(1, 3)),
        "width": draw(st.integers(1, 40)),
        "attention": {
            "heads": kv_heads * group,
            "kv_heads": kv_heads,
            "head_dim": 2 * draw(st.integers(1, 6)),
            "bias": draw(booleans),
            "output_bias": draw(st.sampled_from([None, True, False])),
            "qk_norm": draw(st.sampled_from(["none", "head", "projection"] if norm["kind"] != "none" else ["none"])),
            "norm": draw(st.sampled_from([{"kind": "model"}, norm, {"kind": "rms", "gain": False}])),
        },
        "feedforward": {
            "kind": draw(st.sampled_from(["gated", "plain"])),
            "width": draw(st.sampled_from([None, 1, 24])),
            "bias": draw(booleans),
        },
        "norm": norm,
        "position": draw(
            st.sampled_from(
                [
                    {"kind": "rope"},
                    {"kind": "rope", "learned": True},
                    {"kind": "learned"},
                    {"kind": "sinusoidal"},
                    {"kind": "none"},
                ]
            )
        ),
        "block": draw(st.sampled_from(["pre_norm", "post_norm", "output_norm", "sandwich_norm", "parallel"])),
        "pad_vocab_size_multiple": draw(st.sampled_from([1, 8])),
        "tie_embeddings": draw(booleans),
        "tie_feedforward": draw(booleans),
        "tie_attention_output": draw(booleans),
        "head": {"bias": draw(booleans)},
    }
    if draw(booleans):
        values |= {"layers": draw(st.integers(2, 5)), "sharing": draw(sharing()), "tie_feedforward": False}
        values["tie_attention_output"] = False
        free = values["layers"] - 2
        values["sharing"]["first_blocks"] = first = draw(st.integers(0, free))
        values["sharing"]["last_blocks"] = draw(st.integers(0, free - first))
    for end in ("embedding", "head"):
        if draw(st.integers(0, 3)) == 0:
            heads = draw(st.integers(1, 3))
            values[end] = {"kind": "bytes", "bytes": draw(st.integers(4, 6)), "heads": heads}
            values[end] |= {"width": heads * draw(st.integers(1, 4)), "layers": draw(st.integers(1, 3))}
            values["tie_embeddings"] = False
    return TransformerConfig.model_validate(values)


@st.composite
def sharing(draw: st.DrawFn) -> dict[str, Any]:
    parts = draw(st.permutations(["feedforward", "attention_qkv", "attention_output"]))
    cut, end = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    return {
        "same": parts[: min(cut, end)] if cut or end else parts[:1],
        "low_rank": parts[min(cut, end) : max(end, cut + 1)],
        "rank": draw(st.integers(1, 3)),
        "alpha": draw(st.sampled_from([None, 2.0])),
        "bias": draw(st.booleans()),
    }


def on_meta(config: TransformerConfig, vocab_size: int, context_length: int) -> Transformer:
    with torch.device("meta"):
        return Transformer(config, vocab_size, context_length).to("meta")


@settings(max_examples=60)
@given(configs(), st.integers(1, 50), st.integers(2, 50))
def test_parameters_are_those_of_the_model(config: TransformerConfig, vocab_size: int, context_length: int) -> None:
    model = on_meta(config, vocab_size, context_length)
    count = count_parameters(config, vocab_size, context_length)
    assert count.total == sum(p.numel() for p in model.parameters())
    assert count.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count.embedding == sum(
        p.numel() for n, p in model.named_parameters() if n.startswith("embedding.") or n == "position.weight"
    )


def test_gpt2_small_has_its_124_million_parameters() -> None:
    config = TransformerConfig.model_validate(
        {
            "layers": 12,
            "width": 768,
            "attention": {"heads": 12, "bias": True},
            "feedforward": {"kind": "plain", "bias": True},
            "norm": {"kind": "layer"},
            "position": {"kind": "learned"},
        }
    )
    assert count_parameters(config, 50257, 1024).total == 124_439_808


def test_llama_2_7b_has_its_parameters() -> None:
    config = TransformerConfig.model_validate(
        {
            "layers": 32,
            "width": 4096,
            "attention": {"heads": 32},
            "feedforward": {"kind": "gated", "width": 11008},
            "tie_embeddings": False,
        }
    )
    assert count_parameters(config, 32000, 4096).total == 6_738_415_616


def counted(model: Transformer, batch: int, length: int) -> tuple[int, int]:
    """Forward and backward FLOPs of one training step by PyTorch's own counter, with the unfused attention."""
    ids = torch.zeros(batch, length, dtype=torch.long, device=model.device)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = model(ids).sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@settings(max_examples=30)
@given(configs(), st.integers(2, 50), st.integers(1, 3), st.integers(2, 16))
def test_flops_are_those_that_pytorch_counts(
    config: TransformerConfig, vocab_size: int, batch: int, length: int
) -> None:
    flops = flops_per_token(config, vocab_size, length)
    forward, backward = counted(on_meta(config, vocab_size, length), batch, length)
    assert (flops.forward * batch * length, flops.backward * batch * length) == (forward, backward)
    assert flops.total * batch * length == forward + backward


@pytest.mark.parametrize(
    ("kind", "kv_heads", "tied"), list(itertools.product(["gated", "plain"], [4, 1], [True, False]))
)
def test_flops_on_the_cpu_are_those_that_pytorch_counts(kind: str, kv_heads: int, tied: bool) -> None:
    """On a real device, on which PyTorch chooses the kernel of a product."""
    config = TransformerConfig.model_validate(
        {
            "layers": 2,
            "width": 16,
            "attention": {"heads": 4, "kv_heads": kv_heads},
            "feedforward": {"kind": kind},
            "tie_embeddings": tied,
        }
    )
    model = Transformer(config, 20, 12)
    flops = flops_per_token(config, 20, 12)
    forward, backward = counted(model, 3, 12)
    assert (flops.forward * 36, flops.backward * 36) == (forward, backward)


def test_the_shapes_in_the_guide_have_the_parameters_that_it_says() -> None:
    text = (REPOSITORY / "docs/guide/model.md").read_text(encoding="utf-8")
    snippets = re.findall(r"with ([\d,]+) parameters:\n\n```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) == 2
    for count, snippet in snippets:
        config = TransformerConfig.model_validate(yaml.safe_load(snippet)["model"])
        assert config.vocab_size is not None
        assert config.context_length is not None
        total = count_parameters(config, config.vocab_size, config.context_length).total
        assert total == int(count.replace(",", ""))
