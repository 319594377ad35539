"""A model wrapped for several processes: replicated by DDP, or sharded by PyTorch's fully_shard.

`strategy` chooses between them and the shape of the mesh; this file makes the mesh, wraps the model and loads its
weights.
"""

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
    """Return a mesh of the ``shape`` groups × processes in a group (see `mesh_shape`).

    Processes wait ``timeout`` for each other; without it half an hour, whatever the timeout of the process group.
    """
    dimensions = (shape[1:], ("shard",)) if shape[0] == 1 else (shape, ("replicate", "shard"))
    mesh = init_device_mesh(device, dimensions[0], mesh_dim_names=dimensions[1])
    if timeout is not None:
        for group in mesh.get_all_groups():
            dist.distributed_c10d._set_pg_timeout(timeout, group)  # pyright: ignore[reportPrivateUsage]
    return mesh


def shard(loss_module: LossModule, strategy: Strategy, mesh: DeviceMesh, compute: Compute) -> None:
    """Shard the weights of ``loss_module``, which may be on the meta device, over ``mesh``.

    Each block is sharded by itself, so that one is gathered at a time. Embedding and head are sharded together, so that
    tied weights are gathered once. They are gathered in fp32, because the gradients of all tokens are summed in their
    dtype.
    """
    config = strategy.config
    assert isinstance(config, FSDPConfig | HSDPConfig), config
    offload = CPUOffloadPolicy(pin_memory=compute.device.type == "cuda") if config.offload else OffloadPolicy()
    reduce = DTYPES[config.reduce]
    for block in loss_module.model.blocks:
        policy = MixedPrecisionPolicy(_gathered_in(loss_module, config, compute), reduce, cast_forward_inputs=False)
        reshard = config.shard == "full"
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=reshard)
    policy = MixedPrecisionPolicy(reduce_dtype=reduce, cast_forward_inputs=False)
    fully_shard(loss_module, mesh=mesh, mp_policy=policy, offload_policy=offload)


def _gathered_in(loss_module: LossModule, config: FSDPConfig | HSDPConfig, compute: Compute) -> torch.dtype | None:
    if config.gather == "auto":
        # Models of the transformers library differ in their treatment of norm gains in bf16.
        own = loss_module.model.config.kind == "transformer"
        return compute.dtype if own and compute.precision == "bf16" else None
    return None if config.gather == "fp32" else DTYPES[config.gather]


def replicate(
    loss_module: LossModule,
    config: DDPConfig,
    compute: Compute,
    wrap: Callable[..., DistributedDataParallel] = DistributedDataParallel,
) -> DistributedDataParallel:
    """Return ``loss_module`` in ``wrap``, which averages its gradients over the processes."""
    devices = [compute.device] if compute.device.type == "cuda" else None
    # Buffers are the same tables in all processes. PyTorch 2.13 renamed the setting.
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
    """Allocate a sharded ``model`` from the meta device on ``device``, and load ``values`` into it.

    Each value is a whole tensor of the parameter's shape in any float dtype. Every process computes the same values and
    keeps its part of each. With ``from_rank0`` rank 0 sends its values; those of the others only have the right shape.
    So no process holds more than one whole matrix besides its parts.
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
    """Allocate the parameters of ``model`` on ``device``, without values, and move its buffers there.

    ``Module.to_empty`` would untie weights and lose the values of buffers.
    """
    allocated: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter not in allocated:
                empty = torch.empty_like(parameter, device=device)
                allocated[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            setattr(module, name, allocated[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device=device) if buffer.is_meta else buffer.to(device))


@contextmanager
def unsharded(loss_module: nn.Module) -> Generator[None]:
    """Gather the weights within the context, to use the model outside of the forward pass of ``loss_module``.

    All processes must then use it in the same way. Does nothing for weights that are not sharded.
    """
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
