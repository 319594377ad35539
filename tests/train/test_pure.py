"""A run follows from its file: the surroundings change none of its bytes, and other ids are not read in silence."""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers import QUICK, WORDS, Command, records, run_values, source_environment

from quintet.tokenize.huggingface import HuggingFaceTokenizer

RUN = run_values(
    name="pure",
    data={"sources": [{"kind": "text", "path": "texts"}], "validation": 0.2, "sequence_length": 32},
    tokenizer={"kind": "bpe", "vocab_size": 300},
    model={"layers": 2, "width": 32, "embedding_dropout": 0.1},
    train={"steps": 4},
    evaluate={"every": 2},
    sample={"every": 2, "prompts": ["the cat"], "max_tokens": 8},
)


def write_run(folder: Path, *, backwards: bool) -> None:
    """The run file and its texts, with the same times, written in this order or the other."""
    draw = random.Random(5)
    texts = {f"texts/{name}.txt": " ".join(draw.choice(WORDS) for _ in range(400)) for name in "aBçÄzé_Z1"}
    for name, text in sorted(texts.items(), reverse=backwards):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
        os.utime(folder / name, (1, 1))
    (folder / "run.json").write_text(json.dumps(RUN))


def made(folder: Path) -> dict[str, Any]:
    """All that the run in ``folder`` made but for its page, without what says where and how long: content by name."""
    run, found = folder / "runs/pure", {}
    for file in run.rglob("*"):
        name = file.relative_to(run).as_posix()
        if name == "metrics.jsonl":
            found[name] = records(run)
        elif file.name == "state.json":
            facts = json.loads(file.read_text("utf-8"))["progress"]
            found[name] = {key: value for key, value in facts.items() if key != "seconds"}
        elif name == "run.yaml":  # which says where the run began
            lines = file.read_bytes().splitlines(keepends=True)
            found[name] = b"".join(line for line in lines if not line.startswith(b"# started in: "))
        # torch gives the index of each checkpoint a number of its own.
        elif file.is_file() and file.name not in (".metadata", "report.html"):
            found[name] = file.read_bytes()
    return found


def test_clock_folder_home_umask_and_the_order_of_files_change_no_byte_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    runs = []
    for name, zone, umask in (("one", "Pacific/Kiritimati", 0o022), ("the other", "America/Adak", 0o077)):
        write_run(tmp_path / name, backwards=name == "one")
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("HOME", str(tmp_path / name))
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        before = os.umask(umask)
        try:
            code, _, error = command("train", "run.json")
        finally:
            os.umask(before)
        assert code == 0, error
        runs.append(made(tmp_path / name))
    monkeypatch.delenv("TZ")
    time.tzset()
    one, other = runs
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    assert {"checkpoints/step-000004/__0_0.distcp", "samples/step-000004.txt", "metrics.jsonl"} <= one.keys()


