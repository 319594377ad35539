"""Figures of texts that a model writes: variety, repetition, readability.

Words are runs of characters without white space. The formulas are in docs/guide/generation.md.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from quintet.config.generation import GenerationSettings, TextGenerationConfig
from quintet.errors import UserError, named
from quintet.evaluate.continuation import prompt_ids, write_continuations
from quintet.evaluate.harness.items import syllables, words
from quintet.evaluate.model_and_tokenizer import ModelAndTokenizer
from quintet.randomness import key

PROMPTS = "evaluate.text_generation.prompts"
ORDER = 4
"""Longest n-grams that BLEU counts (Papineni et al. 2002)."""
UNSEEN = 0.1
"""Matches of an order of n-grams that has none: the first smoothing of Chen and Cherry (2014)."""
_SENTENCE = re.compile(r"[.!?]+(?=\s|$)|\n+")


@dataclass(frozen=True)
class WrittenTexts:
    """What a model wrote after each prompt."""

    texts: tuple[str, ...]

    def figures(self) -> dict[str, float]:
        """The means over the texts; a figure that no text has is left out."""
        split = [text.split() for text in self.texts]
        found = {
            "characters": [float(len(text)) for text in self.texts],
            "words": [float(len(one)) for one in split],
            "distinct_1": [distinct(one, 1) for one in split],
            "distinct_2": [distinct(one, 2) for one in split],
            "entropy": [entropy(one) for one in split],
            "self_bleu": [bleu(one, [*split[:index], *split[index + 1 :]]) for index, one in enumerate(split)],
            "reading_ease": [reading_ease(text) for text in self.texts],
        }
        known = {name: [value for value in values if not math.isnan(value)] for name, values in found.items()}
        return {name: fmean(values) for name, values in known.items() if values}

    def metrics(self) -> dict[str, float]:
        """The figures under the names that trackers show: ``generation/distinct_1``."""
        return {f"generation/{name}": value for name, value in self.figures().items()}

    def lines(self) -> list[str]:
        """The figures as a person reads them."""
        return [f"{name:12} {value:10.4f}" for name, value in self.figures().items()]


def write_and_measure(
    language_model: ModelAndTokenizer, section: TextGenerationConfig, seed: int, where: str = PROMPTS
) -> WrittenTexts:
    """Continue each prompt of ``section`` with what a run with the ``seed`` draws for it; equal seeds give equal texts.
    Raises UserError as `check_writing`."""
    settings = GenerationSettings.from_section(section, key(seed, "text generation"))
    found = write_continuations(
        language_model.model,
        language_model.tokenizer,
        language_model.compute,
        check_writing(language_model, section, where),
        settings,
        language_model.bounds,
    )
    return WrittenTexts(tuple(one.text for one in found))


def check_writing(
    language_model: ModelAndTokenizer, section: TextGenerationConfig, where: str = PROMPTS
) -> list[list[int]]:
    """The ids of each prompt. Raises UserError, which names ``where`` and its number, for those that the tokenizer
    cannot write."""
    ids: list[list[int]] = []
    problems: list[str] = []
    for index, prompt in enumerate(section.prompts):
        try:
            with named(f"{where}[{index}]"):
                ids.append(prompt_ids(language_model.tokenizer, language_model.bounds, prompt))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return ids


def ngrams(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    """The runs of ``size`` of the words, and how often each stands there."""
    return Counter(tuple(words[at : at + size]) for at in range(len(words) - size + 1))


def distinct(words: Sequence[str], size: int) -> float:
    """Part of the n-grams that differ (Li et al. 2016); NaN where the text has none."""
    counts = ngrams(words, size)
    return len(counts) / counts.total() if counts else math.nan


def entropy(words: Sequence[str]) -> float:
    """Entropy of the words in bits; NaN where there are none."""
    counts = Counter(words)
    total = counts.total()
    return -sum(n / total * math.log2(n / total) for n in counts.values()) if total else math.nan


def bleu(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of one text against the others, which is its self-BLEU (Zhu et al. 2018): 1 where they all repeat each
    other. NaN where one side has no words."""
    others = [one for one in references if one]
    if not words or not others:
        return math.nan
    logs: list[float] = []
    for size in range(1, ORDER + 1):
        counts = ngrams(words, size)
        most = Counter[tuple[str, ...]]()
        for one in others:
            most |= ngrams(one, size)
        matched = (counts & most).total()
        if size == 1 and not matched:
            return 0.0
        logs.append(math.log((matched or UNSEEN) / max(counts.total(), 1)))
    closest = min((abs(len(one) - len(words)), len(one)) for one in others)[1]
    brevity = min(0.0, 1 - closest / len(words))
    return math.exp(brevity + fmean(logs))


def reading_ease(text: str) -> float:
    """Flesch's reading ease (1948): about 100 for very easy English and 0 for very hard; NaN where there is no word."""
    found = words(text)
    if not found:
        return math.nan
    sentences = max(1, sum(bool(words(part)) for part in _SENTENCE.split(text)))
    spoken = sum(map(syllables, found))
    return 206.835 - 1.015 * len(found) / sentences - 84.6 * spoken / len(found)
