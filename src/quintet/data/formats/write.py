"""Which formats there are, and how a folder of one appears at once and whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from quintet.data.formats.huggingface import write_huggingface, write_rows
from quintet.data.formats.npy import write_npy
from quintet.data.formats.tatm import write_tatm
from quintet.data.prepare import Prepared
from quintet.data.samples import Samples
from quintet.errors import UserError
from quintet.tokenize import Tokenizer

Parts = dict[str, tuple[Samples, ...]]
FORMATS: dict[str, Callable[[Parts, Tokenizer, Path], None]] = {
    "huggingface": write_huggingface,
    "npy": write_npy,
    "tatm": write_tatm,
}


def write_format(prepared: Prepared, kind: str, folder: Path) -> None:
    """Write what ``prepared`` trains on, and what it validates on, to ``folder`` in the format ``kind``.

    Raises UserError when the folder is not empty, or the format cannot hold the data.
    """
    parts = {"train": prepared.train.streams}
    if prepared.validation is not None:
        parts["validation"] = prepared.validation.streams
    _at_once(folder, lambda place: FORMATS[kind](parts, prepared.tokenizer, place))


def write_samples(prepared: Prepared, folder: Path, ignore_index: int) -> None:
    """Write what ``prepared`` trains on to ``folder`` as one Hugging Face dataset; see `write_rows`.

    Raises UserError when the folder is not empty.
    """
    _at_once(folder, lambda place: write_rows(prepared.train.streams, place, ignore_index))


def _at_once(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder of a temporary name, which gets the name ``folder`` when it is whole."""
    check_new(folder)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        write(unfinished)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_new(folder: Path) -> None:
    """Raise UserError unless ``folder`` is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; name a new folder")
