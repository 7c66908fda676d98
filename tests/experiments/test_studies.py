"""The papers' studies at toy scale: variants, what is written down, taking up again, mistakes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from search_spaces import InputError, RunError

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    *("--set", "data.train.synthetic.images=10", "--set", "data.search.synthetic.images=4"),
    *("--set", "data.val.synthetic.images=2", "--set", "evaluate.calibration_images=4"),
    *("--epochs", "1", "--jobs", "1"),
]


@pytest.fixture(scope="module")
def studies() -> ModuleType:
    """The script, loaded as a module: a process of its own would load torch anew for every test."""
    spec = importlib.util.spec_from_file_location("studies", ROOT / "experiments" / "studies.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["studies"] = module
    spec.loader.exec_module(module)
    return module


def test_gradual_shrinking_needs_no_training(studies: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert studies.main(["shrinking"]) == 0
    assert [row[-3:-1] for row in studies.shrinking()] == [
        [figure] * 2 for figure in ("12.50", "10.12", "10.02", "9.15")
    ]
    assert "0-4 / 0-0-4 / 0-0-0-4" in studies.shrinking()[-1]
    assert "gradual shrinking" in capsys.readouterr().out


def test_variants_are_the_bases_and_counts_the_papers(studies: ModuleType) -> None:
    base = studies.get_arch("litepose-xs")
    kernels = studies.kernels(base)
    assert [v.arch["stage2.kernel"] for v in kernels] == [3, 5, 7, 9]
    assert kernels[2].arch == base
    for variant in (*kernels, *studies.fusion(base)):
        assert variant.published.ours_g == pytest.approx(variant.published.macs_g, rel=0.02)
    heads = studies.deconv(studies.get_arch("deconv-reduced"))
    assert [v.arch["head.deconv1.width"] for v in heads] == [256, 128, 64, 32]


def test_fusion_is_trained_both_ways_and_taken_up_again(
    studies: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["fusion", *QUICK, "--set", "space.resolutions=[64]", "--out", str(tmp_path)]
    target = "raspberry-pi-4-unstated-unstated"
    assert studies.main(quick) == 0
    capsys.readouterr()
    assert studies.main([*quick, "--latency", target]) == 0
    assert "0 of 2 networks are to be trained" in capsys.readouterr().err
    report = json.loads((tmp_path / "fusion.json").read_text(encoding="utf-8"))
    unfused, fused = report["rows"]
    assert [unfused["arch"]["family"], fused["arch"]["family"]] == ["litepose-unfused", "litepose"]
    assert unfused["macs"] < fused["macs"]
    assert 0 < unfused["ms"][target] < fused["ms"][target]
    assert unfused["ap_low"] <= unfused["ap"] <= unfused["ap_high"]
    assert unfused["less_baseline"] == 0 and unfused["published"]["macs_g"] == 4.06
    page = (tmp_path / "fusion.md").read_text(encoding="utf-8")
    assert "| unfused |" in page and "--epochs 1" in page and str(tmp_path) not in page
    assert "drawn people: a demonstration" in page and "No variant has learned" in page
    assert (tmp_path / "fusion.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RunError, match=r"rest on other settings .*choose another folder \(--out\)"):
        studies.main([*quick, "--set", "train.learning_rate=0.1"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["kernel"], "there is no study 'kernel'; did you mean 'kernels'?"),
        (["fusion", "--epochs", "0"], "--epochs is at least 1, not 0"),
        (["fusion", "--recipe", "study-people-deconv.yaml"], "varies a LitePose network"),
        (["deconv", "--recipe", "study-people.yaml"], "varies a deconv network"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    studies: ModuleType, arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "experiments" / "recipes")
    few = [f"data.{part}.synthetic.images=4" for part in ("train", "search", "val")]
    sets = [word for each in few for word in ("--set", each)]
    with pytest.raises(InputError) as error:
        studies.main([*arguments, *sets, "--out", str(tmp_path / "out")])
    assert told in str(error.value)
    assert not (tmp_path / "out").exists()
