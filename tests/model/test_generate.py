from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from quintet.config.generation import GenerationSettings
from quintet.config.model import TransformerConfig
from quintet.errors import UserError
from quintet.model import Transformer, build_model
from quintet.model import generate as generation
from quintet.model.generate import beam_search, generate
from quintet.model.mask import documents_after, leading

VOCAB, CONTEXT = 30, 16
STEPS = 26  # from a single token on, so many outgrow the context twice
OPTIONS = ("allowed_ids", "preceding", "static", "compile", "ahead")
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "multi-head": {"attention": {"heads": 4}},
    "multi-query": {"attention": {"heads": 4, "kv_heads": 1, "bias": True}},
    "learned": {"position": {"kind": "learned"}},
    "rotary and learned": {"position": {"kind": "rope", "learned": True}},
    "sinusoidal": {"position": {"kind": "sinusoidal"}},
    "no position": {"position": {"kind": "none"}},
    "window": {"attention": {"heads": 4, "window": 5}},
    "prefix": {"attention": {"heads": 4, "mask": "prefix"}},
    "documents": {"attention": {"heads": 4, "mask": "causal_document"}},
    "documents restart": {
        "attention": {"heads": 4, "kv_heads": 2, "mask": "causal_document", "restart_positions": True},
        "position": {"kind": "learned"},
    },
    "parallel, norm of heads": {"block": "parallel", "attention": {"heads": 4, "qk_norm": "head"}},
    "shared": {"layers": 4, "sharing": {"same": ["attention_output"], "low_rank": ["feedforward", "attention_qkv"]}},
    "bytes": {
        "init": {"kind": "normal", "std": 2.0},
        "embedding": {"kind": "bytes", "bytes": 4, "width": 16, "heads": 2, "layers": 1},
        "head": {"kind": "bytes", "bytes": 4, "width": 16, "heads": 2, "layers": 1},
    },
    "bidirectional": {"attention": {"kind": "bidirectional", "heads": 4}},
    "bidirectional window": {"attention": {"kind": "bidirectional", "heads": 4, "window": 4}},
    "bidirectional documents": {
        "attention": {"kind": "bidirectional", "heads": 4, "mask": "document", "restart_positions": True},
    },
}


def model_of(context: int = CONTEXT, **shape: Any) -> Transformer:
    values = {
        "layers": 2,
        "width": 32,
        "attention": {"heads": 4, "kv_heads": 2},
        "init": {"kind": "normal", "std": 0.3},
        "tie_embeddings": False,
        **shape,
    }
    return build_model(TransformerConfig.model_validate(values), VOCAB, context, seed=0)


def write(model: Transformer, ids: list[int], end_ids: set[int] | None = None, **options: Any) -> list[Any]:
    """The continuation of one prompt."""
    return rows_of(model, [ids], end_ids, **options)[0]


def rows_of(
    model: Transformer, prompts: list[list[int]], end_ids: set[int] | None = None, **options: Any
) -> list[list[Any]]:
    """The continuation of each prompt; ``options`` are those of ``generate`` and of its settings."""
    others = {name: options.pop(name) for name in OPTIONS if name in options}
    steps = list(generate(model, prompts, GenerationSettings(**options), end_ids or set(), **others))
    return [list(row) for row in zip(*steps, strict=True)] or [[] for _ in prompts]


def written_without_cache(model: Transformer, text: list[int], count: int, preceding: int = 0) -> list[int]:
    """The likeliest continuation by its definition: for each token the whole visible text is encoded again."""
    text, begin, prompt = list(text), max(0, len(text) - model.context_length), len(text)
    with torch.no_grad():
        for _ in range(count):
            if len(text) - begin > model.context_length:
                begin = len(text) - model.context_length // 2
            ids = torch.tensor([text[begin:]])
            documents = torch.tensor([[int(place >= preceding) for place in range(begin, len(text))]])
            prompts = torch.tensor([[place < prompt for place in range(begin, len(text))]])
            hidden = model.eval().hidden(ids, documents=documents, prompts=prompts)
            text.append(int(model.logits(hidden)[0, -1].argmax()))
    return text[prompt:]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("length", [1, 3, CONTEXT, CONTEXT + 5])
@pytest.mark.parametrize("preceding", [0, 1])
def test_a_text_is_the_one_that_encoding_it_anew_for_each_token_gives(name: str, length: int, preceding: int) -> None:
    model = model_of(**SHAPES[name]).eval()
    text = [(7 * i) % VOCAB for i in range(length)]
    expected = written_without_cache(model, text, STEPS, preceding)
    assert write(model, text, max_tokens=STEPS, temperature=0, preceding=[preceding]) == expected
    assert len(set(expected)) > 2 or length == 1  # a text that repeats one token would say little


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.7, "seed": 5, "repetition_penalty": 1.3}])
def test_rows_do_not_depend_on_their_neighbours(name: str, settings: dict[str, Any]) -> None:
    """Prompts of unequal length, one of them longer than the context; texts outgrow it at different steps."""
    model = model_of(**SHAPES[name])
    options = {"max_tokens": 30, **settings}
    prompts = [[1, 2, 3], [7], [(5 * i) % VOCAB for i in range(CONTEXT + 3)], [4] * (CONTEXT - 1)]
    preceding = [0, 1, 2, 1]
    together = rows_of(model, prompts, preceding=preceding, **options)
    # A row's place decides its draws, so what stands in the other places is replaced.
    for row, prompt in enumerate(prompts):
        others = [[9]] * row + [prompt]
        assert rows_of(model, others, preceding=[0] * row + [preceding[row]], **options)[row] == together[row]


