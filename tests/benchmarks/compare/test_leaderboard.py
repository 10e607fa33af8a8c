"""benchmarks/compare/leaderboard.py: pages and README say what the submissions say, and nothing else."""

from __future__ import annotations

import copy
import functools
import json
import random
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from report_cases import make_results as made_up
from report_cases import summarise

from benchmarks.compare import leaderboard
from dxmi_rl.benchmark.results import RULERS


def make_results(**options: Any) -> dict[str, Any]:
    """Made-up results whose base scores are those of their base sampler."""
    return _made_results(**options) if options else copy.deepcopy(_usual_results())


@functools.cache
def _usual_results() -> dict[str, Any]:
    return _made_results()


def _made_results(**options: Any) -> dict[str, Any]:
    results = made_up(**options)
    for name, task in results["tasks"].items():
        task["base"] = fmean(run["scores"][task["score"]] for run in results["runs"]
                             if (run["task"], run["label"]) == (name, "base"))  # fmt: skip
    return summarise(results)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with one submission and a README with markers."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "first.json").write_text(json.dumps(make_results()), encoding="utf-8")
    (tmp_path / "results" / "tuning.json").write_text("{}", encoding="utf-8")  # no submission
    text = f"before\n{leaderboard.START}\nold\n{leaderboard.END}\nafter\n"
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    return tmp_path


def run(place: Path, *more: str) -> int:
    paths = {"--results": "results", "--readme": "README.md", "--page": "page.md", "--experiments": "experiments"}
    return leaderboard.main([*(word for key, name in paths.items() for word in (key, str(place / name))), *more])


@pytest.mark.slow
def test_the_committed_files_are_in_step() -> None:
    """README's table and docs/leaderboard.md are what benchmarks/results/ gives."""
    assert leaderboard.main(["--check"]) == 0, "run python benchmarks/compare/leaderboard.py"


def test_it_writes_once_and_checks(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, "--check") == 1 and "out of step" in capsys.readouterr().out
    assert not (place / "page.md").exists()
    assert run(place) == 0 and run(place, "--check") == 0
    text = (place / "README.md").read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text


@pytest.mark.slow
def test_experiments_have_pages_and_rank_nobody(place: Path) -> None:
    run(place)
    before = (place / "page.md").read_text(encoding="utf-8")
    (place / "results" / "experiments").mkdir()
    (place / "results" / "experiments" / "mine.json").write_text(json.dumps(make_results()), encoding="utf-8")
    assert run(place, "--check") == 1 and run(place) == 0 and run(place, "--check") == 0
    text = (place / "experiments" / "mine.md").read_text(encoding="utf-8")
    assert "benchmarks/results/experiments/mine.json" in text and "| ppo |" in text
    assert (place / "page.md").read_text(encoding="utf-8") == before


def test_rows_are_ranked_by_the_tasks_score(place: Path) -> None:
    run(place)
    results = json.loads((place / "results" / "first.json").read_text(encoding="utf-8"))
    page = (place / "page.md").read_text(encoding="utf-8")
    for name, task in results["tasks"].items():
        title = name if task["energy"] == "target" else f"{name}, {task['energy']} energy"
        section = page.split(f"## {title}\n", 1)[1].split("\n## ")[0]
        found = [line.split("|")[2].strip() for line in section.splitlines() if line.startswith("| ")][1:]
        rows = [row for row in results["summary"] if row["task"] == name]
        rows.sort(key=lambda row: row["scores"][task["score"]]["iqm"], reverse=task["better"] == "higher")
        assert found == [row["label"] for row in rows]


def test_several_submissions_share_tables(place: Path) -> None:
    second = make_results()
    for entry in second["runs"]:
        entry |= {"label": f"{entry['label']}, theirs", "key": entry["key"][::-1]}
        entry["scores"]["sliced_w2"] += 1e-3
    summarise(second)
    (place / "results" / "second.json").write_text(json.dumps(second), encoding="utf-8")
    assert run(place) == 0
    page = (place / "page.md").read_text(encoding="utf-8")
    section = page.split("## gmm25\n", 1)[1].split("\n## ")[0]
    assert "| first |" in section and "| second |" in section and "ppo, theirs" in section


