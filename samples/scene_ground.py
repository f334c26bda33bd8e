"""The ground of the sample scenes: street, pavement, lawn and grass blades."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scene_light import (
    GRASS,
    ROAD,
    UP,
    Array,
    Buffer,
    Noise,
    mix,
    smoothstep,
)


@dataclass(frozen=True)
class Street:
    """A straight road: u metres to its right of the middle, v metres along it.

    yaw is its turn from straight ahead (radians), shift the u of the camera with opposite
    sign, half the half width of the carriageway, path the width of the pavement next to it, zebra
    the v of a crossing (metres), marked whether lines are painted.
    """

    yaw: float
    shift: float
    half: float
    zebra: float
    marked: bool
    path: float

    def to_road(self, x: Array, z: Array) -> tuple[Array, Array]:
        """Return u, v of world x, z."""
        s, c = np.sin(self.yaw), np.cos(self.yaw)
        return x * c - z * s - self.shift, x * s + z * c

    def axes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the world directions (x, z) of growing u and of growing v."""
        s, c = float(np.sin(self.yaw)), float(np.cos(self.yaw))
        return (c, -s), (s, c)

    def to_world(self, u: float, v: float) -> tuple[float, float]:
        """Return world x, z of u, v."""
        s, c = float(np.sin(self.yaw)), float(np.cos(self.yaw))
        return (u + self.shift) * c + v * s, -(u + self.shift) * s + v * c


def draw_ground(buffer: Buffer, street: Street, noise: Noise, tint: Array) -> None:
    """Fill everything below the horizon with road, kerb and grass; tint (3,) is the grass."""
    camera = buffer.camera
    first = int(np.ceil(camera.horizon + 0.012 * camera.focal)) * camera.columns
    index = np.arange(first, camera.rows * camera.columns)
    rays = camera.rays(index)
    depth = camera.height / -rays[:, 1]
    x, z = rays[:, 0] * depth, depth
    u, v = street.to_road(x, z)
    wobble = 0.10 * (noise.value(v * 0.8, v * 0.1) - 0.5) * (noise.value(x * 5, z * 5) > 0.3)
    edge = np.abs(u) - street.half
    road = edge < 0.32 + street.path + wobble
    albedo, openness = _grass(x, z, depth, noise, tint, edge - street.path)
    asphalt = _asphalt(street, u, v, x, z, depth, noise)
    albedo[road] = asphalt[road]
    normal = np.broadcast_to(UP, (len(index), 3)).copy()
    # Lumpy turf: a tilt of the normal gives the lawn its own light and dark under a low sun.
    near = np.where(road, 0.12, 0.55) / (1 + depth / 25)
    normal[:, 0] += near * (noise.fractal(x * 3, z * 3, 3) - 0.5)
    normal[:, 2] += near * (noise.fractal(x * 3 + 50, z * 3, 3) - 0.5)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    for mask, class_id in ((road, ROAD), (~road, GRASS)):
        buffer.put(
            index[mask], depth[mask], normal[mask], albedo[mask], class_id, 0.0, 0.0, openness[mask]
        )


def _grass(
    x: Array, z: Array, depth: Array, noise: Noise, tint: Array, edge: Array
) -> tuple[Array, Array]:
    """Return lawn colours (n, 3) and open sky shares (n,), with noise of many sizes."""
    broad = noise.fractal(x * 0.13, z * 0.13, 4)
    patch = noise.fractal(x * 0.9 + 30, z * 0.9, 4)
    # Fine structure would only flicker far away, where many tufts share a pixel.
    fine = (noise.fractal(x * 16, z * 9, 3) - 0.5) / (1 + depth / 14)
    dry = np.array([0.20, 0.17, 0.065], np.float32)
    color = mix(tint, dry, smoothstep(0.52, 0.85, 0.6 * broad + 0.4 * patch))
    color = mix(
        color, tint * np.array([0.62, 0.80, 0.60], np.float32), smoothstep(0.5, 0.25, patch)
    )
    soil = np.array([0.13, 0.095, 0.06], np.float32)
    worn = smoothstep(0.62, 0.80, patch + 0.25 * np.exp(-np.maximum(edge - 0.3, 0) * 3))
    color = mix(color, soil, 0.7 * worn)
    return color * (1 + 1.1 * fine)[:, None], np.clip(0.92 + 0.9 * fine, 0.3, 1.0)


