"""Single pictures give what the data set's way gives, at any size and in networks of one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from search_spaces.errors import InputError
from supernet.checkpoint import import_research
from supernet.pose.coco_json import person_boxes
from supernet.pose.dataset import read_image
from supernet.pose.decode import GroupingConfig
from supernet.pose.inference import predict_dataset
from supernet.pose.maps import EvalConfig
from supernet.pose.predictor import LONGEST, PosePredictor, shown_joints
from supernet.pose.skeleton import CROWDPOSE14
from supernet.pose.transforms import letterbox, normalise, resize_for_eval
from supernet.registry import build_network
from tests.supernet import tiny
from tests.supernet.networks import randomise
from tests.supernet.pose.beacon import LIGHTS, Beacon, picture, three_lights


def restless_network() -> torch.nn.Module:
    """A random network that sees many people everywhere."""
    return randomise(build_network(tiny.space().largest(), 17), seed=3).eval()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("project", [False, True])
def test_pictures_are_found_as_in_a_data_set(flip: bool, project: bool) -> None:
    data = tiny.people(2)
    network = restless_network()
    config = EvalConfig(64, flip=flip, project=project, batch_size=3, multiple=32)
    expected = predict_dataset(network, data, config)
    assert len(expected) > 15
    predictor = PosePredictor(network, data.skeleton, config)
    for index, image_id in enumerate(data.ids):
        found = predictor(data.load_image(index))
        rows = [each for each in expected if each["image_id"] == image_id]
        assert len(rows) == len(found.people)
        assert set(found.seconds) == {"prepare", "network", "decode"}
        np.testing.assert_allclose(found.scores, [each["score"] for each in rows], rtol=1e-5)
        keypoints = np.array([each["keypoints"] for each in rows]).reshape(-1, 17, 3)
        np.testing.assert_allclose(found.people[..., :2], keypoints[..., :2], atol=1e-3)


@settings(deadline=None, max_examples=40)
@given(st.integers(24, 300), st.integers(24, 300), st.floats(0, 6.3))
def test_networks_of_one_size_find_joints_in_pictures_of_any(height: int, width: int, turn: float) -> None:
    assume(max(height, width) <= 4 * min(height, width))  # in a strip the lights are smaller than a cell
    lights = three_lights(height, width, turn)
    image = picture(height, width, lights)
    predictor = PosePredictor(Beacon(), LIGHTS, EvalConfig(448), size=(64, 96))
    found = predictor(image)
    cell = 2 * max(height / 64, width / 96)  # of the finest map, in pixels of the picture
    best = found.people[0]
    np.testing.assert_allclose(best[:, :2], lights, atol=cell)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 500), st.integers(1, 500), st.sampled_from([(64, 64), (96, 64), (64, 160)]))
def test_letterboxes_hold_the_whole_picture_and_lead_back(
    height: int, width: int, size: tuple[int, int]
) -> None:
    image = np.full((height, width, 3), 255, np.uint8)
    boxed, back = letterbox(image, size)
    assert boxed.shape == (*size, 3)
    corners = np.array([[0.0, 0.0], [width - 1.0, height - 1.0]])
    forth = back.inverse()(corners)
    np.testing.assert_allclose(back(forth), corners, atol=1e-6)
    scale = min(size[0] / height, size[1] / width)
    assert (forth >= -0.5 * scale - 1e-6).all() and (forth <= np.array(size[::-1]) + 1e-6).all()
    np.testing.assert_allclose(np.diff(forth, axis=0), scale * np.diff(corners, axis=0), atol=1e-6)


def test_letterboxes_of_the_same_aspect_are_what_evaluation_sees() -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 120, 3), np.uint8)
    boxed, back = letterbox(image, (64, 64))
    resized, other = resize_for_eval(image, 64)
    np.testing.assert_array_equal(boxed, resized)
    np.testing.assert_array_equal(back.matrix, other.matrix)


def test_letterboxes_have_bands_that_say_nothing_to_a_network(shared: Path) -> None:
    """A photo of one person and a bus: in black bands the published network sees a crowd of 197."""
    boxed, _ = letterbox(np.full((30, 60, 3), 255, np.uint8), (64, 64))
    assert normalise(boxed[None])[0, :, :12].abs().max() < 0.02
    network = import_research(shared / "weights" / "litepose-m-crowdpose.reference.pth")
    photo = read_image(shared / "data" / "coco" / "images" / "val" / "000000389684.jpg")
    found = PosePredictor(network, CROWDPOSE14, EvalConfig(448), size=(448, 448))(photo)
    assert (found.scores > 0.1).sum() == 1 and len(found.people) <= 5


def test_several_scales_are_those_of_a_data_set_and_need_a_network_of_any_size() -> None:
    data = tiny.people(1)
    network = restless_network()
    config = EvalConfig(64, scales=(1.0, 0.5), multiple=32)
    expected = predict_dataset(network, data, config)
    found = PosePredictor(network, data.skeleton, config)(data.load_image(0))
    keypoints = np.array([each["keypoints"] for each in expected]).reshape(-1, 17, 3)
    np.testing.assert_allclose(found.people[..., :2], keypoints[..., :2], atol=1e-3)
    with pytest.raises(InputError, match=r"64x64 pixels only cannot see pictures at scales \[1.0, 0.5\]"):
        PosePredictor(network, data.skeleton, config, size=(64, 64))


def test_strips_are_refused_before_they_take_all_memory() -> None:
    predictor = PosePredictor(Beacon(), LIGHTS, EvalConfig(64))
    with pytest.raises(InputError, match=rf"4000x40 pixels is too long: .* {LONGEST} times"):
        predictor(np.zeros((40, 4000, 3), np.uint8))
    boxed = PosePredictor(Beacon(), LIGHTS, EvalConfig(64), size=(64, 64))
    assert len(boxed(np.zeros((40, 4000, 3), np.uint8)).people) == 0


def test_nobody_is_no_error() -> None:
    found = PosePredictor(Beacon(), LIGHTS, EvalConfig(64))(np.zeros((70, 50, 3), np.uint8))
    assert found.people.shape == (0, 3, 3) and found.scores.shape == (0,)
    assert shown_joints(found.people, 70, 50, 0.1).shape == (0, 3)
    assert person_boxes(found.people, np.zeros((0, 3), bool)).shape == (0, 5)


def test_joints_that_were_only_filled_in_are_not_shown() -> None:
    """With next to no blue light, refinement still puts the joint somewhere; its value tells."""
    image = picture(64, 64, [(20, 20), (44, 44), (32, 10)])
    image[..., 2] = image[..., 2] * 0.53
    found = PosePredictor(Beacon(), LIGHTS, EvalConfig(64))(image)
    assert 0 < found.people[0, 2, 2] < 0.1
    assert shown_joints(found.people, 64, 64, 0.1)[0].tolist() == [True, True, False]
    unrefined = EvalConfig(64, grouping=GroupingConfig(refine=False))
    assert not PosePredictor(Beacon(), LIGHTS, unrefined)(image).people[0, 2].any()


def test_joints_outside_the_picture_are_not_shown() -> None:
    people = np.array([[[-0.4, 5, 1], [9.6, 5, 1], [3, 19.4, 1]], [[-0.6, 5, 1], [3, 5, 0.1], [3, 5, 0.2]]])
    assert shown_joints(people, 20, 10, 0.1).tolist() == [[True, False, True], [False, False, True]]


def test_boxes_hold_the_shown_joints() -> None:
    people = np.array([[[2.0, 3, 1], [12, 8, 1], [90, 90, 0]], [[5, 5, 1], [0, 0, 0], [0, 0, 0]]])
    shown = people[..., 2] > 0
    np.testing.assert_allclose(person_boxes(people, shown), [[2, 3, 10, 5, 26.5], [5, 5, 1, 1, 0.53]])
