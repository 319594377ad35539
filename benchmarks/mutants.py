"""How much the tests notice: chosen files get small changes, one at a time, and their tests run after each.

    python benchmarks/mutants.py                                            # 10 changes in each file of mutants.toml
    python benchmarks/mutants.py --changes 40 src/quintet/tokenize/stop.py  # more changes, in one file
    python benchmarks/mutants.py --line 24 src/quintet/tokenize/stop.py     # every change of one line

A change inverts a comparison, a sign, an operation or a condition, adds one to a number, or removes a call. Docstrings,
annotations, decorators, `strict=`, code for type checkers and logging calls are not changed. The changes of a file are
drawn with a seed, so a second call draws the same ones.

mutants.toml lists the tests that should notice a fault in each file. A run ends at the first failure, and tests that
noticed most changes so far run first. A change that makes the tests compute three times longer, as an endless loop
does, counts as noticed; the line of the file says how many were noticed this way.

A change that no test notices is printed with its line before and after. Either the tests have a gap, or the change has
no visible effect; then it belongs under `equivalent` in mutants.toml, with the reason. Changes listed there are drawn
but neither tried nor counted in the score, the share of the other changes that is noticed. The exit code is 1 if a file
or the total scores below 0.95.

The tests run in a copy of the checkout, in a forked process that imports the package from there; the other libraries
are imported once, before the fork. A change takes as long as the tests up to the first failure.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import copy
import importlib
import importlib.util
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

import pytest
from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parents[1]
SCORE = 0.95
TIMES_LONGER, MORE_SECONDS = 3, 3  # of CPU time; a change may make a loop endless
TIMES_WAITING, LEAST_SECONDS = 10, 60  # of wall time; a change may also wait forever
ANOTHER_PACKAGE = 77  # exit code of a run that imported the package from elsewhere
MODULES = "modules.txt"  # modules of other packages that a run imported

_SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Mutant:
    """A change of a file: the line before and after it, and the text of the changed file."""

    line: int
    before: str
    after: str
    text: str


def changes(node: ast.AST) -> Iterator[Callable[[ast.AST], None]]:
    """Yield the ways to change ``node``, each to be applied to a copy of it."""
    match node:
        case ast.Compare():
            yield lambda one: setattr(one, "ops", [_SWAPS[type(op)]() for op in vars(one)["ops"]])
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if type(node.op) in _SWAPS:
            yield lambda one: setattr(one, "op", _SWAPS[type(vars(one)["op"])]())
        case ast.Constant(value=bool()):
            yield lambda one: setattr(one, "value", not vars(one)["value"])
        case ast.Constant(value=int() | float()):
            yield lambda one: setattr(one, "value", vars(one)["value"] + 1)
        case ast.If() | ast.IfExp() | ast.While():
            yield lambda one: setattr(one, "test", ast.UnaryOp(ast.Not(), vars(one)["test"]))
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield lambda one: _becomes(one, vars(one)["operand"])
        case ast.Expr(value=ast.Call()):
            yield lambda one: _becomes(one, ast.Pass())
    if isinstance(node, ast.AugAssign):
        yield lambda one: _becomes(one, ast.Pass())


def _becomes(node: ast.AST, other: ast.AST) -> None:
    node.__dict__.clear()
    node.__class__ = type(other)  # pyright: ignore[reportAttributeAccessIssue]
    node.__dict__.update(other.__dict__)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield ``node`` and its descendants, except those whose change nobody could notice."""
    yield node
    for field, value in ast.iter_fields(node):
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, ast.AST) and not _is_left(one, field):
                yield from _walk(one)


def _is_left(node: ast.AST, field: str) -> bool:
    match node:
        case ast.keyword(arg="strict"):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="log" | "logger" | "logging")))):
            return True
    return field in ("annotation", "returns", "decorator_list", "type_params")


def mutants(source: str) -> Iterator[Mutant]:
    """Yield each change of ``source``."""
    tree = ast.parse(source)
    lines, plain = source.splitlines(), ast.unparse(tree)
    for number, node in enumerate(_walk(tree)):
        for change in changes(node):
            changed = copy.deepcopy(tree)
            other = next(one for place, one in enumerate(_walk(changed)) if place == number)
            change(other)
            text = ast.unparse(ast.fix_missing_locations(changed))
            if text != plain:
                assert isinstance(node, ast.expr | ast.stmt), node
                yield Mutant(node.lineno, lines[node.lineno - 1].strip(), _changed_line(lines, node, other), text)


def _changed_line(lines: list[str], node: ast.expr | ast.stmt, other: ast.AST) -> str:
    """Return the line of ``node`` with ``other`` in its place."""
    line = lines[node.lineno - 1].encode()
    rest = line[node.end_col_offset :].decode() if node.end_lineno == node.lineno else " …"
    return f"{line[: node.col_offset].decode()}{ast.unparse(other).splitlines()[0]}{rest}".strip()


@dataclass(frozen=True)
class Run:
    """The exit code of the tests (None if a limit ended them), and their CPU and wall seconds."""

    code: int | None
    computing: float
    clock: float


