"""The run files of a checkout of PhyAGI, VectorLM, STLM, TMRC or piano-gpt: which are accepted, and which then train.

    python benchmarks/real_files.py FOLDER [--history] [--files] [--no-training] [--set KEY=VALUE ...]

FOLDER is a checkout, or with --history a checkout or git directory: then each version of a file with another set of
keys is one more file, composed with its siblings of the same commit, of which the newest stands for the others. A file
counts if its keys, composed as Hydra composes it where it has a `defaults` list, are those of a dialect; parts of such
lists and other YAML do not. --set gives each file the same overrides, for what is given on the command line there.

A file is checked as `quintet check` checks it. One that is accepted is made small, and takes two steps: at most two
layers (or one group of those that share weights), heads of 8 features, at most two key heads, a context of 32 tokens,
two samples a pass; in fp32, without measurements, samples, trackers and spreading over devices. Architecture, loss,
packing, optimizer and schedules stay. What is not here has a stand-in: random letters, notes or ids for the data, bytes
for a tokenizer, a new small Llama for a checkpoint. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from tarfile import open as open_archive
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from quintet import UserError, check, load_config
from quintet.api import loaded_of
from quintet.config.dialects.recognise import recognised
from quintet.config.hydra import compose, is_composed
from quintet.config.keypath import show, walk
from quintet.config.read import read_document
from quintet.config.schema import RunConfig
from quintet.config.sources import SOURCES
from quintet.errors import one_line
from quintet.track.console import Reporter

OUTCOMES = (
    "accepted and trained",
    "accepted, not on this machine",
    "accepted, does not train",
    "refused by name",
    "crashed",
)
CONTEXT = 32  # tokens
HEAD = 8  # features
LAYERS = 2
VOCABULARY = 600  # ids of a tokenizer that is trained, and of a model of the transformers library
STEPS = 2
_FREE_TEXT = re.compile(r"(run_name|project|project_name|group|desc\w*|tags|entity|notes|date\w*|seed)$")


@dataclass(frozen=True)
class Version:
    """A run file as a commit has it: where it lies now, and its name in the table."""

    file: Path
    name: str
    dialect: str


@dataclass(frozen=True)
class Result:
    """The outcome of a file, and its causes: each refusal once, without what only this file has."""

    version: Version
    outcome: str
    causes: tuple[str, ...]


def main() -> None:
    """Print the table of the folder that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--history", action="store_true", help="each version with another set of keys, of all commits")
    parser.add_argument("--files", action="store_true", help="also a line for each file")
    parser.add_argument("--no-training", action="store_true", help="check only")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override for each file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        folder, results = arguments.folder.resolve(), []
        tiny = write_tiny_data(Path(scratch) / "data")
        found = of_history(folder, Path(scratch) / "trees") if arguments.history else of_checkout(folder)
        for version in found:
            results.append(outcome(version, arguments.set, None if arguments.no_training else tiny))
            if arguments.files:
                print(f"{results[-1].outcome}: {version.name}: {'; '.join(results[-1].causes)}", flush=True)
    print(table(results))


def of_checkout(folder: Path, commit: str = "", seen: set[object] | None = None) -> Iterator[Version]:
    """The run files below ``folder``; with ``seen`` only those whose keys are not in it yet, which they then are."""
    for file in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        try:
            document = read_document(file)
            values = (compose(document, file, ()).document if is_composed(document) else document).values
        except (UserError, UnicodeDecodeError):
            # A list, broken YAML, a part whose siblings are elsewhere: what is left of it says whether it is one.
            values = _readable(file)
        dialects = recognised(values)
        name = file.relative_to(folder).as_posix()
        keys = frozenset(_keys(values))
        if len(dialects) != 1 or (seen is not None and (name, keys) in seen):
            continue
        if seen is not None:
            seen.add((name, keys))
        yield Version(file, f"{commit}:{name}" if commit else name, dialects[0])


