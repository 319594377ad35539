"""Every parallel strategy against one process: the difference of its losses, and its speed.

    python benchmarks/parallel.py [--processes 2] [--steps 20] [--width 256]

Runs on the CPU over gloo; the processes share the cores. The table shows strategy, processes, the largest difference of
a step's loss from that of one process, tokens per second, and their ratio to one process on all cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

WAYS = {
    "ddp": {"kind": "ddp"},
    "fsdp": {"kind": "fsdp"},
    "fsdp, grad_op": {"kind": "fsdp", "shard": "grad_op"},
    "fsdp, offload": {"kind": "fsdp", "offload": True},
    "hsdp": {"kind": "hsdp", "shard_size": 1},
    "deepspeed, ZeRO 1": {"kind": "deepspeed", "config": {"zero_optimization": {"stage": 1}}},
    "deepspeed, ZeRO 3": {"kind": "deepspeed", "config": {"zero_optimization": {"stage": 3}}},
}


def run_file(folder: Path, name: str, parallel: dict, options: argparse.Namespace) -> Path:
    """Write the run file of one strategy."""
    heads = max(1, options.width // 64)
    values = {
        "name": name,
        "runs_dir": str(folder / "runs"),
        "data": {"sources": [{"kind": "python_stdlib"}], "sequence_length": 256, "cache_dir": str(folder / "cache")},
        "tokenizer": {"kind": "byte"},
        "model": {"layers": 6, "width": options.width, "attention": {"heads": heads}},
        "train": {"steps": options.steps, "batch_size": 16, "log_every": options.steps, "precision": options.precision},
        "evaluate": {"every": None, "at_end": False},
        "checkpoint": {"every": None, "at_end": False},
        "parallel": parallel,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def trained(folder: Path, name: str, parallel: dict, processes: int, options: argparse.Namespace) -> tuple[list, float]:
    """Train, and return the loss of each step and the tokens per second."""
    file = run_file(folder, name, parallel, options)
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    threads = max(1, (os.cpu_count() or 1) // processes)
    done = subprocess.run(
        [sys.executable, *start, "-m", "quintet", "train", str(file)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    rows = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    return losses, next(row["speed/tokens_per_second"] for row in reversed(rows) if "speed/tokens_per_second" in row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference, speed = trained(folder, "one", {"kind": "none"}, 1, options)
        print(f"{'strategy':20} {'processes':>9} {'loss differs by':>16} {'tokens/s':>9} {'ratio':>6}")
        print(f"{'one process':20} {1:9} {0.0:16.1e} {speed:9,.0f} {1.0:6.2f}")
        for number, way in enumerate(options.ways):
            losses, own_speed = trained(folder, f"way{number}", WAYS[way], options.processes, options)
            difference = max(abs(a - b) for a, b in zip(reference, losses, strict=True))
            print(
                f"{way:20} {options.processes:9} {difference:16.1e} {own_speed:9,.0f} {own_speed / speed:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
