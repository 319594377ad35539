"""Filters of logits against Hugging Face's, and draws against the probabilities that they should follow."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from quintet.config.generation import GenerationOptions, GenerationSettings, SampleConfig, TextGenerationConfig
from quintet.errors import UserError
from quintet.model.sampling import (
    choose,
    generation_settings,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
)

VOCAB = 40


def logits(seed: int, batch: int = 4) -> torch.Tensor:
    return 3 * torch.randn(batch, VOCAB, generator=torch.Generator().manual_seed(seed))


def seen(seed: int, batch: int = 4) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, 9), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("transformers.generation.logits_process")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 5, VOCAB, VOCAB + 9])
def test_top_k_is_theirs(theirs, seed: int, k: int) -> None:
    expected = theirs.TopKLogitsWarper(k)(seen(seed), logits(seed))
    assert torch.equal(keep_top_k(logits(seed), k), expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.999])
def test_top_p_is_theirs(theirs, seed: int, p: float) -> None:
    expected = theirs.TopPLogitsWarper(p)(seen(seed), logits(seed))
    assert torch.equal(keep_top_p(logits(seed), p), expected)


def test_top_p_of_one_keeps_all() -> None:
    assert torch.equal(keep_top_p(logits(0), 1.0), logits(0))


class Sums(TorchDispatchMode):
    """Records the dtypes in which cumulative sums are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.cumsum.default:
            self.types.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_top_p_sums_what_a_gpu_sums_alike_each_time() -> None:
    """PyTorch refuses cumulative sums of floats on a GPU in its deterministic mode."""
    with Sums() as sums:
        keep_top_p(logits(0), 0.5)
    assert sums.types == {torch.int64}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("p", [0.0, 0.02, 0.5, 1.0])
def test_min_p_is_theirs(theirs, seed: int, p: float) -> None:
    expected = theirs.MinPLogitsWarper(p)(seen(seed), logits(seed))
    assert torch.equal(keep_min_p(logits(seed), p), expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.7])
def test_the_repetition_penalty_is_theirs(theirs, seed: int, penalty: float) -> None:
    expected = theirs.RepetitionPenaltyLogitsProcessor(penalty)(seen(seed), logits(seed))
    torch.testing.assert_close(penalise_repetition(logits(seed), seen(seed), penalty), expected)


def test_the_repetition_penalty_passes_over_ids_that_the_logits_do_not_have() -> None:
    short, outside = logits(0)[:, :10], torch.tensor([[3, 35], [10, 39], [9, 9], [0, 11]])
    found = penalise_repetition(short, outside, 2.0)
    changed = found != short
    assert changed.nonzero().tolist() == [[0, 3], [2, 9], [3, 0]]


def test_draws_follow_the_probabilities_that_all_settings_leave(theirs) -> None:
    settings = GenerationSettings(temperature=1.5, top_k=12, top_p=0.9, min_p=0.05, repetition_penalty=1.3)
    expected = logits(1, batch=1)
    history = seen(1, batch=1)
    for processor in (
        theirs.RepetitionPenaltyLogitsProcessor(1.3),
        theirs.TemperatureLogitsWarper(1.5),
        theirs.TopKLogitsWarper(12),
        theirs.TopPLogitsWarper(0.9),
        theirs.MinPLogitsWarper(0.05),
    ):
        expected = processor(history, expected)
    probabilities = expected.softmax(-1)[0]
    draws = 20_000
    generator = torch.Generator().manual_seed(0)
    rows = logits(1, batch=1).expand(draws, -1), history.expand(draws, -1)
    frequencies = torch.bincount(choose(*rows, settings, [generator] * draws), minlength=VOCAB) / draws
    # Five standard errors of a frequency.
    assert ((frequencies - probabilities).abs() <= 5 * (probabilities * (1 - probabilities) / draws).sqrt()).all()


def test_temperature_zero_takes_the_likeliest_after_the_penalty() -> None:
    one = torch.tensor([[1.0, 3.0, 2.9]])
    generator = [torch.Generator()]
    nothing, seen_one = torch.tensor([[0]]), torch.tensor([[1]])
    assert choose(one, nothing, GenerationSettings(temperature=0), generator).item() == 1
    assert choose(one, seen_one, GenerationSettings(temperature=0, repetition_penalty=1.1), generator).item() == 2


def test_without_settings_the_models_own_probabilities_are_drawn_from() -> None:
    draws, probabilities = 20_000, logits(5, batch=1).softmax(-1)[0]
    rows = logits(5, batch=1).expand(draws, -1), seen(5, batch=1).expand(draws, -1)
    ids = choose(*rows, GenerationSettings(), [torch.Generator().manual_seed(0)] * draws)
    frequencies = torch.bincount(ids, minlength=VOCAB) / draws
    assert ((frequencies - probabilities).abs() <= 5 * (probabilities * (1 - probabilities) / draws).sqrt()).all()


def test_what_is_written_without_settings_is_the_same_in_every_version() -> None:
    assert (GenerationSettings().seed, GenerationSettings().max_tokens) == (0, 256)


def test_the_ends_of_each_range_belong_to_it() -> None:
    low = {"max_tokens": 0, "temperature": 0.0, "top_k": 1, "top_p": 1e-9, "min_p": 0.0, "repetition_penalty": 1e-9}
    high = {"top_p": 1.0, "min_p": 1.0, "temperature": 1e9, "repetition_penalty": 1e9}
    for settings in (low, high):
        generation_settings(**settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -1),
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("repetition_penalty", math.inf),
        ("temperature", math.nan),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
    ],
)
def test_a_setting_outside_its_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{name}: "):
        generation_settings(**{name: value})  # pyright: ignore[reportArgumentType]


def test_all_options_that_are_wrong_are_refused_at_once_and_none_is_ignored() -> None:
    with pytest.raises(UserError) as error:
        generation_settings(top_k=0, top_p=2.0, temprature=1.0)  # pyright: ignore[reportCallIssue]
    assert [problem.partition(":")[0] for problem in error.value.problems] == ["top_k", "top_p", "temprature"]
    assert "temperature" in error.value.problems[2]


def test_the_keyword_arguments_are_the_fields_of_the_settings() -> None:
    assert GenerationOptions.__annotations__.keys() == GenerationSettings.model_fields.keys()
    assert generation_settings(top_k=None, max_tokens=3) == GenerationSettings(max_tokens=3)


def test_the_sections_of_a_run_file_have_all_settings_with_their_bounds() -> None:
    for section in (SampleConfig, TextGenerationConfig):
        settings = GenerationSettings.from_section(section(min_p=0.1), seed=3)
        assert (settings.min_p, settings.seed, settings.temperature) == (0.1, 3, section().temperature)
        for name, value in (("temperature", -1.0), ("top_k", 0), ("top_p", 0.0), ("min_p", 2.0)):
            with pytest.raises(ValidationError, match=name):
                section.model_validate({name: value})
