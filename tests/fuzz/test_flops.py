"""Parameters and floating-point operations of our own transformer against the model itself and PyTorch's counter."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from quintet.config.model import TransformerConfig
from quintet.model import build_model
from quintet.model.count import count_parameters, flops_per_token

FLAG = st.booleans()
NORM = st.one_of(
    st.fixed_dictionaries({"kind": st.just("rms"), "gain": FLAG}),
    st.fixed_dictionaries({"kind": st.just("layer"), "gain": FLAG, "bias": FLAG}),
    st.just({"kind": "none"}),
)
POSITION = st.one_of(
    st.fixed_dictionaries({"kind": st.just("rope"), "pairs": st.sampled_from(["halves", "interleaved"])}),
    st.sampled_from([{"kind": "learned"}, {"kind": "sinusoidal"}, {"kind": "none"}]),
)


@st.composite
def sections(draw: st.DrawFn) -> dict[str, Any]:
    """A `model` section: every part in every kind, sizes small and uneven."""
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    heads = kv_heads * draw(st.sampled_from([1, 2]))
    head_dim = draw(st.sampled_from([2, 4, 6, 10]))
    width = heads * head_dim if draw(FLAG) else draw(st.integers(1, 9)) * 2
    attention = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "bias": draw(FLAG)}
    attention |= {"output_bias": draw(FLAG), "qk_norm": draw(st.sampled_from(["none", "head", "projection"]))}
    attention["kind"] = draw(st.sampled_from(["causal", "causal", "bidirectional"]))
    return {
        "layers": draw(st.integers(1, 3)),
        "width": width,
        "block": draw(st.sampled_from(["pre_norm", "post_norm", "parallel", "sandwich_norm", "output_norm"])),
        "attention": attention,
        "feedforward": {
            "kind": draw(st.sampled_from(["gated", "plain"])),
            "bias": draw(FLAG),
            "width": draw(st.integers(1, 21)),
        },
        "norm": draw(NORM),
        "position": draw(POSITION),
        "head": {"bias": draw(FLAG)},
        "tie_embeddings": draw(FLAG),
        "tie_feedforward": draw(FLAG),
        "tie_attention_output": draw(FLAG),
        "pad_vocab_size_multiple": draw(st.sampled_from([1, 8])),
    }


@given(sections(), st.integers(2, 40), st.integers(1, 2), st.integers(2, 17), st.integers(0, 1))
@example({"layers": 1, "width": 8, "attention": {"heads": 2, "head_dim": 10}}, 7, 1, 5, 1)
def test_counts_are_those_of_the_model_and_of_pytorch(
    section: dict[str, Any], vocab_size: int, batch: int, length: int, extra_rows: int
) -> None:
    try:
        config = TransformerConfig.model_validate(section)
    except ValueError:
        return  # parts that do not fit together
    model = build_model(config, vocab_size, length, seed=0, extra_rows=extra_rows)
    found = count_parameters(config, vocab_size, length, extra_rows)
    assert found.total == found.trainable == sum(parameter.numel() for parameter in model.parameters())

    flops = flops_per_token(config, vocab_size, length, extra_rows)
    ids = torch.arange(batch * length).view(batch, length) % vocab_size
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        # The rows that pad the vocabulary are multiplied as well, and no gradient of an input is left out.
        logits = model(ids)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert flops.forward * batch * length == forward.get_total_flops()
    assert flops.backward * batch * length == backward.get_total_flops()
