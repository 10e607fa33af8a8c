"""Docstrings of the package as Markdown, so that pages and code have one source."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

ARXIV = re.compile(r"arXiv\s+((?:[a-z-]+/)?[\d.]+\d)((?:, \d{4}\.\d{4,5})*)")
SECTIONS = ("Args:", "Attributes:", "Raises ", "Returns:", "Subclasses ")
"""How the paragraphs begin that the API reference has, and pages do not."""


def paragraphs(documented: object) -> list[str]:
    """The paragraphs of a docstring without those that begin as SECTIONS do. Raises ValueError without a docstring."""
    text = inspect.getdoc(documented)
    if not text:
        raise ValueError(f"{documented!r} has no docstring, and the page is made of it.")
    kept = [part for part in re.split(r"\n{2,}(?! )", text.strip()) if not part.startswith(SECTIONS)]
    return [re.sub(r"(?<=\.)\s(Raises\s[A-Z]|Subclasses\s[a-z]).*", "", part, flags=re.DOTALL) for part in kept]


def markdown(documented: object) -> str:
    """A docstring as Markdown, with links to papers."""
    return linked("\n\n".join(paragraphs(documented)))


def summary(documented: object) -> str:
    """The first paragraph on one line, without its full stop."""
    return linked(" ".join(paragraphs(documented)[0].split("\n\n")[0].split()).rstrip(".:"))


def linked(text: str) -> str:
    """Text with its arXiv numbers as links."""

    def link(match: re.Match[str]) -> str:
        numbers = [match[1], *match[2].split(", ")[1:]]
        shown = [f"arXiv {match[1]}", *numbers[1:]]
        return ", ".join(
            f"[{name}](https://arxiv.org/abs/{number})" for name, number in zip(shown, numbers, strict=True)
        )

    return ARXIV.sub(link, text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def settings_table(config: Any, left_out: Sequence[str] = ()) -> str:
    """Every field of a dataclass, or of an instance, with its value and docstring; nested ones as ``policy.width``.

    Of fields in ``left_out`` the nested ones are left out.
    """
    rows = [row for row in _settings(config, "") if row[0].strip("`").partition(".")[0] not in left_out]
    return table(("setting", "default", "meaning"), rows)


def _settings(config: Any, prefix: str) -> list[tuple[str, str, str]]:
    meanings, rows = _field_docs(config if isinstance(config, type) else type(config)), []
    for field in fields(config):
        factory = field.default if field.default_factory is MISSING else field.default_factory()
        value = factory if isinstance(config, type) else getattr(config, field.name)
        if is_dataclass(value):
            rows += _settings(value, f"{prefix}{field.name}.")
        else:
            shown = "needed" if value is MISSING else f'`"{value}"`' if isinstance(value, str) else f"`{value!r}`"
            rows.append((f"`{prefix}{field.name}`", shown, meanings[field.name]))
    return rows


def _field_docs(config: type) -> dict[str, str]:
    """The strings below the fields of a dataclass and of its bases, on one line each."""
    found: dict[str, str] = {}
    for kind in reversed([kind for kind in config.__mro__ if is_dataclass(kind)]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = linked(" ".join(str(text.value.value).split()))
    return found
