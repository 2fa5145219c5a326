"""Attention in bf16 on a CPU, forward and backward: ours against torch's `scaled_dot_product_attention`, in turns.

python -m benchmarks.cpu_attention [--repeats 15]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import machine
from encoders.attention import dense
from pretrain.memory import keep_freed_memory

SHAPES = ((32, 197, 6), (64, 50, 6), (56, 42, 12), (8, 512, 6))  # sequences, tokens, heads of 64


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def seconds(function: Callable[..., Tensor], qkv: Tensor) -> float:
    x = qkv.clone().requires_grad_()
    began = time.perf_counter()
    function(*x.unbind(2)).float().sum().backward()
    return time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Attention in bf16 on a CPU.")
    parser.add_argument("--repeats", type=int, default=15, help="of each, in turns (default: 15)")
    args = parser.parse_args(argv)
    keep_freed_memory()
    print(machine())
    print("| sequences x tokens, heads | ours, ms | torch, ms | ratio |\n|---|---|---|---|")
    for count, length, heads in SHAPES:
        qkv = torch.randn(count, length, 3, heads, 64).bfloat16()
        times = [(seconds(dense, qkv), seconds(flash, qkv)) for _ in range(args.repeats + 1)][1:]
        ours, theirs = (1e3 * statistics.median(one) for one in zip(*times, strict=True))
        print(f"| {count} x {length}, {heads} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
