"""The straightforward way from maps to people, as pose research does it: what ours is held against.

Maxima by max-pooling whole maps, the highest of all pixels by top-k, and then loops: over joints, peaks and
people for costs and groups; over people and joints for the quarter-pixel shift; and, for every joint that a
person lacks, a search of the whole map. It follows the published conventions and keeps no bound on people.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from supernet.pose.decode import GroupingConfig

Array = NDArray[np.float32]


def plain_peaks(det: Array, tags: Array, config: GroupingConfig) -> tuple[Array, NDArray[np.int64], Array]:
    """Return values (J, K), positions (J, K, 2) and tags (J, K, T) of the K highest maxima per joint."""
    joints, _, width = det.shape
    maps = torch.from_numpy(np.ascontiguousarray(det))
    side = config.nms_kernel
    pooled = functional.max_pool2d(maps[None], side, stride=1, padding=side // 2)[0]
    kept = maps * (pooled == maps).float()
    value, index = kept.reshape(joints, -1).topk(config.max_people, dim=1)
    flat = torch.from_numpy(np.ascontiguousarray(tags)).reshape(joints, -1, tags.shape[3])
    at = index[:, :, None].expand(-1, -1, tags.shape[3])
    place = torch.stack((index % width, index // width), dim=2)
    return value.numpy(), place.numpy(), torch.gather(flat, 1, at).numpy()


def plain_groups(
    peaks: tuple[Array, NDArray[np.int64], Array], config: GroupingConfig, order: Sequence[int]
) -> Array:
    """Return people (P, J, 3 + T) put together joint by joint."""
    values, places, tag_rows = peaks
    joints, _, dims = tag_rows.shape
    people: list[Array] = []
    members: list[list[Array]] = []
    for joint in order:
        rows = [
            np.concatenate((places[joint, k], values[joint, k : k + 1], tag_rows[joint, k]))
            for k in range(len(values[joint]))
            if values[joint, k] > config.detection_threshold
        ]
        taken: set[int] = set()
        if rows and people:
            means = [np.mean(tags, axis=0, dtype=np.float64) for tags in members]
            distance = np.zeros((len(rows), len(people)))
            cost = np.zeros_like(distance)
            for i, row in enumerate(rows):
                for p, mean in enumerate(means):
                    distance[i, p] = np.linalg.norm(row[3:] - mean)
                    cost[i, p] = np.round(distance[i, p]) * 100.0 - row[2]
            for i, p in zip(*linear_sum_assignment(cost), strict=True):
                if distance[i, p] < config.tag_threshold:
                    people[p][joint] = rows[i]
                    members[p].append(rows[i][3:])
                    taken.add(int(i))
        for i, row in enumerate(rows):
            if i not in taken:
                person = np.zeros((joints, 3 + dims), np.float32)
                person[joint] = row
                people.append(person)
                members.append([row[3:]])
    return np.stack(people) if people else np.zeros((0, joints, 3 + dims), np.float32)


def shifted(heat: Array, x: int, y: int) -> tuple[float, float]:
    """Return a pixel's centre, a quarter pixel toward its higher neighbours."""
    height, width = heat.shape
    right = heat[y, min(x + 1, width - 1)] > heat[y, max(x - 1, 0)]
    below = heat[min(y + 1, height - 1), x] > heat[max(y - 1, 0), x]
    return x + (0.75 if right else 0.25), y + (0.75 if below else 0.25)


def plain_decode(
    det: Array, tags: Array, config: GroupingConfig, order: Sequence[int]
) -> tuple[Array, NDArray[np.float64]]:
    """Return people (P, J, 3 + T) and their scores (P,)."""
    people = plain_groups(plain_peaks(det, tags, config), config, order)
    joints, _, width = det.shape
    for person in people:
        for joint in range(joints):
            if person[joint, 2] > 0:
                x, y = int(person[joint, 0]), int(person[joint, 1])
                person[joint, 0], person[joint, 1] = shifted(det[joint], x, y)
    scores = np.array([person[:, 2].mean() for person in people])
    for person in people:
        found = person[:, 2] > 0
        mean = person[found, 3:].mean(axis=0)
        for joint in np.flatnonzero(~found):
            distance = np.sqrt(((tags[joint] - mean) ** 2).sum(axis=-1))
            y, x = divmod(int((det[joint] - np.round(distance)).argmax()), width)
            if det[joint, y, x] > 0:
                person[joint, 0], person[joint, 1] = shifted(det[joint], x, y)
                person[joint, 2] = det[joint, y, x]
    return people, scores