def of_history(repository: Path, trees: Path) -> Iterator[Version]:
    """The run files of all commits of ``repository``, the newest first, written below ``trees``."""
    git_dir = repository / ".git" if (repository / ".git").exists() else repository

    def git(*command: str) -> bytes:
        return subprocess.run(["git", f"--git-dir={git_dir}", *command], check=True, capture_output=True).stdout

    seen: set[object] = set()
    before = b""
    for commit in git("rev-list", "--all", "--date-order").decode().split():
        listed = [line for line in git("ls-tree", "-r", commit).splitlines() if line.endswith((b".yaml", b".yml"))]
        if not listed or b"\n".join(listed) == before:
            continue
        before = b"\n".join(listed)
        names = [line.split(b"\t", 1)[1].decode() for line in listed]
        tree = trees / commit[:8]
        with open_archive(fileobj=BytesIO(git("archive", commit, "--", *names))) as archive:
            archive.extractall(tree, filter="data")
        yield from of_checkout(tree, commit[:8], seen)


def _readable(file: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return values if isinstance(values, dict) else {}


def _keys(values: dict[str, Any]) -> Iterator[object]:
    """What tells two versions of a file apart: its keys, with the words that are values of them, as kinds are."""
    for path, value in walk(values):
        words = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w-]*", value) and not _FREE_TEXT.search(show(path))
        yield show(tuple(0 if isinstance(step, int) else step for step in path)), value if words else None


def outcome(version: Version, overrides: Sequence[str], tiny: Path | None) -> Result:
    """What comes of a file: checked, and trained on what lies in ``tiny``, unless that is None."""
    said = StringIO()
    with tempfile.TemporaryDirectory() as folder, chdir(folder), redirect_stdout(said), redirect_stderr(said):
        try:
            config = load_config(version.file, overrides)
            missing = _missing(config)
        except UserError as error:
            return Result(version, "refused by name", tuple(dict.fromkeys(map(_cause, error.problems))))
        except Exception as error:  # what this table is to find
            return Result(version, "crashed", (f"check: {one_line(error, typed=True)}",))
        if tiny is None:
            return Result(version, OUTCOMES[1] if missing else "accepted", missing or ("",))
        try:
            take_steps(config, tiny, Path(folder))
        except UserError as error:
            there = OUTCOMES[1] if "pip install" in str(error) else "accepted, does not train"
            return Result(version, there, tuple(dict.fromkeys(map(_cause, error.problems))))
        except Exception as error:
            return Result(version, "crashed", (f"training: {one_line(error, typed=True)}",))
    return Result(version, "accepted and trained", missing or ("with all that it names",))


def _missing(config: RunConfig) -> tuple[str, ...]:
    """The keys of what a file names and is not here. Raises UserError with what `check` refuses of it."""
    return tuple(dict.fromkeys(_cause(line).partition(":")[0] + ": is not here" for line in check(config).not_here))


def _cause(problem: str) -> str:
    """``problem`` without its place and without the values that only one file has."""
    text = re.sub(r"^[^:]*\.ya?ml(:\d+)?: |^\S*?(:\d+)?: |^line \d+: |^command line: ", "", problem, count=1)
    text = re.sub(r"\[\d+\]", "[]", text)
    return re.sub(r"/\S+|\bline \d+", "…", text)[:160]


def take_steps(config: RunConfig, tiny: Path, folder: Path) -> None:
    """Train a small copy of ``config`` for two steps, below ``folder``. Raises UserError where that cannot be."""
    from quintet.train.intervals import Trial
    from quintet.train.loop import train

    loaded = loaded_of(config)
    assert loaded is not None
    small = RunConfig.model_validate(shrunken(config.model_dump(), tiny, folder))
    run = train(small, Reporter(), None, Trial(STEPS)).run
    if run.progress.step != STEPS:
        raise UserError(f"took {run.progress.step} of {STEPS} steps")


