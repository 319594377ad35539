"""All kernels against the formula, with all masks, in values and gradients; our own blocks against PyTorch's
attention."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quintet.config.model import BidirectionalAttentionConfig, CausalAttentionConfig
from quintet.errors import UserError
from quintet.model import kernels
from quintet.model.kernels import attend, blocked_attention, choose_kernel, cut, prepare_mask, varying_lengths
from quintet.model.mask import KeyRanges, lay_out

CPU = torch.device("cpu")
DOCUMENTS = torch.tensor([[0] * 70 + [1] * 1 + [2] * 100 + [3] * 29, [0] * 150 + [1] * 50])
# The prompt of each document: one of all of it, one of a token, one without.
PROMPTS = torch.tensor(
    [[1] * 60 + [0] * 10 + [1] + [1] * 40 + [0] * 60 + [0] * 29, [1] * 150 + [1] + [0] * 49], dtype=torch.bool
)
LENGTH = DOCUMENTS.shape[1]

MASKS = {
    "causal": CausalAttentionConfig(),
    "document": CausalAttentionConfig(mask="causal_document"),
    "window": CausalAttentionConfig(window=37),
    "documents and window": CausalAttentionConfig(mask="causal_document", window=20),
    "prefix": CausalAttentionConfig(mask="prefix"),
    "bidirectional": BidirectionalAttentionConfig(kind="bidirectional"),
    "bidirectional documents": BidirectionalAttentionConfig(kind="bidirectional", mask="document"),
    "bidirectional window": BidirectionalAttentionConfig(kind="bidirectional", window=15),
}


def sees(config, batch: int, query: int, key: int) -> bool:
    """Return True if a query sees a key, by the description of the mask."""
    prompt = config.mask == "prefix" and bool(PROMPTS[batch, key]) and bool(PROMPTS[batch, query])
    if config.kind == "causal" and key > query and not prompt:
        return False
    if ("document" in config.mask or config.mask == "prefix") and DOCUMENTS[batch, query] != DOCUMENTS[batch, key]:
        return False
    return config.window is None or abs(query - key) < config.window


@cache
def seen(name: str) -> Tensor:
    """Return the keys that each query sees with the mask ``name``, by its description: bool [batch, query, key]."""
    everything = range(LENGTH)
    return torch.tensor(
        [[[sees(MASKS[name], b, q, k) for k in everything] for q in everything] for b in range(len(DOCUMENTS))]
    )


def ranges_of(config) -> KeyRanges:
    ids = torch.zeros(2, LENGTH, dtype=torch.long)
    return lay_out(config, ids, DOCUMENTS, PROMPTS if config.mask == "prefix" else None).ranges


def inputs(kv_heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(kv_heads)
    shapes = [(2, 4, LENGTH, 8), (2, kv_heads, LENGTH, 8), (2, kv_heads, LENGTH, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def formula(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float) -> Tensor:
    keys, values = (part.repeat_interleave(4 // keys.shape[1], 1) for part in (keys, values))
    scores = (queries @ keys.mT * scale).masked_fill(~visible[:, None], -math.inf)
    return scores.softmax(-1) @ values


def with_gradients(out: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), tensors)]


@pytest.mark.parametrize("name", list(MASKS))
def test_a_dense_mask_shows_what_the_words_say(name: str) -> None:
    expected = seen(name)
    found = ranges_of(MASKS[name]).dense(CPU)[:, 0]
    assert torch.equal(found.expand(2, -1, -1), expected)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kernel", ["sdpa", "blocked", "flash"])
@pytest.mark.parametrize("name", list(MASKS))
def test_every_kernel_follows_the_formula_in_value_and_gradient(name: str, kernel, kv_heads: int) -> None:
    ranges = ranges_of(MASKS[name])
    if kernel == "flash" and not ranges.simple:
        pytest.skip("FlashAttention knows no such mask")
    tensors = inputs(kv_heads)
    mask = prepare_mask(ranges, kernel, CPU)
    found = with_gradients(attend(*tensors, mask, scale=0.3), tensors)
    expected = with_gradients(formula(*tensors, seen(name), 0.3), tensors)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("before", [0, 90])
@pytest.mark.parametrize("name", list(MASKS))
def test_queries_by_parts_follow_the_formula(monkeypatch: pytest.MonkeyPatch, name: str, before: int, kv_heads) -> None:
    monkeypatch.setattr(kernels, "CHUNK", 32)
    tensors, ranges, visible = [part.detach() for part in inputs(kv_heads)], ranges_of(MASKS[name]), seen(name)
    if before:  # the first keys come from a cache, and their queries were read before
        first, last = (None if part is None else part[:, before:] for part in (ranges.first, ranges.last))
        ranges = KeyRanges(LENGTH - before, LENGTH, ranges.causal, first, last)
        tensors[0], visible = tensors[0][:, :, before:], visible[:, before:]
    found = attend(*tensors, prepare_mask(ranges, "chunked", CPU), scale=0.3)
    torch.testing.assert_close(found, formula(*tensors, visible, 0.3), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kernel", ["sdpa", "chunked"])
@pytest.mark.parametrize("name", list(MASKS))
def test_where_no_fused_kernel_shares_keys_none_is_asked_to(monkeypatch: pytest.MonkeyPatch, name: str, kernel) -> None:
    """As on a GPU with a mask; for a single query the heads that share a key become its queries."""
    monkeypatch.setattr(kernels, "_unfused_where_shared", lambda *_: True)
    monkeypatch.setattr(kernels, "CHUNK", 32)
    for length in (LENGTH, 1):
        ranges, visible, tensors = ranges_of(MASKS[name]), seen(name), [part.detach() for part in inputs(2)]
        if length == 1:
            first, last = (None if part is None else part[:, -1:] for part in (ranges.first, ranges.last))
            ranges = KeyRanges(1, LENGTH, ranges.causal, first, last)
            tensors[0], visible = tensors[0][:, :, -1:], visible[:, -1:]
            mask = prepare_mask(ranges, "sdpa", CPU)
        else:
            mask = prepare_mask(ranges, kernel, CPU)
        with Shared() as calls:
            found = attend(*tensors, mask, scale=0.3)
        torch.testing.assert_close(found, formula(*tensors, visible, 0.3), rtol=1e-9, atol=1e-11)
        assert calls.count > 0 == calls.shared


class Shared(TorchFunctionMode):
    """Counts the calls of PyTorch's attention, and those with query heads that share a key head."""

    count = shared = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.count += 1
            self.shared += bool((kwargs or {}).get("enable_gqa")) or args[0].shape[1] != args[1].shape[1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "config", "unfused"),
    [(torch.bfloat16, "causal", False), (torch.float32, "causal", True), (torch.bfloat16, "document", True)],
)
def test_on_a_gpu_heads_share_keys_in_16_bits_without_a_mask(dtype: torch.dtype, config: str, unfused: bool) -> None:
    mask = prepare_mask(ranges_of(MASKS[config]), "sdpa", CPU)
    with FakeTensorMode():
        queries = torch.empty(2, 4, LENGTH, 8, dtype=dtype, device="cuda")
    assert kernels._unfused_where_shared(queries, mask) == unfused
    assert not kernels._unfused_where_shared(torch.empty(2, 4, LENGTH, 8, dtype=dtype), mask)