def test_rows_that_are_repeated_stand_once(place: Path) -> None:
    second = make_results()  # of another name: what they share is ours
    (place / "results" / "standard.json").write_text(json.dumps(second), encoding="utf-8")
    assert run(place) == 0
    page = (place / "page.md").read_text(encoding="utf-8")
    section = page.split("## gmm25\n", 1)[1].split("\n## ")[0]
    assert "| standard |" in section and "| first |" not in section


def test_an_agent_that_lacks_runs_has_no_rank(place: Path) -> None:
    results = make_results()
    rows = [row for row in results["summary"] if row["task"] == "gmm25"]
    best = min(rows, key=lambda row: row["scores"]["kl_bound_fit"]["iqm"])
    results["runs"].remove(next(one for one in results["runs"] if is_of(best, one)))
    summarise(results)
    (place / "results" / "first.json").write_text(json.dumps(results), encoding="utf-8")
    assert run(place) == 0
    page = (place / "page.md").read_text(encoding="utf-8")
    section = page.split("## gmm25\n", 1)[1].split("\n## ")[0]
    last = [line for line in section.splitlines() if line.startswith("| ")][-1]
    assert last.startswith(f"|  | {best['label']} |") and "4 of 5" in last
    assert "(4 of 5 runs)" in (place / "README.md").read_text(encoding="utf-8")


def is_of(row: dict[str, Any], run: dict[str, Any]) -> bool:
    return bool((row["task"], row["label"]) == (run["task"], run["label"]))


def test_a_summary_that_its_runs_do_not_give_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (key, value) in enumerate({"iqm": -1e308, "low": 0.0, "median": None}.items()):
        results = make_results()
        row = next(row for row in results["summary"] if row["task"] == "gmm25")
        row["scores"]["kl_bound_fit"][key] = value
        (place / "results" / f"{number}.json").write_text(json.dumps(results), encoding="utf-8")
        assert run(place) == 2
        error = capsys.readouterr().err
        assert f"'{number}', row {row['label']!r} on 'gmm25': summary.scores.kl_bound_fit.{key} is {value!r}" in error
        (place / "results" / f"{number}.json").unlink()
    results = make_results()
    row = next(row for row in results["summary"] if row["task"] == "gmm25")
    row["runs"] += 1
    (place / "results" / "more.json").write_text(json.dumps(results), encoding="utf-8")
    assert run(place) == 2 and "summary.runs is 6, and runs with 'kl_bound_fit' are 5" in capsys.readouterr().err


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values in a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(own for key, part in inner for own in places(part, (*path, key)))]


