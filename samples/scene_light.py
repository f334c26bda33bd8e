"""Camera, pixel buffers, light, sky and lens of the drawn sample scenes.

The scenes are small three-dimensional worlds: X points right, Y up and Z away from the camera,
all in metres, with the camera at (0, height, 0).  Everything visible is written into a `Buffer`
(nearest surface per pixel, with its class id), lit afterwards in one go and then developed like a
photograph.  Colours are linear-light RGB, roughly 0..1, until `develop` turns them into bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[Any]

SKY, BUILDING, ROAD, GRASS, TREE, CAR, PERSON = range(7)
IGNORE = 255
UP = np.array([0, 1, 0], np.float32)


def smoothstep(low: float, high: float, value: Array) -> Array:
    """Return 0 below `low`, 1 above `high` and a smooth ramp between them, elementwise."""
    ramp = np.clip((value - low) / (high - low), 0.0, 1.0)
    return np.asarray(ramp * ramp * (3.0 - 2.0 * ramp))


def mix(first: Array, second: Array, share: Array) -> Array:
    """Blend two colours (..., 3); `share` (...) is the part that `second` gets."""
    return np.asarray(first + (second - first) * share[..., None])


def box_blur(image: Array, radius: int) -> Array:
    """Blur a float map (h, w) with a box of 2 * radius + 1 cells, twice (nearly a Gaussian)."""
    size = 2 * radius + 1
    for axis in (0, 1, 0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (radius + 1, radius)
        total = np.cumsum(np.pad(image, pad, mode="edge"), axis=axis, dtype=np.float64)
        count = total.shape[axis]
        upper = np.take(total, np.arange(size, count), axis=axis)
        lower = np.take(total, np.arange(0, count - size), axis=axis)
        image = ((upper - lower) / size).astype(np.float32)
    return image


class Noise:
    """Seeded value noise and fractal noise on the plane, values about 0..1 (float32)."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Draw the lattice of random numbers, which repeats after 256 cells."""
        self.table = rng.random((256, 256), dtype=np.float32)

    def value(self, x: Array, y: Array) -> Array:
        """Return smooth noise at x, y (any shape, lattice units)."""
        column, row = np.floor(x), np.floor(y)
        fx, fy = (x - column).astype(np.float32), (y - row).astype(np.float32)
        fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
        left, top = column.astype(np.int64) & 255, row.astype(np.int64) & 255
        right, bottom = (left + 1) & 255, (top + 1) & 255
        upper = self.table[top, left] * (1 - fx) + self.table[top, right] * fx
        lower = self.table[bottom, left] * (1 - fx) + self.table[bottom, right] * fx
        return np.asarray(upper * (1 - fy) + lower * fy)

    def fractal(self, x: Array, y: Array, octaves: int) -> Array:
        """Return the sum of `octaves` noises, each twice as fine and half as strong."""
        total, weight, norm = np.zeros(np.shape(x), np.float32), 1.0, 0.0
        for octave in range(octaves):
            total += weight * self.value(x + 17.3 * octave, y + 9.7 * octave)
            norm += weight
            # A turn between the octaves hides the square lattice.
            x, y, weight = 1.66 * x + 1.13 * y, 1.66 * y - 1.13 * x, weight * 0.52
        return np.asarray(total / norm)

    def cell(self, column: Array, row: Array) -> Array:
        """Return one constant random number per whole-numbered cell."""
        a, b = column.astype(np.int64), row.astype(np.int64)
        return np.asarray(self.table[(a * 7 + b * 53) & 255, (a * 31 + b * 3 + 11) & 255])


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera; sizes in pixels of the oversampled picture, height in metres."""

    rows: int
    columns: int
    focal: float
    horizon: float
    height: float

    def rays(self, index: Array) -> Array:
        """Return directions (n, 3) with Z = 1 for flat pixel indices (n,)."""
        row, column = np.divmod(index, self.columns)
        x = (column + 0.5 - self.columns / 2) / self.focal
        y = (self.horizon - row - 0.5) / self.focal
        return np.stack([x, y, np.ones_like(x)], axis=-1).astype(np.float32)

    def project(self, points: Array) -> tuple[Array, Array]:
        """Return the column and row (floats) of world points (..., 3) in front of the camera."""
        depth = np.maximum(points[..., 2], 0.05)
        column = self.columns / 2 + self.focal * points[..., 0] / depth
        return column, self.horizon - self.focal * (points[..., 1] - self.height) / depth

    def window(self, points: Array) -> Array:
        """Return the flat indices of the pixel rectangle around projected points (n, 3)."""
        column, row = self.project(points)
        if points[..., 2].min() < 0.3:
            # A corner behind the camera has no image: its side of the picture is all inside.
            span, lines = (0, self.columns), (0, self.rows)
        else:
            span = (max(0, int(column.min()) - 2), min(self.columns, int(column.max()) + 3))
            lines = (max(0, int(row.min()) - 2), min(self.rows, int(row.max()) + 3))
        grid = np.arange(lines[0], lines[1])[:, None] * self.columns + np.arange(span[0], span[1])
        return np.asarray(grid.ravel() if grid.size else np.zeros(0, np.int64))


@dataclass(frozen=True)
class Light:
    """The weather of one scene; `sun` is a unit vector towards it, colours are (3,) float."""

    sun: Array
    sun_color: Array
    zenith: Array
    horizon: Array
    bounce: Array
    haze: float
    clouds: float
    softness: float

    def gradient(self, direction: Array) -> Array:
        """Return the cloudless sky (n, 3) seen along unit directions (n, 3)."""
        height = np.clip(direction[:, 1], 0.0, 1.0)
        color = mix(self.horizon, self.zenith, 1.0 - np.exp(-4.2 * height))
        facing = np.clip(direction @ self.sun, 0.0, 1.0)
        glow = 0.22 * facing**5 + 0.35 * facing**40
        return np.asarray(color + self.sun_color * (0.32 * glow)[:, None])

    def surroundings(self, direction: Array) -> Array:
        """Return what a mirror would show (n, 3): sky above, a dark skyline, the ground below."""
        sky = self.gradient(direction)
        # Roofs and tree tops: without their waves every pane would be one flat grey.
        around = np.arctan2(direction[:, 0], direction[:, 2])
        tops = 0.17 + 0.07 * np.sin(5 * around + 1) + 0.04 * np.sin(13 * around)
        skyline = mix(sky, self.bounce * 0.55, smoothstep(0.04, -0.04, direction[:, 1] - tops))
        return mix(skyline, self.bounce * 1.1, smoothstep(0.0, -0.12, direction[:, 1]))


class Buffer:
    """The nearest surface at every pixel: flat arrays of rows * columns entries.

    depth is Z in metres (inf: sky), normal a unit vector, albedo linear RGB, gloss the mirror
    strength 0..1, leaf the see-through share 0..1, open the share of sky that reaches the spot.
    """

    def __init__(self, camera: Camera) -> None:
        """Start with nothing but sky."""
        count = camera.rows * camera.columns
        self.camera = camera
        self.depth = np.full(count, np.inf, np.float32)
        self.normal = np.zeros((count, 3), np.float32)
        self.albedo = np.zeros((count, 3), np.float32)
        self.gloss = np.zeros(count, np.float32)
        self.leaf = np.zeros(count, np.float32)
        self.open = np.ones(count, np.float32)
        self.ids = np.full(count, SKY, np.uint8)

    def put(
        self,
        index: Array,
        depth: Array,
        normal: Array,
        albedo: Array,
        class_id: int,
        gloss: Array | float = 0.0,
        leaf: float = 0.0,
        openness: Array | float = 1.0,
    ) -> None:
        """Write n surface samples at flat pixel indices; at each pixel the nearest one stays."""
        order = np.argsort(-depth, kind="stable")
        order = order[depth[order] < self.depth[index[order]]]
        # Far samples come first: of several for one pixel, the assignment keeps the last.
        where = index[order]
        self.depth[where] = depth[order]
        self.normal[where] = np.broadcast_to(normal, (len(index), 3))[order]
        self.albedo[where] = np.broadcast_to(albedo, (len(index), 3))[order]
        self.gloss[where] = np.broadcast_to(gloss, index.shape)[order]
        self.open[where] = np.broadcast_to(openness, index.shape)[order]
        self.leaf[where] = leaf
        self.ids[where] = class_id


class Shade:
    """Two maps of the ground plane: how high the sunlight is blocked, and what stands near.

    Moving a point along the sunlight onto the ground gives its cell in `top`, which holds the
    greatest height (metres) of anything on that ray: a point is in shadow when it lies lower.
    `near` is a plain map from above; blurred, it darkens the ground around whatever stands there.
    """

    CELL = 0.06
    LEFT, FRONT, SIZE = -48.0, -26.0, (1700, 1600)

    def __init__(self, light: Light) -> None:
        """Start with an empty plain in full light."""
        self.slope = light.sun[[0, 2]] / light.sun[1]
        self.softness = light.softness
        self.top = np.full(self.SIZE, -1.0, np.float32)
        self.near = np.zeros(self.SIZE, np.float32)

    def _cells(self, x: Array, z: Array) -> tuple[Array, Array]:
        row = np.floor((z - self.FRONT) / self.CELL).astype(np.int64)
        column = np.floor((x - self.LEFT) / self.CELL).astype(np.int64)
        return np.clip(row, 0, self.SIZE[0] - 1), np.clip(column, 0, self.SIZE[1] - 1)

    def add_points(self, points: Array) -> None:
        """Let solid points (n, 3) in world metres block the light."""
        height = points[:, 1].astype(np.float32)
        shifted = points[:, [0, 2]] - height[:, None] * self.slope
        np.maximum.at(self.top, self._cells(shifted[:, 0], shifted[:, 1]), height)
        low = points[height < 0.6]
        self.near[self._cells(low[:, 0], low[:, 2])] = 1.0

    def add_prism(self, corners: Array, heights: Array, shrink: Array) -> None:
        """Block the light with a stack of slabs: ground corners (n, 2), slab heights, scales."""
        page = Image.new("F", (self.SIZE[1], self.SIZE[0]), -1.0)
        draw = ImageDraw.Draw(page)
        middle = corners.mean(axis=0)
        for height, scale in zip(heights, shrink, strict=True):
            spots = middle + (corners - middle) * scale - height * self.slope
            cells = (spots - np.array([self.LEFT, self.FRONT])) / self.CELL
            draw.polygon([(float(x), float(y)) for x, y in cells], fill=float(height))
        np.maximum(self.top, np.asarray(page), out=self.top)
        flat = Image.new("F", (self.SIZE[1], self.SIZE[0]), 0.0)
        cells = (corners - np.array([self.LEFT, self.FRONT])) / self.CELL
        ImageDraw.Draw(flat).polygon([(float(x), float(y)) for x, y in cells], fill=1.0)
        np.maximum(self.near, np.asarray(flat), out=self.near)

    def sunlight(self, points: Array, rng: np.random.Generator) -> Array:
        """Return the share 0..1 (n,) of sunlight at world points (n, 3), with soft edges."""
        x = points[:, 0] - points[:, 1] * self.slope[0]
        z = points[:, 2] - points[:, 1] * self.slope[1]
        gap = np.clip(self.top[self._cells(x, z)] - points[:, 1], 0.0, 8.0)
        # A blocker far up the ray gives a wider half shadow; the floor hides the cell grid.
        radius = 0.035 + self.softness * (1.0 + gap)
        lit = np.zeros(len(points), np.float32)
        turn = rng.random(len(points), dtype=np.float32) * (2 * np.pi)
        for tap in range(6):
            angle, reach = turn + tap * 2.4, radius * np.sqrt((tap + 0.5) / 6)
            cells = self._cells(x + reach * np.cos(angle), z + reach * np.sin(angle))
            lit += self.top[cells] < points[:, 1] + 0.09 + 0.6 * self.softness
        return lit / 6

    def openness(self, points: Array) -> Array:
        """Return the share of sky light (n,) that what stands nearby leaves at points (n, 3)."""
        wide, tight = box_blur(self.near, 9), box_blur(self.near, 3)
        cells = self._cells(points[:, 0], points[:, 2])
        shut = 0.55 * wide[cells] + 0.45 * tight[cells]
        fade = np.exp(-2.5 * np.maximum(points[:, 1], 0.0))
        return np.asarray(1.0 - 0.85 * np.clip(1.3 * shut, 0, 1) * fade)


def draw_sky(light: Light, rays: Array, noise: Noise) -> Array:
    """Return the sky with clouds (n, 3) along rays (n, 3)."""
    unit = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    sky = light.gradient(unit)
    lift = np.clip(unit[:, 1], 0.0, 1.0) + 0.10
    x, y = 1.15 * unit[:, 0] / lift + 40.0, 1.15 * unit[:, 2] / lift + 60.0
    x = x + 0.5 * noise.fractal(x * 0.7, y * 0.7, 3)

    def density(dx: float, dy: float) -> Array:
        raw = noise.fractal(x + dx, y + dy, 6)
        return smoothstep(0.72 - 0.42 * light.clouds, 0.92 - 0.34 * light.clouds, raw)

    body = density(0.0, 0.0)
    toward = light.sun[[0, 2]] * 0.22
    shadow = density(float(toward[0]), float(toward[1])) * 0.8 + 0.25 * body
    # Broad swells keep a closed cloud cover from being one even grey.
    shadow = np.clip(shadow + 2.2 * (noise.fractal(x * 0.8, y * 0.8, 4) - 0.56), 0, 1)
    white = 0.42 * light.sun_color + 0.55 * light.horizon + 0.18
    grey = 0.50 * light.horizon + 0.24 * light.zenith
    cloud = mix(white, grey, shadow)
    fade = smoothstep(0.02, 0.16, unit[:, 1])
    return mix(sky, cloud, np.clip(body * (0.35 + 0.65 * fade), 0, 1) * 0.92)


def shade_scene(
    buffer: Buffer, light: Light, shade: Shade, noise: Noise, rng: np.random.Generator
) -> Array:
    """Light every pixel of the buffer; returns linear RGB (rows * columns, 3)."""
    color = draw_sky(light, buffer.camera.rays(np.arange(len(buffer.depth))), noise)
    index = np.flatnonzero(np.isfinite(buffer.depth))
    rays, depth = buffer.camera.rays(index), buffer.depth[index]
    points = rays * depth[:, None]
    points[:, 1] += buffer.camera.height
    normal, leaf = buffer.normal[index], buffer.leaf[index]
    view = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    # The small shift off the surface keeps a surface from shading itself.
    lit = shade.sunlight(points + 0.07 * normal, rng)
    facing = normal @ light.sun
    direct = np.maximum(facing, 0.0) * (1 - 0.35 * leaf) + leaf * 0.30 * np.abs(facing)
    open_sky = buffer.open[index] * shade.openness(points)
    up = 0.5 + 0.5 * normal[:, 1]
    ambient = mix(light.bounce, 0.55 * light.zenith + 0.45 * light.horizon, up)
    total = ambient * (0.95 * open_sky)[:, None]
    # Direct light also loses a little in nooks: leaf masses and window reveals need it.
    total = total + light.sun_color * (direct * lit * (0.35 + 0.65 * buffer.open[index]))[:, None]
    surface = buffer.albedo[index] * total
    gloss = buffer.gloss[index]
    cosine = -(normal * view).sum(axis=1)
    mirror = view + 2 * cosine[:, None] * normal
    strength = gloss * (0.07 + 0.75 * (1 - np.clip(cosine, 0, 1)) ** 4)
    glint = gloss * lit * 2.2 * np.clip(mirror @ light.sun, 0, 1) ** 180
    surface = mix(surface, light.surroundings(mirror), np.clip(strength * open_sky, 0, 1))
    surface = surface + light.sun_color * glint[:, None]
    far = 1.0 - np.exp(-light.haze * np.maximum(depth - 6.0, 0.0))
    level = view * np.array([1.0, 0.0, 1.0], np.float32)
    level[:, 1] = 0.03
    veil = light.gradient(level / np.linalg.norm(level, axis=1, keepdims=True))
    color[index] = mix(surface, veil * 0.92, far)
    return color


def count_ids(buffer: Buffer, factor: int) -> Array:
    """Return the class ids (h, w) uint8 of the final picture from the oversampled buffer.

    A car, a person or an unlabelled thing owns a pixel that it covers by half; elsewhere the
    most frequent of the other classes in the pixel and its neighbours wins, which closes
    pinholes between leaves the way a person who draws masks would.
    """
    rows, columns = buffer.camera.rows // factor, buffer.camera.columns // factor
    ids = buffer.ids.reshape(rows, factor, columns, factor)
    shares = {k: (ids == k).mean(axis=(1, 3), dtype=np.float32) for k in [*range(7), IGNORE]}
    soft = []
    for k in range(5):
        pad = np.pad(shares[k], 1, mode="edge")
        ring = sum(pad[r : r + rows, c : c + columns] for r in range(3) for c in range(3))
        soft.append(0.5 * shares[k] + ring)
    result = np.argmax(np.stack(soft), axis=0).astype(np.uint8)
    front = np.stack([shares[CAR], shares[PERSON], shares[IGNORE]])
    owner = np.array([CAR, PERSON, IGNORE], np.uint8)[np.argmax(front, axis=0)]
    return np.asarray(np.where(front.sum(axis=0) >= 0.5, owner, result))


def develop(color: Array, camera: Camera, factor: int, rng: np.random.Generator) -> Array:
    """Turn linear RGB (rows * columns, 3) into a photograph (h, w, 3) uint8."""
    rows, columns = camera.rows // factor, camera.columns // factor
    luma = color @ np.array([0.25, 0.65, 0.10], np.float32)
    exposed = color * (0.275 / np.exp(np.log(np.maximum(luma, 0.02)).mean()))
    film = exposed * (2.51 * exposed + 0.03) / (exposed * (2.43 * exposed + 0.59) + 0.14)
    film = np.clip(film, 0.0, 1.0).reshape(rows, factor, columns, factor, 3)
    small = film.mean(axis=(1, 3)).astype(np.float32)
    pad = np.pad(small, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = 0.12 * pad[:, :-2] + 0.76 * pad[:, 1:-1] + 0.12 * pad[:, 2:]
    small = 0.12 * across[:-2] + 0.76 * across[1:-1] + 0.12 * across[2:]
    bright = np.maximum(small - 0.72, 0.0)
    bloom = np.stack([box_blur(bright[..., c], 5) for c in range(3)], axis=-1)
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    vignette = 1.0 - 0.17 * (x**2 + y**2) ** 1.2 / 2**1.2 * 2
    photo = np.clip((small + 0.25 * bloom) * vignette[..., None], 0, 1) ** (1 / 2.2)
    # A gentle S-curve for contrast, and slightly muted colours.
    photo = photo + 0.22 * (photo * photo * (3 - 2 * photo) - photo)
    photo = 0.93 * photo + 0.07 * photo.mean(axis=2, keepdims=True)
    grain = rng.normal(0, 1, photo.shape) * 0.003 + rng.normal(0, 0.0065, (rows, columns, 1))
    photo = photo + grain * (1.15 - 0.6 * photo)
    return np.asarray(np.clip(np.rint(photo * 255), 0, 255).astype(np.uint8))
