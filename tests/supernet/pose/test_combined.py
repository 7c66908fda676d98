"""Data sets of several sources: what of each is kept, what is masked, how often each is seen."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.errors import InputError
from supernet.pose.dataset import REACH, PoseDataset
from supernet.pose.loader import collate
from supernet.pose.losses import heatmap_loss
from supernet.pose.metrics import keypoint_ap
from supernet.pose.skeleton import COCO17, CROWDPOSE14
from supernet.pose.synthetic import SyntheticPeople
from supernet.pose.transforms import Augmentation

JOINTS = ["left_hand", "right_hand", "tail"]
SIZE = (40, 60)


def animals(ids: list[int], *people: list[list[float]], joints: list[str] = JOINTS) -> dict[str, Any]:
    """Return a file whose every image shows the same animals, each with its joints' x, y, v."""
    numbers = iter(range(1, 1000))
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in ids
        ],
        "annotations": [
            {
                "id": next(numbers),
                "image_id": image_id,
                "category_id": 3,
                "keypoints": [value for joint in each for value in joint],
            }
            for image_id in ids
            for each in people
        ],
        "categories": [{"id": 3, "name": "monkey", "keypoints": joints}],
    }  # fmt: skip


def pictures(ids: list[int], value: int) -> dict[int, np.ndarray]:
    return {i: np.full((*SIZE, 3), value, np.uint8) for i in ids}


def opened(ids: list[int], *people: list[list[float]], value: int = 7, **options: Any) -> PoseDataset:
    joints = options.pop("joints", JOINTS)
    return PoseDataset.from_dict(animals(ids, *people, joints=joints), pictures(ids, value), **options)


ONE = [[10.0, 10.0, 2.0], [20.0, 12.0, 2.0], [15.0, 20.0, 1.0]]
NO_TAIL = [[40.0, 10.0, 2.0], [50.0, 12.0, 2.0], [0.0, 0.0, 0.0]]


class TestReliability:
    def test_other_joints_than_the_reliable_ones_are_not_annotated(self) -> None:
        data = opened([1], ONE, labels=["tail"])
        assert data.labelled.tolist() == data.labelled_joints(0).tolist() == [False, False, True]
        assert data.joints(0).tolist() == [[[0, 0, 0], [0, 0, 0], [15, 20, 1]]]
        assert data.fingerprint != opened([1], ONE).fingerprint

    def test_without_reliable_labels_images_serve_a_teacher(self) -> None:
        data = opened([1, 2], ONE, labels=[])
        sample = data.load(0)
        assert not data.labelled.any() and len(sample.joints) == 0
        assert sample.mask.all(), "nobody's annotation is used, so none hides anything from a teacher"
        assert data.trainable().ids == (1, 2) and len(data.with_people()) == 0
        assert len(data.scorable()) == 0
        batch = collate(data, [0, 1], 32, None, 0, 0)
        assert not batch.labelled.any() and not any(each.any() for each in batch.heatmaps)
        assert not batch.tags.any()
        pred = torch.ones_like(batch.heatmaps[0])
        assert heatmap_loss(pred, batch.heatmaps[0], batch.masks[0], batch.labelled).item() == 0

    def test_unknown_and_lacking_joints_are_refused_by_name(self) -> None:
        with pytest.raises(InputError, match=r"has no joint 'tial'; did you mean 'tail'\?"):
            opened([1], ONE, labels=["tial"])
        people = SyntheticPeople(1, 0, size=(64, 64))
        with pytest.raises(InputError, match="name joint 'neck', which is not annotated there"):
            PoseDataset.from_dict(people.ground_truth(), None, CROWDPOSE14, labels=["neck"])

    def test_where_only_some_are_annotated_the_rest_of_the_image_is_unknown(self) -> None:
        data = opened([1], ONE, complete=False)
        sample = data.load(0)
        # Joints from (10, 10) to (20, 20): 1 around them at REACH 0.1, pixels rounded outwards.
        assert REACH == 0.1
        expected = np.zeros(SIZE, np.bool_)
        expected[9:23, 9:23] = True
        wrong = sample.mask != expected
        assert not wrong[:21, :21].any() and wrong.sum() <= 2 * 14
        assert sample.mask[10:21, 10:21].all() and not sample.mask[24:].any()
        assert len(data.scorable()) == 0 and data.trainable().ids == (1,)
        assert opened([1], ONE).load(0).mask.all()

    def test_where_only_some_are_annotated_a_joint_that_one_lacks_is_unknown_in_the_image(self) -> None:
        both, crowd = opened([1], ONE, NO_TAIL, complete=False), opened([1], ONE, complete=False)
        assert both.labelled.all() and both.labelled_joints(0).tolist() == [True, True, False]
        assert crowd.labelled_joints(0).all()
        mask = both.load(0).mask
        assert mask[12, 15] and mask[12, 45] and not mask[12, 30]
        assert opened([1], ONE, NO_TAIL).labelled_joints(0).all()

    def test_an_image_of_nobody_annotated_is_unknown(self) -> None:
        data = opened([1], complete=False)
        assert not data.load(0).mask.any()
        assert len(data.trainable()) == 0


