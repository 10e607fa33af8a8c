"""Cards of the zoo's agents, and its page."""

from __future__ import annotations

from collections.abc import Sequence

from dxmi_rl.benchmark.tables import number
from dxmi_rl.utils.storage import JSON


def card(name: str, entry: JSON, evaluation: str, *, picture: bool) -> str:
    """The card of one agent, in Markdown; ``evaluation`` says what its scores are over."""
    lines = [f"# {name}", ""]
    if "timesteps" in entry:
        lines += [
            f"`{entry['agent']}` on `{entry['task']}`, T = {entry['horizon']}, trained for {entry['timesteps']:,} "
            f"transitions with {entry['energy_evals']:,} energy evaluations and {entry['gradient_steps']:,} gradient "
            f"steps in {entry['seconds']:,.0f} seconds; seed {entry['seed']}.", "",
            "```python", "import dxmi_rl", "", f'agent = dxmi_rl.load_pretrained("{name}")', "x = agent.sample(1000)",
            "```", "",
        ]  # fmt: skip
    else:
        lines += [
            f"`EnergyDetector` of the table `{entry['task']}`, fitted to a half of its inliers in "
            f"{entry['seconds']:,.0f} seconds; seed {entry['seed']}.", "",
            "```python", "from dxmi_rl.zoo import load_pretrained_detector", "",
            f'detector = load_pretrained_detector("{name}")', "```", "",
        ]  # fmt: skip
    lines += [f"![{name}]({name}.png)", ""] if picture else []
    lines += ["| score | mean | standard deviation | exact samples |", "|---|---|---|---|"]
    for key, kept in entry["scores"].items():
        floor = number(kept["floor"]) if "floor" in kept else ""
        lines.append(f"| `{key}` | {number(kept['mean'])} | {number(kept['std'])} | {floor} |")
    made = ", ".join(f"{key} {value}" for key, value in entry["versions"].items())
    lines += [
        "", f"Over {evaluation}.", "",
        f"Trained again by `{entry['command']}`. Made with {made}, on "
        f"{entry['machine']['gpu'] or entry['machine']['processor']}. "
        f"{'Licence ' + entry['licence'] + '; ' if entry['licence'] else ''}SHA-256 {entry['sha256']}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def count(entry: JSON, key: str) -> str:
    """Detectors have no transitions."""
    return f"{entry[key]:,}" if key in entry else ""


def overview(entries: dict[str, JSON], scores: Sequence[str]) -> str:
    """The page of the zoo, in Markdown: a line per agent, with the first of ``scores`` that it has."""
    lines = [
        "# Trained agents", "",
        "`dxmi_rl.load_pretrained(name)` loads one, `dxmi-rl zoo list` names them and `dxmi-rl zoo check` scores them "
        "again. Each has a card with its command, scores and versions. Without a clone of the repository, set "
        "`DXMI_RL_ZOO` to a copy of this folder.", "",
        "| name | task | transitions | energy evaluations | seconds | main score |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, entry in entries.items():
        key = next((key for key in scores if key in entry["scores"]), None)
        kept = {} if key is None else entry["scores"][key]
        score = "" if key is None else f"`{key}` {number(kept['mean'])}"
        lines.append(
            f"| [{name}]({name}.md) | {entry['task']} | {count(entry, 'timesteps')} | "
            f"{count(entry, 'energy_evals')} | {entry['seconds']:,.0f} | {score} |"
        )
    return "\n".join(lines) + "\n"
