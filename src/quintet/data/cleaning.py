"""Rules about the text of documents that are not worth training on, and the search for duplicate documents.

The rules are those of Gopher (Rae et al. 2021, table A1) and of C4 (Raffel et al. 2020, section 2.2). Dropped documents
are counted by a reason, the name of the key that asks for the rule. Duplicates are found by the hashes of documents, or
by MinHash signatures: a signature has a number for each permutation of the words' hashes, and two documents agree in
about the share of these numbers in which their runs of words agree (Broder 1997). The library `datasketch` makes and
looks up signatures.
"""

import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np

from quintet.config.cleaning import (
    CleaningConfig,
    ExactDeduplication,
    MinhashDeduplication,
    NoDeduplication,
    QualityConfig,
)
from quintet.data.sources.base import Document, TextPiece, TokenIds
from quintet.data.store import TokenStore
from quintet.libraries import check_installed, require

Rule = Callable[[str], bool]
"""A function that returns True if a text is to be dropped."""
NO_CLEANING = CleaningConfig()

CLEANING_LIBRARIES = ("datasketch",)
"""Libraries that decide which documents are dropped, by their names on PyPI."""
_BULLETS = tuple("•‣⁃◦▪●-*")
_ELLIPSES = ("...", "…")
_SCHEME = "affine32"  # of datasketch, 32 bits per number; signatures are comparable only within one scheme
_NOTHING = np.uint32(0xFFFFFFFF)  # each number in datasketch's signature of a text without words
_CHUNK = 1 << 20
_MINHASH = "data.cleaning.deduplicate: minhash"


def clean(documents: Iterable[Document], cleaning: CleaningConfig, dropped: Counter[str]) -> Iterator[Document]:
    """Yield the ``documents`` that ``cleaning`` keeps, and count the others in ``dropped`` by reason.

    Documents of token ids have no text and are kept; empty documents are counted when documents are stored.
    """
    rules = rules_of(cleaning)
    for document in documents:
        reason = reason_to_drop(text_of(document), rules) if rules else None
        if reason is None:
            yield document
        else:
            dropped[reason] += 1


def reason_to_drop(text: str, rules: dict[str, Rule]) -> str | None:
    """Return the first of ``rules`` that drops ``text``, None if no rule does."""
    if not text:
        return None
    return next((reason for reason, drops in rules.items() if drops(text)), None)


def text_of(document: Document) -> str:
    """Return the text of ``document``, "" for one of token ids."""
    if isinstance(document, TokenIds):
        return ""
    if isinstance(document, TextPiece):
        assert document.whole is not None
        return document.whole
    return document if isinstance(document, str) else "".join(document.texts)


def rules_of(cleaning: CleaningConfig) -> dict[str, Rule]:
    """Return the rules that ``cleaning`` asks for, by reason, the cheap ones first."""
    least, most = cleaning.min_characters, cleaning.max_characters
    rules: dict[str, Rule] = {}
    if least is not None:
        rules["min_characters"] = lambda text: len(text) < least
    if most is not None:
        rules["max_characters"] = lambda text: len(text) > most
    return rules | _quality_rules(cleaning.quality)


def mean_word_length(text: str) -> float:
    """Return the mean number of characters of a word."""
    return _share(sum(map(len, text.split())), len(text.split()))


def symbol_ratio(text: str) -> float:
    """Return the number of hash signs or of ellipses per word, whichever is larger."""
    ellipses = sum(map(text.count, _ELLIPSES))
    return _share(max(text.count("#"), ellipses), len(text.split()))


def bullet_lines(text: str) -> float:
    """Return the share of the non-blank lines that begin with a bullet."""
    lines = _lines(text)
    return _share(sum(line.startswith(_BULLETS) for line in lines), len(lines))


def ellipsis_lines(text: str) -> float:
    """Return the share of the non-blank lines that end with an ellipsis."""
    lines = _lines(text)
    return _share(sum(line.endswith(_ELLIPSES) for line in lines), len(lines))


def alphabetic_words(text: str) -> float:
    """Return the share of the words that have a letter."""
    words = text.split()
    return _share(sum(any(map(str.isalpha, word)) for word in words), len(words))


def stop_words(text: str, known: Iterable[str]) -> int:
    """Return how many of the words ``known`` are in ``text``, regardless of capitals and of punctuation around
    words."""
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
    rules = {name: rule for name, rule in rules.items() if limits[name] is not None}
    refused = tuple(text.casefold() for text in quality.without)
    if refused:
        rules["without"] = lambda text: any(part in text.casefold() for part in refused)
    return rules