def trained(folder: Path, umask: int, **environment: str) -> dict[str, Any]:
    """What a process of its own makes of the run in ``folder``."""
    whole = source_environment(HOME=str(folder), **environment)
    command = [sys.executable, "-m", "quintet", "train", *QUICK, "run.json"]
    done = subprocess.run(command, cwd=folder, env=whole, umask=umask, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return made(folder)


@pytest.mark.slow
def test_locale_time_zone_hash_seed_and_umask_change_no_byte_of_a_run_and_threads_only_its_last_bits(
    tmp_path: Path,
) -> None:
    for name in ("one", "other", "threads"):
        write_run(tmp_path / name, backwards=name == "other")
    one = trained(
        tmp_path / "one", 0o022, PYTHONHASHSEED="1", TZ="Pacific/Kiritimati", LC_ALL="C.UTF-8", OMP_NUM_THREADS="1"
    )
    other = trained(
        tmp_path / "other", 0o077, PYTHONHASHSEED="2", TZ="America/Adak", LC_ALL="C", LANG="de_DE.UTF-8",
        PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", RAYON_NUM_THREADS="3", USER="another", TMPDIR=str(tmp_path),
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []

    # The threads of PyTorch change the order of its sums, as the guide says, and run.yaml names them.
    threads = trained(tmp_path / "threads", 0o022, OMP_NUM_THREADS="2")
    assert one.keys() == threads.keys()
    for row, same in zip(one["metrics.jsonl"], threads["metrics.jsonl"], strict=True):
        assert row.keys() == same.keys()
        assert row["step"] == same["step"]
        assert np.allclose([row[key] for key in row], [same[key] for key in row], rtol=1e-5)
    differing = [
        (a, b)
        for a, b in zip(one["run.yaml"].splitlines(), threads["run.yaml"].splitlines(), strict=True)
        if a != b and not a.startswith(b"# torch: ")
    ]
    assert differing == []
    assert b", 2 threads" in threads["run.yaml"]


def other_version(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """Let ``library`` say that it is of another version."""
    told = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0" if name == library else told(name))


def test_a_run_is_continued_with_another_version_of_a_library_where_that_makes_the_same_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    write_run(tmp_path, backwards=False)
    monkeypatch.chdir(tmp_path)
    assert command("train", "run.json")[0] == 0
    stores = [line for line in Path("runs/pure/run.yaml").read_text("utf-8").splitlines() if "# stores: " in line]
    version = importlib.metadata.version("tokenizers")
    assert [store.name for store in Path("cache/stores").iterdir()] == [stores[0].split()[2]]
    assert stores[0].endswith(f" by tokenizers {version}")

    other_version(monkeypatch, "tokenizers")
    code, out, error = command("train", "run.json", "train.steps=5")
    assert code == 0, error
    assert "continuing from step 4" in " ".join(out.split())
    assert " by tokenizers 99.0\n" in Path("runs/pure/run.yaml").read_text("utf-8")

    # A version that splits words otherwise: the same rules, other ids.
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "100.0")
    encoded = HuggingFaceTokenizer.encode_batch
    monkeypatch.setattr(
        HuggingFaceTokenizer, "encode_batch", lambda self, texts: [ids[::-1] for ids in encoded(self, texts)]
    )
    code, _, error = command("train", "run.json", "train.steps=6")
    said = " ".join(error.split())
    assert code == 2
    assert "the corpus is not the one it was trained with" in said
    assert "install the versions it began with (tokenizers 99.0 then, 100.0 now), or choose another name" in said


def test_a_run_whose_ids_are_made_while_it_trains_is_not_continued_with_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    from quintet.piano.midi import write_midi
    from quintet.piano.notes import notes

    draw = np.random.default_rng(0)
    for number in range(4):
        starts = np.sort(draw.uniform(0, 60, 300))
        write_midi(
            notes(draw.integers(40, 80, 300), np.full(300, 80), starts, starts + 0.2), tmp_path / f"{number}.mid"
        )
    data = {"sources": [{"kind": "midi", "path": "*.mid"}], "packing": {"kind": "pieces"}, "sequence_length": 32,
            "validation": 0.2, "cache_dir": "cache"}  # fmt: skip
    run = {key: value for key, value in RUN.items() if key != "sample"}
    run |= {"data": data, "tokenizer": {"kind": "note_bpe", "vocab_size": 1300}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    monkeypatch.chdir(tmp_path)
    code, _, error = command("train", "run.json", "train.steps=2")
    assert code == 0, error
    for library in ("mido", "symusic"):  # they made the store, whose ids are compared
        other_version(monkeypatch, library)
        code, _, error = command("train", "run.json", "train.steps=2")
        assert code == 0, error
    other_version(monkeypatch, "tokenizers")
    code, _, error = command("train", "run.json", "train.steps=3")
    said = " ".join(error.split())
    assert code == 2
    assert "its tokens are made by another version of a library; install the versions it began with (tokenizers" in said
