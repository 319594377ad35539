"""Contradictions between keys: all of a file are reported together, each at its key and line."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from quintet.config.checks import CHECKS
from quintet.config.load import load_run_config
from quintet.config.provenance import Problem, RunFileError
from quintet.config.schema import RunConfig
from quintet.config.train import TrainConfig

TWO_SOURCES = [{"kind": "text", "path": "a", "label": "a"}, {"kind": "text", "path": "b", "label": "b"}]
BASE: dict[str, Any] = {
    "data": {"sources": TWO_SOURCES, "sequence_length": 64},
    "train": {"steps": 100},
    "model": {"width": 64},
}
# Each makes one contradiction, by itself and together with any of the others: the changes, and where it is reported.
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "context": ({"model.context_length": 32}, "data.sequence_length"),
    "rows": ({"model.vocab_size": 300}, "model.vocab_size"),
    "rates": ({"schedule": {"kind": "cosine", "min_lr": 1.0}}, "schedule.min_lr"),
    "warmup": ({"schedule": {"kind": "linear", "warmup_steps": 200}}, "schedule.warmup_steps"),
    "plateau": ({"schedule": {"kind": "plateau"}, "evaluate.every": None}, "evaluate.every"),
    "unheld": ({"schedule": {"kind": "plateau"}, "data.validation": 0}, "data.validation"),
    "shares": ({"loss": {"kind": "masked", "masked": 0.9, "random": 0.9}}, "loss.random"),
    "ids": ({"loss.ignore_token_range": [5, 3]}, "loss.ignore_token_range"),
    "heads": ({"model.attention.heads": 3}, "model.attention.heads"),
    "groups": ({"model.attention.heads": 4, "model.attention.kv_heads": 3}, "model.attention.kv_heads"),
    "pairs": ({"model.position": {"kind": "rope", "fraction": 0.001}}, "model.position.fraction"),
    "backend": ({"model.attention.backend": "flash", "model.attention.window": 5}, "model.attention.backend"),
    "restart": ({"model.attention.restart_positions": True}, "model.attention.restart_positions"),
    "factor": ({"model.feedforward.width": 8, "model.feedforward.factor": 2.0}, "model.feedforward.factor"),
    "qk_norm": ({"model.attention.qk_norm": "head", "model.norm": {"kind": "none"}}, "model.attention.qk_norm"),
    "padding": ({"model.attention.kind": "bidirectional", "data.packing.kind": "document"}, "model.attention.mask"),
    "only": ({"evaluate.only": True, "data.validation": 0}, "evaluate.only"),
    "best": ({"evaluate.best_by": "zzz"}, "evaluate.best_by"),
    "offset": ({"evaluate.offset": 3, "evaluate.every": None}, "evaluate.offset"),
    "nothing": ({"evaluate.tasks_every": 5}, "evaluate.tasks_every"),
    "batch": ({"train.batch_size": 4, "train.batch_size_per_device": 4}, "train.batch_size_per_device"),
    "passes": ({"train.accumulation": 3}, "train.accumulation"),
    "tokens": ({"train.batch_tokens": 65}, "train.batch_tokens"),
    "devices": ({"train.batch_devices": 2}, "train.batch_devices"),
    "often": ({"train.log_every": 1.5}, "train.log_every"),
    "read": ({"evaluate.text_modeling": {}, "loss.kind": "masked"}, "evaluate.text_modeling"),
    "trainer": ({"trainer": {"kind": "lightning", "arguments": {"max_steps": 7}}}, "trainer.arguments.max_steps"),
    "objects": ({"trainer": {"kind": "lightning", "arguments": {"callbacks": 7}}}, "trainer.arguments.callbacks"),
    "engine": ({"parallel.kind": "deepspeed", "parallel.config.zzz": 1}, "parallel.config.zzz"),
    "clipping": (
        {"parallel.kind": "deepspeed", "parallel.config.gradient_clipping": 9.0, "train.clip_norm": 1.0},
        "parallel.config.gradient_clipping",
    ),
    "precision": (
        {"parallel.kind": "deepspeed", "parallel.config.bf16.enabled": True, "train.precision": "fp32"},
        "parallel.config.bf16.enabled",
    ),
    "decay": (
        {"parallel.kind": "deepspeed", "parallel.config.optimizer": {"type": "AdamW", "params": {"zzz": 1}}},
        "parallel.config.optimizer.params.zzz",
    ),
    "repeat": ({"data.sources[0].weight": 1, "data.sources[1].repeat": 2}, "data.sources[1].repeat"),
    "weight": ({"data.sources[0].weight": 1}, "data.sources"),
    "stage": ({"data.stages": [{"until": 5, "weights": {"a": 1}}, {"until": 9, "weights": {"b": 1}}]},
              "data.stages[1].until"),
    "mixing": ({"data.mixing": "sequential", "data.sources[0].weight": 1, "data.sources[1].weight": 1}, "data.mixing"),
    "cleaning": ({"data.cleaning.min_characters": 9, "data.cleaning.max_characters": 3},
                 "data.cleaning.min_characters"),
    "quality": ({"data.cleaning.quality.min_words": 9, "data.cleaning.quality.max_words": 3},
                "data.cleaning.quality.min_words"),
    "overlap": ({"data.packing": {"kind": "chunks", "overlap": 99}}, "data.packing.overlap"),
    "wandb": ({"track": [{"kind": "wandb", "arguments": {"config": 1}}]}, "track[0].arguments.config"),
    "sample": ({"sample.every": 1.5}, "sample.every"),
    "checkpoint": ({"checkpoint.every": 1.5}, "checkpoint.every"),
}  # fmt: skip


def put(values: dict[str, Any], changes: Mapping[str, Any]) -> bool:
    """Set each key path of ``changes``; False if one would undo what another mistake set."""
    for path, value in changes.items():
        steps = path.replace("[", ".").replace("]", "").split(".")
        inner: Any = values
        for step in steps[:-1]:
            inner = inner[int(step)] if isinstance(inner, list) else inner.setdefault(step, {})
            if not isinstance(inner, dict | list):
                return False
        if inner.setdefault(steps[-1], value) != value:
            return False
    return True


def file_with(tmp_path: Path, *names: str) -> Path | None:
    """Return a run file with these mistakes, None if they exclude one another."""
    values = yaml.safe_load(yaml.safe_dump(BASE))
    if not all(put(values, MISTAKES[name][0]) for name in names):
        return None
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "run.yaml"


def told(file: Path, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(RunFileError) as refused:
        load_run_config([file], overrides)
    return tuple(refused.value.details)


def test_the_file_without_mistakes_is_right(tmp_path: Path) -> None:
    file = file_with(tmp_path)
    assert file is not None
    load_run_config([file])


def test_only_our_own_models_compile_with_a_changing_dropout_rate(tmp_path: Path) -> None:
    scheduled = ["train.compile=true", "dropout_schedule={kind: triangle, high: 0.5}"]
    file = file_with(tmp_path)
    assert file is not None
    load_run_config([file], scheduled)
    values = yaml.safe_load(file.read_text()) | {"model": {"kind": "huggingface", "name_or_path": "some"}}
    file.write_text(yaml.safe_dump(values))
    assert "train.compile" in {problem.key for problem in told(file, *scheduled)}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_contradiction_is_reported_at_its_key_and_line(tmp_path: Path, name: str) -> None:
    file = file_with(tmp_path, name)
    assert file is not None
    key = MISTAKES[name][1]
    found = [problem for problem in told(file) if problem.key == key]
    assert found, key
    last = [step for step in key.replace("]", "").replace("[", ".").split(".") if not step.isdecimal()][-1]
    line = found[0].origin.line
    written = file.read_text().splitlines()
    assert line is not None
    if f"{last}:" in file.read_text():
        assert f"{last}:" in written[line - 1]


# Of these one undoes the other, or there is no batch size to compare with.
_HIDES = [
    {"heads", "pairs"},
    {"read", "nothing"},
    {"weight", "mixing"},
    {"batch", "devices"},
    {"batch", "tokens"},
    {"passes", "tokens"},
]


@pytest.mark.parametrize("name", MISTAKES)
def test_every_pair_of_contradictions_is_reported_at_once(tmp_path: Path, name: str) -> None:
    for other in itertools.takewhile(lambda other: other != name, MISTAKES):
        if {name, other} in _HIDES or (file := file_with(tmp_path, name, other)) is None:
            continue
        keys = {problem.key for problem in told(file)}
        assert {MISTAKES[name][1], MISTAKES[other][1]} <= keys, (name, other)


def test_three_and_more_contradictions_are_reported_at_once(tmp_path: Path) -> None:
    names = ("context", "warmup", "best", "devices", "often", "nothing", "cleaning", "wandb", "sample", "trainer")
    for three in itertools.combinations(names, 3):
        file = file_with(tmp_path, *three)
        assert file is not None
        assert {problem.key for problem in told(file)} == {MISTAKES[name][1] for name in three}
    file = file_with(tmp_path, *names)
    assert file is not None
    assert {problem.key for problem in told(file)} == {MISTAKES[name][1] for name in names}


def test_mistakes_of_single_keys_come_with_contradictions_of_other_sections(tmp_path: Path) -> None:
    file = file_with(tmp_path, "warmup", "best", "sample", "wandb")
    assert file is not None
    overrides = ("optimizer.lr=fast", "checkpoint.kep=3", "evaluate.samples=0")
    assert {problem.key for problem in told(file, *overrides)} == {
        "optimizer.lr",
        "checkpoint.kep",
        "evaluate.samples",
        "evaluate.best_by",
        "schedule.warmup_steps",
        "sample.every",
        "track[0].arguments.config",
    }


def test_what_a_mistaken_section_may_mean_is_not_guessed(tmp_path: Path) -> None:
    """A rate above a misspelt one is no contradiction, because the default is not what was meant."""
    file = file_with(tmp_path)
    assert file is not None
    given = "schedule={kind: cosine, min_lr: 0.5}"
    assert {problem.key for problem in told(file, given)} == {"schedule.min_lr"}
    assert {problem.key for problem in told(file, given, "optimizer.lr=fast")} == {"optimizer.lr"}
    assert {problem.key for problem in told(file, given, "optimzer={lr: 1}")} == {"optimzer"}


def test_contradictions_in_one_section_are_reported_together_without_a_run_file() -> None:
    with pytest.raises(ValidationError) as refused:
        TrainConfig(log_every=1.5, batch_devices=2)
    assert refused.value.error_count() == 3


def test_every_check_takes_sections_of_a_run_file() -> None:
    for check in CHECKS:
        names = check.__code__.co_varnames[: check.__code__.co_argcount]
        assert set(names) <= {*RunConfig.model_fields, "sections"}, check
