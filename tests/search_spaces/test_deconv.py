"""The deconv families: costs as measured elsewhere, construction rules, and what recipes may ask for."""

import numpy as np
import pytest

from search_spaces import (
    DECONV_MBV2,
    DECONV_MBV3,
    FAMILIES,
    InputError,
    deconv_arch,
    deconv_mbv2,
    deconv_mbv3,
    get_arch,
    litepose_native,
    make_divisible,
    space_from_config,
    space_of,
)

# G MACs at 256x192, 17 joints, of heads 3x256, 3x128, 3x96, 3x64, 3x32 (4x4 kernels) and 3x256 (2x2)
HEADS = (((256,) * 3, 4), ((128,) * 3, 4), ((96,) * 3, 4), ((64,) * 3, 4), ((32,) * 3, 4), ((256,) * 3, 2))
MEASURED = {
    ("deconv-mbv2", 1280): (1.57, 0.68, 0.53, 0.42, 0.34, 0.62),
    ("deconv-mbv2", 0): (1.36, 0.56, 0.44, 0.36, 0.30, 0.55),
    ("deconv-mbv3", 960): (1.42, 0.56, 0.43, 0.32, 0.25, 0.52),
}


@pytest.mark.parametrize("head", range(len(HEADS)))
@pytest.mark.parametrize(("family", "last"), list(MEASURED))
def test_costs_are_the_measured_ones(family, last, head):
    widths, kernel = HEADS[head]
    arch = deconv_arch(FAMILIES[family], 256, widths, last=last, deconv_kernels=kernel)
    assert f"{arch.cost(17).macs / 1e9:.2f}" == f"{MEASURED[family, last][head]:.2f}"


@pytest.mark.parametrize(
    ("family", "last", "width", "millions"),
    [(DECONV_MBV2, 1280, 96, 4.49), (DECONV_MBV2, 0, 128, 2.99), (DECONV_MBV3, 960, 128, 5.47)],
)
def test_parameters(family, last, width, millions):
    arch = deconv_arch(family, 256, (width,) * 3, last=last)
    assert round(arch.cost(17).params / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "gigas"),
    [("simplebaseline-mbv2", 1.57), ("deconv-reduced", 0.56), ("simplebaseline-mbv3", 1.42)],
)
def test_named_networks(name, gigas):
    arch = get_arch(name)
    assert round(arch.cost(17).macs / 1e9, 2) == gigas
    assert arch.size == (256, 192)
    alone = space_of(arch, 17)
    assert (alone.count(), alone.largest(), alone.joints) == (1, arch, 17)


# -- construction rules ------------------------------------------------------------------------------------


def test_mobilenet_v2_layer_by_layer():
    """Blocks, strides, hidden channels and residuals of arXiv 1801.04381, table 2."""
    arch = get_arch("simplebaseline-mbv2")
    blocks = {block.name: block for block in arch.blocks(17)}
    assert [name for name in blocks if name.startswith("stage")] == [
        f"stage{i}.block{j}" for i, depth in enumerate((1, 2, 3, 4, 3, 3, 1)) for j in range(depth)
    ]
    layers = {layer.name: layer for layer in arch.layers(17)}
    assert layers["stem.conv"].key == "conv_k3_s2_g1_3x256x192_32+bn+relu6"
    assert [layer.name for layer in blocks["stage0.block0"].layers] == [
        "stage0.block0.depthwise",
        "stage0.block0.project",
    ]
    assert layers["stage3.block0.depthwise"].key == "dwconv_k3_s2_g192_192x32x24_192+bn+relu6"
    assert layers["stage6.block0.project"].key == "conv_k1_s1_g1_960x8x6_320+bn"
    assert layers["last.conv"].key == "conv_k1_s1_g1_320x8x6_1280+bn+relu6"
    added = [name.removesuffix(".project") for name, layer in layers.items() if layer.add]
    assert added == [
        *("stage1.block1", "stage2.block1", "stage2.block2", "stage3.block1", "stage3.block2"),
        *("stage3.block3", "stage4.block1", "stage4.block2", "stage5.block1", "stage5.block2"),
    ]
    assert layers["head.deconv0.up"].key == "deconv_k4_s2_g1_1280x8x6_256+bn+relu"
    assert layers["head.output2.project"].key == "conv_k1_s1_g1_256x64x48_17"


