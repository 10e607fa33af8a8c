"""The report of a comparison: its numbers are those of the runs, and whatever a label says stays text."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from report_cases import SKILL, TASKS, make_results, summarise

from dxmi_rl.benchmark.report import load_results, write_report
from dxmi_rl.benchmark.report.changes import changes, notes
from dxmi_rl.benchmark.report.charts import make_styles, svg
from dxmi_rl.benchmark.report.content import Comparison, difference_of
from dxmi_rl.benchmark.report.figures import figures
from dxmi_rl.benchmark.report.formatting import show, show_entry, show_range
from dxmi_rl.benchmark.report.page import page
from dxmi_rl.benchmark.report.playground import SEEDS, payload, playground
from dxmi_rl.benchmark.report.scenes import make_scene, median_run
from dxmi_rl.benchmark.report.text import latex, markdown
from dxmi_rl.benchmark.results import without_paths
from dxmi_rl.benchmark.statistics import interquartile_mean, interval, median, optimality_gap, welch_t_test
from dxmi_rl.benchmark.tables import compact
from dxmi_rl.cli import main

# Synthetic results ----------------------------------------------------------------------------------------------------


# Reading the page -----------------------------------------------------------------------------------------------------

VOID = {"meta", "link", "input", "img", "br"}


class Reader(HTMLParser):
    """Tables of a page as lists of rows of text, and all visible text; tags must nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tables: list[dict[str, Any]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "table":
            self.tables.append({"class": dict(attrs)["class"] or "", "caption": "", "rows": []})
        elif tag == "tr":
            self.tables[-1]["rows"].append([])
        elif tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data: str) -> None:
        if "script" in self.stack or "style" in self.stack:
            return
        self.text += data
        if "caption" in self.stack:
            self.tables[-1]["caption"] += data
        elif "td" in self.stack or "th" in self.stack:
            self.tables[-1]["rows"][-1][-1] += data

    def rows(self, kind: str) -> list[list[str]]:
        """Rows of all tables of a class, without the headers."""
        return [row for table in self.tables if kind in table["class"].split() for row in table["rows"][1:]]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return make_results()


@pytest.fixture(scope="module")
def html(results: dict[str, Any]) -> str:
    return page(Comparison(results))


@pytest.fixture(scope="module")
def reader(html: str) -> Reader:
    return Reader(html)


def cell(reader: Reader, task: str, label: str, column: str) -> str:
    for table in reader.tables:
        if "big" in table["class"]:
            header = table["rows"][0]
            for row in table["rows"][1:]:
                if row[1] == task and row[0] == label + task:
                    return row[header.index(column)]
    raise AssertionError(f"no line for {task}, {label}")


# Tests ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_numbers_are_those_of_the_runs(results: dict[str, Any], reader: Reader) -> None:
    for task, entry in TASKS.items():
        for label in SKILL:
            runs = [run for run in results["runs"] if (run["task"], run["label"]) == (task, label)]
            values = [run["scores"][entry["score"]] for run in runs]
            bounds = interval(values)
            best = " ★ best" * (label == "dxdp")
            expected = f"{show(interquartile_mean(values))}{best} {show_range(bounds.low, bounds.high)}"
            assert cell(reader, task, label, "last iterate") == expected
            energy = np.mean([run["costs"]["energy_evals"] for run in runs])
            assert cell(reader, task, label, "energy evals") == compact(energy)
            seconds = np.mean([run["costs"]["seconds"] for run in runs])
            assert cell(reader, task, label, "seconds") == show(seconds)
    assert cell(reader, "digits", "ppo", "normalised") == "—"


def test_a_distance_that_disagrees_with_the_ranking_is_told(results: dict[str, Any]) -> None:
    changed = copy.deepcopy(results)
    entry = next(row for row in changed["summary"] if (row["task"], row["label"]) == ("gmm25", "sb3-ppo"))
    entry["scores"]["sliced_w2"]["iqm"] = 0.01
    assert "By sliced_w2, sb3-ppo has the lowest mean: 0.01 (dxdp" in Comparison(changed).verdict("gmm25")
    assert "By sliced_w2" not in Comparison(results).verdict("gmm25")


