"""VectorLM: the keys of training, adapters and processed datasets, and what each of them changes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from tests.dialects.conftest import Made, Make, Said, changes, each_changes, same
from tests.dialects.vectorlm_runs import (
    LORA,
    NONE,
    WORDS,
    T,
    refused,
    rows_of,
    some_rows,
    write_model,
    write_rows,
)
from tests.dialects.vectorlm_runs import base as base  # a fixture
from tests.dialects.vectorlm_runs import world as world  # a fixture

from quintet.config.load import load_run_config
from quintet.train.schedule import learning_rate

transformers = pytest.importorskip("transformers")

DIALECT = "vectorlm"


@changes("model")
def test_the_model(make: Make) -> None:
    other = write_model(make().file.parent / "other", seed=5)
    first, second = make().model.state_dict(), make({"model": str(other)}).model.state_dict()
    name = next(name for name in first if "q_proj" in name)
    assert not torch.equal(first[name], second[name])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(other).state_dict()
    torch.testing.assert_close(second[name], loaded[name.removeprefix("inner.")])


@changes(f"{T}.output_dir")
def test_the_folder(make: Make) -> None:
    made = make({f"{T}.output_dir": "some/where"})
    assert made.trained == made.file.parent / "some/where"
    assert made.checkpoints
    assert "must end with a name" in refused(make, {f"{T}.output_dir": ".."})


@changes(f"{T}.max_seq_len")
def test_the_length(make: Make) -> None:
    """A row has S tokens: all but the last are inputs, and all but the first are targets."""
    assert make().batch().inputs.shape == (4, 11)
    shorter = make({f"{T}.max_seq_len": 7})
    assert max(len(ids) for ids, _ in rows_of(shorter)) == 7
    assert shorter.batch().inputs.shape == (4, 6)
    for value in (None, 0, -1):
        assert make({f"{T}.max_seq_len": value}).config.data.sequence_length == 63
    assert make(without=[f"{T}.max_seq_len"]).config.data.sequence_length == 63
    assert "65 tokens are more" not in refused(make, {f"{T}.max_seq_len": 2})
    assert "64 positions" in refused(make, {f"{T}.max_seq_len": 66})


@changes(f"{T}.epochs")
def test_the_epochs(make: Make) -> None:
    """32 rows in batches of 4; each epoch has all rows in another order."""
    assert make().run.steps == 8
    made = make({f"{T}.epochs": 3})
    assert made.run.steps == 24
    first, second = (np.concatenate([made.batch(step).inputs for step in steps]) for steps in (range(8), range(8, 16)))
    assert not np.array_equal(first, second)
    assert sorted(map(tuple, first.tolist())) == sorted(map(tuple, second.tolist()))


@changes(f"{T}.seed")
def test_the_seed(make: Make) -> None:
    assert same(make().batch(), make().batch())
    assert not same(make().batch(), make({f"{T}.seed": 12}).batch())


@changes(f"{T}.use_mp")
def test_mixed_precision(make: Make) -> None:
    """Matrix products in bf16, while weights and averages stay in fp32."""
    assert make().run.compute.precision == "fp32"
    mixed = make({f"{T}.use_mp": True})
    assert mixed.run.compute.precision == "bf16"
    assert {parameter.dtype for parameter in mixed.model.parameters()} == {torch.float32}


@changes(f"{T}.use_activation_checkpointing")
def test_checkpointing(make: Make) -> None:
    def does(made: Made) -> bool:
        return any(getattr(module, "gradient_checkpointing", False) for module in made.model.modules())

    assert not does(make())
    assert does(make({f"{T}.use_activation_checkpointing": True}))


@changes(f"{T}.use_flash_attention")
def test_flash(make: Make) -> None:
    key = f"{T}.use_flash_attention"
    assert "set use_mp: true" in refused(make, {key: True})
    fast = make({key: True, f"{T}.use_mp": True})
    if importlib.util.find_spec("flash_attn") is None:
        assert fast.model.causal.config._attn_implementation == "sdpa"
        assert any("flash_attn is not installed" in note for note in fast.loaded.notes)
    else:
        assert fast.config.model.attention_backend == "flash_attention_2"
    with mock.patch("importlib.util.find_spec", return_value=object()):
        installed = make({key: True, f"{T}.use_mp": True})
    assert installed.config.model.attention_backend == "flash_attention_2"
    assert not installed.loaded.notes
    assert make().config.model.attention_backend == "auto"


@changes(f"{T}.max_grad_norm")
def test_clipping(make: Make) -> None:
    """AdamW depends on the size of a gradient only through eps, so the test has a large eps."""
    rough = {"eps": 1.0, "lr": 0.1, "weight_decay": 0}

    def validation(norm: float | None) -> dict[int, float]:
        return make({f"{T}.max_grad_norm": norm, f"{T}.optimizer": rough}).metrics("validation/loss")

    free, tight = validation(None), validation(1e-6)
    assert free[8] < free[2] - 0.01
    assert tight[8] == pytest.approx(tight[2], abs=1e-4)
    assert validation(1e6) == free


@changes(f"{T}.gradient_accumulation_steps")
def test_accumulation(make: Make) -> None:
    """A step of 4 micro-batches of 4 rows has the gradient of 16 rows at once; 32 rows are 2 steps."""
    many = make({f"{T}.gradient_accumulation_steps": 4, f"{T}.warmup_ratio": 0})
    assert (many.run.steps, many.batch().inputs.shape) == (2, (16, 11))
    once = make({"dataset.train_bs": 16, f"{T}.warmup_ratio": 0})
    assert many.losses == pytest.approx(once.losses, rel=1e-5)


def learning_rates(make: Make, name: str, warmup: float, steps: int = 8, **more: Any) -> list[float]:
    config = make({f"{T}.lr_scheduler_type": name, f"{T}.warmup_ratio": warmup, **more}).config
    return [learning_rate(config.schedule, config.optimizer.lr, step, steps) for step in range(1, steps + 1)]


@changes(f"{T}.lr_scheduler_type", f"{T}.min_lr", f"{T}.lr_scheduler_kwargs")
def test_schedules(make: Make) -> None:
    """The schedules of the library have the library's own rates, which start at 0 with a warm-up."""
    assert make().rates == pytest.approx(learning_rates(make, "cosine", 0.25))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    for name in ("linear", "cosine", "polynomial", "inverse_sqrt", "constant_with_warmup", "cosine_with_restarts"):
        for group in optimizer.param_groups:
            group.update(lr=1e-3, initial_lr=1e-3)
        theirs = transformers.get_scheduler(name, optimizer, 2, 8)
        expected = []
        for _ in range(8):
            expected.append(theirs.get_last_lr()[0])
            optimizer.step()
            theirs.step()
        assert learning_rates(make, name, 0.25) == pytest.approx(expected), name
    assert learning_rates(make, "constant", 0.25) == pytest.approx([1e-3] * 8)
    assert "greedy follows the loss" in refused(make, {f"{T}.lr_scheduler_type": "greedy"})
    assert "did you mean 'cosine'" in refused(make, {f"{T}.lr_scheduler_type": "cosin"})
    arguments = {"quintet.schedule": {"arguments": {"min_lr": 1e-4}}}
    for name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        flat = make({f"{T}.lr_scheduler_type": name, f"{T}.warmup_ratio": 0})
        assert f"{name} without min_lr ends at 0" in "\n".join(load_run_config([flat.file]).notes)
        assert min(learning_rates(make, name, 0, steps=800)) < 1e-7
        floors = {f"{T}.min_lr": 1e-4}, {f"{T}.lr_scheduler_kwargs": {"min_lr": 1e-4}}
        for floor in floors:
            assert min(learning_rates(make, name, 0, steps=800, **floor)) == pytest.approx(1e-4, rel=1e-3)
    assert "and not to cosine" in refused(make, {f"{T}.lr_scheduler_type": "cosine", f"{T}.min_lr": 1e-4})
    assert min(learning_rates(make, "cosine_with_min_lr", 0, **arguments)) > 1e-4


