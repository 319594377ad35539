"""Generation and evaluation on a GPU: the same texts by each cache, few waits, masks by parts; on a CPU what it can."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.cuda.conftest import peak_bytes

from quintet.config.generation import GenerationSettings
from quintet.config.model import CausalAttentionConfig, TransformerConfig
from quintet.model import Transformer, build_model
from quintet.model.generate import beam_search, generate, tokens_ahead
from quintet.model.kernels import attend, prepare_mask
from quintet.model.mask import lay_out

PROMPTS = [[1, 2, 3], [4, 5], [6]]


def model_of(device: torch.device, **shape: Any) -> Transformer:
    config = TransformerConfig.model_validate({"layers": 2, "width": 64, "attention": {"heads": 4}, **shape})
    found = build_model(config, 100, 512, seed=0)
    assert isinstance(found, Transformer)
    return found.to(device).eval()


WAYS = [{"ahead": 16}, {"static": True}, {"static": True, "compile": True, "ahead": 16}]


@pytest.mark.parametrize("way", WAYS, ids=["ahead", "static", "compiled"])
def test_each_cache_writes_the_same(device: torch.device, way: dict[str, Any]) -> None:
    if device.type == "cpu" and "compile" in way:
        pytest.skip("tests/model/test_generate.py compiles on a CPU")
    model, settings = model_of(device), GenerationSettings(max_tokens=100, temperature=0)
    expected = list(generate(model, PROMPTS, settings))
    for _ in range(2):  # the second time with another cache for the graph that was recorded
        assert list(generate(model, PROMPTS, settings, **way)) == expected


def test_beams_find_the_same_whenever_they_are_looked_at(device: torch.device) -> None:
    model = model_of(device)
    found = [beam_search(model, [1, 2, 3], 4, 40, {end}, ahead=ahead) for end in (5, 6) for ahead in (1, 16)]
    assert found[0::2] == found[1::2]
    narrow = model_of(torch.device("cpu"))
    assert found[0] == beam_search(narrow, [1, 2, 3], 4, 40, {5})


@contextmanager
def waits(found: list[str]) -> Iterator[None]:
    """Within, ``found`` gets a warning of PyTorch for each time that the host waits."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [str(one.message) for one in warned if "synchroniz" in str(one.message)]


@pytest.mark.cuda
def test_the_host_waits_once_for_sixteen_tokens() -> None:
    """tests/model/test_fake_gpu.py shows the same without numbers."""
    device = torch.device("cuda", 0)
    model, settings = model_of(device), GenerationSettings(max_tokens=160, temperature=1.0, top_k=20)
    list(generate(model, PROMPTS, settings, ahead=16))
    found: list[str] = []
    with waits(found):
        list(generate(model, PROMPTS, settings, ahead=tokens_ahead(model.device)))
    assert len(found) <= 160 // 16 + 10  # and a few before the first
    with waits(found := []):
        beam_search(model, PROMPTS[0], 4, 160)
    assert len(found) <= 160 // 16 + 10


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_a_window_in_a_long_text_takes_no_square_of_memory(device: torch.device, kv_heads: int) -> None:
    """Also where heads share keys, which no fused kernel for masks knows on a GPU."""
    length = 8192 if device.type == "cuda" else 2048
    config = CausalAttentionConfig(window=256)
    ranges = lay_out(config, torch.zeros(1, length, dtype=torch.long, device=device)).ranges
    queries, keys, values = torch.randn(3, 1, 8, length, 64, device=device, dtype=torch.bfloat16)
    keys, values = keys[:, :kv_heads], values[:, :kv_heads]
    with torch.no_grad():
        expected = attend(queries, keys, values, prepare_mask(ranges, "sdpa", device))
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        with peak_bytes(device) as peak:
            found = attend(queries, keys, values, prepare_mask(ranges, "chunked", device))
    assert peak[0] - before < length * length * (1 if device.type == "cuda" else 4)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
