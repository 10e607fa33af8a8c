"""Tables of a comparison for terminals: interquartile means over seeds with intervals, and costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dxmi_rl.benchmark.measure import SELECTED_BY, first_score
from dxmi_rl.benchmark.protocol import Row
from dxmi_rl.benchmark.results import Result, Summary, rows_by_task
from dxmi_rl.evaluation.evaluate import MIN_ESS
from dxmi_rl.utils.storage import JSON

SCORES = {
    "kl_marginal": "↓", "kl_marginal_forward": "↓",
    "kl_bound": "↓", "kl_bound_fit": "↓", "elbo_tau": "↑", "sliced_w2": "↓", "sliced_w2_late": "↓", "modes": "↑",
    "mode_tv": "↓", "reward": "", "true_reward": "↑", "over_optimisation": "", "kl_untilted": "", "kl_base": "",
    "well_error": "↓", "elbo": "↑", "log_z": "", "eubo": "↓", "ess": "↑", "auc": "↑", "auc_late": "↑",
    "fd": "↓", "fd_late": "↓", "kd": "↓", "precision": "↑", "recall": "↑", "density": "↑", "coverage": "↑",
}  # fmt: skip
"""Columns of scores, in order, with the better direction."""
COSTS = {
    "timesteps": "transi-\ntions", "energy_evals": "energy\nevals", "energy_grad_evals": "energy\ngrad evals",
    "gradient_steps": "gradient\nsteps",
    "policy_draws": "policy\ndraws", "denoiser_calls": "denoiser\ncalls", "seconds": "train\nseconds",
}  # fmt: skip
"""Columns of what training cost, with their headers."""
CALLS = "denoiser_calls"
MARK, LEGEND = " *", f"* log_z is unreliable: ess < {MIN_ESS}."
FLOOR = "exact samples (floor)"


def main_score(row: Row, results: Sequence[Result]) -> str | None:
    """What curves show: a bound on the likelihood where an energy is given, else fd, else sliced W2."""
    return first_score(SELECTED_BY, list({key for result in results for key in result["scores"]}), row.energy_given)


def main_scores(result: Result) -> str:
    """A finished run's scores and seconds in one line."""
    keys = ["kl_bound", "kl_bound_fit", "elbo_tau", "sliced_w2", "fd", "auc"]
    scores = "  ".join(f"{key} {number(result['scores'][key])}" for key in keys if key in result["scores"])
    return f"{scores}  (train {result['costs']['seconds']:.0f} s, score {result['evaluation_seconds']:.0f} s)"


@dataclass(frozen=True)
class Table:
    """A table of one task, in text."""

    title: str
    header: list[str]
    body: list[list[str]]
    """Cells; an interval is the second line of its cell."""
    scores: int
    """How many columns after the first are scores; the rest are costs."""
    caption: str


def make_tables(rows: Sequence[Row], summaries: Sequence[Summary]) -> list[Table]:
    """One table per task, one line per row below the floor's."""
    tables = []
    for task, task_rows in rows_by_task(rows).items():
        own = [summary for summary in summaries if summary["task"] == task]
        keys = [key for key in SCORES if any(key in summary["scores"] for summary in own)]
        if task_rows[0].energy_given:
            keys = [key for key in keys if not key.endswith("_late")]  # for games, which oscillate
        header = ["agent", *(f"{key} {SCORES[key]}".strip() for key in keys), "denoiser calls\nper sample"]
        floors = {
            key: entry["floor"] for summary in own for key, entry in summary["scores"].items() if "floor" in entry
        }
        body = [[FLOOR, *(number(floors[key]) if key in floors else "" for key in keys), "", *("" for _ in COSTS)]]
        body += [_line(summary, keys) for summary in own]
        methods = {entry["method"] for summary in own for entry in summary["scores"].values() if "method" in entry}
        caption = _caption(keys, sorted(methods), task_rows)
        tables.append(Table(task, header + list(COSTS.values()), body, len(keys) + 1, caption))
    return tables


def _line(summary: Summary, keys: list[str]) -> list[str]:
    label, seeds = summary["label"], len(summary["seeds"])
    lost = summary["diverged"]
    label += f"\n({lost} of {seeds} runs diverged)" if lost else ""
    label += f"\n({summary['runs']} of {seeds} runs)" if summary["runs"] + lost < seeds else ""
    label += f"\n({back})" if (back := setbacks(summary)) else ""
    scores = summary["scores"]
    if not summary["runs"]:
        return [label, *(_cell(scores[key]) if key in scores else "" for key in keys), "", *("" for _ in COSTS)]
    cells = [_cell(scores[key]) if key in scores else "" for key in keys]
    if "log_z" in keys and "log_z" in scores and unreliable(scores["ess"]["iqm"]):
        index = keys.index("log_z")
        value, *interval = cells[index].split("\n")
        cells[index] = "\n".join([value + MARK, *interval])
    spent = summary["costs"]  # results from before a cost was counted lack it
    costs = [(compact(spent[key]) if spent[key] else "0") if key in spent else "" for key in COSTS]
    return [label, *cells, number(scores[CALLS]["iqm"]), *costs]


