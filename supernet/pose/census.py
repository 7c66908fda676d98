"""What a keypoint data set holds, in numbers: people, joints, sizes, crowding."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from supernet.pose.scoring import CROWD_LEVELS

__all__ = ["RESOLUTIONS", "SCALE_EDGES", "Census", "PersonFacts", "PictureFacts", "scale_name"]

RESOLUTIONS: Final = (256, 320, 384, 448, 512)
"""Resolutions of LitePose's networks, pixels."""
SCALE_EDGES: Final = (0, 16, 32, 64, 96, 128, 192, 256, 384, 512)
"""Lower bounds of the bins of sqrt(area), pixels. COCO's small ends at 32, its medium at 96."""


def scale_name(scale: float) -> str:
    """Return COCO's name of a size sqrt(area) in pixels: small below 32, medium below 96, large."""
    return "small" if scale < 32 else "medium" if scale < 96 else "large"


@dataclass(frozen=True)
class PictureFacts:
    """One image that the annotation file lists soundly.

    Attributes
    ----------
    image_id, file_name
        As in the file.
    height, width
        Pixels.
    crowd_index
        CrowdPose's ``crowdIndex`` in 0..1, None where there is none.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    crowd_index: float | None = None


@dataclass(frozen=True)
class PersonFacts:
    """One annotation whose fields could be read.

    Attributes
    ----------
    annotation_id, image_id
        As in the file.
    keypoints
        float64 (J, 3) in the file's own joints; 0 where unlabelled.
    box
        x, y, width, height.
    area
        Square pixels.
    crowd
        Whether it stands for a group (``iscrowd``).
    """

    annotation_id: int
    image_id: int
    keypoints: NDArray[np.float64]
    box: tuple[float, float, float, float]
    area: float
    crowd: bool

    @cached_property
    def labelled(self) -> bool:
        """Whether it is one person with at least one labelled joint: what is trained on and scored."""
        return not self.crowd and bool((self.keypoints[:, 2] > 0).any())


@dataclass(frozen=True)
class Census:
    """A data set in numbers; pictures and people that are flawed beyond reading are not in it.

    Attributes
    ----------
    joints
        Names of the file's joints.
    pictures, people
        What was counted.
    """

    joints: tuple[str, ...] = ()
    pictures: Sequence[PictureFacts] = ()
    people: Sequence[PersonFacts] = ()

    @cached_property
    def labelled(self) -> tuple[PersonFacts, ...]:
        """The people that are trained on and scored."""
        return tuple(each for each in self.people if each.labelled)

    def joint_counts(self) -> dict[str, dict[str, int]]:
        """Return per joint how often it is visible, occluded and unlabelled among the labelled people."""
        if not self.labelled:
            return {name: {"visible": 0, "occluded": 0, "unlabelled": 0} for name in self.joints}
        seen = np.stack([each.keypoints[:, 2] for each in self.labelled])
        return {
            name: {
                what: int((seen[:, joint] == value).sum())
                for what, value in (("visible", 2), ("occluded", 1), ("unlabelled", 0))
            }
            for joint, name in enumerate(self.joints)
        }

    def people_per_image(self) -> dict[int, int]:
        """Return how many images show 0, 1, 2... labelled people."""
        shown = Counter(each.image_id for each in self.labelled)
        counts = Counter(shown[picture.image_id] for picture in self.pictures)
        return {number: counts[number] for number in sorted(counts)}

    def scales(self) -> NDArray[np.float64]:
        """Return sqrt(area) of every labelled person, pixels."""
        return np.sqrt(np.array([each.area for each in self.labelled], dtype=np.float64))

    def scale_histogram(self) -> dict[str, int]:
        """Return how many labelled people fall between each two of :data:`SCALE_EDGES`."""
        counts, _ = np.histogram(self.scales(), bins=[*SCALE_EDGES, np.inf])
        names = [f"{low}-{high}" for low, high in itertools.pairwise(SCALE_EDGES)]
        return dict(zip([*names, f"{SCALE_EDGES[-1]}+"], counts.tolist(), strict=True))

    def relative_scales(self) -> NDArray[np.float64]:
        """Return sqrt(area) of every labelled person as share of its image's short side.

        Times a network's resolution, which an image's short side is scaled to, that is the person's size in
        the network's input, pixels.
        """
        short = {each.image_id: min(each.height, each.width) for each in self.pictures}
        return self.scales() / np.array([short[each.image_id] for each in self.labelled], dtype=np.float64)

    def crowd_levels(self) -> dict[str, int]:
        """Return how many images are easy, medium and hard by CrowdPose's crowdIndex; empty without any."""
        known = [each.crowd_index for each in self.pictures if each.crowd_index is not None]
        if not known:
            return {}
        return {
            name: sum(least <= value < end for value in known) for name, (least, end) in CROWD_LEVELS.items()
        }

    def to_json(self, resolutions: Sequence[int] = RESOLUTIONS) -> dict[str, Any]:
        """Return everything as JSON; people's sizes also in pixels at each of ``resolutions``."""
        scales, relative = self.scales(), self.relative_scales()
        sizes = Counter((each.width, each.height) for each in self.pictures)
        coco = Counter(map(scale_name, scales.tolist()))
        return {
            "images": len(self.pictures),
            "images_with_people": len({each.image_id for each in self.labelled}),
            "people": sum(not each.crowd for each in self.people),
            "labelled_people": len(self.labelled),
            "crowds": sum(each.crowd for each in self.people),
            "labelled_joints": int(sum((each.keypoints[:, 2] > 0).sum() for each in self.labelled)),
            "joints": self.joint_counts(),
            "people_per_image": {str(number): count for number, count in self.people_per_image().items()},
            "scale": {
                "coco": {name: coco[name] for name in ("small", "medium", "large")},
                "histogram": self.scale_histogram(),
                "pixels": _spread(scales),
                "share_of_short_side": _spread(relative),
                "pixels_at_resolution": {str(side): _spread(relative * side) for side in resolutions},
            },
            "crowd_index": self.crowd_levels(),
            "image_sizes": {
                "short_side": _spread(np.array([min(size) for size in sizes.elements()], dtype=np.float64)),
                "long_side": _spread(np.array([max(size) for size in sizes.elements()], dtype=np.float64)),
                "most_common": [
                    {"width": width, "height": height, "images": count}
                    for (width, height), count in sizes.most_common(5)
                ],
            },
        }


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    """Return least, 10 %, median, 90 % and largest value, to four digits; empty for no value."""
    if not len(values):
        return {}
    names = ("min", "p10", "median", "p90", "max")
    found = np.quantile(values, [0, 0.1, 0.5, 0.9, 1])
    return {name: float(f"{value:.4g}") for name, value in zip(names, found.tolist(), strict=True)}
