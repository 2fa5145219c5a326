"""Lungs, airways, heart and great vessels, and the chest findings."""

from __future__ import annotations

import math

import numpy as np

from .body import HALF_WIDTH, SHELL, Scene
from .canvas import blobs, soft
from .parameters import bell, between

BLOOD = {"none": 42.0, "arterial": 270.0, "portal": 150.0}
HEART = {"none": 44.0, "arterial": 190.0, "portal": 122.0}
SIDES = (("left", -1.0), ("right", 1.0))  # x grows toward the patient's right


def lungs(scene: Scene) -> None:
    """Both lungs as what the trunk wall, the mediastinum and the diaphragm leave over; texture, vessels, emphysema."""
    canvas, p = scene.canvas, scene.p
    first = int(np.searchsorted(canvas.z_D, -75.0))
    z, y, x, edge = canvas.z_D[first:], canvas.y_HW, canvas.x_HW, canvas.edge
    # The mediastinum is wide at the back (spine) and in the middle (heart), narrow behind the sternum.
    rel = (y - np.float32(5.0)) * np.float32(1 / 70)
    waist = 10 + 17 * np.clip(1 - rel * rel, 0, 1) + 9 * np.clip(-rel, 0, 1)
    flat = waist - np.abs(x)
    distance = np.maximum(scene.wall_DHW[first:] + np.float32(1.5), flat[None])
    under = (scene.dome_HW[None] - z[:, None, None]) * np.float32(0.8)
    distance = np.maximum(np.maximum(distance, under), (z - 178)[:, None, None])
    share = soft(distance, edge)
    scene.lung_DHW = np.full(p.shape, 99.0, dtype=np.float32)
    scene.lung_DHW[first:] = distance

    rng = p.rng("texture")
    texture = blobs(rng, distance.shape, (2, 2, 2))
    base = np.float32(p.nuisance["lung_hu"]) - y * np.float32(0.35)
    hu = base[None] + texture * np.float32(between(rng, 8, 20))
    # Holes: a patchy field whose threshold sets how much lung is lost. Drawn in everybody, used when present.
    rng = p.rng("emphysema")
    field_ = blobs(rng, distance.shape, (2, 3, 3))
    loss = between(rng, 0.0, 0.45)
    scene.sizes["emphysema"] = [loss]
    if p.truth["emphysema"]:
        holes = np.clip((field_ + np.float32(loss - 0.25)) * np.float32(3.0), 0, 1)
        hu = hu + (np.float32(-972.0) - hu) * holes
    part = canvas.hu[first:]
    part += (hu - part) * share
    _lung_vessels(scene)


def _lung_vessels(scene: Scene) -> None:
    canvas, p = scene.canvas, scene.p
    rng = p.rng("vessels")
    hu = {"none": 40.0, "arterial": 180.0, "portal": 120.0}[p.phase]
    for _, side in SIDES:
        hilum = (72.0, -8.0, 34.0 * side)
        for branch in range(6):
            # Spread over the lung: up to down in order, front to back alternating, so no region is empty.
            z = -25 + 150 * (branch + float(rng.random())) / 6
            y = between(rng, 5, 55) if branch % 2 else between(rng, -62, -10)
            end = (z, 0.8 * y, (between(rng, 54, 80) - 0.22 * max(z - 60, 0)) * side)
            knee = tuple(a + (b - a) * between(rng, 0.35, 0.6) + 7 * bell(rng) for a, b in zip(hilum, end))
            r = between(rng, 2.2, 3.2)
            canvas.paint_tube(hilum, knee, r + 0.8, r * 0.7, hu)  # type: ignore[arg-type]
            canvas.paint_tube(knee, end, r * 0.7, 0.5, hu)  # type: ignore[arg-type]
            fork = (knee[0] + 22 * bell(rng), knee[1] + 16 * bell(rng), knee[2] + between(rng, 8, 24) * side)
            canvas.paint_tube(knee, fork, r * 0.55, 0.5, hu)  # type: ignore[arg-type]


