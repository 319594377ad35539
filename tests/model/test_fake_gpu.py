"""Generation and likelihoods on a GPU without values: all tensors are on it, and the host rarely waits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.model.fake_gpu import GPU, fake_gpu

from quintet.config.generation import GenerationSettings
from quintet.config.loss import NextTokenLossConfig
from quintet.config.model import TransformerConfig
from quintet.data.batch import Batch
from quintet.model import Transformer, build_model
from quintet.model.generate import beam_search, generate
from quintet.train.compute import Compute
from quintet.train.loss import Objective
from quintet.train.validation import summed_loss

pytestmark = pytest.mark.slow
MASKS: dict[str, dict[str, Any]] = {
    "causal": {},
    "documents": {"mask": "causal_document"},
    "window": {"window": 16, "kv_heads": 2},
    "prefix": {"mask": "prefix"},
}
DRAWN = {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2}
TOKENS = 32


def model_of(mask: str) -> Transformer:
    config = TransformerConfig.model_validate({"layers": 1, "width": 64, "attention": {"heads": 4, **MASKS[mask]}})
    model = build_model(config, 100, 1024, seed=0, meta=True)
    assert isinstance(model, Transformer)
    return model


# What inference mode adds is undone, for PyTorch has no driver here to ask.
write, search = generate.__wrapped__, beam_search.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, DRAWN], ids=["likeliest", "drawn"])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_a_text_waits_once_for_sixteen_tokens(
    monkeypatch: pytest.MonkeyPatch, mask: str, static: bool, settings: dict[str, Any]
) -> None:
    asked = GenerationSettings(max_tokens=TOKENS, **settings)
    with fake_gpu(monkeypatch, model := model_of(mask)) as waits:
        texts = list(write(model, [[1, 2, 3], [4, 5], [6]], asked, preceding=[1, 0, 0], static=static, ahead=16))
    assert len(texts) == TOKENS
    assert waits["reads"] == TOKENS // 16
    assert waits["copies"] <= 4  # the prompts, and what they consist of


@pytest.mark.parametrize("mask", MASKS)
def test_a_search_waits_once_for_sixteen_tokens(monkeypatch: pytest.MonkeyPatch, mask: str) -> None:
    with fake_gpu(monkeypatch, model := model_of(mask)) as waits:
        search(model, [1, 2, 3], 3, TOKENS, {5}, preceding=1)
    assert waits["reads"] == TOKENS // 16 - 1 + 2  # of the best one its length and its ids
    assert waits["copies"] <= 4
    with fake_gpu(monkeypatch, model := model_of(mask)) as waits:
        search(model, [1, 2, 3], 3, TOKENS, {5}, preceding=1, ahead=1)
    assert waits["reads"] == TOKENS - 1 + 2


@pytest.mark.parametrize("mask", MASKS)
def test_a_likelihood_lies_on_the_device_of_the_model(monkeypatch: pytest.MonkeyPatch, mask: str) -> None:
    ids, told = np.zeros((2, 1024), np.int64), np.zeros((2, 1024), np.int64)
    monkeypatch.setattr(torch.Tensor, "item", lambda value: found.append(value.device) or 1.0)
    found: list[torch.device] = []
    with fake_gpu(monkeypatch, model := model_of(mask)):
        objective = Objective(NextTokenLossConfig(), model.config, 100, mask_id=0, seed=1)
        batch = objective.prepare(Batch(ids, ids, ids[:, 0], ids.size, told, told.astype(bool)), "validation")
        summed_loss(model, objective, batch, Compute(GPU, "fp32", compile=False, reason=""))
    assert found == [GPU]