def test_difference_to_the_next_best(results: dict[str, Any], reader: Reader) -> None:
    comparison = Comparison(results)
    for task, sign in (("gmm25", -1.0), ("digits", 1.0)):
        ours, theirs = (sign * np.array(comparison.values(task, label)) for label in ("dxdp", "ppo"))
        test = welch_t_test(ours, theirs)
        assert test.difference > 0
        expected = f"+{show(test.difference)} vs ppo {show_range(test.low, test.high)}"
        assert cell(reader, task, "dxdp", "ahead by") == expected
        assert cell(reader, task, "ppo", "ahead by").startswith(f"-{show(test.difference)} vs dxdp")
        assert (
            f"{show(test.difference)} {show_range(test.low, test.high)} better in the mean than ppo"
            in comparison.verdict(task)
        )


def test_aggregates_keep_the_tracks_apart(results: dict[str, Any], reader: Reader) -> None:
    captions = [table["caption"] for table in reader.tables if table["caption"].startswith("Normalised")]
    assert ["2 tasks (8gaussians, gmm25)" in caption for caption in captions] == [True, False]
    assert "1 task (manywell32)" in captions[1]
    assert "never pooled" in reader.text
    comparison = Comparison(results)
    first = comparison.aggregates[0]
    expected = np.array([
        [run["normalised"] for run in results["runs"] if (run["task"], run["label"]) == (task, "ppo")]
        for task in ("8gaussians", "gmm25")
    ]).T  # fmt: skip
    np.testing.assert_array_equal(first.scores["ppo"], expected)
    table = next(table for table in reader.tables if table["caption"] == captions[0])
    row = next(row for row in table["rows"] if row[0] == "ppo")
    for text, statistic in zip(row[1:], (interquartile_mean, median, optimality_gap), strict=True):
        bounds = interval(expected, statistic=statistic)
        assert text == f"{show(statistic(expected))} {show_range(bounds.low, bounds.high)}"
    big = [table for table in reader.tables if "big" in table["class"]]
    assert [{row[1] for row in table["rows"][1:]} for table in big] == [
        {"8gaussians", "gmm25", "digits"}, {"manywell32"}
    ]  # fmt: skip


def test_page_is_one_file_of_reasonable_size(html: str, reader: Reader) -> None:
    assert len(html.encode()) < 2e6
    for tag, attributes in reader.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:", "playground.html")), (tag, attributes)
    assert "url(http" not in html
    assert "@import" not in html
    names = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(names) == len(set(names))
    targets = {a["href"] for _, a in reader.tags if (a.get("href") or "").startswith("#")}
    assert targets <= {f"#{name}" for name in names}
    assert all(attributes.get("alt") for tag, attributes in reader.tags if tag == "img")


@pytest.mark.slow
def test_page_is_deterministic(results: dict[str, Any], html: str) -> None:
    assert page(Comparison(copy.deepcopy(results))) == html


@pytest.mark.slow
def test_labels_stay_text() -> None:
    bad = '</script><img src=x onerror=alert(1)>"&$x_1$ |*'
    results = make_results({"base": 0.0, bad: 0.8}, seeds=2, tasks=("gmm25",))
    results["name"] = results["command"] = bad
    results["failed"] = [{"key": "k", "label": bad, "task": "gmm25", "seed": 9, "error": "ValueError: <b>no</b>"}]
    comparison = Comparison(results)
    text = page(comparison)
    reader = Reader(text)
    assert not any("onerror" in attributes for _, attributes in reader.tags)
    assert bad in reader.text
    assert text.count("</script>") == 2
    assert latex(comparison).count("\\begin{tabular}") == 2
    for line in markdown(comparison).splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (5, 9)


@pytest.mark.slow
def test_one_run(tmp_path: Path) -> None:
    results = make_results({"ppo": 0.9}, seeds=1, tasks=("8gaussians",))
    files = write_report(results, tmp_path / "new")
    assert [file.name for file in files] == ["report.html", "report.md", "report.tex", "playground.html"]
    assert sorted(tmp_path.joinpath("new").iterdir()) == sorted(files)
    text = Reader(files[0].read_text(encoding="utf-8")).text
    assert "there are no intervals" in text
    assert "the only row" in text


@pytest.mark.slow
def test_missing_paths_floor_and_base() -> None:
    results = make_results(seeds=2, tasks=("gmm25",), paths=False)
    results["tasks"]["gmm25"] |= {"floor": None, "base": None}
    for run in results["runs"]:
        run["normalised"] = None
    text = Reader(page(Comparison(summarise(results)))).text
    assert "kept no denoising paths" in text
    assert "No task has normalised scores." in text
    assert "nan" not in text.lower()


