"""Damage of every kind to the folder of a run at step 12 of 24."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from command import STEPS, Workspace
from compare import differences
from rows import EQUAL, REFUSED, Outcomes, evenly

STOP = STEPS // 2
LAST = f"checkpoints/step-{STOP:06d}"
Damage = Callable[[Path], object]


def _cut(file: Path, share: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _edit(file: Path, old: bytes, new: bytes) -> None:
    content = file.read_bytes()
    assert old in content, (file, old)
    file.write_bytes(content.replace(old, new, 1))


def _append(file: Path, more: bytes) -> None:
    with file.open("ab") as out:
        out.write(more)


def _to_folder(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


def _to_file(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.write_bytes(b"x")


def _move_and_link(path: Path, target: Path | None = None) -> None:
    """Move ``path`` away and leave a link to it, or to ``target``."""
    away = path.parent.parent / f"away-{path.parent.name}-{path.name}"
    path.rename(away)
    path.symlink_to(target or away)


def _weights(run: Path) -> Path:
    return run / LAST / "__0_0.distcp"


CHECKPOINT: dict[str, Damage] = {
    "weights cut": lambda run: _cut(_weights(run)),
    "weights, one bit": lambda run: _flip(_weights(run)),
    "weights gone": lambda run: _weights(run).unlink(),
    "weights empty": lambda run: _weights(run).write_bytes(b""),
    "weights a folder": lambda run: _to_folder(_weights(run)),
    ".metadata, one bit": lambda run: _flip(run / LAST / ".metadata"),
    ".metadata gone": lambda run: (run / LAST / ".metadata").unlink(),
    "state.json gone": lambda run: (run / LAST / "state.json").unlink(),
    "state.json cut": lambda run: _cut(run / LAST / "state.json"),
    "state.json empty": lambda run: (run / LAST / "state.json").write_bytes(b""),
    "state.json NULs": lambda run: (run / LAST / "state.json").write_bytes(bytes(400)),
    "state.json a list": lambda run: (run / LAST / "state.json").write_bytes(b"[1]"),
    "state.json of another step": lambda run: _edit(run / LAST / "state.json", b'"step": 12', b'"step": 11'),
    "folder under another step": lambda run: (run / LAST).rename(run / "checkpoints/step-000015"),
    "folder empty": lambda run: [file.unlink() for file in (run / LAST).iterdir()],
    "an empty folder of a later step": lambda run: (run / "checkpoints/step-000099").mkdir(),
    "a file under a later step": lambda run: _to_file(run / "checkpoints/step-000099"),
    "a half folder of a later step": lambda run: _to_file(_made(run / "checkpoints/.step-000015") / "x"),
    "a file under that name": lambda run: _to_file(run / "checkpoints/.step-000015"),
    "checkpoints all gone": lambda run: shutil.rmtree(run / "checkpoints"),
    "checkpoints a dangling link": lambda run: _move_and_link(run / "checkpoints", Path("nowhere")),
    "checkpoints moved and linked": lambda run: _move_and_link(run / "checkpoints"),
    "checkpoints a file": lambda run: _to_file(run / "checkpoints"),
}
RECORDS: dict[str, Damage] = {
    "metrics.jsonl cut in a line": lambda run: _cut(run / "metrics.jsonl", 0.97),
    "metrics.jsonl ends with NULs": lambda run: _append(run / "metrics.jsonl", bytes(64)),
    "metrics.jsonl has a line of NULs": lambda run: _append(run / "metrics.jsonl", bytes(64) + b"\n"),
    "metrics.jsonl has garbage": lambda run: _append(run / "metrics.jsonl", b'{"st\x01ep": 5\n[]\nnull\n'),
    "metrics.jsonl has a line without a step": lambda run: _append(run / "metrics.jsonl", b'{"loss": 1.0}\n'),
    "metrics.jsonl is not UTF-8": lambda run: _append(run / "metrics.jsonl", b'{"step": 5, "lo\xff": 1}\n'),
    "metrics.jsonl has deep nesting": lambda run: _append(run / "metrics.jsonl", b"[" * 100_000 + b"\n"),
    "metrics.jsonl gone": lambda run: (run / "metrics.jsonl").unlink(),
    "metrics.jsonl a folder": lambda run: _to_folder(run / "metrics.jsonl"),
    "samples a file": lambda run: _to_file(run / "samples"),
    "samples gone": lambda run: shutil.rmtree(run / "samples"),
}
FOLDER: dict[str, Damage] = {
    "nothing": lambda run: None,
    "run.yaml of another seed": lambda run: _edit(run / "run.yaml", b"seed: 7", b"seed: 8"),
    "run.yaml cut": lambda run: _cut(run / "run.yaml"),
    "run.yaml empty": lambda run: (run / "run.yaml").write_bytes(b""),
    "run.yaml binary": lambda run: (run / "run.yaml").write_bytes(b"\xff\xfe\0"),
    "run.yaml gone": lambda run: (run / "run.yaml").unlink(),
    "run.yaml a folder": lambda run: _to_folder(run / "run.yaml"),
    "tokenizer gone": lambda run: shutil.rmtree(run / "tokenizer"),
    "tokenizer a file": lambda run: _to_file(run / "tokenizer"),
    "tokenizer cut": lambda run: _cut(run / "tokenizer/quintet.json"),
    "tokenizer of another fingerprint": lambda run: _edit(run / "tokenizer/quintet.json", b'rint": "', b'rint": "0'),
    "the folder moved and linked": lambda run: _move_and_link(run),
    "its lock names nobody": lambda run: (run / ".running").write_bytes(b"{}"),
    "its lock a folder": lambda run: _to_folder(run / ".running"),
    "stray dot files": lambda run: (run / ".DS_Store").write_bytes(b"x"),
}
# Damage that destroys records or samples, which training does not repeat.
LOSES = {
    "metrics.jsonl gone",
    "metrics.jsonl a folder",
    "metrics.jsonl cut in a line",
    "samples gone",
    "samples a file",
}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def damaged_folders(work: Workspace, tries: int) -> Outcomes:
    """Damage of each kind to checkpoints, records, run file, tokenizer and lock of a half-finished run, then the same
    command: it ends like an undamaged run, or is refused in one line."""
    constant = "schedule={kind: constant, warmup_steps: 2}"
    for name, steps in (("whole", STEPS), ("half", STOP)):
        ended = work.train(name, constant, f"train.steps={steps}")
        assert ended.code == 0, ended.said
    # Samples of the last step, which is not the last step of the whole run.
    (work.run("half") / f"samples/step-{STOP:06d}.txt").unlink()
    cases = CHECKPOINT | RECORDS | FOLDER
    for number in evenly(len(cases), tries):
        what, damage = list(cases.items())[number]
        name = f"damage-{number}"
        shutil.copytree(work.run("half"), work.run(name))
        _edit(work.run(name) / "run.yaml", b"name: half", f"name: {name}".encode())
        damage(work.run(name))
        ended = work.train(name, constant, f"train.steps={STEPS}")
        errors = [line for line in ended.said.splitlines() if line.startswith("error:")]
        if ended.problem or ended.code not in (0, 2) or (ended.code == 2 and not errors):
            yield f"FAULT: {what}: exit code {ended.code}: {ended.problem or ended.said.strip()[-400:]}"
        elif ended.code == 2:
            yield REFUSED
        else:
            yield _compared(work, name, what)


def _compared(work: Workspace, name: str, what: str) -> str:
    run = work.run(name)
    if what in LOSES:  # compare only what can be equal
        for part in ("metrics.jsonl", "samples"):
            shutil.rmtree(run / part) if (run / part).is_dir() else (run / part).unlink()
            kept = work.run("whole") / part
            shutil.copytree(kept, run / part) if kept.is_dir() else shutil.copy(kept, run / part)
    problems = [line for line in differences(run, work.run("whole")) if not line.startswith("left behind: .DS_Store")]
    if problems:
        return f"FAULT: {what}: {'; '.join(problems)}"
    return "continued with equal weights; lost records stay lost" if what in LOSES else EQUAL