class TestCombining:
    def sources(self) -> list[PoseDataset]:
        swapped = ["tail", "left_hand"]
        skeleton = opened([1], ONE).skeleton
        return [
            opened([3, 17], ONE, value=1),
            opened([3, 5], ONE[2:] + ONE[:1], value=2, joints=swapped, skeleton=skeleton),
            opened([3], ONE, NO_TAIL, value=3, complete=False),
        ]

    def test_every_image_keeps_what_its_source_says_of_it(self) -> None:
        sources = self.sources()
        whole = PoseDataset.combine(sources)
        assert whole.ids == (3, 17, 103, 105, 203)
        at = iter(range(len(whole)))
        for source in sources:
            for index in range(len(source)):
                place = next(at)
                mine, theirs = whole.load(place), source.load(index)
                np.testing.assert_array_equal(mine.image, theirs.image)
                np.testing.assert_array_equal(mine.joints, theirs.joints)
                np.testing.assert_array_equal(mine.mask, theirs.mask)
                assert whole.labelled_joints(place).tolist() == source.labelled_joints(index).tolist()
                assert whole.file_name(place) == source.file_name(index)
                assert mine.image_id == whole.ids[place]
        assert whole.labelled.all()
        assert [part.ids for part in whole.sources()] == [(3, 17), (103, 105), (203,)]
        assert [part.original_ids() for part in whole.sources()] == [{3, 17}, {3, 5}, {3}]
        assert [len(part) for part in whole.subset([17, 203]).sources()] == [1, 0, 1]
        assert whole.scorable().ids == (3, 17, 103, 105)

    def test_batches_label_joints_by_image(self) -> None:
        whole = PoseDataset.combine(self.sources())
        batch = collate(whole, [4, 0, 2], 40, None, 0, 0)
        assert batch.labelled.tolist() == [[True, True, False], [True] * 3, [True, False, True]]
        assert [part.labelled.tolist() for part in batch.split(3)] == [
            [row] for row in batch.labelled.tolist()
        ]

    def test_ground_truth_is_one_sound_file(self) -> None:
        whole = PoseDataset.combine(self.sources()).scorable()
        truth = whole.ground_truth()
        assert [each["id"] for each in truth["images"]] == list(whole.ids)
        assert len({each["id"] for each in truth["annotations"]}) == len(truth["annotations"]) == 4
        assert {each["image_id"] for each in truth["annotations"]} == set(whole.ids)
        again = PoseDataset.from_dict(truth, None)
        assert [again.joints(i).tolist() for i in range(4)] == [whole.joints(i).tolist() for i in range(4)]
        found = [
            {"image_id": each["image_id"], "category_id": each["category_id"], "score": 1.0,
             "keypoints": each["keypoints"]}
            for each in truth["annotations"]
        ]  # fmt: skip
        assert keypoint_ap(truth, found, whole.skeleton.sigmas)["AP"] == pytest.approx(1)

    def test_one_source_alone_is_what_it_was(self) -> None:
        alone = SyntheticPeople(8, 3, size=(64, 64))
        combined = PoseDataset.combine([alone])
        assert combined.ids == alone.ids
        for seed in range(3):
            parts = [each.split({"a": 0.5, "b": 0.4}, seed) for each in (alone, combined)]
            assert parts[0]["a"].ids == parts[1]["a"].ids and parts[0]["b"].ids == parts[1]["b"].ids
        one, other = (collate(each, range(8), 64, Augmentation(), 0, 0) for each in (alone, combined))
        assert torch.equal(one.images, other.images) and torch.equal(one.heatmaps[1], other.heatmaps[1])
        order = [each.epoch_order(np.random.default_rng(5)).tolist() for each in (alone, combined)]
        assert order[0] == order[1] == np.random.default_rng(5).permutation(8).tolist()

    def test_a_further_source_moves_no_image_between_the_parts_of_a_split(self) -> None:
        first, second = SyntheticPeople(20, 1, size=(64, 64)), SyntheticPeople(20, 2, size=(64, 64))
        shares = {"train": 0.6, "search": 0.3}
        whole = PoseDataset.combine([first, second]).split(shares, 4)
        for name, part in first.split(shares, 4).items():
            assert whole[name].sources()[0].ids == part.ids
            assert whole[name].sources()[1].original_ids() == set(part.ids)

    def test_fingerprints_follow_sources_and_shares(self) -> None:
        first, second = opened([1], ONE), opened([2], ONE)
        whole = [
            PoseDataset.combine([first, second]),
            PoseDataset.combine([first, second], [1, 1]),
            PoseDataset.combine([first, second], [1, 2]),
            PoseDataset.combine([first, opened([2], ONE, complete=False)]),
            PoseDataset.combine([second, first]),
        ]
        assert len({each.fingerprint for each in whole}) == len(whole)
        again = PoseDataset.combine([opened([1], ONE), opened([2], ONE)], [1, 1])
        assert again.fingerprint == whole[1].fingerprint

    def test_what_does_not_go_together_is_refused(self) -> None:
        people = SyntheticPeople(1, 0, size=(64, 64))
        mapped = PoseDataset.from_dict(people.ground_truth(), None, CROWDPOSE14)
        with pytest.raises(
            InputError, match=r"is in 'coco17' \(17 joints\).* in 'crowdpose14' \(14 joints\)"
        ):
            PoseDataset.combine([people, mapped])
        with pytest.raises(InputError, match="at least one, got none"):
            PoseDataset.combine([])
        for shares in ([1.0], [1.0, 0.0], [1.0, float("inf")]):
            with pytest.raises(InputError, match="needs a positive share"):
                PoseDataset.combine([people, people], shares)
        assert people.skeleton == COCO17


