"""The memory and traffic that `quintet plan` predicts, against what training allocates and sends on this machine's CPU.

    python benchmarks/plan_memory.py

Real processes (gloo) build each run as `quintet train` does and take two steps. PyTorch's profiler reports every
allocation and release in the second, including those inside kernels, and every collective. The plan takes the same
steps on fake tensors in this process. Bytes are those of rank 0.
"""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

VOCABULARY = 1000
WIDTHS = {"float": 4, "c10::BFloat16": 2}
COLLECTIVES = {
    "c10d::_allgather_base_": "all-gather",
    "c10d::_reduce_scatter_base_": "reduce-scatter",
    "c10d::allreduce_": "all-reduce",
}
MODEL = {"layers": 3, "width": 256, "attention": {"heads": 4}}
SHARING = {"same": ["attention_output"], "low_rank": ["feedforward", "attention_qkv"], "first_blocks": 1}
BYTES = {"embedding": {"kind": "bytes"}, "head": {"kind": "bytes", "layers": 2}, "tie_embeddings": False}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "none": (1, {"parallel": {"kind": "none"}}),
    "none, bf16": (1, {"parallel": {"kind": "none"}, "train": {"precision": "bf16"}}),
    "none, each block again": (1, {"parallel": {"kind": "none"}, "train": {"activation_checkpointing": 1}}),
    "none, selective": (1, {"parallel": {"kind": "none"}, "train": {"activation_checkpointing": "selective"}}),
    "none, 4 passes": (1, {"parallel": {"kind": "none"}, "train": {"batch_size": 32, "micro_batch_size": 8}}),
    "none, shared": (1, {"parallel": {"kind": "none"}, "model": MODEL | {"sharing": SHARING}}),
    "none, bytes, each block again": (
        1,
        {"parallel": {"kind": "none"}, "model": MODEL | BYTES, "train": {"activation_checkpointing": 1}},
    ),
    "ddp": (2, {"parallel": {"kind": "ddp"}}),
    "fsdp": (2, {"parallel": {"kind": "fsdp"}}),
    "fsdp, bf16": (2, {"parallel": {"kind": "fsdp"}, "train": {"precision": "bf16"}}),
    "fsdp, grad_op": (2, {"parallel": {"kind": "fsdp", "shard": "grad_op"}}),
    "fsdp, 3 passes, each block again": (
        2,
        {
            "parallel": {"kind": "fsdp"},
            "train": {"batch_size": 48, "micro_batch_size": 8, "activation_checkpointing": 1},
        },
    ),
    "fsdp, shared": (2, {"parallel": {"kind": "fsdp"}, "model": MODEL | {"sharing": SHARING}}),
    "fsdp, 3 passes": (2, {"parallel": {"kind": "fsdp"}, "train": {"batch_size": 48, "micro_batch_size": 8}}),
    "fsdp, 3 passes, reduced once": (
        2,
        {"parallel": {"kind": "fsdp", "reduce_passes": "last"}, "train": {"batch_size": 48, "micro_batch_size": 8}},
    ),
    "hsdp, 2 × 1 ranks, 3 passes": (
        2,
        {"parallel": {"kind": "hsdp", "shard_size": 1}, "train": {"batch_size": 48, "micro_batch_size": 8}},
    ),
    "fsdp, 4 ranks": (4, {"parallel": {"kind": "fsdp"}}),
    "hsdp, 2 × 2 ranks": (4, {"parallel": {"kind": "hsdp", "shard_size": 2}}),
}


def run_config(case: str) -> Any:
    """Return the run of ``case``: a small transformer, by default with 8 samples of 128 tokens per process."""
    from quintet.config.schema import RunConfig

    world_size, sections = CASES[case]
    train = {"steps": 1, "batch_size": 8 * world_size, "precision": "fp32", "device": "cpu"} | sections.get("train", {})
    data = {"sources": [{"kind": "python_stdlib"}], "sequence_length": 128}
    return RunConfig.model_validate({"name": "plan", "data": data, "model": MODEL, **sections, "train": train})


def weights(case: str) -> int:
    """Return the number of parameters of the whole model."""
    from quintet.train.sizes import parameter_count

    return parameter_count(run_config(case), VOCABULARY).total


