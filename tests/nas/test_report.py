"""The report of a run: one file that loads nothing, says what is true, and what would make the rest."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

import nas.searching
from latency_tables import LatencyTable, Target
from latency_tables.fit import PieceFit
from latency_tables.table import Row
from nas.emitting import emit_from_run
from nas.report.page import write_report
from nas.run import RunDirectory
from nas.search import MACS, Evaluation
from nas.searching import run_searches
from search_spaces import Arch, InputError, RunError, space_from_config
from search_spaces.files import write_json
from search_spaces.layers import Piece
from tests.nas.conftest import Outcome
from tests.nas.scored import evaluation
from tests.nas.test_plot_page import BROWSERS, Page
from tests.nas.trust.made_up import report as made_up_trust

NOW = datetime(2030, 1, 2, 3, 4, tzinfo=UTC)
EVIL = "<script>alert(1)<b onclick=x> {{data}} &amp; ünï"
TARGET = Target("made-up", "any", "onnxruntime", "fp32", 1)
SECTIONS = [
    *("front", "network", "latency", "predictions", "trust", "training", "published", "exports", "images"),
    "reproduce",
]


class Report(Page):
    """A page with what a reader sees of it, by the section that it stands in."""

    def __init__(self, path: Path) -> None:
        self.sections: dict[str, str] = {}
        self._section = "head"
        self._hidden = False
        super().__init__(path)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        self._hidden = tag in ("style", "script")
        if tag == "section" and (key := dict(attrs).get("id")):
            self._section = key

    def handle_data(self, data: str) -> None:
        super().handle_data(data)
        if not self._hidden:
            self.sections[self._section] = self.sections.get(self._section, "") + data + " "

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def made_up_table(run: RunDirectory, joints: int) -> LatencyTable:
    """Return a table of all blocks of a run's space, as if they had been measured."""
    space = space_from_config(run.recipe.space, "space", joints=joints)
    rows = {}
    for block in space.block_frequencies():
        ms = sum(layer.macs for layer in block.layers) / 1e8 + 0.01
        rows[block] = Row(ms, 0.9 * ms, 1.1 * ms, 5, "measured-here", "made up")
    return LatencyTable(TARGET, rows)


