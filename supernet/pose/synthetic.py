"""The embedded data set: procedurally drawn people, as many pictures as wanted from a seed.

Each figure is a small articulated body in three dimensions: joint angles from natural ranges, seen from the
front, the back or aside by an orthographic camera, dressed, and drawn part by part from far to near. Beside
the picture a second image remembers which part of which person each pixel shows; visibility, boxes, areas and
outlines are read from it, so the annotations are exact. Lengths are in units of the standing height.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from search_spaces.files import read_json, write_bytes, write_json
from supernet.pose.dataset import PoseDataset
from supernet.pose.skeleton import COCO17

__all__ = ["MAX_FIGURES", "VERSION", "SyntheticPeople", "annotate", "generate", "render", "write_dataset"]

VERSION: Final = 1
"""Raised when the same seed starts to give other pictures."""
MAX_FIGURES: Final = 20
"""Most people per picture."""

Colour = tuple[int, int, int]
Rng = np.random.Generator
Points = NDArray[np.float64]


class _At(IntEnum):
    """Rows of a body's points: COCO's 17 joints first, then what is only drawn."""

    NOSE = 0
    L_EYE, R_EYE = 1, 2
    L_EAR, R_EAR = 3, 4
    L_SHOULDER, R_SHOULDER = 5, 6
    L_ELBOW, R_ELBOW = 7, 8
    L_WRIST, R_WRIST = 9, 10
    L_HIP, R_HIP = 11, 12
    L_KNEE, R_KNEE = 13, 14
    L_ANKLE, R_ANKLE = 15, 16
    CHEST, HEAD = 17, 18
    L_HAND, R_HAND = 19, 20
    L_HEEL, R_HEEL = 21, 22
    L_TOE, R_TOE = 23, 24
    CROWN, FACE, MOUTH = 25, 26, 27


class _Part(IntEnum):
    """Parts of a figure that the owner image tells apart."""

    HEAD = 0
    TORSO = 1
    L_UPPER_ARM, R_UPPER_ARM = 2, 3
    L_FOREARM, R_FOREARM = 4, 5
    L_THIGH, R_THIGH = 6, 7
    L_SHIN, R_SHIN = 8, 9
    SKIRT = 10


_PARTS: Final = 12
"""Owner values per figure."""
_CLUTTER: Final = 255
"""Owner value of things in front of people."""


def _showing() -> NDArray[np.bool_]:
    """Parts at which a joint counts as visible, (17, 12): those that meet there."""
    table = np.zeros((17, _PARTS), dtype=np.bool_)
    table[:5, _Part.HEAD] = True
    for side in (0, 1):
        upper_arm, forearm = _Part.L_UPPER_ARM + side, _Part.L_FOREARM + side
        thigh, shin = _Part.L_THIGH + side, _Part.L_SHIN + side
        table[_At.L_SHOULDER + side, [_Part.TORSO, upper_arm]] = True
        table[_At.L_ELBOW + side, [upper_arm, forearm]] = True
        table[_At.L_WRIST + side, forearm] = True
        table[_At.L_HIP + side, [_Part.TORSO, thigh, _Part.SKIRT]] = True
        table[_At.L_KNEE + side, [thigh, shin, _Part.SKIRT]] = True
        table[_At.L_ANKLE + side, shin] = True
    return table


_SHOWING: Final = _showing()

_SKIN: Final[tuple[Colour, ...]] = (
    (255, 224, 196), (244, 204, 172), (230, 184, 146), (212, 160, 120),
    (186, 132, 92), (154, 104, 70), (120, 78, 52), (88, 58, 42),
)  # fmt: skip
_HAIR: Final[tuple[Colour, ...]] = (
    (28, 22, 20), (52, 36, 26), (88, 58, 34), (130, 86, 44), (196, 154, 84), (228, 200, 134),
    (150, 60, 30), (150, 150, 150), (220, 220, 220), (120, 40, 110),
)  # fmt: skip
_CIRCLE: Final = np.stack(
    [
        np.cos(np.linspace(0, 2 * np.pi, 16, endpoint=False)),
        np.sin(np.linspace(0, 2 * np.pi, 16, endpoint=False)),
    ],
    axis=1,
)


_ARCS: Final = np.array(
    [
        (math.pi * (1 - end) + step * math.pi / 14, step / 7 * (1 - 2 * end), end)
        for end in (1, 0)
        for step in range(-7, 8, 2)
    ]
).T
"""Two arcs of a capsule: angles without taper, their change per radian of taper, which end they are at."""


def _pick(rng: Rng, weights: tuple[float, ...]) -> int:
    """Return an index with probability proportional to its weight."""
    rest = rng.random() * math.fsum(weights)
    for index, weight in enumerate(weights):
        rest -= weight
        if rest < 0:
            return index
    return len(weights) - 1


def _shade(colour: Colour, gain: float, lift: float = 0.0) -> Colour:
    """Return the colour times ``gain`` plus ``lift``; both are at least 0."""
    red, green, blue = colour
    return (
        min(255, int(red * gain + lift)),
        min(255, int(green * gain + lift)),
        min(255, int(blue * gain + lift)),
    )


def _any_colour(rng: Rng, muted: float = 0.3) -> Colour:
    """Return a random colour of any hue; nearly grey, black or white with probability ``muted``."""
    hue, saturation, value = rng.random() * 6, rng.random() ** 0.7, 0.2 + 0.8 * rng.random()
    if rng.random() < muted:
        saturation *= 0.2
    out: list[int] = []
    for channel in (5, 3, 1):
        k = (channel + hue) % 6
        out.append(int(255 * value * (1 - saturation * max(0.0, min(k, 4 - k, 1.0)))))
    return out[0], out[1], out[2]


# --- the body --------------------------------------------------------------------------------------------


def _swing(forward: float, outward: float, side: int) -> Points:
    """Return the direction of a limb that hangs down, after swinging it forward and outward (radians)."""
    down = math.cos(forward)
    return np.array([side * down * math.sin(outward), -down * math.cos(outward), math.sin(forward)])


def _bend(limb: Points, towards: Points, angle: float) -> Points:
    """Return the direction of a limb's lower half, bent by ``angle`` from the upper one."""
    across = towards - (towards @ limb) * limb
    length = math.sqrt(float(across @ across))
    return limb if length < 1e-6 else math.cos(angle) * limb + math.sin(angle) / length * across