def predict(case: str) -> dict[str, Any]:
    """Return what the plan predicts."""
    from quintet.plan.machine import Machine
    from quintet.plan.simulation import simulate

    world_size, _ = CASES[case]
    config = run_config(case)
    machine = Machine(world_size, world_size, 2**36, 1e12, 1.0, 1e10, 1e10, 1e10, accelerator=False)
    found = simulate(config, VOCABULARY, machine, config.train.precision)
    memory = found.memory
    calls = dict.fromkeys(COLLECTIVES.values(), 0)
    sent = dict.fromkeys(COLLECTIVES.values(), 0)
    for entry in found.traffic:
        calls[entry.collective] += entry.calls
        sent[entry.collective] += entry.bytes
    sizes = {name: getattr(memory, name) for name in ("parameters", "gradients", "optimizer", "activations", "peak")}
    return sizes | {"calls": calls, "sent": sent}


def measure(case: str) -> dict[str, Any]:
    """Return what this process of the run allocates and sends in the second step."""
    import numpy as np
    import torch

    from quintet.data.batch import Batch
    from quintet.processes import world_size
    from quintet.tokenize.base import TokenBytes
    from quintet.train.build import build_engine
    from quintet.train.compute import Compute
    from quintet.train.loss import build_objective

    config = run_config(case)
    tokenizer: Any = SimpleNamespace(vocab_size=VOCABULARY, end_id=0, pieces=TokenBytes(()))
    compute = Compute(torch.device("cpu"), config.train.precision, compile=False, reason="")
    samples = config.batch.samples // world_size()
    ids = np.random.default_rng(0).integers(VOCABULARY, size=(samples, 128))
    batch = Batch(ids, ids, np.zeros(samples, np.int64), ids.size * world_size())
    gc.collect()  # frees the previous case
    with torch.profiler.profile(profile_memory=True, record_shapes=True) as profile:
        built = build_engine(config, tokenizer, build_objective(config, tokenizer), compute)
        engine, found = built.engine, {}
        built.loss_module.register_forward_pre_hook(lambda *_: _mark("forward begins"), prepend=True)
        # Before fully_shard's own hook, which replaces the shards by whole parameters.
        built.loss_module.register_forward_pre_hook(
            lambda *_: found.update(between=_held_gradients(built)), prepend=True
        )
        built.loss_module.register_forward_hook(lambda *_: _mark("forward ends"))
        engine.accumulate(batch, 1)
        engine.update(0.0, 1)
        _mark("second step")
        engine.accumulate(batch, 2)
        found["gradients"] = _own_bytes(p.grad for p in built.model.parameters())
        engine.update(0.0, 2)
        found["parameters"] = _own_bytes([*built.model.parameters(), *built.model.buffers()])
        state = [value for kept in built.optimizer.state.values() for value in kept.values()]
        found["optimizer"] = _own_bytes(state)
    step = _second_step(profile)
    step["activations"] -= _still_gathered(built)
    return found | step


def _held_gradients(built: Any) -> int:
    """Return the bytes of gradients kept between passes: the shards of this process, and what fully_shard has not
    reduced yet."""
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

    spread = [one for one in gc.get_objects() if isinstance(one, FSDPParam)]
    whole = [getattr(getattr(one, "_unsharded_param", None), "grad", None) for one in spread]
    wider = [one.unsharded_accumulated_grad for one in spread]  # of parameters gathered in 16 bits
    own = [parameter.grad for parameter in built.model.parameters()]
    return _own_bytes(gradient for gradient in (*whole, *wider, *own) if gradient is not None)


def _still_gathered(built: Any) -> int:
    """Return the fp32 bytes of weights that stay gathered from the forward to the backward pass."""
    if not built.strategy.sharded:
        return 0
    in_blocks = {id(weight) for block in built.model.blocks for weight in block.parameters()}
    kept = built.strategy.config.shard == "grad_op"
    return sum(4 * weight.numel() for weight in built.model.parameters() if kept or id(weight) not in in_blocks)


def _mark(name: str) -> None:
    import torch

    with torch.profiler.record_function(name):
        pass


