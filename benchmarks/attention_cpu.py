"""Blocked attention against PyTorch's fused attention on a CPU: forward and backward, causal and with packed documents.

python benchmarks/attention_cpu.py
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from quintet.model.kernels import Kernel, attend, prepare_mask
from quintet.model.mask import KeyRanges
from quintet.train.compute import keep_freed_memory

DOCUMENT = 100  # tokens per packed document
SHAPES = [(16, 6, 256, 64), (4, 12, 1024, 64), (12, 4, 64, 32), (1, 12, 2048, 64)]


def milliseconds(run: Callable[[], object], repeats: int = 15) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    keep_freed_memory()
    cpu = torch.device("cpu")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; documents of {DOCUMENT} tokens")
    columns = "".join(f"{title:>11}" for title in ("type", "mask", "torch ms", "blocked ms", "ratio"))
    print(f"{'batch, heads, length, features':>32}{columns}")
    for shape in SHAPES:
        batch, heads, length, features = shape
        begins = (torch.arange(length) // DOCUMENT * DOCUMENT).expand(batch, -1)
        masks = {
            "causal": KeyRanges(length, length, causal=True),
            "documents": KeyRanges(length, length, causal=True, first=begins),
        }
        for dtype, (name, ranges) in itertools.product((torch.bfloat16, torch.float32), masks.items()):
            qkv = torch.randn(batch, length, 3, heads, features, dtype=dtype, requires_grad=True)
            gradient = torch.randn(batch, heads, length, features, dtype=dtype)

            def run(kernel: Kernel, qkv=qkv, gradient=gradient, ranges=ranges) -> None:
                qkv.grad = None
                mask = prepare_mask(ranges, kernel, cpu)
                attend(*(part.transpose(1, 2) for part in qkv.unbind(2)), mask).backward(gradient)

            fused, blocked = (milliseconds(partial(run, kernel)) for kernel in ("sdpa", "blocked"))
            figures = f"{fused:11.1f}{blocked:11.1f}{fused / blocked:11.2f}"
            print(f"{shape!s:>32}{str(dtype)[6:]:>11}{name:>11}{figures}")


if __name__ == "__main__":
    main()
