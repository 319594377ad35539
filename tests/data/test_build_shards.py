"""Shares of a store that several processes make at the same time."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import MakeConfig, contents, source_environment, wait_until
from typer.testing import CliRunner

from quintet.cli import app
from quintet.config.schema import RunConfig
from quintet.data.build import Share
from quintet.data.locks import locked
from quintet.data.prepare import prepare, prepare_share, prepare_to
from quintet.data.sources import base
from quintet.errors import UserError

WORKER = """
import os, signal, sys, time
from pathlib import Path
from quintet.config.schema import RunConfig
from quintet.data import build
from quintet.data.build import Share
from quintet.data.prepare import prepare_share
from quintet.data.sources import base

base.UNIT_BYTES, build._SMALL = 4_000, 1 << 40
run_file, index, count, way = sys.argv[1:]
write_shard = build.write_shard

def slow(*arguments, **others):
    if way.startswith("wait "):
        Path(way[5:]).with_suffix(".begun").touch()
        while not Path(way[5:]).exists():
            time.sleep(0.01)
    return write_shard(*arguments, **others)

build.write_shard = slow
if way == "die":
    # Killed with a shard half written: its arrays have temporary names.
    from quintet.data import shards
    shards._Arrays.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
config = RunConfig.model_validate_json(Path(run_file).read_text())
print(prepare_share(config, Share(int(index), int(count))))
"""


@pytest.fixture
def config(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Forty files of 2 to 4 kB in units of two or one."""
    monkeypatch.setattr(base, "UNIT_BYTES", 4_000)
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index in range(40):
        (folder / f"{index:02d}.txt").write_text(
            f"file {index % 15}: " + "some words of text, " * (90 + 5 * (index % 15))
        )
    cleaning = {"deduplicate": {"kind": "exact"}}
    return make_config({"kind": "text", "path": str(folder)}, cleaning=cleaning)


def stores(config: RunConfig) -> Path:
    return Path(config.data.cache_dir) / "stores"


def expected(config: RunConfig, tmp_path: Path) -> dict[str, bytes]:
    """Return the files that one call makes."""
    data = config.data.model_copy(update={"cache_dir": str(tmp_path / "at once")})
    prepare(config.model_copy(update={"data": data}))
    return contents(tmp_path / "at once" / "stores")


