"""From a run file to the data of the run: tokenizer, token stores, what is held out, batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from quintet.config.names import local_path
from quintet.config.packing import MusicPackingConfig, StreamPackingConfig
from quintet.config.piano import NoteBPETokenizerConfig
from quintet.config.schema import RunConfig
from quintet.config.sources import SourceConfig, StoreSource, holds_notes
from quintet.config.tokenizer import BPETokenizerConfig, CharTokenizerConfig
from quintet.data.batch import TrainData, ValidationData
from quintet.data.build import (
    ProgressCallback,
    Share,
    StoreSpec,
    build_share,
    build_store,
    check_output,
    encoding_libraries,
    store_key,
    versions_used,
)
from quintet.data.contamination import HashSet, copies, hashes_of, shared_documents
from quintet.data.duplicates import check_library
from quintet.data.left_out import dropped_lines, left_out_files, packing_lines, preparation_lines
from quintet.data.manifest import read_manifest
from quintet.data.order import build_order
from quintet.data.packing import cut_stream, pack
from quintet.data.samples import Samples
from quintet.data.sources.check import MANIFEST, check_sources, sources_of
from quintet.data.sources.document import Document, Report, TextParts, TextPiece, TokenIds
from quintet.data.sources.source_index import SourceIndex, documents, label_of, list_source, units_of
from quintet.data.split import HeldOut, TokenStream, hold_out, trained_on, whole
from quintet.data.store import TokenStore
from quintet.errors import UserError
from quintet.piano.notes import Notes
from quintet.piano.numbers import HEADER, NUMBERS, from_numbers
from quintet.piano.vocabulary import SPECIAL_NAMES, note_tokenizer
from quintet.randomness import key
from quintet.tokenize import Tokenizer, build_tokenizer, load_tokenizer
from quintet.tokenize.base import NO_END, digest, threads, versions_of
from quintet.tokenize.build import is_kept
from quintet.tokenize.ids import IdTokenizer

# A tokenizer is trained on an even sample; of a corpus much larger than that, not every unit need be read for it.
_READ_FOR_SAMPLE = 64


@dataclass(frozen=True)
class Prepared:
    """What a run needs of its data. ``stores`` are those of data.sources, then those of data.validation_sources;
    ``fingerprint`` follows from all their tokens, wherever the sources lie. ``left_out`` counts the documents that are
    not trained on because they are equal to one that is validated on, and ``notes`` are lines on what else is left out
    and on settings that matched nothing. ``libraries`` are the versions of those that made the ids, by name."""

    tokenizer: Tokenizer
    train: TrainData
    validation: ValidationData | None
    stores: tuple[TokenStore, ...]
    fingerprint: str
    left_out: int
    libraries: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Corpus:
    """The sources of a run with their keys in the run file, and a listing of each that is not a store already."""

    sources: tuple[SourceConfig, ...]
    wheres: tuple[str, ...]
    listings: tuple[SourceIndex | None, ...]


def prepare(config: RunConfig, *, progress: ProgressCallback | None = None) -> Prepared:
    """Tokenise what is not tokenised yet and open the data of ``config``.

    ``progress(stage, done_bytes, total_bytes)`` is called along the way. What is finished is found again under
    data.cache_dir, also after a kill in the middle. Raises UserError for everything that the user can mend: sources
    that are missing, damaged or empty, a store of another tokenizer, too few tokens for one sample.
    """
    corpus = _look_at(config)
    return _prepared(config, corpus, _tokenizer(config, corpus, progress), progress)


def find_prepared(config: RunConfig) -> Prepared | None:
    """The data of ``config`` if all of it is tokenised already, else None; the sources are looked at and not read."""
    try:
        corpus = _look_at(config)
    except UserError:  # sources are missing, which `prepare` will say
        return None
    made = _made_from_sources(config) and not any(isinstance(source, StoreSource) for source in corpus.sources)
    if made and not is_kept(config.tokenizer, _corpus_fingerprint(_to_train_on(config, corpus)), _cache(config)):
        return None
    tokenizer = _tokenizer(config, corpus, None)
    listings = [listing for listing in corpus.listings if listing is not None]
    keys = [store_key(one, _stored_by(one.source, tokenizer), config.data.cleaning) for one in listings]
    if not all((_cache(config) / "stores" / key / MANIFEST).is_file() for key in keys):
        return None
    return _prepared(config, corpus, tokenizer, None)


def _prepared(config: RunConfig, corpus: _Corpus, tokenizer: Tokenizer, progress: ProgressCallback | None) -> Prepared:
    stores = tuple(
        _store(config, source, where, listing, tokenizer, progress)
        for source, where, listing in zip(corpus.sources, corpus.wheres, corpus.listings, strict=True)
    )
    notes = tuple(
        line
        for store, listing in zip(stores, corpus.listings, strict=True)
        if listing is not None
        for line in preparation_lines(listing, store.manifest)
    )
    if config.data.learn_prompts and not isinstance(config.data.packing, MusicPackingConfig):
        stores = tuple(store.learnt_everywhere() for store in stores)
    train, validation, left_out = _divide(config, corpus, stores, tokenizer)
    fingerprint = digest(*(store.fingerprint for store in stores))
    notes += tuple(packing_lines(train, "")) + tuple(packing_lines(validation, "validation: "))
    libraries = versions_of(encoding_libraries(config, tokenizer))
    for listing in corpus.listings:
        if listing is not None:
            libraries |= versions_used(listing, _stored_by(listing.source, tokenizer))
    return Prepared(tokenizer, train, validation, stores, fingerprint, left_out, libraries, notes)


def prepare_to(
    config: RunConfig, folder: Path, *, progress: ProgressCallback | None = None
) -> tuple[TokenStore, list[str]]:
    """Write the store of the only source of ``config`` to ``folder``, for a source of kind store; with it come lines on
    what is left out.

    Raises UserError when there are several sources, when the only one is a store, or ``folder`` holds something else.
    """
    _check_only_source(config)
    corpus = _look_at(config)
    listing = corpus.listings[0]
    assert listing is not None
    tokenizer = _stored_by(listing.source, _tokenizer(config, corpus, progress))
    check_output(folder, store_key(listing, tokenizer, config.data.cleaning))
    store = _built(config, folder, listing, corpus.wheres[0], tokenizer, progress)
    return store, preparation_lines(listing, store.manifest)


def prepare_share(
    config: RunConfig, share: Share, folder: Path | None = None, *, progress: ProgressCallback | None = None
) -> int:
    """Make one share of the stores of ``config``, or of that in ``folder`` as `prepare_to` does; see `build_share`.

    Returns how many shards are still missing in all; 0 when nothing is left to do.
    """
    if folder is not None:
        _check_only_source(config)
    corpus = _look_at(config)
    tokenizer = _tokenizer(config, corpus, progress)
    missing = 0
    for listing, where in list(zip(corpus.listings, corpus.wheres, strict=True))[: 1 if folder else None]:
        if listing is None:
            continue
        by = _stored_by(listing.source, tokenizer)
        name = store_key(listing, by, config.data.cleaning)
        if folder is not None:
            check_output(folder, name)
        order, relist = _order(config, folder or _cache(config) / "stores" / name, listing, where, by)
        missing += build_share(order, share, config.data.processes or threads(), progress, relist)
    return missing


def _check_only_source(config: RunConfig) -> None:
    if len(config.data.sources) != 1 or isinstance(config.data.sources[0], StoreSource):
        found = f"{len(config.data.sources)} sources" if len(config.data.sources) != 1 else "a store already"
        raise UserError(f"data.sources: --output writes the store of one source that is read, and there are {found}")


def build_tokenizer_of(config: RunConfig, *, progress: ProgressCallback | None = None) -> Tokenizer:
    """The tokenizer of ``config`` alone; one that is made from the sources reads them, or is found in the cache."""
    return _tokenizer(config, _look_at(config), progress)


def _look_at(config: RunConfig) -> _Corpus:
    check_sources(config)
    check_library(config.data.cleaning)
    found = sources_of(config)
    listings = (None if isinstance(source, StoreSource) else list_source(source, where) for source, where in found)
    return _Corpus(tuple(source for source, _ in found), tuple(where for _, where in found), tuple(listings))


def _tokenizer(config: RunConfig, corpus: _Corpus, progress: ProgressCallback | None) -> Tokenizer:
    stores = [source for source in corpus.sources if isinstance(source, StoreSource)]
    if _made_from_sources(config) and stores:
        return _tokenizer_of_store(config, stores[0])
    listings = _to_train_on(config, corpus)
    texts = partial(_texts, config, listings, progress)
    tokenizer = build_tokenizer(config.tokenizer, texts, _corpus_fingerprint(listings), _cache(config))
    if isinstance(config.data.packing, MusicPackingConfig):
        return note_tokenizer(tokenizer).with_special(SPECIAL_NAMES)
    return tokenizer


def _to_train_on(config: RunConfig, corpus: _Corpus) -> list[SourceIndex]:
    """What a tokenizer is made from: sources of its own, or those of the run."""
    listings = []
    for index, source in enumerate(getattr(config.tokenizer, "sources", ())):
        if isinstance(source, StoreSource):
            raise UserError("tokenizer.sources: a store holds tokens and no text; name what it was made from")
        listings.append(list_source(source, f"tokenizer.sources[{index}]"))
    return listings or [listing for listing in corpus.listings if listing is not None]


def _made_from_sources(config: RunConfig) -> bool:
    return isinstance(config.tokenizer, CharTokenizerConfig | BPETokenizerConfig | NoteBPETokenizerConfig)


def _corpus_fingerprint(listings: list[SourceIndex]) -> str:
    return digest(*(listing.fingerprint for listing in listings))


def _tokenizer_of_store(config: RunConfig, source: StoreSource) -> Tokenizer:
    """A tokenizer made from sources cannot be made again from their tokens, so it is the store's."""
    folder = local_path(source.path)
    made, wanted = read_manifest(folder).tokenizer_config, config.tokenizer.model_dump(mode="json")
    if made != wanted:
        raise UserError(
            f"{folder}: was written with another `tokenizer` than the run's: {_words(made)}, not {_words(wanted)}; "
            "give the run the same, or prepare the store again"
        )
    return load_tokenizer(folder / "tokenizer")


