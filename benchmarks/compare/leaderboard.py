"""Write docs/leaderboard.md, docs/experiments/, tables of README and docs/results_energy.md from benchmarks/results/.

    python benchmarks/compare/leaderboard.py            write all
    python benchmarks/compare/leaderboard.py --check    exit status 1 when one of them is not what the results give

A submission is the ``results.json`` of one comparison (``dxmi-rl compare``), named after it, such as
``benchmarks/results/standard.json``. Results in the folder ``experiments`` beside the submissions are of comparisons
that rank nobody, and have a page each. This script trains nothing.
"""

from __future__ import annotations

import html
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

from benchmarks.compare.published import all_rows, best_rows
from benchmarks.compare.ranking import EXACT, Entry, by_mean_rank, ranked
from benchmarks.compare.submissions import check_submission
from benchmarks.scripts import RESULTS, ROOT
from dxmi_rl.benchmark.report import load_results
from dxmi_rl.benchmark.report.content import Comparison
from dxmi_rl.benchmark.report.text import markdown
from dxmi_rl.benchmark.results import RULERS, SCHEMA
from dxmi_rl.benchmark.tables import compact, number
from dxmi_rl.utils.storage import write_text

START, END = "<!-- leaderboard: written by benchmarks/compare/leaderboard.py -->", "<!-- leaderboard: end -->"
TABLES_START, TABLES_END = START.replace("leaderboard:", "tables:"), END.replace("leaderboard:", "tables:")
TABLES = "tables"
"""The experiment that README and docs/results_energy.md show beside what is published."""
OURS = "standard"
"""The submission that others are compared with: its rows stand for those that they repeat."""
TUNING = "tuning.json"
"""The record of the search for settings lies beside the submissions (benchmarks/tuning/tune.py)."""
INTRODUCTION = """\
`python benchmarks/compare/leaderboard.py` writes this page from the files in `benchmarks/results/`; a test checks that
they agree. To enter, run `dxmi-rl compare --preset standard --agent my_module:MyAgent` and add its
`results.json` to that folder in a pull request ([an agent of your own](own_agents.md)). What the tables show, in words:
[results](results.md#leaderboard-dxdp-against-the-others).

- Scores are interquartile means over seeds with 95 % intervals ([statistics](statistics.md)).
- *Normalised* is 0 for the base sampler and 1 for an exact sampler.
- A run that diverged counts as the worst run of its task, over all submissions. Where runs diverged, or one run is far
  from all others, the range of the runs stands in place of an interval.
- Budgets, and how rows are scored, are the same for all rows of a table; the last iteration of a run may go beyond its
  budget by a quarter at most. An agent that lacks runs has no rank, nor has one that is not ours and names no
  budget, as a model that was trained elsewhere. Seeds count from 0.
- A *best checkpoint*, where it was scored, is chosen on other draws than it is scored on.
- The tracks are never mixed: "sample" gives the energy only, "fine-tune" a denoiser as well."""
README_ROWS = 5
"""Agents in README's table."""
ARROWS = {"lower": "↓", "higher": "↑"}
COSTS = {"energy_evals": "energy evaluations", "gradient_steps": "gradient steps", "seconds": "seconds"}
"""Columns of what training cost; results from before a cost was counted lack it."""


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    results: Path = RESULTS
    """Folder of submissions."""
    readme: Path = ROOT / "README.md"
    """File with the marker lines, between which tables go."""
    page: Path = ROOT / "docs" / "leaderboard.md"
    """The page."""
    figures: Path = ROOT / "docs" / "results_energy.md"
    """The page of figures, with marker lines of its own."""
    experiments: Path = ROOT / "docs" / "experiments"
    """Folder of the pages of experiments."""
    check: bool = False
    """Write nothing; exit status 1 when a file is out of step."""


def load_submissions(folder: Path) -> dict[str, dict[str, Any]]:
    """Submissions by name, ours first. Raises FileNotFoundError when there is none, ValueError for a bad file."""
    files = [file for file in folder.glob("*.json") if file.name != TUNING]
    files.sort(key=lambda file: (file.stem != OURS, file.stem))
    if not files:
        raise FileNotFoundError(f"no submissions (*.json) in {str(folder)!r}.")
    return {file.stem: load_whole(file) for file in files}


def load_whole(file: Path, *, ranks: bool = True) -> dict[str, Any]:
    """Results that can be shown, and ranked with ``ranks``. Raises ValueError, naming file and field, for others."""
    results = load_results(file)
    try:
        check_submission(file.stem, results)
        experiment_page(file.stem, results)
        if ranks:
            page({file.stem: results})
            readme_table({file.stem: results})
    except (ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError) as error:
        raise ValueError(f"{str(file)!r} is malformed: {type(error).__name__}: {error}.") from error
    except ValueError as error:
        raise ValueError(f"{str(file)!r}: {error}") from error
    return results


