"""PhyAGI: nestings, files of the project, the examples, and native runs written as PhyAGI files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.dialects.conftest import Made, Make, Said
from tests.dialects.phyagi_runs import DS, EXAMPLES, huggingface, lightning, rates
from tests.dialects.phyagi_runs import base as base  # a fixture
from tests.dialects.phyagi_runs import data as data  # a fixture
from tests.helpers import refused

from quintet.config.dialects import detect, dialect_named
from quintet.config.dialects.back import translate_back
from quintet.config.load import load_run_config

DIALECT = "phyagi"

# Nestings, files of the project, examples.


def test_the_documents_nesting_and_the_files_nesting_are_the_same_run(make: Make, base: dict[str, Any]) -> None:
    nested = {**base, "dataset_concat": "random", "dataset_collator": {"cls": "lm", "ignore_token_range": [6, 9]}}
    (entry,) = base["dataset"]
    inside = {**entry, "dataset_concat": "random", "dataset_collator": {"cls": "lm", "ignore_token_id_range": [6, 9]}}
    flat = {name: value for name, value in base.items() if name != "training_args"}
    flat |= {"dataset": inside, **base["training_args"]}
    found = [make({name: file[name] for name in file}, without=base).config for file in (nested, flat)]
    assert found[0] == found[1]


def test_two_nestings_that_disagree_are_refused(make: Make) -> None:
    assert "keep one" in refused(make, {"dataset_concat": "random", "dataset.0.dataset_concat": "sequential"})
    assert "keep one" in refused(make, {"max_steps": 5})
    assert "line" in refused(make, {"max_steps": 5})


def test_a_moved_value_keeps_its_line(make: Make, base: dict[str, Any]) -> None:
    made = make({"dataset": base["dataset"][0]})
    lines = made.file.read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "seq_len" in text)
    assert made.origin("data.sequence_length") == f"dataset[0].seq_len (line {line})"


def test_deepspeeds_configuration_may_be_a_file(make: Make, base: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(base["training_args"]["ds_config"]))
    assert make({DS: str(tmp_path / "ds.json")}).config == make().config
    (absent,) = make({DS: str(tmp_path / "absent.json")}).loaded.not_here
    assert (absent.key, f"there is no {tmp_path / 'absent.json'}" in absent.message) == (DS, True)


def test_without_deepspeeds_configuration_it_is_phyagis_own(make: Make) -> None:
    made = make(without=[DS])
    assert (made.config.batch.samples, made.config.batch.micro_batch_size) == (1024, 4)
    assert tuple(made.optimizer.param_groups[0]["betas"]) == (0.9, 0.95)
    found = rates(made, 2000)
    assert (found[501], found[1001]) == (pytest.approx(0.9e-3), pytest.approx(1.8e-3))


def test_a_list_of_n_equal_blocks_is_n_layers(make: Make) -> None:
    parallel = {"block_cls": "parallel", "mixer": {"bias": False}}
    assert len(make({"model.architecture": [parallel] * 3}).model.blocks) == 3
    assert "must be a section" in refused(make, {"model.architecture": [parallel, {"block_cls": "sequential"}]})


def test_an_argument_of_another_trainer_is_refused(make: Make) -> None:
    assert "is for trainer: lightning" in refused(
        make, {"training_args.trainer": {"max_epochs": 1}, "trainer": "deepspeed"}
    )
    assert "is for trainer: deepspeed" in refused(make, {"training_args.learning_rate": 0.1, "trainer": "huggingface"})


def test_a_misspelt_key_is_found(make: Make) -> None:
    changes = {"dataset.0.seq_length": 8, "model.n_layr": 1, f"{DS}.gradient_cliping": 1.0, "training_args.max_step": 1}
    message = refused(make, changes)
    for right in ("seq_len", "n_layer", "gradient_clipping", "max_steps"):
        assert f"did you mean {right!r}" in message


def shipped(**training: Any) -> dict[str, Any]:
    """The 350M model of PhyAGI's own run files, condensed; the training arguments differ."""
    block = {
        "block_cls": "parallel",
        "mixer": {"mixer_cls": "mha", "dropout": 0.0, "bias": True, "flash_attn": True, "fused_dense": True},
        "mlp": {"mlp_cls": "fused_mlp"},
        "norm": {"norm_cls": "torch"},
        "head": {"head_cls": "causal_lm", "use_bias": True},
    }
    return {
        "data_root": '${oc.env:DATA_ROOT, "/data"}',
        "output_root": '${oc.env:OUTPUT_ROOT, "~/phyagi_results"}',
        "output_dir": "${output_root}/mixformer-350m",
        "dataset": [{"cache_dir": "${data_root}/omg.npy", "seq_len": 2048, "weight": 1.0}],
        "dataset_concat": "random",
        "eval_dataset_concat": None,
        "dataset_provider": "lm",
        "dataset_global_weight": 1.0,
        "dataset_collator": {"cls": "lm"},
        "model": {
            "model_type": "mixformer-sequential",
            "embd_layer": "default",
            "architecture": block,
            **{"vocab_size": 50304, "n_positions": 2048, "n_embd": 1024, "n_layer": 20, "n_head": 16, "rotary_dim": 32},
            **{"embd_pdrop": 0.0, "resid_pdrop": 0.0, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
            **{"initializer_range": 0.02, "pad_vocab_size_multiple": 64, "gradient_checkpointing": False},
        },
        "training_args": training,
    }


def read(tmp_path: Path, values: Mapping[str, Any], *overrides: str) -> Any:
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(dict(values)))
    return load_run_config([tmp_path / "file.yaml"], overrides)


