"""Fine-tuning: begins where the supernet ended, goes on after a kill, and is kept only if it is better."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import nas
from nas.data import Datasets, open_datasets
from nas.fine_tuning import FineTuning, Tuned, fine_tune
from nas.model_card import read_card
from nas.run import RunDirectory
from nas.train import make_evaluator, open_supernet, train
from search_spaces import Arch, InputError, arch_from_json
from search_spaces.files import locked
from supernet.checkpoint import save_network
from supernet.evaluator import SubnetEvaluator
from supernet.pose.skeleton import get_skeleton
from supernet.registry import build_network
from tests.nas import tiny, top_down
from tests.nas.conftest import Outcome

ALONE = FineTuning(1, "none")


def opened(folder: Path) -> tuple[RunDirectory, Datasets, Arch]:
    run = RunDirectory.open(folder)
    data = open_datasets(run.recipe)
    return run, data, run.recipe.build_space(data.skeleton).smallest()


def tune(folder: Path, settings: FineTuning = ALONE, **more: Any) -> Tuned:
    run, data, arch = opened(folder)
    supernet = open_supernet(run, run.recipe.build_space(data.skeleton))
    with run.locked():
        return fine_tune(run, data, supernet, arch, settings, **more)


def rows(folder: Path) -> list[float]:
    """Return the loss of every step."""
    with (folder / "metrics.csv").open() as stream:
        return [float(row["total"]) for row in csv.DictReader(stream)]


def weights(network: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    return network.state_dict()


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What AP the networks get that are evaluated in turn on the search images: before, then after."""
    order = iter(("before", "after"))
    found = {"before": 0.5, "after": 0.5}
    true = SubnetEvaluator.evaluate

    def evaluate(self: SubnetEvaluator, arch: Arch, *rest: Any, **more: Any) -> Any:
        result = true(self, arch, *rest, **more)
        return replace(result, stats={**result.stats, "AP": found[next(order)]})

    monkeypatch.setattr(SubnetEvaluator, "evaluate", evaluate)
    return found


