"""Layers: shapes, costs by hand, and the key's round trip."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import Cost, InputError, Layer

sizes = st.integers(1, 300)


@st.composite
def layers(draw):
    kind = draw(st.sampled_from(["conv", "dwconv", "deconv"]))
    c_in = draw(st.integers(1, 64))
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
        activation=draw(st.sampled_from(["none", "relu", "relu6"])),
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
    assert Cost.of([conv, deconv]).macs == conv.macs + deconv.macs


@pytest.mark.parametrize(
    "key",
    ["", "conv", "pool_k2_s2_g1_3x4x4_3", "conv_k1_s1_g1_3x4x4_3+relu+relu6", "conv_k1_s1_g1_3x4x4_3+bn+bn"],
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