class TestEpochs:
    def whole(self, sizes: list[int], shares: list[float] | None) -> PoseDataset:
        return PoseDataset.combine([opened(list(range(1, size + 1)), ONE) for size in sizes], shares)

    @settings(deadline=None, max_examples=60)
    @given(
        sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
        shares=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
        seed=st.integers(0, 2**32),
    )
    def test_sources_come_in_their_shares_and_images_equally_often(
        self, sizes: list[int], shares: list[float], seed: int
    ) -> None:
        data = self.whole(sizes, shares[: len(sizes)])
        order = data.epoch_order(np.random.default_rng(seed))
        assert len(order) == len(data) == sum(sizes)
        assert len(set(order.tolist())) == len(order), "a repetition is told from the first time"
        given_ = [share if size else 0.0 for share, size in zip(shares, sizes)]
        first = 0
        for size, share in zip(sizes, given_):
            seen = Counter((order % max(1, len(data))).tolist())
            times = [seen[place] for place in range(first, first + size)]
            first += size
            assert abs(sum(times) - share / (sum(given_) or 1) * len(data)) <= 1 + 1e-6
            assert not times or max(times) - min(times) <= 1
        assert order.tolist() == data.epoch_order(np.random.default_rng(seed)).tolist()

    def test_a_repeated_image_is_varied_anew(self) -> None:
        people = SyntheticPeople(2, 0, size=(64, 64))
        batch = collate(people, [0, 2, 4, 1], 48, Augmentation(), 0, 0)
        assert not any(torch.equal(batch.images[a], batch.images[b]) for a, b in ((0, 1), (1, 2), (0, 2)))
        plain = collate(people, [0, 2, 1, 3], 48, None, 0, 0)
        assert torch.equal(plain.images[0], plain.images[1])
        assert torch.equal(plain.images[2], plain.images[3])

    def test_shares_outlive_subsets(self) -> None:
        data = self.whole([4, 4], [3, 1])
        some = data.subset([*data.ids[:2], *data.ids[4:]])
        order = some.epoch_order(np.random.default_rng(0)) % len(some)
        assert Counter((order < 2).tolist()) == {True: 4, False: 2}  # round(.75 * 6) = 4 (to even)


def test_annotations_of_a_source_are_left_alone() -> None:
    content = animals([1], ONE)
    before = copy.deepcopy(content)
    source = PoseDataset.from_dict(content, None)
    truth = source.ground_truth()
    PoseDataset.combine([source, source])
    assert content == before and source.ground_truth() == truth
