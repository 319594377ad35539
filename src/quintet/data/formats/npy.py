"""Token arrays: train.npy and validation.npy, with NAME_labels.npy beside where not all tokens have a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from quintet.config.documents import IGNORED
from quintet.data.formats.streams import slices, streams_of
from quintet.data.samples import Samples, Stream
from quintet.data.store import ArrayWriter, token_dtype
from quintet.tokenize import Tokenizer


def write_npy(parts: Mapping[str, Sequence[Samples]], tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokens of each of ``parts``, source after source, uint16 or uint32 [tokens]; labels are int32."""
    for name, samples in parts.items():
        streams = streams_of(samples, "npy")
        masked = any(loss_mask is not None and not loss_mask.all() for _, loss_mask in slices(streams))
        _write(folder / f"{name}.npy", streams, token_dtype(tokenizer.vocab_size), labels=False)
        if masked:
            _write(folder / f"{name}_labels.npy", streams, np.dtype("<i4"), labels=True)


def _write(file: Path, streams: Sequence[Stream], dtype: np.dtype, *, labels: bool) -> None:
    writer = ArrayWriter(file, dtype)
    for ids, loss_mask in slices(streams):
        writer.append(np.where(loss_mask, ids.astype(np.int32), IGNORED) if labels and loss_mask is not None else ids)
    writer.close()
