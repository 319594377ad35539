"""The checkpoints in a run's folder: their steps, the progress that they hold, and checks that they are whole.

This module does not import PyTorch, so that commands can show the progress of a run at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from quintet.errors import UserError, one_line
from quintet.files import from_json
from quintet.processes import (
    FailedElsewhere,
    all_gather,
    broadcast_from_rank0,
    destroy_group,
    is_rank_zero,
    new_group,
    rank,
    world_size,
)


@dataclass(frozen=True)
class Progress:
    """The state of a run besides the weights and the optimizer's state: all that is needed to continue it.

    ``stages`` are the stages of the data so far (see `stage_facts`), and ``plateau`` the state of that schedule (see
    `after_validation`). ``due`` names the measurements that are still to be made after this step (see
    `quintet.train.evaluation`), and ``failed`` counts those that failed. ``precision`` is that of matrix products, ""
    in old checkpoints. ``libraries`` are the versions of the libraries that made the token ids.
    """

    step: int = 0
    skipped_steps: int = 0
    last_skipped: int = 0  # the skipped steps directly before this one
    tokens: int = 0
    seconds: float = 0.0
    validation_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    tokenizer: str = ""
    corpus: str = ""
    scaler: dict[str, Any] | None = None
    stages: list[list[Any]] = field(default_factory=list[list[Any]])
    plateau: dict[str, Any] = field(default_factory=dict[str, Any])
    inputs: dict[str, str] = field(default_factory=dict[str, str])  # digests of its first weights and templates, by key
    due: list[str] = field(default_factory=list[str])
    failed: dict[str, int] = field(default_factory=dict[str, int])
    precision: str = ""
    libraries: dict[str, str] = field(default_factory=dict[str, str])
    losses: list[float] = field(default_factory=list[float])  # the last losses, to find a spike
    spikes: list[int] = field(default_factory=list[int])  # the steps whose batches are skipped because of a spike

    def validated(self, loss: float) -> Progress:
        """Return the progress with the validation ``loss`` of this step, which is the best only if it is finite."""
        best = (self.best_loss, self.best_step)
        # A checkpoint of an earlier version may have NaN as its best loss; every loss is better.
        if math.isfinite(loss) and (best[0] is None or not best[0] <= loss):
            best = (loss, self.step)
        return replace(self, validation_loss=loss, best_loss=best[0], best_step=best[1])


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the whole checkpoints in ``folder``, ascending."""
    return sorted(step for step, path in step_folders(folder) if (path / "state.json").is_file())


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints in ``folder``, whole or not, as pairs of step and path."""
    numbers = ((path.name.removeprefix("step-"), path) for path in folder.glob("step-*"))
    steps = ((int(number), path) for number, path in numbers if number.isdecimal())
    return [(step, path) for step, path in steps if path == checkpoint_path(folder, step)]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of ``step``."""
    return folder / f"step-{step:06d}"


def last_checkpoint(folder: Path) -> Path | None:
    """Return the absolute path of the newest checkpoint in ``folder``, None if there is none."""
    steps = checkpoint_steps(folder)
    return checkpoint_path(folder.resolve(), steps[-1]) if steps else None


def newest_whole(
    folder: Path, say: Callable[[str], object], *, weights_only: bool = False, together: bool = False
) -> Progress | None:
    """Return the progress of the newest undamaged checkpoint in ``folder``, None if there is no checkpoint.

    ``say`` gets a line for each newer checkpoint, which is damaged. The other arguments are those of `read_progress`.
    Raises UserError if all checkpoints are damaged.
    """
    damaged: list[str] = []
    speaks = is_rank_zero() or not together
    steps = broadcast_from_rank0(lambda: checkpoint_steps(folder)) if together else checkpoint_steps(folder)
    for step in reversed(steps):
        try:
            found = read_progress(checkpoint_path(folder, step), weights_only=weights_only, together=together)
        except UserError as error:
            damaged += [line.rpartition("; ")[0] for line in error.problems]
            continue
        for line in damaged if speaks else []:
            say(f"{line}; step {step} is used instead")
        return found
    if damaged:
        kind = UserError if speaks else FailedElsewhere
        raise kind(*(f"{line}; no other is whole; move the run's folder away to start again" for line in damaged))
    return None