@changes(f"{T}.warmup_ratio")
def test_warmup(make: Make) -> None:
    """A quarter of all steps, not of an epoch: 6 in 3 epochs of 8 steps."""
    made = make({f"{T}.lr_scheduler_type": "constant_with_warmup", f"{T}.epochs": 3})
    assert made.run.steps == 24
    rates = learning_rates(make, "constant_with_warmup", 0.25, steps=24)
    assert rates == pytest.approx([1e-3 * min(step / 6, 1) for step in range(24)])
    assert "must be at most 1" in refused(make, {f"{T}.warmup_ratio": 1.5})


@changes(f"{T}.checkpointing_enabled")
def test_state_checkpoints(make: Make) -> None:
    assert make().checkpoints == [2, 4, 6, 8]
    assert make({f"{T}.checkpointing_enabled": False}).checkpoints == [8]
    assert saves(make({f"{T}.checkpointing_enabled": False}, without=[f"{T}.save_frequency"])) == [8]


def saves(made: Made) -> list[int]:
    return [step for step in range(1, made.run.steps + 1) if made.run.intervals.saves(step)]


@changes(f"{T}.save_frequency")
def test_save_frequency(make: Make) -> None:
    """A part of an epoch, here 8 steps, for any number of epochs."""
    assert saves(make({f"{T}.save_frequency": 0.5, f"{T}.epochs": 2})) == [4, 8, 12, 16]
    assert "must be above 0" in refused(make, {f"{T}.save_frequency": 0})
    assert "must be at most 1" in refused(make, {f"{T}.save_frequency": 2})
    assert "is missing" in refused(make, {}, without=[f"{T}.save_frequency"])


