"""Blocked causal attention against PyTorch's fused attention on a CPU, forward and backward.

python benchmarks/attention_cpu.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from quintet.model.blocked_attention import blocked_causal_attention
from quintet.train.compute import keep_freed_memory

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
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'batch, heads, length, features':>32} {'type':>9} {'torch ms':>9} {'blocked ms':>10} {'ratio':>6}")
    for shape in SHAPES:
        batch, heads, length, features = shape
        for dtype in (torch.bfloat16, torch.float32):
            qkv = torch.randn(batch, length, 3, heads, features, dtype=dtype, requires_grad=True)
            gradient = torch.randn(batch, heads, length, features, dtype=dtype)

            def run(attention: Callable[..., torch.Tensor], qkv=qkv, gradient=gradient) -> None:
                qkv.grad = None
                attention(*(part.transpose(1, 2) for part in qkv.unbind(2))).backward(gradient)

            fused = milliseconds(
                lambda run=run: run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
            )
            blocked = milliseconds(lambda run=run: run(blocked_causal_attention))
            print(f"{shape!s:>32} {str(dtype)[6:]:>9} {fused:9.1f} {blocked:10.1f} {fused / blocked:6.2f}")


if __name__ == "__main__":
    main()
