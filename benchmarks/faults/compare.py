"""Comparison of a run after faults with the reference run: every difference, and damaged files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from quintet.files import is_unfinished
from quintet.train.checkpoint_files import checkpoint_path, checkpoint_steps, read_progress


def records(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without speeds and without what an interruption adds. Raises ValueError if a
    line is no row."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    odd = ("speed/", "train/skipped_steps", "train/rollbacks")
    return [{name: value for name, value in row.items() if not name.startswith(odd)} for row in rows]


def tensors(run: Path) -> Iterator[tuple[str, Any]]:
    """Yield every value of the last checkpoint with its name: weights and optimizer averages."""
    place = checkpoint_path(run / "checkpoints", checkpoint_steps(run / "checkpoints")[-1])
    with tempfile.TemporaryDirectory() as folder:
        dcp_to_torch_save(place, Path(folder) / "state.pt")
        yield from _leaves(torch.load(Path(folder) / "state.pt", weights_only=True), "")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{name}[{index}]")
    else:
        yield name, value


def same(one: Any, other: Any) -> bool:
    """Return True if two values are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and torch.equal(_bytes(one), _bytes(other))
    return type(one) is type(other) and one == other


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def differences(found: Path, whole: Path) -> list[str]:
    """Return one line per difference from the run ``whole``. A log that was set aside may remain."""
    try:
        rows, wanted = records(found), records(whole)
    except (OSError, ValueError) as error:
        return [f"metrics.jsonl cannot be read: {error}"]
    problems = []
    if rows != wanted:
        odd = next((row for row, other in zip(rows, wanted, strict=False) if row != other), "the last ones")
        problems.append(f"{len(rows)} records instead of {len(wanted)}, another at {str(odd)[:120]}")
    steps = [checkpoint_steps(run / "checkpoints") for run in (found, whole)]
    if steps[0] != steps[1]:
        problems.append(f"checkpoints {steps[0]} instead of {steps[1]}")
    texts = [{file.name: file.read_bytes() for file in (run / "samples").glob("*")} for run in (found, whole)]
    if texts[0] != texts[1]:
        problems.append(f"samples {sorted(texts[0])} are not those of {sorted(texts[1])}")
    if not problems:
        ours, theirs = dict(tensors(found)), dict(tensors(whole))
        other = [name for name in ours.keys() | theirs.keys() if not same(ours.get(name), theirs.get(name))]
        problems += [f"other weights or averages: {sorted(other)[:3]}"] if other else []
    return problems + left_behind(found)


def left_behind(run: Path) -> list[str]:
    """Return a line for each temporary file that no start removed."""
    odd = [path for path in run.rglob("*") if is_unfinished(path) or path.name.startswith((".step-", ".running"))]
    return [f"left behind: {path.relative_to(run)}" for path in odd]


def damaged_checkpoints(run: Path) -> list[str]:
    """Return a line for each checkpoint with a final name and a damaged file."""
    found = []
    for step in checkpoint_steps(run / "checkpoints"):
        try:
            read_progress(checkpoint_path(run / "checkpoints", step))
        except Exception as error:  # any error is a fault
            found.append(f"damaged checkpoint of step {step}: {error}")
    return found
