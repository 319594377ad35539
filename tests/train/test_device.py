"""The device of a process where there is a GPU, told to a PyTorch that has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.helpers import run_config

from quintet.config.train import TrainConfig
from quintet.train.compute import choose_compute, choose_device, use_gpu
from quintet.train.parallel.group import process_group

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
