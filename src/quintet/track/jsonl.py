"""Metrics as JSON lines and samples as text files, which every run has: written, and read again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from quintet.config.load import load_run_config
from quintet.errors import UserError
from quintet.files import to_json, write_text
from quintet.track.names import UsableNames, file_name
from quintet.track.tracker import RunStatus

_NAME = re.compile(r"^--- (.+)$", re.MULTILINE)
_HEADING = re.compile(r"^\\*--- ", re.MULTILINE)  # a line of a text that would be read as a name, or as such a line
_ESCAPED = re.compile(r"^\\(?=\\*--- )", re.MULTILINE)
_GROUPS = {"validation": "validation/", "text modelling": "text/", "benchmarks": "benchmark/"}


class JsonlTracker:
    """``metrics.jsonl`` with one object a record, and ``samples/`` with one file a step.

    In a file of samples a line ``--- name`` stands before each; a line of a text that begins so has a backslash before
    it. A continued run drops the records and samples after the step it continues from, and of this step those that are
    ``due`` again: the same steps write the same ones again. A figure that is not finite is null in the file and NaN
    where it is read.
    """

    every_step: ClassVar[bool] = True

    def __init__(self, folder: Path, first_step: int, due: Sequence[str] = ()) -> None:
        self._file = folder / "metrics.jsonl"
        self._samples = folder / "samples"
        self._names = UsableNames(file_name)
        if self._file.exists():
            _keep_until(self._file, first_step, tuple(_GROUPS[name] for name in due if name in _GROUPS))
        last_sample = first_step - ("samples" in due)
        for sample in self._samples.glob("step-*.*"):
            step = re.match(r"step-(\d+)", sample.name)
            if step is not None and int(step[1]) > last_sample:
                sample.unlink()
        # A line reaches the operating system as it is written, so that a kill of the process cannot lose it.
        self._stream = self._file.open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one record."""
        if metrics:
            self._stream.write(to_json({"step": step, **metrics}) + "\n")

    def text(self, step: int, name: str, text: str) -> None:
        """Append ``text`` to the file of its step."""
        self._samples.mkdir(exist_ok=True)
        escaped = _HEADING.sub(r"\\\g<0>", text)
        with (self._samples / f"step-{step:06d}.txt").open("a", encoding="utf-8", newline="") as out:
            out.write(f"--- {name}\n{escaped}\n")

    def files(self, step: int, name: str, files: Mapping[str, bytes]) -> None:
        """Write each of ``files`` under the number of its step, and its name if it is not the only sample."""
        self._samples.mkdir(exist_ok=True)
        which = "" if name == "sample 0" else f"-{self._names.of(name)}"
        for status, content in files.items():
            (self._samples / f"step-{step:06d}{which}{status}").write_bytes(content)

    def close(self, status: RunStatus = "finished", checkpoint: Path | None = None) -> None:
        """Close the file."""
        self._stream.close()


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The whole records of ``metrics.jsonl``; a last line that a kill cut short is left out, and null is NaN."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return [{name: math.nan if value is None else value for name, value in json.loads(line).items()} for line in lines]


def read_samples(file: Path) -> list[tuple[str, str]]:
    """Name and text of each sample in a file of ``samples/``, as they were written."""
    with file.open(encoding="utf-8", newline="") as written:
        content = written.read()
    if content.partition("\n")[0].endswith("\r"):  # of an earlier version, on Windows
        content = content.replace("\r\n", "\n")
    _, *parts = _NAME.split(content)
    texts = (text.removeprefix("\n").removesuffix("\n") for text in parts[1::2])
    return [(name, _ESCAPED.sub("", text)) for name, text in zip(parts[::2], texts, strict=True)]


def _keep_until(file: Path, step: int, again: tuple[str, ...]) -> None:
    """Keep the records up to ``step``, and of ``step`` itself those without a metric of the groups ``again``."""
    kept = [
        record
        for record in read_metrics(file)
        if record["step"] < step or (record["step"] == step and not any(name.startswith(again) for name in record))
    ]
    write_text(file, "".join(to_json(record) + "\n" for record in kept))


@dataclass(frozen=True)
class RunSummary:
    """One row: figures are those last recorded, None where there are none; ``changed`` is local time."""

    name: str
    step: int
    steps: int | None
    train_loss: float | None
    validation_loss: float | None
    bits_per_byte: float | None
    tokens_per_second: float | None
    changed: str


def find_runs(folder: Path) -> list[RunSummary]:
    """The runs directly below ``folder``, by name. Raises UserError when there is none."""
    found = [summarise(file.parent) for file in sorted(folder.glob("*/run.yaml"))]
    if not found:
        raise UserError(f"{folder}: holds no run; `quintet train` makes one")
    return found


def summarise(folder: Path) -> RunSummary:
    """The row of one run folder."""
    file = folder / "metrics.jsonl"
    last: dict[str, float] = {}
    for record in read_metrics(file):
        last |= record
    changed = datetime.fromtimestamp((file if file.exists() else folder / "run.yaml").stat().st_mtime)
    return RunSummary(
        name=folder.name,
        step=int(last.get("step", 0)),
        steps=load_run_config([folder / "run.yaml"]).config.train.steps,
        train_loss=last.get("train/loss"),
        validation_loss=last.get("validation/loss"),
        bits_per_byte=last.get("validation/bits_per_byte"),
        tokens_per_second=last.get("speed/tokens_per_second"),
        changed=changed.strftime("%Y-%m-%d %H:%M"),
    )
