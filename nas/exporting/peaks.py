"""Peaks that a file picks, held against those of torch's maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from torch import Tensor

from nas.quantising import Job
from supernet.onnx_peaks import PEAK_OUTPUTS
from supernet.paradigms import BOTTOM_UP, TOP_DOWN
from supernet.pose.decode import GroupingConfig, find_peaks
from supernet.pose.finding import as_picked
from supernet.pose.maps import EvalConfig, predict_maps
from supernet.pose.peaks import PickedPeaks

__all__ = ["PeakErrors", "check_peaks"]

Array = NDArray[np.float32]


def check_peaks(job: Job) -> None:
    """Refuse a network that is evaluated as no file that picks peaks can be.

    Raises
    ------
    InputError
        If its evaluation runs pictures more than once, or projects maps.
    """
    as_picked(job.config(), PickedPeaks((1, 1), 1, 1, 0.0))


class PeakErrors:
    """Largest errors of a file's peaks so far, picture by picture.

    Values and tags are compared where a peak lies in both. Whether a pixel is a peak, and toward which
    neighbour its place moves, follow from comparisons, so rounding can turn them where two values are next to
    equal. Such a difference counts as the least change of torch's heatmap that explains it: half of what
    lies between both values. A peak at a wrong place, or none where one should be, is thereby an error of
    about its height, and a tie is none.

    Parameters
    ----------
    picked
        How the file picks.
    """

    def __init__(self, picked: PickedPeaks) -> None:
        self.picked = picked
        self.counts = {"torch": 0, "file": 0, "equal": 0}
        """Peaks above the threshold, and how many of them lie at the same pixel."""

    def of(self, maps: Sequence[Tensor], found: Sequence[Tensor]) -> dict[str, tuple[float, float]]:
        """Return error and largest value of each output.

        Parameters
        ----------
        maps
            Torch's outputs for some pictures.
        found
            The file's.
        """
        theirs = [each.double().numpy() for each in found]
        if len(maps) == 1:
            return self._together(
                TOP_DOWN.name,
                [self._joints(heat, *each) for heat, *each in zip(maps[0].numpy(), *theirs, strict=True)],
            )
        images = torch.zeros(len(maps[0]), 3, 1, 1)
        pair = maps[0], maps[1]
        det, tags = predict_maps(lambda _: pair, images, None, EvalConfig(64))  # type: ignore[arg-type]
        rows = zip(det.numpy(), tags.numpy(), *theirs, strict=True)
        return self._together(BOTTOM_UP.name, [self._peaks(*row) for row in rows])

    def _together(
        self, paradigm: str, rows: Sequence[Mapping[str, tuple[float, float]]]
    ) -> dict[str, tuple[float, float]]:
        return {
            name: (_most(row[name][0] for row in rows), max(row[name][1] for row in rows))
            for name in PEAK_OUTPUTS[paradigm]
        }

    def _peaks(
        self, det: Array, tags: Array, values: NDArray[Any], places: NDArray[Any], own: NDArray[Any]
    ) -> dict[str, tuple[float, float]]:
        """Return the errors of one picture's peaks: maps (J, H, W), tags (J, H, W, 1)."""
        picked = self.picked
        config = GroupingConfig(
            max_people=picked.most, nms_kernel=picked.kernel, detection_threshold=picked.threshold
        )
        val_k, loc_k, _ = find_peaks(det, tags, config)
        heat, tag = det.astype(np.float64), tags[..., 0].astype(np.float64)
        joints, height, width = heat.shape
        largest = float(np.abs(heat).max()), float(np.abs(tag).max())
        infinite = float("inf")
        if values.shape[0] != joints or not all(np.isfinite(each).all() for each in (values, places, own)):
            names = PEAK_OUTPUTS[BOTTOM_UP.name]
            return {name: (infinite, size) for name, size in zip(names, (*largest[:1] * 2, largest[1]))}
        there = values > 0
        joint = np.nonzero(there)[0]
        pixel = np.clip(np.floor(places[there]).astype(np.int64), 0, (width - 1, height - 1))
        x, y = pixel.T
        value = _largest(values[there] - heat[joint, y, x])
        off_tag = _largest(own[there] - tag[joint, y, x])
        # By how much each pixel of the maps is a peak; below 0: is none.
        kernel = np.ones((picked.kernel, picked.kernel), bool)
        kernel[picked.kernel // 2, picked.kernel // 2] = False
        around = np.stack([maximum_filter(each, footprint=kernel, mode="nearest") for each in heat])
        standing = heat - picked.threshold
        if picked.kernel > 1:
            standing = np.minimum(standing, heat - around)
        ours = np.zeros(heat.shape, bool)
        mine = np.nonzero(val_k > 0)
        ours[mine[0], loc_k[mine][:, 1], loc_k[mine][:, 0]] = True
        theirs = np.zeros(heat.shape, bool)
        theirs[joint, y, x] = True
        gaps = [0.0]
        last = np.where(there.all(axis=1), values[:, -1], -infinite)  # lowest of those who fill the list
        for j, row, column in zip(*np.nonzero(ours & ~theirs), strict=True):
            gaps.append(max(0.0, min(standing[j, row, column], heat[j, row, column] - last[j])))
        last = np.where((val_k > 0).all(axis=1), val_k[:, -1], -infinite)
        for j, row, column in zip(*np.nonzero(theirs & ~ours), strict=True):
            gaps.append(max(0.0, -standing[j, row, column], last[j] - heat[j, row, column]))
        moved = _steps(heat, joint, x, y, places[there] - pixel - 0.5, inner=False)
        self._count(int(ours.sum()), int(theirs.sum()), int((ours & theirs).sum()))
        return {
            "peak_values": (value, largest[0]),
            "peak_places": (_most((max(gaps) / 2, moved)), largest[0]),
            "peak_tags": (off_tag, largest[1]),
        }

    def _joints(
        self, heat: Array, values: NDArray[Any], places: NDArray[Any]
    ) -> dict[str, tuple[float, float]]:
        """Return the errors of one person's joints: maps (J, h, w)."""
        maps = heat.astype(np.float64)
        joints, height, width = maps.shape
        largest = float(np.abs(maps).max())
        if len(values) != joints or not (np.isfinite(values).all() and np.isfinite(places).all()):
            return {name: (float("inf"), largest) for name in PEAK_OUTPUTS[TOP_DOWN.name]}
        joint = np.arange(joints)
        pixel = np.clip(np.floor(places).astype(np.int64), 0, (width - 1, height - 1))
        x, y = pixel.T
        here = maps[joint, y, x]
        highest = maps.reshape(joints, -1).max(axis=1)
        moved = _steps(maps, joint, x, y, places - pixel - 0.5, inner=True)
        self._count(joints, joints, int((here == highest).sum()))
        return {
            "joint_values": (_largest(values - here), largest),
            "joint_places": (_most((_largest(highest - here) / 2, moved)), largest),
        }

    def _count(self, torch_peaks: int, file_peaks: int, equal: int) -> None:
        for name, count in zip(self.counts, (torch_peaks, file_peaks, equal), strict=True):
            self.counts[name] += count


def _steps(
    heat: NDArray[Any],
    joint: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    steps: NDArray[Any],
    *,
    inner: bool,
) -> float:
    """Return the least change of the heatmaps that explains every step within a pixel, (P, 2)."""
    if not len(joint):
        return 0.0
    _, height, width = heat.shape
    worst = 0.0
    for axis, (place, last, dx, dy) in enumerate(((x, width - 1, 1, 0), (y, height - 1, 0, 1))):
        behind = heat[joint, np.minimum(y + dy, height - 1), np.minimum(x + dx, width - 1)]
        before = heat[joint, np.maximum(y - dy, 0), np.maximum(x - dx, 0)]
        slope = behind - before
        expected = np.sign(slope) if inner else np.where(slope > 0, 1.0, -1.0)
        if inner:
            expected = np.where((place > 0) & (place < last), expected, 0.0)
            slope = np.where((place > 0) & (place < last), slope, np.inf)
        wrong = np.abs(steps[:, axis] - expected / 4) > 1e-3
        worst = _most((worst, *(np.abs(slope[wrong]) / 2)))
    return worst


def _largest(values: NDArray[Any]) -> float:
    return float(np.abs(values).max()) if values.size else 0.0


def _most(values: Any) -> float:
    """Return the largest; infinite where one is no number."""
    found = [float(each) for each in values]
    return max(found) if all(np.isfinite(found)) else float("inf")
