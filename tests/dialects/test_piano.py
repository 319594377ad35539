"""piano-gpt: each key changes what its document says, in the run that is really built."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.dialects.conftest import Make, Said, changes
from tests.dialects.piano_folders import base as base  # a fixture
from tests.dialects.piano_folders import questions as questions  # a fixture
from tests.helpers import refused

DIALECT = "piano"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples/piano"
IGNORED = -100


def original_rate(step: int, steps: int, highest: float, lowest: float, warmup: int) -> float:
    """The rate of ``step``, counted from 1, by the formula of piano-gpt."""
    if step < warmup:
        return highest * step / warmup
    if step > steps:
        return lowest
    return lowest + 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) * (highest - lowest)


@changes("init_from")
def test_init_from(make: Make) -> None:
    """Weights and sizes are those of the run that init_from names."""
    first = make({"model.n_layer": 2, "model.n_embd": 32})
    path = str(first.trained)
    started = make({"init_from": path})
    weights = first.model.state_dict()
    assert weights.keys() == started.model.state_dict().keys()
    for name, value in started.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert "the model is that of" in "\n".join(started.loaded.notes)
    assert "model.n_layer 2 and not 1" in "\n".join(started.loaded.notes)
    fresh = make({"model.n_layer": 2, "model.n_embd": 32}).model.state_dict()
    assert not torch.equal(fresh["embedding.weight"], weights["embedding.weight"])
    same = make({"init_from": "scratch", "model.n_layer": 2, "model.n_embd": 32}).model.state_dict()
    assert all(torch.equal(fresh[name], same[name]) for name in fresh)


@changes("loss_masking")
def test_loss_masking(make: Make) -> None:
    """finetuning: targets are the answer and its end; pretraining: every token but the first."""
    nothing_held_out = {"quintet.data.validation": 0}  # else a piece may be cut so that only its prompt is trained on
    whole = make(nothing_held_out).batch()
    answers = make({"loss_masking": "finetuning"} | nothing_held_out).batch()
    assert np.array_equal(whole.inputs, answers.inputs)
    for ids, all_targets, targets in zip(whole.inputs, whole.targets, answers.targets, strict=True):
        text = bytes(all_targets[(all_targets >= 0) & (all_targets < 256)].astype(np.uint8)).decode()
        prompt, _, answer = (chr(ids[0]) + text).rpartition(" ")
        first, second = prompt.removesuffix(" =").split(" + ")
        assert answer == str(int(first) + int(second))
        kept = targets[targets != IGNORED]
        assert bytes(kept[kept < 256].astype(np.uint8)).decode() == answer
        assert kept[-1] == 256
        assert (all_targets != IGNORED).sum() == len(prompt) + len(answer) + 1
    assert make({"loss_masking": "pretrianing"}).config.data.learn_prompts  # as a file of the project writes it


@changes("model.n_layer")
def test_layers(make: Make) -> None:
    assert len(make().model.blocks) == 1
    assert len(make({"model.n_layer": 3}).model.blocks) == 3


@changes("model.n_head")
def test_heads(make: Make) -> None:
    assert [make(change).model.blocks[0].attention.heads for change in ({}, {"model.n_head": 4})] == [2, 4]
    assert "5 heads do not divide" in refused(make, {"model.n_head": 5})


@changes("model.n_embd")
def test_width(make: Make) -> None:
    assert make({"model.n_embd": 32}).shapes["embedding.weight"][1] == 32


@changes("model.dropout")
def test_dropout(make: Make) -> None:
    assert not make().dropouts()
    made = make({"model.dropout": 0.25})
    assert set(made.dropouts().values()) == {0.25}
    assert made.config.model.attention.dropout == 0.25
    assert len(made.dropouts()) >= 2  # on the embedding and in the block
    start = make({"init_from": str(make().trained), "model.dropout": 0.5})
    assert set(start.dropouts().values()) == {0.5}


@changes("model.bias")
def test_bias(make: Make) -> None:
    with_bias = {name for name in make({"model.bias": True}).shapes if name.endswith("bias")}
    assert not [name for name in make().shapes if name.endswith("bias")]
    # Two norms and the last one, queries, keys and values as one, the output, two of the network; none of the head.
    assert len({name for name in with_bias if "head" not in name}) == 7
    assert not [name for name in with_bias if "head" in name]


@changes("model.context_size")
def test_positions(make: Make) -> None:
    made = make({"model.context_size": 24})
    assert (24, 16) in made.shapes.values()
    assert made.batch().inputs.shape == (6, 16)
    assert "more than the 8 of model.context_size" in refused(make, {"model.context_size": 8})
    alone = make({"model.context_size": 24}, without=["data.context_size"])
    assert alone.batch().inputs.shape == (6, 24)


@changes("data.context_size")
def test_length(make: Make) -> None:
    made = make({"data.context_size": 20})
    assert made.batch().inputs.shape == (6, 20)
    assert (20, 16) in made.shapes.values()
    longer = make({"data.context_size": 20}).trained
    cropped = make({"init_from": str(longer), "data.context_size": 8})
    assert (8, 16) in cropped.shapes.values()
    found = [value for value in cropped.model.state_dict().values() if tuple(value.shape) == (8, 16)]
    assert torch.equal(found[0], make({"init_from": str(longer)}, without=["data"]).model.position.weight[:8])


@changes("system.device")
def test_device(make: Make) -> None:
    assert make().run.compute.device.type == "cpu"
    assert make({"system.device": "cuda:0"}).config.train.device == "cuda"
    assert make({"system.device": "mps"}).config.train.device == "mps"
    assert "CUDA_VISIBLE_DEVICES=3" in refused(make, {"system.device": "cuda:3"})
    assert "must be one of cuda, cuda:0, cpu, mps" in refused(make, {"system.device": "tpu"})


@changes("system.dtype")
def test_precision(make: Make) -> None:
    assert make().run.compute.precision == "fp32"
    assert make({"system.dtype": "bfloat16"}).run.compute.precision == "bf16"
    assert make({"system.dtype": "float16", "system.device": "cuda"}).config.train.precision == "fp16"
    on_cpu = make({"system.dtype": "float16"})
    assert on_cpu.run.compute.precision == "fp32"
    assert "float16 is for GPUs" in "\n".join(on_cpu.loaded.notes)


@changes("system.compile")
def test_compile_blocks(make: Make) -> None:
    assert [make({"system.compile": value}).config.train.compile for value in (True, False)] == ["auto", False]


@changes("system.data_workers")
def test_workers(make: Make) -> None:
    assert [make({"system.data_workers": value}).config.data.processes for value in (0, 3)] == [1, 3]


@changes("data.batch_size")
def test_micro_batch(make: Make) -> None:
    made = make({"data.batch_size": 5})
    assert made.batch().inputs.shape == (10, 16)
    assert made.config.batch.micro_batch_size == 5
    assert made.config.evaluate.samples == 10


@changes("optimizer.gradient_accumulation_steps")
def test_accumulation(make: Make) -> None:
    """The same samples in more passes make the same step."""
    many = make({"optimizer.gradient_accumulation_steps": 3, "data.batch_size": 2, "loss_masking": "finetuning"})
    few = make({"loss_masking": "finetuning"})
    assert (many.config.batch.accumulation, few.config.batch.accumulation) == (3, 2)
    assert many.losses == pytest.approx(few.losses, rel=1e-4)
    assert make({"optimizer.gradient_accumulation_steps": 4}).batch().inputs.shape == (12, 16)


@changes("optimizer.max_iters")
def test_iterations(make: Make) -> None:
    assert make({"optimizer.max_iters": 3}).run.steps == 3
    assert len(make({"optimizer.max_iters": 3}).losses) == 3


@changes("optimizer.weight_decay")
def test_decay(make: Make) -> None:
    groups = make({"optimizer.weight_decay": 0.3, "model.bias": True}).optimizer.param_groups
    decayed = {group["weight_decay"]: {p.dim() >= 2 for p in group["params"]} for group in groups}
    assert decayed == {0.3: {True}, 0.0: {False}}


@changes("optimizer.grad_clip")
def test_clipping(make: Make) -> None:
    assert make({"optimizer.grad_clip": 0.0}).config.train.clip_norm is None
    assert make({"optimizer.grad_clip": 1e-9}).losses != make({"optimizer.grad_clip": 0.0}).losses


@changes("optimizer.beta1")
def test_beta1(make: Make) -> None:
    assert {group["betas"] for group in make({"optimizer.beta1": 0.8}).optimizer.param_groups} == {(0.8, 0.95)}


@changes("optimizer.beta2")
def test_beta2(make: Make) -> None:
    assert {group["betas"] for group in make({"optimizer.beta2": 0.99}).optimizer.param_groups} == {(0.9, 0.99)}


@changes("lr.learning_rate")
def test_learning_rate(make: Make) -> None:
    expected = [original_rate(step, 6, 2e-2, 1e-3, 2) for step in range(1, 7)]
    assert make({"lr.learning_rate": 2e-2}).rates == pytest.approx(expected)


@changes("lr.min_lr")
def test_lowest_rate(make: Make) -> None:
    expected = [original_rate(step, 6, 1e-2, 5e-3, 2) for step in range(1, 7)]
    assert make({"lr.min_lr": 5e-3}).rates == pytest.approx(expected)
    above = make({"lr.min_lr": 5e-2, "lr.warmup_iters": 0})
    assert above.rates == pytest.approx([1e-2] * 6)
    assert "lr.min_lr: 0.05 is above learning_rate" in "\n".join(above.loaded.notes)


@changes("lr.warmup_iters")
def test_warmup(make: Make) -> None:
    expected = [original_rate(step, 6, 1e-2, 1e-3, 4) for step in range(1, 7)]
    assert make({"lr.warmup_iters": 4}).rates == pytest.approx(expected)
    assert "lr.warmup_iters" in refused(make, {"lr.warmup_iters": 7})


@changes("lr.decay_lr")
def test_decays(make: Make) -> None:
    assert make({"lr.decay_lr": False}).rates == pytest.approx([1e-2] * 6)  # without a warm-up


@changes("lr.lr_decay_iters")
def test_decay_steps(make: Make) -> None:
    expected = [original_rate(step, 4, 1e-2, 1e-3, 2) for step in range(1, 7)]
    assert make({"lr.lr_decay_iters": 4}).rates == pytest.approx(expected)


@changes("lr.type")
def test_schedule_type(make: Make) -> None:
    assert make({"lr.type": "Constant"}).rates == pytest.approx([1e-2] * 6)
    assert make({"lr.type": "CosineDecay"}).rates == make().rates
    assert "exclude one another" in refused(make, {"lr.type": "Constant", "lr.decay_lr": True})


@changes("eval_interval")
def test_eval_interval(make: Make) -> None:
    """After steps 1, n + 1, 2n + 1 as in the original, and at the end; every step for n = 1."""
    assert list(make({"eval_interval": 2}).metrics("validation/loss")) == [1, 3, 5, 6]
    assert list(make({"eval_interval": 1}).metrics("validation/loss")) == [1, 2, 3, 4, 5, 6]
    assert make({"eval_interval": 2}).checkpoints[-1] == 6


@changes("eval_iters")
def test_eval_iters(make: Make) -> None:
    made = make({"eval_iters": 3})
    assert made.run.validation is not None
    count = made.config.evaluate.samples
    assert count == 9
    sizes = [len(batch.inputs) for batch in made.run.validation.batches(3, count)]
    assert sizes == [3, 3, 3]


@changes("eval_only")
def test_eval_only(make: Make) -> None:
    """The loss of the initial weights is measured, and nothing is trained."""
    made = make({"eval_only": True})
    assert list(made.metrics("validation/loss")) == [0]
    assert made.metrics("train/loss") == {}
    assert made.checkpoints == []
    first = make()
    again = make({"eval_only": True, "init_from": str(first.trained)})
    assert again.metrics("validation/loss")[0] == pytest.approx(first.metrics("validation/loss")[6], rel=1e-6)


@changes("logging.wandb_log")
def test_wandb(make: Make) -> None:
    assert make().config.track == ()
    [track] = make({"logging.wandb_log": True}).config.track
    assert (track.kind, track.arguments) == ("wandb", {"project": "piano-gpt"})


def _arguments(make: Make, **keys: str) -> dict[str, Any]:
    [track] = make({"logging.wandb_log": True, **{f"logging.{key}": value for key, value in keys.items()}}).config.track
    return track.arguments


@changes("logging.wandb_time_suffix")
def test_time_suffix(make: Make) -> None:
    """Hydra's `now` resolver works in a file without groups."""
    name = _arguments(make, wandb_run_name_suffix="pretraining", wandb_time_suffix="${now:%Y}")["name"]
    assert name.startswith("midi-gpt2-pretraining-20")
    assert len(name) == len("midi-gpt2-pretraining-2025")


