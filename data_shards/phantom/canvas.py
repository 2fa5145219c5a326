"""The drawing surface: a volume in HU with patient coordinates in mm, and shapes with partial-volume edges.

Only + - * / and sqrt touch the values: those are exactly rounded everywhere, whereas exp, sin, pow or a BLAS dot differ
between CPUs in the last bit, which would break the frozen digest. Shapes work inside their bounding boxes. Axes: Z up
(superior), Y to the front, X to the patient's right; coordinates are those of a reference patient (divided by the
body's scale).
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
Box = tuple[slice, slice, slice]


def soft(distance: Array, edge: float) -> Array:
    """Share of a voxel inside a surface, from the signed distance (negative inside)."""
    return np.clip(0.5 - distance * np.float32(1.0 / edge), 0.0, 1.0)


class Canvas:
    """`hu_DHW` float32 and the coordinates `z_D`, `y_HW`, `x_HW` (turned about the long axis by `turn`)."""

    def __init__(
        self, shape: tuple[int, int, int], spacing: tuple[float, float, float], scale: tuple[float, float, float],
        shift: tuple[float, float, float], turn: float,
    ) -> None:  # fmt: skip
        self.shape, self.spacing, self.scale = shape, spacing, scale
        axes = [(np.arange(n, dtype=np.float64) - (n - 1) / 2) * s - o for n, s, o in zip(shape, spacing, shift)]
        self.cos, self.sin = (1 - turn * turn) / (1 + turn * turn), 2 * turn / (1 + turn * turn)
        self._axes = axes
        y, x = axes[1][:, None], axes[2][None, :]
        self.z_D = (axes[0] / scale[0]).astype(np.float32)
        self.y_HW = ((y * self.cos - x * self.sin) / scale[1]).astype(np.float32)
        self.x_HW = ((x * self.cos + y * self.sin) / scale[2]).astype(np.float32)
        self.hu = np.full(shape, -1000.0, dtype=np.float32)
        self.edge = float(np.float32((spacing[1] + spacing[2] + 0.5 * spacing[0]) / 2.5))

    def box(self, centre: tuple[float, float, float], reach: tuple[float, float, float]) -> Box:
        """Index box around a point (z, y, x in reference mm) that holds everything within `reach`, cut at the rim."""
        cz, cy, cx = (c * s for c, s in zip(centre, self.scale))
        rz, ry, rx = (r * s + d for r, s, d in zip(reach, self.scale, self.spacing))
        gy, gx = cy * self.cos + cx * self.sin, cx * self.cos - cy * self.sin
        lean = abs(self.sin)
        bounds = []
        for axis, middle, half in ((0, cz, rz), (1, gy, ry + lean * rx), (2, gx, rx + lean * ry)):
            first, step, n = self._axes[axis][0], self.spacing[axis], self.shape[axis]
            low = int(np.floor((middle - half - first) / step))
            high = int(np.ceil((middle + half - first) / step)) + 1
            low = min(max(low, 0), n)
            bounds.append(slice(low, max(min(high, n), low)))
        return bounds[0], bounds[1], bounds[2]

    def local(self, box: Box) -> tuple[Array, Array, Array]:
        """Broadcastable (z, y, x) of a box."""
        return self.z_D[box[0]][:, None, None], self.y_HW[box[1:]][None], self.x_HW[box[1:]][None]

    def blend(self, box: Box, share: Array, hu: float | Array) -> None:
        part = self.hu[box]
        part += (hu - part) * share

    def ellipsoid(
        self, centre: tuple[float, float, float], radii: tuple[float, float, float],
        lean: tuple[float, float] = (0.0, 0.0), bend: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> tuple[Box, Array]:  # fmt: skip
        """Box and signed distance (mm, first order: f/|grad f|) of an ellipsoid.

        `lean`: shift of (y, x) per mm of z. `bend`: weights of the products zy, zx, yx in the implicit function, which
        turn the egg into something less regular.
        """
        rz, ry, rx = radii
        grow = 1.0 + sum(abs(b) for b in bend)
        reach = (rz * grow, ry * grow + abs(lean[0]) * rz, rx * grow + abs(lean[1]) * rz)
        box = self.box(centre, reach)
        z, y, x = self.local(box)
        z = (z - np.float32(centre[0])) * np.float32(1 / rz)
        y = (y - np.float32(centre[1])) * np.float32(1 / ry)
        x = (x - np.float32(centre[2])) * np.float32(1 / rx)
        if lean[0]:
            y = y - z * np.float32(lean[0] * rz / ry)
        if lean[1]:
            x = x - z * np.float32(lean[1] * rz / rx)
        zz, yy, xx = z * z, y * y, x * x
        value = zz + (yy + xx)
        slope = zz * np.float32(1 / (rz * rz)) + (yy * np.float32(1 / (ry * ry)) + xx * np.float32(1 / (rx * rx)))
        if any(bend):
            value = value + np.float32(bend[0]) * z * y + np.float32(bend[1]) * z * x + np.float32(bend[2]) * (y * x)
        return box, (value - 1) / (2 * np.sqrt(slope) + np.float32(1e-3))

    def paint_ellipsoid(
        self, centre: tuple[float, float, float], radii: tuple[float, float, float], hu: float,
        lean: tuple[float, float] = (0.0, 0.0), bend: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> None:  # fmt: skip
        box, distance = self.ellipsoid(centre, radii, lean, bend)
        self.blend(box, soft(distance, self.edge), hu)

    def tube(
        self, start: tuple[float, float, float], end: tuple[float, float, float], r0: float, r1: float
    ) -> tuple[Box, Array]:
        """Box and signed distance of a straight tube whose radius goes from r0 to r1; the ends are round."""
        a, b = np.array(start), np.array(end)
        middle, half = (a + b) / 2, np.abs(b - a) / 2 + max(r0, r1)
        box = self.box(tuple(middle), tuple(half))
        z, y, x = self.local(box)
        along = b - a
        unit = along / max(float(along[0] * along[0] + along[1] * along[1] + along[2] * along[2]), 1e-6)
        z, y, x = z - np.float32(a[0]), y - np.float32(a[1]), x - np.float32(a[2])
        t = np.clip(z * np.float32(unit[0]) + (y * np.float32(unit[1]) + x * np.float32(unit[2])), 0, 1)
        dz, dy, dx = z - t * np.float32(along[0]), y - t * np.float32(along[1]), x - t * np.float32(along[2])
        return box, np.sqrt(dz * dz + dy * dy + dx * dx) - (np.float32(r0) + t * np.float32(r1 - r0))

    def paint_tube(
        self, start: tuple[float, float, float], end: tuple[float, float, float], r0: float, r1: float, hu: float
    ) -> None:
        """Tubes thinner than a voxel get their share of it, not a full one."""
        box, distance = self.tube(start, end, r0, r1)
        share = soft(distance, self.edge)
        thin = min(1.0, (r0 + r1) / self.edge)
        self.blend(box, share * np.float32(thin), hu)

    def ball_share(
        self, centre: tuple[float, float, float], radius_mm: float, squash: float = 1.0
    ) -> tuple[Box, Array]:
        """Share of each voxel inside a small ball of true radius (mm), by 4x4x4 sub-voxels: volume is kept."""
        sz, sy, sx = self.scale
        box = self.box(centre, (radius_mm / sz, radius_mm / sy, radius_mm / sx))
        n = 4
        offset = (np.arange(n) + 0.5) / n - 0.5
        cz, cy, cx = (c * s for c, s in zip(centre, self.scale))
        gy, gx = cy * self.cos + cx * self.sin, cx * self.cos - cy * self.sin
        squares = []
        for axis, middle in ((0, cz), (1, gy), (2, gx)):
            points = self._axes[axis][box[axis]][:, None] + offset[None] * self.spacing[axis] - middle
            points = points * (squash if axis == 0 else 1.0)
            squares.append((points * points).ravel())
        inside = (
            squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :] <= radius_mm * radius_mm
        )
        d, h, w = (len(s) // n for s in squares)
        counts = inside.reshape(d, n, h, n, w, n).sum(axis=(1, 3, 5), dtype=np.int32)
        return box, counts.astype(np.float32) * np.float32(1 / n**3)

    def paint_ball(self, centre: tuple[float, float, float], radius_mm: float, hu: float, squash: float = 1.0) -> None:
        box, share = self.ball_share(centre, radius_mm, squash)
        self.blend(box, share, hu)

    def at(self, field: Array, point: tuple[float, float, float]) -> float:
        """Nearest voxel of `field` at a point in reference mm; +inf outside the grid."""
        cz, cy, cx = (c * s for c, s in zip(point, self.scale))
        where = (cz, cy * self.cos + cx * self.sin, cx * self.cos - cy * self.sin)
        index = [int(np.floor((w - a[0]) / s + 0.5)) for w, a, s in zip(where, self._axes, self.spacing)]
        if any(i < 0 or i >= n for i, n in zip(index, self.shape)):
            return float("inf")
        return float(field[tuple(index)])


def white(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Uniform bytes as int16, straight from the generator's raw words."""
    count = int(np.prod(shape))
    return np.frombuffer(rng.bytes(count), dtype=np.uint8).astype(np.int16).reshape(shape)


