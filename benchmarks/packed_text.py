"""Packed text against padding and against a loop: `python -m benchmarks.packed_text`.

1,000 short sequences, forward and backward on the CPU through the quickstart's text tower (width 192, 4 blocks,
4 heads, context 256), as a batch of report sentences has them: lengths drawn evenly from 5..40 tokens, and in a second
measurement a share of long ones from 100..256 (whole reports). Five ways, same features and gradients:

  packed    ours: encoders.text.encode_packed
  batch     open_clip's tower on one batch, right-padded to its longest sequence
  context   open_clip's tower on one batch, right-padded to the context, which is what its tokenizer returns
  loop      open_clip's tower, one sequence at a time, split once
  slices    packed, but attention takes `qkv[start:end]` for each sequence: the loop that is easily written by mistake

Padded batches go through in chunks of CHUNK sequences with their gradients added up, as they would not fit otherwise
(1,000 full contexts keep about 12 GB of activations). The loop embeds all tokens at once and splits afterwards.
Runs are interleaved and their order rotates, so that a machine that slows down slows all of them; medians are compared.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.machine import machine

if TYPE_CHECKING:
    from torch import Tensor

CONTEXT, WIDTH, LAYERS, HEADS, DIM = 256, 192, 4, 4, 256
SHORT, LONG = (5, 40), (100, 256)  # tokens, both ends included
SOT, EOT = 49406, 49407
CHUNK = 125  # padded sequences computed together


class Seconds(NamedTuple):
    """Of the wall clock, and of this process on the CPU, which a busy neighbour changes less."""

    wall: float
    cpu: float


def draw_lengths(sequences: int, long_share: float, seed: int) -> list[int]:
    """Lengths in a fixed order: the first ones short, a share of them replaced by long ones."""
    import numpy as np

    rng = np.random.Generator(np.random.Philox(seed))
    lengths = rng.integers(SHORT[0], SHORT[1] + 1, sequences)
    tail = rng.permutation(sequences)[: round(long_share * sequences)]
    lengths[tail] = rng.integers(LONG[0], LONG[1] + 1, len(tail))
    return [int(n) for n in lengths]


def draw_tokens(lengths: Sequence[int], seed: int) -> list[Tensor]:
    """Token ids of each sequence: start, words, end."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    out = []
    for length in lengths:
        ids = torch.randint(1, SOT, (length,), generator=generator)
        ids[0], ids[-1] = SOT, EOT
        out.append(ids)
    return out


def ways(tower: Any, sequences: list[Tensor]) -> dict[str, list[Callable[[], Tensor]]]:
    """Each way's forward passes, which together give the features [sequences, DIM] in order."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from encoders.attention import Packing
    from encoders.text import encode_packed

    lengths = tuple(len(s) for s in sequences)
    flat, batch = torch.cat(sequences), pad_sequence(sequences, batch_first=True)
    context = torch.nn.functional.pad(batch, (0, CONTEXT - batch.shape[1]))

    def blocks(x_BLC: Tensor) -> Tensor:
        """open_clip's own blocks. Its `forward` takes full contexts only, so the mask is cut to the length here."""
        length = x_BLC.shape[1]
        x_BLC = x_BLC + tower.positional_embedding[:length]
        return tower.transformer(x_BLC, attn_mask=tower.attn_mask[:length, :length])

    def padded(tokens_BL: Tensor) -> Tensor:
        x = blocks(tower.token_embedding(tokens_BL))
        return tower.ln_final(x[torch.arange(len(x)), tokens_BL.argmax(1)]) @ tower.text_projection

    def loop() -> Tensor:
        # Embedded together: a lookup of its own for each sequence would cost a dense gradient of the vocabulary each.
        last = [blocks(x[None])[0, -1] for x in tower.token_embedding(flat).split(lengths)]
        return tower.ln_final(torch.stack(last)) @ tower.text_projection

    def slices() -> Tensor:
        packing = Packing(lengths)
        bounds = [0, *packing.cu_seqlens[1:].tolist()]
        x = tower.token_embedding(flat) + tower.positional_embedding[packing.positions]
        for block in tower.transformer.resblocks:
            qkv = torch.nn.functional.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
            qkv = qkv.view(len(x), 3, HEADS, -1)
            heads = []
            for a, b in itertools.pairwise(bounds):
                q, k, v = qkv[a:b].permute(1, 2, 0, 3)
                heads.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
            x = x + block.attn.out_proj(torch.cat([h.transpose(0, 1) for h in heads]).flatten(1))
            x = x + block.mlp(block.ln_2(x))
        return tower.ln_final(x[packing.last]) @ tower.text_projection

    return {
        # The packing is made inside: its bookkeeping is part of every training step.
        "packed": [lambda: encode_packed(tower, flat, Packing(lengths))],
        "batch": [partial(padded, part) for part in batch.split(CHUNK)],
        "context": [partial(padded, part) for part in context.split(CHUNK)],
        "loop": [loop],
        "slices": [slices],
    }


