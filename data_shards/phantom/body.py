"""The trunk: skin, fat, muscle, skeleton, and the surfaces that divide chest from abdomen.

Reference patient, mm: z = 0 at the right diaphragm dome, up is positive; y = 0 and x = 0 at the middle of the trunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .canvas import Array, Canvas, blobs, soft
from .parameters import Parameters, between

HALF_WIDTH, HALF_DEPTH = 132.0, 98.0  # of the muscle's outer surface
SHELL = 16.0  # chest wall: muscle and ribs
SPINE_Y = -56.0


@dataclass
class Scene:
    """What later steps need to know of earlier ones. Distances in mm, negative inside."""

    canvas: Canvas
    p: Parameters
    wall_DHW: Array  # to the inner surface of the trunk wall
    dome_HW: Array  # height of the diaphragm, z in mm
    sizes: dict[str, list[float]] = field(default_factory=dict)  # finding -> lesion sizes in mm, for the report
    sides: list[str] = field(default_factory=list)  # of hydronephrosis
    lung_DHW: Array | None = None


def trunk(p: Parameters) -> Scene:
    """Canvas with body wall, skeleton and fat-filled cavity."""
    body, n = p.body, p.nuisance
    scale = (body["size"] * body["length"], body["size"] * body["depth"], body["size"] * body["width"])
    canvas = Canvas(p.shape, p.spacing_mm, scale, (n["shift_z"] + 12.0, n["shift_y"], n["shift_x"]), n["turn"])
    z, y, x, edge = canvas.z_D, canvas.y_HW, canvas.x_HW, canvas.edge
    u, v = x * np.float32(1 / HALF_WIDTH), y * np.float32(1 / HALF_DEPTH)
    uu, vv = u * u, v * v
    radius = np.sqrt(uu + vv)
    # |grad radius| = sqrt((u/a)^2 + (v/b)^2) / radius: turns the level set into mm.
    to_mm = radius / (
        np.sqrt(uu * np.float32(1 / (HALF_WIDTH * HALF_WIDTH)) + vv * np.float32(1 / (HALF_DEPTH * HALF_DEPTH)))
        + np.float32(1e-6)
    )
    high = np.clip((z - 70) * np.float32(1 / 120), 0, 1.3)
    low = np.clip((-z - 40) * np.float32(1 / 160), 0, 1.2)
    outer = 1.0 + 0.05 * high - 0.05 * low * (2 - low)
    inner = 1.0 - 0.42 * high * high - 0.05 * low * (2 - low)
    muscle = (radius[None] - outer[:, None, None]) * to_mm[None]
    wall = (radius[None] - inner[:, None, None]) * to_mm[None] + np.float32(SHELL)

    fat_hw = np.float32(body["fat"]) * (0.9 + 0.5 * body["belly"] * np.clip(v, -0.6, 1) + 0.25 * uu)
    fat_d = 0.75 + 0.45 * np.clip((40 - z) * np.float32(1 / 120), 0, 1)
    skin = muscle - (fat_hw[None] * fat_d[:, None, None] + np.float32(4.0))
    hu = canvas.hu
    hu += soft(skin, edge) * 1020.0
    hu += soft(skin + 3, edge) * np.float32(-125.0)
    hu += soft(muscle, edge) * np.float32(158.0)
    hu += soft(wall, edge) * np.float32(-150.0)
    if n["table"]:
        _table(canvas)
    dome = _diaphragm(canvas, n["inspiration"])
    scene = Scene(canvas, p, wall, dome)
    _ribs(scene)
    _spine(scene)
    _flanks(scene)
    return scene


def _table(canvas: Canvas) -> None:
    """A curved couch under the patient, as in every clinical scan."""
    y, x, edge = canvas.y_HW, canvas.x_HW, canvas.edge
    depth = y + np.float32(HALF_DEPTH + 36) - x * x * np.float32(1 / 1400)
    share = soft(np.abs(depth) - 4, edge) * soft(np.abs(x) - 190, edge)
    air = canvas.hu < -990
    canvas.hu += np.where(air, share[None] * np.float32(820.0), np.float32(0.0))


def _diaphragm(canvas: Canvas, inspiration: float) -> Array:
    y, x = canvas.y_HW, canvas.x_HW
    fall = np.float32(-5.0 * inspiration)

    def dome(cx: float, top: float) -> Array:
        dx, dy = x - np.float32(cx), y - np.float32(12.0)
        sag = dx * dx * np.float32(1 / 75) + dy * dy * np.float32(1 / 110)
        return np.float32(top) - sag

    return np.clip(np.maximum(dome(58, 4), dome(-58, -8)), -62, None) + fall


def _ribs(scene: Scene) -> None:
    canvas, body = scene.canvas, scene.p.body
    z, y, x, edge = canvas.z_D, canvas.y_HW, canvas.x_HW, canvas.edge
    first = int(np.searchsorted(z, -95.0))
    wall = scene.wall_DHW[first:]
    # Ribs fall from the spine to the front: a slanted comb cut out of the shell, absent near the front midline.
    pitch = np.float32(1 / 25.0)
    phase = (z[first:] * pitch)[:, None, None] + ((y * np.float32(0.42) + np.abs(x) * np.float32(0.12)) * pitch)[None]
    gap = np.abs(phase - np.floor(phase) - np.float32(0.5)) * 25 - np.float32(5.0)
    share = soft(np.maximum(np.abs(wall - 5.5) - np.float32(3.2), gap), edge)
    costal = -70 + 0.9 * np.clip(y, 0, None) - 0.25 * np.clip(np.abs(x) - 40, None, 0)
    share *= np.clip((z[first:][:, None, None] - costal[None]) * np.float32(0.08), 0, 1)
    canvas.hu[first:] += (np.float32(430 * body["bone"]) - canvas.hu[first:]) * share
    front = HALF_DEPTH - 9.0
    canvas.paint_ellipsoid((70.0, front - 3, 0.0), (62.0, 7.5, 20.0), 240.0 * body["bone"])


def _spine(scene: Scene) -> None:
    canvas, body = scene.canvas, scene.p.body
    bone, edge = body["bone"], canvas.edge
    box = canvas.box((0.0, SPINE_Y - 20, 0.0), (600.0, 42.0, 62.0))
    z, y, x = canvas.local(box)
    dy, dx = y - np.float32(SPINE_Y), x
    r = np.sqrt(dy * dy * np.float32(1.25) + dx * dx)
    phase = z * np.float32(1 / 29.0)
    gap = np.abs(phase - np.floor(phase) - np.float32(0.5)) * 29  # 0 in the middle of a vertebra, 14.5 in the disc
    body_share = soft(r - 19, edge)
    disc = soft(np.float32(11.5) - gap, edge)
    hu = np.float32(210 * bone) + np.float32(330 * bone) * soft(np.abs(r - 17) - np.float32(1.5), edge)
    hu = hu + (np.float32(85.0) - hu) * disc
    canvas.blend(box, body_share, hu)
    # Arch: canal, spinous process in every vertebra, transverse processes.
    canal = np.sqrt((dy + 25) * (dy + 25) + dx * dx)
    canvas.blend(box, soft(np.abs(canal - 11) - np.float32(2.5), edge) * soft(gap - 10, edge), 420.0 * bone)
    canvas.blend(box, soft(canal - 8.5, edge), 28.0)
    process = np.maximum(np.abs(dx) - 3, np.abs(dy + 41) - 9)
    wings = np.maximum(np.abs(np.abs(dx) - 26) - 14, np.abs(dy + 25) - 4)
    canvas.blend(box, soft(np.maximum(np.minimum(process, wings), gap - 7), edge), 330.0 * bone)
    for side in (-1, 1):
        canvas.paint_tube((-20.0, SPINE_Y - 24, 30.0 * side), (-260.0, SPINE_Y - 24, 36.0 * side), 14.0, 18.0, 55.0)
        canvas.paint_tube((-95.0, SPINE_Y + 6, 30.0 * side), (-260.0, SPINE_Y + 14, 46.0 * side), 9.0, 18.0, 55.0)


def _flanks(scene: Scene) -> None:
    """Bowel: blobs of soft tissue and gas in the fat between the organs, and the iliac wings at the bottom."""
    canvas, p = scene.canvas, scene.p
    rng = p.rng("bowel")
    top = int(np.searchsorted(canvas.z_D, -48.0))
    if top:
        field_ = blobs(rng, (top, *p.shape[1:]), (3, 4, 4))
        inside = soft(scene.wall_DHW[:top] + 7, canvas.edge)
        inside = inside * np.clip((canvas.y_HW + 42) * np.float32(1 / 12), 0, 1)[None]
        loops = np.clip((field_ + np.float32(between(rng, -0.1, 0.35))) * 2.2, 0, 1) * inside
        canvas.blend((slice(0, top), slice(None), slice(None)), loops, between(rng, 28, 45))
    for _ in range(10):
        centre = (between(rng, -215, -95), between(rng, -5, 62), between(rng, -85, 85))
        radii = (between(rng, 8, 17), between(rng, 7, 14), between(rng, 8, 20))
        if rng.random() < 0.35 + 0.5 * p.nuisance["gas"]:
            canvas.paint_ellipsoid(centre, tuple(r + 5 for r in radii), 40.0)  # type: ignore[arg-type]
            canvas.paint_ellipsoid(centre, radii, -880.0)
    for side in (-1, 1):
        canvas.paint_ellipsoid(
            (-215.0, -22.0, 92.0 * side), (34.0, 44.0, 8.0), 340.0 * p.body["bone"], lean=(0.0, 0.5 * side)
        )
