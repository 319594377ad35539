"""Trees, defaults lists, overrides and references against hydra-core and OmegaConf."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hypothesis import assume, example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from quintet.config.hydra import apply_hydra_overrides, compose
from quintet.config.interpolate import resolve, variables_of
from quintet.config.keypath import show, walk
from quintet.config.merge import merge
from quintet.config.provenance import Origin
from quintet.config.read import YamlDocument, read_document
from quintet.errors import UserError

Tree = dict[str, Any]
T = TypeVar("T")

NAMES = st.sampled_from("abcd")
REFERENCES = st.sampled_from(
    [
        "${oc.select:b,1}",
        "${ c }",
        "${[a].b}",
        "${...c}",
        "${a}",
        "${b}",
        "${a.b}",
        "${b.c}",
        "${g.a}",
        "${.a}",
        "${..b}",
        "x${a}",
        "${a.b.c}",
    ]
)
LEAVES = st.one_of(
    st.integers(-2, 2),
    st.booleans(),
    st.none(),
    st.sampled_from([0.5, 1e-3, "text", "two words", "", "1", "true", "???"]),
    REFERENCES,
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
TREES = st.dictionaries(NAMES, VALUES, max_size=4)
SECTIONS = st.fixed_dictionaries({"a": LEAVES}, optional={"b": VALUES, "c": LEAVES, "d": TREES})
FULL_TREES = st.fixed_dictionaries({"a": LEAVES, "b": SECTIONS, "c": SECTIONS}, optional={"d": VALUES})
PACKAGES = st.sampled_from(
    ["", "", "# @package _global_\n", "# @package a\n", "# @package a.b\n", "# @package _group_\n"]
)
FILES = st.tuples(PACKAGES, SECTIONS | SECTIONS | TREES | st.just("") | st.lists(LEAVES, max_size=2))
CHOICES = st.sampled_from(["one", "two"])
DEFAULTS = st.lists(
    st.one_of(
        st.just("_self_"),
        st.builds(lambda choice: {"g": choice}, CHOICES),
        st.builds(lambda choice: {"optional h": choice}, st.sampled_from(["one", "absent"])),
        st.builds(lambda choice: {"h@a.b": choice}, CHOICES),
        st.builds(lambda choice: {"h@_global_": choice}, CHOICES),
    ),
    max_size=4,
    unique_by=lambda entry: entry if isinstance(entry, str) else next(iter(entry)),
)


def _written(value: Any) -> str:
    """``value`` in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_written(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"'{value}'" if isinstance(value, str) else str(value)


PATHS = st.lists(NAMES, min_size=1, max_size=3).map(".".join)
OVERRIDES = st.lists(
    st.one_of(
        st.builds(lambda path, value: f"{path}={_written(value)}", st.sampled_from(["a", "b.a", "c.a"]), LEAVES),
        st.builds(lambda path, value: f"{path}={_written(value)}", st.sampled_from(["b", "c"]), SECTIONS),
        st.builds(
            lambda verb, path, value: f"{verb}{path}={_written(value)}",
            st.sampled_from(["+", "++", "++", "~"]),
            PATHS | st.sampled_from(["g.a", "b", "a.0", "b.1.c"]),
            VALUES,
        ),
        st.sampled_from(["~a", "~b.a", "~b", "~c", "~d.a", "~b.a=1", "~b.a=null", "+a=1", "+b.d=2"]),
        st.builds("{}={}".format, st.sampled_from(["g", "+g", "+h", "~g", "+h@c"]), CHOICES),
        st.sampled_from(
            [
                "a=1,2",
                "g=one,two",
                "~g",
                "a=",
                "+a=",
                "a@b=1",
                "=1",
                "a",
                "a=[",
                "a=x y",
                "++g=one",
                "g={a: 1}",
                "g=three",
            ]
        ),
    ),
    max_size=2,
)


def _write(folder: Path, defaults: list[Any], top: Tree, groups: dict[str, tuple[str, Any]]) -> None:
    for path, (header, content) in groups.items():
        file = folder / f"{path}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(header + ("" if content == "" else yaml.safe_dump(content, default_flow_style=False)))
    (folder / "config.yaml").write_text(yaml.safe_dump({"defaults": defaults} | top, default_flow_style=False))


def _ours(folder: Path, overrides: list[str]) -> YamlDocument:
    file = folder / "config.yaml"
    composed = compose(read_document(file), file, overrides, folder)
    return apply_hydra_overrides(composed.document, [text for text in overrides if text not in composed.used])


def _theirs(folder: Path, overrides: list[str]) -> Any:
    with initialize_config_dir(str(folder), version_base=None):
        return OmegaConf.to_container(hydra_compose("config", overrides))


def _sets_what_is_not_there(error: Exception) -> bool:
    """Whether Hydra refuses an override for want of a ``+``, which no override here needs."""
    return "Could not override" in str(error) and "use +" in str(error) and "No match" not in str(error)


def _or_none(made: Callable[[], T]) -> T | None:
    """What ``made`` makes, None where it refuses to."""
    try:
        return made()
    except UserError:
        return None


def _check_places(document: YamlDocument, lines: dict[str, list[str]]) -> None:
    """Everything has a place, and where that of a value is a line it is the line of its key."""
    for path, value in walk(document.values):
        place = document.provenance[path]
        if place.line is None or isinstance(value, dict | list) or isinstance(path[-1], int):
            continue
        assert place.file is not None
        assert path[-1] in lines[place.file][place.line - 1], (show(path), str(place))


EMPTY = dict.fromkeys(("g/one", "g/two", "h/one", "h/two"), ("", ""))


@example(["_self_"], {"b": {"a": 1, "c": 2}}, EMPTY, ["b={a: 3}"])
@example(["_self_"], {"b": {"a": 1, "c": 2}}, EMPTY, ["+b.a=3"])
@example(["_self_"], {"b": {"a": 1, "c": 2}}, EMPTY, ["~b.a=3"])
@example(["_self_"], {"b": {"a": 1}}, EMPTY, ["++b.c.d=3", "~b.c.d=3"])
@example(
    ["_self_", {"g": "one"}, {"g@_global_": "two"}],
    {"a": {"b": {"c": 1, "d": 2}}, "b": "${a.b}"},
    EMPTY | {"g/two": ("", {"a": "???", "b": {"c": 3}})},
    [],
)
@example(["_self_"], {"a": 0, "b": {"a": 0}}, EMPTY, ["+a.0=0"])
@example(["_self_"], {"a": 0, "b": {"a": 0}}, EMPTY, ["++b.1.c=0", "++b.1.c=1"])
@example(["_self_"], {"a": 0, "b": {"a": 0}}, EMPTY, ["++b.1.c=0", "~b.1"])
@example(["_self_"], {"a": 0, "b": {"a": 0}}, EMPTY, ["~a.0"])
@example([{"g@_global_": "one"}], {"a": 1}, EMPTY | {"g/one": ("", [1, 2])}, [])
@example([{"g": "one"}], {"a": 1}, EMPTY | {"g/one": ("", {"a": 2})}, ["g={a: 3}"])
@example([{"g": "one"}], {"a": 1}, EMPTY | {"g/one": ("", {"a": 2})}, ["g=one,two"])
@given(
    DEFAULTS, FULL_TREES, st.fixed_dictionaries({f"{g}/{c}": FILES for g in "gh" for c in ("one", "two")}), OVERRIDES
)
def test_a_defaults_list_with_overrides(
    defaults: list[Any], top: Tree, groups: dict[str, tuple[str, Any]], overrides: list[str]
) -> None:
    folder = Path(tempfile.mkdtemp()).resolve()
    try:
        _write(folder, defaults, top, groups)
        try:
            expected = _theirs(folder, overrides)
        except Exception as error:  # Hydra lets errors of several libraries through
            if _sets_what_is_not_there(error):
                return
            expected = None
        found = _or_none(lambda: _ours(folder, overrides))
        assert (found and found.values) == expected
        if found is None:
            return
        _check_places(found, {str(file): file.read_text().splitlines() for file in folder.rglob("*.yaml")})
    finally:
        shutil.rmtree(folder)


def _document(tree: Tree, name: str) -> YamlDocument:
    return YamlDocument(tree, {path: Origin(name) for path, _ in walk(tree)})


@given(TREES, TREES, TREES)
def test_merging(first: Tree, second: Tree, third: Tree) -> None:
    documents = [_document(tree, name) for tree, name in ((first, "1"), (second, "2"), (third, "3"))]
    try:
        expected = OmegaConf.to_container(OmegaConf.merge(first, second, third))
    except OmegaConfBaseException:
        expected = None
    found = _or_none(lambda: merge(merge(*documents[:2]), documents[2]))
    assert (found and found.values) == expected
    assert found is None or found.provenance.keys() == {path for path, _ in walk(found.values)}


@given(TREES)
def test_references(tree: Tree) -> None:
    document = _document(tree, "file")
    assume("???" not in [value for path, value in walk(tree) if path and isinstance(path[-1], int)])  # a text in a list
    try:
        expected = OmegaConf.to_container(OmegaConf.create(tree), resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, RecursionError):  # of a value that refers to what holds it
        expected = None
    assert _or_none(lambda: resolve(document, lambda values: values)) == expected


@given(TREES)
def test_only_the_variables_of_a_file_are_referred_to(tree: Tree) -> None:
    whole = _or_none(lambda: resolve(_document(tree, "file"), lambda values: values))
    assume(whole is not None)
    assert whole is not None
    variables = variables_of(_document(tree, "file"))
    for name in tree:
        rest = {other: value for other, value in tree.items() if other != name}
        found = _or_none(lambda rest=rest: resolve(_document(rest, "file"), lambda values: values))
        needed = found != {other: value for other, value in whole.items() if other != name}
        assert not needed or name in variables
    references = [text for _, text in walk(tree) if isinstance(text, str) and "${" in text]
    assert all(any(name in text for text in references) for name in variables & tree.keys())
