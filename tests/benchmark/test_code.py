"""The version of the code that matters: what changes a run's key, and what does not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from dxmi_rl.agents import AGENTS
from dxmi_rl.benchmark import code
from dxmi_rl.benchmark.protocol import Row
from dxmi_rl.diffusion import KERNELS

CACHES = (code.code_digest, code._imported, code._tree, code._meaning)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of two agents and a core, in place of this one."""
    files = {
        "core.py": "def work(x):\n    return x + 1\n",
        "agents/__init__.py": "from pack.agents.one import One\nfrom pack.agents.two import Two\nREGISTRY = {}\n",
        "agents/one.py": "from pack.core import work\nclass One:\n    pass\n",
        "agents/two.py": "from pack.core import work\nclass Two:\n    pass\n",
        "score.py": "from pack.agents import REGISTRY, One\n",
        "data/table.json": "{}",
    }
    for name, text in files.items():
        file = tmp_path / "pack" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "pack")
    forget()
    yield tmp_path / "pack"
    forget()


def forget() -> None:
    for cache in CACHES:
        cache.cache_clear()


def digest(*modules: str) -> str:
    forget()
    return code.code_digest(modules or ("pack.agents.one",))


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_what_an_agent_reaches_counts(package: Path) -> None:
    before = digest()
    replace(package / "core.py", "x + 1", "x + 2")
    assert digest() != before
    replace(package / "core.py", "x + 2", "x + 1")
    assert digest() == before
    (package / "data" / "table.json").write_text("[]", encoding="utf-8")
    assert digest() != before


def test_other_agents_do_not_count(package: Path) -> None:
    before = digest()
    replace(package / "agents" / "two.py", "pass", "width = 3")
    (package / "agents" / "three.py").write_text("import os", encoding="utf-8")
    replace(package / "agents" / "__init__.py", "REGISTRY", "from pack.agents.three import os\nREGISTRY")
    assert digest() == before != digest("pack.agents.two")


def test_names_that_a_package_hands_on_are_followed(package: Path) -> None:
    assert code._closure(["pack.score"]) == {"pack.score", "pack.agents.one", "pack.core"}


@pytest.mark.parametrize(
    "text",
    [
        "# a comment\ndef work(x):\n    return x + 1\n",
        '"""A docstring."""\n\ndef work(x):\n    """Another."""\n    return (x\n        + 1)\n',
        "def work(x):\n    return x + 1\nNAMES.add('another', 3)\nfor name in ('a', 'b'):\n    NAMES.add(name, 2)\n",
    ],
)
def test_words_layout_and_registrations_do_not_count(package: Path, text: str) -> None:
    before = digest()
    (package / "core.py").write_text(text, encoding="utf-8")
    assert digest() == before


def test_imports_for_type_checkers_are_not_followed(package: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pack.agents.two\n"
    (package / "core.py").write_text(text, encoding="utf-8")
    assert code._closure(["pack.core"]) == {"pack.core"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a(None)", "a()"), ("a(0)", "a(False)"), ("x = 1", "x = 1.0"), ("f'{a}b'", "f'{a}c'"), ("a < b", "a <= b"),
        ("def f(*, a): pass", "def f(a): pass"), ("[a for a in b]", "{a for a in b}"), ("a = b = 1", "a = 1"),
    ],
)  # fmt: skip
def test_everything_that_does_something_counts(first: str, second: str) -> None:
    assert code._plain(ast.parse(first)) != code._plain(ast.parse(second))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(AGENTS))
def test_a_run_reaches_its_agent_and_what_scores_it(name: str) -> None:
    around = name in ("dxmi", "any-step", "any-class")
    settings = {"agent": "ppo"} if around else {}
    task = "8gaussians-data" if name == "dxmi" else "8gaussians"
    row = Row(name, task, name, int(AGENTS[name].trains), agent_settings=settings)
    modules = row.modules()
    reached = code._closure(modules)
    scoring = {"dxmi_rl.evaluation.evaluate", "dxmi_rl.evaluation.metrics", "dxmi_rl.mdp"}
    assert {AGENTS[name].__module__, *scoring} <= reached
    assert "dxmi_rl.targets.mixtures" in reached and "dxmi_rl.targets.funnel" not in reached
    assert ("dxmi_rl.agents.ppo" in reached) == (name == "ppo" or around)
    assert ("dxmi_rl.agents.dxdp" in reached) == (name == "dxdp")
    assert ("dxmi_rl.envs.sb3" in reached) == name.startswith("sb3")
    harness = [module for module in reached if module.startswith("dxmi_rl.benchmark.")]
    assert harness == ["dxmi_rl.benchmark.measure"]


def test_the_recipe_of_a_fixed_energy_counts() -> None:
    rows = [Row("ppo", "digits", "ppo", 1, task_settings=settings) for settings in ({"energy": "fixed"}, {})]
    with_energy, without = (code._closure(row.modules()) for row in rows)
    assert {"dxmi_rl.irl.fixed", "dxmi_rl.irl.recipe_files", "dxmi_rl.irl.dxmi"} <= with_energy - without


@pytest.mark.parametrize("name", list(KERNELS))
def test_a_run_reaches_its_backward_kernel(name: str) -> None:
    row = Row("a", "8gaussians", "ppo", 100, task_settings={"backward": name})
    assert KERNELS[name].__module__ in code._closure(row.modules())
