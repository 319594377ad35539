"""Sources: which documents a run reads."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from quintet.config.documents import (
    IGNORE_INDEX,
    IGNORED,
    Content,
    Music,
    RowConfig,
    TextConfig,
    TextField,
    WholeText,
)
from quintet.config.section import ConfigErrors, ConfigSection, config_error, key

_DOCUMENT = (
    "whether a file is one document, or one ends with every end id (a file of ids says no more of them); when not "
    "given, the latter where the tokenizer has an end id"
)


class Source(ConfigSection):
    """The keys that every source has: its share of the samples and a name for reports."""

    holds: ClassVar[Content] = "text"

    weight: float | None = key(
        None,
        "share of the samples relative to the other sources. Without weights every sample of every source is seen once "
        "an epoch; with them all sources need one",
        unit="share",
        gt=0,
    )
    repeat: float | None = key(
        None,
        "how often an epoch has its samples, instead of weights: 0.5 half of them, the same in every epoch, 2 each of "
        "them twice; once when not given",
        unit="times",
        gt=0,
    )
    label: str | None = key(None, "name of the source in reports; its kind and path when not given")

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that it names, none where it names none."""
        path = getattr(self, "path", ())
        return (path,) if isinstance(path, str) else path

    @property
    def display_name(self) -> str:
        """Its name in reports."""
        return self.label if self.label is not None else f"{getattr(self, 'kind', '')} {', '.join(self.paths)}".strip()

    @property
    def content(self) -> Content:
        """The kind of its documents: what the kind of document says, else what the kind of source does."""
        return getattr(getattr(self, "document", None), "holds", self.holds)


class PythonStdlibSource(Source):
    """The standard library of the running Python: real text that is on every machine. One module, one document."""

    kind: Literal["python_stdlib"] = key(..., "source code of Python's standard library")


class FileSource(Source):
    """A base for sources of files."""

    path: str | tuple[str, ...] = key(
        ...,
        "files, globs (`**` enters folders) or folders, on this disk or by an address of fsspec such as s3://, gs://, "
        "https://",
        min_length=1,
    )


class RowSource(FileSource):
    """A base for sources of rows and lines."""

    document: RowConfig = key(TextField(), "what of a row is a document")
    on_error: Literal["stop", "skip"] = key(
        "stop", "what to do with a row that cannot be used: stop with its place, or leave it out and count it"
    )


class TextSource(FileSource):
    """Plain UTF-8 text files, also compressed ones (.gz, .zst). Of a folder, every file that is UTF-8 text."""

    kind: Literal["text"] = key(..., "plain text files")
    separator: str | None = key(
        None, "text that stands between two documents of one file; without it a file is one document", min_length=1
    )
    document: TextConfig = key(WholeText(), "what has a loss")
    on_error: Literal["stop", "skip"] = key(
        "stop", "what to do with a named file that is no text: stop with its place, or leave it out and count it"
    )


class JsonlSource(RowSource):
    """One JSON object a line, one document an object. Of a folder, *.jsonl and *.ndjson, also
    compressed (.gz, .zst)."""

    kind: Literal["jsonl"] = key(..., "JSON lines")


class CsvSource(RowSource):
    """Tables as text with a first row of names, one document a row. Of a folder, *.csv, *.csv.gz and *.csv.zst."""

    kind: Literal["csv"] = key(..., "comma-separated values")
    delimiter: str = key(",", "what stands between two values", min_length=1, max_length=1)


class ParquetSource(RowSource):
    """Parquet files, one document a row. Of a folder, *.parquet. Needs the `hf` extra."""

    kind: Literal["parquet"] = key(..., "Parquet files")


class HuggingFaceSource(Source):
    """A Hugging Face dataset, on disk or by its name on the hub. One row, one document."""

    kind: Literal["huggingface"] = key(..., "a Hugging Face dataset")
    path: str = key(..., "a folder written by `save_to_disk`, or a name on the hub", min_length=1)
    name: str | None = key(None, "configuration of a dataset that has several")
    split: str = key("train", "split to read")
    revision: str | None = key(
        None, "commit, tag or branch of a dataset on the hub; its newest when not given", min_length=1
    )
    document: RowConfig = key(TextField(), "what of a row is a document")
    on_error: Literal["stop", "skip"] = key(
        "stop", "what to do with a row that cannot be used: stop with its place, or leave it out and count it"
    )


