"""Tables of a comparison for terminals: interquartile means over seeds with intervals, and costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dxmi_rl.benchmark.measure import SELECTED_BY, first_score
from dxmi_rl.benchmark.protocol import Row
from dxmi_rl.benchmark.results import Result, Summary, lacking
from dxmi_rl.evaluation.evaluate import MIN_ESS
from dxmi_rl.utils.storage import JSON

SCORES = {
    "kl_marginal": "↓", "kl_marginal_forward": "↓",
    "kl_bound": "↓", "kl_bound_fit": "↓", "elbo_tau": "↑", "sliced_w2": "↓", "sliced_w2_late": "↓",
    "quantile_error": "↓", "energy_tv": "↓", "energy_w2": "↓", "distance_tv": "↓", "modes": "↑", "mode_tv": "↓",
    "reward": "", "true_reward": "↑", "over_optimisation": "", "kl_untilted": "", "kl_base": "", "well_error": "↓",
    "elbo": "↑", "log_z": "", "eubo": "↓", "ess": "↑", "auc": "↑", "auc_late": "↑",
    "fd": "↓", "fd_late": "↓", "kd": "↓", "precision": "↑", "recall": "↑", "density": "↑", "coverage": "↑",
}  # fmt: skip
"""Columns of scores, in order, with the better direction."""
MEANINGS = {
    "kl_marginal": "KL divergence of the samples from the target itself, in nats",
    "kl_marginal_forward": "KL divergence of the target from the samples, in nats; lost modes raise it",
    "kl_bound": "upper bound on the KL divergence from the target, in nats, with the kernel of training",
    "kl_bound_fit": "upper bound on the KL divergence from the target, in nats, with a kernel fitted after training",
    "elbo": "lower bound on log Z of exp(-E), in nats",
    "elbo_tau": "lower bound on log Z of exp(-E / tau), in nats",
    "eubo": "upper bound on log Z of exp(-E), in nats; lost modes raise it",
    "log_z": "estimate of log Z of exp(-E) by importance weights, in nats",
    "ess": "effective sample size of the importance weights, as a part of all chains",
    "fd": "Fréchet distance of the features of samples and test images",
    "sliced_w2": "sliced Wasserstein-2 distance from exact samples",
    "modes": "modes of the target that have samples",
    "mode_tv": "total variation between the modes' shares of samples and their true shares",
    "well_error": "largest error of a well's share over all pairs of wells",
    "quantile_error": "error of quantiles, in units of the target's scale",
    "energy_tv": "total variation between the energies of samples and of reference states",
    "energy_w2": "Wasserstein-2 distance between the energies of samples and of reference states, in nats",
    "distance_tv": "total variation between the distances of particles in samples and in reference states",
    "auc": "how well the learned energy tells data from uniform noise: 0.5 is chance",
}
"""What scores are."""
COSTS = {
    "timesteps": "transitions", "energy_evals": "energy evals", "energy_grad_evals": "energy grad evals",
    "gradient_steps": "gradient steps", "policy_draws": "policy draws", "denoiser_calls": "denoiser calls",
    "seconds": "seconds",
}  # fmt: skip
"""What training cost, with headers of columns."""
IN_TERMINALS = ("timesteps", "energy_evals", "seconds")
"""The costs that tables in a terminal have room for."""
MARK, LEGEND = " *", f"* log_z is unreliable: ess < {MIN_ESS}."


def main_score(row: Row, results: Sequence[Result]) -> str | None:
    """What curves show: a bound on the likelihood where an energy is given, else fd, else sliced W2."""
    return first_score(SELECTED_BY, list({key for result in results for key in result["scores"]}), row.energy_given)


def main_scores(result: Result) -> str:
    """A finished run's scores and seconds in one line."""
    bound = "kl_bound" if "kl_bound" in result["scores"] else "elbo"
    keys = [bound, "kl_bound_fit", "elbo_tau", "sliced_w2", "quantile_error", "energy_tv", "fd", "auc"]
    scores = "  ".join(f"{key} {number(result['scores'][key])}" for key in keys if key in result["scores"])
    return f"{scores}  ({result['costs']['seconds']:.0f} + {result['evaluation_seconds']:.0f} s)"


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


