"""docs/agents/: a page for every agent, in step with code, results and the settings that run."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from agent_cases import PRETRAINING, skip_without_extra
from docpages import agents as pages
from docpages.docstrings import settings_table

import dxmi_rl
from dxmi_rl import cli
from dxmi_rl.agents import AGENTS, Agent
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.settings import parsed_settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NAMES = AGENTS.names()


def page_of(name: str) -> str:
    return (DOCS / "agents" / f"{name}.md").read_text(encoding="utf-8")


def test_no_page_is_missing_or_left_over() -> None:
    assert {page.stem for page in (DOCS / "agents").glob("*.md")} == {*NAMES, "index"}, "run: make docs"


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_all(name: str) -> None:
    text = page_of(name)
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert headings[:4] == ["When to use it", "Example", "Settings", "Results"]
    assert "To be written" not in text and "Raises" not in text
    (row,) = re.findall(rf"^\| \[{name}\]\({name}\.md\) \|.*\| (yes|no) \|$", page_of("index"), re.MULTILINE)
    kind = AGENTS[name]
    assert row == ("yes" if (kind if kind.trains else kind("8gaussians")).has_density else "no")


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_those_that_run(name: str) -> None:
    skip_without_extra(name)
    assert pages.settings(name) in page_of(name), "run: make docs"


def test_nested_settings_have_rows_of_their_own() -> None:
    @dataclass(frozen=True)
    class PolicyConfig:
        width: int = 64
        """Units per layer."""

    @dataclass(frozen=True)
    class Config(PolicyConfig):
        rate: float = 0.1
        """Of Adam (arXiv 1412.6980)."""
        policy: PolicyConfig = field(default_factory=PolicyConfig)
        """The policy's network."""

    for config in (Config, Config()):
        assert settings_table(config).splitlines()[2:] == [
            "| `width` | `64` | Units per layer. |",
            "| `rate` | `0.1` | Of Adam ([arXiv 1412.6980](https://arxiv.org/abs/1412.6980)). |",
            "| `policy.width` | `64` | Units per layer. |",
        ]
    assert "| `policy.width` | `32` |" in settings_table(Config(policy=PolicyConfig(32)))


def test_results_are_those_of_the_standard_preset() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "standard.json").read_text(encoding="utf-8"))
    for row in results["summary"]:
        text, score = page_of(row["agent"]), results["tasks"][row["task"]]["score"]
        (line,) = [line for line in text.splitlines() if line.startswith((f"| {row['task']} |", f"| {row['task']}, "))]
        if score in row["scores"]:
            assert pages.interval_text(row["scores"][score]) in line
        assert f"{row['runs']} of {len(row.get('seeds', results['seeds']))}" in line
        assert results["command"] in text and f"--agents {row['label']}`" in text


def test_the_search_is_on_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    entry: dict[str, Any] = {
        "task": {"name": "gmm9"}, "trials": 9, "budget": 1000, "seeds": 3, "score": "kl_bound", "default": None,
        "best": 0.25, "settings": {"clip_range": 0.9, "n_epochs": AGENTS["ppo"].Config().n_epochs},
    }  # fmt: skip
    monkeypatch.setattr(pages, "search_record", lambda: {"ppo": entry})
    assert "best of 9 trials of 1,000 transitions on 3 seeds of gmm9" in pages.settings("ppo")
    assert "`kl_bound` diverged before the search, 0.25 after it" in pages.settings("ppo")
    assert "Changed by hand since: `clip_range`.\n" in pages.settings("ppo")
    assert "not tuned" in pages.settings("dxdp")


def test_the_table_of_the_search_is_its_record() -> None:
    table = (DOCS / "tuning.md").read_text(encoding="utf-8")
    for name, entry in pages.search_record().items():
        before, after = (pages.number(entry[key]) for key in ("default", "best"))
        assert f"| [{name}](agents/{name}.md) | `{entry['score']}` | {before} | {after} |" in table


# Snippets -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_snippets_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one iteration and hardly any evaluation."""
    skip_without_extra(name)
    (code,) = re.findall(r"```python\n(.*?)```", page_of(name), re.DOTALL)
    learn, evaluate, make_task = Agent.learn, dxmi_rl.evaluate, dxmi_rl.make_task
    small: dict[str, Any] = {"samples": 100, "draws": 1, "trajectories": 100, "fit": False, "floors": False}
    if name == "dxmi":
        monkeypatch.setattr(dxmi_rl, "make_task", lambda task: make_task(task, pretraining=PRETRAINING))
    monkeypatch.setattr(Agent, "learn", lambda agent, budget, **options: learn(agent, min(budget, 1)))
    monkeypatch.setattr(dxmi_rl, "evaluate", lambda agent, **options: evaluate(agent, **options, **small))
    names: dict[str, Any] = {}
    exec(compile(code, name, "exec"), names)
    assert len(names["x"]) == 10_000 and {"sliced_w2", "reward"} & set(names["scores"])


@pytest.mark.parametrize("name", NAMES)
def test_command_lines_are_sound(name: str) -> None:
    (line,) = re.findall(r"^    dxmi-rl (.*)", page_of(name), re.MULTILINE)
    words = shlex.split(line)
    chosen = cli.tyro.cli({"train": cli.Train, "evaluate": cli.Evaluate}[words[0]], args=words[1:])
    assert chosen.agent == name
    assert chosen.task is not None and dxmi_rl.tasks.TASKS[chosen.task]
    for key in parsed_settings("task_set", chain(*chosen.task_set)):
        assert key in dxmi_rl.tasks.TaskConfig.__dataclass_fields__


def test_a_page_of_an_unknown_agent_is_an_error() -> None:
    with pytest.raises(UnknownNameError):
        pages.blocks("pppo")
