"""The documents that a run holds out, one by one, whatever samples are made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from quintet.data.batch import ValidationData
from quintet.data.packing import Packed, document_spans
from quintet.data.samples import Windows
from quintet.data.split import TokenRanges, TokenStream
from quintet.data.store import TokenStore
from quintet.tokenize import Tokenizer
from quintet.tokenize.bounds import begin_ids


@dataclass(frozen=True)
class HeldOutDocument:
    """``ids`` [tokens] without begin and end ids, of which ``loss_mask``, bool [tokens] or None for all, have a loss;
    ``whole`` unless only its tail is held out."""

    ids: np.ndarray
    loss_mask: np.ndarray | None
    whole: bool


def held_out_documents(validation: ValidationData, tokenizer: Tokenizer) -> Iterator[tuple[str, HeldOutDocument]]:
    """Each held-out document with the label of its source, in the order of sources and documents. Music has none."""
    for label, samples in zip(validation.labels, validation.streams, strict=True):
        parts = _parts(samples)
        if parts is None:
            continue
        store, ranges = parts
        begin = begin_ids(tokenizer)
        spans = document_spans(store, ranges, tokenizer.end_id, begin)
        for start, stop in zip(*(span.tolist() for span in spans), strict=True):
            first = int(store.document_bounds(np.array([store.document_at(start)]))[0][0])
            yield (
                label,
                HeldOutDocument(store.tokens(start, stop), store.loss_mask(start, stop), start <= first + len(begin)),
            )


def _parts(samples: object) -> tuple[TokenStore, TokenRanges] | None:
    if isinstance(samples, Packed):
        return samples.store, samples.ranges
    if isinstance(samples, Windows) and isinstance(samples.stream, TokenStream):
        store = samples.stream.store
        assert isinstance(store, TokenStore)
        return store, samples.stream.ranges
    return None
