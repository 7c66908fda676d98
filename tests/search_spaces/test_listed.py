"""Networks that are known by their layers alone: counts against what was published, names, refusals."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import Arch, InputError, get_arch, get_network, listed_networks, named_archs
from search_spaces.listed import ListedNetwork, Pass, Published

NETWORKS = listed_networks()
SHAPES = Path(__file__).resolve().parents[3] / "shared" / "latency" / "pose_net_layers.csv"
PUBLISHED = [(name, each) for name, network in NETWORKS.items() for each in network.published]


@pytest.mark.parametrize(
    ("name", "published"), PUBLISHED, ids=[f"{name}-{each.macs_g:g}G" for name, each in PUBLISHED]
)
def test_counts_are_the_published_ones(name: str, published: Published) -> None:
    """Each in its source's own way of counting; only Lightweight OpenPose's is printed without a decimal."""
    ours = NETWORKS[name].counted_g(published)
    assert ours == pytest.approx(published.macs_g, rel=0.02 if name == "lightweight-openpose" else 0.005)


@pytest.mark.parametrize(("name", "published"), [each for each in PUBLISHED if each[1].params_m is not None])
def test_parameters_are_the_published_ones(name: str, published: Published) -> None:
    network = NETWORKS[name]
    params = network.cost(published.joints).params
    if network.rules == "efficient-hrnet":  # published parameters count the backbone twice: all five say so
        layers = network.layers(published.joints)
        params += sum(layer.params for layer in layers if layer.name.startswith("backbone."))
    assert params / 1e6 == pytest.approx(published.params_m, rel=0.02)


def test_every_network_says_what_it_costs_and_where_that_is_from() -> None:
    assert {"higherhrnet-w48", "efficienthrnet-h-4", "lightweight-openpose", "hrnet-w32"} <= set(NETWORKS)
    for name, network in NETWORKS.items():
        assert network.name == name
        assert network.published
        assert network.source
        assert all(each.source for each in network.published)


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_have_names_of_their_own_and_fit_together(name: str) -> None:
    layers = NETWORKS[name].layers(17)
    names = [layer.name for layer in layers]
    assert len(set(names)) == len(names)
    assert (layers[0].c_in, (layers[0].h_in, layers[0].w_in)) == (3, NETWORKS[name].size)


@given(st.sampled_from(sorted(NETWORKS)), st.integers(32, 200), st.integers(32, 200), st.integers(1, 40))
def test_any_size_and_any_joints(name: str, height: int, width: int, joints: int) -> None:
    network = NETWORKS[name]
    small, more = network.cost(joints, (height, width)), network.cost(joints, (height + 32, width))
    assert small.params == more.params
    assert small.macs < more.macs
    assert small.macs < small.macs_paper
    assert network.cost(joints + 1, (height, width)).macs > small.macs


def test_an_odd_size_is_rounded_up() -> None:
    layers = {layer.name: layer for layer in NETWORKS["higherhrnet-w32"].layers(17, (66, 50))}
    assert (layers["head.output0"].h_in, layers["head.output0"].w_in) == (17, 13)
    assert (layers["stage3.module0.branch3.block0.conv0"].h_in) == 3


@pytest.mark.parametrize(("joints", "size", "culprit"), [(0, None, "joints"), (17, (31, 64), "31x64")])
def test_what_no_network_takes(joints: int, size: tuple[int, int] | None, culprit: str) -> None:
    with pytest.raises(InputError, match=culprit):
        NETWORKS["higherhrnet-w16"].layout(joints, size)


def test_passes_are_counted_in_the_papers_convention_alone() -> None:
    assert Pass("upsample", 2, 3, 4).macs_paper == 24
    assert Pass("add", 2, 3, 4).macs_paper == 0
    assert Pass("add", 2, 3, 4, relu=True).macs_paper == 24
    network = NETWORKS["higherhrnet-w16"]
    layout = network.layout(14)
    assert network.cost(14).macs == sum(layer.macs for layer in layout.layers)
    assert network.cost(14).macs_paper > sum(layer.macs_paper for layer in layout.layers)
    assert Counter(each.kind for each in layout.passes) == {"upsample": 28, "add": 28, "concatenate": 1}


def test_gradual_shrinking_takes_work_from_the_fine_branches() -> None:
    costs = [NETWORKS[f"gradual-shrinking-{i}"].cost(14) for i in (1, 2, 3, 4)]
    assert [f"{cost.macs_paper / 1e9:.2f}" for cost in costs] == ["12.50", "10.12", "10.02", "9.15"]
    assert costs[0] == NETWORKS["higherhrnet-w16"].cost(14)
    fine = [
        sum(x.macs for x in NETWORKS[f"gradual-shrinking-{i}"].layers(14) if ".branch0." in x.name)
        for i in (1, 2, 3, 4)
    ]
    assert fine == sorted(fine, reverse=True)


def test_names_are_found_and_kept_apart() -> None:
    assert isinstance(get_network("higherhrnet-w48"), ListedNetwork)
    assert isinstance(get_network("litepose-s"), Arch)
    assert not set(NETWORKS) & set(named_archs())
    with pytest.raises(InputError, match="did you mean 'higherhrnet-w48'"):
        get_network("higherhrnet-w4")
    with pytest.raises(InputError, match="did you mean 'litepose-xs'"):
        get_network("litepos-xs")


def test_what_needs_an_arch_refuses_them_by_name() -> None:
    with pytest.raises(InputError, match=r"'higherhrnet-w48' is known by its layers alone.*nas cost"):
        get_arch("higherhrnet-w48")


SHEETS = {
    "HigherHRNet-W16": ("higherhrnet-w16", {"width": 16, "stem": 24}),
    "HigherHRNet-W24": ("higherhrnet-w24", {"width": 24, "stem": 24}),
    "EfficientHRNet-H-1": ("efficienthrnet-h-1", None),
    "EfficientHRNet-53.6mAP": ("efficienthrnet-h-2", None),
    "EfficientHRNet-46.1mAP": ("efficienthrnet-h-3", None),
}


@pytest.mark.skipif(not SHAPES.is_file(), reason="the sheet of layer shapes is not part of the project")
@pytest.mark.parametrize("model", SHEETS)
def test_layers_are_those_of_an_independent_sheet(model: str) -> None:
    """Shape by shape; the sheet guesses another stem and head for LitePose's W16 and W24."""
    name, settings = SHEETS[model]
    network = NETWORKS[name] if settings is None else replace(NETWORKS[name], settings=settings)
    kinds = {"conv": "conv", "dw": "dwconv", "deconv": "deconv"}
    with SHAPES.open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["model"] == model and row["t"] in kinds]
    theirs = Counter(
        (kinds[row["t"]], *(int(row[key]) for key in ("ci", "co", "k", "s", "g", "hi", "wi"))) for row in rows
    )
    ours = Counter(
        (x.kind, x.c_in, x.c_out, x.kernel, x.stride, x.groups, x.h_in, x.w_in)
        for x in network.layers(14)
        if x.kind != "se"
    )
    assert ours == theirs