def shrunken(values: dict[str, Any], tiny: Path, folder: Path) -> dict[str, Any]:
    """The ``values`` of a run file, of a model that takes a step in a moment, on what lies in ``tiny``."""
    music = values["data"]["packing"]["kind"] in ("pieces", "tasks")
    context = 8 * CONTEXT if music else CONTEXT  # a prompt of a few notes and its answer
    data = values["data"] | {
        "sources": [stand_in(one, tiny / "train") for one in values["data"]["sources"]],
        "validation_sources": [stand_in(one, tiny / "other") for one in values["data"]["validation_sources"]],
        "validation": 0.1 if values["data"]["validation"] else 0,
        "sequence_length": min(values["data"]["sequence_length"], context),
        "packing": _bounded(values["data"]["packing"], overlap=4, notes_per_record=8, min_notes_per_record=4),
        "cache_dir": str(folder / "cache"),
        "processes": 1,
    }
    if data["packing"].get("min_task_notes"):
        data["packing"]["min_task_notes"] = 2
    tokenizer = small_tokenizer(values["tokenizer"], tiny)
    old, train = values["train"], values["train"] | {"micro_batch_size": 2, "accumulation": 1}
    for name in ("batch_size", "batch_tokens", "batch_size_per_device", "batch_devices"):
        train[name] = None
    if (old["accumulation"] or 1) > 1 or (old["micro_batch_size"] or 0) < (old["batch_size"] or 0):
        train["accumulation"] = 2
    train |= {"precision": "fp32", "device": "cpu", "compile": False}
    model = small_hf(values["model"]) if values["model"]["kind"] == "huggingface" else small_model(values["model"])
    if tokenizer != values["tokenizer"]:
        model["vocab_size" if model["kind"] == "transformer" else "revision"] = None
    model["context_length"] = None
    return values | {
        "data": data,
        "tokenizer": tokenizer,
        "model": model,
        "train": train,
        "runs_dir": str(folder / "runs"),
        "trainer": {"kind": "quintet"},
        "parallel": {"kind": "none"},
        "evaluate": {"every": None, "at_end": False},
        "sample": {"prompts": []},
        "checkpoint": {"every": None, "at_end": False, "keep_best": False},
        "track": [],
    }


def stand_in(source: dict[str, Any], tiny: Path) -> dict[str, Any]:
    """``source``, or where its files are not here one of the same content with the same share."""
    paths = source.get("path") or ()
    if "path" not in source or all(Path(one).exists() for one in ([paths] if isinstance(paths, str) else paths)):
        return source
    document = source.get("document") or {}
    kind_of_rows = document.get("kind", "") if isinstance(document, dict) else ""
    holds = {"notes": "notes", "tokens": "ids"}.get(kind_of_rows)
    content = holds or SOURCES[source["kind"]].holds
    kind = {"text": "text", "ids": "npy", "notes": "midi"}[content]
    shared = {name: source.get(name) for name in ("weight", "repeat", "label")}
    return {"kind": kind, "path": str(tiny / content), **shared}


def small_tokenizer(tokenizer: dict[str, Any], tiny: Path) -> dict[str, Any]:
    """``tokenizer`` with few ids, of bytes where its files are not here."""
    files = tokenizer.get("path")
    if tokenizer["kind"] in ("tiktoken", "huggingface", "saved") and not (files and Path(files).exists()):
        return {"kind": "byte"}
    small = _bounded(tokenizer, vocab_size=VOCABULARY, train_tokens=100_000, train_bytes=100_000)
    if small.get("sources"):
        small["sources"] = [stand_in(one, tiny / "train") for one in small["sources"]]
    if small["kind"] == "ids":
        small["vocab_size"] = tokenizer["vocab_size"]  # the end of a document is often the last of them
    return small