def _own_bytes(tensors: Any) -> int:
    """Return the bytes of the local part of ``tensors``."""
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def _second_step(profile: Any) -> dict[str, Any]:
    """Return the peak bytes of the second step, the bytes its last forward pass kept, and what it sent."""
    results = profile.profiler.kineto_results
    live = peak = begun = left = starts = 0
    before: int | None = None
    second = False
    for event in sorted(_flat(results.experimental_event_tree()), key=lambda event: event.start_time_ns):
        if "Allocation" in str(event.tag):
            # The allocator's own count includes what gloo's threads free.
            total, size = event.extra_fields.total_allocated, event.extra_fields.alloc_size
            before = total - size if before is None else before
            live = total - before
            peak = max(peak, live) if second else 0
        elif event.name == "second step":
            second, peak, starts = True, live, event.start_time_ns
        elif event.name == "forward begins":
            begun = live
        elif event.name == "forward ends":
            left = live - begun
    sent = {name: [0, 0] for name in COLLECTIVES.values()}
    for event in results.events():
        if event.name() in COLLECTIVES and event.start_ns() >= starts:
            entry = sent[COLLECTIVES[event.name()]]
            entry[0] += 1
            entry[1] += _largest(event)
    calls, sizes = ({name: entry[place] for name, entry in sent.items()} for place in (0, 1))
    return {"peak": peak, "activations": left, "calls": calls, "sent": sizes}


def _flat(events: Any) -> Iterator[Any]:
    """Yield ``events`` and all their descendants."""
    for event in events:
        yield event
        yield from _flat(event.children)


def _largest(event: Any) -> int:
    """Return the bytes of the larger tensor of a collective; 0 if the profiler has no shapes, as for all-reduce."""
    sizes = zip(event.shapes(), event.dtypes(), strict=True)
    return max((math.prod(shape) * WIDTHS[kind] for shape, kind in sizes if shape and kind in WIDTHS), default=0)


def measured(cases: list[str]) -> dict[str, dict[str, Any]]:
    """Return what rank 0 of real processes measures in ``cases``, which have the same number of processes."""
    (world_size,) = {CASES[case][0] for case in cases}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world_size)]
    done = subprocess.run(
        [sys.executable, *launch, __file__, "--measure", *cases],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


@contextmanager
def _released_buffers() -> Iterator[None]:
    """Let each collective of fully_shard return only after gloo's threads have released its buffers.

    On a busy machine a thread that is late holds the buffers of several blocks, and the peak is half as large again.
    """
    import torch.distributed as dist

    names = ("all_gather_single", "reduce_scatter_single", "all_gather_into_tensor", "reduce_scatter_tensor")
    real = {name: getattr(dist, name) for name in (*names, "all_reduce") if hasattr(dist, name)}
    for name, collective in real.items():
        setattr(dist, name, partial(_run_released, collective))
    try:
        yield
    finally:
        for name, collective in real.items():
            setattr(dist, name, collective)


def _run_released(collective: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Run ``collective`` and wait until it refers to none of its tensors."""
    import torch

    def references() -> list[int]:
        return [torch._C._storage_Use_Count(storage._cdata) for storage in storages]

    tensors = [value for value in (*arguments, *named.values()) if isinstance(value, torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    before = references()
    collective(*arguments, **named | {"async_op": False})
    while any(now > then for now, then in zip(references(), before, strict=True)):
        time.sleep(0)  # lets gloo's threads run


def measure_all(cases: list[str]) -> None:
    """Measure each of ``cases`` in one process group; rank 0 prints the result."""
    from quintet.processes import is_rank_zero
    from quintet.train.parallel.group import process_group

    with process_group(run_config(cases[0])), _released_buffers():
        found = {case: measure(case) for case in cases}
    if is_rank_zero():
        print(json.dumps(found), flush=True)


def main() -> None:
    """Print a row per case: predicted / measured MB, and if calls and bytes of the collectives are equal."""
    names = ("parameters", "gradients", "optimizer", "activations", "peak")
    print(f"{'case':34}" + "".join(f"{name:>20}" for name in names) + "   peak off, collectives")
    for world_size in (1, 2, 4):
        cases = [case for case, (processes, _) in CASES.items() if processes == world_size]
        real = measured(cases)
        for case in cases:
            told, found = predict(case), real[case]
            row = "".join(f"{told[name] / 1e6:10.3f} / {found[name] / 1e6:7.3f}" for name in names)
            off = told["peak"] / found["peak"] - 1
            # The profiler reports no sizes for all-reduce.
            same = all(told["sent"][name] == size or name == "all-reduce" for name, size in found["sent"].items())
            equal = "equal" if same and told["calls"] == found["calls"] else "different"
            print(f"{case:34}{row}   {off:+.1%}, {equal}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure_all(sys.argv[2:])
    else:
        main()
