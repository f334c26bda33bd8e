"""The people of the sample scenes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scene_light import PERSON, Array, Noise, smoothstep
from scene_solids import Coat, Solid, capsule, soft_min

_SKIN = [
    (0.56, 0.34, 0.24),
    (0.46, 0.26, 0.17),
    (0.28, 0.15, 0.09),
    (0.13, 0.07, 0.045),
    (0.62, 0.41, 0.31),
]
_HAIR = [
    (0.02, 0.015, 0.012),
    (0.06, 0.032, 0.018),
    (0.16, 0.09, 0.04),
    (0.36, 0.25, 0.12),
    (0.25, 0.24, 0.23),
]
_TOPS = [
    (0.55, 0.05, 0.06), (0.60, 0.60, 0.58), (0.05, 0.12, 0.34), (0.62, 0.44, 0.05),
    (0.06, 0.25, 0.22), (0.36, 0.10, 0.26), (0.20, 0.32, 0.50), (0.60, 0.24, 0.08),
    (0.08, 0.08, 0.09), (0.55, 0.32, 0.34),
]  # fmt: skip
_SHOES = [(0.03, 0.03, 0.03), (0.5, 0.5, 0.5), (0.12, 0.06, 0.03)]
_LEGS = [
    (0.035, 0.06, 0.14),
    (0.025, 0.025, 0.03),
    (0.30, 0.23, 0.15),
    (0.10, 0.11, 0.13),
    (0.07, 0.13, 0.25),
]
_SKINNED, _HAIRY, _TOP, _LEG, _SHOE, _BAG, _SKIRT = range(7)

Limb = tuple[int, Array, Array, float, float]


def _leg(limbs: list[Limb], side: float, swing: float, bend: float, bare: bool) -> None:
    """Append thigh, shin and shoe of one leg; angles in radians, positive swings forward."""
    hip = np.array([0.0, 0.525, side * 0.052])
    knee = hip + 0.245 * np.array([np.sin(swing), -np.cos(swing), 0.0])
    low = swing - bend
    ankle = knee + 0.235 * np.array([np.sin(low), -np.cos(low), 0.0])
    toe = (
        ankle
        + 0.085 * np.array([np.cos(0.5 * low), np.sin(0.5 * low), side * 0.1])
        - np.array([0, 0.018, 0])
    )
    cloth = _SKINNED if bare else _LEG
    limbs.append((_LEG, hip, knee, 0.058, 0.041))
    limbs.append((cloth, knee, ankle, 0.041, 0.030))
    limbs.append((_SHOE, ankle - np.array([0.012, 0.012, 0]), toe, 0.027, 0.023))


def _arm(limbs: list[Limb], side: float, swing: float, bend: float, bare: bool) -> None:
    """Append upper arm, forearm and hand of one arm."""
    shoulder = np.array([0.0, 0.798, side * 0.104])
    elbow = shoulder + np.array([0.165 * np.sin(swing), -0.165 * np.cos(swing), side * 0.025])
    high = swing + bend
    wrist = elbow + np.array([0.145 * np.sin(high), -0.145 * np.cos(high), side * 0.004])
    hand = wrist + 0.05 * np.array([np.sin(high), -np.cos(high), 0.0])
    limbs.append((_TOP, shoulder, elbow, 0.037, 0.030))
    limbs.append((_SKINNED if bare else _TOP, elbow, wrist, 0.029, 0.023))
    limbs.append((_SKINNED, wrist, hand, 0.022, 0.019))


def _trunk(broad: float) -> list[Limb]:
    """Return head, neck, hair, torso and hips; broad scales their width."""
    limbs = [
        (_SKINNED, np.array([0.008, 0.905, 0]), np.array([0.0, 0.945, 0]), 0.050, 0.056),
        (_SKINNED, np.array([-0.005, 0.83, 0]), np.array([0.0, 0.90, 0]), 0.032, 0.030),
        (_HAIRY, np.array([-0.016, 0.935, 0]), np.array([-0.008, 0.957, 0]), 0.056, 0.058),
    ]
    for side in (-broad, broad):
        neck, shoulder = np.array([-0.005, 0.835, 0]), np.array([0, 0.800, 0.09 * side])
        limbs.append((_TOP, neck, shoulder, 0.034, 0.036))
    rings = (
        (_TOP, 0.795, 0.078, 0.038), (_TOP, 0.730, 0.052, 0.064), (_TOP, 0.640, 0.042, 0.057),
        (_TOP, 0.575, 0.046, 0.061), (_LEG, 0.530, 0.046, 0.062),
    )  # fmt: skip
    for part, y, z, r in rings:
        limbs.append((part, np.array([0, y, -z * broad]), np.array([0, y, z * broad]), r, r))
    return limbs


def _body(rng: np.random.Generator) -> list[Limb]:
    """Return the limbs of a random person of height 1, facing +x."""
    walks = rng.random() < 0.7
    stride = float(rng.uniform(0.25, 0.48) if walks else rng.uniform(0.02, 0.08))
    broad = float(rng.uniform(0.92, 1.12))
    limbs = _trunk(broad)
    style, bare_arms = rng.random(), bool(rng.random() < 0.5)
    if style < 0.40:  # a dress, or a coat: from and to a height, with these radii
        top, low, upper, lower = (
            (0.66, 0.30, 0.070, 0.115) if style < 0.22 else (0.70, 0.42, 0.074, 0.092)
        )
        for z in (-0.042 * broad, 0.042 * broad):
            limbs.append((_SKIRT, np.array([0, top, z]), np.array([0, low, z]), upper, lower))
    if rng.random() < 0.4:
        crown, nape = np.array([-0.03, 0.93, 0]), np.array([-0.045, 0.82, 0])
        limbs.append((_HAIRY, crown, nape, 0.050, 0.040))
    _leg(limbs, 1, stride, 0.10, style < 0.22)
    _leg(limbs, -1, -stride, 0.35 * stride + 0.1, style < 0.22)
    _arm(limbs, 1, -0.8 * stride, 0.25, bare_arms)
    _arm(limbs, -1, 0.8 * stride, 0.35, bare_arms)
    if rng.random() < 0.35:
        limbs.append((_BAG, np.array([-0.105, 0.77, 0]), np.array([-0.115, 0.63, 0]), 0.065, 0.075))
    return limbs


@dataclass(frozen=True)
class _Walker:
    """One person: height in metres, limbs for height 1, the lowest point and part colours."""

    tall: float
    limbs: list[Limb]
    lowest: float
    colors: Array
    noise: Noise

    def _unit(self, p: Array) -> Array:
        unit = p / np.float32(self.tall) + np.array([0, self.lowest, 0], np.float32)
        return np.asarray(unit)

    def distance(self, p: Array) -> tuple[Array, Array]:
        """Return distances and parts; limbs of one part melt into each other."""
        q, parts = self._unit(p), dict[int, Array]()
        for part, a, b, ra, rb in self.limbs:
            gap = capsule(q, a, b, ra, rb)
            if part == _SKIRT:  # cut off at its hem, where the limb would go on as a ball
                gap = np.maximum(gap, float(b[1]) + 0.03 - q[:, 1])
            parts[part] = soft_min(parts[part], gap, 0.055) if part in parts else gap
        stack, keys = np.stack(list(parts.values())), np.array(list(parts))
        return stack.min(axis=0) * self.tall * 0.95, keys[stack.argmin(axis=0)]

    def paint(self, p: Array, _normal: Array, part: Array) -> Coat:
        """Colour skin, hair and clothes, with folds in the cloth."""
        q, albedo = self._unit(p), self.colors[part]
        # Shaded eye sockets and mouth are all that a face shows at this distance.
        face = (part == _SKINNED) & (q[:, 0] > 0.025) & (q[:, 1] > 0.88)
        eyes = (np.abs(q[:, 1] - 0.937) < 0.008) & (np.abs(np.abs(q[:, 2]) - 0.02) < 0.012)
        mouth = (np.abs(q[:, 1] - 0.897) < 0.005) & (np.abs(q[:, 2]) < 0.016)
        dark = np.where(face & eyes, 0.35, np.where(face & mouth, 0.6, 1.0))
        folds = self.noise.fractal(p[:, 0] * 9 + 5, p[:, 1] * 6 + p[:, 2] * 11, 3) - 0.5
        cloth = np.isin(part, (_TOP, _LEG, _BAG, _SKIRT))
        albedo = albedo * (dark * (1 + np.where(cloth, 0.6, 0.25) * folds))[:, None]
        # The hollow between the legs sees less of the sky.
        inner = smoothstep(0.10, 0.02, np.abs(p[:, 2])) * (q[:, 1] < 0.48)
        openness = np.clip(0.95 - 0.45 * inner + 0.6 * folds, 0.3, 1.0)
        return Coat(np.clip(albedo, 0, 1), np.where(part == _HAIRY, 0.25, 0.03), openness)


def make_person(rng: np.random.Generator, noise: Noise) -> Solid:
    """Return a random walking or standing person, 1.58 to 1.88 m tall."""
    tall, limbs = float(rng.uniform(1.58, 1.88)), _body(rng)
    hues = [_SKIN, _HAIR, _TOPS, _LEGS, _SHOES, _TOPS, _TOPS]
    colors = np.array([row[int(rng.integers(len(row)))] for row in hues], np.float32)
    colors[_SKIRT] = colors[_TOP]
    lowest = min(float(min(b[1] - rb, a[1] - ra)) for part, a, b, ra, rb in limbs if part == _SHOE)
    walker = _Walker(tall, limbs, lowest, colors, noise)
    return Solid(walker.distance, (0.62, tall + 0.05, 0.42), walker.paint, PERSON)
