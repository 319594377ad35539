"""Functions that tests of several folders share: run files, trained runs, and reading what they wrote."""

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
PEAK = 1e12  # FLOP/s of a device; to measure it takes half a second per run, and few tests look at it
# Options of `quintet train` for tests; the report takes a second, and few tests look at it.
QUICK = ("--no-report", f"--peak-flops={PEAK}")
Train = Callable[..., str]  # run files and sections -> name of the run (conftest.train)
Command = Callable[..., tuple[int, str, str]]  # arguments -> exit code, standard output, standard error


def write_corpus(folder: Path, *texts: str, files: int = 6, words: int = 300) -> Path:
    """Write ``texts``, or files of random words, as text files to a new folder and return the folder."""
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
    """Return the bytes of each file in ``folder`` by its relative path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def load_script(path: str) -> Any:
    """Import the script at ``path`` of the repository, which belongs to no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def source_environment(**more: str) -> dict[str, str]:
    """Return the environment in which a new process imports this package, with ``more`` added."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), **more}


def wait_until(reached: Callable[[], bool]) -> None:
    """Wait for what another process or thread does. Raises TimeoutError after two minutes."""
    deadline = time.monotonic() + 120
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


def free_port() -> int:
    """Return a port of this machine on which nobody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run_values(folder: str | Path = "", **sections: Any) -> dict[str, Any]:
    """Return the run file of a tiny byte-level model that trains on a CPU in a moment.

    It reads ``corpus`` and writes ``cache`` and ``runs``, all in ``folder``. ``sections`` are merged as in
    `merge_sections`.
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
    return merge_sections(values, sections)


def merge_sections(values: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` with the keys of ``sections``.

    A section that names its ``kind``, and a value that is no mapping, replaces the one in ``values``.
    """
    merged = {
        name: values[name] | section
        for name, section in sections.items()
        if isinstance(section, dict) and isinstance(values.get(name), dict) and "kind" not in section
    }
    return values | sections | merged


def run_config(folder: str | Path = "", **sections: Any) -> RunConfig:
    """Return the config of `run_values`."""
    return RunConfig.model_validate(run_values(folder, **sections))


def train_in(folder: Path, *options: str, name: str = "tiny", **values: Any) -> Path:
    """Write ``values`` to ``NAME.yaml`` in ``folder``, train this run file there, and return the run's folder.

    ``options`` of `quintet train`, such as other run files, come before the run file.
    """
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name} | values))
    with chdir(folder), pytest.raises(SystemExit) as left:
        main(["train", *QUICK, *options, f"{name}.yaml"])
    assert left.value.code == 0
    return folder / "runs" / name


def tiny_values(model: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    """Return a run file of 3 steps on ``corpus``: with the default model, or with one of two layers and ``model``."""
    tiny = run_values()
    data = tiny["data"] | {"validation": 0.2, "sequence_length": 32}
    values = {"data": data, "train": tiny["train"] | {"steps": 3}, "sample": {"prompts": [""], "max_tokens": 8}}
    if model is not None:
        values["model"] = {"layers": 2, "width": 32, "attention": {"heads": 2}} | model
    return values | sections


def train_with_translation(command: Command, example: str, again: str, line: str, *overrides: str) -> str:
    """Train ``example`` and its translation, which the override ``again`` names; return the output of the first.

    ``line`` is a part of the translation.
    """
    code, out, err = command("train", example, *overrides)
    assert code == 0, err
    code, native, err = command("translate", example, *overrides, again)
    assert code == 0, err
    assert line in native
    Path("native.yaml").write_text(native)
    assert command("train", "native.yaml")[0] == 0
    return out


def records(run: Path | str) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl of a run folder, without speeds and what an interruption adds to a row."""
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text("utf-8").splitlines()]
    added = ("speed/", "train/skipped_steps")
    return [{name: value for name, value in row.items() if not name.startswith(added)} for row in rows]


def measured(run: Path | str, name: str = "train/loss") -> list[Any]:
    """Return the values of one metric in metrics.jsonl of a run folder."""
    rows = map(json.loads, (Path(run) / "metrics.jsonl").read_text("utf-8").splitlines())
    return [row[name] for row in rows if name in row]


def refused(call: Callable[..., Any], *arguments: Any, **more: Any) -> str:
    """Return the problems of the UserError that a call raises, one per line."""
    with pytest.raises(UserError) as error:
        call(*arguments, **more)
    return "\n".join(error.value.problems)


def check_continuation(config: Callable[[str, int], RunConfig]) -> Any:
    """Check that 3 steps and 3 more equal 6 steps bit for bit, and return the run of 6 steps.

    ``config`` makes a config from a name and a number of steps.
    """
    from quintet.track.console import Reporter
    from quintet.train.loop import train

    whole = train(config("whole", 6), Reporter(), peak_flops=PEAK).run
    train(config("parts", 3), Reporter(), peak_flops=PEAK)
    parts = train(config("parts", 6), Reporter(), peak_flops=PEAK).run
    assert records(parts.folder) == records(whole.folder)
    for name, value in whole.model.state_dict().items():
        assert value.equal(parts.model.state_dict()[name]), name
    return whole
