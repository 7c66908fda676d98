"""The pages that users read: every command, snippet, field and figure in them holds."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from latency_tables import RUNTIMES, get_runtime
from latency_tables.links import LinkDescription, read_linked_target
from nas.cli import app
from nas.config import to_plain
from nas.recipe import (
    DataConfig,
    EvaluateConfig,
    Recipe,
    SearchConfig,
    TopDownSettings,
    TrustConfig,
    recipe_from_mapping,
)
from nas.search import BudgetText, parse_budget, parse_constraints
from search_spaces import SPACES, get_arch, litepose_extended, litepose_native, named_archs
from search_spaces.deconv import deconv_space
from search_spaces.files import write_yaml
from supernet.distillation import DistillConfig
from supernet.pose.losses import LossWeights
from supernet.pose.skeleton import COCO17, Skeleton
from supernet.pose.transforms import Augmentation
from supernet.training import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
DOCS = tuple(sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")))
OWN = ("CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md")
PAGES = (
    *("README.md", "ARCHITECTURE.md", "experiments/README.md"),
    *(page for page in OWN if (ROOT / page).exists()),
    *DOCS,
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
USER_PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", *DOCS)}
"""What users read, by path."""
COMMAND: Any = typer.main.get_command(app)


def leaves(command: Any = COMMAND, prefix: str = "") -> dict[str, Any]:
    """Return the commands that do something by their full names: ``cost``, ``data check``."""
    if not hasattr(command, "commands"):
        return {prefix: command}
    return {
        name: leaf
        for word, each in command.commands.items()
        for name, leaf in leaves(each, f"{prefix} {word}".strip()).items()
    }


def fences(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def command_lines() -> Iterator[tuple[str, str]]:
    """Yield (page, command line) of everything that calls ``nas`` with arguments."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for block in fences(text, "sh"):
            for line in block.splitlines():
                if line.startswith("nas "):
                    yield page, line
        for code in re.findall(r"`(nas [^`]+)`", without_fences(text)):
            yield page, code
    for name, command in leaves().items():
        for line in re.findall(r"Example: (nas .+)", command.help or ""):
            yield f"nas {name} --help", line


def parse(line: str) -> tuple[str, dict[str, Any]]:
    """Parse a command line without running it; return the command's name and its parameters."""
    words = shlex.split(line, comments=True)[1:]
    names: list[str] = []
    with ExitStack() as stack:
        context, command = stack.enter_context(COMMAND.make_context("nas", list(words))), COMMAND
        while hasattr(command, "commands"):
            name, command, words = command.resolve_command(context, words)
            names.append(name)
            context = stack.enter_context(command.make_context(name, list(words), parent=context))
        return " ".join(names), dict(context.params)


LINES = sorted({line: page for page, line in command_lines()}.items())


@pytest.mark.parametrize(("line", "page"), LINES, ids=[line for line, _ in LINES])
def test_every_command_line_parses(line: str, page: str) -> None:
    words = shlex.split(line, comments=True)
    if any(name.split()[: len(words) - 1] == words[1:] for name in leaves()):
        return  # `nas train` or `nas data` in a sentence: the command as such
    if words == ["nas", "--version"]:
        return  # tests/nas/test_cli.py holds it
    name, values = parse(line)
    if name in ("search", "emit"):
        parse_constraints(
            max_macs=values["max_macs"],
            max_params=values["max_params"],
            max_latency=values["max_latency"] or [],
        )
        budgets = values.get("budget") or []
        for text in [budgets] if isinstance(budgets, str) else budgets:
            parse_budget(text).budget()
        BudgetText(min_ap=values.get("min_ap"), like=values.get("like")).budget()
    for setting in values.get("sets") or []:
        key, _, value = setting.partition("=")
        assert re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", key)
        assert value


def test_commands_are_told_apart() -> None:
    """The check above finds lines, and refuses what does not exist."""
    pages = {page for page, _ in command_lines()}
    assert set(PAGES) - set(DOCS) - set(OWN) <= pages
    assert len(LINES) > 20
    for wrong in (
        "nas train",
        "nas search runs/x --max-mac 1G",
        "nas fly away",
        "nas train a.yaml --resume=3",
    ):
        with pytest.raises(Exception, match=r"(?i)missing|no such|does not take|unexpected"):
            parse(wrong)


def test_every_command_is_documented() -> None:
    """In the README or a page under docs/."""
    shown = [
        " ".join(shlex.split(line, comments=True)[1:])
        for page, line in command_lines()
        if page in ("README.md", *DOCS)
    ]
    for name in leaves():
        assert any(f"{line} ".startswith(f"{name} ") for line in shown), name


def test_make_targets_exist() -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        asked = set(re.findall(r"(?:`|^)make ([a-z]+)", text, flags=re.MULTILINE))
        assert asked <= rules, page
    assert "make test" in README
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("make test")