@pytest.mark.parametrize("name", ["grouped", "window", "bidirectional", "documents restart"])
@pytest.mark.parametrize("ahead", [2, 5, 16])
def test_tokens_that_are_looked_at_later_are_the_same(monkeypatch: pytest.MonkeyPatch, name: str, ahead: int) -> None:
    """Rows end at different steps, and the text outgrows the context between two reads of the host."""
    model, prompts = model_of(**SHAPES[name]), [[3, 1], [7, 2, 9], [4], [8, 8], [1]]
    settings: dict[str, Any] = {"max_tokens": 40, "temperature": 1.0, "seed": 3, "repetition_penalty": 1.2}
    expected = rows_of(model, prompts, {5, 6}, **settings)
    assert len({row.index(None) for row in expected if None in row}) > 1, expected
    looks: list[int] = []
    monkeypatch.setattr(generation, "as_list", lambda ids: looks.append(len(ids)) or ids.tolist())
    assert rows_of(model, prompts, {5, 6}, **settings, ahead=ahead) == expected
    if "bidirectional" not in name:  # which reads whole texts on the host
        assert len(looks) <= len(expected[0]) // ahead + len(expected[0]) // (CONTEXT // 2) + 2


def test_prompts_of_like_lengths_have_a_cache_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that was compiled for one prompt is used for the next."""
    model, shapes = model_of(context=1000), []
    start = model.start_cache
    monkeypatch.setattr(
        model, "start_cache", lambda batch, room, **others: shapes.append(room) or start(batch, room, **others)
    )
    with patched_compile("eager"):
        for length in (3, 90, 200, 300, 900):
            write(model, [1] * length, max_tokens=50, static=True, compile=True)
    assert shapes == [256, 256, 256, 512, 1000]


@pytest.mark.parametrize("name", [name for name in SHAPES if "bidirectional" not in name])
@pytest.mark.parametrize("count", [6, 30])
def test_a_static_cache_writes_the_same(name: str, count: int) -> None:
    model = model_of(**SHAPES[name])
    prompts = [[1, 2, 3], [7, 5, 5, 7, 2, 9], [4]]
    options = {"max_tokens": count, "preceding": [0, 2, 1], "temperature": 0.7}
    assert rows_of(model, prompts, static=True, **options) == rows_of(model, prompts, **options)


def test_a_compiled_step_is_compiled_once_and_writes_the_same() -> None:
    prompts = [[1, 2, 3], [7, 5, 5, 7, 2, 9]]
    model, graphs = model_of(), []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    expected = rows_of(model, prompts, max_tokens=8, temperature=0)
    with patched_compile(backend):
        found = rows_of(model, prompts, max_tokens=8, temperature=0, static=True, compile=True)
    assert found == expected
    assert len(graphs) == 1


def test_bidirectional_attention_has_no_static_cache() -> None:
    with pytest.raises(UserError, match="bidirectional"):
        write(model_of(**SHAPES["bidirectional"]), [1], static=True)


def test_a_row_that_has_ended_is_none_and_all_ended_is_the_end() -> None:
    model = model_of()
    prompts = [[1, 2], [3], [4, 5, 6]]
    free = rows_of(model, prompts, max_tokens=12, temperature=0)
    ends = {free[0][3], free[1][7]}
    steps = list(generate(model, prompts, GenerationSettings(max_tokens=12, temperature=0), ends))
    for row, text in enumerate(free):
        end = next((place for place, token in enumerate(text) if token in ends), 12)
        assert [step[row] for step in steps] == (text[:end] + [None] * 12)[: len(steps)]
    longest = max(next((place for place, token in enumerate(text) if token in ends), 12) for text in free)
    assert len(steps) == longest


def test_rows_that_have_ended_do_not_move_the_windows_of_the_others() -> None:
    model = model_of()
    prompts = [[1] * CONTEXT, [4, 5, 6]]
    free = rows_of(model, prompts, max_tokens=40, temperature=0)
    end = next(token for token in free[0] if token not in free[1])
    assert rows_of(model, prompts, {end}, max_tokens=40, temperature=0)[1] == free[1]


def test_no_prompts_write_nothing() -> None:
    assert list(generate(model_of(), [], GenerationSettings())) == []


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
    assert write(model, [1, 2], {end, VOCAB + 1}, max_tokens=12, temperature=0) == text[: text.index(end)]
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
    assert max(beam_search(model, [25], 3, 10, allowed_ids=20)) < 20


def test_a_token_is_handed_out_before_the_next_is_computed() -> None:
    model, calls = model_of(), []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    stream = generate(model, [[1, 2]], GenerationSettings(max_tokens=10))
    next(stream)
    assert len(calls) == 1
    next(stream)
    assert len(calls) == 2


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_it_was_and_dropout_does_not_act(training: bool) -> None:
    model = model_of(embedding_dropout=0.9, residual_dropout=0.9).train(training)
    assert write(model, [1], max_tokens=8, temperature=0) == write(model, [1], max_tokens=8, temperature=0)
    beam_search(model, [1], 2, 4)
    abandoned = generate(model, [[1]], GenerationSettings(max_tokens=8))
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


@contextmanager
def patched_compile(backend: Any) -> Iterator[None]:
    """A context in which ``backend`` compiles."""
    original = torch.compile
    torch.compile = lambda function, **options: original(function, **{**options, "backend": backend})
    try:
        yield
    finally:
        torch.compile = original


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
    assert beam_search(model, prompt, ids**2, 3, allowed_ids=ids) == list(best)


@pytest.mark.parametrize("name", SHAPES)
def test_a_single_beam_writes_what_the_likeliest_token_writes(name: str) -> None:
    model = model_of(**SHAPES[name])
    text = [7, 3, 7, 5]
    for preceding in (0, 1):
        expected = write(model, text, max_tokens=8, temperature=0, preceding=[preceding])
        assert beam_search(model, text, 1, 8, preceding=preceding) == expected


@pytest.mark.parametrize("name", SHAPES)
def test_beams_rate_their_text_as_one_pass_does(name: str) -> None:
    """Two steps with all beams kept find the best pair of tokens, by an evaluation of every pair without a cache."""
    model, text, ids = model_of(**SHAPES[name]).eval(), [7, 3, 5], 6
    pairs = torch.tensor([[*text, *pair] for pair in itertools.product(range(ids), repeat=2)])
    prompts = torch.full((len(pairs),), len(text))
    ratings = torch.zeros(len(pairs))
    with torch.no_grad():
        for seen in (3, 4):
            documents = documents_after(torch.ones(len(pairs), dtype=torch.long), seen)
            hidden = model.hidden(pairs[:, :seen], documents=documents, prompts=leading(prompts, seen))
            rows = model.logits(hidden)[:, -1, :ids].log_softmax(-1)
            ratings += rows.gather(1, pairs[:, seen, None])[:, 0]
    best = pairs[ratings.argmax(), 3:].tolist()
    assert beam_search(model, text, ids, 2, allowed_ids=ids, preceding=1) == best


def test_what_precedes_a_text_is_of_the_document_before() -> None:
    counts, padding = torch.tensor([0, 1, 2, 3]), torch.tensor([2, 0, 1, 0])
    expected = [[-1, -1, 1, 1], [0, 1, 1, 1], [-1, 0, 0, 1], [0, 0, 0, 1]]
    assert documents_after(counts, 4, padding).tolist() == expected


def test_an_end_id_inside_a_prompt_ends_nothing() -> None:
    """With a document mask a prompt is continued as with the plain causal mask, whatever ids are in it."""
    plain, told = model_of(), model_of(attention={"heads": 4, "kv_heads": 2, "mask": "causal_document"})
    told.load_state_dict(plain.state_dict())
    settings = {"max_tokens": 8, "temperature": 0}
    for text in ([7, 3, 7, 5], [7], [1, 7]):
        assert write(told, text, {7}, **settings) == write(plain, text, {7}, **settings)


def test_more_beams_find_nothing_less_likely() -> None:
    model = model_of().eval()
    ratings = [log_probability(model, [4], beam_search(model, [4], beams, 6)) for beams in (1, 900)]
    assert ratings[1] >= ratings[0] - 1e-4


@pytest.mark.parametrize("name", ["documents", "bidirectional"])
def test_beams_that_are_looked_at_later_find_the_same(name: str) -> None:
    """Also if the search has ended since."""
    model, lengths = model_of(**SHAPES[name]), set[int]()
    for end, beams in itertools.product((2, 9), (1, 4)):
        one, other = (beam_search(model, [7, 3, 5], beams, 12, {end, 4}, 2.0, ahead=n) for n in (1, 5))
        assert one == other, (end, beams)
        lengths.add(len(one))
    assert max(lengths) > 0


def test_beams_end_with_the_context() -> None:
    model = model_of(context=8)
    assert len(beam_search(model, [1, 2, 3], 2, 100)) == 8 + 1 - 3  # the last one needs no position
    assert len(beam_search(model, list(range(20)), 2, 2)) == 2
    assert beam_search(model, [1], 2, 0) == []


def test_an_empty_prompt_and_no_beams_are_refused() -> None:
    model = model_of()
    with pytest.raises(UserError, match="prompt"):
        write(model, [])
    with pytest.raises(UserError, match="prompt"):
        beam_search(model, [], 2, 3)
    with pytest.raises(UserError, match="beams"):
        beam_search(model, [1], 0, 3)


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
        assert len(beam_search(model, [5], 12, 10, {0}, penalty)) == best