def _arm(rng: Rng, mode: int, side: int) -> tuple[Points, Points]:
    """Return the directions of an upper arm and its forearm for one of five gestures."""
    u = rng.uniform
    r = math.radians
    if mode == 0:  # hanging
        upper = _swing(r(u(-18, 25)), r(u(6, 28)), side)
        lower = _bend(upper, np.array([-side * u(-0.5, 0.8), 0.2, 1.0]), r(u(3, 50)))
    elif mode == 1:  # raised
        upper = _swing(r(u(-15, 40)), r(u(95, 165)), side)
        lower = _bend(upper, np.array([-side * u(0.0, 1.0), 1.0, u(0.0, 0.6)]), r(u(3, 70)))
    elif mode == 2:  # hand on the hip
        upper = _swing(r(u(-20, 10)), r(u(32, 58)), side)
        lower = _bend(upper, np.array([-side * 1.0, -0.15, u(0.1, 0.5)]), r(u(75, 110)))
    elif mode == 3:  # in front of the body
        upper = _swing(r(u(15, 80)), r(u(5, 40)), side)
        lower = _bend(upper, np.array([-side * u(-0.4, 0.8), 1.0, 0.3]), r(u(25, 115)))
    else:  # sideways
        upper = _swing(r(u(-15, 35)), r(u(55, 100)), side)
        lower = _bend(upper, np.array([0.0, 1.0 if rng.random() < 0.67 else -1.0, u(0.0, 0.5)]), r(u(0, 100)))
    return upper, lower


def _leg(rng: Rng, mode: int, side: int, leading: bool) -> tuple[Points, Points]:
    """Return the directions of a thigh and its shin for one of four stances."""
    u = rng.uniform
    if mode == 0:  # standing
        forward, outward, knee = u(-8, 10), u(0, 10), u(0, 10)
    elif mode == 1:  # wide
        forward, outward, knee = u(-8, 12), u(10, 30), u(0, 15)
    elif mode == 2:  # walking
        forward, outward, knee = (u(15, 45), u(0, 9), u(5, 45)) if leading else (u(-25, 0), u(0, 9), u(5, 45))
    else:  # crouching
        forward, outward, knee = u(35, 75), u(8, 35), u(50, 105)
    thigh = _swing(math.radians(forward), math.radians(outward), side)
    return thigh, _swing(math.radians(forward - knee), math.radians(outward * u(0.4, 1.0)), side)


def _body(rng: Rng) -> Points:
    """Return a body in a random pose, (28, 3): x to its left, y up, z forward, the pelvis at 0."""
    u = rng.uniform
    points = np.zeros((len(_At), 3))
    hip, shoulder = u(0.062, 0.08), u(0.1, 0.125)
    lean, sway, twist = math.radians(u(-6, 14)), math.radians(rng.normal(0, 5)), math.radians(u(-18, 18))
    spine = np.array([math.sin(sway), math.cos(sway) * math.cos(lean), math.sin(lean)])
    chest = spine * u(0.285, 0.32)
    across = np.array([math.cos(twist) * math.cos(sway), -math.sin(sway), -math.sin(twist)])
    points[_At.CHEST] = chest
    arms = [_pick(rng, (0.36, 0.14, 0.12, 0.18, 0.2)) for _ in range(2)]
    if rng.random() < 0.35:
        arms[1] = arms[0]
    stance, first = _pick(rng, (0.5, 0.2, 0.2, 0.1)), int(rng.integers(2))
    upper_arm, forearm = u(0.155, 0.18), u(0.14, 0.165)
    thigh, shin = u(0.22, 0.245), u(0.215, 0.24)
    for row, side in ((0, 1), (1, -1)):
        points[_At.L_SHOULDER + row] = chest + side * shoulder * across
        upper, lower = _arm(rng, arms[row], side)
        points[_At.L_ELBOW + row] = points[_At.L_SHOULDER + row] + upper_arm * upper
        points[_At.L_WRIST + row] = points[_At.L_ELBOW + row] + forearm * lower
        points[_At.L_HAND + row] = points[_At.L_WRIST + row] + 0.045 * lower
        points[_At.L_HIP + row, 0] = side * hip
        upper, lower = _leg(rng, stance, side, leading=row == first)
        points[_At.L_KNEE + row] = points[_At.L_HIP + row] + thigh * upper
        ankle = points[_At.L_KNEE + row] + shin * lower
        points[_At.L_ANKLE + row] = ankle
        points[_At.L_HEEL + row] = ankle + np.array([0.0, -0.022, -0.012])
        points[_At.L_TOE + row] = ankle + np.array([side * u(0.0, 0.03), -0.032, 0.065])
    _head(rng, points, spine)
    return points


