"""Any content of a run file loads, or is refused at a place; loading itself never fails."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.config.describe import walk
from quintet.config.load import load_run_config
from quintet.config.provenance import Problem, RunFileError

NAMES = sorted({step for key in walk() for step in (key.name, *key.kinds)} - {""})
KINDS = sorted({kind for key in walk() for kind in key.kinds} - {""})
PATHS = sorted({key.path.replace("[]", "[0]") for key in walk()} | {"a", "a.b", "train.steps.x", "data.sources.kind"})

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**40),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=6),
    st.sampled_from(["${train.steps}", "${x}", "${", "???", "auto", "1e-3", "yes", "${oc.env:HOME}", "${.kind}"]),
    st.sampled_from(KINDS),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner),
    max_leaves=8,
)


@settings(max_examples=120)
@given(
    values=st.dictionaries(st.sampled_from([key.path for key in walk() if "." not in key.path]), values),
    overrides=st.lists(st.builds(lambda path, value: f"{path}={json.dumps(value)}", st.sampled_from(PATHS), values)),
)
def test_loading_succeeds_or_says_what_is_wrong(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], overrides: list[str]
) -> None:
    file = tmp_path_factory.mktemp("any") / "run.yaml"
    sound = {"data": {"sources": [{"kind": "python_stdlib"}]}, "train": {"steps": 3}}
    file.write_text(json.dumps(sound | values), encoding="utf-8")  # JSON is YAML, except for some characters
    problems: list[Problem] = []
    try:
        loaded = load_run_config([file], overrides)
    except RunFileError as error:
        problems = error.details
    assert problems or loaded.config.batch.tokens > 0
    assert all(problem.origin.file in (None, str(file)) for problem in problems)
    assert all(len(str(problem).splitlines()) == 1 for problem in problems)


@settings(max_examples=100)
@given(st.text(alphabet=st.sampled_from(list("abn: {}[]-?!&*#|>%@`'\"\n\t,${}.x1~\\<"))))
def test_any_text_loads_or_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("any") / "run.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RunFileError):
        load_run_config([file])


@settings(max_examples=50)
@given(st.binary(max_size=40))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp("any") / "run.yaml"
    file.write_bytes(data)
    with pytest.raises(RunFileError):
        load_run_config([file])
