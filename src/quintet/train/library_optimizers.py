"""The optimizers of PyTorch and of pytorch_optimizer, by the names of their classes."""

import inspect
from types import ModuleType
from typing import Any

import torch
from torch import nn

from quintet.config.keypath import is_list
from quintet.config.optimizer import OptimizerConfig, TorchOptimizerConfig
from quintet.errors import UserError, nearest
from quintet.libraries import check_arguments, check_name, refusals_of, require

_SET_BY_QUINTET = {
    "params": "",
    "lr": "is optimizer.lr",
    "weight_decay": "is optimizer.weight_decay",
    "fused": "is chosen by Quintet",
    "capturable": "is for CUDA graphs, which are not used",
    "differentiable": "is for training through the optimizer, which is not done",
}
_SECOND_PASS = "it computes the loss or its gradient again within a step"
_WRAPS = "it wraps another optimizer"
_MATRICES = "it is only for hidden matrices"
_NOT_RESUMABLE = "a checkpoint cannot restore its state, so a continued run would differ"
_RATE_0 = "it cannot step at a learning rate of 0 without changing the weights"
_OTHER_WEIGHTS = "it trains other weights than those that are to be evaluated"


def _each(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


# The reason why a run cannot use a class, by library and class. A test checks each class of both libraries.
_NOT_FOR_A_RUN: dict[str, dict[str, str]] = {
    "torch.optim": {
        "Optimizer": "it is the base of the others",
        "LBFGS": _SECOND_PASS,
        "SparseAdam": "it is for sparse gradients",
        "Muon": _MATRICES,
    },
    "pytorch_optimizer": {
        **_each(_SECOND_PASS, "AdaHessian AdaLOMO AliG BSAM FriendlySAM GSAM LOMO LookSAM SAM SophiaH WSAM"),
        **_each(_WRAPS, "Lookahead Magma OrthoGrad PCGrad SafeFP16Optimizer ScheduleFreeWrapper TRAC"),
        **_each(_MATRICES, "AdaGO AdaMuon DistributedMuon MuonClip NorMuon SpectralSphere"),
        **_each(_OTHER_WEIGHTS, "ScheduleFreeAdamW ScheduleFreeRAdam ScheduleFreeSGD"),
        **_each(_RATE_0, "FTRL Gravity Nero SRMM"),
        **_each(
            _NOT_RESUMABLE,
            "AdaShift Conda DAdaptSGD EmoFact EmoLynx EmoNavi Kron MADGRAD SPAM SaRA ScalableShampoo StableSPAM",
        ),
        "Ranger21": "it has its own learning rate schedule",
        "A2Grad": "it has no learning rate",
        "AdamMini": "it takes the model, and finds heads and embeddings by the names that other models give them",
        "DeMo": "it sends the gradients from process to process itself",
        "LoRARite": "it is for the two factors of adapters, side by side",
    },
}
# PyTorch 2.13 cannot step sharded weights with these: their in-place operations change a tensor's placements.
_WHOLE_WEIGHTS = ("Adafactor", "Rprop")
# The elementwise optimizers of pytorch_optimizer whose operations DTensor has.
_ELEMENTWISE = (
    "AccSGD AdEMAMix AdaBelief AdaBound AdaMod AdaPNM AdamC AdamG AdamS AggMo Ano BCOS EXAdam FOCUS "
    "Grams GrokFastAdamW Kate LaProp Lion MSVAG PAdam PID PNM QHAdam QHM SGDW SignSGD SimplifiedAdEMAMix Tiger VSGD "
    "Yogi"
)
# Their fused kernels read ``found_inf`` and skip the step themselves. If SGD's kernel skipped the first step, it would
# start with an uninitialised momentum.
_FUSED = ("Adam", "AdamW")


def library_optimizer(
    config: TorchOptimizerConfig, decaying: list[nn.Parameter], free: list[nn.Parameter]
) -> torch.optim.Optimizer:
    """Build the optimizer that ``config`` names over the ``decaying`` parameters and those ``free`` of decay.

    Raises UserError if no run can use the class, or if it refuses the arguments.
    """
    check_optimizer(config)
    chosen = _class_of(config.name)
    groups: list[dict[str, Any]] = [{"params": decaying}, {"params": free}]
    if _decays(chosen):
        groups[0]["weight_decay"], groups[1]["weight_decay"] = config.weight_decay, 0.0
    arguments = {name: tuple(value) if is_list(value) else value for name, value in config.arguments.items()}
    if config.name in _FUSED and "foreach" not in arguments:
        arguments["fused"] = True
    with refusals_of("optimizer.arguments", config.name):
        return chosen([group for group in groups if group["params"]], lr=config.lr, **arguments)


def check_optimizer(config: TorchOptimizerConfig) -> None:
    """Raise UserError if no run can use the class, or if it does not take the arguments.

    Raises NotHere if the class may be in pytorch_optimizer, which is not installed.
    """
    chosen = _class_of(config.name)
    problems: list[str] = []
    if config.weight_decay and not _decays(chosen):
        problems.append(f"optimizer.weight_decay: {config.name} has none; leave it out")
    try:
        check_arguments("optimizer.arguments", config.name, chosen, config.arguments, _SET_BY_QUINTET)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)


