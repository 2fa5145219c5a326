"""Liver, gallbladder, spleen, stomach, kidneys, peritoneal fluid, and the abdominal findings."""

from __future__ import annotations

import math

import numpy as np

from .body import Scene
from .canvas import soft
from .chest import SIDES
from .parameters import bell, between

LIVER = {"none": 60.0, "arterial": 70.0, "portal": 108.0}
FATTY = {"none": 28.0, "arterial": 36.0, "portal": 66.0}
SPLEEN = {"none": 50.0, "arterial": 96.0, "portal": 116.0}
KIDNEY = {"none": 32.0, "arterial": 150.0, "portal": 182.0}
PORTAL = {"none": 46.0, "arterial": 76.0, "portal": 150.0}


def abdomen(scene: Scene) -> None:
    _stomach(scene)
    _spleen(scene)
    _liver(scene)
    _kidneys(scene)
    _ascites(scene)


def _drop(scene: Scene) -> float:
    """Upper abdominal organs follow the diaphragm."""
    return -5.0 * scene.p.nuisance["inspiration"]


def _stomach(scene: Scene) -> None:
    canvas, rng = scene.canvas, scene.p.rng("organs")
    rng.random(128)
    z = -42 + _drop(scene)
    centre = (z, 28 + 5 * bell(rng), -52 + 6 * bell(rng))
    radii = (between(rng, 26, 36), between(rng, 24, 36), between(rng, 24, 34))
    canvas.paint_ellipsoid(centre, radii, 40.0, lean=(-0.2, -0.3))
    canvas.paint_ellipsoid(centre, tuple(r - 5 for r in radii), between(rng, 10, 50), lean=(-0.2, -0.3))  # type: ignore[arg-type]
    level = radii[1] * between(rng, 0.2, 0.55)
    box, distance = canvas.ellipsoid(centre, tuple(r - 5 for r in radii), lean=(-0.2, -0.3))  # type: ignore[arg-type]
    _, y, _ = canvas.local(box)
    canvas.blend(box, soft(np.maximum(distance, np.float32(centre[1] + level) - y), canvas.edge), -930.0)


def _spleen(scene: Scene) -> None:
    canvas, p = scene.canvas, scene.p
    rng = p.rng("splenomegaly")
    large, normal = 1.27 + 0.075 * bell(rng), 0.96 + 0.055 * bell(rng)
    s = large if p.truth["splenomegaly"] else normal
    scene.sizes["splenomegaly"] = [108.0 * s]  # craniocaudal length, mm
    hu = SPLEEN[p.phase] + 4 * bell(p.rng("attenuation"))
    organ = p.rng("organs")
    organ.random(192)
    centre = (
        -34 - 26 * s + _drop(scene) + 5 * bell(organ),
        -32 + 5 * bell(organ),
        -84 + 4 * bell(organ) + 12 * (s - 1),
    )
    box, distance = canvas.ellipsoid(centre, (50 * s, 36 * s, 23 * s), lean=(0.18, -0.12), bend=(0.0, 0.2, 0.35))
    z, _, _ = canvas.local(box)
    under = (z - scene.dome_HW[box[1:]][None] + 3) * np.float32(0.8)
    distance = np.maximum(np.maximum(distance, scene.wall_DHW[box] + 2), under)
    canvas.blend(box, soft(distance, canvas.edge), hu)


