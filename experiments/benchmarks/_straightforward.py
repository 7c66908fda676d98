"""The plain way to make targets and batches, one joint and one picture at a time: what ours is held against.

It does what bottom-up pose training usually does, with the same settings and the same random numbers as ours:
one warp of the picture, one of the mask per scale, targets per scale in loops over people and joints,
normalisation in floats, and torch's own collation.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from supernet.pose.dataset import PoseDataset
from supernet.pose.loader import MAX_PEOPLE, STRIDES, map_size
from supernet.pose.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TRANSLATE_UNIT,
    AffineTransform,
    Augmentation,
)


def loop_heatmaps(
    joints: NDArray[np.floating], height: int, width: int, sigma: float = 2.0
) -> NDArray[np.float32]:
    """Draw the heatmaps (J, height, width) of one picture's joints (P, J, 3), one after another."""
    reach = math.ceil(3 * sigma) + 1
    size = 2 * reach + 1
    grid = np.arange(0, size, 1, float)
    gaussian = np.exp(-((grid - reach) ** 2 + (grid[:, None] - reach) ** 2) / (2 * sigma**2))
    maps = np.zeros((joints.shape[1], height, width), dtype=np.float32)
    for person in joints:
        for index, joint in enumerate(person):
            if joint[2] <= 0:
                continue
            x, y = int(joint[0]), int(joint[1])
            if x < 0 or y < 0 or x >= width or y >= height:
                continue
            left, top = x - reach, y - reach
            right, bottom = left + size, top + size
            x0, x1 = max(0, left), min(width, right)
            y0, y1 = max(0, top), min(height, bottom)
            maps[index, y0:y1, x0:x1] = np.maximum(
                maps[index, y0:y1, x0:x1], gaussian[y0 - top : y1 - top, x0 - left : x1 - left]
            )
    return maps


def loop_tags(joints: NDArray[np.floating], height: int, width: int) -> NDArray[np.int64]:
    """Note where the joints (P, J, 3) of one picture, of at most 30 people, lie in the tag maps."""
    found = np.zeros((MAX_PEOPLE, joints.shape[1], 2), dtype=np.int64)
    for person, each in zip(found, joints, strict=False):
        count = 0
        for index, joint in enumerate(each):
            x, y = int(joint[0]), int(joint[1])
            if joint[2] > 0 and x >= 0 and y >= 0 and x < width and y < height:
                person[count] = (index * height * width + y * width + x, 1)
                count += 1
    return found


class PlainSamples(torch.utils.data.Dataset[dict[str, Any]]):
    """Pictures ready for torch's collation; those of one epoch at one resolution.

    The settings' random numbers are drawn as :func:`supernet.pose.transforms.augment` draws them.
    """

    def __init__(
        self, dataset: PoseDataset, resolution: int, augmentation: Augmentation, seed: int, epoch: int
    ) -> None:
        self.dataset, self.resolution, self.augmentation = dataset, resolution, augmentation
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def _transform(self, height: int, width: int, index: int) -> tuple[AffineTransform, bool]:
        augmentation, resolution = self.augmentation, self.resolution
        draws = np.random.default_rng([self.seed, self.epoch, index]).random(5)
        low, high = augmentation.scale
        side = min(height, width) * (low + draws[1] * (high - low))
        shift = augmentation.translate / TRANSLATE_UNIT * side
        center = (width / 2 + (2 * draws[2] - 1) * shift, height / 2 + (2 * draws[3] - 1) * shift)
        middle = (resolution / 2, resolution / 2)
        turn = (2 * draws[0] - 1) * augmentation.rotation
        transform = AffineTransform.about(center, middle, resolution / side, turn)
        mirrored = bool(draws[4] < augmentation.flip)
        if mirrored:
            transform = transform.then(AffineTransform(np.array([[-1.0, 0, resolution - 1], [0, 1, 0]])))
        return transform, mirrored

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset.load(index)
        resolution = self.resolution
        transform, mirrored = self._transform(*sample.mask.shape, index)
        matrix = transform.matrix
        image = cv2.warpAffine(sample.image, matrix, (resolution, resolution), flags=cv2.INTER_LINEAR)
        joints = sample.joints[:, self.dataset.skeleton.flip_index] if mirrored else sample.joints
        joints = joints.copy()
        for person in joints:
            for joint in person:
                joint[:2] = transform(joint[:2])
                if not (0 <= joint[0] < resolution and 0 <= joint[1] < resolution):
                    joint[2] = 0
        heatmaps, masks = [], []
        tags = None
        for stride in STRIDES:
            side = map_size(resolution, stride)
            mask = cv2.warpAffine(
                sample.mask.astype(np.uint8), matrix / stride, (side, side), flags=cv2.INTER_NEAREST
            )
            masks.append(mask.astype(np.float32))
            scaled = joints.copy()
            scaled[..., :2] /= stride
            heatmaps.append(loop_heatmaps(scaled, side, side))
            if tags is None:
                tags = loop_tags(scaled, side, side)
        pixels = (image.astype(np.float32) / 255.0 - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
        return {
            "images": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            "heatmaps": heatmaps,
            "masks": masks,
            "tags": tags,
        }


def loop_embedding_loss(tags: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Push and pull of associative embedding, one picture and one person after another."""
    pushes, pulls = [], []
    for maps, people in zip(tags, indices, strict=True):
        flat = maps.reshape(-1)
        means, pull = [], flat.sum() * 0
        for person in people:
            read = flat[person[person[:, 1] > 0, 0]]
            if len(read):
                means.append(read.mean())
                pull = pull + ((read - means[-1]) ** 2).mean()
        count = len(means)
        pulls.append(pull / max(count, 1))
        if count < 2:
            pushes.append(flat.sum() * 0)
            continue
        several = torch.stack(means)
        near = torch.exp(-((several[:, None] - several[None]) ** 2))
        pushes.append((near.sum() - count) / (2 * count * (count - 1)))
    return torch.stack(pushes).mean(), torch.stack(pulls).mean()


def plain_heatmap_loss(pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the masked mean squared error as its formula reads."""
    return ((pred - target) ** 2 * mask[:, None]).mean()
