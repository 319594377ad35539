"""The limits that keep the house readable: no circle of imports, no long file, function or line."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from quintet.cli import VERBS
from quintet.config.dialects import NAMES

SOURCE = Path(__file__).resolve().parents[1] / "src"
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_LINE = 450, 60, 120
# Files, functions ("file:function") and lines ("file:number") that may be longer, each with the reason.
EXCEPTIONS = {
    "quintet/cli/generate.py:generate": "its signature alone, an option a line, has 24 lines",
}
_WHOLE = ("https://", "# noqa", "# pyright: ignore")  # what a line cannot be broken at


@cache
def trees() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name; a package by its own."""
    found: dict[str, ast.Module] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules that ``tree`` imports when it is imported itself: not those in functions, nor for types alone."""
    queue: list[ast.AST] = list(tree.body)
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in trees() else node.module
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            queue += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            queue += ast.iter_child_nodes(node)


@cache
def imports() -> dict[str, set[str]]:
    """The modules that each module of the package imports when it is imported itself, by dotted name."""
    return {name: set(imported(tree)) - {name} for name, tree in trees().items()}


def test_no_module_imports_itself_by_way_of_others() -> None:
    edges = {name: targets & trees().keys() for name, targets in imports().items()}
    left = dict(edges)
    while free := [name for name, wanted in left.items() if not wanted & left.keys()]:
        for name in free:
            del left[name]
    circles = {name: sorted(wanted & left.keys()) for name, wanted in left.items()}
    assert not circles, f"in a circle of imports, or above one: {circles}"


def test_no_file_function_or_line_is_too_long() -> None:
    long = []
    for file in sorted(SOURCE.rglob("*.py")):
        lines, where = file.read_text(encoding="utf-8").splitlines(), file.relative_to(SOURCE).as_posix()
        if len(lines) > LONGEST_FILE:
            long.append(where)
        for number, line in enumerate(lines, 1):
            if len(line) > LONGEST_LINE and not any(sign in line for sign in _WHOLE):
                long.append(f"{where}:{number}")
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno >= LONGEST_FUNCTION:
                    long.append(f"{where}:{node.name}")
    assert [one for one in long if one not in EXCEPTIONS] == []


def test_training_imports_transformers_only_for_its_models() -> None:
    reached, queue = set[str](), ["quintet.train.loop"]
    while queue:
        name = queue.pop()
        if name not in reached:
            reached.add(name)
            queue += {*imports().get(name, ()), name.rpartition(".")[0]} - {""}
    libraries = {name.partition(".")[0] for name in reached}
    assert "torch" in libraries
    assert not libraries & {"transformers", "peft"}


_DIALECT_FILE = re.compile(r"(__init__|schema(_[a-z_]+)?|translate(_[a-z_]+)?|values|back)\.py")


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_of_a_dialect_has_the_layout_of_all(name: str) -> None:
    files = {file.name for file in (SOURCE / "quintet/config/dialects" / name).glob("*.py")}
    assert {"schema.py", "translate.py"} <= files
    assert [file for file in sorted(files) if not _DIALECT_FILE.fullmatch(file)] == []


@pytest.mark.parametrize("given", ["import quintet.errors", "if x:\n    from quintet import errors"])
def test_an_import_is_seen_wherever_it_stands(given: str) -> None:
    assert list(imported(ast.parse(given))) == ["quintet.errors"]
    assert not list(imported(ast.parse("def f():\n    import quintet.errors")))
    assert not list(imported(ast.parse("if TYPE_CHECKING:\n    import quintet.errors")))


# Folders whose public functions all say the shape and the dtype of each array or tensor that they take or give.
SHAPES_SAID = ("data", "tokenize", "piano", "evaluate", "model", "train")
_ARRAY = re.compile(r"\b(ndarray|Tensor|Ids)\b")
_SHAPE = re.compile(r"(?<!\w)\[[^\]]+\]|\bscalars?\b|\b(any|its|their|own|\w+'s) shapes?\b|\bshapes? of\b")
_DTYPE = re.compile(r"\b(u?int\d*|fp\d+|floats?\d*|bool|integers|dtypes?)\b", re.IGNORECASE)


def public_functions(tree: ast.AST, in_class: bool = False) -> Iterator[tuple[ast.FunctionDef, bool]]:
    """Public functions and methods of public classes, each with True for a method."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node, in_class=True)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node, in_class


def has_arrays(function: ast.FunctionDef) -> bool:
    """True if an annotation of ``function`` names an array or a tensor."""
    return bool(_ARRAY.search(" ".join(ast.unparse(one) for one in (function.args, function.returns) if one)))


def says_shapes(function: ast.FunctionDef) -> bool:
    said = ast.get_docstring(function) or ""
    return bool(_SHAPE.search(said) and _DTYPE.search(said))


