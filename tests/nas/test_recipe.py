"""Recipes: what they may say, and that every mistake is told before anything begins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas.recipe import Recipe, SearchConfig, TopDownSettings, load_recipe, recipe_from_mapping
from nas.search import SAMPLERS
from search_spaces import InputError, get_arch, write_arch
from supernet.pose.skeleton import get_skeleton
from tests.nas import tiny
from tests.nas.test_config import YAML_VALUES

ROOT = Path(__file__).resolve().parents[2]


def dotted(values: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of all mappings' keys, at every depth."""
    if not isinstance(values, dict):
        return []
    return [
        name
        for key, inner in values.items()
        for name in (f"{prefix}{key}", *dotted(inner, f"{prefix}{key}."))
    ]


def at(values: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    *path, last = name.split(".")
    for part in path:
        values = values[part]
    return values, last


def test_a_recipe_and_its_full_form_are_the_same(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path)
    plain = recipe.to_plain()
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    assert recipe_from_mapping(plain, "plain", tmp_path) == recipe
    assert recipe_from_mapping(plain, "plain", Path("/elsewhere")) == recipe
    assert plain["train"]["learning_rate"] == 4e-3  # defaults are written out
    assert plain["train"]["augmentation"]["rotation"] == 30.0


def test_every_recipe_of_the_project_loads() -> None:
    found = [*ROOT.glob("experiments/recipes/*.yaml"), *ROOT.glob("nas/recipes/*.yaml")]
    assert len(found) >= 2
    for path in found:
        recipe = load_recipe(path)
        plain = recipe.to_plain()
        assert recipe_from_mapping(plain, str(path), path.parent) == recipe


def test_the_name_is_the_files_unless_given(tmp_path: Path) -> None:
    values = tiny.values()
    del values["name"]
    (tmp_path / "my-net.yaml").write_text(yaml.safe_dump(values))
    assert load_recipe(tmp_path / "my-net.yaml").name == "my-net"


def test_relative_paths_start_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    base, seed = get_arch("litepose-xs"), get_arch("litepose-s")
    write_arch(folder / "base.json", base)
    write_arch(folder / "seed.json", seed)
    (folder / "joints.yaml").write_text(yaml.safe_dump(get_skeleton("crowdpose14").to_json()))
    path = tiny.write(
        folder,
        data__train={"annotations": "a/train.json", "images": "a"},
        data__val={"annotations": "../val.json", "images": "/abs/val"},
        data__skeleton="joints.yaml",
        init="start.pth",
        space={"kind": "litepose-native", "base": "base.json"},
        search__seed_archs=["seed.json", "litepose-m"],
        evaluate__multiple=64,
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(os.path.relpath(path))
    assert recipe.data.train.annotations == folder / "a" / "train.json"
    assert recipe.data.val.annotations == folder / ".." / "val.json"
    assert recipe.data.val.images == Path("/abs/val")
    assert recipe.data.skeleton == str(folder / "joints.yaml")
    assert recipe.init == folder / "start.pth"
    assert recipe.space["base"] == str(folder / "base.json")
    assert recipe.search.seed_archs == (str(folder / "seed.json"), "litepose-m")
    skeleton = get_skeleton(recipe.data.skeleton or "")
    assert len(recipe.build_space(skeleton).largest().layers(14)) > 10


def test_the_space_takes_its_joints_from_the_skeleton(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path)
    assert recipe.build_space(get_skeleton("crowdpose14")).joints == 14
    stated = tiny.recipe(tmp_path, space__joints=17)
    with pytest.raises(InputError, match="'joints' is 17, but the skeleton has 14"):
        stated.build_space(get_skeleton("crowdpose14"))


def test_samplers_are_those_of_the_search() -> None:
    assert set(get_args(get_type_hints(SearchConfig)["sampler"])) == set(SAMPLERS)


# -- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", dotted(tiny.RECIPE))
def test_a_misspelt_key_is_named_wherever_it_stands(tmp_path: Path, name: str) -> None:
    values = tiny.values()
    place, last = at(values, name)
    place[f"{last}x"] = place.pop(last)
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError) as told:
        load_recipe(path)
    message = str(told.value)
    assert str(path) in message and "\n" not in message
    assert f"unknown key '{last}x'; did you mean '{last}'?" in message


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"data__train": None}, "data.train must be a mapping"),
    ({"data__train": {}}, "data.train: a data source names both"),
    ({"data__val": {"annotations": "x.json"}}, "data.val: a data source names both"),
    ({"data__train__annotations": "x.json"}, "data.train: a data source names both"),
    ({"data__train__synthetic__images": 0}, "data.train.synthetic: at least 1 image"),
    ({"data__train__synthetic__seed": -1}, "data.train.synthetic: "),
    ({"data__train__synthetic__size": [16, 96]}, "data.train.synthetic: 'size'"),
    ({"data__train__synthetic__people": [3, 1]}, "data.train.synthetic: 'people'"),
    ({"data__train__synthetic__people": [1, 99]}, "data.train.synthetic: 'people'"),
    ({"data__calibrate_fraction": -0.1}, "data.calibrate_fraction lies in 0..1"),
    ({"data__calibrate_fraction": 0.85}, "leave no images to train on"),
    ({"data__search_fraction": 1.0}, "data.search_fraction lies between 0 and 1, not 1.0"),
    ({"space__kind": "litepose-natve"}, "unknown kind 'litepose-natve'; did you mean 'litepose-native'?"),
    ({"space": {}}, "unknown kind 'None'"),
    ({"space__base": "litepose-x"}, "'litepose-x' is neither a named arch nor an arch file"),
    ({"space__base": "gone.json"}, "gone.json' does not exist"),
    ({"space__resolutions": []}, "space"),
    ({"space__resolutions": [65.5]}, "space"),
    ({"space__multipliers": "1"}, "space"),
    ({"space__multipliers": [1, float("inf")]}, "'multipliers' is a list of positive numbers, not [1, inf]"),
    ({"space__multipliers": [10**400]}, "'multipliers' is a list of positive numbers, not [1000"),
    ({"space__kernels": [[3]]}, "space"),
    ({"space__joints": 0}, "space"),
    ({"train__rule": "sandwitch"}, "train.rule: unknown 'sandwitch'; did you mean 'sandwich'?"),
    ({"train__epochs": 2.5}, "train.epochs is a whole number, not 2.5"),
    (
        {"train__augmentation__rotation": 999},
        "train.augmentation: rotation must be 0..180 degrees, got 999.0",
    ),
    ({"train__augmentation__scale": [1]}, "train.augmentation.scale is a list of 2 values, not [1]"),
    ({"train__loss__push": "x"}, "train.loss.push is a number, not 'x'"),
    ({"train__learning_rate": "fast"}, "train.learning_rate is a number, not 'fast'"),
    ({"evaluate__multiple": 64}, "resolution 96"),
    ({"evaluate__multiple": 0}, "evaluate: "),
    ({"evaluate__images": 0}, "evaluate.images is at least 1 or null, not 0"),
    ({"evaluate__calibration_images": 0}, "evaluate.calibration_images is at least 1, not 0"),
    ({"evaluate__grouping__people": 1}, "evaluate.grouping has an unknown key 'people'"),
    ({"evaluate__protocol": "coc"}, "evaluate.protocol: unknown 'coc'; did you mean 'coco'?"),
    ({"search__population": 1}, "search.population is at least 2, not 1"),
    ({"search__evaluations": 0}, "search.evaluations is at least 1, not 0"),
    ({"search__sampler": "ngsa2"}, "search.sampler: unknown 'ngsa2'; did you mean 'nsga2'?"),
    ({"search__seed_archs": ["litepose-xx"]}, "'litepose-xx' is neither"),
    ({"search__seed_archs": ["gone.json"]}, "gone.json' does not exist"),
    ({"seed": -1}, "'seed' lies between 0 and"),
    ({"seed": 2**64}, "'seed' lies between 0 and"),
    ({"name": "a/b"}, "'a/b' cannot"),
    ({"name": ".."}, "'..' cannot"),
    ({"name": ""}, "'' cannot"),
    ({"init": 3}, "init is a path, not 3"),
    ({"init_order": "kept"}, "'init_order: kept' is about the network that training starts from"),
]


