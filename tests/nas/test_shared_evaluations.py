"""Evaluations that studies share: what is taken, what is not, and that it changes nothing, kills included."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.search import (
    AP,
    MACS,
    Constraint,
    Evaluation,
    SearchResult,
    SharedEvaluations,
    latency,
    open_shared,
    search,
)
from nas.search import shared as shared_module
from nas.search.shared import digest_of
from search_spaces import Arch, RunError, arch_from_json
from tests.nas.problems import Analytic, MacsPricer, Staged, small_space
from tests.nas.test_kills import Doom
from tests.supernet.ranks import context

SPACE = small_space()
FACTS = {"supernet": "one", "images": "some"}
WIDE, TIGHT = Constraint(MACS, 0.7e9), Constraint(MACS, 0.5e9)


def run(folder: Path, name: str, shared: SharedEvaluations | None, **options: Any) -> SearchResult:
    settings: dict[str, Any] = {
        **{"evaluator": Analytic(), "storage": folder / name / "study.journal", "study_name": name},
        **{"trials": 24, "population": 8, "constraints": [WIDE], "seed": 3, "context": FACTS},
        **options,
    }
    return search(SPACE, shared=shared, **settings)


def course(result: SearchResult) -> list[tuple[Any, ...]]:
    """Everything that happened, but for trial numbers and who evaluated it."""
    return [(r.arch.id, r.ap, r.generation, r.origin, r.partial, r.stats) for r in result.records]


@contextmanager
def shared_in(folder: Path) -> Iterator[SharedEvaluations]:
    with open_shared(folder / "evaluations.jsonl") as shared:
        yield shared


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


# -- what is taken -----------------------------------------------------------------------------------------


def test_what_another_study_evaluated_is_taken_and_changes_nothing(tmp_path: Path) -> None:
    alone = [run(tmp_path / "alone", name, None, constraints=[c]) for name, c in (("a", WIDE), ("b", TIGHT))]
    evaluator = Analytic(seconds=0.001)
    with shared_in(tmp_path) as shared:
        wide = run(tmp_path, "a", shared, evaluator=evaluator)
        tight = run(tmp_path, "b", shared, evaluator=evaluator, constraints=[TIGHT])
    with shared_in(tmp_path) as shared:  # as it is read back from the file
        again = run(tmp_path, "c", shared, evaluator=evaluator)
    assert [course(r) for r in (wide, tight, again)] == [course(r) for r in (*alone, alone[0])]
    taken = [sum(r.reused for r in result.evaluated) for result in (wide, tight, again)]
    assert taken[0] == 0 < taken[1] and taken[2] == 24
    # Each network once, over all studies.
    assert len(evaluator.asked) == len(set(evaluator.asked)) == 48 - taken[1]
    both = {r.arch.id for r in wide.evaluated} & {r.arch.id for r in tight.evaluated}
    assert {r.arch.id for r in tight.evaluated if r.reused} == both
    # What it cost is told where it was made and where it was saved.
    assert all(r.seconds == 0.001 for r in again.evaluated)
    # A study that goes on finds them all in its own journal.
    with shared_in(tmp_path) as shared:
        assert run(tmp_path, "b", shared, evaluator=evaluator, constraints=[TIGHT]) == tight
    assert len(evaluator.asked) == 48 - taken[1]


def test_only_the_same_context_is_shared(tmp_path: Path) -> None:
    evaluator = Analytic()
    with shared_in(tmp_path) as shared:
        run(tmp_path, "a", shared, evaluator=evaluator)
        other = run(tmp_path, "b", shared, evaluator=evaluator, context={**FACTS, "supernet": "two"})
        assert len(evaluator.asked) == 48 and not any(r.reused for r in other.records)
    told = lines_of(tmp_path)
    assert [line["facts"]["supernet"] for line in told if line["kind"] == "context"] == ["one", "two"]
    kinds = Counter((line["kind"], line.get("context")) for line in told)
    assert kinds["evaluation", digest_of(FACTS)] == 24
    assert digest_of({"b": "2", "a": "1"}) == digest_of({"a": "1", "b": "2"}) != digest_of({"a": "1"})


def test_a_lost_file_is_filled_from_the_studies_that_go_on(tmp_path: Path) -> None:
    run(tmp_path, "a", None)
    with shared_in(tmp_path) as shared:
        run(tmp_path, "a", shared)
        assert run(tmp_path, "b", shared).evaluated[0].reused
    first = lines_of(tmp_path)
    (tmp_path / "evaluations.jsonl").unlink()
    with shared_in(tmp_path) as shared:
        run(tmp_path, "b", shared)  # has none of its own to give
        assert not shared.known
        run(tmp_path, "a", shared)
    assert lines_of(tmp_path) == first


def test_what_others_evaluated_is_held_against_a_rival_as_if_it_were_evaluated_here(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"early_stop": True, "trials": 60}
    wide, tight = {**settings, "constraints": ()}, {**settings, "constraints": [WIDE]}
    alone = [
        run(tmp_path / "alone", name, None, evaluator=Staged(), **options)
        for name, options in (("wide", wide), ("tight", tight))
    ]
    evaluator = Staged()
    with shared_in(tmp_path) as shared:
        # Those that never stop keep no figures that a rival could be held against: they share nothing here.
        run(tmp_path, "whole", shared, evaluator=Staged(), trials=60, constraints=(), seed=3)
        first = run(tmp_path, "wide", shared, evaluator=evaluator, **wide)
        assert not any(r.reused for r in first.records)
        second = run(tmp_path, "tight", shared, evaluator=evaluator, **tight)
        again = run(tmp_path, "again", shared, evaluator=evaluator, **wide)
    assert [course(first), course(second), course(again)] == [
        course(alone[0]),
        course(alone[1]),
        course(first),
    ]
    assert all(r.reused for r in again.records) and any(r.partial for r in again.records)
    # What has a rival is taken too; only what is known of a loser may not do against another rival.
    taken = [r for r in second.records if r.reused]
    assert any(r.generation > 0 for r in taken)
    repeated = [arch for arch, times in Counter(evaluator.asked).items() if times > 1]
    assert len(evaluator.asked) == 120 - len(taken)
    assert set(repeated) <= {r.arch.id for r in first.partial}


def test_a_loser_that_would_have_gone_on_is_evaluated_again_and_to_the_end(tmp_path: Path) -> None:
    """A kept loser is no answer where there is no such rival; the whole evaluation takes its place."""
    settings: dict[str, Any] = {"early_stop": True, "trials": 60, "constraints": ()}
    with shared_in(tmp_path) as shared:
        found = run(tmp_path, "a", shared, evaluator=Staged(), **settings)
        loser = found.partial[0].arch
        account = shared.account("b", {**FACTS, "early stop": Staged.rule})
        known = account.find(loser)
        assert known is not None and known.partial and known.reused
        assert Staged().against(known, None) is None
        whole = Staged().evaluate(loser)
        account.add(loser, whole)
        account.add(loser, replace(known, reused=False))  # which tells less
        assert account.find(loser) == whole
    with shared_in(tmp_path) as shared:  # and so after reading it back
        account = shared.account("b", {**FACTS, "early stop": Staged.rule})
        assert account.find(loser) == whole
        # A study without stopping knows nothing of all that.
        assert shared.account("c", FACTS).find(loser) is None


def test_no_executor_is_started_for_what_is_known(tmp_path: Path) -> None:
    class Never:
        def session(self, evaluator: Any) -> Any:
            raise AssertionError("started")

    with shared_in(tmp_path) as shared:
        run(tmp_path, "a", shared)
        assert len(run(tmp_path, "b", shared, executor=Never()).evaluated) == 24


def test_several_objectives_and_targets_share_too(tmp_path: Path) -> None:
    evaluator = Analytic()
    with shared_in(tmp_path) as shared:
        run(tmp_path, "a", shared, evaluator=evaluator, constraints=())
        pricer = MacsPricer()
        options: dict[str, Any] = {"pricers": [pricer], "objectives": (AP, latency("toy"))}
        found = run(tmp_path, "b", shared, evaluator=evaluator, constraints=(), **options)
    taken = [r for r in found.evaluated if r.reused]
    assert len(taken) >= 8  # the first generation is the same draw
    assert len(set(evaluator.asked)) == len(evaluator.asked)
    for record in taken:
        genotype = SPACE.encode(record.arch)[None]
        assert record.latency_ms["toy"] == pricer.latency_ms(SPACE, genotype)[0]


# -- the file ----------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_dropped_and_its_evaluation_made_again(tmp_path: Path) -> None:
    evaluator, path = Analytic(), tmp_path / "evaluations.jsonl"
    with shared_in(tmp_path) as shared:
        run(tmp_path, "a", shared, evaluator=evaluator)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with shared_in(tmp_path) as shared:
        assert len(shared.known) == 23
        found = run(tmp_path, "b", shared, evaluator=evaluator)
        assert sum(r.reused for r in found.records) == 23 and len(evaluator.asked) == 25
        assert len(shared.known) == 24
    assert [line["id"] for line in lines_of(tmp_path)[2:]] == evaluator.asked[:24]


@pytest.mark.parametrize(
    "damage",
    [
        b"nonsense\n",
        b'{"kind": "evaluation"}\n',
        b'{"kind": "marriage"}\n',
        b'{"kind": "evaluation", "context": "x", "id": "y", "study": "z", "evaluation": {"ap": "high"}}\n',
        b'{"kind": "evaluation", "context": "x", "id": "y", "study": "z", "evaluation": 3}\n',
    ],
)
def test_a_damaged_line_is_named(damage: bytes, tmp_path: Path) -> None:
    with shared_in(tmp_path) as shared:
        run(tmp_path, "a", shared, trials=2)
    with (tmp_path / "evaluations.jsonl").open("ab") as stream:
        stream.write(damage)
    message = r"evaluations\.jsonl' is damaged at line 5: delete it to start over"
    with pytest.raises(RunError, match=message), shared_in(tmp_path):
        pass


def test_a_file_of_another_format_and_one_in_use_are_refused(tmp_path: Path) -> None:
    busy = pytest.raises(RunError, match="another process is searching")
    with shared_in(tmp_path), busy, shared_in(tmp_path):
        pass
    (tmp_path / "evaluations.jsonl").write_text('{"kind": "header", "format": 2}\n')
    with pytest.raises(RunError, match="format 2 there, 1 now"), shared_in(tmp_path):
        pass


def test_an_evaluation_that_was_given_but_not_noted_is_the_study_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends between the two writes: nothing is evaluated twice, and nothing counts as reused."""

    class Crash(BaseException):
        pass

    evaluator = Staged()
    settings: dict[str, Any] = {"early_stop": True, "trials": 30, "constraints": (), "evaluator": evaluator}
    add, given = shared_module.Account.add, 0

    def crashing(account: shared_module.Account, arch: Arch, evaluation: Evaluation) -> None:
        nonlocal given
        add(account, arch, evaluation)
        given += 1
        if given in (5, 20):
            given += 1
            raise Crash

    monkeypatch.setattr(shared_module.Account, "add", crashing)
    with shared_in(tmp_path) as shared:
        for _ in range(2):
            with pytest.raises(Crash):
                run(tmp_path, "a", shared, **settings)
    monkeypatch.setattr(shared_module.Account, "add", add)
    with shared_in(tmp_path) as shared:
        found = run(tmp_path, "a", shared, **settings)
    assert not any(r.reused for r in found.records)
    assert len(evaluator.asked) == len(set(evaluator.asked)) == 30
    settings["evaluator"] = Staged()
    assert course(found) == course(run(tmp_path / "whole", "a", None, **settings))


