"""LitePose's published figures, to the integer where a true count exists."""

import pytest

from search_spaces import (
    InputError,
    get_arch,
    litepose_arch,
    litepose_extended,
    litepose_native,
    make_divisible,
    named_archs,
    space_from_config,
)

# params at 14 joints; true conv MACs (G, four decimals); the paper's MACs (G)
PUBLISHED = {
    "litepose-xs": (1_675_552, 0.8829, 1.2),
    "litepose-s": (2_731_240, 3.6141, 5.0),
    "litepose-m": (3_533_808, 5.2637, 7.8),
    "litepose-l": (5_738_120, 9.9620, 13.7),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_costs(name):
    params, macs, paper = PUBLISHED[name]
    cost = get_arch(name).cost(joints=14)
    assert cost.params == params
    assert round(cost.macs / 1e9, 4) == macs
    assert cost.macs_paper / 1e9 == pytest.approx(paper, rel=0.01)


def test_the_papers_coco_figure_for_l():
    assert get_arch("litepose-l").cost(joints=17).macs_paper / 1e9 == pytest.approx(13.8, rel=0.01)


def test_fusion_head_ablation():
    """Published: 4.06 GMACs without the fusion, 4.69 with it (width .5 at 512 px)."""
    fused, unfused = get_arch("litepose-prune-s"), get_arch("prune-s-unfused")
    assert unfused.as_dict() == fused.as_dict()
    assert unfused.id != fused.id
    assert f"{unfused.cost(joints=14).macs_paper / 1e9:.2f}" == "4.06"
    assert f"{fused.cost(joints=14).macs_paper / 1e9:.2f}" == "4.69"
    assert not any(".raw" in layer.name for layer in unfused.layers(14))
    assert {block.branches for block in unfused.blocks(14) if block.name.startswith("head.")} == {(1,), (2,)}


def test_a_space_is_with_fusion_or_without():
    base = {"stem": 16, "stages": [16, 16, 16, 16], "deconvs": [16, 16, 16]}
    kinds = {"kind": "litepose-extended", "joints": 5, "resolutions": [64]}
    spaces = [space_from_config({**kinds, "base": {**base, "fusion": f}}) for f in (True, False)]
    assert [space.family.name for space in spaces] == ["litepose", "litepose-unfused"]
    assert spaces[0].largest() not in spaces[1]
    with pytest.raises(InputError, match="'fusion' is true or false, not 'no'"):
        space_from_config({**kinds, "base": {**base, "fusion": "no"}})


def test_kernel_ablation():
    """Kernel ablation nets (width .5 at 512 px): 3.77/4.14/4.69/5.33 published GMACs for k = 3/5/7/9."""
    for kernel, published in ((3, 3.77), (5, 4.14), (7, 4.69), (9, 5.33)):
        values = {f"stage{i}__kernel": kernel for i in range(4)}
        arch = get_arch("litepose-prune-s").replace(**values)
        assert arch.cost(joints=14).macs_paper / 1e9 == pytest.approx(published, rel=0.02)


def test_native_space_counts():
    space = litepose_native()
    assert space.nominal_count() == 327_680
    assert space.count() == 245_760
    costs = space.costs(space.genotypes())
    assert len(costs.macs) == 245_760
    assert (costs.macs.min(), costs.macs.max()) == (
        space.cost(space.smallest()).macs,
        space.cost(space.largest()).macs,
    )


@pytest.mark.parametrize(
    "name", [n for n in named_archs() if n.startswith("litepose") and n != "litepose-prune-l"]
)
def test_named_networks_lie_in_the_native_space(name):
    assert get_arch(name) in litepose_native()


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_space_can_be_anchored_at_any_network(name):
    base = get_arch(name)
    for space in (
        litepose_native(base=base, resolutions=[base["resolution"]]),
        litepose_extended(base=base, resolutions=[base["resolution"]]),
    ):
        assert base in space
    assert litepose_native(base=base, resolutions=[base["resolution"]]).largest() == base


def test_extended_contains_native():
    extended, native = litepose_extended(), litepose_native()
    assert all(native.decode(native.genotypes(i, i + 1)[0]) in extended for i in range(0, 245_760, 9973))


@pytest.mark.parametrize(
    ("value", "rounded"), [(18, 24), (36, 40), (12, 16), (6, 8), (1, 8), (120, 120), (20.1, 24), (80, 80)]
)
def test_make_divisible(value, rounded):
    assert make_divisible(value) == rounded
    assert rounded >= 0.9 * value


@pytest.mark.parametrize("size", [(256, 256), (257, 255), (33, 95), (480, 641)])
def test_odd_sizes_are_followed_exactly(size):
    arch = get_arch("litepose-xs")
    layers = {layer.name: layer for layer in arch.layers(14, size)}
    up = [(-(-size[0] // n), -(-size[1] // n)) for n in (2, 4, 8, 16)]
    assert (layers["stem.project"].h_in, layers["stem.project"].w_in) == up[0]
    assert (layers["stage3.block9.project"].h_in, layers["stage3.block9.project"].w_in) == up[3]
    assert (layers["head.output0.raw.project"].h_in, layers["head.output0.raw.project"].w_in) == up[1]
    assert (layers["head.output1.raw.project"].h_in, layers["head.output1.raw.project"].w_in) == up[0]


def test_residuals_follow_the_active_widths():
    arch = litepose_arch(64, 16, (16, 16, 24, 24), (8, 8, 8), depths=(2, 1, 1, 2))
    adds = [layer.name for layer in arch.layers(3) if layer.add and "stage" in layer.name]
    assert adds == ["stage0.block1.project", "stage3.block0.project", "stage3.block1.project"]
    wider = arch.replace(stage3__width=32)
    adds = [layer.name for layer in wider.layers(3) if layer.add and "stage" in layer.name]
    assert adds == ["stage0.block1.project", "stage3.block1.project"]


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"resolution": 8}, "resolution"),
        ({"stage0__kernel": 4}, "odd"),
        ({"stage2__width": 0}, r"stage2\.width"),
        ({"stage2__depth": "six"}, r"stage2\.depth"),
        ({"head__deconv1__kernel": 5}, r"head\.deconv1\.kernel"),
        ({"stage2__wdith": 8}, r"did you mean 'stage2\.width'"),
    ],
)
def test_bad_values_name_the_culprit(change, culprit):
    with pytest.raises(InputError, match=culprit):
        get_arch("litepose-s").replace(**change)