def heart(scene: Scene) -> None:
    """Heart on the diaphragm; its width over the chest's inner width is the cardiothoracic ratio."""
    canvas, p = scene.canvas, scene.p
    rng = p.rng("cardiomegaly")
    wide, normal = 0.562 + 0.034 * bell(rng), 0.452 + 0.028 * bell(rng)
    ratio = wide if p.truth["cardiomegaly"] else normal
    scene.sizes["cardiomegaly"] = [ratio]
    rx = ratio * (HALF_WIDTH - SHELL)
    organ = p.rng("organs")
    ry, rz = rx * between(organ, 0.78, 0.9), rx * between(organ, 0.8, 0.92)
    fall = -5.0 * p.nuisance["inspiration"]
    centre = (-8 + fall + 0.92 * rz, 20 + 4 * bell(organ), -9 - 0.2 * rx + 4 * bell(organ))
    hu = HEART[p.phase] + 5 * bell(p.rng("attenuation"))
    canvas.paint_ellipsoid(centre, (rz + 3, ry + 3, rx + 3), -60.0, lean=(0.0, 0.15), bend=(0.0, 0.25, 0.0))
    canvas.paint_ellipsoid(centre, (rz, ry, rx), hu, lean=(0.0, 0.15), bend=(0.0, 0.25, 0.0))
    blood = BLOOD[p.phase]
    left = (centre[0] - 0.1 * rz, centre[1] + 0.0 * ry, centre[2] - 0.38 * rx)
    canvas.paint_ellipsoid(left, (0.5 * rz, 0.42 * ry, 0.36 * rx), blood)


def vessels(scene: Scene) -> None:
    """Trachea and bronchi, aorta with its plaques, both caval veins, oesophagus."""
    canvas, p = scene.canvas, scene.p
    rng = p.rng("organs")
    rng.random(64)  # the heart read the start of this stream
    blood = BLOOD[p.phase] + 8 * bell(rng)
    venous = {"none": 42.0, "arterial": 110.0, "portal": 150.0}[p.phase]
    canvas.paint_ellipsoid((112.0, 5.0, 0.0), (58.0, 34.0, 31.0), -60.0, bend=(0.0, 0.0, 0.0))
    canvas.paint_tube((200.0, -14.0, 2.0), (82.0, -18.0, 2.0), 9.0, 8.5, -985.0)
    for _, side in SIDES:
        canvas.paint_tube((82.0, -18.0, 2.0), (66.0, -14.0, 32.0 * side), 6.5, 5.0, -985.0)
    canvas.paint_tube((175.0, -26.0, -4.0), (0.0, -24.0, -8.0), 6.0, 6.0, 38.0)
    canvas.paint_tube((170.0, 10.0, 20.0), (62.0, 12.0, 22.0), 8.5, 9.5, venous)  # superior vena cava
    canvas.paint_tube((20.0, -12.0, 18.0), (-225.0, -24.0, 18.0), 10.0, 9.0, venous)  # inferior vena cava
    canvas.paint_tube((80.0, 22.0, -14.0), (70.0, 0.0, -30.0), 13.0, 9.0, blood if p.phase != "arterial" else 230.0)
    # Aorta as a chain of points: root, ascending, arch, descending, abdominal.
    r = between(rng, 11.5, 14.0)
    sway, arch = 3 * bell(rng), 112 + 6 * bell(rng)
    path = [
        (48.0, 18.0, 2.0), (86.0, 22.0, 10.0), (arch - 4, 10.0, 4.0), (arch, -14.0, -12.0), (arch - 14, -32.0, -23.0),
        (60.0, -32.0, -25.0 + sway), (-10.0, -29.0, -18.0 + sway), (-70.0, -24.0, -9.0), (-200.0, -22.0, -8.0),
    ]  # fmt: skip
    radii = [r + 2, r + 2, r + 1, r, r, r - 0.5, r - 1, r - 2, r - 4]
    for a, b, ra, rb in zip(path, path[1:], radii, radii[1:]):
        canvas.paint_tube(a, b, ra, rb, blood)
    rng = p.rng("aortic_calcification")
    sizes = []
    for _ in range(6 + int(rng.random() * 7)):
        leg = 2 + int(rng.random() * 6)
        t, diameter, hu = float(rng.random()), between(rng, 6.0, 11.0), between(rng, 700, 1300)
        turn = between(rng, -1, 0.6)
        side, sign = turn, math.sqrt(1 - turn * turn) * (1 if rng.random() < 0.85 else -1)
        a, b = path[leg], path[leg + 1]
        rim = radii[leg] + t * (radii[leg + 1] - radii[leg])
        point = tuple(u + t * (w - u) for u, w in zip(a, b))
        if p.truth["aortic_calcification"]:
            spot = (point[0], point[1] + rim * sign, point[2] + rim * side)
            canvas.paint_ball(spot, diameter / 2, hu, squash=0.7)
            sizes.append(diameter)
    scene.sizes["aortic_calcification"] = sizes