class _ArraySource(FileSource):
    holds: ClassVar[Content] = "ids"
    document: Literal["file", "end_id"] | None = key(None, _DOCUMENT)
    start: int | float = key(
        0,
        "where reading begins in each file: a whole number is a token, a number with a point a fraction of the tokens, "
        "rounded down",
        unit="tokens or fraction",
        ge=0,
    )
    stop: int | float | None = key(
        None, "where reading ends, counted like `start`; with the file when not given", unit="tokens or fraction", ge=0
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for each end that lies outside of the file."""
        for name, position in (("start", self.start), ("stop", self.stop)):
            if isinstance(position, float) and position > 1:
                yield config_error(name, f"{position:g} is no fraction; write a number of tokens without a point")


class NpySource(_ArraySource):
    """Token arrays of NumPy, [tokens], or with further axes of length 1. Of a folder, *.npy. Where `NAME_labels.npy`
    is beside `NAME.npy`, it has the same tokens, or `ignore_index` where there is no loss."""

    kind: Literal["npy"] = key(..., "token arrays of NumPy")
    ignore_index: int = key(IGNORED, IGNORE_INDEX, unit="id")


class BinSource(_ArraySource):
    """Token ids and nothing else, little-endian, as nanoGPT writes them. Of a folder, *.bin."""

    kind: Literal["bin"] = key(..., "raw token ids")
    dtype: Literal["uint16", "uint32"] = key("uint16", "type of the ids")


class TatmSource(Source):
    """A tokenized dataset of tatm: `metadata.json` or `.yaml`, `PREFIX_0.bin` and on, and the `tokenizer.json` that
    says which id ends a document. Zeros at the end of a file are padding: left out, counted."""

    holds: ClassVar[Content] = "ids"
    kind: Literal["tatm"] = key(..., "a tokenized dataset of tatm")
    path: str = key(..., "the folder, or its metadata file", min_length=1)
    tokenizer: str | None = key(
        None, "name of the tokenizer that made the dataset: one that its metadata contradict is refused", min_length=1
    )


class MegatronSource(Source):
    """Indexed datasets of Megatron-LM, NAME.bin with NAME.idx; documents are those of the index."""

    holds: ClassVar[Content] = "ids"
    kind: Literal["megatron"] = key(..., "indexed datasets of Megatron-LM")
    path: str | tuple[str, ...] = key(
        ..., "names with or without .bin or .idx, globs of .idx, or folders (their *.idx)", min_length=1
    )


class StoreSource(Source):
    """A token store that `quintet prepare --output` wrote earlier, with the same tokenizer."""

    holds: ClassVar[Content] = "ids"
    kind: Literal["store"] = key(..., "a token store")
    path: str = key(..., "folder of the store", min_length=1)


class MidiSource(FileSource, Music):
    """MIDI files, one piece a file, for the tokenizers of notes. Of a folder, *.mid and *.midi."""

    holds: ClassVar[Content] = "notes"
    kind: Literal["midi"] = key(..., "MIDI files")
    tracks: Literal["piano", "all"] | tuple[str | int, ...] = key(
        "piano",
        "which tracks are read: those of piano programs (all but drums where none says so), all but drums, or by name "
        "or number",
        unit="number of a track, from 0",
    )
    sustain: bool = key(True, "notes sound as long as the pedal holds them; false takes them as the keys were held")
    dataset: str | None = key(None, "name of the data set, which a model can be told", min_length=1)
    composer: str | None = key(None, "composer of all pieces; found in the file's path when not given", min_length=1)
    on_error: Literal["stop", "skip"] = key(
        "skip",
        "what to do with a file that cannot be read or lacks one of `tracks`: stop with its name, or leave it out, "
        "counted and named",
    )


class ScoresSource(Source, Music):
    """Keyboard music of the corpus that comes with the music21 library (needs the `piano` extra), one piece a score."""

    holds: ClassVar[Content] = "notes"
    kind: Literal["music21"] = key(..., "scores of the music21 library")


SourceConfig = Annotated[
    PythonStdlibSource
    | TextSource
    | JsonlSource
    | CsvSource
    | ParquetSource
    | HuggingFaceSource
    | NpySource
    | BinSource
    | TatmSource
    | MegatronSource
    | StoreSource
    | MidiSource
    | ScoresSource,
    Field(discriminator="kind"),
]

SOURCES: dict[str, type[Source]] = {
    get_args(one.model_fields["kind"].annotation)[0]: one for one in get_args(get_args(SourceConfig)[0])
}
"""The class of each kind of source."""