class Sharpness:
    """A plugin of pytest that runs the tests first that noticed most changes, and keeps Hypothesis from shrinking."""

    def __init__(self, folder: Path) -> None:
        self._noticed, self._file = Counter[str](), folder / "failed.txt"

    def pytest_collection(self) -> None:
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("as it fails", parent=settings.default, phases=phases)
        settings.load_profile("as it fails")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: -self._noticed[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._file.write_text(report.nodeid, encoding="utf-8")

    def learn(self) -> None:
        """Count the test that failed, if there is one."""
        if self._file.is_file():
            self._noticed[self._file.read_text(encoding="utf-8")] += 1
            self._file.unlink()


def run(folder: Path, tests: str, sharpness: Sharpness, unchanged: Run | None = None) -> Run:
    """Run ``tests`` in the copy of the checkout in ``folder``, with limits derived from the run ``unchanged``."""
    begun = time.monotonic()
    child = os.fork()
    if not child:
        if unchanged:
            seconds = round(TIMES_LONGER * unchanged.computing + MORE_SECONDS)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        os._exit(_pytest(folder, tests, sharpness, compiled=unchanged is None))
    end = begun + max(TIMES_WAITING * unchanged.clock, LEAST_SECONDS) if unchanged else float("inf")
    found, status, used = 0, 0, None
    try:
        while not found and time.monotonic() < end:
            found, status, used = os.wait4(child, os.WNOHANG)
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # and its children
    if not found or used is None:
        os.waitpid(child, 0)
        return Run(None, 0.0, 0.0)
    code = os.waitstatus_to_exitcode(status)
    return Run(
        None if code in (-signal.SIGXCPU, -signal.SIGKILL) else code,
        used.ru_utime + used.ru_stime,
        time.monotonic() - begun,
    )


def _pytest(folder: Path, tests: str, sharpness: Sharpness, compiled: bool) -> int:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(folder)
    (folder / "tmp").mkdir(exist_ok=True)
    os.environ |= {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(folder / "tmp")}
    os.environ.setdefault("QUINTET_SHARED", str(ROOT.parent / "shared"))
    sys.dont_write_bytecode = not compiled
    sys.path.insert(0, str(folder / "src"))
    found = importlib.util.find_spec("quintet")
    if "quintet" in sys.modules or found is None or not str(found.origin).startswith(str(folder)):
        return ANOTHER_PACKAGE
    options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp/tests'}"]
    code = pytest.main([*options, *tests.split()], plugins=[sharpness])
    sys.stdout.flush()
    names = [name for name, one in sys.modules.items() if "site-packages" in str(getattr(one, "__file__", None))]
    (folder / MODULES).write_text("\n".join(names), encoding="utf-8")
    return int(code)


@dataclass
class Count:
    """Counts of changes: drawn, listed as equivalent, noticed, and noticed by the time limit."""

    drawn: int = 0
    equivalent: int = 0
    noticed: int = 0
    by_time: int = 0

    @property
    def score(self) -> float:
        return self.noticed / max(self.drawn - self.equivalent, 1)

    def __str__(self) -> str:
        tried = self.drawn - self.equivalent
        return (
            f"{self.drawn} changes, {self.equivalent} equivalent, {self.noticed} of {tried} noticed "
            f"({self.by_time} by the time limit): {self.score:.1%}"
        )


def try_file(folder: Path, name: str, tests: str, chosen: list[Mutant], equivalent: dict[str, str]) -> Count:
    """Try the ``chosen`` changes of the file ``name`` in turn, and print those that no test notices."""
    file, count = folder / name, Count(len(chosen))
    source = file.read_text(encoding="utf-8")
    sharpness = Sharpness(folder)
    unchanged = run(folder, tests, sharpness)
    if code := unchanged.code:
        output = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
        sys.exit(f"{output}\n{name}: its tests fail without any change (exit code {code}); fix them first")
    for module in (folder / MODULES).read_text(encoding="utf-8").split():
        with contextlib.suppress(ImportError):  # a name that a package added itself
            importlib.import_module(module)
    # Python would reuse the bytecode of a changed file with equal time and length.
    Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)
    for one in chosen:
        if f"{one.before} → {one.after}" in equivalent:
            count.equivalent += 1
            continue
        file.write_text(one.text, encoding="utf-8")
        code = run(folder, tests, sharpness, unchanged).code
        sharpness.learn()
        assert code != ANOTHER_PACKAGE
        count.noticed += code != 0
        count.by_time += code is None
        if code == 0:
            print(f"not noticed: {name}:{one.line}: {one.before} → {one.after}", flush=True)
    file.write_text(source, encoding="utf-8")
    print(f"{name}: {count}; unchanged {unchanged.computing:.1f} CPU s", flush=True)
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files (default: those of mutants.toml)")
    parser.add_argument("--changes", type=int, default=10, help="changes drawn per file")
    parser.add_argument("--line", type=int, help="try every change of this line instead")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    listed = tomllib.loads((ROOT / "benchmarks/mutants.toml").read_text(encoding="utf-8"))
    counts = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "checkout"
        left = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".hypothesis", ".pytest_cache")
        shutil.copytree(ROOT, folder, ignore=left)
        compileall.compile_dir(folder / "src", quiet=1, invalidation_mode=PycInvalidationMode.TIMESTAMP)
        for name in options.files or listed["files"]:
            equivalent = listed["equivalent"].get(name, {})
            every = list(mutants((folder / name).read_text(encoding="utf-8")))
            if gone := equivalent.keys() - {f"{one.before} → {one.after}" for one in every}:
                sys.exit(f"{name}: mutants.toml lists what is no change of this file: {', '.join(sorted(gone))}")
            chosen = random.Random(f"{options.seed} {name}").sample(every, min(options.changes, len(every)))
            if options.line:
                chosen = [one for one in every if one.line == options.line]
            counts.append(try_file(folder, name, listed["files"][name], sorted(chosen), equivalent))
    whole = Count(*(sum(getattr(one, field) for one in counts) for field in Count.__dataclass_fields__))
    print(f"total: {whole}")
    return int(min(one.score for one in (*counts, whole) if one.drawn > one.equivalent) < SCORE)


if __name__ == "__main__":
    sys.exit(main())
