"""Which formats there are, and how a folder of one is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quintet.data.formats.huggingface import write_huggingface, write_rows
from quintet.data.formats.npy import write_npy
from quintet.data.formats.tatm import write_tatm
from quintet.data.prepare import Prepared
from quintet.data.samples import Samples
from quintet.errors import UserError
from quintet.files import new_folder
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
    check_new(folder)
    with new_folder(folder) as place:
        FORMATS[kind](parts, prepared.tokenizer, place)


def write_samples(prepared: Prepared, folder: Path, ignore_index: int) -> None:
    """Write what ``prepared`` trains on to ``folder`` as one Hugging Face dataset; see `write_rows`.

    Raises UserError when the folder is not empty.
    """
    check_new(folder)
    with new_folder(folder) as place:
        write_rows(prepared.train.streams, place, ignore_index)


def check_new(folder: Path) -> None:
    """Raise UserError unless ``folder`` is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; name a new folder")