def effusions(scene: Scene) -> None:
    """Fluid that has sunk to the back of the pleural space; a thin dependent band of collapsed lung in some others."""
    canvas, p = scene.canvas, scene.p
    assert scene.lung_DHW is not None
    first, last = (int(np.searchsorted(canvas.z_D, edge)) for edge in (-75.0, 105.0))
    z, y, x, edge = canvas.z_D[first:last], canvas.y_HW, canvas.x_HW, canvas.edge
    sink = ((y + 78) * np.float32(0.88))[None] + ((z + 58) * np.float32(0.42))[:, None, None]
    space = scene.lung_DHW[first:last]
    part = canvas.hu[first:last]
    for side, sign in SIDES:
        rng = p.rng(f"effusion_{side}")
        depth, hu = between(rng, 18.0, 52.0), 5.0 + 4 * bell(rng)
        here = np.where(x * np.float32(sign) > 0, np.float32(0), np.float32(99))[None]
        band = np.float32(p.nuisance[f"atelectasis_{side}"])
        if band > 0:
            share = soft(np.maximum(sink - band, space) + here, edge)
            part += (np.float32(-330.0) - part) * share
        scene.sizes[f"effusion_{side}"] = [depth]
        if p.truth[f"effusion_{side}"]:
            collapse = soft(np.maximum(sink - np.float32(depth + 7), space) + here, edge)
            part += (np.float32(-120.0) - part) * collapse
            share = soft(np.maximum(sink - np.float32(depth), space - 2) + here, edge)
            part += (np.float32(hu) - part) * share


def nodules(scene: Scene) -> None:
    """One to three solid balls in aerated lung, away from its surface: places are tried until one is free."""
    canvas, p = scene.canvas, scene.p
    assert scene.lung_DHW is not None
    for side, sign in SIDES:
        rng = p.rng(f"nodule_{side}")
        count = 1 + int(rng.random() < 0.75) + int(rng.random() < 0.6)
        tries = [(between(rng, 25, 150), between(rng, -68, 66), between(rng, 30, 106) * sign) for _ in range(160)]
        diameters = [15.0 - 9.0 * float(rng.random()) * float(rng.random()) * float(rng.random()) for _ in range(count)]
        tones = [between(rng, 15, 60) for _ in range(count)]
        placed: list[float] = []
        if p.truth[f"nodule_{side}"]:
            for spot in tries:
                if len(placed) == count:
                    break
                r = diameters[len(placed)] / 2
                # The outer lung: among the large vessels of the hilum no grid this coarse could tell them apart.
                outer = (spot[0] - 65) ** 2 + (spot[1] + 8) ** 2 + (spot[2] - 34 * sign) ** 2 > 40**2
                free = (
                    outer
                    and canvas.at(scene.lung_DHW, spot) < -(r + 4)
                    and all(
                        canvas.at(canvas.hu, (spot[0], spot[1] + dy, spot[2] + dx)) < -700
                        for dy, dx in ((0, 0), (r + 4, 0), (-r - 4, 0), (0, r + 4), (0, -r - 4))
                    )
                )
                if free:
                    canvas.paint_ball(spot, r, tones[len(placed)])
                    placed.append(2 * r)
            if not placed:  # no free place in 160: the middle of the lung, whatever is there
                canvas.paint_ball((60.0, 30.0, 70.0 * sign), diameters[0] / 2, tones[0])
                placed.append(diameters[0])
        scene.sizes[f"nodule_{side}"] = placed
