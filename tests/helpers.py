"""What tests of several folders make and read; the fixtures are in conftest.py."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import yaml

from quintet.cli import main
from quintet.config.schema import RunConfig
from quintet.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
WORDS = ["the", "a", "cat", "dog", "saw", "chased", "small", "big", "and", "then", "it", "sat", "under", "mat", "naïve"]
MakeConfig = Callable[..., RunConfig]
PEAK = 1e12  # FLOP/s of a device: few tests ask for them, and measuring takes half a second at each set-up
# Options of `quintet train`; the page at the end takes a second, and few tests look at it.
QUICK = ("--no-report", f"--peak-flops={PEAK}")
Train = Callable[..., str]  # run files and sections -> name of the run (conftest.train)
Command = Callable[..., tuple[int, str, str]]  # arguments -> exit code, standard output, standard error


def write_corpus(folder: Path, *texts: str, files: int = 6, words: int = 300) -> Path:
    """Write text files to a new folder and return it: ``texts``, or files of words drawn at random."""
    draw = random.Random(5)
    folder.mkdir(parents=True)
    for index, text in enumerate(texts or (" ".join(draw.choices(WORDS, k=words)) for _ in range(files))):
        (folder / f"{index:02}.txt").write_text(text, "utf-8")
    return folder


def write_jsonl(file: Path, rows: Iterable[Any]) -> Path:
    """Write each value as one line of JSON and return the file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of each file of a folder by its path in it."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def load_script(path: str) -> Any:
    """The script ``path`` of the repository as a module, which is no part of a package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def source_environment(**more: str) -> dict[str, str]:
    """The environment in which a process of its own imports this package; ``more`` is added."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), **more}


def wait_until(reached: Callable[[], bool]) -> None:
    """Wait for what another process or thread does, which on a busy machine takes long."""
    deadline = time.monotonic() + 120
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run_values(folder: str | Path = "", **sections: Any) -> dict[str, Any]:
    """The run file of a tiny model of bytes that trains on a CPU in a moment.

    It reads ``corpus`` and writes ``cache`` and ``runs``, all in ``folder``. A section given is laid over the one here;
    a section that names its ``kind``, and a value that is no mapping, replaces it.
    """
    folder = Path(folder)
    values: dict[str, Any] = {
        "name": "tiny",
        "runs_dir": str(folder / "runs"),
        "data": {
            "sources": [{"kind": "text", "path": str(folder / "corpus")}],
            "validation": 0.1,
            "sequence_length": 16,
            "cache_dir": str(folder / "cache"),
        },
        "tokenizer": {"kind": "byte"},
        "model": {"layers": 1, "width": 16, "attention": {"heads": 2}},
        "train": {"steps": 1, "batch_size": 4, "precision": "fp32", "device": "cpu"},
        "sample": {"prompts": []},
    }
    return laid_over(values, sections)


def laid_over(values: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``sections`` laid over them, as `run_values` says."""
    joined = {
        name: values[name] | given
        for name, given in sections.items()
        if isinstance(given, dict) and isinstance(values.get(name), dict) and "kind" not in given
    }
    return values | sections | joined


def run_config(folder: str | Path = "", **sections: Any) -> RunConfig:
    """The config of ``run_values``."""
    return RunConfig.model_validate(run_values(folder, **sections))


def train_in(folder: Path, *options: str, name: str = "tiny", **values: Any) -> Path:
    """Write ``values`` to ``NAME.yaml`` in ``folder``, train this run file there, and return the run's folder.

    ``options`` of `quintet train`, as other run files, come before the run file.
    """
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name} | values))
    with chdir(folder), pytest.raises(SystemExit) as left:
        main(["train", *QUICK, *options, f"{name}.yaml"])
    assert left.value.code == 0
    return folder / "runs" / name


def tiny_values(model: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    """Sections of a run file for 3 steps on ``corpus``, without a model or with one of two layers and ``model``."""
    every = run_values()
    data = every["data"] | {"validation": 0.2, "sequence_length": 32}
    values = {"data": data, "train": every["train"] | {"steps": 3}, "sample": {"prompts": [""], "max_tokens": 8}}
    if model is not None:
        values["model"] = {"layers": 2, "width": 32, "attention": {"heads": 2}} | model
    return values | sections


def records(run: Path | str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of a run folder, without speeds and without what an interruption adds to a row."""
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text("utf-8").splitlines()]
    added = ("speed/", "train/skipped_steps")
    return [{name: value for name, value in row.items() if not name.startswith(added)} for row in rows]


def measured(run: Path | str, name: str = "train/loss") -> list[Any]:
    """Each value of one metric in metrics.jsonl of a run folder."""
    rows = map(json.loads, (Path(run) / "metrics.jsonl").read_text("utf-8").splitlines())
    return [row[name] for row in rows if name in row]


def refused(call: Callable[..., Any], *arguments: Any, **more: Any) -> str:
    """The problems of the UserError that a call raises, a line each."""
    with pytest.raises(UserError) as error:
        call(*arguments, **more)
    return "\n".join(error.value.problems)


def whole_like_its_parts(config: Callable[[str, int], RunConfig]) -> Any:
    """The run of 6 steps of ``config``, a name and a number of steps: bit for bit one of 3 steps that is continued."""
    from quintet.track.console import Reporter
    from quintet.train.loop import train

    whole = train(config("whole", 6), Reporter(), peak_flops=PEAK).run
    train(config("parts", 3), Reporter(), peak_flops=PEAK)
    parts = train(config("parts", 6), Reporter(), peak_flops=PEAK).run
    assert records(parts.folder) == records(whole.folder)
    for name, value in whole.model.state_dict().items():
        assert value.equal(parts.model.state_dict()[name]), name
    return whole