def test_a_study_that_begins_anew_under_a_name_owns_nothing_that_the_name_made(tmp_path: Path) -> None:
    """Its folder was deleted: what the first one made is taken as another's, and so is stopping early."""
    settings: dict[str, Any] = {"early_stop": True, "trials": 40, "constraints": ()}
    alone = run(tmp_path / "alone", "a", None, evaluator=Staged(), **{**settings, "seed": 4})
    with shared_in(tmp_path) as shared:
        first = run(tmp_path, "a", shared, evaluator=Staged(), **settings)
        shutil.rmtree(tmp_path / "a")
        evaluator = Staged()
        second = run(tmp_path, "a", shared, evaluator=evaluator, **{**settings, "seed": 4})
    assert course(second) == course(alone)
    both = {r.arch.id for r in first.evaluated} & {r.arch.id for r in second.records}
    asked, taken = set(evaluator.asked), {r.arch.id for r in second.records if r.reused}
    assert taken <= both and not taken & asked
    assert both - taken <= asked  # held against a rival: looked at anew
    # The same settings once more: it made nothing of it either.
    shutil.rmtree(tmp_path / "a")
    with shared_in(tmp_path) as shared:
        third = run(tmp_path, "a", shared, evaluator=Staged(), **{**settings, "early_stop": False})
        shutil.rmtree(tmp_path / "a")
        again = run(tmp_path, "a", shared, evaluator=Staged(), **{**settings, "early_stop": False})
    assert not any(r.reused for r in third.evaluated) and all(r.reused for r in again.evaluated)
    makers = {line["maker"] for line in lines_of(tmp_path) if line["kind"] == "evaluation"}
    assert len(makers) == 3 and {r["study"] for r in lines_of(tmp_path) if "study" in r} == {"a"}


