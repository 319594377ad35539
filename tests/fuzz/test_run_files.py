"""Changed run files of the six dialects, and changed command lines: each is accepted or refused in lines.

A file is one of the examples, or a short one that was a traceback once, with odd values, other files' keys, deep nests
or other text in it. The reference is the promise itself: a user's mistake is a UserError, whose problems are a line
each, and whatever was accepted can be written and read again.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from quintet import api
from quintet.config.dump import dump_run_config
from quintet.config.keypath import lookup, walk
from quintet.config.load import Reading, load_run_config
from quintet.errors import UserError, printable

Found = TypeVar("Found")

EXAMPLES = Path(__file__).parents[2] / "examples"
DIALECTS = {"": "", "phyagi": "phyagi", "vectorlm": "vectorlm", "stlm": "stlm", "tmrc": "tmrc", "piano": "piano"}
FILES = [
    (dialect, file.read_text(encoding="utf-8"))
    for dialect, folder in DIALECTS.items()
    for file in sorted((EXAMPLES / folder).glob("*.yaml"))
]
TREES = [(dialect, yaml.safe_load(text)) for dialect, text in FILES]
PATHS = [[path for path, _ in walk(tree) if path] for _, tree in TREES]
POOL = [(path[-1], value) for _, tree in TREES for path, value in walk(tree) if path and isinstance(path[-1], str)]
NUMBERS = [0, -1, 1.5, -0.0, 1e308, -1e308, 10**30, 10**120, 2**63, float("nan"), float("inf"), float("-inf")]
TEXTS = ["", " ", "a\nb", "\0", "\x1b[2J", "\u202e", "é𝄞", "a" * 5000, "../../x", "..", "/", "/proc/self/mem", "~"]
TEXTS += ["~nobody-of-this-name", "-", "--help", "null", "1e3", "1_000", "0x10", "010", "1:30", "2024-01-01", "9" * 300]
TEXTS += ["${a}", "${", "${oc.env:NOPE}", "${mul:a,1000000000}", "${mul:1e308,9}", "${div:1,0}", "${for:a_X,3,X}"]
TEXTS += ["${for:a_X,100000000,X}", "${name}", "${seed}", "???", "%s", "{0}", "{{ x }}", "{% for %}", "auto", "none"]
SHAPES: list[Any] = [None, True, False, [], {}, [[]], [{}], [None], [1, "a"], {"a": 1}, {"kind": "nope"}, {"": 1}]
SHAPES += [{"kind": None}, {"kind": []}, {"3e-3": "3e-3"}, {"a.b": 1, "lo]gging": 2}]
ODD = st.sampled_from([*NUMBERS, *TEXTS, *SHAPES])
DEEP = st.builds(lambda value, depth: _nested(value, depth), ODD, st.sampled_from([1, 5, 50, 100]))
PLACE = st.integers(0, 2**30)
CHANGE = st.tuples(
    st.sampled_from(["set", "set", "set", "drop", "rename", "foreign", "repeat"]), PLACE, ODD | DEEP, PLACE
)
LINES = ["\t", "---\n", "&a *a\n", "*nope\n", "<<: *x\n", "<<: [1]\n", "? [a]\n: b\n", "!!set {a}\n", "%YAML 9\n", "'"]
LINES += [
    "x: &a [*a]\n",
    "defaults: [{}]\n",
    'defaults: [{"": x}]\n',
    "defaults: 1\n",
    "extends: [.]\n",
    "extends: 1\n",
]
LINES += [
    "extends: 1\n",
    "extends: ['${nope}']\n",
    "1: 2\n",
    "null: 1\n",
    "3e-3: 1\n",
    "\ufeff",
    "\x85",
    "\0",
    "{",
    "]",
    "|",
    "\ud800",
]
TEXT_CHANGE = st.tuples(st.sampled_from(["add", "cut", "end", "twice"]), PLACE, st.sampled_from(LINES))
OVERRIDE = st.builds(
    lambda verb, place, value: f"{verb}{_key(place)}={json.dumps(value) if not isinstance(value, str) else value}",
    st.sampled_from(["", "", "+", "++", "~"]),
    PLACE,
    ODD,
)


def _nested(value: Any, depth: int) -> Any:
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _key(place: int) -> str:
    every = PATHS[place % len(PATHS)]
    return ".".join(map(str, every[place // 7 % len(every)]))


def _changed(tree: Any, changes: list[tuple[str, int, Any, int]]) -> Any:
    tree = copy.deepcopy(tree)
    for what, place, value, other in changes:
        paths = [path for path, _ in walk(tree) if path]
        if not paths:
            break
        path = paths[place % len(paths)]
        inside, key = lookup(tree, path[:-1]), path[-1]
        if what == "set":
            inside[key] = copy.deepcopy(value)
        elif what == "drop":
            del inside[key]
        elif what == "repeat" and isinstance(inside[key], str | list):
            inside[key] = inside[key] * 40
        elif isinstance(inside, dict) and what == "rename":
            inside[f"{key}x" if other % 2 else str(key).upper()] = inside.pop(key)
        elif isinstance(inside, dict) and what == "foreign":
            name, foreign = POOL[other % len(POOL)]
            inside[name] = copy.deepcopy(foreign)
    return tree


def _rewritten(text: str, changes: list[tuple[str, int, str]]) -> str:
    for what, place, line in changes:
        lines = text.splitlines(keepends=True)
        at = place % (len(lines) + 1)
        if what == "add":
            lines.insert(at, line)
        elif what == "twice" and lines:
            lines.insert(at, lines[place // 7 % len(lines)])
        elif what == "cut":
            del lines[at : at + 1 + place % 3]
        text = "".join(lines) if what != "end" else text[: place % (len(text) + 1)]
    return text


def _tried(call: Callable[[], Found]) -> tuple[Found | None, tuple[str, ...]]:
    """What ``call`` returns, or its problems; anything but a user's mistake is raised."""
    try:
        return call(), ()
    except UserError as error:
        return None, error.problems or ("",)