@pytest.mark.slow
def test_task_without_a_common_score() -> None:
    results = make_results(seeds=2, tasks=("gmm25",))
    results["tasks"]["gmm25"] |= {"score": None, "better": None, "base": None, "floor": None}
    for run in results["runs"]:
        run["normalised"] = None
    for entry in results["summary"]:
        entry["normalised"] = None
    comparison = Comparison(results)
    assert "nothing to rank" in Reader(page(comparison)).text
    markdown(comparison)
    latex(comparison)


def test_nothing_finished() -> None:
    results = make_results(seeds=1, tasks=("gmm25",)) | {"runs": [], "summary": []}
    results["failed"] = [{"key": "k", "label": "ppo", "task": "gmm25", "seed": 0, "error": "boom"}]
    comparison = Comparison(results)
    text = Reader(page(comparison)).text
    assert "1 failed run" in text
    assert "nothing to rank" in text
    assert "boom" in markdown(comparison)
    latex(comparison)


@pytest.mark.slow
def test_log_z_stands_with_its_ess_and_is_marked() -> None:
    results = make_results(tasks=("gmm25", "manywell32"))
    for run in results["runs"]:  # ess is half of the skill: 0 for the base sampler
        run["scores"] |= {"elbo": -1.0, "log_z": 0.125, "eubo": 2.0}
    comparison = Comparison(summarise(results))
    rows = [line for line in markdown(comparison).splitlines() if " 0.125" in line]
    assert len(rows) == 2 * len(SKILL)
    for line in rows:
        assert ("\\*" in line) == line.startswith("| base "), line
    html = page(comparison)
    for text in (markdown(comparison), latex(comparison), html):
        assert re.search(r"log\\?_z is unreliable: ess (&lt;|\\?<|\\textless\{\}) 0.1", text)
    cells = [row for row in html.split("<tr") if "0.125" in row]
    assert [("0.125 *" in row) for row in cells] == [label == "base" for label in SKILL] * 2
    header = next(line for line in markdown(comparison).splitlines() if "log" in line and line.startswith("| agent"))
    assert all(name in header for name in ("elbo", "eubo", "ess"))


@pytest.mark.slow
def test_failed_run_and_unequal_seeds() -> None:
    results = make_results(seeds=4)
    gone = next(run for run in results["runs"] if (run["task"], run["label"], run["seed"]) == ("gmm25", "ppo", 2))
    results["runs"].remove(gone)
    results["failed"] = [{key: gone[key] for key in ("key", "label", "task", "seed")} | {"error": "OSError: x"}]
    comparison = Comparison(summarise(results))
    text = Reader(page(comparison)).text
    assert text.index("1 failed run") < text.index("Summary", text.index("1 failed run"))
    assert "OSError: x" in text
    assert "ppo (3 of 4 runs)gmm25" in text
    assert "ppo (3 of 4 runs)" in markdown(comparison)
    assert comparison.aggregates[0].seeds == [0, 1, 3]
    assert "only the 3 common ones are used (0, 1, 3)" in text


def test_a_run_that_diverged_counts_as_the_worst() -> None:
    results = make_results(seeds=4)
    gone = next(run for run in results["runs"] if (run["task"], run["label"], run["seed"]) == ("gmm25", "ppo", 2))
    results["runs"].remove(gone)
    results["failed"] = [{key: gone[key] for key in ("key", "label", "task", "seed")} | {"error": "NonFiniteError: x"}]
    comparison = Comparison(summarise(results))
    key, sign = comparison.tasks["gmm25"]["score"], -1 if comparison.tasks["gmm25"]["better"] == "lower" else 1
    every = [run["scores"][key] for run in results["runs"] if run["task"] == "gmm25"]
    worst = min(every, key=lambda value: sign * value)
    assert sorted(comparison.values("gmm25", "ppo"))[0 if sign > 0 else -1] == worst
    assert len(comparison.values("gmm25", "ppo")) == 4
    assert "ppo (1 of 4 runs diverged)" in markdown(comparison) and comparison.aggregates[0].seeds == [0, 1, 2, 3]
    column = comparison.aggregates[0].tasks.index("gmm25")
    found = comparison.aggregates[0].scores
    assert found["ppo"][2, column] == min(scores[:, column].min() for scores in found.values())


