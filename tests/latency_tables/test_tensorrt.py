"""TensorRT's exported profiles: no engine is built here, files are written as the published sources say.

The forms are those of NVIDIA/TensorRT ``samples/common/sampleReporting.cpp`` and of profiles that users have
published: ``Conv_0 + PWN(Clip_3)``, ``Reformatting CopyNode for Input Tensor 0 to Conv_8``, ``a || b``,
``{ForeignNode[a...b]}``, and ``[ONNX Layer: a]`` joined by the control character 0x1f.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from latency_tables import LatencyTable, Target, tensorrt, validate_table
from latency_tables.networks import network_program
from latency_tables.runtimes import Program
from latency_tables.runtimes.onnx_runtime import named_model
from latency_tables.tensorrt import (
    PRECISIONS,
    LayerTime,
    read_layer_info,
    read_profile,
    read_times,
    read_work,
    write_work,
)
from search_spaces import InputError, piece_from_key
from search_spaces.litepose import litepose_arch
from tests.latency_tables.test_litert import SMALL_DECONV
from tests.latency_tables.test_runtimes import BLOCKS, reference

ARCH = litepose_arch(64, 8, (16, 16, 24, 24), (16, 8, 8), depths=(2, 1, 1, 1), kernels=3)
NANO = Target("jetson-nano", "128 Maxwell cores", "tensorrt", "fp16")
LOG = "&&&& RUNNING TensorRT.trtexec [TensorRT v8201] # trtexec\n[11/20/2026-10:30:00] [I] Average\n"
STEM, STEP = BLOCKS[0], BLOCKS[3]

Edit = Callable[[list[tuple[str, float]]], list[tuple[str, float]]]


def fused(path: Path) -> list[tuple[str, float]]:
    """Return names and times as TensorRT has them: a convolution with what follows; one of 0 ms, too."""
    found: list[list[str]] = []
    for node in onnx.load(path).graph.node:
        if node.op_type.startswith("Conv"):
            found.append([node.name])
        else:
            text = f"PWN({node.name})" if node.op_type == "Clip" else node.name
            found[-1].append(text)
    records = [(" + ".join(names), 0.01 * (i + 1)) for i, names in enumerate(found)]
    return [(f"Reformatting CopyNode for Input Tensor 0 to {records[0][0]}", 0.5), *records]


def profile(records: list[tuple[str, float]], count: int = 100, **changes: Any) -> str:
    """Return what --exportProfile writes, with six digits and spaces as there."""
    total = sum(ms for _, ms in records) or 1
    lines = [f'  {{ "count" : {count} }}']
    for name, ms in records:
        values = {"timeMs": ms * count, "averageMs": ms, "medianMs": ms, "percentage": ms / total * 100}
        told = "".join(f', "{k}" : {v:.6g}' for k, v in (values | changes).items() if v is not None)
        lines.append(f', {{ "name" : "{name}"{told} }}')
    return "[\n" + "\n".join(lines) + "\n]\n"


def times(ms: list[float]) -> str:
    return json.dumps([{"startComputeMs": 1.0, "computeMs": each, "latencyMs": each + 0.1} for each in ms])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work for a network and two blocks."""
    folder = tmp_path_factory.mktemp("work") / "jetson"
    write_work(folder, [piece_from_key(STEM), piece_from_key(STEP)], [(ARCH, 5)], repeats=2)
    return folder


def measure(written: Path, folder: Path, edit: Edit = lambda records: records) -> Path:
    """Return a copy of the work with profiles, the second run a tenth slower; ``edit`` changes records."""
    (folder / "out").mkdir(parents=True)
    (folder / "work.json").write_text((written / "work.json").read_text())
    for model in (written / "models").iterdir():
        for i, factor in ((1, 1.0), (2, 1.1)):
            records = [(name, ms * factor) for name, ms in edit(fused(model))]
            stem = folder / "out" / f"{model.stem}.{i}"
            Path(f"{stem}.profile.json").write_text(profile(records))
            Path(f"{stem}.times.json").write_text(times([5.0 * factor, 6.0 * factor, 5.5 * factor]))
            Path(f"{stem}.log").write_text(LOG)
    return folder


# -- the work ------------------------------------------------------------------------------------------


def test_the_models_compute_what_they_are_named_for() -> None:
    for key in BLOCKS:
        program = Program.of(piece_from_key(key), np.random.default_rng(1))
        model = named_model(program, [f"piece/{i}" for i in range(len(program.steps))])
        onnx.checker.check_model(model)
        session = onnxruntime.InferenceSession(model.SerializeToString())
        (y,) = session.run(None, {f"x{i}": x for i, x in enumerate(program.inputs)})
        np.testing.assert_allclose(y, reference(program), rtol=1e-4, atol=5e-5)


