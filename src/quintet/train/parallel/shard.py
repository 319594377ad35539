"""A model spread over processes: DDP, or PyTorch's fully_shard."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from quintet.config.parallel import DDPConfig, FSDPConfig, HSDPConfig
from quintet.train.compute import DTYPES, Compute
from quintet.train.loss import LossModule
from quintet.train.parallel.strategy import Strategy


def make_mesh(shape: tuple[int, int], device: str, timeout: timedelta | None = None) -> DeviceMesh:
    """Groups × processes of a group, as ``mesh_shape`` gives them; they wait ``timeout`` for each other if it is given.

    PyTorch's own groups of a mesh wait for half an hour, whatever the process group was told.
    """
    dimensions = (shape[1:], ("shard",)) if shape[0] == 1 else (shape, ("replicate", "shard"))
    mesh = init_device_mesh(device, dimensions[0], mesh_dim_names=dimensions[1])
    if timeout is not None:
        for group in mesh.get_all_groups():
            dist.distributed_c10d._set_pg_timeout(timeout, group)  # pyright: ignore[reportPrivateUsage]
    return mesh


def shard(loss_module: LossModule, strategy: Strategy, mesh: DeviceMesh, compute: Compute) -> None:
    """Spread the weights of ``loss_module``, which may be on the meta device, over ``mesh``: each block by itself, so
    that one is gathered at a time, and the rest, embedding and head, together.

    Tied weights are one parameter of one module, so they are spread and gathered once. Embedding and head are gathered
    in fp32: the gradients of all tokens are summed in their type.
    """
    config = strategy.config
    assert isinstance(config, FSDPConfig | HSDPConfig), config
    offload = CPUOffloadPolicy(pin_memory=compute.device.type == "cuda") if config.offload else OffloadPolicy()
    reduce = DTYPES[config.reduce]
    for block in loss_module.model.blocks:
        policy = MixedPrecisionPolicy(_gathered_in(loss_module, config, compute), reduce, cast_forward_inputs=False)
        again = config.shard == "full"
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=again)
    policy = MixedPrecisionPolicy(reduce_dtype=reduce, cast_forward_inputs=False)
    fully_shard(loss_module, mesh=mesh, mp_policy=policy, offload_policy=offload)


def _gathered_in(loss_module: LossModule, config: FSDPConfig | HSDPConfig, compute: Compute) -> torch.dtype | None:
    if config.gather == "auto":
        # Models of the transformers library differ in what they do with narrow gains of norms.
        own = loss_module.model.config.kind == "transformer"
        return compute.dtype if own and compute.precision == "bf16" else None
    return None if config.gather == "fp32" else DTYPES[config.gather]


def replicate(
    loss_module: LossModule,
    config: DDPConfig,
    compute: Compute,
    wrap: Callable[..., DistributedDataParallel] = DistributedDataParallel,
) -> DistributedDataParallel:
    """``loss_module`` on every process, with its gradients averaged over them by ``wrap``."""
    devices = [compute.device] if compute.device.type == "cuda" else None
    # Buffers are tables that every process makes alike; the name of the setting changed with PyTorch 2.13.
    takes = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in takes else "broadcast_buffers"
    return wrap(
        loss_module,
        device_ids=devices,
        bucket_cap_mb=config.bucket_mb,
        gradient_as_bucket_view=True,
        **{buffers: False},
    )


def load_sharded(
    model: nn.Module, values: Iterable[tuple[str, Tensor]], device: torch.device, *, from_rank0: bool = False
) -> None:
    """Give the parameters of a sharded ``model`` on the meta device, and buffers, their ``values`` on ``device``.

    Each value is a whole tensor of the parameter's shape in any float dtype. Every process computes the same values and
    keeps its part of each; with ``from_rank0`` the first process sends its values to the others, whose own have the
    right shape and no more. So none holds more than one whole matrix besides its parts.
    """
    materialise(model, device)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    missing = set(parameters)
    with torch.no_grad():
        for name, value in values:
            if name in buffers:
                sent = value.to(device)
                dist.broadcast(sent, 0)
                buffers[name].copy_(sent)
                continue
            parameter = parameters[name]
            assert isinstance(parameter, DTensor), name
            whole = value.to(device=parameter.device, dtype=parameter.dtype)
            source = 0 if from_rank0 else None
            part = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=source)
            parameter.copy_(part)
            missing.discard(name)
    assert not missing, f"no value for {sorted(missing)}"


def materialise(model: nn.Module, device: torch.device) -> None:
    """Allocate the parameters of ``model`` that are on the meta device on ``device``, without values, and move the
    buffers there.

    ``Module.to_empty`` would untie weights and lose the values of buffers.
    """
    before: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter not in before:
                empty = torch.empty_like(parameter, device=device)
                before[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            setattr(module, name, before[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device=device) if buffer.is_meta else buffer.to(device))


@contextmanager
def unsharded(loss_module: nn.Module) -> Generator[None]:
    """Gather the weights within the context, so that the model in ``loss_module`` can be used by other ways than its
    forward pass, as for writing text; every process must take the same steps. Does nothing for unsharded weights."""
    if not isinstance(loss_module, FSDPModule):
        yield
        return
    loss_module.unshard()
    try:
        yield
    finally:
        for module in loss_module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