def check_sharded(config: OptimizerConfig) -> None:
    """Raise UserError if the optimizer cannot step weights that FSDP or HSDP shards."""
    if not isinstance(config, TorchOptimizerConfig):
        return
    own = in_torch(config)
    if config.name in _WHOLE_WEIGHTS or not (own or config.name in _ELEMENTWISE.split()):
        whose = "PyTorch's " if own else ""
        raise UserError(
            f"optimizer.name: {whose}{config.name} cannot step weights that are spread over devices; take another "
            "optimizer, or parallel.kind: ddp"
        )


def in_torch(config: TorchOptimizerConfig) -> bool:
    """Return True if the optimizer is in torch.optim, False if it is in pytorch_optimizer."""
    return config.name in vars(torch.optim)


def has_momentum(config: TorchOptimizerConfig) -> bool:
    """Return True if the class has a momentum or betas. Raises as `check_optimizer` does for an unknown name."""
    return bool({"momentum", "betas"} & set(inspect.signature(_class_of(config.name)).parameters))


def state_after_step(config: TorchOptimizerConfig, shape: torch.Size) -> Any:
    """Return the optimizer's state of a parameter of ``shape`` after one step: tensors by name, some in lists."""
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.zeros(shape)
    optimizer = library_optimizer(config, [parameter], [])
    optimizer.step()
    return optimizer.state[parameter]


def _class_of(name: str) -> Any:
    """Return the class ``name`` of torch.optim, or of pytorch_optimizer if torch.optim has no such class."""
    known = _classes(torch.optim)
    _check_usable(name, torch.optim)
    if name.lower() not in map(str.lower, known):
        close = nearest(name, known)
        otherwise = f"take {close} if that is meant" if close else "take one of torch.optim"
        what = f"optimizer.name: {name}, which torch.optim lacks,"
        library = require("pytorch_optimizer", "optimizers", what, otherwise)
        _check_usable(name, library)
        known = _classes(library) | known
    check_name("optimizer.name", name, list(known), "torch.optim")
    return known[name]


def _check_usable(name: str, library: ModuleType) -> None:
    """Raise UserError with the reason if no run can use the class ``name`` of ``library``."""
    reason = _NOT_FOR_A_RUN[library.__name__].get(name)
    if reason is not None:
        raise UserError(f"optimizer.name: {library.__name__} has no {name!r} for a run: {reason}; take another one")


def _classes(library: ModuleType) -> dict[str, Any]:
    """Return the classes of ``library`` that a run can use."""
    return {
        name: found
        for name, found in vars(library).items()
        if inspect.isclass(found)
        and issubclass(found, torch.optim.Optimizer)
        and name not in _NOT_FOR_A_RUN[library.__name__]
    }


def _decays(chosen: Any) -> bool:
    return "weight_decay" in inspect.signature(chosen).parameters
