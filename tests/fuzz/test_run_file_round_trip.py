"""A run config of generated values, written as a run file and read again: the same config, and the same text.

The values are drawn from the schema itself, so that a new key is tried as soon as it is there; a section that the
schema refuses is left out. The reference is the config that was written, and PyYAML for what the text holds.
"""

from __future__ import annotations

import types
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from quintet.config.describe import plain
from quintet.config.dump import differences, dump_run_config, dump_with_origins
from quintet.config.load import load_run_config
from quintet.config.names import local_path
from quintet.config.schema import RunConfig
from quintet.config.section import ConfigSection
from quintet.errors import UserError

MINIMAL: dict[str, Any] = {"name": "a", "data": {"sources": [{"kind": "python_stdlib"}]}, "train": {"steps": 3}}


def _may_be_a_path(text: str) -> bool:
    try:
        local_path(text)
    except UserError:
        return False
    return True


AWKWARD = ("${a}", "\\${", "1e-3", "010", "0x1F", "1:30", "2024-01-01", ".nan", "yes", "null", "~", "- a", "a: b", "#x")
AWKWARD += (
    "=",
    "*a",
    "&a",
    "!x",
    "%x",
    "@",
    "{",
    "'",
    '"',
    "\t",
    "a\n\nb ",
    " lead",
    "\x85",
    "\u2028",
    "\ufeff",
    "日本",
)
TEXT = st.sampled_from(AWKWARD) | st.text(max_size=8).filter(_may_be_a_path)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
ANY = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5
)


def bounds(metadata: Any) -> dict[str, float]:
    """The least and the greatest value that constraints allow, with open ones taken as closed."""
    found: dict[str, float] = {}
    for one in metadata:
        if isinstance(one, FieldInfo):
            found |= bounds(one.metadata)
        if isinstance(one, Ge | Gt):
            found["min_value"] = float(one.ge if isinstance(one, Ge) else one.gt)  # pyright: ignore[reportArgumentType]
        if isinstance(one, Le | Lt):
            found["max_value"] = float(one.le if isinstance(one, Le) else one.lt)  # pyright: ignore[reportArgumentType]
    return found


def values_of(annotation: Any, limits: dict[str, float]) -> st.SearchStrategy[Any]:
    """Values of a field of the type ``annotation``."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        least = int(limits["min_value"]) if "min_value" in limits else None
        most = int(limits["max_value"]) if "max_value" in limits else None
        return st.integers(least, most) if most is not None else st.integers(least, 300) | st.integers(least)
    if annotation is float:
        return st.floats(**limits, allow_nan=False, allow_infinity=False)  # pyright: ignore[reportArgumentType]
    if annotation is str:
        return TEXT
    if annotation is types.NoneType:
        return st.none()
    if origin is Literal:
        return st.sampled_from(inner)
    if origin is Annotated:
        return values_of(inner[0], limits | bounds(inner[1:]))
    if origin in (Union, types.UnionType):
        return st.one_of(*(values_of(one, limits) for one in inner))
    if origin is tuple and inner[-1] is Ellipsis:
        return st.lists(values_of(inner[0], {}), max_size=3)
    if origin is tuple:
        return st.tuples(*(values_of(one, {}) for one in inner)).map(list)
    if origin is dict:
        return st.dictionaries(TEXT, ANY if inner[1] is Any else values_of(inner[1], {}), max_size=3)
    if isinstance(annotation, type) and issubclass(annotation, ConfigSection):
        return sections(annotation)
    return ANY


@cache
def sections(part: type[ConfigSection]) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings of a section: what it must have, and some of what it may."""

    def build() -> st.SearchStrategy[dict[str, Any]]:
        fields = {name: values_of(one.annotation, bounds(one.metadata)) for name, one in part.model_fields.items()}
        needed = {name for name, one in part.model_fields.items() if one.is_required() or name == "kind"}
        optional = sorted(set(fields) - needed)
        few = st.lists(st.sampled_from(optional), unique=True, max_size=3) if optional else st.just([])
        return few.flatmap(
            lambda chosen: st.fixed_dictionaries({name: fields[name] for name in [*sorted(needed), *chosen]})
        )

    return st.deferred(build)


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    """A config of `MINIMAL` and of those generated sections that it can have."""
    values = dict(MINIMAL)
    for name in draw(st.lists(st.sampled_from(sorted(RunConfig.model_fields)), min_size=1, max_size=6)):
        field = RunConfig.model_fields[name]
        found = draw(values_of(field.annotation, bounds(field.metadata)))
        both = isinstance(found, dict) and name in ("data", "train")
        tried = {**values, name: {**MINIMAL[name], **found} if both else found}
        try:
            RunConfig.model_validate(tried)
        except ValidationError:
            continue
        values = tried
    return RunConfig.model_validate(values)


@given(configs())
@example(RunConfig.model_validate(MINIMAL | {"sample": {"prompts": list(AWKWARD)}}))
def test_a_run_file_holds_the_config_that_was_written(tmp_path_factory: Any, config: RunConfig) -> None:
    file = tmp_path_factory.mktemp("run") / "run.yaml"
    text = dump_run_config(config)
    file.write_text(text, encoding="utf-8")
    loaded = load_run_config([file]).config
    assert loaded == config, differences(loaded, config)
    assert dump_run_config(loaded) == text
    file.write_text(dump_with_origins(config, {}), encoding="utf-8")
    assert load_run_config([file]).config == config
    # Numbers are numbers to plain YAML too, and keys stand in the order of the schema.
    assert list(yaml.safe_load(text)) == list(plain(config))