def test_mobilenet_v3_layer_by_layer():
    """Hidden channels, activations and squeeze-and-excitation of arXiv 1905.02244, table 1."""
    layers = {layer.name: layer for layer in get_arch("simplebaseline-mbv3").layers(17)}
    hidden = [layer.c_in for name, layer in layers.items() if name.endswith("depthwise")]
    assert hidden == [16, 64, 72, 72, 120, 120, 240, 200, 184, 184, 480, 672, 672, 960, 960]
    gates = {name: (layer.c_in, layer.squeeze) for name, layer in layers.items() if layer.kind == "se"}
    assert gates == {
        "stage2.block0.se": (72, 24),
        "stage2.block1.se": (120, 32),
        "stage2.block2.se": (120, 32),
        "stage4.block0.se": (480, 120),
        "stage4.block1.se": (672, 168),
        "stage5.block0.se": (672, 168),
        "stage5.block1.se": (960, 240),
        "stage5.block2.se": (960, 240),
    }
    assert layers["stage2.block2.se"].key == "se_k1_s1_g1_q32_120x32x24_120+bias"
    acts = {name: layer.activation for name, layer in layers.items() if name.endswith("depthwise")}
    assert {name[:6]: act for name, act in acts.items()} == {
        **dict.fromkeys(("stage0", "stage1", "stage2"), "relu"),
        **dict.fromkeys(("stage3", "stage4", "stage5"), "hswish"),
    }
    assert layers["stem.conv"].activation == layers["last.conv"].activation == "hswish"


@pytest.mark.parametrize("resolution", [64, 128, 192, 256, 384])
@pytest.mark.parametrize("steps", [2, 3])
def test_heatmaps_have_a_whole_share_of_the_input(resolution, steps):
    arch = deconv_arch(DECONV_MBV2, resolution, (64,) * steps)
    stride = DECONV_MBV2.heatmap_stride(arch.as_dict())
    assert stride == {2: 8, 3: 4}[steps]
    last = arch.layers(17)[-1]
    assert last.name == f"head.output{steps - 1}.project"
    assert (last.h_out, last.w_out) == (resolution // stride, resolution * 3 // 4 // stride)
    assert (last.c_out, last.bias, last.norm, last.activation) == (17, False, False, "none")


def test_odd_sizes_are_rounded_up_and_cropped_back():
    layers = {layer.name: layer for layer in deconv_arch(DECONV_MBV2, 192, (64,) * 3).layers(17)}
    assert (layers["last.conv"].h_in, layers["last.conv"].w_in) == (6, 5)
    assert (layers["head.deconv0.up"].h_out, layers["head.deconv0.up"].w_out) == (12, 10)
    assert (layers["head.deconv1.up"].h_in, layers["head.deconv1.up"].w_in) == (12, 9)


def test_without_the_last_convolution_the_head_reads_the_last_stage():
    arch = get_arch("deconv-reduced")
    layers = [layer.name for layer in arch.layers(17)]
    assert "last.conv" not in layers
    (first,) = (layer for layer in arch.layers(17) if layer.name == "head.deconv0.up")
    assert first.c_in == 320


def test_residuals_follow_the_active_widths():
    narrow = get_arch("simplebaseline-mbv2").replace(stage3__width=96, stage4__width=96)
    layers = {layer.name: layer for layer in narrow.layers(17)}
    assert layers["stage4.block0.project"].add
    assert not layers["stage3.block0.project"].add


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"resolution": 200}, "multiple of 32"),
        ({"resolution": 0}, "'resolution' is a height in pixels from 64 to 4096"),
        ({"stage0__expansion": 6}, r"stage0\.expansion.*always 1 here"),
        ({"stage2__kernel": 4}, r"stage2\.kernel.*odd"),
        ({"stage6__depth": 0}, r"stage6\.depth"),
        ({"last_width": -1}, "last_width"),
        ({"head__deconv0__width": 0}, r"head\.deconv0\.width"),
        ({"head__deconv0__kernel": 5}, r"head\.deconv0\.kernel"),
        ({"head__deconv2__width": 0}, r"head\.deconv2\.kernel.*not 4 with width 0"),
        ({"head__deconv2__kernel": 0}, r"head\.deconv2\.kernel.*not 0 with width 256"),
        ({"head__deconv2__kernel": 1}, r"head\.deconv2\.kernel.*not 1 with width 256"),
        ({"stage7__width": 8}, r"no value 'stage7\.width'"),
    ],
)
def test_bad_values_name_the_culprit(change, culprit):
    with pytest.raises(InputError, match=culprit):
        get_arch("simplebaseline-mbv2").replace(**change)


