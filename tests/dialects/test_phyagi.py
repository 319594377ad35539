"""PhyAGI: each key changes what its document says it changes, in the run that is really built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.dialects.conftest import Make
from tests.dialects.phyagi_data import (
    cache_dir,
    collator_class,
    data_root,
    dataset_concat,
    dataset_global_weight,
    dataset_path,
    dataset_provider,
    eval_dataset_concat,
    ignore_index,
    ignore_token_ids,
    ignore_token_range,
    label,
    loss_mask,
    output_dir,
    output_root,
    seq_len,
    shift_labels,
    tokenizer_file,
    train_file,
    trainer,
    validation_file,
    validation_split,
    weight,
)
from tests.dialects.phyagi_model import (
    activation,
    attention_biases,
    block,
    block_class,
    causal,
    checkpointing,
    compiled,
    cross_sample,
    embd_layer,
    epsilon,
    gated,
    heads,
    kv_heads,
    loss_shift,
    model_type,
    norm_class,
    normed_heads,
    pretrained,
    rope_scaling,
    rotary_base,
    rotary_dim,
    rotary_scale_base,
    rounded,
    softmax_scale,
    spread,
    task,
    tied,
    trust,
    vocabulary,
    window,
)
from tests.dialects.phyagi_parallel import PARALLEL
from tests.dialects.phyagi_runs import (
    DS,
    MIXER,
    MODULE,
    PL,
    VOCAB,
    contains,
    equal,
    lightning,
    raises,
    rates,
)
from tests.dialects.phyagi_runs import base as base  # a fixture
from tests.dialects.phyagi_runs import data as data  # a fixture
from tests.dialects.phyagi_trainers import (
    further,
    hf,
    hf_betas,
    hf_optimizer,
    hf_saves,
    hf_schedule,
    hf_schedule_arguments,
    hf_strategies,
    pl_evaluation,
    pl_every_epochs,
    pl_group,
    pl_interval,
    pl_length,
    pl_limit,
    pl_optimizer,
    pl_precision,
    pl_schedule,
    pl_scheduler_parameters,
)
from tests.dialects.phyagi_training import (
    accumulation,
    adam_mode,
    batches,
    clipping,
    do_eval,
    epochs,
    eval_max_steps,
    eval_steps,
    final_evaluation,
    group,
    host,
    logging_steps,
    max_steps,
    micro_batches,
    optimizer_type,
    other_parameter,
    precision,
    save_final,
    save_steps,
    schedule_parameters,
    schedule_type,
    seed,
    shuffle,
    torch_dtype,
    tracked,
)
from tests.helpers import refused

DIALECT = "phyagi"

OTHER_PARAMETERS = (
    "momentum", "dampening", "alpha", "rho", "lr_decay", "lambd", "t0", "nesterov", "centered", "amsgrad"
)  # fmt: skip


def beside(behaviour: Callable[[Make, Path], None]) -> Callable[[Make], None]:
    """``behaviour`` given the folder of the base file's data."""
    return lambda make: behaviour(make, Path(make().config.data.sources[0].path).parents[1])


def in_folder(behaviour: Callable[[Make, Path], None]) -> Callable[[Make], None]:
    """``behaviour`` given a folder to write in."""
    return lambda make: behaviour(make, make().file.parent)