def _liver(scene: Scene) -> None:
    canvas, p = scene.canvas, scene.p
    fatty = p.truth["hepatic_steatosis"]
    tone = p.rng("hepatic_steatosis")
    low, plain = FATTY[p.phase] + 5 * bell(tone), LIVER[p.phase] + 4 * bell(tone)
    hu = low if fatty else plain
    organ = p.rng("organs")
    organ.random(256)
    s = 1 + 0.06 * bell(organ)
    top = 2 + _drop(scene)
    right = (top - 66 * s, 2 + 4 * bell(organ), 62 + 4 * bell(organ))
    box, distance = canvas.ellipsoid(right, (76 * s, 70 * s, 62 * s), lean=(-0.1, -0.12), bend=(0.0, 0.3, 0.2))
    z, _, _ = canvas.local(box)
    under = (z - scene.dome_HW[box[1:]][None] + 3) * np.float32(0.8)
    wall = scene.wall_DHW[box] + 2
    distance = np.maximum(np.maximum(distance, wall), under)
    canvas.blend(box, soft(distance, canvas.edge), hu)
    left = (top - 42, 44 + 4 * bell(organ), 4 + 6 * bell(organ))
    box2, distance2 = canvas.ellipsoid(left, (34 * s, 30 * s, 52 * s), lean=(0.25, 0.1))
    z2, _, _ = canvas.local(box2)
    under2 = (z2 - scene.dome_HW[box2[1:]][None] + 3) * np.float32(0.8)
    distance2 = np.maximum(np.maximum(distance2, scene.wall_DHW[box2] + 2), under2)
    canvas.blend(box2, soft(distance2, canvas.edge), hu)
    vein = PORTAL[p.phase] + 0.25 * (hu - LIVER[p.phase])
    gate = (top - 70, 0.0, 24.0)
    canvas.paint_tube((top - 100, -12.0, 8.0), gate, 5.5, 5.5, vein)
    for end in ((top - 55, -18.0, 72.0), (top - 78, 18.0, 78.0), (top - 42, 34.0, 10.0)):
        canvas.paint_tube(gate, tuple(e + 6 * bell(organ) for e in end), 4.5, 2.0, vein)  # type: ignore[arg-type]
    gall = (top - 104 + 5 * bell(organ), 34 + 5 * bell(organ), 40 + 5 * bell(organ))
    canvas.paint_ellipsoid(
        gall, (between(organ, 16, 24), between(organ, 8, 12), between(organ, 8, 12)), 10.0, lean=(-0.4, 0)
    )
    _cysts(scene, box, distance)


def _cysts(scene: Scene, box: tuple[slice, slice, slice], liver: np.ndarray) -> None:
    """Round fluid in the right lobe: 50 HU under the liver, so a wide window hardly shows it."""
    canvas, p = scene.canvas, scene.p
    rng = p.rng("hepatic_cyst")
    count = 1 + int(rng.random() < 0.85) + int(rng.random() < 0.7) + int(rng.random() < 0.5)
    tries = [(between(rng, -125, -10) + _drop(scene), between(rng, -58, 60), between(rng, 22, 108)) for _ in range(120)]
    radii = [5.0 + 17.5 * (0.45 + 0.55 * max(float(rng.random()), float(rng.random()))) for _ in range(count)]
    radii.sort(reverse=True)
    hu = 3 + 2.5 * bell(rng)
    placed: list[float] = []
    taken: list[tuple[tuple[float, float, float], float]] = []
    if p.truth["hepatic_cyst"]:
        depth = np.full(p.shape, 99.0, dtype=np.float32)
        depth[box] = liver
        for shrink in (1.0, 0.75, 0.5):
            for spot in tries:
                r = radii[len(placed)] * shrink
                if canvas.at(depth, spot) < -0.75 * r and all(math.dist(spot, o) > 0.9 * (r + b) for o, b in taken):
                    canvas.paint_ball(spot, r, hu)
                    placed.append(2 * r)
                    taken.append((spot, r))
                    if len(placed) == count:
                        break
            if placed:
                break
    scene.sizes["hepatic_cyst"] = placed


