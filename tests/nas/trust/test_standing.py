"""What stands beside a claim: the ranking's standing, ties, and the pictures of trust."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nas.search import Record
from nas.search.noise import RESAMPLES, pack
from nas.search_report import caveats, claims_json, gain_words, ties_of, ties_words
from nas.trust.plots import plot_sensitivity, plot_trust
from nas.trust.report import TrustReport, report_path
from nas.trust.standing import Standing, standing
from tests.nas.problems import small_space
from tests.nas.trust import made_up

ABSENT = Standing(None, (), "")


def record(place: int, ap: float, shift: float | None = 0.0) -> Record:
    """Return a network whose AP on resamples varies by its own shift; without one nothing was kept."""
    arch = made_up.archs(6)[1][place]
    drawn = np.random.default_rng(0).normal(0, 0.01, RESAMPLES)
    own = np.random.default_rng(place + 1).normal(0, shift or 1e-4, RESAMPLES)
    kept = "" if shift is None else pack(np.clip(ap + drawn + own, 0, 1))
    macs = small_space().cost(arch).macs
    return Record(arch, macs, 10**6, {}, True, place, 0, "sample", ap, {}, 1.0, False, kept)


def test_a_run_without_report_is_not_measured(tmp_path: Path) -> None:
    found = standing(tmp_path, made_up.CONTEXT)
    assert found.line() == "not measured; run 'nas trust RUN'"
    assert found.to_json()["state"] == "absent" and found.to_json()["kendall"] is None


def test_a_report_tells_tau_until_the_weights_are_others(tmp_path: Path) -> None:
    report = made_up.report()
    report.save(tmp_path)
    found = standing(tmp_path, made_up.CONTEXT)
    tau = report.statistics.supernet.kendall
    assert found.known
    assert f"tau {tau.value:.2f} [{tau.low:.2f}, {tau.high:.2f}] against 20 networks" in found.line()
    assert found.to_json()["kendall"] == tau.to_json() and found.to_json()["state"] == "measured"
    stale = standing(tmp_path, {**made_up.CONTEXT, "supernet": "trained on"})
    assert not stale.known and "another supernet since it was measured" in stale.line()
    assert f"{tau.value:.2f}" not in stale.line()
    assert stale.to_json()["kendall"] is None and stale.to_json()["state"] == "stale"


def test_a_damaged_report_stops_no_search(tmp_path: Path) -> None:
    made_up.report().save(tmp_path)
    report_path(tmp_path).write_text("{")
    found = standing(tmp_path, made_up.CONTEXT)
    assert not found.known and "not readable" in found.line() and found.to_json()["state"] == "damaged"


def test_ties_of_a_front_are_told() -> None:
    front = [record(0, 0.40), record(1, 0.50), record(2, 0.505, 0.02)]
    lines = caveats(front, ABSENT)
    assert lines[0] == "supernet's ranking: not measured; run 'nas trust RUN'"
    assert lines[1].startswith("1 of 2 steps of the front is within the noise")
    assert lines[1].endswith("a tie is not a win")
    told = claims_json(front, ABSENT)
    assert [step["tie"] for step in told["steps"]] == [False, True]
    assert told["caveats"] == lines
    assert len(caveats(front[:2], ABSENT)) == 1 == len(caveats([], ABSENT))


def test_differences_that_the_supernet_does_not_order_are_told() -> None:
    report = made_up.report()
    front = [record(0, 0.40), record(1, 0.50), record(2, 0.515)]
    (line,) = [line for line in caveats(front, Standing(report, (), "")) if "gain less" in line]
    assert line.startswith("1 of 2 steps gain less than 0.0200 AP")
    assert not any("gain less" in line for line in caveats(front, Standing(report, ("supernet",), "")))
    unknown = replace(report, statistics=replace(report.statistics, trusted_difference=None))
    assert not any("gain less" in line for line in caveats(front, Standing(unknown, (), "")))


def test_an_older_study_is_not_judged() -> None:
    front = [record(0, 0.40, None), record(1, 0.41), record(2, 0.60)]
    assert "noise of 1 of 2 steps of the front is not known" in caveats(front, ABSENT)[1]
    (step, other) = claims_json(front, ABSENT)["steps"]
    assert step["tie"] is None and other["tie"] is False
    assert ties_words(ties_of(front[0], front)).startswith("not known")


def test_cheaper_networks_within_the_noise_of_the_chosen_are_named() -> None:
    cheap, middle, best = record(0, 0.50, 0.02), record(1, 0.40), record(2, 0.505, 0.02)
    told = ties_of(best, (cheap, middle, best))
    assert told == {
        "known": True,
        "networks": 1,
        "cheapest": {"id": cheap.arch.id, "macs": cheap.macs, "search_ap": 0.5},
    }
    assert f"1 of those known are within the noise of its AP, the cheapest {cheap.arch.id}" in ties_words(
        told
    )
    told = ties_of(cheap, (cheap, middle, best))
    assert told["networks"] == 1 and told["cheapest"] is None
    assert "none of them with fewer MACs" in ties_words(told)
    told = ties_of(middle, (cheap, middle, best))
    assert ties_words(told) == "no other network known is within its noise"


def test_gains_are_words() -> None:
    from nas.search.noise import steps

    (step,) = steps([record(0, 0.40), record(1, 0.50)])
    assert gain_words(step).startswith("+0.1000 [0.0") and "tie" not in gain_words(step)
    (step,) = steps([record(0, 0.40, None), record(1, 0.50)])
    assert gain_words(step) == "+0.1000"
    (step,) = steps([record(0, 0.50, 0.02), record(1, 0.501, 0.02)])
    assert gain_words(step).endswith("tie")


@pytest.mark.parametrize("report", [made_up.report(), made_up.report(3, 0.1, 1, 2)], ids=["usual", "least"])
def test_pictures_of_trust(report: TrustReport, tmp_path: Path) -> None:
    png, svg = plot_trust(report, tmp_path / "trust")
    assert png.read_bytes().startswith(b"\x89PNG")
    text, tau = svg.read_text(), report.statistics.supernet.kendall
    assert f"{tau.value:.2f} [{tau.low:.2f}, {tau.high:.2f}]" in text and "MACs alone" in text
    again = plot_trust(report, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [png.read_bytes(), svg.read_bytes()]


@pytest.mark.parametrize("noise", [0.0, 0.05, 2.0])
def test_pictures_of_sensitivity(noise: float, tmp_path: Path) -> None:
    found = made_up.sensitivity(noise=noise)
    png, svg = plot_sensitivity(found, tmp_path / "sensitivity")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert f"enough: {found.enough}" in svg.read_text()
