"""The interactive page: one file that loads nothing, runs its own script only, and says what is true."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nas.beside import Beside, landmarks, latency_spans, published_data
from nas.latency import UpperEnd
from nas.plot import View
from nas.plot_page import page_data, write_page
from nas.search import MACS, PARAMS, Constraint, SearchResult, latency, search
from nas.search.noise import interval, steps
from search_spaces import InputError, RunError
from tests.nas.problems import Noisy, small_space
from tests.nas.test_beside import PHONE, phone

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> {{data}} &amp; \u2028 ünï"
BROWSERS = ("chromium", "chromium-headless-shell", "chrome-headless-shell", "google-chrome")


class Page(HTMLParser):
    """A page's elements, and the texts of its style and scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = f"{tag} {dict(attrs).get('type', '')}".strip()

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open, []).append(data)

    def text(self, name: str) -> str:
        return "".join(self.texts[name])

    @property
    def data(self) -> Any:
        return json.loads(self.text("script application/json"))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    found = search(
        small_space(), Noisy(), storage=tmp_path_factory.mktemp("search") / "a.journal", trials=24,
        population=8, sampler="nsga2", constraints=[Constraint(MACS, 0.9e9)], pricers=[UpperEnd(phone())],
    )  # fmt: skip
    assert found.infeasible
    last = found.evaluated[-1]
    early = replace(last, partial=True, resamples="")
    return replace(found, records=tuple(early if r.trial == last.trial else r for r in found.records))


@pytest.fixture(scope="module")
def around(result: SearchResult) -> Beside:
    predictors = {PHONE.name: phone()}
    places = {x: landmarks(x, result, predictors) for x in (MACS, PARAMS, latency(PHONE.name))}
    return Beside(latency_spans(result, predictors)[0], places)


def test_the_data_are_the_search(result: SearchResult, around: Beside) -> None:
    budget = Constraint(MACS, 0.6e9)
    view = View.of(result, budgets=[budget], beside=around)
    data = page_data(view, "runs/my run")
    assert data == json.loads(json.dumps(data))
    networks = data["networks"]
    assert len(networks) == len(result.records)
    assert {n["status"] for n in networks} == {"evaluated", "early", "priced"}
    for network, record in zip(networks, result.records, strict=True):
        assert (network["id"], network["ap"]) == (record.arch.id, record.ap)
        assert dict(zip(data["choices"], network["values"], strict=True)) == {
            choice.name: record.arch[choice.name] for choice in small_space().searched
        }
        known = None if record.partial or record.ap is None else interval(record)
        assert network["interval"] == (None if known is None else [known.low, known.high])
        told = network["latency"].get(f"latency[{PHONE.name}]")
        if record.ap is None:
            assert told is None
        else:
            assert told[0] < told[1] < told[2] == pytest.approx(record.latency_ms[PHONE.name])
    assert [axis["key"] for axis in data["axes"]] == ["macs", "params", f"latency[{PHONE.name}]"]
    best = result.best([budget])
    assert [n["id"] for n in networks if n["marks"]] == [best.arch.id]
    for axis, objective in zip(data["axes"], (MACS, PARAMS, latency(PHONE.name)), strict=True):
        front = result.front(objective, [budget])
        assert [networks[i]["id"] for i in axis["front"]] == [record.arch.id for record in front]
        assert axis["ties"] == [step.tie for step in steps(front)]
        over = {networks[i]["id"] for i in axis["over"]}
        assert over == {r.arch.id for r in result.evaluated if r.macs > budget.upper} and over
        costs = [networks[i]["costs"][axis["key"]] / axis["scale"] for i in axis["front"]]
        (left, right), (low, high) = axis["limits"]
        assert left <= min(costs) <= max(costs) <= right
        assert all(low <= networks[i]["interval"][0] for i in axis["barred"])
        assert all(networks[i]["interval"][1] <= high for i in axis["barred"])
    assert data["axes"][0]["budgets"] == [{"value": 0.6, "text": "0.6 GMACs"}]
    assert data["axes"][2]["budgets"] == []
    assert data["first"] == 0
    on_time = Constraint(latency(PHONE.name), 100.0)
    assert page_data(View.of(result, budgets=[on_time, budget]))["first"] == 2, "the first budget's axis"
    assert data["emit"] == "nas emit 'runs/my run' --arch"
    assert page_data(view)["emit"] is None