def test_a_long_text_needs_no_mask_of_the_square_of_its_length() -> None:
    """The largest tensor of a pass grows with the length, and not with its square."""
    sizes: list[int] = []
    for length in (2048, 4096):
        ranges = lay_out(CausalAttentionConfig(mask="prefix"), *_prefix(length)).ranges
        kernel = choose_kernel(CausalAttentionConfig(mask="prefix"), ranges, CPU, torch.float32, **LATER)
        with torch.no_grad(), LargestTensor() as largest:
            assert kernel == "sdpa"  # with gradients
            kernel = choose_kernel(CausalAttentionConfig(mask="prefix"), ranges, CPU, torch.float32, **LATER)
            attend(*(torch.zeros(1, 1, length, 8) for _ in range(3)), prepare_mask(ranges, kernel, CPU))
        sizes.append(largest.size)
    assert sizes[1] <= 2 * sizes[0]


LATER = {"cached": False, "dropping": False}


def _prefix(length: int) -> tuple[Tensor, None, Tensor]:
    return torch.zeros(1, length, dtype=torch.long), None, torch.arange(length)[None] < length // 2


class LargestTensor(TorchDispatchMode):
    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for part in tree_leaves(found):
            if isinstance(part, Tensor):
                self.size = max(self.size, part.numel())
        return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("name", list(MASKS))
