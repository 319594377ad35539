"""Sources written by a test and read as a run reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from quintet.config.sources import SourceConfig
from quintet.data.sources import reader_of
from quintet.data.sources.base import Document, Report, TokenIds
from quintet.errors import UserError
from quintet.tokenize import Tokenizer
from quintet.tokenize.huggingface import HuggingFaceTokenizer
from quintet.tokenize.simple import ByteTokenizer

WHERE = "data.sources[0]"
END = 256
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def source_of(kind: str, path: Any, **keys: Any) -> Any:
    return TypeAdapter(SourceConfig).validate_python({"kind": kind, "path": str(path), **keys})


def read(source: Any, tokenizer: Tokenizer | None = None, report: Report | None = None) -> list[Document]:
    units, left_out = reader_of(source).index(WHERE).units()
    report = report or Report()
    report.left_out += left_out
    tokenizer = tokenizer or ByteTokenizer()
    return [document for unit in units for document in unit.documents(report, tokenizer)]


def tokens(found: list[Document]) -> list[list[int]]:
    """The documents of pieces of tokens, whole."""
    whole: list[list[int]] = [[]]
    for piece in found:
        assert isinstance(piece, TokenIds)
        whole[-1] += piece.ids.tolist()
        if not piece.continues:
            whole.append([])
    assert not whole.pop(), "the last piece of a file does not continue"
    return whole


def loss_mask(found: list[Document]) -> list[bool]:
    return [
        bool(one)
        for piece in found
        for one in (piece.loss_mask if isinstance(piece, TokenIds) and piece.loss_mask is not None else [])
    ]


def refused(source: Any, problem: str, tokenizer: Tokenizer | None = None) -> None:
    with pytest.raises(UserError, match=re.escape(problem)):
        read(source, tokenizer)


def skipped(source: Any) -> tuple[list[Document], dict[str, int]]:
    report = Report()
    return read(source.model_copy(update={"on_error": "skip"}), report=report), dict(report.dropped)


def t5_like(end: int = 1) -> HuggingFaceTokenizer:
    """A tokenizer of words whose document end is ``end``."""
    words = ["a", "b", "c", "d"]
    words.insert(end, "</s>")
    model = {"type": "WordLevel", "vocab": {word: index for index, word in enumerate(words)}, "unk_token": "a"}
    rules = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": None, "model": model,
        "added_tokens": [{"id": end, "content": "</s>", "special": True, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False}],
    }  # fmt: skip
    return HuggingFaceTokenizer(json.dumps(rules), "</s>")


# What of a row is a document


def write_rows(kind: str, folder: Path, rows: list[dict[str, Any]]) -> Path:
    """``rows`` as a file of ``kind``, or as a dataset."""
    if kind == "jsonl":
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return path
    if kind == "csv":
        import csv

        path = folder / "rows.csv"
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(rows)
    if kind == "parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, folder / "rows.parquet", row_group_size=2)
        return folder / "rows.parquet"
    datasets = pytest.importorskip("datasets")
    datasets.Dataset(table).save_to_disk(folder / "rows")
    return folder / "rows"


ROWS = [{"text": f'row {number}, "quoted"\nfür', "answer": str(number), "n": number} for number in range(7)]
