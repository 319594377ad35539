"""The checksums of a checkpoint's files: written once, checked in part or by several processes."""

from __future__ import annotations

import hashlib
import json
import random
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from tests.train.test_checkpoint import save
from torch.distributed.checkpoint.filesystem import FileSystemReader

from quintet.errors import UserError
from quintet.train import checkpoint, checkpoint_files
from quintet.train.checkpoint_files import Progress, checkpoint_path, read_progress


def test_checksums_are_those_of_the_files(tmp_path: Path) -> None:
    save(tmp_path, [4])
    path = checkpoint_path(tmp_path, 4)
    files = json.loads((path / "state.json").read_text())["files"]
    assert files.keys() == {file.name for file in path.iterdir()} - {"state.json"}
    for name, facts in files.items():
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == facts["sha256"]


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(0, 300))
def test_a_hash_of_the_whole_and_one_of_parts_come_of_one_reading(cuts: list[int], size: int) -> None:
    places = list(accumulate(cuts))
    ranges = [(start, stop - start) for start, stop in zip(places[::2], places[1::2], strict=False) if stop <= size]
    data = random.Random(size).randbytes(size)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        file = Path(folder) / "file"
        file.write_bytes(data)
        patch.setattr(checkpoint_files, "_BLOCK", 16)
        parts = b"".join(data[start : start + length] for start, length in ranges)
        expected = tuple(hashlib.sha256(one).hexdigest() for one in (data, parts))
        assert checkpoint_files.hashes_of(file, ranges) == expected
        assert checkpoint_files.sha256_of(file, ranges) == expected[1]


def test_what_is_written_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = Path.open

    def watched(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if mode == "rb" and self.suffix == ".distcp":
            opened.append(self.name)
        return original(self, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", watched)
    saved_in_files(tmp_path, monkeypatch)
    assert sorted(opened) == ["__0_0.distcp", "__0_1.distcp", "__0_2.distcp"]


def saved_in_files(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int = 3) -> Path:
    """A checkpoint of weights and averages in ``count`` files."""
    monkeypatch.setattr(checkpoint, "_files_of", lambda state: count)
    save(folder, [3]).close()
    return checkpoint_path(folder, 3)


def place_of(path: Path, beginning: str) -> tuple[Path, int]:
    """The file of the checkpoint ``path`` that holds what is named like ``beginning``, and its middle byte there."""
    places = FileSystemReader(path).read_metadata().storage_data
    place = next(one for index, one in places.items() if index.fqn.startswith(beginning))
    return path / place.relative_path, place.offset + place.length // 2


@pytest.mark.parametrize(("part", "stops"), [("model.0.weight", True), ("optimizer.state.0.weight.exp_avg", False)])
def test_what_only_reads_the_weights_checks_only_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, stops: bool
) -> None:
    path = saved_in_files(tmp_path, monkeypatch)
    assert len(list(path.glob("*.distcp"))) == 3
    assert read_progress(path) == read_progress(path, weights_only=True) == Progress(step=3)
    file, byte = place_of(path, part)
    content = bytearray(file.read_bytes())
    content[byte] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="is not what was written"):
        read_progress(path)
    if stops:
        with pytest.raises(UserError, match="is not what was written"):
            read_progress(path, weights_only=True)
    else:
        assert read_progress(path, weights_only=True) == Progress(step=3)
        state = json.loads((path / "state.json").read_bytes())
        for facts in state["files"].values():
            facts.pop("weights", None)  # as in a checkpoint of an earlier version, which is checked whole
        (path / "state.json").write_text(json.dumps(state))
        with pytest.raises(UserError, match="is not what was written"):
            read_progress(path, weights_only=True)


def test_several_processes_share_the_files_to_check_and_all_learn_of_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved_in_files(tmp_path, monkeypatch)
    hashed: list[str] = []
    faults: list[str | None] = []
    patience: list[float] = []
    original = checkpoint_files.sha256_of

    def sha256_of(file: Path, ranges: list[tuple[int, int]] | None = None) -> str:
        hashed.append(file.name)
        return original(file, ranges)

    monkeypatch.setattr(checkpoint_files, "sha256_of", sha256_of)
    monkeypatch.setattr(checkpoint_files, "world_size", lambda: 2)
    monkeypatch.setattr(checkpoint_files, "broadcast_from_rank0", lambda make: make())
    monkeypatch.setattr(checkpoint_files, "all_gather", lambda fault, group: faults.append(fault) or [*faults])
    monkeypatch.setattr(dist, "new_group", lambda backend, timeout: patience.append(timeout.total_seconds()))
    monkeypatch.setattr(dist, "destroy_process_group", lambda group: None)

    def of_rank(number: int) -> Progress:
        monkeypatch.setattr(checkpoint_files, "rank", lambda: number)
        return read_progress(path, together=True)

    assert of_rank(0) == of_rank(1) == Progress(step=3)
    assert sorted(hashed) == sorted(json.loads((path / "state.json").read_bytes())["files"])
    assert all(seconds >= 600 for seconds in patience)
    faults.clear()
    last = sorted(path.glob("*.distcp"))[0]  # of the files by name the second: rank 1 has it
    last.write_bytes(last.read_bytes()[:-1] + b"?")
    of_rank(0)
    with pytest.raises(UserError, match=f"{last.name} is not what was written"):
        of_rank(1)
