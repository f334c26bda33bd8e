"""The trees and bushes of the sample scenes: trunks, branches and thousands of leaves."""

from __future__ import annotations

import numpy as np
from scene_light import (
    TREE,
    Array,
    Buffer,
    Noise,
    Shade,
    smoothstep,
)
from scene_solids import capsule

# Both ends (3,) of a limb in world metres, and its radius at each.
Limb = tuple[Array, Array, float, float]

_LEAVES = [
    (0.085, 0.155, 0.03),
    (0.055, 0.125, 0.03),
    (0.12, 0.165, 0.03),
    (0.06, 0.11, 0.045),
    (0.15, 0.16, 0.03),
]


def splat(
    buffer: Buffer,
    points: Array,
    size: Array,
    color: Array,
    normal: Array,
    openness: Array,
    tilt: Array,
) -> None:
    """Draw n small flat leaves: world centres (n, 3), radii in metres (n,), as tilted ellipses."""
    camera = buffer.camera
    column, row = camera.project(points)
    radius = np.clip(size * camera.focal / np.maximum(points[:, 2], 0.3), 0.8, 30.0)
    reach = np.ceil(radius).astype(np.int64)
    visible = (points[:, 2] > 0.5) & (column > -30) & (column < camera.columns + 30)
    for bound in np.unique(reach[visible]):
        group = np.flatnonzero(visible & (reach == bound))
        dy, dx = np.mgrid[-bound : bound + 1, -bound : bound + 1].reshape(2, -1, 1)
        c, r = (
            np.rint(column[group]).astype(np.int64) + dx,
            np.rint(row[group]).astype(np.int64) + dy,
        )
        x, y = c + 0.5 - column[group], r + 0.5 - row[group]
        cos, sin = np.cos(tilt[group]), np.sin(tilt[group])
        oval = ((x * cos + y * sin) / radius[group]) ** 2 + (
            (y * cos - x * sin) / (0.6 * radius[group])
        ) ** 2
        cells, which = np.nonzero(
            (oval < 1) & (c >= 0) & (c < camera.columns) & (r >= 0) & (r < camera.rows)
        )
        leaf = group[which]
        index = r[cells, which] * camera.columns + c[cells, which]
        buffer.put(
            index,
            points[leaf, 2].astype(np.float32),
            normal[leaf],
            color[leaf],
            TREE,
            0.0,
            0.8,
            openness[leaf],
        )


