"""The dry run before step 1 against the steps and the validation that follow, in bytes of tensors that are alive."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.conftest import VOCAB

from quintet.data.batch import Batch
from quintet.errors import UserError
from quintet.model import build_model
from quintet.plan.counting import Counter
from quintet.train.compute import make_deterministic, ran_out_of_memory
from quintet.train.dry_run import dry_run
from quintet.train.engine import TorchEngine
from quintet.train.loss import LossModule, Objective
from quintet.train.optimizer import build_optimizer
from quintet.train.validation import validate


def engine_of(config, cpu, model=None) -> tuple[TorchEngine, Objective]:
    model = build_model(config.model, VOCAB, config.data.sequence_length, seed=3) if model is None else model
    objective = Objective(config.loss, config.model, vocab_size=VOCAB, mask_id=VOCAB, seed=config.seed)
    optimizer, scaler = build_optimizer(config.optimizer, model), torch.amp.GradScaler("cpu", enabled=False)
    return TorchEngine(LossModule(model, objective), model, optimizer, scaler, config, config.batch, cpu), objective


def drawn(samples: int, length: int) -> Batch:
    inputs, targets = np.random.default_rng(samples).integers(0, VOCAB, (2, samples, length))
    return Batch(inputs, targets, np.zeros(samples, np.int64), targets.size)


WIDE = {"model": {"layers": 2, "width": 256, "attention": {"heads": 2}}}
LONG = {"model": {"layers": 3, "width": 32, "attention": {"heads": 2}}, "data": {"sequence_length": 128}}
CASES: dict[str, dict[str, Any]] = {
    "state": WIDE | {"train": {"steps": 3, "batch_size": 2}},
    "accumulation": WIDE | {"train": {"steps": 3, "batch_size": 8, "micro_batch_size": 2}},
    "activations": LONG | {"train": {"steps": 3, "batch_size": 16, "micro_batch_size": 8}},
    "sgd": WIDE | {"train": {"steps": 3, "batch_size": 4}, "optimizer": {"kind": "torch", "name": "SGD"}},
    "foreach": WIDE | {"train": {"steps": 3, "batch_size": 4}, "optimizer": {"kind": "torch", "name": "NAdam"}},
    "narrow state": WIDE | {"train": {"steps": 3, "batch_size": 4}, "optimizer": {"state_precision": "bf16"}},
    "validation": LONG
    | {"train": {"steps": 3, "batch_size": 2, "micro_batch_size": 1}, "evaluate": {"batch_size": 96}},
    "again": LONG | {"train": {"steps": 3, "batch_size": 8, "activation_checkpointing": 1}},
}


@pytest.mark.parametrize("name", CASES)
def test_the_peak_of_the_dry_run_is_that_of_the_run(make_config, cpu, name: str) -> None:
    config = make_config(**CASES[name])
    length, held_out = config.data.sequence_length, 100
    engine, objective = engine_of(config, cpu)
    counter = Counter()
    for tensor in (*engine.model.parameters(), *engine.model.buffers()):
        counter.see(tensor)
    with counter:
        counter.enter("tried")
        dry_run(engine, objective, held_out)
        counter.enter("measured")
        for step in (1, 2, 3):
            engine.accumulate(drawn(config.batch.samples, length), step)
            engine.update(1e-3, step)
        whole, size = drawn(held_out, length), config.validation_batch_size
        parts = [slice(start, start + size) for start in range(0, held_out, size)]
        batches = [Batch(whole.inputs[p], whole.targets[p], whole.sources[p], whole.targets[p].size) for p in parts]
        counter.enter("validated")
        validate(engine.model, objective, batches, cpu, bytes_per_token=np.ones(VOCAB, np.int64))
    tried, measured, validated = (counter.peaks[one][0] for one in ("tried", "measured", "validated"))
    assert tried == pytest.approx(max(measured, validated), rel=0.03)
    assert (validated > measured) == (name == "validation")


@pytest.mark.parametrize("name", ["", "SGD", "Rprop", "ASGD", "NAdam", "Adafactor"])
@pytest.mark.parametrize("passes", [1, 4])
def test_the_dry_run_leaves_no_trace(model, make_config, cpu, name: str, passes: int) -> None:
    train = {"steps": 10, "batch_size": 8, "accumulation": passes}
    config = make_config(train=train, **({"optimizer": {"kind": "torch", "name": name}} if name else {}))
    engine, objective = engine_of(config, cpu, model)
    weights = copy.deepcopy(model.state_dict())
    rates, shape = [group["lr"] for group in engine.optimizer.param_groups], engine.shape
    dry_run(engine, objective, held_out=3)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert engine.optimizer.state_dict()["state"] == {}
    assert [group["lr"] for group in engine.optimizer.param_groups] == rates
    assert engine.shape == shape
    assert model.training


def test_the_dry_run_leaves_the_scale_of_the_loss(model, make_config, cpu) -> None:
    engine, objective = engine_of(make_config(), cpu, model)
    scaled = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
    engine = TorchEngine(
        engine.loss_module, model, engine.optimizer, scaled, engine.config, engine.shape, replace(cpu, precision="fp32")
    )
    before = scaled.state_dict()
    dry_run(engine, objective, held_out=0)
    assert scaled.state_dict() == before
    assert scaled.get_scale() == 64.0


@pytest.mark.parametrize(
    ("train", "advice"),
    [
        ({"steps": 1, "batch_size": 32}, r"set train\.micro_batch_size=16"),
        ({"steps": 1, "batch_size": 9}, r"set train\.micro_batch_size=3"),
        ({"steps": 1, "batch_size": 8, "micro_batch_size": 1}, r"data\.sequence_length: even one sample"),
    ],
)
def test_running_out_of_memory_in_the_dry_run_names_the_setting(
    model, make_config, cpu, monkeypatch: pytest.MonkeyPatch, train: dict[str, int], advice: str
) -> None:
    # A real request for more memory than there is: PyTorch's own error is what has to be understood.
    monkeypatch.setattr(Objective, "loss", lambda *_: torch.empty(2**50, dtype=torch.uint8))
    with pytest.raises(UserError, match=advice):
        dry_run(*engine_of(make_config(train=train), cpu, model), held_out=0)


def test_a_validation_that_does_not_fit_names_its_own_setting(
    model, make_config, cpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Objective.loss

    def loss(self: Objective, *arguments: Any, **named: Any) -> torch.Tensor:
        assert not (named.get("plain") and torch.empty(2**50, dtype=torch.uint8).numel())
        return whole(self, *arguments, **named)

    monkeypatch.setattr(Objective, "loss", loss)
    config = make_config(evaluate={"batch_size": 24})
    with pytest.raises(UserError, match=r"evaluate\.batch_size: .* set evaluate\.batch_size=12"):
        dry_run(*engine_of(config, cpu, model), held_out=30)


def test_another_error_in_the_dry_run_is_not_taken_for_a_lack_of_memory(
    model, make_config, cpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Objective, "loss", lambda *_: torch.zeros(2, 3) @ torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="shapes"):
        dry_run(*engine_of(make_config(), cpu, model), held_out=0)


def test_a_kernel_that_cannot_keep_the_promise_is_told_before_the_first_step(
    model, make_config, cpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PyTorch's own refusal, of an operation that has no deterministic kernel on a CPU either.
    monkeypatch.setattr(Objective, "loss", lambda *_: torch.zeros(4).put_(torch.tensor([1]), torch.ones(1)))
    config = make_config(train={"steps": 1, "deterministic": True})
    try:
        make_deterministic(config.train.deterministic, torch.device("cpu"))
        with pytest.raises(UserError, match=r"train\.deterministic: is true, and PyTorch says: put_"):
            dry_run(*engine_of(config, cpu, model), held_out=0)
    finally:
        make_deterministic("auto", torch.device("cpu"))


def test_what_a_compiler_says_of_allocations_is_no_lack_of_memory() -> None:
    def compiler_error(cause: BaseException) -> BaseException:
        try:
            try:
                raise cause
            except type(cause) as inner:
                raise torch._dynamo.exc.TorchRuntimeError("backend='inductor' raised: alloc_node failed") from inner
        except RuntimeError as error:
            return error

    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50, dtype=torch.uint8)
    assert ran_out_of_memory(refused.value)
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert ran_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 20 GB)"))
    assert ran_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert ran_out_of_memory(RuntimeError("NCCL Error 1: Last error:\nCuda failure 2 'out of memory'"))
    assert not ran_out_of_memory(RuntimeError("undefined symbol: _Znam allocate"))
    assert not ran_out_of_memory(compiler_error(AssertionError("alloc")))
    assert ran_out_of_memory(compiler_error(torch.OutOfMemoryError("CUDA out of memory")))