@changes("logging.log_interval")
def test_progress_lines(make: Make) -> None:
    assert [make({"logging.log_interval": value}).run.intervals.log_every for value in (2, 5)] == [2, 5]


@changes("out_dir")
def test_folder(make: Make) -> None:
    made = make({"out_dir": "tmp/checkpoints"})
    assert made.trained == made.file.parent / "tmp/checkpoints/their"
    assert (made.trained / "checkpoints").is_dir()


@changes("command")
def test_command_key(make: Make) -> None:
    path = str(make().trained)
    tuned = make({"command": "tune", "checkpoint_path": path}, without=["init_from"])
    assert tuned.config.model.init.path == path
    assert make({"command": "init"}, without=["init_from"]).config.model.init.kind == "normal"
    assert "there is none; add checkpoint_path=FOLDER" in refused(make, {"command": "tune"})
    assert "is not used by command: init" in refused(make, {"command": "init", "init_from": path})
    resumed = refused(make, {"command": "resume", "checkpoint_path": path}, without=["init_from"])
    assert f"`quintet train {path}` to continue the run" in resumed
    assert len(resumed.splitlines()) == 1


@changes("training.prompt_masking")
def test_prompt_masking(make: Make) -> None:
    by_name = make({"loss_masking": "finetuning"}).batch()
    masked = make({"training.prompt_masking": True}, without=["loss_masking"])
    assert np.array_equal(masked.batch().targets, by_name.targets)
    assert make({"training.prompt_masking": False}, without=["loss_masking"]).config.data.learn_prompts
    assert "contradicts loss_masking" in refused(make, {"training.prompt_masking": True})


