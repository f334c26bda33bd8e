"""The buildings of the sample scenes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scene_ground import Street
from scene_light import (
    BUILDING,
    UP,
    Array,
    Buffer,
    Noise,
    Shade,
    mix,
    smoothstep,
)

# Normal and offset: inside is where the product of normal and point is less than the offset.
Plane = tuple[Array, float]

_WALLS = [
    (0.42, 0.17, 0.11), (0.52, 0.42, 0.30), (0.60, 0.55, 0.46), (0.36, 0.25, 0.18),
    (0.55, 0.31, 0.20), (0.40, 0.40, 0.40), (0.60, 0.45, 0.24), (0.48, 0.36, 0.33),
    (0.34, 0.13, 0.10), (0.56, 0.50, 0.44),
]  # fmt: skip
_ROOFS = [(0.24, 0.085, 0.05), (0.09, 0.085, 0.09), (0.16, 0.12, 0.10), (0.12, 0.13, 0.15)]


@dataclass
class House:
    """A block in road coordinates: u and v ranges and wall height in metres, and its looks."""

    u: tuple[float, float]
    v: tuple[float, float]
    height: float
    gable: float
    wall: Array
    roof: Array
    trim: Array
    cell: float
    floor: float
    shop: bool
    brick: bool
    salt: int


def make_house(
    rng: np.random.Generator, u: tuple[float, float], v: tuple[float, float], floors: int
) -> House:
    """Return a random house on a plot."""
    floor = float(rng.uniform(2.8, 3.2))
    wall = np.array(_WALLS[int(rng.integers(len(_WALLS)))], np.float32) * rng.uniform(0.65, 1.0)
    gable = float(rng.uniform(0.5, 0.8)) if rng.random() < 0.55 else 0.0
    trim = np.array([0.58, 0.56, 0.52], np.float32) * rng.uniform(0.6, 1.1)
    roof = np.array(_ROOFS[int(rng.integers(len(_ROOFS)))], np.float32)
    return House(
        u, v, floor * floors + 0.7, gable, wall, roof, trim, float(rng.uniform(2.1, 2.9)), floor,
        bool(rng.random() < 0.35), bool(wall[0] > 1.6 * wall[2]), int(rng.integers(1000)),
    )  # fmt: skip


def _hit_block(origin: Array, rays: Array, planes: list[Plane]) -> tuple[Array, Array]:
    """Return entry depths (n,), inf for a miss, and entered plane numbers of a convex block."""
    enter = np.full(len(rays), -np.inf, np.float32)
    leave = np.full(len(rays), np.inf, np.float32)
    face = np.zeros(len(rays), np.int64)
    for number, (normal, offset) in enumerate(planes):
        slope = rays @ normal
        with np.errstate(divide="ignore"):
            t = (offset - float(origin @ normal)) / slope
        later = (slope < 0) & (t > enter)
        enter, face = np.where(later, t, enter), np.where(later, number, face)
        leave = np.where(slope > 0, np.minimum(leave, t), leave)
    return np.where((enter < leave) & (enter > 0.1), enter, np.inf).astype(np.float32), face


def _block_faces(
    buffer: Buffer, index: Array, planes: list[Plane]
) -> tuple[Array, Array, Array, Array, Array]:
    """Return hit pixels, depths, world points, normals and plane numbers of a convex block."""
    origin, rays = np.array([0, buffer.camera.height, 0], np.float32), buffer.camera.rays(index)
    depth, face = _hit_block(origin, rays, planes)
    hit = np.isfinite(depth)
    points = origin + rays[hit] * depth[hit, None]
    normals = np.array([normal for normal, _ in planes], np.float32)[face[hit]]
    return index[hit], depth[hit], points, normals, face[hit]


def draw_house(buffer: Buffer, shade: Shade, street: Street, house: House, noise: Noise) -> None:
    """Draw walls and roof of a house and let it block light."""
    (ux, uz), (vx, vz) = street.axes()
    across, along = np.array([ux, 0, uz], np.float32), np.array([vx, 0, vz], np.float32)
    # Offsets of the planes are measured from the world origin, where u is -shift.
    (u0, u1), (v0, v1) = house.u, house.v
    left, right = u0 + street.shift, u1 + street.shift
    walls = [(across, right), (-across, -left), (along, v1), (-along, -v0)]
    spots = [street.to_world(u, v) for u, v in ((u0, v0), (u0, v1), (u1, v1), (u1, v0))]
    corners = np.array(spots)
    levels = np.arange(0.2, house.height, 0.2)
    shade.add_prism(corners, levels, np.ones(len(levels)))
    half = min(u1 - u0, v1 - v0) / 2
    wide = corners.mean(0) + (corners - corners.mean(0)) * 1.1
    top = house.height + house.gable * half + 1.0
    index = buffer.camera.window(np.array([(x, y, z) for x, z in wide for y in (0.0, top)]))
    if not len(index):
        return
    block = [*walls, (UP, house.height), (-UP, 0.5)]
    cells, depth, points, normals, face = _block_faces(buffer, index, block)
    lateral = np.where(face < 2, points @ along - v0, points @ across - left)
    length = np.where(face < 2, v1 - v0, u1 - u0)
    albedo, gloss, openness = _facade(house, noise, lateral, points[:, 1], length, face, depth)
    buffer.put(cells, depth, normals, albedo, BUILDING, gloss, 0.0, openness)
    if house.gable > 0:
        _draw_roof(buffer, house, noise, index, walls)
        _draw_chimney(buffer, house, index, walls, half)
        levels = np.arange(house.height, house.height + house.gable * half, 0.2)
        shade.add_prism(corners, levels, 1 - (levels - levels[0]) / (house.gable * half) * 0.9)
    else:
        rim = [(normal, offset + 0.18) for normal, offset in walls]
        block = [*rim, (UP, house.height + 0.25), (-UP, 0.2 - house.height)]
        cells, depth, _, normals, _ = _block_faces(buffer, index, block)
        buffer.put(cells, depth, normals, house.trim * 0.9, BUILDING)


def _draw_roof(
    buffer: Buffer, house: House, noise: Noise, index: Array, walls: list[Plane]
) -> None:
    """Draw a hipped roof with eaves: four sloping planes over the walls."""
    planes, scale = [], float(np.hypot(1, house.gable))
    for normal, offset in walls:
        tilted = ((normal * house.gable + UP) / scale).astype(np.float32)
        planes.append((tilted, (offset * house.gable + house.height + 0.05) / scale))
        planes.append((normal, offset + 0.35))
    planes.append((-UP, 0.22 - house.height))
    cells, depth, points, normals, face = _block_faces(buffer, index, planes)
    tiled = (face % 2 == 0) & (face < 8)
    rows = points[:, 1] / 0.16
    course = 0.82 + 0.18 * (rows % 1.0) / (1 + depth / 40)
    side = np.where(face < 4, points @ walls[2][0], points @ walls[0][0])
    tone = course * (0.72 + 0.56 * noise.fractal(side * 1.5, points[:, 1] * 1.5, 4))
    tone *= 0.85 + 0.3 * noise.cell(np.floor(side / 0.3), np.floor(rows))
    albedo = np.where(tiled[:, None], house.roof * tone[:, None], house.trim * 0.8)
    buffer.put(cells, depth, normals, albedo.astype(np.float32), BUILDING)


def _draw_chimney(
    buffer: Buffer, house: House, index: Array, walls: list[Plane], half: float
) -> None:
    """Draw a brick chimney through the ridge."""
    top = house.height + house.gable * half + 0.6
    (across, right), (back, left), (along, end), (front, start) = walls
    # An offset of an opposite wall counts in the other direction.
    u = (right - left) / 2
    v = -start + half + (0.1 + 0.8 * (house.salt % 7) / 7) * max(end + start - 2 * half, 0.0)
    sides = [(across, u + 0.45), (back, 0.45 - u), (along, v + 0.55), (front, 0.55 - v)]
    block = [*sides, (UP, top), (-UP, -house.height)]
    cells, depth, points, normals, _ = _block_faces(buffer, index, block)
    high = points[:, 1]
    tone = np.where(high > top - 0.2, 1.1, np.where(high % 0.16 < 0.04, 0.75, 0.95))
    color = np.array([0.28, 0.14, 0.10]) * tone[:, None]
    buffer.put(cells, depth, normals, color.astype(np.float32), BUILDING)


def _facade(
    house: House, noise: Noise, a: Array, y: Array, length: Array, face: Array, depth: Array
) -> tuple[Array, Array, Array]:
    """Return colour (n, 3), gloss (n,) and openness (n,) of wall points.

    a is metres along the wall (n,), y the height, face the number of the wall.
    """
    salt = house.salt + 37 * face
    stain = noise.fractal(a * 0.5 + salt, y * 0.25 + salt, 5) - 0.5
    fine = (noise.fractal(a * 7 + salt, y * 7, 3) - 0.5) / (1 + depth / 30)
    tone = 1 + 0.55 * stain + 0.35 * fine - 0.20 * np.exp(-y / 0.5)
    tone = tone - 0.14 * smoothstep(1.2, 0.2, house.height - y) * noise.value(a * 3 + salt, y * 0.2)
    albedo = house.wall * tone[:, None]
    if house.brick:
        row = np.floor(y / 0.15)
        stone = noise.cell(np.floor(a / 0.45 + 0.5 * (row % 2)), row + salt) - 0.5
        mortar = (y % 0.15 < 0.03) | ((a + 0.225 * (row % 2)) % 0.45 < 0.03)
        fade = 1 / (1 + (depth / 22) ** 2)
        albedo = albedo * (1 + 0.6 * stone * fade)[:, None]
        albedo = mix(albedo, np.array([0.40, 0.37, 0.33], np.float32), 0.5 * mortar * fade)
    gloss, openness = np.zeros(len(a), np.float32), np.ones(len(a), np.float32)
    _bands(house, albedo, openness, y)
    _windows(house, noise, a, y, length, salt, (albedo, gloss, openness))
    return albedo.astype(np.float32), gloss, openness


def _bands(house: House, albedo: Array, openness: Array, y: Array) -> None:
    """Paint plinth, string courses and cornice into albedo and openness, in place."""
    albedo[y < 0.45] = house.trim * 0.55
    course = ((y - 0.5) % house.floor < 0.16) & (y > 1.0)
    if house.salt % 2:
        albedo[course] = house.trim * 0.85
    under = ((y - 0.5) % house.floor > house.floor - 0.10) & (y > 1.0)
    openness[under & bool(house.salt % 2)] = 0.7
    albedo[y > house.height - 0.30] = house.trim
    openness[(y > house.height - 0.55) & (y <= house.height - 0.30)] = 0.55


@dataclass(frozen=True)
class _Grid:
    """Where wall points (n,) lie in the window grid of a facade; lengths in metres.

    inside is the distance into the nearest opening, negative on the wall; across is measured from
    the middle of its column, up from the floor of its level; luck is one number per opening.
    """

    inside: Array
    across: Array
    up: Array
    half: Array
    low: Array
    high: Array
    luck: Array
    ground: Array
    door: Array
    valid: Array


def _measure(house: House, noise: Noise, a: Array, y: Array, length: Array, salt: Array) -> _Grid:
    """Return the window grid at a metres along the wall and height y."""
    count = np.maximum(np.floor((length - 0.8) / house.cell), 1)
    place = (a - (length - count * house.cell) / 2) / house.cell
    column, across = np.floor(place), (place % 1.0 - 0.5) * house.cell
    level = np.floor((y - 0.5) / house.floor)
    up = (y - 0.5) - level * house.floor
    valid = (column >= 0) & (column < count) & (level >= 0) & (y < house.height - 0.5)
    ground = level == 0
    shop = ground & house.shop
    half = np.where(shop, house.cell * 0.44, 0.36 * house.cell - 0.22)
    low, high = np.where(shop, 0.35, 0.95), np.where(shop, 2.35, 2.40)
    luck = noise.cell(column + salt, level * 3 + salt)
    door = ground & (luck > 0.82)
    low, half = np.where(door, -0.2, low), np.where(door, 0.55, half)
    inside = np.minimum(half - np.abs(across), np.minimum(up - low, high - up))
    inside = np.where(valid, inside, -1.0)
    return _Grid(inside, across, up, half, low, high, luck, ground, door, valid)


def _windows(
    house: House, noise: Noise, a: Array, y: Array, length: Array, salt: Array,
    surface: tuple[Array, Array, Array],
) -> None:  # fmt: skip
    """Paint window grid, doors and shop fronts into albedo, gloss and openness, in place."""
    albedo, gloss, openness = surface
    grid = _measure(house, noise, a, y, length, salt)
    albedo[(grid.inside > -0.13) & (grid.inside <= 0)] = house.trim
    ledge = grid.valid & ~grid.door & (np.abs(grid.across) < grid.half + 0.15)
    albedo[ledge & (np.abs(grid.up - grid.low + 0.06) < 0.07)] = house.trim * 1.05
    openness[ledge & (np.abs(grid.up - grid.low + 0.22) < 0.09)] *= 0.6
    _panes(grid, noise, a, y, salt, surface)
    pane = grid.inside > 0
    bars = (np.abs(grid.up - grid.low - 1.0) < 0.03) & ~grid.ground
    frame = pane & ((grid.inside < 0.07) | (np.abs(grid.across) < 0.035) | bars)
    albedo[frame], gloss[frame] = house.trim * 1.1, 0.1
    panel = pane & grid.door & (grid.up < 2.0)
    paint = np.stack([(grid.luck * k) % 1 for k in (11, 23, 47)], axis=1) * 0.22 + 0.03
    albedo[panel], gloss[panel] = paint[panel], 0.15
    openness[panel & (np.abs(np.abs(grid.across) - 0.25) < 0.03)] = 0.4
    if house.shop:
        awning = (y > 2.95) & (y < 3.45) & (np.abs(a - length / 2) < length / 2 - 0.4)
        stripe = np.where((a / 0.35) % 2 < 1, 1.0, 0.55)
        albedo[awning] = (stripe[:, None] * (0.12 + 0.4 * np.roll(house.wall, 1)))[awning]
        openness[(y > 2.6) & (y <= 2.95)] *= 0.6


def _panes(
    grid: _Grid, noise: Noise, a: Array, y: Array, salt: Array, surface: tuple[Array, Array, Array]
) -> None:
    """Paint glass with curtains or a dark room behind it, in place."""
    (albedo, gloss, openness), pane, luck = surface, grid.inside > 0, grid.luck
    room = 0.012 + 0.06 * noise.value(a * 1.7 + salt, y * 1.3 + luck * 90) ** 2
    curtain = np.abs(grid.across) > grid.half * (0.45 + 0.5 * ((luck * 7) % 1))
    curtain |= grid.high - grid.up < 1.3 * ((luck * 13) % 1) ** 2
    glass = np.where(curtain & (luck < 0.75), 0.20 + 0.12 * ((luck * 29) % 1), room)
    albedo[pane] = glass[pane, None] * np.array([1.0, 0.97, 0.92], np.float32)
    # Some panes happen to face a bright part of the sky.
    gloss[pane] = (0.7 + 2.6 * ((luck * 17) % 1) ** 2)[pane]
    # The reveal hides the upper and one lateral strip of the pane from the sky.
    reveal = pane & ((grid.high - grid.up < 0.20) | (grid.across + grid.half < 0.13))
    openness[pane], openness[reveal] = 0.75, 0.30