def setbacks(summary: Summary) -> str:
    """``3 steps back in 5 runs`` where training diverged and went on (``Costs.setbacks``), else nothing."""
    count = round(summary["costs"].get("setbacks", 0) * summary["runs"])
    runs = summary["runs"]
    return f"{count} step{'s' * (count > 1)} back in {runs} run{'s' * (runs > 1)}" if count else ""


def _cell(statistics: dict[str, float]) -> str:
    value = number(statistics["iqm"])
    if "low" not in statistics or statistics["low"] == statistics["high"]:
        return value
    return f"{value}\n[{number(statistics['low'])}, {number(statistics['high'])}]"


def unreliable(ess: float) -> bool:
    """Whether log Z from so small an effective sample size, a fraction, is to be marked."""
    return ess < MIN_ESS


def count_seeds(counts: Iterable[int]) -> str:
    """``5 seeds``, or ``5 to 10 seeds`` where rows differ."""
    low, high = min(counts := list(counts)), max(counts)
    return f"{low} seed{'s' * (low > 1)}" if low == high else f"{low} to {high} seeds"


def _caption(keys: list[str], methods: list[str], rows: Sequence[Row]) -> str:
    text = f"Interquartile mean over {count_seeds(len(row.seeds) for row in rows)}"
    if methods:
        text += f" [95 % {', '.join(methods)}]"
    text += "; costs are means of what training spent."
    if "kl_bound" in keys:
        text += (
            " kl_bound (nats) is measured with the kernel each agent was trained with: rows with different kernels do "
            "not compare; rank on "
        )
        text += f"{'kl_bound_fit, ' * ('kl_bound_fit' in keys)}sliced_w2 and modes."
        taus = sorted({row.tau for row in rows})
        if taus != [1.0]:
            text += f" Trained at tau = {', '.join(map(number, taus))} nats; kl_bound uses the energy at temperature 1."
    if "elbo_tau" in keys:
        text += f" elbo_tau: of exp(-E / tau), tau = {number(rows[0].tau)} nats, which the agents are trained for."
    if "log_z" in keys:
        text += f" {LEGEND}"
    if any(key.endswith("_late") for key in keys):
        text += " _late: mean over the last quarter of training."
    return text


def number(value: float) -> str:
    """Three significant digits, never in powers of ten within reason."""
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        digits = f"{value:.3g}"
        return f"{value:.0f}" if "e" in digits else digits
    return f"{value:.1e}"


def compact(value: float) -> str:
    """Counts with k and M, seconds as they are."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{number(value / (1e3 if suffix == 'k' else size))} {suffix}"
    return number(value)


# Output ---------------------------------------------------------------------------------------------------------------


def print_tables(tables: Sequence[Table]) -> None:
    """Print tables whole: a terminal too narrow gets scores and costs below each other, never cut numbers."""
    terminal = Console()
    for table in tables:
        columns = list(range(len(table.header)))
        parts = [columns]
        if terminal.is_terminal and _width(_rich(table, columns)) > terminal.width:
            parts = [columns[: table.scores + 1], [0, *columns[table.scores + 1 :]]]
        for part in parts:
            rich = _rich(table, part)
            Console(width=_width(rich)).print(rich)
        terminal.print(Text(table.caption, style="dim"), width=min(terminal.width, 120))


def _width(table: RichTable) -> int:
    wide = Console(width=1000)
    return wide.measure(table, options=wide.options).maximum


def _rich(table: Table, columns: list[int]) -> RichTable:
    rich = RichTable(title=table.title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for index in columns:
        rich.add_column(Text(table.header[index]), justify="right" if index else "left", no_wrap=True)
    for line in table.body:
        rich.add_row(*(Text(line[index]) for index in columns))
    return rich


def statistics_text(statistics: JSON | None) -> str:
    """Of ``score_statistics``: the interquartile mean, and below it the interval where there is one."""
    if statistics is None:
        return ""
    text = number(statistics["iqm"])
    return f"{text}\n[{number(statistics['low'])}, {number(statistics['high'])}]" if "low" in statistics else text