def test_a_score_that_some_runs_lack_has_no_rank_and_says_so() -> None:
    results = make_results(seeds=3, tasks=("8gaussians", "gmm25"))
    key = results["tasks"]["gmm25"]["score"]
    for run in results["runs"]:
        if (run["task"], run["label"]) == ("gmm25", "dxdp") and run["seed"]:
            del run["scores"][key]
            run["normalised"] = None
    comparison = Comparison(summarise(results))
    text, note = Reader(page(comparison)).text, "dxdp (score in 1 of 3 runs)"
    assert note in text and note in markdown(comparison)
    assert not comparison.values("gmm25", "dxdp") and comparison.best("gmm25").label == "ppo"  # type: ignore[union-attr]
    assert list(comparison.aggregates[0].scores) == ["base", "ppo", "sb3-ppo"]
    assert "or its score in a run, is missing: dxdp." in text


@pytest.mark.slow
def test_agent_on_one_task_is_left_out_of_the_aggregate() -> None:
    results = make_results(seeds=3, tasks=("8gaussians", "gmm25"))
    results["runs"] = [run for run in results["runs"] if (run["task"], run["label"]) != ("gmm25", "sb3-ppo")]
    comparison = Comparison(summarise(results))
    assert list(comparison.aggregates[0].scores) == ["base", "dxdp", "ppo"]
    text = Reader(page(comparison)).text
    assert "Left out, because a task of the track, or its score in a run, is missing: sb3-ppo." in text


def test_one_agent_has_nobody_to_be_compared_with() -> None:
    results = make_results(seeds=3, tasks=("8gaussians", "gmm25"))
    results["runs"] = [run for run in results["runs"] if run["task"] != "gmm25" or run["label"] == "ppo"]
    comparison = Comparison(summarise(results))
    assert not comparison.aggregates[0].scores
    assert "only ppo has all tasks" in " ".join(comparison.aggregates[0].notes)
    assert "| ppo |" in markdown(comparison)


@pytest.mark.slow
def test_mixed_source_code_is_pointed_out(results: dict[str, Any], reader: Reader) -> None:
    assert "different source code" not in reader.text
    other = copy.deepcopy(results)
    other["runs"][0]["code"] = "0ld"
    assert "different source code: base on 8gaussians." in Reader(page(Comparison(other))).text


@pytest.mark.slow
def test_wide_bands_do_not_squeeze_the_curves() -> None:
    results = make_results({"base": 0.0, "ppo": 0.9}, seeds=3, tasks=("gmm25",))
    for run in results["runs"][3:]:
        run["curve"][10]["kl_bound"] = 2.0 + 100 * (run["seed"] == 0)
    text = Reader(page(Comparison(results))).text
    assert "logarithmic axis" in text
    assert "What lies beyond the frame is cut." in text


def test_scene_shows_the_median_run(results: dict[str, Any]) -> None:
    comparison = Comparison(results)
    line = comparison.lines("gmm25")[2]
    run = median_run(comparison, line)
    assert run is not None
    values = comparison.values("gmm25", line.label)
    assert run["scores"]["kl_bound_fit"] == sorted(values)[2]
    scene = make_scene(comparison, "gmm25", make_styles(comparison.labels))
    assert scene is not None and scene.grid is not None
    assert [panel.label for panel in scene.panels] == ["exact samples", *SKILL]
    assert scene.grid.max() == 255 and scene.grid.min() == 0
    path = scene.panels[3]
    data = np.frombuffer(base64.b64decode(run["paths"]["data"]), np.uint8).reshape(run["paths"]["shape"])
    expected = run["paths"]["low"] + data[-1] / 255 * (run["paths"]["high"] - run["paths"]["low"])
    np.testing.assert_allclose(path.values(), expected)


def test_scenes_of_images_and_high_dimensions(results: dict[str, Any]) -> None:
    comparison = Comparison(results)
    styles = make_styles(comparison.labels)
    digits, wells = make_scene(comparison, "digits", styles), make_scene(comparison, "manywell32", styles)
    assert digits is not None and wells is not None
    assert (digits.kind, digits.panels[0].label, digits.panels[0].shape) == ("images", "test data", (1, 64, 1, 8, 8))
    assert (wells.kind, wells.grid, wells.note) == ("points", None, "Coordinates x1 and x2 of 32.")
    assert abs(np.abs(wells.panels[0].values()[:, 0]).mean() - 1.7) < 0.2


