"""VectorLM: spellings, files of the project, the examples, and translation there and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.dialects.conftest import Make
from tests.dialects.vectorlm_runs import (
    LORA,
    WORDS,
    P,
    T,
    raw,
    refused,
    some_rows,
    write_model,
    write_rows,
    write_texts,
)
from tests.dialects.vectorlm_runs import base as base  # a fixture
from tests.dialects.vectorlm_runs import world as world  # a fixture
from tests.helpers import REPOSITORY, measured

from quintet.config.dialects import detect, dialect_named
from quintet.config.dialects.back import translate_back
from quintet.config.load import Reading, load_run_config
from quintet.errors import UserError

DIALECT = "vectorlm"


# Spellings and nestings.


@pytest.mark.parametrize("spelling", ["plataeu-with-warmup", "plateau-with-warmup"])
def test_a_plateau_lowers_the_rate_after_a_warm_up(make: Make, spelling: str) -> None:
    """With a learning rate far too high the loss rises, and a patience of 0 is over at once."""
    changes = {f"{T}.lr_scheduler_type": spelling, f"{T}.logging_steps": 1, f"{T}.optimizer.lr": 3.0}
    made = make({**changes, "quintet.schedule": {"patience": 0}})
    assert made.rates[:2] == pytest.approx([1.5, 3.0])
    assert made.rates[-1] <= 0.3
    config = made.config.schedule
    assert (config.factor, config.threshold, config.min_lr) == (0.1, 1e-4, 0.0)
    assert make(changes).config.schedule.patience == 10


def test_reduce_lr_on_plateau_has_no_warm_up(make: Make) -> None:
    made = make({f"{T}.lr_scheduler_type": "reduce_lr_on_plateau"})
    assert (made.config.schedule.kind, made.config.schedule.warmup_steps) == ("plateau", 0)
    assert any("plateau-with-warmup has one" in note for note in made.loaded.notes)


def test_flat_keys_are_those_of_the_sections(base: dict[str, Any], make: Make, tmp_path: Path) -> None:
    """The headings of the document suggest flat keys."""
    flat = {**{name: value for name, value in base.items() if name != T}, **base[T]}
    file = tmp_path / "their.yaml"
    file.write_text(yaml.safe_dump(flat))
    assert load_run_config([file]).config == make().config
    file.write_text(yaml.safe_dump({**flat, T: {"epochs": 7}}))
    with pytest.raises(UserError, match="keep one"):
        load_run_config([file])


def test_both_spellings_of_the_separator(make: Make, world: Path) -> None:
    without = ["dataset.train_ds", "dataset.eval_ds"]
    made = make({P: raw(world, separator="#")}, without=without)
    assert made.config == make({P: raw(world, seperator="#")}, without=without).config
    with pytest.raises(UserError, match="is '#'; keep one"):
        make({P: raw(world, separator="#", seperator="##")}, without=without)


def test_numbers_that_yaml_1_1_takes_for_text_are_numbers(make: Make, base: dict[str, Any]) -> None:
    made = make({f"{T}.optimizer.lr": "2e-5", f"{T}.optimizer.eps": "1e-5"})
    assert made.config.optimizer.lr == 2e-5
    assert made.config.optimizer.arguments["eps"] == 1e-5


def test_another_optimizer_is_a_native_key(make: Make) -> None:
    changes = {f"{T}.optimizer": {"lr": 0.5}, "quintet.optimizer": {"name": "SGD", "arguments": {"momentum": 0.9}}}
    made = make(changes)
    assert type(made.optimizer) is torch.optim.SGD
    assert made.optimizer.param_groups[0]["momentum"] == 0.9
    assert "betas: SGD has no such argument" in refused(make, {"quintet.optimizer": {"name": "SGD"}})


# Files of the project, condensed, and keys of its later versions.

SHIPPED = """
model: /model-weights/Llama-2-7b-chat-hf
enable_wandb_logging: True
wandb_config: {project: MedGPT, name: Llama-2-7B-chat}
train_parameters:
  output_dir: your/output/dir
  max_seq_len: 1024
  epochs: 1
  seed: 11
  sharding_strategy: FULL_SHARD
  use_mp: True
  use_activation_checkpointing: True
  use_flash_attention: True
  max_grad_norm: 1
  gradient_accumulation_steps: 4
  optimizer: {lr: 2.0e-5, weight_decay: 0.1, betas: [0.9, 0.95], eps: 1.0e-5}
  lr_scheduler_type: cosine
  warmup_ratio: 0.05
  checkpointing_enabled: True
  logging_steps: 500
  save_frequency: 0.25