def small_model(model: dict[str, Any]) -> dict[str, Any]:
    """Quintet's transformer with few layers and narrow heads, of which a key head keeps as many query heads."""
    heads = model["attention"]["heads"] or max(1, model["width"] // 64)
    groups = heads // (model["attention"]["kv_heads"] or heads)
    kv_heads = min(heads // groups, 2)
    width = kv_heads * groups * HEAD
    attention = model["attention"] | {"heads": kv_heads * groups, "kv_heads": kv_heads, "window": None}
    attention["head_dim"] = HEAD if model["attention"]["head_dim"] else None
    feedforward = dict(model["feedforward"])
    if feedforward["width"]:
        feedforward["width"] = max(2, round(feedforward["width"] * width / model["width"]))
    layers, sharing = LAYERS, model.get("sharing")
    if sharing is not None:  # two blocks that share, between those that do not
        layers += sharing["first_blocks"] + sharing["last_blocks"]
    small = model | {"layers": min(model["layers"], layers), "width": width}
    if model["init"]["kind"] == "pretrained":
        small["init"] = {"kind": "normal"}
    return small | {"attention": attention, "feedforward": feedforward}


def small_hf(model: dict[str, Any]) -> dict[str, Any]:
    """A new small model of the transformers library: of its family where ``model`` names one, else a Llama."""
    from transformers import CONFIG_MAPPING

    name, config = model["name_or_path"], dict(model["config"])
    family = name if name in CONFIG_MAPPING else config.get("model_type", "llama")
    names = getattr(CONFIG_MAPPING[family], "attribute_map", {})
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4 * CONTEXT,
    }
    known = CONFIG_MAPPING[family]().to_dict()
    small = {names.get(key, key): size for key, size in sizes.items() if names.get(key, key) in known}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return model | {"name_or_path": family, "pretrained": False, "revision": None, "config": config | small | ids}


def _bounded(values: dict[str, Any], **most: int) -> dict[str, Any]:
    """``values`` with those that ``most`` names brought down to it."""
    return values | {name: min(values[name], bound) for name, bound in most.items() if values.get(name)}


def write_tiny_data(folder: Path) -> Path:
    """Text, ids and notes, drawn at random, each in a folder of its own, to train on and to hold out."""
    import numpy as np

    from quintet.piano.midi import write_midi
    from quintet.piano.notes import notes

    draw = np.random.default_rng(7)
    for part in ("train", "other"):
        for content in ("text", "ids", "notes"):
            (folder / part / content).mkdir(parents=True)
        for index in range(20):
            letters = draw.choice(list("etaoin shrdlu\n"), 400)
            (folder / part / "text" / f"{index}.txt").write_text("".join(letters))
            np.save(folder / part / "ids" / f"{index}.npy", draw.integers(0, 250, 400).astype(np.uint16))
            start = np.cumsum(draw.uniform(0.05, 0.3, 80))
            pitch, velocity = draw.integers(40, 90, 80), draw.integers(30, 100, 80)
            write_midi(notes(pitch, velocity, start, start + 0.2), folder / part / "notes" / f"bach_{index}.mid")
    return folder


def table(results: Sequence[Result]) -> str:
    """A row for each cause and outcome with the number of its files, and the sums; a file may have several causes."""
    lines = ["| dialect | outcome | files | cause |", "|---|---|---:|---|"]
    files: Counter[tuple[str, str, str]] = Counter()
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for one in results:
        sums[one.version.dialect][one.outcome] += 1
        files.update((one.version.dialect, one.outcome, cause) for cause in one.causes)
    for (dialect, what, cause), count in sorted(files.items(), key=lambda item: (item[0][:2], -item[1], item[0][2])):
        lines.append(f"| {dialect} | {what} | {count} | {cause.replace('|', chr(92) + '|')} |")
    lines += ["", "| dialect | files | " + " | ".join(OUTCOMES) + " |", "|---|---:|" + "---:|" * len(OUTCOMES)]
    for dialect, counts in sums.items():
        numbers = " | ".join(str(counts[one]) for one in OUTCOMES)
        lines.append(f"| {dialect} | {counts.total()} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
