"""Searches that race: finalists are looked at to the end, by every sampler, wherever and however it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.search import SAMPLERS, Evaluation, SearchResult, noise, open_shared, search
from nas.search.analysis import seconds_of
from nas.search.noise import unpack
from nas.search_report import cost_words
from search_spaces import Arch, RunError
from supernet.evaluator import SubnetResult
from supernet.racing import Rival
from tests.nas.raced import IMAGES, RULE, SPACE, Drawn, course, finalists_are_whole, racing


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that tell ties are of no account here, and take most of the time."""
    monkeypatch.setattr(noise, "RESAMPLES", 10)


def run(storage: Path, drawn: Drawn | None = None, **options: Any) -> SearchResult:
    settings: dict[str, Any] = {"trials": 40, "population": 8, "seed": 3, "early_stop": True, **options}
    return search(SPACE, racing(drawn), storage=storage, **settings)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_finalists_always_have_the_full_split_and_a_crash_changes_nothing(
    sampler: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"sampler": sampler}
    drawn = Drawn()
    whole = run(tmp_path / "whole.journal", drawn, **settings)
    finalists_are_whole(whole)
    # Losers are what was stopped, and nothing else was.
    assert sorted((r.arch.id, int(r.stats["images"])) for r in whole.records) == sorted(drawn.looked)

    class Killed(Drawn):
        def evaluate(self, arch: Arch, rival: Rival | None = None) -> SubnetResult:
            if len(self.looked) == 13:
                raise KeyboardInterrupt
            return super().evaluate(arch, rival)

    while (cut := run(tmp_path / "cut.journal", Killed(), **settings)).stopped == "interrupted":
        pass
    assert course(cut) == course(whole)


def test_what_is_read_off_a_whole_evaluation_is_what_an_evaluation_would_give() -> None:
    rng, evaluator, ended = np.random.default_rng(1), racing(), 0
    archs = [SPACE.decode(genotype) for genotype in SPACE.sample_genotypes(rng, 12)]
    known = [evaluator.evaluate(arch) for arch in archs]
    for arch, whole in zip(archs, known, strict=True):
        assert evaluator.against(whole, None) == whole
        for rival in known:
            kept = Evaluation.from_json(rival.to_json())
            made, told = evaluator.evaluate(arch, kept), evaluator.against(whole, kept)
            assert told is not None and replace(told, seconds=0.0) == replace(made, seconds=0.0)
            ended += made.partial
            if made.partial:
                assert made.ap < rival.ap and made.deviation > 0 and not made.resamples
                assert set(made.stats) == {*made.looks, "images"}
                # What was seen of a loser is enough against that rival, not against none.
                assert evaluator.against(made, kept) == made and evaluator.against(made, None) is None
    assert 10 < ended < 120


def test_figures_survive_being_kept_and_damage_is_told() -> None:
    found = racing().evaluate(SPACE.largest())
    drawn = Drawn().evaluate(SPACE.largest())
    for name, look in drawn.looks.items():
        np.testing.assert_array_equal(unpack(found.looks[name]), look.resampled)
        assert found.stats[name] == look.ap
    broken = replace(found, looks={**found.looks, "AP@0.25": "no such text"})
    with pytest.raises(RunError, match="resampled APs of a network are damaged"):
        racing().evaluate(SPACE.smallest(), broken)


@pytest.mark.parametrize(
    "without",
    [
        {"looks": {}},
        {"stats": {"AP": 0.9}},
        {"looks": {"AP@0.9": "AAA="}},
        {"looks": {"AP@0.125": "AAA=", "AP@0.25": "AAA=", "AP@0.5": "AAA="}},
    ],
)
def test_against_a_rival_of_other_figures_nothing_is_compared(without: Mapping[str, Any]) -> None:
    """A study from before they were kept, or an evaluation by another rule."""
    evaluator = racing()
    rival, smallest = evaluator.evaluate(SPACE.largest()), SPACE.smallest()
    assert evaluator.evaluate(smallest, rival).partial
    assert not evaluator.evaluate(smallest, replace(rival, **without)).partial
    old = {k: v for k, v in rival.to_json().items() if k not in ("looks", "deviation")}
    assert not evaluator.evaluate(smallest, Evaluation.from_json(old)).partial
    assert not racing(Drawn(None)).evaluate(smallest, rival).partial


def test_studies_share_what_they_race_and_find_the_same(tmp_path: Path) -> None:
    alone = [
        run(tmp_path / "alone" / name, seed=seed, study_name=name) for seed, name in ((3, "a"), (4, "b"))
    ]
    with open_shared(tmp_path / "evaluations.jsonl") as shared:
        first, second, again = (
            run(tmp_path / name, seed=seed, study_name=name, shared=shared)
            for seed, name in ((3, "a"), (4, "b"), (3, "c"))
        )
    assert [course(first), course(second)] == [course(each) for each in alone]
    assert course(again) == course(first) and all(r.reused for r in again.records)
    finalists_are_whole(again)


def test_a_study_is_not_continued_by_another_rule(tmp_path: Path) -> None:
    run(tmp_path / "a", trials=9)
    with pytest.raises(RunError, match=r"early stop is regression .* risk 0\.01.* there, .* risk 0\.05"):
        run(tmp_path / "a", Drawn(replace(RULE, level=0.05)), trials=9)


def test_the_summary_says_how_many_ended_early_and_what_that_saved(tmp_path: Path) -> None:
    drawn = Drawn()
    result = run(tmp_path / "a", drawn)
    told = seconds_of(result)
    looked = sum(images for _, images in drawn.looked)
    assert (told["images"], told["images_saved"]) == (looked, 40 * IMAGES - looked)
    assert told["ended_early"] == len(result.partial) > 0
    share = (40 * IMAGES - looked) / (40 * IMAGES)
    assert cost_words(told).endswith(
        f"; {len(result.partial)} of them ended early, having lost: {40 * IMAGES - looked:,} of"
        f" {40 * IMAGES:,} looks at an image saved ({share:.0%})"
    )
    plain = seconds_of(run(tmp_path / "b", Drawn(None), early_stop=False, trials=4))
    assert (plain["ended_early"], plain["images"]) == (0, None) and "early" not in cost_words(plain)