def test_a_network_of_odd_size_is_a_sound_model() -> None:
    program = network_program(ARCH, 5, (75, 90))
    model = named_model(program, [str(i) + "/0" for i in range(len(program.steps))])
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    outputs = session.run(None, {"x0": program.inputs[0]})
    assert [y.shape for y in outputs] == [(1, 10, 19, 23), (1, 5, 38, 45)]


def test_every_node_of_a_network_with_gates_tells_its_layer() -> None:
    arch = SMALL_DECONV["mbv3"]
    job = tensorrt._Job.of_network(arch, 5)
    program = job.program()
    model = named_model(program, job.layers)
    assert len(job.layers) == len(program.steps)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    found = [tensorrt._NODE.search(name) for name in names]
    assert {f"{match[1]}/{match[2]}" for match in found if match} == set(job.layers)
    assert all(match and match[0] == name for match, name in zip(found, names, strict=True))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (y,) = session.run(None, {"x0": program.inputs[0]})
    assert y.shape == (1, 5, 24, 18)


def test_the_script_runs_each_model_and_resumes(written: Path, tmp_path: Path) -> None:
    """With a trtexec that only writes down how it was called."""
    script = (written / "run.sh").read_text()
    (tmp_path / "run.sh").write_text(script)
    (tmp_path / "models").mkdir()
    for name in ("a", "b"):
        (tmp_path / "models" / f"{name}.onnx").touch()
    fake = tmp_path / "trtexec"
    fake.write_text(
        "#!/bin/sh\n"
        'echo "$*" >> calls\n'
        '[ "$1" = --help ] && { echo "--exportLayerInfo=<file> --profilingVerbosity=mode"; exit 0; }\n'
        "for word; do case $word in "
        '--saveEngine=*|--exportProfile=*|--exportTimes=*) echo x > "${word#*=}";; esac; done\n'
        'case "$*" in *models/b.onnx*) exit 1;; esac\n'
    )
    fake.chmod(0o755)

    def run() -> tuple[int, list[str]]:
        (tmp_path / "calls").unlink(missing_ok=True)
        done = subprocess.run(
            ["sh", "run.sh"], cwd=tmp_path, env={"TRTEXEC": str(fake), "PATH": "/usr/bin:/bin"}, check=False
        )
        return done.returncode, (tmp_path / "calls").read_text().splitlines()[1:]

    code, calls = run()
    assert code == 1  # b cannot be built, a is timed all the same
    assert len(calls) == 1 + 2 + 1
    assert PRECISIONS["fp16"] in calls[0]
    assert "--profilingVerbosity=detailed --exportLayerInfo=out/a.layers.json" in calls[0]
    assert "--separateProfileRun" not in calls[1]  # this trtexec does not know it
    assert sorted(path.name for path in (tmp_path / "out").glob("*.profile.json")) == [
        "a.1.profile.json",
        "a.2.profile.json",
    ]
    (tmp_path / "out" / "a.2.profile.json").unlink()
    assert [("models/b" in call, "a.2" in call) for call in run()[1]] == [(False, True), (True, False)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8"}, "fp32, fp16, not in 'int8'"),
        ({"repeats": 0}, "at least 1, not 0"),
        ({"networks": []}, "nothing to time"),
    ],
)
def test_work_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_work(**{"folder": tmp_path / "new", "pieces": [], "networks": [(ARCH, 5)], **changes})
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="holds something already"):
        write_work(tmp_path, [], [(ARCH, 5)])


# -- the table -----------------------------------------------------------------------------------------


def test_profiles_become_a_table(written: Path, tmp_path: Path) -> None:
    folder = measure(written, tmp_path / "jetson")
    found = read_work(folder, NANO, "someone's Nano, 10 W", command="nas tables import-trtexec")
    assert (found.unmeasured, found.spanning) == ((), {})
    table = found.table
    blocks = {block.name: block for block in ARCH.blocks(5)}
    assert set(table.rows) == {*blocks.values(), piece_from_key(STEM), piece_from_key(STEP)}
    # The network's stem is three layers, and in a network the picture's conversion counts.
    stem = table.rows[blocks["stem"]]
    assert stem.median_ms == pytest.approx((0.5 + 0.01 + 0.02 + 0.03) * 1.05, rel=1e-4)
    assert (stem.p10_ms, stem.p90_ms) == pytest.approx((0.56 * 1.01, 0.56 * 1.09), rel=1e-4)
    assert (stem.runs, stem.provenance, stem.source) == (200, "measured-by-others", "someone's Nano, 10 W")
    # A block alone: the edge's conversion is none of its own, but for one that reads the picture.
    assert table.rows[piece_from_key(STEP)].median_ms == pytest.approx(0.03 * 1.05, rel=1e-4)
    assert table.rows[piece_from_key(STEM)].median_ms == pytest.approx(0.56 * 1.05, rel=1e-4)
    (network,) = table.networks
    assert (network.arch, network.joints) == (ARCH, 5)
    assert network.row.median_ms == pytest.approx(5.75)
    assert network.row.runs == 6
    # All the time that the profile tells is in the rows.
    records = fused(written / "models" / f"network-{ARCH.id}-5.onnx")
    total = sum(table.rows[block].median_ms for block in blocks.values())
    assert total == pytest.approx(1.05 * sum(ms for _, ms in records), rel=1e-4)
    path = table.save(tmp_path / f"{table.name}.csv")
    assert LatencyTable.load(path).rows == table.rows
    assert table.sessions[0]["runtime_version"] == "8201"
    assert str(table.sessions[0]["date"]) == "2026-11-20"
    assert not [finding for finding in validate_table(path) if finding.level == "error"]
    assert read_work(folder, NANO, "mine", own_device=True).table.provenance == "measured-here"


