"""Layers: shapes, costs by hand, and the key's round trip."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import (
    Block,
    Cost,
    InputError,
    Layer,
    SearchSpace,
    deconv_mbv2,
    deconv_mbv3,
    layers_of,
    litepose_extended,
    piece_from_key,
)

sizes = st.integers(1, 300)


@st.composite
def layers(draw):
    kind = draw(st.sampled_from(["conv", "dwconv", "deconv", "se"]))
    c_in = draw(st.integers(1, 64))
    if kind == "se":
        squeeze = draw(st.integers(1, 32))
        return Layer("se", c_in, c_in, 1, 1, 1, draw(sizes), draw(sizes), bias=True, squeeze=squeeze)
    c_out = c_in if kind == "dwconv" else draw(st.integers(1, 64))
    return Layer(
        kind,
        c_in,
        c_out,
        draw(st.integers(1, 9)),
        draw(st.integers(1, 3)),
        c_in if kind == "dwconv" else 1,
        draw(sizes),
        draw(sizes),
        bias=draw(st.booleans()),
        norm=draw(st.booleans()),
        activation=draw(st.sampled_from(["none", "relu", "relu6", "hswish"])),
        add=draw(st.booleans()),
        name=draw(st.text(max_size=5)),
    )


@given(layers())
def test_key_round_trip(layer):
    assert Layer.from_key(layer.key) == layer


def test_costs_by_hand():
    conv = Layer("conv", 3, 32, 3, 2, 1, 11, 8, norm=True, activation="relu6")
    assert (conv.h_out, conv.w_out) == (6, 4)
    assert conv.macs == 6 * 4 * 9 * 3 * 32
    assert conv.params == 9 * 3 * 32 + 64
    assert conv.macs_paper == conv.macs + 3 * 32 * 24
    depthwise = Layer("dwconv", 8, 8, 7, 1, 8, 5, 5, bias=True)
    assert depthwise.macs == 25 * 49 * 8
    assert depthwise.params == 49 * 8 + 8
    deconv = Layer("deconv", 4, 6, 4, 2, 1, 5, 7)
    assert (deconv.h_out, deconv.w_out) == (10, 14)
    assert deconv.macs == 35 * 16 * 24
    assert deconv.macs_paper == 4 * deconv.macs
    gate = Layer("se", 72, 72, 1, 1, 1, 32, 24, bias=True, squeeze=24)
    assert (gate.h_out, gate.w_out) == (32, 24)
    assert gate.macs == 72 * 24 + 24 * 72
    assert gate.params == gate.macs + 24 + 72
    assert gate.macs_paper == gate.params  # an activation of 24 and one of 72 values
    assert Cost.of([conv, deconv]).macs == conv.macs + deconv.macs


@pytest.mark.parametrize(
    "key",
    [
        "",
        "conv",
        "se_k1_s1_g1_q08_8x4x4_8+bias",
        "pool_k2_s2_g1_3x4x4_3",
        "conv_k1_s1_g1_3x4x4_3+relu+relu6",
        "conv_k1_s1_g1_3x4x4_3+bn+bn",
    ],
)
def test_bad_keys_are_refused(key):
    with pytest.raises(InputError, match="not a layer key"):
        Layer.from_key(key)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"c_in": 0}, "c_in"),
        ({"kernel": 1.5}, "kernel"),
        ({"groups": 2}, "groups"),
        ({"kind": "pool"}, "kind"),
        ({"activation": "gelu"}, "activation"),
        ({"squeeze": 8}, "squeeze is 0 but for the kind 'se', not 8"),
        (
            {"kind": "se", "c_in": 4, "kernel": 1, "stride": 1, "bias": True},
            "squeeze is a positive integer, not 0",
        ),
        ({"kind": "se", "kernel": 1, "stride": 1, "bias": True, "squeeze": 8}, "c_out == c_in"),
        ({"kind": "se", "c_in": 4, "kernel": 1, "stride": 2, "bias": True, "squeeze": 8}, "stride"),
        ({"kind": "se", "c_in": 4, "kernel": 1, "stride": 1, "squeeze": 8}, "has a bias"),
        (
            {"kind": "se", "c_in": 4, "kernel": 1, "stride": 1, "bias": True, "add": True, "squeeze": 8},
            "addition",
        ),
    ],
)
def test_bad_layers_name_the_field(change, culprit):
    values = {
        "kind": "conv",
        "c_in": 3,
        "c_out": 4,
        "kernel": 3,
        "stride": 1,
        "groups": 1,
        "h_in": 8,
        "w_in": 8,
    }
    with pytest.raises(InputError, match=culprit):
        Layer(**{**values, **change})


# -- blocks ------------------------------------------------------------------------------------------------

EXPAND = "conv_k1_s1_g1_8x9x7_48+bn+relu6"
DEPTHWISE = "dwconv_k7_s2_g48_48x9x7_48+bn+relu6"


@pytest.mark.parametrize(
    "space",
    [litepose_extended(joints=17, resolutions=(96,)), deconv_mbv2(resolutions=(128,)), deconv_mbv3()],
    ids=["litepose", "deconv-mbv2", "deconv-mbv3"],
)
def test_every_block_of_a_space_is_told_by_its_key(space: SearchSpace) -> None:
    for block in space.distinct_blocks()[::7]:
        found = Block.from_key(block.key, block.name)
        assert (found, found.branches, found.name) == (block, block.branches, block.name)
        assert piece_from_key(block.key) == block
        assert layers_of(block) == block.layers
    layer = Layer.from_key(EXPAND)
    assert piece_from_key(EXPAND) == layer and layers_of(layer) == (layer,)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (f"{EXPAND}>dwconv_k7_s2_g24_24x9x7_24", "hands over 48x9x7, which dwconv.* does not take"),
        (f"{EXPAND}>{DEPTHWISE}>conv_k1_s1_g1_48x5x4_8+add+bn", "must add its input, 8x9x7"),
        ("conv_k1_s1_g1_8x9x7_8+add>conv_k1_s1_g1_8x9x7_8", "only the last layer adds"),
        ("deconv_k4_s2_g1_24x5x6_16|deconv_k4_s2_g1_32x5x6_16", "must add the other branch, 16x10x12"),
        ("deconv_k4_s2_g1_24x5x6_16|deconv_k4_s2_g1_32x5x6_8+add", "must add the other branch, 16x10x12"),
        (f"{EXPAND}|{EXPAND}|{EXPAND}", "one or two branches"),
        (f"{EXPAND}>", "'' is not a layer key"),
        (f"({EXPAND}>{DEPTHWISE})", "is not a layer key"),
        (f"({EXPAND}", "is not a layer key"),
        ("()", "'' is not a layer key"),
        ("|", "'' is not a layer key"),
    ],
)
def test_blocks_that_do_not_fit_together_are_refused(key: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        piece_from_key(key)
    assert "\n" not in str(told.value)


def test_a_block_of_one_layer_is_told_from_the_layer() -> None:
    layer = Layer.from_key(EXPAND)
    block = Block("last", (layer,))
    assert block.key == f"({EXPAND})"
    assert piece_from_key(block.key) == block
    assert piece_from_key(block.key) != layer


def test_branches_hold_all_layers() -> None:
    layer = Layer.from_key(EXPAND)
    for branches in ((2,), (1, 0), (0, 1)):
        with pytest.raises(InputError, match="one or two branches of at least one layer each"):
            Block("block", (layer,), branches)