def _accepted_or_refused(dialect: str | None, text: str, overrides: list[str]) -> None:
    before, folder = Path.cwd(), Path(tempfile.mkdtemp())
    try:
        shutil.copytree(EXAMPLES / "piano/model", folder / "model")  # the group of the defaults lists
        file = folder / "run.yaml"
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        os.chdir(folder)
        loaded, problems = _tried(lambda: load_run_config([file], overrides, Reading(dialect=dialect or None)))
        if loaded is not None:
            again = folder / "again.yaml"
            again.write_text(dump_run_config(loaded.config), encoding="utf-8")
            assert load_run_config([again]).config == loaded.config
            _, problems = _tried(lambda: api.check(loaded.config))
        assert all(len(printable(problem).splitlines()) == 1 for problem in problems)
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


PHYAGI = "dataset: [{train_file: a.npy}]\nmodel: {model_type: mixformer-sequential, vocab_size: 64}\noutput_dir: x\n"


@pytest.mark.fuzz(share=4)
@example(5, [("set", 3, None, 0)], [])
@example(1, [("set", 2, float("inf"), 0), ("set", 9, 10**120, 0)], ["~dataset=[]"])
@given(PLACE, st.lists(CHANGE, max_size=4), st.lists(OVERRIDE, max_size=2))
def test_changed_values_are_accepted_or_refused(
    number: int, changes: list[tuple[str, int, Any, int]], overrides: list[str]
) -> None:
    dialect, tree = TREES[number % len(TREES)]
    text = yaml.dump(_changed(tree, changes), allow_unicode=True, sort_keys=False)
    _accepted_or_refused(dialect if number % 3 else None, text, overrides)


@pytest.mark.fuzz(share=2)
@given(PLACE, st.lists(TEXT_CHANGE, min_size=1, max_size=3))
def test_changed_text_is_accepted_or_refused(number: int, changes: list[tuple[str, int, str]]) -> None:
    dialect, text = FILES[number % len(FILES)]
    _accepted_or_refused(dialect if number % 3 else None, _rewritten(text, changes), [])


@pytest.mark.parametrize(
    ("dialect", "text"),
    [
        ("phyagi", PHYAGI.replace("[{", "[{weight: 1}, {")),  # a data set that names none before one that does
        ("phyagi", PHYAGI.replace("[{train_file: a.npy}]", "null")),
        ("phyagi", PHYAGI + "training_args: {max_steps: 3, lo]gging: 1, '': 2}\n"),
        ("phyagi", PHYAGI + f"training_args: {{max_steps: 3, eval_steps: {'9' * 400}}}\n"),
        ("phyagi", PHYAGI + "training_args: {max_steps: .inf, learning_rate: .nan}\n"),
        ("piano", 'defaults: [{"": x}]\ntraining: {}\n'),
        ("piano", "defaults: [{model: []}, {kind: '${x}'}]\n"),
        ("piano", "lr: {learning_rate: {3e-3: 3e-3}}\n"),
        ("vectorlm", "train_parameters: {optimizer: {eps: '${mul:a,1000000000}'}}\n"),
        (None, "data: {sources: [{kind: text, path: '~nobody-of-this-name/x'}]}\ntrain: {steps: 1}\n"),
        (None, 'data: {sources: [{kind: text, path: "a\\0b"}]}\ntrain: {steps: 1}\n'),
        (None, f"extends: {'x' * 300}\n"),
    ],
)
def test_what_was_a_traceback_once(dialect: str | None, text: str) -> None:
    _accepted_or_refused(dialect, text, [])