def headings(page: Path) -> set[str]:
    """Return the anchors that a forge gives a page's headings, except those of the commands' reference."""
    titles = re.findall(r"^#+ (.+)$", without_fences(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for picture, link in re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", without_fences(text)):
            if link.startswith("https://"):
                continue
            name, _, anchor = link.partition("#")
            target = (ROOT / page).parent / name if name else ROOT / page
            # The demo's pictures come with its figures.
            assert target.exists() or (picture and "{{DEMO_" in text), f"{page}: {link}"
            if anchor:
                assert anchor in headings(target), f"{page}: {link}"


# -- figures and fields --------------------------------------------------------------------------------------


def table(first: str) -> list[list[str]]:
    """Return the rows, without the header, of the only table of users' pages whose header starts so."""
    lines = "\n".join(USER_PAGES.values()).splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_operations_are_those_of_the_code() -> None:
    published = {"litepose-xs": "1.2", "litepose-s": "5.0", "litepose-m": "7.8", "litepose-l": "13.7"}
    expected = []
    for name, paper in published.items():
        arch = get_arch(name)
        cost = arch.cost(joints=14)
        expected.append(
            [
                name,
                str(arch["resolution"]),
                f"{cost.params:,}",
                f"{cost.macs / 1e9:.4f} G",
                f"{cost.macs_paper / 1e9:.4f} G",
                f"{paper} G",
            ]
        )
        assert abs(cost.macs_paper / 1e9 / float(paper) - 1) < 0.01
    assert table("network") == expected
    assert f"{litepose_native().count():,} networks" in USER_PAGES["docs/python.md"]


def test_operations_of_top_down_networks_are_those_of_the_code() -> None:
    rows = table("top-down network")
    assert {row[0] for row in rows} == {
        name for name, arch in named_archs().items() if arch.family.name.startswith("deconv")
    }
    for name, size, params, macs in rows:
        arch = get_arch(name)
        cost = arch.cost(joints=17)
        assert size == "x".join(map(str, arch.size))
        assert (params, macs) == (f"{cost.params:,}", f"{cost.macs / 1e9:.4f} G")


FIELDS: Mapping[str, type[Any]] = {
    "train": TrainConfig,
    "train.augmentation": Augmentation,
    "train.loss": LossWeights,
    "train.distill": DistillConfig,
    "evaluate": EvaluateConfig,
    "evaluate.top_down": TopDownSettings,
    "search": SearchConfig,
    "trust": TrustConfig,
}


def check_default(cell: str, default: Any, field: str) -> None:
    """Compare a cell with a default; words stand for what cannot be written as a value."""
    if cell.startswith("`"):
        assert yaml.safe_load(cell.strip("`")) == to_plain(default), field
    else:
        assert default in (None, ()) or dataclasses.is_dataclass(default), field


@pytest.mark.parametrize("section", FIELDS)
def test_fields_and_defaults_are_those_of_the_code(section: str) -> None:
    described = {row[0].strip("`"): row[1] for row in table(f"`{section}`")}
    known = FIELDS[section]()
    nested = {f"{section}.{f.name}" for f in dataclasses.fields(known)} & set(FIELDS)
    own = {f.name for f in dataclasses.fields(known)} - {name.rpartition(".")[2] for name in nested}
    assert set(described) == own
    for name, cell in described.items():
        check_default(cell, getattr(known, name), f"{section}.{name}")


def test_fields_of_recipe_and_data_are_those_of_the_code() -> None:
    rows = {row[0].strip("`"): row[1] for row in table("field")}
    sections = {"data", "space", *(name for name in FIELDS if "." not in name)}
    fields = {f.name: f for f in dataclasses.fields(Recipe) if f.name not in sections}
    fields |= {f"data.{f.name}": f for f in dataclasses.fields(DataConfig)}
    assert set(rows) == set(fields)
    for name, cell in rows.items():
        needed = fields[name].default is dataclasses.MISSING
        assert (cell == "needed") == (needed and name != "name"), name
        if cell.startswith("`"):
            check_default(cell, fields[name].default, name)


def test_fields_of_spaces_are_those_of_the_code() -> None:
    rows = {row[0].strip("`"): row for row in table("`space`")}
    extended = inspect.signature(litepose_extended).parameters
    native = set(inspect.signature(litepose_native).parameters)
    assert set(rows) == {"kind", *extended} - {"joints"}
    assert all(kind in rows["kind"][2] for kind in SPACES if kind.startswith("litepose"))
    for name, (_, cell, meaning) in rows.items():
        if cell.startswith("`"):
            assert yaml.safe_load(cell.strip("`")) == list(extended[name].default), name
        if name != "kind":
            assert ("extended only" in meaning) == (name not in native), name


def test_fields_of_deconv_spaces_are_those_of_the_code() -> None:
    rows = {row[0].strip("`"): row for row in table("`space` of `deconv-mbv2`, `deconv-mbv3`")}
    parameters = inspect.signature(deconv_space).parameters
    assert set(rows) == set(parameters) - {"family", "joints"}
    for name, (_, cell, _) in rows.items():
        if cell.startswith("`"):
            default = parameters[name].default
            assert yaml.safe_load(cell.strip("`")) == (default if isinstance(default, int) else list(default))


# -- snippets ------------------------------------------------------------------------------------------------


YAML_BLOCKS = [block for text in USER_PAGES.values() for block in fences(text, "yaml")]


def yaml_block(name: str) -> Any:
    """Return the content of the only YAML block on users' pages that is headed ``# name``."""
    (block,) = (block for block in YAML_BLOCKS if block.startswith(f"# {name}\n"))
    return yaml.safe_load(block)


NO_RECIPES = ("kitchen.yaml", "phone.yaml", "skeleton.yaml")
"""YAML of users' pages that is something else; all other is recipes or parts of them (tests/test_docs.py)."""


def test_yaml_blocks_are_valid(tmp_path: Path) -> None:
    recipe = recipe_from_mapping(yaml_block("mine.yaml"), "the pages' recipe", tmp_path)
    assert recipe.name == "mine"
    mixed = {**yaml_block("mine.yaml"), **yaml_block("mixed.yaml")}
    sources = recipe_from_mapping(mixed, "the pages' sources", tmp_path).data.training
    assert [(each.complete, each.share) for each in sources.values()] == [(True, 2), (False, 1)]
    assert get_arch("litepose-s") in recipe.build_space(Skeleton.from_json(yaml_block("skeleton.yaml")))
    for name in ("kitchen.yaml", "phone.yaml"):
        write_yaml(tmp_path / name, yaml_block(name))
        target, link = read_linked_target(tmp_path / name)
        assert link is not None
        assert target.name == "kitchen-pi-onnxruntime-fp32-4t" or name == "phone.yaml"
    people = recipe_from_mapping(
        {"name": "people", **yaml_block("people.yaml")}, "the pages' top-down recipe", tmp_path
    )
    assert get_arch("deconv-reduced") in people.build_space(COCO17)
    assert people.data.val.boxes == tmp_path / "detector.json"
    named = {found for block in YAML_BLOCKS for found in re.findall(r"\A# (\S+\.yaml)$", block, re.MULTILINE)}
    assert named >= {*("mine.yaml", "mixed.yaml", "people.yaml"), *NO_RECIPES}


def test_precisions_of_runtimes_are_those_of_the_code() -> None:
    rows = {row[0].split("`")[1]: row[1] for row in table("runtime | precisions")}
    assert rows == {name: ", ".join(get_runtime(name).precisions) for name in RUNTIMES}


def test_fields_of_links_are_those_of_the_code() -> None:
    fields = {field.name for field in dataclasses.fields(LinkDescription)}
    assert {row[0].strip("`") for row in table("`link`")} == fields


TINY = """
data:
  train: {synthetic: {images: 24, seed: 1, size: [96, 96], people: [1, 2]}}
  val: {synthetic: {images: 6, seed: 2, size: [96, 96], people: [1, 2]}}
space:
  kind: litepose-extended
  base: {stem: 8, stages: [8, 16, 16, 24], deconvs: [16, 16, 8], depths: [1, 1, 1, 1]}
  resolutions: [64, 96]
  multipliers: [1, 0.5]
  depths: [1]
  kernels: [3]
  expansions: [2]
  deconv_kernels: [2, 4]
train: {epochs: 1, batch_size: 8}
evaluate: {multiple: 32, calibration_images: 8}
search: {evaluations: 3, population: 2}
"""


def test_python_snippets_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(TINY, encoding="utf-8")
    pytest.importorskip("pandas", reason="a snippet makes a data frame")
    first, second, third = fences(USER_PAGES["docs/python.md"], "python")
    names: dict[str, Any] = {}
    exec(compile(first, "python.md", "exec"), names)
    out = capsys.readouterr().out
    assert out.split()[0] == str(get_arch("litepose-s").cost(14).macs)
    assert re.findall(r"print\(.*# (\d+)", first) == out.split(), "what the comments say is printed"
    height, width = names["arch"].size
    assert tuple(names["quarter"].shape) == (1, 34, height // 4, width // 4)
    assert tuple(names["half"].shape) == (1, 17, height // 2, width // 2)
    exec(compile(second, "python.md", "exec"), names)
    assert len(names["study"].result.evaluated) == 3
    assert list((tmp_path / "runs/mine/emitted").glob("*/model.onnx"))
    assert "'stats'" in capsys.readouterr().out
    exec(compile(third, "python.md", "exec"), names)
    assert capsys.readouterr().out.startswith("litepose(")
    assert set(names["table"]["id"]) <= {r.arch.id for r in names["study"].result.evaluated}


def test_placeholders_are_known() -> None:
    """What is filled in by hand after a demo, and nothing else, may be left open."""
    for page in (*PAGES, "CHANGELOG.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert set(re.findall(r"\{\{.*?\}\}", text)) <= {"{{DEMO_TABLE}}", "{{DEMO_TIME}}"}, page