@pytest.fixture(scope="module")
def whole_once(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run in which everything was done; nobody may change it, take :func:`whole`."""
    folder = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(trained_once, folder)
    run = RunDirectory.open(folder)
    made_up_table(run, 17).save(folder / "tables" / f"{TARGET.name}.csv")
    with pytest.MonkeyPatch.context() as patched:

        def evaluate(self: object, arch: Arch, rival: object = None) -> Evaluation:
            return evaluation(arch)

        patched.setattr(nas.searching.SearchEvaluator, "evaluate", evaluate)
        patched.setattr(nas.searching, "draw_study", lambda *arguments, **options: None)
        run_searches(run, ["macs<=6M", f"latency@{TARGET.name}<=1ms"])
        patched.undo()
    emit_from_run(run, max_macs="6M", folder=folder / "emitted" / "net")
    yield folder


@pytest.fixture(autouse=True)
def own_tables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the package's tables out of most tests, which takes half of their time."""
    if "every_table" not in request.fixturenames:
        names = lambda tables, run: [p.stem for p in sorted((run.folder / "tables").glob("*.csv"))]  # noqa: E731
        monkeypatch.setattr("nas.report.latencies.known_targets", names)


@pytest.fixture(scope="module", autouse=True)
def fitted_once() -> Iterator[None]:
    """Let equal tables, of which there are few here, be fitted once."""
    known: dict[tuple[object, ...], PieceFit] = {}

    def fit(rows: dict[Piece, float], checks: Collection[Piece] = ()) -> PieceFit:
        key = (frozenset(rows.items()), frozenset(checks))
        if key not in known:
            known[key] = PieceFit(rows, checks)
        return known[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("latency_tables.predictor.PieceFit", fit)
        yield


@pytest.fixture
def every_table() -> None:
    """All tables that commands know."""


@pytest.fixture
def whole(whole_once: Path, tmp_path: Path) -> RunDirectory:
    """A copy of a run in which everything was done."""
    shutil.copytree(whole_once, tmp_path / "run")
    return RunDirectory.open(tmp_path / "run")


def change_card(run: RunDirectory, **changes: Any) -> None:
    """Change what the card of the emitted network says."""
    path = run.folder / "emitted" / "net" / "card.json"
    write_json(path, {**json.loads(path.read_text()), **changes})


def test_it_tells_what_is_known(whole: RunDirectory, tmp_path: Path) -> None:
    exported = {
        **{"file": "exports/net-int8.onnx", "format": "onnx", "runtime": "onnxruntime", "precision": "int8"},
        **{"size_bytes": 123_456, "max_rel_error": 0.0123, "within_tolerance": False},
        "ap": {"value": 0.25, "low": 0.2, "high": 0.3},
        "difference": {"value": -0.0125, "low": -0.02, "high": 0.001},
    }
    verified = {
        **{"file": "model.onnx", "target": {"name": "my-pi"}, "within_interval": True, "date": "2030-01-01"},
        "measured": {"median_ms": 12.5, "p10_ms": 12.0, "p90_ms": 13.0},
        "predicted": {"ms": 11.5, "low_ms": 10.0, "high_ms": 13.5},
        "budget": {"ms": 20, "met": True},
        "notices": ["the device was warm"],
    }
    certified = {
        **{"file": "exports/net.ncnn.param", "format": "ncnn", "precision": "fp16", "max_rel_error": 2e-3},
        "runtime": {"name": "ncnn", "version": "1"},
        "ap": {
            "file": {"value": 0.41, "low": 0.31, "high": 0.51},
            "torch": {"value": 0.42, "low": 0.32, "high": 0.52},
            "difference": {"value": -0.002, "low": -0.004, "high": 0.001},
            **{"tolerance": 0.005, "sure": True, "on": "6 images"},
        },
    }
    exported |= {"images": 40, "sha256": {"net-int8.onnx": "b" * 64}}
    former = {**verified, "file": "exports/net-int8.onnx", "file_sha256": "a" * 64}
    change_card(whole, exports=[exported, certified], verified=[verified, former], notices=["mind the step"])
    told = write_report(whole, tmp_path / "report", now=NOW)
    path = tmp_path / "report.html"
    assert told["file"] == str(path) and told["bytes"] == path.stat().st_size < 1_000_000
    assert told["sections"] == SECTIONS and told["problems"] == []
    page = Report(path)
    parts = page.sections
    card = json.loads((whole.folder / "emitted" / "net" / "card.json").read_text())
    ap, ends = card["ap"]["stats"]["AP"], card["ap"]["interval"]
    assert f"AP {ap:.3f} ({ends['low']:.3f} to {ends['high']:.3f})" in parts["head"]
    assert "2030-01-02 03:04 UTC" in parts["head"] and card["id"] in parts["head"]
    assert "12.50 ms" in parts["head"] and "verified on my-pi with model.onnx" in parts["head"]
    assert MACS.format(card["cost"]["macs"]) in parts["head"]
    assert "macs <= 6 MMACs" in parts["head"]
    assert all(study in parts["front"] for study in whole.studies())
    blocks = card["arch"]
    assert "stage3.block0" in parts["network"] and str(blocks["resolution"]) in parts["network"]
    assert f"{TARGET.name}: " in parts["latency"] and "Every block was measured." in parts["latency"]
    assert "found (left)" in parts["predictions"]
    assert "nas trust" in parts["trust"] and "Not measured" in parts["trust"]
    assert "the training is complete" in parts["training"]
    assert "litepose-xs" in parts["published"] and "not comparable" in parts["published"]
    assert "HigherHRNet-W16" in parts["published"] and "HRNet-W48 " not in parts["published"].replace(
        "HigherHRNet-W48 ", ""
    )
    for words in (
        *("net-int8.onnx", "0.12 MB", "0.012", "0.250 (0.200 to 0.300)", "-0.0125 (-0.0200 to 0.0010)", "NO"),
        *("ncnn by ncnn", "0.410 (0.310 to 0.510)", "-0.0020 (-0.0040 to 0.0010)", "yes (at most 0.005 AP)"),
        *("my-pi", "12.50 ms", "met: yes", "the device was warm", "mind the step"),
        *("not measured by itself", ", 40 images", "net-int8.onnx (made again since: verify again)"),
    ):
        assert words in parts["exports"], words
    assert "coco17, 17 joints" in parts["images"]
    net = whole.folder / "emitted" / "net"
    assert f"nas emit {whole.folder} --arch {net / 'arch.json'} --output {net}" in parts["reproduce"]
    assert "--max-macs 6000000" in parts["reproduce"] and "--seed 0" in parts["reproduce"]
    assert "--fine-tune" not in parts["reproduce"]
    digest = hashlib.sha256((whole.folder / "emitted" / "net" / "model.onnx").read_bytes()).hexdigest()
    assert digest in parts["reproduce"]
    # The studies together, as 'nas plot' draws them.
    assert {mark for network in page.data["networks"] for mark in network["marks"]} == {
        "best under 6 MMACs",
        f"best under 1 ms on {TARGET.name}",
    }


def test_the_search_commands_are_taken_by_the_parser(
    whole: RunDirectory, tmp_path: Path, nas_: Callable[..., Outcome]
) -> None:
    """What is printed to make it again finds the study that is there; fine-tuning is part of it."""
    before = whole.studies()
    tuned = "nas emit run --arch a --output b --fine-tune 3 --teacher 'a teacher' --learning-rate 0.5"
    difference = {"value": 0.1, "low": -0.05, "high": 0.25}
    val = {"before": 0.25, "after": 0.35, "difference": difference}
    fine_tuned = {"epochs": 3, "kept": True, "val": val}
    change_card(whole, fine_tuned=fine_tuned, reproduce={"commands": ["nas train", tuned]})
    write_report(whole, tmp_path / "report.html", pictures=False)
    commands = re.findall(r"^nas search .*$", Report(tmp_path / "report.html").sections["reproduce"], re.M)
    assert len(commands) == 2
    assert (
        "from 0.250 to 0.350, a difference of 0.100 (-0.050 to 0.250)"
        in (Report(tmp_path / "report.html").sections["head"])
    )
    (emit,) = re.findall(r"^nas emit .*$", Report(tmp_path / "report.html").sections["reproduce"], re.M)
    assert "/net --fine-tune 3 --teacher 'a teacher' --learning-rate 0.5 " in emit
    for command, study in zip(commands, whole.studies(), strict=True):
        assert f"--name {study}" in command and "--population 2 " in command
        assert nas_(*shlex.split(command)[1:]).code == 0  # finished, so it is only told again
    assert whole.studies() == before


def test_it_is_sound_and_accessible(whole: RunDirectory, tmp_path: Path, every_table: None) -> None:
    write_report(whole, tmp_path / "report.html", now=NOW)
    page = Report(tmp_path / "report.html")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert max(Counter(ids).values()) == 1
    targets = [str(attributes["href"]) for attributes in page.attributes("a")]
    assert targets and all(target[0] == "#" and target[1:] in ids for target in targets)
    images = page.attributes("img")
    assert len(images) == 12 and all(
        re.search(r"\d (person|people) (found|annotated)", str(a["alt"])) for a in images
    )
    assert all(str(a["src"]).startswith("data:image/jpeg;base64,") for a in images)
    assert all(len(str(a["src"])) <= 60_100 for a in images)
    assert all(a.get("aria-label") for a in page.attributes("svg") if a.get("role") == "img")
    names = [tag for tag, _ in page.tags]
    assert names.count("h1") == 1 and names.count("h2") == len(SECTIONS)
    assert names.count("th") > 20 and all("scope" in a for a in page.attributes("th"))
    assert page.attributes("html")[0]["lang"] == "en"
    assert (
        "raspberry-pi-4" in page.sections["latency"] and "estimated, not measured" in page.sections["latency"]
    )
    assert any(a.get("name") == "viewport" for a in page.attributes("meta"))


def test_it_loads_nothing_and_allows_nothing(whole: RunDirectory, tmp_path: Path) -> None:
    write_report(whole, tmp_path / "report.html", now=NOW)
    page, text = Report(tmp_path / "report.html"), (tmp_path / "report.html").read_text()
    assert set(re.findall(r"\w+://[^\s\"')<]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base", "form"}
    assert not [a for _, a in page.tags if "style" in a or any(name.startswith("on") for name in a)]
    policy = str(page.attributes("meta")[1]["content"])
    assert policy.startswith("default-src 'none';") and "img-src data:" in policy
    for kind, name in (("style-src", "style"), ("script-src", "script")):
        digest = base64.b64encode(hashlib.sha256(page.text(name).encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy
    write_report(whole, tmp_path / "again.html", now=NOW)
    assert (tmp_path / "again.html").read_text() == text


def test_nothing_that_people_write_becomes_markup(whole: RunDirectory, tmp_path: Path) -> None:
    recipe = whole.folder / "recipe.yaml"
    recipe.write_text(re.sub("^name: .*$", f"name: '{EVIL}'", recipe.read_text(), flags=re.M))
    environment = {"command": EVIL, "versions": {EVIL: EVIL}, "python": EVIL}
    write_json(whole.folder / "environment.json", environment)
    change_card(
        whole,
        exports=[{"file": EVIL, "format": EVIL, "runtime": EVIL, "precision": EVIL}],
        verified=[{"file": EVIL, "target": {"name": EVIL}, "notices": [EVIL]}],
        notices=[EVIL],
    )
    (whole.folder / "emitted" / "net").rename(whole.folder / "emitted" / EVIL.replace("/", ""))
    write_report(RunDirectory.open(whole.folder), tmp_path / "report.html", now=NOW)
    page = Report(tmp_path / "report.html")
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    for part in ("head", "exports", "reproduce"):
        assert EVIL in page.sections[part], part
    assert page.text("title").startswith(EVIL)


# -- states ------------------------------------------------------------------------------------------------


def shown(run: RunDirectory, folder: Path, **options: Any) -> tuple[Report, dict[str, Any]]:
    told = write_report(run, folder / "state.html", now=NOW, **options)
    return Report(folder / "state.html"), told


def test_a_run_that_has_just_begun(whole: RunDirectory, tmp_path: Path) -> None:
    begun = RunDirectory.create(tmp_path / "begun", whole.recipe)
    page, told = shown(begun, tmp_path)
    assert told["problems"] == [] and [tag for tag, _ in page.tags].count("script") == 0
    assert "this is the largest network of the space" in page.sections["head"]
    assert "nas train" in page.sections["front"] and "not trained yet" in page.sections["training"]
    assert "not emitted yet" in page.sections["predictions"] and "nas emit" in page.sections["exports"]


def test_trained_then_searched(whole: RunDirectory, tmp_path: Path) -> None:
    shutil.rmtree(whole.folder / "emitted")
    page, told = shown(whole, tmp_path)
    assert told["problems"] == [] and "it is not emitted yet" in page.sections["head"]
    assert "on the search images, with the supernet's weights" in page.sections["head"]
    shutil.rmtree(whole.folder / "search")
    page, told = shown(whole, tmp_path)
    assert told["problems"] == [] and "nas search" in page.sections["front"]
    assert "AP on the search images" in (tmp_path / "state.html").read_text()


def test_without_tables_there_are_operations_alone(
    whole: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.report.latencies.known_targets", lambda *_: [])
    page, told = shown(whole, tmp_path, pictures=False)
    assert "only its operations are known" in page.sections["latency"]
    assert "nas profile" in page.sections["latency"] and "ms on" not in page.sections["published"]
    assert "no-pictures" in page.sections["predictions"] and told["problems"] == []


def test_what_was_trusted_is_told(whole: RunDirectory, tmp_path: Path) -> None:
    context = json.loads((whole.study(whole.studies()[0]) / "result.json").read_text())["context"]
    replace(made_up_trust(), context=context).save(whole.folder)
    page, _ = shown(whole, tmp_path, pictures=False)
    assert "Kendall tau" in page.sections["trust"] and "20, 1 training each" in page.sections["trust"]
    replace(made_up_trust(), context={**context, "supernet": "other"}).save(whole.folder)
    page, _ = shown(whole, tmp_path, pictures=False)
    assert "another supernet since it was measured" in page.sections["trust"]


def test_data_that_are_not_at_hand(whole: RunDirectory, tmp_path: Path) -> None:
    away = {"annotations": "gone.json", "images": "gone"}
    recipe = whole.folder / "recipe.yaml"
    values = yaml.safe_load(recipe.read_text())
    values["data"]["val"] = {**values["data"]["val"], **away, "synthetic": None}
    recipe.write_text(yaml.safe_dump(values))
    page, told = shown(RunDirectory.open(whole.folder), tmp_path)
    assert len(told["problems"]) == 1 and "gone.json" in told["problems"][0]
    assert "gone.json" in page.sections["head"] and "What could not be read" in page.sections["head"]
    assert "not at hand" in page.sections["predictions"] and "cannot be opened" in page.sections["images"]
    assert page.data["networks"]


@pytest.mark.parametrize(
    "name", ["study", "card", "environment.json", "trust/trust.json", "table", "model", "validation.csv"]
)
def test_what_is_damaged_is_named(whole: RunDirectory, tmp_path: Path, name: str) -> None:
    study = whole.study(whole.studies()[0]) / "result.json"
    path = {
        **{"study": study, "card": whole.folder / "emitted" / "net" / "card.json"},
        **{"table": whole.folder / "tables" / f"{TARGET.name}.csv"},
        "model": whole.folder / "emitted" / "net" / "model.safetensors",
    }.get(name, whole.folder / name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b'{"half": \xff')
    page, told = shown(whole, tmp_path, pictures=name == "model")
    assert told["sections"] == SECTIONS
    if name == "validation.csv":
        assert told["problems"] == []
    elif name == "trust/trust.json":
        assert "not readable" in page.sections["trust"]
    else:
        assert any(path.name in line or path.stem in line for line in told["problems"]), told["problems"]
        assert path.stem in page.sections["head"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"arch": 3}', '{"arch": {"family": "nope"}}', "null"])
def test_cards_of_any_form(whole: RunDirectory, tmp_path: Path, content: str) -> None:
    (whole.folder / "emitted" / "net" / "card.json").write_text(content)
    page, told = shown(whole, tmp_path, pictures=False)
    assert len(told["problems"]) == 1 and "card" in told["problems"][0]
    assert "it is not emitted yet" in page.sections["head"]


@pytest.mark.parametrize("value", [None, "text", [1], {"stats": 3, "interval": [1], "a": {"b": 1}}])
def test_parts_of_a_card_of_any_form(whole: RunDirectory, tmp_path: Path, value: Any) -> None:
    parts = ("ap", "latency", "chosen", "onnx", "exports", "verified", "notices", "cost", "skeleton")
    change_card(whole, **dict.fromkeys(parts, value))
    _, told = shown(whole, tmp_path, pictures=False)
    assert told["sections"] == SECTIONS


def test_it_reads_while_another_command_is_at_work(whole: RunDirectory, tmp_path: Path) -> None:
    with whole.locked():
        _, told = shown(whole, tmp_path, pictures=False)
    assert told["problems"] == []


# -- options, and refusals ---------------------------------------------------------------------------------


def test_a_study_and_a_network_can_be_asked_for(whole: RunDirectory, tmp_path: Path) -> None:
    first, last = whole.studies()
    page, told = shown(whole, tmp_path, study=first, pictures=False)
    assert {m for n in page.data["networks"] for m in n["marks"]} == {"chosen"}
    for study in (first, last):
        page, told = shown(whole, tmp_path, study=study, pictures=False)
        assert [n["id"] for n in page.data["networks"] if n["marks"]] == [told["network"]]
    others = [n["id"] for n in page.data["networks"] if n["ap"] is not None and n["id"] != told["network"]]
    page, told = shown(whole, tmp_path, network=others[0], pictures=False)
    assert told["network"] == others[0] and "asked for" in page.sections["head"]
    page, told = shown(whole, tmp_path, network="net", pictures=False)
    assert "'net'" in page.sections["head"]


def test_what_cannot_be_done_is_refused(whole: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no study 'nope'"):
        write_report(whole, tmp_path / "a.html", study="nope")
    with pytest.raises(InputError, match=r"written as \.html, not as 'a\.pdf'"):
        write_report(whole, tmp_path / "a.pdf")
    with pytest.raises(InputError, match="abcdefabcdef"):
        write_report(whole, tmp_path / "a.html", network="abcdefabcdef")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        write_report(whole, tmp_path / "file" / "a.html", pictures=False)
    assert not (tmp_path / "a.html").exists()


def test_the_command(nas_: Callable[..., Outcome], whole: RunDirectory) -> None:
    told = nas_("report", whole.folder, "--no-pictures", "--json")
    assert told.code == 0 and json.loads(told.out)["file"] == str(whole.folder / "report.html")
    (whole.folder / "environment.json").write_text("{")
    told = nas_("report", whole.folder, "--no-pictures")
    assert told.code == 0 and told.out.strip() == str(whole.folder / "report.html")
    assert told.err.startswith("not in the report: ") and "environment.json" in told.err
    told = nas_("report", whole.folder.parent)
    assert told.code == 2 and "is no run directory" in told.err


# -- a real browser ----------------------------------------------------------------------------------------

_MEASURE = """
(() => {
  const told = { errors: window.troubles, width: document.documentElement.clientWidth,
    scroll: document.documentElement.scrollWidth };
  const all = (query) => [...document.querySelectorAll(query)];
  for (const each of all("details")) each.open = true;
  told.opened = document.documentElement.scrollWidth;
  told.rows = all("#networks tbody tr").length;
  all("#networks tbody tr")[0].click();
  told.selected = document.querySelector("aside h2").textContent;
  told.images = all("img").every((image) => image.complete && image.naturalWidth > 0);
  told.texts = all("svg.network").slice(0, 1).map((svg) => {
    const boxes = [...svg.querySelectorAll("text")].map((text) => text.getBoundingClientRect());
    let over = 0;
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
      const across = a.left < b.right - 0.5 && b.left < a.right - 0.5;
      if (across && a.top < b.bottom - 3 && b.top < a.bottom - 3) over += 1;
    }));
    return over;
  });
  told.background = getComputedStyle(document.body).backgroundColor;
  parent.postMessage(JSON.stringify(told), "*");
})();
"""
_WRAPPER = """<!DOCTYPE html><body><script>
const told = [];
addEventListener("message", (event) => {
  told.push(JSON.parse(event.data));
  if (told.length === 3) document.body.textContent = "TOLD" + JSON.stringify(told) + "END";
});
for (const width of [360, 768, 1280]) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 800; frame.src = "free.html";
  document.body.append(frame);
}
</script></body>"""


def chromium(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Return what a browser makes of a page: the page after its scripts ran, and what it logged."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser here ({', '.join(BROWSERS)})")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=5000", *options]
    told = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    return told


def test_a_browser_shows_it(whole: RunDirectory, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(whole, path, now=NOW)
    bare = chromium(path, tmp_path / "profile")
    assert "CONSOLE" not in bare.stderr, bare.stderr  # neither errors nor refusals of its policy
    assert bare.stdout.count('aria-selected="') >= 1
    free = re.sub(r"<meta http-equiv=[^>]*>", "", path.read_text())
    listen = "<script>window.troubles=[];addEventListener('error',(e)=>troubles.push(e.message))</script>"
    free = free.replace("<title>", listen + "<title>", 1)
    (tmp_path / "free.html").write_text(free.replace("</body>", f"<script>{_MEASURE}</script></body>"))
    (tmp_path / "wrapper.html").write_text(_WRAPPER)
    for scheme, background in (("1", "rgb(255, 255, 255)"), ("0", "rgb(18, 23, 29)")):
        shown = chromium(
            tmp_path / "wrapper.html", tmp_path / "profile", f"--blink-settings=preferredColorScheme={scheme}"
        )
        found = re.search(r"TOLD(.*)END", shown.stdout, re.S)
        assert found is not None, shown.stderr
        frames = json.loads(html.unescape(found[1]))
        assert sorted(frame["width"] for frame in frames)[0] <= 360
        for frame in frames:
            assert frame["errors"] == [] and frame["background"] == background
            assert frame["scroll"] <= frame["width"] and frame["opened"] <= frame["width"]
            assert frame["rows"] >= 1 and re.fullmatch("[0-9a-f]{12}.*", frame["selected"])
            assert frame["images"] is True and frame["texts"] == [0]
