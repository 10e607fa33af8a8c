"""The HTML page of a comparison."""

from __future__ import annotations

from importlib import resources
from string import Template

from dxmi_rl.benchmark.report.aggregates import STATISTICS, Aggregate
from dxmi_rl.benchmark.report.appendix import (
    counted,
    improvements_section,
    machine,
    machines_list,
    profiles_section,
    runs_table,
    settings_table,
    versions,
)
from dxmi_rl.benchmark.report.changes import changes_section
from dxmi_rl.benchmark.report.charts import (
    Style,
    curve_charts,
    interval_chart,
    make_styles,
    palette_css,
    swatches,
)
from dxmi_rl.benchmark.report.content import FAILED_RUNS, TRACKS, Comparison, Line
from dxmi_rl.benchmark.report.formatting import MISSING, show, show_date, show_range, show_seconds
from dxmi_rl.benchmark.report.markup import (
    Cell,
    Column,
    Row,
    agent,
    anchor,
    command,
    escape,
    legend,
    plain,
    script_json,
    slug,
    table,
)
from dxmi_rl.benchmark.report.scenes import make_scene
from dxmi_rl.benchmark.tables import LEGEND, SCORES, compact, count_seeds
from dxmi_rl.utils.storage import JSON

COST_ORDER = ["energy_evals", "seconds", "timesteps", "energy_grad_evals", "policy_draws", "denoiser_calls"]


def page(comparison: Comparison, before: Comparison | None = None) -> str:
    """The whole page as one string, with what changed since ``before``."""
    results, styles = comparison.results, make_styles(comparison.labels)
    scenes: JSON = {}
    sections = "\n".join(_task_section(comparison, task, styles, scenes) for task in comparison.tasks)
    template = Template(_resource("template.html"))
    return template.substitute(
        title=escape(str(results["name"])),
        style=palette_css() + _resource("style.css"),
        script=_resource("shared.js") + _resource("script.js"),
        scenes=script_json(scenes),
        swatches=swatches(styles),
        navigation=_navigation(comparison, before),
        changes="" if before is None else changes_section(comparison, before),
        introduction=_introduction(comparison),
        failures=_failures(comparison),
        glance=_glance(comparison),
        aggregates=_aggregates(comparison, styles),
        filters=_filters(comparison),
        tables="\n".join(_big_table(comparison, track, styles) for track in comparison.tracks),
        tasks=sections,
        profiles=profiles_section(comparison, styles),
        improvements=improvements_section(comparison),
        settings=settings_table(comparison, styles),
        runs=runs_table(comparison),
        machines=machines_list(comparison),
    )


def _resource(name: str) -> str:
    return resources.files("dxmi_rl.benchmark.report").joinpath(name).read_text(encoding="utf-8")


# Head -----------------------------------------------------------------------------------------------------------------


def _navigation(comparison: Comparison, before: Comparison | None) -> str:
    links = [("#changes", "What changed")] if before is not None else []
    links += [("#summary", "Summary"), *((f"#task-{slug(task)}", task) for task in comparison.tasks)]
    links += [("#profiles", "Profiles"), ("#settings", "Settings and commands")]
    if any(run.get("paths") for run in comparison.runs):
        links.append(("playground.html", "Playground"))
    return "".join(f'<li><a href="{target}">{escape(name)}</a></li>' for target, name in links)


def _introduction(comparison: Comparison) -> str:
    results = comparison.results
    shown = [
        ("Command", command(results["command"])),
        ("Written", f"<time>{escape(show_date(str(results['date'])))}</time>"),
        ("Runs", f"{len(comparison.runs)} finished, {len(comparison.failed)} failed; seeds "
                 f"{escape(', '.join(map(str, results['seeds'])))}"),
        ("Total time", escape(show_seconds(float(results["seconds"])))),
        ("Machine", "<br>".join(escape(name) for name in counted(comparison, machine))),
        ("Versions", "<br>".join(escape(name) for name in counted(comparison, versions))),
    ]  # fmt: skip
    facts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in shown)
    return f'<p>{escape(comparison.intervals_sentence())}</p><dl class="facts">{facts}</dl>'


