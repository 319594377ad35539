"""Data: which documents a run reads, how they are stored, and how they are cut into samples."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from quintet.config.part import Part, key, problem


class Source(Part):
    """What every source has: its share of the samples and a name for reports."""

    weight: float | None = key(
        None,
        "share of the samples relative to the other sources. Without weights every sample of every source is seen once "
        "an epoch; with them all sources need one",
        unit="share",
        gt=0,
    )
    label: str | None = key(None, "name of the source in reports; its kind and path when not given")


class PythonStdlibSource(Source):
    """The standard library of the running Python: real text that is on every machine. One module, one document."""

    kind: Literal["python_stdlib"] = key(..., "source code of Python's standard library")


class TextSource(Source):
    """Plain UTF-8 text files."""

    kind: Literal["text"] = key(..., "plain text files")
    path: str | tuple[str, ...] = key(
        ..., "files, globs (`**` enters folders) or folders; of a folder, every file that is UTF-8 text", min_length=1
    )
    separator: str | None = key(
        None, "text that stands between two documents of one file; without it a file is one document", min_length=1
    )


class JsonlSource(Source):
    """One JSON object a line, one document an object."""

    kind: Literal["jsonl"] = key(..., "JSON lines")
    path: str | tuple[str, ...] = key(..., "files, globs, or folders (their *.jsonl)", min_length=1)
    field: str = key("text", "the field that holds the text", min_length=1)


class HuggingFaceSource(Source):
    """A Hugging Face dataset, on disk or by its name on the hub. One row, one document."""

    kind: Literal["huggingface"] = key(..., "a Hugging Face dataset")
    path: str = key(..., "a folder written by `save_to_disk`, or a name on the hub", min_length=1)
    name: str | None = key(None, "configuration of a dataset that has several")
    split: str = key("train", "split to read")
    field: str = key("text", "the column that holds the text", min_length=1)


class StoreSource(Source):
    """A token store that `quintet prepare --output` wrote earlier, with the same tokenizer."""

    kind: Literal["store"] = key(..., "a token store")
    path: str = key(..., "folder of the store", min_length=1)


SourceConfig = Annotated[
    PythonStdlibSource | TextSource | JsonlSource | HuggingFaceSource | StoreSource, Field(discriminator="kind")
]


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
    shuffle: bool = key(True, "draw the samples of an epoch in a keyed random order instead of as they stand")
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
    def _whole(self) -> DataConfig:
        for name in ("sources", "validation_sources"):
            weighted = [source.weight is not None for source in getattr(self, name)]
            if any(weighted) and not all(weighted):
                raise problem(name, f"source {weighted.index(False)} has no weight: give all sources one, or none")
        if self.validation_sources and self.validation:
            raise problem("validation", "leave it out: `validation_sources` already says what to validate on")
        return self
