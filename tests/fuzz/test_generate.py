"""What we write beside transformers' own `generate`, over tiny models of many architectures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from quintet.config.generation import GenerationSettings
from quintet.config.model import HuggingFaceConfig
from quintet.model.generate import beam_search, generate
from quintet.model.hf.loading import _assemble, _has_linear_head
from quintet.model.hf.pretrained import PretrainedModel
from quintet.model.hf.trial import find_abilities

transformers = pytest.importorskip("transformers")
from tests.model.architectures import ARCHITECTURES, ROWS, library_model  # noqa: E402

CONTEXT = 48
NEAR = 1e-3  # nats; likelier by less than this is no difference
# Their generate tells a RoBERTa positions from 0 on, which are not those of training.
NAMES = sorted(set(ARCHITECTURES) - {"roberta"})
IDS = st.integers(0, ROWS - 1)
PROMPT = st.lists(IDS, min_size=1, max_size=22)
ENDS = st.frozensets(IDS, max_size=12)


@cache
def models(name: str) -> tuple[Any, PretrainedModel]:
    """The library's model, and the same one behind our interface."""
    theirs = library_model(name)
    theirs.generation_config = transformers.GenerationConfig()
    config = HuggingFaceConfig(kind="huggingface", name_or_path=name, pretrained=False)
    linear_head = _has_linear_head(theirs)
    abilities = find_abilities(config, theirs, CONTEXT, linear_head=linear_head)
    return theirs, _assemble(config, theirs, ROWS, CONTEXT, 0, linear_head, abilities).eval()


@torch.no_grad()
def written(theirs: Any, prompt: Sequence[int], tokens: int, ends: frozenset[int], **settings: Any) -> list[int]:
    """What the library's generate writes after one prompt, without its end. It reads the whole text for each token."""
    ids = torch.tensor([prompt])
    found = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        use_cache=False,
        eos_token_id=sorted(ends) or None,
        pad_token_id=0,
        **settings,
    )[0, len(prompt) :].tolist()
    cut = next((place for place, token in enumerate(found) if token in ends), len(found))
    return found[:cut]


@torch.no_grad()
def plain_logits(theirs: Any, prompt: Sequence[int], continuation: Sequence[int]) -> torch.Tensor:
    """[continuation + 1, rows] of each next token, from plain reading of what stands before it and no more: positions
    may depend on the length."""
    whole = [*prompt, *continuation]
    parts = [torch.tensor([whole[:length]]) for length in range(len(prompt), len(whole) + 1)]
    return torch.stack([theirs(input_ids=part, use_cache=False).logits[0, -1] for part in parts])


def side_by_side(
    ours: PretrainedModel, prompts: list[list[int]], settings: GenerationSettings, ends: frozenset[int], static: bool
) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in prompts]
    for step in generate(ours, prompts, settings, ends, static=static):
        for row, token in zip(found, step, strict=True):
            row += [] if token is None else [token]
    return found


@given(
    name=st.sampled_from(NAMES),
    prompts=st.lists(PROMPT, min_size=1, max_size=3),
    tokens=st.integers(1, 16),
    ends=ENDS,
    penalty=st.sampled_from([1.0, 1.0, 1.3, 3.0, 0.7]),
    static=st.booleans(),
)
@example(name="phi3", prompts=[[5] * 12, [7, 8]], tokens=16, ends=frozenset(), penalty=1.0, static=False)
@example(name="phi3", prompts=[[5] * 20, [7, 8, 9]], tokens=16, ends=frozenset(), penalty=1.0, static=True)
@example(name="minimax", prompts=[[5, 6], [7]], tokens=4, ends=frozenset(), penalty=1.0, static=False)
@example(name="bart", prompts=[[5, 6, 7], [7]], tokens=4, ends=frozenset(), penalty=1.0, static=False)
def test_the_likeliest_tokens_are_theirs(
    name: str, prompts: list[list[int]], tokens: int, ends: frozenset[int], penalty: float, static: bool
) -> None:
    theirs, ours = models(name)
    settings = GenerationSettings(max_tokens=tokens, temperature=0, repetition_penalty=penalty)
    found = side_by_side(ours, prompts, settings, ends, static)
    for prompt, mine in zip(prompts, found, strict=True):
        expected = written(theirs, prompt, tokens, ends, repetition_penalty=penalty)
        if mine != expected and penalty == 1.0:
            # Two tokens may be equally likely but for rounding; there the texts part.
            place = next((i for i, pair in enumerate(zip(mine, expected, strict=False)) if pair[0] != pair[1]), None)
            best = plain_logits(theirs, prompt, expected[: place or 0])[-1].topk(2).values
            if place is not None and best[0] - best[1] < NEAR:
                continue
        assert mine == expected, (name, prompt)