@changes(f"{T}.logging_steps")
def test_evaluations(make: Make) -> None:
    """4 micro-batches are 4 steps of one micro-batch or 2 steps of two."""
    assert list(make({f"{T}.logging_steps": 4}).metrics("validation/loss")) == [4, 8]
    two = {f"{T}.logging_steps": 4, f"{T}.gradient_accumulation_steps": 2}
    assert list(make(two).metrics("validation/loss")) == [2, 4]
    uneven = make({f"{T}.logging_steps": 5, f"{T}.gradient_accumulation_steps": 2})
    assert uneven.config.evaluate.every == 3
    assert any("are not a multiple of the" in note for note in uneven.loaded.notes)
    assert make({f"{T}.logging_steps": 1, f"{T}.gradient_accumulation_steps": 8}).config.evaluate.every == 1


def group(made: Made) -> dict[str, Any]:
    assert type(made.optimizer) is torch.optim.AdamW
    (only,) = (group for group in made.optimizer.param_groups if group["params"])
    return only


@each_changes(
    "value default",
    (f"{T}.optimizer.lr", 0.5, 1e-3),
    (f"{T}.optimizer.weight_decay", 0.3, 0.01),
    (f"{T}.optimizer.betas", [0.7, 0.8], (0.9, 0.999)),
    (f"{T}.optimizer.eps", 1e-3, 1e-8),
    (f"{T}.optimizer.amsgrad", True, False),
    (f"{T}.optimizer.maximize", True, False),
    (f"{T}.optimizer.foreach", True, None),
)
def test_an_argument_of_the_optimizer(make: Make, key: str, value: Any, default: Any) -> None:
    changed, name = make({key: value}), key.rpartition(".")[2]
    found = group(changed)
    assert len(found["params"]) == len(changed.shapes)  # norms and embeddings are in the same group
    found = {**found, "lr": changed.config.optimizer.lr}
    assert found[name] == (tuple(value) if isinstance(value, list) else value)
    left_out = make({f"{T}.optimizer": {}})
    assert {**group(left_out), "lr": left_out.config.optimizer.lr}[name] == default