@changes("training.batch_size")
def test_whole_batch(make: Make) -> None:
    made = make({"training.batch_size": 9}, without=["optimizer.gradient_accumulation_steps"])
    assert made.batch().inputs.shape == (9, 16)
    assert made.config.batch.accumulation == 3
    assert "8 samples are not a multiple of the 3 of a pass" in refused(make, {"training.batch_size": 8})
    both = make({"training.batch_size": 9})  # piano-gpt reads only the first
    assert both.config.batch.accumulation == 3
    assert any("not used, as in the original: training.batch_size makes it 3" in note for note in both.loaded.notes)


@changes("logging.wandb_project")
def test_wandb_project(make: Make) -> None:
    assert _arguments(make, wandb_project="mine")["project"] == "mine"


@changes("logging.wandb_entity")
def test_wandb_entity(make: Make) -> None:
    assert _arguments(make, wandb_entity="epr-labs")["entity"] == "epr-labs"


@changes("logging.wandb_run_name_suffix")
def test_wandb_run_name_suffix(make: Make) -> None:
    assert _arguments(make, wandb_run_name_suffix="subsequence")["name"] == "midi-gpt2-subsequence"


def test_a_device_that_is_not_here_is_named_by_the_key_of_the_file(said: Said) -> None:
    [line] = said("train", {"system.device": "mps"})
    assert line.startswith("system.device: this machine has no mps device")
