"""Pictures of a checked data set: a contact sheet, the worst of each kind of problem, histograms."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nas.plot_style import GRID, MUTED, STYLE, save_figure
from search_spaces import InputError
from search_spaces.files import write_bytes
from supernet.pose.annotations import check_below
from supernet.pose.census import SCALE_EDGES, PersonFacts
from supernet.pose.check import DatasetReport
from supernet.pose.dataset import read_image
from supernet.pose.draw import contact_sheet, draw_people
from supernet.pose.findings import Finding
from supernet.pose.skeleton import Skeleton

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Pictures", "draw_contact_sheet", "draw_histograms", "draw_pairs", "draw_problems"]

_CELL: Final = 260
"""Side of a sheet's square cells, pixels."""
_COLUMNS: Final = 6
_SHEET: Final = 24
"""Most pictures on a contact sheet."""
_WORST: Final = 6
"""Most pictures of one kind of problem."""
_CAPTION: Final = 16
"""Height of a line of text, pixels."""
_PAPER: Final = 255
_MARK: Final = (235, 40, 60)
_VISIBLE, _OCCLUDED, _ABSENT = "#277f8e", "#8fd0c8", "#e8ecf0"


@dataclass(frozen=True)
class Pictures:
    """A checked data set with its images.

    Attributes
    ----------
    report
        What was found.
    images
        Folder of the images, or the images by id, or None.
    """

    report: DatasetReport
    images: Path | Mapping[int, NDArray[np.uint8]] | None

    def read(self, image_id: int | None) -> NDArray[np.uint8] | None:
        """Return an image, None where it cannot be read."""
        facts = next((each for each in self.report.census.pictures if each.image_id == image_id), None)
        if facts is None or self.images is None:
            return None
        if not isinstance(self.images, Path):
            return self.images.get(facts.image_id)
        try:
            check_below(self.images, facts.file_name, "the image")
            return read_image(self.images / facts.file_name, facts.height, facts.width)
        except InputError:
            return None


def draw_contact_sheet(pictures: Pictures, folder: Path) -> list[Path]:
    """Write ``contact-sheet.jpg``: images spread evenly over those with labelled people, skeletons drawn."""
    report = pictures.report
    people = _people_by_image(report)
    chosen = [each for each in report.census.pictures if each.image_id in people]
    cells = []
    for place in np.unique(np.linspace(0, len(chosen) - 1, _SHEET).round().astype(int)) if chosen else ():
        facts = chosen[int(place)]
        image = pictures.read(facts.image_id)
        if image is not None and report.skeleton is not None:
            cells.append(_cell(image, people[facts.image_id], report.skeleton, facts.file_name, 1))
    return _write_sheet(cells, folder / "contact-sheet.jpg")


def draw_problems(pictures: Pictures, folder: Path) -> list[Path]:
    """Write ``problem-CODE.jpg`` for every error and warning that can be shown: its worst examples."""
    report = pictures.report
    people = {each.annotation_id: each for each in report.census.people}
    files = draw_pairs(report.findings, pictures, pictures, folder, "problem")
    for finding in report.findings:
        if finding.severity == "note" or report.skeleton is None:
            continue
        cells = []
        for example in finding.examples[:_WORST]:
            person = None if example.annotation_id is None else people.get(example.annotation_id)
            image = None if person is None else pictures.read(example.image_id)
            if person is not None and image is not None:
                cells.append(_close_up(image, person, report.skeleton, example.text))
        files += _write_sheet(cells, folder / f"problem-{finding.code}.jpg")
    return files


def draw_pairs(
    findings: Sequence[Finding], first: Pictures, second: Pictures, folder: Path, name: str
) -> list[Path]:
    """Write ``NAME-CODE.jpg`` for every kind of images that show the same, each beside the other."""
    files: list[Path] = []
    for finding in findings:
        cells = []
        for example in finding.examples[:_WORST]:
            images = first.read(example.image_id), second.read(example.other_id)
            if example.other_id is not None and images[0] is not None and images[1] is not None:
                cells += [_cell(image, [], None, example.text) for image in images if image is not None]
        files += _write_sheet(cells, folder / f"{name}-{finding.code}.jpg")
    return files


