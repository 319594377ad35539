"""The data of a run: its sources, tokenizer, token stores, and their division into training and validation data."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quintet.config.names import local_path
from quintet.config.packing import MusicPackingConfig
from quintet.config.schema import RunConfig
from quintet.config.sources import SourceConfig, StoreSource
from quintet.data.batch import TrainData, ValidationData, packing_lines
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
from quintet.data.cleaning import check_library
from quintet.data.divide import divide
from quintet.data.manifest import MANIFEST, Manifest, dropped_lines, left_out_files, read_manifest
from quintet.data.sources import check_sources, reader_of, sources_of
from quintet.data.sources.base import Document, Report, SourceIndex, TextParts, TextPiece
from quintet.data.sources.files import passed_over_lines
from quintet.data.store import TokenStore
from quintet.errors import UserError
from quintet.piano.notes import HEADER, NUMBERS, Notes, from_numbers
from quintet.piano.tasks import SPECIAL_NAMES
from quintet.piano.tokenizers.base import note_tokenizer
from quintet.tokenize import Tokenizer, build_tokenizer, load_tokenizer
from quintet.tokenize.base import digest, threads, versions_of
from quintet.tokenize.registry import is_kept, trained_on
from quintet.tokenize.simple import IdTokenizer

# A tokenizer is trained on an even selection of the corpus. Of a much larger corpus not every work unit is read for it.
_READ_FOR_SELECTION = 64


@dataclass(frozen=True)
class Prepared:
    """The data of a run.

    ``stores`` are those of data.sources, then those of data.validation_sources. ``fingerprint`` depends on all their
    tokens, and not on where the sources are. ``left_out`` counts the documents that are not trained on because they are
    equal to a validation document. ``notes`` are lines on what else is not used, and on settings that matched nothing.
    ``libraries`` has the versions of the libraries that made the ids, by name.
    """

    tokenizer: Tokenizer
    train: TrainData
    validation: ValidationData | None
    stores: tuple[TokenStore, ...]
    fingerprint: str
    left_out: int
    libraries: dict[str, str]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the ``notes``, and lines on what is neither trained on nor validated on."""
        copied = [f"left out of the training: {self.left_out:,} documents that are also validated on"]
        unvalidated = [] if self.validation is None else self.validation.lines()
        return [*self.notes, *(copied if self.left_out else []), *unvalidated]


@dataclass(frozen=True)
class _Origin:
    """A source of the run with its key in the run file and its index, which is None for a store."""

    source: SourceConfig
    where: str
    index: SourceIndex | None


def prepare(config: RunConfig, *, progress: ProgressCallback | None = None) -> Prepared:
    """Tokenise what is not tokenised yet, and return the data of ``config``.

    ``progress(stage, done_bytes, total_bytes)`` is called along the way. Finished shards are kept under data.cache_dir
    and used by the next call, also after a kill. Raises UserError for all that the user can mend: sources that are
    missing, damaged or empty, a store of another tokenizer, too few tokens for one sample.
    """
    origins = _find_sources(config)
    return _prepared(config, origins, _tokenizer(config, origins, progress), progress)


def find_prepared(config: RunConfig) -> Prepared | None:
    """Return the data of ``config`` if all of it is tokenised already, else None. The sources are indexed, not read."""
    try:
        origins = _find_sources(config)
    except UserError:  # `prepare` reports what is missing
        return None
    if trained_on(config.tokenizer) and not any(isinstance(origin.source, StoreSource) for origin in origins):
        corpus = _corpus_fingerprint(_tokenizer_sources(config, origins))
        if not is_kept(config.tokenizer, corpus, cache_folder(config)):
            return None
    tokenizer = _tokenizer(config, origins, None)
    keys = [store_key(index, _stored_by(index.source, tokenizer), config.data.cleaning) for index in _indexes(origins)]
    if not all((cache_folder(config) / "stores" / key / MANIFEST).is_file() for key in keys):
        return None
    return _prepared(config, origins, tokenizer, None)


def _prepared(
    config: RunConfig, origins: list[_Origin], tokenizer: Tokenizer, progress: ProgressCallback | None
) -> Prepared:
    stores = tuple(_store(config, origin, tokenizer, progress) for origin in origins)
    notes: list[str] = []
    libraries = versions_of(encoding_libraries(config, tokenizer))
    for store, origin in zip(stores, origins, strict=True):
        if origin.index is not None:
            notes += _lines(origin.index, store.manifest)
            libraries |= versions_used(origin.index, _stored_by(origin.source, tokenizer))
    if config.data.learn_prompts and not isinstance(config.data.packing, MusicPackingConfig):
        stores = tuple(store.learnt_everywhere() for store in stores)
    train, validation, left_out = divide(config, stores, cache_folder(config), tokenizer)
    fingerprint = digest(*(store.fingerprint for store in stores))
    notes += [*packing_lines(train, ""), *packing_lines(validation, "validation: ")]
    return Prepared(tokenizer, train, validation, stores, fingerprint, left_out, libraries, tuple(notes))