def _failures(comparison: Comparison) -> str:
    if not comparison.failed:
        return ""
    items = "".join(
        f"<li><strong>{escape(str(run.get('task')))}, {escape(str(run.get('label')))}, seed "
        f"{escape(str(run.get('seed')))}</strong>: <code>{escape(str(run.get('error')))}</code></li>"
        for run in comparison.failed
    )
    count = len(comparison.failed)
    return (
        f'<section class="failures" role="alert" aria-labelledby="failed"><h2 id="failed">⚠ {count} failed '
        f"run{'s' * (count > 1)}</h2><p>{FAILED_RUNS}</p><ul>{items}</ul></section>"
    )


# Summary --------------------------------------------------------------------------------------------------------------


def _glance(comparison: Comparison) -> str:
    items = []
    for task in comparison.tasks:
        items.append(
            f'<li><a href="#task-{slug(task)}">{escape(task)}</a>: {escape(comparison.verdict(task))}</li>'
        )  # fmt: skip
    return f'<ul class="glance">{"".join(items)}</ul>'


def _aggregates(comparison: Comparison, styles: dict[str, Style]) -> str:
    parts = []
    if len(comparison.tracks) > 1:
        parts.append("<p>Tracks are never pooled: each has its own aggregate and table.</p>")
    for track in comparison.tracks:
        name = f"aggregate-{slug(track)}"
        heading = f'<h3 id="{name}">Over all tasks: track {escape(track)}{anchor(name)}</h3>'
        heading += f"<p>{escape(_track(track))}</p>"
        found = [aggregate for aggregate in comparison.aggregates if aggregate.track == track]
        parts.append(heading + (_aggregate(found[0], styles) if found else "<p>No task has normalised scores.</p>"))
    return "\n".join(parts)


def _track(track: str) -> str:
    text = TRACKS.get(track, "")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _aggregate(aggregate: Aggregate, styles: dict[str, Style]) -> str:
    tasks = f"{len(aggregate.tasks)} task{'s' * (len(aggregate.tasks) > 1)} ({', '.join(aggregate.tasks)})"
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in aggregate.notes)
    if not aggregate.scores:
        return f"<p>No agent has runs of a common seed on all of {escape(tasks)}.</p>{notes}"
    hints = {
        "IQM": "mean of the middle half of all runs; higher is better",
        "median": "higher is better",
        "optimality gap": "mean distance below 1; lower is better",
    }
    columns = [Column("agent", numeric=False), *(Column(name, hints[name]) for name in STATISTICS)]
    top = {
        name: (min if name == "optimality gap" else max)(entry[name][0] for entry in aggregate.statistics.values())
        for name in STATISTICS
    }
    rows: list[Row] = []
    for label, entry in aggregate.statistics.items():
        cells = [Cell(agent(label, styles))]
        for name, (value, bounds) in entry.items():
            best = value == top[name] and len(aggregate.scores) > 1
            cells.append(_estimate(show(value), show_range(*bounds[:2]) if bounds else "", value, best))
        rows.append((cells, {"label": label}))
    methods = {bounds.method for entry in aggregate.statistics.values() for _, bounds in entry.values() if bounds}
    seeds = count_seeds([len(aggregate.seeds)])
    caption = f"Normalised score over {tasks}, {seeds}: 0 = base sampler, 1 = exact sampler"
    caption += f"; 95 % intervals ({', '.join(sorted(methods))})." if methods else "."
    charts = "".join(
        "<figure>"
        + interval_chart(
            {label: entry[name] for label, entry in aggregate.statistics.items()},
            styles,
            f"{name} ({'lower' if name == 'optimality gap' else 'higher'} is better)",
            f"aggregate-{aggregate.track}-{name}",
            lines=(0.0,) if name == "optimality gap" else (0.0, 1.0),
        )
        + "</figure>"
        for name in STATISTICS
    )
    return (
        f'<div class="aggregate">{table(columns, rows, escape(caption), sortable=True)}</div>{notes}'
        f'<div class="charts">{charts}</div>'
    )