def adapted(make: Make, **keys: Any) -> Made:
    return make({f"{T}.lora_peft_config": {**LORA, **keys}})


def adapters(made: Made) -> set[str]:
    """Return the names of the modules with an adapter."""
    return {name.split(".")[-4] for name in made.shapes if ".lora_A." in name}


@changes(f"{T}.lora_peft_config.task_type")
def test_task_type(make: Make) -> None:
    made = adapted(make)
    trained = {name for name, parameter in made.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in made.shapes if "lora_" in name} != set()
    assert "must be CAUSAL_LM" in refused(make, {f"{T}.lora_peft_config": {"task_type": "SEQ_CLS"}})
    assert not adapters(make({f"{T}.lora_peft_config": None}))


@changes(f"{T}.lora_peft_config.r")
def test_rank(make: Make) -> None:
    for keys, expected in (({"r": 3}, 3), ({"r": None}, 8)):
        sizes = {shape[0] for name, shape in adapted(make, **keys).shapes.items() if ".lora_A." in name}
        assert sizes == {expected}


@changes(f"{T}.lora_peft_config.lora_alpha")
def test_alpha(make: Make) -> None:
    def scale(made: Made) -> float:
        return next(module.scaling["default"] for module in made.model.modules() if hasattr(module, "lora_A"))

    assert scale(adapted(make)) == 6 / 2
    assert scale(adapted(make, lora_alpha=10)) == 10 / 2
    assert scale(adapted(make, lora_alpha=None)) == 8 / 2


@changes(f"{T}.lora_peft_config.lora_dropout")
def test_lora_dropout(make: Make) -> None:
    assert set(adapted(make).dropouts().values()) == {0.25}
    assert not adapted(make, lora_dropout=0).dropouts()


@changes(f"{T}.lora_peft_config.target_modules")
def test_lora_targets(make: Make) -> None:
    """The modules that peft chooses for a llama, or those that are named."""
    assert adapters(adapted(make)) == {"q_proj", "v_proj"}
    assert adapters(adapted(make, target_modules=["k_proj"])) == {"k_proj"}
    assert "down_proj" in adapters(adapted(make, target_modules="all-linear"))


@changes("dataset.train_ds")
def test_train_dataset(make: Make) -> None:
    other = write_rows(make().file.parent / "other", some_rows(12, seed=9), split="anything")
    assert sorted(rows_of(make({"dataset.train_ds": str(other)}))) == sorted(some_rows(12, seed=9))
    assert "there is no folder" in refused(make, {"dataset.train_ds": "./nowhere"})
    assert "dataset.train_ds: is missing" in refused(make, {}, without=["dataset.train_ds"])


