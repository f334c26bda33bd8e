"""Solids given by distance functions and ray-marched; cars, people and litter bins are such.

A solid is a function from local points (n, 3) in metres (x forward, y up, z to its left side) to
signed distances (n,) and part numbers (n,); a paint function then colours the points that are hit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scene_light import IGNORE, Array, Buffer, Noise, Shade

Distance = Callable[[Array], tuple[Array, Array]]


@dataclass
class Coat:
    """Surface colours (n, 3), mirror strength (n,) and open sky share (n,) of hit points."""

    albedo: Array
    gloss: Array
    openness: Array

    def dye(self, where: Array, rgb: tuple[float, float, float], shine: float) -> None:
        """Give the points of a mask (n,) another colour and mirror strength."""
        self.albedo[where], self.gloss[where] = rgb, shine


Paint = Callable[[Array, Array, Array], Coat]


@dataclass(frozen=True)
class Solid:
    """A shape, its half sizes (x, height, z) in metres, its paint and its class id."""

    distance: Distance
    size: tuple[float, float, float]
    paint: Paint
    class_id: int


def turn_matrix(yaw: float) -> Array:
    """Return the (3, 3) turn from local to world; local +x points to (cos, 0, sin) of yaw."""
    c, s = float(np.cos(yaw)), float(np.sin(yaw))
    return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]], np.float32)


def place(
    buffer: Buffer, shade: Shade, solid: Solid, spot: tuple[float, float], yaw: float
) -> None:
    """Draw a solid standing at world (x, z), and let it block light."""
    turn, origin = turn_matrix(yaw), np.array([spot[0], 0.0, spot[1]], np.float32)
    half_x, height, half_z = solid.size
    corners = np.array(
        [(x, y, z) for x in (-half_x, half_x) for y in (0, height) for z in (-half_z, half_z)]
    )
    steps = [
        np.arange(-half_x, half_x, 0.05),
        np.arange(0.02, height, 0.05),
        np.arange(-half_z, half_z, 0.05),
    ]
    grid = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float32)
    inside = grid[solid.distance(grid)[0] < 0.01]
    shade.add_points(inside @ turn.T + origin)
    index = buffer.camera.window(corners @ turn.T + origin)
    if not len(index):
        return
    index, depth, local = _march(
        buffer, solid.distance, index, turn, origin, float(np.hypot(half_x, half_z))
    )
    if not len(index):
        return
    normal = _normals(solid.distance, local)
    coat = solid.paint(local, normal, solid.distance(local)[1])
    buffer.put(
        index, depth, normal @ turn.T, coat.albedo, solid.class_id, coat.gloss, 0.0, coat.openness
    )


def _march(
    buffer: Buffer, distance: Distance, index: Array, turn: Array, origin: Array, reach: float
) -> tuple[Array, Array, Array]:
    """Follow the rays of pixels `index` (n,); return hit pixels, depths and local points."""
    rays = buffer.camera.rays(index)
    length = np.linalg.norm(rays, axis=1)
    start = (np.array([0, buffer.camera.height, 0], np.float32) - origin) @ turn
    local_rays = rays @ turn
    depth = np.full(len(index), max(0.2, float(origin[2]) - reach), np.float32)
    limit = float(origin[2]) + reach
    alive, hits = np.arange(len(index)), []
    for _ in range(56):
        gap = distance(start + local_rays[alive] * depth[alive, None])[0]
        near = gap < 0.004
        hits.append(alive[near])
        depth[alive] += np.where(near, 0, 0.9 * gap / length[alive])
        alive = alive[~near & (depth[alive] < limit)]
        if not len(alive):
            break
    # Rays that graze a surface run out of steps close to it: they count as hits.
    if len(alive):
        gap = distance(start + local_rays[alive] * depth[alive, None])[0]
        hits.append(alive[gap < 0.015])
    hit = np.concatenate(hits)
    return index[hit], depth[hit], start + local_rays[hit] * depth[hit, None]


def _normals(distance: Distance, points: Array) -> Array:
    """Return unit surface normals (n, 3) at local points from four nearby distances."""
    total = np.zeros_like(points)
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        way = np.array(corner, np.float32)
        total += way * distance(points + 0.012 * way)[0][:, None]
    return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-6))


def capsule(p: Array, a: Array, b: Array, ra: float, rb: float) -> Array:
    """Return distances (n,) of points to a limb from a to b whose radius goes from ra to rb."""
    axis = (b - a).astype(np.float32)
    along = np.clip((p - a.astype(np.float32)) @ axis / max(float(axis @ axis), 1e-9), 0, 1)
    offset = p - a.astype(np.float32) - along[:, None] * axis
    return np.asarray(np.sqrt((offset * offset).sum(axis=1)) - (ra + (rb - ra) * along))


def soft_min(a: Array, b: Array, k: float) -> Array:
    """Return the smooth union of two distances; k is the width of the joint in metres."""
    h = np.maximum(k - np.abs(a - b), 0.0) / k
    return np.asarray(np.minimum(a, b) - h * h * k * 0.25)


def round_join(a: Array, b: Array, radius: float) -> Array:
    """Return the distance to where two solids overlap, with an edge rounded by radius metres."""
    a, b = a + radius, b + radius
    outside = np.hypot(np.maximum(a, 0), np.maximum(b, 0))
    return np.asarray(np.minimum(np.maximum(a, b), 0) + outside - radius)


def make_bin(rng: np.random.Generator, noise: Noise) -> Solid:
    """Return a litter bin or a post box, about a metre tall: it gets the ignore index."""
    tall, radius = float(rng.uniform(0.85, 1.25)), float(rng.uniform(0.24, 0.32))
    color = np.array(
        [(0.03, 0.09, 0.06), (0.36, 0.05, 0.03), (0.05, 0.07, 0.12)][int(rng.integers(3))],
        np.float32,
    )

    def distance(p: Array) -> tuple[Array, Array]:
        a = np.hypot(p[:, 0], p[:, 2]) - radius + 0.05
        b = np.abs(p[:, 1] - tall / 2) - tall / 2 + 0.05
        body = np.minimum(np.maximum(a, b), 0) + np.hypot(np.maximum(a, 0), np.maximum(b, 0)) - 0.05
        return body, np.zeros(len(p), np.int64)

    def paint(p: Array, _normal: Array, _part: Array) -> Coat:
        slot = (np.abs(p[:, 1] - tall * 0.82) < 0.06) & (
            np.abs(np.arctan2(p[:, 2], p[:, 0])) % 1.57 < 0.6
        )
        wear = 0.8 + 0.4 * noise.fractal(p[:, 0] * 8, p[:, 1] * 8, 3)
        albedo = np.where(slot[:, None], 0.01, color * wear[:, None])
        band = np.abs(p[:, 1] - tall * 0.68) < 0.02
        return Coat(
            np.where(band[:, None], 0.4, albedo), np.full(len(p), 0.25), np.full(len(p), 0.9)
        )

    return Solid(distance, (radius, tall, radius), paint, IGNORE)
