"""Networks drawn from a space, and their stand-alone trainings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas.data import open_datasets
from nas.recipe import Recipe
from nas.run import RunDirectory
from nas.train import initialise
from nas.trust.checking import duration, train_standalone
from nas.trust.scores import Score
from nas.trust.standalone import (
    SUPERNET_ONLY,
    StandaloneFolder,
    Task,
    Workbench,
    draw_archs,
    single_arch_space,
    standalone_config,
    standalone_identity,
)
from search_spaces import InputError, RunError, litepose_extended, litepose_native, named_archs
from supernet.checkpoint import save_network
from supernet.registry import build_network
from supernet.state import read_tensors
from supernet.training import TrainConfig
from tests.nas import tiny
from tests.nas.trust.made import matches
from tests.supernet.networks import images
from tests.supernet.tiny import same_checkpoint, space

ALONE = {"train__epochs": 1, "train__workers": 0, "trust__archs": 3}


def recipe(folder: Path, **settings: Any) -> Recipe:
    """Return the tiny recipe with trainings of 4 steps."""
    return tiny.recipe(folder, **{**ALONE, **settings})


# -- which networks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize(
    "searched", [space(), litepose_native(), litepose_extended(17)], ids=lambda s: s.count()
)
def test_networks_are_spread_over_the_space(searched: Any, count: int) -> None:
    archs = draw_archs(searched, count, seed=4)
    macs = [searched.cost(arch).macs for arch in archs]
    assert len(set(archs)) == count and all(arch in searched for arch in archs)
    assert macs == sorted(macs)
    assert {searched.smallest(), searched.largest()} <= {archs[0], archs[-1]}
    # Each but the ends is the only one in its part of the space.
    every = searched.costs(searched.sample_genotypes(np.random.default_rng(0), 4000)).macs
    places = np.searchsorted(np.sort(every), macs[1:-1]) / len(every)
    parts = np.arange(count - 2) / (count - 2)
    assert np.all(places > parts - 0.04) and np.all(places < parts + 1 / (count - 2) + 0.04)


def test_networks_are_drawn_by_the_seed() -> None:
    first, again, other = (draw_archs(space(), 8, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_space_of_few_networks_is_drawn_whole_or_refused() -> None:
    few = space(resolutions=[64, 96, 128, 160], deconv_kernels=[2], multipliers=[1])
    assert set(draw_archs(few, few.count(), 0)) == set(few)
    with pytest.raises(
        InputError, match=f"trust.archs is {few.count() + 1}, but the space holds {few.count()}"
    ):
        draw_archs(few, few.count() + 1, 0)
    with pytest.raises(InputError, match="at least 3 networks, not 2"):
        draw_archs(few, 2, 0)


def test_a_network_has_a_space_of_its_own() -> None:
    drawn = litepose_extended(17).sample(np.random.default_rng(0))
    for arch in (drawn, *named_archs().values()):
        alone = single_arch_space(arch, 17)
        assert (alone.count(), alone.largest(), alone.joints) == (1, arch, 17)


# -- what trainings rest on ----------------------------------------------------------------------------------


def test_settings_of_the_supernet_alone_do_not_matter(tmp_path: Path) -> None:
    assert set(SUPERNET_ONLY) <= {entry.name for entry in fields(TrainConfig)}
    plain = recipe(tmp_path)
    others = [
        recipe(tmp_path, train__rule="sandwich", train__random_archs=3),
        recipe(tmp_path, train__rule="sandwich", train__distill={"source": "largest"}),
        recipe(tmp_path, train__rule="anchored", train__largest_share=0.25, train__validate_every=3),
        recipe(tmp_path, train__workers=3, train__device="cpu", trust__repeats=2, trust__seed=4),
        recipe(tmp_path, train__epochs=30, trust__epochs=1),
        recipe(tmp_path, evaluate__decode_workers=1, search__evaluations=9),
    ]
    data = open_datasets(plain)
    identities = [
        standalone_identity(each, data, plain.build_space(data.skeleton)) for each in (plain, *others)
    ]
    assert all(each == identities[0] for each in identities)
    assert all(standalone_config(each).rule == "uniform" for each in others)


def test_what_a_training_rests_on_is_told_apart(tmp_path: Path) -> None:
    data = open_datasets(recipe(tmp_path))

    def identity(**settings: Any) -> Mapping[str, Any]:
        changed = recipe(tmp_path, **settings)
        return standalone_identity(changed, data, changed.build_space(data.skeleton))

    plain = identity()
    for changes in (
        {"trust__epochs": 2},
        {"trust__learning_rate": 0.1},
        {"train__ema": 0.5},
        {"train__loss": {"push": 0.5}},
        {"evaluate__flip": True},
        {"space__resolutions": [64]},
        {"seed": 1},
    ):
        assert identity(**changes) != plain
    # Only what is not at its default is held against others, so that new settings change nothing.
    assert identity(train__loss={"push": 0.5})["train"]["loss"] == {"push": 0.5}


# -- trainings -----------------------------------------------------------------------------------------------


def test_a_killed_training_ends_as_one_that_was_not(tmp_path: Path, one_thread: None) -> None:
    settings = recipe(tmp_path, train__checkpoint_seconds=1e-9)
    data = open_datasets(settings)
    one, two = (Workbench(settings, StandaloneFolder(tmp_path / name), data) for name in ("one", "two"))
    task = Task(one.space.smallest(), 3)
    whole = one.train(task)

    class KilledError(Exception):
        pass

    def kill(step: int, steps: int, row: Mapping[str, float]) -> None:
        if step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        two.train(task, kill)
    assert two.folder.score(task) is None
    assert (two.folder.place(task) / "checkpoints" / "last.safetensors").is_file()
    resumed = two.train(task)
    assert resumed.about["seconds_from_step"] == 2
    weights = [bench.folder.place(task) / "checkpoints" / "best.safetensors" for bench in (one, two)]
    assert same_checkpoint(*weights)
    assert whole.stats == resumed.stats and whole.about["steps"] == resumed.about["steps"] == 4
    assert sorted(path.name for path in weights[1].parent.iterdir()) == ["best.safetensors"]
    weights[1].unlink()
    assert two.train(task).about == resumed.about  # finished is finished


def test_trainings_begin_where_the_supernet_does(tmp_path: Path) -> None:
    """With ``init``, with the network's part of it; without, with weights that the seed draws."""
    generator = torch.Generator().manual_seed(9)
    save_network(tmp_path / "start.safetensors", build_network(space().largest(), 17, generator))
    settings = recipe(tmp_path, init="start.safetensors")
    bench = Workbench(settings, StandaloneFolder(tmp_path / "alone"))
    arch, x = bench.space.smallest(), images(2, 64, 64)
    begun = bench.network(Task(arch, 0)).eval()
    supernet = initialise(settings, bench.space).eval()
    with torch.no_grad():
        for own, theirs in zip(begun(x, arch), supernet(x, arch), strict=True):
            assert torch.equal(own, theirs)
        fresh = Workbench(replace(settings, init=None), bench.folder, bench.data)
        first, again, other = (fresh.network(Task(arch, seed))(x, arch)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_emitted_folder_can_be_what_a_training_starts_from(tmp_path: Path) -> None:
    (tmp_path / "emitted").mkdir()
    save_network(tmp_path / "emitted" / "model.safetensors", build_network(space().largest(), 17))
    (whole, by_file), data = (
        [recipe(tmp_path, init=name) for name in ("emitted", "emitted/model.safetensors")],
        open_datasets(recipe(tmp_path)),
    )
    told = [standalone_identity(r, data, r.build_space(data.skeleton)) for r in (whole, by_file)]
    assert told[0] == told[1] and told[0]["init"] is not None


def test_an_external_teacher_teaches_here_too(tmp_path: Path, one_thread: None) -> None:
    """A recipe may have images that nobody but the teacher tells of."""
    for name, seed in (("one", 1), ("copy", 1), ("two", 2)):
        network = build_network(space().largest(), 17, torch.Generator().manual_seed(seed))
        save_network(tmp_path / f"{name}.safetensors", network)
    data = open_datasets(recipe(tmp_path))

    def taught(teacher: str) -> Recipe:
        return recipe(tmp_path, train__distill={"source": "teacher", "teacher": f"{teacher}.safetensors"})

    one, copy, two = (
        standalone_identity(r, data, r.build_space(data.skeleton))
        for r in map(taught, ("one", "copy", "two"))
    )
    assert one == copy != two and str(tmp_path) not in str(one["train"])
    task = Task(space().smallest(), 0)
    weights = []
    for name, settings in (("plain", recipe(tmp_path)), ("one", taught("one")), ("two", taught("two"))):
        bench = Workbench(settings, StandaloneFolder(tmp_path / "alone" / name), data)
        bench.train(task)
        weights.append(bench.folder.place(task) / "checkpoints" / "best.safetensors")
    plain, first, second = (read_tensors(path)[0]["stem.conv.weight"] for path in weights)
    assert not torch.equal(plain, first) and not torch.equal(first, second)
    with pytest.raises(InputError, match=r"train.distill.teacher '.*none.safetensors' cannot be read"):
        standalone_identity(taught("none"), data, space())


def test_a_folder_is_shared_by_runs_that_differ_in_the_rule_alone(
    tmp_path: Path, one_thread: None, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, other = (
        RunDirectory(tmp_path / rule, recipe(tmp_path, train__rule=rule, **more))
        for rule, more in (("uniform", {}), ("sandwich", {}), ("anchored", {"trust__epochs": 2}))
    )
    shared = tmp_path / "shared"
    trained = train_standalone(first, shared, jobs=1)
    assert "3 of 3 trained" in capfd.readouterr().err
    assert len(trained.scores) == 3
    written = {path: path.stat().st_mtime_ns for path in shared.rglob("*.safetensors")}
    again = train_standalone(second, shared, jobs=1)
    assert [each.ap for each in again.scores.values()] == [each.ap for each in trained.scores.values()]
    assert written == {path: path.stat().st_mtime_ns for path in shared.rglob("*.safetensors")}
    with pytest.raises(RunError, match=r"rest on other settings .*train.epochs: 1 -> 2.*--standalone"):
        train_standalone(other, shared, jobs=1)


# -- scores --------------------------------------------------------------------------------------------------


def test_a_score_is_kept_with_its_matches(tmp_path: Path) -> None:
    made = Score(space().smallest(), {"AP": 0.5, "AR_large": -1.0}, matches([True, False, True]), {"seed": 3})
    assert Score.load(tmp_path) is None
    made.save(tmp_path)
    found = Score.load(tmp_path)
    assert found is not None
    assert (found.arch, found.stats, found.about, found.ap) == (made.arch, made.stats, {"seed": 3}, 0.5)
    weights = np.array([[1, 1, 1], [0, 2, 1]])
    assert np.array_equal(found.matches.ap(weights), made.matches.ap(weights))
    assert np.array_equal(found.matches.image_ids, made.matches.image_ids)


@pytest.mark.parametrize("name", ["score.json", "matches.npz"])
@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": 1, "stats": 3}'])
def test_a_damaged_score_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    Score(space().smallest(), {"AP": 0.5}, matches([True]), {}).save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match="delete it to make it anew"):
        Score.load(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"), [(42.2, "42 s"), (99, "99 s"), (1000, "17 min"), (7500, "2 h 05 min")]
)
def test_durations_are_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
