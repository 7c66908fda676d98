"""``nas plot``: every picture of every study, all studies together, and what is told of what lacks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nas.drawing
from nas.known import find_arch, load_result
from nas.latency import UpperEnd
from nas.run import RunDirectory
from nas.search import MACS, Constraint, SearchResult, latency, search
from nas.search.result import Record
from search_spaces import InputError, get_arch, space_from_config
from search_spaces.files import write_json
from tests.nas import tiny
from tests.nas.conftest import Outcome
from tests.nas.problems import Noisy
from tests.nas.test_search_command import PHONE, save_table

SPACE = space_from_config(tiny.RECIPE["space"], joints=17)
PICTURES = ("pareto.png", "pareto.svg", "pareto.html", "choices.png", "choices.svg")
CONTEXT = {"supernet": "0", "images": "5 of people"}


def searched(run: RunDirectory, name: str, seed: int, bound: Constraint, **changes: Any) -> SearchResult:
    """Search a known AP, and keep the result as a study of the run."""
    from nas.latency import load_predictors

    pricers = [UpperEnd(p) for p in load_predictors([PHONE.name], None, run).values()]
    folder = run.study(name)
    found = search(
        SPACE, Noisy(), storage=folder / "study.journal", trials=8, population=4, sampler="random", seed=seed,
        constraints=[bound], context=CONTEXT, study_name=name,
        pricers=pricers if bound.objective.target else [],
    )  # fmt: skip
    found = replace(found, **changes)
    write_json(folder / "result.json", found.to_json())
    return found


@pytest.fixture
def run(box: Path) -> RunDirectory:
    made = RunDirectory.create(box / "run", tiny.recipe(box))
    save_table(made.folder)
    return made


@pytest.fixture
def bounds() -> tuple[Constraint, Constraint]:
    """Bounds on MACs, and on the phone's latency, that about half of the networks meet."""
    macs = float(np.median(SPACE.costs(SPACE.genotypes()).macs))
    return Constraint(MACS, macs), Constraint(latency(PHONE.name), 1.3 * macs / 1e6)


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that take time are not drawn; pages are written."""

    def files(result: SearchResult, path: Path, *_: object, **__: object) -> tuple[Path, ...]:
        return path.with_suffix(".png"), path.with_suffix(".svg")

    for name in ("plot_front", "plot_progress", "plot_choices"):
        monkeypatch.setattr(nas.drawing, name, files)


def page_of(path: Path) -> Any:
    found = re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


def test_every_study_and_all_together(
    run: RunDirectory,
    bounds: tuple[Constraint, Constraint],
    nas_: Callable[..., Outcome],
    unseen: None,
) -> None:
    results = [
        searched(run, name, seed, bound)
        for seed, (name, bound) in enumerate(zip(("ops", "phone"), bounds, strict=True))
    ]
    told = nas_("plot", "run", "--json")
    assert told.code == 0, told.err
    files = [Path(name) for name in json.loads(told.out)["files"]]
    own = (*PICTURES, "progress.png", "progress.svg")
    wanted = [f"run/search/{study}/{name}" for study in ("ops", "phone") for name in own]
    assert sorted(map(str, files)) == sorted([*wanted, *(f"run/search/{name}" for name in PICTURES)])
    assert run.studies() == ["ops", "phone"]  # the pictures of all are no study
    together = page_of(Path("run/search/pareto.html"))
    assert together["title"] == f"tiny: 2 searches, {len(together['networks'])} networks evaluated"
    archs = {r.arch.id for result in results for r in result.evaluated}
    assert {network["id"] for network in together["networks"]} == archs
    assert [axis["key"] for axis in together["axes"]] == ["macs", "params", f"latency[{PHONE.name}]"]
    assert [len(axis["budgets"]) for axis in together["axes"]] == [1, 0, 1]
    # Each budget's best among all that any of them evaluated; a latency is priced for everything.
    every = {r.arch.id: r for result in results for r in result.evaluated}
    blocks = {network["id"]: network["latency"][f"latency[{PHONE.name}]"] for network in together["networks"]}

    def best(met: Callable[[Record], bool]) -> str:
        return max((r for r in every.values() if met(r)), key=lambda r: (r.require_ap(), -r.macs)).arch.id

    stars = {mark: network["id"] for network in together["networks"] for mark in network["marks"]}
    words = [bound.objective.format(bound.upper) for bound in bounds]
    assert stars == {
        f"best under {words[0]}": best(lambda r: r.macs <= bounds[0].upper),
        f"best under {words[1]} on {PHONE.name}": best(lambda r: blocks[r.arch.id][2] <= bounds[1].upper),
    }
    assert together["emit"] == "nas emit run --arch"


def test_what_lacks_is_told_and_the_rest_is_drawn(
    run: RunDirectory,
    bounds: tuple[Constraint, Constraint],
    nas_: Callable[..., Outcome],
    unseen: None,
) -> None:
    first = searched(run, "phone", 0, bounds[1])
    assert page_of_run(nas_, "phone")["networks"][0]["latency"]
    save_table(run.folder, half_width=0.2)  # measured again
    told = nas_("plot", "run")
    assert told.code == 0
    assert f"the latency table '{PHONE.name}' has changed since the search" in told.err
    assert not page_of(run.study("phone") / "pareto.html")["networks"][0]["latency"]
    for path in (run.folder / "tables").iterdir():
        path.unlink()
    told = nas_("plot", "run")
    assert (told.code, told.err.count(f"no latency table for '{PHONE.name}' here")) == (0, 1)
    # A study of other weights is another thing; so is one that has evaluated nothing.
    writes = {"old": {"context": {**CONTEXT, "supernet": "1"}}, "empty": {"records": ()}}
    for name, changes in writes.items():
        write_json(run.study(name) / "result.json", replace(first, study=name, **changes).to_json())
    write_json(run.study("last") / "result.json", first.to_json())
    told = nas_("plot", "run", "--study", "empty")
    assert told.code == 2 and "has evaluated no network yet" in told.err
    (run.study("empty") / "result.json").unlink()
    told = nas_("plot", "run")
    assert "the study 'old' rests on other weights, images or settings than the latest one" in told.err
    assert len(page_of(Path("run/search/pareto.html"))["networks"]) == len(first.evaluated)


def page_of_run(nas_: Callable[..., Outcome], study: str) -> Any:
    assert nas_("plot", "run", "--study", study).code == 0
    return page_of(Path("run/search") / study / "pareto.html")


def test_one_network_makes_no_choices(
    run: RunDirectory,
    bounds: tuple[Constraint, Constraint],
    nas_: Callable[..., Outcome],
    unseen: None,
) -> None:
    whole = searched(run, "ops", 0, bounds[0])
    write_json(run.study("ops") / "result.json", replace(whole, records=whole.evaluated[:1]).to_json())
    told = nas_("plot", "run", "--output", "out")
    names = ("pareto.png", "pareto.svg", "pareto.html", "progress.png", "progress.svg")
    assert told.code == 0 and told.out.split() == [f"out/ops/{name}" for name in names]
    assert "the networks evaluated do not differ, so there is no picture of choices" in told.err


def test_published_networks_are_asked_for(
    run: RunDirectory,
    bounds: tuple[Constraint, Constraint],
    nas_: Callable[..., Outcome],
    unseen: None,
) -> None:
    searched(run, "ops", 0, bounds[0])
    told = nas_("plot", "run", "--reference", "published")
    assert told.code == 0 and "all published networks cost less or more than those evaluated" in told.err
    told = nas_("plot", "run", "--reference", "apples")
    assert (told.code, told.out) == (2, "")
    assert "--reference is one of costs, published, none, not 'apples'" in told.err
    told = nas_("plot", "run", "--tables", "gone")
    assert told.code == 2 and "--tables: 'gone' does not exist" in told.err


def test_a_searched_network_is_known_by_its_id(
    run: RunDirectory, bounds: tuple[Constraint, Constraint], nas_: Callable[..., Outcome]
) -> None:
    with pytest.raises(InputError, match="has looked at a network with the id '0123456789ab'"):
        find_arch(run, "0123456789ab")
    found = searched(run, "ops", 0, bounds[0])
    assert load_result(run, "ops") == found
    for record in found.records:
        assert find_arch(run, record.arch.id) == record.arch
    assert find_arch(run, "litepose-s") == get_arch("litepose-s")
    write_json("0123456789ab", get_arch("litepose-m").to_json())
    assert find_arch(run, "0123456789ab") == get_arch("litepose-m")  # a file of that name
    with pytest.raises(InputError, match="neither a named arch nor an arch file"):
        find_arch(run, "0123456789AB")
    told = nas_("emit", "run", "--arch", "ba9876543210")
    assert told.code == 2 and "no search of 'run' has looked at a network" in told.err
