from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import Command

from quintet.config.train import TrainConfig
from quintet.errors import UserError
from quintet.train import compute as compute_module
from quintet.train.compute import (
    Compute,
    choose_compute,
    keep_freed_memory,
    keep_precision,
    measure_peak_flops,
    peak_memory,
)

on_cpu = {"steps": 1, "device": "cpu"}


@pytest.mark.parametrize(("has_bf16", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_where_the_cpu_has_it_and_says_why(monkeypatch, has_bf16: bool, chosen: str) -> None:
    monkeypatch.setattr(compute_module, "_cpu_multiplies_bf16", lambda: has_bf16)
    found = choose_compute(TrainConfig(**on_cpu))
    assert found.precision == chosen
    assert "bf16" in found.reason


def test_the_file_has_the_last_word() -> None:
    found = choose_compute(TrainConfig(**on_cpu, precision="fp32", compile=True))
    assert (found.precision, found.compile, found.dtype) == ("fp32", True, torch.float32)
    assert not choose_compute(TrainConfig(**on_cpu)).compile


def test_the_choice_for_bf16_agrees_with_what_is_measured() -> None:
    """Where `auto` says that bf16 is fast it must be faster than fp32; where it says it is not, it must not be much."""
    found = choose_compute(TrainConfig(**on_cpu))
    fp32 = measure_peak_flops(choose_compute(TrainConfig(**on_cpu, precision="fp32")))
    bf16 = measure_peak_flops(choose_compute(TrainConfig(**on_cpu, precision="bf16")))
    assert (bf16 > fp32) if found.precision == "bf16" else (bf16 < 2 * fp32)


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match="hundreds of times slower"):
        choose_compute(TrainConfig(**on_cpu, precision="fp16"))


def test_autocast_multiplies_in_the_chosen_type_only() -> None:
    found = choose_compute(TrainConfig(**on_cpu, precision="bf16"))
    a = torch.randn(4, 4)
    with found.autocast():
        assert (a @ a).dtype == torch.bfloat16
    with choose_compute(TrainConfig(**on_cpu, precision="fp32")).autocast():
        assert (a @ a).dtype == torch.float32


def test_peak_memory_counts_what_was_used() -> None:
    keep_freed_memory()
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(2**26)  # 256 MB
    assert peak_memory(torch.device("cpu")) - before > 200e6 or before > 500e6
    del held


@pytest.mark.parametrize(
    ("asked", "began", "precision"),
    [
        ("auto", "bf16", "bf16"),
        ("auto", "", "fp32"),
        ("auto", "fp32", "fp32"),
        ("auto", "fp16", "fp32"),
        ("fp32", "bf16", "fp32"),
    ],
)
def test_a_run_that_is_continued_elsewhere_keeps_what_auto_became(asked: Any, began: str, precision: str) -> None:
    here = Compute(torch.device("cpu"), "fp32", False, "this CPU has no instructions for bf16")
    found = keep_precision(here, TrainConfig(steps=1, batch_size=1, precision=asked), began)
    assert found.precision == precision
    assert ("fp16" in found.reason) == (began == "fp16")  # it says so where it cannot be kept


@pytest.mark.slow
def test_run_yaml_names_what_auto_became_and_a_run_keeps_it(
    train: Callable[..., str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute_module, "_cpu_multiplies_bf16", lambda: True)
    name = train(train={"steps": 2, "batch_size": 4, "device": "cpu", "precision": "auto"}, checkpoint={"every": 1})
    file = Path(f"runs/{name}/run.yaml")
    assert "# computes: bf16 on cpu, compile False\n" in file.read_text("utf-8")
    assert "# libraries: tokenizers " in file.read_text("utf-8")
    monkeypatch.setattr(compute_module, "_cpu_multiplies_bf16", lambda: False)
    code, out, error = command("train", f"{name}.yaml", "train.steps=4")
    assert code == 0, error
    assert "in bf16 (as the run began)" in " ".join((out + error).split())
    assert "# computes: bf16 on cpu, compile False\n" in file.read_text("utf-8")
