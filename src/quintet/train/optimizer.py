"""The optimizer of a run: the parameters that decay, and AdamW with averages in 16 bits."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from quintet.config.keypath import is_mapping, is_sequence
from quintet.config.optimizer import AdamWConfig, OptimizerConfig, TorchOptimizerConfig
from quintet.model.init import roles
from quintet.randomness import key
from quintet.train.library_optimizers import library_optimizer, state_after_step

DECAYING = ("matrix", "embedding")
"""Roles of the parameters that decay under ``decay: matrices``."""
UNREADABLE = (DataDependentOutputException, DynamicOutputShapeException)
"""Errors that PyTorch raises if an optimizer needs the value of a fake tensor, which has none."""
_AVERAGES = ("exp_avg", "exp_avg_rms")
"""The averages in the state of `LowPrecisionAdamW`."""
STATE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of ``config`` over the trainable parameters of ``model``, in two groups.

    Matrices and embeddings decay. Biases and gains of norms, by role and not by shape, decay only with ``decay: all``,
    because pulling a gain to zero is no regularisation. Raises UserError as `library_optimizer` does.
    """
    role = roles(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decays = {name for name in trained if config.decay == "all" or role[name] in DECAYING}
    decaying = [parameter for name, parameter in trained.items() if name in decays]
    free = [parameter for name, parameter in trained.items() if name not in decays]
    return OPTIMIZERS[config.kind](config, decaying, free)


def _adamw(config: AdamWConfig, decaying: list[nn.Parameter], free: list[nn.Parameter]) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": decaying, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.state_precision == "fp32":  # fused is 5 times faster than the loop on a CPU, and saves launches on a GPU
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    state_type = STATE_TYPES[config.state_precision]
    return LowPrecisionAdamW(groups, state_type, lr=config.lr, betas=config.betas, eps=config.eps)


OPTIMIZERS: dict[str, Callable[[Any, list[nn.Parameter], list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "torch": library_optimizer,
}
"""The builder of each kind, called with its config, the parameters that decay and those that do not."""


def optimizer_bytes(config: OptimizerConfig, model: nn.Module) -> float:
    """Return the bytes of the optimizer's state for the trainable parameters of ``model``, on any device.

    They are those after one step on fake tensors of each shape. If the optimizer needs a value, the state of a small
    matrix is scaled up instead.
    """
    shapes = Counter(parameter.shape for parameter in model.parameters() if parameter.requires_grad)
    if isinstance(config, TorchOptimizerConfig):
        try:
            with FakeTensorMode():
                return sum(count * _bytes_of(state_after_step(config, shape)) for shape, count in shapes.items())
        except UNREADABLE:
            pass
    return state_bytes(config) * sum(count * shape.numel() for shape, count in shapes.items())


def state_bytes(config: OptimizerConfig) -> float:
    """Return the bytes of the optimizer's state per weight, after one step with a small matrix."""
    model = nn.Linear(64, 64, bias=False)
    optimizer = build_optimizer(config, model)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    return _bytes_of(optimizer.state[model.weight]) / model.weight.numel()


def _bytes_of(state: Any) -> int:
    """Return the bytes of the tensors in ``state``, without scalars."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size() if state.dim() else 0
    if is_mapping(state):
        return sum(map(_bytes_of, state.values()))
    return sum(map(_bytes_of, state)) if is_sequence(state) else 0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups of ``optimizer``."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def set_rounding(optimizer: torch.optim.Optimizer, seed: int, step: int) -> None:
    """Key the random rounding of ``optimizer``, if it has any, by ``seed`` and ``step``."""
    if isinstance(optimizer, LowPrecisionAdamW):
        optimizer.rounding_key = (seed, step)


def set_momentum(optimizer: torch.optim.Optimizer, momentum: float) -> None:
    """Set the ``momentum``, or the first of the betas, of all groups of ``optimizer``."""
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            group["momentum"] = momentum


class LowPrecisionAdamW(torch.optim.AdamW):
    """AdamW computed in fp32, with both averages stored in ``state_type``: 4 bytes per weight instead of 8.

    The second average is stored as its root ``exp_avg_rms``, because squares of small gradients are below the range of
    fp16. Both are rounded stochastically: rounded to nearest, an average that changes by less than half the distance of
    two numbers would never change. The random numbers for a parameter are keyed by seed and step (`set_rounding`), its
    number and, if processes hold parts of it, the part. So replicas round alike, and so does a continued run.

    ``shard`` is the number of this process's part of each parameter if these are not DTensors.
    """

    def __init__(self, groups: Any, state_type: torch.dtype, **settings: Any) -> None:
        super().__init__(groups, fused=True, **settings)
        self.state_type = state_type
        self.rounding_key, self.shard = (0, 0), 0
        self._generators: dict[torch.device, torch.Generator] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step, parameter by parameter, so that only one parameter at a time has its averages in fp32."""
        found_inf = getattr(self, "found_inf", None)
        for number, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    generator = self._generator_of(parameter, number, index)
                    self._advance(parameter, group, found_inf, getattr(self, "grad_scale", None), generator)

    def _generator_of(self, parameter: Tensor, group: int, index: int) -> torch.Generator:
        """Return the generator for ``parameter``, number ``index`` of ``group``, in this step."""
        generator = self._generators.setdefault(parameter.device, torch.Generator(parameter.device))
        seed, step = self.rounding_key
        return generator.manual_seed(key(seed, "rounding", step, group, index, self.shard, *_part_numbers(parameter)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load ``state_dict``, its averages without torch, which would cast them to the dtype of the weights.

        That would take twice the memory of the whole state.
        """
        saved: dict[int, dict[str, Any]] = state_dict["state"]
        rest = {
            number: {name: value for name, value in state.items() if name not in _AVERAGES}
            for number, state in saved.items()
        }
        super().load_state_dict({**state_dict, "state": rest})
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name in _AVERAGES if number in saved else ():
                self.state[parameter][name] = saved[number][name].to(parameter.device, self.state_type)

    def _advance(
        self,
        parameter: Tensor,
        group: dict[str, Any],
        found_inf: Tensor | None,
        grad_scale: Tensor | None,
        generator: torch.Generator,
    ) -> None:
        """Step ``parameter``, of any shape and float dtype; ``found_inf`` and ``grad_scale`` are fp32 scalars."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for name in _AVERAGES:
                state[name] = torch.zeros_like(parameter, dtype=self.state_type)
        assert parameter.grad is not None
        average, square = state["exp_avg"].float(), state["exp_avg_rms"].float().square_()
        adamw(
            [parameter],
            [parameter.grad],
            [average],
            [square],
            [],
            [state["step"]],
            fused=True,
            grad_scale=grad_scale,
            found_inf=found_inf,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for name, value in zip(_AVERAGES, (average, square.sqrt_()), strict=True):
            rounded, stored = stochastically_rounded(_local(value), self.state_type, generator), _local(state[name])
            # A skipped step changes nothing, so its averages must not be rounded again.
            stored.copy_(rounded if found_inf is None else torch.where(found_inf.bool(), stored, rounded))


def _local(value: Tensor) -> Tensor:
    """Return this process's part of ``value``, a tensor or DTensor of any shape and dtype, without a copy."""
    return value.to_local() if isinstance(value, DTensor) else value


def _part_numbers(value: Tensor) -> list[int]:
    """Return the number of this process's part of ``value`` in each dimension of the mesh that shards it."""
    if not isinstance(value, DTensor):
        return []
    numbers = value.device_mesh.get_coordinate()
    assert numbers is not None
    return [number for number, placement in zip(numbers, value.placements, strict=True) if placement.is_shard()]


def stochastically_rounded(value: Tensor, to: torch.dtype, generator: torch.Generator) -> Tensor:
    """Round fp32 ``value`` of any shape to a neighbouring number of dtype ``to``, so that the mean is ``value``.

    ``generator`` decides between the two neighbours. A number that ``to`` can represent stays, and one beyond its range
    becomes its largest. Below 1e-36 the numbers are 1.2e-38 apart.
    """
    kind = torch.finfo(to)
    value = value.clamp(kind.min, kind.max)
    # The exponent bits alone are the power of two below the value; MPS has no frexp.
    power = (value.view(torch.int32) & 0x7F800000).view(torch.float32)
    # The distance of neighbours is a power of two, so that dividing and multiplying by it is exact.
    distance = power * kind.eps
    distance.clamp_(min=max(kind.smallest_normal * kind.eps, torch.finfo(torch.float32).tiny))
    below = torch.floor(value / distance)
    drawn = torch.rand(value.shape, generator=generator, device=value.device)
    rounded = (below + (drawn < value / distance - below)) * distance
    return rounded.clamp_(kind.min, kind.max).to(to)
