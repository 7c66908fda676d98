"""The profiler: what it computes from its measurements, and what it survives. Time is simulated."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from latency_tables import LatencyTable, NetworkJob, ProfileSettings, Row, get_runtime, local_target, profile
from latency_tables.bench import LocalBench
from latency_tables.profiler import CANARY, MEMORY_CANARY
from latency_tables.runtimes import Prepared
from latency_tables.timing import summarise, take_samples
from search_spaces import InputError, Layer, RunError, UnavailableError, get_arch
from tests.latency_tables.fakes import LAYERS, OVERHEAD_MS, QUICK, TARGET, FakeRuntime, true_ms

ROOT = Path(__file__).resolve().parents[2]
CSV = f"{TARGET.name}.csv"
JOURNAL = f"{TARGET.name}.partial.jsonl"


def run(
    folder: Path,
    runtime: FakeRuntime | None = None,
    layers: tuple[Layer, ...] = LAYERS,
    settings: ProfileSettings = QUICK,
) -> LatencyTable:
    runtime = runtime or FakeRuntime()
    return profile(TARGET, layers, out=folder, settings=settings, bench=runtime.bench(), command="test")


def unnoticed(visit: int) -> float:
    """How much longer canaries take that notice nothing."""
    return 1.0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- timing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ms", [0.0005, 0.05, 3.0, 400.0])
def test_samples_are_per_run_and_fast_runs_are_looped(ms: float) -> None:
    runtime = FakeRuntime()
    calls = 0

    def once() -> None:
        nonlocal calls
        calls += 1
        runtime.now += ms / 1e3

    samples = take_samples(once, seconds=0.1, min_runs=7, clock=runtime.clock)
    assert samples.ms == pytest.approx([ms] * len(samples.ms))
    assert samples.loop * ms >= 0.2 * 0.999
    assert 7 <= len(samples.ms) * samples.loop <= calls - 2  # two warm-ups at least
    assert runtime.now < max(0.1, 10 * ms / 1e3) * 1.2


def test_a_summary_ignores_outliers() -> None:
    timing = summarise([1.0] * 95 + [50.0] * 5, 100)
    assert (timing.median_ms, timing.p10_ms, timing.p90_ms, timing.runs) == (1.0, 1.0, 1.0, 100)


# -- the table that comes out --------------------------------------------------------------------------


def test_rows_are_net_of_the_cost_of_calling(tmp_path: Path) -> None:
    table = run(tmp_path)
    assert set(table.rows) == set(LAYERS)
    for layer, row in table.rows.items():
        assert row.median_ms == pytest.approx(true_ms(layer), rel=1e-3)
        assert row.provenance == "measured-here"
        assert row.source == "fake 1.0"
        assert row.runs >= QUICK.min_runs
    (session,) = table.sessions
    assert session["overhead_ms"] == pytest.approx(OVERHEAD_MS, rel=1e-3)
    assert session["canary_ms"] == pytest.approx(true_ms(CANARY) + OVERHEAD_MS, rel=1e-3)
    assert (session["drift"], session["drifted"], session["processes"]) == (0.0, False, 1)
    assert session["command"] == "test"
    assert names(tmp_path) == [CSV, CSV.replace(".csv", ".yaml")]
    assert LatencyTable.load(tmp_path / CSV) == table


def test_a_layer_as_fast_as_an_empty_call_still_costs_something(tmp_path: Path) -> None:
    tiny = Layer("conv", 1, 1, 1, 1, 1, 1, 1)
    table = run(tmp_path, layers=(tiny,))
    assert 0 < table.latency_ms([tiny]) < OVERHEAD_MS


def test_rounds_visit_every_layer_once_in_different_orders(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    run(tmp_path, runtime)
    n = len(LAYERS)
    rounds = [runtime.order[i * n : (i + 1) * n] for i in range(QUICK.rounds)]
    assert all(sorted(order) == sorted(layer.key for layer in LAYERS) for order in rounds)
    assert len({tuple(order) for order in rounds}) == QUICK.rounds
    assert runtime.visits[CANARY.key] == 1, "it is ready throughout, and timed with every visit"


def test_a_passing_disturbance_does_not_move_the_median(tmp_path: Path) -> None:
    """One round out of three is twice as slow, canaries apart: rows stay, the upper percentile tells."""
    n = len(LAYERS)
    disturbed = FakeRuntime(lambda visit: 2.0 if n < visit <= 2 * n else 1.0, canaries=unnoticed)
    table = run(tmp_path, disturbed)
    for layer, row in table.rows.items():
        assert row.median_ms == pytest.approx(true_ms(layer), rel=1e-2)
        assert row.p90_ms > 1.5 * true_ms(layer)


# -- adding to a table ---------------------------------------------------------------------------------


def test_only_missing_layers_are_measured(tmp_path: Path) -> None:
    first = run(tmp_path, layers=LAYERS[:5])
    runtime = FakeRuntime()
    table = run(tmp_path, runtime)
    assert set(runtime.order) == {layer.key for layer in LAYERS[5:]}
    assert set(table.rows) == set(LAYERS)
    assert all(table.rows[layer] == first.rows[layer] for layer in LAYERS[:5])
    assert len(table.sessions) == 2
    again = FakeRuntime()
    assert run(tmp_path, again) == table
    assert not again.order


def test_a_table_of_another_version_or_target_is_not_added_to(tmp_path: Path) -> None:
    run(tmp_path, layers=LAYERS[:5])
    before = (tmp_path / CSV).read_bytes()
    with pytest.raises(InputError, match=r"measured with fake 1\.0, here is 2\.0"):
        run(tmp_path, FakeRuntime(version="2.0"))
    other = replace(TARGET, processor="another clock")
    runtime = FakeRuntime()
    with pytest.raises(InputError, match="another folder"):
        profile(other, LAYERS, out=tmp_path / CSV, bench=runtime.bench())
    assert (tmp_path / CSV).read_bytes() == before
    assert JOURNAL not in names(tmp_path)


def test_what_another_command_adds_meanwhile_is_kept(tmp_path: Path) -> None:
    """A table of the same target appears, or grows, while this command measures."""
    run(tmp_path / "other", layers=LAYERS[5:10])
    other = LatencyTable.load(tmp_path / "other" / CSV)

    def meddle(done: int, total: int, text: str) -> None:
        if done == 3:
            other.save(tmp_path / CSV)

    profile(
        TARGET,
        LAYERS[:7],
        out=tmp_path,
        settings=QUICK,
        bench=FakeRuntime(lambda visit: 1.1).bench(),
        progress=meddle,
    )
    table = LatencyTable.load(tmp_path / CSV)
    assert set(table.rows) == set(LAYERS[:10]) and len(table.sessions) == 2
    assert all(table.rows[layer] == other.rows[layer] for layer in LAYERS[5:10])


def test_a_table_of_another_processor_or_other_cores_is_not_added_to(tmp_path: Path) -> None:
    class Elsewhere(LocalBench):
        def system(self) -> dict[str, str]:
            return {"processor": "another clock", "system": "a clock's", "pinned": "processors 4-5"}

    def there() -> Elsewhere:
        return Elsewhere(runtime := FakeRuntime(), TARGET.threads, clock=runtime.clock)

    profile(TARGET, LAYERS[:5], out=tmp_path, settings=QUICK, bench=there())
    before = (tmp_path / CSV).read_bytes()
    with pytest.raises(InputError, match="measured with processor 'another clock', here it is"):
        run(tmp_path)
    assert (tmp_path / CSV).read_bytes() == before
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Interrupted(3))
    with pytest.raises(RunError, match=r"other settings.*processor"):
        profile(TARGET, LAYERS, out=tmp_path / "cut", settings=QUICK, bench=there())


def test_an_update_of_the_system_makes_no_other_machine(tmp_path: Path) -> None:
    """Rows are added, and an interrupted profile goes on, after a new kernel; not on another architecture."""

    def under(system: str) -> LocalBench:
        class Updated(LocalBench):
            def system(self) -> dict[str, str]:
                return {"processor": "a clock", "system": system}

        return Updated(runtime := FakeRuntime(), TARGET.threads, clock=runtime.clock)

    profile(TARGET, LAYERS[:5], out=tmp_path, settings=QUICK, bench=under("Linux 6.6.31 aarch64"))
    table = profile(TARGET, LAYERS[:8], out=tmp_path, settings=QUICK, bench=under("Linux 6.9.1 aarch64"))
    assert len(table) == 8 and table.sessions[1]["system"] == "Linux 6.9.1 aarch64"
    with pytest.raises(InputError, match=r"'Linux 6\.9\.1 aarch64', here it is 'Linux x86"):
        profile(TARGET, LAYERS, out=tmp_path, settings=QUICK, bench=under("Linux 6.9.1 x86_64"))


# -- drift ---------------------------------------------------------------------------------------------


def slow_last_round(visit: int) -> float:
    return 1.5 if visit > 2 * len(LAYERS) else 1.0


def test_a_round_that_drifted_is_refused_and_measured_anew(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"round 3 by \+50%.*no table was saved.*same command"):
        run(tmp_path, FakeRuntime(slow_last_round))
    assert names(tmp_path) == [JOURNAL]
    runtime = FakeRuntime()
    table = run(tmp_path, runtime)
    assert len(runtime.order) == len(LAYERS)
    for layer, row in table.rows.items():
        assert row.p90_ms == pytest.approx(true_ms(layer), rel=1e-3)
    assert table.sessions[0]["processes"] == 2


def test_a_short_further_round_at_another_speed_is_no_drift(tmp_path: Path) -> None:
    """One layer is visited again while the machine is slower, as the canaries with its visits tell."""
    wild = LAYERS[7].key

    def slower(visit: int) -> float:
        return 1.5 if visit > QUICK.rounds * len(LAYERS) else 1.0

    class Jumping(FakeRuntime):
        def jump(self, visit: int) -> float:
            return slower(visit) * (1.0 + 0.5 * (self.visits[wild] % 2) * (self.order[-1] == wild))

    runtime = Jumping(canaries=slower)
    runtime._slowdown = runtime.jump
    table = run(tmp_path, runtime, settings=replace(QUICK, max_rounds=5))
    assert runtime.visits[wild] > QUICK.rounds
    assert table.sessions[0]["drift"] < 0.15


def test_drift_can_be_accepted_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        table = run(tmp_path, FakeRuntime(slow_last_round), settings=replace(QUICK, on_drift="warn"))
    assert "round 3 by +50%" in caplog.text
    assert table.sessions[0]["drifted"] is True
    assert table.sessions[0]["drift"] == pytest.approx(0.5, rel=1e-2)


def test_rows_of_a_slower_day_are_not_mixed_with_the_former_ones(tmp_path: Path) -> None:
    run(tmp_path, layers=LAYERS[:5])
    before = (tmp_path / CSV).read_bytes()
    with pytest.raises(RunError, match=r"by \+50% since the table"):
        run(tmp_path, FakeRuntime(lambda visit: 1.5))
    assert (tmp_path / CSV).read_bytes() == before
    assert set(run(tmp_path).rows) == set(LAYERS)


# -- interruptions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 45, 119])
def test_kill_9_loses_nothing(tmp_path: Path, after: int) -> None:
    died = subprocess.run(
        [sys.executable, "-m", "tests.latency_tables.fakes", str(tmp_path), str(after)],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert names(tmp_path) == [JOURNAL]
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "layer" for line in lines) == after
    runtime = FakeRuntime()
    table = run(tmp_path, runtime)
    assert len(runtime.order) == QUICK.rounds * len(LAYERS) - after
    assert names(tmp_path) == [CSV, CSV.replace(".csv", ".yaml")]
    uninterrupted = run(tmp_path / "other")
    assert table.rows.keys() == uninterrupted.rows.keys()
    for layer, row in table.rows.items():
        assert row.median_ms == pytest.approx(uninterrupted.rows[layer].median_ms, rel=1e-6)


class Interrupted(FakeRuntime):
    """Raises Ctrl-C in the n-th visit."""

    def __init__(self, visit: int) -> None:
        def slowdown(now: int) -> float:
            if now > visit:
                raise KeyboardInterrupt
            return 1.0

        super().__init__(slowdown)


def test_a_torn_last_line_costs_one_visit(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted(10))
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-7])
    runtime = FakeRuntime()
    run(tmp_path, runtime)
    assert len(runtime.order) == QUICK.rounds * len(LAYERS) - 9


def test_a_damaged_journal_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted(10))
    journal = tmp_path / JOURNAL
    lines = journal.read_text().splitlines()
    lines[4] = lines[4][:20]
    journal.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunError, match=r"damaged at line 5: delete it"):
        run(tmp_path)


def test_a_journal_of_other_settings_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted(10))
    with pytest.raises(RunError, match=r"other settings.*rounds 3 there, 4 now"):
        run(tmp_path, settings=replace(QUICK, rounds=4))
    run(tmp_path, settings=replace(QUICK, max_drift=0.5))


def test_layers_finished_for_another_work_list_are_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted(QUICK.rounds * len(LAYERS) - 1))
    table = run(tmp_path, layers=LAYERS[:2])
    assert set(LAYERS[:2]) < set(table.rows)
    assert len(table) >= len(LAYERS) - 1


def test_a_journal_left_behind_by_a_kill_after_saving_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted(QUICK.rounds * len(LAYERS) - 1))
    left = (tmp_path / JOURNAL).read_bytes()
    table = run(tmp_path)
    (tmp_path / JOURNAL).write_bytes(left)
    assert run(tmp_path) == table
    assert JOURNAL not in names(tmp_path)


def test_two_profiles_never_share_a_journal(tmp_path: Path) -> None:
    runtime = FakeRuntime()

    def meddle(done: int, total: int, text: str) -> None:
        with pytest.raises(RunError, match="another process is profiling"):
            run(tmp_path)

    profile(
        TARGET,
        LAYERS[:1],
        out=tmp_path,
        settings=QUICK,
        bench=runtime.bench(),
        progress=meddle,
    )


# -- bad input -----------------------------------------------------------------------------------------


def test_progress_counts_every_visit(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    runtime = FakeRuntime()
    profile(
        TARGET,
        LAYERS[:4],
        out=tmp_path,
        settings=QUICK,
        bench=runtime.bench(),
        progress=lambda done, total, text: seen.append((done, total)),
    )
    assert seen == [(i, 12) for i in range(13)]


def test_wrong_requests_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layer"):
        run(tmp_path, layers=())
    with pytest.raises(InputError, match="runs on 'torch', not on 'fake'"):
        profile(replace(TARGET, runtime="torch"), LAYERS, out=tmp_path, bench=FakeRuntime().bench())
    with pytest.raises(UnavailableError, match="int8"):
        profile(replace(TARGET, precision="int8"), LAYERS, out=tmp_path, bench=FakeRuntime().bench("int8"))
    with pytest.raises(InputError, match="did you mean 'torch'"):
        profile(replace(TARGET, runtime="torhc"), LAYERS, out=tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "wrong",
    [{"rounds": 0}, {"seconds_per_layer": 0.0}, {"min_runs": -1}, {"max_drift": float("nan")}, {"seed": -1}],
)
def test_wrong_settings_are_named(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=name):
        replace(QUICK, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, precision) for name in ("onnxruntime", "ncnn") for precision in ("fp32", "int8")]
    + [("torch", "fp32"), ("litert", "fp16")],
)
def test_a_real_runtime_is_profiled(tmp_path: Path, name: str, precision: str) -> None:
    if reason := get_runtime(name).unavailable():
        pytest.skip(reason)
    layers = (Layer("conv", 16, 96, 1, 1, 1, 16, 16, norm=True), Layer("deconv", 16, 8, 4, 2, 1, 8, 8))
    target = local_target(name, threads=1, precision=precision)
    assert target.name == f"this-machine-{name}-{precision}-1t"
    settings = ProfileSettings(seconds_per_layer=0.02, rounds=2, min_runs=4, on_drift="warn")
    table = profile(target, layers, out=tmp_path, settings=settings)
    assert table.latency_ms(layers) > 0
    assert table.provenance == "measured-here"
    assert LatencyTable.load(tmp_path / f"{target.name}.csv") == table


# -- blocks, whole networks, further rounds -----------------------------------------------------------------

ARCH = get_arch("litepose-xs")
BLOCKS = ARCH.blocks(14, (64, 64))[:6]


class Networks(FakeRuntime):
    """A fake that also runs whole networks: the n-th file takes n milliseconds."""

    @contextmanager
    def prepare_model(
        self, path: Path, size: tuple[int, int], threads: int, precision: str = "fp32"
    ) -> Iterator[Prepared]:
        assert size == (256, 256)
        self.order.append(path.name)
        yield self._takes(lambda: float(path.name) * self._slowdown(len(self.order)))


def jobs(asked: list[int]) -> list[NetworkJob]:
    def model(number: int) -> Path:
        asked.append(number)
        return Path(str(number))

    return [NetworkJob(ARCH, 10 + n, partial(model, n)) for n in (1, 2, 3)]


def test_blocks_and_networks_are_timed_in_the_same_rounds_and_kept(tmp_path: Path) -> None:
    runtime, asked = Networks(), []
    table = profile(TARGET, BLOCKS, out=tmp_path, networks=jobs(asked), settings=QUICK, bench=runtime.bench())
    assert {p.key: row.median_ms for p, row in table.rows.items()} == pytest.approx(
        {block.key: true_ms(block) for block in BLOCKS}
    )
    assert {(n.arch, n.joints): n.row.median_ms for n in table.networks} == pytest.approx(
        {(ARCH, 10 + n): float(n) for n in (1, 2, 3)}
    )
    per_round = len(set(BLOCKS)) + 3
    for start in range(0, 3 * per_round, per_round):
        assert len(set(runtime.order[start : start + per_round])) == per_round, "once in every round"
    assert LatencyTable.load(tmp_path / CSV) == table
    assert table.sessions[0]["networks"] == 3
    # A second call measures what is new alone, and keeps the rest.
    again = Networks()
    more = [*jobs([]), NetworkJob(ARCH, 20, lambda: Path("4"))]
    table = profile(TARGET, BLOCKS, out=tmp_path, networks=more, settings=QUICK, bench=again.bench())
    assert set(again.order) == {"4"} and len(table.networks) == 4 and len(table.rows) == len(set(BLOCKS))
    # Nothing new: nothing is measured.
    last = Networks()
    assert profile(TARGET, BLOCKS, out=tmp_path, networks=more, bench=last.bench()) == table
    assert not last.order


def test_estimates_do_not_count_as_measured(tmp_path: Path) -> None:
    table = profile(TARGET, BLOCKS[:3], out=tmp_path, settings=QUICK, bench=FakeRuntime().bench())
    guess = Row(9.0, 8.0, 10.0, 0, "calibrated-estimate", "fitted on a whim")
    replace(table, rows={**table.rows, BLOCKS[4]: guess}).save(tmp_path / CSV)
    runtime = FakeRuntime()
    found = profile(TARGET, BLOCKS, out=tmp_path, settings=QUICK, bench=runtime.bench())
    assert set(runtime.order) == {block.key for block in BLOCKS[3:]}
    assert found.rows[BLOCKS[4]].median_ms == pytest.approx(true_ms(BLOCKS[4]))


def test_what_is_loose_is_visited_again_and_nothing_else(tmp_path: Path) -> None:
    """One layer's time jumps from round to round; it alone gets further rounds, up to the most."""
    wild = LAYERS[7].key

    class Jumping(FakeRuntime):
        def jump(self, visit: int) -> float:
            return 1.0 + 0.5 * (self.visits[wild] % 2) if self.order and self.order[-1] == wild else 1.0

    runtime = Jumping(canaries=unnoticed)
    runtime._slowdown = runtime.jump
    settings = replace(QUICK, rounds=4, max_rounds=9, tightness=0.02, max_drift=9.0)
    run(tmp_path, runtime, settings=settings)
    counts = {key: n for key, n in runtime.visits.items() if key not in (CANARY.key, MEMORY_CANARY.key)}
    assert counts.pop(wild) == 9
    assert set(counts.values()) == {4}


