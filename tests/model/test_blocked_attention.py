from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from quintet.model import kernels
from quintet.model.kernels import blocked_attention, cut
from quintet.model.mask import KeyRanges


def inputs(length: int, heads: int = 4, kv_heads: int = 4, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, heads, length, 8), (2, kv_heads, length, 8), (2, kv_heads, length, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def outputs(function, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    out = function(*tensors)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), tensors)]


def blocked_causal_attention(q, k, v):
    ranges = KeyRanges(q.shape[2], q.shape[2], causal=True)
    return blocked_attention(q, k, v, ranges, cut(ranges), q.shape[-1] ** -0.5)


def reference(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@pytest.mark.parametrize("kept_bytes", [0, 2**30], ids=["recomputed", "kept"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("length", [1, 5, 127, 128, 129, 300])
def test_equals_torchs_attention_in_value_and_gradients(monkeypatch, length, kv_heads, kept_bytes) -> None:
    monkeypatch.setattr(kernels, "KEPT_BYTES", kept_bytes)
    tensors = inputs(length, kv_heads=kv_heads)
    for ours, theirs in zip(outputs(blocked_causal_attention, tensors), outputs(reference, tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_inputs_may_be_views_of_one_projection() -> None:
    qkv = torch.randn(2, 40, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    ours, theirs = (
        torch.autograd.grad(attention(*(part.transpose(1, 2) for part in qkv.unbind(2))).square().sum(), qkv)[0]
        for attention in (blocked_causal_attention, reference)
    )
    torch.testing.assert_close(ours, theirs)


def test_in_bf16_it_is_about_as_exact_as_torchs() -> None:
    exact = outputs(reference, inputs(256))
    ours = outputs(blocked_causal_attention, inputs(256, dtype=torch.bfloat16))
    theirs = outputs(reference, inputs(256, dtype=torch.bfloat16))
    for true, mine, other in zip(exact, ours, theirs, strict=True):
        error, torchs_error = (mine.double() - true).norm(), (other.double() - true).norm()
        assert error < 2 * torchs_error


def test_a_block_takes_only_the_keys_that_one_of_its_queries_sees() -> None:
    begins = torch.arange(400) // 100 * 100
    assert cut(KeyRanges(400, 400, causal=True, first=begins[None])) == (
        (0, 128, 0, 128),
        (128, 256, 100, 256),
        (256, 384, 200, 384),
        (384, 400, 300, 400),
    )
    assert cut(KeyRanges(200, 200, causal=False)) == ((0, 128, 0, 200), (128, 200, 0, 200))