def test_sizes_that_are_too_small_are_refused():
    with pytest.raises(InputError, match="at least 32 px on each side, not 40x30"):
        get_arch("deconv-reduced").layers(17, (40, 30))
    with pytest.raises(InputError, match="at least 1, not 0"):
        get_arch("deconv-reduced").layers(0)


def test_widths_come_in_lists_of_the_right_length():
    with pytest.raises(InputError, match="2 or 3 deconv steps, not 4"):
        deconv_arch(DECONV_MBV2, 256, (64,) * 4)
    with pytest.raises(InputError, match=r"6 values 'stage\{i\}\.width' here, not 7"):
        deconv_arch(DECONV_MBV3, 256, (64,) * 3, stages=(16, 24, 32, 64, 96, 160, 320))


# -- spaces ------------------------------------------------------------------------------------------------

ONLY_HEAD = {
    "kind": "deconv-mbv2",
    "resolutions": [256],
    "multipliers": [1],
    "depths": "base",
    "kernels": "base",
    "expansions": "base",
    "last_widths": "base",
    "deconv_kernels": [4],
}


def test_a_recipe_can_search_deconv_widths_alone():
    space = space_from_config(ONLY_HEAD, joints=17)
    assert [choice.name for choice in space.searched] == [f"head.deconv{i}.width" for i in range(3)]
    assert space.count() == space.nominal_count() == 343
    assert space.largest() == get_arch("simplebaseline-mbv2")
    assert space_from_config({**ONLY_HEAD, "base": "deconv-reduced"}).largest().number("last_width") == 0


def test_the_number_of_steps_is_one_gene_with_the_third_steps_values():
    space = space_from_config({**ONLY_HEAD, "deconvs": [2, 3], "deconv_kernels": [4, 2]})
    assert [choice.name for choice in space.searched][-1] == "head.deconv2"
    assert space.count() == (7 * 2) ** 2 * (7 * 2 + 1)
    steps = [DECONV_MBV2.deconv_steps(arch.as_dict()) for arch in space]
    assert steps.count(2) == (7 * 2) ** 2
    drawn = space.sample_genotypes(np.random.default_rng(0), 30_000)
    absent = sum(gene == 0 for gene in drawn[:, -1]) / len(drawn)
    assert absent == pytest.approx(1 / 15, abs=0.006)
    with pytest.raises(
        InputError, match=r"head\.deconv2\.width = 256, head\.deconv2\.kernel = 3 is not one of none"
    ):
        space.encode(get_arch("simplebaseline-mbv2").replace(head__deconv2__kernel=3))


def test_default_spaces():
    """Per stage 3 multipliers, 3 kernels, 3 expansions but in stage 0, a block less where there are two."""
    space = deconv_mbv2()
    assert space.nominal_count() == 4 * 3**8 * 3**7 * 3**6 * 2**5 * 2 * (7 * 3) ** 3
    assert get_arch("deconv-reduced") in space
    assert get_arch("simplebaseline-mbv2") in space
    assert get_arch("simplebaseline-mbv3") in deconv_mbv3()
    widths = {choice.name: choice.values for choice in deconv_mbv3().choices}
    assert widths["stage3.width"] == (40, 64, 80)
    assert widths["stage0.expansion"] == (100,)
    assert widths["last_width"] == (0, 960)