@given(
    name=st.sampled_from(NAMES),
    prompt=PROMPT,
    beams=st.integers(2, 5),
    tokens=st.integers(1, 9),
    ends=ENDS,
    length_penalty=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
@example(name="lfm2", prompt=[5, 6], beams=3, tokens=6, ends=frozenset(), length_penalty=1.0)
@example(name="falcon_h1", prompt=[5, 6], beams=3, tokens=6, ends=frozenset(), length_penalty=1.0)
def test_beams_find_what_theirs_do(
    name: str, prompt: list[int], beams: int, tokens: int, ends: frozenset[int], length_penalty: float
) -> None:
    theirs, ours = models(name)
    mine = beam_search(ours, prompt, beams, tokens, ends, length_penalty)
    expected = written(
        theirs, prompt, tokens, ends, num_beams=beams, length_penalty=length_penalty, early_stopping=False
    )
    if mine == expected:
        return

    def rating(ids: list[int]) -> float:
        values = plain_logits(theirs, prompt, ids).double().log_softmax(-1)
        total = float(values[range(len(ids)), ids].sum())
        if len(ids) < tokens:
            total += float(values[-1, sorted(ends)].max())
        return total / min(len(ids) + 1, tokens) ** length_penalty

    assert abs(rating(mine) - rating(expected)) < NEAR, (name, mine, expected)


@given(
    name=st.sampled_from(NAMES),
    prompts=st.lists(PROMPT, min_size=1, max_size=3),
    temperature=st.sampled_from([0.2, 1.0, 3.0]),
    top_k=st.none() | st.integers(1, ROWS + 5),
    top_p=st.none() | st.floats(0.05, 1.0),
    min_p=st.none() | st.floats(0.0, 1.0),
    penalty=st.sampled_from([1.0, 1.3, 0.7]),
    seed=st.integers(0, 9),
)
def test_what_is_drawn_is_what_theirs_may_draw(
    name: str,
    prompts: list[list[int]],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    penalty: float,
    seed: int,
) -> None:
    theirs, ours = models(name)
    settings = GenerationSettings(
        max_tokens=6,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        seed=seed,
    )
    # What lies at the edge but for rounding, either may keep.
    kept: list[Any] = [transformers.RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1.0 else []
    kept.append(transformers.TemperatureLogitsWarper(temperature))
    kept += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    kept += [transformers.TopPLogitsWarper(min(1.0, top_p + 1e-3))] if top_p else []
    kept += [transformers.MinPLogitsWarper(min_p * math.exp(-NEAR / temperature))] if min_p else []
    for prompt, mine in zip(prompts, side_by_side(ours, prompts, settings, frozenset(), False), strict=True):
        assert len(mine) == 6
        values = plain_logits(theirs, prompt, mine)
        for place, token in enumerate(mine):
            seen = torch.tensor([[*prompt, *mine[:place]]])
            left = transformers.LogitsProcessorList(kept)(seen, values[place : place + 1].clone())
            assert left[0, token].isfinite(), (name, prompt, mine, place)