def prepare_to(
    config: RunConfig, folder: Path, *, progress: ProgressCallback | None = None
) -> tuple[TokenStore, list[str]]:
    """Write the store of the only source of ``config`` to ``folder``, to be used as a source of kind store. Return it
    with lines on what it does not have.

    Raises UserError when there are several sources, when the only one is a store, or ``folder`` holds something else.
    """
    _check_only_source(config)
    origins = _find_sources(config)
    origin = origins[0]
    assert origin.index is not None
    tokenizer = _stored_by(origin.source, _tokenizer(config, origins, progress))
    check_output(folder, store_key(origin.index, tokenizer, config.data.cleaning))
    store = build_store(_spec(config, origin, tokenizer, folder), config.data.processes or threads(), progress)
    return store, _lines(origin.index, store.manifest)


def prepare_share(
    config: RunConfig, share: Share, folder: Path | None = None, *, progress: ProgressCallback | None = None
) -> int:
    """Make one share of the stores of ``config``, or of the store in ``folder`` as in `prepare_to`; see `build_share`.

    Returns the number of shards that are missing in all, 0 if nothing is left to do.
    """
    if folder is not None:
        _check_only_source(config)
    origins = _find_sources(config)
    tokenizer = _tokenizer(config, origins, progress)
    missing = 0
    for origin in origins[: 1 if folder else None]:
        if origin.index is not None:
            spec = _spec(config, origin, _stored_by(origin.source, tokenizer), folder)
            if folder is not None:
                check_output(folder, spec.key)
            missing += build_share(spec, share, config.data.processes or threads(), progress)
    return missing


def _check_only_source(config: RunConfig) -> None:
    sources = config.data.sources
    if len(sources) != 1 or isinstance(sources[0], StoreSource):
        given = f"{len(sources)} sources" if len(sources) != 1 else "a store already"
        raise UserError(f"data.sources: --output writes the store of one source that is read, and there are {given}")


def build_tokenizer_of(config: RunConfig, *, progress: ProgressCallback | None = None) -> Tokenizer:
    """Return only the tokenizer of ``config``; one that is trained on the sources is in the cache, or reads them."""
    return _tokenizer(config, _find_sources(config), progress)


def _find_sources(config: RunConfig) -> list[_Origin]:
    check_sources(config)
    check_library(config.data.cleaning)
    return [
        _Origin(source, where, None if isinstance(source, StoreSource) else reader_of(source).index(where))
        for source, where in sources_of(config)
    ]


def _indexes(origins: list[_Origin]) -> list[SourceIndex]:
    return [origin.index for origin in origins if origin.index is not None]


def _tokenizer(config: RunConfig, origins: list[_Origin], progress: ProgressCallback | None) -> Tokenizer:
    stores = [origin.source for origin in origins if isinstance(origin.source, StoreSource)]
    if trained_on(config.tokenizer) and stores:
        return _tokenizer_of_store(config, stores[0])
    indexes = _tokenizer_sources(config, origins)
    documents = partial(_training_documents, config, indexes, progress)
    tokenizer = build_tokenizer(config.tokenizer, documents, _corpus_fingerprint(indexes), cache_folder(config))
    if isinstance(config.data.packing, MusicPackingConfig):
        return note_tokenizer(tokenizer).with_special(SPECIAL_NAMES)
    return tokenizer


def _tokenizer_sources(config: RunConfig, origins: list[_Origin]) -> list[SourceIndex]:
    """Return the sources that a tokenizer is trained on: its own, or those of the run."""
    indexes: list[SourceIndex] = []
    own: tuple[SourceConfig, ...] = getattr(config.tokenizer, "sources", ())
    for number, source in enumerate(own):
        if isinstance(source, StoreSource):
            raise UserError("tokenizer.sources: a store holds tokens and no text; name what it was made from")
        indexes.append(reader_of(source).index(f"tokenizer.sources[{number}]"))
    return indexes or _indexes(origins)


def _corpus_fingerprint(indexes: list[SourceIndex]) -> str:
    return digest(*(index.fingerprint for index in indexes))


