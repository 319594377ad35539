"""Which items of a benchmark a tiny model can be measured by: short ones in plain words.

STLM's document names `stlm_eval_…` benchmarks and nothing public says what is in them. Here an item belongs to one when

- question and longest choice have at most ``WORDS`` words together,
- no word of question and choices has more than ``LETTERS`` letters, for the shorter a word the more common it is
  (Zipf, The Psycho-Biology of Language, 1935),
- at most ``HARD`` of the words are hard, which are those of three syllables or more in Gunning's fog index (The
  Technique of Clear Writing, 1952).

The rule needs no list of words and gives the same items on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

WORDS = 40
LETTERS = 9
HARD = 0.1

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_VOWELS = re.compile(r"[aeiouy]+")
_SILENT = re.compile(r"[^aeiouy](?:e|es|ed)$")
_SPOKEN = re.compile(r"(?:[^aeiouy]les?|[td]ed|(?:[csxz]|[cs]h)es|ges)$")


def words(text: str) -> list[str]:
    """Runs of letters and digits, with apostrophes inside."""
    return _WORD.findall(text)


def syllables(word: str) -> int:
    """Groups of vowels in ``word``, y among them, without the silent one of -e, -es and -ed; at least one."""
    plain = word.lower()
    silent = bool(_SILENT.search(plain)) and not _SPOKEN.search(plain)
    return max(1, len(_VOWELS.findall(plain)) - silent)


def is_short_and_plain(question: str, choices: Sequence[str]) -> bool:
    """Whether an item is within the rule above."""
    asked, answers = words(question), [words(choice) for choice in choices]
    if len(asked) + max(map(len, answers), default=0) > WORDS:
        return False
    every = [*asked, *(word for answer in answers for word in answer)]
    hard = sum(syllables(word) >= 3 for word in every)
    return all(len(word) <= LETTERS for word in every) and hard <= HARD * len(every)
