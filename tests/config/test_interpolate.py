"""The functions that ``${name:…}`` may call."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
import yaml

from quintet.config.interpolate import resolve
from quintet.config.keypath import walk
from quintet.config.places import Place
from quintet.config.read import Document
from quintet.errors import UserError


def resolved(text: str) -> dict[str, Any]:
    values = yaml.safe_load(text)
    return resolve(Document(values, {path: Place("their.yaml", 1) for path, _ in walk(values)}), lambda given: given)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${add:1,2}", 3),
        ("${sub:5,${b}}", 1),
        ("${mul:3,${b}}", 12),
        ("${div:7,2}", 3.5),
        ("${fdiv:7,2}", 3),
        ("${for:'shard-#.npy',3,'#'}", ["shard-0.npy", "shard-1.npy", "shard-2.npy"]),
        (
            "${for:{cache_dir: d_X, weight: 2},2,X}",
            [{"cache_dir": "d_0", "weight": 2}, {"cache_dir": "d_1", "weight": 2}],
        ),
        ("${for:${t},2,'#'}", [{"path": "x0"}, {"path": "x1"}]),
        ("${now:%Y}", str(datetime.now().year)),
    ],
)
def test_functions(text: str, value: Any) -> None:
    assert resolved(f'b: 4\nt: {{path: "x#"}}\na: "{text}"')["a"] == value


def test_an_unknown_function_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"no such function; there are oc.env.*add.*for.*now"):
        resolved('a: "${plus:1,2}"')