def start(config: RunConfig, tmp_path: Path, index: int, count: int, way: str = "go") -> subprocess.Popen[str]:
    for name, content in (("config.json", config.model_dump_json()), ("worker.py", WORKER)):
        if not (tmp_path / name).exists():  # a worker that was started before may be reading it
            (tmp_path / name).write_text(content)
    command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path / "config.json"), str(index), str(count), way]
    return subprocess.Popen(command, env=source_environment(), stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> int:
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return int(said)


@given(st.integers(1, 9), st.integers(0, 50))
def test_shares_are_all_units_and_each_once(count: int, units: int) -> None:
    shares = [list(Share(index, count).of(units)) for index in range(count)]
    assert sorted(unit for share in shares for unit in share) == list(range(units))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_processes_that_make_shares_at_once_make_the_same_bytes(config: RunConfig, tmp_path: Path) -> None:
    missing = [end(process) for process in [start(config, tmp_path, index, 3) for index in range(3)]]
    assert 0 in missing
    assert contents(stores(config)) == expected(config, tmp_path)


def test_the_store_is_there_when_the_last_share_is(config: RunConfig, tmp_path: Path) -> None:
    whole = expected(config, tmp_path)
    units = sum(Path(name).match("shard-*.json") for name in whole)
    left = [prepare_share(config, Share(index, 3)) for index in (2, 0)]
    assert left == [units - len(Share(2, 3).of(units)), len(Share(1, 3).of(units))]
    assert not list(stores(config).rglob("manifest.json"))
    assert prepare_share(config, Share(1, 3)) == 0
    assert contents(stores(config)) == whole
    assert prepare_share(config, Share(1, 3)) == 0


def test_the_call_without_a_share_makes_what_is_missing(config: RunConfig, tmp_path: Path) -> None:
    assert prepare_share(config, Share(1, 4)) > 0
    before = {file: file.stat().st_ino for file in stores(config).rglob("shard-*")}
    prepare(config)
    assert {file: file.stat().st_ino for file in before} == before
    assert contents(stores(config)) == expected(config, tmp_path)


def test_what_a_killed_worker_left_goes_and_what_a_live_one_writes_stays(config: RunConfig, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    live = start(config, tmp_path, 0, 2, f"wait {gate}")
    wait_until(gate.with_suffix(".begun").exists)
    dead = start(config, tmp_path, 1, 2, "die")
    dead.communicate(timeout=60)
    assert dead.returncode == -signal.SIGKILL
    left_behind = list(stores(config).rglob(".shard-*"))
    assert left_behind
    # The share of the killed process is run again while the other is at work: it does its share and removes nothing.
    assert end(start(config, tmp_path, 1, 2)) > 0
    assert all(file.exists() for file in left_behind)
    gate.touch()
    assert end(live) == 0
    assert contents(stores(config)) == expected(config, tmp_path)


def test_a_worker_that_is_alone_cleans_before_it_begins(config: RunConfig, tmp_path: Path) -> None:
    start(config, tmp_path, 1, 2, "die").communicate(timeout=60)
    (folder,) = stores(config).iterdir()
    assert list(folder.glob(".shard-*"))
    (folder / ".tokenizer.half").mkdir()
    (folder / ".tokenizer.half" / "quintet.json").touch()
    (folder / ".manifest.json.half").touch()
    assert prepare_share(config, Share(0, 2)) > 0
    assert [file.name for file in folder.glob(".*")] == [".lock"]


@pytest.mark.parametrize("alone", [False, True])
def test_a_share_and_all_of_it_are_never_made_at_the_same_time(config: RunConfig, tmp_path: Path, alone: bool) -> None:
    """``alone`` as the call without a share holds the lock; otherwise as one with a share does."""
    bytes_of_one_call = expected(config, tmp_path)
    name = next(iter((tmp_path / "at once" / "stores").iterdir())).name
    (stores(config) / name).mkdir(parents=True)
    make = partial(prepare_share, config, Share(0, 1)) if alone else partial(prepare, config)
    other = threading.Thread(target=make)
    with locked(stores(config) / name, alone=alone):
        other.start()
        other.join(0.5)
        assert other.is_alive()
        assert not list(stores(config).rglob("shard-*"))
    other.join()
    assert contents(stores(config)) == bytes_of_one_call


def test_shares_are_made_beside_one_another_and_not_beside_all_of_it(tmp_path: Path) -> None:
    with locked(tmp_path, alone=False):
        with locked(tmp_path, alone=True, wait=False) as alone:
            assert not alone
        with locked(tmp_path, alone=False, wait=False) as beside:
            assert beside


def test_two_processes_with_the_same_share_do_not_disturb_each_other(config: RunConfig, tmp_path: Path) -> None:
    for process in [start(config, tmp_path, 0, 1) for _ in range(2)]:
        assert end(process) == 0
    assert contents(stores(config)) == expected(config, tmp_path)


def test_shares_of_a_store_elsewhere(config: RunConfig, tmp_path: Path) -> None:
    left = [prepare_share(config, Share(index, 2), tmp_path / "store") for index in range(2)]
    assert left[0] > 0
    assert left[1] == 0
    prepare_to(config, tmp_path / "whole")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    other = RunConfig.model_validate({**config.model_dump(), "tokenizer": {"kind": "char"}})
    with pytest.raises(UserError, match="holds another token store"):
        prepare_share(other, Share(0, 2), tmp_path / "store")


def test_the_command_says_what_is_missing(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(config.model_dump_json())
    runner = CliRunner()

    def said(shard: str) -> Any:
        return runner.invoke(app, ["prepare", str(tmp_path / "run.yaml"), "--shard", shard])

    assert "share 1/2 is done; " in said("1/2").stdout
    assert "training: " in said("0/2").stdout
    for wrong in ("2/2", "1", "a/b", "1/0"):
        assert isinstance(said(wrong).exception, UserError)


def test_a_new_chat_template_makes_a_new_store(tmp_path: Path) -> None:
    from dataclasses import replace

    import tokenizers
    from tokenizers import models

    from quintet.config.sources import JsonlSource
    from quintet.data.build import store_key
    from quintet.data.sources import reader_of
    from quintet.tokenize.huggingface import HuggingFaceTokenizer

    (tmp_path / "a.jsonl").write_text('{"messages": []}\n')
    library = tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="a"))
    tokenizer = HuggingFaceTokenizer(library.to_str(), "</s>")
    chat = HuggingFaceTokenizer(library.to_str(), "</s>", replace(tokenizer.chat, template="{{ messages }}"))
    assert chat.fingerprint == tokenizer.fingerprint

    def key(document: dict[str, str], made_with: HuggingFaceTokenizer) -> str:
        values = {"kind": "jsonl", "path": str(tmp_path / "a.jsonl"), "document": document}
        return store_key(reader_of(JsonlSource.model_validate(values)).index("it"), made_with)

    talk = {"kind": "chat", "messages": "messages"}
    assert key(talk, tokenizer) != key(talk, chat)
    assert key({"kind": "text"}, tokenizer) == key({"kind": "text"}, chat)