@pytest.mark.parametrize(("changes", "told"), REFUSED)
def test_mistakes_are_told_with_file_field_and_value(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    path = tiny.write(tmp_path, **changes)
    with pytest.raises(InputError) as error:
        load_recipe(path)
    assert str(error.value).startswith(f"recipe '{path}': ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["data", "space", "data.train", "data.val", "data.train.synthetic.images"])
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    values = tiny.values()
    place, last = at(values, name)
    del place[last]
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=rf"lacks '{last}'"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"synthetic": {"images": 5, "seed": 3}}, {"synthetic": {"images": 9, "seed": 3}}),
        ({"synthetic": {"images": 5}}, {"synthetic": {"images": 5, "size": [64, 64]}}),
        ({"annotations": "a.json", "images": "x"}, {"annotations": "a.json", "images": "y"}),
        ({"annotations": "a.json", "images": "x"}, {"annotations": "sub/../a.json", "images": "x"}),
    ],
)
@pytest.mark.parametrize("parts", [("train", "val"), ("train", "search"), ("search", "val")])
def test_the_same_images_twice_are_refused(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], parts: tuple[str, str]
) -> None:
    (tmp_path / "sub").mkdir()
    one, other = parts
    data: dict[str, Any] = {
        name: {"synthetic": {"images": 5, "seed": 100 + i}}
        for i, name in enumerate(("train", "search", "val"))
    }
    tiny.recipe(tmp_path, data=data)
    path = tiny.write(tmp_path, data={**data, one: first, other: second})
    with pytest.raises(InputError, match=rf"data\.{one} and data\.{other} show the same images"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [1\ndata: 2\n", r"not valid YAML: .* at line 2, column 5"),
        ("name: a\n\tdata: 1\n", r"not valid YAML: .* at line 2, column 1"),
        ("- 1\n- 2\n", "must be a mapping of names to values, not list"),
        ("", "must be a mapping of names to values, not NoneType"),
        ("just text", "must be a mapping of names to values, not str"),
        ("name: 2024-13-45\n", "not usable YAML"),
        ("name: !!bool maybe\n", "not usable YAML"),
        ("name: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("name: a\nspace: &loop {kind: *loop}\n", "contains itself|not valid YAML"),
        ("name: " + "[" * 5000, "nested too deeply|not valid YAML"),
        ("name: \x07\n", "not valid YAML"),
        ("name: a\n? [1, 2]\n: 3\n", "unknown key|not valid YAML"),
        ("name: " + "9" * 5000, "not usable YAML"),
        ("name: 0x" + "f" * 5000, "a number is too large at line 1, column 7"),
        ("name: a\ntrain: {epochs: 1}\ntrain: {epochs: 2}\n", "the key 'train' stands there twice at line 3"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=told) as error:
        load_recipe(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_recipe(tmp_path / "gone.yaml")
    with pytest.raises(InputError, match="is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(InputError, match="not a UTF-8 text file"):
        load_recipe(tmp_path / "binary.yaml")


FULL_FORM = {"init": None, **tiny.values(data__search=None, data__skeleton=None, train__loss={"push": 0.1})}


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from(dotted(FULL_FORM)), YAML_VALUES)
def test_any_value_anywhere_is_a_recipe_or_one_clear_line(name: str, value: Any) -> None:
    values = yaml.safe_load(yaml.safe_dump(FULL_FORM))
    place, last = at(values, name)
    place[last] = value
    try:
        recipe = recipe_from_mapping(values, "fuzz", Path("/nowhere"))
    except InputError as error:
        assert str(error).startswith("fuzz: ")
    else:
        assert isinstance(recipe, Recipe)
        plain = yaml.safe_load(yaml.safe_dump(recipe.to_plain(), allow_unicode=True).encode())
        assert recipe_from_mapping(plain, "again", Path("/nowhere")) == recipe


def test_a_threshold_at_which_one_person_would_remain_is_refused_with_the_recipe() -> None:
    with pytest.raises(InputError, match="suppression_threshold lies above 0"):
        TopDownSettings(suppression_threshold=0)
