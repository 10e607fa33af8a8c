"""The documentation site: `make docs` builds it from the Markdown pages of this folder, without a network.

Pages are plain Markdown, so that GitHub shows them too. Three things are added here while Sphinx reads them: the
navigation, from the links of index pages; the API reference, from the packages' ``__all__``; and links that lead out of
this folder.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import dxmi_rl

project = "dxmi_rl"
author = "The dxmi_rl authors"
project_copyright = author
version = release = dxmi_rl.__version__

extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx_copybutton",
]  # fmt: skip
exclude_patterns = ["**/__pycache__"]
html_use_index = False
html_domain_indices = False
smartquotes = False  # x' is a next state
highlight_language = "none"  # indented blocks are formulas and commands
myst_heading_anchors = 4

autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"dxmi_rl {version}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

DOCS = Path(__file__).parent
INDEXES = ("agents/index", "targets/index", "api/index")
"""Pages whose links to pages of their own folder are their children in the navigation."""
LINK = re.compile(r"\]\(([\w./-]+?)\.md\)")
OUTSIDE = re.compile(r"\[([^]]+)\]\(((?:\.\./)+[^)#\s]*)(#[^)\s]*)?\)")
MODULE = re.compile(r"^- `(dxmi_rl[\w.]+)`", re.MULTILINE)
SECTION = re.compile(r"(Args|Attributes|Examples?|Raises|Returns|Yields):")


def add_to_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Append navigation and reference to a page's Markdown; of links that no built page has, keep the text."""
    text = OUTSIDE.sub(lambda link: _inside(link, page), source[0])
    if page == "index":
        for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
            text += _navigation(LINK.findall(body), title)
    elif page in INDEXES:
        children = [child for child in dict.fromkeys(LINK.findall(text)) if "/" not in child]
        text += _navigation(children)
    if page.startswith("api/"):
        text += _reference(text)
    source[0] = text


def _inside(link: re.Match[str], page: str) -> str:
    """The link, or its text where it leads to a folder or a page that is not of this site."""
    target = (DOCS / page).parent.joinpath(link[2]).resolve()
    return link[1] if target.is_dir() or (target.suffix == ".md" and DOCS not in target.parents) else link[0]


def _navigation(pages: list[str], caption: str | None = None) -> str:
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n\n" + "\n".join(["```{toctree}", *options, "", *pages, "```"]) if pages else ""


def _reference(text: str) -> str:
    """The modules in a page's list, or the one of its title; of the top level a table, as names live elsewhere."""
    title = text.partition("\n")[0].removeprefix("# ")
    if title == "API":
        lines = [".. autosummary::", "", *(f"   ~{_home(name)}" for name in dxmi_rl.__all__ if name[0] != "_")]
    else:
        lines = [f".. automodule:: {name}\n" for name in MODULE.findall(text) or [title]]
    return "\n\n" + "\n".join(["```{eval-rst}", *lines, "```"])


def _home(name: str) -> str:
    """``dxmi_rl.agents.PPO`` for ``PPO``: the public package that has the name."""
    for page in sorted((DOCS / "api").glob("*.md")):
        package = f"dxmi_rl.{page.stem}"
        if page.stem != "index" and name in getattr(importlib.import_module(package), "__all__", ()):
            return f"{package}.{name}"
    return f"dxmi_rl.{name}"


def mark_up(app: Sphinx, what: str, name: str, documented: object, options: Any, lines: list[str]) -> None:
    """Turn a docstring of this package, plain text and formulas, into reStructuredText."""
    marked: list[str] = []
    section, literal = False, False
    for index, line in enumerate(lines):
        indented = line.startswith(" ")
        if line and not indented:
            marked += [""] if literal else []
            section, literal = SECTION.fullmatch(line) is not None, False
        elif indented and not (section or literal) and lines[index - 1][-1:] in ("", ":"):
            marked += ["", "::", ""]
            literal = True
        marked += [line] if literal else _escaped(line)
    if what in ("attribute", "property"):  # an empty comment, as napoleon takes words before a colon there for a type
        marked[:0] = ["..", ""]
    lines[:] = marked


def _escaped(line: str) -> list[str]:
    """The line with ``code`` kept, `code` as code, and signs of formulas that would be markup escaped."""
    if line.startswith("## "):
        return [f".. rubric:: {line[3:]}", ""]
    parts = re.split(r"(``.+?``|`[^`]+`)", line)
    for index, part in enumerate(parts):
        parts[index] = f"``{part.strip('`')}``" if index % 2 else re.sub(r"([*|]|_(?!\w))", r"\\\1", part)
    return ["".join(parts)]


def shorten(app: Sphinx, what: str, name: str, documented: Any, *rest: Any) -> tuple[str, None] | None:
    """No signature for settings: their fields follow, each with its default."""
    return ("", None) if what == "class" and name.endswith("Config") else None


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", add_to_page)
    app.connect("autodoc-process-docstring", mark_up, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", shorten)