BEHAVIOUR: dict[str, Callable[[Make], None]] = {
    "data_root": beside(data_root),
    "dataset[].cache_dir": beside(cache_dir),
    "dataset[].train_file": beside(train_file),
    "dataset[].validation_file": beside(validation_file),
    "dataset[].validation_split": beside(validation_split),
    "dataset[].tokenizer_file": beside(tokenizer_file),
    "dataset[].seq_len": beside(seq_len),
    "dataset[].weight": beside(weight),
    "dataset[].label": beside(label),
    "dataset[].dataset_path": beside(dataset_path),
    "dataset_concat": beside(dataset_concat),
    "eval_dataset_concat": beside(eval_dataset_concat),
    "dataset_provider": beside(dataset_provider),
    "dataset_collator.ignore_index": in_folder(ignore_index),
    "model.pretrained_model_name_or_path": in_folder(pretrained),
    "training_args.dataloader_shuffle": beside(shuffle),
    "output_dir": output_dir,
    "output_root": output_root,
    "trainer": trainer,
    "dataset[].shift_labels": shift_labels,
    "dataset_global_weight": dataset_global_weight,
    "dataset_collator.cls": collator_class,
    "dataset_collator.ignore_token_ids": ignore_token_ids,
    "dataset_collator.ignore_token_range": ignore_token_range,
    "model.model_type": model_type,
    "model.vocab_size": vocabulary,
    "model.n_positions": lambda make: contains("more than", refused(make, {"model.n_positions": 8})),
    "model.n_embd": lambda make: equal(make({"model.n_embd": 32}).shapes["embedding.weight"], (VOCAB, 32)),
    "model.n_layer": lambda make: equal(len(make({"model.n_layer": 3}).model.blocks), 3),
    "model.n_head": heads,
    "model.rotary_dim": rotary_dim,
    "model.embd_pdrop": lambda make: equal(list(make({"model.embd_pdrop": 0.25}).dropouts().values()), [0.25]),
    "model.resid_pdrop": lambda make: equal(make({"model.resid_pdrop": 0.25}).model.blocks[0].dropout.p, 0.25),
    "model.activation_function": activation,
    "model.layer_norm_epsilon": epsilon,
    "model.initializer_range": spread,
    "model.pad_vocab_size_multiple": rounded,
    "model.embd_layer": embd_layer,
    "model.model_task": lambda make: task(make, {"model.model_task": "seq_cls"}),
    "model.use_torch_compile": compiled,
    "model.torch_dtype": torch_dtype,
    "model.trust_remote_code": trust,
    "model.n_inner": lambda make: equal(make({"model.n_inner": 24}).shapes["blocks.0.feedforward.up.weight"], (24, 16)),
    "model.n_head_kv": kv_heads,
    "model.tie_word_embeddings": tied,
    "model.gradient_checkpointing": checkpointing,
    "model.cross_sample_token_id": cross_sample,
    "model.architecture.block_cls": block_class,
    f"{MIXER}.mixer_cls": lambda make: contains("must be one of mha", refused(make, block("mixer.mixer_cls", "ssm"))),
    f"{MIXER}.head_dim": lambda make: equal(
        make(block("mixer.head_dim", 4)).shapes["blocks.0.attention.qkv.weight"], (24, 16)
    ),
    f"{MIXER}.causal": causal,
    f"{MIXER}.softmax_scale": softmax_scale,
    f"{MIXER}.window_size": window,
    f"{MIXER}.dropout": lambda make: equal(
        make(block("mixer.dropout", 0.25)).model.blocks[0].attention.dropout.p, 0.25
    ),
    f"{MIXER}.bias": attention_biases,
    f"{MIXER}.out_bias": attention_biases,
    f"{MIXER}.qk_norm": normed_heads,
    f"{MIXER}.rotary_base": rotary_base,
    f"{MIXER}.rotary_scale_base": rotary_scale_base,
    f"{MIXER}.rope_scaling": rope_scaling,
    "model.architecture.mlp.mlp_cls": gated,
    "model.architecture.norm.norm_cls": norm_class,
    "model.architecture.head.head_cls": lambda make: task(make, block("head.head_cls", "seq_cls")),
    "model.architecture.head.use_bias": lambda make: equal(
        "head.bias" in make(block("head.use_bias", False)).shapes, False
    ),
    "model.architecture.loss.loss_cls": lambda make: contains(
        "must be one of causal_lm", refused(make, block("loss.loss_cls", "x"))
    ),
    "model.architecture.loss.shift_labels": loss_shift,
    "model.architecture.loss.reduction": lambda make: contains(
        "must be one of mean", refused(make, block("loss.reduction", "sum"))
    ),
    f"{DS}.fp16.enabled": lambda make: precision(make, "fp16"),
    f"{DS}.bf16.enabled": lambda make: precision(make, "bf16"),
    f"{DS}.optimizer.type": optimizer_type,
    f"{DS}.optimizer.params.lr": lambda make: equal(rates(make({f"{DS}.optimizer.params.lr": 0.5})), [0.5] * 4),
    f"{DS}.optimizer.params.betas": lambda make: equal(tuple(group(make, "betas", [0.8, 0.9])), (0.8, 0.9)),
    f"{DS}.optimizer.params.eps": lambda make: equal(group(make, "eps", 1e-4), 1e-4),
    f"{DS}.optimizer.params.weight_decay": lambda make: equal(group(make, "weight_decay", 0.3), 0.3),
    f"{DS}.optimizer.params.adam_w_mode": adam_mode,
    f"{DS}.scheduler.type": schedule_type,
    f"{DS}.scheduler.params": schedule_parameters,
    f"{DS}.gradient_clipping": clipping,
    f"{DS}.train_batch_size": batches,
    f"{DS}.train_micro_batch_size_per_gpu": micro_batches,
    f"{DS}.gradient_accumulation_steps": accumulation,
    "training_args.do_eval": do_eval,
    "training_args.do_final_eval": final_evaluation,
    "training_args.num_train_epochs": epochs,
    "training_args.max_steps": max_steps,
    "training_args.logging_steps": logging_steps,
    "training_args.save_steps": save_steps,
    "training_args.save_final_checkpoint": save_final,
    "training_args.eval_steps": eval_steps,
    "training_args.eval_max_steps": eval_max_steps,
    "training_args.seed": seed,
    "training_args.mlflow": lambda make: tracked(make, "mlflow"),
    "training_args.wandb": lambda make: tracked(make, "wandb"),
    "training_args.tensorboard": lambda make: tracked(make, "tensorboard"),
    "training_args.wandb_host": host,
    "training_args.learning_rate": lambda make: equal(rates(hf(make, "learning_rate", 0.5))[0], 0.5),
    "training_args.per_device_train_batch_size": lambda make: equal(
        hf(make, "per_device_train_batch_size", 3).batch().inputs.shape, (3, 16)
    ),
    "training_args.per_device_eval_batch_size": lambda make: equal(
        hf(make, "per_device_eval_batch_size", 3).config.evaluate.batch_size, 3
    ),
    "training_args.gradient_accumulation_steps": lambda make: equal(
        hf(make, "gradient_accumulation_steps", 2).batch().inputs.shape, (8, 16)
    ),
    "training_args.optim": hf_optimizer,
    "training_args.weight_decay": hf_optimizer,
    "training_args.adam_beta1": hf_betas,
    "training_args.adam_beta2": hf_betas,
    "training_args.adam_epsilon": lambda make: equal(
        hf(make, "adam_epsilon", 1e-4).optimizer.param_groups[0]["eps"], 1e-4
    ),
    "training_args.lr_scheduler_type": hf_schedule,
    "training_args.lr_scheduler_kwargs": hf_schedule_arguments,
    "training_args.warmup_ratio": hf_schedule,
    "training_args.warmup_steps": hf_schedule,
    "training_args.max_grad_norm": lambda make: equal(
        [hf(make, "max_grad_norm", value).config.train.clip_norm for value in (0.5, 0)], [0.5, None]
    ),
    "training_args.bf16": lambda make: equal(hf(make, "bf16", True).run.compute.precision, "bf16"),
    "training_args.fp16": lambda make: equal(hf(make, "fp16", True).config.train.precision, "fp16"),
    "training_args.eval_strategy": hf_strategies,
    "training_args.save_strategy": hf_saves,
    "training_args.save_total_limit": hf_saves,
    "training_args.eval_on_start": lambda make: equal(hf(make, "eval_on_start", True).config.evaluate.at_start, True),
    "training_args.label_smoothing_factor": lambda make: equal(
        hf(make, "label_smoothing_factor", 0.1).config.loss.label_smoothing, 0.1
    ),
    "training_args.torch_compile": lambda make: equal(
        [hf(make, "torch_compile", value).config.train.compile for value in (False, True)], [False, True]
    ),
    "training_args.use_cpu": lambda make: equal(hf(make, "use_cpu", True).run.compute.device.type, "cpu"),
    "training_args.train_micro_batch_size_per_gpu": lambda make: equal(
        lightning(make, train_micro_batch_size_per_gpu=2).batch().inputs.shape, (2, 16)
    ),
    f"{PL}.max_epochs": pl_length,
    f"{PL}.max_steps": pl_length,
    f"{PL}.precision": pl_precision,
    f"{PL}.log_every_n_steps": lambda make: equal(lightning(make, {"log_every_n_steps": 2}).run.intervals.log_every, 2),
    f"{PL}.accumulate_grad_batches": lambda make: equal(
        lightning(make, {"accumulate_grad_batches": 2}).batch().inputs.shape, (8, 16)
    ),
    f"{PL}.gradient_clip_val": lambda make: equal(
        lightning(make, {"gradient_clip_val": 0.5}).config.train.clip_norm, 0.5
    ),
    f"{PL}.gradient_clip_algorithm": lambda make: raises(
        "must be one of norm", lambda: lightning(make, {"gradient_clip_algorithm": "value"})
    ),
    f"{PL}.val_check_interval": pl_evaluation,
    f"{PL}.check_val_every_n_epoch": pl_every_epochs,
    f"{PL}.limit_val_batches": pl_limit,
    f"{PL}.accelerator": lambda make: equal(
        [lightning(make, {"accelerator": name}).config.train.device for name in ("cpu", "gpu")], ["cpu", "cuda"]
    ),
    f"{MODULE}.optimizer.type": pl_optimizer,
    f"{MODULE}.optimizer.params.lr": lambda make: equal(pl_group(make, "lr", 0.5), 0.5),
    f"{MODULE}.optimizer.params.betas": lambda make: equal(tuple(pl_group(make, "betas", [0.8, 0.9])), (0.8, 0.9)),
    f"{MODULE}.optimizer.params.eps": lambda make: equal(pl_group(make, "eps", 1e-4), 1e-4),
    f"{MODULE}.optimizer.params.weight_decay": lambda make: equal(pl_group(make, "weight_decay", 0.3), 0.3),
    f"{MODULE}.scheduler.type": pl_schedule,
    f"{MODULE}.scheduler.params": pl_scheduler_parameters,
    f"{MODULE}.scheduler.interval": pl_interval,
    "training_args.arguments": further,
    **PARALLEL,
    **{
        f"{place}.optimizer.params.{name}": lambda make, place=place, name=name: other_parameter(make, place, name)
        for place in (DS, MODULE)
        for name in OTHER_PARAMETERS
    },
}