def _estimate(text: str, bounds: str, value: float | None, best: bool = False) -> Cell:
    """A value, its mark where it is the best, and its interval, which may go to a line of its own."""
    html = escape(text)
    if best:
        html = f'<strong class="best">{html} <span class="mark">★ best</span></strong>'
    return Cell(f'{html} <span class="interval">{escape(bounds)}</span>' if bounds else html, value)


def _entry(entry: JSON | None, best: bool = False, name: str = "", mark: str = "") -> Cell:
    """The cell of an entry of the summary."""
    if not entry:
        return plain(MISSING)
    text = f"{name} {show(entry['iqm'])}{mark}".strip()
    return _estimate(text, show_range(entry.get("low"), entry.get("high")), entry["iqm"], best)


def _filters(comparison: Comparison) -> str:
    def options(values: list[str]) -> str:
        return "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)

    return (
        f'<label>Task <select id="filter-task"><option value="">all</option>{options(list(comparison.tasks))}</select>'
        f'</label><label>Agent <select id="filter-label"><option value="">all</option>{options(comparison.labels)}'
        '</select></label><label>Text <input id="filter-text" type="search" placeholder="any words"></label>'
        '<label class="check"><input id="all-columns" type="checkbox"> all scores and costs</label>'
        '<output id="filter-count" aria-live="polite"></output>'
    )


def _big_table(comparison: Comparison, track: str, styles: dict[str, Style]) -> str:
    lines = comparison.track_lines(track)
    others = comparison.score_keys(lines)
    columns = [
        Column("agent", numeric=False),
        Column("task", numeric=False, kind="task"),
        Column("ranked by", "the score that ranks the task, and its better direction", numeric=False, kind="task"),
        Column("last iterate", "interquartile mean of the ranking score [95 % interval]"),
        Column("ahead by", "of the best: to the next best; of others: to the best; in the mean, positive is better, "
                           "interval of Welch's t-test"),
        Column("best checkpoint", "the ranking score, or its quick relative, of the best point of the learning curve"),
        Column("exact sampler", "the ranking score of exact samples: normalised 1"),
        Column("normalised", "0 = base sampler, 1 = exact sampler"),
        *(Column(name.replace("_", " "), "mean per run", extra=name not in COST_ORDER[:2]) for name in COST_ORDER),
        *(Column(f"{key} {SCORES.get(key, '')}".strip(), extra=True) for key in others),
        Column("runs", "finished runs", extra=True),
    ]  # fmt: skip
    rows: list[Row] = []
    for line in lines:
        entry, normalised = line.entry, line.summary["normalised"]
        ahead = line.difference
        note = "".join(f" <small>{escape(text)}</small>" for text in comparison.incomplete(line))
        cells = [
            Cell(agent(line.label, styles) + f'{note}<span class="row-task">{escape(line.task)}</span>', line.label),
            plain(line.task, line.task),
            plain(line.name, line.score),
            _entry(entry, line.best),
            _estimate(ahead.short, show_range(ahead.low, ahead.high), ahead.value) if ahead else plain(MISSING),
            _checkpoint(line),
            plain(show(comparison.tasks[line.task]["floor"]), comparison.tasks[line.task]["floor"]),
            _entry(normalised),
            *(_cost(line, name) for name in COST_ORDER),
            *(_entry(line.summary["scores"].get(key), mark=comparison.mark(line.summary, key)) for key in others),
            plain(line.summary["runs"], line.summary["runs"]),
        ]  # fmt: skip
        rows.append((cells, {"task": line.task, "label": line.label}))
    caption = f"Every agent on every task of track {escape(track)}."
    caption += f" {escape(LEGEND)}" if "log_z" in others else ""
    caption += ' <span class="script-only">Click a header to sort.</span>'
    return table(columns, rows, caption, sortable=True, kind="big filterable")