def _head(rng: Rng, points: Points, spine: Points) -> None:
    """Set the head's points; the head may turn and nod against the chest."""
    turn, nod = math.radians(rng.normal(0, 14)), math.radians(rng.normal(2, 8))
    size = rng.uniform(0.064, 0.086)
    forward = np.array([math.sin(turn) * math.cos(nod), -math.sin(nod), math.cos(turn) * math.cos(nod)])
    up = spine - (spine @ forward) * forward
    up /= math.sqrt(float(up @ up))
    left = np.array(
        [
            up[1] * forward[2] - up[2] * forward[1],
            up[2] * forward[0] - up[0] * forward[2],
            up[0] * forward[1] - up[1] * forward[0],
        ]
    )
    center = points[_At.CHEST] + spine * 0.045 + up * size * 1.15
    points[_At.HEAD] = center
    points[_At.CROWN] = center + up * size * 1.25
    points[_At.FACE] = center + size * forward
    points[_At.NOSE] = center + size * (1.05 * forward - 0.12 * up)
    points[_At.MOUTH] = center + size * (0.9 * forward - 0.52 * up)
    for row, side in ((0, 1), (1, -1)):
        points[_At.L_EYE + row] = center + size * (0.85 * forward + side * 0.38 * left + 0.2 * up)
        points[_At.L_EAR + row] = center + size * (side * 0.95 * left - 0.02 * up)


def _camera(rng: Rng) -> Points:
    """Return the rotation from body to screen: mostly from the front, some from the back or aside."""
    view = _pick(rng, (0.76, 0.16, 0.08))
    if view == 2:
        yaw = rng.uniform(40, 75) * (1 if rng.random() < 0.5 else -1)
    else:
        yaw = rng.uniform(-40, 40) + (180 if view == 1 else 0)
    yaw, pitch = math.radians(yaw), math.radians(rng.uniform(-4, 12))
    roll = math.radians(min(18.0, max(-18.0, rng.normal(0, 6))))
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (math.cos, math.sin))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return np.asarray(np.diag([1.0, -1.0, 1.0]) @ about_z @ about_x @ about_y)


# --- clothes and drawing ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Outfit:
    """What a figure wears."""

    skin: Colour
    hair: Colour
    shirt: Colour
    accent: Colour
    bottom: Colour
    shoes: Colour
    sleeves: int
    """0 none, 1 short, 2 long."""
    legs: int
    """0 long trousers, 1 shorts, 2 skirt, 3 skirt over tights."""
    pattern: int
    """0 plain, 1 bands, 2 stripes, 3 badge, 4 open jacket, 5 check."""
    hairstyle: int
    """0 short, 1 long, 2 bald, 3 cap."""
    girth: float
    seam: bool


def _outfit(rng: Rng) -> _Outfit:
    jitter = rng.uniform(0.92, 1.06)
    return _Outfit(
        skin=_shade(_SKIN[int(rng.integers(len(_SKIN)))], jitter),
        hair=_shade(_HAIR[int(rng.integers(len(_HAIR)))], jitter),
        shirt=_any_colour(rng),
        accent=_any_colour(rng),
        bottom=_any_colour(rng) if rng.random() < 0.5 else _shade((52, 62, 100), rng.uniform(0.4, 1.7)),
        shoes=_shade(_any_colour(rng), 0.8),
        sleeves=_pick(rng, (0.15, 0.4, 0.45)),
        legs=_pick(rng, (0.58, 0.22, 0.12, 0.08)),
        pattern=_pick(rng, (0.4, 0.16, 0.12, 0.12, 0.12, 0.08)),
        hairstyle=_pick(rng, (0.5, 0.28, 0.08, 0.14)),
        girth=rng.uniform(0.85, 1.25),
        seam=rng.random() < 0.2,
    )


@dataclass(frozen=True)
class _Figure:
    """A dressed person on the screen."""

    xy: Points
    """(28, 2), pixels."""
    depth: NDArray[np.float64]
    """(28,), towards the camera, in units of the height."""
    height: float
    """Standing height in pixels."""
    outfit: _Outfit

    def box(self) -> tuple[float, float, float, float]:
        """Return left, top, right, bottom with some room for the flesh around the points."""
        low, high, margin = self.xy.min(axis=0), self.xy.max(axis=0), 0.03 * self.height
        return (
            float(low[0]) - margin,
            float(low[1]) - margin,
            float(high[0]) + margin,
            float(high[1]) + margin,
        )


