"""What rounding does to each layer, kept in a journal, and which layers are kept in float for it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from search_spaces import InputError, RunError
from search_spaces.jsonl import open_lines
from supernet.export import export_onnx
from supernet.quantise import Quantiser, calibrate, layer_macs, layer_nodes
from supernet.registry import build_network
from supernet.sensitivity import (
    Probe,
    Sensitivity,
    Trials,
    Unit,
    choose,
    decibels,
    kinds_of,
    units_of,
)
from tests.supernet.networks import randomise
from tests.supernet.test_quantise import ARCH, DECONVS, JOINTS, pictures


@pytest.fixture(scope="module")
def fp32(tmp_path_factory):
    path = tmp_path_factory.mktemp("sensitivity") / "net.onnx"
    export_onnx(randomise(build_network(ARCH, JOINTS)).eval(), path)
    return onnx.load(path)


@pytest.fixture(scope="module")
def quantiser(fp32):
    return Quantiser(fp32, calibrate(fp32, pictures(3)))


@pytest.fixture(scope="module")
def probe(fp32):
    return Probe(fp32, pictures(2, seed=3))


def journal(path, **header):
    return open_lines(path, header or {"of": "test"}, doing="testing", what="test")


class Losses:
    """Trials whose score falls by so much for each unit in 8 bits; counts what is asked of it."""

    def __init__(self, losses, macs=None):
        self.losses = losses
        self.asked = []
        self.units = [Unit(name, (name,), (macs or {}).get(name, 1)) for name in losses]
        self.quantiser = SimpleNamespace(checked=frozenset, layers=list(losses))

    def noise(self, kept=()):
        return sum(loss for name, loss in self.losses.items() if name not in kept)

    def score(self, kept=()):
        self.asked.append(frozenset(kept))
        return 1 - self.noise(kept)

    def fp32(self):
        return 1.0

    def found(self):
        every = set(self.losses)
        return [Sensitivity(u, self.noise(every - {u.name}), self.noise({u.name})) for u in self.units]


def test_units_by_layer_and_by_block(fp32):
    layers, macs = layer_nodes(fp32), layer_macs(fp32)
    single = units_of(layers, macs)
    assert [unit.layers for unit in single] == [(name,) for name in layers]
    blocks = units_of(layers, macs, "block")
    assert [unit.name for unit in blocks][:2] == ["stem", "stage0.block0"]
    assert set(next(u for u in blocks if u.name == "head.deconv1").layers) == set(DECONVS[2:4])
    assert {u.name for u in blocks} == {block.name for block in ARCH.blocks(JOINTS)}
    for units in (single, blocks):
        assert sum(unit.macs for unit in units) == ARCH.cost(JOINTS).macs
    with pytest.raises(InputError, match="layer or block, not by 'stage'"):
        units_of(layers, macs, "stage")


def test_kinds_hold_every_layer_once(fp32):
    layers = layer_nodes(fp32)
    kinds = kinds_of(layers)
    assert set(kinds) == {"conv", "dwconv", "pwconv", "deconv", "output"}
    assert sorted(name for own in kinds.values() for name in own) == sorted(layers)


def test_noise_is_relative_to_each_channel(fp32, probe):
    assert probe.noise(fp32) == {"quarter": 0.0, "half": 0.0}
    # Outputs of twice the size err by their own size: by the mean square over the variance.
    other = onnx.ModelProto()
    other.CopyFrom(fp32)
    (last,) = (node for node in other.graph.node if "half" in node.output)
    last.input[1] = last.input[0]
    reference = Probe(other, pictures(2, seed=3))
    assert reference.noise(fp32)["quarter"] == 0
    assert reference.noise(fp32)["half"] > 0
    with pytest.raises(InputError, match="at least one image"):
        Probe(fp32, [])


def test_decibels():
    assert decibels(0.0) is None
    assert decibels(0.01) == pytest.approx(20)


def test_each_unit_alone_and_left_out(quantiser, probe, tmp_path):
    with journal(tmp_path / "lines.jsonl") as lines:
        trials = Trials(quantiser, probe, lambda model: -float(len(model.graph.node)), lines)
        units = units_of(quantiser.layers, layer_macs(quantiser.fp32), "block")
        told = []
        found = trials.sensitivities(units, scored=True, progress=lambda *at: told.append(at))
        whole = trials.noise()
        assert told[-1] == (len(units), len(units))
        assert 0 < whole < 1
        for each in found:
            assert 0 < each.alone < 3 * whole
            assert each.score_alone > each.score_all_but  # fewer nodes are put between Q/DQ
        # The power of the errors is about the sum of what the units add.
        assert sum(each.alone for each in found) == pytest.approx(whole, rel=0.7)
        json = found[0].to_json()
        assert json["snr_alone_db"] == pytest.approx(-10 * math.log10(json["noise_alone"]))


def test_the_journal_is_continued_and_nothing_is_measured_twice(quantiser, probe, tmp_path):
    scored = []

    def score(model):
        scored.append(len(model.graph.node))
        return 0.5

    path = tmp_path / "lines.jsonl"
    with journal(path) as lines:
        trials = Trials(quantiser, probe, score, lines)
        first = trials.noise(["stem.conv"])
        assert (
            trials.score(["stem.conv", "stem.project"]) == trials.score(["stem.project", "stem.conv"]) == 0.5
        )
    assert len(scored) == 1
    with path.open("ab") as stream:  # what a kill leaves
        stream.write(b'{"what": "noise", "mod')
    with journal(path) as lines:
        again = Trials(quantiser, None, score, lines)
        assert again.noise(["stem.conv"]) == first
        assert again.score(["stem.project", "stem.conv"]) == 0.5
        with pytest.raises(InputError, match="no layer 'stem'"):
            again.score(["stem"])
    assert len(scored) == 1
    with pytest.raises(RunError, match="other settings"), journal(path, of="another network"):
        pass


def test_nothing_is_kept_where_nothing_is_lost():
    trials = Losses({"a": 0.001, "b": 0.002})
    choice = choose(trials, trials.found(), 0.01)
    assert choice.kept == frozenset()
    assert choice.loss == pytest.approx(0.003)


def test_the_least_set_in_the_order_of_what_is_saved():
    losses = {"a": 0.001, "b": 0.2, "c": 0.002, "d": 0.1, "e": 0.003, "f": 0.05}
    trials = Losses(losses)
    choice = choose(trials, trials.found(), 0.01)
    assert choice.kept == {"b", "d", "f"}
    assert choice.loss == pytest.approx(0.006)
    assert choice.tried[0] == {"kept": [], "score": pytest.approx(0.644), "loss": pytest.approx(0.356)}


def test_a_costly_layer_must_save_more():
    trials = Losses({"dear": 0.05, "cheap": 0.04}, {"dear": 100, "cheap": 1})
    assert choose(trials, trials.found(), 0.06).kept == {"cheap"}


def test_what_is_kept_needlessly_is_let_go():
    """Per multiply-accumulate 'small' saves most, but 'large' must be kept, and then it is not needed."""
    trials = Losses({"small": 0.02, "large": 0.5}, {"small": 1, "large": 1000})
    choice = choose(trials, trials.found(), 0.03)
    assert choice.kept == {"large"}
    assert frozenset({"small", "large"}) in trials.asked


def test_layers_that_must_be_kept():
    trials = Losses({"a": 0.001, "b": 0.2})
    choice = choose(trials, trials.found(), 0.01, keep=["a"])
    assert choice.kept == {"a", "b"}
    assert choice.units == ("b",)


def test_everything_in_float_is_the_end():
    trials = Losses({"a": 0.1, "b": 0.2})
    assert choose(trials, trials.found(), 0.0).kept == {"a", "b"}


@pytest.mark.parametrize("tolerance", [-0.1, math.nan])
def test_a_tolerance_is_not_negative(tolerance):
    trials = Losses({"a": 0.1})
    with pytest.raises(InputError, match="at least 0"):
        choose(trials, trials.found(), tolerance)


def test_the_choice_holds_on_a_network(quantiser, probe, tmp_path):
    """Scored by the outputs' error itself, the model chosen is within the tolerance, and int8 is not."""
    with journal(tmp_path / "lines.jsonl") as lines:

        def score(model):
            return -float(np.sqrt(np.mean(list(probe.noise(model).values()))))

        trials = Trials(quantiser, probe, score, lines)
        units = units_of(quantiser.layers, layer_macs(quantiser.fp32), "layer")
        tolerance = -0.5 * trials.score(())
        choice = choose(trials, trials.sensitivities(units), tolerance)
        assert 0 < len(choice.kept) < len(quantiser.layers)
        assert -score(quantiser.int8(choice.kept)) == pytest.approx(choice.loss)
        assert choice.loss <= tolerance
