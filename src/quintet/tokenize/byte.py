"""UTF-8 bytes as ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from quintet.tokenize.base import Ids, Spans, TokenBytes, check_text, digest
from quintet.tokenize.folder import write_description


class ByteTokenizer:
    """An id is a byte; 256 ends a document."""

    vocab_size = 257
    end_id = 256
    lossless = True
    can_cut = True
    fingerprint = digest("byte")

    @property
    def pieces(self) -> TokenBytes:
        return self._pieces

    @cached_property
    def _pieces(self) -> TokenBytes:
        return TokenBytes((*(bytes([value]) for value in range(256)), b""))

    def encode(self, text: str) -> list[int]:
        check_text(text)
        return list(text.encode("utf-8"))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            check_text(text)
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint32) for text in texts]

    def encode_spans(self, texts: Sequence[str]) -> list[Spans]:
        found = zip(texts, self.encode_batch(texts), strict=True)
        return [Spans.of_bytes(text, ids, np.ones(ids.size, dtype=np.int64)) for text, ids in found]

    def decode(self, ids: Ids) -> str:
        return self.pieces.decode(ids)

    def bytes_per_token(self) -> np.ndarray:
        return self.pieces.lengths()

    def save(self, folder: Path) -> None:
        write_description(folder, "byte", self.fingerprint, {})
