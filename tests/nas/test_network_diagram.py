"""The drawing of a network shows every block, with texts that do not run into each other."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.markup import Markup, join, tag
from nas.network_diagram import network_svg, shade, write_network
from nas.page_charts import Bar, Line, bars, lines, thinned
from search_spaces import SPACES, Arch, InputError, get_arch, named_archs

SVG = "{http://www.w3.org/2000/svg}"


def drawn(arch: Arch, joints: int = 17, **options: object) -> ElementTree.Element:
    """Return a drawing after checking what holds for each: its blocks, its frame, its texts."""
    root = ElementTree.fromstring(network_svg(arch, joints, **options))  # type: ignore[arg-type]
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    blocks = arch.blocks(joints)
    told = [title.text or "" for title in root.iter(f"{SVG}title")]
    assert [text.split(":")[0] for text in told if "channels" in text] == [block.name for block in blocks]
    boxes = []
    for text in root.iter(f"{SVG}text"):
        long = 6.6 * len(text.text or "")
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        left = x - long / 2 if text.attrib.get("text-anchor") == "middle" else x
        assert left >= 0 and left + long <= width + 1 and 0 < y <= height, text.text
        boxes.append((left, left + long, y - 10, y + 2))
    for i, (left, right, top, bottom) in enumerate(boxes):
        for other in boxes[i + 1 :]:
            apart = left >= other[1] or other[0] >= right or top >= other[3] or other[2] >= bottom
            assert apart, (boxes[i], other)
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.attrib.get("x", 0)) + float(rect.attrib["width"]) <= width
    return root


@pytest.mark.parametrize("name", named_archs())
def test_named_networks(name: str) -> None:
    root = drawn(get_arch(name))
    joins = [title.text for title in root.iter(f"{SVG}title") if " to " in (title.text or "")[:40]]
    if name.startswith("litepose"):
        assert {"stem to output 1", "stage 2 to deconv 0", "deconv 1 to deconv 2"} <= set(joins)
    else:
        assert not [join for join in joins if join and join.startswith(("stage", "stem"))]


@pytest.mark.parametrize("kind", SPACES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_any_network_of_any_space(kind: str, seed: int) -> None:
    drawn(SPACES[kind](14).sample(np.random.default_rng(seed)), 14)


def test_costs_colour_it() -> None:
    arch = get_arch("litepose-xs")
    costs = {block.name: float(place) for place, block in enumerate(arch.blocks(14))}
    root = drawn(arch, 14, costs=costs, unit="ms", page=True)
    fills = [rect.attrib["fill"] for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    assert fills[0] == shade(0) and fills[-1] == shade(1) and len(set(fills)) > 20
    assert "color" not in root.attrib
    with pytest.raises(InputError, match=r"lack the blocks stage0\.block0, "):
        network_svg(arch, 14, {"stem": 1.0})


def test_a_file(tmp_path: Path) -> None:
    path = write_network(get_arch("deconv-reduced"), 17, tmp_path / "mine", name="<mine & yours>")
    assert path == tmp_path / "mine.svg"
    assert "<mine & yours>: 2" in ElementTree.parse(path).getroot().attrib["aria-label"]
    with pytest.raises(InputError, match=r"written as \.svg, not as 'mine\.png'"):
        write_network(get_arch("deconv-reduced"), 17, tmp_path / "mine.png")


# -- what drawings and pages are made of -------------------------------------------------------------------


class Reader(HTMLParser):
    """What a browser sees of a piece of markup."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


PRINTABLE = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\ufffe\uffff"))


@given(text=PRINTABLE, value=PRINTABLE)
def test_texts_stay_texts(text: str, value: str) -> None:
    read = Reader(tag("p", text, title=value))
    assert read.tags == ["p"] and read.text == text and read.attributes == [("title", value)]


def test_elements() -> None:
    assert tag("p", "a<b", tag("br"), None, 1.50, class_="x", hidden=True, id=None) == (
        '<p class="x" hidden>a&lt;b<br>1.5</p>'
    )
    assert join("<", Markup("<b>")) == "&lt;<b>" and tag("g", [tag("p"), tag("q")]) == "<g><p></p><q></q></g>"
    assert tag("p", "\x00\udcff") == "<p>\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}</p>"


@given(
    ys=st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=50),
    logarithmic=st.booleans(),
    steps=st.booleans(),
)
def test_any_line_can_be_drawn(ys: list[float], logarithmic: bool, steps: bool) -> None:
    chart = lines("a", [Line("b", range(len(ys)), ys, steps)], "step", logarithmic=logarithmic)
    assert chart is not None
    root = ElementTree.fromstring(chart)
    assert all(abs(float(text.attrib["y"])) < 400 for text in root.iter("text"))


def test_lines_without_points() -> None:
    assert lines("a", [], "step") is None
    assert lines("a", [Line("b", [], [])], "step") is None
    assert lines("a", [Line("b", [1.0], [float("nan")])], "step") is None


def test_long_lines_are_means() -> None:
    xs, ys, each = thinned(range(1000), [1.0, 3.0] * 500, most=100)
    assert len(xs) == 100 and each == 10 and set(ys) == {2.0} and xs[0] == 4.5
    assert thinned([1, 2], [3, float("inf")]) == ([1.0], [3.0], 1)


def test_bars() -> None:
    rows = [Bar("a", [1.0, None]), Bar("b", [2.0, 4.0], [False, True], "b: much")]
    text = bars("c", ["MMACs", "ms"], rows)
    ElementTree.fromstring(text)
    assert "not known" in text and text.count("hollow") == 1 and "<title>b: much</title>" in text
    ElementTree.fromstring(bars("none", ["MMACs"], []))