def test_published_aps_are_told_apart_unless_they_compare(result: SearchResult, around: Beside) -> None:
    unseen = replace(result, records=tuple(r for r in result.records if r.macs < 8e8 or r.ap is None))
    wide = View.of(unseen, budgets=[Constraint(MACS, 0.9e9)], beside=around)
    (xs,) = page_data(wide)["axes"][0]["published"]
    assert xs["text"] == "litepose-xs, 0.8829 GMACs" and xs["ap"] is None
    assert page_data(wide)["keys"] == []
    apart = replace(wide, beside=replace(around, data=published_data(14)))
    assert page_data(apart)["axes"][0]["published"][0]["ap"] is None
    (line,) = page_data(apart)["keys"]
    assert line.startswith("APs published on CrowdPose test, other images than here, so not comparable: lit")
    same = replace(wide, beside=replace(around, data=published_data(14), comparable=True))
    assert page_data(same)["axes"][0]["published"][0]["ap"] == 0.494
    assert "not comparable" not in page_data(same)["keys"][0]


def test_nothing_that_people_write_becomes_markup(result: SearchResult, tmp_path: Path) -> None:
    marks = {EVIL: result.best()}
    path = write_page(result, tmp_path / "page", chosen=marks, title=EVIL, caption=EVIL, run=EVIL)
    assert path == tmp_path / "page.html"
    page = Page(path)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2 and "img" not in tags
    assert page.text("title") == EVIL
    data = page.data
    assert data["title"] == data["caption"] == EVIL
    assert [n["marks"] for n in data["networks"] if n["marks"]] == [[EVIL]]
    assert "<" not in page.text("script application/json")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    # The script writes texts, never markup.
    script = page.text("script")
    assert not re.search(r"(inner|outer|Adjacent)HTML|document\.write|eval\(|new Function", script)


