"""The probe's L-BFGS against scikit-learn's: `python -m benchmarks.probe_speed`.

100,000 studies x 768 features (correlated, unit length, then z-scored, as a probe's are), 20 classes, 13 strengths
C = 1e-6 ... 1e6, float32, two threads each. Both stop where the largest component of the gradient of scikit-learn's
objective (mean loss + |w|²/(2 C N)) is at most `--tolerance` (scikit-learn's default: 1e-4). Afterwards both gradients
are measured in float64 on that objective. scikit-learn is given two ways: a fit a strength from zero, and warm_start
from the strength before, small to large.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.machine import machine


def problem(studies: int, width: int, classes: int, seed: int = 0) -> tuple[Any, Any]:
    """Features whose variances fall as a power (as an encoder's do), classes that overlap; z-scored float32."""
    rng = np.random.Generator(np.random.Philox(seed))
    labels = rng.integers(0, classes, studies)
    scales = np.arange(1, width + 1, dtype=np.float32) ** -0.6
    x = rng.standard_normal((studies, width), dtype=np.float32)
    x += rng.standard_normal((classes, width), dtype=np.float32)[labels] * 0.35 * (rng.random(width) < 0.2)
    x *= scales
    turn, _ = np.linalg.qr(rng.standard_normal((width, width), dtype=np.float32))
    x = x @ turn + 0.3 * rng.standard_normal(width, dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    noise = rng.random(studies) < 0.1  # a tenth of the labels is wrong, as in practice; the classes do not separate
    labels[noise] = rng.integers(0, classes, int(noise.sum()))
    return np.ascontiguousarray((x - x.mean(0)) / x.std(0)), labels


def gradient(x: Any, labels: Any, weights: Any, intercepts: Any, strength: float) -> tuple[float, float]:
    """(largest component, Euclidean length) of the gradient, in float64."""
    from scipy.special import softmax

    weights, intercepts = weights.astype(np.float64), intercepts.astype(np.float64)
    n, grad_w, grad_b = len(x), weights / (strength * len(x)), np.zeros(len(intercepts))
    for start in range(0, n, 10_000):
        part = x[start : start + 10_000].astype(np.float64)
        r = softmax(part @ weights.T + intercepts, axis=1)
        r[np.arange(len(part)), labels[start : start + 10_000]] -= 1
        grad_w += r.T @ part / n
        grad_b += r.sum(0) / n
    every = np.r_[grad_w.ravel(), grad_b]
    return float(np.abs(every).max()), float(np.linalg.norm(every))


def _clock() -> Any:
    """Wall and processor seconds; the second hardly feels what else a machine does."""
    return np.array([time.perf_counter(), time.process_time()])


def scikit_learn(x: Any, labels: Any, strengths: Sequence[float], tolerance: float, warm: bool) -> list[Any]:
    """(wall seconds, processor seconds, weights, intercepts, iterations) a strength."""
    from sklearn.linear_model import LogisticRegression

    found, model = [], LogisticRegression(tol=tolerance, max_iter=20_000, warm_start=True)
    for c in strengths:
        model = model if warm else LogisticRegression(tol=tolerance, max_iter=20_000)
        model.C = c
        began = _clock()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stop by its own limits shows in the gradient that is measured
            model.fit(x, labels)
        wall, used = _clock() - began
        found.append((wall, used, model.coef_.copy(), model.intercept_.copy(), int(model.n_iter_[0])))
        print(
            f"  scikit-learn{' warm' if warm else ''}, C {c:g}: {wall:.1f} s, {model.n_iter_[0]} iterations",
            file=sys.stderr,
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe_speed", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--studies", type=int, default=100_000, metavar="N", help="default: 100000")
    add("--strengths", type=int, default=13, metavar="N", help="of logspace(-6, 6) (default: 13)")
    add("--tolerance", type=float, default=1e-4, help="largest gradient component (default: 1e-4)")
    add("--ours-only", action="store_true", help="leave scikit-learn out")
    add("--no-warm", action="store_true", help="leave scikit-learn with warm_start out")
    args = parser.parse_args(argv)
    import torch
    from threadpoolctl import threadpool_limits

    from eval_zero_shot.probe.logistic import fit_classes, prepare

    torch.set_num_threads(2)
    x, labels = problem(args.studies, 768, 20)
    strengths = [float(c) for c in np.logspace(-6, 6, args.strengths)]
    print(machine())
    print(f"{args.studies} x 768 float32, 20 classes, {len(strengths)} strengths, tolerance {args.tolerance:g}")
    began = _clock()
    basis = prepare(x)
    prepared = _clock() - began
    fits = fit_classes(basis, labels, strengths, tolerance=args.tolerance)
    ours = _clock() - began
    print(f"ours: {ours[0]:.1f} s ({ours[1]:.1f} s of processor), of which {prepared[0]:.1f} s to prepare; iterations",
          fits.iterations_SP[:, 0].tolist(), flush=True)  # fmt: skip
    fitted = zip(fits.weights_SKD, fits.intercepts_SK, strengths, strict=True)
    rows = {"ours": [gradient(x, labels, w, b, c) for w, b, c in fitted]}
    with threadpool_limits(2):
        for warm in () if args.ours_only else (False,) if args.no_warm else (False, True):
            name = "scikit-learn, warm_start" if warm else "scikit-learn"
            found = scikit_learn(x, labels, strengths, args.tolerance, warm)
            theirs = np.sum([seconds[:2] for seconds in found], axis=0)
            print(f"{name}: {theirs[0]:.1f} s ({theirs[1]:.1f} s of processor), iterations {[n for *_, n in found]}")
            print(
                f"ours is {theirs[0] / ours[0]:.1f} x as fast ({theirs[1] / ours[1]:.1f} x by processor time)",
                flush=True,
            )
            rows[name] = [gradient(x, labels, w, b, c) for (_, _, w, b, _), c in zip(found, strengths, strict=True)]
    print("\nC          gradient: largest component / length, float64")
    for i, c in enumerate(strengths):
        print(f"{c:<9g}", "   ".join(f"{name} {size[i][0]:.1e} / {size[i][1]:.1e}" for name, size in rows.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
