"""Decoding while ids arrive."""

from __future__ import annotations

import codecs

from quintet.tokenize.base import Tokenizer


class TextStream:
    """Text of ids that come one by one: whole characters only, and together exactly ``tokenizer.decode(ids)``.

    A character may be spread over several ids, so ``push`` returns "" until it is complete. With ``continues`` the ids
    carry on a text that stands already, and a tokenizer that drops the first word's space keeps it. ``dropped`` is that
    space after the id that lost it, where ids that write nothing came before: it stands between them and the word when
    special tokens are written out, as ``decode`` of transformers does.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False) -> None:
        self._pieces = tokenizer.pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drop_space = tokenizer.pieces.leading_space and not continues
        self._first = True
        self.dropped = ""

    def push(self, token: int) -> str:
        """The characters that are complete with this id."""
        piece, self.dropped = self._pieces.of(token), ""
        if self._drop_space and piece:
            self._drop_space = False
            if piece.startswith(b" "):
                piece, self.dropped = piece[1:], "" if self._first else " "
        self._first = False
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """What is left: U+FFFD when the last character is not complete, else nothing."""
        return self._decoder.decode(b"", final=True)