def _rule(limit: float, measure: Callable[[str], float], *, below: bool) -> Rule:
    return (lambda text: measure(text) < limit) if below else (lambda text: measure(text) > limit)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _share(part: float, of: int) -> float:
    return part / of if of else 0.0


def check_library(cleaning: CleaningConfig) -> None:
    """Raise UserError when ``cleaning`` needs a library that is not installed."""
    if isinstance(cleaning.deduplicate, MinhashDeduplication):
        check_installed("datasketch", extra="dedup", what=_MINHASH)


def _datasketch() -> ModuleType:
    return require("datasketch", "dedup", _MINHASH)


def signer(cleaning: CleaningConfig) -> Callable[[str], np.ndarray] | None:
    """Return a function from a text to its signature, uint32 [permutations]; None if ``cleaning`` needs none."""
    how = cleaning.deduplicate
    if not isinstance(how, MinhashDeduplication):
        return None
    blank = _datasketch().MinHash(num_perm=how.permutations, scheme=_SCHEME)

    def sign(text: str) -> np.ndarray:
        signature = blank.copy()
        for part in _chunks(shingles(text, how.ngram)):
            signature.update_batch(part)
        return signature.hashvalues

    return sign


def shingles(text: str, ngram: int) -> Iterator[bytes]:
    """Yield each run of ``ngram`` words of ``text``, or all its words if there are fewer, in small letters."""
    words = text.casefold().encode("utf-8", "surrogatepass").split()
    if words:
        yield from (b" ".join(words[start : start + ngram]) for start in range(max(1, len(words) - ngram + 1)))


def find_duplicates(store: TokenStore, cleaning: CleaningConfig) -> tuple[np.ndarray, Counter[str]]:
    """Return the documents of ``store`` that ``cleaning`` drops, int64 [documents], ascending, and their number by
    reason.

    Memory per document: about 40 bytes for exact, about two kilobytes for MinHash.
    """
    reason, find = DEDUPLICATIONS[cleaning.deduplicate.kind]
    duplicates = find(store, cleaning.deduplicate)
    return duplicates, Counter({reason: duplicates.size} if duplicates.size else {})


def _none(store: TokenStore, config: NoDeduplication) -> np.ndarray:
    """Return no document: int64 [0]."""
    return np.empty(0, dtype=np.int64)


def _repeated(store: TokenStore, config: ExactDeduplication) -> np.ndarray:
    """Return the documents whose hash an earlier one has: int64 [documents], ascending."""
    hashes = store.hashes(0, store.document_count)
    first = np.unique(hashes, return_index=True)[1]
    later = np.ones(hashes.size, dtype=bool)
    later[first] = False
    return np.flatnonzero(later)


def _similar(store: TokenStore, config: MinhashDeduplication) -> np.ndarray:
    """Return the documents that are similar to an earlier one that stays: int64 [documents], ascending."""
    threshold, permutations = config.threshold, config.permutations
    datasketch = _datasketch()
    # The index proposes and the signatures decide, so the index should miss few pairs even if it proposes many. With
    # weights of one half it finds 40% of the pairs whose similarity is just 0.8, with these 87%. Above 0.9 it has no
    # bands.
    index = datasketch.MinHashLSH(threshold=min(threshold, 0.9), num_perm=permutations, weights=(0.1, 0.9))
    similar: list[int] = []
    step = max(1, _CHUNK // permutations)
    for start in range(0, store.document_count, step):
        signatures = store.signatures(start, min(start + step, store.document_count))
        for document, values in enumerate(signatures, start):
            if (values == _NOTHING).all():
                continue
            signature = datasketch.MinHash(hashvalues=values, scheme=_SCHEME)
            if _agrees(store, values, index.query(signature), threshold):
                similar.append(document)
            else:
                index.insert(document, signature, check_duplication=False)
    return np.array(similar, dtype=np.int64)


DEDUPLICATIONS: dict[str, tuple[str, Callable[[TokenStore, Any], np.ndarray]]] = {
    "none": ("", _none),
    "exact": ("duplicate", _repeated),
    "minhash": ("near_duplicate", _similar),
}
"""For each kind: the reason by which its documents are counted, and the function that finds them in a store."""


def _agrees(store: TokenStore, values: np.ndarray, candidates: Iterable[Any], threshold: float) -> bool:
    """Return True if the similarity of one of ``candidates`` to ``values``, uint32 [permutations], is ``threshold`` or
    more; the index also proposes candidates that are less similar."""
    return any((store.signatures(one, one + 1)[0] == values).mean() >= threshold for one in candidates)


def _chunks(values: Iterator[bytes], size: int = 1 << 14) -> Iterator[list[bytes]]:
    """Yield ``values`` in lists, for each of which datasketch makes a table of permutations × values."""
    while chunk := list(islice(values, size)):
        yield chunk
