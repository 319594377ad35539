"""PhyAGI: the keys of DeepSpeed and those that all trainers share, and what each of them changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.dialects.conftest import Make, changes, each_changes, same
from tests.dialects.phyagi_runs import DS, MODULE, lightning, optimized, rates, tokens, unbuilt
from tests.dialects.phyagi_runs import base as base  # a fixture
from tests.dialects.phyagi_runs import data as data  # a fixture
from tests.helpers import refused

DIALECT = "phyagi"

# DeepSpeed.


@each_changes("name", (f"{DS}.fp16.enabled", "fp16"), (f"{DS}.bf16.enabled", "bf16"))
def test_precision(make: Make, key: str, name: str) -> None:
    assert make().run.compute.precision == "fp32"
    assert make({key: True}).config.train.precision == name
    assert make({f"{DS}.{name}": True}).config.train.precision == name
    assert "cannot be on together" in refused(make, {f"{DS}.fp16": True, f"{DS}.bf16": True})
    if name == "bf16":
        assert make({f"{DS}.bf16": True}).run.compute.precision == "bf16"


@changes("model.torch_dtype")
def test_torch_dtype(make: Make) -> None:
    assert make({"model.torch_dtype": "torch.bfloat16"}).run.compute.precision == "bf16"
    assert make({"model.torch_dtype": "bf16", f"{DS}.fp16": True}).config.train.precision == "fp16"


@each_changes(
    "value",
    (f"{DS}.optimizer.params.betas", (0.8, 0.9)),
    (f"{DS}.optimizer.params.eps", 1e-4),
    (f"{DS}.optimizer.params.weight_decay", 0.3),
)
def test_a_parameter_of_adamw(make: Make, key: str, value: Any) -> None:
    """All parameters have it, also biases and norms."""
    given = list(value) if isinstance(value, tuple) else value
    groups, name = make({key: given}).optimizer.param_groups, key.rpartition(".")[2]
    assert sum(len(group["params"]) for group in groups) == len(make().shapes)
    for group in groups:
        assert (tuple(group[name]) if isinstance(value, tuple) else group[name]) == value


@changes(f"{DS}.optimizer.params.lr")
def test_lr(make: Make) -> None:
    assert rates(make({f"{DS}.optimizer.params.lr": 0.5})) == [0.5] * 4


@changes(f"{DS}.optimizer.type")
def test_optimizer_type(make: Make) -> None:
    assert type(make().optimizer) is torch.optim.AdamW
    sgd = make({f"{DS}.optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.5}}})
    assert type(sgd.optimizer) is torch.optim.SGD
    wrong = make({f"{DS}.optimizer": {"type": "OneBitAdam", "params": {"lr": 0.1}}})
    assert "OneBitAdam" in unbuilt(wrong)


OTHER_PARAMETERS = {
    "momentum": ("SGD", 0.5),
    "dampening": ("SGD", 0.25),
    "nesterov": ("SGD", True),
    "alpha": ("RMSprop", 0.5),
    "centered": ("RMSprop", True),
    "rho": ("Adadelta", 0.5),
    "lr_decay": ("Adagrad", 0.5),
    "lambd": ("ASGD", 0.5),
    "t0": ("ASGD", 5.0),
}


@each_changes(
    "owner value",
    *((f"{place}.optimizer.params.{name}", *case) for place in (DS, MODULE) for name, case in OTHER_PARAMETERS.items()),
)
def test_a_parameter_of_another_optimizer(make: Make, key: str, owner: str, value: Any) -> None:
    """The optimizer gets it, and AdamW refuses it."""
    name = key.rpartition(".")[2]
    more = {"momentum": 0.5} if name == "nesterov" else {}
    if key.startswith(DS):
        optimizer = {"type": owner, "params": {"lr": 0.1, name: value, **more}}
        if owner == "Adam":
            optimizer["params"]["adam_w_mode"] = False
        made = make({f"{DS}.optimizer": optimizer})
        assert type(made.optimizer).__name__ == owner
        assert made.optimizer.param_groups[0][name] == value
        assert "no parameter of AdamW" in refused(make, {key: value})
        return
    built = optimized(make, owner.lower(), lr=0.1, **{name: value}, **more)
    assert type(built).__name__ == owner
    assert built.param_groups[0][name] == value


@each_changes("", (f"{DS}.optimizer.params.amsgrad",), (f"{MODULE}.optimizer.params.amsgrad",))
def test_amsgrad(make: Make, key: str) -> None:
    """PyTorch's Adam and AdamW have it, and DeepSpeed's AdamW refuses it; false asks for nothing."""
    if key.startswith(MODULE):
        assert optimized(make, "adamw", amsgrad=False).defaults == optimized(make, "adamw").defaults
        built = optimized(make, "adamw", amsgrad=True, betas=[0.8, 0.9])
        groups = [(list(group["betas"]), group["weight_decay"], group["amsgrad"]) for group in built.param_groups]
        assert (type(built).__name__, groups) == ("AdamW", [([0.8, 0.9], 0.01, True)])
        return
    assert make({key: False}).config.optimizer == make().config.optimizer
    assert "is refused by DeepSpeed's AdamW, unless torch_adam is true" in refused(make, {key: True})
    section = key.rpartition(".")[0]
    for name, switch, value in (("AdamW", "torch_adam", True), ("Adam", "adam_w_mode", False)):
        built = make({key: True, f"{section}.{switch}": value}).optimizer
        assert (type(built).__name__, built.param_groups[0]["amsgrad"]) == (name, True)


@changes(f"{DS}.optimizer.params.adam_w_mode")
def test_adam_mode(make: Make) -> None:
    assert type(make({f"{DS}.optimizer.params.adam_w_mode": False}).optimizer) is torch.optim.Adam
    assert type(make({f"{DS}.optimizer.params.adam_w_mode": True}).optimizer) is torch.optim.AdamW


@changes(f"{DS}.scheduler.type")
def test_schedule_type(make: Make) -> None:
    assert rates(make()) == [0.01] * 4
    parameters = {"warmup_min_lr": 0.1, "warmup_max_lr": 1.1, "warmup_type": "linear", "warmup_num_steps": 2}
    up = make({f"{DS}.scheduler": {"type": "WarmupLR", "params": parameters}})
    assert rates(up, 6) == pytest.approx([0.1, 0.1, 0.6, 1.1, 1.1, 1.1])
    assert "must be one of" in refused(make, {f"{DS}.scheduler": {"type": "Cosine"}})


@changes(f"{DS}.scheduler.params")
def test_schedule_parameters(make: Make) -> None:
    wrong = make({f"{DS}.scheduler": {"type": "WarmupLR", "params": {"warmup_step": 3}}})
    assert "warmup_step" in unbuilt(wrong)
    assert "there is none; give scheduler.type" in refused(
        make, {f"{DS}.scheduler": {"params": {"warmup_num_steps": 3}}}
    )


@changes(f"{DS}.gradient_clipping")
def test_clipping(make: Make) -> None:
    """The key may be at the top, beside ds_config or inside it; without it nothing is clipped."""
    assert make().config.train.clip_norm is None
    for path in (f"{DS}.gradient_clipping", "training_args.gradient_clipping", "gradient_clipping"):
        assert make({path: 0.25}).config.train.clip_norm == 0.25
    two = {f"{DS}.gradient_clipping": 1.0, "training_args.gradient_clipping": 0.5}
    assert "keep one" in refused(make, two)
    sgd = {"type": "SGD", "params": {"lr": 1.0, "weight_decay": 0.0}}
    one_batch = {**yaml.safe_load(make().file.read_text())["quintet"]["data"], "fixed_batch": True}
    changes = {f"{DS}.optimizer": sgd, "training_args.max_steps": 2, "quintet": {"data": one_batch}}
    first, second = make({**changes, "gradient_clipping": 1e-9}).losses
    assert first == pytest.approx(second, abs=1e-6)
    first, second = make(changes).losses
    assert first > second + 1e-3


@changes(f"{DS}.train_batch_size")
def test_batches(make: Make) -> None:
    made = make({f"{DS}.train_batch_size": 8})
    assert made.batch().inputs.shape == (8, 16)
    assert made.config.batch.accumulation == 2
    assert "do not make a batch" in refused(make, {f"{DS}.train_batch_size": 6})


@changes(f"{DS}.train_micro_batch_size_per_gpu")
def test_micro_batches(make: Make) -> None:
    assert make({f"{DS}.train_micro_batch_size_per_gpu": 2}).config.batch.accumulation == 2


@changes(f"{DS}.gradient_accumulation_steps")
def test_accumulation(make: Make) -> None:
    each = make({f"{DS}.gradient_accumulation_steps": 3}, without=[f"{DS}.train_batch_size"]).config
    micro = each.batch.micro_batch_size
    for devices in (1, 2, 8):  # DeepSpeed's definition
        assert each.on_devices(devices).batch.samples == micro * 3 * devices
    whole = make({f"{DS}.train_batch_size": 48, f"{DS}.gradient_accumulation_steps": 3}).config
    assert [whole.on_devices(devices).batch.samples for devices in (1, 4)] == [48, 48]
    made = make({f"{DS}.gradient_accumulation_steps": 3}, without=[f"{DS}.train_batch_size"])
    assert made.batch().inputs.shape == (12, 16)


# The keys that all trainers share.


@changes("training_args.do_eval")
def test_do_eval(make: Make) -> None:
    changes = {"training_args.do_final_eval": True, "training_args.eval_steps": 2, "training_args.max_steps": 2}
    assert list(make(changes).metrics("validation/loss")) == [2]
    assert list(make({**changes, "training_args.do_eval": False}).metrics("validation/loss")) == []


@changes("training_args.do_final_eval")
def test_final_evaluation(make: Make) -> None:
    short = {"training_args.max_steps": 1}
    assert list(make(short).metrics("validation/loss")) == []
    assert list(make({**short, "training_args.do_final_eval": True}).metrics("validation/loss")) == [1]


@changes("training_args.num_train_epochs")
def test_epochs(make: Make) -> None:
    counts = []
    for number in (1, 2, 0.5):
        made = make({"training_args.num_train_epochs": number}, without=["training_args.max_steps"])
        counts.append(made.run.steps)
    assert counts == [16, 31, 8]  # 62 samples in batches of 4, rounded up


@changes("training_args.max_steps")
def test_max_steps(make: Make) -> None:
    both = {"training_args.num_train_epochs": 1}
    assert make({**both, "training_args.max_steps": 3}).run.steps == 3
    assert make({**both, "training_args.max_steps": 100}).run.steps == 100
    assert make({**both, "training_args.max_steps": -1}).run.steps == 16
    assert "trains nothing" in refused(make, {"training_args.max_steps": 0})


@changes("training_args.logging_steps")
def test_logging_steps(make: Make) -> None:
    """Of 4 steps: 1 is every step, 1.0 all steps, 0.0001 every step, 0.5 every second step."""
    found = [
        make({"training_args.logging_steps": value}).run.intervals.log_every for value in (1, 1.0, 0.0001, 0.5, 2.0)
    ]
    assert found == [1, 4, 1, 2, 2]
    assert make({}, without=["training_args.logging_steps"]).run.intervals.log_every == 10
    other = lightning(make, {"log_every_n_steps": 3}, logging_steps=2)
    assert other.config.train.log_every == 3
    assert any(note.startswith("training_args.logging_steps: not used") for note in other.loaded.notes)


@changes("training_args.save_steps")
def test_save_steps(make: Make) -> None:
    assert make({"training_args.save_steps": 2}).checkpoints == [2, 4]
    assert make({"training_args.save_steps": 0.25}).checkpoints == [1, 2, 3, 4]
    assert make({"training_args.save_steps": -1}).checkpoints == []


@changes("training_args.save_final_checkpoint")
def test_save_final(make: Make) -> None:
    assert make({"training_args.max_steps": 1, "training_args.save_final_checkpoint": True}).checkpoints == [1]
    assert make({"training_args.max_steps": 1}).checkpoints == []


@changes("training_args.eval_steps")
def test_eval_steps(make: Make) -> None:
    assert list(make({"training_args.eval_steps": 0.5}).metrics("validation/loss")) == [2, 4]
    assert make().config.evaluate.every == 500


@changes("training_args.eval_max_steps")
def test_eval_max_steps(make: Make) -> None:
    made = make({"training_args.eval_max_steps": 2, f"{DS}.train_batch_size": 4})
    assert made.config.evaluate.samples == 8
    assert make().config.evaluate.samples is None
    assert made.config.evaluate.samples_each


@changes("training_args.seed")
def test_seed(make: Make) -> None:
    a, b, again = make(), make({"training_args.seed": 7}), make({"training_args.seed": 42})
    assert not same(a.batch(), b.batch())
    assert same(a.batch(), again.batch())
    weights = [made.model.state_dict()["embedding.weight"] for made in (a, b, again)]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


@changes("training_args.dataloader_shuffle")
def test_shuffle(make: Make, data: Path) -> None:
    ordered = make({"training_args.dataloader_shuffle": False})
    assert np.array_equal(ordered.batch(0).inputs.ravel(), tokens(data / "stories/train.npy")[:64])
    assert not same(make().batch(0), ordered.batch(0))


@each_changes("name", *((f"training_args.{name}", name) for name in ("mlflow", "wandb", "tensorboard")))
def test_a_tracker(make: Make, key: str, name: str) -> None:
    assert [tracker.kind for tracker in make({key: True}).config.track] == [name]
    assert make({key: False}).config.track == ()


@changes("training_args.wandb_host")
def test_host(make: Make) -> None:
    made = make({"training_args.wandb": True, "training_args.wandb_host": "https://wandb.example"})
    assert made.config.track[0].arguments == {"settings": {"base_url": "https://wandb.example"}}


def test_the_learning_rate_is_that_of_the_worked_example(make: Make) -> None:
    """A warm-up of 4 of 10 steps from 0.1 to 1.1; the rates come from DeepSpeed itself."""
    parameters = {"warmup_min_lr": 0.1, "warmup_max_lr": 1.1, "warmup_type": "linear", "warmup_num_steps": 4}
    made = make({f"{DS}.scheduler": {"type": "WarmupDecayLR", "params": parameters}, "training_args.max_steps": 10})
    expected = [0.1, 0.1, 0.35, 0.6, 0.85, 1.1, 0.9333, 0.7667, 0.6, 0.4333]
    assert rates(made, 10) == pytest.approx(expected, abs=1e-4)
    assert made.rates == pytest.approx(expected, abs=1e-4)
