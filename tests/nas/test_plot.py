"""Pictures: written whole, the same each time, showing what they should, refusing what they cannot show."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import pytest

from nas.plot import Reference, plot_front, plot_progress
from nas.search import MACS, Constraint, SearchResult, latency, search
from search_spaces import InputError, RunError
from tests.nas.problems import Analytic, MacsPricer, small_space


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return search(
        small_space(), Analytic(), storage=tmp_path_factory.mktemp("search") / "a.journal", trials=40,
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
    one = search(small_space(), Analytic(), storage=tmp_path / "a.journal", trials=1)
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
