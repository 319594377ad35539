"""Descriptions of the schema: each key has one, and it agrees with what the schema accepts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from quintet.config.describe import KeyInfo, default_kinds, run_file, walk, with_defaults
from quintet.config.find import find
from quintet.config.load import load_run_config
from quintet.config.schema import RunConfig
from quintet.config.tokenizer import NoteBPETokenizerConfig
from quintet.errors import UserError

KEYS = list(walk())


def keys_without(holds: Callable[[KeyInfo], bool]) -> list[str]:
    """Return the keys for which ``holds`` is false, each with the kinds of the sections around it."""
    return ["/".join([key.path, *(kind for _, kind in key.within)]) for key in KEYS if not holds(key)]


def test_every_key_has_a_description_a_unit_and_a_default() -> None:
    assert len(KEYS) > 500
    assert keys_without(lambda key: bool(key.description.strip()) and not key.description.endswith(".")) == []
    assert keys_without(lambda key: bool(key.unit) == ("number" in key.type)) == []  # only numbers have units
    assert keys_without(lambda key: not key.required or key.default is None) == []
    assert keys_without(lambda key: re.fullmatch("[a-z][a-z0-9_]*", key.name) is not None) == []


def test_every_section_has_a_summary() -> None:
    sections = [(key.path, kind, section) for key in KEYS for kind, section in key.kinds.items()]
    assert [(path, kind) for path, kind, section in sections if not section.summary.endswith(".")] == []
    assert [(path, kind) for path, kind, section in sections if section.kind != kind or not section.keys] == []


def test_the_walk_finds_what_pydantic_has() -> None:
    schema = RunConfig.model_json_schema()
    properties = {name for part in [schema, *schema["$defs"].values()] for name in part["properties"]}
    assert {key.name for key in KEYS} == properties


def test_sections_have_the_kind_that_the_schema_gives_them() -> None:
    config = RunConfig.model_validate(
        {"name": "a", "data": {"sources": [{"kind": "python_stdlib"}]}, "train": {"steps": 1}}
    )
    music = config.model_copy(update={"tokenizer": NoteBPETokenizerConfig(kind="note_bpe")})
    for path, kind in default_kinds().items():
        part = music if path == ("tokenizer", "base") else config
        for step in path:
            part = getattr(part, str(step))
        assert part.kind == kind


def test_with_defaults_fills_in_what_a_run_would_have(tmp_path: Path) -> None:
    values = {"name": "a", "data": {"sources": [{"kind": "jsonl", "path": "x"}]}, "train": {"steps": 1}}
    values["schedule"] = {"kind": "wsd"}
    full = with_defaults(values)
    assert RunConfig.model_validate(full) == RunConfig.model_validate(values)
    assert full["data"]["sources"][0]["document"]["field"] == "text"
    assert full["schedule"]["decay_fraction"] == 0.2
    assert full["model"]["attention"]["kind"] == "causal"
    file = tmp_path / "a.yaml"
    file.write_text("data: {sources: [{kind: python_stdlib}]}\ntrain: {steps: 1}\nextra: {a: 1}\n")
    assert with_defaults({"extra": {"a": 1}})["extra"] == {"a": 1}
    with pytest.raises(UserError, match="extra"):
        load_run_config([file])


def by_kinds(key: KeyInfo) -> str:
    """Return the path of ``key`` with kinds after their sections: ``schedule.wsd.min_lr``."""
    steps = key.path.replace("[]", "")
    for section, kind in reversed(key.within):
        plain = section.replace("[]", "")
        steps = f"{plain}.{kind}{steps.removeprefix(plain)}"
    return steps


def test_every_key_is_found_by_its_path() -> None:
    def found(key: KeyInfo) -> set[str]:
        return {one.key.path for one in find(key.path.replace("[]", ""))}

    assert keys_without(lambda key: key.name == "kind" or key.path in found(key)) == []


def test_every_key_is_found_by_its_kind() -> None:
    def found(key: KeyInfo) -> list[str]:
        return [one.key.path for one in find(by_kinds(key)) if one.section is None]

    assert keys_without(lambda key: key.name == "kind" or found(key) == [key.path]) == []


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("lr", [("optimizer.lr", ("adamw", "torch"))]),
        (
            "heads",
            [
                ("model.attention.heads", ("causal", "bidirectional")),
                ("model.embedding.heads", ("bytes",)),
                ("model.head.heads", ("bytes",)),
            ],
        ),
        ("attention.heads", [("model.attention.heads", ("causal", "bidirectional"))]),
        (
            "schedule.min_lr",
            [("schedule.min_lr", ("cosine", "linear", "wsd")), ("schedule.min_lr", ("plateau",))],
        ),
        ("data.sources[0].delimiter", [("data.sources[].delimiter", ("csv",))]),
        ("data.sources[0].document.field", [("data.sources[].document.field", ("text", "conditional"))] * 4),
        ("schedule.kind", [("schedule", ())]),
        ("theta", [("model.position.theta", ("rope", "sinusoidal"))]),
        ("model.norm.eps", [("model.norm.eps", ("rms",)), ("model.norm.eps", ("layer",))]),
    ],
)
def test_a_key_is_found_by_what_users_type(query: str, expected: list[tuple[str, tuple[str, ...]]]) -> None:
    assert [(found.key.path, found.kinds) for found in find(query)] == expected


def test_a_kind_is_found() -> None:
    [found] = find("schedule.wsd")
    assert found.section is not None
    assert [key.name for key in found.section.keys] == ["kind", "warmup_steps", "first", "min_lr", "decay_fraction"]


@pytest.mark.parametrize(
    ("query", "nearest"),
    [("lrr", "optimizer.lr"), ("modl.width", "model.width"), ("optimizer.weigth_decay", "weight_decay")],
)
def test_an_unknown_key_is_answered_with_the_nearest(query: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"{query}' is no key of the run file; did you mean .*{nearest}"):
        find(query)


def test_types_are_described_in_words() -> None:
    words = {key.path: key.type for key in walk(run_file())}
    assert words["train.steps"] == "whole number or null"
    assert words["train.compile"] == "auto, true or false"
    assert words["train.precision"] == "auto, fp32, tf32, bf16 or fp16"
    assert words["optimizer.betas"] == "list of 2 numbers"
    assert words["sample.prompts"] == "list of texts"
    assert words["data.sources[]"] == "list of sections"
