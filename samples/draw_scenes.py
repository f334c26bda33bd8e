"""Draw the sample data set: street and park scenes with exact class masks.

    python samples/draw_scenes.py [FOLDER]

writes FOLDER/{train,val}/{images,masks} and FOLDER/classes.toml (default: the folder of this
file).  Everything is computed from fixed seeds, so that the same library versions give the same
bytes.  Images are RGB JPEG files; masks are palette PNG files of the same size and stem whose
pixel values are class ids, 255 where no class is right.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scene_cars import make_car
from scene_ground import Street, draw_ground, grow_blades
from scene_houses import draw_house, make_house
from scene_light import (
    IGNORE,
    Array,
    Buffer,
    Camera,
    Light,
    Noise,
    Shade,
    count_ids,
    develop,
    shade_scene,
)
from scene_people import make_person
from scene_solids import make_bin, place
from scene_trees import draw_bush, draw_tree

CLASSES = {
    "sky": (112, 169, 214),
    "building": (176, 122, 98),
    "road": (92, 92, 104),
    "grass": (142, 188, 92),
    "tree": (46, 120, 70),
    "car": (206, 52, 60),
    "person": (244, 190, 60),
}
SPLITS = {"train": (24, 1000), "val": (8, 5000)}
FACTOR = 2
# The least share of the picture for sky, building, road, grass, tree, car and person.
LEAST = (0.06, 0.04, 0.08, 0.06, 0.04, 0.016, 0.010)


@dataclass
class Plan:
    """What stands where: the street, and spots (x, z, radius) in metres that are taken."""

    street: Street
    camera: Camera
    layout: str
    taken: list[tuple[float, float, float]] = field(default_factory=list)

    def free(self, x: float, z: float, radius: float) -> bool:
        """Say whether a thing fits here, and if so take the spot."""
        if any(np.hypot(x - a, z - b) < radius + r for a, b, r in self.taken):
            return False
        self.taken.append((x, z, radius))
        return True

    def column(self, x: float, z: float) -> float:
        """Return where world x, z lies across the picture: 0 left edge, 1 right edge."""
        return 0.5 + self.camera.focal * x / max(z, 0.1) / self.camera.columns


def choose_light(rng: np.random.Generator, kind: str) -> Light:
    """Return the light of a time of day: noon, golden, overcast or haze."""
    heights = {"noon": (42, 60), "golden": (17, 27), "overcast": (45, 65), "haze": (28, 42)}
    tones = {
        "noon": ((3.1, 2.9, 2.55), (0.17, 0.36, 0.80), (0.62, 0.78, 0.95), 0.004, 0.012),
        "golden": ((3.3, 2.05, 1.05), (0.22, 0.36, 0.66), (0.90, 0.70, 0.50), 0.007, 0.016),
        "overcast": ((0.55, 0.54, 0.52), (0.66, 0.70, 0.76), (0.84, 0.86, 0.88), 0.007, 0.12),
        "haze": ((2.3, 2.0, 1.6), (0.40, 0.54, 0.76), (0.84, 0.85, 0.85), 0.0115, 0.03),
    }
    color, zenith, horizon, haze, softness = tones[kind]
    lift = np.radians(rng.uniform(*heights[kind]))
    around = np.radians(rng.uniform(62, 150)) * rng.choice([-1, 1])
    flat = np.cos(lift)
    sun = np.array([np.sin(around) * flat, np.sin(lift), np.cos(around) * flat], np.float32)
    clouds = {"noon": (0.25, 0.6), "golden": (0.3, 0.6), "overcast": (0.9, 1.0), "haze": (0.2, 0.5)}
    jitter = rng.uniform(0.95, 1.05, 3)
    tint = np.array(color, np.float32)
    bounce = (
        0.16
        * np.array([1.0, 0.98, 0.86])
        * (0.45 * tint * float(np.sin(lift)) + 0.5 * np.array(horizon))
    )
    return Light(
        sun, tint * jitter.astype(np.float32), np.array(zenith, np.float32),
        np.array(horizon, np.float32), bounce.astype(np.float32), haze,
        float(rng.uniform(*clouds[kind])), softness,
    )  # fmt: skip


def choose_view(rng: np.random.Generator, number: int) -> tuple[Camera, Street, str]:
    """Return camera and street; every third view looks across the street, some are portrait."""
    rows, columns = int(rng.integers(232, 300)), int(rng.integers(330, 400))
    if number % 8 == 5:
        rows, columns = columns - 10, rows
    rows, columns = rows + (rows % 32 == 0), columns + (columns % 32 == 0)
    focal = 0.80 * max(columns, 0.9 * rows) * rng.uniform(0.94, 1.06) * FACTOR
    horizon = rows * rng.uniform(0.44, 0.52) * FACTOR
    camera = Camera(
        rows * FACTOR, columns * FACTOR, float(focal), float(horizon), float(rng.uniform(1.7, 2.3))
    )
    layout = ("along", "across", "slanted")[number % 3]
    sign = float(rng.choice([-1, 1]))
    half = float(rng.uniform(3.3, 3.9))
    if layout == "along":
        yaw, lateral = rng.uniform(2, 13), -rng.uniform(0.5, half + 2.2)
    elif layout == "across":
        yaw, lateral = rng.uniform(80, 98), -rng.uniform(9.5, 11.5)
    else:
        yaw, lateral = rng.uniform(28, 55), -rng.uniform(6.5, 8.5)
    # With u of the camera on the left of a road that bears right, the road crosses the view;
    # the sign mirrors the whole arrangement.
    zebra = float(rng.uniform(3, 12)) if rng.random() < 0.3 else 1e6
    path = float(rng.uniform(1.3, 2.0)) if rng.random() < 0.4 else 0.0
    marked = bool(rng.random() < 0.8)
    street = Street(float(np.radians(yaw)) * sign, float(lateral) * sign, half, zebra, marked, path)
    return camera, street, layout


def spots_on_screen(
    plan: Plan,
    rng: np.random.Generator,
    u: tuple[float, float],
    depth: tuple[float, float],
    margin: float,
) -> tuple[float, float] | None:
    """Return a random world (x, z) with u in a range (either side) that the camera sees."""
    for _ in range(300):
        side = float(rng.uniform(*u)) * float(rng.choice([-1, 1]))
        x, z = plan.street.to_world(side, float(rng.uniform(-40, 60)))
        if depth[0] < z < depth[1] and margin < plan.column(x, z) < 1 - margin:
            return x, z
    return None


def add_cars(plan: Plan, rng: np.random.Generator, buffer: Buffer, shade: Shade) -> None:
    """Put two to four cars into the lanes or along the kerb."""
    wanted, done = int(rng.integers(2, 5)), 0
    depth = (7.0, 17.0) if plan.layout != "along" else (7.0, 18.0)
    for _ in range(60):
        reach = (6.5, 12.5) if done == 0 else depth
        spot = spots_on_screen(plan, rng, (1.45, plan.street.half - 1.05), reach, 0.10)
        if spot is None or not plan.free(*spot, 2.55):
            continue
        u, _ = plan.street.to_road(np.array(spot[0]), np.array(spot[1]))
        # Local +x of a solid points to (cos, sin) of yaw in (x, z): along the road that is this.
        yaw = np.pi / 2 - plan.street.yaw + (np.pi if u < 0 else 0.0) + rng.normal(0, 0.03)
        place(buffer, shade, make_car(rng), spot, float(yaw))
        done += 1
        if done == wanted:
            return


def add_people(
    plan: Plan, rng: np.random.Generator, noise: Noise, buffer: Buffer, shade: Shade
) -> None:
    """Put two to five people on verge and road, at least one of them near."""
    wanted, done = int(rng.integers(2, 6)), 0
    for _ in range(80):
        reach = (4.8, 7.5) if done == 0 else (5.5, 10.5)
        verge = (plan.street.half + 0.3, plan.street.half + 2.6)
        where = verge if rng.random() < 0.65 else (0.5, plan.street.half)
        spot = spots_on_screen(plan, rng, where, reach, 0.07)
        if spot is None or not plan.free(*spot, 0.42):
            continue
        yaw = np.pi / 2 - plan.street.yaw + rng.choice([0.0, np.pi]) + rng.normal(0, 0.45)
        place(buffer, shade, make_person(rng, noise), spot, float(yaw))
        done += 1
        if done == wanted:
            return


def add_bin(
    plan: Plan, rng: np.random.Generator, noise: Noise, buffer: Buffer, shade: Shade
) -> None:
    """Put one litter bin on the verge, where there is room."""
    kerb = plan.street.half + plan.street.path
    for _ in range(20):
        spot = spots_on_screen(plan, rng, (kerb + 0.6, kerb + 1.5), (4.8, 8.0), 0.05)
        if spot is not None and plan.free(*spot, 0.5):
            place(buffer, shade, make_bin(rng, noise), spot, 0.0)
            return


def add_trees(
    plan: Plan, rng: np.random.Generator, noise: Noise, buffer: Buffer, shade: Shade
) -> None:
    """Plant trees on the verges, bushes before the houses and a row of woods at the end."""
    side = plan.street.half + plan.street.path
    for _ in range(int(rng.integers(3, 6))):
        spot = spots_on_screen(plan, rng, (side + 1.3, side + 3.3), (8.5, 24), 0.04)
        if spot is not None and plan.free(*spot, 1.6):
            draw_tree(buffer, shade, rng, noise, spot, float(rng.uniform(5.2, 8.8)))
    for _ in range(int(rng.integers(1, 5))):
        spot = spots_on_screen(plan, rng, (side + 2.2, side + 4.2), (7.5, 22), 0.0)
        if spot is not None and plan.free(*spot, 0.9):
            draw_bush(
                buffer,
                shade,
                rng,
                spot,
                (float(rng.uniform(1.4, 2.6)), float(rng.uniform(0.8, 1.5))),
            )
    far = float(rng.uniform(62, 80))
    for x in np.arange(-62, 63, 9.0):
        size = (float(rng.uniform(11, 15)), float(rng.uniform(4.5, 8.5)))
        spot = (float(x + rng.normal(0, 2)), far + float(rng.normal(0, 4)))
        draw_bush(buffer, shade, rng, spot, size)
    # A hedge closes the gaps under the far crowns, where road and lawn would never end.
    for x in np.arange(-60, 61, 4.5):
        size = (6.5, float(rng.uniform(1.8, 2.6)))
        draw_bush(buffer, shade, rng, (float(x + rng.normal(0, 0.5)), far - 5), size)


def add_houses(
    plan: Plan, rng: np.random.Generator, noise: Noise, buffer: Buffer, shade: Shade
) -> None:
    """Build rows of houses along both sides of the street, with gaps, not around the camera."""
    gone = plan.street.to_road(np.array(0.0), np.array(0.0))
    for side in (-1.0, 1.0):
        v = float(rng.uniform(-42, -36))
        back = float(rng.uniform(5.0, 8.5))
        while v < 58:
            width, deep = float(rng.uniform(8, 14)), float(rng.uniform(7, 10))
            first = plan.street.half + plan.street.path + back + float(rng.uniform(-0.4, 0.4))
            u = (first, first + deep) if side > 0 else (-first - deep, -first)
            house = make_house(rng, u, (v, v + width), int(rng.integers(2, 4)))
            gap = float(rng.uniform(2.5, 9)) if rng.random() < 0.55 else 0.0
            close = abs(float(gone[0]) - np.clip(float(gone[0]), *u)) < 2.0
            near_v = v - 16 < float(gone[1]) < v + width + 16
            far = plan.street.to_world(u[0], v + width / 2)[1] > 56
            if not (close and near_v) and not far and rng.random() < 0.86:
                draw_house(buffer, shade, plan.street, house, noise)
            v += width + gap


def draw_scene(seed: int, number: int) -> tuple[Array, Array, Array]:
    """Return a picture (h, w, 3) uint8, its mask (h, w) uint8 and class shares (7,)."""
    rng = np.random.default_rng(seed)
    kind = ("noon", "golden", "overcast", "haze", "noon", "golden", "noon")[number % 7]
    light, noise = choose_light(rng, kind), Noise(rng)
    camera, street, layout = choose_view(rng, number)
    plan, buffer, shade = Plan(street, camera, layout), Buffer(camera), Shade(light)
    tints = [(0.098, 0.145, 0.042), (0.115, 0.155, 0.05), (0.082, 0.125, 0.042)]
    draw_ground(buffer, street, noise, np.array(tints[int(rng.integers(3))], np.float32))
    add_houses(plan, rng, noise, buffer, shade)
    add_cars(plan, rng, buffer, shade)
    add_people(plan, rng, noise, buffer, shade)
    # Some scenes have a bin in any case, so that both splits contain ignored pixels.
    if rng.random() < 0.45 or number % 4 == 2:
        add_bin(plan, rng, noise, buffer, shade)
    add_trees(plan, rng, noise, buffer, shade)
    grow_blades(buffer, rng, noise)
    mask = count_ids(buffer, FACTOR)
    shares = np.bincount(mask.ravel(), minlength=256)[:7] / mask.size
    photo = develop(shade_scene(buffer, light, shade, noise, rng), camera, FACTOR, rng)
    return photo, mask, shares


def best_scene(seed: int, number: int) -> tuple[Array, Array]:
    """Return the first picture and mask in which every class has its least share."""
    for trial in range(8):
        photo, mask, shares = draw_scene(seed + 97 * number + trial, number)
        if (shares >= LEAST).all():
            break
    return photo, mask


def save_scene(folder: Path, stem: str, photo: Array, mask: Array) -> None:
    """Write images/STEM.jpg and masks/STEM.png."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(folder / "images" / f"{stem}.jpg", quality=88, optimize=True)
    page = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.tobytes())
    palette = [channel for color in CLASSES.values() for channel in color]
    # Ignored pixels show white, every other unused value black.
    page.putpalette(palette + [0] * (IGNORE * 3 - len(palette)) + [255, 255, 255])
    page.save(folder / "masks" / f"{stem}.png", optimize=True)


def save_classes(path: Path) -> None:
    """Write the class list."""
    lines = [
        f"# {len(CLASSES)} drawn classes; id {IGNORE} in the masks is unlabelled",
        f"ignore_index = {IGNORE}",
    ]
    for name, color in CLASSES.items():
        lines += ["", "[[classes]]", f'name = "{name}"', f"color = [{', '.join(map(str, color))}]"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Draw all scenes into the folder given on the command line."""
    parser = argparse.ArgumentParser(description="Draw the sample data set.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    folder: Path = parser.parse_args().folder
    for split, (count, seed) in SPLITS.items():
        for number in range(count):
            photo, mask = best_scene(seed, number)
            save_scene(folder / split, f"scene_{seed // 1000}{number:02d}", photo, mask)
    save_classes(folder / "classes.toml")


if __name__ == "__main__":
    main()