def test_styles_tell_fourteen_agents_apart() -> None:
    styles = make_styles([f"agent {i}" for i in range(14)])
    assert len({(style.colour, style.marker) for style in styles.values()}) == 14


@pytest.mark.slow
def test_many_agents() -> None:
    agents = {f"agent {i} with $a$ rather long name": i / 14 for i in range(14)}
    results = make_results(agents, seeds=2, tasks=("8gaussians", "gmm25"))
    assert len(page(Comparison(results)).encode()) < 3e6


def test_markdown_tables_are_well_formed(results: dict[str, Any]) -> None:
    text = markdown(Comparison(results))
    widths: list[int] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            widths.append(len(re.findall(r"(?<!\\)\|", line)))
            assert line.endswith(" |")
        elif widths:
            assert len(set(widths)) == 1 and len(widths) > 2
            widths = []
    entry = next(s for s in results["summary"] if (s["task"], s["label"]) == ("gmm25", "ppo"))
    assert show_entry(entry["scores"]["kl_bound_fit"]).replace("[", r"\[").replace("]", r"\]") in text
    assert text.count("★ best") == 3 + 3 + 4  # three statistics of two tracks, four tasks


def test_latex(results: dict[str, Any], tmp_path: Path) -> None:
    text = latex(Comparison(results))
    assert r"kl\_bound\_fit $\downarrow$" in text
    assert not re.search(r"(?<!\\)_", text.split("\\begin{document}")[1])
    if shutil.which("pdflatex"):
        tmp_path.joinpath("report.tex").write_text(text, encoding="utf-8")
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"], cwd=tmp_path, capture_output=True
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    plain = re.sub(r"\\\\|\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert text.count("\\begin{") == text.count("\\end{")
    for table in text.split("\\toprule")[1:]:
        lines = [line for line in table.split("\\bottomrule")[0].splitlines() if line.endswith(r" \\")]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1


@pytest.mark.parametrize("kind", ["tasks", "runs", "summary", "command"])
def test_missing_parts_are_named(results: dict[str, Any], kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"results lacks {kind}"):
        write_report({key: value for key, value in results.items() if key != kind}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_schemas_are_refused(results: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="schema 2 or 3, got schema 1"):
        write_report(results | {"schema": 1}, tmp_path)
    with pytest.raises(ValueError, match="must be a dict, got list"):
        write_report([], tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"task 'gmm25' lacks score"):
        task = {key: value for key, value in TASKS["gmm25"].items() if key != "score"}
        write_report(results | {"tasks": {"gmm25": task}}, tmp_path)
    with pytest.raises(ValueError, match=r"runs\[0\] lacks curve"):
        write_report(results | {"runs": [{k: v for k, v in results["runs"][0].items() if k != "curve"}]}, tmp_path)


def test_load_results(results: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"results\.json"):
        load_results(tmp_path)
    file = tmp_path / "results.json"
    file.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is not JSON"):
        load_results(file)
    file.write_text(json.dumps({"schema": 1}), encoding="utf-8")
    with pytest.raises(ValueError, match="schema 2 or 3"):
        load_results(tmp_path)
    file.write_text(json.dumps(results), encoding="utf-8")
    assert load_results(tmp_path) == load_results(file) == json.loads(json.dumps(results))


def test_denoising_paths_come_from_the_files_of_runs(results: dict[str, Any], tmp_path: Path) -> None:
    runs = [run | {"key": f"run {index}"} for index, run in enumerate(results["runs"])]
    light = without_paths(results | {"runs": runs})
    assert runs[0]["paths"] and not any("paths" in run for run in light["runs"])
    (tmp_path / "results.json").write_text(json.dumps(light), encoding="utf-8")
    assert load_results(tmp_path) == json.loads(json.dumps(light))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "run 1.json").write_text(json.dumps(runs[1]), encoding="utf-8")
    found = load_results(tmp_path)["runs"]
    assert found[1]["paths"] == json.loads(json.dumps(runs[1]["paths"])) and "paths" not in found[0]


# Two comparisons, one figure, the playground --------------------------------------------------------------------------


def earlier() -> dict[str, Any]:
    """dxdp was worse, sb3-ppo was not there, and another agent was."""
    return make_results({"base": 0.0, "dxdp": 0.7, "ppo": 0.9, "old": 0.4}, tasks=("8gaussians", "digits"))


def test_what_changed() -> None:
    now, before = Comparison(make_results(tasks=("8gaussians", "digits", "gmm25"))), Comparison(earlier())
    found = {(change.task, change.label): change for change in changes(now, before)}
    verdicts = {label: found["8gaussians", label].verdict for label in ("base", "dxdp", "ppo", "sb3-ppo", "old")}
    assert verdicts == {"base": "no clear change", "dxdp": "better", "ppo": "no clear change", "sb3-ppo": "new",
                        "old": "gone"}  # fmt: skip
    assert found["digits", "dxdp"].verdict == "better", "where higher is better"
    assert found["gmm25", "dxdp"].verdict == "new"
    back = {(change.task, change.label): change for change in changes(before, now)}
    assert back["8gaussians", "dxdp"].verdict == "worse" and back["gmm25", "ppo"].verdict == "gone"
    difference = found["8gaussians", "dxdp"].difference
    test = welch_t_test(-np.array(now.values("8gaussians", "dxdp")), -np.array(before.values("8gaussians", "dxdp")))
    assert difference is not None and difference.value == pytest.approx(test.difference)
    same = changes(now, now)
    assert {change.verdict for change in same} == {"no clear change"}
    alone = make_results({"ppo": 0.9}, seeds=1, tasks=("8gaussians",))
    assert [change.verdict for change in changes(Comparison(alone), Comparison(alone))] == ["the same"]
    other = make_results({"ppo": 0.9}, seeds=1, tasks=("8gaussians",))
    other["tasks"]["8gaussians"]["score"] = "sliced_w2"
    assert [change.verdict for change in changes(Comparison(other), Comparison(alone))] == ["not comparable"]


@pytest.mark.parametrize("key", ["horizon", "tau", "target", "samples", "fit", "budget", "curve_points"])
def test_other_problems_and_other_sizes_are_not_compared(key: str) -> None:
    now, before = make_results(tasks=("8gaussians", "gmm25")), make_results(tasks=("8gaussians", "gmm25"))
    runs = [run for run in now["runs"] if (run["task"], run["label"]) == ("8gaussians", "ppo")]
    differing = key
    if key in ("horizon", "tau"):
        now["tasks"]["8gaussians"][key] = 10
    for run in runs:
        if key == "target":
            run["task_settings"], differing = {"target": "gmm9"}, "task_settings"
        elif key in ("samples", "curve_points"):
            run["sizes"], differing = {key: 7}, f"sizes.{key}"
        elif key in ("fit", "budget"):
            run[key] = False if key == "fit" else 7
    found = changes(Comparison(now), Comparison(before))
    others = [change for change in found if change.verdict == "not comparable"]
    text = notes(found)
    if key in ("budget", "curve_points"):
        assert not others and "Not comparable" not in text, "budgets are shown, and points of curves change no score"
    else:
        labels = {"base", "dxdp", "ppo", "sb3-ppo"} if key in ("horizon", "tau") else {"ppo"}
        assert {(change.task, change.label) for change in others} == {("8gaussians", label) for label in labels}
        assert all(change.differing == (differing,) and change.difference is None for change in others)
        assert f"Not comparable, as they differ in {differing}: " in text and "ppo on 8gaussians" in text


def test_every_horizon_of_a_task_is_said() -> None:
    results = make_results(tasks=("8gaussians",))
    assert ("horizon T", "5") in Comparison(results).facts("8gaussians")
    for run in results["runs"]:
        if run["label"] == "ppo":
            run["task_settings"] = {"horizon": 10}
    assert ("horizon T", "5, 10") in Comparison(results).facts("8gaussians")


def test_the_report_says_what_scores_rest_on() -> None:
    results = make_results(tasks=("8gaussians",))
    for run in results["runs"]:
        run["sizes"] = {"samples": 1000, "trajectories": 10_000}
    assert ("scored on", "1,000 samples and 10,000 trajectories per run") in Comparison(results).facts("8gaussians")


@pytest.mark.slow
def test_the_report_says_what_changed(tmp_path: Path) -> None:
    results = make_results(seeds=2, tasks=("8gaussians",), paths=False)
    files = write_report(results, tmp_path, before=earlier() | {"name": "the <first>", "schema": 2})
    html, text = (file.read_text(encoding="utf-8") for file in files[:2])
    reader = Reader(html)
    (table,) = [table for table in reader.tables if "Welch" in table["caption"]]
    assert table["rows"][0][3:5] == ["before", "now"] and len(table["rows"]) == 1 + 5 + 4
    assert "What changed since the <first>" in reader.text and "they differ in fitted kernel: " in reader.text
    assert "What changed since the \\<first\\>" in text and "not comparable" in text and "**better**" not in text
    assert "What changed" not in write_report(results, tmp_path)[0].read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="results must be a dict"):
        write_report(results, tmp_path, before=[])  # type: ignore[arg-type]


@pytest.mark.slow
def test_one_figure_for_a_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = make_results(seeds=2, tasks=("8gaussians", "manywell32"), paths=False)
    charts = figures(Comparison(results))
    assert {"curve-8gaussians-energy_evals", "profile-sample-manywell32", "aggregate-fine-tune-IQM"} <= set(charts)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results), encoding="utf-8")
    for name, ending, start in (
        ("curve-8gaussians-seconds", "pdf", b"%PDF"),
        ("aggregate-sample-IQM", "png", b"\x89P"),
    ):
        out = tmp_path / f"figure.{ending}"
        assert main(["report", str(file), "--figure", name, "--out", str(out)]) == 0
        assert out.read_bytes().startswith(start) and str(out) in capsys.readouterr().out
        # After the first, all charts are those from above.
        monkeypatch.setattr("dxmi_rl.benchmark.report.figures.figures", lambda comparison: charts)
    assert (
        main(["report", str(file), "--figure", "curve-8gaussians-energy_evals", "--out", str(tmp_path / "a.svg")]) == 0
    )
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {label} -->" in drawn for label in SKILL), "a legend"
    assert main(["report", str(file), "--figure", "curve-8gaussians-seconds", "--against", str(file)]) == 2
    assert "against belongs to whole reports" in capsys.readouterr().err
    assert main(["report", str(file), "--figure", "curve-8gaussian-seconds"]) == 2
    assert "curve-8gaussians-seconds" in capsys.readouterr().err
    assert main(["report", str(file), "--figure", "curve-8gaussians-seconds", "--out", "a.gif"]) == 2
    assert "out must end with .pdf, .png, .svg" in capsys.readouterr().err