def _texts(config: RunConfig, listings: list[SourceIndex], progress: ProgressCallback | None) -> Iterator[str | Notes]:
    """The documents of ``listings``, or enough of them, evenly, when only a sample of them is needed."""
    budget = config.tokenizer.train_bytes if isinstance(config.tokenizer, BPETokenizerConfig) else None
    stride = 1 if budget is None else max(1, sum(one.size for one in listings) // (_READ_FOR_SAMPLE * budget))
    of_notes = isinstance(config.tokenizer, NoteBPETokenizerConfig)
    read = [one for one in listings if of_notes or not holds_notes(one.source)]
    units = [(unit, one.source) for one in read for unit in units_of(one)[0][::stride]]
    done, total = 0, sum(unit.size for unit, _ in units)
    for unit, source in units:
        yield from _texts_of(documents(unit, Report()), of_notes and holds_notes(source))
        done += unit.size
        if progress is not None and total:
            progress("reading for the tokenizer", done, total)


def _texts_of(found: Iterator[Document], music: bool) -> Iterator[str | Notes]:
    """What a tokenizer can be trained on: pieces of music, and texts, which tokens that are ready do not have."""
    for document in found:
        if isinstance(document, str):
            yield document
        elif isinstance(document, TextPiece):
            yield document.text
        elif isinstance(document, TextParts):
            yield from document.texts
        elif music and isinstance(document, TokenIds):
            yield from_numbers(document.ids[HEADER:])


def _store(
    config: RunConfig,
    source: SourceConfig,
    where: str,
    listing: SourceIndex | None,
    tokenizer: Tokenizer,
    progress: ProgressCallback | None,
) -> TokenStore:
    if listing is None:
        assert isinstance(source, StoreSource)
        store = TokenStore.open(local_path(source.path), tokenizer.fingerprint)
    else:
        by = _stored_by(source, tokenizer)
        folder = _cache(config) / "stores" / store_key(listing, by, config.data.cleaning)
        store = _built(config, folder, listing, where, by, progress)
    if not store.token_count and not (source.label and where.startswith("data.validation_sources")):
        found = store.manifest
        facts = [*dropped_lines(found.dropped, 0), *left_out_files(found.left_out, found.left_out_files)]
        hint = "".join(f"; {fact}" for fact in facts)
        raise UserError(f"{where}: {label_of(source)} holds no text{hint}; name another source")
    return store


def _built(
    config: RunConfig,
    folder: Path,
    listing: SourceIndex,
    where: str,
    tokenizer: Tokenizer,
    progress: ProgressCallback | None,
) -> TokenStore:
    order, relist = _order(config, folder, listing, where, tokenizer)
    return build_store(order, config.data.processes or threads(), progress, relist)


def _order(
    config: RunConfig, folder: Path, listing: SourceIndex, where: str, tokenizer: Tokenizer
) -> tuple[StoreSpec, Callable[[], SourceIndex] | None]:
    """The store to be made of ``listing`` in ``folder``, and what looks at the source once more."""
    # A dataset is a snapshot; files can be written to while they are read.
    relist: Callable[[], SourceIndex] | None = partial(list_source, listing.source, where) if listing.files else None
    return StoreSpec(listing, tokenizer, config.tokenizer.model_dump(mode="json"), folder, config.data.cleaning), relist


def _divide(
    config: RunConfig, corpus: _Corpus, stores: tuple[TokenStore, ...], tokenizer: Tokenizer
) -> tuple[TrainData, ValidationData | None, int]:
    """Data to train on and to validate on, and how many documents are left out of the training."""
    data, length = config.data, config.data.sequence_length
    labels = tuple(map(label_of, corpus.sources))
    trained = len(data.sources)
    parts = _held_out(config, stores)
    copied = _copies(config, stores, parts)
    left_out = sum(documents.size for documents in copied)
    unused = [np.union1d(one, store.dropped) for one, store in zip(copied, stores, strict=False)]
    remaining = map(trained_on, stores[:trained], parts, unused)
    streams = tuple(_samples(config, stream, tokenizer, training=True) for stream in remaining)
    order = build_order(config, _training_counts(config, streams, corpus, left_out))
    train = TrainData(streams, labels[:trained], order, config.batch.samples, length)
    if not data.validation and not data.validation_sources:
        return train, None, left_out
    held_out = [TokenStream(store, part.ranges) for store, part in zip(stores, parts, strict=False)]
    names = labels[:trained]
    if data.validation_sources:
        held_out, names = [whole(store, store.dropped) for store in stores[trained:]], labels[trained:]
    validation = ValidationData(
        tuple(_samples(config, stream, tokenizer, training=False) for stream in held_out),
        names,
        length,
        config.evaluate.samples_each,
    )
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


def _held_out(config: RunConfig, stores: tuple[TokenStore, ...]) -> list[HeldOut]:
    seed = key(config.seed, "validation")
    return [
        hold_out(store, config.data.validation, seed, store.dropped) for store in stores[: len(config.data.sources)]
    ]


def validated_and_seen(
    config: RunConfig, stores: tuple[TokenStore, ...], other: RunConfig, others: tuple[TokenStore, ...]
) -> tuple[int, int]:
    """How many documents the run of ``config`` validates on, and how many of them are equal, token by token, to one
    that the run of ``other`` could train on; one of which that run holds out a part is none. ``stores`` and ``others``
    are those of their ``Prepared``; one tokenizer wrote them all."""
    trained = len(config.data.sources)
    if config.data.validation_sources:
        held = [hashes_of(store, np.arange(store.document_count)) for store in stores[trained:]]
    else:
        parts = _held_out(config, stores)
        held = [hashes_of(store, part.documents) for store, part in zip(stores, parts, strict=False)]
    validated = np.concatenate(held)
    wanted, seen = HashSet.of(validated), [np.empty(0, dtype=np.uint64)]
    parts = _held_out(other, others)
    for store, part, copied in zip(others, parts, _copies(other, others, parts), strict=False):
        away = np.union1d(np.union1d(part.documents, copied), store.dropped)
        seen.append(hashes_of(store, shared_documents(store, wanted, away)))
    return validated.size, int(np.isin(validated, np.concatenate(seen)).sum())


def _copies(config: RunConfig, stores: tuple[TokenStore, ...], held: list[HeldOut]) -> list[np.ndarray]:
    """Documents of each store to train on that are equal to one that is validated on, int64 [documents] each."""
    none, trained = np.empty(0, dtype=np.int64), len(held)
    if not config.data.deduplicate_validation:
        return [none] * trained
    if not config.data.validation_sources:
        return copies(stores, held)
    validated = [hashes_of(store, np.arange(store.document_count)) for store in stores[trained:]]
    hashes = HashSet.of(np.concatenate(validated))
    return [shared_documents(store, hashes, none) for store in stores[:trained]]


def _stored_by(source: SourceConfig, tokenizer: Tokenizer) -> Tokenizer:
    """What a store of ``source`` is written with: music is kept as notes, whatever tokens are made of it later."""
    return IdTokenizer(NUMBERS, NO_END) if holds_notes(source) else tokenizer


def _samples(config: RunConfig, stream: TokenStream, tokenizer: Tokenizer, *, training: bool) -> Samples:
    """The samples of a part of a store, cut as data.packing says; only those to train on are varied."""
    packing, length = config.data.packing, config.data.sequence_length
    if isinstance(packing, MusicPackingConfig):
        from quintet.data.note_samples import MusicPieces, NoteSamples

        seed = key(config.seed, "notes")
        pieces, learn = MusicPieces.of(stream), config.data.learn_prompts
        return NoteSamples(pieces, note_tokenizer(tokenizer), packing, length, seed, training, learn)
    if isinstance(packing, StreamPackingConfig):
        return cut_stream(stream, length, packing.predict_next, _cache(config))
    assert isinstance(stream.store, TokenStore)
    return pack(stream.store, stream.ranges, packing, length, tokenizer, _cache(config))


def _training_counts(
    config: RunConfig, streams: tuple[Samples, ...], corpus: _Corpus, left_out: int
) -> tuple[int, ...]:
    """Samples of each source. Raises UserError for every source that does not make one."""
    length = config.data.sequence_length
    also = f"{left_out:,} documents are left out because they are validated on too (data.deduplicate_validation)"
    hint = f"; {also}" if left_out else ""
    counts = tuple(stream.count for stream in streams)
    problems = []
    for source, where, stream, count in zip(corpus.sources, corpus.wheres, streams, counts, strict=False):
        lost = stream.left_out
        if lost.samples and lost.samples == lost.all_samples:
            problems.append(
                f"{where}: none of the {lost.all_samples:,} samples of {label_of(source)} has a target left "
                f"(data.packing: {config.data.packing.kind}){hint}; raise data.sequence_length"
            )
        elif not count:
            problems.append(
                f"{where}: {label_of(source)} has {stream.tokens:,} tokens to train on, fewer than the {length + 1:,} "
                f"of one sample (data.sequence_length + 1){hint}; lower data.sequence_length or data.validation, or "
                "name more text"
            )
    if problems:
        raise UserError(*problems)
    return counts


def _cache(config: RunConfig) -> Path:
    folder = local_path(config.data.cache_dir)
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
