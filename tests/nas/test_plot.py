"""Pictures: written whole, the same each time, showing what they should, refusing what they cannot show."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import pytest

from latency_tables import Prediction
from nas.beside import Beside, Landmark, landmarks, published_data
from nas.plot import Reference, View, plot_front, plot_progress
from nas.search import MACS, PARAMS, Constraint, Record, SearchResult, latency, search
from nas.search.noise import interval
from search_spaces import InputError, RunError, get_arch
from tests.nas.problems import MacsPricer, Noisy, analytic_ap, small_space


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return search(
        small_space(), Noisy(), storage=tmp_path_factory.mktemp("search") / "a.journal", trials=40,
        population=10, sampler="nsga2", constraints=[Constraint(MACS, 0.9e9)], pricers=[MacsPricer("phone")],
    )  # fmt: skip


def texts(path: Path) -> str:
    """All text of an SVG."""
    return "\n".join(text for text in ElementTree.parse(path).getroot().itertext() if text.strip())


def test_the_front_shows_its_parts(result: SearchResult, tmp_path: Path) -> None:
    budget = Constraint(MACS, 0.6e9)
    png, svg = plot_front(
        result, tmp_path / "front", budgets=[budget], named={"litepose-xs": Reference({MACS: 0.88e9}, 0.55)}
    )
    picture = cv2.imread(str(png))
    assert picture is not None
    assert picture.shape[0] > 600
    assert picture.std() > 10
    shown = texts(svg)
    best = result.best([budget])
    assert f"AP {best.ap:.3f}" in shown
    assert MACS.format(best.macs) in shown
    for part in ("budget 0.6 GMACs", "MACs (G)", "Latency on phone (ms)", "Pareto front", "chosen"):
        assert part in shown
    for part in ("over budget", "priced only", "litepose-xs", "256 px", "320 px"):
        assert part in shown


def test_bars_are_the_intervals_that_are_known(result: SearchResult, tmp_path: Path) -> None:
    phone = latency("phone")
    told = {
        r.arch.id: Prediction(
            *(share * r.value(phone) for share in (0.8, 0.5, 1.0)), 0.9, "measured-here", True
        )
        for r in result.evaluated[::2]
    }
    dominated = next(r for r in result.evaluated if r not in result.front(phone))
    view = View.of(result, chosen=dominated, beside=Beside({"phone": told}))
    bars = {record.trial: (ap, ms) for record, ap, ms in view.bars(phone)}
    assert set(bars) == {r.trial for r in (*result.front(phone), dominated)}
    for record in (*result.front(phone), dominated):
        assert bars[record.trial] == (interval(record), told.get(record.arch.id))
    assert {ms is None for _, ms in bars.values()} == {True, False}
    assert all(ms is None for _, _, ms in view.bars(MACS))
    (left, _), (low, high) = view.limits(phone)
    for ap, ms in bars.values():
        assert ap is not None and low < ap.low and ap.high < high
        assert ms is None or left < ms.low_ms
    (svg,) = plot_front(result, tmp_path / "a.svg", x=phone, beside=Beside({"phone": told}))
    assert "AP: 95% over the images" in texts(svg) and "latency: predicted interval" in texts(svg)
    bare = replace(result, records=tuple(replace(r, resamples="") for r in result.records))
    assert all(ap is None and ms is None for _, ap, ms in View.of(bare).bars(phone))
    (svg,) = plot_front(bare, tmp_path / "b.svg", x=phone)
    assert "95%" not in texts(svg) and "predicted interval" not in texts(svg)


def test_published_networks_are_lines_where_they_fall_within_the_axis(
    result: SearchResult, tmp_path: Path
) -> None:
    places = {MACS: landmarks(MACS, result, {})}
    assert get_arch("litepose-xs") not in [r.arch for r in result.evaluated], "take another seed"
    view = View.of(result, beside=Beside({}, places))
    assert [mark.name for mark in view.lines(MACS)] == [f"litepose-{size}" for size in ("xs", "s", "m", "l")]
    assert [mark.name for mark in view.shown_lines(MACS)] == ["litepose-xs"]
    assert view.lines(PARAMS) == ()

    def drawn(name: str, data: bool, comparable: bool) -> list[str]:
        around = Beside({}, places, published_data(14) if data else None, comparable)
        (svg,) = plot_front(result, tmp_path / name, x="macs", beside=around)
        return texts(svg).split("\n")

    lines = drawn("lines.svg", False, False)
    assert "litepose-xs, 0.8829 GMACs" in lines and "CrowdPose" not in " ".join(lines)
    assert not [text for text in lines if text.startswith("litepose-s")]
    apart = drawn("apart.svg", True, False)
    assert "measured on other images: not comparable with the panel below" in apart
    assert "published, CrowdPose test: other images" in apart and "litepose-xs 0.494" in apart
    same = drawn("same.svg", True, True)
    assert "not comparable" not in " ".join(same) and "published, CrowdPose test" in same
    # Where APs compare, they are on the axis; where they do not, they have no place on it.
    (_, *others), plain = places[MACS], View.of(result).limits(MACS)[1]
    poor = {MACS: (replace(places[MACS][0], ap=0.1), *others)}
    for comparable in (False, True):
        view = View.of(result, beside=Beside({}, poor, published_data(14), comparable))
        assert (view.limits(MACS)[1][0] < 0.1) if comparable else view.limits(MACS)[1] == plain
    beyond = {MACS: tuple(Landmark("far", mark.arch, 1e12, 0.5, "exact") for mark in places[MACS])}
    (svg,) = plot_front(result, tmp_path / "b.svg", x="macs", beside=Beside({}, beyond, published_data(14)))
    assert "far" not in texts(svg) and "CrowdPose" not in texts(svg)


def test_networks_with_a_name_are_named(result: SearchResult, tmp_path: Path) -> None:
    xs = get_arch("litepose-xs")
    first, *others = result.evaluated
    known = replace(first, arch=xs, ap=analytic_ap(xs))
    named = replace(result, records=(known, *others))
    view = View.of(named, beside=Beside({}, {MACS: landmarks(MACS, named, {})}))
    assert view.named == {"litepose-xs": known}
    assert "litepose-xs" not in [mark.name for mark in view.lines(MACS)]  # a spot says more than a line
    (svg,) = plot_front(named, tmp_path / "a.svg", x="macs")
    assert "litepose-xs" in texts(svg)


def test_many_choices_are_letters(result: SearchResult, tmp_path: Path) -> None:
    def marked(*records: Record) -> dict[str, Record]:
        return {f"choice {place}": record for place, record in enumerate(records)}

    front = result.front(MACS)
    assert View.of(result, chosen=marked(*front[:3])).letters == {}
    assert View.of(result, chosen={"a name " * 5: front[0]}).letters == {"a name " * 5: "A"}
    many = marked(front[0], front[-1], front[1], front[0])
    view = View.of(result, chosen=many)
    assert list(view.letters.values()) == ["A", "B", "C", "D"]
    assert [names for names, _ in view.stars] == [("choice 1",), ("choice 2",), ("choice 0", "choice 3")]
    (svg,) = plot_front(result, tmp_path / "a.svg", x="macs", chosen=many, caption="ranked")
    shown = texts(svg)
    assert "A D" in shown and "ranked" in shown
    cost = MACS.format(front[-1].macs)
    assert f"B: choice 1: AP {front[-1].ap:.3f}, {cost}" in shown


def test_several_budgets_on_one_axis(result: SearchResult, tmp_path: Path) -> None:
    budgets = [Constraint(MACS, 0.5e9), Constraint(MACS, 0.7e9), Constraint(latency("phone"), 1e-3)]
    view = View.of(result, budgets=budgets, own_budgets=True)
    assert view.judged(MACS) == (budgets[1],) and view.judged(PARAMS) == ()
    assert {r.macs <= 0.7e9 for r in view.inside(MACS)} == {True}
    assert len(view.outside(latency("phone"))) == len(result.evaluated)
    assert view.outside(PARAMS) == [] and view.reach(MACS) == 0.7e9
    assert View.of(result, budgets=budgets).inside(MACS) == []
    (svg,) = plot_front(result, tmp_path / "a.svg", x="macs", budgets=budgets, own_budgets=True)
    assert "budget 0.5 GMACs" in texts(svg) and "budget 0.7 GMACs" in texts(svg)


def test_the_same_result_gives_the_same_file(result: SearchResult, tmp_path: Path) -> None:
    for name in ("a.svg", "a.png"):
        (first,) = plot_front(result, tmp_path / name, x="macs")
        (second,) = plot_front(result, tmp_path / f"again-{name}", x="macs")
        assert first.read_bytes() == second.read_bytes()


def test_progress_and_single_panels(result: SearchResult, tmp_path: Path) -> None:
    (svg,) = plot_progress(result, tmp_path / "progress.svg", x="latency[phone]")
    assert "Networks evaluated" in texts(svg)
    assert f"{result.best().ap:.3f}" in texts(svg)
    (single,) = plot_front(result, tmp_path / "one.svg", x=latency("phone"))
    assert "MACs (G)" not in texts(single)
    assert not plt.get_fignums(), "no figure may stay in pyplot's global state"


def test_a_budget_that_nothing_meets_is_still_drawn(result: SearchResult, tmp_path: Path) -> None:
    (svg,) = plot_front(result, tmp_path / "a.svg", budgets=[Constraint(MACS, 1e6)])
    assert "over budget" in texts(svg)
    assert "chosen" not in texts(svg)


def test_a_single_network_is_drawn(tmp_path: Path) -> None:
    one = search(small_space(), Noisy(), storage=tmp_path / "a.journal", trials=1)
    assert all(path.stat().st_size > 1000 for path in plot_front(one, tmp_path / "front"))
    assert all(path.stat().st_size > 1000 for path in plot_progress(one, tmp_path / "progress"))


def test_what_cannot_be_drawn_is_refused(result: SearchResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"written as \.png or \.svg, not as 'front\.gif'"):
        plot_front(result, tmp_path / "front.gif")
    with pytest.raises(InputError, match=r"no latency\[watch\]; targets priced: phone"):
        plot_front(result, tmp_path / "front.png", x="latency[watch]")
    with pytest.raises(InputError, match="not ap"):
        plot_front(result, tmp_path / "front.png", x="ap")
    nothing = SearchResult.from_json({**result.to_json(), "records": []})
    with pytest.raises(RunError, match="evaluated no network yet"):
        plot_front(nothing, tmp_path / "front.png")
    assert not list(tmp_path.iterdir())
