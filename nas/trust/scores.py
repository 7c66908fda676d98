"""A network's AP on the search images, kept with its matches, so that the images can be drawn anew later."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from search_spaces import Arch, InputError, RunError, arch_from_json
from search_spaces.files import atomic_path, read_json, write_json
from supernet.evaluator import SubnetEvaluator
from supernet.pose.evaluate import scored_joints
from supernet.pose.matching import Matches, match_detections
from supernet.pose.scoring import BoolArray

__all__ = ["Score"]

_FORMAT: Final = 1
_MATCHES, _SCORE = "matches.npz", "score.json"


@dataclass(frozen=True)
class Score:
    """What one network reached.

    Attributes
    ----------
    arch
        The network.
    stats
        Average precision and recall, see :func:`supernet.pose.metrics.keypoint_ap`.
    matches
        Its detections matched to people, image by image.
    about
        What else is known, by name: seed, steps, seconds of a training; the weights' digest of a subnet.
    """

    arch: Arch
    stats: Mapping[str, float]
    matches: Matches
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def ap(self) -> float:
        """The AP that ``matches`` give on the images as they are; that of ``stats`` up to rounding."""
        return max(0.0, float(self.stats["AP"]))

    @classmethod
    def measure(cls, evaluator: SubnetEvaluator, arch: Arch, **about: Any) -> Score:
        """Return the score of ``arch``: extracted and recalibrated, on the evaluator's images."""
        result, dataset = evaluator.evaluate(arch), evaluator.dataset
        matches = match_detections(
            dataset.ground_truth(),
            result.detections,
            dataset.skeleton.sigmas,
            scored_joints(dataset),
            evaluator.protocol,
            evaluator.config.max_detections,
        )
        return cls(arch, dict(result.stats), matches, about)

    def save(self, folder: Path) -> None:
        """Write the score into a folder of its own; it is there once all of it is."""
        with atomic_path(folder / _MATCHES) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **_packed(self.matches))
        value = {
            "format": _FORMAT,
            "id": self.arch.id,
            "arch": self.arch.to_json(),
            "protocol": self.matches.protocol,
            "stats": dict(self.stats),
            **self.about,
        }
        write_json(folder / _SCORE, value)

    @classmethod
    def load(cls, folder: Path) -> Score | None:
        """Return the score in a folder, None if there is none.

        Raises
        ------
        RunError
            If it is damaged.
        """
        path = folder / _SCORE
        if not path.is_file():
            return None
        try:
            value = read_json(path, "score")
            if value.pop("format") != _FORMAT:
                raise RunError(f"'{path}' is not a score of format {_FORMAT}; delete it to make it anew")
            arch = arch_from_json(value.pop("arch"), f"score '{path}'")
            with np.load(folder / _MATCHES, allow_pickle=False) as arrays:
                matches = _unpacked(value.pop("protocol"), arrays)
            stats = {str(name): float(figure) for name, figure in value.pop("stats").items()}
            del value["id"]
        except (
            *(KeyError, TypeError, ValueError, AttributeError),
            *(InputError, OSError, EOFError, zipfile.BadZipFile),
        ) as error:
            raise RunError(f"'{folder}' holds a damaged score ({error}); delete it to make it anew") from None
        return cls(arch, stats, matches, value)


def _packed(matches: Matches) -> dict[str, Any]:
    """Return the matches as small arrays by name; masks as bits."""
    return {
        "image_ids": matches.image_ids,
        "image": matches.image,
        "shape": np.array(matches.right.shape),
        "right": np.packbits(matches.right),
        "ignored": np.packbits(matches.ignored),
        "people": matches.people,
        **{f"level_{name}": mask for name, mask in matches.levels.items()},
    }


def _unpacked(protocol: Any, arrays: Mapping[str, Any]) -> Matches:
    shape = tuple(arrays["shape"].tolist())

    def mask(name: str) -> BoolArray:
        count = int(np.prod(shape))
        return np.unpackbits(arrays[name], count=count).astype(bool).reshape(shape)

    return Matches(
        protocol=protocol,
        image_ids=arrays["image_ids"],
        image=arrays["image"],
        right=mask("right"),
        ignored=mask("ignored"),
        people=arrays["people"],
        levels={name.removeprefix("level_"): arrays[name] for name in arrays if name.startswith("level_")},
    )