def test_ranges_and_layer_information_name_layers(written: Path, tmp_path: Path) -> None:
    """A whole block as one foreign node, and a block whose kernels have names of their own."""

    def edit(records: list[tuple[str, float]]) -> list[tuple[str, float]]:
        if not any("stage1.block0/" in name for name, _ in records):
            return records
        kept = [each for each in records if "stage1.block0/" not in each[0] and "stem/" not in each[0]]
        foreign = ("{ForeignNode[stage1.block0/0/Conv...stage1.block0/2/Conv]}", 0.7)
        return [foreign, ("__myl_ConvClip_myl0_1", 0.4), ("__myl_Conv_myl0_2", 0.2), *kept]

    folder = measure(written, tmp_path / "jetson", edit)
    layers = [
        {
            "Name": "__myl_ConvClip_myl0_1",
            "Metadata": "[ONNX Layer: stem/0/Conv]\x1f[ONNX Layer: stem/1/Conv]",
        },
        {"Name": "__myl_Conv_myl0_2", "LayerType": "conv", "Metadata": "[ONNX Layer: stem/2/Conv]"},
    ]
    information = folder / "out" / f"network-{ARCH.id}-5.layers.json"
    information.write_text(json.dumps({"Layers": layers, "Bindings": ["x0"]}))
    table = read_work(folder, NANO, "a Nano").table
    blocks = {block.name: block for block in ARCH.blocks(5)}
    assert table.rows[blocks["stage1.block0"]].median_ms == pytest.approx(0.7 * 1.05)
    assert table.rows[blocks["stem"]].median_ms == pytest.approx(0.6 * 1.05)
    information.write_text(json.dumps({"Layers": ["stem"]}))  # without detailed profiling: names alone
    with pytest.raises(InputError, match=r"no record names the layer 'stem/0' and 2 more.*profiling"):
        read_work(folder, NANO, "a Nano")
    information.write_text("[]")
    with pytest.raises(InputError, match="has a list 'Layers', not"):
        read_layer_info(information)


def test_blocks_that_share_a_layer_get_no_row_and_are_named(written: Path, tmp_path: Path) -> None:
    def edit(records: list[tuple[str, float]]) -> list[tuple[str, float]]:
        both = [r for r in records if "head.deconv2/1/" in r[0] or "head.output0/0/" in r[0]]
        if not both:
            return records
        joined = (" || ".join(name for name, _ in both), 0.9)
        return [*(r for r in records if r not in both), joined]

    found = read_work(measure(written, tmp_path / "jetson", edit), NANO, "a Nano")
    assert found.spanning == {f"network-{ARCH.id}-5": ("head.deconv2", "head.output0")}
    blocks = {block.name: block for block in ARCH.blocks(5)}
    assert blocks["head.deconv2"] not in found.table
    assert blocks["head.deconv1"] in found.table