@pytest.mark.parametrize("key", BEHAVIOUR)
def test_the_key_changes_what_it_says(key: str, make: Make) -> None:
    BEHAVIOUR[key](make)


@pytest.mark.parametrize("name", ["ignore_token_range", "ignore_token_id_range"])
@pytest.mark.parametrize(
    ("span", "left"),
    [
        ([0, 10], range(11, VOCAB)),
        ([10, None], range(6, 10)),
        ([0, 0], range(6, VOCAB)),
        ([None, 7], range(8, VOCAB)),
    ],
)
def test_both_bounds_of_a_range_count_and_0_is_a_bound(make: Make, name: str, span: list[Any], left: range) -> None:
    assert loss_mask(make({"dataset_collator": {"cls": "lm", name: span}})) == set(left)


def test_the_learning_rate_is_that_of_the_worked_example(make: Make) -> None:
    """Warm-up of 4 of 10 steps from .1 to 1.1, simulated with DeepSpeed itself."""
    parameters = {"warmup_min_lr": 0.1, "warmup_max_lr": 1.1, "warmup_type": "linear", "warmup_num_steps": 4}
    made = make({f"{DS}.scheduler": {"type": "WarmupDecayLR", "params": parameters}, "training_args.max_steps": 10})
    expected = [0.1, 0.1, 0.35, 0.6, 0.85, 1.1, 0.9333, 0.7667, 0.6, 0.4333]
    assert rates(made, 10) == pytest.approx(expected, abs=1e-4)
    assert made.rates == pytest.approx(expected, abs=1e-4)
