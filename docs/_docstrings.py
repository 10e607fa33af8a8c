"""Docstrings of the package as Markdown, so that pages and code have one source."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Sequence

ITEM = re.compile(r"    (\w+(?:, \w+)*): (.*)", re.DOTALL)
ARXIV = re.compile(r"(arXiv (?:[a-z-]+/)?[\d.]+\d)((?:, \d{4}\.\d{4,5})*)")


def blocks(documented: object) -> list[str]:
    """The paragraphs of a docstring, in order; an "Args:" section is one block, its header on the first line."""
    text = inspect.getdoc(documented)
    if not text:
        raise ValueError(f"{documented!r} has no docstring, and the page is made of it.")
    return re.split(r"\n{2,}(?! )", text.strip())


def arguments(documented: object) -> dict[str, str]:
    """What the "Args:" section of a docstring says of each argument, on one line."""
    for block in blocks(documented):
        if block.startswith("Args:\n"):
            items = re.split(r"\n(?=    \S)", block.partition("\n")[2])
            found = [ITEM.fullmatch(item) for item in items]
            return {match[1]: _one_line(match[2]) for match in found if match}
    return {}


def prose(documented: object, *, skip: tuple[str, ...] = ("Args:", "Attributes:", "Returns:")) -> str:
    """A docstring as Markdown without the paragraphs that start with one of ``skip``, papers linked."""
    return linked("\n\n".join(block for block in blocks(documented) if not block.startswith(skip)))


def bullets(entries: dict[str, str]) -> str:
    """Arguments and their meaning as a list."""
    return linked("\n".join(f"- `{name}`: {text}" for name, text in entries.items()))


def summary(documented: object) -> str:
    """The first paragraph of a docstring on one line, without its full stop."""
    return linked(_one_line(blocks(documented)[0].split("\n\n")[0]).rstrip(".:"))


def sections(documented: object) -> tuple[str, dict[str, str]]:
    """A docstring with "## " headings as (what stands before them, heading -> text), papers linked."""
    text = linked(inspect.getdoc(documented) or "")
    before, *rest = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return before.strip(), {title: body.strip() for title, body in zip(rest[::2], rest[1::2], strict=True)}


def field_docs(config: type) -> dict[str, str]:
    """The strings below the fields of a dataclass, on one line each, in their order."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    name = ""
    for statement in body.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and name:
            found[name] = linked(_one_line(str(statement.value.value)))
    return found


def linked(text: str) -> str:
    """Text with its arXiv numbers as links."""

    def link(match: re.Match[str]) -> str:
        first = match[1].removeprefix("arXiv ")
        more = "".join(f", [{number}](https://arxiv.org/abs/{number})" for number in match[2].split(", ")[1:])
        return f"[{match[1]}](https://arxiv.org/abs/{first}){more}"

    return ARXIV.sub(link, text)


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())
