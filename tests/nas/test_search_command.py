"""``nas search`` with budgets of every kind: what it chooses, shares, tells and refuses."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nas.known import load_result
from nas.run import RunDirectory
from nas.searching import run_search, run_searches
from search_spaces import BudgetError, InputError
from tests.nas.conftest import Outcome
from tests.nas.scored import MACS, PHONE, SPACE, million, ok, refused, save_table


def test_every_bound_at_once_and_what_is_kept(asked: list[str], nas_: Callable[..., Outcome]) -> None:
    save_table(Path("run"))
    cost = SPACE.cost(SPACE.largest())
    bounds = ("--max-macs", million(0.8), "--max-params", cost.params - 1, "--max-size", 4 * cost.params)
    options = ("--evaluations", 24, "--objective", "params", "--objective", f"latency@{PHONE.name}")
    said = ok(nas_("search", "run", *bounds, "--max-latency", "1s@pixel-9", *options, "--json"))
    assert said["evaluated"] == len(asked) == len(set(asked)) == 24
    raced = {"ended_early": 0, "images": None, "images_saved": None}
    assert said["evaluations"] == {"made": 24, "reused": 0, "sum": 12.0, "median": 0.5, "saved": 0.0, **raced}
    folder = Path(said["study"])
    assert "_over-params-latency-pixel-9" in folder.name
    result = json.loads((folder / "result.json").read_text())
    assert result["objectives"] == ["ap", "params", f"latency[{PHONE.name}]"]
    assert set(result["constraints"]) == {"macs", "params", "size", f"latency[{PHONE.name}]"}
    told = result["analysis"]
    assert told["seconds"] == said["evaluations"]
    assert set(told["hypervolume"]) == {"params", f"latency[{PHONE.name}]", "joint"}
    for each in told["hypervolume"].values():
        assert len(each["values"]) == 24 and all(np.diff(each["values"]) >= 0)
    shares = [each["share"] for each in told["importances"]["choices"].values()]
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)
    assert told["importances"]["explained"] > 0.9  # the AP is a sum over choices
    rows = list(csv.DictReader(io.StringIO((folder / "result.csv").read_text())))
    looked_at = [row for row in rows if row["ap"]]
    assert [row["id"] for row in looked_at] == asked
    assert [float(row["hypervolume"]) for row in looked_at] == told["hypervolume"]["params"]["values"]
    assert float(looked_at[-1]["best_ap"]) == max(float(row["ap"]) for row in looked_at)
    on_front = {row["id"] for row in rows if row["on_front"] == "1"}
    assert on_front == {record["id"] for record in said["front"]}


def test_studies_share_what_they_evaluate(asked: list[str], nas_: Callable[..., Outcome]) -> None:
    wide = ok(nas_("search", "run", "--max-macs", million(0.9), "--evaluations", 12, "--json"))
    same = ok(nas_("search", "run", "--max-macs", million(0.9), "--evaluations", 12, "--name", "t", "--json"))
    assert len(asked) == 12
    raced = {"ended_early": 0, "images": None, "images_saved": None}
    assert same["evaluations"] == {"made": 0, "reused": 12, "sum": 0.0, "median": None, "saved": 6.0, **raced}
    assert [r["id"] for r in same["front"]] == [r["id"] for r in wide["front"]]
    told = nas_("search", "run", "--max-macs", million(0.9), "--evaluations", 14, "--name", "t")
    assert (
        "12 of 14 taken from earlier studies (there 6.0 s), 2 evaluated in 1.0 s (median 0.50 s)" in told.out
    )
    assert len(asked) == 14
    # Another way of evaluating is another context.
    other = ("--set", "evaluate.flip=true", "--name", "u", "--evaluations", 3)
    assert ok(nas_("search", "run", *other, "--json"))["evaluations"]["reused"] == 0


def test_several_budgets_in_one_command(asked: list[str], nas_: Callable[..., Outcome]) -> None:
    save_table(Path("run"))
    budgets = [f"macs<={million(q)}" for q in (0.9, 0.5)] + [f"latency@pixel-9<={million(0.2)[:-1]}ms"]
    command = ["search", "run", "--evaluations", 12, "--max-size", "1GB"]
    for budget in budgets:
        command += ["--budget", budget]
    said = ok(nas_(*command, "--json"))
    made = said["evaluations"]["made"]
    assert made == len(asked) == len(set(asked)) == said["networks"]
    assert made + said["evaluations"]["reused"] == 36
    uppers = [float(b.partition("<=")[2].rstrip("Mms")) * 1e6 for b in budgets]
    run = RunDirectory.open("run")
    every = {r.arch.id: r for e in said["budgets"] for r in load_result(run, Path(e["study"]).name).evaluated}
    assert len(every) == made
    for place, (answer, upper) in enumerate(zip(said["budgets"], uppers, strict=True)):
        chosen = answer["chosen"]
        held = upper / np.exp(0.05) if place == 2 else upper  # latency counts at the upper end
        within = [r for r in every.values() if r.macs <= held]
        assert chosen["ap"] == max(r.require_ap() for r in within)  # whichever study found it
        assert any(r.arch.id == chosen["id"] for r in load_result(run, answer["found_in"]).evaluated)
        assert chosen["latency_ms"][PHONE.name] == pytest.approx(chosen["macs"] / 1e6 * np.exp(0.05))
        beside = answer["neighbours"]
        assert beside["by"] == ("macs" if place < 2 else f"latency[{PHONE.name}]")
        if beside["cheaper"] is not None:
            difference = beside["cheaper"]
            assert difference["difference"] < 0 and difference["cost"] < chosen["macs"]
            low, high = difference["interval"]["low"], difference["interval"]["high"]
            assert difference["tie"] == (low <= 0 <= high)
        # What exceeding the budget would buy.
        assert (beside["dearer"] is None) == (chosen["ap"] == max(r.require_ap() for r in every.values()))
        if beside["dearer"] is not None:
            assert beside["dearer"]["difference"] > 0 and beside["dearer"]["cost"] > upper / 1e6
    aps = [answer["chosen"]["ap"] for answer in said["budgets"]]
    assert aps == sorted(aps, reverse=True)  # a wider budget is never answered worse
    # The same command again, told to people: nothing is evaluated.
    told = nas_(*command)
    assert told.code == 0 and len(asked) == made
    assert f"3 budgets, {made} networks" in told.out
    assert "supernet's ranking: not measured" in told.out
    for answer in said["budgets"]:
        assert answer["chosen"]["id"][:6] in told.out
    # One of them alone is the same study.
    alone = ok(
        nas_(
            "search", "run", "--evaluations", 12, "--max-size", "1GB", *("--max-macs", million(0.5)), "--json"
        )
    )
    assert alone["study"] == said["budgets"][1]["study"] and len(asked) == made


def test_the_cheapest_that_is_good_enough(asked: list[str], nas_: Callable[..., Outcome]) -> None:
    command = ("search", "run", "--evaluations", 16, "--max-macs", million(0.9))
    best = ok(nas_(*command, "--json"))["best"]
    front = ok(nas_(*command, "--json"))["front"]
    assert len(front) > 2
    middle = front[len(front) // 2]["ap"]
    said = ok(nas_(*command, "--min-ap", f"{middle:.3f}", "--json"))
    enough = [r for r in front if r["ap"] >= float(f"{middle:.3f}")]
    assert said["best"]["id"] == enough[0]["id"] != best["id"]
    assert said["neighbours"]["dearer"]["id"] == enough[1]["id"]
    assert len(asked) == 16  # asking for another AP evaluates nothing
    result = load_result(RunDirectory.open("run"), Path(said["study"]).name)
    assert result.best().arch.id == said["best"]["id"] and result.min_ap == float(f"{middle:.3f}")
    told = nas_(*command, "--min-ap", ".999")
    assert told.code == 0
    assert f"reaches AP 0.999: the best has {best['ap']:.4f} and costs" in told.out.replace("\n", " ")
    assert ok(nas_(*command, "--min-ap", ".999", "--json"))["best"] is None
    both = ok(
        nas_("search", "run", "--evaluations", 16, "--budget", f"macs<={million(0.9)}, ap>=0.999", "--json")
    )
    assert both["budgets"][0]["chosen"] is None and "reaches AP 0.999" in both["budgets"][0]["no_answer"]
    nas_("search", "run", "--evaluations", 16, "--budget", f"macs<={million(0.9)}, ap>=0.999")


def test_like_a_network(asked: list[str], nas_: Callable[..., Outcome]) -> None:
    arch = SPACE.decode(SPACE.genotypes(300, 301)[0])
    Path("mine.json").write_text(json.dumps(arch.to_json()))
    cost = SPACE.cost(arch)
    said = ok(nas_("search", "run", "--like", "mine.json*1.5", "--evaluations", 3, "--json"))
    assert json.loads((Path(said["study"]) / "result.json").read_text())["constraints"] == {
        "macs": 1.5 * cost.macs
    }
    save_table(Path("run"))
    options = ("--objective", "latency@pixel-9", "--evaluations", 3, "--json")
    said = ok(nas_("search", "run", "--like", "mine.json", *options))
    (bound,) = json.loads((Path(said["study"]) / "result.json").read_text())["constraints"].values()
    assert bound == pytest.approx(cost.macs / 1e6 * np.exp(0.05))  # the upper end, as for every network
    assert all(record["macs"] <= cost.macs for record in said["front"])


def test_a_budget_within_the_error_bar_is_told(asked: list[str], nas_: Callable[..., Outcome]) -> None:
    save_table(Path("run"), half_width=0.5)
    fastest = MACS[0] / 1e6
    near = ("search", "run", "--max-latency", f"{1.8 * fastest}ms@pixel-9", "--evaluations", 3)
    said = nas_(*near, "--json")
    line = "lies within the table's error bar: the space's fastest network takes"
    assert line in said.err and any(line in each for each in ok(said)["caveats"])
    told = nas_("search", "run", "--max-latency", f"{1.2 * fastest}ms@pixel-9", "--evaluations", 3)
    refused(told, "the smallest achievable is")
    assert "lies inside the error bar of the space's fastest network" in told.err.splitlines()[-2]
    clear = nas_("search", "run", "--max-latency", "1s@pixel-9", "--evaluations", 3, "--json")
    assert ok(clear) and "error bar" not in clear.err


def test_nonsense_is_refused_before_anything_is_done(asked: list[str], nas_: Callable[..., Outcome]) -> None:
    save_table(Path("run"))
    before = sorted(Path("run").rglob("*"))
    for options, message in (
        (("--budget", "macs<=1G", "--budget", "macs<=1G"), "--budget 'macs<=1G' stands twice"),
        (("--budget", "macs<=1G", "--budget", "macs<=1000M"), "another budget are the same to four digits"),
        (("--budget", "macs<=1G", "--name", "x"), "--name names one study"),
        (
            ("--budget", "macs<=1G", "--max-macs", "1G"),
            "--budget 'macs<=1G' and --max-macs 1G state the same",
        ),
        (("--budget", "macs<=1G", "--budget", "macs<=1k"), "--budget 'macs<=1k': no network of this"),
        (("--budget", "macs<=fast"), "--budget 'macs<=fast': --max-macs takes a number"),
        (("--like", "litepose-q"), "--like: 'litepose-q' is neither"),
        (("--like", "litepose-s", "--max-macs", "1G"), "bounds macs, which is bounded already"),
        (("--sampler", "tpe"), "unknown sampler 'tpe'"),
        (("--min-ap", "40"), "--min-ap takes an AP between 0 and 1"),
        (("--max-size", "8ms"), "--max-size takes the suffixes"),
        (("--objective", "speed"), "--objective: unknown objective 'speed'"),
        (("--objective", "latency@pixel-8"), "--objective has the unknown target 'pixel-8'; known:"),
    ):
        refused(nas_("search", "run", *options), message)
    assert not asked
    made = set(Path("run").rglob("*")) - set(before)
    assert {path.name for path in made} <= {".lock"}


def test_without_ray_no_study_is_begun(
    asked: list[str], nas_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(nas_("search", "run", "--max-macs", "1G", "--executor", "ray"), "'litepose-nas[ray]'")
    assert not asked and not RunDirectory.open("run").studies()


def test_ap_alone_can_be_the_objective(asked: list[str], nas_: Callable[..., Outcome]) -> None:
    options = ("--objective", "ap", "--max-macs", million(0.5), "--evaluations", 8)
    said = ok(nas_("search", "run", *options, "--json"))
    assert said["evaluated"] == 8 and said["best"]["ap"] == max(r["ap"] for r in said["front"])
    result = load_result(RunDirectory.open("run"), Path(said["study"]).name)
    assert [str(objective) for objective in result.objectives] == ["ap"]


def test_several_budgets_from_python(asked: list[str]) -> None:
    run = RunDirectory.open("run")
    with pytest.raises(InputError, match="need budgets"):
        run_searches(run, [])
    with pytest.raises(BudgetError, match="--budget 'params<=1': no network"):
        run_searches(run, ["params<=1"])
    found = run_searches(run, [f"macs<={million(0.6)}"], evaluations=4)
    alone = run_search(run, max_macs=million(0.6), evaluations=4)
    assert alone.result == found.studies[0].result and len(asked) == 4
    assert found.studies[0].answer.arch == alone.answer.arch
