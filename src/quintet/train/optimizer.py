"""The optimizer: which parameters decay, and how a step that is not finite leaves no trace."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from quintet.config.optimizer import OptimizerConfig, TorchOptimizerConfig
from quintet.errors import UserError
from quintet.libraries import check_arguments, check_name, refusals_of
from quintet.model.roles import roles
from quintet.train.low_precision import LowPrecisionAdamW

_OURS = {
    "params": "",
    "lr": "is optimizer.lr",
    "weight_decay": "is optimizer.weight_decay",
    "fused": "is chosen by Quintet",
    "capturable": "is for CUDA graphs, which are not used",
    "differentiable": "is for training through the optimizer, which is not done",
}
# They need a function that computes the loss again, sparse gradients, and nothing but matrices.
_NOT_FOR_A_RUN = ("Optimizer", "LBFGS", "SparseAdam", "Muon")
# PyTorch 2.13 cannot step weights in shards with them: they change in place what has other placements after it.
_WHOLE_WEIGHTS = ("Adafactor", "Rprop")
# Their fused kernels read ``found_inf`` and leave out the step themselves; that of SGD would begin with a momentum that
# nobody set if the first step were left out.
_FUSED = ("Adam", "AdamW")
DECAYING = ("matrix", "embedding")
"""Roles of what ``decay: matrices`` lets decay."""
STATE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of ``config`` over the trainable parameters of ``model``, in two groups.

    What multiplies (matrices, embeddings) decays; what shifts or scales (biases, the gains of norms, by their role and
    whatever their shape) does not unless ``decay: all``, for pulling a gain to zero is no regulariser. The fused kernel
    is 5 times faster than the loop on a CPU and saves launches on a GPU. Raises UserError when torch refuses the
    arguments.
    """
    role = roles(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decays = {name for name in trained if config.decay == "all" or role[name] in DECAYING}
    decaying = [parameter for name, parameter in trained.items() if name in decays]
    free = [parameter for name, parameter in trained.items() if name not in decays]
    if isinstance(config, TorchOptimizerConfig):
        return _torch_optimizer(config, decaying, free)
    groups: list[dict[str, Any]] = [
        {"params": decaying, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.state_precision == "fp32":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    state_type = STATE_TYPES[config.state_precision]
    return LowPrecisionAdamW(groups, state_type, lr=config.lr, betas=config.betas, eps=config.eps)


def _torch_optimizer(
    config: TorchOptimizerConfig, decaying: list[nn.Parameter], free: list[nn.Parameter]
) -> torch.optim.Optimizer:
    check_optimizer(config)
    groups: list[dict[str, Any]] = [{"params": decaying}, {"params": free}]
    if _decays(config):
        groups[0]["weight_decay"], groups[1]["weight_decay"] = config.weight_decay, 0.0
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in config.arguments.items()}
    if config.name in _FUSED and "foreach" not in arguments:
        arguments["fused"] = True
    with refusals_of("optimizer.arguments", config.name):
        return _classes()[config.name]([group for group in groups if group["params"]], lr=config.lr, **arguments)


def check_optimizer(config: TorchOptimizerConfig) -> None:
    """Raise UserError when torch.optim has no such class for a run, or the class does not take the arguments."""
    known = _classes()
    check_name("optimizer.name", config.name, list(known), "torch.optim")
    if config.weight_decay and not _decays(config):
        raise UserError(f"optimizer.weight_decay: {config.name} has none; leave it out")
    check_arguments("optimizer.arguments", config.name, known[config.name], config.arguments, _OURS)


def check_sharded(config: OptimizerConfig) -> None:
    """Raise UserError when the optimizer cannot step weights that FSDP or HSDP spreads."""
    if isinstance(config, TorchOptimizerConfig) and config.name in _WHOLE_WEIGHTS:
        raise UserError(
            f"optimizer.name: PyTorch's {config.name} cannot step weights that are spread over devices; take another "
            "optimizer, or parallel.kind: ddp"
        )


def _decays(config: TorchOptimizerConfig) -> bool:
    return "weight_decay" in inspect.signature(_classes()[config.name]).parameters


def _classes() -> dict[str, Any]:
    return {
        name: found
        for name, found in vars(torch.optim).items()
        if inspect.isclass(found) and issubclass(found, torch.optim.Optimizer) and name not in _NOT_FOR_A_RUN
    }


def state_bytes(config: OptimizerConfig) -> float:
    """Bytes that the optimizer keeps for each weight of a matrix, found by one step of a small one."""
    model = nn.Linear(64, 64, bias=False)
    optimizer = build_optimizer(config, model)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    kept = [value for value in optimizer.state[model.weight].values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() * value.element_size() for value in kept if value.dim()) / model.weight.numel()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of ``optimizer`` the learning rate ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def set_momentum(optimizer: torch.optim.Optimizer, momentum: float) -> None:
    """Give every group of ``optimizer`` the ``momentum``, or the first beta of Adam and its kin."""
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            group["momentum"] = momentum


def step_if_finite(optimizer: torch.optim.Optimizer, norm: torch.Tensor) -> torch.Tensor:
    """One optimizer step, unless the gradient's ``norm`` is not finite; returns 1.0 on the device if it was left out.

    Where there is a fused kernel, it decides itself from ``found_inf``, so that the host never waits for the norm. For
    any other optimizer the host looks at the norm.
    """
    found_inf = (~torch.isfinite(norm)).float()
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
    elif not found_inf.item():
        optimizer.step()
    return found_inf
