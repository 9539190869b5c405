"""A page and the files beside it: templates, figures as SVG and PDF, tables as CSV and LaTeX.

The same inputs give the same bytes: no time, no path and no random id gets into a file.
"""

from __future__ import annotations

import hashlib
import html
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path

import jinja2

from fitting.figures.style import Panel
from fitting.figures.svg import untagged
from fitting.files.atomic import sha256_of, write_atomic
from fitting.files.own_json import read_json
from fitting.page.latex import to_latex
from fitting.page.tables import View
from fitting.words import number

PAGE = "index.html"
HEADLINE = "headline.png"
TIPS = "[/* tips */]"
"""Where page.html has room for the words of all marks."""
MANIFEST = "MANIFEST.json"
PACKAGES = ("lowbit-scaling", "numpy", "scipy", "pandas", "matplotlib", "jinja2")


def render(template: str, **values: object) -> str:
    """A template of this package, filled in; all text from a study is escaped.

    Args:
        template: Its file, which finds others, style and script among them, by their names.
        values: Values of the names in it; a name without a value is an error.
    """
    folder = resources.files("fitting.page")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["tied"] = _tied
    text = environment.get_template(template).render(versions=versions(), **values)
    return _share_tips(text)


def _share_tips(text: str) -> str:
    """The words of each mark, stored once per page: the same run is drawn in many figures."""
    tips: dict[str, int] = {}

    def numbered(match: re.Match[str]) -> str:
        return f'data-tip="{tips.setdefault(html.unescape(match[1]), len(tips))}"'

    text = re.sub(r'data-tip="([^"]*)"', numbered, text)
    listed = json.dumps(list(tips), ensure_ascii=False, separators=(",", ":"))
    return text.replace(TIPS, listed.replace("<", "\\u003c"))


def _tied(text: str) -> str:
    """The text without line breaks between a number and its sign or unit."""
    for mark in (" = ", " ± "):
        text = text.replace(mark, mark.replace(" ", "\u00a0"))
    return text.replace(" %", "\u00a0%")


def versions() -> list[str]:
    """The versions that made this page; its bytes depend on them."""
    versions = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:  # ours, run from a checkout
            versions.append(f"{name} not installed")
    return versions


def sum_of(inputs: Mapping[str, str]) -> str:
    """The SHA-256 of a list of inputs and their sums."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def write(
    out: Path,
    page: str,
    drawn: Mapping[str, Sequence[Panel]],
    views: Mapping[str, View],
    inputs: Mapping[str, str],
    figure_files: Sequence[str],
    headline: bytes | None = None,
) -> Path:
    """Write a page with all files beside it, and MANIFEST.json with their SHA-256 sums.

    Args:
        out: Folder, made if absent.  Files of an earlier page, if unchanged since, are removed.
        page: The text of index.html.
        drawn: Figures by name, each a list of panels.
        views: Tables by name.
        inputs: Input file -> SHA-256.
        figure_files: The file types among `FIGURE_FILES` to write for each panel.
        headline: A PNG file's bytes.

    Returns:
        The path of index.html.
    """
    files = {PAGE: page.encode()}
    for one in (one for panels in drawn.values() for one in panels):
        if "svg" in figure_files:
            files[f"figures/{one.name}.svg"] = untagged(one.svg).encode()
        if "pdf" in figure_files:
            files[f"figures/{one.name}.pdf"] = one.pdf()
    for view in views.values():
        csv: str = view.data.to_csv(index=False, lineterminator="\n")
        files[f"tables/{view.name}.csv"] = csv.encode()
        files[f"tables/{view.name}.tex"] = to_latex(view).encode()
    if headline:
        files[HEADLINE] = headline
    _remove_stale(out, keep=files)
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(content, out / name)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = {"files": sums, "inputs": dict(inputs)}
    write_atomic(json.dumps(manifest, indent=1, sort_keys=True) + "\n", out / MANIFEST)
    return out / PAGE


def _remove_stale(out: Path, keep: Iterable[str]) -> None:
    """Remove figures and tables of the previous page that have not changed since."""
    previous = (read_json(out / MANIFEST) or {}).get("files", {})
    for name in sorted(set(previous) - set(keep)):
        path = out / name
        known = name == HEADLINE or path.parent in (out / "figures", out / "tables")
        ours = known and path.is_file()
        if ours and sha256_of(path) == previous[name]:
            path.unlink()