def read_progress(path: Path, *, weights_only: bool = False, together: bool = False) -> Progress:
    """Check the checkpoint at ``path`` and return its progress.

    All files are checked, or with ``weights_only`` the bytes of the weights. With ``together`` all processes call this,
    each checks a part of the files, and all get the same answer. Raises UserError if a file is damaged.
    """
    if not together or world_size() == 1:
        facts, files = _read_state(path)
        fault = _first_fault(path, files, weights_only)
    else:
        facts, files = broadcast_from_rank0(lambda: _read_state(path))
        # Long enough for the slowest file system that is still usable.
        limit = timedelta(seconds=600 + sum(entry["bytes"] for entry in files.values()) / _SLOWEST)
        group = new_group(limit)
        mine = dict(sorted(files.items())[rank() :: world_size()])
        faults = all_gather(_first_fault(path, mine, weights_only), group)
        fault = next((text for text in faults if text), None)
        destroy_group(group)
    if fault is not None:
        raise _damaged(path, fault)
    return facts


_SLOWEST = 50e6
"""Bytes per second of the slowest file system that a checkpoint is read from."""
THREADS = 4
"""Threads that write and check the files of one process; Python releases its lock while it computes a hash."""


def _read_state(path: Path) -> tuple[Progress, dict[str, dict[str, Any]]]:
    """Return the progress in state.json at ``path``, and by name the size and hashes of the other files."""
    try:
        state = from_json((path / "state.json").read_bytes())
        facts = Progress(**state["progress"])
        files = {
            name: {"bytes": int(entry["bytes"]), "sha256": entry["sha256"], **entry}
            for name, entry in state["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"state.json cannot be read ({one_line(error, typed=True)})") from error
    if checkpoint_path(path.parent, facts.step) != path:
        raise _damaged(path, f"state.json is that of step {facts.step}")
    return facts, files


def _first_fault(path: Path, files: dict[str, dict[str, Any]], weights_only: bool) -> str | None:
    """Describe the damage of the first damaged file of ``files``; return None if there is none."""
    ranges: dict[str, list[tuple[int, int]]] = {}

    def fault(name: str) -> str | None:
        file, expected = path / name, files[name]
        size = file.stat().st_size if file.is_file() else -1
        if size != expected["bytes"]:
            difference = "is missing" if size < 0 else f"has {size} bytes instead of {expected['bytes']}"
            return f"{name} {difference}"
        kind, part = ("weights", ranges.get(name, [])) if weights_only and "weights" in expected else ("sha256", None)
        if sha256_of(file, part) != expected[kind]:
            return f"{name} is not what was written: its SHA-256 differs"
        return None

    # First the table with the places of the weights.
    if TABLE in files and (damage := fault(TABLE)) is not None:
        return damage
    if weights_only and (path / TABLE).is_file():
        ranges = weight_ranges(path)
    with ThreadPoolExecutor(THREADS) as threads:
        return next(filter(None, threads.map(fault, sorted(set(files) - {TABLE}))), None)


TABLE = ".metadata"
"""The file of torch.distributed.checkpoint with the place of each tensor."""


def weight_ranges(folder: Path) -> dict[str, list[tuple[int, int]]]:
    """Return first byte and length of each weight in the checkpoint ``folder``, ascending, by the name of its file."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    by_file: dict[str, list[tuple[int, int]]] = {}
    places: dict[Any, Any] = FileSystemReader(folder).read_metadata().storage_data or {}
    for index, place in places.items():
        if index.fqn.startswith("model."):
            by_file.setdefault(place.relative_path, []).append((place.offset, place.length))
    return {name: sorted(ranges) for name, ranges in by_file.items()}


_BLOCK = 2**22
"""Bytes to read at once."""


def hashes_of(file: Path, ranges: list[tuple[int, int]]) -> tuple[str, str]:
    """Return the SHA-256 of ``file`` and that of its ``ranges``, reading it once.

    ``ranges`` are ascending pairs of first byte and length.
    """
    content, parts, at, left = hashlib.sha256(), hashlib.sha256(), 0, ranges[::-1]
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            content.update(block)
            while left:
                start, stop = left[-1][0], sum(left[-1])
                parts.update(block[max(0, start - at) : max(0, stop - at)])
                if stop > at + len(block):
                    break
                left.pop()
            at += len(block)
    return content.hexdigest(), parts.hexdigest()


def sha256_of(file: Path, ranges: list[tuple[int, int]] | None = None) -> str:
    """Return the SHA-256 of ``file``, or of its ``ranges``, pairs of first byte and length."""
    with file.open("rb") as stream:
        if ranges is None:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest = hashlib.sha256()
        for start, length in ranges:
            stream.seek(start)
            while length > 0 and (part := stream.read(min(length, _BLOCK))):
                digest.update(part)
                length -= len(part)
        return digest.hexdigest()


def _damaged(path: Path, fault: str) -> UserError:
    others = [step for step in checkpoint_steps(path.parent) if checkpoint_path(path.parent, step) != path]
    mend = (
        f"move it away to use step {others[-1]}"
        if others
        else "there is no other; move the run's folder away to start again"
    )
    return UserError(f"{path}: the checkpoint is damaged: {fault}; {mend}")