@pytest.mark.parametrize("folder", SHAPES_SAID)
def test_public_functions_say_the_shapes_and_dtypes_of_arrays(folder: str) -> None:
    found = [
        (name, function, method)
        for name, tree in trees().items()
        for function, method in public_functions(tree)
        if has_arrays(function)
    ]
    # A method without a docstring implements one of a protocol or base class, which says it once for all.
    described = {function.name for _, function, method in found if method and says_shapes(function)}
    silent = [
        f"{name}.{function.name}"
        for name, function, method in found
        if name.startswith(f"quintet.{folder}.")
        and not says_shapes(function)
        and not (method and ast.get_docstring(function) is None and function.name in described)
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("said", "enough"),
    [
        ("int64 [rows]", True),
        ("[rows] of any dtype", True),
        ("an fp32 scalar", True),
        ("Floats of any shape", True),
        ("floats in the shapes of the parameters", True),
        ("the rows", False),
        ("[rows]", False),
        ("a scalar", False),
        ("floats", False),
        ("floats in another shape", False),
    ],
)
def test_a_docstring_names_a_shape_and_a_dtype(said: str, enough: bool) -> None:
    (function,) = ast.parse(f'def f(x: np.ndarray) -> None:\n    """Read {said}."""').body
    assert isinstance(function, ast.FunctionDef)
    assert has_arrays(function)
    assert says_shapes(function) == enough


# What no caller meets: a fault of ours, and the end of a command.
_UNTOLD = {"AssertionError", "Exit"}


@cache
def parents() -> dict[str, set[str]]:
    """The classes of the package by name, each with those that it derives from."""
    classes = [node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {one.name: {ast.unparse(base).rpartition(".")[2] for base in one.bases} for one in classes}


def kinds(error: str) -> set[str]:
    """The error and what it derives from, by name."""
    above = {one.__name__ for one in getattr(getattr(builtins, error, None), "__mro__", ())}
    return {error} | (above - {"object"}) | {name for base in parents().get(error, ()) for name in kinds(base)}


def raised(function: ast.FunctionDef) -> set[str]:
    """The classes of the errors that the body of ``function`` makes and raises, not those of functions in it."""
    found, queue = set[str](), list[ast.AST](function.body)
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func).rpartition(".")[2]
            found |= {name} if re.fullmatch(r"[A-Z]\w+", name) else set()
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            queue += ast.iter_child_nodes(node)
    return found - _UNTOLD


def untold(function: ast.FunctionDef) -> list[str]:
    """The errors that ``function`` raises and its docstring does not name, by their own name or that of their kind."""
    said = ast.get_docstring(function) or ""
    named = set(re.findall(r"\w+", said)) if re.search(r"\b[Rr]aises?\b", said) else set[str]()
    return sorted(one for one in raised(function) if not kinds(one) & named)


def test_public_functions_say_what_they_raise() -> None:
    """Verbs of the command line are left out, whose docstrings are their help."""
    verbs = {verb.__name__ for verb in VERBS}
    found = [
        (name, function, method)
        for name, tree in trees().items()
        for function, method in public_functions(tree)
        if not (name.startswith("quintet.cli.") and not method and function.name in verbs)
    ]
    # As with shapes: a method without a docstring implements one that says it once for all.
    said = {function.name for _, function, method in found if method and "Raise" in (ast.get_docstring(function) or "")}
    silent = {
        f"{name}.{function.name}": errors
        for name, function, method in found
        if (errors := untold(function))
        and not (method and ast.get_docstring(function) is None and function.name in said)
    }
    assert silent == {}


@pytest.mark.parametrize(
    ("said", "body", "errors"),
    [
        ("Raises UserError without one.", "raise UserError(text)", []),
        ("Raise UserError without one.", "raise NotHere(text)", []),
        ("Raises OSError without one.", "raise FileNotFoundError(text)", []),
        ("Read it.", "raise UserError(text)", ["UserError"]),
        ("UserError is a class.", "raise UserError(text)", ["UserError"]),
        ("Raises OSError without one.", "raise UserError(text)", ["UserError"]),
        ("Read it.", "if x:\n  raise errors.NotHere(text) from None", ["NotHere"]),
        ("Read it.", "raise AssertionError(text)", []),
        ("Read it.", "def g():\n  raise UserError(text)", []),
        ("Read it.", "try:\n  pass\n except OSError:\n  raise", []),
    ],
)
def test_an_error_is_named_by_a_docstring(said: str, body: str, errors: list[str]) -> None:
    (function,) = ast.parse(f'def f():\n "{said}"\n {body}').body
    assert isinstance(function, ast.FunctionDef)
    assert untold(function) == errors