def test_the_playground_has_every_row(results: dict[str, Any]) -> None:
    comparison = Comparison(results)
    content = payload(comparison)
    assert set(content["tasks"]) == set(TASKS) and len(content["runs"]) == SEEDS * len(SKILL) * len(TASKS)
    first = content["runs"][0]
    run = next(run for run in results["runs"] if run["key"] == hash_of(first))
    assert first["energy"] == run["paths"]["energy"] and first["T"] == 5 and first["score"].startswith("kl_bound_fit")
    text = playground(comparison)
    assert text is not None and "url(http" not in text and text.count("</script>") == 2
    assert playground(Comparison(make_results(seeds=1, tasks=("gmm25",), paths=False))) is None
    hostile = make_results({"<script>alert(1)</script>": 0.5}, seeds=1, tasks=("gmm25",))
    assert "<script>alert" not in (playground(Comparison(hostile)) or "")


def hash_of(shown: dict[str, Any]) -> str:
    """The key that report_cases gives this run."""
    return hashlib.sha256(f"{shown['task']} {shown['agent']} {shown['seed']}".encode()).hexdigest()[:16]


def test_numbers_in_charts_are_the_numbers() -> None:
    """Coordinates of a drawing are rounded, its texts are not."""
    figure = Figure()
    figure.subplots().plot([0.001, 0.009], [0.0012, 0.0018], label="lr=0.0003")
    figure.axes[0].legend()
    text = svg(figure, "curves", "Curves.")
    assert "lr=0.0003" in text and "0.0012" in text
    assert not re.search(r'"[^"<>]*\d\.\d{3,}[^"<>]*"', text)


def test_runs_that_stand_for_divergence_are_not_tested() -> None:
    """Imputed scores have a difference, and no interval and no p-value."""
    found = difference_of([1.0, 1.1, 1.2], [2.0, 2.1, 9.0], "ppo", -1, tested=False)
    assert found is not None and found.value == pytest.approx(4.3667 - 1.1, abs=1e-3)
    assert (found.low, found.p_value) == (None, None)