class _Canvas:
    """The picture and, beside it, the owner of each pixel."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.image = image
        self.owner = np.zeros(image.shape[:2], dtype=np.uint8)

    def shape(self, outline: NDArray[np.floating], colour: Colour, owner: int | None) -> None:
        """Fill a convex outline (n, 2); with ``owner`` None only the picture changes."""
        fixed = np.rint(outline * 16).astype(np.int32)
        cv2.fillConvexPoly(self.image, fixed, colour, cv2.LINE_AA, 4)
        if owner is not None:
            cv2.fillConvexPoly(self.owner, fixed, owner, cv2.LINE_8, 4)

    def dot(self, center: Points, radius: float, colour: Colour, owner: int | None = None) -> None:
        """Fill a circle."""
        at = (round(float(center[0]) * 16), round(float(center[1]) * 16))
        cv2.circle(self.image, at, max(1, round(radius * 16)), colour, -1, cv2.LINE_AA, 4)
        if owner is not None:
            cv2.circle(self.owner, at, max(1, round(radius * 16)), owner, -1, cv2.LINE_8, 4)

    def line(self, a: Points, b: Points, width: float, colour: Colour) -> None:
        """Draw a line on the picture only."""
        ends = [(round(float(p[0]) * 16), round(float(p[1]) * 16)) for p in (a, b)]
        cv2.line(self.image, ends[0], ends[1], colour, max(1, round(width)), cv2.LINE_AA, 4)

    def limb(
        self, centers: Points, radii: tuple[float, ...], colour: Colour, owner: int, rim: bool = True
    ) -> None:
        """Draw the hull of some circles, with a dark rim and a lighter side that model its roundness."""
        pair = len(radii) == 2
        outline = _capsule(centers[0], centers[1], radii[0], radii[1]) if pair else _hull(centers, radii)
        fixed = np.rint(outline * 16).astype(np.int32)
        cv2.fillConvexPoly(self.image, fixed, colour, cv2.LINE_AA, 4)
        cv2.fillConvexPoly(self.owner, fixed, owner, cv2.LINE_8, 4)
        least = min(radii)
        lit = centers - 0.25 * least
        if pair:
            self.line(lit[0], lit[1], least * 0.9, _shade(colour, 1.1, 12))
        else:
            self.shape(_hull(lit, tuple(0.45 * radius for radius in radii)), _shade(colour, 1.1, 12), None)
        if rim:
            cv2.polylines(self.image, [fixed], True, _shade(colour, 0.55), 1, cv2.LINE_AA, 4)


def _hull(centers: Points, radii: tuple[float, ...]) -> NDArray[np.float32]:
    """Return the convex outline around circles, (n, 2)."""
    circles = [_CIRCLE * radius + center for center, radius in zip(centers, radii, strict=True)]
    return np.asarray(cv2.convexHull(np.concatenate(circles, dtype=np.float32))[:, 0], dtype=np.float32)


def _capsule(a: Points, b: Points, radius_a: float, radius_b: float) -> Points:
    """Return the convex outline around two circles, (16, 2): an arc of each, joined by their tangents."""
    ax, ay, bx, by = float(a[0]), float(a[1]), float(b[0]), float(b[1])
    length = math.hypot(bx - ax, by - ay)
    if length <= abs(radius_a - radius_b) + 1e-6:
        return a + _CIRCLE * radius_a if radius_a > radius_b else b + _CIRCLE * radius_b
    along, taper = math.atan2(by - ay, bx - ax), math.asin((radius_a - radius_b) / length)
    angles = along + _ARCS[0] + taper * _ARCS[1]
    near_b = _ARCS[2]
    radius = radius_a + (radius_b - radius_a) * near_b
    outline = np.empty((16, 2))
    outline[:, 0] = ax + (bx - ax) * near_b + radius * np.cos(angles)
    outline[:, 1] = ay + (by - ay) * near_b + radius * np.sin(angles)
    return outline


def _mix(a: Points, b: Points, share: float) -> Points:
    return a + (b - a) * share


def _draw_arm(canvas: _Canvas, figure: _Figure, row: int, base: int, lower: bool) -> None:
    xy, h, wear = figure.xy, figure.height, figure.outfit
    wide = 0.026 * h * (0.6 + 0.4 * wear.girth)
    shoulder, elbow, wrist, hand = (
        xy[at + row] for at in (_At.L_SHOULDER, _At.L_ELBOW, _At.L_WRIST, _At.L_HAND)
    )
    cloth = _shade(wear.shirt, 0.93) if wear.pattern != 4 else wear.accent
    if lower:
        owner = base + _Part.L_FOREARM + row
        canvas.limb(np.array([wrist, hand]), (wide * 0.72, wide * 0.72), wear.skin, owner)
        colour = cloth if wear.sleeves == 2 else wear.skin
        canvas.limb(np.array([elbow, wrist]), (wide * 0.88, wide * 0.7), colour, owner)
        if wear.sleeves == 2:
            canvas.line(_mix(elbow, wrist, 0.94), wrist, wide * 1.2, _shade(wear.accent, 0.9))
        return
    owner = base + _Part.L_UPPER_ARM + row
    canvas.limb(
        np.array([shoulder, elbow]),
        (wide * 1.12, wide * 0.9),
        wear.skin if wear.sleeves < 2 else cloth,
        owner,
    )
    if wear.sleeves == 1:
        end = _mix(shoulder, elbow, 0.55)
        canvas.limb(np.array([shoulder, end]), (wide * 1.2, wide * 1.15), cloth, owner)


def _draw_leg(canvas: _Canvas, figure: _Figure, row: int, base: int, lower: bool) -> None:
    xy, h, wear = figure.xy, figure.height, figure.outfit
    wide = 0.034 * h * (0.5 + 0.5 * wear.girth)
    hip, knee, ankle, heel, toe = (
        xy[at + row] for at in (_At.L_HIP, _At.L_KNEE, _At.L_ANKLE, _At.L_HEEL, _At.L_TOE)
    )
    bare = wear.legs in (1, 2)
    colour = wear.skin if bare else wear.bottom if wear.legs == 0 else _shade(wear.accent, 0.8)
    if lower:
        owner = base + _Part.L_SHIN + row
        canvas.limb(np.array([heel, toe]), (wide * 0.62, wide * 0.55), wear.shoes, owner)
        canvas.limb(np.array([knee, ankle]), (wide * 0.92, wide * (0.6 if bare else 0.75)), colour, owner)
        if bare and wear.seam:
            canvas.limb(
                np.array([_mix(knee, ankle, 0.75), ankle]), (wide * 0.7, wide * 0.66), (235, 235, 235), owner
            )
        return
    owner = base + _Part.L_THIGH + row
    canvas.limb(np.array([hip, knee]), (wide * 1.25, wide * 0.95), colour, owner)
    if wear.legs == 1:
        canvas.limb(np.array([hip, _mix(hip, knee, 0.7)]), (wide * 1.3, wide * 1.25), wear.bottom, owner)
    elif wear.legs == 0 and wear.seam:
        canvas.line(hip, knee, wide * 0.5, wear.accent)


def _draw_skirt(canvas: _Canvas, figure: _Figure, base: int) -> None:
    xy, wide = figure.xy, 0.045 * figure.height * figure.outfit.girth
    hips, knees = xy[_At.L_HIP : _At.R_HIP + 1], xy[_At.L_KNEE : _At.R_KNEE + 1]
    hem = _mix(hips, knees, 0.75)
    canvas.limb(
        np.concatenate([hips, hem]), (wide, wide, wide, wide), figure.outfit.bottom, base + _Part.SKIRT
    )


def _draw_torso(canvas: _Canvas, figure: _Figure, base: int, front: bool) -> None:
    xy, h, wear = figure.xy, figure.height, figure.outfit
    owner = base + _Part.TORSO
    top, low = 0.03 * h, 0.036 * h * wear.girth
    neck = np.array([xy[_At.CHEST], xy[_At.HEAD]])
    canvas.limb(neck, (0.028 * h, 0.026 * h), _shade(wear.skin, 0.92), owner)
    shoulders = _mix(xy[_At.L_SHOULDER : _At.R_SHOULDER + 1], xy[_At.CHEST], 0.1)
    hips = xy[_At.L_HIP : _At.R_HIP + 1]
    canvas.limb(np.concatenate([shoulders, hips]), (top, top, low, low), wear.shirt, owner)
    # Patterns are drawn between the flanks, which bound the torso's inside from every view.
    left, right = (_mix(shoulders[row], shoulders[1 - row], -0.06) for row in (0, 1))
    low_left, low_right = hips[0], hips[1]
    if wear.pattern in (1, 5):
        for share in np.linspace(0.02, 0.96, 5 if wear.pattern == 1 else 4):
            canvas.line(
                _mix(left, low_left, share),
                _mix(right, low_right, share),
                0.028 * h * (0.7 if wear.pattern == 5 else 1),
                wear.accent,
            )
    if wear.pattern in (2, 5):
        for share in np.linspace(0.1, 0.9, 4):
            canvas.line(_mix(left, right, share), _mix(low_left, low_right, share), 0.016 * h, wear.accent)
    if wear.pattern == 3 and front:
        canvas.dot(_mix(_mix(left, right, 0.5), _mix(low_left, low_right, 0.5), 0.32), 0.036 * h, wear.accent)
    if wear.pattern == 4:
        sides = (0.12, 0.88) if front else (0.2, 0.5, 0.8)
        for share in sides:
            canvas.line(_mix(left, right, share), _mix(low_left, low_right, share), 0.055 * h, wear.accent)
    if wear.legs != 2 and wear.seam:
        canvas.line(low_left, low_right, 0.02 * h, _shade(wear.accent, 0.5))
    if front:
        canvas.dot(_mix(xy[_At.CHEST], xy[_At.HEAD], 0.12), 0.024 * h, wear.skin)


def _draw_head(canvas: _Canvas, figure: _Figure, base: int) -> None:
    xy, depth, wear = figure.xy, figure.depth, figure.outfit
    owner = base + _Part.HEAD
    center = xy[_At.HEAD]
    up = (xy[_At.CROWN] - center) / 1.25
    size = math.sqrt(float(up @ up))
    look = xy[_At.FACE] - center
    facing = (depth[_At.FACE] - depth[_At.HEAD]) * figure.height / size
    hair = wear.skin if wear.hairstyle == 2 else wear.hair
    if wear.hairstyle == 1:
        nape = center - 1.1 * up - 0.25 * look
        canvas.limb(np.array([center, nape]), (size * 0.98, size * 0.8), _shade(hair, 0.9), owner)
        if facing > -0.2:
            throat = np.array([center - 0.4 * up, _mix(center - 1.2 * up, xy[_At.CHEST], 0.6)])
            canvas.limb(
                throat, (size * 0.4, size * 0.4), _shade(wear.skin, 0.92), base + _Part.TORSO, rim=False
            )
    for row in (0, 1):
        if depth[_At.L_EAR + row] < depth[_At.HEAD]:
            canvas.dot(xy[_At.L_EAR + row], size * 0.24, _shade(wear.skin, 0.8), owner)
    skull = np.array([center + 0.22 * up, center - 0.3 * up])
    canvas.limb(skull, (size * 0.97, size * 0.78), hair, owner)
    if facing > -0.15:
        face = center + 0.18 * look * (1 if facing > 0.3 else 1.4)
        wide = size * (0.8 if facing > 0.5 else 0.68)
        outline = np.array([face + 0.05 * up, face - 0.42 * up])
        canvas.limb(outline, (wide, wide * 0.72), wear.skin, owner, rim=False)
    if wear.hairstyle == 3:
        brow = np.array([center + 0.45 * up + 0.1 * look, center + 0.8 * up])
        canvas.limb(brow, (size * 0.84, size * 0.58), wear.accent, owner)
        if facing > -0.15:
            across = np.array([-up[1], up[0]]) * 0.75
            brim = center + 0.42 * up + 0.55 * look
            canvas.line(brim - across, brim + across, max(1.0, size * 0.22), _shade(wear.accent, 0.6))
    for row in (0, 1):
        if depth[_At.L_EAR + row] >= depth[_At.HEAD] or facing > 0.75:
            canvas.dot(xy[_At.L_EAR + row], size * 0.22, _shade(wear.skin, 0.86), owner)
    for row in (0, 1):
        if _seen(figure, _At.L_EYE + row):
            canvas.dot(xy[_At.L_EYE + row], size * 0.23, (246, 246, 246))
            canvas.dot(xy[_At.L_EYE + row], size * 0.13, (30, 26, 40))
    if _seen(figure, _At.NOSE):
        canvas.line(xy[_At.NOSE] + 0.22 * up, xy[_At.NOSE], size * 0.2, _shade(wear.skin, 0.66))
        canvas.dot(xy[_At.NOSE], size * 0.15, _shade(wear.skin, 0.74))
    if _seen(figure, _At.MOUTH):
        across = np.array([-up[1], up[0]]) * 0.26 * min(1.0, max(0.2, facing))
        canvas.line(xy[_At.MOUTH] - across, xy[_At.MOUTH] + across, size * 0.16, (150, 50, 60))


def _seen(figure: _Figure, at: int) -> bool:
    """Return whether a point of the head is on the side that faces the camera (ears: or near the outline)."""
    xy, depth = figure.xy, figure.depth
    size = float(np.hypot(*(xy[_At.CROWN] - xy[_At.HEAD]))) / 1.25 / figure.height
    ahead = float(depth[at] - depth[_At.HEAD]) / size
    return ahead > (-0.45 if at in (_At.L_EAR, _At.R_EAR) else 0.12)


def _draw_figure(canvas: _Canvas, figure: _Figure, base: int) -> None:
    """Draw the parts of a figure from far to near."""
    depth = figure.depth
    front = bool(depth[_At.FACE] > depth[_At.HEAD])

    def mean(*rows: int) -> float:
        return float(sum(depth[row] for row in rows)) / len(rows)

    steps: list[tuple[float, Callable[[], None]]] = [
        (mean(_At.CHEST, _At.L_HIP, _At.R_HIP), partial(_draw_torso, canvas, figure, base, front)),
        (mean(_At.HEAD) + 0.05, partial(_draw_head, canvas, figure, base)),
    ]
    for row in (0, 1):
        thigh = mean(_At.L_HIP + row, _At.L_KNEE + row) - 0.03
        shin = mean(_At.L_KNEE + row, _At.L_ANKLE + row) - 0.031
        upper = mean(_At.L_SHOULDER + row, _At.L_ELBOW + row) + 0.012
        lower = mean(_At.L_ELBOW + row, _At.L_WRIST + row) + 0.014
        steps += [
            (thigh, partial(_draw_leg, canvas, figure, row, base, lower=False)),
            (shin, partial(_draw_leg, canvas, figure, row, base, lower=True)),
            (upper, partial(_draw_arm, canvas, figure, row, base, lower=False)),
            (lower, partial(_draw_arm, canvas, figure, row, base, lower=True)),
        ]
    if figure.outfit.legs >= 2:
        nearest = max(mean(_At.L_HIP + row, _At.L_KNEE + row) for row in (0, 1))
        steps.append((nearest - 0.02, partial(_draw_skirt, canvas, figure, base)))
    for _, draw in sorted(steps, key=lambda step: step[0]):
        draw()


# --- the scene -------------------------------------------------------------------------------------------


def _background(rng: Rng, height: int, width: int) -> NDArray[np.uint8]:
    """Return a backdrop: soft colour fields, often with a floor, texture and things standing about."""
    cells = int(rng.integers(2, 9))
    spread = rng.uniform(0.1, 0.7)
    tint = np.array(_any_colour(rng, muted=0.6), dtype=np.float32)
    grey, hue = rng.random((cells, cells, 1)) - 0.5, rng.random((cells, cells, 3)) - 0.5
    field = tint + 255 * spread * (grey + rng.random() * hue)
    image = np.asarray(
        cv2.resize(np.clip(field, 0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC),
        dtype=np.uint8,
    )
    if rng.random() < 0.6:
        horizon = int(height * rng.uniform(0.45, 0.85))
        floor = np.array(_any_colour(rng, muted=0.6), dtype=np.float32)
        image[horizon:] = np.clip(0.45 * image[horizon:] + 0.55 * floor, 0, 255).astype(np.uint8)
    if rng.random() < 0.35:
        step, colour = int(rng.integers(8, 40)), _any_colour(rng)
        thick = int(rng.integers(1, 4))
        for x in range(int(rng.integers(step)), width, step):
            cv2.line(image, (x, 0), (x + int(rng.integers(-8, 9)), height), colour, thick, cv2.LINE_AA)
        if rng.random() < 0.5:
            for y in range(int(rng.integers(step)), height, step):
                cv2.line(image, (0, y), (width, y), colour, thick, cv2.LINE_AA)
    canvas = _Canvas(image)
    for _ in range(int(rng.integers(1, 8))):
        _thing(rng, canvas, rng.uniform(0.03, 0.18), None)
    return image


def _thing(rng: Rng, canvas: _Canvas, size: float, owner: int | None) -> None:
    """Draw one piece of clutter: a box, a ball, a pole or a limb-like bar."""
    height, width = canvas.image.shape[:2]
    side = size * min(height, width)
    center = np.array([rng.random() * width, rng.random() * height])
    angle, kind, colour = rng.random() * math.pi, int(rng.integers(4)), _any_colour(rng)
    along = np.array([math.cos(angle), math.sin(angle)])
    if kind == 0:
        across = np.array([-along[1], along[0]]) * rng.uniform(0.4, 1.0)
        corners = np.stack([along + across, across - along, -along - across, along - across])
        canvas.shape((center + side * corners).astype(np.float32), colour, owner)
    elif kind == 1:
        canvas.dot(center, side * 0.8, colour, owner)
        canvas.dot(center - side * 0.2, side * 0.35, _shade(colour, 1.1, 20))
    elif kind == 2:
        reach = np.array([rng.normal(0, 0.1), rng.uniform(0.3, 1.0)]) * height
        upright = np.array([center, center + reach])
        outline = _capsule(upright[0], upright[1], max(1.0, side * 0.15), max(1.0, side * 0.15))
        canvas.shape(outline, colour, owner)
    else:
        ends = np.array([center - 1.5 * side * along, center + 1.5 * side * along])
        radii = (side * rng.uniform(0.2, 0.4), side * rng.uniform(0.2, 0.4))
        canvas.shape(_capsule(ends[0], ends[1], *radii), colour, owner)


def _finish(rng: Rng, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Light the scene unevenly, blur some pictures, and add the noise of a sensor."""
    height, width = image.shape[:2]
    if rng.random() < 0.2:
        image = np.asarray(cv2.GaussianBlur(image, (3, 3), 0.7), dtype=np.uint8)
    glow = rng.integers(150, 226, (2, 2, 1)) + rng.integers(-9, 10, (2, 2, 3))
    light = cv2.resize(glow.astype(np.uint8), (width, height))
    image = np.asarray(cv2.multiply(image, light, scale=1 / 200), dtype=np.uint8)
    noise, strength = rng.integers(0, 256, image.shape, dtype=np.uint8), rng.uniform(0.01, 0.09)
    return np.asarray(cv2.addWeighted(image, 1.0, noise, strength, -127.5 * strength), dtype=np.uint8)