def test_it_begins_where_the_supernet_ended_and_a_stopped_one_ends_the_same(
    trained: Path, one_thread: None
) -> None:
    """Where steps are next to none, the network is the extracted one: nothing is lost on the way."""
    still = tune(trained, replace(ALONE, learning_rate=1e-12))
    run, data, arch = opened(trained)
    evaluator = make_evaluator(run, data, open_supernet(run, run.recipe.build_space(data.skeleton)))
    images = torch.randn(1, 3, *arch.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for found, wanted in zip(still.network(images), evaluator.subnet(arch)(images), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert still.told["search"]["difference"]["value"] == 0 and not still.kept
    shutil.rmtree(trained / "fine-tuned")
    straight = tune(trained)
    (place,) = (trained / "fine-tuned").iterdir()
    own = rows(place)
    assert sum(own[-2:]) < 1.25 * sum(own[:2])
    assert not (place / "checkpoints" / "last.safetensors").exists()
    said: list[str] = []
    again = tune(trained, noticed=said.append)
    assert said and "is finished" in said[0] and again.told == straight.told
    place.rename(place.with_name("aside"))

    def stop(step: int, steps: int, row: Mapping[str, float]) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(trained, progress=stop)
    assert not (place / "result.json").exists()
    resumed = tune(trained)
    assert resumed.told == straight.told
    assert all(map(torch.equal, weights(resumed.network).values(), weights(straight.network).values()))
    (place / "result.json").write_text("{")  # damaged: made anew, never believed
    assert tune(trained).told == straight.told


def test_the_result_is_emitted_only_if_search_images_speak_for_it(
    trained: Path, nas_: Callable[..., Outcome], judged: dict[str, float]
) -> None:
    arch = opened(trained)[2]
    Path("arch.json").write_text(json.dumps(arch.to_json()))
    plain = nas_("emit", "run", "--arch", "arch.json", "-o", "plain")
    assert plain.code == 0 and read_card(Path("plain"))["fine_tuned"] is None
    judged["after"] = 0.6
    told = nas_("emit", "run", "--arch", "arch.json", "-o", "net", "--fine-tune", 1)
    assert told.code == 0, told.err
    card = read_card(Path("net"))
    tuned = card["fine_tuned"]
    assert tuned["kept"] and (tuned["search"]["before"], tuned["search"]["after"]) == (0.5, 0.6)
    assert tuned["val"]["after"] == card["ap"]["stats"]["AP"]
    assert tuned["val"]["difference"]["low"] <= tuned["val"]["difference"]["high"]
    assert tuned["teacher"].startswith("the supernet's largest network, ")
    assert "## Fine-tuning" in (Path("net") / "README.md").read_text()
    assert "--fine-tune 1 --teacher largest" in card["reproduce"]["commands"][-1]
    before, after = nas.load("plain"), nas.load("net")
    assert before.arch == after.arch == arch_from_json(card["arch"])
    assert not torch.equal(before.state_dict()["stem.conv.weight"], after.state_dict()["stem.conv.weight"])
    # What others put into the folder is not removed with it, and exports are not while they are made.
    (Path("net") / "notes.txt").write_text("mine")
    told = nas_("emit", "run", "--arch", "arch.json", "-o", "net", "--fine-tune", 2)
    assert told.code == 2 and "'net' holds 'notes.txt', which 'nas emit' did not write" in told.err
    (Path("net") / "notes.txt").rename("notes.txt")
    (Path("net") / "exports").mkdir()
    with locked(Path("net") / "exports" / ".lock", "busy"):
        told = nas_("emit", "run", "--arch", "arch.json", "-o", "net")
        assert told.code == 2 and "an export is at work in 'net'" in told.err
    # Finished already: found not to be kept, the weights are the supernet's.
    (place,) = (trained / "fine-tuned").iterdir()
    record = json.loads((place / "result.json").read_text())
    (place / "result.json").write_text(json.dumps({**record, "kept": False}))
    told = nas_("emit", "run", "--arch", "arch.json", "-o", "net", "--fine-tune", 1)
    assert told.code == 0 and "not kept" in told.err
    assert "the exported files that 'net' held are gone" in told.err
    assert all(map(torch.equal, nas.load("net").state_dict().values(), before.state_dict().values()))
    assert "was NOT kept" in (Path("net") / "README.md").read_text()


def test_the_teachers_heatmaps_are_those_of_the_run(trained: Path, one_thread: None) -> None:
    """A run may learn other Gaussians than usual: its largest network gives those, a file says its own."""
    run, data = RunDirectory.open(trained, ["train.sigma=3"]), opened(trained)[1]
    space = run.recipe.build_space(data.skeleton)
    with run.locked():
        tuned = fine_tune(run, data, open_supernet(run, space), space.smallest(), FineTuning(1))
    assert tuned.network.sigma == 3
    told = {"skeleton": get_skeleton("coco17").to_json()}
    network = build_network(space.largest(), 17, torch.Generator())
    for name, sigma in (("like", 3.0), ("unlike", 2.0)):
        save_network(trained / f"{name}.safetensors", network, {**told, "sigma": sigma})
    assert FineTuning(1, str(trained / "like.safetensors")).external(run.recipe, data) is not None
    with pytest.raises(InputError, match=r"--teacher: the teacher gives Gaussians of 2 cells, but .* is 3"):
        FineTuning(1, str(trained / "unlike.safetensors")).external(run.recipe, data)


def test_a_tie_is_not_kept(trained: Path, judged: dict[str, float], one_thread: None) -> None:
    assert not tune(trained).kept


def test_top_down_networks_learn_from_a_file(box: Path, one_thread: None) -> None:
    values = {**top_down.RECIPE, "train": {**top_down.RECIPE["train"], "epochs": 1}}
    (box / "recipe.yaml").write_text(yaml.safe_dump(values))
    from nas.recipe import load_recipe

    run = RunDirectory.create(box / "run", load_recipe(box / "recipe.yaml"))
    data = open_datasets(run.recipe)
    with run.locked():
        train(run)
    space = run.recipe.build_space(data.skeleton)
    skeleton = {"skeleton": get_skeleton("coco17").to_json()}
    save_network(box / "wise.safetensors", build_network(space.largest(), 17, torch.Generator()), skeleton)
    settings = FineTuning(1, "wise.safetensors", 1e-4)
    teacher = settings.external(run.recipe, data)
    assert teacher is not None
    tuned = tune(box / "run", settings, teacher=teacher)
    assert tuned.told["teacher"] == "'wise.safetensors'" and tuned.told["learning_rate"] == 1e-4
    other = build_network(tiny_space(box), 17, torch.Generator())
    save_network(box / "other.safetensors", other, skeleton)
    with pytest.raises(InputError, match=r"--teacher: the teacher is a bottom-up network"):
        FineTuning(1, "other.safetensors").external(run.recipe, data)


def tiny_space(folder: Path) -> Arch:
    recipe = tiny.recipe(folder)
    return recipe.build_space(get_skeleton("coco17")).smallest()


def test_mistakes_are_told_before_anything_begins(trained: Path, nas_: Callable[..., Outcome]) -> None:
    Path("arch.json").write_text(json.dumps(opened(trained)[2].to_json()))
    for options, why in (
        (("--teacher", "largest"), "add --fine-tune EPOCHS"),
        (("--fine-tune", 0), "--fine-tune is a number of epochs, at least 1, not 0"),
        (("--fine-tune", 1, "--learning-rate", 0), "--learning-rate is positive, not 0"),
        (("--fine-tune", 1, "--teacher", "gone.pth"), "--teacher: checkpoint 'gone.pth' does not exist"),
    ):
        told = nas_("emit", "run", "--arch", "arch.json", *options)
        assert told.code == 2 and why in told.err, told.err
    assert not (trained / "fine-tuned").exists() and not (trained / "emitted").exists()


def test_one_that_diverges_says_what_to_change_and_emits_nothing(
    trained: Path, nas_: Callable[..., Outcome]
) -> None:
    Path("arch.json").write_text(json.dumps(opened(trained)[2].to_json()))
    options = ("--fine-tune", 1, "--teacher", "none", "--learning-rate", 1e30)
    told = nas_("emit", "run", "--arch", "arch.json", *options)
    assert told.code == 2 and "Nothing was emitted: give a lower --learning-rate" in told.err, told.err
    assert "--output" not in told.err and not (trained / "emitted").exists()