def deepspeed_350m(stage: int) -> dict[str, Any]:
    adamw = {"lr": 1.8e-3, "betas": [0.9, 0.95], "eps": 1e-7, "weight_decay": 0.1}
    warmup = {"warmup_min_lr": 0, "warmup_max_lr": 1.8e-3, "warmup_type": "linear", "warmup_num_steps": 750}
    return shipped(
        ds_config={
            "fp16": {"enabled": True, "initial_scale_power": 12},
            "optimizer": {"type": "AdamW", "params": adamw},
            "scheduler": {"type": "WarmupDecayLR", "params": warmup},
            "zero_optimization": {"stage": stage},
            "gradient_clipping": 1.0,
            "steps_per_print": 10_000_000_000,
            "train_batch_size": 1024,
            "train_micro_batch_size_per_gpu": 4,
            "wall_clock_breakdown": False,
            "zero_allow_untested_optimizer": True,
        },
        **{"do_eval": True, "do_final_eval": True, "num_train_epochs": 1, "logging_steps": 0.0001, "save_steps": 20},
        **{"save_final_checkpoint": True, "seed": 42, "eval_steps": 0.2, "eval_max_steps": 100},
        **{"pipe_parallel_size": 1, "context_parallel_size": 1, "batch_tracker": False, "dataloader_shuffle": True},
        **{"batch_tracker_save_steps": None, "eval_dataloader_shuffle": True, "mlflow": True, "wandb": True},
    )


def test_the_shipped_file_for_deepspeed(tmp_path: Path) -> None:
    """354,958,464 parameters, as PhyAGI's own code counts; 256 passes a step on one device."""
    from quintet.model.count import count_parameters

    assert read(tmp_path, deepspeed_350m(stage=1)).config.parallel.config == {
        "zero_optimization": {"stage": 1},
        "fp16": {"enabled": True, "initial_scale_power": 12},
        "zero_allow_untested_optimizer": True,
    }
    loaded = read(tmp_path, deepspeed_350m(stage=0))
    config = loaded.config
    assert loaded.dialect is dialect_named(DIALECT)
    assert count_parameters(config.model, config.model.vocab_size, 2048).total == 354_958_464
    assert (config.batch.accumulation, config.train.precision, config.model.rotary_dim) == (256, "fp16", 32)
    assert config.data.sources[0].path == "/data/omg.npy"
    assert {one.kind for one in config.track} == {"mlflow", "wandb"}


