"""Peaks picked in the graph against those of the decoder, and people made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from search_spaces import InputError
from supernet.onnx_peaks import PEAK_OUTPUTS, with_peaks
from supernet.pose.decode import GroupingConfig, decode, find_peaks
from supernet.pose.heatmaps import decode_heatmaps
from supernet.pose.maps import EvalConfig, predict_maps
from supernet.pose.peaks import people_of

Array = NDArray[np.float32]


def passing(*shapes: tuple[int, ...], batch: str | int = "batch") -> onnx.ModelProto:
    """Return a model whose outputs are its inputs: maps of our choice."""
    inputs, outputs, nodes = [], [], []
    for place, shape in enumerate(shapes):
        sides = [batch, *shape]
        inputs.append(helper.make_tensor_value_info(f"in{place}", TensorProto.FLOAT, sides))
        outputs.append(helper.make_tensor_value_info(f"out{place}", TensorProto.FLOAT, sides))
        nodes.append(helper.make_node("Identity", [f"in{place}"], [f"out{place}"], name=f"node{place}"))
    graph = helper.make_graph(nodes, "maps", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, *maps: Array) -> dict[str, Array]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    found = session.run(names, {f"in{place}": each for place, each in enumerate(maps)})
    return dict(zip(names, found, strict=True))


def drawn(size: tuple[int, int], people: int, seed: int, joints: int = 5) -> tuple[Array, Array]:
    """Return outputs at 1/4 and 1/2: Gaussians of people at random places, their tags, noise."""
    rng = np.random.default_rng(seed)
    maps = []
    places = rng.random((people, joints, 2))
    for shrunk in (2, 1):
        height, width = (-(-side // shrunk) for side in size)
        y, x = np.mgrid[:height, :width]
        heat = 0.02 * rng.random((joints, height, width))
        tags = 0.1 * rng.random((joints, height, width))
        for person in range(people):
            for joint in range(joints):
                at = places[person, joint] * (width - 1, height - 1)
                bump = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 8)
                heat[joint] = np.maximum(heat[joint], (0.3 + 0.1 * person) * bump)
                tags[joint][bump > 0.3] = 3.0 * person
        maps.append(np.concatenate([heat, tags]) if shrunk == 2 else heat)
    quarter, half = (each[None].astype(np.float32) for each in maps)
    return quarter, half


def merged(quarter: Array, half: Array) -> tuple[Array, Array]:
    import torch

    pair = torch.from_numpy(quarter), torch.from_numpy(half)
    image = torch.zeros(len(half), 3, 2 * half.shape[2], 2 * half.shape[3])
    det, tags = predict_maps(lambda _: pair, image, None, EvalConfig(64))  # type: ignore[arg-type]
    return det.numpy(), tags.numpy()


@pytest.mark.parametrize("size", [(32, 40), (33, 27)])
@pytest.mark.parametrize("people", [0, 1, 4])
def test_peaks_and_people_are_those_of_the_decoder(size: tuple[int, int], people: int) -> None:
    quarter, half = drawn(size, people, seed=people)
    model = with_peaks(passing(quarter.shape[1:], half.shape[1:]))
    found = run(model, quarter, half)
    assert tuple(found) == PEAK_OUTPUTS["bottom-up"]
    det, tags = merged(quarter, half)
    config = GroupingConfig(refine=False)
    values, places, own = find_peaks(det[0], tags[0], config)
    there = values > 0
    assert there.any() == bool(people)
    np.testing.assert_allclose(found["peak_values"][0], values, atol=1e-6)
    np.testing.assert_array_equal(np.floor(found["peak_places"][0][there]), places[there])
    np.testing.assert_allclose(found["peak_tags"][0][there], own[there][:, 0], atol=1e-5)

    expected, scores = decode(det[0], tags[0], config, most=20)
    grouped, theirs = people_of(*(found[name][0] for name in PEAK_OUTPUTS["bottom-up"]), config, most=20)
    np.testing.assert_allclose(grouped, expected, atol=1e-5)
    np.testing.assert_allclose(theirs, scores, atol=1e-6)


def test_of_equal_pixels_the_first_is_the_peak() -> None:
    half = np.zeros((1, 1, 12, 12), np.float32)
    half[0, 0, 4, 4] = half[0, 0, 4, 5] = half[0, 0, 6, 4] = half[0, 0, 0, 11] = 0.8
    quarter = np.zeros((1, 2, 6, 6), np.float32)
    found = run(with_peaks(passing((2, 6, 6), (1, 12, 12)), most=7), quarter, half)
    det, tags = merged(quarter, half)
    values, places, _ = find_peaks(det[0], tags[0], GroupingConfig(max_people=7))
    np.testing.assert_array_equal(found["peak_values"][0], values)
    assert np.floor(found["peak_places"][0, 0, :2]).tolist() == places[0, :2].tolist() == [[11, 0], [4, 4]]


def test_a_batch_and_few_pixels() -> None:
    pairs = [drawn((6, 4), 1, seed) for seed in (1, 2, 3)]
    quarter, half = (np.concatenate(each) for each in zip(*pairs, strict=True))
    model = with_peaks(passing(quarter.shape[1:], half.shape[1:]), most=30)
    whole = run(model, quarter, half)
    assert whole["peak_values"].shape == (3, 5, 24)  # no more than there are pixels
    for place, (one, other) in enumerate(pairs):
        alone = run(model, one, other)
        for name, each in alone.items():
            np.testing.assert_array_equal(each[0], whole[name][place])


@pytest.mark.parametrize("size", [(16, 12), (7, 9)])
def test_joints_of_one_person(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((4, 17, *size)).astype(np.float32)
    maps[0, 0] = 0.25  # flat: the first cell, at the border
    maps[0, 1, 3:5, 3:6] = 9.0  # a plateau
    found = run(with_peaks(passing((17, *size))), maps)
    assert tuple(found) == PEAK_OUTPUTS["top-down"]
    expected = decode_heatmaps(maps, "quarter")
    np.testing.assert_array_equal(found["joint_values"], expected[..., 2])
    np.testing.assert_array_equal(found["joint_places"], expected[..., :2])


@pytest.mark.parametrize(
    ("shapes", "options", "told"),
    [
        ([(4, 8, 8), (2, 16, 16)], {"most": 0}, "'most' is at least 1"),
        ([(4, 8, 8), (2, 16, 16)], {"kernel": 4}, "'kernel' odd and positive"),
        ([(5, 8, 8), (2, 16, 16)], {}, "2J and J maps, not 5 and 2"),
        ([(4, 8, 8)] * 3, {}, "one or two outputs, of fixed size"),
    ],
)
def test_what_is_refused(shapes: list[tuple[int, ...]], options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        with_peaks(passing(*shapes), **options)


def test_peaks_of_another_form_are_refused() -> None:
    flat = np.zeros((5, 30), np.float32)
    with pytest.raises(InputError, match=r"not \(5, 30\), \(5, 30\) and \(5, 30\)"):
        people_of(flat, flat, flat)


@pytest.mark.parametrize("name", ["border", "clean_j14_128_5people", "noisy_j17_128_10people"])
def test_peaks_of_an_independent_implementation(shared: Path, name: str) -> None:
    """Its maps have one tag per pixel, or several, of which the first is taken."""
    file = shared / "golden" / f"decode_{name}.npz"
    if not file.is_file():
        pytest.skip(f"there is no {file.name} among the goldens")
    golden = np.load(file)
    det, tags = golden["det"].astype(np.float32), golden["tag"][..., 0].astype(np.float32)
    # Maps at 1/4 of the same size, which growing leaves as they are, so that merging does, too.
    quarter = np.concatenate([det, tags], axis=1)
    found = run(with_peaks(passing(quarter.shape[1:], det.shape[1:])), quarter, det)
    values = golden["val_k"].reshape(found["peak_values"].shape)
    there = values > 0.1
    assert there.any()
    np.testing.assert_allclose(found["peak_values"][there], values[there], atol=1e-6)
    np.testing.assert_array_equal(found["peak_values"] > 0, there)
    places = golden["loc_k"].reshape(found["peak_places"].shape)
    np.testing.assert_array_equal(np.floor(found["peak_places"][there]), places[there])
    own = golden["tag_k"].reshape(*values.shape, -1)[..., 0]
    np.testing.assert_allclose(found["peak_tags"][there], own[there], atol=1e-6)