def step(tower: Any, forwards: list[Callable[[], Tensor]], weight: Tensor) -> tuple[Seconds, Tensor, Tensor]:
    """Time of one forward and backward pass, the features, and the gradient of the projection."""
    import torch

    tower.zero_grad(set_to_none=True)
    features: list[Tensor] = []
    wall, cpu = time.perf_counter(), time.process_time()
    for forward in forwards:
        part = forward()
        done = sum(len(f) for f in features)
        (part * weight[done : done + len(part)]).sum().backward()
        features.append(part.detach())
    seconds = Seconds(time.perf_counter() - wall, time.process_time() - cpu)
    return seconds, torch.cat(features), tower.text_projection.grad


def measure(sequences: list[Tensor], repeats: int, seed: int) -> dict[str, list[Seconds]]:
    """Time of each repeat of each way. Raises AssertionError when a way gives other features or gradients."""
    import torch
    from open_clip.model import CLIPTextCfg, _build_text_tower

    torch.manual_seed(seed)
    cfg = CLIPTextCfg(context_length=CONTEXT, width=WIDTH, layers=LAYERS, heads=HEADS)
    tower = _build_text_tower(DIM, cfg)
    weight = torch.randn(len(sequences), DIM)
    chosen = ways(tower, sequences)
    reference: tuple[Tensor, Tensor] | None = None
    for name, forwards in chosen.items():  # warm-up, and proof that all ways compute the same
        _, *result = step(tower, forwards, weight)
        reference = reference or (result[0], result[1])
        for ours, theirs in zip(result, reference, strict=True):
            error = float((ours - theirs).norm() / theirs.norm())
            assert error < 1e-4, f"{name} differs from packed by {error:.1e}"
    seconds: dict[str, list[Seconds]] = {name: [] for name in chosen}
    names = list(chosen)
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(step(tower, chosen[name], weight)[0])
        print(f"\rrepeat {repeat + 1}/{repeats}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packed_text",
        description="Packed text against padding and against a loop, on the CPU.",
    )
    add = parser.add_argument
    add("--repeats", type=int, default=5, metavar="N", help="timed runs of each way, interleaved (default: 5)")
    add("--sequences", type=int, default=1000, metavar="N", help="sequences in the batch (default: 1000)")
    add(
        "--long",
        type=float,
        nargs="*",
        default=[0.0, 0.02],
        metavar="SHARE",
        help="shares of long texts (default: 0 0.02)",
    )
    add("--threads", type=int, metavar="N", help="torch threads (default: torch's own choice)")
    add("--seed", type=int, default=0, help="of lengths, tokens and weights (default: 0)")
    args = parser.parse_args(argv)
    import torch

    from pretrain.memory import keep_freed_memory

    kept = keep_freed_memory()  # as in training; without it page faults drown the arithmetic of every way
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"{machine()}, fp32" + (", freed memory kept as in training" if kept else ""))
    for share in args.long:
        lengths = draw_lengths(args.sequences, share, args.seed)
        seconds = measure(draw_tokens(lengths, args.seed), args.repeats, args.seed)
        tokens, longest = sum(lengths), max(lengths)
        print(f"\n{len(lengths)} sequences, {share:.0%} long: {tokens} tokens, longest {longest}")
        print(
            f"  {'way':8} {'median s':>8} {'min..max':>14} {'CPU s':>8} {'tokens':>8} {'packed is':>10} {'by CPU':>8}"
        )
        computed = {
            "packed": tokens,
            "batch": longest * len(lengths),
            "context": CONTEXT * len(lengths),
            "loop": tokens,
            "slices": tokens,
        }
        ours = Seconds(*(statistics.median(clock) for clock in zip(*seconds["packed"], strict=True)))
        for name, runs in seconds.items():
            wall, cpu = (statistics.median(clock) for clock in zip(*runs, strict=True))
            spread = f"{min(r.wall for r in runs):.2f}..{max(r.wall for r in runs):.2f}"
            ratios = f"{wall / ours.wall:8.1f} x {cpu / ours.cpu:6.1f} x"
            print(f"  {name:8} {wall:8.2f} {spread:>14} {cpu:8.2f} {computed[name]:8} {ratios}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
