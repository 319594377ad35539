from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from quintet.config.model import TransformerConfig
from quintet.errors import UserError
from quintet.model import Transformer, build_model
from quintet.model.generate import GenerationSettings, beam_search, generate

VOCAB, CONTEXT = 30, 16


def model_of(position: str = "rope", context: int = CONTEXT, **shape: Any) -> Transformer:
    values = {
        "layers": 2,
        "width": 32,
        "attention": {"heads": 4, "kv_heads": 2},
        "position": {"kind": position},
        "init": {"kind": "normal", "std": 0.3},
        "tie_embeddings": False,
        **shape,
    }
    return build_model(TransformerConfig.model_validate(values), VOCAB, context, seed=0)


def write(
    model: Transformer, ids: list[int], end_id: int | None = None, allowed_ids: int | None = None, **settings: Any
):
    return list(generate(model, ids, GenerationSettings(**settings), end_id, allowed_ids=allowed_ids))


@pytest.mark.parametrize("position", ["rope", "learned", "sinusoidal", "none"])
@pytest.mark.parametrize("prompt_length", [3, CONTEXT, CONTEXT + 5])
def test_a_text_longer_than_the_context_goes_on_from_its_last_half(position: str, prompt_length: int) -> None:
    model = model_of(position).eval()
    text = [(7 * i) % VOCAB for i in range(prompt_length)]
    found = write(model, text, max_tokens=40, temperature=0)
    window = text[-CONTEXT:]  # the same without a cache
    expected = []
    with torch.no_grad():
        for _ in range(40):
            if len(window) > CONTEXT:
                window = (text + expected)[-CONTEXT // 2 :]
            expected.append(int(model(torch.tensor([window]))[0, -1].argmax()))
            window = [*window, expected[-1]]
    assert found == expected


def test_the_seed_decides_and_the_global_generator_neither_matters_nor_changes() -> None:
    model = model_of()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = write(model, [1, 2], max_tokens=30, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    assert write(model, [1, 2], max_tokens=30, seed=1) == first
    assert write(model, [1, 2], max_tokens=30, seed=2) != first


def test_it_stops_before_the_end_or_after_max_tokens() -> None:
    model = model_of()
    text = write(model, [1, 2], max_tokens=12, temperature=0)
    assert len(text) == 12
    end = text[5]
    assert write(model, [1, 2], end_id=end, max_tokens=12, temperature=0) == text[: text.index(end)]
    assert write(model, [1, 2], max_tokens=0) == []


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_ids_beyond_the_allowed_ones_are_never_written(temperature: float) -> None:
    model = model_of(head={"bias": True})
    with torch.no_grad():
        model.head.bias[20:] = 100.0  # pyright: ignore[reportOptionalSubscript]
    assert min(write(model, [1], max_tokens=5, temperature=temperature)) >= 20
    assert max(write(model, [25], max_tokens=40, temperature=temperature, allowed_ids=20)) < 20
    penalised = write(model, [25], max_tokens=40, temperature=temperature, allowed_ids=20, repetition_penalty=2.0)
    assert max(penalised) < 20
    assert max(beam_search(model, [25], 3, 10, None, allowed_ids=20)) < 20


def test_a_token_is_handed_out_before_the_next_is_computed() -> None:
    model, calls = model_of(), []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    stream = generate(model, [1, 2], GenerationSettings(max_tokens=10), None)
    next(stream)
    assert len(calls) == 1
    next(stream)
    assert len(calls) == 2


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_it_was_and_dropout_does_not_act(training: bool) -> None:
    model = model_of(embedding_dropout=0.9, residual_dropout=0.9).train(training)
    assert write(model, [1], max_tokens=8, temperature=0) == write(model, [1], max_tokens=8, temperature=0)
    beam_search(model, [1], 2, 4, None)
    abandoned = generate(model, [1], GenerationSettings(max_tokens=8), None)
    next(abandoned)
    assert not torch.is_inference_mode_enabled()
    abandoned.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert model.training is training


def test_training_goes_on_after_a_sample_was_written_in_between() -> None:
    model = model_of()
    with torch.autocast("cpu", torch.bfloat16):
        write(model, [1], max_tokens=4)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.tensor([[1, 2, 3]])).float().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_compiled_blocks_are_not_compiled_again_for_each_token() -> None:
    model, compiled = model_of(), []

    def backend(graph, _):
        compiled.append(graph)
        return graph

    expected = write(model, [1, 2], max_tokens=6, seed=1)
    for block in model.blocks:
        block.compile(backend=backend)
    assert write(model, [1, 2], max_tokens=6, seed=1) == expected
    assert not compiled
    model(torch.tensor([[1, 2, 3]]))
    assert compiled


def log_probability(model: Transformer, prompt: list[int], text: list[int]) -> float:
    with torch.no_grad():
        rows = model(torch.tensor([prompt + text]))[0].log_softmax(-1)
    return sum(rows[len(prompt) + i - 1, token].item() for i, token in enumerate(text))


def test_beams_without_end_wide_enough_find_the_best_of_all_texts() -> None:
    model = model_of().eval()
    prompt, ids = [1, 2, 3], 6

    def rating(text: tuple[int, ...]) -> float:
        with torch.no_grad():
            rows = model(torch.tensor([prompt + list(text)]))[0, :, :ids].log_softmax(-1)
        return sum(rows[len(prompt) + i - 1, token].item() for i, token in enumerate(text))

    best = max(itertools.product(range(ids), repeat=3), key=rating)
    assert beam_search(model, prompt, ids**2, 3, None, allowed_ids=ids) == list(best)


def test_more_beams_find_nothing_less_likely() -> None:
    model = model_of().eval()
    ratings = [log_probability(model, [4], beam_search(model, [4], beams, 6, None)) for beams in (1, 900)]
    assert ratings[1] >= ratings[0] - 1e-4


def test_beams_end_with_the_context() -> None:
    model = model_of(context=8)
    assert len(beam_search(model, [1, 2, 3], 2, 100, None)) == 8 + 1 - 3  # the last one needs no position
    assert len(beam_search(model, list(range(20)), 2, 2, None)) == 2
    assert beam_search(model, [1], 2, 0, None) == []


def test_an_empty_prompt_and_no_beams_are_refused() -> None:
    model = model_of()
    with pytest.raises(UserError, match="prompt"):
        write(model, [])
    with pytest.raises(UserError, match="prompt"):
        beam_search(model, [], 2, 3, None)
    with pytest.raises(UserError, match="beams"):
        beam_search(model, [1], 0, 3, None)


def test_a_negative_log_probability_of_a_longer_text_counts_less_with_a_length_penalty() -> None:
    model = model_of(head={"bias": True}).eval()
    with torch.no_grad():
        model.head.weight.zero_()  # pyright: ignore[reportOptionalMemberAccess]
        probabilities = torch.full((VOCAB,), 0.1 / (VOCAB - 2))
        probabilities[0], probabilities[1] = 0.5, 0.4  # 0 ends, 1 goes on
        model.head.bias.copy_(probabilities.log())  # pyright: ignore[reportOptionalMemberAccess]
    # n tokens and an end: (n log 0.4 + log 0.5) / (n + 1) ** penalty, against 10 tokens without an end.
    for penalty in (0.0, 0.5, 1.5, 3.0):
        ratings = [(n * math.log(0.4) + math.log(0.5)) / (n + 1) ** penalty for n in range(10)]
        ratings.append(10 * math.log(0.4) / 10**penalty)
        best = max(range(11), key=ratings.__getitem__)
        assert len(beam_search(model, [5], 12, 10, 0, penalty)) == best
