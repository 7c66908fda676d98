"""Finding families, spaces and named archs by name; reading and writing arch files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from search_spaces import research
from search_spaces.arch import Arch, Family
from search_spaces.deconv import (
    DECONV_MBV2,
    DECONV_MBV3,
    DeconvFamily,
    deconv_alone,
    deconv_arch,
    deconv_mbv2,
    deconv_mbv3,
    encoder_from_config,
)
from search_spaces.errors import InputError, did_you_mean
from search_spaces.files import check_keys, read_json, write_json
from search_spaces.listed import ListedNetwork, listed_networks, refuse_listed
from search_spaces.litepose import (
    LITEPOSE,
    UNFUSED,
    base_from_config,
    litepose_arch,
    litepose_extended,
    litepose_native,
)
from search_spaces.space import SearchSpace

FAMILIES: Mapping[str, Family] = {
    family.name: family for family in (LITEPOSE, UNFUSED, DECONV_MBV2, DECONV_MBV3)
}
"""Every family by name."""

SPACES: Mapping[str, Callable[..., SearchSpace]] = {
    "litepose-native": litepose_native,
    "litepose-extended": litepose_extended,
    "deconv-mbv2": deconv_mbv2,
    "deconv-mbv3": deconv_mbv3,
}
"""Every kind of space by name; each value builds one."""

_COMMON = {"kind", "base", "joints", "resolutions", "multipliers"}
_ENCODER = {"depths", "kernels", "expansions", "deconv_kernels"}
_DECONV = {"last_widths", "deconvs", "deconv_widths"}
_SPACE_KEYS: Mapping[str, set[str]] = {
    "litepose-native": _COMMON,
    "litepose-extended": _COMMON | _ENCODER,
    "deconv-mbv2": _COMMON | _ENCODER | _DECONV,
    "deconv-mbv3": _COMMON | _ENCODER | _DECONV,
}


@cache
def named_archs() -> Mapping[str, Arch]:
    """Return the published networks by name.

    ``litepose-xs`` ... and the uniform ``prune`` baselines, ``prune-s-unfused`` (the small one without the
    fusion in its head), and networks of the deconv families:
    ``simplebaseline-mbv2``, ``simplebaseline-mbv3``, ``deconv-reduced``.
    """
    text = resources.files("search_spaces").joinpath("archs.json").read_text(encoding="utf-8")
    return {name: _built(**values) for name, values in json.loads(text).items()}


def _built(family: str = LITEPOSE.name, **values: Any) -> Arch:
    """Return the arch of a family with these widths."""
    rules = FAMILIES[family]
    if isinstance(rules, DeconvFamily):
        return deconv_arch(rules, **values)
    return litepose_arch(**values, fusion=rules != UNFUSED)


def _base_from_config(kind: str, value: object, where: str) -> Arch:
    """Return the arch that a mapping of widths describes, for a kind of space."""
    rules = FAMILIES.get(kind)
    if isinstance(rules, DeconvFamily):
        return encoder_from_config(rules, value, where)
    return base_from_config(value, where)


def arch_from_json(value: object, where: str = "arch") -> Arch:
    """Return the arch that a JSON value describes: our own form, or the research code's config.

    Raises
    ------
    InputError
        Naming ``where`` and the key that is missing, unknown or out of range.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a JSON object, not {type(value).__name__}")
    if research.is_research_config(value):
        return research.from_research_config(value, where)
    if isinstance(value.get("arch"), dict):
        return arch_from_json(value["arch"], where)
    family = value.get("family")
    if family is None:
        raise InputError(
            f"{where} lacks 'family' (one of {', '.join(FAMILIES)}), and is no research config either"
        )
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"{where} has the unknown family '{family}'{did_you_mean(str(family), FAMILIES)}")
    try:
        return FAMILIES[family].arch({key: v for key, v in value.items() if key != "family"})
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def read_arch(path: str | Path) -> Arch:
    """Return the arch in a JSON file (our form, the research code's, or an object with an ``arch`` entry)."""
    return arch_from_json(read_json(path, "arch file"), f"arch file '{path}'")


def write_arch(path: str | Path, arch: Arch) -> None:
    """Write the arch to a JSON file in our form."""
    write_json(path, arch.to_json())


def get_arch(name: str | Path) -> Arch:
    """Return a named arch, or the one in a JSON file if ``name`` is a path.

    Raises
    ------
    InputError
        If it is neither; the message names the nearest known name. A network that is known by its layers
        alone (:mod:`search_spaces.listed`) is refused by name.
    """
    known = named_archs()
    if str(name) in known:
        return known[str(name)]
    refuse_listed(str(name))
    path = Path(name)
    if path.suffix == ".json" or path.exists():
        return read_arch(path)
    raise InputError(f"'{name}' is neither a named arch nor an arch file{did_you_mean(str(name), known)}")


def get_network(name: str | Path) -> Arch | ListedNetwork:
    """Return a named arch, a network that is known by its layers alone, or the arch in a JSON file.

    Raises
    ------
    InputError
        If it is none of these; the message names the nearest known name.
    """
    text = str(name)
    if text in listed_networks():
        return listed_networks()[text]
    if text in named_archs() or Path(name).suffix == ".json" or Path(name).exists():
        return get_arch(name)
    hint = did_you_mean(text, [*named_archs(), *listed_networks()])
    raise InputError(f"'{text}' is neither a named arch nor an arch file{hint}")


def space_of(arch: Arch, joints: int) -> SearchSpace:
    """Return the space that holds this network alone.

    Raises
    ------
    InputError
        If there is none, as of a family that is not registered here.
    """
    if isinstance(arch.family, DeconvFamily):
        return deconv_alone(arch, joints)
    return litepose_native(joints, base=arch, resolutions=(arch.number("resolution"),), multipliers=(1.0,))


def space_from_config(config: object, where: str = "space", joints: int | None = None) -> SearchSpace:
    """Return the space that a recipe's mapping describes.

    Parameters
    ----------
    config
        ``kind`` and the keyword arguments of that kind. ``base`` is the name of an arch, the path of an arch
        file, an arch's JSON, or a mapping of widths; where it is not stated, the kind's own.
    where
        Where the mapping stands, for messages.
    joints
        Number of keypoints where the mapping states none; where it does, both must agree.

    Raises
    ------
    InputError
        Naming ``where`` and the culprit.
    """
    kind = check_keys(config, set().union(*_SPACE_KEYS.values()), where).get("kind")
    if not isinstance(kind, str) or kind not in SPACES:
        raise InputError(f"{where}: unknown kind '{kind}'{did_you_mean(str(kind), SPACES)}")
    arguments: dict[str, Any] = {
        k: v for k, v in check_keys(config, _SPACE_KEYS[kind], where).items() if k != "kind"
    }
    stated = arguments.pop("joints", joints)
    if stated is not None:
        if not isinstance(stated, int) or isinstance(stated, bool):
            raise InputError(f"{where}: 'joints' is a whole number, not {stated!r}")
        if joints is not None and stated != joints:
            raise InputError(f"{where}: 'joints' is {stated}, but the skeleton has {joints}")
        arguments["joints"] = stated
    base = arguments.pop("base", None)
    if isinstance(base, str):
        arguments["base"] = get_arch(base)
    elif isinstance(base, dict) and "family" in base:
        arguments["base"] = arch_from_json(base, f"{where}.base")
    elif base is not None:
        arguments["base"] = _base_from_config(kind, base, f"{where}.base")
    try:
        return SPACES[kind](**arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except TypeError:
        raise InputError(
            f"{where}: a list of numbers is needed where something else stands: {config}"
        ) from None
