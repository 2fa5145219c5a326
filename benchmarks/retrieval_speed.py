"""Retrieval: ours against CLIP_benchmark's, time and memory: `python -m benchmarks.retrieval_speed`.

Both get the same features (float32, 512 wide, 20,000 pairs), R@{1,5,10} of both directions; CLIP_benchmark through its
own `zeroshot_retrieval.evaluate` with a model that looks features up, batches of 64. Each run is a process of its own,
ours and theirs in turn; memory is the peak of resident memory over what is resident once features are loaded and a
small problem has warmed libraries up. Then ours alone on 100,000 pairs. The peer lives in `.venv-peers` (`make peers`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KS, WIDTH, BATCH = (1, 5, 10), 512, 64


def make_features(folder: Path, n: int) -> None:
    """images.npy and texts.npy: a text is its image with noise, so recalls are neither 0 nor 1."""
    import numpy as np

    rng = np.random.Generator(np.random.Philox(n))
    images = rng.standard_normal((n, WIDTH), dtype=np.float32)
    np.save(folder / "images.npy", images)
    for start in range(0, n, 10_000):
        part = images[start : start + 10_000]
        part += 6 * rng.standard_normal(part.shape, dtype=np.float32)
    np.save(folder / "texts.npy", images)


def ours(images: Any, texts: Any) -> dict[str, float]:
    import numpy as np

    from eval_zero_shot.retrieval.ranks import rank_both

    both = rank_both(images, texts, np.arange(len(texts)))
    names = {"image": "text_to_image", "text": "image_to_text"}
    return {
        f"{name}_retrieval_recall@{k}": float(both[direction, "strict"].hits([k]).mean())  # type: ignore[index]
        for name, direction in names.items()
        for k in KS
    }


def theirs(images: Any, texts: Any) -> dict[str, float]:
    import torch
    from clip_benchmark.metrics.zeroshot_retrieval import evaluate

    class LookUp:
        def encode_image(self, features: torch.Tensor) -> torch.Tensor:
            return features

        def encode_text(self, numbers: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(texts[numbers.numpy()])

    batches = [
        (torch.from_numpy(images[s : s + BATCH]), [[str(t)] for t in range(s, min(s + BATCH, len(texts)))])
        for s in range(0, len(images), BATCH)
    ]

    def tokenize(words: Sequence[str]) -> torch.Tensor:
        return torch.tensor([int(word) for word in words])

    return evaluate(LookUp(), batches, tokenize, "cpu", amp=False, recall_k_list=list(KS))


WAYS: dict[str, Callable[[Any, Any], dict[str, float]]] = {"ours": ours, "CLIP_benchmark": theirs}


def resident(peak: bool) -> float:
    """MB of this process (Linux)."""
    key = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def one(way: str, folder: Path) -> dict[str, Any]:
    """One measured run, in this process."""
    import numpy as np

    images, texts = (np.load(folder / f"{name}.npy") for name in ("images", "texts"))
    WAYS[way](images[:500].copy(), texts[:500].copy())
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before, began = resident(peak=False), time.perf_counter()
    recalls = WAYS[way](images, texts)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rise_mb": resident(peak=True) - before, "recalls": recalls}


def start(way: str, folder: Path, python: str) -> dict[str, Any]:
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "2", "TQDM_DISABLE": "1"}
    command = [python, str(Path(__file__).resolve()), "--one", way, "--features", str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    run = json.loads(done.stdout.splitlines()[-1])
    print(
        f"  one run of {way}: {run['seconds']:.1f} s, rise {run['rise_mb']:.0f} MB, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return run


def said(name: str, runs: Sequence[dict[str, Any]]) -> tuple[float, float]:
    seconds, rise = (statistics.median(run[key] for run in runs) for key in ("seconds", "rise_mb"))
    print(f"  {name:15} {seconds:8.1f} s   rise {rise:8.0f} MB   (medians of {len(runs)})", flush=True)
    return seconds, rise


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval_speed", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--pairs", type=int, default=20_000, metavar="N", help="of the comparison (default: 20000)")
    parser.add_argument("--large", type=int, default=100_000, metavar="N", help="ours alone; 0: not (default: 100000)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each (default: 3)")
    parser.add_argument("--peers", default=".venv-peers/bin/python", metavar="PYTHON", help="with clip-benchmark")
    parser.add_argument("--one", choices=tuple(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--features", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(one(args.one, args.features)))
        return 0
    from benchmarks.machine import machine

    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        if args.pairs:
            folder = Path(scratch)
            make_features(folder, args.pairs)
            runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for repeat in range(args.repeats):
                for way in list(WAYS) if repeat % 2 else list(reversed(WAYS)):
                    python = str(Path(args.peers).absolute()) if way == "CLIP_benchmark" else sys.executable
                    runs[way].append(start(way, folder, python))
            print(
                f"{args.pairs:,} x {args.pairs:,}, {WIDTH} wide, R@{KS}, both directions, load {os.getloadavg()[0]:.1f}"
            )
            (fast, small), (slow, big) = (said(way, runs[way]) for way in WAYS)
            print(f"  time, theirs / ours: {slow / fast:.1f}   rise, ours / theirs: {small / big:.4f}")
            mine, other = (runs[way][0]["recalls"] for way in WAYS)
            print(f"  largest difference of a recall: {max(abs(mine[k] - other[k]) for k in mine):.1e}")
        if args.large:
            make_features(Path(scratch), args.large)
            print(f"{args.large:,} x {args.large:,}, load {os.getloadavg()[0]:.1f}")
            said("ours", [start("ours", Path(scratch), sys.executable)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
