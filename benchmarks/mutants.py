"""How much the tests notice: small changes are made in chosen files, one at a time, and the files' tests run each time.

    python benchmarks/mutants.py                  # 10 changes in each file of FILES
    python benchmarks/mutants.py --changes 40 src/quintet/tokenize/stop.py

A change that no test notices is printed with its line. It is a gap in the tests, or it changes nothing that anybody
could see: then it belongs in EQUIVALENT, with the reason. The exit code is 1 where fewer than 95 % are noticed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTICED = 0.95
SECONDS = 600  # a change may make a loop endless

# A source file, and the tests that are there to notice what becomes wrong in it.
FILES = {
    "src/quintet/config/duration.py": "tests/config/test_duration.py tests/train/test_schedule.py",
    "src/quintet/config/interpolate.py": "tests/config/test_interpolate.py tests/config/test_load.py",
    "src/quintet/config/hydra.py": "tests/config/test_hydra.py tests/config/test_load.py",
    "src/quintet/data/permutation.py": "tests/data/test_permutation.py",
    "src/quintet/data/packing.py": "tests/data/test_packing.py tests/data/test_documents.py",
    "src/quintet/data/mixture.py": "tests/data/test_mixture.py",
    "src/quintet/piano/metrics.py": "tests/piano/test_metrics.py",
    "src/quintet/piano/pedal.py": "tests/piano/test_pedal.py tests/piano/test_midi.py",
    "src/quintet/tokenize/borders.py": "tests/data/test_packing.py tests/tokenize",
    "src/quintet/tokenize/bounds.py": "tests/train/test_text_bounds.py tests/tokenize/test_chat.py",
    "src/quintet/tokenize/chat.py": "tests/tokenize/test_chat.py",
    "src/quintet/tokenize/stop.py": "tests/tokenize/test_stop.py",
    "src/quintet/train/schedule.py": "tests/train/test_schedule.py",
    "src/quintet/plan/cost.py": "tests/plan/test_plan_command.py",
}
EQUIVALENT: dict[tuple[str, str], str] = {}  # reasons by file and line of code

_SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


def changes(node: ast.AST) -> Iterator[Callable[[ast.AST], None]]:
    """The ways to change ``node``, each of which is applied to a copy of it."""
    match node:
        case ast.Compare():
            yield lambda one: setattr(one, "ops", [_SWAPS[type(op)]() for op in one.ops])
        case ast.BinOp() | ast.BoolOp() if type(node.op) in _SWAPS:
            yield lambda one: setattr(one, "op", _SWAPS[type(one.op)]())
        case ast.Constant(value=bool()):
            yield lambda one: setattr(one, "value", not one.value)
        case ast.Constant(value=int() | float()):
            yield lambda one: setattr(one, "value", one.value + 1)
        case ast.If() | ast.IfExp() | ast.While():
            yield lambda one: setattr(one, "test", ast.UnaryOp(ast.Not(), one.test))
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield lambda one: setattr(one, "op", ast.UAdd() if isinstance(one.op, ast.USub) else ast.Not())
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield lambda one: (one.__dict__.clear(), setattr(one, "__class__", ast.Pass))  # pyright: ignore


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, the code there, and the whole file, for each change of ``source``."""
    tree = ast.parse(source)
    lines = source.splitlines()
    for number, node in enumerate(ast.walk(tree)):
        for change in changes(node):
            changed = copy.deepcopy(tree)
            change(next(one for place, one in enumerate(ast.walk(changed)) if place == number))
            text = ast.unparse(ast.fix_missing_locations(changed))
            if text != ast.unparse(tree):
                yield node.lineno, lines[node.lineno - 1].strip(), text  # pyright: ignore[reportAttributeAccessIssue]


def noticed(folder: Path, tests: str) -> bool:
    """Whether a test fails in the copy of the checkout in ``folder``."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return bool(
            subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=SECONDS).returncode
        )
    except subprocess.TimeoutExpired:
        return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=list(FILES))
    parser.add_argument("--changes", type=int, default=10, help="changes in each file, drawn from all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tried = found = 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "checkout"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__"))
        for name in options.files:
            source, file = (ROOT / name).read_text(encoding="utf-8"), folder / name
            if noticed(folder, FILES[name]):
                sys.exit(f"{name}: its tests fail without any change; mend them first")
            every = [one for one in mutants(source) if (name, one[1]) not in EQUIVALENT]
            chosen = random.Random(options.seed).sample(every, min(options.changes, len(every)))
            for line, code, text in sorted(chosen):
                file.write_text(text, encoding="utf-8")
                tried, seen = tried + 1, noticed(folder, FILES[name])
                found += seen
                if not seen:
                    print(f"not noticed: {name}:{line}: {code}", flush=True)
            file.write_text(source, encoding="utf-8")
            print(f"{name}: {len(chosen)} of {len(every)} changes tried", flush=True)
    print(f"noticed: {found} of {tried} ({found / max(tried, 1):.0%})")
    return int(found < NOTICED * tried)


if __name__ == "__main__":
    sys.exit(main())
