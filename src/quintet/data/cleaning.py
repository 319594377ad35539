"""Which documents are not worth training on: rules from a text to the reason to drop it.

The rules are those of Gopher (Rae et al. 2021, table A1) and of C4 (Raffel et al. 2020, section 2.2). A reason is the
name of the key that asks for it.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from quintet.config.cleaning import CleaningConfig, QualityConfig
from quintet.data.sources.document import Document, TextPiece, TokenIds

Rule = Callable[[str], bool]
"""Whether a text is to be dropped."""

_BULLETS = tuple("•‣⁃◦▪●-*")
_ELLIPSES = ("...", "…")


def kept(found: Iterable[Document], cleaning: CleaningConfig, dropped: Counter[str]) -> Iterator[Document]:
    """Those of ``found`` that ``cleaning`` keeps; the others are counted in ``dropped`` by the reason.

    Tokens that are ready have no text and are kept, and empty documents are counted where documents are stored.
    """
    rules = rules_of(cleaning)
    for document in found:
        reason = reason_to_drop(text_of(document), rules) if rules else None
        if reason is None:
            yield document
        else:
            dropped[reason] += 1


def reason_to_drop(text: str, rules: dict[str, Rule]) -> str | None:
    """The first of ``rules`` by which ``text`` is to be dropped, None if it is to be kept."""
    if not text:
        return None
    return next((reason for reason, drops in rules.items() if drops(text)), None)


def text_of(document: Document) -> str:
    """The text of ``document``, empty for tokens that are ready."""
    if isinstance(document, TokenIds):
        return ""
    if isinstance(document, TextPiece):
        assert document.whole is not None
        return document.whole
    return document if isinstance(document, str) else "".join(document.texts)


def rules_of(cleaning: CleaningConfig) -> dict[str, Rule]:
    """The rules that ``cleaning`` asks for, by the reason, the cheap ones first."""
    least, most = cleaning.min_characters, cleaning.max_characters
    rules: dict[str, Rule] = {}
    if least is not None:
        rules["min_characters"] = lambda text: len(text) < least
    if most is not None:
        rules["max_characters"] = lambda text: len(text) > most
    return rules | _quality_rules(cleaning.quality)


def mean_word_length(text: str) -> float:
    """Characters of a word on average."""
    return _share(sum(map(len, text.split())), len(text.split()))


def symbol_ratio(text: str) -> float:
    """Hash signs for each word, or ellipses for each word: what is more."""
    ellipses = sum(map(text.count, _ELLIPSES))
    return _share(max(text.count("#"), ellipses), len(text.split()))


def bullet_lines(text: str) -> float:
    """Share of the lines, of those that are not blank, that begin with a bullet."""
    lines = _lines(text)
    return _share(sum(line.startswith(_BULLETS) for line in lines), len(lines))


def ellipsis_lines(text: str) -> float:
    """Share of the lines, of those that are not blank, that end with an ellipsis."""
    lines = _lines(text)
    return _share(sum(line.endswith(_ELLIPSES) for line in lines), len(lines))


def alphabetic_words(text: str) -> float:
    """Share of the words that have a letter."""
    words = text.split()
    return _share(sum(any(map(str.isalpha, word)) for word in words), len(words))


def stop_words(text: str, known: Iterable[str]) -> int:
    """How many different ones of ``known`` are in ``text``; capitals and punctuation around a word do not count."""
    words = {word.strip(string.punctuation).casefold() for word in text.split()}
    return len(words & {word.casefold() for word in known})


def _quality_rules(quality: QualityConfig) -> dict[str, Rule]:
    least: dict[str, Callable[[str], float]] = {
        "min_words": lambda text: len(text.split()),
        "min_mean_word_length": mean_word_length,
        "min_alphabetic_words": alphabetic_words,
        "min_stop_words": lambda text: stop_words(text, quality.stop_words),
    }
    most: dict[str, Callable[[str], float]] = {
        "max_words": lambda text: len(text.split()),
        "max_mean_word_length": mean_word_length,
        "max_symbol_ratio": symbol_ratio,
        "max_bullet_lines": bullet_lines,
        "max_ellipsis_lines": ellipsis_lines,
    }
    limits = {name: getattr(quality, name) for name in (*least, *most)}
    rules = {name: _rule(limits[name], measure, below=True) for name, measure in least.items()}
    rules |= {name: _rule(limits[name], measure, below=False) for name, measure in most.items()}
    wanted = {name: rule for name, rule in rules.items() if limits[name] is not None}
    refused = tuple(text.casefold() for text in quality.without)
    if refused:
        wanted["without"] = lambda text: any(one in text.casefold() for one in refused)
    return wanted


def _rule(limit: float, measure: Callable[[str], float], *, below: bool) -> Rule:
    return (lambda text: measure(text) < limit) if below else (lambda text: measure(text) > limit)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _share(part: float, of: int) -> float:
    return part / of if of else 0.0
