"""Generation and evaluation on a GPU: the same texts by each cache, few waits, and masks by parts."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from quintet.config.model import CausalAttentionConfig, TransformerConfig
from quintet.model import Transformer, build_model
from quintet.model.generate import generate, tokens_ahead
from quintet.model.kernels import attend, prepare_mask
from quintet.model.mask import lay_out
from quintet.model.sampling import GenerationSettings

pytestmark = pytest.mark.cuda
PROMPTS = [[1, 2, 3], [4, 5], [6]]


def model_of(**shape: Any) -> Transformer:
    config = TransformerConfig.model_validate({"layers": 2, "width": 64, "attention": {"heads": 4}, **shape})
    found = build_model(config, 100, 512, seed=0)
    assert isinstance(found, Transformer)
    return found.cuda().eval()


@pytest.mark.parametrize("way", [{"ahead": 16}, {"static": True}, {"static": True, "compile": True, "ahead": 16}])
def test_each_cache_writes_the_same(way: dict[str, Any]) -> None:
    model, settings = model_of(), GenerationSettings(max_tokens=100, temperature=0)
    expected = list(generate(model, PROMPTS, settings))
    for _ in range(2):  # the second time with another cache for the graph that was recorded
        assert list(generate(model, PROMPTS, settings, **way)) == expected


def test_the_host_waits_once_for_sixteen_tokens() -> None:
    model, settings = model_of(), GenerationSettings(max_tokens=160, temperature=1.0, top_k=20)
    list(generate(model, PROMPTS, settings, ahead=16))
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            list(generate(model, PROMPTS, settings, ahead=tokens_ahead(model.device)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(one.message) for one in waits) <= 160 // 16 + 10  # and a few before the first


def test_a_window_in_a_long_text_takes_no_square_of_memory() -> None:
    length, device = 8192, torch.device("cuda")
    config = CausalAttentionConfig(window=256)
    ranges = lay_out(config, torch.zeros(1, length, dtype=torch.long, device=device)).ranges
    queries, keys, values = torch.randn(3, 1, 8, length, 64, device=device, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = attend(queries, keys, values, prepare_mask(ranges, "sdpa", device))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = attend(queries, keys, values, prepare_mask(ranges, "chunked", device))
    assert torch.cuda.max_memory_allocated() - before < length * length
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
