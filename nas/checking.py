"""``nas data check``: data sets looked over, told in tables, JSON and pictures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from nas.check_pictures import (
    Pictures,
    draw_contact_sheet,
    draw_histograms,
    draw_pairs,
    draw_problems,
)
from nas.console import note, print_json, print_table, progress_bar, show
from search_spaces import InputError
from search_spaces.files import read_json, write_json
from supernet.pose.census import RESOLUTIONS
from supernet.pose.check import DatasetReport, check_dataset, shared_images
from supernet.pose.findings import Example, Finding
from supernet.pose.scoring import ScoringProtocol
from supernet.pose.skeleton import Skeleton, get_skeleton

if TYPE_CHECKING:
    from nas.data import Datasets
    from nas.recipe import DataSource, Recipe

__all__ = ["CheckResult", "check_files", "check_recipe", "run_check", "write_report"]

_SHOWN: Final = {"error": 3, "warning": 3, "note": 1}
"""Examples shown of a finding; the JSON report has more."""


@dataclass(frozen=True)
class CheckResult:
    """Everything that one check found.

    Attributes
    ----------
    parts
        The data sets by name: ``data`` alone, or ``train`` (of several sources ``train[0]`` and so on),
        ``search`` and ``val`` of a recipe.
    shared
        What each two of them show both, by their names.
    split
        Images by use, as the recipe divides them; empty without a recipe, or where it cannot be opened.
    refused
        Why the recipe's data cannot be opened, beside what the data sets' own reports say.
    resolutions
        At which people's sizes are told, pixels.
    """

    parts: Mapping[str, Pictures]
    shared: Mapping[tuple[str, str], tuple[Finding, ...]]
    split: Mapping[str, int] = field(default_factory=dict)
    refused: str = ""
    resolutions: Sequence[int] = RESOLUTIONS

    @property
    def findings(self) -> list[Finding]:
        """All findings, of the parts and of what they share."""
        own = [finding for part in self.parts.values() for finding in part.report.findings]
        return own + [finding for findings in self.shared.values() for finding in findings]

    @property
    def sound(self) -> bool:
        """Whether nothing stands against training and scoring."""
        return not self.refused and all(each.severity != "error" for each in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return {
            "sound": self.sound,
            "refused": self.refused or None,
            "split": dict(self.split),
            "shared": [
                {"between": list(names), **finding.to_json()}
                for names, findings in self.shared.items()
                for finding in findings
            ],
            "data_sets": {name: part.report.to_json(self.resolutions) for name, part in self.parts.items()},
        }


def run_check(
    source: Path,
    *,
    images: Path | None = None,
    skeleton: str | None = None,
    category: str | None = None,
    against: Path | None = None,
    against_images: Path | None = None,
    output: Path | None = None,
    pixels: bool = True,
    as_json: bool = False,
) -> bool:
    """Carry out ``nas data check`` and print what was found; return whether the data are sound.

    Raises
    ------
    InputError
        If a file or folder is missing, is no JSON, or the options do not go together.
    RunError
        If the report cannot be written.
    """
    from nas.run import RunDirectory

    if against is None and against_images is not None:
        raise InputError("--against-images is the folder of --against; name that annotation file too")
    if output is not None and not output.is_dir() and (output.exists() or output.is_symlink()):
        raise InputError(f"--output is a folder for the report, and '{output}' is none")
    if source.suffix.lower() in (".yaml", ".yml") or source.is_dir():
        options = {
            "--images": images, "--skeleton": skeleton, "--category": category, "--against": against,
        }  # fmt: skip
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise InputError(f"a recipe says itself what {given[0]} would; leave the option out")
        from nas.recipe import load_recipe

        recipe = RunDirectory.open(source).recipe if source.is_dir() else load_recipe(source)
        result = check_recipe(recipe, pixels=pixels)
    else:
        result = check_files(
            source,
            images,
            skeleton=None if skeleton is None else get_skeleton(skeleton),
            category=category,
            against=None if against is None else (against, against_images),
            pixels=pixels,
        )
    if as_json:
        print_json(result.to_json())
    else:
        print_result(result)
    if output is not None:  # last, so that a full disk does not hide what was found
        write_report(result, output)
    return result.sound


# -- what is checked -----------------------------------------------------------------------------------------


def check_files(
    annotations: Path,
    images: Path | None,
    *,
    skeleton: Skeleton | None = None,
    category: str | None = None,
    against: tuple[Path, Path | None] | None = None,
    pixels: bool = True,
) -> CheckResult:
    """Check an annotation file with its folder of images and, where given, a second one against it.

    Raises
    ------
    InputError
        If a file or folder is missing or is no JSON.
    """
    parts = {"data": _check_file("data", annotations, images, skeleton, category, "coco", pixels)}
    if against is not None:
        parts["against"] = _check_file("against", *against, skeleton, category, "coco", pixels)
    return CheckResult(parts, _shared({name: part.report for name, part in parts.items()}))


def check_recipe(recipe: Recipe, *, pixels: bool = True) -> CheckResult:
    """Check every data set of a recipe, alone and against the others, and tell how its images are divided.

    Raises
    ------
    InputError
        If a file or folder is missing or is no JSON.
    """
    from nas.data import open_datasets

    wanted = None if recipe.data.skeleton is None else get_skeleton(recipe.data.skeleton)
    sources = {**recipe.data.training, "search": recipe.data.search, "val": recipe.data.val}
    parts: dict[str, Pictures] = {}
    for name, source in sources.items():
        if source is not None:
            parts[name] = _check_source(name, source, wanted, recipe.evaluate.protocol, pixels)
            wanted = wanted or parts[name].report.skeleton
    reports = {name: part.report for name, part in parts.items()}
    resolutions = (
        tuple(
            int(side)
            for choice in recipe.build_space(wanted).choices
            if choice.name == "resolution"
            for side in choice.values
        )
        if wanted
        else RESOLUTIONS
    )
    try:
        data = open_datasets(recipe)
    except InputError as error:
        shared = _shared(reports)
        known = any(report.errors for report in reports.values()) or any(
            finding.severity == "error" for findings in shared.values() for finding in findings
        )
        return CheckResult(parts, shared, {}, "" if known else str(error), resolutions)
    names = ("train", "calibrate", "search", "val")
    split = {name: len(getattr(data, name)) for name in names}
    return CheckResult(parts, _shared(_divided(reports, data)), split, "", resolutions)


def _divided(reports: Mapping[str, DatasetReport], data: Datasets) -> dict[str, DatasetReport]:
    """Return the reports of the images as they are used: learned from in any way, chosen by, scored on."""
    training = [name for name in reports if name.startswith("train")]
    used: dict[str, tuple[str, set[int]]] = {}
    held = data.search.sources() if "search" not in reports else []
    for place, name in enumerate(training):
        learned = (part.sources()[place].original_ids() for part in (data.train, data.calibrate))
        used[name] = name, set().union(*learned)
    for name, part in zip(training, held, strict=False):
        used[name.replace("train", "search")] = name, part.original_ids()
    if "search" in reports:
        used["search"] = "search", {*data.search.ids}
    used["val"] = "val", {*data.val.ids}
    return {
        name: replace(reports[source], prints=tuple(p for p in reports[source].prints if p.image_id in ids))
        for name, (source, ids) in used.items()
    }


def _shared(reports: Mapping[str, DatasetReport]) -> dict[tuple[str, str], tuple[Finding, ...]]:
    """Return what is shown by images of two uses; what sources of one use share is no leak."""
    return {
        (one, other): shared_images(reports[one], reports[other])
        for one, other in itertools.combinations(reports, 2)
        if one.partition("[")[0] != other.partition("[")[0]
    }


def _check_source(
    name: str, source: DataSource, wanted: Skeleton | None, protocol: ScoringProtocol, pixels: bool
) -> Pictures:
    from nas.data import open_source

    if source.annotations is not None:
        return _check_file(name, source.annotations, source.images, wanted, source.category, protocol, pixels)
    drawn = open_source(source)
    images = {image_id: drawn.load_image(place) for place, image_id in enumerate(drawn.ids)}
    return _check(
        name, drawn.ground_truth(), images, drawn.where, skeleton=wanted, protocol=protocol, decode=pixels
    )


def _check_file(
    name: str,
    annotations: Path,
    images: Path | None,
    skeleton: Skeleton | None,
    category: str | None,
    protocol: ScoringProtocol,
    pixels: bool,
) -> Pictures:
    content = read_json(annotations, "annotation file")
    if images is not None and not images.is_dir():
        raise InputError(f"image folder '{images}' does not exist or is not a folder")
    where = f"annotation file '{annotations}'"
    return _check(
        name,
        content,
        images,
        where,
        skeleton=skeleton,
        category=category,
        protocol=protocol,
        decode=pixels,
    )


def _check(
    name: str,
    content: object,
    images: Path | Mapping[int, NDArray[np.uint8]] | None,
    where: str,
    **settings: Any,
) -> Pictures:
    with progress_bar(f"images of {name}") as bar:
        report = check_dataset(content, images, where=where, progress=bar.update, **settings)
    return Pictures(report, images)


# -- telling it ----------------------------------------------------------------------------------------------


def print_result(result: CheckResult) -> None:
    """Print a check's result as tables."""
    for name, part in result.parts.items():
        _print_findings(f"{name}: {part.report.where}", part.report.findings)
        _print_contents(name, part.report, result.resolutions)
    for (one, other), findings in result.shared.items():
        if findings:
            _print_findings(f"{one} and {other} share images", findings)
        else:
            print(f"{one} and {other} share no image, as far as could be seen\n")
    if result.split:
        show({"images by use": ", ".join(f"{name} {count}" for name, count in result.split.items())})
    if result.refused:
        print(f"the recipe's data cannot be opened: {result.refused}")
    counts = {
        severity: sum(each.severity == severity for each in result.findings)
        for severity in ("error", "warning")
    }
    verdict = "can be trained on and scored" if result.sound else "would be refused or scored wrongly"
    if result.sound and any(each.code in ("images-unseen", "pixels-unseen") for each in result.findings):
        verdict += ", as far as can be told without decoding the images"
    print(f"{counts['error']} kinds of errors, {counts['warning']} of warnings: the data {verdict}")


