"""From a run file to the data of the run: tokenizer, token stores, what is held out, batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quintet.config.data import SourceConfig, StoreSource
from quintet.config.schema import RunConfig
from quintet.config.tokenizer import BPETokenizerConfig, CharTokenizerConfig
from quintet.data.batch import Stream, TrainData, ValidationData, sample_count
from quintet.data.build import Order, Progress, build_store, check_output, store_key
from quintet.data.mixture import EpochOrder, WeightedOrder
from quintet.data.sources.check import check_sources, sources_of
from quintet.data.sources.document import Document, Parts, Report
from quintet.data.sources.listing import Listing, documents, label_of, list_source, units_of
from quintet.data.split import split, whole
from quintet.data.store import TokenStore, read_manifest
from quintet.errors import UserError
from quintet.randomness import key
from quintet.tokenize import Tokenizer, build_tokenizer, load_tokenizer
from quintet.tokenize.base import digest, threads

# A tokenizer is trained on an even sample; of a corpus much larger than that, not every unit need be read for it.
_READ_FOR_SAMPLE = 64


@dataclass(frozen=True)
class Prepared:
    """What a run needs of its data. ``stores`` are those of data.sources, then those of data.validation_sources;
    ``fingerprint`` follows from all their tokens, wherever the sources lie."""

    tokenizer: Tokenizer
    train: TrainData
    validation: ValidationData | None
    stores: tuple[TokenStore, ...]
    fingerprint: str


@dataclass(frozen=True)
class _Corpus:
    """The sources of a run with their keys in the run file, and a listing of each that is not a store already."""

    sources: tuple[SourceConfig, ...]
    wheres: tuple[str, ...]
    listings: tuple[Listing | None, ...]


def prepare(config: RunConfig, *, progress: Progress | None = None) -> Prepared:
    """Tokenise what is not tokenised yet and open the data of ``config``.

    ``progress(stage, done_bytes, total_bytes)`` is called along the way. What is finished is found again under
    data.cache_dir, also after a kill in the middle. Raises UserError for everything that the user can mend: sources
    that are missing, damaged or empty, a store of another tokenizer, too few tokens for one sample.
    """
    corpus = _look_at(config)
    tokenizer = _tokenizer(config, corpus, progress)
    stores = tuple(
        _store(config, source, where, listing, tokenizer, progress)
        for source, where, listing in zip(corpus.sources, corpus.wheres, corpus.listings, strict=True)
    )
    train, validation = _divide(config, corpus, stores)
    return Prepared(tokenizer, train, validation, stores, digest(*(store.fingerprint for store in stores)))


def prepare_to(config: RunConfig, folder: Path, *, progress: Progress | None = None) -> TokenStore:
    """Write the store of the only source of ``config`` to ``folder``, for a source of kind store.

    Raises UserError when there are several sources, when the only one is a store, or ``folder`` holds something else.
    """
    if len(config.data.sources) != 1 or isinstance(config.data.sources[0], StoreSource):
        found = f"{len(config.data.sources)} sources" if len(config.data.sources) != 1 else "a store already"
        raise UserError(f"data.sources: --output writes the store of one source that is read, and there are {found}")
    corpus = _look_at(config)
    listing = corpus.listings[0]
    assert listing is not None
    tokenizer = _tokenizer(config, corpus, progress)
    check_output(folder, store_key(listing, tokenizer))
    return _built(config, folder, listing, corpus.wheres[0], tokenizer, progress)


def build_tokenizer_of(config: RunConfig, *, progress: Progress | None = None) -> Tokenizer:
    """The tokenizer of ``config`` alone; one that is made from the sources reads them, or is found in the cache."""
    return _tokenizer(config, _look_at(config), progress)


def _look_at(config: RunConfig) -> _Corpus:
    check_sources(config)
    found = sources_of(config)
    listings = (None if isinstance(source, StoreSource) else list_source(source, where) for source, where in found)
    return _Corpus(tuple(source for source, _ in found), tuple(where for _, where in found), tuple(listings))


def _tokenizer(config: RunConfig, corpus: _Corpus, progress: Progress | None) -> Tokenizer:
    made_from_sources = isinstance(config.tokenizer, CharTokenizerConfig | BPETokenizerConfig)
    stores = [source for source in corpus.sources if isinstance(source, StoreSource)]
    if made_from_sources and stores:
        return _tokenizer_of_store(config, stores[0])
    listings = [listing for listing in corpus.listings if listing is not None]
    fingerprint = digest(*(listing.fingerprint for listing in listings))
    texts = partial(_texts, config, listings, progress)
    return build_tokenizer(config.tokenizer, texts, fingerprint, _cache(config))


def _tokenizer_of_store(config: RunConfig, source: StoreSource) -> Tokenizer:
    """A tokenizer made from sources cannot be made again from their tokens, so it is the store's."""
    folder = Path(source.path).expanduser()
    made, wanted = read_manifest(folder).tokenizer_config, config.tokenizer.model_dump(mode="json")
    if made != wanted:
        raise UserError(
            f"{folder}: was written with another `tokenizer` than the run's: {_words(made)}, not {_words(wanted)}; "
            "give the run the same, or prepare the store again"
        )
    return load_tokenizer(folder / "tokenizer")