def test_further_rounds_are_resumed(tmp_path: Path) -> None:
    class Jumping(FakeRuntime):
        def jump(self, visit: int) -> float:
            return 1.0 + 0.3 * (visit % 2)

    settings = replace(QUICK, rounds=2, max_rounds=6, max_drift=9.0)
    whole = Jumping(canaries=unnoticed)
    whole._slowdown = whole.jump
    run(tmp_path / "whole", whole, LAYERS[:5], settings)
    visits = len(whole.order)
    assert visits > 2 * 5
    cut = Jumping(canaries=unnoticed)
    cut._slowdown = cut.jump

    def stop(done: int, total: int, text: str) -> None:
        if len(cut.order) == visits - 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(TARGET, LAYERS[:5], out=tmp_path / "cut", settings=settings, bench=cut.bench(), progress=stop)
    run(tmp_path / "cut", cut, LAYERS[:5], settings)
    assert cut.order == whole.order


def test_a_machine_that_is_slower_when_the_command_goes_on_is_refused(tmp_path: Path) -> None:
    """Each round is of one speed, but the later layers of all rounds were timed by a slower machine."""
    speed = [1.0]
    runtime = FakeRuntime(slowdown=lambda visit: speed[0])
    few, settings = LAYERS[:20], QUICK

    def stop(done: int, total: int, text: str) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(TARGET, few, out=tmp_path, settings=settings, bench=runtime.bench(), progress=stop)
    speed[0] = 2.0
    with pytest.raises(RunError, match=r"the process started second by \+\d+%.*--on-drift warn"):
        run(tmp_path, runtime, LAYERS, settings)
    table = run(tmp_path, runtime, LAYERS, settings)  # the rounds that it touched are measured anew
    ratios = {layer.key: row.median_ms / true_ms(layer) for layer, row in table.rows.items()}
    assert max(ratios.values()) / min(ratios.values()) < 1.1
