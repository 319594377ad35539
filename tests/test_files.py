"""Files and folders appear whole or not at all; the holder of a lock file gives signs of life."""

from __future__ import annotations

import errno
import math
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import wait_until

from quintet import files
from quintet.files import (
    Heartbeat,
    create_lock_file,
    files_digest,
    from_json,
    new_folder,
    to_json,
    unfinished_name,
    write_text,
)

DIES = """
import os, signal, sys
from pathlib import Path
from quintet.files import {name}
os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
{call}
"""


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_text_is_written_as_it_is(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("texts") / "inner" / "file.txt"
    write_text(file, text)
    assert file.read_bytes() == text.encode()
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000, b"1" * 5000, b'{"a": ' * 100_000, b""])
def test_json_that_cannot_be_read_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(text)


def test_a_kill_while_a_file_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")
    code = DIES.format(name="write_text", call="write_text(Path(sys.argv[1]), 'new')")
    assert subprocess.run([sys.executable, "-c", code, str(file)], check=False).returncode == -signal.SIGKILL
    assert file.read_text() == "old"


def test_the_whole_text_is_on_the_disk_before_it_has_its_name_and_then_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, file = [], tmp_path / "file.txt"

    def fsync(number: int) -> None:
        found = os.fstat(number)
        synced.append((found.st_size if stat.S_ISREG(found.st_mode) else "folder", file.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(file, "é" * 1000)
    assert synced == [(2000, False), *([] if sys.platform == "win32" else [("folder", True)])]


def test_a_name_that_is_no_figure_is_never_written_as_json() -> None:
    assert to_json({"a": math.nan, "b": [math.inf, 1.5]}) == '{"a": null, "b": [null, 1.5]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({math.nan: 1})


def test_a_folder_is_there_when_it_is_full(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "folder"
    with new_folder(folder) as place:
        (place / "a").write_text("1")
        assert not folder.exists()
    assert [(folder / "a").read_text(), *folder.parent.iterdir()] == ["1", folder]


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "folder", shared=True) as place:
            (place / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_in_a_folder_stays(tmp_path: Path, shared: bool) -> None:
    def write() -> None:
        with new_folder(tmp_path / "folder", shared=shared) as place:
            (place / "late").touch()
            (tmp_path / "folder").mkdir()
            (tmp_path / "folder" / "early").touch()

    if shared:
        write()
    else:
        with pytest.raises(OSError, match="folder"):
            write()
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(tmp_path / "folder") == ["early"]


def test_an_error_of_the_block_is_raised_though_the_folder_is_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="disk is full"), new_folder(tmp_path / "folder", shared=True):
        raise OSError("disk is full")


def test_no_two_writers_have_the_same_unfinished_name(tmp_path: Path) -> None:
    names = {unfinished_name(tmp_path / "file") for _ in range(100)}
    assert len(names) == 100
    assert {name.parent for name in names} == {tmp_path}


def test_a_digest_is_of_names_sizes_and_content_and_not_of_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_bytes(b"12345678")
        (tmp_path / folder / "b").write_bytes(b"")
    one, other = (sorted((tmp_path / folder).iterdir()) for folder in ("one", "other"))
    first = files_digest(one)
    assert first == files_digest(reversed(other))
    assert first != files_digest(one[:1])
    one[0].write_bytes(b"12345679")
    assert files_digest(one) != first
    one[0].write_bytes(b"12345678")
    one[0].rename(one[0].with_name("c"))
    assert files_digest((tmp_path / "one").iterdir()) != first


def test_of_a_large_file_blocks_from_its_first_to_its_last_byte_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_WHOLE": 1000, "_BLOCKS": 5, "_BLOCK": 10}.items():
        monkeypatch.setattr(f"quintet.files.{name}", value)
    file = tmp_path / "large"
    content = bytes(4001)
    seen = set()
    file.write_bytes(content)
    first = files_digest([file])
    for place in range(0, 4001, 1):
        file.write_bytes(content[:place] + b"x" + content[place + 1 :])
        if files_digest([file]) != first:
            seen.add(place)
    starts = (0, 997, 1995, 2993, 3991)
    assert seen == {start + offset for start in starts for offset in range(10)}


def test_a_lock_file_is_created_once(tmp_path: Path) -> None:
    number = create_lock_file(tmp_path / ".lock")
    assert number is not None
    os.close(number)
    assert create_lock_file(tmp_path / ".lock") is None


def test_signs_of_life_go_on_after_an_error_of_the_disk_and_end_with_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BEAT", 0.001)
    beats: list[int] = []

    def beat() -> None:
        beats.append(len(beats))
        raise OSError(errno.ENOSPC, "the disk is full")

    before = set(threading.enumerate())
    heartbeat = Heartbeat(beat)
    wait_until(lambda: len(beats) >= 3)
    heartbeat.stop()
    assert beats == list(range(len(beats)))
    assert set(threading.enumerate()) <= before