def _tokenizer_of_store(config: RunConfig, source: StoreSource) -> Tokenizer:
    """Return the tokenizer of the store: it cannot be trained again, as the store has tokens and no texts."""
    folder = local_path(source.path)
    stored, own = read_manifest(folder).tokenizer_config, config.tokenizer.model_dump(mode="json")
    if stored != own:
        raise UserError(
            f"{folder}: was written with another `tokenizer` than the run's: {_words(stored)}, not {_words(own)}; "
            "give the run the same, or prepare the store again"
        )
    return load_tokenizer(folder / "tokenizer")


def _training_documents(
    config: RunConfig, indexes: list[SourceIndex], progress: ProgressCallback | None
) -> Iterator[str | Notes]:
    """Yield the documents of ``indexes``, or an even selection of them if the tokenizer needs no more."""
    budget = getattr(config.tokenizer, "train_bytes", None)
    stride = 1 if budget is None else max(1, sum(index.size for index in indexes) // (_READ_FOR_SELECTION * budget))
    of_notes = trained_on(config.tokenizer) == "notes"
    used = [index for index in indexes if of_notes or index.source.content != "notes"]
    units = [(unit, index.source) for index in used for unit in index.units()[0][::stride]]
    done, total = 0, sum(unit.size for unit, _ in units)
    for unit, source in units:
        yield from _texts_of(unit.documents(Report()), of_notes and source.content == "notes")
        done += unit.size
        if progress is not None and total:
            progress("reading for the tokenizer", done, total)


def _texts_of(documents: Iterator[Document], music: bool) -> Iterator[str | Notes]:
    """Yield what a tokenizer can be trained on of ``documents``: texts, or pieces of ``music``."""
    for document in documents:
        if isinstance(document, str):
            yield document
        elif isinstance(document, TextPiece):
            yield document.text
        elif isinstance(document, TextParts):
            yield from document.texts
        elif music:
            yield from_numbers(document.ids[HEADER:])


def _store(config: RunConfig, origin: _Origin, tokenizer: Tokenizer, progress: ProgressCallback | None) -> TokenStore:
    """Open or build the store of a source. Raises UserError when it is empty, unless it is a labelled validation
    source."""
    source = origin.source
    if isinstance(source, StoreSource):
        store = TokenStore.open(local_path(source.path), tokenizer.fingerprint, progress)
    else:
        spec = _spec(config, origin, _stored_by(source, tokenizer))
        store = build_store(spec, config.data.processes or threads(), progress)
    if not store.token_count and not (source.label and origin.where.startswith("data.validation_sources")):
        facts = store.manifest
        lines = [*dropped_lines(facts.dropped, 0), *left_out_files(facts.left_out, facts.left_out_files)]
        hint = "".join(f"; {line}" for line in lines)
        raise UserError(f"{origin.where}: {source.display_name} holds no text{hint}; name another source")
    return store


def _spec(config: RunConfig, origin: _Origin, tokenizer: Tokenizer, folder: Path | None = None) -> StoreSpec:
    """Return the spec of the store of a source, in ``folder`` or in the cache."""
    assert origin.index is not None
    cleaning, described = config.data.cleaning, config.tokenizer.model_dump(mode="json")
    folder = folder or cache_folder(config) / "stores" / store_key(origin.index, tokenizer, cleaning)
    return StoreSpec(origin.index, tokenizer, described, folder, cleaning, origin.where)


def _stored_by(source: SourceConfig, tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer that the store of ``source`` is written with: music is stored as notes, from which the run's
    tokenizer makes ids later."""
    return IdTokenizer(NUMBERS) if source.content == "notes" else tokenizer


def _lines(index: SourceIndex, manifest: Manifest) -> list[str]:
    """Return lines on what the store of a source does not have, and on settings that found nothing."""
    label, documents = index.source.display_name, manifest.documents
    lines = [
        *dropped_lines(manifest.dropped, documents - manifest.unused.documents),
        *left_out_files(manifest.left_out, manifest.left_out_files),
        *index.reader.unmatched(index, manifest.matched, documents),
    ]
    if unlearnt := manifest.matched.get("unlearnt"):
        lines.append(f"{unlearnt:,} of {documents:,} documents have no token that counts in the loss")
    return [f"{label}: {line}" for line in lines] + list(passed_over_lines(label, index.passed))


def cache_folder(config: RunConfig) -> Path:
    """Return ``data.cache_dir``, and make it if need be. Raises UserError when it cannot be written to."""
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
