"""The JSON Schema accepts what the loader accepts, and refuses misspelt keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from quintet.config.describe import walk
from quintet.config.dump import dump_run_config
from quintet.config.json_schema import run_file_schema
from quintet.config.load import load_run_config

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))
SCHEMA = run_file_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
MINIMAL = {"data": {"sources": [{"kind": "python_stdlib"}]}, "train": {"steps": 3}}


class CoreLoader(yaml.SafeLoader):
    """YAML 1.2, as editors read it, in which 2e-3 is a number."""


CoreLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?"),
    list("-+.0123456789"),
)


def valid(**values: Any) -> bool:
    return VALIDATOR.is_valid(MINIMAL | values)


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_every_example_is_valid_as_written_and_as_resolved(file: Path) -> None:
    assert not list(VALIDATOR.iter_errors(yaml.load(file.read_text(encoding="utf-8"), Loader=CoreLoader)))
    assert not list(VALIDATOR.iter_errors(yaml.safe_load(dump_run_config(load_run_config([file]).config))))


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize(
    "values",
    [
        {"atention": 1},
        {"model": {"atention": {}}},
        {"schedule": {"kind": "constant", "min_lr": 1}},
        {"schedule": {"kind": "cosin"}},
        {"schedule": {"decay_fraction": 0.5}},
        {"tokenizer": {"kind": "huggingface"}},
        {"train": {"steps": 0}},
        {"train": {"steps": "many"}},
        {"train": {"precision": "bf61"}},
        {"optimizer": {"betas": [0.9]}},
        {"optimizer": {"betas": [0.9, 1]}},
        {"data": {"sources": []}},
        {"data": {"sources": [{"path": "x"}]}},
        {"data": {"sources": [{"kind": "text"}]}},
        {"data": {"sources": [{"kind": "text", "path": "x", "field": "y"}]}},
        {"track": {"kind": "tensorboard"}},
        {"track": [{}]},
        {"data": {"shuffle": True}},
        {"name": "a/b"},
        {"extends": 3},
    ],
)
def test_mistakes_are_refused(values: dict[str, Any]) -> None:
    assert not valid(**values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"name": "a", "seed": 3},
        {"schedule": {"min_lr": 1e-4}},
        {"schedule": {"kind": "wsd", "decay_fraction": 0.5}},
        {"model": {"feedforward": {"kind": "plain"}, "attention": {"heads": 3}}},
        {"optimizer": {"lr": "${oc.env:LR,1e-3}", "betas": "${x}"}},
        {"train": {"steps": "${oc.env:STEPS}", "compile": "${oc.env:C}", "precision": "${oc.env:P,bf16}"}},
        {"name": "${oc.env:A}/x"},
        {"data": {"sources": [{"kind": "text", "path": "${oc.env:A}/x"}, {"kind": "text", "path": ["a", "b"]}]}},
    ],
)
def test_defaults_may_be_omitted_and_interpolations_are_allowed(values: dict[str, Any]) -> None:
    assert valid(**values)


def test_a_file_that_extends_another_may_omit_what_the_other_gives() -> None:
    assert VALIDATOR.is_valid({"extends": "base.yaml", "data": {"shuffle": False}})
    assert VALIDATOR.is_valid({"extends": ["a.yaml", "b.yaml"]})
    assert not VALIDATOR.is_valid({"data": {"shuffle": False}})
    assert not VALIDATOR.is_valid({"extends": "base.yaml", "data": {"source": []}})


def test_kinds_are_required_exactly_where_nothing_fills_them_in() -> None:
    for key in walk():
        for kind, section in key.kinds.items():
            own = section.key("kind")
            assert own is None or own.required == (kind != key.default_kind), (key.path, kind)


def test_every_key_has_its_description_and_unit_in_the_schema() -> None:
    described = [found for part in [SCHEMA, *SCHEMA["$defs"].values()] for found in part["properties"].values()]
    assert all(found.get("description") for found in described)
    texts = {found["description"] for found in described}
    for key in walk():
        assert (f"{key.description} (unit: {key.unit})" if key.unit else key.description) in texts, key.path
