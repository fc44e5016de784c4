"""Hooks of the documentation site (`mkdocs.yml`): navigation by pattern, and pages and files that lie outside of docs/."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = (
    "benchmarks/README.md",
    "benchmarks/headline.md",
    "benchmarks/no_reader.md",
    "extras/vllm/README.md",
)  # pages of the site
README, HOME = "README.md", "docs/index.md"
LINK = re.compile(r"(!?)\[([^\]\[]*(?:\[[^\]]*\][^\]\[]*)*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)(```|~~~)[\s\S]*?^\1\2 *$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace entries with a star by the pages that there are; one page takes its entry's title, several are a section.

    Pages that no entry names stand at the end of the guides.
    """
    nav = _expanded(config.nav or [])
    folder = ROOT / "docs"
    rest = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")} - set(_pages(nav))
    if rest:
        next(entry["Guides"] for entry in nav if "Guides" in entry).append({"More": sorted(rest)})
    config.nav = nav
    return config


def _pages(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(value, list):
            yield from _pages(value)
        else:
            yield value


def _expanded(entries: list[Any]) -> list[Any]:
    found: list[Any] = []
    for entry in entries:
        title, value = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(value, list):
            found.append({title: _expanded(value)})
        elif "*" in value:
            folder = ROOT / "docs"
            pages = sorted(folder.glob(value), key=lambda path: (path.stem != "index", path.name))
            names = [path.relative_to(folder).as_posix() for path in pages]
            if len(names) == 1:
                found.append({title: names[0]})
            elif names:
                found.append({title: names})
        else:
            found.append(entry)
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of docs/."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead relative links to where their targets are on the site, and take files of the repository along that pages link to."""
    here = page.file.src_uri if page.file.src_uri in OUTSIDE else f"docs/{page.file.src_uri}"

    def led(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:|/", path):
            return match[0]
        meant = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        meant = HOME if meant == README else meant
        if (ROOT / meant).is_dir():  # a folder is no page
            return text
        if meant.startswith("..") or not (ROOT / meant).is_file():
            return match[0]  # which the build complains of
        place = meant.removeprefix("docs/")
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / meant)))
        link = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        return f"{image}[{text}]({link}{'#' + anchor if anchor else ''})"

    parts, at = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(led, markdown[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, LINK.sub(led, markdown[at:])])
