"""docs/agents/: a page for every agent, in step with code, results and tuned settings; links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from agent_cases import PRETRAINING, skip_without_extra

import dxmi_rl
from dxmi_rl import cli
from dxmi_rl.agents import AGENTS, Agent
from dxmi_rl.utils.registry import UnknownNameError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import _agent_notes as notes  # noqa: E402
import make_agent_pages  # noqa: E402

PAGES = sorted((DOCS / "agents").glob("*.md"))
NAMES = AGENTS.names()


@pytest.fixture(scope="module")
def generated() -> dict[Path, str]:
    return make_agent_pages.pages()


def page_of(name: str) -> str:
    return (DOCS / "agents" / f"{name}.md").read_text(encoding="utf-8")


def test_no_page_is_missing_or_left_over(generated: dict[Path, str]) -> None:
    assert {DOCS / path for path in generated} == set(PAGES)
    assert {page.stem for page in PAGES} == {*NAMES, "index"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_is_up_to_date(page: Path, generated: dict[Path, str]) -> None:
    assert page.read_text(encoding="utf-8") == generated[page.relative_to(DOCS)], "run: make docs"


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_all(name: str) -> None:
    text = page_of(name)
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    trains = AGENTS[name].trains
    first, third = ("What it optimises", "Train it") if trains else ("What it does", "Run it")
    wanted = [first, "Use", third, "Settings", "Results"]
    wanted += ["What its parts bring"] if notes.NOTES[name].findings else []
    assert headings == wanted, "an entry in docs/_agent_notes.py?"
    for field in fields(AGENTS[name].Config):
        assert f"| `{field.name}` |" in text
    assert "Raises" not in text and "Subclasses" not in text
    assert f"]({name}.md)" in page_of("index")


def test_notes_are_of_agents() -> None:
    assert set(notes.NOTES) <= set(NAMES)
    assert {entry.family for entry in notes.NOTES.values()} <= set(notes.FAMILIES)


def test_results_are_those_of_the_standard_preset() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "standard.json").read_text(encoding="utf-8"))
    for row in results["summary"]:
        text, score = page_of(row["agent"]), results["tasks"][row["task"]]["score"]
        (line,) = [line for line in text.splitlines() if line.startswith((f"| {row['task']} |", f"| {row['task']}, "))]
        if score in row["scores"]:
            assert make_agent_pages.interval_text(row["scores"][score]) in line
        assert f"{row['runs']} of {len(row.get('seeds', results['seeds']))}" in line
        assert results["command"] in text and f"--agents {row['label']}`" in text


def test_tuned_values_stand_beside_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {
        "command": "python benchmarks/tuning/tune.py", "task": {"name": "gmm9"}, "trials": 9, "budget": 1000,
        "seeds": 3, "score": "kl_bound", "default": None, "best": 0.25, "scores": [],
    }  # fmt: skip
    content = {"ppo": entry | {"settings": {"clip_ratio": 0.123}}, "dxdp": entry | {"settings": {}}}
    (tmp_path / "tuning.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(make_agent_pages, "TUNING", tmp_path / "tuning.json")
    make_agent_pages.main(["ppo", "dxdp", "--output", str(tmp_path)])
    ppo, dxdp = ((tmp_path / "agents" / f"{name}.md").read_text(encoding="utf-8") for name in ("ppo", "dxdp"))
    assert "| `clip_ratio` | `0.2` | `0.123` |" in ppo and "| `epochs` | `4` |  |" in ppo
    assert "best of 9 trials of 1,000 transitions on 3 seeds of gmm9" in ppo
    assert "`kl_bound` 0.25, and diverged with the defaults" in ppo
    assert "The defaults won." in dxdp and "The defaults won." not in ppo
    assert "| [ppo](ppo.md) | `kl_bound` | diverged | 0.25 |" in make_agent_pages.index_page()
    with pytest.raises(SystemExit):
        make_agent_pages.main(["pppo"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|``.*?``|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            assert re.fullmatch(r"https://arxiv\.org/abs/([a-z-]+/\d{7}|\d{4}\.\d{4,5})", link)
        else:
            path, _, anchor = link.partition("#")
            file = (page.parent / path).resolve()
            assert file.exists(), link
            assert not anchor or f"\n## {anchor}\n" in file.read_text(encoding="utf-8").lower(), link
    assert "arXiv" not in re.sub(r"\[[^]]*\]\([^)\s]+\)", "", text), "a paper without its link"


# Snippets -------------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(dxmi_rl, "evaluate", lambda agent: evaluate(agent, **small))
    names: dict[str, Any] = {}
    exec(compile(code, name, "exec"), names)
    assert len(names["x"]) == 10_000 and names["scores"]["sliced_w2"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_command_lines_are_sound(name: str) -> None:
    pytest.importorskip("tyro")
    (line,) = re.findall(r"^    dxmi-rl (.*)", page_of(name), re.MULTILINE)
    words = shlex.split(line)
    chosen = cli.tyro.cli({"train": cli.Train, "evaluate": cli.Evaluate}[words[0]], args=words[1:])
    assert chosen.agent == name
    assert dxmi_rl.tasks.TASKS[chosen.task]
    for key in cli.settings("task_set", chosen.task_set):
        assert key in dxmi_rl.tasks.TaskConfig.__dataclass_fields__


def test_an_agent_without_notes_has_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(notes.NOTES, "ppo")
    assert "## Use" not in make_agent_pages.agent_page("ppo")
    assert f"## {notes.OTHER}\n" in make_agent_pages.index_page()
    with pytest.raises(UnknownNameError):
        make_agent_pages.agent_page("pppo")
