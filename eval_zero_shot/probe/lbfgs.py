"""Preconditioned L-BFGS for many logistic regressions on the same features at once; see eval_zero_shot.probe.logistic.

Legend: N studies, D features, R ≤ D directions, P problems solved side by side, K logits a problem (1: a label).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

HISTORY = 12  # pairs of steps and gradient changes that are kept
LINE_TRIES = 30


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


class Solver:
    """P problems on the features of a basis. Unknowns [R + 1, P, K], the intercept last. penalty_P: 1 / (C n)."""

    def __init__(self, basis: Basis, target: Any, mask: Any, offset: Any, penalty_P: Any) -> None:
        self.basis, self.a, self.target, self.mask, self.offset = basis, basis.a_NR, target, mask, offset
        self.penalty = penalty_P
        self.share: Any = 1 / len(self.a) if mask is None else 1 / mask.sum(0)  # [P, 1] where masked

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
        out, done = w.clone(), torch.zeros(problems, dtype=torch.int64, device=w.device)
        size = torch.full((problems,), torch.inf, dtype=torch.float64, device=w.device)
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
            out[:, live], done[live], size[live] = w, iteration, largest.double()
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
        """(step length [P], logits and residual there). The slope there is within [-0.9, 0.5] of the first one's size.
        The objective is convex, so its slope rises along the line and can be bracketed; only logits are needed, no
        product with the features."""
        import torch

        wd, dd = (w[:-1] * d[:-1]).sum((0, 2)) * self.penalty, d[:-1].square().sum((0, 2)) * self.penalty
        first = (g * d).sum((0, 2))
        low, high = torch.zeros_like(first), torch.full_like(first, torch.inf)
        slope_low, slope_high = first.clone(), torch.full_like(first, torch.inf)
        t = torch.ones_like(first)
        for tries in range(LINE_TRIES):
            ahead = torch.addcmul(z, t[None, :, None], zd)
            r = self.residual(ahead)
            slope = (r * zd).sum((0, 2)) + wd + t * dd
            short, long = slope < 0.9 * first, slope > -0.5 * first
            if tries == LINE_TRIES - 1 or not bool((short | long).any()):
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
