"""The contract that every search space keeps; a new space is added to SPACES below and nowhere else."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import (
    Cost,
    InputError,
    arch_from_json,
    deconv_mbv2,
    deconv_mbv3,
    get_arch,
    litepose_arch,
    litepose_extended,
    litepose_native,
    space_from_config,
)

FEW = {
    "resolutions": (64, 96),
    "multipliers": (1, 0.5),
    "depths": (1, 2),
    "kernels": (3,),
    "deconv_widths": (8, 16),
    "deconv_kernels": (2, 4),
}
TINY_MBV2 = {"stem": 8, "stages": [8, 16, 16, 24, 24, 32, 32], "last": 64}
TINY_MBV3 = {"stem": 8, "stages": [8, 16, 16, 24, 24, 32], "last": 64}


def tiny(family, **changes):
    """A space of small deconv networks, as a recipe would state it."""
    base = TINY_MBV2 if family == "deconv-mbv2" else TINY_MBV3
    return space_from_config({"kind": family, "joints": 5, "base": base, **FEW, **changes})


TINY = litepose_arch(64, 8, (8, 16, 16, 24), (16, 8, 8), depths=(1, 2, 2, 1), kernels=3, expansions=2)
SPACES = {
    "native": litepose_native(),
    "native-17": litepose_native(17),
    "native-at-m": litepose_native(base=get_arch("litepose-m"), resolutions=(256, 448)),
    "extended": litepose_extended(),
    "extended-tiny": litepose_extended(
        5,
        base=TINY,
        resolutions=(64, 96),
        multipliers=(1, 0.5),
        depths=(1, 2),
        kernels=(3,),
        expansions=(1, 2),
    ),
    "unfused": litepose_native(base=get_arch("prune-s-unfused")),
    "deconv-mbv2": deconv_mbv2(),
    "deconv-mbv3": deconv_mbv3(14),
    "deconv-mbv2-tiny": tiny("deconv-mbv2", expansions=(1, 2), deconvs=2),
    "deconv-mbv3-tiny": tiny("deconv-mbv3", expansions=(50, 100)),
    "deconv-mbv2-steps": tiny("deconv-mbv2", expansions=(1, 2), deconvs=[2, 3]),
    "deconv-mbv3-steps": deconv_mbv3(deconvs=[2, 3], last_widths=[960]),
}
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(params=list(SPACES), ids=list(SPACES))
def space(request):
    return SPACES[request.param]


@given(seed=seeds)
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", list(SPACES))
def test_points_round_trip(name, seed):
    space = SPACES[name]
    arch = space.sample(np.random.default_rng(seed))
    assert arch in space
    assert space.decode(space.encode(arch)) == arch
    again = arch_from_json(json.loads(json.dumps(arch.to_json())))
    assert again == arch
    assert again.id == arch.id
    assert hash(again) == hash(arch)


@given(seed=seeds)
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", list(SPACES))
def test_moves_stay_inside_and_move(name, seed):
    space, rng = SPACES[name], np.random.default_rng(seed)
    a, b = space.sample(rng), space.sample(rng)
    mutant, child = space.mutate(a, rng), space.crossover(a, b, rng)
    assert mutant in space
    assert mutant != a
    assert child in space
    assert all(child[n] in (a[n], b[n]) for n in child)


def test_costs_of_many_equal_the_sum_over_layers(space):
    genotypes = space.sample_genotypes(np.random.default_rng(1), 40)
    costs = space.costs(genotypes)
    weights = space.price(genotypes, lambda block: sum(layer.macs for layer in block.layers))
    for i, genes in enumerate(genotypes):
        arch = space.decode(genes)
        assert Cost(costs.params[i], costs.macs[i], costs.macs_paper[i]) == Cost.of(space.layers(arch))
        assert weights[i] == costs.macs[i]
        assert space.cost(arch) == arch.cost(space.joints)


def test_layers_are_chained_and_within_the_work_list(space):
    work = set(space.distinct_layers())
    for genes in space.sample_genotypes(np.random.default_rng(2), 20):
        layers = space.layers(space.decode(genes))
        assert set(layers) <= work
        names = [layer.name for layer in layers]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["extended-tiny", "deconv-mbv2-steps", "deconv-mbv3-tiny"])
def test_every_listed_layer_is_used_by_some_network(name):
    space = SPACES[name]
    used = {layer for genes in space.genotypes(0, 3000) for layer in space.layers(space.decode(genes))}
    used |= {
        layer
        for genes in space.sample_genotypes(np.random.default_rng(0), 1500)
        for layer in space.layers(space.decode(genes))
    }
    assert used == set(space.distinct_layers())


def test_price_asks_only_for_what_is_executed(space):
    arch = space.sample(np.random.default_rng(4))
    asked = []
    space.price(space.encode(arch)[None], lambda block: asked.append(block) or 1.0)
    assert {layer for block in asked for layer in block.layers} == set(space.layers(arch))


def test_extremes(space):
    rng = np.random.default_rng(3)
    small, large = space.cost(space.smallest()), space.cost(space.largest())
    costs = space.costs(space.sample_genotypes(rng, 200))
    assert small.macs <= costs.macs.min() <= costs.macs.max() <= large.macs


@pytest.mark.parametrize(
    "space",
    [
        litepose_native(base=TINY, resolutions=(64, 96), multipliers=(1, 0.5)),
        tiny("deconv-mbv2", depths="base", expansions="base", multipliers=[1], deconvs=[3, 2]),
        tiny("deconv-mbv3", depths="base", multipliers=[1], expansions=[50, 100], deconv_kernels=[4]),
    ],
    ids=["litepose", "deconv-mbv2", "deconv-mbv3"],
)
def test_enumeration_is_complete_and_without_repeats(space):
    archs = list(space)
    assert len(set(archs)) == len(archs) == space.count()
    built = {tuple((layer.name, layer.key) for layer in space.layers(arch)) for arch in archs}
    assert len(built) == len(archs)
    genotypes = space.genotypes()
    assert [space.decode(g) for g in genotypes] == archs
    np.testing.assert_array_equal(space.genotypes(5, 9), genotypes[5:9])


def test_config_round_trip(space):
    again = space_from_config(json.loads(json.dumps(space.config())))
    assert again == space
    assert again.fingerprint == space.fingerprint
    assert hash(again) == hash(space)


def test_every_value_is_set_by_one_choice(space):
    named = [name for choice in space.choices for name in choice.names]
    assert tuple(named) == space.family.value_names
    assert dict(space.most) == space.largest().as_dict()
    for choice in space.choices:
        for gene in range(len(choice.values)):
            assert choice.gene(space.arch(choice.setting(gene))) == gene


def test_fingerprint_tells_spaces_apart():
    prints = [space.fingerprint for space in SPACES.values()]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("genotype", [[0], [0.5] * 23, [[0] * 23], [10**6] + [0] * 22, [-1] + [0] * 22])
def test_bad_genotypes_are_refused(genotype):
    with pytest.raises(InputError):
        SPACES["native"].decode(genotype)
    with pytest.raises(InputError):
        SPACES["native"].costs(np.array(genotype)[None])


def test_an_arch_outside_is_refused_with_what_differs():
    with pytest.raises(InputError, match=r"stage0\.width = 24 is not one of 8, 16, 32"):
        litepose_native(multipliers=(1, 0.5, 0.25)).encode(get_arch("litepose-m"))
