"""Geometry and colour: what happens to a picture and its joints on the way to the network.

Pixel centres sit at integer coordinates, as the research code reads COCO files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from search_spaces.errors import InputError

if TYPE_CHECKING:
    from supernet.pose.dataset import PoseSample

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MEAN_COLOUR",
    "TRANSLATE_UNIT",
    "AffineTransform",
    "Augmentation",
    "augment",
    "colour_change",
    "eval_size",
    "letterbox",
    "normalise",
    "resize_for_eval",
]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
TRANSLATE_UNIT: Final = 200.0
"""Parts of the frame's side in which :attr:`Augmentation.translate` is stated."""


@dataclass(frozen=True)
class AffineTransform:
    """An affine map of the plane, ``(x, y) -> A (x, y) + t``, held as the 2x3 matrix ``[A | t]``."""

    matrix: NDArray[np.float64]

    @classmethod
    def about(
        cls,
        center: tuple[float, float],
        target: tuple[float, float],
        scale: float,
        rotation: float = 0.0,
    ) -> AffineTransform:
        """Scale, rotate by degrees (clockwise on screen) and carry the point ``center`` to ``target``."""
        angle = math.radians(rotation)
        cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
        shift_x = target[0] - cosine * center[0] + sine * center[1]
        shift_y = target[1] - sine * center[0] - cosine * center[1]
        return cls(np.array([[cosine, -sine, shift_x], [sine, cosine, shift_y]], dtype=np.float64))

    def __call__(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map points of shape (..., 2)."""
        return np.asarray(points @ self.matrix[:, :2].T + self.matrix[:, 2], dtype=np.float64)

    def then(self, other: AffineTransform) -> AffineTransform:
        """Return the map that applies this one first and ``other`` second."""
        a, b = self.matrix, other.matrix
        return AffineTransform(np.column_stack([b[:, :2] @ a[:, :2], b[:, :2] @ a[:, 2] + b[:, 2]]))

    def inverse(self) -> AffineTransform:
        """Return the inverse map.

        Raises
        ------
        numpy.linalg.LinAlgError
            If the map is singular.
        """
        linear = np.linalg.inv(self.matrix[:, :2])
        return AffineTransform(np.column_stack([linear, -linear @ self.matrix[:, 2]]))


@dataclass(frozen=True)
class Augmentation:
    """How training pictures vary; the defaults are LitePose's published recipe.

    Attributes
    ----------
    rotation
        Largest rotation either way, degrees.
    scale
        Least and largest side of the square cut out of the picture, as multiple of its **short** side: at 1.5
        people come out smaller, at 0.75 larger.
    translate
        Largest shift of that square either way, in 1/200 of its side (the unit of the research code): 40 is
        a fifth of the frame, whatever the resolution.
    flip
        Probability of mirroring.
    brightness, contrast, saturation
        Largest relative change; 0 (as published) leaves the colours alone.
    hue
        Largest turn of the hues either way, degrees of the colour circle.
    gray
        Probability of losing all colour.
    half_body
        Probability that only a person's upper or lower half is shown, where enough of it is labelled. For
        top-down networks alone, whose pictures are crops of people (:mod:`supernet.pose.crops`): there the
        other values apply to the crop, ``scale`` to its sides and ``translate`` in 1/200 of them.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    rotation: float = 30.0
    scale: tuple[float, float] = (0.75, 1.5)
    translate: float = 40.0
    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gray: float = 0.0
    half_body: float = 0.0

    def __repr__(self) -> str:
        """Say nothing of half bodies where there are none: what was noted before they came stays the same."""
        told = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        if not self.half_body:
            del told["half_body"]
        return f"Augmentation({', '.join(f'{name}={value!r}' for name, value in told.items())})"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        if not 0 <= self.rotation <= 180:
            raise InputError(f"augmentation: rotation must be 0..180 degrees, got {self.rotation}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise InputError(f"augmentation: scale must be (least, largest), both positive, got {self.scale}")
        if not 0 <= self.translate <= TRANSLATE_UNIT:
            raise InputError(
                f"augmentation: translate must be 0..200 (1/200 of the frame), got {self.translate}"
            )
        for name in ("flip", "gray", "half_body"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augmentation: {name} is a probability 0..1, got {getattr(self, name)}")
        if not 0 <= self.hue <= 180:
            raise InputError(f"augmentation: hue must be 0..180 degrees, got {self.hue}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"augmentation: {name} must be at least 0 and below 1, got {getattr(self, name)}"
                )

    @classmethod
    def none(cls) -> Augmentation:
        """Return the augmentation that changes nothing: the centred square of the short side."""
        return cls(rotation=0.0, scale=(1.0, 1.0), translate=0.0, flip=0.0)


_TO_LUMA: Final = np.array(
    [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]]
)
"""RGB to luma and the two axes of chroma (YIQ, as NTSC defines it)."""


def colour_change(
    augmentation: Augmentation, draws: NDArray[np.float64], image: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Change the colours of a picture: everything in one affine map of RGB, so in one pass.

    Hue turns the plane of chroma and keeps luma; saturation mixes with luma; contrast stretches about the
    mean of all values; brightness multiplies.

    Parameters
    ----------
    augmentation
        How much may change.
    draws
        Five numbers 0..1: for brightness, contrast, saturation, hue, gray.
    image
        uint8 (H, W, 3), returned as it is where nothing changes.
    """
    limits = (augmentation.brightness, augmentation.contrast, augmentation.saturation, augmentation.hue)
    brightness, contrast, saturation, turn = (2 * draws[:4] - 1) * limits
    gray = draws[4] < augmentation.gray
    if not (brightness or contrast or saturation or turn or gray):
        return image
    linear = np.eye(3)
    if turn:
        angle = math.radians(turn)
        cosine, sine = math.cos(angle), math.sin(angle)
        rotation = np.array([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
        linear = np.linalg.solve(_TO_LUMA, rotation @ _TO_LUMA)
    colour = 0.0 if gray else 1 + saturation
    linear = colour * linear + (1 - colour) * _TO_LUMA[0]
    offset = 0.0
    if contrast:
        offset = -contrast * float(np.mean(linear @ cv2.mean(image)[:3]))
        linear = linear * (1 + contrast)
    matrix = np.column_stack([linear, np.full(3, offset)]) * (1 + brightness)
    return np.asarray(cv2.transform(image, matrix), dtype=np.uint8)


def augment(
    sample: PoseSample,
    resolution: int,
    augmentation: Augmentation,
    rng: np.random.Generator,
    flip_index: NDArray[np.int64],
    mask_stride: int = 1,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_], bool]:
    """Cut a randomly placed, turned, scaled and mirrored square out of a picture, in one affine warp.

    Every call draws the same count of random numbers, whatever the settings; what a setting uses does not
    depend on the others.

    Parameters
    ----------
    sample
        Picture (H, W, 3), joints (P, J, 3), mask (H, W).
    resolution
        Side R of the result, pixels.
    augmentation
        How much may change.
    rng
        Source of randomness.
    flip_index
        Joint that each joint becomes in the mirror, shape (J,).
    mask_stride
        A power of two; the mask is made for every ``mask_stride``-th row and column only.

    Returns
    -------
    image
        uint8 (R, R, 3); black outside the picture.
    joints
        float32 (P, J, 3) in pixels of ``image``; joints outside the frame get v = 0.
    mask
        bool (R, R), or ``mask[::mask_stride, ::mask_stride]`` of that; False outside the picture and where
        the sample's mask is.
    mirrored
        Whether it is, so that left joints have become right ones.

    Raises
    ------
    InputError
        If halves of bodies are asked for: there are several people in a picture.
    """
    if augmentation.half_body:
        raise InputError(
            f"augmentation: half_body ({augmentation.half_body}) is for networks that see one person at a"
            " time; this one sees whole pictures: set it to 0"
        )
    height, width = sample.mask.shape
    turn, zoom, shift_x, shift_y, mirror, *colour = rng.random(10)
    side = min(height, width) * (
        augmentation.scale[0] + zoom * (augmentation.scale[1] - augmentation.scale[0])
    )
    reach = augmentation.translate / TRANSLATE_UNIT * side
    center = (width / 2 + (2 * shift_x - 1) * reach, height / 2 + (2 * shift_y - 1) * reach)
    rotation = (2 * turn - 1) * augmentation.rotation
    transform = AffineTransform.about(center, (resolution / 2, resolution / 2), resolution / side, rotation)
    joints, mirrored = sample.joints, bool(mirror < augmentation.flip)
    if mirrored:
        transform = transform.then(
            AffineTransform(np.array([[-1.0, 0.0, resolution - 1.0], [0.0, 1.0, 0.0]]))
        )
        joints = joints[:, flip_index]
    image = cv2.warpAffine(sample.image, transform.matrix, (resolution, resolution), flags=cv2.INTER_LINEAR)
    moved = joints.astype(np.float32, copy=True)
    moved[..., :2] = transform(joints[..., :2])
    xy = moved[..., :2]
    moved[..., 2] *= ((xy >= 0) & (xy < resolution)).all(axis=-1)
    coloured = colour_change(augmentation, np.array(colour), np.asarray(image, dtype=np.uint8))
    return coloured, moved, _warp_mask(sample.mask, transform, resolution, mask_stride), mirrored


def _warp_mask(
    mask: NDArray[np.bool_], transform: AffineTransform, resolution: int, stride: int
) -> NDArray[np.bool_]:
    """Return every ``stride``-th row and column of the mask after the transform; False outside of it."""
    height, width = mask.shape
    side = -(-resolution // stride)
    last = resolution - 1.0
    corners = transform.inverse()(np.array([[0.0, 0.0], [last, 0.0], [0.0, last], [last, last]]))
    if (corners >= 0).all() and (corners <= (width - 1, height - 1)).all() and mask.all():
        return np.ones((side, side), dtype=np.bool_)
    # Halving a matrix is exact, so these are the very pixels of the full warp.
    warped = cv2.warpAffine(
        mask.view(np.uint8), transform.matrix / stride, (side, side), flags=cv2.INTER_NEAREST
    )
    return np.asarray(warped, dtype=np.uint8) > 0


def eval_size(height: int, width: int, resolution: int, multiple: int = 64) -> tuple[int, int]:
    """Return (height, width) at which the network sees a picture when it is evaluated.

    The short side becomes ``resolution`` (rounded up to ``multiple``), the long side keeps the picture's
    aspect and is rounded up to ``multiple``, except for a rest below one pixel: the sizes of HigherHRNet's
    test code, with its ``multiple`` of 64.

    Raises
    ------
    InputError
        If a value is not positive.
    """
    if min(height, width, resolution, multiple) < 1:
        raise InputError(
            f"evaluation size needs positive numbers, got picture {width}x{height}, resolution {resolution}, "
            f"multiple {multiple}"
        )
    short = -(-resolution // multiple) * multiple
    long = int(short / min(height, width) * max(height, width) + multiple - 1) // multiple * multiple
    return (long, short) if width < height else (short, long)


def resize_for_eval(
    image: NDArray[np.uint8], resolution: int, multiple: int = 64
) -> tuple[NDArray[np.uint8], AffineTransform]:
    """Scale a picture for evaluation, centred, with black bands where its aspect leaves a rest.

    Returns
    -------
    image
        uint8 of the size :func:`eval_size`.
    back
        Maps coordinates in the scaled picture to the original one.
    """
    height, width = image.shape[:2]
    out_height, out_width = eval_size(height, width, resolution, multiple)
    scale = out_width / width if width < height else out_height / height
    return _centred(image, (out_height, out_width), scale)


def letterbox(image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], AffineTransform]:
    """Fit a whole picture into a fixed size, centred, with bands where its aspect leaves a rest.

    Networks exported for one input size see pictures like this. A picture of the size's aspect is scaled
    as :func:`resize_for_eval` scales it. The bands have the mean colour, which :func:`normalise` makes 0,
    like the padding of convolutions. They must not be black: training masks what lies outside a picture, so
    in broad black bands a network sees people (LitePose-M at 448x448 on 45 photos: .21 AP, against .45).

    Parameters
    ----------
    image
        uint8 (H, W, 3).
    size
        (height, width) of the result, pixels.

    Returns
    -------
    image
        uint8 of that size.
    back
        Maps coordinates in the scaled picture to the original one.
    """
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    return _centred(image, size, scale, MEAN_COLOUR)


def _centred(
    image: NDArray[np.uint8], size: tuple[int, int], scale: float, bands: tuple[float, ...] = (0, 0, 0)
) -> tuple[NDArray[np.uint8], AffineTransform]:
    """Scale a picture about its centre onto a canvas of (height, width); return it and the way back."""
    height, width = image.shape[:2]
    center = (int(width / 2 + 0.5), int(height / 2 + 0.5))
    forth = AffineTransform.about(center, (size[1] / 2, size[0] / 2), scale)
    scaled = cv2.warpAffine(image, forth.matrix, size[::-1], flags=cv2.INTER_LINEAR, borderValue=bands)
    return np.asarray(scaled, dtype=np.uint8), forth.inverse()


_MEAN: Final = np.array(IMAGENET_MEAN, dtype=np.float32) * np.float32(255)
MEAN_COLOUR: Final[tuple[float, ...]] = tuple(_MEAN.round().tolist())
"""RGB of the bytes that :func:`normalise` makes 0, or nearly so."""
_INVERSE: Final = np.float32(1) / (np.array(IMAGENET_STD, dtype=np.float32) * np.float32(255))
_TABLE: Final = ((np.arange(256, dtype=np.float32)[:, None] - _MEAN) * _INVERSE)[None]
"""What each of a byte's 256 values becomes in each channel, (1, 256, 3)."""


def normalise(images: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
    """Turn RGB pictures uint8 (N, H, W, 3) into float32 (N, 3, H, W), channels last in memory.

    Values are ``(x / 255 - mean) / std`` with ImageNet's mean and standard deviation: looked up on a CPU, in
    one pass; computed on other devices, where a tensor stays. The bits are the same.
    """
    if isinstance(images, torch.Tensor) and images.device.type != "cpu":
        return _normalise_there(images)
    pixels = np.ascontiguousarray(images)
    out = np.empty(pixels.shape, dtype=np.float32)
    if pixels.size:
        rows = (-1, pixels.shape[2], 3)
        cv2.LUT(pixels.reshape(rows), _TABLE, dst=out.reshape(rows))
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def _normalise_there(images: torch.Tensor) -> torch.Tensor:
    mean, inverse = (torch.from_numpy(each).to(images.device) for each in (_MEAN, _INVERSE))
    return images.float().sub_(mean).mul_(inverse).permute(0, 3, 1, 2)
