"""Tokenized datasets of tatm: a folder with metadata, raw ids in PREFIX_0.bin and on, and a tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quintet.config.names import local_path
from quintet.config.sources import TatmSource
from quintet.data.sources.document import Document, Report
from quintet.data.sources.files import File, described
from quintet.data.sources.token_files import SLICE, TokenFile, cut_at, raw_file
from quintet.errors import UserError, one_line
from quintet.tokenize import Tokenizer
from quintet.tokenize.base import NO_END

METADATA = ("metadata.json", "metadata.yaml", "metadata.yml")
TOKENIZER = "tokenizer.json"
T5_END = 1  # the id that tatm itself takes for the end of a document, whatever the tokenizer
_DTYPES = ("uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64")


@dataclass(frozen=True)
class TatmUnit:
    """A file of ids; ``tokenizer`` is what the metadata in ``folder`` call it. ``size`` in bytes."""

    path: str
    size: int
    dtype: str
    folder: Path
    tokenizer: str

    @property
    def place(self) -> str:
        """Where this unit is, for messages."""
        return self.path


def tatm_files(source: TatmSource, where: str) -> list[File]:
    """The metadata, the tokenizer if there is one, and the files of ids in the order of their numbers.

    Raises UserError when there are none.
    """
    metadata = metadata_file(source, where)
    made_with = str(_info(metadata).get("tokenizer", ""))
    if source.tokenizer is not None and made_with and Path(made_with).name != Path(source.tokenizer).name:
        raise UserError(f"{where}.tokenizer: the dataset was made with {made_with}, not with {source.tokenizer}")
    return [*(_file(path) for path in (metadata, metadata.parent / TOKENIZER) if path.is_file()), *_bins(metadata)]


def metadata_file(source: TatmSource, where: str) -> Path:
    """The file that describes the dataset. Raises UserError when there is none."""
    place = local_path(source.path)
    if place.is_file():
        return place
    found = next((place / name for name in METADATA if (place / name).is_file()), None)
    if found is None:
        raise UserError(f"{where}.path: {source.path} holds no {METADATA[0]} or .yaml; name a dataset of tatm")
    return found


def tatm_units(source: TatmSource) -> list[TatmUnit]:
    """A unit for each file of ids: tatm lets no document go on in another file."""
    metadata = metadata_file(source, "tatm")
    info = _info(metadata)
    return [
        TatmUnit(file.path, file.size, info.get("dtype", "uint16"), metadata.parent, str(info.get("tokenizer", "")))
        for file in _bins(metadata)
    ]


def tatm_documents(unit: TatmUnit, report: Report, tokenizer: Tokenizer) -> Iterator[Document]:
    """The documents of ``unit``; zeros at its end are padding, counted in ``report`` as padding_tokens.

    Raises UserError when its documents end with another id than those of ``tokenizer``.
    """
    end = end_of(unit.folder / TOKENIZER, unit.tokenizer)
    if end != tokenizer.end_id:
        raise UserError(
            f"{unit.path}: its documents end with id {end}, those of the run's tokenizer "
            f"{'do not end' if tokenizer.end_id == NO_END else f'with {tokenizer.end_id}'}; "
            "set `tokenizer` to the one that the dataset was made with, or the `end_id` of kind ids to that"
        )
    tokens = raw_file(unit.path, unit.size, unit.dtype)
    stop = _content(tokens, end)
    report.dropped["padding_tokens"] += tokens.count - stop
    return cut_at(tokens, end, report, stop=stop)


def end_of(tokenizer: Path, name: str) -> int:
    """The id that ends a document: by the tokenizer's file, else 1 if the tokenizer is a T5. Raises UserError."""
    if tokenizer.is_file():
        from quintet.tokenize.huggingface import huggingface_tokenizer

        return huggingface_tokenizer(str(tokenizer)).end_id
    if "t5" in name.lower():
        return T5_END
    raise UserError(
        f"{tokenizer}: does not exist, and the id that ends a document is not known without it; put the file "
        f"of the tokenizer {name!r} there"
    )


def _content(tokens: TokenFile, end: int) -> int:
    """How many tokens come before the zeros at the end, of which one belongs to the text where 0 ends a document."""
    for start in reversed(range(0, tokens.count, SLICE)):
        used = np.flatnonzero(tokens.read(start, min(start + SLICE, tokens.count)))
        if used.size:
            stop = start + int(used[-1]) + 1
            return min(stop + 1, tokens.count) if end == 0 else stop
    return 0


def _bins(metadata: Path) -> list[File]:
    info = _info(metadata)
    prefix = Path(str(info.get("file_prefix", "")))
    folder = prefix.parent if prefix.is_absolute() and _numbered(prefix.parent, prefix.name) else metadata.parent
    found = _numbered(folder, prefix.name)
    if not found:
        raise UserError(f"{metadata}: there is no file {folder / prefix.name}_0.bin; put the files beside the metadata")
    return [_file(path) for _, path in sorted(found.items())]


def _numbered(folder: Path, prefix: str) -> dict[int, Path]:
    """The files of ids in ``folder``, by their numbers."""
    pattern = re.compile(re.escape(prefix) + r"_(0|[1-9][0-9]*)\.bin")  # so that no two files have one number
    if not folder.is_dir():
        return {}
    return {int(match[1]): file for file in folder.iterdir() if (match := pattern.fullmatch(file.name))}


def _info(metadata: Path) -> dict[str, Any]:
    """What the metadata say of the tokens. Raises UserError when it is not that of a tokenized dataset."""
    try:
        text = metadata.read_text(encoding="utf-8")
        if metadata.suffix == ".json":
            content = json.loads(text)
        else:
            import yaml

            content = yaml.safe_load(text)
    except Exception as error:  # the YAML library has an error of its own, below Exception
        raise UserError(f"{metadata}: cannot be read ({one_line(error)}); restore it") from None
    info = content.get("tokenized_info") if isinstance(content, dict) else None
    if not isinstance(info, dict) or not info.get("file_prefix"):
        raise UserError(f"{metadata}: says nothing of tokens (tokenized_info.file_prefix); tokenise the dataset first")
    if info.get("dtype", "uint16") not in _DTYPES:
        raise UserError(f"{metadata}: dtype {info['dtype']!r} is no type of ids; it can be {', '.join(_DTYPES)}")
    return info


def _file(path: Path) -> File:
    return described(path, path.name, named=True)