def test_lines_and_studies_from_before_there_were_makers_belong_together(tmp_path: Path) -> None:
    """By their name, as they did."""
    with shared_in(tmp_path) as shared:
        run(tmp_path, "a", shared, trials=12)
    path = tmp_path / "evaluations.jsonl"
    old = [{k: v for k, v in line.items() if k != "maker"} for line in lines_of(tmp_path)]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    with shared_in(tmp_path) as shared:
        assert {made.maker for made in shared.known.values()} == {"a"}
        account = shared.account("a", FACTS)
        first = next(iter(shared.known.values()))
        assert account.find(arch_from_json(first.arch)) == first.evaluation
        other = shared.account("a", FACTS, "another that has its name")
        assert other.find(arch_from_json(first.arch)) == replace(first.evaluation, reused=True)


# -- kill -9 -----------------------------------------------------------------------------------------------

BUDGETS = {"wide": WIDE, "tight": TIGHT, "tightest": Constraint(MACS, 0.42e9)}


def whole_job(folder: Path) -> list[SearchResult]:
    """Search under three budgets in one folder, as one command does."""
    evaluator = Analytic(log=folder / "log")
    with open_shared(folder / "evaluations.jsonl") as shared:
        return [
            run(folder, name, shared, evaluator=evaluator, constraints=[bound], trials=20)
            for name, bound in BUDGETS.items()
        ]