def _asphalt(
    street: Street, u: Array, v: Array, x: Array, z: Array, depth: Array, noise: Noise
) -> Array:
    """Return road colours (n, 3): grain, patches, tyre tracks, worn paint, gutter and kerb."""
    grain = (noise.fractal(x * 45, z * 45, 2) - 0.5) / (1 + depth / 9)
    blotch = noise.fractal(u * 0.7 + 9, v * 0.16, 4) - 0.5
    tracks = np.exp(-(((np.abs(np.abs(u) - street.half / 2) - 0.75) / 0.33) ** 2))
    tone = 0.115 * (1 + 0.7 * grain + 0.5 * blotch - 0.16 * tracks)
    crack = np.abs(noise.fractal(u * 0.35 + 3, v * 0.18, 6) - 0.5)
    tone *= 1 - 0.35 * smoothstep(0.005, 0.0, crack) * smoothstep(
        0.45, 0.7, noise.value(u * 0.4, v * 0.2)
    )
    patch = (noise.cell(np.floor(u / 2.1 + 0.3), np.floor(v / 5.3)) > 0.84) & (
        np.abs(u) < street.half - 0.4
    )
    tone *= np.where(patch, 0.78, 1.0)
    color = tone[:, None] * np.array([1.0, 0.985, 0.96], np.float32)
    worn = 0.85 * smoothstep(0.30, 0.52, noise.fractal(x * 3.5, z * 3.5, 4) + 0.12)
    paint = (np.abs(u) < 0.07) & (v % 6.0 < 3.0)
    paint |= np.abs(np.abs(u) - street.half + 0.35) < 0.05
    paint &= street.marked
    stripes = (np.abs(v - street.zebra) < 1.5) & (u % 1.0 < 0.5) & (np.abs(u) < street.half - 0.3)
    paint = np.where(np.abs(v - street.zebra) < 1.8, stripes, paint)
    color = mix(color, np.array([0.55, 0.54, 0.50], np.float32), paint * worn)
    edge = np.abs(u) - street.half
    gutter = smoothstep(-0.25, -0.02, edge) * (edge < 0)
    color *= (1 - 0.35 * gutter)[:, None]
    joint = np.where(v % 1.0 < 0.04, 0.6, 1.0)
    stone = 0.27 * (0.85 + 0.5 * (noise.fractal(u * 6, v * 6, 3) - 0.3)) * joint
    # The upright face of the kerb shows as a dark line next to its light top.
    stone *= np.where(edge < 0.09, 0.5, 1.0)
    color = np.where((edge >= 0)[:, None], stone[:, None] * np.array([1.0, 0.97, 0.92]), color)
    return np.asarray(np.where((edge > 0.3)[:, None], _paving(u, v, edge, depth, noise), color))


def _paving(u: Array, v: Array, edge: Array, depth: Array, noise: Noise) -> Array:
    """Return pavement colours (n, 3): slabs of slightly different greys, joints and dirt."""
    column, row = np.floor(edge / 0.55), np.floor(v / 0.8)
    slab = noise.cell(column + 5, row) - 0.5
    joint = ((edge % 0.55 < 0.03) | (v % 0.8 < 0.03)) / (1 + (depth / 14) ** 2)
    dirt = noise.fractal(u * 0.9, v * 0.9, 4) - 0.5
    grain = (noise.fractal(u * 30, v * 30, 2) - 0.5) / (1 + depth / 9)
    tone = 0.235 * (1 + 0.22 * slab + 0.6 * dirt + 0.5 * grain) * (1 - 0.45 * joint)
    return np.asarray(tone[:, None] * np.array([1.0, 0.96, 0.90], np.float32))


def grow_blades(buffer: Buffer, rng: np.random.Generator, noise: Noise) -> None:
    """Stand short grass blades on the lawn in front; they also soften its border."""
    camera = buffer.camera
    lawn = np.flatnonzero((buffer.ids == GRASS) & (buffer.depth < 16))
    if not len(lawn):
        return
    base = rng.choice(lawn, size=len(lawn) // 5)
    depth, albedo = buffer.depth[base], buffer.albedo[base]
    x = (base % camera.columns - camera.columns / 2) * depth / camera.focal
    tuft = noise.fractal(x * 1.3, depth * 1.3, 3)
    tall = rng.uniform(0.03, 0.085, len(base)) * (0.4 + 1.6 * smoothstep(0.3, 0.7, tuft))
    pixels = tall * camera.focal / depth
    lean = rng.normal(0, 0.35, len(base))
    tone = rng.uniform(0.7, 1.45, len(base))
    normal = np.stack(
        [rng.normal(0, 0.35, len(base)), np.ones(len(base)), rng.normal(-0.25, 0.35, len(base))], 1
    )
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    for step in range(int(pixels.max()) + 1):
        column = base % camera.columns + np.rint(lean * step).astype(np.int64)
        row = base // camera.columns - step
        keep = (pixels >= step) & (column >= 0) & (column < camera.columns) & (row >= 0)
        up = step / np.maximum(pixels[keep], 1)
        color = albedo[keep] * (tone[keep] * (0.75 + 0.55 * up))[:, None]
        index = row[keep] * camera.columns + column[keep]
        buffer.put(index, depth[keep] - 0.02, normal[keep], color, GRASS, 0.0, 0.15, 0.6 + 0.4 * up)
