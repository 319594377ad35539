"""The tokens of samples that are cut from a stream, in slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from quintet.data.samples import Samples, Stream, Windows
from quintet.errors import UserError

SLICE = 1 << 20  # tokens read at once


def streams_of(parts: Sequence[Samples], what: str) -> list[Stream]:
    """The stream behind each of ``parts``. Raises UserError for samples that are packed in another way."""
    found = [part.stream for part in parts if isinstance(part, Windows)]
    if len(found) < len(parts):
        raise UserError(
            f"--format {what} holds one stream of tokens, and data.packing makes other samples; set data.packing.kind "
            "to stream, or write --format huggingface"
        )
    return found


def slices(streams: Sequence[Stream]) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """All tokens, stream after stream, and which have a loss: [at most SLICE] each, None where all have."""
    for stream in streams:
        for start in range(0, stream.length, SLICE):
            size = min(SLICE, stream.length - start)
            yield stream.read(start, size), stream.loss_mask(start, size)