def test_the_shipped_file_for_the_transformers_library(tmp_path: Path) -> None:
    loaded = read(
        tmp_path,
        shipped(
            **{"optim": "adamw_torch", "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-7},
            **{"eval_strategy": "steps", "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2},
            **{"gradient_accumulation_steps": 64, "learning_rate": 1.8e-3, "weight_decay": 0.1},
            **{"lr_scheduler_type": "cosine", "num_train_epochs": 1, "warmup_ratio": 0.05, "logging_steps": 0.0001},
            **{"save_steps": 0.2, "eval_steps": 0.2, "bf16": True, "seed": 42},
        ),
    )
    config = loaded.config
    assert (config.trainer.kind, config.trainer.arguments) == ("transformers", {})
    assert (config.optimizer.lr, config.optimizer.betas, config.batch.samples) == (1.8e-3, (0.9, 0.95), 128)
    assert (config.schedule.name, config.schedule.warmup_steps, config.checkpoint.every) == ("cosine", 0.05, 0.2)
    assert config.train.precision == "bf16"


def test_the_shipped_file_for_lightning(tmp_path: Path) -> None:
    adamw = {"lr": 1.8e-3, "betas": [0.9, 0.95], "eps": 1e-7, "weight_decay": 0.1}
    step = {"type": "step", "params": {"step_size": 1000, "gamma": 0.1}}
    few = {"precision": "bf16-mixed", "max_epochs": 1, "val_check_interval": None, "log_every_n_steps": 1}
    loaded = read(
        tmp_path,
        shipped(
            trainer={**few, "accumulate_grad_batches": 1},
            lightning_module={
                "optimizer": {"type": "adamw", "params": adamw},
                "scheduler": {**step, "interval": "step", "frequency": 1, "name": "step_lr"},
            },
            **{"train_micro_batch_size_per_gpu": 1, "do_eval": True, "save_steps": 100, "save_final_checkpoint": True},
            **{"seed": 42, "dataloader_shuffle": True, "eval_dataloader_shuffle": True},
        ),
    )
    config = loaded.config
    assert (config.trainer.kind, config.schedule.name, config.train.epochs) == ("lightning", "StepLR", 1)
    assert (config.optimizer.decay, config.checkpoint.every, config.train.precision) == ("all", 100, "bf16")


def test_the_shipped_model_of_phi_3_medium(tmp_path: Path) -> None:
    """13,960,238,080 parameters, as the published model has: gated, grouped heads, a window, nothing with a bias."""
    from quintet.model.count import count_parameters

    values = deepspeed_350m(stage=0)
    mixer = {"mixer_cls": "mha", "bias": False, "dropout": 0.0, "window_size": "(2047, 0)", "n_head_kv": 10}
    block = {
        "block_cls": "sequential",
        "mixer": mixer,
        "mlp": {"mlp_cls": "glu", "act_fn": "silu", "n_inner": 17920},
        "norm": {"norm_cls": "flash_rms"},
        "head": {"head_cls": "causal_lm", "use_bias": False},
    }
    sizes = {"vocab_size": 32064, "n_positions": 4096, "n_embd": 5120, "n_layer": 40, "n_head": 40, "rotary_dim": 128}
    values["model"] = {"model_type": "mixformer-sequential", "architecture": block, **sizes}
    config = read(tmp_path, values).config
    assert count_parameters(config.model, config.model.vocab_size, 4096).total == 13_960_238_080
    assert (config.model.attention.window, config.model.feedforward.activation) == (2048, "silu")


def test_data_and_training_may_be_in_files_of_their_own(tmp_path: Path) -> None:
    """The files of phi-3: one for the data, with keys that newer code no longer knows, and one for the rest."""
    entry = {"dataset_path": "a.npy", "use_eos_token": False, "num_shards": 1024, "seq_len": 4096, "weight": 0.1}
    old = {"original_tokenizer": {"pretrained_model_name_or_path": "/tmp/tokenizer"}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"dataset": [{**entry, **old}, entry]}))
    other = deepspeed_350m(stage=0) | {"dataset_provider": "stream_lm"}
    other["model"]["n_positions"] = 4096
    del other["dataset"]
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(other))
    config = load_run_config([tmp_path / "data.yaml", tmp_path / "training.yaml"]).config
    assert [source.repeat for source in config.data.sources] == [0.1, 0.1]
    assert [source.label for source in config.data.sources] == ["0", "1"]


