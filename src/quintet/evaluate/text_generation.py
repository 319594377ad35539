"""Figures of texts that a model writes: variety, repetition and readability.

Words are runs of characters without white space. The formulas are in docs/guide/generation.md.
"""

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
"""The longest n-grams that BLEU counts (Papineni et al. 2002)."""
UNSEEN = 0.1
"""Matches that BLEU counts for n-grams of a length without a match: smoothing 1 of Chen and Cherry (2014)."""
_SENTENCE = re.compile(r"[.!?]+(?=\s|$)|\n+")


@dataclass(frozen=True)
class WrittenTexts:
    """The texts that a model wrote, one after each prompt."""

    texts: tuple[str, ...]

    def figures(self) -> dict[str, float]:
        """Return the mean of each figure over the texts that have it."""
        split = [text.split() for text in self.texts]
        figures = {
            "characters": [float(len(text)) for text in self.texts],
            "words": [float(len(words)) for words in split],
            "distinct_1": [distinct(words, 1) for words in split],
            "distinct_2": [distinct(words, 2) for words in split],
            "entropy": [entropy(words) for words in split],
            "self_bleu": [bleu(words, [*split[:index], *split[index + 1 :]]) for index, words in enumerate(split)],
            "reading_ease": [reading_ease(text) for text in self.texts],
        }
        known = {name: [value for value in values if not math.isnan(value)] for name, values in figures.items()}
        return {name: fmean(values) for name, values in known.items() if values}

    def metrics(self) -> dict[str, float]:
        """Return the figures by the names that trackers show, as ``generation/distinct_1``."""
        return {f"generation/{name}": value for name, value in self.figures().items()}

    def lines(self) -> list[str]:
        """Return a line for each figure."""
        return [f"{name:12} {value:10.4f}" for name, value in self.figures().items()]


def write_and_measure(
    language_model: ModelAndTokenizer, section: TextGenerationConfig, seed: int, where: str = PROMPTS
) -> WrittenTexts:
    """Continue each prompt of ``section`` and return the texts, which follow from the ``seed``. Raises UserError as
    `check_writing` does."""
    settings = GenerationSettings.from_section(section, key(seed, "text generation"))
    continuations = write_continuations(
        language_model.model,
        language_model.tokenizer,
        language_model.compute,
        check_writing(language_model, section, where),
        settings,
        language_model.bounds,
    )
    return WrittenTexts(tuple(continuation.text for continuation in continuations))


def check_writing(
    language_model: ModelAndTokenizer, section: TextGenerationConfig, where: str = PROMPTS
) -> list[list[int]]:
    """Return the ids of each prompt. Raises UserError, with ``where`` and the number of the prompt, for each that the
    tokenizer cannot encode."""
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
    """Count the n-grams of ``size`` words."""
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def distinct(words: Sequence[str], size: int) -> float:
    """Return the share of distinct n-grams (Li et al. 2016); NaN if the text has none."""
    counts = ngrams(words, size)
    return len(counts) / counts.total() if counts else math.nan


def entropy(words: Sequence[str]) -> float:
    """Return the entropy of the words in bits; NaN if there are none."""
    counts = Counter(words)
    total = counts.total()
    return -sum(n / total * math.log2(n / total) for n in counts.values()) if total else math.nan


def bleu(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return BLEU of a text against all others, its self-BLEU (Zhu et al. 2018): 1 if the texts are the same, NaN if
    one side has no words."""
    others = [other for other in references if other]
    if not words or not others:
        return math.nan
    logs: list[float] = []
    for size in range(1, ORDER + 1):
        counts = ngrams(words, size)
        most = Counter[tuple[str, ...]]()
        for other in others:
            most |= ngrams(other, size)
        matched = (counts & most).total()
        if size == 1 and not matched:
            return 0.0
        logs.append(math.log((matched or UNSEEN) / max(counts.total(), 1)))
    closest = min((abs(len(other) - len(words)), len(other)) for other in others)[1]
    brevity = min(0.0, 1 - closest / len(words))
    return math.exp(brevity + fmean(logs))


def reading_ease(text: str) -> float:
    """Return Flesch's reading ease (1948): about 100 for very easy English, 0 for very hard; NaN without words."""
    all_words = words(text)
    if not all_words:
        return math.nan
    sentences = max(1, sum(bool(words(part)) for part in _SENTENCE.split(text)))
    return 206.835 - 1.015 * len(all_words) / sentences - 84.6 * sum(map(syllables, all_words)) / len(all_words)
