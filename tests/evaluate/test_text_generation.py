"""Figures of written texts, against closed forms and NLTK, and in a run."""

from __future__ import annotations

import math

import pytest

from quintet.evaluate.text_generation import WrittenTexts, bleu, distinct, entropy, reading_ease

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
