"""Ids that stand for nothing but themselves, for data without a text behind it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from quintet.errors import UserError
from quintet.tokenize.base import NO_END, digest
from quintet.tokenize.folder import write_description
from quintet.tokenize.word_level import WordTokenizer


class IdTokenizer(WordTokenizer):
    """``vocab_size`` ids, written as numbers with spaces between them ("12 7 9"). ``end_id`` ends a document; with
    ``NO_END`` documents do not end."""

    def __init__(self, vocab_size: int, end_id: int = NO_END) -> None:
        super().__init__(vocab_size, end_id)
        self.fingerprint = digest("ids", str(vocab_size), str(end_id))

    def save(self, folder: Path) -> None:
        end_id = None if self.end_id == NO_END else self.end_id
        write_description(folder, "ids", self.fingerprint, {"vocab_size": self.vocab_size, "end_id": end_id})

    def _words(self) -> Iterable[str]:
        return map(str, range(self.vocab_size))

    def _id(self, word: str) -> int:
        # Not int(): it would also take "1_0", "+1" and digits of other scripts.
        if not (word.isascii() and word.isdecimal()) or int(word) >= self.vocab_size:
            raise UserError(
                f"text: {word[:20]!r} is no id below {self.vocab_size}; tokenizer.kind: ids knows no text, so write "
                'ids as numbers ("12 7 9"), or set another tokenizer'
            )
        return int(word)
