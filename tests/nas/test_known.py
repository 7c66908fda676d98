"""From a run's studies to one network: what is known of it, what answers a budget, what is never mixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas.asked import read_asked
from nas.known import known_networks, load_result
from nas.run import RunDirectory
from nas.search import BudgetText
from nas.searching import run_search, run_searches
from search_spaces import BudgetError, InputError, RunError
from supernet.registry import build_supernet
from supernet.state import save_weights
from tests.nas.conftest import Outcome
from tests.nas.scored import PHONE, SPACE, million, ok, refused, save_table


def searched() -> RunDirectory:
    """Search the run in the box: long within a wide budget, then briefly within a tight one."""
    run = RunDirectory.open("run")
    run_search(run, max_macs=million(0.9), evaluations=24, name="wide")
    run_search(run, max_macs=million(0.4), evaluations=3, name="tight", sampler="random", seed=5)
    return run


# -- what is known -----------------------------------------------------------------------------------------


def test_every_study_s_networks_are_known_once_with_who_evaluated_them(asked: list[str]) -> None:
    run = searched()
    known = known_networks(run)
    assert [record.arch.id for record in known.records] == asked == list(known.found)
    wide, tight = load_result(run, "wide"), load_result(run, "tight")
    for record in wide.evaluated:
        found = known.found[record.arch.id]
        assert (found.study, found.trial) == ("wide", record.trial)
    for record in tight.evaluated:
        found = known.found[record.arch.id]
        assert found.studies == (("wide", "tight") if record.reused else ("tight",))
        assert (found.trial == record.trial) or record.reused
    assert not known.left_out and not any(record.reused or record.partial for record in known.records)


def test_what_a_deleted_study_and_a_lost_file_held_is_known(asked: list[str]) -> None:
    run = searched()
    whole = known_networks(run)
    kept = run.evaluations.read_bytes()
    run.evaluations.unlink()  # the studies' results still say it
    assert {r.arch.id for r in known_networks(run).records} == set(asked)
    run.evaluations.write_bytes(kept)
    shutil.rmtree(run.study("wide"))  # or killed before it had a result
    known = known_networks(run)
    assert known.records == whole.records
    answer, before = known.answer(), whole.answer()
    assert answer.arch == before.arch and answer.found is not None
    assert (answer.found.study, answer.found.trial) == ("wide", None)


def test_networks_that_ended_early_are_never_known(asked: list[str]) -> None:
    run = searched()
    best = known_networks(run).answer().record
    for name in run.studies():
        path = run.study(name) / "result.json"
        value = json.loads(path.read_text())
        for record in value["records"]:
            record["partial"] = record["id"] == best.arch.id
        path.write_text(json.dumps(value))
    lines = [line for line in run.evaluations.read_text().splitlines() if best.arch.id not in line]
    run.evaluations.write_text("\n".join(lines) + "\n")
    known = known_networks(run)
    assert best.arch.id not in known.found and len(known) == len(asked) - 1
    assert known.answer().record.require_ap() <= best.require_ap()


def test_a_run_that_was_trained_further_knows_nothing_of_before(
    asked: list[str], nas_: Callable[..., Outcome]
) -> None:
    run = searched()
    network = build_supernet(SPACE, torch.Generator().manual_seed(5))
    save_weights(run.best, network, SPACE, 1, {})
    known = known_networks(run)
    assert not known.records and set(known.left_out) == {"wide", "tight"}
    told = nas_("emit", "run")
    refused(told, "no network of 'run' was evaluated with its present weights, images and settings")
    assert "the study 'wide' was made with another supernet (--study takes it)" in told.err
    with pytest.raises(BudgetError, match="run 'nas search run'; the study 'tight' was made with another"):
        known.answer("macs<=1G").arch  # noqa: B018 - raises
    # What is searched now is all that is known, though the file holds more.
    study = run_search(run, evaluations=2, name="now")
    assert study.answer.networks == 2 == len(known_networks(run))
    named = known_networks(run, study="wide")
    assert len(named) == 24 and list(named.left_out) == ["wide"]


def test_a_study_without_context_or_with_a_damaged_result_is_left_out(asked: list[str]) -> None:
    run = searched()
    path = run.study("wide") / "result.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "context": {}}))
    (run.study("tight") / "result.json").write_text("{}")
    left_out = known_networks(run).left_out
    assert left_out["wide"] == "the study 'wide' does not say what its APs rest on"
    assert "is not a search result" in left_out["tight"] or "lacks" in left_out["tight"]
    assert run_search(run, evaluations=2, name="third").answer.chosen is not None  # stops no search
    with pytest.raises(RunError):
        known_networks(run, study="tight")
    with pytest.raises(InputError, match="has no study 'wid'; did you mean 'wide'"):
        known_networks(run, study="wid")


def test_an_untrained_run_knows_nothing(box: Path, trained_once: Path) -> None:
    shutil.copytree(trained_once, "run")
    RunDirectory.open("run").best.unlink()
    with pytest.raises(RunError, match="has no trained supernet"):
        known_networks(RunDirectory.open("run"))


# -- what answers a budget ---------------------------------------------------------------------------------


def test_search_tells_what_an_earlier_study_found_and_stays_as_it_is(
    asked: list[str], nas_: Callable[..., Outcome]
) -> None:
    tight = ("search", "run", "--max-macs", million(0.4), "--evaluations", 3, "--sampler", "random")
    shutil.copytree("run", "fresh")
    alone = ok(nas_("search", "fresh", *tight[2:], "--json"))
    assert alone["chosen"]["id"] == alone["best"]["id"]
    assert alone["known"] == {"networks": 3, "within_budget": 3, "studies": 1}
    assert "found a better network" not in nas_("search", "fresh", *tight[2:]).out
    wide = ok(nas_("search", "run", "--max-macs", million(0.9), "--evaluations", 24, "--json"))
    said = ok(nas_(*tight, "--json"))
    # The study is what it would be without the other one.
    for name in ("best", "front", "steps", "caveats", "evaluated", "priced_only"):
        own = [
            [{**r, "reused": None} for r in each] if name == "front" else each
            for each in (said[name], alone[name])
        ]
        if name == "best":
            own = [{**each, "reused": None} for each in own]
        assert own[0] == own[1], name
    within = [r for r in known_networks(RunDirectory.open("run")).records if r.macs <= bound(0.4)]
    best = max(within, key=lambda r: r.require_ap())
    assert said["chosen"]["id"] == best.arch.id != said["best"]["id"]
    assert said["found_in"] == Path(wide["study"]).name
    assert said["known"]["within_budget"] == len(within) < said["known"]["networks"] == len(set(asked))
    assert said["chosen"]["arch"] == best.arch.to_json() and "generation" not in said["chosen"]
    told = " ".join(nas_(*tight).out.split())
    assert (
        f"the study '{said['found_in']}' found a better network for this budget: {best.arch.id} with" in told
    )
    assert f"of this one the best has AP {said['best']['ap']:.4f}" in told
    # The same budget among several has the same answer.
    several = run_searches(
        RunDirectory.open("run"), [f"macs<={million(0.4)}"], evaluations=3, sampler="random"
    )
    assert several.studies[0].answer.arch == best.arch
    assert several.summary()["budgets"][0] == said


def bound(quantile: float) -> float:
    return float(million(quantile)[:-1]) * 1e6


def test_emit_takes_the_best_of_the_run_and_the_card_says_whose_it_is(
    asked: list[str], nas_: Callable[..., Outcome], one_thread: None
) -> None:
    run = searched()
    known = known_networks(run)
    card = ok(nas_("emit", "run", "--max-macs", million(0.4), "-o", "net", "--json"))
    within = [r for r in known.records if r.macs <= bound(0.4)]
    best = max(within, key=lambda r: r.require_ap())
    chosen = card["chosen"]
    assert (card["id"], chosen["by"], chosen["found_in"]) == (best.arch.id, "search 'wide'", "wide")
    assert chosen["trial"] == known.found[best.arch.id].trial
    assert chosen["known"] == {"networks": len(known), "within_budget": len(within), "studies": 2}
    assert chosen["search_ap"] == best.ap and chosen["budget"][0].startswith("macs <= ")
    own = ok(nas_("emit", "run", "--study", "tight", "-o", "own", "--json"))
    theirs = load_result(run, "tight")
    assert own["id"] == theirs.best().arch.id != card["id"]
    assert own["chosen"]["known"] == {"networks": 3, "within_budget": 3, "studies": 1}
    assert own["chosen"]["budget"] == [str(bound) for bound in theirs.constraints]
    told = nas_("emit", "run", "--max-macs", million(0.4), "-o", "net")
    words = " ".join(told.out.split())
    assert f"best of {len(within)} within" in words and "in 2 studies, this one in 'wide'" in words


def test_emit_by_a_study_s_own_budget_takes_what_its_search_chose(
    asked: list[str], nas_: Callable[..., Outcome], one_thread: None
) -> None:
    run = RunDirectory.open("run")
    first = run_search(run, max_macs=million(0.9), evaluations=16, name="s")
    middle = first.result.front()[1]
    good = repr(middle.require_ap())
    said = run_search(run, max_macs=million(0.9), evaluations=16, name="s", min_ap=good)
    assert said.chosen is not None and said.chosen.arch == middle.arch
    card = ok(nas_("emit", "run", "--study", "s", "-o", "net", "--json"))
    assert card["id"] == middle.arch.id and card["chosen"]["budget"][-1] == f"ap >= {float(good):g}"


def test_every_budget_of_a_search_is_one_of_emit(asked: list[str], nas_: Callable[..., Outcome]) -> None:
    """Each option reaches the choice: what is told of a network that does not exist names it."""
    searched()
    save_table(Path("run"))
    arch = SPACE.smallest()
    Path("small.json").write_text(json.dumps(arch.to_json()))
    for options, message in (
        (("--max-macs", "1k"), "meets macs <= 0.001 MMACs: the smallest achievable is"),
        (("--max-params", "1k"), "meets params <= 0.001 M parameters: the smallest achievable is"),
        (("--max-size", "1kB"), "meets size <= 0.001 MB: the smallest achievable is"),
        (("--max-latency", "1us@pixel-9"), "<= 0.001 ms: the smallest achievable is"),
        (("--min-ap", ".999"), "reaches AP 0.999: the best has"),
        (("--like", "small.json*0.5"), "the smallest achievable is"),
        (("--like", "small.json*0.5", "--objective", "params"), "meets params <= "),
        (("--budget", "size<=1kB, ap>=.2"), "meets size <= 0.001 MB"),
        (("--budget", "macs<=1G", "--max-macs", "1G"), "and --max-macs 1G state the same"),
        (("--budget", "macs<=1G", "--budget", "macs<=2G", "--min-ap", "7"), "--min-ap takes an AP"),
        (("--like", "small.json", "--max-macs", "1G"), "bounds macs, which is bounded already"),
        (("--max-macs", "1G", "--study", "wid"), "has no study 'wid'; did you mean 'wide'"),
        (("--arch", "litepose-s", "--min-ap", ".3"), "--arch names the network itself"),
        (("--arch", "litepose-s", "--objective", "macs"), "--arch names the network itself"),
    ):
        refused(nas_("emit", "run", *options), message)
    # Possible, but nothing of that kind was evaluated: what is nearest, and what to do.
    least = min(known_networks(RunDirectory.open("run")).records, key=lambda r: r.macs)
    tight = f"{least.macs - 1}"
    if SPACE.cost(arch).macs < least.macs:
        refused(nas_("emit", "run", "--max-macs", tight), f"the nearest is {least.arch.id} with")
    assert not Path("run", "emitted").exists()


def test_words_from_python_mean_what_the_options_mean(asked: list[str]) -> None:
    run = searched()
    save_table(Path("run"))
    known = known_networks(run)
    ms = f"{bound(0.5) / 1e6:.3f}ms"
    words = f"latency@pixel-9<={ms}, size<=1GB, ap>=0.3"
    answer = known.answer(words)
    assert answer == known.answer(BudgetText(max_size="1GB", max_latency=(f"{ms}@pixel-9",), min_ap="0.3"))
    rows = known.rows(words)
    (chosen,) = [row for row in rows if row["chosen"]]
    column = f"latency[{PHONE.name}]"
    assert chosen["id"] == answer.arch.id
    assert chosen[column] == min(row[column] for row in rows)  # type: ignore[type-var]
    assert [row["ap"] for row in rows] == sorted((row["ap"] for row in rows), reverse=True)  # type: ignore
    for row in rows:
        record = next(r for r in known.records if r.arch.id == row["id"])
        assert record.macs / 1e6 * np.exp(0.05) == pytest.approx(row[column])
        assert float(row[column]) <= float(ms[:-2])  # type: ignore[arg-type]
        assert record.require_ap() >= 0.3 and row["ap_low"] < row["ap"] < row["ap_high"]  # type: ignore
        assert {name: row[name] for name in record.arch} == record.arch.as_dict()
    best = known.answer()
    assert best.record.ap == max(r.require_ap() for r in known.records) and len(known.rows()) == len(known)
    assert known.answer(objectives=["params"]).neighbours is not None
    with pytest.raises(InputError, match="unknown 'mac' in 'mac<=1G'"):
        known.answer("mac<=1G")


@pytest.mark.parametrize("objective", ["macs", "params", "size", "latency@raspberry-pi-4"])
def test_a_network_is_within_its_own_cost(asked: list[str], objective: str) -> None:
    """To the bit: what is like a network includes it, whatever it is like it in."""
    run = searched()
    known = known_networks(run)
    if objective.startswith("latency"):
        # A network by itself and networks by the thousand are added up in another order.
        (predictor,) = read_asked({"": BudgetText()}, [objective], run).predictors.values()
        pool = known.priced({predictor.name: predictor}).records
        alone = [predictor.predict(record.arch.blocks(17)).high_ms for record in pool]
        assert any(r.latency_ms[predictor.name] > ms for r, ms in zip(pool, alone, strict=True))
    for record in known.records:
        Path("it.json").write_text(json.dumps(record.arch.to_json()))
        rows = known.rows("like it.json", [objective])
        assert record.arch.id in {row["id"] for row in rows}
    exact = known.records[0]
    assert exact.arch.id in {row["id"] for row in known.rows(f"macs<={exact.macs}, params<={exact.params}")}
    assert exact.arch.id not in {row["id"] for row in known.rows(f"macs<={exact.macs - 1}")}


def test_bounds_that_are_stated_twice_are_refused_before_data_is_read(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("data was read")

    run = RunDirectory.open("run")
    monkeypatch.setattr("nas.known.open_datasets", never)
    monkeypatch.setattr("nas.searching.open_datasets", never)
    text = BudgetText(like="litepose-xs", max_macs="1G")
    with pytest.raises(InputError, match="bounds macs, which is bounded already"):
        read_asked({"": text}, [], run)
    with pytest.raises(InputError, match="bounds macs, which is bounded already"):
        run_search(run, like="litepose-xs", max_macs="1G")
    assert read_asked({"": text}, ["params"], run).budgets[""].like is not None