def _place(rng: Rng, count: int, height: int, width: int) -> list[_Figure]:
    """Return figures that stand beside and partly in front of each other, from back to front."""
    figures: list[_Figure] = []
    span = ((0.6, 0.98), (0.52, 0.9), (0.45, 0.78))[min(count, 3) - 1]
    for slot in rng.permutation(count):
        body, camera, outfit = _body(rng), _camera(rng), _outfit(rng)
        turned = body @ camera.T
        for _ in range(8):
            tall = height * rng.uniform(*span)
            close = rng.random() < 0.08
            if close:
                tall *= rng.uniform(1.2, 1.6)
            xy = turned[:, :2] * tall
            low, high = xy.min(axis=0), xy.max(axis=0)
            x = (slot + 0.5) / count * width + rng.normal(0, 0.1) * width - (low[0] + high[0]) / 2
            room = height - (high[1] - low[1])
            top = rng.uniform(0.05, 0.25) * height if close else rng.uniform(0.03, 0.97) * room
            figure = _Figure(xy + np.array([x, top - low[1]]), turned[:, 2], tall, outfit)
            if all(_overlap(figure.box(), other.box()) < 0.5 for other in figures):
                figures.append(figure)
                break
    return sorted(figures, key=lambda figure: figure.box()[3])


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Return the part of the smaller box that the other covers."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(wide, 0.0) * max(high, 0.0) / smaller


