"""The kinds of `optimizer`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from quintet.config.section import ConfigSection, key

Decay = Literal["matrices", "all"]
_DECAY = "parameters that decay. matrices: matrices and embeddings; all: also biases and the gains of norms"


class AdamWConfig(ConfigSection):
    """AdamW (Loshchilov and Hutter 2019)."""

    kind: Literal["adamw"] = key("adamw", "AdamW, fused if PyTorch has a kernel for the device")
    lr: float = key(1e-3, "highest learning rate; the schedule scales it", unit="per step", ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = key(
        (0.9, 0.95), "decay of the averages of the gradient and of its square", unit="per step"
    )
    eps: float = key(1e-8, "added to the root of the second average", unit="gradient", gt=0)
    weight_decay: float = key(0.1, "decay of the weights, multiplied by the learning rate", unit="per step", ge=0)
    decay: Decay = key("matrices", _DECAY)
    state_precision: Literal["fp32", "bf16", "fp16"] = key(
        "fp32", "dtype in which the averages are kept between steps; they are computed in fp32"
    )


class TorchOptimizerConfig(ConfigSection):
    """An optimizer of torch.optim, or of pytorch_optimizer (needs `pip install 'quintet[optimizers]'`), by class
    name."""

    kind: Literal["torch"] = key(..., "an optimizer of torch.optim or pytorch_optimizer")
    name: str = key(
        ...,
        "class of torch.optim, such as SGD, Adam, RMSprop, Adagrad or NAdam; if there is none of this name, class of "
        "pytorch_optimizer, such as Lion, SOAP, AdaBelief, Adan, Prodigy or Shampoo",
        min_length=1,
    )
    lr: float = key(1e-3, "highest learning rate; the schedule scales it", unit="per step", ge=0)
    weight_decay: float = key(0.0, "decay of the weights, as the class defines it", unit="per step", ge=0)
    decay: Decay = key("matrices", _DECAY)
    arguments: dict[str, Any] = key({}, "further arguments of the class, by name")


OptimizerConfig = Annotated[AdamWConfig | TorchOptimizerConfig, Field(discriminator="kind")]


def as_class(optimizer: OptimizerConfig) -> TorchOptimizerConfig | None:
    """Return ``optimizer`` of any kind as a class of torch.optim or pytorch_optimizer with its arguments; None for a
    kind that is in neither."""
    match optimizer:
        case TorchOptimizerConfig():
            return optimizer
        case AdamWConfig():
            arguments = {"betas": list(optimizer.betas), "eps": optimizer.eps}
            return TorchOptimizerConfig(
                kind="torch",
                name="AdamW",
                lr=optimizer.lr,
                weight_decay=optimizer.weight_decay,
                decay=optimizer.decay,
                arguments=arguments,
            )
        case _:
            return None


def name_of(optimizer: OptimizerConfig) -> str:
    """Return the name of the class that ``optimizer`` is, or its kind if it is no class of a library."""
    library = as_class(optimizer)
    return optimizer.kind if library is None else library.name
