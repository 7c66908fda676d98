"""Search spaces: what may be searched, and what each choice executes. Pure Python and NumPy, no torch.

>>> import numpy as np
>>> from search_spaces import get_arch, litepose_native
>>> space = litepose_native(joints=14)
>>> space.count()
245760
>>> get_arch("litepose-s").cost(joints=14).macs
3614139648
>>> space.sample(np.random.default_rng(0)) in space
True
"""

from search_spaces.arch import Arch, Family, Value
from search_spaces.deconv import (
    DECONV_MBV2,
    DECONV_MBV3,
    DeconvFamily,
    DeconvSpace,
    deconv_arch,
    deconv_mbv2,
    deconv_mbv3,
)
from search_spaces.errors import (
    BudgetError,
    InputError,
    LitePoseNasError,
    MissingLayerError,
    RunError,
    UnavailableError,
)
from search_spaces.layers import Block, Cost, Layer, Piece, layers_of, piece_from_key
from search_spaces.listed import ListedNetwork, listed_networks
from search_spaces.litepose import (
    LITEPOSE,
    UNFUSED,
    LitePoseFamily,
    LitePoseSpace,
    litepose_arch,
    litepose_extended,
    litepose_native,
)
from search_spaces.options import make_divisible
from search_spaces.registry import (
    FAMILIES,
    SPACES,
    arch_from_json,
    get_arch,
    get_network,
    named_archs,
    read_arch,
    space_from_config,
    space_of,
    write_arch,
)
from search_spaces.research import from_research_config, to_research_config
from search_spaces.space import Choice, Costs, Genotypes, SearchSpace

__all__ = [
    "DECONV_MBV2",
    "DECONV_MBV3",
    "FAMILIES",
    "LITEPOSE",
    "SPACES",
    "UNFUSED",
    "Arch",
    "Block",
    "BudgetError",
    "Choice",
    "Cost",
    "Costs",
    "DeconvFamily",
    "DeconvSpace",
    "Family",
    "Genotypes",
    "InputError",
    "Layer",
    "ListedNetwork",
    "LitePoseFamily",
    "LitePoseNasError",
    "LitePoseSpace",
    "MissingLayerError",
    "Piece",
    "RunError",
    "SearchSpace",
    "UnavailableError",
    "Value",
    "arch_from_json",
    "deconv_arch",
    "deconv_mbv2",
    "deconv_mbv3",
    "from_research_config",
    "get_arch",
    "get_network",
    "layers_of",
    "listed_networks",
    "litepose_arch",
    "litepose_extended",
    "litepose_native",
    "make_divisible",
    "named_archs",
    "piece_from_key",
    "read_arch",
    "space_from_config",
    "space_of",
    "to_research_config",
    "write_arch",
]