dataset: {ignore_index: -100, eval_bs: 8, train_bs: 8, train_ds: your/train/ds, eval_ds: your/eval/ds}
dataset_preprocess:
  ignore_index: -100
  dataset_format: hf
  data_field: text
  packing_type: partial
  add_bos_eos_tokens: True
  from_disk: True
  load_path: your/unprocessed/dataset
  split: train
  save_path: dir/to/save/processed/dataset
  truncate: False
"""
LATER = ["train_parameters.low_cpu_mem_usage=True", "train_parameters.max_seq_len=4096"]
ADAPTERS = "{task_type: CAUSAL_LM, inference_mode: False, r: 8, lora_alpha: 32, lora_dropout: 0.1}"
ONE_DEVICE = "train_parameters.sharding_strategy=NO_SHARD"


def shipped(tmp_path: Path, *overrides: str, text: str = SHIPPED, purpose: Any = "train") -> Any:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return load_run_config([file], overrides, Reading(purpose=purpose))


@pytest.mark.parametrize("overrides", [[], LATER], ids=["the document's version", "the last version"])
def test_the_file_of_the_project_is_read(tmp_path: Path, overrides: list[str]) -> None:
    config = shipped(tmp_path, *overrides).config
    assert config.model.name_or_path == "/model-weights/Llama-2-7b-chat-hf"
    assert (config.runs_dir, config.name, config.seed) == ("your/output", "dir", 11)
    assert config.data.sequence_length == (4095 if overrides else 1023)
    assert (config.data.sources[0].path, config.data.validation_sources[0].path) == ("your/train/ds", "your/eval/ds")
    assert (config.batch.micro_batch_size, config.batch.accumulation, config.evaluate.every) == (8, 4, 125)
    assert config.track[0].arguments == {"project": "MedGPT", "name": "Llama-2-7B-chat"}
    assert (config.train.precision, config.model.gradient_checkpointing) == ("bf16", True)
    assert config.checkpoint.every_epochs == 0.25
    assert (config.parallel.kind, config.parallel.shard) == ("fsdp", "full")


def test_the_batch_is_that_of_all_gpus(tmp_path: Path) -> None:
    config = shipped(tmp_path).config
    for gpus in (1, 4, 8):
        assert config.on_devices(gpus).batch.samples == gpus * 8 * 4


def test_the_same_file_describes_the_preprocessing(tmp_path: Path) -> None:
    loaded = shipped(tmp_path, purpose="prepare")
    assert loaded.config.data.sources[0].path == "./your/unprocessed/dataset"
    assert loaded.config.data.packing.join is False
    assert loaded.prepare_to.folder == "dir/to/save/processed/dataset"


def test_the_files_of_the_benchmarks_lack_the_model_and_the_length(tmp_path: Path) -> None:
    values = yaml.safe_load(SHIPPED)
    del values["model"], values[T]["max_seq_len"], values[T]["use_flash_attention"]
    values[T]["lora_peft_config"] = yaml.safe_load(ADAPTERS)
    text = yaml.safe_dump(values)
    with pytest.raises(UserError, match="model: is missing"):
        shipped(tmp_path, ONE_DEVICE, text=text)
    config = shipped(tmp_path, ONE_DEVICE, "model=m", "train_parameters.max_seq_len=2048", text=text).config
    assert (config.model.lora.rank, config.model.lora.alpha, config.model.lora.targets) == (8, 32, None)


def test_a_section_of_adapters_with_all_its_keys_commented_out_is_none(tmp_path: Path) -> None:
    text = SHIPPED.replace("  max_grad_norm", "  lora_peft_config:\n    # r: 8\n  max_grad_norm")
    assert shipped(tmp_path, ONE_DEVICE, text=text).config.model.lora is None


def test_settings_of_peft_that_are_not_built_are_refused_by_name(make: Make) -> None:
    assert "lora_peft_config.use_dora: is no setting of Quintet's adapters" in refused(
        make, {f"{T}.lora_peft_config": {**LORA, "use_dora": True}}
    )
    assert "did you mean 'lora_alpha'" in refused(make, {f"{T}.lora_peft_config": {**LORA, "lora_alhpa": 3}})


# The examples.


@pytest.fixture
def example_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the folder DATA_ROOT of the examples."""
    draw = np.random.default_rng(0)
    letters = [word for word in WORDS if len(word) == 1]

    def text() -> str:
        prompt, answer = (" ".join(draw.choice(letters, draw.integers(3, 9))) for _ in range(2))
        return f"{prompt} Excerpt: {answer}"

    write_model(tmp_path / "data/tiny-llama")
    write_texts(tmp_path / "data/raw", train=[text() for _ in range(40)], validation=[text() for _ in range(8)])
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / "out"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["config", "lora"])
def test_an_example_trains_and_its_translation_trains_alike(
    name: str, example_data: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    file = str(REPOSITORY / f"examples/vectorlm/{name}.yaml")
    if name == "config":
        assert command("prepare", file)[0] == 0
        more = [
            "dataset_preprocess.split=validation",
            f"dataset_preprocess.save_path={example_data}/data/processed-eval",
        ]
        assert command("prepare", file, *more)[0] == 0
    more = ["quintet.data.validation=0.2"] if name == "lora" else []
    code, _, error = command("train", file, *more)
    assert code == 0, error
    folder = example_data / "out" / ("vectorlm" if name == "config" else "vectorlm-lora")
    losses = measured(folder)
    assert len(losses) >= 5
    assert all(math.isfinite(float(loss)) for loss in losses)
    translated = command("translate", file, *more)[1]
    (example_data / "native.yaml").write_text(translated)
    assert command("train", "native.yaml", "name=again")[0] == 0
    assert measured(folder.parent / "again") == losses


@pytest.mark.parametrize("name", ["config", "lora"])
def test_an_example_there_and_back_is_the_same_run(name: str, example_data: Path) -> None:
    if name == "config":
        for folder in ("processed", "processed-eval"):
            write_rows(example_data / "data" / folder, some_rows(4, seed=0))
    loaded = load_run_config([REPOSITORY / f"examples/vectorlm/{name}.yaml"])
    written = translate_back(dialect_named(DIALECT), loaded.config)
    (example_data / "again.yaml").write_text(written.text)
    again = load_run_config([example_data / "again.yaml"], [], Reading(DIALECT))
    assert written.lost == ()
    assert again.config == loaded.config


THERE_AND_BACK: dict[str, dict[str, Any]] = {
    "processed": {},
    "a plateau": {f"{T}.lr_scheduler_type": "plateau-with-warmup", f"{T}.gradient_accumulation_steps": 2},
    "adapters": {f"{T}.lora_peft_config": {**LORA, "target_modules": ["k_proj"]}},
    "adapters where peft puts them": {f"{T}.lora_peft_config": LORA},
    "bf16, attention and logging": {
        f"{T}.use_mp": True,
        f"{T}.use_flash_attention": True,
        f"{T}.use_activation_checkpointing": True,
        "enable_wandb_logging": True,
        "wandb_config": {"project": "p", "mode": "offline"},
    },
    "no clipping, no checkpoints": {f"{T}.max_grad_norm": None, f"{T}.checkpointing_enabled": False},
    "chunks behind a separator": {P: {"packing_type": "partial", "overlap": 1, "seperator": "#", "pre_pend": "z "}},
    "one stream": {P: {"packing_type": "full", "add_bos_eos_tokens": False, "data_field": "other"}},
    "truncated": {P: {"truncate": True, "split": "test"}},
}


@pytest.mark.parametrize("case", THERE_AND_BACK)
def test_a_run_there_and_back_is_the_same_run(case: str, make: Make, world: Path) -> None:
    changes = THERE_AND_BACK[case]
    without = ["quintet"]
    if P in changes:
        changes = {P: raw(world, **changes[P])}
        without += ["dataset.train_ds", "dataset.eval_ds"]
    assert translate_back(dialect_named(DIALECT), make(changes, without=without).config).lost == ()


def test_a_file_is_recognised_by_its_sections() -> None:
    assert detect(yaml.safe_load(SHIPPED)) is dialect_named(DIALECT)
    assert detect({"dataset": {"train_ds": "x"}}) is dialect_named(DIALECT)
    assert detect({"model": {"kind": "huggingface"}, "train": {"epochs": 1}}) is None


def test_a_value_knows_its_key_and_line(make: Make) -> None:
    made = make()
    assert made.origin("train.epochs").startswith("train_parameters.epochs (line ")
    assert made.origin("data.sources[0].path").startswith("dataset.train_ds (line ")