@pytest.mark.parametrize("space", [deconv_mbv2(), deconv_mbv3()], ids=["mbv2", "mbv3"])
def test_hidden_channels_are_distinct_wherever_expansions_are(space):
    offered = {choice.name: choice.values for choice in space.choices}
    for stage in range(1, len(space.family.stages)):
        for c_in in offered[f"stage{stage - 1}.width"]:
            expansions = offered[f"stage{stage}.expansion"]
            hidden = [space.family.hidden_channels(stage, 0, c_in, e) for e in expansions]
            assert hidden == sorted(set(hidden))


def test_expansions_that_round_to_one_network_are_refused():
    assert make_divisible(3 * 8 * 0.75) == make_divisible(3 * 8)
    with pytest.raises(InputError, match=r"'stage2\.expansion' 75 and 100 both make 24 channels of 8"):
        deconv_mbv3(base=deconv_arch(DECONV_MBV3, 256, (64,) * 3, stages=(8, 8, 16, 24, 32, 40)))


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"deconvs": 4}, "'deconvs' is 2, 3 or the list of both, not 4"),
        ({"deconvs": []}, "'deconvs'"),
        ({"deconvs": True}, "'deconvs'"),
        ({"deconvs": "3"}, "'deconvs'"),
        ({"deconvs": 2.0}, r"'deconvs' is 2, 3 or the list of both, not 2\.0"),
        ({"deconv_widths": [0]}, "'deconv_widths' is a list of positive numbers"),
        ({"deconv_widths": [[64], [64]]}, "each of the 3 parts"),
        ({"deconv_kernels": [5]}, r"head\.deconv0\.kernel"),
        ({"deconv_kernels": [2, 1, 4]}, r"head\.deconv0\.kernel"),
        ({"resolutions": [250]}, "multiple of 32"),
        ({"resolutions": [128, 200, 256]}, "multiple of 32"),
        ({"last_widths": "none"}, "'last_widths'"),
        ({"last_widths": [-5]}, "'last_widths'"),
        ({"last_widths": 64}, "'last_widths' is a list of numbers of channels, 0 for none, not 64"),
        ({"last_widths": [True]}, "'last_widths'"),
        ({"expansions": [[6]] * 7}, r"stage0\.expansion.*always 1 here"),
        ({"kernels": "bass"}, "'kernels' is a list of options"),
        ({"kernels": [3, 6, 7]}, r"stage0\.kernel"),
        ({"base": "litepose-s"}, "deconv-mbv2 arch, not litepose"),
        ({"base": "simplebaseline-mbv3"}, "deconv-mbv2 arch, not deconv-mbv3"),
        ({"base": {"stages": [8]}}, r"7 values 'stage\{i\}\.width'"),
        (
            {"base": {"last": -3}},
            r"^space\.base: .*'last_width' is a number of channels \(0 for none\)",
        ),
        ({"base": {"stages": 5, "deconvs": [8]}}, "unknown key 'deconvs'"),
        ({"deconv_width": [64]}, "did you mean 'deconv_widths'"),
        ({"joints": 0}, "joints"),
    ],
)
def test_bad_space_configs_name_the_culprit(changes, culprit):
    with pytest.raises(InputError, match=culprit):
        space_from_config({**ONLY_HEAD, **changes})


def test_a_last_convolution_may_be_narrower_than_the_last_stage():
    """Then the largest network is the widest of each part, as supernets need it, and not the dearest."""
    space = deconv_mbv2(
        **{"base": get_arch("deconv-reduced"), "resolutions": [256], "multipliers": [1], "depths": "base"},
        **{"kernels": "base", "expansions": "base", "last_widths": [0, 64], "deconv_widths": [64, 256]},
    )
    assert space.largest()["last_width"] == 64 and space.smallest()["last_width"] == 0
    dearest = space.arch({"last_width": 0})
    assert space.cost(dearest).macs > space.cost(space.largest()).macs
    found = space.costs(space.genotypes()).macs
    assert found.max() == space.cost(dearest).macs


def test_bases_of_the_wrong_family_are_refused():
    with pytest.raises(InputError, match="litepose arch, not deconv-mbv2"):
        litepose_native(base=get_arch("deconv-reduced"))