def _texts(config: RunConfig, listings: list[Listing], progress: Progress | None) -> Iterator[str]:
    """The documents of ``listings``, or enough of them, evenly, when only a sample of them is needed."""
    budget = config.tokenizer.train_bytes if isinstance(config.tokenizer, BPETokenizerConfig) else None
    stride = 1 if budget is None else max(1, sum(one.size for one in listings) // (_READ_FOR_SAMPLE * budget))
    units = [unit for listing in listings for unit in units_of(listing)[0][::stride]]
    done, total = 0, sum(unit.size for unit in units)
    for unit in units:
        yield from _texts_of(documents(unit, Report()))
        done += unit.size
        if progress is not None and total:
            progress("reading for the tokenizer", done, total)


def _texts_of(found: Iterator[Document]) -> Iterator[str]:
    """What a tokenizer can be trained on: tokens that are ready have no text."""
    for document in found:
        if isinstance(document, str):
            yield document
        elif isinstance(document, Parts):
            yield from document.texts


def _store(
    config: RunConfig,
    source: SourceConfig,
    where: str,
    listing: Listing | None,
    tokenizer: Tokenizer,
    progress: Progress | None,
) -> TokenStore:
    if listing is None:
        assert isinstance(source, StoreSource)
        store = TokenStore.open(Path(source.path).expanduser(), tokenizer.fingerprint)
    else:
        folder = _cache(config) / "stores" / store_key(listing, tokenizer)
        store = _built(config, folder, listing, where, tokenizer, progress)
    if not store.token_count:
        left_out = store.manifest.left_out
        hint = f"; {left_out} files were left out because they are no UTF-8 text" if left_out else ""
        raise UserError(f"{where}: {label_of(source)} holds no text{hint}; name another source")
    return store


def _built(
    config: RunConfig, folder: Path, listing: Listing, where: str, tokenizer: Tokenizer, progress: Progress | None
) -> TokenStore:
    # A dataset is a snapshot; files can be written to while they are read.
    relist: Callable[[], Listing] | None = partial(list_source, listing.source, where) if listing.files else None
    order = Order(listing, tokenizer, config.tokenizer.model_dump(mode="json"), folder)
    return build_store(order, config.data.processes or threads(), progress, relist)


def _divide(
    config: RunConfig, corpus: _Corpus, stores: tuple[TokenStore, ...]
) -> tuple[TrainData, ValidationData | None]:
    data, seed, length = config.data, config.seed, config.data.sequence_length
    labels = tuple(map(label_of, corpus.sources))
    trained = len(data.sources)
    parts = [split(store, data.validation, key(seed, "validation")) for store in stores[:trained]]
    streams = tuple(stream for stream, _ in parts)
    counts = _training_counts(config, streams, corpus)
    weights = tuple(source.weight for source in data.sources if source.weight is not None)
    order = WeightedOrder(counts, weights, seed, data.shuffle) if weights else EpochOrder(counts, seed, data.shuffle)
    train = TrainData(streams, labels[:trained], order, config.batch.samples, length)
    if not data.validation and not data.validation_sources:
        return train, None
    held_out = tuple(stream for _, stream in parts)
    names = labels[:trained]
    if data.validation_sources:
        held_out, names = tuple(map(whole, stores[trained:])), labels[trained:]
    validation = ValidationData(held_out, names, length)
    if not validation.samples:
        remedy = "name a larger source" if data.validation_sources else "raise data.validation (0 holds nothing out)"
        raise UserError(
            f"data.validation: {validation.tokens:,} tokens to validate on are fewer than the {length + 1:,} of one "
            f"sample (data.sequence_length + 1); {remedy}, or lower data.sequence_length"
        )
    return train, validation


def _training_counts(config: RunConfig, streams: tuple[Stream, ...], corpus: _Corpus) -> tuple[int, ...]:
    """Samples of each source. Raises UserError for every source that does not make one."""
    length = config.data.sequence_length
    counts = tuple(sample_count(stream.length, length) for stream in streams)
    problems = [
        f"{where}: {label_of(source)} has {stream.length:,} tokens to train on, fewer than the {length + 1:,} of one "
        "sample (data.sequence_length + 1); lower data.sequence_length or data.validation, or name more text"
        for source, where, stream, count in zip(corpus.sources, corpus.wheres, streams, counts, strict=False)
        if not count
    ]
    if problems:
        raise UserError(*problems)
    return counts


def _cache(config: RunConfig) -> Path:
    folder = Path(config.data.cache_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data.cache_dir: {folder} cannot be made ({error.strerror}); name a folder that you may write to"
        ) from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"data.cache_dir: {folder} cannot be written to; name a folder that you may write to")
    return folder


def _words(tokenizer: dict[str, object]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in tokenizer.items()) + "}"
