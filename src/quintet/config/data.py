"""Data: which documents a run reads, how they are stored, and how they are cut into samples."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from quintet.config.cleaning import CleaningConfig
from quintet.config.documents import RowConfig, TextConfig, TextField, WholeText
from quintet.config.part import Part, key, problem

_DOCUMENT = "whether a file is one document, or one ends with every end id of the tokenizer"


class Source(Part):
    """What every source has: its share of the samples and a name for reports."""

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


class PythonStdlibSource(Source):
    """The standard library of the running Python: real text that is on every machine. One module, one document."""

    kind: Literal["python_stdlib"] = key(..., "source code of Python's standard library")


class FileSource(Source):
    """What sources of files have in common."""

    path: str | tuple[str, ...] = key(
        ...,
        "files, globs (`**` enters folders) or folders, on this disk or by an address of fsspec such as s3://, gs://, "
        "https://",
        min_length=1,
    )


class RowSource(FileSource):
    """What sources of rows and lines have in common."""

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
    """One JSON object a line, one document an object. Of a folder, *.jsonl, *.jsonl.gz and *.jsonl.zst."""

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
    document: RowConfig = key(TextField(), "what of a row is a document")
    on_error: Literal["stop", "skip"] = key(
        "stop", "what to do with a row that cannot be used: stop with its place, or leave it out and count it"
    )


class _ArraySource(FileSource):
    document: Literal["file", "end_id"] = key("file", _DOCUMENT)
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

    @model_validator(mode="after")
    def _part_of_a_file(self) -> _ArraySource:
        for name, place in (("start", self.start), ("stop", self.stop)):
            if isinstance(place, float) and place > 1:
                raise problem(name, f"{place:g} is no fraction; write a number of tokens without a point")
        return self


class NpySource(_ArraySource):
    """Token arrays of NumPy, [tokens], or with further axes of length 1. Of a folder, *.npy. Where `NAME_labels.npy`
    is beside `NAME.npy`, it has the same tokens, or -100 where there is no loss."""

    kind: Literal["npy"] = key(..., "token arrays of NumPy")


class BinSource(_ArraySource):
    """Token ids and nothing else, little-endian, as nanoGPT writes them. Of a folder, *.bin."""

    kind: Literal["bin"] = key(..., "raw token ids")
    dtype: Literal["uint16", "uint32"] = key("uint16", "type of the ids")


class TatmSource(Source):
    """A tokenized dataset of tatm: `metadata.json` or `.yaml`, `PREFIX_0.bin` and on, and the `tokenizer.json` that
    says which id ends a document. Zeros at the end of a file are padding: left out, counted."""

    kind: Literal["tatm"] = key(..., "a tokenized dataset of tatm")
    path: str = key(..., "the folder, or its metadata file", min_length=1)


class MegatronSource(Source):
    """Indexed datasets of Megatron-LM, NAME.bin with NAME.idx; documents are those of the index."""

    kind: Literal["megatron"] = key(..., "indexed datasets of Megatron-LM")
    path: str | tuple[str, ...] = key(
        ..., "names with or without .bin or .idx, globs of .idx, or folders (their *.idx)", min_length=1
    )


class StoreSource(Source):
    """A token store that `quintet prepare --output` wrote earlier, with the same tokenizer."""

    kind: Literal["store"] = key(..., "a token store")
    path: str = key(..., "folder of the store", min_length=1)


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
    | StoreSource,
    Field(discriminator="kind"),
]


class StreamPackingConfig(Part):
    """All documents of a source one behind the other, cut every `sequence_length` tokens."""

    kind: Literal["stream"] = key("stream", "one stream of tokens, cut where a sample is full")


class _Packing(Part):
    add_bos_eos: bool = key(
        False,
        "each sample begins with the tokenizer's first id, or its end id if it has none, and ends with its end id",
    )
    keep_ends: bool | None = key(
        None, "the end id stands behind each document inside a sample; not with add_bos_eos when not given"
    )

    @property
    def ends_kept(self) -> bool:
        """Whether the end id stands behind each document."""
        return not self.add_bos_eos if self.keep_ends is None else self.keep_ends


class ChunkPackingConfig(_Packing):
    """Documents cut into chunks, in front of a token that begins a character or a word."""

    kind: Literal["chunks"] = key(..., "chunks of at most sequence_length + 1 tokens")
    join: bool = key(True, "cut the documents one behind the other; false cuts each by itself")
    overlap: int = key(0, "tokens that a chunk repeats of the one before", unit="tokens", ge=0)


class DocumentPackingConfig(_Packing):
    """One document, one sample; what a longer document has more is left out."""

    kind: Literal["document"] = key(..., "a document a sample, truncated")


class BestFitPackingConfig(_Packing):
    """Whole documents, each in the fullest sample that has room for it, the longest first (Ding et al. 2024)."""

    kind: Literal["best_fit"] = key(..., "whole documents, fitted together")


PackingConfig = ChunkPackingConfig | DocumentPackingConfig | BestFitPackingConfig
"""The ways of packing that need a table."""

AnyPackingConfig = Annotated[
    StreamPackingConfig | ChunkPackingConfig | DocumentPackingConfig | BestFitPackingConfig,
    Field(discriminator="kind"),
]


class Stage(Part):
    """A part of the run with weights of its own."""

    until: int | float | None = key(
        None,
        "where the stage ends: a whole number is a step, a number with a point a fraction of the run's steps. The last "
        "stage has none",
        unit="steps or fraction",
        gt=0,
    )
    weights: dict[str, Annotated[float, Field(ge=0)]] = key(
        ...,
        "share of the samples of each source in this stage, by its `label`; 0, or no mention, draws nothing of it. "
        "Sources with one label share its weight by their size",
        min_length=1,
    )

    @model_validator(mode="after")
    def _drawn_from(self) -> Stage:
        if isinstance(self.until, float) and self.until > 1:
            raise problem("until", f"{self.until:g} is no fraction; write a number of steps without a point")
        if not any(self.weights.values()):
            raise problem("weights", "all are 0: give one source a share")
        return self


class DataConfig(Part):
    """Which documents a run reads and how they become samples."""

    sources: tuple[SourceConfig, ...] = key(..., "what to train on, one entry a source", min_length=1)
    validation: float = key(
        0.01,
        "held out from every source: a fraction of its tokens below 1, a number of tokens from 1 on. Whole documents "
        "in a keyed random order, the last one cut to fit. 0 holds nothing out",
        unit="fraction or tokens",
        ge=0,
    )
    validation_sources: tuple[SourceConfig, ...] = key(
        (), "sources to validate on instead of a held-out part; `validation` is then 0 and nothing else"
    )
    sequence_length: int = key(1024, "tokens that the model sees at once", unit="tokens", ge=2)
    packing: AnyPackingConfig = key(StreamPackingConfig(), "how documents become samples")
    shuffle: bool = key(True, "draw the samples of an epoch in a keyed random order instead of as they stand")
    mixing: Literal["random", "sequential"] = key(
        "random",
        "random draws from all sources at once; sequential takes one source after the other, in every epoch anew",
    )
    stages: tuple[Stage, ...] = key((), "weights that change over the run, instead of a `weight` a source")
    deduplicate_validation: bool = key(
        True, "do not train on documents that are equal to one that is validated on, wherever they stand"
    )
    cleaning: CleaningConfig = key(CleaningConfig(), "documents that every source leaves out")
    cache_dir: str = key(
        "~/.cache/quintet",
        "where token stores and trained tokenizers are kept, found again by their fingerprints",
        min_length=1,
    )
    processes: int | None = key(
        None, "processes that tokenise; one for each core when not given", unit="processes", ge=1
    )

    @model_validator(mode="before")
    @classmethod
    def _nothing_held_out_twice(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("validation_sources") and "validation" not in values:
            return {**values, "validation": 0}
        return values

    @model_validator(mode="after")
    def _room_to_cut(self) -> DataConfig:
        packing = self.packing
        if isinstance(packing, ChunkPackingConfig):
            room = self.sequence_length + 1 - (2 if packing.add_bos_eos else 0)
            if packing.overlap >= room:
                raise problem(
                    "packing.overlap", f"{packing.overlap} tokens leave no room for new ones among {room}; lower it"
                )
        return self

    @model_validator(mode="after")
    def _whole(self) -> DataConfig:
        for name in ("sources", "validation_sources"):
            weighted = [source.weight is not None for source in getattr(self, name)]
            if any(weighted) and not all(weighted):
                raise problem(name, f"source {weighted.index(False)} has no weight: give all sources one, or none")
        if self.validation_sources and self.validation:
            raise problem("validation", "leave it out: `validation_sources` already says what to validate on")
        return self

    @model_validator(mode="after")
    def _mixed_in_one_way(self) -> DataConfig:
        """Weights, repeats and stages exclude one another, and only repeats go with sequential mixing."""
        for index, source in enumerate(self.sources):
            place = f"sources[{index}]"
            if self.stages and (source.weight is not None or source.repeat is not None):
                name = "weight" if source.weight is not None else "repeat"
                raise problem(f"{place}.{name}", "leave it out: `data.stages` says how the sources are mixed")
            if source.repeat is not None and any(other.weight is not None for other in self.sources):
                raise problem(f"{place}.repeat", "give weights or repeats, not both: with weights there is no epoch")
        for index, source in enumerate(self.validation_sources):
            for name in ("weight", "repeat"):
                if getattr(source, name) is not None:
                    place = f"validation_sources[{index}].{name}"
                    raise problem(place, "leave it out: each source is validated on by its size")
        if self.mixing == "sequential" and (self.stages or self.sources[0].weight is not None):
            given = "`data.stages`" if self.stages else "weights"
            raise problem("mixing", f"sequential and {given} exclude one another; `repeat` makes a source longer")
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> DataConfig:
        """Stages follow one another, and their labels are those of the sources."""
        last = len(self.stages) - 1
        for index, stage in enumerate(self.stages):
            place, before = f"stages[{index}].until", self.stages[index - 1].until if index else None
            if index == last and stage.until is not None:
                raise problem(place, "leave it out: the last stage ends with the run")
            if index < last and stage.until is None:
                raise problem(place, "is missing: only the last stage ends with the run")
            if stage.until is None or before is None:
                continue
            if isinstance(stage.until, int) != isinstance(before, int):
                raise problem(place, f"{stage.until:g} after {before:g}: give all in steps, or all as fractions")
            if stage.until <= before:
                raise problem(place, f"{stage.until:g} is not after the {before:g} of the stage before")
        return self._labels_known() if self.stages else self

    def _labels_known(self) -> DataConfig:
        labels = [source.label for source in self.sources]
        if None in labels:
            raise problem(f"sources[{labels.index(None)}].label", "is missing: `data.stages` names sources by it")
        known = ", ".join(dict.fromkeys(filter(None, labels)))
        for index, stage in enumerate(self.stages):
            unknown = [label for label in stage.weights if label not in labels]
            if unknown:
                raise problem(f"stages[{index}].weights", f"no source has the label {unknown[0]!r}; there are {known}")
        for index, label in enumerate(labels):
            if not any(stage.weights.get(label or "") for stage in self.stages):
                raise problem(f"sources[{index}].label", f"no stage draws from {label!r}; give it a weight in one")
        return self