def test_flex_attention_equals_sdpa(monkeypatch: pytest.MonkeyPatch, name: str, kv_heads: int) -> None:
    from torch.nn.attention import flex_attention

    # On a CPU its backward pass is refused; the eager one behind the refusal is what a GPU's kernel computes.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    ranges, tensors = ranges_of(MASKS[name]), inputs(kv_heads, torch.float32)
    found, expected = (
        with_gradients(attend(*tensors, prepare_mask(ranges, kernel, CPU)), tensors) for kernel in ("flex", "sdpa")
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "positions"), [(6, 6), (1, 6), (4, 9), (1, 1)])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_queries_are_the_last_positions_of_their_keys(kv_heads: int, length: int, positions: int, dtype) -> None:
    queries, keys, values = (part.detach()[:, :, :positions].to(dtype) for part in inputs(kv_heads))
    queries = queries[:, :, :length]
    past = torch.arange(positions)[None, :] <= torch.arange(positions - length, positions)[:, None]
    expected = formula(queries.double(), keys.double(), values.double(), past[None], 8**-0.5)
    mask = prepare_mask(KeyRanges(length, positions, causal=True), "sdpa", CPU)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    found = attend(queries, keys, values, mask).double()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_dropped_attention_weights_are_dropped_whole_and_the_rest_is_scaled_up() -> None:
    length = 64
    values = torch.eye(length).expand(1, 1, length, length)
    torch.manual_seed(0)
    # With identity as values the output is the matrix of weights; equal scores make each row 1 / (row + 1).
    zeros = torch.zeros(1, 1, length, length)
    mask = prepare_mask(KeyRanges(length, length, causal=True), "sdpa", CPU)
    weights = attend(zeros, zeros, values, mask, dropout=0.25)[0, 0] * torch.arange(1, length + 1)[:, None]
    past = weights[torch.ones(length, length, dtype=torch.bool).tril()]
    assert torch.allclose(past[past != 0], torch.tensor(1 / 0.75))
    assert (past == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


def chosen(config, dtype=torch.float32, device="cpu", cached=False, dropping=False, features=64) -> str:
    how = {"cached": cached, "dropping": dropping, "features": features}
    return choose_kernel(config, ranges_of(config), torch.device(device), dtype, **how)


def test_the_fastest_kernel_is_chosen_for_mask_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    causal, document = MASKS["causal"], MASKS["document"]
    assert chosen(causal) == "sdpa"
    assert chosen(causal, torch.bfloat16) == "blocked"
    assert chosen(document) == chosen(MASKS["window"]) == "blocked"
    assert chosen(causal, torch.bfloat16, dropping=True) == "sdpa"
    assert chosen(causal, torch.bfloat16, cached=True) == "sdpa"
    with torch.no_grad():
        assert chosen(causal, torch.bfloat16) == "sdpa"
    assert chosen(causal, torch.bfloat16, "cuda") == "sdpa"
    assert chosen(document, torch.bfloat16, "cuda") == "flex"
    assert chosen(document, torch.bfloat16, "cuda", features=16) == "flex"
    assert chosen(document, torch.bfloat16, "cuda", features=8) == "sdpa"  # PyTorch compiles no such FlexAttention
    monkeypatch.setattr(kernels, "CHUNK", 64)
    flex = document.model_copy(update={"backend": "flex"})
    with torch.no_grad():  # nothing compiles FlexAttention there, and without that it is slow and large
        assert chosen(document, torch.bfloat16, "cuda") == chosen(flex, torch.bfloat16, "cuda") == "chunked"
        assert chosen(document, torch.bfloat16, "cuda", cached=True) == "chunked"
        assert chosen(causal, torch.bfloat16, "cuda") == chosen(document, device="cuda", dropping=True) == "sdpa"
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert chosen(document, torch.bfloat16, "cuda") == "flex"
    assert chosen(causal.model_copy(update={"backend": "sdpa"}), torch.bfloat16) == "sdpa"
    assert chosen(causal.model_copy(update={"backend": "flash"}), torch.bfloat16) == "flash"


def test_what_a_backend_cannot_do_is_refused_with_advice() -> None:
    flex = CausalAttentionConfig(backend="flex")
    with pytest.raises(UserError, match=r"model\.attention\.backend: FlexAttention cannot train on a CPU"):
        chosen(flex)
    with torch.no_grad():
        assert chosen(flex) == "flex"
    with pytest.raises(UserError, match=r"takes heads of 16 features at least and these have 8"):
        chosen(flex, torch.bfloat16, "cuda", features=8)
    with pytest.raises(UserError, match=r"set train\.precision to bf16"):
        chosen(CausalAttentionConfig(backend="flash"), torch.float32, "cuda")


def test_nothing_is_planned_or_compiled_for_a_length_that_each_text_has_anew() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with varying_lengths():
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


# ---- our own blocks


def projected(length: int, heads: int = 4, kv_heads: int = 4, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, heads, length, 8), (2, kv_heads, length, 8), (2, kv_heads, length, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def values_and_gradients(function, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    out = function(*tensors)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), tensors)]


def blocked_causal_attention(q, k, v):
    ranges = KeyRanges(q.shape[2], q.shape[2], causal=True)
    return blocked_attention(q, k, v, ranges, cut(ranges), q.shape[-1] ** -0.5)


def torchs_attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@pytest.mark.parametrize("kept_bytes", [0, 2**30], ids=["recomputed", "kept"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("length", [1, 5, 127, 128, 129, 300])
def test_equals_torchs_attention_in_value_and_gradients(monkeypatch, length, kv_heads, kept_bytes) -> None:
    monkeypatch.setattr(kernels, "KEPT_BYTES", kept_bytes)
    tensors = projected(length, kv_heads=kv_heads)
    for ours, theirs in zip(
        values_and_gradients(blocked_causal_attention, tensors),
        values_and_gradients(torchs_attention, tensors),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_inputs_may_be_views_of_one_projection() -> None:
    qkv = torch.randn(2, 40, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    ours, theirs = (
        torch.autograd.grad(attention(*(part.transpose(1, 2) for part in qkv.unbind(2))).square().sum(), qkv)[0]
        for attention in (blocked_causal_attention, torchs_attention)
    )
    torch.testing.assert_close(ours, theirs)


def test_in_bf16_it_is_about_as_exact_as_torchs() -> None:
    exact = values_and_gradients(torchs_attention, projected(256))
    ours = values_and_gradients(blocked_causal_attention, projected(256, dtype=torch.bfloat16))
    theirs = values_and_gradients(torchs_attention, projected(256, dtype=torch.bfloat16))
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
