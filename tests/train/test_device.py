"""The device of a process where there is a GPU, told to a PyTorch that has none."""

from __future__ import annotations

import shutil
import threading
from contextlib import closing, nullcontext
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests.helpers import run_config
from torch._inductor import config as inductor
from torch.testing._internal.distributed.fake_pg import FakeStore

from quintet.config.train import TrainConfig
from quintet.data.batch import Batch, prefetch
from quintet.errors import UserError, collect_problems
from quintet.train.check import check_training, training_checks
from quintet.train.compute import (
    Compute,
    choose_compute,
    choose_device,
    is_deterministic,
    keep_precision,
    make_deterministic,
    set_products,
    use_gpu,
)
from quintet.train.engine import micro_batches
from quintet.train.parallel.group import process_group
from quintet.train.parallel.parallelize import make_mesh
from quintet.train.run import Run

GPUS = 4


class Connected(Exception):
    """Ends a start where PyTorch would connect the processes."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What PyTorch is told on a machine that seems to have GPUs, checked by its own rules for devices."""
    told: dict[str, Any] = {}

    def set_device(device: torch.device) -> None:
        told["set_device"] = torch.cuda._utils._get_device_index(device)  # raises for a device without an index

    def connect(*_: Any, **named: Any) -> None:
        told["group"] = named
        raise Connected

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: GPUS)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(dist, "init_process_group", connect)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    return told


@pytest.mark.parametrize("kind", ["auto", "none", "ddp", "fsdp", "hsdp", "deepspeed"])
@pytest.mark.parametrize(("processes", "number"), [(1, 0), (4, 0), (4, 3)])
def test_each_process_has_a_gpu_with_an_index(
    calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str, processes: int, number: int
) -> None:
    if kind == "none" and processes > 1:
        pytest.skip("is for one process")
    if processes > 1:
        for name, value in {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": processes}.items():
            monkeypatch.setenv(name, str(value))
    try:
        with process_group(run_config(parallel={"kind": kind}, train={"steps": 1, "device": "cuda"})):
            assert processes == 1
            assert kind in ("auto", "none")
    except Connected:
        # PyTorch takes a device with an index alone, and connects NCCL on it at once.
        assert calls["group"]["device_id"] == torch.device("cuda", number)
        assert calls["group"]["backend"] == "cpu:gloo,cuda:nccl"
    assert calls["set_device"] == number
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_the_device_has_an_index_whoever_asks(calls: dict[str, Any]) -> None:
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 0)
    assert choose_compute(TrainConfig(steps=1, device="cuda", precision="fp32")).device == torch.device("cuda", 0)
    assert choose_device("cpu") == torch.device("cpu")  # which has none


@pytest.mark.parametrize("shape", [(1, 4), (2, 2)])
def test_all_groups_of_a_mesh_wait_as_long_as_the_run_says(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, timedelta] = {}
    monkeypatch.setattr(
        dist.distributed_c10d, "_set_pg_timeout", lambda seconds, group: told.setdefault(group.group_name, seconds)
    )
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        mesh = make_mesh(shape, "cpu", timedelta(seconds=7))
        assert told == {group.group_name: timedelta(seconds=7) for group in mesh.get_all_groups()}
        assert len(told) == sum(size > 1 for size in shape)
    finally:
        dist.destroy_process_group()


def test_memory_is_cut_anew_unless_the_user_says_how(calls: dict[str, Any]) -> None:
    plain: dict[str, str] = {}
    use_gpu(torch.device("cuda", 1), plain)
    assert plain == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert calls["set_device"] == 1
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        own = {name: "max_split_size_mb:64"}
        use_gpu(torch.device("cuda", 1), own)
        assert own == {name: "max_split_size_mb:64"}
    on_cpu: dict[str, str] = {}
    use_gpu(torch.device("cpu"), on_cpu)
    assert on_cpu == {}


def test_a_batch_is_pinned_by_the_thread_that_prepares_it(
    calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pinning: list[str] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinning.append(threading.current_thread().name)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(calls.update(thread_on=device)))
    config = run_config(train={"steps": 3, "batch_size": 2})
    whole = Batch(np.arange(8).reshape(2, 4), np.arange(8).reshape(2, 4), np.zeros(2, np.int64), 8)
    run: Any = object.__new__(Run)
    run.config, run.compute = config, SimpleNamespace(device=torch.device("cuda", 3))
    run.data = SimpleNamespace(batch=lambda *_: whole)
    run.objective = SimpleNamespace(prepare=lambda batch, *_: batch)
    with closing(prefetch(run.batch, 1, 4)) as batches:
        found = list(batches)
    assert len(found) == 3
    assert len(pinning) == 3 * 2  # inputs and targets of each
    assert all(name.startswith("batches") for name in pinning)
    assert calls["thread_on"] == torch.device("cuda", 3)
    np.testing.assert_array_equal(found[0].inputs, whole.inputs)
    # What is copied to a device is not pinned there and then.
    pinning.clear()
    next(micro_batches(whole, 1, 2, torch.device("cpu")))
    assert pinning == []


