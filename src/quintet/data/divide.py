"""Division of the token stores into training and validation data: held-out documents, their copies, samples, order."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quintet.config.packing import MusicPackingConfig, StreamPackingConfig, TablePackingConfig
from quintet.config.schema import RunConfig
from quintet.data.batch import TrainData, ValidationData
from quintet.data.contamination import HashSet, copies, hashes_of, shared_documents
from quintet.data.mixture import build_order
from quintet.data.packing import cut_stream, pack
from quintet.data.samples import Samples
from quintet.data.sources import sources_of
from quintet.data.split import HeldOut, TokenStream, hold_out, training_stream, whole
from quintet.data.store import TokenStore
from quintet.errors import UserError
from quintet.piano.tokenizers.base import note_tokenizer
from quintet.randomness import key
from quintet.tokenize import Tokenizer

Stores = Sequence[TokenStore]
"""The stores of data.sources, then those of data.validation_sources."""


def divide(
    config: RunConfig, stores: Stores, cache: Path, tokenizer: Tokenizer
) -> tuple[TrainData, ValidationData | None, int]:
    """Return the training data, the validation data, and the number of documents that are not trained on because they
    are copies of validation documents. Tables of samples are kept in ``cache``. Raises UserError for a source without a
    sample, and when nothing is left to validate on."""
    data, length = config.data, config.data.sequence_length
    labels = tuple(source.display_name for source, _ in sources_of(config))
    trained = len(data.sources)
    parts = _held_out(config, stores)
    copied = _copies(config, stores, parts)
    left_out = sum(documents.size for documents in copied)
    unused = [np.union1d(documents, store.dropped) for documents, store in zip(copied, stores, strict=False)]
    remaining = map(training_stream, stores[:trained], parts, unused)
    streams = tuple(_samples(config, stream, tokenizer, cache, training=True) for stream in remaining)
    order = build_order(config, _training_counts(config, streams, left_out))
    train = TrainData(streams, labels[:trained], order, config.batch.samples, length)
    if not data.validation and not data.validation_sources:
        return train, None, left_out
    held_out = [TokenStream(store, part.ranges) for store, part in zip(stores, parts, strict=False)]
    names = labels[:trained]
    if data.validation_sources:
        held_out, names = [whole(store, store.dropped) for store in stores[trained:]], labels[trained:]
    held_samples = tuple(_samples(config, stream, tokenizer, cache, training=False) for stream in held_out)
    validation = ValidationData(held_samples, names, length, config.evaluate.samples_each)
    if not validation.samples and config.evaluate.never:
        return train, None, left_out
    if not validation.samples:
        where, remedy = "data.validation", "raise data.validation (0 holds nothing out)"
        if data.validation_sources:
            where, remedy = "data.validation_sources", "name a larger source"
        raise UserError(
            f"{where}: {validation.tokens:,} tokens to validate on are fewer than the {length + 1:,} of one "
            f"sample (data.sequence_length + 1); {remedy}, or lower data.sequence_length"
        )
    return train, validation, left_out


def validated_and_seen(config: RunConfig, stores: Stores, other: RunConfig, others: Stores) -> tuple[int, int]:
    """Return the number of documents that the run of ``config`` validates on, and how many of them are equal, token by
    token, to a document that the run of ``other`` could train on. A document of which that run holds out a part does
    not count. ``stores`` and ``others`` are those of their ``Prepared``, all written by one tokenizer."""
    trained = len(config.data.sources)
    if config.data.validation_sources:
        held = [hashes_of(store, np.arange(store.document_count)) for store in stores[trained:]]
    else:
        parts = _held_out(config, stores)
        held = [hashes_of(store, part.documents) for store, part in zip(stores, parts, strict=False)]
    validated = np.concatenate(held)
    hashes, seen = HashSet.of(validated), [np.empty(0, dtype=np.uint64)]
    parts = _held_out(other, others)
    for store, part, copied in zip(others, parts, _copies(other, others, parts), strict=False):
        unseen = np.union1d(np.union1d(part.documents, copied), store.dropped)
        seen.append(hashes_of(store, shared_documents(store, hashes, unseen)))
    return validated.size, int(np.isin(validated, np.concatenate(seen)).sum())


def _held_out(config: RunConfig, stores: Stores) -> list[HeldOut]:
    seed, trained = key(config.seed, "validation"), len(config.data.sources)
    return [hold_out(store, config.data.validation, seed, store.dropped) for store in stores[:trained]]


def _copies(config: RunConfig, stores: Stores, held: list[HeldOut]) -> list[np.ndarray]:
    """Return the documents of each training store that are equal to a validation document, int64 [documents] each."""
    none, trained = np.empty(0, dtype=np.int64), len(held)
    if not config.data.deduplicate_validation:
        return [none] * trained
    if not config.data.validation_sources:
        return copies(stores, held)
    validated = [hashes_of(store, np.arange(store.document_count)) for store in stores[trained:]]
    hashes = HashSet.of(np.concatenate(validated))
    return [shared_documents(store, hashes, none) for store in stores[:trained]]


def _samples(config: RunConfig, stream: TokenStream, tokenizer: Tokenizer, cache: Path, *, training: bool) -> Samples:
    """Return the samples of a part of a store, as data.packing cuts them; only training samples are augmented."""
    return PACKINGS[config.data.packing.kind](config.data.packing, config, stream, tokenizer, cache, training)


def _streamed(
    packing: StreamPackingConfig, config: RunConfig, stream: TokenStream, _: Tokenizer, cache: Path, training: bool
) -> Samples:
    return cut_stream(stream, config.data.sequence_length, packing.predict_next, cache)


def _packed(
    packing: TablePackingConfig,
    config: RunConfig,
    stream: TokenStream,
    tokenizer: Tokenizer,
    cache: Path,
    training: bool,
) -> Samples:
    return pack(stream.store, stream.ranges, packing, config.data.sequence_length, tokenizer, cache)


def _from_music(
    packing: MusicPackingConfig, config: RunConfig, stream: TokenStream, tokenizer: Tokenizer, _: Path, training: bool
) -> Samples:
    from quintet.data.note_samples import MusicPieces, NoteSamples

    seed = key(config.seed, "notes")
    pieces, data = MusicPieces.of(stream), config.data
    tokenizer = note_tokenizer(tokenizer)
    return NoteSamples(pieces, tokenizer, packing, data.sequence_length, seed, training, data.learn_prompts)


PACKINGS: dict[str, Callable[[Any, RunConfig, TokenStream, Tokenizer, Path, bool], Samples]] = {
    "stream": _streamed,
    "chunks": _packed,
    "document": _packed,
    "best_fit": _packed,
    "pieces": _from_music,
    "tasks": _from_music,
}
"""For each kind, the function that makes samples of a part of a store. It gets the packing's config, the run's, the
part, the tokenizer of the store, the folder in which tables are kept, and True for samples to train on."""


def _training_counts(config: RunConfig, streams: tuple[Samples, ...], left_out: int) -> tuple[int, ...]:
    """Return the number of samples of each source. Raises UserError with every source that has none."""
    length = config.data.sequence_length
    also = f"{left_out:,} documents are left out because they are validated on too (data.deduplicate_validation)"
    hint = f"; {also}" if left_out else ""
    counts = tuple(stream.count for stream in streams)
    problems: list[str] = []
    for (source, where), stream, count in zip(sources_of(config), streams, counts, strict=False):
        lost = stream.left_out
        if lost.samples and lost.samples == lost.all_samples:
            problems.append(
                f"{where}: none of the {lost.all_samples:,} samples of {source.display_name} has a target left "
                f"(data.packing: {config.data.packing.kind}){hint}; raise data.sequence_length"
            )
        elif not count:
            problems.append(
                f"{where}: {source.display_name} has {stream.tokens:,} tokens to train on, fewer than the "
                f"{length + 1:,} of one sample (data.sequence_length + 1){hint}; lower data.sequence_length or "
                "data.validation, or name more text"
            )
    if problems:
        raise UserError(*problems)
    return counts
