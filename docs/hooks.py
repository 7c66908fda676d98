"""What MkDocs does not do by itself: pages from elsewhere in the repository, and the reference of commands.

Pages link to each other as the repository lays them out, so that the links work on a forge, too. A page or
file outside ``docs/`` that a page links to becomes a part of the site, and the links are rewritten for it.
"""

from __future__ import annotations

import posixpath
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the reference is of this tree, whatever else is installed

LINK = re.compile(r"(!?\[(?:[^\]\[]|\[[^\]]*\])*\])\(([^)\s]+)\)")
FENCE = re.compile(r"^(```.*?^```[^\n]*$)", flags=re.MULTILINE | re.DOTALL)
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|obj):<code>~?([^<]*)</code>")


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Return Markdown with ``change`` applied to whatever is no fenced block."""
    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


def origin(uri: str) -> str:
    """Return the path in the repository of a page of the site."""
    return f"docs/{uri}" if (ROOT / "docs" / uri).exists() else uri


def place(path: str) -> str:
    """Return where a file of the repository is on the site."""
    return path.removeprefix("docs/")


def links(path: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to, by their paths there."""
    text = FENCE.sub("", (ROOT / path).read_text(encoding="utf-8"))
    for _, link in LINK.findall(text):
        target = resolve(path, link)
        if target is not None and (ROOT / target).is_file():
            yield target


def resolve(path: str, link: str) -> str | None:
    """Return what a link of a page leads to, as a path in the repository; None for others."""
    target = link.partition("#")[0]
    if not target or re.match(r"[a-z]+:", link):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if (ROOT / target).is_dir() and (ROOT / target / "README.md").exists():
        target += "/README.md"
    return target


def keep_existing(entries: list[Any]) -> list[Any]:
    """Return the entries of a navigation whose pages exist."""
    kept = []
    for entry in entries:
        ((title, value),) = entry.items() if isinstance(entry, dict) else ((None, entry),)
        if isinstance(value, list):
            value = keep_existing(value)
        elif not (ROOT / origin(value)).exists():
            value = None
        if value:
            kept.append(value if title is None else {title: value})
    return kept


# -- events --------------------------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out pages that are not written yet."""
    config.nav = keep_existing(config.nav or [])
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what pages link to, and what the navigation names, from elsewhere in the repository."""
    waiting = [origin(page.src_uri) for page in files.documentation_pages()]
    named = set(listed(config.nav or []))
    waiting += [path for path in named if not (ROOT / "docs" / path).exists()]
    seen = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if not path.startswith("docs/"):
            file = File(path, str(ROOT), config.site_dir, use_directory_urls=config.use_directory_urls)
            file.inclusion = InclusionLevel.INCLUDED if path in named else InclusionLevel.NOT_IN_NAV
            files.append(file)
        if path.endswith(".md"):
            waiting += links(path)
    return files


def listed(entries: list[Any]) -> Iterator[str]:
    """Yield the pages of a navigation."""
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(value, list):
            yield from listed(value)
        else:
            yield value


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links for the site, and write the reference of commands."""
    here = origin(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        label, link = match.groups()
        target = resolve(here, link)
        if target is None:
            return match.group()
        if not (ROOT / target).is_file():  # a folder: the site shows none
            return label.strip("[]") if (ROOT / target).is_dir() else match.group()
        anchor = "#" + link.partition("#")[2] if "#" in link else ""
        relative = posixpath.relpath(place(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"{label}({relative}{anchor})"

    text = outside_code(markdown, lambda part: LINK.sub(rewrite, part))
    before, mark, _ = text.partition("<!-- commands -->")  # what follows is for readers on a forge
    return before + commands() if mark else text


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put docstrings' roles and literal blocks into plain words; let wide tables scroll alone."""
    html = ROLE.sub(r"<code>\1</code>", html)
    return re.sub(r"::</p>(?=\s*<(?:pre|div))", ":</p>", html)


# -- commands ------------------------------------------------------------------------------------------------


def leaves(command: Any, prefix: str = "nas") -> Iterator[tuple[str, Any]]:
    """Yield the commands that do something, with their full names."""
    for word, each in command.commands.items():
        name = f"{prefix} {word}"
        if hasattr(each, "commands"):
            yield from leaves(each, name)
        else:
            yield name, each


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def shown_default(parameter: Any) -> str:
    """Return the default of an option as the reference shows it."""
    value = parameter.default
    if parameter.required:
        return "needed"
    if getattr(parameter, "is_flag", False):
        return f"`{parameter.opts[0]}`" if value else ""
    if value is None or callable(value) or isinstance(value, (list, tuple)):
        return ""
    return f"`{value}`" if str(value) else ""


def kind(parameter: Any) -> str:
    """Return what an option takes: its own word for it, or the type's."""
    if parameter.metavar:
        return str(parameter.metavar)
    annotation = parameter.type_descriptor.annotation
    annotation = next(iter(typing.get_args(annotation)), annotation)
    return {Path: "PATH", int: "N", float: "NUMBER"}.get(annotation, "TEXT")


def rows(command: Any) -> Iterator[str]:
    """Yield the rows of a command's table: arguments first, then options."""
    for parameter in sorted(command.params, key=lambda each: each.param_type_name != "argument"):
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        if parameter.param_type_name == "argument":
            names = cell(f"`{parameter.metavar or parameter.name.upper()}`")
        else:
            names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
            if not parameter.is_flag:
                names += f" {cell(kind(parameter))}"
        yield f"| {names} | {shown_default(parameter)} | {cell(parameter.help or '')} |"


def commands() -> str:
    """Return the reference of all commands as Markdown, from the command line itself."""
    import typer

    from nas.cli import app

    sections = []
    for name, command in leaves(typer.main.get_command(app)):
        paragraphs = [
            " ".join(each.split()) for each in re.split(r"\n\s*\n|[\b\f]", command.help or "") if each.strip()
        ]
        section = [f"## {name}"]
        for each in paragraphs:
            section.append(
                f"```sh\n{each[9:]}\n```" if each.startswith("Example: ") else each.replace("<", "&lt;")
            )
        table = ["| option | default | meaning |", "|---|---|---|", *rows(command)]
        sections.append("\n\n".join([*section, "\n".join(table)]))
    return "\n\n".join(sections)