def draw_histograms(pictures: Pictures, folder: Path, title: str, resolutions: Sequence[int]) -> list[Path]:
    """Write ``histograms.png``: joints, people per image, sizes of people and images, crowdIndex."""
    census = pictures.report.census
    title = f"{title}: {len(census.pictures):,} images, {len(census.labelled):,} labelled people"
    if not census.labelled:
        return []
    graded = [each.crowd_index for each in census.pictures if each.crowd_index is not None]
    with rc_context(STYLE):
        figure = Figure(figsize=(12.4, 7.6), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
        panels: Any = figure.subplots(2, 3)
        _draw_joints(panels[0, 0], census.joint_counts())
        _draw_counts(panels[0, 1], census.people_per_image())
        _draw_scales(panels[0, 2], census.scales())
        _draw_relative(panels[1, 0], census.relative_scales(), resolutions)
        _draw_sizes(panels[1, 1], [(each.width, each.height) for each in census.pictures])
        if graded:
            _draw_crowding(panels[1, 2], graded)
        else:
            _draw_labelled(panels[1, 2], [int((p.keypoints[:, 2] > 0).sum()) for p in census.labelled])
        return list(save_figure(figure, [folder / "histograms.png"]))


# -- sheets --------------------------------------------------------------------------------------------------


def _people_by_image(report: DatasetReport) -> dict[int, list[PersonFacts]]:
    people: dict[int, list[PersonFacts]] = {}
    for each in report.census.labelled:
        people.setdefault(each.image_id, []).append(each)
    return people


def _cell(
    image: NDArray[np.uint8],
    people: Sequence[PersonFacts],
    skeleton: Skeleton | None,
    text: str,
    lines: int = 3,
) -> NDArray[np.uint8]:
    """Return the image scaled into a cell, skeletons drawn at that size, with lines of text below."""
    scale = _CELL / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)
    if people and skeleton is not None:
        joints = np.stack([each.keypoints for each in people])
        joints[..., :2] = (joints[..., :2] + 0.5) * scale - 0.5
        small = draw_people(small, joints, skeleton)
    cell = np.full((_CELL + lines * _CAPTION + 4, _CELL, 3), _PAPER, dtype=np.uint8)
    top, left = (_CELL - small.shape[0]) // 2, (_CELL - small.shape[1]) // 2
    cell[top : top + small.shape[0], left : left + small.shape[1]] = small
    told = textwrap.wrap(text.encode("ascii", "replace").decode(), 40)
    for number, line in enumerate(told[:lines]):
        spot = (2, _CELL + (number + 1) * _CAPTION - 3)
        cv2.putText(cell, line, spot, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (60, 60, 60), 1, cv2.LINE_AA)
    return cell


def _close_up(
    image: NDArray[np.uint8], person: PersonFacts, skeleton: Skeleton, text: str
) -> NDArray[np.uint8]:
    """Return a cell of the part of the image where the person and its box are, and some more."""
    known = person.keypoints[person.keypoints[:, 2] > 0, :2]
    x, y, width, height = person.box
    corners = np.vstack([known, [[x, y], [x + width, y + height]]])
    low, high = corners.min(axis=0), corners.max(axis=0)
    margin = 0.15 * max(*(high - low), 40)
    left, top = np.floor(low - margin).astype(int)
    right, bottom = np.ceil(high + margin).astype(int)
    most = 4 * max(image.shape[:2])  # a joint or box far away is not worth a large sheet
    left, top = max(left, -most), max(top, -most)
    right, bottom = min(right, most), min(bottom, most)
    part = np.full((max(1, bottom - top), max(1, right - left), 3), 200, dtype=np.uint8)
    inside_x = slice(max(0, left), max(0, min(image.shape[1], right)))
    inside_y = slice(max(0, top), max(0, min(image.shape[0], bottom)))
    shown = image[inside_y, inside_x]
    part[
        inside_y.start - top : inside_y.start - top + shown.shape[0],
        inside_x.start - left : inside_x.start - left + shown.shape[1],
    ] = shown
    thick = max(1, round(max(part.shape[:2]) / 160))
    ends = [(int(x - left), int(y - top)), (int(x + width - left), int(y + height - top))]
    cv2.rectangle(part, ends[0], ends[1], _MARK, thick, cv2.LINE_AA)
    keypoints = person.keypoints.copy()
    keypoints[:, :2] -= (left, top)
    moved = PersonFacts(
        person.annotation_id, person.image_id, keypoints, person.box, person.area, person.crowd
    )
    return _cell(part, [moved], skeleton, text)


def _write_sheet(cells: Sequence[NDArray[np.uint8]], path: Path) -> list[Path]:
    if not cells:
        return []
    sheet = contact_sheet(cells, _COLUMNS)
    _, data = cv2.imencode(
        path.suffix, cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88]
    )
    write_bytes(path, data.tobytes())
    return [path]


