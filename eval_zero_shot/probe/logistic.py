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

Legend: N studies, D features, R ≤ D directions, P problems solved side by side, K logits a problem (1: a label),
H history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval_zero_shot.errors import EvalError

Array = NDArray[Any]
HISTORY = 12
COLUMNS = 32  # logits side by side at most (or one problem's): beyond, a product with the features gains nothing
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


@dataclass(frozen=True)
class Basis:
    """Features ready to be fitted: `a_NR` = (x - mean) · axes, `spread_R` the eigenvalues of a'a / N."""

    a_NR: Any
    axes_DR: Any
    mean_D: Any
    spread_R: Any

    def take(self, rows: ArrayLike) -> Basis:
        """The same axes with some of the studies."""
        import torch

        rows = torch.as_tensor(np.asarray(rows), device=self.a_NR.device)
        return Basis(self.a_NR[rows], self.axes_DR, self.mean_D, self.spread_R)


@dataclass(frozen=True)
class Fits:
    """One fit a strength and problem: weights [S, P·K, D], intercepts [S, P·K] for the features as they were given.

    gradient_SP: largest component of the objective's gradient at the end (features as given, intercept included). iterations_SP: of L-BFGS. converged: all are
    at or below the tolerance that was asked for.
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
        if a.shape[1] < len(basis.mean_D):  # the part of the start outside the studies' span moves none of their logits
            offset = offset.contiguous()
    order = np.argsort(strengths, kind="stable")
    together = max(1, COLUMNS // (problems * width))
    found: dict[int, tuple[Any, Any, Any]] = {}
    warm = torch.zeros((a.shape[1] + 1, problems, width), dtype=a.dtype, device=a.device)
    for first in range(0, len(order), together):
        chosen = order[first : first + together]
        each = len(chosen)

        def spread(x: Any) -> Any:
            return None if x is None else x.repeat(1, each, 1)

        penalty = torch.cat([1 / (strengths[i] * tensor(known_NP.sum(0))) for i in chosen])
        solver = _Solver(basis, spread(target), spread(mask), spread(offset), penalty)
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


class _Solver:
    """P problems on the features of a basis. Unknowns [R + 1, P, K], the intercept last. penalty_P: 1 / (C n)."""

    def __init__(self, basis: Basis, target: Any, mask: Any, offset: Any, penalty_P: Any) -> None:
        self.basis, self.a, self.target, self.mask, self.offset = basis, basis.a_NR, target, mask, offset
        self.penalty = penalty_P
        self.share = 1 / len(self.a) if mask is None else 1 / mask.sum(0)  # [P, 1] where masked

    def logits(self, w: Any, offset: bool = True) -> Any:
        z = (self.a @ w[:-1].reshape(w.shape[0] - 1, -1) + w[-1].reshape(-1)).view(-1, *w.shape[1:])
        return z + self.offset if offset and self.offset is not None else z

    @staticmethod
    def probabilities(z: Any) -> Any:
        return z.sigmoid() if z.shape[2] == 1 else z.softmax(2)

    def residual(self, z: Any) -> Any:
        """d loss / d logits [N, P, K]."""
        r = self.probabilities(z).sub_(self.target).mul_(self.share)
        return r if self.mask is None else r.mul_(self.mask)

    def gradient(self, w: Any, r: Any) -> Any:
        import torch

        flat = r.view(len(r), -1)
        body = (flat.T @ self.a).T.reshape(-1, *w.shape[1:]) + self.penalty[:, None] * w[:-1]
        return torch.cat([body, r.sum(0)[None]])

    def largest(self, g: Any) -> Any:
        """Largest component [P] of a gradient in the coordinates of the features as they were given."""
        import torch

        body = self.basis.axes_DR @ g[:-1].reshape(len(g) - 1, -1)
        body = body + self.basis.mean_D[:, None] * g[-1].reshape(-1)
        return torch.maximum(body.view(-1, *g.shape[1:]).abs().amax((0, 2)), g[-1].abs().amax(1))

    def inverse(self, p: Any) -> Any:
        """Inverse of the Hessian's diagonal in the eigenbasis, curvature p (1 - p) taken as equal for all studies."""
        import torch

        curve = p * (1 - p)
        curve = (curve * self.mask).sum(0) if self.mask is not None else curve.sum(0)
        curve = (curve * self.share).clamp_min(1e-6)  # [P, K]
        body = curve * self.basis.spread_R[:, None, None] + self.penalty[:, None]
        return 1 / torch.cat([body, curve[None]])

    def solve(self, w: Any, tolerance: float, max_iterations: int) -> tuple[Any, Any, Any]:
        """(unknowns, largest gradient component [P], iterations [P]). A problem that is done leaves the batch."""
        import torch

        problems = w.shape[1]
        out, done = w.clone(), torch.zeros(problems, dtype=torch.int64)
        size = torch.full((problems,), torch.inf, dtype=torch.float64)
        live = torch.arange(problems, device=w.device)
        z = self.logits(w)
        g, inverse = self.gradient(w, self.residual(z)), self.inverse(self.probabilities(z))
        steps: list[Any] = []
        turns: list[Any] = []
        exact = True  # z was computed from w, not carried along
        for iteration in range(max_iterations + 1):
            largest = self.largest(g)
            finished = largest <= tolerance
            if bool(finished.any()) and not exact:
                z, exact = self.logits(w), True
                g = self.gradient(w, self.residual(z))
                largest = self.largest(g)
                finished = largest <= tolerance
            out[:, live], done[live.cpu()], size[live.cpu()] = w, iteration, largest.double().cpu()
            if bool(finished.all()) or iteration == max_iterations:
                break
            if bool(finished.any()):
                keep = ~finished
                live, w, g, z, inverse = live[keep], w[:, keep], g[:, keep], z[:, keep], inverse[:, keep]
                steps, turns = [s[:, keep] for s in steps], [y[:, keep] for y in turns]
                self._keep(keep)
            d = -_two_loops(g, steps, turns, inverse)
            zd = self.logits(d, offset=False)
            t, z, r = self._step(w, d, z, zd, g)
            exact = False
            w_next = w + t[:, None] * d
            g_next = self.gradient(w_next, r)
            steps.append(w_next - w)
            turns.append(g_next - g)
            steps, turns = steps[-HISTORY:], turns[-HISTORY:]
            w, g = w_next, g_next
        return out, size, done

    def _keep(self, keep: Any) -> None:
        self.target, self.penalty = self.target[:, keep], self.penalty[keep]
        if self.mask is not None:
            self.mask, self.share = self.mask[:, keep], self.share[keep]
        if self.offset is not None:
            self.offset = self.offset[:, keep]

    def _step(self, w: Any, d: Any, z: Any, zd: Any, g: Any) -> tuple[Any, Any, Any]:
        """(step length [P], logits and residual there). Slope within [-0.9, 0.5] of the first one's size. The objective is convex, so its slope
        rises along the line and can be bracketed; only logits are needed, no product with the features."""
        import torch

        wd, dd = (w[:-1] * d[:-1]).sum((0, 2)) * self.penalty, d[:-1].square().sum((0, 2)) * self.penalty
        first = (g * d).sum((0, 2))
        low, high = torch.zeros_like(first), torch.full_like(first, torch.inf)
        slope_low, slope_high = first.clone(), torch.full_like(first, torch.inf)
        t = torch.ones_like(first)
        for tries in range(30):
            ahead = torch.addcmul(z, t[None, :, None], zd)
            r = self.residual(ahead)
            slope = (r * zd).sum((0, 2)) + wd + t * dd
            short, long = slope < 0.9 * first, slope > -0.5 * first
            if tries == 29 or not bool((short | long).any()):
                break
            low, slope_low = torch.where(short, t, low), torch.where(short, slope, slope_low)
            high, slope_high = torch.where(long, t, high), torch.where(long, slope, slope_high)
            cut = low + (high - low) * (slope_low / (slope_low - slope_high)).clamp(0.1, 0.9)
            t = torch.where(short | long, torch.where(torch.isinf(high), 3 * t, cut), t)
        return t, ahead, r


def _two_loops(g: Any, steps: list[Any], turns: list[Any], inverse: Any) -> Any:
    """Inverse Hessian times gradient (Nocedal 1980), every problem on its own. A pair without curvature is skipped."""
    import torch

    q, kept = g.clone(), []
    for s, y in zip(reversed(steps), reversed(turns), strict=True):
        sy = (s * y).sum((0, 2))
        usable = sy > 0
        rho = torch.where(usable, 1 / torch.where(usable, sy, 1), 0)
        alpha = rho * (s * q).sum((0, 2))
        q -= alpha[:, None] * y
        kept.append((alpha, rho, s, y, sy))
    q = q * inverse
    if kept:
        *_, y, sy = kept[0]
        scale = sy / (y * y * inverse).sum((0, 2))
        q *= torch.where(scale > 0, scale, 1)[:, None]
    for alpha, rho, s, y, _ in reversed(kept):
        q += (alpha - rho * (y * q).sum((0, 2)))[:, None] * s
    return q
