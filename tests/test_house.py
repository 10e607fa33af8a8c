"""The house: imports run one way and in no circle, and files are short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dxmi_rl
from dxmi_rl.agents import AGENTS, Agent

PACKAGE = Path(dxmi_rl.__file__).parent
LONGEST = 350
"""Lines of a file."""
LAYERS = [
    ["utils", "costs"],
    ["networks"],
    ["targets"],
    ["diffusion"],
    ["rollout", "fast_rollout", "live_energy", "mdp", "smc"],
    ["tasks"],
    ["envs"],
    ["dxmi_rl"],  # the package's own __init__, which registers the environments
    ["agents"],
    ["irl"],
    ["evaluation"],
    ["anomaly"],
    ["benchmark"],
    ["zoo"],
    ["cli"],
    ["__main__"],
]
"""Packages and modules from the bottom up: each imports from its own layer and those before it."""


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imported(module: str) -> set[str]:
    """Modules of the package that a module imports.

    Every import counts, also those inside functions, which only put off the loading of a library that is slow or not
    installed. Only those under ``if TYPE_CHECKING:`` do not count, as nothing runs them. A name that a package hands on
    counts as an import of the package, a submodule as one of the submodule.
    """
    found: set[str] = set()
    for node in running(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{module}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return {name for name in found if name in FILES} - {module}


def running(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from running(node)


GRAPH = {module: imported(module) for module in FILES}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules in circles: those left when modules without imports among the rest are taken away, from both ends."""
    left = {module: set(others) for module, others in graph.items()}
    while True:
        used = set().union(*left.values()) if left else set()
        free = {module for module, others in left.items() if not others & left.keys() or module not in used}
        if not free:
            return [[module, *sorted(others & left.keys())] for module, others in sorted(left.items())]
        left = {module: others - free for module, others in left.items() if module not in free}


def layer(module: str) -> int:
    name = module.split(".")[1] if "." in module else module
    found = [index for index, names in enumerate(LAYERS) if name in names]
    assert found, f"{module} must have a place in LAYERS"
    return found[0]


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": set()}
    assert [found[0] for found in circles(graph)] == ["b", "c"]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert GRAPH["dxmi_rl.evaluation.evaluate"] >= {"dxmi_rl.evaluation.floors", "dxmi_rl.mdp"}
    assert circles(GRAPH) == []


def test_imports_run_one_way() -> None:
    upwards = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in sorted(others)
        if layer(other) > layer(module)
    ]
    assert upwards == []


@pytest.mark.parametrize("module", FILES)
def test_a_file_can_be_read_in_one_sitting(module: str) -> None:
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"look for the two things in {module}"


@pytest.mark.parametrize("name", AGENTS.names())
def test_no_agent_is_more_than_two_classes_below_agent(name: str) -> None:
    between = [kind for kind in AGENTS[name].__mro__ if issubclass(kind, Agent) and kind is not Agent]
    assert len(between) <= 2, f"{name}: {[kind.__name__ for kind in between]}"
