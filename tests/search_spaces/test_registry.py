"""Names, files and recipes: what is found, and what a mistake is told."""

import json

import pytest

from search_spaces import (
    InputError,
    arch_from_json,
    from_research_config,
    get_arch,
    litepose_arch,
    named_archs,
    read_arch,
    space_from_config,
    to_research_config,
    write_arch,
)


@pytest.mark.parametrize("name", [name for name in named_archs() if name.startswith("litepose")])
def test_research_config_round_trip(name, tmp_path):
    arch = get_arch(name)
    config = to_research_config(arch)
    assert from_research_config(json.loads(json.dumps(config))) == arch
    path = tmp_path / "net.json"
    path.write_text(json.dumps(config))
    assert read_arch(path) == arch == get_arch(path)
    write_arch(path, arch)
    assert read_arch(path) == arch


def test_research_config_has_the_published_form():
    config = to_research_config(get_arch("litepose-xs"))
    assert config["img_size"] == 256
    assert config["input_channel"] == 16
    assert config["deconv_setting"] == [16, 24, 24]
    assert [s["num_blocks"] for s in config["backbone_setting"]] == [6, 8, 10, 10]
    assert config["backbone_setting"][1] == {
        "num_blocks": 8,
        "stride": 2,
        "channel": 32,
        "block_setting": [[6, 7]] * 8,
    }


def _broken(**changes):
    config = json.loads(json.dumps(to_research_config(get_arch("litepose-xs"))))
    config.update(changes)
    return config


@pytest.mark.parametrize(
    ("config", "culprit"),
    [
        (_broken(img_size="big"), "resolution"),
        (_broken(deconv_setting=[1, 2]), "deconv_setting"),
        (_broken(backbone_setting=[]), "4 stages"),
        ({"backbone_setting": []}, "img_size"),
    ],
)
def test_bad_research_configs(config, culprit):
    with pytest.raises(InputError, match=culprit):
        arch_from_json(config)


def test_mixed_blocks_are_refused_not_averaged():
    config = _broken()
    config["backbone_setting"][2]["block_setting"][3] = [6, 5]
    with pytest.raises(InputError, match="stage 2 mixes"):
        arch_from_json(config)


def test_deconv_kernels_do_not_fit_the_research_format():
    arch = litepose_arch(64, 8, (8, 8, 8, 8), (8, 8, 8), deconv_kernels=2)
    with pytest.raises(InputError, match=r"head\.deconv0\.kernel = 2"):
        to_research_config(arch)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(InputError, match="did you mean 'litepose-xs'"):
        get_arch("litepos-xs")


@pytest.mark.parametrize(
    ("value", "culprit"),
    [
        ([], "JSON object"),
        ({}, "family"),
        ({"family": "lightpose"}, "did you mean 'litepose'"),
        ({"family": "litepose"}, "resolution"),
        ({**get_arch("litepose-s").to_json(), "stem": 3}, "stem"),
    ],
)
def test_bad_archs_name_the_culprit(value, culprit):
    with pytest.raises(InputError, match=culprit):
        arch_from_json(value)


def test_bad_files_name_the_file_and_place(tmp_path):
    path = tmp_path / "net.json"
    path.write_text('{"family": ')
    with pytest.raises(InputError, match=r"net\.json.*line 1, column 12"):
        read_arch(path)
    with pytest.raises(InputError, match="does not exist"):
        read_arch(tmp_path / "none.json")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_arch(path)


@pytest.mark.parametrize(
    ("config", "culprit"),
    [
        ([], "mapping"),
        ({"kind": "litepose"}, "unknown kind 'litepose'"),
        ({"kind": ["litepose-native"]}, "unknown kind"),
        ({"kind": "litepose-native", "kernels": [3]}, "unknown key 'kernels'"),
        ({"kind": "litepose-native", "resolution": [256]}, "did you mean 'resolutions'"),
        ({"kind": "litepose-native", "resolutions": [256.5]}, "whole numbers"),
        ({"kind": "litepose-native", "resolutions": []}, "resolutions"),
        ({"kind": "litepose-native", "resolutions": 256}, "list"),
        ({"kind": "litepose-native", "multipliers": [-1]}, "positive"),
        ({"kind": "litepose-native", "base": "litepose-q"}, "did you mean"),
        ({"kind": "litepose-native", "base": {"stem": 8}}, "lacks 'stages'"),
        ({"kind": "litepose-extended", "kernels": [4]}, "odd"),
        ({"kind": "litepose-extended", "depths": [[1], [2]]}, "each of the 4 parts"),
        ({"kind": "litepose-native", "joints": 0}, "joints"),
        ({"kind": "litepose-native", "joints": "many"}, "joints"),
    ],
)
def test_bad_space_configs_name_the_culprit(config, culprit):
    with pytest.raises(InputError, match=culprit):
        space_from_config(config)


def test_joints_must_agree_with_the_skeleton():
    assert space_from_config({"kind": "litepose-native"}, joints=17).joints == 17
    with pytest.raises(InputError, match="skeleton has 17"):
        space_from_config({"kind": "litepose-native", "joints": 14}, joints=17)