def _pair(a: Array, axis: int) -> Array:
    first, second = [slice(None)] * a.ndim, [slice(None)] * a.ndim
    first[axis], second[axis] = slice(None, -1), slice(1, None)
    return a[tuple(first)] + a[tuple(second)]


def correlated_noise(rng: np.random.Generator, shape: tuple[int, int, int], std: float) -> Array:
    """Near-Gaussian noise, correlated over about two voxels in plane and one across, by whole-number sums (exact)."""
    d, h, w = shape
    field = white(rng, (d + 1, h + 2, w + 2))
    for axis in (2, 2, 1, 1, 0):
        field = _pair(field, axis)
    # A byte has variance 65535/12; [1 1] multiplies it by 2 and [1 2 1] by 6.
    return (field - np.int16(4080)).astype(np.float32) * np.float32(std / np.sqrt(65535 / 12 * 72))


def blobs(rng: np.random.Generator, shape: tuple[int, int, int], cell: tuple[int, int, int]) -> Array:
    """Smooth random field in about [-1, 1] with features of `cell` voxels, by repetition and whole-number averaging."""
    field = white(rng, tuple(-(-(n + c) // c) + 1 for n, c in zip(shape, cell)))
    for axis, step in enumerate(cell):
        field = np.repeat(field, step, axis=axis)
        n = shape[axis]
        total = np.zeros_like(np.take(field, range(n), axis=axis))
        for k in range(step):
            index = [slice(None)] * 3
            index[axis] = slice(k, k + n)
            total = total + field[tuple(index)]
        field = total // np.int16(step)
    return (field.astype(np.float32) - 127.5) * np.float32(1 / 60.0)