@pytest.mark.slow
def test_malformed_submissions_are_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A field at random is removed or replaced: the page is written, or one line says which file is wrong."""
    text, chance, refused = json.dumps(make_results()), random.Random(0), 0
    paths = [path for path in places(json.loads(text)) if path and not {"curve", "paths"} & set(path)]
    for _ in range(30):
        results, depth = json.loads(text), chance.randint(1, 5)
        path = chance.choice([path for path in paths if len(path) == depth])
        parent = functools.reduce(lambda part, key: part[key], path[:-1], results)
        wrong = chance.choice([None, -1, "x", [], {}, [[]], "remove"])
        if wrong == "remove":
            del parent[path[-1]]
        else:
            parent[path[-1]] = wrong
        (place / "results" / "first.json").write_text(json.dumps(results), encoding="utf-8")
        status, printed = run(place), capsys.readouterr()
        assert status in (0, 2), (path, wrong)
        if status == 2:
            refused += 1
            assert printed.err.startswith("error: ") and len(printed.err.splitlines()) == 1, (path, wrong)
            assert "first" in printed.err
    assert refused > 2


@pytest.mark.parametrize(
    "name",
    [
        "<b>x</b>", "[a](http://b)", "a | b", "a\n# d", "`e`", "www.evil.example", "dxdp ", " dxdp", "dx  dp",
        "dxdp\u00a0", "https://evil.example", "d\u0445dp", "dxdp\u200b", "\u202epdxd", "", "x" * 81, "a\0", "$a$",
        "@user",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["label", "task"])
def test_a_name_that_is_markup_or_reads_as_another_is_refused(
    kind: str, name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = make_results(tasks=("gmm25",))
    for entry in [*results["summary"], *results["runs"]]:
        entry[kind] = name
    if kind == "task":
        results["tasks"] = {name: results["tasks"]["gmm25"]}
    else:
        results |= {part: [entry for entry in results[part] if entry["agent"] == "ppo"] for part in ("summary", "runs")}
    (place / "results" / "first.json").write_text(json.dumps(results), encoding="utf-8")
    assert run(place) == 2
    error = capsys.readouterr().err
    assert f"a {kind} must be up to 80 letters" in error and len(error.splitlines()) == 1
    assert not (place / "page.md").exists()


def test_other_texts_cannot_write_into_the_page(place: Path) -> None:
    """HTML, links, headings, fences and the end marker are text, and what was written can be written again."""
    results = make_results()
    wild = f"<b>x</b> [a](http://b) | c\n# d ``` {leaderboard.END} `e`"
    results |= {"date": wild, "command": f"```\n{wild}"}
    for entry in results["runs"]:
        entry["machine"] = entry["machine"] | {"processor": wild}
    (place / "results" / "first.json").write_text(json.dumps(results), encoding="utf-8")
    assert run(place) == 0 and run(place, "--check") == 0
    readme, page = ((place / name).read_text(encoding="utf-8") for name in ("README.md", "page.md"))
    assert readme.count(leaderboard.END) == 1 and "\n# d" not in readme + page
    code = re.split(r"^````\n", page, flags=re.MULTILINE)
    assert len(code) == 3 and code[1].startswith("```"), "one block of code, whose end is not in the command"
    assert "<b>" not in code[0] + code[2]


@pytest.mark.parametrize("what", ["fitted kernel", "horizon", "budget", "sizes"])
def test_submissions_that_do_not_compare_are_refused(
    what: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = make_results()
    if what == "fitted kernel":
        second["schema"] = min(RULERS)
    if what == "horizon":
        second["tasks"]["gmm25"]["horizon"] = 10
    for entry in [*second["summary"], *second["runs"]]:
        if what == "budget" and entry["task"] == "gmm25" and entry["budget"]:
            entry["budget"] -= 1
    for entry in second["runs"]:
        if what == "sizes" and entry["task"] == "gmm25":
            entry["sizes"] = entry["sizes"] | {"draws": 99}
    (place / "results" / "second.json").write_text(json.dumps(second), encoding="utf-8")
    assert run(place) == 2
    task = "8gaussians" if what == "fitted kernel" else "gmm25"  # the first that differs
    assert f"differ on '{task}' in {what}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["no markers", None])
def test_bad_input(place: Path, text: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if text is None:
        (place / "results" / "first.json").unlink()
    else:
        (place / "README.md").write_text(text, encoding="utf-8")
    assert run(place) == 2 and capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("value", [-1e308, -0.2, float("nan"), float("inf")])
def test_a_score_that_cannot_be_is_refused(value: float, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = make_results()
    key = results["tasks"]["gmm25"]["score"]
    run_ = next(one for one in results["runs"] if one["task"] == "gmm25" and one["label"] == "ppo")
    run_["scores"][key] = value
    (place / "results" / "first.json").write_text(json.dumps(results), encoding="utf-8")
    assert run(place) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and f"runs.scores.{key}" in error and "'ppo'" in error


def other_rows(results: dict[str, Any], label: str) -> dict[str, Any]:
    """Rows much like those of our ppo, under another label, alone."""
    for part in ("summary", "runs"):
        results[part] = [entry | {"label": label} for entry in results[part] if entry["label"] == "ppo"]
    for entry in results["runs"]:
        entry["scores"]["sliced_w2"] += 1e-3
    return summarise(results)


def made_by_us(place: Path, label: str) -> list[dict[str, Any]]:
    """Runs of gmm25 in our submission."""
    ours = json.loads((place / "results" / "standard.json").read_text(encoding="utf-8"))
    return [run for run in ours["runs"] if (run["task"], run["label"]) == ("gmm25", label)]


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("the floor", "differ on"), ("one run ten times", "must be another in every run"), ("no budget", "budget"),
        ("another budget", "budget"), ("another horizon", "horizon"), ("normalised", "normalised"), ("costs", "costs"),
        ("another target", "differ on 'gmm25' in task_settings"),
        ("one run of another size", "runs.sizes must be the"),
        ("our luckiest runs", "stands in 'standard', row 'ppo' on 'gmm25', too"), ("other seeds", "runs.seed must be"),
        ("seeds from 3 on", "seeds must be 0, 1, 2"), ("a seed that is no number", "seeds must be"),
        ("a score that is a boolean", "must be finite numbers"), ("a row twice", "must stand in summary once"),
        ("the base sampler's score", "differ on 'gmm25' in base"), ("a best checkpoint", "summary.best"),
        ("another score", "summary.scores.ess"), ("a unit with markup", "summary.unit must be one of timesteps"),
        ("the base sampler trains", "must be 0, as the agent does not"),
        ("costs below 0", "runs.costs.seconds must be a number >= 0"), ("ten times the budget", "the budget 4000000"),
        ("a normalised score", "runs.normalised is 0.99"),
        ("a direction", "tasks.score must be one of"), ("a bound that is not its elbo", "must add to log Z = 0"),
        ("a bound below the divergence", "must lie between 0 and its"),
        ("more effective than samples", "runs.scores.ess must lie in [0, 1]"),
        ("settings per seed", "runs.agent_settings"), ("a hundredth of the budget", "must be the budget 4000000"),
        ("an impossible best checkpoint", "better than an"), ("another energy", "tasks.energy must be one of"),
        ("a base sampler of one's own", "tasks.base of"),
        ("an error that is no number", "must be a finite number"), ("a bound above log z", "must be the lowest"),
        ("copied under other keys", "are those of another run"), ("odd keys", "runs.key must be 16 hex digits"),
        ("two rows of one label", "label 'dxdp (evil)' stands on"), ("a number beyond floats", "be finite numbers"),
        ("a task that is a list", "is missing in tasks"), ("half a character", "utf-8"),
        ("an integer beyond floats", "runs.scores.ess must be a finite number"), ("no list of seeds", "must be a list"),
    ],
)  # fmt: skip
def test_a_hostile_submission_is_refused(
    attack: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "results" / "standard.json").write_text(json.dumps(make_results()), encoding="utf-8")
    (place / "results" / "first.json").unlink(missing_ok=True)
    evil = other_rows(make_results(), "evil")
    for run_ in evil["runs"]:
        run_["key"] = run_["key"][::-1]
    row = next(entry for entry in evil["summary"] if entry["task"] == "gmm25")
    runs = [run for run in evil["runs"] if run["task"] == "gmm25"]
    key = evil["tasks"]["gmm25"]["score"]
    if attack == "the floor":
        evil["tasks"]["gmm25"]["floor"] = -1e12
        summarise(evil)
    elif attack == "one run ten times":
        for run_ in runs:
            run_ |= {"seed": 0, "key": "same", "scores": runs[0]["scores"]}
    elif attack == "no budget":
        row["budget"] = 0
    elif attack == "another budget":
        runs[0]["budget"] = 10 * runs[0]["budget"]
    elif attack == "another horizon":
        runs[0]["task_settings"] = {"horizon": 1000}
    elif attack == "normalised":
        row["normalised"] = {"iqm": 1.0, "median": 1.0, "low": 1.0, "high": 1.0, "method": "x"}
    elif attack == "costs":
        row["costs"] = row["costs"] | {"seconds": 0.001}
    elif attack == "another target":
        for run_ in runs:
            run_["task_settings"] = {"target_options": {"std": 2.0}}
    elif attack == "one run of another size":
        runs[1]["sizes"] = {"trajectories": 2}
    elif attack == "our luckiest runs":
        for run_, ours in zip(runs, made_by_us(place, "ppo"), strict=True):
            run_ |= {"key": ours["key"]}
    elif attack == "other seeds":
        runs[0]["seed"] = 4211
    elif attack == "seeds from 3 on":
        row["seeds"] = [3, 4, 5, 6, 7]
        for run_ in runs:
            run_["seed"] += 3
    elif attack == "a seed that is no number":
        row["seeds"] = [0, 1, 2, 3, "4"]
    elif attack == "an integer beyond floats":
        runs[0]["scores"]["ess"] = 10**400
    elif attack == "no list of seeds":
        row["seeds"] = {"0": 0}
    elif attack == "a score that is a boolean":
        runs[0]["scores"][key] = False
    elif attack == "a row twice":
        evil["summary"].append(row)
    elif attack == "the base sampler's score":
        evil["tasks"]["gmm25"]["base"] = 1e9
        summarise(evil)
    elif attack == "a best checkpoint":
        row["best"] = {key: {"iqm": 1e-5, "median": 1e-5}}
    elif attack == "another score":
        row["scores"]["ess"]["iqm"] = 1.5
    elif attack == "a unit with markup":
        for entry in (row, *runs):
            entry["unit"] = "<b>x</b> [click](http://evil) | evil"
    elif attack == "the base sampler trains":
        for entry in (row, *runs):
            entry |= {"agent": "base", "budget": 0}
    elif attack == "costs below 0":
        runs[0]["costs"]["seconds"] = -5
        summarise(evil)
    elif attack == "ten times the budget":
        for run_ in runs:
            run_["costs"]["timesteps"] *= 10
        summarise(evil)
    elif attack == "a bound that is not its elbo":
        for run_, ours in zip(runs, made_by_us(place, "ppo"), strict=True):
            run_["scores"]["elbo"] = -ours["scores"][key]
            run_["scores"][key] = 0.0
        runs[0]["scores"]["elbo"] = -runs[0]["scores"][key]
        summarise(evil)
    elif attack == "a bound below the divergence":
        runs[0]["scores"] |= {"kl_marginal": 0.9, "kl_marginal_se": 0.01, key: 0.001}
    elif attack == "more effective than samples":
        runs[0]["scores"]["ess"] = 7.0
    elif attack == "settings per seed":
        runs[0]["agent_settings"] = {"iterations": 9}
    elif attack == "a hundredth of the budget":
        for run_ in runs:
            run_["costs"]["timesteps"] /= 100
        summarise(evil)
    elif attack == "an impossible best checkpoint":
        for run_ in runs:
            run_["best"]["scores"] = {key: -5.0}
        summarise(evil)
    elif attack == "a base sampler of one's own":
        for entry in (row, *runs):
            entry |= {"agent": "base", "budget": 0}
        for run_ in runs:
            run_["costs"] = dict.fromkeys(run_["costs"], 0)
        summarise(evil)
    elif attack == "an error that is no number":
        runs[0]["scores"] |= {"kl_marginal": 9.0, "kl_marginal_se": float("nan")}
        summarise(evil)
    elif attack == "a bound above log z":
        runs[0]["scores"] |= {"elbo": 0.0, "log_z": -7.0}
        summarise(evil)
    elif attack == "copied under other keys":
        for run_, ours in zip(runs, made_by_us(place, "ppo"), strict=True):
            run_["scores"], run_["costs"]["gradient_steps"] = ours["scores"], 100
        summarise(evil)
    elif attack == "odd keys":
        runs[0]["key"] = "../standard"
    elif attack == "another energy":
        evil["tasks"]["gmm25"]["energy"] = "target https://evil.example"
    elif attack == "two rows of one label":
        more = [
            copy.deepcopy(run_) | {"label": label, "agent": "mine:Mine"}
            for label in ("dxdp", "dxdp (evil)")
            for run_ in evil["runs"]
        ]
        for number, run_ in enumerate(more):
            run_ |= {"key": f"{number:016x}"}
            run_["scores"]["sliced_w2"] += 1e-3 * number
        evil["runs"] = more
        summarise(evil)
    elif attack == "a normalised score":
        for run_ in runs:
            run_["normalised"] = 0.99
    elif attack == "a direction":
        evil["tasks"]["gmm25"]["better"] = "higher"
    elif attack == "a number beyond floats":
        runs[0]["scores"][key] = 10**400
    elif attack == "a task that is a list":
        runs[0]["task"] = ["a"]
    else:
        evil["date"] = "\ud800"
    before = {name: (place / name).read_bytes() for name in ("README.md", "page.md") if (place / name).exists()}
    (place / "results" / "evil.json").write_text(json.dumps(evil), encoding="utf-8")
    assert run(place) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert all((place / name).read_bytes() == content for name, content in before.items())


@pytest.mark.parametrize("finished", [2, 0])
def test_runs_that_diverged_count_as_the_worst_of_all_submissions(place: Path, finished: int) -> None:
    """A file with one's own rows alone has no worse run to count instead."""
    (place / "results" / "standard.json").write_text(json.dumps(make_results()), encoding="utf-8")
    (place / "results" / "first.json").unlink()
    evil = other_rows(make_results(), "evil")
    evil["runs"] = [run_ | {"key": run_["key"][::-1]} for run_ in evil["runs"] if run_["seed"] < max(1, finished)]
    evil["failed"] = [
        {"key": f"lost {seed}", "task": "gmm25", "label": "evil", "seed": seed, "error": "DivergenceError: x"}
        for seed in range(finished, 5)
    ]
    evil = summarise(evil)
    if not finished:
        evil["runs"] = []
        own = {"runs": 0, "diverged": 5, "scores": {}, "normalised": None, "costs": {}, "best": {}}
        evil["summary"] = [row | own for row in evil["summary"] if row["task"] == "gmm25"]
    (place / "results" / "evil.json").write_text(json.dumps(evil), encoding="utf-8")
    assert run(place) == 0
    section = (place / "page.md").read_text(encoding="utf-8").split("## gmm25\n", 1)[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    (own,) = (line for line in lines if " evil |" in line)
    place_from_below = len(lines) - lines.index(own)
    assert place_from_below == (2 if finished else 1), "before the base sampler, or at its worst run"
    assert f"{finished} of 5, {5 - finished} diverged" in own and own.split(" | ")[2]


def test_a_model_that_was_trained_elsewhere_has_no_rank(place: Path) -> None:
    (place / "results" / "standard.json").write_text(json.dumps(make_results()), encoding="utf-8")
    (place / "results" / "first.json").unlink()
    evil = other_rows(make_results(tasks=("gmm25",)), "sb")
    for entry in [*evil["summary"], *evil["runs"]]:
        entry |= {"agent": "sb.zip", "budget": 0}
    for run_ in evil["runs"]:
        run_ |= {"key": run_["key"][::-1], "costs": dict.fromkeys(run_["costs"], 0)}
        run_["scores"]["kl_bound_fit"] = 0.001
    (place / "results" / "evil.json").write_text(json.dumps(summarise(evil)), encoding="utf-8")
    assert run(place) == 0
    section = (place / "page.md").read_text(encoding="utf-8").split("## gmm25\n", 1)[1].split("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("|  | sb |")]


def test_names_that_are_taken_and_tasks_of_ones_own(place: Path) -> None:
    """A label of ours gets the submission's name beside it; a private task is no column of README."""
    (place / "results" / "standard.json").write_text(json.dumps(make_results()), encoding="utf-8")
    (place / "results" / "first.json").unlink(missing_ok=True)
    evil = other_rows(make_results(), "dxdp")
    for entry in evil["runs"]:
        entry |= {"key": entry["key"][::-1], "agent": "mine:Mine"}
        if entry["task"] == "8gaussians":
            entry["task"] = "private"
    evil["tasks"]["private"] = evil["tasks"].pop("8gaussians")
    (place / "results" / "evil.json").write_text(json.dumps(summarise(evil)), encoding="utf-8")
    assert run(place) == 0
    readme, page = ((place / name).read_text(encoding="utf-8") for name in ("README.md", "page.md"))
    assert "private" not in readme and "## private" in page
    assert "dxdp (evil)" in page


def test_one_run_has_no_rank(place: Path) -> None:
    results = make_results(seeds=1)
    (place / "results" / "first.json").write_text(json.dumps(results), encoding="utf-8")
    assert run(place) == 0
    section = (place / "page.md").read_text(encoding="utf-8").split("## gmm25\n", 1)[1].split("\n## ")[0]
    assert not [line for line in section.splitlines() if re.match(r"\| \d", line)]
