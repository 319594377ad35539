"""The machinery of dialects, tested with a small dialect: what its sections and keys can express."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from jsonschema import Draft202012Validator

from quintet.config.dialects import NAMES, dialect_named
from quintet.config.dialects.dialect import Dialect, DialectSection
from quintet.config.dialects.file import SchemaFile
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.translate import translate
from quintet.config.dialects.types import Arguments, Count, FalseIsZero, Listed, Positive, Share, Text, duration, one_of
from quintet.config.find import find
from quintet.config.json_schema import dialect_schema
from quintet.config.keypath import walk
from quintet.config.provenance import Origin
from quintet.config.read import YamlDocument
from quintet.config.section import key
from quintet.errors import UserError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Norm = Annotated[str, one_of(by={"RMS": "rms", "Layer": "layer"}, any_case=True, why={"moe": "is an experiment"})]


class Half(DialectSection):
    """Numbers of half width."""

    shorthand = "enabled"

    enabled: bool = key(False, "on or off", affects=("train.precision",))
    scale: float = key(0.0, "scale of the loss", ge=0, no_effect="it is found out")


class Block(DialectSection):
    """One block."""

    nestings = ("model.core.block", "")

    heads: Positive = key(4, "heads", to="model.attention.heads", aliases="n_heads")
    dropout: Annotated[Share, FalseIsZero] = key(0.0, "dropout", to="model.residual_dropout")
    norm: Norm = key("RMS", "norm", to="model.norm.kind")
    window: Positive | None = key(None, "window", affects=("model.attention.window",))


class Model(DialectSection):
    """The model."""

    width: Positive = key(..., "width", to="model.width", aliases=(".size", "old.model.width"))
    block: Block
    half: Half


class Data(DialectSection):
    """One data set."""

    path: Text = key(..., "file", to="data.sources[].path")
    fields: Annotated[tuple[Text, ...], Listed] = key((), "fields", affects=("data.sources",))


class File(DialectSection):
    """A file."""

    model: Model
    data: tuple[Data, ...] = key((), "data sets")
    save: Annotated[int | float, duration()] = key(5, "steps between checkpoints", to="checkpoint.every")
    extra: Arguments = key({}, "arguments of another library", affects=("track",))
    split: Count = key(1, "parts", unsupported="a split is not built yet", noop_values=(0, 1))
    mode: Literal["a", "b"] = key("a", "mode", affects="seed")
    length: int = key(7, "length", null=0, to="train.steps")


def _rules(theirs: File, native: NativeBuilder) -> None:
    native.set("train.precision", "bf16" if theirs.model.half.enabled else "fp32", "model.half.enabled")
    if theirs.model.block.window == 3:
        native.refuse("model.block.window", "3 is odd")


TOY = Dialect("toy", "Toy", schema=File, rules=_rules)


def document(values: dict[str, Any]) -> YamlDocument:
    places = {path: Origin("their.yaml", number) for number, (path, _) in enumerate(walk(values), 1)}
    return YamlDocument(values, places)


def read(values: dict[str, Any]) -> SchemaFile:
    return SchemaFile(TOY, document(values))


def problems(values: dict[str, Any]) -> list[str]:
    return [f"{problem.key}: {problem.message}" for problem in read({"model": {"width": 8}} | values).problems]


def native(values: dict[str, Any]) -> dict[str, Any]:
    translation = translate(TOY, document(values))
    assert translation.problems == ()
    return translation.document.values


@pytest.mark.parametrize(
    ("values", "path", "expected"),
    [
        ({"size": 6}, "model.width", 6),
        ({"old": {"model": {"width": "1e3"}}}, "model.width", 1000),
        ({"model": {"width": 1, "core": {"block": {"n_heads": 3}}}}, "model.attention.heads", 3),
        ({"model": {"width": 1}, "heads": 2}, "model.attention.heads", 2),
        ({"model": {"width": 1}}, "model.attention.heads", 4),
        ({"model": {"width": 1, "block": {"norm": "layer"}}}, "model.norm.kind", "layer"),
        ({"model": {"width": 1}}, "model.norm.kind", "rms"),
        ({"model": {"width": 1, "block": {"dropout": False}}}, "model.residual_dropout", 0.0),
        ({"model": {"width": 1, "half": True}}, "train.precision", "bf16"),
        ({"model": {"width": 1, "half": {"enabled": True}}}, "train.precision", "bf16"),
        ({"model": {"width": 1}, "data": [{"path": "a"}, {"path": "b"}]}, "data.sources[1].path", "b"),
        ({"model": {"width": 1}, "data": {"path": "a"}}, "data.sources[0].path", "a"),
        ({"model": {"width": 1}, "save": 0.5}, "checkpoint.every", 0.5),
        ({"model": {"width": 1}, "length": None}, "train.steps", 0),
        ({"model": {"width": 1, "block": None}, "split": 0}, "train.steps", 7),
    ],
)
def test_what_a_file_says_goes_to_its_native_key(values: dict[str, Any], path: str, expected: Any) -> None:
    found: Any = native(values)
    for step in path.replace("[", ".").replace("]", "").split("."):
        found = found[int(step)] if step.isdecimal() else found[step]
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model": {}}, ["model.width: is missing, and section 'model' needs it: width"]),
        ({"data": [{}]}, ["data[0].path: is missing, and section 'data[0]' needs it: file"]),
        ({"data": ["x"]}, ["data[0]: must be a section of keys and values, found 'x'"]),
        ({"model": 3}, ["model: must be a section of keys and values, found 3"]),
        ({"size": 9}, ["size: is 9, and model.width (line 3) is 8; keep one"]),
        ({"size": 8}, []),
        ({"norm": "RMS", "model": {"width": 8, "block": {"norm": "rms"}}}, []),
        ({"heads": 0}, ["heads: must be at least 1, found 0"]),
        ({"heads": True}, ["heads: must be a whole number, found true"]),
        ({"headz": 1}, ["headz: unknown key 'headz'; did you mean model.block.heads?"]),
        ({"old": {"modle": 1}}, ["old.modle: unknown key 'modle'; did you mean 'model'?"]),
        ({"model": {"width": 8, "core": {"block": {"norn": 1}}}}, ["model.core.block.norn: unknown key 'norn'; did"]),
        (
            {"model": {"width": 8, "block": {"norm": "moe"}}},
            ["model.block.norm: must be one of RMS, Layer; 'moe' is an"],
        ),
        ({"model": {"width": 8, "half": 3}}, ["model.half: must be true or false, found 3"]),
        ({"model": {"width": 8, "half": {"enabled": "true"}}}, ["model.half.enabled: must be true or false"]),
        ({"split": 2}, ["split: a split is not built yet; 0 or 1 is accepted"]),
        ({"split": True}, ["split: a split is not built yet"]),
        ({"extra": 3}, ["extra: must be a section of keys and values, found 3"]),
        ({"data": {"path": "a", "fields": [3]}}, ["data.fields[0]: must be text"]),
        ({"data": {"path": "a", "fieldz": 3}}, ["data.fieldz: unknown key 'fieldz'; did you mean 'fields'?"]),
        ({"save": 0}, ["save: must be at least 1 step"]),
    ],
)
def test_a_mistake_is_reported_at_the_key_as_written(values: dict[str, Any], expected: list[str]) -> None:
    found = problems(values)
    assert len(found) == len(expected), found
    for one, start in zip(found, expected, strict=True):
        assert one.startswith(start), one


def test_rules_refuse_at_the_line_of_their_key() -> None:
    found = translate(TOY, document({"model": {"width": 1}, "window": 3})).problems
    assert [str(one) for one in found] == ["their.yaml:4: window: 3 is odd"]


def test_an_unsupported_key_is_accepted_if_the_section_of_native_keys_sets_what_it_affects() -> None:
    class Other(DialectSection):
        """A file."""

        parts: int | None = key(None, "parts", affects=("train.steps",), unsupported="no parts")

    other = Dialect("other", "Other", schema=Other, rules=lambda theirs, native: None)
    assert len(SchemaFile(other, document({"parts": 3})).problems) == 1
    assert SchemaFile(other, document({"parts": 3}), "train", {"train": {"steps": 1}}).problems == []


def test_a_section_is_explained_by_its_keys() -> None:
    (found,) = find("block", TOY.top)
    assert [one.name for one in found.key.kinds[""].keys] == ["heads", "dropout", "norm", "window"]
    (found,) = find("block.norm", TOY.top)
    assert (found.key.accepts, found.key.default) == ("RMS or Layer", "RMS")
    assert found.key.aliases == ("model.core.block.norm", "norm")
    with pytest.raises(
        UserError, match=r"'haeds' is no key of a file of the dialect; did you mean model\.block\.heads"
    ):
        find("haeds", TOY.top)


@pytest.mark.parametrize(
    ("path", "native_value", "written"),
    [("model.block.norm", "rms", "RMS"), ("model.block.norm", "none", None), ("mode", "a", "a"), ("mode", "c", None)],
)
def test_a_key_is_written_where_the_dialect_has_a_word_for_it(path: str, native_value: Any, written: Any) -> None:
    if written is not None:
        assert TOY.key(path).write(native_value) == written
        return
    with pytest.raises(ValueError, match="is none of"):
        TOY.key(path).write(native_value)


def test_the_json_schema_of_a_dialect_accepts_what_the_loader_accepts() -> None:
    schema = dialect_schema(TOY)
    Draft202012Validator.check_schema(schema)
    accepts = Draft202012Validator(schema).is_valid
    for values in (
        {"model": {"width": 1, "half": True}},
        {"model": {"width": "${x}", "half": {"enabled": True}}, "data": {"path": "a", "fields": "x"}},
        {"old": {"model": {"width": 2}}, "heads": 3, "data": [{"path": "a", "fields": ["x"]}]},
        {"model": {"core": {"block": {"norm": "layer", "dropout": False, "window": None}}}},
        {"extra": {"a": 1}, "quintet": {"train": {"steps": 1}}},
    ):
        assert accepts(values), values
    for values in (
        {"modle": {}},
        {"model": {"half": 3}},
        {"heads": 0},
        {"model": {"core": {"block": {"norn": 1}}}},
        {"data": [{"fieldz": 1}]},
        {"old": {"modle": 1}},
    ):
        assert not accepts(values), values


@pytest.mark.parametrize("name", NAMES)
def test_the_files_of_a_dialect_fit_its_json_schema(name: str) -> None:
    schema = Draft202012Validator(dialect_schema(dialect_named(name)))
    for file in (EXAMPLES / name).glob("*.yaml"):
        found = list(schema.iter_errors(yaml.safe_load(file.read_text(encoding="utf-8"))))
        assert [str(error.message) for error in found if "e-" not in error.message] == [], file
