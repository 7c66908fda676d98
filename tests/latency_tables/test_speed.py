"""Taking the machine's speed of the moment out of timings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latency_tables import LatencyTable, ProfileSettings, profile
from latency_tables.bench import Bench
from latency_tables.profiler import CANARY, MEMORY_CANARY
from latency_tables.runtimes import Prepared, Program
from latency_tables.speed import Speed, learn_speed
from latency_tables.timing import Samples
from search_spaces import Piece, RunError
from tests.latency_tables.fakes import LAYERS, OVERHEAD_MS, QUICK, TARGET, FakeRuntime, true_ms


def rounds(exponents: tuple[float, float], noise: float, seed: int = 0) -> list[dict[str, Samples]]:
    """Return visits of 30 pieces in 5 rounds, whose times follow two canaries of 0.2 and 1 ms."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(5):
        visited = {}
        for piece in range(30):
            steps = rng.normal(0, 0.15, 2)
            ms = (1 + piece) * math.exp(np.dot(steps, exponents) + rng.normal(0, noise))
            visited[str(piece)] = Samples((ms,), 1, (0.2 * math.exp(steps[0]), math.exp(steps[1])))
        found.append(visited)
    return found


@pytest.mark.parametrize("exponents", [(0.6, 0.3), (0.0, 1.0), (0.9, 0.0)])
def test_exponents_are_found_and_the_speed_taken_out(exponents: tuple[float, float]) -> None:
    visits = rounds(exponents, noise=0.01)
    speed = learn_speed(visits, visits[0])
    assert speed.exponents == pytest.approx(exponents, abs=0.03)
    assert speed.reference == pytest.approx((0.2, 1.0), rel=0.05)
    raw, clean = (
        np.array([[np.log(take(visited[key]).ms[0]) for visited in visits] for key in visits[0]])
        for take in (lambda samples: samples, speed.corrected)
    )
    assert clean.std(axis=1).mean() < 0.02 and raw.std(axis=1).mean() > 0.08


def test_what_follows_nothing_stays_as_it_is() -> None:
    visits = rounds((0.0, 0.0), noise=0.02)
    speed = learn_speed(visits, visits[0])
    assert sum(speed.exponents) < 0.05
    samples = visits[2]["7"]
    assert speed.corrected(samples).ms[0] == pytest.approx(samples.ms[0], rel=0.02)


def test_a_former_reference_brings_timings_to_its_speed() -> None:
    """The canaries took half as long then: what follows them fully is told as it was then."""
    visits = rounds((1.0, 0.0), noise=0.001)
    speed = learn_speed(visits, visits[0], (0.1, 0.5))
    assert speed.reference == (0.1, 0.5)
    assert speed.corrected(visits[0]["9"]).ms[0] == pytest.approx(5.0, rel=0.02)


def test_from_too_little_it_is_what_is_expected() -> None:
    visits = rounds((1.0, 0.0), noise=0.0)[:1]
    speed = learn_speed(visits, visits[0])
    assert speed.exponents == pytest.approx((0.5, 0.5)) and not speed.learnt
    assert learn_speed(visits, visits[0], expected=(0.9, 0.1)).exponents == pytest.approx((0.9, 0.1))
    assert learn_speed(rounds((1.0, 0.0), 0.01), visits[0], expected=(0.1, 0.9)).learnt
    bare = [{key: replace(s, canaries=()) for key, s in visited.items()} for visited in rounds((1, 0), 0)]
    assert learn_speed(bare, bare[0]) == Speed()
    samples = bare[0]["3"]
    assert Speed((0.2, 1.0), (1.0, 0.0)).corrected(samples) == samples


def test_a_quiet_machine_teaches_nothing_new() -> None:
    """Canaries that vary by a thousandth leave the exponents about where they were expected."""
    rng = np.random.default_rng(1)
    visits = [
        {str(i): Samples((1.0 + i,), 1, tuple(0.2 * np.exp(rng.normal(0, 0.001, 2)))) for i in range(30)}
        for _ in range(5)
    ]
    speed = learn_speed(visits, visits[0])
    assert speed.exponents == pytest.approx((0.5, 0.5), abs=0.05) and not speed.learnt


def test_a_few_spoilt_visits_teach_little() -> None:
    """Two visits of a hundred take three times as long, for reasons of their own."""
    visits = rounds((0.5, 0.4), noise=0.01)
    rng = np.random.default_rng(2)
    for visited in visits:
        for key in visited:
            if rng.random() < 0.02:
                visited[key] = replace(visited[key], ms=(3 * visited[key].ms[0],))
    assert learn_speed(visits, visits[0]).exponents == pytest.approx((0.5, 0.4), abs=0.08)


def test_samples_survive_json() -> None:
    samples = Samples((1.25, 2.5), 3, (0.5, 0.75))
    assert Samples.from_dict(samples.to_dict()) == samples
    assert Samples.from_dict(Samples((1.0,), 1).to_dict()) == Samples((1.0,), 1)
    for wrong in ([], [0.0], [-1.0], [float("inf")], [float("nan")]):
        with pytest.raises(ValueError, match="loop"):
            Samples.from_dict({"loop": 1, "ms": wrong})
    with pytest.raises(KeyError):
        Samples.from_dict({"loop": 1})


