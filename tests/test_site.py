"""The documentation's site: it builds without a warning, asks no other host for anything, and is complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.nas.test_plot_page import BROWSERS
from tests.test_readme import leaves

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="the packages that build the site (the extra 'docs') are absent",
)


class Page(HTMLParser):
    """Links, what is loaded, and the anchors of an HTML page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(values["href"])
        if "src" in values:
            self.loaded.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it."""
    folder = tmp_path_factory.mktemp("site")
    told = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout + told.stderr == ""
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """The site's pages by their files."""
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def local(page: Path, link: str) -> Iterator[tuple[Path, str]]:
    """Yield the file and anchor that a link leads to, unless it leaves the site."""
    parts = urlsplit(link)
    if not parts.scheme and not parts.netloc and page.name != "404.html":
        yield (page.parent / unquote(parts.path)).resolve() if parts.path else page, unquote(parts.fragment)


def test_links_and_anchors_lead_somewhere(pages: dict[Path, Page]) -> None:
    wrong = []
    for path, page in pages.items():
        for link in page.links:
            for target, anchor in local(path, link):
                if target.is_dir() or not target.exists():
                    wrong.append(f"{path.name}: {link}")
                elif anchor and target in pages and anchor not in pages[target].anchors:
                    wrong.append(f"{path.name}: {link}: no such heading")
    assert not wrong


def test_no_other_host_is_asked(site: Path, pages: dict[Path, Page]) -> None:
    """Links may lead away; nothing is loaded from elsewhere, neither by pages nor by style sheets."""
    for path, page in pages.items():
        for source in page.loaded:
            if not source.startswith("data:"):
                assert not urlsplit(source).netloc and not urlsplit(source).scheme, f"{path.name}: {source}"
                if path.name != "404.html":
                    assert (path.parent / unquote(urlsplit(source).path)).exists(), f"{path.name}: {source}"
        assert 'class="mermaid"' not in page.text, f"{path.name}: mermaid is loaded from another host"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


def test_the_reference_has_every_command_and_option(site: Path) -> None:
    _, *found = re.split(r'<h2 id="nas-([a-z-]+)">', (site / "commands.html").read_text(encoding="utf-8"))
    sections = dict(zip(found[::2], found[1::2], strict=True))
    for name, command in leaves().items():
        section = sections[name.replace(" ", "-")]
        for parameter in command.params:
            for word in (*parameter.opts, *parameter.secondary_opts):
                if word.startswith("--") and word != "--help":
                    assert f"<code>{word}</code>" in section, f"{name} {word}"


def test_every_object_of_the_api_is_told(site: Path, pages: dict[Path, Page]) -> None:
    """An object without a docstring would be left out in silence."""
    for source in sorted((ROOT / "docs" / "api").glob("*.md")):
        page = pages[site / "api" / f"{source.stem}.html"]
        for name in re.findall(r"^::: (\S+)$", source.read_text(encoding="utf-8"), flags=re.MULTILINE):
            assert name in page.anchors, f"{source.name}: {name}"


def test_it_opens_from_disk(site: Path, pages: dict[Path, Page]) -> None:
    """Its search needs its index as a script, and a worker's place taken by a frame."""
    assert (site / "search" / "search_index.js").read_text(encoding="utf-8").startswith("var __index")
    assert all("assets/iframe-worker.js" in page.text for page in pages.values())


def test_the_search_works_from_disk(site: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no headless browser on this machine")
    told = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"),
            *("--dump-dom", f"file://{site}/index.html?q=latency"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert re.search(r"[1-9]\d* matching documents", told.stdout), told.stderr[-2000:]
