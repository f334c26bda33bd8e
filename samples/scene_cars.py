"""The cars of the sample scenes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scene_light import CAR, Array, box_blur, smoothstep
from scene_solids import Coat, Solid, capsule, round_join

# Side views (x, y) in metres, clockwise from the tail; then the belt line, axle x, wheel radius.
_HATCH = (
    [(-1.93, 0.30), (-2.0, 0.60), (-1.95, 0.92), (-1.72, 1.30), (-1.50, 1.45), (-0.9, 1.50),
     (0.0, 1.49), (0.36, 1.40), (1.08, 0.97), (1.72, 0.83), (1.98, 0.68), (2.02, 0.38),
     (1.92, 0.24), (-1.83, 0.24)], 0.93, (-1.24, 1.30), 0.31,
)  # fmt: skip
_SEDAN = (
    [(-2.22, 0.32), (-2.28, 0.70), (-2.2, 0.96), (-1.62, 1.01), (-1.02, 1.37), (-0.55, 1.44),
     (0.10, 1.44), (0.42, 1.37), (1.06, 0.97), (1.88, 0.84), (2.2, 0.67), (2.24, 0.36),
     (2.1, 0.23), (-2.1, 0.23)], 0.94, (-1.36, 1.40), 0.32,
)  # fmt: skip
_WAGON = (
    [(-2.14, 0.38), (-2.2, 0.75), (-2.14, 1.05), (-1.96, 1.52), (-1.75, 1.66), (-1.0, 1.71),
     (0.05, 1.70), (0.42, 1.60), (1.04, 1.12), (1.80, 1.00), (2.12, 0.80), (2.15, 0.42),
     (2.03, 0.30), (-2.03, 0.30)], 1.06, (-1.30, 1.34), 0.36,
)  # fmt: skip

_PAINTS = [
    (0.42, 0.025, 0.022), (0.03, 0.10, 0.36), (0.50, 0.51, 0.52), (0.72, 0.71, 0.68),
    (0.028, 0.03, 0.034), (0.02, 0.13, 0.085), (0.62, 0.36, 0.03), (0.10, 0.28, 0.40),
    (0.30, 0.045, 0.06), (0.20, 0.21, 0.22), (0.48, 0.13, 0.025),
]  # fmt: skip
_STEP = 0.02


def _side_map(outline: list[tuple[float, float]]) -> Array:
    """Return signed distances of a side view on a 2 cm grid from (-2.8, -0.3) metres upward."""
    y, x = np.mgrid[-0.3:2.3:_STEP, -2.8:2.8:_STEP]
    points = np.array(outline)
    inside = Image.new("L", (x.shape[1], x.shape[0]))
    cells = [((px + 2.8) / _STEP, (py + 0.3) / _STEP) for px, py in outline]
    ImageDraw.Draw(inside).polygon(cells, fill=1)
    best = np.full(x.shape, 9.0)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        t = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        best = np.minimum(best, np.hypot(x - ax - t * ex, y - ay - t * ey))
    signed = np.where(np.asarray(inside) > 0, -best, best).astype(np.float32)
    # The blur rounds the corners of the outline: sheet metal has none.
    return box_blur(signed, 2)


def _look_up(table: Array, x: Array, y: Array) -> Array:
    """Return bilinear samples (n,) of a side map at local x, y."""
    column = np.clip((x + 2.8) / _STEP, 0, table.shape[1] - 2.001)
    row = np.clip((y + 0.3) / _STEP, 0, table.shape[0] - 2.001)
    c, r = column.astype(np.int64), row.astype(np.int64)
    fx, fy = column - c, row - r
    upper = table[r, c] * (1 - fx) + table[r, c + 1] * fx
    lower = table[r + 1, c] * (1 - fx) + table[r + 1, c + 1] * fx
    return np.asarray(upper * (1 - fy) + lower * fy)


@dataclass(frozen=True)
class _Car:
    """Measures of one car in metres, its side map and its lacquer (3,)."""

    table: Array
    roof: float
    belt: float
    axles: tuple[float, float]
    wheel: float
    color: Array

    def side(self, p: Array) -> Array:
        """Return how far (n,) points lie outside the side view."""
        return _look_up(self.table, p[:, 0], p[:, 1])

    def hub(self, p: Array) -> Array:
        """Return the distance (n,) to the nearer axle in the side view."""
        rear, front = (np.hypot(p[:, 0] - x, p[:, 1] - self.wheel) for x in self.axles)
        return np.minimum(rear, front)

    def width(self, p: Array) -> Array:
        """Return the half width (n,) of the body: it leans in to the roof, the ends, the sill."""
        lean = 0.22 * smoothstep(self.belt - 0.05, self.roof + 0.1, p[:, 1])
        ends = 0.16 * (np.abs(p[:, 0]) / 2.2) ** 5
        sill = 0.06 * smoothstep(0.5, 0.2, p[:, 1])
        return np.asarray(0.89 - lean - ends - sill)

    def distance(self, p: Array) -> tuple[Array, Array]:
        """Return distances and parts: 0 body, 1 wheel, 2 mirror."""
        aside, hub = np.abs(p[:, 2]), self.hub(p)
        body = round_join(self.side(p), aside - self.width(p), 0.09)
        arch = np.maximum(hub - self.wheel - 0.055, 0.56 - aside)
        body = np.maximum(body, -arch)
        thick = np.abs(aside - 0.755) - 0.105
        # A shallow dish in the rim gives the wheel its own light and dark.
        dish = 0.03 * smoothstep(self.wheel * 0.70, self.wheel * 0.55, hub) * (aside > 0.75)
        tyre = round_join(hub - self.wheel, thick + dish, 0.04)
        ear = np.stack([p[:, 0], p[:, 1], aside], axis=1)
        inner, outer = np.array([0.72, 0.05, 0.90]), np.array([0.70, 0.05, 0.98])
        lift = np.array([0.0, self.belt, 0.0])
        mirror = capsule(ear, inner + lift, outer + lift, 0.07, 0.075)
        shell = np.minimum(body, mirror)
        part = np.where(tyre < shell, 1, np.where(mirror < body, 2, 0))
        return np.minimum(shell, tyre) * 0.9, part

    def paint(self, p: Array, normal: Array, part: Array) -> Coat:
        """Colour a car by the place on its body: lacquer, glass, lamps, seams, wheels."""
        albedo = np.broadcast_to(self.color, p.shape).copy()
        gloss = np.full(len(p), 0.75, np.float32)
        shade = (0.55 + 0.45 * smoothstep(0.15, 0.6, p[:, 1])).astype(np.float32)
        coat = Coat(albedo, gloss, shade)
        flank = np.abs(normal[:, 2]) > 0.55
        self._panels(coat, p, flank)
        self._glass(coat, p, normal, flank)
        self._ends(coat, p, normal)
        self._wheels(coat, p, normal, part)
        return coat

    def _panels(self, coat: Coat, p: Array, flank: Array) -> None:
        """Paint sills, bumpers, moulding, door and bonnet seams and handles."""
        x, y, aside = p[:, 0], p[:, 1], np.abs(p[:, 2])
        ends, dark = np.abs(x) > 1.65, (0.03, 0.03, 0.032)
        coat.dye((y < 0.36) | ((y < 0.46) & ends & ~flank), dark, 0.15)
        door = flank & (y > 0.40) & (y < self.belt + 0.02)
        for line in (-0.72, 0.18, 0.98):
            coat.albedo[door & (np.abs(x - line + 0.10 * (y - 0.6)) < 0.016)] *= 0.25
        for line in (-0.73, 0.15):
            handle = door & (np.abs(x - line) < 0.10) & (np.abs(y - self.belt + 0.13) < 0.022)
            coat.dye(handle, (0.2, 0.2, 0.2), 0.6)
        coat.dye(flank & (np.abs(y - 0.56) < 0.022), (0.04, 0.04, 0.042), 0.3)
        bonnet = (x > 0.9) & (y < self.belt + 0.06) & (y > self.belt - 0.15) & ~flank
        coat.albedo[bonnet & (np.abs(aside - 0.70) < 0.014)] *= 0.25
        lid = (x < -1.6) & ~flank & (y < self.belt) & (y > 0.48)
        coat.albedo[lid & (np.abs(aside - 0.74) < 0.014)] *= 0.25
        coat.albedo[ends & (np.abs(y - self.belt + 0.37) < 0.013)] *= 0.35

    def _glass(self, coat: Coat, p: Array, normal: Array, flank: Array) -> None:
        """Paint side windows between their pillars, and both screens."""
        x, y, aside, side = p[:, 0], p[:, 1], np.abs(p[:, 2]), self.side(p)
        above = y > self.belt + 0.035
        pillar = np.minimum(np.abs(x + 0.32 + 0.04 * (y - self.belt)), np.abs(x + 1.32)) < 0.045
        panes = flank & above & (side < -0.10) & ~pillar
        slope = ~flank & above & (np.abs(normal[:, 0]) > 0.30) & (y < self.roof - 0.09)
        width = self.width(p)
        screens = slope & (aside < width - 0.10)
        coat.dye(panes | screens, (0.018, 0.021, 0.024), 1.0)
        # Through the screens one sees the other windows, with dark head rests before them.
        deep = screens & (y > self.belt + 0.12) & (y < self.roof - 0.14) & (aside < width - 0.2)
        rest = (np.abs(aside - 0.36) < 0.13) & (y < self.belt + 0.34)
        coat.albedo[deep & ~rest] = (0.045, 0.05, 0.053)
        seat = (y < self.belt + 0.22) & (np.abs(np.abs(x + 0.25) - 0.45) < 0.13)
        coat.albedo[panes & seat] = 0.008
        frame = flank & above & (side >= -0.10) & (side < -0.075)
        coat.dye(frame, (0.03, 0.03, 0.03), 0.4)

    def _ends(self, coat: Coat, p: Array, normal: Array) -> None:
        """Paint head lamps, grille, tail lamps and number plates."""
        x, y, aside = p[:, 0], p[:, 1], np.abs(p[:, 2])
        lift, spread = y - (self.belt - 0.25), aside - 0.58
        tip = np.flatnonzero((self.table < 0).any(axis=0))[[0, -1]] * _STEP - 2.8
        front = (x > 1.6) & (normal[:, 0] > 0.15) & (np.abs(lift) < 0.085)
        coat.dye(front & (aside > 0.44), (0.03, 0.03, 0.03), 0.8)
        lamp = front & (aside > 0.47) & (aside < 0.78) & (np.abs(lift) < 0.062)
        coat.dye(lamp, (0.58, 0.59, 0.58), 1.0)
        coat.dye(lamp & (np.hypot(spread, lift) < 0.045), (0.25, 0.26, 0.27), 1.0)
        coat.dye(front & (aside < 0.40) & (y % 0.05 < 0.034), (0.015, 0.015, 0.016), 0.4)
        intake = (x > 1.6) & (normal[:, 0] > 0.4) & (aside < 0.62) & (np.abs(y - 0.40) < 0.035)
        coat.dye(intake, (0.012, 0.012, 0.012), 0.1)
        back = (x < tip[0] + 0.20) & (normal[:, 0] < 0.1) & (aside > 0.50)
        back &= np.abs(lift - 0.04) < 0.10
        coat.dye(back, (0.34, 0.01, 0.01), 0.9)
        coat.dye(back & (aside < 0.66) & (np.abs(lift - 0.02) < 0.022), (0.5, 0.42, 0.34), 0.9)
        plate = (np.abs(normal[:, 0]) > 0.6) & (aside < 0.25) & (np.abs(y - 0.54) < 0.055)
        coat.dye(plate & (np.abs(x) > 1.6), (0.50, 0.49, 0.44), 0.2)

    def _wheels(self, coat: Coat, p: Array, normal: Array, part: Array) -> None:
        """Paint black wheel arches, tyres and five-spoked rims."""
        x, y, aside, hub = p[:, 0], p[:, 1], np.abs(p[:, 2]), self.hub(p)
        across = np.maximum(np.abs(normal[:, 0]), np.abs(normal[:, 2]))
        arch = (part == 0) & (hub < self.wheel + 0.07) & (aside < 0.80)
        coat.dye(arch & ((aside < 0.62) | (across < 0.55)), (0.008, 0.008, 0.008), 0.0)
        tyre = part == 1
        coat.dye(tyre, (0.022, 0.022, 0.023), 0.06)
        coat.openness[tyre] = 0.6
        centre = np.where(x < 0, self.axles[0], self.axles[1])
        spoke = np.cos(5 * np.arctan2(y - self.wheel, x - centre)) > -0.35
        rim = tyre & (hub < self.wheel * 0.68) & (aside > 0.76)
        metal = spoke | (hub > self.wheel * 0.58) | (hub < 0.07)
        coat.dye(rim & metal, (0.36, 0.37, 0.38), 0.5)


def make_car(rng: np.random.Generator) -> Solid:
    """Return a random car: hatchback, saloon or tall wagon, about 4 to 4.5 m long."""
    outline, belt, axles, wheel = (_HATCH, _SEDAN, _WAGON)[int(rng.integers(3))]
    color = np.array(_PAINTS[int(rng.integers(len(_PAINTS)))], np.float32)
    roof = max(y for _, y in outline)
    car = _Car(_side_map(outline), roof, belt, axles, wheel, color)
    return Solid(car.distance, (2.35, roof + 0.05, 1.08), car.paint, CAR)
