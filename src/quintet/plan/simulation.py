"""One rank's step, taken by the code that trains, on tensors without numbers."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_iter

from quintet.config.model import TransformerConfig
from quintet.config.parallel import DDPConfig, DeepSpeedConfig
from quintet.config.schema import BatchShape, RunConfig
from quintet.data.batch import Batch
from quintet.errors import UserError
from quintet.model import Model
from quintet.model.transformer import Transformer
from quintet.model.typed import on_gradient
from quintet.plan.counting import Counter, Sent, bytes_of
from quintet.plan.fake_world import (
    as_on_accelerator,
    fake_tokenizer,
    fake_world,
    lay_out_one_document,
    take_step,
    wrap_without_comparing,
)
from quintet.plan.machine import Machine
from quintet.tokenize import Tokenizer
from quintet.train.compute import Compute
from quintet.train.engine import TorchEngine
from quintet.train.loss import LossModule, build_objective
from quintet.train.model import build_run_model, checkpoint_activations
from quintet.train.optimizer import UNREADABLE, build_optimizer
from quintet.train.parallel.parallelize import make_mesh, replicate, shard
from quintet.train.parallel.strategy import (
    Environment,
    Strategy,
    choose_strategy,
    mesh_shape,
    share_of_batch,
    state_bytes_of,
)

Figures = dict[Any, float]


@dataclass(frozen=True)
class RankMemory:
    """Bytes of the first rank, which holds at least as much as any other.

    ``parameters`` (with the model's buffers), ``gradients`` (after the last pass) and ``optimizer`` state are its own
    parts. ``activations`` is what one forward pass keeps for its backward pass. ``peak`` is the most that is alive at
    one time, and ``gathered`` the weights of other ranks at that time. ``host`` is the part of the first three in the
    memory of the host, which is not in the peak.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int
    peak: int
    host: int = 0


@dataclass(frozen=True)
class Traffic:
    """The calls of one collective in a step, in a group of ``processes`` ranks on one node or ``across`` several, and
    the bytes of the whole tensors: the result of an all-gather, the input of a reduce-scatter or an all-reduce."""

    collective: str
    processes: int
    across: bool
    calls: int
    bytes: int

    @property
    def wire(self) -> float:
        """Bytes that each rank sends in a ring: (n − 1)/n of the whole, twice that for an all-reduce."""
        return (2 if self.collective == "all-reduce" else 1) * self.bytes * (self.processes - 1) / self.processes


@dataclass(frozen=True)
class Simulation:
    """A step of one rank: the ``flops`` of matrix products and attention, recomputation included, and the ``seconds``
    that its operations take one after the other, by the roofline model."""

    strategy: Strategy
    shape: BatchShape
    precision: str
    memory: RankMemory
    traffic: tuple[Traffic, ...]
    flops: float
    seconds: float


def simulate(
    config: RunConfig, vocab_size: int, machine: Machine, precision: str, *, whole: bool = False
) -> Simulation:
    """Simulate two steps of ``config`` as the first rank of ``machine``, and return the second, in which the optimizer
    has its state.

    A deep transformer is simulated with two smaller numbers of blocks unless ``whole``: all figures are linear in
    them. Raises UserError if ``config`` cannot be spread over the devices, as training does.
    """
    tokenizer = fake_tokenizer(vocab_size)
    environment = Environment(machine.devices, machine.local, machine.memory)
    shape = share_of_batch(config.on_devices(machine.devices).batch, machine.devices)
    if machine.accelerator:
        config = as_on_accelerator(config, vocab_size)
    meta_model = build_run_model(config, tokenizer, meta=True)
    strategy = choose_strategy(config.parallel, environment, state_bytes_of(config, meta_model))
    _check(strategy, precision, machine)

    def figures(config: RunConfig, meta_model: Model) -> Figures:
        return _figures(config, tokenizer, meta_model, strategy, shape, precision, machine)

    depths = None if whole else sample_depths(config)
    if depths is None or not isinstance(config.model, TransformerConfig):
        found = figures(config, meta_model)
    else:
        less, more = (_with_layers(config, depth) for depth in depths)
        few, many = (figures(one, build_run_model(one, tokenizer, meta=True)) for one in (less, more))
        found = extended(few, many, (config.model.layers - depths[0]) / (depths[1] - depths[0]))
    return _simulation(found, strategy, shape, precision, machine)


def sample_depths(config: RunConfig) -> tuple[int, int] | None:
    """Return two numbers of blocks whose figures determine those of the whole transformer; None if that saves nothing.

    If each n-th block keeps less, both differ from the whole number by a multiple of n.
    """
    if not isinstance(config.model, TransformerConfig):
        return None
    every = config.train.activation_checkpointing
    period = every if isinstance(every, int) else 1
    step = period if period > 1 else 2
    own = config.model.sharing
    least = 4 if own is None else 4 + own.first_blocks + own.last_blocks  # so that both differ in blocks that share
    low = least + (config.model.layers - least) % period
    low += 2 * period if period > 2 else 0
    return (low, low + step) if 2 * low + step < config.model.layers else None


def extended(few: Figures, many: Figures, times: float) -> Figures:
    """Return ``few`` plus ``times`` the difference of ``many`` and ``few``."""
    return {name: value + times * (many[name] - value) for name, value in few.items() if name in many}


def _with_layers(config: RunConfig, layers: int) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"layers": layers})})