def draw_crown(
    buffer: Buffer, shade: Shade, rng: np.random.Generator, clumps: Array, radii: Array,
    middle: Array, leaf: float, tint: Array,
) -> None:  # fmt: skip
    """Draw foliage: leaves on clumps, balls with centres (n, 3) and radii (n,) in metres."""
    count = np.maximum((2.7 * (radii / leaf) ** 2).astype(np.int64), 12)
    owner = np.repeat(np.arange(len(clumps)), count)
    way = rng.normal(size=(len(owner), 3))
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    far = rng.uniform(0.45, 1.0, len(owner)) ** 0.6 * rng.uniform(0.9, 1.22, len(owner))
    points = clumps[owner] + way * (far * radii[owner])[:, None] * np.array([1.0, 0.85, 1.0])
    points = points[points[:, 1] > 0.05]
    owner, way, far = owner[: len(points)], way[: len(points)], far[: len(points)]
    out = points - middle
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    normal = 0.75 * way + 0.55 * out + rng.normal(0, 0.38, way.shape) + np.array([0, 0.25, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    # Leaves deep inside the crown or at the bottom of a clump see little of the sky.
    spread = np.linalg.norm((points - middle), axis=1)
    deep = smoothstep(0.25, 1.0, spread / max(float(spread.max()), 0.1))
    openness = np.clip(
        (0.22 + 0.78 * deep) * (0.55 + 0.45 * way[:, 1]) * (0.6 + 0.4 * far), 0.08, 1.0
    )
    hue = rng.normal(0, 0.10, (len(clumps), 1))[owner] + rng.normal(0, 0.12, (len(owner), 1))
    color = np.clip(tint * (1 + hue) * (1 + rng.normal(0, 0.06, (len(owner), 3))), 0.005, 1)
    size = leaf * rng.uniform(0.7, 1.2, len(owner))
    tilt = rng.uniform(0, np.pi, len(owner))
    splat(buffer, points, size, color.astype(np.float32), normal, openness, tilt)
    # Dark hearts fill the clumps, so that the crown is no sieve.
    _fill_hearts(buffer, clumps, 0.72 * radii, tint)
    # A leaf covers more than one cell of the light map.
    for dx, dz in ((0.0, 0.0), (0.055, 0.02), (-0.02, 0.055), (-0.045, -0.045)):
        shade.add_points(points + np.array([dx, 0.0, dz]))
    inner = clumps[owner] + way * (0.6 * rng.random(len(owner)) * radii[owner])[:, None]
    shade.add_points(inner[inner[:, 1] > 0])


def _fill_hearts(buffer: Buffer, clumps: Array, radii: Array, tint: Array) -> None:
    """Draw one dark disc (n,) through the middle of each clump."""
    camera = buffer.camera
    for spot, radius in zip(clumps, radii, strict=True):
        if spot[2] < 1.0:
            continue
        box = np.array([spot + radius * np.array(k) for k in ((-1, -1, 0), (1, 1, 0))])
        index = camera.window(box)
        rays = camera.rays(index)
        points = rays[:, :2] * spot[2] + np.array([0, camera.height])
        index = index[np.hypot(points[:, 0] - spot[0], points[:, 1] - spot[1]) < radius]
        depth = np.full(len(index), spot[2] + 0.3 * radius, np.float32)
        normal = np.array([0, 0.6, -0.8], np.float32)
        buffer.put(index, depth, normal, tint * 0.55, TREE, 0.0, 0.3, 0.22)


def draw_tree(
    buffer: Buffer,
    shade: Shade,
    rng: np.random.Generator,
    noise: Noise,
    spot: tuple[float, float],
    height: float,
) -> None:
    """Draw a broad-leaved tree or a slender one, standing at world (x, z)."""
    foot, slim = np.array([spot[0], 0.0, spot[1]]), bool(rng.random() < 0.25)
    wide = height * (0.19 if slim else float(rng.uniform(0.29, 0.36)))
    tall = height * (0.38 if slim else float(rng.uniform(0.27, 0.32)))
    middle = foot + np.array([0, height - tall, 0])
    number = int(rng.integers(26, 36))
    way = rng.normal(size=(number, 3))
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    reach = rng.uniform(0.35, 0.85, number)[:, None]
    clumps = middle + way * reach * np.array([wide, tall, wide])
    radii = rng.uniform(0.28, 0.42, number) * min(wide, tall)
    thick = float(np.clip(height * rng.uniform(0.022, 0.030), 0.16, 0.30))
    fork = foot + np.array(
        [rng.normal(0, 0.1), (height - 2 * tall) + 0.35 * tall, rng.normal(0, 0.1)]
    )
    ends = clumps[rng.choice(number, 6, replace=False)]
    wood: list[Limb] = [(fork, end, thick * 0.7, thick * 0.25) for end in ends]
    wood.append((foot, fork, thick * 1.25, thick * 0.8))
    _draw_wood(buffer, shade, noise, wood)
    tint = np.array(_LEAVES[int(rng.integers(len(_LEAVES)))]) * rng.uniform(0.85, 1.2)
    leaf = float(np.clip(0.0052 * np.hypot(*spot), 0.045, 0.20))
    draw_crown(buffer, shade, rng, clumps, radii, middle, leaf, tint)


def _draw_wood(buffer: Buffer, shade: Shade, noise: Noise, wood: list[Limb]) -> None:
    """Draw trunk and branches as limbs seen from the side, rounded by their normals."""
    for a, b, ra, rb in wood:
        steps = np.linspace(0, 1, max(int(np.linalg.norm(b - a) / 0.06), 2))[:, None]
        for dx in (-0.6 * ra, 0.0, 0.6 * ra):
            shade.add_points(a + (b - a) * steps + np.array([dx, 0.02, 0]))
        if min(a[2], b[2]) > 0.6:
            _draw_limb(buffer, noise, (a, b, ra, rb))


def _draw_limb(buffer: Buffer, noise: Noise, limb: Limb) -> None:
    """Draw one limb of a tree on the upright plane through its middle."""
    (a, b, ra, rb), camera, flat = limb, buffer.camera, np.array([1, 1, 0])
    size = 1.4 * max(ra, rb) * np.array([1, 0.2, 0])
    index = camera.window(np.stack([a - size, a + size, b - size, b + size]))
    points = camera.rays(index) * ((a[2] + b[2]) / 2) + np.array([0, camera.height, 0])
    start, axis = a * flat, (b - a) * flat
    along = np.clip((points * flat - start) @ axis / max(float(axis @ axis), 1e-9), 0, 1)
    flare = ra + (rb - ra) * along + 0.35 * ra * np.exp(-points[:, 1] / 0.18)
    hit = (capsule(points * flat, start, start + axis, 0, 0) < flare) & (points[:, 1] > 0)
    points, along, flare = points[hit], along[hit], flare[hit]
    side = np.cross(axis / max(float(np.linalg.norm(axis)), 1e-6), np.array([0, 0, 1.0]))
    bulge = np.clip(((points - start) * flat - along[:, None] * axis) @ side / flare, -1, 1)
    round_off = np.sqrt(1 - bulge**2)[:, None] * np.array([0, 0, 1.0])
    bark = noise.fractal(points[:, 0] * 22, points[:, 1] * 4, 4)
    color = np.array([0.13, 0.095, 0.065]) * (0.4 + 1.2 * bark)[:, None]
    depth = (a[2] + (b[2] - a[2]) * along).astype(np.float32)
    buffer.put(index[hit], depth, bulge[:, None] * side - round_off, color, TREE, 0.0, 0.0, 0.75)


def draw_bush(
    buffer: Buffer,
    shade: Shade,
    rng: np.random.Generator,
    spot: tuple[float, float],
    size: tuple[float, float],
) -> None:
    """Draw a bush or a far tree mass at world (x, z); size is width and height in metres."""
    wide, tall = size
    middle = np.array([spot[0], 0.42 * tall, spot[1]])
    number = int(rng.integers(9, 15))
    spread = rng.uniform(-1, 1, (number, 3)) * np.array(
        [0.36 * wide, 0.26 * tall, 0.25 * min(wide, 6)]
    )
    radii = rng.uniform(0.22, 0.34, number) * tall
    tint = np.array(_LEAVES[int(rng.integers(len(_LEAVES)))]) * rng.uniform(0.8, 1.1)
    leaf = float(np.clip(0.0052 * np.hypot(*spot), 0.04, 0.42))
    draw_crown(buffer, shade, rng, middle + spread, radii, middle, leaf, tint)