@pytest.mark.parametrize(("capability", "has"), [((9, 0), True), ((8, 0), True), ((7, 5), False)])
def test_tf32_is_taken_where_a_gpu_multiplies_it(
    calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    config = TrainConfig(steps=1, device="cuda", precision="tf32")
    if not has:
        with pytest.raises(UserError, match=r"train\.precision: tf32 is multiplied by NVIDIA GPUs from Ampere on"):
            choose_compute(config)
        return
    compute = choose_compute(config)
    assert (compute.precision, compute.dtype) == ("tf32", torch.float32)
    before = torch.get_float32_matmul_precision()
    try:
        set_products(compute)
        assert torch.get_float32_matmul_precision() == "high"
        set_products(replace(compute, precision="fp32"))
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("values", "missing", "mistake"),
    [
        ({"precision": "tf32"}, ["train.precision: tf32 is multiplied by NVIDIA GPUs"], False),
        ({"precision": "fp16"}, ["train.precision: fp16 is hundreds of times slower"], False),
        ({"precision": "fp16", "device": "cpu"}, ["train.precision: fp16 is hundreds of times slower"], True),
        ({"precision": "tf32", "device": "cpu"}, ["train.precision: tf32 is multiplied"], True),
        ({"precision": "tf32", "device": "cuda"}, ["train.device: this machine has no cuda device"], False),
        ({"precision": "fp16", "device": "cuda"}, ["train.device: this machine has no cuda device"], False),
        ({"device": "mps", "precision": "tf32"}, ["train.precision: tf32 is multiplied"], True),
        ({"compile": True}, ["train.compile: needs a C++ compiler"], False),
        ({"compile": True, "device": "cuda"}, ["train.device: this machine has no cuda device"], False),
        (
            {"compile": True, "precision": "fp16"},
            ["train.precision: fp16 is hundreds of times slower", "train.compile: needs a C++ compiler"],
            False,
        ),
    ],
)
def test_what_another_machine_has_is_no_mistake(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], missing: list[str], mistake: bool
) -> None:
    """Where there is neither a GPU nor a compiler; a kind of device that is named and never has it is a mistake."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: pytest.fail("there is no GPU to ask"))
    config = run_config(train={"steps": 1, "device": "auto", **values})
    mistakes, absent = collect_problems(training_checks(config))
    found = mistakes if mistake else absent
    assert (mistakes if not mistake else absent) == []
    assert [any(one.startswith(line) for one in found) for line in missing] == [True] * len(found)
    with pytest.raises(UserError):
        check_training(config)


def test_tf32_is_refused_on_a_cpu_and_computes_without_autocast() -> None:
    with pytest.raises(UserError, match=r"train\.precision: tf32"):
        choose_compute(TrainConfig(steps=1, device="cpu", precision="tf32"))
    compute = Compute(torch.device("cpu"), "tf32", compile=False, reason="")
    with compute.autocast():
        assert not torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    began = keep_precision(replace(compute, precision="fp32"), TrainConfig(steps=1, device="cpu"), "tf32")
    assert began.precision == "fp32"
    assert "tf32" in began.reason


CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("wanted", "device", "strict"),
    [
        ("auto", CPU, True),
        (True, CPU, True),
        (False, CPU, False),
        ("auto", GPU, False),
        (True, GPU, True),
        (False, GPU, False),
    ],
)
def test_what_is_promised_is_asked_of_pytorch(wanted: Any, device: torch.device, strict: bool) -> None:
    environment: dict[str, str] = {}
    try:
        make_deterministic(wanted, device, environment)
        assert is_deterministic(wanted, device) == strict == torch.are_deterministic_algorithms_enabled()
        # auto asks for such kernels as there are, true takes no other.
        assert torch.is_deterministic_algorithms_warn_only_enabled() == (strict and wanted == "auto")
        on_gpu = strict and device.type == "cuda"
        assert environment == ({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if on_gpu else {})
        assert inductor.deterministic == strict
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_environment_that_contradicts_the_promise_is_refused() -> None:
    make_deterministic("auto", GPU, {"CUBLAS_WORKSPACE_CONFIG": ":0:0"})  # which promises nothing
    with pytest.raises(UserError, match=r"train\.deterministic: needs CUBLAS_WORKSPACE_CONFIG"):
        make_deterministic(True, GPU, {"CUBLAS_WORKSPACE_CONFIG": ":0:0"})
