"""Functions of interpolations, ``${name:…}``, and the limits of interpolations."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError

from quintet.config.interpolate import resolve, variables_of
from quintet.config.keypath import walk
from quintet.config.provenance import Origin
from quintet.config.read import YamlDocument
from quintet.errors import UserError


def resolved(text: str) -> dict[str, Any]:
    values = yaml.safe_load(text)
    return resolve(
        YamlDocument(values, {path: Origin("their.yaml", 1) for path, _ in walk(values)}), lambda given: given
    )


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


def test_an_unknown_function_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown function; the functions are oc.env.*add.*for.*now"):
        resolved('a: "${plus:1,2}"')


def test_the_variables_of_a_file_are_the_names_at_its_top_that_interpolations_use() -> None:
    values = yaml.safe_load(
        """
        plain: 1
        behind_points: 2
        section: {inner: 3}
        in_a_list: 4
        in_a_text: 5
        by_one_point: 6
        nobodys: {near: 7}
        a: ["${plain}", "${..in_a_list}"]
        b: {c: "${..behind_points}", d: "${.c}", near: 8, e: "${.near}"}
        f: "${section.inner} and ${in_a_text}, but not nobodys"
        g: "${.by_one_point}"
        """
    )
    found = variables_of(YamlDocument(values, {path: Origin("their.yaml", 1) for path, _ in walk(values)}))
    assert found == {"plain", "behind_points", "section", "in_a_list", "in_a_text", "by_one_point"}
    for name in values:
        rest = OmegaConf.create({other: value for other, value in values.items() if other != name})
        if name in found:
            with pytest.raises(InterpolationKeyError):
                OmegaConf.to_container(rest, resolve=True)
        else:
            OmegaConf.to_container(rest, resolve=True)
    selected = {"a": "${oc.select: chosen, 0}", "b": "${oc.select:other.inner,1}"}
    assert variables_of(YamlDocument(selected, {})) == {"chosen", "other"}


def test_a_text_in_a_list_may_be_three_question_marks_and_a_value_may_not() -> None:
    assert resolved('a: ["???"]') == {"a": ["???"]}
    with pytest.raises(UserError, match=r"their.yaml:1: b.c: is \?\?\?, which stands for a value that must be given"):
        resolved('b: {c: "???"}')


def _written_over(times: int, links: int) -> str:
    """Return ``links`` values, each of which names the value before it ``times`` times."""
    return "v0: 0123456789\n" + "".join(f'v{n}: "{f"${{v{n - 1}}}" * times}"\n' for n in range(1, links + 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: '${mul:x,1000000000}'", "it takes numbers, found 'x'"),
        ("a: '${mul:2,true}'", "it takes numbers, found true"),
        ("a: '${for:a_X,100000000,X}'", "100,000,000 copies are more than 10,000"),
        (_written_over(10, 12), "what it stands for is too large"),
        (_written_over(1, 51), "leads through more than 50 other values"),
        ("v: [1]\n" + "".join(f"v{'v' * n}: ['${{{'v' * n}}}', '${{..{'v' * n}}}']\n" for n in range(1, 20)), "large"),
        ("a: '${for:pXp,10000,X}'\nb: [" + "'${a}', " * 200 + "]", "too large"),
        ("a: '${b}'\nb: ['${a}', '${a}']", "Interpolation to parent node detected"),
    ],
)
def test_interpolations_that_expand_to_too_much_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        resolved(text)
    assert len(str(raised.value).splitlines()) <= 3


def test_a_value_may_be_named_often_and_lead_through_some_others() -> None:
    text = _written_over(1, 48) + _written_over(2, 6).replace("v", "w") + "l: [" + "'${v9}', " * 300 + "]"
    found = resolved(text)
    assert (found["v48"], found["w6"], found["l"]) == ("0123456789", "0123456789" * 64, ["0123456789"] * 300)
