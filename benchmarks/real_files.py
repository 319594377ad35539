"""The run files in a checkout of PhyAGI, VectorLM, STLM, TMRC or piano-gpt: which are accepted, and which then train.

    python benchmarks/real_files.py FOLDER [--history] [--files] [--no-training] [--set KEY=VALUE ...]

FOLDER is a checkout, or with --history also a git directory. With --history, each version of a file whose set of keys
differs counts as one more file; of versions with equal keys the newest counts. Each is composed with its siblings in
the same commit. A file counts if its keys, after Hydra's composition if it has a `defaults` list, are those of a
dialect; parts of such lists and other YAML do not count. --set applies overrides to every file.

A file is checked as `quintet check` does. If it is accepted, it is made small and takes two steps: at most two layers
(or one group of layers that share weights), heads of 8 features, at most two key heads, a context of 32 tokens, two
samples per pass; in fp32, without measurements, samples, trackers and parallelism. Architecture, loss, packing,
optimizer and schedules stay. Missing inputs are replaced: data by random letters, notes or ids, a tokenizer by bytes, a
checkpoint by a small Llama with random weights. Nothing is downloaded.
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
    """A run file of one commit: its path here, and its name in the table."""

    file: Path
    name: str
    dialect: str


@dataclass(frozen=True)
class Result:
    """The outcome of a file and its causes: each refusal once, without values of this file."""

    version: Version
    outcome: str
    causes: tuple[str, ...]


def main() -> None:
    """Print the table of a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--history", action="store_true", help="every version whose keys differ, from all commits")
    parser.add_argument("--files", action="store_true", help="also print one line per file")
    parser.add_argument("--no-training", action="store_true", help="only check")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override for every file")
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
    """Yield the run files below ``folder``; with ``seen`` only those whose keys it does not hold yet, and add them."""
    for file in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        try:
            document = read_document(file)
            values = (compose(document, file, ()).document if is_composed(document) else document).values
        except (UserError, UnicodeDecodeError):
            # A list, broken YAML, or a part whose siblings are elsewhere: its own keys decide.
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
    """Yield the run files of all commits of ``repository``, newest first, after writing them below ``trees``."""
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
    """Yield what distinguishes two versions of a file: its keys, and values that are single words, such as kinds."""
    for path, value in walk(values):
        words = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w-]*", value) and not _FREE_TEXT.search(show(path))
        yield show(tuple(0 if isinstance(step, int) else step for step in path)), value if words else None


def outcome(version: Version, overrides: Sequence[str], tiny: Path | None) -> Result:
    """Check a file and, unless ``tiny`` is None, train it on the data there."""
    said = StringIO()
    with tempfile.TemporaryDirectory() as folder, chdir(folder), redirect_stdout(said), redirect_stderr(said):
        try:
            config = load_config(version.file, overrides)
            missing = _missing(config)
        except UserError as error:
            return Result(version, "refused by name", tuple(dict.fromkeys(map(_cause, error.problems))))
        except Exception as error:  # what this table is meant to find
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
    """Return the keys of what a file names but this machine lacks. Raises UserError if `check` refuses the file."""
    return tuple(dict.fromkeys(_cause(line).partition(":")[0] + ": is not here" for line in check(config).not_here))


def _cause(problem: str) -> str:
    """Return ``problem`` without its location and without values of one file."""
    text = re.sub(r"^[^:]*\.ya?ml(:\d+)?: |^\S*?(:\d+)?: |^line \d+: |^command line: ", "", problem, count=1)
    text = re.sub(r"\[\d+\]", "[]", text)
    return re.sub(r"/\S+|\bline \d+", "…", text)[:160]


def take_steps(config: RunConfig, tiny: Path, folder: Path) -> None:
    """Train a small copy of ``config`` for two steps below ``folder``. Raises UserError if it does not train."""
    from quintet.train.intervals import Trial
    from quintet.train.loop import train

    loaded = loaded_of(config)
    assert loaded is not None
    small = RunConfig.model_validate(shrunken(config.model_dump(), tiny, folder))
    run = train(small, Reporter(), None, Trial(STEPS)).run
    if run.progress.step != STEPS:
        raise UserError(f"took {run.progress.step} of {STEPS} steps")


def shrunken(values: dict[str, Any], tiny: Path, folder: Path) -> dict[str, Any]:
    """Return the ``values`` of a run file with a small model and the data in ``tiny``."""
    music = values["data"]["packing"]["kind"] in ("pieces", "tasks")
    context = 8 * CONTEXT if music else CONTEXT  # room for a prompt of a few notes and its answer
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
    """Return ``source``, or if its files are missing one of the same content and weight."""
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
    """Return ``tokenizer`` with a small vocabulary, or bytes if its files are missing."""
    files = tokenizer.get("path")
    if tokenizer["kind"] in ("tiktoken", "huggingface", "saved") and not (files and Path(files).exists()):
        return {"kind": "byte"}
    small = _bounded(tokenizer, vocab_size=VOCABULARY, train_tokens=100_000, train_bytes=100_000)
    if small.get("sources"):
        small["sources"] = [stand_in(one, tiny / "train") for one in small["sources"]]
    if small["kind"] == "ids":
        small["vocab_size"] = tokenizer["vocab_size"]  # the end of a document is often the last id
    return small


def small_model(model: dict[str, Any]) -> dict[str, Any]:
    """Return Quintet's transformer with few layers and narrow heads, and as many query heads per key head as before."""
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
    if sharing is not None:  # two blocks that share weights, between those that do not
        layers += sharing["first_blocks"] + sharing["last_blocks"]
    small = model | {"layers": min(model["layers"], layers), "width": width}
    if model["init"]["kind"] == "pretrained":
        small["init"] = {"kind": "normal"}
    return small | {"attention": attention, "feedforward": feedforward}


def small_hf(model: dict[str, Any]) -> dict[str, Any]:
    """Return a small model of transformers with random weights: of the family that ``model`` names, or a Llama."""
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
    """Return ``values`` with the entries named in ``most`` capped."""
    return values | {name: min(values[name], bound) for name, bound in most.items() if values.get(name)}


def write_tiny_data(folder: Path) -> Path:
    """Write random text, ids and notes, for training and for validation, each to a separate folder."""
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
    """Return a row per cause and outcome with the number of files, and the totals. A file may have several causes."""
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
