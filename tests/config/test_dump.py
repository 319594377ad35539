"""Writing of a run config, and comparison of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.config.load import differences, dump_run_config, load_run_config
from quintet.config.names import local_path
from quintet.config.schema import RunConfig
from quintet.errors import UserError

AWKWARD = [
    *(
        "${a}",
        "\\${",
        "\\\\${x}",
        "$${{x}}",
        "1e-3",
        "1E5",
        "010",
        "0x1F",
        "1_000",
        "1:30",
        "2024-01-01",
        ".inf",
        ".nan",
    ),
    *(
        "yes",
        "off",
        "null",
        "~",
        "True",
        "- a",
        "a: b",
        "#x",
        "<<",
        "=",
        "*a",
        "&a",
        "!x",
        "%x",
        "@",
        "`",
        "{",
        "'",
        '"',
    ),
    *(
        "\t",
        "\n",
        "a\n\nb ",
        " lead",
        "trail ",
        "\x85",
        "\u2028",
        "\ufeff",
        "\x00",
        "\x7f",
        "é",
        "日本",
        "🎹",
        "...",
        "---",
    ),
]
texts = st.one_of(st.sampled_from(AWKWARD), st.text())
given_texts = texts.filter(lambda text: text not in ("", "???"))
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
documents = st.one_of(
    st.fixed_dictionaries({"field": given_texts, "prefix": texts}),
    st.fixed_dictionaries({"kind": st.just("conditional"), "separator": given_texts}),
    st.fixed_dictionaries({"kind": st.just("chat"), "template": st.none() | given_texts}),
)


def _can_be_a_path(text: str) -> bool:
    try:
        local_path(text)
    except UserError:
        return False
    return True


paths = given_texts.filter(_can_be_a_path)
sources = st.one_of(
    st.fixed_dictionaries({"kind": st.just("text"), "path": st.one_of(paths, st.lists(paths, min_size=1))}),
    st.fixed_dictionaries({"kind": st.just("jsonl"), "path": paths, "document": documents}),
    st.fixed_dictionaries({"kind": st.just("huggingface"), "path": paths, "name": st.none() | given_texts}),
)


LIBRARY = {
    "kind": "torch",
    "name": "OneCycleLR",
    "arguments": {"max_lr": 1e-5, "anneal_strategy": "no", "milestones": [1, 2.0], "x": {"${a}": "${b}", "c": None}},
}


@st.composite
def run_values(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "name": draw(given_texts.filter(lambda text: not {"/", "\\"} & set(text))),
        "seed": draw(st.integers(0, 2**70)),
        "data": {
            "sources": draw(st.lists(sources, min_size=1, max_size=3)),
            **draw(st.sampled_from([{}, {"validation": 5}, {"validation_sources": [{"kind": "python_stdlib"}]}])),
        },
        "train": draw(
            st.sampled_from([{"steps": 3}, {"tokens": 10**9}, {"epochs": 1.5, "compile": True, "clip_norm": None}])
        ),
        "optimizer": {"lr": draw(positive), "betas": [draw(st.floats(0, 0.99)), 0.5]},
        "schedule": draw(st.sampled_from([{"kind": "constant"}, {"kind": "wsd", "decay_fraction": 1e-7}, LIBRARY])),
        "evaluate": {"every": draw(st.sampled_from([1, 1.0, 0.25, 10**6]))},
        "model": {"norm": draw(st.sampled_from([{"kind": "none"}, {"eps": 1e-12}])), "position": {"kind": "learned"}},
        "sample": {"prompts": draw(st.lists(texts, max_size=4))},
    }


@settings(max_examples=100)
@given(run_values())
def test_what_is_dumped_loads_back_equal(tmp_path_factory: Any, values: dict[str, Any]) -> None:
    config = RunConfig.model_validate(values)
    file = tmp_path_factory.mktemp("dump") / "run.yaml"
    file.write_text(dump_run_config(config), encoding="utf-8")
    assert load_run_config([file]).config == config


def minimal(**values: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"name": "a", "data": {"sources": [{"kind": "python_stdlib"}]}, "train": {"steps": 3}} | values
    )


def test_every_value_is_written_in_the_order_of_the_schema_and_small_numbers_are_numbers_to_plain_yaml_too() -> None:
    written = yaml.safe_load(dump_run_config(minimal(optimizer={"lr": 1e-4})))
    assert list(written) == list(RunConfig.model_fields)
    assert written["optimizer"]["lr"] == 1e-4
    assert next(iter(written["data"]["sources"][0])) == "kind"
    assert written["evaluate"] == {
        "every": 250,
        "offset": 0,
        "only": False,
        "at_start": False,
        "at_end": True,
        "samples": 256,
        "samples_each": False,
        "required": False,
        "batch_size": None,
        "best_by": None,
        "tasks": [],
        "tasks_every": None,
        "task_samples": 1000,
        "few_shot": None,
        "data_dir": None,
        "text_modeling": None,
        "text_generation": None,
    }


def test_a_dump_of_a_dump_is_the_same_text(tmp_path: Path) -> None:
    text = dump_run_config(minimal())
    (tmp_path / "run.yaml").write_text(text)
    assert dump_run_config(load_run_config([tmp_path / "run.yaml"]).config) == text


def test_differences_name_each_key_with_both_values() -> None:
    a = minimal(optimizer={"lr": 1e-3}, schedule={"kind": "wsd"})
    b = minimal(optimizer={"lr": 2e-3}, schedule={"kind": "constant"}, sample={"prompts": ["x", "y"]})
    assert differences(a, b) == [
        ("optimizer.lr", 1e-3, 2e-3),
        ("schedule.kind", "wsd", "constant"),
        ("schedule.min_lr", 0.0, None),
        ("schedule.decay_fraction", 0.2, None),
        ("sample.prompts", [""], ["x", "y"]),
    ]


def test_differences_go_into_lists_of_one_length() -> None:
    a = minimal(data={"sources": [{"kind": "text", "path": "x"}]})
    b = minimal(data={"sources": [{"kind": "text", "path": "y"}]})
    assert differences(a, b) == [("data.sources[0].path", "x", "y")]
    assert differences(a, a) == []