def ranking_tables(results: JSON) -> list[Table]:
    """One table per task of a results file, the best agent first: its rank, score, interval and costs, in at most 100
    columns. All other scores are in the report.
    """
    return [_ranking(task, facts, results["summary"], results["runs"]) for task, facts in results["tasks"].items()]


def _ranking(task: str, facts: JSON, summaries: Sequence[Summary], runs: Sequence[JSON]) -> Table:
    key, own = facts["score"], [summary for summary in summaries if summary["task"] == task]
    scores = [summary["scores"].get(key) for summary in own]
    sign = -1.0 if facts["better"] == "higher" else 1.0
    order = sorted(range(len(own)), key=lambda i: math.inf if (entry := scores[i]) is None else sign * entry["iqm"])
    partly = [lacking(runs, task, summary["label"], key) if key else "" for summary in own]
    body = [
        _line(f"{rank if scores[i] else '':>2}  ", own[i], scores[i], partly[i]) for rank, i in enumerate(order, 1)
    ]  # fmt: skip
    title = f"{task}: {key} {SCORES[key]}" if key else task
    known = [f"{name} {number(facts[entry])}" for name, entry in (("exact samples", "floor"), ("base sampler", "base"))
             if facts[entry] is not None]  # fmt: skip
    title += f" ({', '.join(known)})" if known else ""
    methods = sorted({entry["method"] for entry in scores if entry and "method" in entry})
    header = ["    agent", key or "score", "", *(COSTS[cost] for cost in IN_TERMINALS)]
    return Table(title, header, body, 2, _caption(own, methods))


def _line(rank: str, summary: Summary, entry: JSON | None, partly: str) -> list[str]:
    """Agent after its rank, score, interval and costs; ``partly`` says in how many runs the score is."""
    label, seeds = summary["label"], len(summary["seeds"])
    lost = summary["diverged"]
    label += f"\n({lost} of {seeds} runs diverged)" if lost else ""
    label += f"\n({summary['runs']} of {seeds} runs)" if summary["runs"] + lost < seeds else ""
    label += "".join(f"\n({note})" for note in (partly, setbacks(summary)) if note)
    value = "" if entry is None else number(entry["iqm"])
    bounded = entry is not None and "low" in entry and entry["low"] != entry["high"]
    interval = f"[{number(entry['low'])}, {number(entry['high'])}]" if entry and bounded else ""
    spent = summary["costs"]  # results from before a cost was counted lack it
    costs = [(compact(spent[key]) if spent[key] else "0") if key in spent else "" for key in IN_TERMINALS]
    return [rank + label.replace("\n", f"\n{' ' * len(rank)}"), value, interval, *costs]


def setbacks(summary: Summary) -> str:
    """``3 steps back in 5 runs`` where training diverged and went on (``Costs.setbacks``), else nothing."""
    count = round(summary["costs"].get("setbacks", 0) * summary["runs"])
    runs = summary["runs"]
    return f"{count} step{'s' * (count > 1)} back in {runs} run{'s' * (runs > 1)}" if count else ""


def unreliable(ess: float) -> bool:
    """Whether log Z from so small an effective sample size, a fraction, is to be marked."""
    return ess < MIN_ESS


def count_seeds(counts: Iterable[int]) -> str:
    """``5 seeds``, or ``5 to 10 seeds`` where rows differ."""
    low, high = min(counts := list(counts)), max(counts)
    return f"{low} seed{'s' * (low > 1)}" if low == high else f"{low} to {high} seeds"


def _caption(summaries: Sequence[Summary], methods: Sequence[str]) -> str:
    text = f"Interquartile mean over {count_seeds(len(summary['seeds']) for summary in summaries)}"
    return text + (f" [95 % {', '.join(methods)}]" if methods else "") + "; costs are means of what training spent."


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
            Console(width=max(_width(rich), len(table.title))).print(rich)
        terminal.print(Text(table.caption, style="dim"), width=min(terminal.width, 120))


def _width(table: RichTable) -> int:
    wide = Console(width=1000)
    return wide.measure(table, options=wide.options).maximum


def _rich(table: Table, columns: list[int]) -> RichTable:
    rich = RichTable(title=table.title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False,
                     collapse_padding=True)  # fmt: skip
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
