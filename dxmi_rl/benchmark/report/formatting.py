"""How a report writes numbers: ``show`` for every one of them."""

from __future__ import annotations

import math
from collections.abc import Callable

from dxmi_rl.benchmark.tables import number
from dxmi_rl.utils.storage import JSON

MISSING = "—"
ROUNDING = 1e-12


def show(value: float | None, write: Callable[[float], str] = number) -> str:
    """A number as every table has it, or a dash; what rounding alone keeps from 0 is 0."""
    if value is None or not math.isfinite(value):
        return MISSING
    return write(0.0 if abs(value) < ROUNDING else value)


def show_range(low: float | None, high: float | None) -> str:
    """``[low, high]``, or nothing when there is no interval."""
    return "" if low is None or high is None else f"[{show(low)}, {show(high)}]"


def show_entry(entry: JSON | None) -> str:
    """``iqm [low, high]`` of an entry of the summary."""
    if not entry or entry.get("iqm") is None:
        return MISSING
    return f"{show(entry['iqm'])} {show_range(entry.get('low'), entry.get('high'))}".strip()


def show_signed(value: float) -> str:
    """With a plus sign where it is positive."""
    return f"{'+' * (value > 0)}{show(value)}"


def show_p(value: float | None) -> str:
    """``p = 0.03`` or ``p < 0.001``."""
    if value is None:
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def show_seconds(seconds: float) -> str:
    """Seconds, minutes or hours."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{number(seconds / size)} {unit}"
    return f"{show(seconds)} s"


def show_date(date: str) -> str:
    """An ISO date, to the minute."""
    return date.replace("T", " ")[:16] + (" UTC" if "T" in date else "")