# -- histograms ----------------------------------------------------------------------------------------------


def _panel(panel: Axes, title: str, across: str, up: str = "", axis: str = "y") -> None:
    panel.set_title(title)
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    panel.grid(axis=axis, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    panel.set_axisbelow(True)


def _draw_joints(panel: Axes, joints: Mapping[str, Mapping[str, int]]) -> None:
    names = list(joints)
    start = np.zeros(len(names))
    total = sum(next(iter(joints.values())).values()) if joints else 1
    for what, colour in (("visible", _VISIBLE), ("occluded", _OCCLUDED), ("unlabelled", _ABSENT)):
        share = np.array([joints[name][what] for name in names]) / total
        panel.barh(names, share, left=start, color=colour, label=what, height=0.78)
        start += share
    panel.invert_yaxis()
    panel.set_xlim(0, 1)
    _panel(panel, "Joints", "share of people", axis="x")
    panel.tick_params(axis="y", labelsize=8, length=0)
    panel.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.02, 0.99), ncols=3,
                 borderaxespad=0.2, columnspacing=0.9, handlelength=1.0)  # fmt: skip


def _draw_counts(panel: Axes, counts: Mapping[int, int]) -> None:
    panel.bar(list(counts), list(counts.values()), color=_VISIBLE, width=0.85)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    _panel(panel, "Labelled people per image", "people", "images")


def _draw_scales(panel: Axes, scales: NDArray[np.float64]) -> None:
    top = max(SCALE_EDGES[-1], float(scales.max()) + 1)
    panel.hist(scales, bins=np.arange(0, top + 16, 16).tolist(), color=_VISIBLE)
    for edge, name in ((32, "small"), (96, "medium")):
        panel.axvline(edge, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        panel.annotate(
            name, (edge, 1), xycoords=("data", "axes fraction"), xytext=(-3, -3), rotation=90,
            textcoords="offset points", ha="right", va="top", fontsize=8, color=MUTED,
        )  # fmt: skip
    panel.set_xlim(0, float(np.quantile(scales, 0.995)) * 1.1 + 16)
    _panel(panel, "Size of people", "square root of area, pixels of the image", "people")


def _draw_relative(panel: Axes, shares: NDArray[np.float64], resolutions: Sequence[int]) -> None:
    ends = np.linspace(0, max(1.0, float(np.quantile(shares, 0.995))), 200)
    below = np.searchsorted(np.sort(shares), ends, side="right") / len(shares)
    colours = ("#a5db36", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e")
    sides = sorted(resolutions)
    for side, colour in zip(sides, colours[-len(sides) :] if len(sides) <= 6 else [], strict=False):
        panel.plot(ends * side, below, color=colour, linewidth=1.6, label=f"{side} px")
    panel.axvline(32, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    panel.set_xlim(0, None)
    panel.set_ylim(0, 1.02)
    panel.legend(frameon=False, fontsize=8, title="short side", title_fontsize=8, loc="lower right")
    _panel(
        panel, "Size of people in the network's input", "square root of area, pixels", "share of people below"
    )


def _draw_sizes(panel: Axes, sizes: Sequence[tuple[int, int]]) -> None:
    different, counts = np.unique(np.array(sizes), axis=0, return_counts=True)
    area = 12 + 140 * counts / counts.max()
    panel.scatter(different[:, 0], different[:, 1], s=area, color=_VISIBLE, alpha=0.45, linewidths=0)
    limit = float(different.max()) * 1.08
    panel.plot([0, limit], [0, limit], color=GRID, linewidth=1, zorder=0)
    panel.set_xlim(0, limit)
    panel.set_ylim(0, limit)
    _panel(panel, "Images", "width, pixels", "height, pixels", axis="both")


def _draw_crowding(panel: Axes, graded: Sequence[float]) -> None:
    panel.hist(graded, bins=np.linspace(0, max(1.0, max(graded)), 41).tolist(), color=_VISIBLE)
    for edge in (0.2, 0.8):
        panel.axvline(edge, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    _panel(panel, "Crowding (easy, medium, hard)", "crowdIndex", "images")


def _draw_labelled(panel: Axes, numbers: Sequence[int]) -> None:
    different, counts = np.unique(np.array(numbers), return_counts=True)
    panel.bar(different, counts, color=_VISIBLE, width=0.85)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    _panel(panel, "Labelled joints per person", "joints", "people")