def test_what_is_not_measured_yet_is_named(written: Path, tmp_path: Path) -> None:
    folder = measure(written, tmp_path / "jetson")
    for path in (folder / "out").glob("piece-00001.*"):
        path.unlink()
    assert read_work(folder, NANO, "a Nano").unmeasured == ("piece-00001",)
    for path in (folder / "out").glob("*.profile.json"):
        path.unlink()
    with pytest.raises(InputError, match=r"no profile of a block.*run\.sh on the device first"):
        read_work(folder, NANO, "a Nano")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: [x for x in r if "/1/" not in x[0]], "no record names the layer '"),
        (lambda r: [*r, ("639 copy", 99.0)], r"name no layer take \d\d% of the time, most of it '639 copy'"),
        (lambda r: [(name, 0.0) for name, _ in r], "takes 0 ms, which nothing does"),
    ],
)
def test_profiles_of_other_models_are_refused(
    written: Path, tmp_path: Path, edit: Edit, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_work(measure(written, tmp_path / "jetson", edit), NANO, "a Nano")
    assert ".profile.json'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_targets_and_sources_must_fit(written: Path, tmp_path: Path) -> None:
    folder = measure(written, tmp_path / "jetson")
    for target, message in (
        (Target("jetson-nano", "Maxwell", "onnxruntime", "fp16"), "runtime is 'onnxruntime', but the models"),
        (Target("jetson-nano", "Maxwell", "tensorrt", "fp32"), "precision is 'fp32', but the models"),
    ):
        with pytest.raises(InputError, match=message):
            read_work(folder, target, "a Nano")
    with pytest.raises(InputError, match="whose measurement it is"):
        read_work(folder, NANO, " ")
    for log in (folder / "out").glob("*.log"):
        log.unlink()
    with pytest.raises(InputError, match=r"version is needed, and the logs of .* do not tell it"):
        read_work(folder, NANO, "a Nano")
    table = read_work(folder, NANO, "a Nano", version="8.2.1").table
    assert table.sessions[0]["runtime_version"] == "8.2.1"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "format is 1, not 2"),
        ("precision", "int8", "precision is fp32 or fp16, not 'int8'"),
        ("repeats", True, "repeats is a whole number from 1, not True"),
        ("models", [], r"models is a list of models, not \[\]"),
        ("models", [{"name": "../x", "piece": STEM}], r"models\[0\]: name is a file's name"),
        ("models", [{"name": "x"}], r"models\[0\] is neither a piece nor an arch"),
        ("surplus", 1, "unknown key 'surplus'"),
    ],
)
def test_a_damaged_work_list_is_told(
    written: Path, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    work = json.loads((written / "work.json").read_text())
    (tmp_path / "work.json").write_text(json.dumps(work | {key: value}))
    with pytest.raises(InputError, match=message) as caught:
        read_work(tmp_path, NANO, "a Nano")
    assert "work.json" in str(caught.value)
    if key != "surplus":
        (tmp_path / "work.json").write_text(json.dumps({k: v for k, v in work.items() if k != key}))
        with pytest.raises(InputError, match=f"lacks '{key}'"):
            read_work(tmp_path, NANO, "a Nano")


# -- single files --------------------------------------------------------------------------------------


def test_releases_without_a_median_give_averages(tmp_path: Path) -> None:
    path = tmp_path / "x.profile.json"
    path.write_text(profile([("Conv_0 + PWN(Clip_3)", 0.0662771), ("Conv_8", 0.0)], 625, medianMs=None))
    found = read_profile(path)
    assert (found.count, found.statistic) == (625, "average")
    assert found.layers == (LayerTime("Conv_0 + PWN(Clip_3)", 0.0662771), LayerTime("Conv_8", 0.0))
    path.write_text(profile([("a", 0.5)], medianMs=0.4))
    assert read_profile(path).layers == (LayerTime("a", 0.4),)


GOOD = {"name": "a", "timeMs": 100.0, "averageMs": 1.0, "medianMs": 1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", r"not valid JSON: .* at line 1, column 2"),
        ("{}", r"is a list of records, not \{\}"),
        ("[]", r"is a list of records, not \[\]"),
        ([GOOD], r"the first record is \{'count': runs\}"),
        ([{"count": 0}, GOOD], r"the first record is .*not \{'count': 0\}"),
        ([{"count": 100}], "holds no layer"),
        ([{"count": 100}, {"timeMs": 1}], "record 1 has a 'name'"),
        ([{"count": 100}, GOOD, GOOD | {"timeMs": "1"}], r"record 2 \('a'\): timeMs is a number .* not '1'"),
        ([{"count": 100}, GOOD | {"averageMs": -1.0}], "averageMs is a number of milliseconds, not -1.0"),
        ([{"count": 100}, GOOD | {"medianMs": None}], "medianMs is a number of milliseconds, not None"),
        ([{"count": 50}, GOOD], r"record 1 \('a'\): averageMs 1.0 over 50 runs is not timeMs 100.0"),
        ([{"count": 100}, GOOD, {k: GOOD[k] for k in ("name", "timeMs", "averageMs")}], "1 of 2 records"),
    ],
)
def test_a_malformed_profile_is_told(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "x.profile.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        read_profile(path)
    assert re.search(r"x\.profile\.json'", str(caught.value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is a list of runs"),
        ([1], "run 0 is a mapping, not 1"),
        ([{"computeMs": 1.0}, {"latencyMs": 1.0}], "run 1: computeMs is a number of milliseconds, not None"),
        ([{"computeMs": 0.0}], "run 0: computeMs is positive, not 0"),
    ],
)
def test_malformed_times_are_told(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "x.times.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_times(tmp_path / "x.times.json")