def test_the_page_loads_nothing_and_allows_nothing(result: SearchResult, tmp_path: Path) -> None:
    page = Page(write_page(result, tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert set(re.findall(r"\w+://[^\s\"')]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base", "form"}
    assert not [attributes for _, attributes in page.tags if {"src", "href", "style"} & set(attributes)]
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none';")
    for kind, name in (("style-src", "style"), ("script-src", "script")):
        digest = base64.b64encode(hashlib.sha256(page.text(name).encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert write_page(result, tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()


def test_what_cannot_be_shown_is_refused(result: SearchResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a page is written as \.html, not as 'page\.svg'"):
        write_page(result, tmp_path / "page.svg")
    with pytest.raises(RunError, match="evaluated no network yet"):
        write_page(replace(result, records=()), tmp_path / "page")
    assert not list(tmp_path.iterdir())


def test_the_script_can_be_read_by_an_engine() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here, which would read the script")
    script = Path(__file__).parents[2] / "nas" / "pages" / "pareto.js"
    told = subprocess.run([node, "--check", str(script)], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr


_CLICKS = """
window.addEventListener("error", (event) => { document.body.textContent = "TOLD" + event.message + "END"; });
const told = {};
const all = (query) => [...document.querySelectorAll(query)];
const count = () => all("#chart > svg circle").length;
(() => {
  told.title = document.getElementById("title").textContent;
  told.scripts = all("script").length;
  told.images = all("img").length;
  told.rows = all("tbody tr").map((row) => row.cells[0].textContent);
  told.chosen = document.querySelector("aside h2").textContent;
  told.stars = all("#chart > svg polygon").length;
  told.before = count();
  const over = document.querySelector('[data-kind="over"]');
  over.click();
  told.without = count();
  told.pressed = over.getAttribute("aria-pressed");
  over.click();
  told.after = count();
  all("tbody tr")[0].click();
  told.selected = document.querySelector("aside h2").textContent;
  told.command = document.querySelector("aside code").textContent;
  const axis = document.getElementById("axis");
  axis.value = "2";
  axis.dispatchEvent(new Event("change"));
  told.label = document.querySelector("#chart > svg").getAttribute("aria-label");
  told.fast = all("tbody tr").map((row) => row.cells[0].textContent);
  const svg = document.querySelector("#chart > svg"), box = svg.getBoundingClientRect();
  const spot = [...svg.querySelectorAll("circle")].find((each) => each.getAttribute("r") === "5.5");
  const scale = box.width / 880, place = { clientX: box.left + spot.getAttribute("cx") * scale,
    clientY: box.top + spot.getAttribute("cy") * scale, bubbles: true };
  svg.dispatchEvent(new PointerEvent("pointermove", place));
  told.tip = document.getElementById("tip").innerText;
  svg.dispatchEvent(new PointerEvent("pointerleave"));
  told.hidden = document.getElementById("tip").hidden;
  document.body.replaceChildren();
  document.body.textContent = "TOLD" + JSON.stringify(told) + "END";
})();
"""


def dumped(page: Path, profile: Path) -> str:
    """Return a page as a browser has it after its scripts ran."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser here ({', '.join(BROWSERS)})")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    told = subprocess.run(
        [*command, "--window-size=1300,900", "--virtual-time-budget=3000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    return told.stdout


def test_a_browser_shows_it(result: SearchResult, around: Beside, tmp_path: Path) -> None:
    budget = Constraint(MACS, 0.6e9)
    best = result.best([budget])
    path = write_page(
        result, tmp_path / "page", chosen={EVIL: best}, budgets=[budget], beside=around, title=EVIL, run="r"
    )
    shown = dumped(path, tmp_path / "profile")
    assert shown.count("<tr") == 1 + len(result.front(MACS, [budget]))  # its own script may run
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("</body>", "<script>document.title = 'ran'</script></body>"))
    assert "<title>ran" not in dumped(path, tmp_path / "profile")  # another may not
    # Without the policy, a script that clicks.
    free = re.sub(r"<meta http-equiv=[^>]*>", "", text)
    path.write_text(free.replace("</body>", f"<script>{_CLICKS}</script></body>"))
    found = re.search(r"TOLD(.*)END\s*</body>", dumped(path, tmp_path / "profile"), re.DOTALL)
    assert found is not None
    told = json.loads(html.unescape(found[1]))
    assert told["title"] == EVIL and (told["scripts"], told["images"]) == (3, 0)
    front = result.front(MACS, [budget])
    assert [row.split(",")[0] for row in told["rows"]] == [record.arch.id for record in front]
    assert told["chosen"] == best.arch.id
    outside = sum(r.macs > budget.upper for r in result.evaluated)
    assert told["before"] - told["without"] == outside > 0 and told["after"] == told["before"]
    assert told["pressed"] == "false"
    assert told["selected"].split(",")[0] == front[0].arch.id
    assert told["command"] == f"nas emit r --arch {front[0].arch.id}"
    fast = result.front(latency(PHONE.name), [budget])
    assert told["label"] == f"AP against Latency on {PHONE.name} (ms), upper end"
    assert [row.split(",")[0] for row in told["fast"]] == [record.arch.id for record in fast]
    cheapest = interval(fast[0])
    assert cheapest is not None and fast[0].arch.id in told["tip"]
    assert f"AP {fast[0].ap:.4f} [{cheapest.low:.4f}, {cheapest.high:.4f}]" in told["tip"]
    assert f"resolution {fast[0].arch['resolution']}" in told["tip"] and told["hidden"] is True