def _figures(
    config: RunConfig,
    tokenizer: Tokenizer,
    meta_model: Model,
    strategy: Strategy,
    shape: BatchShape,
    precision: str,
    machine: Machine,
) -> Figures:
    compute = Compute(torch.device("cpu"), precision, compile=False, reason="")
    environment = Environment(machine.devices, machine.local, machine.memory)
    grouped = strategy.kind != "none"
    with fake_world(machine.devices, machine.per_node, grouped=grouped):
        loss_module = _loss_module(config, tokenizer, meta_model, strategy, environment, compute)
        counter = Counter()
        with FakeTensorMode(allow_non_fake_inputs=True), counter.resizing(), counter:
            engine = _engine(config, loss_module, meta_model, strategy, shape, compute)
            try:
                return _Steps(engine, counter, shape, tokenizer.vocab_size, machine).take()
            except UNREADABLE as error:
                raise UserError(
                    "optimizer.name: its step depends on values, which a simulation lacks; plan with one like it"
                ) from error


def _simulation(found: Figures, strategy: Strategy, shape: BatchShape, precision: str, machine: Machine) -> Simulation:
    number = {name: round(value) for name, value in found.items() if name != "seconds"}
    peak, phase = max((value, name[1]) for name, value in number.items() if name[0] == "peak")
    state = number["parameters"] + number["optimizer"]
    away = bool(getattr(strategy.config, "offload", False))
    memory = RankMemory(
        parameters=number["parameters"],
        gradients=number["gradients"],
        optimizer=number["optimizer"],
        activations=number["activations"],
        gathered=number["gathered", phase],
        peak=peak - state if away else peak,
        host=state + number["gradients"] if away else 0,
    )
    traffic: list[Traffic] = []
    for name, calls in number.items():
        if name[0] == "calls":
            _, collective, ranks = name
            across = len({rank // machine.per_node for rank in ranks}) > 1
            traffic.append(Traffic(collective, len(ranks), across, calls, number["bytes", collective, ranks]))
    traffic.sort(key=lambda entry: -entry.bytes)
    return Simulation(strategy, shape, precision, memory, tuple(traffic), number["flops"], found["seconds"])


def _check(strategy: Strategy, precision: str, machine: Machine) -> None:
    if isinstance(strategy.config, DeepSpeedConfig):
        raise UserError("parallel.kind: deepspeed is not simulated; plan with fsdp, which shards in the same way")
    if strategy.kind == "none" and machine.devices > 1:
        raise UserError(f"parallel.kind: none is for one device, and there are {machine.devices}; set it to auto")
    if strategy.sharded and precision == "fp16":
        raise UserError("train.precision: fp16 is not done for sharded weights; take bf16 or fp32")


def _loss_module(
    config: RunConfig,
    tokenizer: Tokenizer,
    meta_model: Model,
    strategy: Strategy,
    environment: Environment,
    compute: Compute,
) -> LossModule:
    """Build the loss module as `quintet.train.build` does, but on the meta device: sharding a matrix for a thousand
    ranks makes a thousand views, which are slow on fake tensors."""
    if isinstance(meta_model, Transformer):
        meta_model.lay_out = lay_out_one_document
    checkpoint_activations(meta_model.blocks, config.train.activation_checkpointing)
    loss_module = LossModule(meta_model, build_objective(config, tokenizer))
    if strategy.sharded:
        shard(loss_module, strategy, make_mesh(mesh_shape(strategy, environment), "cpu"), compute)
    return loss_module


def _engine(
    config: RunConfig, loss_module: LossModule, model: Model, strategy: Strategy, shape: BatchShape, compute: Compute
) -> TorchEngine:
    model.to_empty(device="cpu")
    within: nn.Module = loss_module
    if isinstance(strategy.config, DDPConfig):
        within = replicate(loss_module, strategy.config, compute, wrap_without_comparing)
    optimizer = build_optimizer(config.optimizer, model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TorchEngine(within, model, optimizer, scaler, config, shape, compute, take_step)


class _Steps:
    """The counted passes of a rank. With accumulation, one pass that sends nothing and one that sends stand for all."""

    def __init__(
        self, engine: TorchEngine, counter: Counter, shape: BatchShape, vocab_size: int, machine: Machine
    ) -> None:
        self.engine, self.counter, self.shape, self.machine = engine, counter, shape, machine
        self.passes = min(shape.accumulation, 2)
        engine.shape = replace(shape, samples=self.passes * shape.micro_batch_size, accumulation=self.passes)
        ids = np.arange(engine.shape.tokens).reshape(engine.shape.samples, shape.sequence_length) % vocab_size
        documents = np.zeros_like(ids) if engine.config.model.tells_documents else None
        prompts = np.ones_like(ids, dtype=bool) if engine.config.model.tells_prompts else None
        self.batch = Batch(ids, ids, np.zeros(len(ids), np.int64), ids.size, documents, prompts)
        self.activations = self._before = 0
        self._marks: list[tuple[int, dict[Any, Sent]]] = []

    def take(self) -> Figures:
        """Take two steps and return the figures of the second."""
        counter, engine = self.counter, self.engine
        engine.accumulate(self.batch, 1)
        engine.update(0.0, 1)
        counter.reset()
        hooks = self._watch()
        engine.accumulate(self.batch, 2)
        gradients = bytes_of(p.grad for p in engine.model.parameters() if p.grad is not None)
        counter.enter("update")
        engine.update(0.0, 2)
        for hook in hooks:
            hook.remove()
        return self._figures(gradients)

    def _watch(self) -> list[Any]:
        loss_module, blocks = self.engine.loss_module, list(self.engine.model.blocks)
        hooks = [
            loss_module.register_forward_pre_hook(self._begin_pass, prepend=True),
            loss_module.register_forward_hook(self._end_forward),
        ]
        for index, block in enumerate(blocks):
            after = len(blocks) - 1 - index
            phase = ("first", index) if index < after else ("last", after)
            hooks.append(block.register_forward_hook(partial(self._end_block, phase)))
        return hooks

    def _begin_pass(self, *_: Any) -> None:
        counter = self.counter
        self._before = counter.live - counter.gathered
        self._marks.append((len(counter.calls), {name: replace(sent) for name, sent in counter.sent.items()}))
        counter.enter(("forward", len(self._marks)))

    def _end_block(self, phase: Any, _: nn.Module, __: Any, out: Any) -> None:
        """Start a new phase when the gradient of the block's output is known, at which its backward pass starts."""
        output = next((value for value in tree_iter(out) if isinstance(value, Tensor)), None)
        if output is not None and output.requires_grad:
            on_gradient(output, lambda: self.counter.enter((*phase, len(self._marks))))

    def _end_forward(self, *_: Any) -> None:
        self.activations = self.counter.live - self.counter.gathered - self._before
        self.counter.enter(("head", len(self._marks)))

    def _figures(self, gradients: int) -> Figures:
        counter, model, others = self.counter, self.engine.model, self.shape.accumulation - self.passes
        state = tree_iter(dict(self.engine.optimizer.state))  # some keep lists of tensors
        found: Figures = {
            "parameters": bytes_of([*model.parameters(), *model.buffers()]),
            "gradients": gradients,
            "optimizer": bytes_of(value for value in state if isinstance(value, Tensor)),
            "activations": self.activations,
        }
        for phase, (peak, gathered) in counter.peaks.items():
            found["peak", phase], found["gathered", phase] = peak, gathered
        # The passes that are not simulated are like the first.
        calls, sent = self._marks[1] if self.passes > 1 else (0, {})
        for name, count in counter.sent.items():
            again = sent.get(name, Sent())
            found["calls", *name] = count.calls + others * again.calls
            found["bytes", *name] = count.bytes + others * again.bytes
        work, again = counter.calls, counter.calls[:calls]
        found["flops"] = sum(flops for flops, _ in work) + others * sum(flops for flops, _ in again)
        found["seconds"] = sum(map(self._seconds, work)) + others * sum(map(self._seconds, again))
        return found

    def _seconds(self, call: tuple[int, int]) -> float:
        """Return the seconds of a call by the roofline (Williams et al. 2009): the longer of computing and memory."""
        machine = self.machine
        return max(call[0] / (machine.peak_flops * machine.utilisation), call[1] / machine.memory_bandwidth)
