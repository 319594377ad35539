"""Long runs: the cost of the commands that read a log of two million lines, and memory over many steps.

    python benchmarks/long_runs.py --records 2000000       # runs, report and compare with such a log
    python benchmarks/long_runs.py --steps 50000           # memory of a run at a tenth of its steps and at its end

The first trains a tiny run and extends its log with records of its own shape and other numbers, one validation per
1,000 steps. Each command runs in a separate process; its wall and CPU seconds and its peak memory are printed. The
second trains one layer of width 16.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

EACH = 1000  # steps between validations
PAIR = ("runs/long", "runs/other")
COMMANDS = (("runs", "runs"), ("report", "runs/long"), ("compare", "--recorded", *PAIR), ("compare", *PAIR))


def write_run(folder: Path, steps: int) -> None:
    """Write a corpus and the run file of a tiny model."""
    draw = random.Random(5)
    (folder / "corpus").mkdir()
    (folder / "corpus/0.txt").write_text(" ".join(draw.choices(["the", "cat", "sat", "on", "a", "mat"], k=20_000)))
    values = {
        "name": "long",
        "data": {"sources": [{"kind": "text", "path": "corpus"}], "validation": 0.1, "sequence_length": 16},
        "tokenizer": {"kind": "byte"},
        "model": {"layers": 1, "width": 16, "attention": {"heads": 2}},
        "train": {"steps": steps, "batch_size": 2, "device": "cpu", "precision": "fp32", "log_every": 100},
        "evaluate": {"every": EACH, "samples": 8},
        "sample": {"prompts": []},
        "checkpoint": {"every": 2 * EACH},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))


def train(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """Start training."""
    line = [sys.executable, "-m", "quintet", "train", "--no-report", "--peak-flops=1e12", "run.yaml", *overrides]
    return subprocess.Popen(line, cwd=folder, stdout=subprocess.DEVNULL)


def lengthen(file: Path, records: int) -> None:
    """Extend the log of a tiny run to ``records`` lines."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    step_row = next(row for row in rows if "train/loss" in row and "speed/mfu" not in row)
    log_row = next(row for row in rows if "speed/mfu" in row)
    validation = next(row for row in rows if "validation/loss" in row)

    def lines() -> Iterator[str]:
        for count in range(1, records + 1):
            step = count - count // (EACH + 1)
            if count % (EACH + 1) == 0:
                row = validation | {"step": step, "validation/loss": 2 + math.exp(-step / 1e5)}
            else:
                row = (log_row if step % 100 == 0 else step_row) | {"step": step, "train/loss": 2 + 1 / step}
            yield json.dumps(row) + "\n"

    with file.open("w", encoding="utf-8") as out:
        out.writelines(lines())


def measure(folder: Path, *command: str) -> tuple[float, float, float]:
    """Return wall seconds, CPU seconds and peak MiB of a command."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "quintet", *command], cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    seconds = time.perf_counter() - start
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def commands(folder: Path, records: int, turns: int) -> None:
    """Print a row for each command with the log of the tiny run and with one of ``records`` lines."""
    write_run(folder, 2 * EACH)
    assert train(folder).wait() == 0
    assert train(folder, "name=other").wait() == 0
    print("| command | lines | wall s | CPU s | MiB |\n|---|---|---|---|---|")
    for lines in (0, records):
        for name in ("long", "other") if lines else ():
            lengthen(folder / f"runs/{name}/metrics.jsonl", lines)
        for command in COMMANDS:
            best = min((measure(folder, *command) for _ in range(turns)), key=lambda figures: figures[1])
            there, said = lines or 2 * EACH + 2, " ".join(command[: 1 + ("--recorded" in command)])
            print(f"| {said} | {there:,} | {best[0]:.1f} | {best[1]:.1f} | {best[2]:.0f} |", flush=True)


def memory(folder: Path, steps: int) -> None:
    """Print the memory of a run at a tenth of its steps, and at its end."""
    write_run(folder, steps)
    process, file, at = train(folder), folder / "runs/long/metrics.jsonl", dict[int, float]()
    wanted = [steps // 10, steps // 2, steps - steps // 50]
    start = time.perf_counter()
    while process.poll() is None:
        step = _last_step(file)
        for mark in wanted:
            if step >= mark and mark not in at:
                at[mark] = _resident(process.pid)
        time.sleep(0.2)
    assert process.returncode == 0
    seconds = time.perf_counter() - start
    print("; ".join(f"step {mark:,}: {size:.0f} MiB" for mark, size in at.items()) + f"; {seconds:.0f} s in total")


def _last_step(file: Path) -> int:
    if not file.is_file():
        return 0
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - 4096))
        lines = content.read().split(b"\n")
    return json.loads(lines[-2])["step"] if len(lines) > 2 else 0


def _resident(process: int) -> float:
    """Return the resident MiB of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, help="lines of the log")
    parser.add_argument("--steps", type=int, help="steps of the run whose memory is measured")
    parser.add_argument(
        "--turns", type=int, default=2, help="runs of each command, of which the one with the least CPU time counts"
    )
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="long-"))
    try:
        if arguments.records:
            (folder / "log").mkdir()
            commands(folder / "log", arguments.records, arguments.turns)
        if arguments.steps:
            (folder / "steps").mkdir()
            memory(folder / "steps", arguments.steps)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