def _kidneys(scene: Scene) -> None:
    canvas, p = scene.canvas, scene.p
    swollen = p.rng("hydronephrosis")
    which = (("left",), ("right",), ("left", "right"))[(0, 0, 0, 1, 1, 1, 2, 2)[int(swollen.random() * 8)]]
    sides = which if p.truth["hydronephrosis"] else ()
    scene.sides[:] = sides
    grades = {"left": between(swollen, 0.0, 1.0), "right": between(swollen, 0.0, 1.0)}
    scene.sizes["hydronephrosis"] = [max(grades[s] for s in which)]
    organ = p.rng("organs")
    organ.random(320)
    hu = KIDNEY[p.phase] + 5 * bell(p.rng("attenuation"))
    for side, sign in SIDES:
        blown, g = side in sides, grades[side]
        s = 1 + 0.05 * bell(organ)
        size = s * (1.1 + 0.08 * g) if blown else s
        z = (-104.0 if side == "left" else -114.0) + 0.6 * _drop(scene) + 7 * bell(organ)
        y, x = -40 + 4 * bell(organ), (60 + 4 * bell(organ)) * sign
        lean = (0.12, -0.16 * sign)
        canvas.paint_ellipsoid((z, y, x), (60 * s, 36 * s, 36 * s), -100.0, lean=lean)  # perirenal fat
        canvas.paint_ellipsoid((z, y, x), (53 * size, 25 * size, 26 * size), hu, lean=lean, bend=(0.0, 0.0, 0.15))
        hilum = (z, y + 5, x - 11 * sign)
        if blown:
            pelvis = (28 + 8 * g, 14 + 4 * g, 16 + 5 * g)
            canvas.paint_ellipsoid(hilum, pelvis, 5.0, lean=lean)
            canvas.paint_ellipsoid((z - 6, y + 8, x - 22 * sign), (15 + 5 * g, 10 + 3 * g, 13 + 3 * g), 5.0)
            for up in (-24.0, 0.0, 24.0):
                canvas.paint_ellipsoid((z + up, y, x + (2 - 0.16 * up) * sign), (9 + 2 * g, 9 + 2 * g, 10 + 2 * g), 5.0)
        else:
            canvas.paint_ellipsoid(hilum, (24 * s, 9 * s, 11 * s), -75.0, lean=lean)
            canvas.paint_ellipsoid((z - 4, y + 6, x - 19 * sign), (8.0, 5.0, 7.0), 10.0)
        _stones(scene, side, sign, (z, y, x))


def _stones(scene: Scene, side: str, sign: float, centre: tuple[float, float, float]) -> None:
    canvas, p = scene.canvas, scene.p
    rng = p.rng(f"renal_stone_{side}")
    sizes = []
    for _ in range(1 + int(rng.random() < 0.75) + int(rng.random() < 0.6)):
        diameter, hu = (
            5.0 + 7.0 * max(float(rng.random()), float(rng.random()), float(rng.random())),
            between(rng, 800, 1400),
        )
        up, out, front = between(rng, -28, 28), between(rng, -4, 8), between(rng, -6, 6)
        if p.truth[f"renal_stone_{side}"]:
            spot = (centre[0] + up, centre[1] + front + 0.12 * up, centre[2] + (out - 0.16 * up) * sign)
            canvas.paint_ball(spot, diameter / 2, hu)
            sizes.append(diameter)
    scene.sizes[f"renal_stone_{side}"] = sizes


def _ascites(scene: Scene) -> None:
    """Free fluid along the wall of the abdomen, in front of the kidneys, deeper toward the pelvis."""
    canvas, p = scene.canvas, scene.p
    rng = p.rng("ascites")
    thick, hu = between(rng, 7.0, 18.0), 8 + 4 * bell(rng)
    scene.sizes["ascites"] = [thick]
    if not p.truth["ascites"]:
        return
    last = int(np.searchsorted(canvas.z_D, 0.0))
    if last == 0:
        return
    z, y, edge = canvas.z_D[:last], canvas.y_HW, canvas.edge
    wall = scene.wall_DHW[:last]
    depth = np.float32(thick) * (0.65 + 0.6 * np.clip((-z - 40) * np.float32(1 / 120), 0, 1))
    front = np.clip((30 - y) * np.float32(1 / 60), 0.25, 1)
    rim = np.maximum(wall + 2, -(wall + 2) - depth[:, None, None] * front[None])
    rim = np.maximum(rim, (np.float32(-44.0) - y)[None])
    under = (z[:, None, None] - scene.dome_HW[None] + 3) * np.float32(0.8)
    share = soft(np.maximum(rim, under), edge)
    part = canvas.hu[:last]
    part += (np.float32(hu) - part) * share
