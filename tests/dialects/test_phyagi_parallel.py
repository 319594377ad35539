"""PhyAGI: the keys for several devices, and what each of them changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.dialects.conftest import Made, Make, changes, each_changes
from tests.dialects.phyagi_runs import DS, lightning
from tests.dialects.phyagi_runs import base as base  # a fixture
from tests.dialects.phyagi_runs import data as data  # a fixture

from quintet.config.dialects.back import translate_back
from quintet.config.dialects.phyagi.schema_ds_config import ZeroOptimization
from quintet.config.dialects.phyagi.translate import DIALECT as PHYAGI
from quintet.errors import UserError
from quintet.train.compute import Compute
from quintet.train.integrations.deepspeed import settings_of

DIALECT = "phyagi"

ZERO = [name for name in ZeroOptimization.model_fields if name not in ("stage", "offload_param", "offload_optimizer")]
ZERO_VALUES: dict[str, Any] = dict.fromkeys(ZERO, True) | {
    **{name: 1000 for name in ZERO if name.endswith(("size", "parameters", "distance", "threshold"))},
    "offload_param": {"device": "cpu"},
    "offload_optimizer": {"device": "cpu", "pin_memory": True},
}
SCALES = {
    "initial_scale_power": 12,
    "loss_scale": 0,
    "loss_scale_window": 500,
    "hysteresis": 2,
    "min_loss_scale": 1,
    "consecutive_hysteresis": 1,
}
PASSED_ON = {
    **{f"zero_optimization.{name}": value for name, value in ZERO_VALUES.items()},
    **{f"fp16.{name}": value for name, value in SCALES.items()},
    "zero_allow_untested_optimizer": True,
    "data_types.grad_accum_dtype": "fp32",
}
FP16 = Compute(torch.device("cpu"), "fp16", False, "")


def lost(made: Made) -> list[str]:
    """The keys of `parallel` that a PhyAGI file written from the native run loses."""
    return [line for line in translate_back(PHYAGI, made.config).lost if "parallel" in line]


@each_changes("value", *((f"{DS}.{name}", value) for name, value in PASSED_ON.items()))
def test_a_setting_is_passed_on(make: Make, key: str, value: Any) -> None:
    """DeepSpeed gets the setting at a stage of ZeRO above 0; at stage 0 the run says that it is not used."""
    key = key.removeprefix(f"{DS}.")
    section, _, leaf = key.rpartition(".")
    nested = {section: {leaf: value}} if section else {leaf: value}
    precision = {"fp16": {"enabled": True, **nested.pop("fp16", {})}}
    zero = {"stage": 3, **nested.pop("zero_optimization", {})}
    made = make({f"{DS}.zero_optimization": zero, **{f"{DS}.{k}": v for k, v in {**precision, **nested}.items()}})
    assert made.config.parallel.kind == "deepspeed"
    found: Any = settings_of(made.config, made.config.batch, FP16, 100)
    for step in key.split("."):
        found = found[step]
    assert found == value
    assert lost(made) == []
    plain = make({f"{DS}.{key}": value})
    assert plain.config.parallel.kind == "auto"
    assert any(key in note and "not used" in note for note in plain.loaded.notes)


@changes(f"{DS}.zero_optimization.stage")
def test_stage(make: Make) -> None:
    assert make().config.parallel.kind == "auto"
    for number in (1, 2, 3):
        made = make({f"{DS}.zero_optimization.stage": number})
        assert made.config.parallel.config["zero_optimization"] == {"stage": number}
        # Batch, clipping, optimizer and schedule become native keys, from which DeepSpeed gets them.
        settings = settings_of(made.config, made.config.batch, Compute(torch.device("cpu"), "fp32", False, ""), 100)
        assert settings["train_batch_size"] == made.config.batch.samples
        assert lost(made) == []


@changes("training_args.timeout")
def test_waiting(make: Make) -> None:
    assert make({"training_args.timeout": 1800}).config.parallel.timeout_seconds == 1800
    assert make().config.parallel.timeout_seconds == 600


@changes("training_args.strategy.type")
def test_strategy(make: Make) -> None:
    assert lightning(make, strategy={"type": "auto"}).config.trainer.kind == "lightning"
    kinds = {"ddp": "ddp", "dctp": "fsdp", "deepspeed_stage_3": "deepspeed"}
    for name, kind in kinds.items():
        config = lightning(make, strategy={"type": name}).config
        assert (config.parallel.kind, config.trainer.kind) == (kind, "quintet")
    three = lightning(make, strategy={"type": "deepspeed_stage_3_offload"}).config.parallel.config
    assert three["zero_optimization"] == {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    with pytest.raises(UserError, match="must be one of auto, ddp"):
        lightning(make, strategy={"type": "xla"})
    with pytest.raises(UserError, match="is for Lightning's loop"):
        lightning(make, {"benchmark": True}, strategy={"type": "ddp"})


@changes("training_args.strategy.fsdp_cpu_offload")
def test_offload(make: Make) -> None:
    for value in (True, False):
        made = lightning(make, strategy={"type": "dctp", "fsdp_cpu_offload": value})
        assert made.config.parallel.offload is value
    assert any("not used" in note for note in lightning(make, strategy={"fsdp_cpu_offload": True}).loaded.notes)


@changes("training_args.strategy.fsdp_compile")
def test_compiling(make: Make) -> None:
    made = lightning(make, strategy={"type": "dctp", "fsdp_compile": True})
    assert made.config.train.compile is True
    assert lightning(make, strategy={"type": "dctp"}).config.train.compile == "auto"


@changes("training_args.strategy.activation_checkpointing")
def test_blocks_again(make: Make) -> None:
    for value, expected in ((True, 1), (False, "none")):
        made = lightning(make, strategy={"activation_checkpointing": value})
        assert made.config.train.activation_checkpointing == expected