def test_copies_of_a_dataset_are_made_by_the_function_for(tmp_path: Path) -> None:
    values = deepspeed_350m(stage=0) | {"dataset": '${for:{cache_dir:"/data/part@.npy",seq_len:2048},3,"@"}'}
    config = read(tmp_path, values).config
    assert [source.path for source in config.data.sources] == [f"/data/part{index}.npy" for index in range(3)]
    assert [source.label for source in config.data.sources] == ["0", "1", "2"]


def from_tokens(make: Make, ids: list[int] | range, **changes: Any) -> Made:
    """Make a run on these tokens, in samples of 4 in their order."""
    file = make().file.with_name("tokens.npy")
    np.save(file, np.array(ids, dtype="uint16"))
    entry = {"train_file": str(file), "seq_len": 4, **changes}
    return make({"dataset.0": entry, "dataset_provider": "stream_lm", f"{DS}.train_micro_batch_size_per_gpu": 1})


@pytest.mark.parametrize(
    ("tokens", "shift", "windows", "targets"),
    [
        (range(10, 20), False, [[10, 11, 12, 13], [14, 15, 16, 17]], [[11, 12, 13, -100], [15, 16, 17, -100]]),
        (range(10, 20), True, [[10, 11, 12, 13], [14, 15, 16, 17]], [[11, 12, 13, 14], [15, 16, 17, 18]]),
        (range(10, 18), True, [[10, 11, 12, 13]], [[11, 12, 13, 14]]),
        (range(10, 18), False, [[10, 11, 12, 13]], [[11, 12, 13, -100]]),
        (range(10, 19), False, [[10, 11, 12, 13], [14, 15, 16, 17]], [[11, 12, 13, -100], [15, 16, 17, -100]]),
    ],
)
def test_windows_are_those_of_the_worked_examples(
    make: Make, tokens: range, shift: bool, windows: list[list[int]], targets: list[list[int]]
) -> None:
    made = from_tokens(make, tokens, shift_labels=shift)
    assert made.run.data.epoch_samples == len(windows)
    for name, expected in (("inputs", windows), ("targets", targets)):
        found = np.concatenate([getattr(made.batch(step), name) for step in range(len(windows))])[: len(windows)]
        assert found.tolist() == expected


def test_the_collator_leaves_the_targets_of_the_worked_example(make: Make) -> None:
    """A range of 1 to 10 and the ids 15 and 20 leave 16 and 21 of 1 2 3 10 16 20 21."""
    ids = [7, 1, 2, 3, 10, 16, 20, 21, 30]
    file = make().file.with_name("tokens.npy")
    np.save(file, np.array(ids, dtype="uint16"))
    collator = {"cls": "lm", "ignore_token_ids": [15, 20], "ignore_token_range": [1, 10], "ignore_index": -200}
    made = make({"dataset.0": {"train_file": str(file), "seq_len": 8}, "dataset_collator": collator})
    assert made.batch().inputs[0].tolist() == ids[:-1]
    assert [target for target in made.batch().targets[0].tolist() if target != -100] == [16, 21]


def test_weights_give_the_sizes_of_the_worked_example(make: Make) -> None:
    """5 samples with a weight of 1.5 are 8, and 3 with 0.5 are 2."""
    folder, entries = make().file.parent, []
    for name, samples, weight in (("a", 5, 1.5), ("b", 3, 0.5)):
        np.save(folder / f"{name}.npy", np.arange(samples * 4 + 1, dtype="uint16") + 1)
        entries.append({"train_file": str(folder / f"{name}.npy"), "seq_len": 4, "weight": weight})
    made = make({"dataset": entries, f"{DS}.train_batch_size": 10, f"{DS}.train_micro_batch_size_per_gpu": 10})
    drawn = np.bincount(np.concatenate([made.batch(0).sources, made.batch(1).sources])[:10], minlength=2)
    assert drawn.tolist() == [8, 2]