def render(
    seed: int, index: int, size: tuple[int, int] = (192, 192), people: tuple[int, int] = (1, 4)
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Draw picture ``index`` of ``seed``; it does not depend on any other picture.

    Parameters
    ----------
    seed, index
        Non-negative numbers that name the picture.
    size
        (height, width) in pixels, at least 32 each.
    people
        Least and largest count of people; crowds are rarer than couples. Where one finds no place that
        leaves the others half free, there is one less.

    Returns
    -------
    image
        RGB, uint8 (height, width, 3).
    annotations
        COCO person annotations (17 joints; without ``id`` and ``image_id``) of all people of whom anything
        shows. A joint is v = 2 where its own limb shows, 1 where something covers it, 0 out of the
        frame and, on the head, where the head itself hides it.

    Raises
    ------
    InputError
        If an argument is out of its range.
    """
    if seed < 0 or index < 0 or min(size) < 32:
        raise InputError(
            f"synthetic pictures need seed >= 0, index >= 0 and 32 pixels, got {seed}, {index}, {size}"
        )
    if not 1 <= people[0] <= people[1] <= MAX_FIGURES:
        raise InputError(f"synthetic pictures show 1 to {MAX_FIGURES} people (least, largest), got {people}")
    height, width = size
    rng = np.random.default_rng([seed, index])
    counts = range(people[0], people[1] + 1)
    count = counts[_pick(rng, tuple(0.65**step for step in range(len(counts))))]
    canvas = _Canvas(_background(rng, height, width))
    figures = _place(rng, count, height, width)
    for number, figure in enumerate(figures):
        _draw_figure(canvas, figure, 1 + number * _PARTS)
    for _ in range(_pick(rng, (0.6, 0.28, 0.12))):
        _thing(rng, canvas, rng.uniform(0.04, 0.1), _CLUTTER)
    annotations = [
        annotation
        for number, figure in enumerate(figures)
        if (annotation := annotate(figure.xy, _hidden(figure), canvas.owner, 1 + number * _PARTS)) is not None
    ]
    return _finish(rng, canvas.image), annotations


def _hidden(figure: _Figure) -> NDArray[np.bool_]:
    """Return which joints the head itself hides, (17,)."""
    hidden = np.zeros(17, dtype=np.bool_)
    for at in range(_At.R_EAR + 1):
        hidden[at] = not _seen(figure, at)
    return hidden


def annotate(
    xy: Points, hidden: NDArray[np.bool_], owner: NDArray[np.uint8], base: int
) -> dict[str, Any] | None:
    """Return the COCO annotation of the figure that owns values ``base`` to ``base + 11``, None if hidden."""
    height, width = owner.shape
    mask = (owner >= base) & (owner < base + _PARTS)
    area = int(np.count_nonzero(mask))
    if area == 0:
        return None
    keypoints = np.zeros((17, 3))
    for joint in range(17):
        x, y = float(xy[joint, 0]), float(xy[joint, 1])
        column, row = round(x), round(y)
        if hidden[joint] or not (0 <= column < width and 0 <= row < height):
            continue
        part = int(owner[row, column]) - base
        shows = 0 <= part < _PARTS and bool(_SHOWING[joint, part])
        keypoints[joint] = round(x, 2), round(y, 2), 2 if shows else 1
    left, top, wide, high = cv2.boundingRect(mask.view(np.uint8))
    outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return {
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [left, top, wide, high],
        "area": area,
        "num_keypoints": int((keypoints[:, 2] > 0).sum()),
        "keypoints": keypoints.ravel().tolist(),
        "segmentation": [outline.ravel().tolist() for outline in outlines if len(outline) >= 3],
    }


def _category() -> dict[str, Any]:
    return {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(COCO17.joints),
        "skeleton": [[a + 1, b + 1] for a, b in COCO17.limbs],
    }


def generate(
    count: int,
    seed: int,
    size: tuple[int, int] = (192, 192),
    people: tuple[int, int] = (1, 4),
    first: int = 0,
) -> Iterator[tuple[NDArray[np.uint8], dict[str, Any], list[dict[str, Any]]]]:
    """Yield pictures ``first`` to ``first + count - 1`` of ``seed``.

    Yields
    ------
    The picture (RGB), its COCO image record and its COCO annotations. Picture ``index`` has the image id
    ``index + 1``; ids of annotations follow from it, so they do not depend on how many are asked for.

    Raises
    ------
    InputError
        If an argument is out of its range (see :func:`render`).
    """
    if count < 1 or first < 0:
        raise InputError(f"synthetic pictures need count >= 1 and first >= 0, got {count} and {first}")
    for index in range(first, first + count):
        image, annotations = render(seed, index, size, people)
        record = {"id": index + 1, "file_name": f"{index:06d}.png", "height": size[0], "width": size[1]}
        for number, annotation in enumerate(annotations):
            annotation["id"] = (index + 1) * 100 + number + 1
            annotation["image_id"] = index + 1
        yield image, record, annotations


class SyntheticPeople(PoseDataset):
    """Drawn people in memory, with the interface of :class:`PoseDataset`. Drawn when constructed.

    Parameters
    ----------
    count, seed, size, people, first
        As for :func:`generate`. Data sets of one seed with disjoint ranges share no picture.
    progress
        Called with the count of pictures drawn so far.

    Raises
    ------
    InputError
        If an argument is out of its range.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        size: tuple[int, int] = (192, 192),
        people: tuple[int, int] = (1, 4),
        first: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        images: dict[int, NDArray[np.uint8]] = {}
        records: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image, record, found in generate(count, seed, size, people, first):
            image.flags.writeable = False
            images[record["id"]] = image
            records.append(record)
            annotations += found
            if progress is not None:
                progress(len(records))
        content = {"images": records, "annotations": annotations, "categories": [_category()]}
        self._setup(content, images, None, None, f"synthetic people (seed {seed})")


def write_dataset(
    folder: str | Path,
    count: int,
    seed: int,
    size: tuple[int, int] = (192, 192),
    people: tuple[int, int] = (1, 4),
    first: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write drawn people as PNG files and a COCO-format file; nothing is redrawn that is there already.

    The annotation file is written last, so a folder that has one is complete.

    Parameters
    ----------
    folder
        Where ``annotations.json`` and ``images`` go.
    count
        Number of pictures.
    seed
        Draws everything; the same seed gives the same pictures.
    size
        Height and width, pixels.
    people
        Least and most people in a picture.
    first
        Number of the first picture: 0 to 99 and 100 to 199 of one seed show other people.
    progress
        Called with the number of pictures written so far.

    Returns
    -------
    Path of the annotation file, ``folder/annotations.json``; the images are in ``folder/images``.

    Raises
    ------
    InputError
        If an argument is out of its range.
    RunError
        If the folder cannot be written to.
    """
    folder = Path(folder)
    path, images = folder / "annotations.json", folder / "images"
    recipe: dict[str, Any] = {
        "description": "procedurally drawn people",
        "version": VERSION,
        "seed": seed,
        "first": first,
        "count": count,
        "size": list(size),
        "people": list(people),
    }
    if path.is_file() and _complete(path, images, recipe):
        return path
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    for image, record, found in generate(count, seed, size, people, first):
        encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
        digest.update(encoded)
        write_bytes(images / record["file_name"], encoded)
        records.append(record)
        annotations += found
        if progress is not None:
            progress(len(records))
    write_json(
        path,
        {
            "info": recipe | {"sha256": digest.hexdigest()},
            "images": records,
            "annotations": annotations,
            "categories": [_category()],
        },
    )
    return path


def _complete(path: Path, images: Path, recipe: dict[str, Any]) -> bool:
    """Return whether a folder holds what the recipe gives: the settings, and these very image files."""
    try:
        content = read_json(path, "annotation file")
        info = content["info"]
        digest = hashlib.sha256()
        for record in content["images"]:
            digest.update((images / record["file_name"]).read_bytes())
        return bool(info == recipe | {"sha256": digest.hexdigest()})
    except (InputError, OSError, KeyError, TypeError):
        return False
