"""The JSON configs of LitePose's research code: read and written, so that networks travel both ways."""

from __future__ import annotations

from typing import Any

from search_spaces.arch import Arch
from search_spaces.errors import InputError
from search_spaces.litepose import DECONVS, LITEPOSE, STAGE_STRIDES, STAGES, litepose_arch

_KEYS = ("img_size", "input_channel", "deconv_setting", "backbone_setting")
_STAGE_KEYS = ("num_blocks", "stride", "channel", "block_setting")


def is_research_config(value: dict[str, Any]) -> bool:
    """Return whether a JSON object looks like a config of the research code."""
    return "backbone_setting" in value


def _numbers(value: object, where: str, length: int | None = None) -> list[int]:
    if (
        not isinstance(value, list)
        or any(not isinstance(v, int) or isinstance(v, bool) for v in value)
        or (length is not None and len(value) != length)
    ):
        count = f"{length} " if length else ""
        raise InputError(f"{where} is a list of {count}whole numbers, not {value!r}")
    return value


def from_research_config(config: dict[str, Any], where: str = "research config") -> Arch:
    """Return the arch of a research config.

    A config lists ``[expansion, kernel]`` for every block; this toolkit's archs have one of each per stage,
    as all published configs do.

    Raises
    ------
    InputError
        If a key is missing or malformed, if strides are not LitePose's, or if the blocks of a stage differ.
    """
    for key in _KEYS:
        if key not in config:
            raise InputError(f"{where} lacks '{key}'")
    stages = config["backbone_setting"]
    if not isinstance(stages, list) or len(stages) != STAGES:
        raise InputError(f"{where}: 'backbone_setting' lists {STAGES} stages")
    widths, depths, kernels, expansions = [], [], [], []
    for i, stage in enumerate(stages):
        here = f"{where}: stage {i}"
        if not isinstance(stage, dict) or any(key not in stage for key in _STAGE_KEYS):
            raise InputError(f"{here} has the keys {', '.join(_STAGE_KEYS)}")
        if stage["stride"] != STAGE_STRIDES[i]:
            raise InputError(f"{here} has stride {stage['stride']}; LitePose's is {STAGE_STRIDES[i]}")
        blocks = stage["block_setting"]
        if not isinstance(blocks, list) or not blocks or len(blocks) != stage["num_blocks"]:
            raise InputError(
                f"{here}: 'block_setting' lists one [expansion, kernel] for each of num_blocks blocks"
            )
        pairs = [_numbers(block, f"{here}, block {j}", 2) for j, block in enumerate(blocks)]
        if any(pair != pairs[0] for pair in pairs):
            raise InputError(
                f"{here} mixes [expansion, kernel] settings {sorted({tuple(p) for p in pairs})};"
                " an arch of this toolkit has one per stage"
            )
        widths.append(stage["channel"])
        depths.append(len(blocks))
        expansions.append(pairs[0][0])
        kernels.append(pairs[0][1])
    try:
        return litepose_arch(
            config["img_size"],
            config["input_channel"],
            widths,
            _numbers(config["deconv_setting"], "'deconv_setting'", DECONVS),
            depths=depths,
            kernels=kernels,
            expansions=expansions,
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def to_research_config(arch: Arch) -> dict[str, Any]:
    """Return the research code's config of a LitePose arch.

    Raises
    ------
    InputError
        If the arch is of another family, or has deconv kernels other than 4, which the format cannot say.
    """
    if arch.family != LITEPOSE:
        raise InputError(f"only litepose archs have a research config, not {arch.family.name}")
    for i in range(DECONVS):
        kernel = arch[f"head.deconv{i}.kernel"]
        if kernel != 4:
            raise InputError(
                f"the research config cannot say head.deconv{i}.kernel = {kernel}; it builds 4x4 deconvs only"
            )
    return {
        "img_size": arch["resolution"],
        "input_channel": arch["stem_width"],
        "deconv_setting": [arch[f"head.deconv{i}.width"] for i in range(DECONVS)],
        "backbone_setting": [
            {
                "num_blocks": arch[f"stage{i}.depth"],
                "stride": STAGE_STRIDES[i],
                "channel": arch[f"stage{i}.width"],
                "block_setting": [[arch[f"stage{i}.expansion"], arch[f"stage{i}.kernel"]]]
                * arch.number(f"stage{i}.depth"),
            }
            for i in range(STAGES)
        ],
    }


def has_research_config(arch: Arch) -> bool:
    """Return whether :func:`to_research_config` can describe the arch."""
    return arch.family == LITEPOSE and all(arch[f"head.deconv{i}.kernel"] == 4 for i in range(DECONVS))