def killed_job(folder: str, call: int, counted: Any) -> None:
    """Do it until the n-th call of any function, and die there; tell how many calls there were."""
    import sys

    doom = Doom(("call", call))
    sys.setprofile(doom.profile)
    try:
        whole_job(Path(folder))
    finally:
        sys.setprofile(None)
        counted.put(call - doom.left)


def start(folder: Path, call: int) -> tuple[int, Any]:
    counted = context().SimpleQueue()
    process = context().Process(target=killed_job, args=(str(folder), call, counted))
    process.start()
    process.join(120)
    return int(process.exitcode), counted


def counts(log: Path) -> Mapping[str, Counter[str]]:
    """Return how often each network's evaluation was begun and ended."""
    found: dict[str, Counter[str]] = {"begin": Counter(), "end": Counter()}
    for line in log.read_text().splitlines() if log.exists() else []:
        word, _, arch = line.partition(" ")
        found[word][arch] += 1
    return found


@pytest.mark.slow
def test_kill_9_of_the_driver_with_evaluations_shared(tmp_path: Path) -> None:
    """At drawn moments, in one folder again and again: between studies, in the middle of writes, anywhere."""
    whole = tmp_path / "whole"
    whole.mkdir()
    ended, counted = start(whole, 10**15)
    assert ended == 0
    calls = counted.get()
    expected = whole_job(whole)
    rng = np.random.default_rng(6)
    cut = tmp_path / "cut"
    cut.mkdir()
    kills = 0
    # What is left is less each time; a moment beyond it is no kill, and the job is done.
    for _ in range(8):
        ended, _ = start(cut, int(rng.integers(1, calls // 3)))
        kills += ended == -signal.SIGKILL
        assert ended in (0, -signal.SIGKILL)
    assert kills >= 4
    found = whole_job(cut)
    assert [course(r) for r in found] == [course(r) for r in expected]
    fronts = [[[(x.arch.id, x.ap) for x in r.front()] for r in results] for results in (found, expected)]
    assert fronts[0] == fronts[1]
    # Who evaluated what is as in the job that was not killed, and so is the count of what was reused.
    reused = [[(x.arch.id, x.reused) for x in r.evaluated] for r in (*found, *expected)]
    assert reused[:3] == reused[3:] and any(flag for _, flag in reused[1])
    log = counts(cut / "log")
    assert set(log["end"]) == {x.arch.id for r in expected for x in r.evaluated}
    assert log["begin"].total() - log["end"].total() <= kills  # those that a kill fell into
    # Ended twice: only what a kill took between the end and the first write of it.
    assert log["end"].total() - len(log["end"]) <= kills
    ids = [line["id"] for line in lines_of(cut) if line["kind"] == "evaluation"]
    assert len(ids) == len(set(ids)) == len(log["end"])
