"""Logistic regression by batched, preconditioned L-BFGS: many labels and many strengths C on the same features.

The objective of one problem is scikit-learn's (LogisticRegression, lbfgs), divided by C · n as scikit-learn divides it:

    1/n · Σ loss(x·W + b, y) + 1/(2 C n) · |W - W0|²        W0 = 0 unless a start is given; the intercept is free

over the n studies whose label is known. The loss is log(1 + exp(-y (x·w + b))) for a label (multi-label, any number of
labels side by side) and softmax cross-entropy over K classes (multi-class).

What makes it fast. Features are centred and turned into the eigenbasis of their Gram matrix once, for all labels and
strengths; there the Hessian is close to diagonal (it is at W = 0), so a diagonal serves L-BFGS as its first inverse
Hessian. Logits along a search direction are linear in the step, so a line search costs no product with the features.
Strengths are solved from small to large, each from the optimum before it.
With fewer studies than features, all of it happens in the span of the studies, where the optimum lies.

Legend: N studies, D features, R ≤ D directions, S strengths, L labels, P problems solved side by side, K logits a
problem (1: a label).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.errors import EvalError
from eval_zero_shot.probe.lbfgs import Basis, Solver

Array = NDArray[Any]
COLUMNS = 32  # logits side by side at most (or one problem's): beyond, a product with the features gains nothing
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


@dataclass(frozen=True)
class Fits:
    """One fit a strength and problem: weights [S, P·K, D], intercepts [S, P·K] for the features as they were given.

    gradient_SP: largest component of the objective's gradient at the end (features as given, intercept included).
    iterations_SP: of L-BFGS. converged: every gradient is at or below the tolerance that was asked for.
    """

    strengths: tuple[float, ...]
    weights_SKD: Array
    intercepts_SK: Array
    gradient_SP: Array
    iterations_SP: NDArray[np.int64]
    tolerance: float

    @property
    def converged(self) -> bool:
        return bool((self.gradient_SP <= self.tolerance).all())

    def logits(self, features_ND: ArrayLike, at: int = 0) -> Array:
        """Logits [N, P·K] of the fit at strength number `at`."""
        return np.asarray(features_ND) @ self.weights_SKD[at].T + self.intercepts_SK[at]


def prepare(features_ND: ArrayLike, device: str = "cpu") -> Basis:
    """Centre and turn features, float32 or float64 (kept). Raises EvalError on a feature that is not finite."""
    import torch

    given = np.asarray(features_ND)
    x = torch.as_tensor(given if given.dtype == np.float32 else given.astype(np.float64), device=device)
    if x.ndim != 2 or not len(x):
        raise EvalError(f"features of shape {tuple(x.shape)}", why="nothing can be fitted", fix="give [studies, D]")
    mean_D = x.double().mean(0) if x.dtype == torch.float64 else x.mean(0, dtype=torch.float64)
    if not bool(torch.isfinite(mean_D).all()):
        raise EvalError("a feature is not finite", why="the fit would be too", fix="look at the release they came from")
    mean_D = mean_D.to(x.dtype)
    a = x - mean_D
    axes = None
    if len(a) < a.shape[1]:
        axes, _ = torch.linalg.qr(a.T)
        a = a @ axes
    spread_R, turn = torch.linalg.eigh((a.T @ a).double() / len(a))
    turn = turn.to(x.dtype)
    axes = turn if axes is None else axes @ turn
    return Basis(a @ turn, axes, mean_D, spread_R.clamp_min(0).to(x.dtype))


def fit_labels(
    basis: Basis,
    labels_NL: ArrayLike,
    strengths: Sequence[float],
    *,
    start: tuple[ArrayLike, ArrayLike] | None = None,
    tolerance: float | None = None,
    max_iterations: int = 5000,
) -> Fits:
    """Every label (1, 0, nan: left out of that label's fit) at every strength C.

    start: (weights [L, D], intercepts [L]) that the fit starts at and is drawn towards (W0), else 0.

    Raises:
        EvalError: a label has no positive or no negative study, is neither 1, 0 nor nan, or a strength is not positive.
    """
    labels = np.atleast_2d(np.asarray(labels_NL, dtype=np.float64))
    known = ~np.isnan(labels)
    if not np.isin(labels[known], (0.0, 1.0)).all():
        raise EvalError("labels other than 1, 0 and unknown", why="a fit needs two classes", fix="map them to 1/0/null")
    lacking = [(labels == side).sum(0) == 0 for side in (1, 0)]
    if (lacking[0] | lacking[1]).any():
        raise EvalError("a class is missing", why="there is nothing to tell apart", fix="leave this label out")
    return _path(basis, np.where(known, labels, 0)[:, :, None], known, strengths, start, tolerance, max_iterations)


def fit_classes(
    basis: Basis,
    classes_N: ArrayLike,
    strengths: Sequence[float],
    *,
    start: tuple[ArrayLike, ArrayLike] | None = None,
    tolerance: float | None = None,
    max_iterations: int = 5000,
) -> Fits:
    """Softmax regression on class numbers 0 ... K-1, every one of them present; K ≥ 3 (two classes are a label).

    Raises EvalError on a class without a study, on fewer than three classes, or on a strength that is not positive.
    """
    classes = np.asarray(classes_N)
    count = int(classes.max(initial=0)) + 1
    if count < 3:
        raise EvalError(f"{count} classes", why="softmax over two is one label", fix="use fit_labels")
    if set(np.unique(classes).tolist()) != set(range(count)):
        raise EvalError("a class is missing", why="it cannot be learnt", fix="number the classes that are there")
    target = np.zeros((len(classes), 1, count))
    target[np.arange(len(classes)), 0, classes] = 1
    return _path(basis, target, np.ones((len(classes), 1), bool), strengths, start, tolerance, max_iterations)


def _path(
    basis: Basis, target_NPK: Array, known_NP: Array, strengths: Sequence[float], start: Any, tolerance: float | None,
    max_iterations: int,
) -> Fits:  # fmt: skip
    """Strengths in ascending order, as many side by side as COLUMNS allows, each from the optimum of the one before."""
    import torch

    if len(target_NPK) != len(basis.a_NR):
        raise EvalError(
            f"{len(target_NPK)} labels for {len(basis.a_NR)} studies", why="they are not of one set", fix="align them"
        )
    if not strengths or min(strengths) <= 0:
        raise EvalError("a strength C that is not positive", why="the fit has no optimum", fix="give C above 0")
    a = basis.a_NR
    tolerance = TOLERANCE[str(a.dtype).removeprefix("torch.")] if tolerance is None else tolerance
    _, problems, width = target_NPK.shape

    def tensor(array: Any) -> Any:
        return torch.as_tensor(np.asarray(array), dtype=a.dtype, device=a.device)

    target, mask = tensor(target_NPK), None if known_NP.all() else tensor(known_NP)[:, :, None]
    weights0_DK = intercepts0_K = offset = None
    if start is not None:
        weights0_DK, intercepts0_K = tensor(start[0]).T, tensor(start[1])
        # In the fit's own coordinates the given start is an offset of the logits, and what is fitted a change of it.
        shift_K = intercepts0_K + basis.mean_D @ weights0_DK
        offset = (a @ (basis.axes_DR.T @ weights0_DK) + shift_K).view(len(a), problems, width)
    order = np.argsort(strengths, kind="stable")
    together = max(1, COLUMNS // (problems * width))
    found: dict[int, tuple[Any, Any, Any]] = {}
    warm = torch.zeros((a.shape[1] + 1, problems, width), dtype=a.dtype, device=a.device)
    for first in range(0, len(order), together):
        chosen = order[first : first + together]
        each = len(chosen)

        def spread(x: Any, each: int = each) -> Any:
            return None if x is None else x.repeat(1, each, 1)

        penalty = torch.cat([1 / (strengths[i] * tensor(known_NP.sum(0))) for i in chosen])
        solver = Solver(basis, spread(target), spread(mask), spread(offset), penalty)
        solved, gradient_P, iterations_P = solver.solve(spread(warm), tolerance, max_iterations)
        for j, i in enumerate(chosen):
            part = slice(j * problems, (j + 1) * problems)
            found[int(i)] = (solved[:, part], gradient_P[part], iterations_P[part])
        warm = found[int(chosen[-1])][0]

    weights, intercepts = [], []
    for i in range(len(strengths)):
        flat = found[i][0].reshape(a.shape[1] + 1, -1)
        w_DK = basis.axes_DR @ flat[:-1]
        b_K = flat[-1] - basis.mean_D @ w_DK
        if weights0_DK is not None:
            w_DK, b_K = w_DK + weights0_DK, b_K + intercepts0_K
        if width > 1:
            b_K = b_K - b_K.mean()  # softmax does not see a common shift; scikit-learn's optimum has none
        weights.append(w_DK.T.cpu().numpy())
        intercepts.append(b_K.cpu().numpy())
    gradient, iterations = (np.stack([found[i][j].cpu().numpy() for i in range(len(strengths))]) for j in (1, 2))
    return Fits(tuple(strengths), np.stack(weights), np.stack(intercepts), gradient, iterations, tolerance)