def _cost(line: Line, name: str) -> Cell:
    value = line.summary["costs"].get(name)
    return plain(show(value, compact), value)


def _checkpoint(line: Line) -> Cell:
    """The ranking score of the best checkpoint, or the first other score that it has, with its name."""
    best = line.summary["best"]
    if line.score in best:
        return _entry(best[line.score])
    plain_score = line.score.removesuffix("_fit").removesuffix("_late")
    order = [key for key in (plain_score, *SCORES, *best) if key in best]
    return _entry(best[order[0]], name=order[0]) if order else plain(MISSING)


# Tasks ----------------------------------------------------------------------------------------------------------------


def _task_section(comparison: Comparison, task: str, styles: dict[str, Style], scenes: JSON) -> str:
    name, facts = f"task-{slug(task)}", comparison.facts(task)
    items = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts)
    best = comparison.best(task)
    rerun = f'<p class="rerun">Re-run: {command(best.summary["command"])}</p>' if best else ""
    charts, caption = curve_charts(comparison, task, styles)
    curves = '<p class="note">No learning curves: no agent that trains has finished.</p>'
    if charts:
        labels = legend([line.label for line in comparison.lines(task)], styles)
        figures = "".join(f"<figure>{chart}</figure>" for chart in charts)
        curves = f'{labels}<div class="charts">{figures}</div><p class="note">{escape(caption)}</p>'
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"><h3 id="{name}-title">{escape(task)}{anchor(name)}</h3>'
        f'<dl class="facts line">{items}</dl><p class="verdict">{escape(comparison.verdict(task))}</p>{rerun}'
        f'<h4 id="samples-{slug(task)}">Samples{anchor(f"samples-{slug(task)}")}</h4>'
        f'{_scene(comparison, task, styles, scenes)}<h4 id="curves-{slug(task)}">Learning curves'
        f"{anchor(f'curves-{slug(task)}')}</h4>{curves}</section>"
    )


def _scene(comparison: Comparison, task: str, styles: dict[str, Style], scenes: JSON) -> str:
    scene = make_scene(comparison, task, styles)
    if scene is None:
        return '<p class="note">No samples: the runs of this task kept no denoising paths.</p>'
    scenes[task] = scene.payload()
    name = f"scene-{slug(task)}"
    figures = []
    for panel in scene.panels:
        what = "Target" if panel.style is None else f"Samples of {panel.label} after the last step"
        title = agent(panel.label, styles) if panel.style else escape(panel.label)
        figures.append(
            f'<figure><div class="picture"><img src="{scene.picture(panel)}" alt="{escape(what)} on {escape(task)}: '
            f'{escape(panel.caption)}"><canvas role="img" aria-label="{escape(what)} on {escape(task)}, animated" '
            f"hidden></canvas></div><figcaption>{title}<small>{escape(panel.caption)}</small></figcaption></figure>"
        )
    horizon = scene.horizon
    note = "Each agent: its run with the median score." + (f" {scene.note}" if scene.note else "")
    if scene.grid is not None:
        note += " Shading: the target's energy, strongest where it is lowest."
    return (
        f'<div class="scene" data-task="{escape(task)}"><div class="controls script-only">'
        f'<button type="button" class="play" aria-label="Play the denoising of {escape(task)}">▶ play</button>'
        f'<label for="{name}">step t</label><input id="{name}" type="range" min="0" max="{horizon}" step="0.1" '
        f'value="{horizon}"><output for="{name}">{horizon} of {horizon}</output></div>'
        f'<div class="pictures">{"".join(figures)}</div></div><p class="note">{escape(note)}</p>'
    )
