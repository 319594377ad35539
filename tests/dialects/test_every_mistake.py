"""Mistakes that different stages find are reported together, each at the user's own key and line."""

from __future__ import annotations

import copy
import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from tests.dialects.conftest import remove, set_in
from tests.dialects.planted import NATIVE, base, check_several
from tests.dialects.planted import told as told_of
from tests.dialects.small_files import SmallFile
from tests.dialects.small_files import small_file as small_file  # a fixture
from tests.helpers import refused

from quintet.config.dialects import NAMES, dialect_named
from quintet.config.load import Reading, load_run_config
from quintet.config.provenance import RunFileError

# By dialect: values that its schema, its rules and the native schema refuse.
MISTAKES: dict[str, dict[str, Any]] = {
    "phyagi": {
        "model.n_layr": 3,
        "train_micro_batch_size_per_gpu": "many",
        "model.n_embd": -1,
    },
    "vectorlm": {
        "train_parameters.epocs": 3,
        "train_parameters.gradient_accumulation_steps": 0,
        "train_parameters.sharding_strategy": "?",
    },
    "stlm": {"trainer.foo": 1, "trainer.dataset": "the_pile", "model.num_layers": -2, "model.ffn.ffn_dim": "wide"},
    "tmrc": {"model.n_heads": 2, "model.d_model": -1, "optimizer.lr": "fast"},
    "piano": {"model.n_layr": 3, "optimizer.learning_rate": "fast", "data.batch_size": -1},
}
PAIRS = [(name, *pair) for name in MISTAKES for pair in combinations(MISTAKES[name], 2)]


def problems(name: str, small_file: SmallFile, tmp_path: Path, changes: dict[str, Any]) -> str:
    values = copy.deepcopy(small_file(name, tmp_path / "cache"))
    for path, value in changes.items():
        set_in(values, path, value)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(values, indent=1))
    return refused(load_run_config, [file], (), Reading(name))


@pytest.mark.parametrize(("name", "one", "other"), PAIRS)
def test_two_mistakes_are_told_at_once(name: str, one: str, other: str, small_file: SmallFile, tmp_path: Path) -> None:
    both = problems(name, small_file, tmp_path, {key: MISTAKES[name][key] for key in (one, other)})
    for key in (one, other):
        alone = problems(name, small_file, tmp_path, {key: MISTAKES[name][key]})
        assert key in alone
        assert f" {key}: " in both, both
        assert "default" not in both


def test_every_dialect_has_its_mistakes() -> None:
    assert set(MISTAKES) == set(NAMES)


def test_a_rule_and_an_unknown_key_of_the_command_line_are_told_together(small_file: SmallFile, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(small_file("stlm", tmp_path / "cache")))
    with pytest.raises(RunFileError) as error:
        load_run_config([file], ["trainer.dataset=nowhere", "+trainer.foo=1"], Reading("stlm"))
    mistake, absent = str(error.value).splitlines()
    assert "trainer.foo: unknown key" in mistake
    assert "trainer.dataset: 'nowhere' is none of STLM's datasets" in absent
    assert absent.startswith("not on this machine: ")


def test_a_default_that_does_not_fit_is_left_out_with_a_note(small_file: SmallFile, tmp_path: Path) -> None:
    values = copy.deepcopy(small_file("stlm", tmp_path / "cache"))
    values["trainer"].pop("eval", None)
    set_in(values, "trainer.loss_fn", "next_token_mlm")
    set_in(values, "model.attn.attn_type", "bidirectional")
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(values))
    loaded = load_run_config([file], (), Reading("stlm"))
    assert loaded.config.evaluate.text_modeling is None
    left_out = "trainer.eval.text_modeling_eval: the default is not used: "
    assert len([note for note in loaded.notes if note.startswith(left_out)]) == 1
    # The same value is refused if the file sets it.
    set_in(values, "trainer.eval.text_modeling_eval", True)
    file.write_text(json.dumps(values))
    assert "text_modeling_eval" in refused(load_run_config, [file], (), Reading("stlm"))


