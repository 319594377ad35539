"""Piano from scratch, then tuned on tasks: the time it takes, and the result against simple baselines.

    python benchmarks/piano.py music21
    python benchmarks/piano.py FOLDER_OF_MIDI --steps 700 --task-steps 800

Prints the wall time of each part and the validation loss, with those of a unigram and a bigram of the training tokens.
After tuning it prints loss and note F1 of the answers by task, with those of copying the prompt. Runs and token stores
are written to --folder, by default a new one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from quintet.config.generation import GenerationSettings
from quintet.config.schema import RunConfig
from quintet.data.prepare import prepare
from quintet.track.console import Reporter
from quintet.track.jsonl import read_metrics
from quintet.train.loop import train
from quintet.train.music import evaluate_music
from quintet.train.trained import load_trained, loss_on, own_data

VALIDATED = 128  # samples


def main() -> None:
    """Train twice and print the figures."""
    given = _arguments()
    source = (
        {"kind": "music21"}
        if given.source == "music21"
        else {"kind": "midi", "path": str(Path(given.source).resolve())}
    )
    folder = Path(given.folder or tempfile.mkdtemp(prefix="piano-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    pieces = _config(given, source, "pieces", given.steps, given.rate, {"kind": "pieces", **_varied(given)})
    tasks = {"kind": "tasks", "notes_per_record": given.notes, "tasks": given.tasks, **_varied(given)}
    tuning = _config(given, source, "tasks", given.task_steps, given.rate / 2, tasks)
    tuning["data"]["sequence_length"] = given.task_length
    tuning["model"]["init"] = {"kind": "pretrained", "path": "runs/pieces"}
    begin = time.perf_counter()
    made = prepare(RunConfig.model_validate(pieces))
    assert made.validation is not None
    print(f"{made.train.tokens:,} notes to train on, {made.validation.tokens:,} held out; read in {_since(begin)}")
    _run(pieces, given.records, given.temperature)
    _run(tuning, given.records, given.temperature)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="music21, or a folder of MIDI files")
    for name, default in (("layers", 6), ("width", 256), ("length", 256), ("batch", 8), ("notes", 32), ("shift", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("steps", 1000), ("task-steps", 1000), ("records", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--task-length", type=int, default=176, help="tokens of a record")
    parser.add_argument("--speeds", type=float, nargs="*", default=[])
    parser.add_argument("--tasks", nargs="*", default=[])
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--temperature", type=float, nargs="*", default=[0.0])
    parser.add_argument("--folder")
    return parser.parse_args()


def _varied(given: argparse.Namespace) -> dict[str, Any]:
    return {"speeds": given.speeds, "max_pitch_shift": given.shift}


def _config(
    given: argparse.Namespace, source: dict[str, Any], name: str, steps: int, rate: float, packing: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "seed": 1337,
        "data": {
            "sources": [source],
            "validation": 0.1,
            "sequence_length": given.length,
            "packing": packing,
            "cache_dir": "cache",
        },
        "tokenizer": {"kind": "exponential_time"},
        "model": {
            "layers": given.layers,
            "width": given.width,
            "attention": {"heads": max(1, given.width // 64)},
            "feedforward": {"kind": "gated", "activation": "silu"},
            "norm": {"kind": "rms"},
            "position": {"kind": "rope"},
        },
        "optimizer": {"kind": "adamw", "lr": rate, "weight_decay": 0.1},
        "schedule": {"kind": "cosine", "warmup_steps": min(50, steps // 4), "min_lr": rate / 10},
        "train": {"steps": steps, "batch_size": given.batch},
        "evaluate": {"every": 100, "samples": VALIDATED, "at_start": name == "tasks"},
        "sample": {"every": 1.0},
    }


def _run(values: dict[str, Any], records: int, temperatures: list[float]) -> None:
    """Train the run of ``values`` and print what it reached."""
    begin = time.perf_counter()
    outcome = train(RunConfig.model_validate(values), Reporter())
    if outcome.signal is not None:
        sys.exit(f"{values['name']}: stopped; the same command with --folder {Path.cwd()} goes on from here")
    print(f"\n{values['name']}: trained in {_since(begin)}")
    for row in read_metrics(outcome.run.folder / "metrics.jsonl"):
        if "validation/loss" in row:
            print(f"  step {int(row['step']):5}  validation {row['validation/loss']:.4f}")
    for temperature in temperatures:
        begin = time.perf_counter()
        trained = load_trained(str(outcome.run.folder), "best")
        prepared = own_data(trained, Reporter())
        result = loss_on(trained, prepared, VALIDATED)
        found = evaluate_music(trained, prepared, VALIDATED, records, GenerationSettings(temperature=temperature))
        print(f"{values['name']} at step {trained.progress.step}, temperature {temperature:g}: {result}")
        print("\n".join(found.lines()))
        print(f"evaluated in {_since(begin)}\n")


def _since(begin: float) -> str:
    return f"{time.perf_counter() - begin:.0f} s"


if __name__ == "__main__":
    main()
