"""Small pieces of HTML: escaped text, tables that sort and filter, commands with a copy button."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from dxmi_rl.benchmark.report.charts import Style, swatch
from dxmi_rl.benchmark.report.formatting import MISSING

__all__ = [
    "Cell",
    "Column",
    "Row",
    "agent",
    "anchor",
    "command",
    "escape",
    "legend",
    "plain",
    "script_json",
    "slug",
    "table",
]


@dataclass(frozen=True)
class Column:
    """Header of a column."""

    name: str
    hint: str = ""
    numeric: bool = True
    extra: bool = False
    """Shown only when the reader asks for all columns."""
    kind: str = ""
    """A class of the column's cells."""


@dataclass(frozen=True)
class Cell:
    """Contents of a cell, already HTML, and what it sorts by."""

    html: str
    value: float | str | None = None
    attributes: str = ""
    """Attributes of the element, HTML."""


Row = tuple[Sequence[Cell], dict[str, str]]
"""Cells, and the data attributes of the line."""


def plain(text: object, value: float | str | None = None) -> Cell:
    """A cell of escaped text."""
    return Cell(escape(str(text)), value)


def table(
    columns: Sequence[Column],
    rows: Iterable[Row],
    caption: str,
    *,
    sortable: bool = False,
    kind: str = "",
) -> str:
    """A table in a box of its own that scrolls; the first cell of every line is its header.

    The caption is HTML.
    """
    head = "".join(
        f'<th scope="col"{_classes(column)}{_attribute("title", column.hint)}'
        f"{' data-sort' * sortable}>{escape(column.name)}</th>"
        for column in columns
    )
    body = []
    for cells, data in rows:
        line = []
        for index, (column, cell) in enumerate(zip(columns, cells, strict=True)):
            tag, scope = ("th", ' scope="row"') if index == 0 else ("td", "")
            value = "" if cell.value is None else _attribute("data-value", str(cell.value))
            line.append(f"<{tag}{scope}{_classes(column)}{value}{cell.attributes}>{cell.html}</{tag}>")
        attributes = "".join(_attribute(f"data-{key}", value) for key, value in data.items())
        body.append(f"<tr{attributes}>{''.join(line)}</tr>")
    lines = "\n".join(body)
    label = re.sub(r"<[^>]*>", "", caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label.replace(chr(34), "&quot;")}">'
        f'<table class="{kind}"><caption><span>{caption}</span></caption><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def _classes(column: Column) -> str:
    names = [name for name, on in (("number", column.numeric), ("extra", column.extra), (column.kind, column.kind))
             if on]  # fmt: skip
    return f' class="{" ".join(names)}"' if names else ""


def _attribute(name: str, value: str) -> str:
    return f' {name}="{escape(value)}"' if value else ""


def command(text: str | None) -> str:
    """A command line with a button that copies it."""
    if not text:
        return MISSING
    words = re.sub(r"[^\s]+", _unbroken, text)
    return (
        f'<span class="command"><code>{words}</code>'
        '<button type="button" class="copy" aria-label="Copy the command">copy</button></span>'
    )


def _unbroken(word: re.Match[str]) -> str:
    """A word that does not end its line after a hyphen, unless it is long."""
    text = escape(word[0])
    return f'<span class="word">{text}</span>' if "-" in text and len(text) <= 24 else text


def slug(text: str) -> str:
    """An identifier for links."""
    return re.sub(r"[^0-9A-Za-z]+", "-", text).strip("-") or "x"


def script_json(value: object) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def anchor(name: str) -> str:
    """A link to the section of this identifier, to be copied."""
    return f' <a class="anchor" href="#{name}" aria-label="Link to this section">#</a>'


def agent(label: str, styles: dict[str, Style]) -> str:
    """An agent's label after its line and marker."""
    kind = ' class="short"' if len(label) <= 14 else ""
    return f'<span class="agent">{swatch(styles[label])}<span{kind}>{escape(label)}</span></span>'


def legend(labels: Sequence[str], styles: dict[str, Style]) -> str:
    """What tells the agents apart in a row of charts."""
    items = "".join(f"<li>{agent(label, styles)}</li>" for label in labels)
    return f'<ul class="legend" aria-label="Legend">{items}</ul>'