PAGE = Path(__file__).resolve().parents[2] / "docs" / "papers.md"


def _rows(start: str) -> list[list[str]]:
    """Return the cells of the page's table rows that begin so."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith(start)]


def test_the_pages_table_is_what_is_counted() -> None:
    rows = {row[0].strip("`"): row for row in _rows("| `")}
    assert set(rows) == set(NETWORKS)
    for name, row in rows.items():
        published = NETWORKS[name].published[0]
        cost = NETWORKS[name].cost(published.joints)
        assert row[2] == str(published.joints)
        assert row[3] == f"{cost.params / 1e6:.2f}"
        assert row[4] == ("-" if published.params_m is None else f"{published.params_m:g}")
        assert row[5] == f"{cost.macs / 1e9:.2f}"
        assert row[6] == f"{NETWORKS[name].counted_g(published):.2f}"
        assert row[7] == f"{published.macs_g:g}"


def test_the_pages_ways_of_counting_are_those() -> None:
    """LitePose-S at 14 joints and HigherHRNet-W32 at 17, four ways."""
    litepose, higher = get_arch("litepose-s"), NETWORKS["higherhrnet-w32"]
    found = []
    for layers, cost in (
        (litepose.layers(14), litepose.cost(14)),
        (higher.layers(17), higher.cost(17)),
    ):
        output = sum(x.macs * (4 if x.kind == "deconv" else 1) for x in layers)
        found.append([cost.macs / 1e9, cost.macs / 2**30, output / 1e9, cost.macs_paper / 1e9])
    ways = [*_rows("| true"), *_rows("| in units"), *_rows("| deconvolutions at"), *_rows("| LitePose's |")]
    assert [row[-2:] for row in ways] == [[f"{a:.2f}", f"{b:.2f}"] for a, b in zip(*found, strict=True)]