def plain(text: str) -> str:
    """Text of a submission as it reads, in Markdown: no tags, links, cells, headings or lines of its own."""
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def page(submissions: dict[str, dict[str, Any]]) -> str:
    """The leaderboard: a table per task over all submissions, then every submission's own tables."""
    lines = ["# Leaderboard", "", INTRODUCTION, ""]
    if (old := next(iter(submissions.values()))["schema"]) != SCHEMA:
        lines += [
            f"**The fitted kernel of these runs is {RULERS[old]}.** That of new runs is {RULERS[SCHEMA]}, which is "
            f"tighter. Until `{OURS}` has been run again they cannot be compared, and are refused where bounds rank.",
            "",
        ]
    for title, entries in ranked(submissions).items():
        task = entries[0].task
        shown = {key: plain(str(task[key])) for key in ("track", "dim", "horizon")}
        floor = "" if task["floor"] is None else f", an exact sampler {number(task['floor'])}"
        ruler = RULERS[submissions[entries[0].submission]["schema"]]
        fitted = f" The fitted kernel is {ruler}." if task["score"] == "kl_bound_fit" else ""
        lines += [
            f"## {plain(title)}",
            "",
            f"Track {shown['track']}, dimension {shown['dim']}, T = {shown['horizon']}, tau = {number(task['tau'])}; "
            f"ranked by `{task['score']}` ({task['better']} is better{floor}).{fitted}",
            "",
        ]
        with_best = any(entry.row["best"] for entry in entries)  # where best checkpoints were scored
        header = ["rank", "agent", f"`{task['score']}` {ARROWS[task['better']]}"]
        header += ["best checkpoint"] if with_best else []
        header += ["normalised", "runs", "budget", *COSTS.values(), "submission"]
        lines += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
        for rank, entry in enumerate(entries, 1):
            lines.append(_line(rank if entry.complete else None, entry, with_best))
        lines.append("")
    for name, results in submissions.items():
        text = markdown(Comparison(results)).replace("\n## ", "\n### ").replace("# ", "## Submission ", 1)
        lines += [text, _origin(results, f"{name}.json"), ""]
    return "\n".join(lines).rstrip() + "\n"


def _origin(results: dict[str, Any], file: str) -> str:
    found = Counter(run["machine"]["processor"] for run in results["runs"])
    processors = ", ".join(f"{plain(str(name))} ({count} runs)" for name, count in found.most_common())
    return f"Written on {plain(str(results['date']))} from `benchmarks/results/{file}`. Processors: {processors}."


def experiment_page(name: str, results: dict[str, Any]) -> str:
    """Tables of one comparison, and the file they come from."""
    text = markdown(Comparison(results)).rstrip()
    return f"{text}\n\n{_origin(results, f'experiments/{name}.json')}\n"


def _line(rank: int | None, entry: Entry, with_best: bool) -> str:
    row, costs = entry.row, entry.row["costs"]
    best = row["best"].get(entry.task["score"])
    budget = f"{compact(row['budget'])} {row['unit'].replace('_', ' ')}" if row["budget"] else ""
    shown = (entry.score, best, row["normalised"]) if with_best else (entry.score, row["normalised"])
    scores = [interval_text(statistics) for statistics in shown]
    cells = [
        "" if rank is None else str(rank), plain(entry.label), *scores, entry.runs, budget,
        *(compact(costs[cost]) if cost in costs else "" for cost in COSTS), plain(entry.submission),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def interval_text(statistics: dict[str, Any] | None) -> str:
    """``0.18 [0.17, 0.2]``, or nothing."""
    if statistics is None:
        return ""
    text = number(statistics["iqm"])
    return f"{text} [{number(statistics['low'])}, {number(statistics['high'])}]" if "low" in statistics else text


def readme_table(submissions: dict[str, dict[str, Any]]) -> str:
    """README's table: the agents with the best mean rank by tasks; a task's best score is bold."""
    tasks = ranked(submissions)
    ours = ranked(dict(list(submissions.items())[:1]))
    tasks = {title: entries for title, entries in tasks.items() if title in ours}
    labels = by_mean_rank(tasks)[:README_ROWS]
    names = []
    for title, entries in tasks.items():
        task = entries[0].task
        names.append(f"{plain(title)}, `{task['score']}` {ARROWS[task['better']]}")
    lines = ["| agent | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    floors = [entries[0].task["floor"] for entries in tasks.values()]
    lines.append(f"| {EXACT} | " + " | ".join("" if floor is None else number(floor) for floor in floors) + " |")
    for label in labels:
        cells = []
        for entries in tasks.values():
            own = next((entry for entry in entries if entry.label == label), None)
            text = "" if own is None else interval_text(own.score) if own.row["runs"] else "all runs diverged"
            if own is not None and 0 < own.row["runs"] < own.seeds:
                text += f" ({own.runs} runs)"
            cells.append(f"**{text}**" if own is entries[0] else text)
        lines.append(f"| {plain(label)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def between_markers(text: str, table: str, start: str = START, end: str = END) -> str:
    """``text`` with ``table`` between the marker lines. Raises ValueError when it lacks them."""
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"the file must hold the lines {start!r} and {end!r} once.")
    head, rest = text.split(start)
    return f"{head}{start}\n\n{table}\n\n{end}{rest.split(end)[1]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check; exit status 1 when a file is out of step, 2 for bad input."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        submissions = load_submissions(arguments.results)
        readme = arguments.readme.read_text(encoding="utf-8")
        wanted = {
            arguments.readme: between_markers(readme, readme_table(submissions)),
            arguments.page: page(submissions),
        }
        for file in sorted((arguments.results / "experiments").glob("*.json")):
            results = load_whole(file, ranks=False)
            wanted[arguments.experiments / f"{file.stem}.md"] = experiment_page(file.stem, results)
            if file.stem == TABLES:
                readme, figures = wanted[arguments.readme], arguments.figures.read_text(encoding="utf-8")
                wanted[arguments.readme] = between_markers(readme, best_rows(results), TABLES_START, TABLES_END)
                wanted[arguments.figures] = between_markers(figures, all_rows(results), TABLES_START, TABLES_END)
        for text in wanted.values():
            text.encode("utf-8")  # before anything is written
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    stale = [file for file, text in wanted.items() if not file.is_file() or file.read_text(encoding="utf-8") != text]
    for file in stale:
        if arguments.check:
            print(f"{file} is out of step with {arguments.results}: run python benchmarks/compare/leaderboard.py")
        else:
            write_text(file, wanted[file])
            print(f"wrote {file}")
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
