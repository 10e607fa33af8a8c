"""The version of the code that matters to a run: a digest of the source that its agent and task reach by import."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
"""Where the source of dxmi_rl lies."""

DATA_OF = {"dxmi_rl.irl.recipe_files": "irl/recipes", "dxmi_rl.diffusion.pretraining": "shipped"}
"""Folders of data that count where their module is reached; "data" always does."""


@functools.cache
def code_digest(modules: tuple[str, ...]) -> str:
    """Digest of the given modules of this package and of all that they import from it, and of its data files.

    Comments, docstrings, layout and registrations (``NAME.add(...)`` at the top level) do not count, and neither does
    what a run never reaches: a new agent, target or report leaves the digests of finished runs alone.
    """
    digest = hashlib.sha256()
    reached = _closure(modules)
    for module in sorted(reached):
        digest.update(f"{module}\n{_meaning(module)}\n".encode())
    folders = ["data", *(folder for module, folder in DATA_OF.items() if module in reached)]
    for file in (file for folder in folders for file in sorted((PACKAGE / folder).iterdir())):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def digest_of_code(source: str) -> str:
    """Digest of Python source; comments, docstrings and layout do not count. Raises SyntaxError."""
    return hashlib.sha256(_plain(ast.parse(source).body).encode()).hexdigest()[:12]


def _closure(modules: Iterable[str]) -> set[str]:
    found: set[str] = set()
    left = list(modules)
    while left:
        module = left.pop()
        if module not in found and _file(module) is not None:
            found.add(module)
            left += _imported(module)
    return found


@functools.cache
def _imported(module: str) -> list[str]:
    """Modules of this package that ``module`` imports at any level of nesting, but for those of type checkers."""
    names: list[str] = []
    left: list[ast.AST] = [_tree(module)]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            names += [_home(node.module, alias.name) for alias in node.names]
    return [name for name in names if name.split(".")[0] == PACKAGE.name]


def _home(module: str, name: str) -> str:
    """The module that ``from module import name`` takes the name from, through re-exports of packages."""
    if _file(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    if module.split(".")[0] != PACKAGE.name or not (PACKAGE.parent / module.replace(".", "/")).is_dir():
        return module
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom) and node.module and name in [alias.name for alias in node.names]:
            return _home(node.module, name)
    return ""  # a registry of the package itself: what is looked up there is added by name


def _file(module: str) -> Path | None:
    """The file of a module of this package that is no ``__init__``: those only gather names."""
    file = PACKAGE.parent / f"{module.replace('.', '/')}.py"
    return file if file.is_file() else None


@functools.cache
def _tree(module: str) -> ast.Module:
    file = _file(module) or PACKAGE.parent / module.replace(".", "/") / "__init__.py"
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def _meaning(module: str) -> str:
    return _plain([statement for statement in _tree(module).body if not _registers(statement)])


def _registers(statement: ast.stmt) -> bool:
    """``NAME.add(...)``, also inside a loop: which names exist does not matter to a run that uses another."""
    if isinstance(statement, (ast.For, ast.If)):
        return all(map(_registers, statement.body))
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add"


def _plain(node: object) -> str:
    """A syntax tree without positions and docstrings, the same under every version of Python."""
    if isinstance(node, list):
        # A string that stands alone is a docstring, of a module, class, function or field.
        kept = [item for item in node if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))]
        return f"[{','.join(map(_plain, kept))}]"
    if isinstance(node, ast.AST):
        return f"{type(node).__name__}({','.join(_fields(node))})"
    return repr(node)


def _fields(node: ast.AST) -> Iterator[str]:
    for name, value in ast.iter_fields(node):
        if value is not None and value != []:  # later versions have more fields, empty where nothing new is used
            yield f"{name}={_plain(value)}"