# By dialect: a key that a file must have, and values that its rules and the native schema refuse.
WITHOUT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "phyagi": ("output_dir", {"training_args.max_steps": 0}, {"model.n_head": 7}),
    "vectorlm": ("dataset.train_bs", {"train_parameters.use_flash_attention": True}, {"quintet.data.validation": 2}),
    "stlm": ("trainer.max_iters", {"trainer.dataset": "the_pile"}, {"model.attn.num_heads": 7}),
    "tmrc": ("datasets.path", {"tokenizer.name": "another"}, {"model.n_head": 7}),
    "piano": ("quintet.data.sources", {"command": "tune"}, {"model.n_head": 7}),
}


def told(values: dict[str, Any], name: str, tmp_path: Path) -> list[str]:
    """Return key and message of each problem of a file, without the line, which differs between files."""
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(values, indent=1))
    return sorted(line.partition(": ")[2] for line in refused(load_run_config, [file], (), Reading(name)).splitlines())


@pytest.mark.parametrize("name", WITHOUT)
def test_a_missing_key_hides_no_other_mistake(name: str, small_file: SmallFile, tmp_path: Path) -> None:
    missing, *mistakes = WITHOUT[name]
    right = small_file(name, tmp_path / "cache")
    without = copy.deepcopy(right)
    remove(without, missing)
    alone = told(without, name, tmp_path)
    assert len(alone) == 1
    for mistake in mistakes:
        wrong = copy.deepcopy(right)
        for path, value in mistake.items():
            set_in(wrong, path, value)
            set_in(without, path, value)
        found = told(wrong, name, tmp_path)
        assert any(line.startswith(tuple(mistake)) for line in found)
        alone += found
    assert told(without, name, tmp_path) == sorted(alone)


@pytest.mark.parametrize("name", [*NAMES, *NATIVE])
def test_mistakes_that_are_planted_are_told_together_as_they_are_alone(
    name: str, small_file: SmallFile, tmp_path: Path
) -> None:
    values, rng = base(name, small_file, tmp_path), random.Random(name)
    assert told_of(values, None if name in NATIVE else name, tmp_path) == []
    for _ in range(4):
        check_several(rng, name, values, tmp_path)


REQUIRED = [(name, key.path) for name in NAMES for key in dialect_named(name).keys if key.required]


@pytest.mark.parametrize(("name", "path"), REQUIRED)
def test_a_stand_in_for_a_missing_key_is_blamed_for_nothing(
    name: str, path: str, small_file: SmallFile, tmp_path: Path
) -> None:
    values = copy.deepcopy(small_file(name, tmp_path / "cache"))
    remove(values, path)
    (missing,) = told(values, name, tmp_path)
    assert missing.startswith(f"{path}: is missing")
    set_in(values, path, [{}])
    (wrong,) = told(values, name, tmp_path)
    assert wrong.startswith((f"{path}: ", f"{path}[0]: "))
    assert "missing" not in wrong.partition(": ")[2]


def test_what_follows_from_a_key_that_is_missing_is_not_told(small_file: SmallFile, tmp_path: Path) -> None:
    values = copy.deepcopy(small_file("stlm", tmp_path / "cache"))
    remove(values, "model.core_model_type")
    values["model"] |= {"model_string": "some/model", "lm_head_type": "hf_head", "embedding_model_type": "hf_embedder"}
    set_in(values, "trainer.dataset", "the_pile")
    missing, dataset = told(values, "stlm", tmp_path)
    assert missing.startswith("model.core_model_type: is missing")
    assert dataset.startswith("trainer.dataset: 'the_pile'")


@pytest.mark.parametrize("name", NAMES)
def test_a_value_in_place_of_a_section_is_told_whatever_else_is_missing(
    name: str, small_file: SmallFile, tmp_path: Path
) -> None:
    dialect = dialect_named(name)
    right = small_file(name, tmp_path / "cache")
    top = [steps[0] for steps in dialect.sections if len(steps) == 1]
    for steps in sorted(dialect.sections - {()}):
        in_list = any((*steps[:length], "[]") in dialect.sections for length in range(len(steps)))
        if steps in dialect.shorthands or in_list:
            continue
        path, values = ".".join(steps), copy.deepcopy(right)
        set_in(values, path, 30)
        lines = told(values, name, tmp_path)
        assert any(line.startswith(f"{path}: ") and "unknown key" not in line for line in lines), (path, lines)
        for other in top:
            if other != steps[0]:
                values.pop(other, None)
        assert any(line.startswith(f"{path}: ") for line in told(values, name, tmp_path)), path