def test_a_file_is_recognised_by_its_keys() -> None:
    assert detect(shipped()) is dialect_named(DIALECT)
    assert detect({"dataset": {"cache_dir": "a", "seq_len": 8}}) is dialect_named(DIALECT)
    assert detect({"data": {"sources": []}, "model": {"layers": 2}}) is None


def test_a_native_run_is_written_as_one_of_phyagi(make: Make) -> None:
    made = make(
        {
            "dataset.0.weight": 2.0,
            "dataset.0.label": "mine",
            "model.rotary_dim": 4,
            "model.architecture": {"block_cls": "sequential", "mlp": {"mlp_cls": "glu"}, "mixer": {"out_bias": False}},
            "training_args.eval_steps": 0.5,
            "training_args.do_final_eval": True,
            "training_args.save_steps": -1,
            f"{DS}.scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 3}},
        },
        without=["quintet"],
    )
    written = translate_back(dialect_named(DIALECT), made.config)
    assert written.lost == ()
    assert "block_cls: sequential" in written.text
    native = made.config.model_copy(update={"schedule": type(made.config).model_fields["schedule"].default})
    assert any(line.startswith("schedule") for line in translate_back(dialect_named(DIALECT), native).lost)


@pytest.mark.parametrize("arguments", [huggingface, lightning])
def test_the_trainers_of_the_other_libraries_train_as_ours(make: Make, arguments: Callable[..., Made]) -> None:
    """The losses are those of Quintet's own loop for the same run, bit for bit."""
    theirs = arguments(make)
    values = yaml.safe_load(theirs.file.read_text())
    ours = make(values | {"quintet": {**values["quintet"], "trainer": {"kind": "quintet"}}})
    assert (theirs.config.trainer.kind, ours.config.trainer.kind) in {
        ("transformers", "quintet"),
        ("lightning", "quintet"),
    }
    assert len(theirs.losses) == 4
    assert theirs.losses == ours.losses


@pytest.mark.parametrize(
    ("name", "steps"), [("mixformer", 20), ("as_documented", 10), ("huggingface", 10), ("lightning", 10)]
)
def test_an_example_trains_by_command_and_its_translation_to_the_same_losses(
    name: str,
    steps: int,
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., tuple[int, str, str]],
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(data))
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / "out"))
    monkeypatch.chdir(tmp_path)
    file = str(EXAMPLES / f"{name}.yaml")
    code, out, err = command("train", file)
    assert code == 0, err
    assert f"finished: {steps} steps" in out
    code, native, err = command("translate", file, f"output_dir={tmp_path}/again/{name}")
    assert code == 0, err
    Path("native.yaml").write_text(native)
    assert command("train", "native.yaml")[0] == 0
    losses = [logged(folder / name) for folder in (tmp_path / "out", tmp_path / "again")]
    assert len(losses[0]) == steps
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


def logged(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize(
    ("verb", "changes", "message"),
    [
        ("prepare", {"dataset.0.train_file": "/nowhere.npy"}, "dataset[0].train_file: /nowhere.npy does not exist"),
        ("show-batch", {"dataset.0.train_file": "/nowhere.npy"}, "dataset[0].train_file: /nowhere.npy does not exist"),
        ("train", {"dataset.0.train_file": "/nowhere.npy"}, "dataset[0].train_file: /nowhere.npy does not exist"),
        (
            "check --strict",
            {"dataset.0.train_file": "/nowhere.npy"},
            "dataset[0].train_file: /nowhere.npy does not exist",
        ),
        ("train", {"quintet.train.device": "mps"}, "quintet.train.device: this machine has no mps device"),
        (
            "plan",
            {"model": {"model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 3}},
            "model.",
        ),
    ],
)
def test_every_verb_names_the_keys_of_the_file(verb: str, changes: dict[str, Any], message: str, said: Said) -> None:
    assert [line for line in said(verb, changes) if line.startswith(message)]