def _print_findings(title: str, findings: Sequence[Finding]) -> None:
    """Print one line per finding, and its examples below it, which tables would break."""
    print(title)
    for finding in findings:
        print(f"  {finding.severity:<8}{finding.count:>7,}  {finding.rule.text}")
        for example in finding.examples[: _SHOWN[finding.severity]]:
            print(f"{'':19}{_line(example)}")
    print("" if findings else "  nothing to report\n")


def _line(example: Example) -> str:
    """Return an example on one line that any terminal can show."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in example.text)


def _print_contents(name: str, report: DatasetReport, resolutions: Sequence[int]) -> None:
    found = report.census.to_json(resolutions)
    if not found["images"]:
        return
    scale, sizes = found["scale"], found["image_sizes"]
    lines = {
        f"contents of {name}": (
            f"{found['images']:,} images, {found['images_with_people']:,} with labelled people"
        ),
        "people": (
            f"{found['people']:,}, {found['labelled_people']:,} of them with "
            f"{found['labelled_joints']:,} labelled joints; {found['crowds']:,} crowds"
        ),
        "people per image": ", ".join(
            f"{number}: {count:,}" for number, count in found["people_per_image"].items()
        ),
        "image sides": f"short {_range(sizes['short_side'])}, long {_range(sizes['long_side'])} px",
    }
    if found["labelled_people"]:
        coco = scale["coco"]
        lines["size of people"] = (
            f"{_range(scale['pixels'])} px (square root of area); small {coco['small']:,}, "
            f"medium {coco['medium']:,}, large {coco['large']:,}"
        )
        for side in sorted({min(resolutions), max(resolutions)}):
            lines[f"at resolution {side}"] = f"{_range(scale['pixels_at_resolution'][str(side)])} px"
    if found["crowd_index"]:
        lines["crowdIndex"] = ", ".join(f"{level} {count:,}" for level, count in found["crowd_index"].items())
    show(lines)
    people = found["labelled_people"]
    if people:
        rows = [
            (joint, *(f"{count[what]:,}" for what in ("visible", "occluded", "unlabelled")),
             f"{1 - count['unlabelled'] / people:.1%}")
            for joint, count in found["joints"].items()
        ]  # fmt: skip
        print_table(f"joints of {name}", ("joint", "visible", "occluded", "unlabelled", "labelled"), rows)
    print()


def _range(spread: Mapping[str, float]) -> str:
    return f"{spread['min']:g} to {spread['max']:g}, median {spread['median']:g}"


def write_report(result: CheckResult, folder: Path) -> None:
    """Write report.json and the pictures of every part."""
    files = [folder / "report.json"]
    write_json(files[0], result.to_json())
    for name, part in result.parts.items():
        place = folder if len(result.parts) == 1 else folder / name
        files += draw_contact_sheet(part, place)
        files += draw_problems(part, place)
        files += draw_histograms(part, place, name, result.resolutions)
    for names, findings in result.shared.items():
        # What is held out of the training images is theirs.
        one, other = (
            result.parts.get(name) or result.parts[name.replace("search", "train")] for name in names
        )
        files += draw_pairs(findings, one, other, folder, f"shared-{'-'.join(names)}")
    for file in files:
        note(f"wrote {file}")
