from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from quintet.config.documents import IGNORED
from quintet.train.build import _compile_blocks
from quintet.train.engine import TorchEngine
from quintet.train.loss import LossModule, Objective
from quintet.train.optimizer import build_optimizer


def objective_of(config) -> Objective:
    return Objective(config.loss, config.model, vocab_size=61, mask_id=61, seed=config.seed)


NO_SCALING = torch.amp.GradScaler("cpu", enabled=False)


def engine_of(model, config, cpu) -> TorchEngine:
    optimizer = build_optimizer(config.optimizer, model)
    return TorchEngine(LossModule(model, objective_of(config)), model, optimizer, NO_SCALING, config, config.batch, cpu)


def gradients(model, batch, config, cpu) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = engine_of(model, config, cpu).accumulate(batch, 1)
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("micro_batch", "passes"), [(4, 8), (8, 4), (1, 32)])
def test_accumulation_gives_the_gradients_of_the_whole_batch(
    model, ragged_batch, make_config, cpu, micro_batch: int, passes: int
) -> None:
    whole = make_config(train={"steps": 1, "batch_size": 32})
    split = make_config(train={"steps": 1, "batch_size": 32, "micro_batch_size": micro_batch, "accumulation": passes})
    loss, expected = gradients(model, ragged_batch, whole, cpu)
    other_loss, found = gradients(model, ragged_batch, split, cpu)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_the_loss_is_the_sum_over_valid_targets_divided_by_their_number(model, ragged_batch, make_config, cpu) -> None:
    inputs, targets = torch.from_numpy(ragged_batch.inputs), torch.from_numpy(ragged_batch.targets)
    expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    model.zero_grad()
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    loss, found = gradients(model, ragged_batch, make_config(), cpu)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_dropout_follows_from_the_step_and_not_from_what_was_drawn_before(ragged_batch, make_config, cpu) -> None:
    from quintet.model import build_model

    config = make_config(
        model={"layers": 1, "width": 32, "attention": {"heads": 2}, "embedding_dropout": 0.3, "residual_dropout": 0.3}
    )
    model = build_model(config.model, 61, 16, seed=3)

    def loss(step: int) -> float:
        torch.rand(step * 3)  # some other use of the global generator
        return engine_of(model, config, cpu).accumulate(ragged_batch, step).item()

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


DROPPING = {
    "layers": 2,
    "width": 32,
    "attention": {"heads": 2, "input_dropout": 0.1},
    "feedforward": {"kind": "gated", "input_dropout": 0.1, "dropout": 0.1},
    "head": {"dropout": 0.1},
    "embedding_dropout": 0.1,
    "residual_dropout": 0.1,
}


@pytest.mark.parametrize("block", ["pre_norm", "post_norm", "output_norm", "sandwich_norm", "parallel"])
def test_dropout_follows_from_the_sample_and_not_from_its_micro_batch(
    ragged_batch, make_config, cpu, block: str
) -> None:
    from quintet.model import build_model

    found = []
    for size in (32, 8, 2, 1):
        train = {"steps": 10, "batch_size": 32, "micro_batch_size": size, "accumulation": 32 // size}
        config = make_config(model=DROPPING | {"block": block}, train=train)
        found.append(gradients(build_model(config.model, 61, 16, seed=3), ragged_batch, config, cpu))
    for loss, of_weights in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        for name, gradient in of_weights.items():
            torch.testing.assert_close(gradient, found[0][1][name], rtol=1e-4, atol=1e-7, msg=name)
    plain = make_config(model={"layers": 2, "width": 32, "attention": {"heads": 2}, "block": block})
    assert abs(found[0][0] - gradients(build_model(plain.model, 61, 16, seed=3), ragged_batch, plain, cpu)[0]) > 1e-3


class Reads(TorchDispatchMode):
    """Counts the values that the host reads from tensors, for each of which a GPU would have to be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("optimizer", [{}, {"state_precision": "bf16"}])
def test_a_step_reads_nothing_from_the_device(
    model, ragged_batch, make_config, cpu, scaled: bool, optimizer: dict[str, str]
) -> None:
    """Also where the loss is scaled, as in fp16: the kernel of the step decides by itself whether to take it."""
    config = make_config(train={"steps": 4, "batch_size": 32, "micro_batch_size": 8}, optimizer=optimizer)
    engine = engine_of(model, config, cpu)
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
    for step in (1, 2, 3):
        with Reads() as passes:
            engine.accumulate(ragged_batch, step)
        # On a CPU alone the loss looks how many targets of a micro-batch have one, which also shows that reads count.
        assert passes.count == 4
        with Reads() as update:
            engine.update(1e-3, step)
        assert update.count == 0


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(512, 512) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Floats [samples, 512] to the same."""
        for layer in self.layers:
            x = layer(x).relu()
        return x


def test_blocks_within_ddp_are_compiled_as_they_are(cpu, cutting_ddp: None) -> None:
    """DDP's optimizer would cut the graph of a block at each bucket of gradients, here of a layer's size."""
    graphs: list[int] = []
    for ours in (False, True):
        block = Layers()
        if ours:
            _compile_blocks(SimpleNamespace(blocks=[block]), cpu)
        seen: list[Any] = []
        torch._dynamo.reset()
        block.compile(backend=lambda graph, _, seen=seen: seen.append(graph) or graph.forward)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            within = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(block), bucket_cap_mb=1)
            within(torch.ones(2, 512)).sum().backward()
        finally:
            dist.destroy_process_group()
        graphs.append(len(seen))
    assert graphs[0] > 1 == graphs[1]
