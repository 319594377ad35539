"""Figures of written texts, against closed forms and NLTK, and in a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers import Command, records

from quintet.evaluate.text_generation import WrittenTexts, bleu, distinct, entropy, reading_ease

FIGURES = {"characters", "words", "distinct_1", "distinct_2", "entropy", "self_bleu", "reading_ease"}
TEXTS = (
    "the cat sat on the mat and the dog sat on the cat .",
    "the cat sat on the mat and slept until the sun went down .",
    "once upon a time a small bird sang on the mat .",
)


def test_variety_is_the_part_of_ngrams_that_differ() -> None:
    words = ["a", "b", "a", "b"]
    assert distinct(words, 1) == 2 / 4
    assert distinct(words, 2) == 2 / 3
    assert entropy(words) == 1.0
    assert entropy(["a"] * 5) == 0.0
    assert entropy(list("abcdefgh")) == 3.0
    assert math.isnan(distinct(["a"], 2))
    assert math.isnan(entropy([]))


def test_self_bleu_is_that_of_nltk() -> None:
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    split = [text.split() for text in TEXTS]
    smooth = nltk.SmoothingFunction(epsilon=0.1).method1
    for index, words in enumerate(split):
        others = [*split[:index], *split[index + 1 :]]
        assert bleu(words, others) == pytest.approx(nltk.sentence_bleu(others, words, smoothing_function=smooth))
    assert bleu(split[0], [split[0]]) == pytest.approx(1.0)
    assert bleu(["x", "y"], split) == 0.0


def test_reading_ease_is_flesch_s_formula() -> None:
    # Six words of one syllable in one sentence; then two sentences of one word with three syllables each.
    assert reading_ease("The cat sat on the mat.") == pytest.approx(206.835 - 1.015 * 6 - 84.6)
    assert reading_ease("Banana! Banana.") == pytest.approx(206.835 - 1.015 - 84.6 * 3)
    assert math.isnan(reading_ease("..."))


def test_the_figures_are_means_over_texts_and_leave_out_what_no_text_has() -> None:
    found = WrittenTexts(TEXTS).figures()
    assert found["words"] == sum(len(text.split()) for text in TEXTS) / 3
    assert found["distinct_2"] == pytest.approx(sum(distinct(text.split(), 2) for text in TEXTS) / 3)
    assert WrittenTexts(("", "")).figures() == {"characters": 0.0, "words": 0.0}
    assert set(WrittenTexts(TEXTS).metrics()) == {f"generation/{name}" for name in found}


def test_the_command_writes_what_the_training_wrote(train: Callable[..., str], command: Command) -> None:
    section = {"prompts": ["the cat", "a dog"], "max_tokens": 12}
    name = train(model={}, evaluate={"text_generation": section}, tokenizer={"kind": "byte"})
    recorded = {name: value for line in records(f"runs/{name}") for name, value in line.items()}
    code, out, error = command("evaluate", name, "--prompts", "own", "--json")
    assert code == 0, error
    found = json.loads(out)
    for figure in ("characters", "words", "entropy"):
        assert found[figure] == pytest.approx(recorded[f"generation/{figure}"], rel=1e-5)
    assert found["characters"] == sum(map(len, found["texts"])) / 2
    assert WrittenTexts(tuple(found["texts"])).figures() == pytest.approx(
        {key: found[key] for key in FIGURES & found.keys()}
    )
    Path("beginnings.txt").write_text("the cat\n\na dog\n")
    code, out, error = command("evaluate", name, "--prompts", "beginnings.txt")
    assert code == 0, error
    assert out.splitlines()[0].endswith("text generation, in fp32")
    assert out.splitlines()[1].split() == ["characters", f"{found['characters']:.4f}"]


def test_mistakes_about_the_prompts_are_named(train: Callable[..., str], command: Command) -> None:
    name = train(model={}, tokenizer={"kind": "byte"})
    masked = train(
        name="masked",
        model={"attention": {"kind": "bidirectional"}},
        loss={"kind": "masked"},
        tokenizer={"kind": "byte"},
    )
    Path("one.txt").write_text("the cat\n")
    for run, options, message in (
        (name, ("--prompts", "nowhere.txt"), "--prompts: nowhere.txt cannot be read"),
        (name, ("--prompts", "one.txt"), "--prompts: must be two or more beginnings"),
        (name, ("--prompts", "own", "--text", "held-out"), "--prompts: is measured by itself, without --text"),
        (name, ("--prompts", "own", "--samples", "3"), "--samples: is for the held-out data of the run"),
        (masked, ("--prompts", "own"), "masked: was trained to fill in hidden tokens"),
    ):
        code, _, error = command("evaluate", run, *options)
        assert code == 2
        assert error.startswith("error: ")
        assert message in error
