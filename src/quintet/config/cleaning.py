"""The section `data.cleaning`: documents that are dropped for their length, their quality or as duplicates."""

from typing import Annotated, Literal

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


def _ordered(part: ConfigSection, low: str, high: str) -> ConfigErrors:
    least, most = getattr(part, low), getattr(part, high)
    if least is not None and most is not None and least > most:
        yield config_error(low, f"{least:g} is more than the {most:g} of `{high}`; no document would be left")


class QualityConfig(ConfigSection):
    """Quality rules of Gopher (Rae et al. 2021, table A1) and C4 (Raffel et al. 2020, section 2.2), each off until it
    has a value. Words are separated by white space."""

    min_words: int | None = key(None, "fewest words of a document; Gopher: 50", unit="words", ge=1)
    max_words: int | None = key(None, "most words of a document; Gopher: 100000", unit="words", ge=1)
    min_mean_word_length: float | None = key(None, "lowest mean length of a word; Gopher: 3", unit="characters", gt=0)
    max_mean_word_length: float | None = key(None, "highest mean length of a word; Gopher: 10", unit="characters", gt=0)
    max_symbol_ratio: float | None = key(
        None, "most hash signs, and most ellipses, per word; Gopher: 0.1", unit="signs per word", ge=0
    )
    max_bullet_lines: float | None = key(
        None, "largest share of lines that start with a bullet; Gopher: 0.9", unit="fraction", ge=0, le=1
    )
    max_ellipsis_lines: float | None = key(
        None, "largest share of lines that end with an ellipsis; Gopher: 0.3", unit="fraction", ge=0, le=1
    )
    min_alphabetic_words: float | None = key(
        None, "smallest share of words that contain a letter; Gopher: 0.8", unit="fraction", ge=0, le=1
    )
    min_stop_words: int | None = key(
        None, "fewest different words of `stop_words` in a document; Gopher: 2", unit="words", ge=1
    )
    stop_words: tuple[str, ...] = key(STOP_WORDS, "common words of the language; by default Gopher's, for English")
    without: tuple[Annotated[str, Field(min_length=1)], ...] = key(
        (), "texts that no document may contain, ignoring case; C4: 'lorem ipsum' and '{'"
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for each pair of bounds that exclude each other."""
        yield from _ordered(self, "min_words", "max_words")
        yield from _ordered(self, "min_mean_word_length", "max_mean_word_length")
        if self.min_stop_words is not None and self.min_stop_words > len(set(self.stop_words)):
            yield config_error(
                "min_stop_words", f"{self.min_stop_words} is more than the {len(set(self.stop_words))} `stop_words`"
            )


class NoDeduplication(ConfigSection):
    """All documents are kept."""

    kind: Literal["none"] = key("none", "keep all documents")


class ExactDeduplication(ConfigSection):
    """Of documents with the same tokens, the first is kept."""

    kind: Literal["exact"] = key(..., "of documents with the same tokens, keep the first")


class MinhashDeduplication(ConfigSection):
    """Of documents that share most of their word n-grams, the first is kept (Broder 1997). Documents that are token ids
    already have no text to compare and are kept. Needs the `dedup` extra."""

    kind: Literal["minhash"] = key(..., "of near-duplicates, keep the first")
    threshold: float = key(
        0.8,
        "lowest estimated Jaccard similarity of two near-duplicates",
        unit="fraction",
        gt=0,
        le=1,
    )
    permutations: int = key(
        128, "numbers in the MinHash signature of a document: more estimate better and cost more", unit="numbers", ge=16
    )
    ngram: int = key(5, "words in an n-gram", unit="words", ge=1)


DeduplicationConfig = Annotated[
    NoDeduplication | ExactDeduplication | MinhashDeduplication, Field(discriminator="kind")
]


class CleaningConfig(ConfigSection):
    """Documents that are dropped from each source. They are counted by reason in the store's manifest."""

    min_characters: int | None = key(None, "fewest characters of a document", unit="characters", ge=1)
    max_characters: int | None = key(None, "most characters of a document", unit="characters", ge=1)
    quality: QualityConfig = key(QualityConfig(), "quality rules for text from the web")
    deduplicate: DeduplicationConfig = key(
        NoDeduplication(kind="none"), "documents that are dropped because the source has an equal or similar one before"
    )

    def errors(self) -> ConfigErrors:
        """Yield an error if the bounds exclude each other."""
        return _ordered(self, "min_characters", "max_characters")