class Shared(FakeRuntime):
    """Everything takes up to 1.6 times as long, back and forth within a second, as beside neighbours."""

    def _factor(self) -> float:
        return 1.3 + 0.3 * math.sin(self.now / 0.15)

    @contextmanager
    def prepare(self, piece: Piece | Program, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        assert not isinstance(piece, Program)
        ms = {CANARY: 0.2, MEMORY_CANARY: 1.0}.get(piece, true_ms(piece) + OVERHEAD_MS)
        yield self._takes(lambda: ms * self._factor())


def spread(table: LatencyTable) -> float:
    """Return how far apart the rows' ratios to the truth are: the standard deviation of their logarithms."""
    return float(np.std([math.log(row.median_ms / true_ms(p)) for p, row in table.rows.items()]))


def test_rows_profiled_beside_neighbours_agree_with_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ProfileSettings(seconds_per_layer=0.06, rounds=4, max_rounds=4, min_runs=3, max_drift=0.9)
    table = profile(TARGET, LAYERS, out=tmp_path / "a", settings=settings, bench=Shared().bench())
    (session,) = table.sessions
    assert sum(session["speed"]["exponents"]) == pytest.approx(1.0, abs=0.1)
    assert session["speed"]["canaries"] == [CANARY.key, MEMORY_CANARY.key]
    monkeypatch.setattr("latency_tables.bench.LocalBench.watching", Bench.watching)
    bare = profile(TARGET, LAYERS, out=tmp_path / "b", settings=settings, bench=Shared().bench())
    assert "speed" not in bare.sessions[0]
    assert spread(table) < 0.03 and spread(table) < spread(bare) / 3


def test_a_later_session_is_brought_to_the_speed_of_the_first(tmp_path: Path) -> None:
    """The machine is 8 % slower on the second day, which is allowed: its rows agree with the first day's."""
    settings = replace(QUICK, rounds=3)
    profile(TARGET, LAYERS[:20], out=tmp_path, settings=settings, bench=Shared().bench())

    class Slower(Shared):
        def _factor(self) -> float:
            return 1.08 * super()._factor()

    table = profile(TARGET, LAYERS, out=tmp_path, settings=settings, bench=Slower().bench())
    first, later = (
        np.median([table.rows[layer].median_ms / true_ms(layer) for layer in layers])
        for layers in (LAYERS[5:20], LAYERS[20:])
    )
    assert later == pytest.approx(first, rel=0.02)


class Moved(Shared):
    """A shared machine on another day: pieces, and the canary of memory, take some times as long."""

    def __init__(self, pieces: float = 1.0, memory: float = 1.0, shared: bool = True) -> None:
        super().__init__()
        self.pieces, self.memory, self.shared = pieces, memory, shared

    def _factor(self) -> float:
        return self.pieces * (super()._factor() if self.shared else 1.3)

    @contextmanager
    def prepare(self, piece: Piece | Program, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        with super().prepare(piece, threads, precision) as ready:
            if piece != MEMORY_CANARY:
                yield ready
            else:
                yield self._takes(lambda: self._factor() * self.memory / self.pieces)


def test_few_further_layers_are_brought_to_the_speed_of_the_first_session(tmp_path: Path) -> None:
    """Four layers teach nothing; they follow the canaries as those of the first session did."""
    profile(TARGET, LAYERS[:20], out=tmp_path, settings=QUICK, bench=Moved().bench())
    table = profile(TARGET, LAYERS[:24], out=tmp_path, settings=QUICK, bench=Moved(1.1, 1.1, False).bench())
    assert table.sessions[1]["speed"]["learnt"] == [False, False]
    first, later = (
        np.median([table.rows[layer].median_ms / true_ms(layer) for layer in layers])
        for layers in (LAYERS[5:20], LAYERS[20:24])
    )
    assert later == pytest.approx(first, rel=0.03)


def test_a_canary_that_alone_is_far_off_is_refused(tmp_path: Path) -> None:
    """Memory is twice as slow now, pieces are not: what would be taken out of them is too much."""
    profile(TARGET, LAYERS[:20], out=tmp_path, settings=QUICK, bench=Moved().bench())
    before = (tmp_path / f"{TARGET.name}.csv").read_bytes()
    with pytest.raises(RunError, match="since the table's first rows"):
        profile(TARGET, LAYERS, out=tmp_path, settings=QUICK, bench=Moved(memory=3.0).bench())
    assert (tmp_path / f"{TARGET.name}.csv").read_bytes() == before


def test_speed_does_not_creep_from_session_to_session(tmp_path: Path) -> None:
    """Each session is a tenth slower than the one before: the first one counts, not the last."""
    with pytest.raises(RunError, match="since the table's first rows"):
        for day in range(6):
            bench = Moved(1.1**day, 1.1**day, False).bench()
            profile(TARGET, LAYERS[: 20 + 2 * day], out=tmp_path, settings=QUICK, bench=bench)
    assert 1 < day < 4
