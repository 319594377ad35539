"""The kinds of sources: the documents that a run reads."""

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
    "file: each file is one document; end_id: a document ends at each end id. When not given, end_id if the tokenizer "
    "has an end id"
)


class Source(ConfigSection):
    """The keys of all sources: their share of the samples and a name for reports."""

    holds: ClassVar[Content] = "text"

    weight: float | None = key(
        None,
        "share of the samples relative to the other sources, all of which then need a weight. Without weights each "
        "sample of each source is seen once per epoch",
        unit="share",
        gt=0,
    )
    repeat: float | None = key(
        None,
        "how often an epoch has the samples of the source, instead of weights: 0.5 is half of them, the same half in "
        "each epoch, 2 is all of them twice; once when not given",
        unit="times",
        gt=0,
    )
    label: str | None = key(None, "name of the source in reports; its kind and path when not given")

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the source; empty for a source without a path."""
        path = getattr(self, "path", ())
        return (path,) if isinstance(path, str) else path

    @property
    def display_name(self) -> str:
        """The name of the source in reports."""
        return self.label if self.label is not None else f"{getattr(self, 'kind', '')} {', '.join(self.paths)}".strip()

    @property
    def content(self) -> Content:
        """The content of the documents, as their kind defines it, otherwise as the kind of source does."""
        return getattr(getattr(self, "document", None), "holds", self.holds)


class PythonStdlibSource(Source):
    """The standard library of the running Python, which is real text on every machine. One module is one document."""

    kind: Literal["python_stdlib"] = key(..., "source code of Python's standard library")


class FileSource(Source):
    """Base of the sources of files."""

    path: str | tuple[str, ...] = key(
        ...,
        "files, globs (`**` enters folders) or folders, on this disk or as fsspec addresses such as s3://, gs://, "
        "https://",
        min_length=1,
    )


class RowSource(FileSource):
    """Base of the sources of rows and lines."""

    document: RowConfig = key(TextField(), "the part of a row that is a document")
    on_error: Literal["stop", "skip"] = key(
        "stop", "what to do with a row that cannot be used: stop with its place, or drop it and count it"
    )


class TextSource(FileSource):
    """Plain UTF-8 text files, also compressed (.gz, .zst). In a folder, all files that are UTF-8 text."""

    kind: Literal["text"] = key(..., "plain text files")
    separator: str | None = key(
        None, "text between two documents of one file; without it a file is one document", min_length=1
    )
    document: TextConfig = key(WholeText(), "the part of the text that counts in the loss")
    on_error: Literal["stop", "skip"] = key(
        "stop", "what to do with a named file that is not text: stop with its place, or drop it and count it"
    )


class JsonlSource(RowSource):
    """JSON lines: each line is an object and each object is a document. In a folder, *.jsonl and *.ndjson, also
    compressed (.gz, .zst)."""

    kind: Literal["jsonl"] = key(..., "JSON lines")


class CsvSource(RowSource):
    """CSV tables with a first row of column names; each row is a document. In a folder, *.csv, *.csv.gz, *.csv.zst."""

    kind: Literal["csv"] = key(..., "comma-separated values")
    delimiter: str = key(",", "character between two values", min_length=1, max_length=1)


class ParquetSource(RowSource):
    """Parquet files; each row is a document. In a folder, *.parquet. Needs the `hf` extra."""

    kind: Literal["parquet"] = key(..., "Parquet files")


class HuggingFaceSource(Source):
    """A Hugging Face dataset, on disk or by its name on the hub; each row is a document."""

    kind: Literal["huggingface"] = key(..., "a Hugging Face dataset")
    path: str = key(..., "a folder written by `save_to_disk`, or a name on the hub", min_length=1)
    name: str | None = key(None, "configuration of a dataset that has several")
    split: str = key("train", "split to read")
    revision: str | None = key(
        None, "commit, tag or branch of a dataset on the hub; its newest commit when not given", min_length=1
    )
    document: RowConfig = key(TextField(), "the part of a row that is a document")
    on_error: Literal["stop", "skip"] = key(
        "stop", "what to do with a row that cannot be used: stop with its place, or drop it and count it"
    )


class _ArraySource(FileSource):
    holds: ClassVar[Content] = "ids"
    document: Literal["file", "end_id"] | None = key(None, _DOCUMENT)
    start: int | float = key(
        0,
        "where reading starts in each file: a whole number counts tokens, a number with a point is a fraction of the "
        "tokens, rounded down",
        unit="tokens or fraction",
        ge=0,
    )
    stop: int | float | None = key(
        None,
        "where reading ends, counted like `start`; at the end of the file when not given",
        unit="tokens or fraction",
        ge=0,
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for a fraction above 1."""
        for name, position in (("start", self.start), ("stop", self.stop)):
            if isinstance(position, float) and position > 1:
                yield config_error(name, f"{position:g} is not a fraction; write a number of tokens without a point")


class NpySource(_ArraySource):
    """NumPy arrays of token ids, [tokens], or with further axes of length 1. In a folder, *.npy. A `NAME_labels.npy`
    beside `NAME.npy` holds the same tokens, or `ignore_index` for tokens that do not count in the loss."""

    kind: Literal["npy"] = key(..., "NumPy arrays of token ids")
    ignore_index: int = key(IGNORED, IGNORE_INDEX, unit="id")


class BinSource(_ArraySource):
    """Raw little-endian token ids, as nanoGPT writes them. In a folder, *.bin."""

    kind: Literal["bin"] = key(..., "raw token ids")
    dtype: Literal["uint16", "uint32"] = key("uint16", "type of the ids")


class TatmSource(Source):
    """A tokenized dataset of tatm: `metadata.json` or `.yaml`, `PREFIX_0.bin` and so on, and the `tokenizer.json` that
    defines which id ends a document. Zeros at the end of a file are padding; they are dropped and counted."""

    holds: ClassVar[Content] = "ids"
    kind: Literal["tatm"] = key(..., "a tokenized dataset of tatm")
    path: str = key(..., "the folder, or its metadata file", min_length=1)
    tokenizer: str | None = key(
        None, "name of the tokenizer that made the dataset; refused if the metadata name another", min_length=1
    )


class MegatronSource(Source):
    """Indexed datasets of Megatron-LM, NAME.bin with NAME.idx, which defines the documents."""

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
    """MIDI files, each of which is a piece, for tokenizers of notes. In a folder, *.mid and *.midi."""

    holds: ClassVar[Content] = "notes"
    kind: Literal["midi"] = key(..., "MIDI files")
    tracks: Literal["piano", "all"] | tuple[str | int, ...] = key(
        "piano",
        "tracks to read. piano: those with a piano program, or all but drums if no track has one; all: all but drums; "
        "or a list of names and numbers",
        unit="number of a track, from 0",
    )
    sustain: bool = key(True, "notes last while the pedal holds them; false ends them when the key is released")
    dataset: str | None = key(None, "name of the data set, with which a model can be conditioned", min_length=1)
    composer: str | None = key(None, "composer of all pieces; taken from the file's path when not given", min_length=1)
    on_error: Literal["stop", "skip"] = key(
        "skip",
        "what to do with a file that cannot be read or lacks one of `tracks`: stop with its name, or drop it, and "
        "count and name it",
    )


class ScoresSource(Source, Music):
    """Keyboard music of the corpus of the music21 library (needs the `piano` extra); each score is a piece."""

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
    get_args(source.model_fields["kind"].annotation)[0]: source for source in get_args(get_args(SourceConfig)[0])
}
"""The config class of each kind."""