@changes("dataset.eval_ds")
def test_eval_dataset(make: Make, world: Path) -> None:
    """All rows are evaluated: the loss is that of the library's own model over all labels."""
    made = make({f"{T}.optimizer.lr": 1e-12})
    model = transformers.AutoModelForCausalLM.from_pretrained(world / "model").eval()
    total = count = 0.0
    for ids, labels in some_rows(8, seed=2):
        with torch.no_grad():  # the model has more rows than the tokenizer ids
            logits = model(torch.tensor([ids])).logits[0, :-1, : max(WORDS.values()) + 1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum").item()
        count += sum(label != NONE for label in labels[1:])
    assert made.metrics("validation/loss")[8] == pytest.approx(total / count, rel=1e-5)
    other = write_rows(made.file.parent / "other", some_rows(3, seed=4))
    assert make({"dataset.eval_ds": str(other), f"{T}.optimizer.lr": 1e-12}).metrics("validation/loss") != made.metrics(
        "validation/loss"
    )


@changes("dataset.ignore_index")
def test_ignored(make: Make) -> None:
    """Labels with another ignore_index have no loss, in both datasets."""
    place = make().file.parent
    seven = [(ids, [-7 if label == NONE else label for label in labels]) for ids, labels in some_rows(8, seed=1)]
    both = {f"dataset.{name}": str(write_rows(place / name, seven)) for name in ("train_ds", "eval_ds")}
    made = make({**both, "dataset.ignore_index": -7})
    assert sorted(rows_of(made)) == sorted(some_rows(8, seed=1))
    assert made.run.validation is not None
    assert "ignore_index" in refused(make, both)


@changes("dataset.eval_bs")
def test_eval_batch(make: Make) -> None:
    assert make({"dataset.eval_bs": 3}).config.evaluate.batch_size == 3
    one, eight = (make({"dataset.eval_bs": size}).metrics("validation/loss") for size in (1, 8))
    assert one == pytest.approx(eight, rel=1e-5)


@changes("enable_wandb_logging")
def test_logging(make: Make) -> None:
    assert make().config.track == ()
    pytest.importorskip("wandb")
    on = {"enable_wandb_logging": True, "wandb_config": {"project": "MedGPT", "name": "tiny", "mode": "offline"}}
    made = make({**on, f"{T}.epochs": 1})
    assert list((made.trained / "wandb").glob("offline-run-*"))
    off = make({"wandb_config": on["wandb_config"]})
    assert off.config.track == ()


@changes("wandb_config")
def test_wandb_arguments(make: Make) -> None:
    pytest.importorskip("wandb")
    made = make({"enable_wandb_logging": True, "wandb_config": {"project": "MedGPT", "tags": ["a"]}})
    assert made.config.track[0].arguments == {"project": "MedGPT", "tags": ["a"]}
    misspelt = {"enable_wandb_logging": True, "wandb_config": {"projct": "x"}}
    assert "did you mean project" in refused(make, misspelt)


@changes("dataset.train_bs")
def test_train_batch(make: Make) -> None:
    assert make({"dataset.train_bs": 8}).batch().inputs.shape == (8, 11)
    assert make({"dataset.train_bs": 8}).run.steps == 4


@changes(f"{T}.lora_peft_config.inference_mode")
def test_inference_mode(make: Make) -> None:
    assert "cannot be trained" in refused(make, {f"{T}.lora_peft_config": {**LORA, "inference_mode": True}})
    assert adapters(adapted(make, inference_mode=False))


@changes(f"{T}.sharding_strategy")
def test_sharding(make: Make) -> None:
    """Each strategy of torch's FSDP is one of `parallel`."""
    names = {
        "NO_SHARD": ("ddp", None),
        "FULL_SHARD": ("fsdp", "full"),
        "SHARD_GRAD_OP": ("fsdp", "grad_op"),
        "HYBRID_SHARD": ("hsdp", "full"),
        "_HYBRID_SHARD_ZERO2": ("hsdp", "grad_op"),
    }
    for name, spread in names.items():
        parallel = make({f"{T}.sharding_strategy": name}).config.parallel
        assert (parallel.kind, getattr(parallel, "shard", None)) == spread
    assert make(without=[f"{T}.sharding_strategy"]).config.parallel.kind == "auto"


TOO_LONG = f"{T}.max_seq_len: 99999 tokens are more than the 64 positions"


@pytest.mark.parametrize(
    ("verb", "changes", "message"),
    [
        *((verb, {f"{T}.max_seq_len": 100000}, TOO_LONG) for verb in ("train", "plan")),
        ("train", {"quintet.train.device": "mps"}, "quintet.train.device: this machine has no mps device"),
    ],
)
def test_every_verb_names_the_keys_of_the_file(verb: str, changes: dict[str, Any], message: str, said: Said) -> None:
    assert [line for line in said(verb, changes) if line.startswith(message)]
