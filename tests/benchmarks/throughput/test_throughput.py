"""benchmarks/throughput/throughput.py: its arithmetic, its meters, and that every row runs. No timings are judged."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.throughput import measure, report, rows, throughput
from dxmi_rl import make_task
from dxmi_rl.mdp import DenoisingMDP

CPU = torch.device("cpu")
FLOAT = 4
"""Bytes."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that a quick run with two seeds works in."""
    root = tmp_path_factory.mktemp("throughput")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert throughput.main(["--quick", "--seeds", "0", "1", "--json", "elsewhere/copy.json"]) == 0
    return root


@pytest.fixture(scope="module")
def results(quick: Path) -> dict[str, Any]:
    """Its results."""
    return json.loads((quick / "runs" / "throughput" / "results.json").read_text(encoding="utf-8"))


# The whole script -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_key_of_the_docstring_exists(quick: Path, results: dict[str, Any]) -> None:
    table = throughput.__doc__.split("Keys of", 1)[1].split(":\n", 1)[1]
    names = [re.match(r" {4,6}((?:[\w.]+, )*[\w.]+)  ", line) for line in table.splitlines()]
    keys = [key for match in names if match for key in match[1].split(", ")]
    assert {key for key in keys if "." not in key} == set(results)
    for part in ("cells", "skipped", "growth", "aims"):
        documented = {key.split(".")[1] for key in keys if key.startswith(f"{part}.")}
        assert results[part] and all(documented == set(entry) for entry in results[part]), part
    assert json.loads((quick / "elsewhere" / "copy.json").read_text(encoding="utf-8")) == results
    assert results["threads"] == 1 and results["clock"] == "CPU time"
    command = "python benchmarks/throughput/throughput.py --quick --seeds 0 1 --json elsewhere/copy.json"
    assert results["command"] == command


def test_every_row_is_measured_or_excused(results: dict[str, Any]) -> None:
    measured = {(cell["row"], cell["n"]) for cell in results["cells"]}
    excused = {(entry["row"], entry["n"]) for entry in results["skipped"]}
    wanted = {(row.label, n) for row in rows.ROWS for n in throughput.QUICK.sizes}
    assert measured | excused == wanted and not measured & excused
    assert excused == {(rows.SCALAR.label, n) for n in throughput.QUICK.sizes if n > 1}
    for cell in results["cells"]:
        assert 0 < cell["min_us"] <= cell["median_us"]
        assert cell["min_us"] == min(cell["seed_min_us"]) and len(cell["seed_min_us"]) == 2
        assert cell["steps_per_second"] == pytest.approx(1e6 * cell["n"] / cell["min_us"])
        assert cell["ratio"] == pytest.approx(cell["min_us"] / (cell["min_us"] - cell["excess_us"]))
        assert (cell["row"] == rows.BARE.label) == (cell["ratio"] == 1)


def test_growth_has_all_curves(results: dict[str, Any]) -> None:
    found = {(entry["quantity"], entry["row"], entry["variable"]) for entry in results["growth"]}
    assert found == {
        (quantity, row.label, variable)
        for quantity, own in (("time", rows.TIME_ROWS), ("memory", rows.MEMORY_ROWS))
        for row in own
        for variable in "NTd"
    }
    for entry in results["growth"]:
        assert set(entry["fixed"]) | {entry["variable"]} == {"N", "T", "d"}
        assert entry["exponent"] == measure.fit_exponent(entry["values"], entry["measured"], entry["fit_from"])


def test_report_has_all_tables_and_the_picture(quick: Path, results: dict[str, Any]) -> None:
    text = (quick / "runs" / "throughput" / "report.md").read_text(encoding="utf-8")
    assert results["command"] in text and f"torch {torch.__version__}" in text and "![throughput.png]" in text
    for section in text.split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        assert len(lines) > 2 and len({line.count("|") for line in lines}) == 1
    assert (quick / "runs" / "throughput" / "throughput.png").read_bytes().startswith(b"\x89PNG")
    assert "DenoiseEnv.step is not measured at N = 16" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "8gausians"], "Did you mean '8gaussians'"),
        (["--task", "8gaussians-data"], "has no energy"),
        (["--name", "../elsewhere"], "plain folder name"),
        (["--seeds", "1", "1"], "seeds must be distinct"),
        (["--sizes", "0"], "size must be >= 1, got 0"),
        (["--seconds", "0"], "seconds must be finite and > 0"),
        (["--threads", "0"], "threads must be >= 1, got 0"),
        (["--device", "abacus"], "device must name a torch device"),
    ],
)
def test_bad_arguments_end_before_anything_runs(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert throughput.main([*arguments, "--quick"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out and not list(tmp_path.iterdir())


def test_help_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        throughput.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "runs/<name>/" in text
    assert all(f"--{option}" in text for option in throughput.Arguments.__dataclass_fields__)
    assert max(map(len, text.splitlines())) <= 100


def test_compiling_is_reported_apart() -> None:
    compiled = measure.Cell(rows.COMPILED.label, 64, 17.25, [1e-4], [1e-4], [1e-4])
    other = measure.Cell(rows.VECTOR.label, 64, 3.0, [1e-4], [1e-4], [1e-4])
    caption = report.cell_tables("title", "wall clock", [other, compiled], [])[0].caption
    assert "First call of mdp.rollout, compiled: 17.2 s at N = 64." in caption and caption.count("First call") == 1


# Rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row", [row for row in rows.ROWS if row not in (rows.SAMPLE, rows.SEVERAL)], ids=lambda row: row.label
)
def test_a_row_computes_every_reward_of_its_episodes(row: rows.Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """T n running rewards and n energies per call, so that no row is fast because it leaves something out."""
    task = make_task("8gaussians")
    n = min(6, row.largest or 6)
    run = row.build(task, n, 0)
    run()
    seen = {"running": 0, "energy": 0}
    running, energy = task.mdp.running_reward, task.mdp.energy

    def count_running(x: Tensor, x_next: Tensor, t: Any) -> Tensor:
        seen["running"] += len(x)
        return running(x, x_next, t)

    def count_energy(x: Tensor) -> Tensor:
        seen["energy"] += len(x)
        return energy(x)

    monkeypatch.setattr(task.mdp, "running_reward", count_running)
    monkeypatch.setattr(task.mdp, "energy", count_energy)
    run()
    wanted = 0 if row is rows.ROLLOUT else n
    assert seen == {"running": 5 * wanted, "energy": wanted}


def test_episodes_of_several_horizons_have_all_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """T steps per call; the energy where an episode of T - 1, T or T + 1 of them ends."""
    run = rows.SEVERAL.build(make_task("8gaussians"), 6, 0)
    seen: list[int] = []
    checked = DenoisingMDP.checked_transition

    def counted(mdp: DenoisingMDP, x: Tensor, *arguments: Any, **options: Any) -> Any:
        found = checked(mdp, x, *arguments, **options)
        assert bool(found[1].isfinite().all()) and len(found[1]) == 6
        seen.append(0 if found[2] is None else mdp.horizon)
        return found

    monkeypatch.setattr(DenoisingMDP, "checked_transition", counted)
    for _ in range(12):
        run()
    ends = [horizon for horizon in seen if horizon]
    assert len(seen) == 60 and set(ends) == {4, 5, 6} and 0 <= 60 - sum(ends) < 6


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: row.label)
def test_a_row_draws_the_actions_of_its_seed(row: rows.Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """T draws of n d standard normal numbers besides the starts, from a generator: the same work for all."""
    n = min(6, row.largest or 6)
    run = row.build(make_task("8gaussians"), n, 0)
    run()
    draws: list[int] = []
    randn = torch.randn

    def count(*arguments: Any, **options: Any) -> Tensor:
        drawn = randn(*arguments, **options)
        assert options["generator"] is not None
        draws.append(drawn.numel())
        return drawn

    monkeypatch.setattr(torch, "randn", count)
    run()
    assert sum(draws) == (5 + 1) * n * 2 and draws.count(2 * n) >= 5


def test_the_mixture_has_the_dimension() -> None:
    assert rows.mixture(3).means.shape == (8, 3) and rows.mixture(3).means.equal(rows.mixture(3).means)


# Time -----------------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that moves only when a call says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.order = 0.0, list[str]()
        for name in ("perf_counter", "thread_time"):
            monkeypatch.setattr(time, name, lambda: self.now)

    def call(self, name: str, seconds: float) -> rows.Episodes:
        def run() -> None:
            self.now += seconds
            self.order.append(name)

        return run


def test_the_clock_counts_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for device, threads, name in (
        (CPU, 1, "CPU time"),
        (CPU, 2, "wall clock"),
        (torch.device("meta"), 1, "wall clock"),
    ):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert measure.clock(device)[0] == name


def test_calls_take_turns_and_slow_ones_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls = {"fast": clock.call("fast", 0.125), "slow": clock.call("slow", 1.0), "slowest": clock.call("slowest", 64.0)}
    times = measure.time_interleaved(calls, seconds=4.0, rounds=8, device=CPU)
    assert times == {"fast": [0.125] * 8, "slow": [1.0] * 4, "slowest": [64.0] * measure.MIN_ROUNDS}
    one_round = ["fast"] * 4 + ["slow", "slowest"]
    assert clock.order[3:] == one_round * 3 + one_round[:-1] + one_round[:-2] * 4  # after one call of each


def test_cells_compare_with_the_same_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bare step speeds up after three rounds; a row that took part in those only is compared with them."""
    task, clock = make_task("8gaussians", horizon=2), Clock(monkeypatch)
    bare_calls = iter([8.0, 8.0, 8.0, 8.0, 8.0, 4.0])

    def build_bare(*_: Any) -> rows.Episodes:
        return lambda: clock.call("bare", next(bare_calls))()

    bare = rows.Row(rows.BARE.label, build_bare)
    monkeypatch.setattr(measure, "BARE", bare)
    slow = rows.Row("slow", lambda *_: clock.call("slow", 32.0))
    cells = {cell.row: cell for cell in measure.measure_cells([bare, slow], task, 5, [0], seconds=32.0, rounds=4)}
    assert cells["slow"].times == [16.0] * 3 and cells["slow"].bare == [4.0] * 3
    assert cells[bare.label].times == [4.0, 4.0, 4.0, 2.0]
    assert (cells["slow"].ratio, cells["slow"].excess, cells["slow"].first) == (4.0, 12.0, 32.0)
    assert cells[bare.label].ratio == 1 and cells[bare.label].median == 4.0


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "floats"),
    [
        (lambda: torch.empty(1000), 1000),
        (lambda: [torch.empty(1000) for _ in range(3)], 3000),
        (lambda: [torch.empty(1000).numel() for _ in range(3)], 1000),
        (lambda: torch.ones(1000) + torch.ones(1000), 3000),
        (lambda: torch.ones(1000).add_(1), 1000),
        (lambda: torch.ones(10, 100)[:5].T, 1000),
        (lambda: None, 0),
    ],
    ids=["one", "kept", "released", "sum", "in-place", "view", "nothing"],
)
def test_known_allocations(call: rows.Episodes, floats: int) -> None:
    peaks = [measure.peak_bytes(call, CPU) for _ in range(2)]
    assert peaks[0] == peaks[1]
    assert FLOAT * floats <= peaks[0] <= FLOAT * floats + 64  # scalars of an operation


def test_memory_before_the_call_does_not_count() -> None:
    held = torch.ones(100_000)
    assert FLOAT * 100_000 <= measure.peak_bytes(lambda: held * 2, CPU) < FLOAT * 100_064


@pytest.mark.slow
def test_memory_of_episodes() -> None:
    """A rollout keeps T + 1 states of d numbers and T log-probabilities; sampling keeps one state, whatever T."""
    n, peaks = 4_096, dict[tuple[str, int], int]()
    for horizon in (2, 8, 32):
        task = make_task("8gaussians", horizon=horizon)
        for row in rows.MEMORY_ROWS:
            run = row.build(task, n, 0)
            with torch.no_grad():
                run()
                peaks[row.label, horizon] = measure.peak_bytes(run, CPU)
    assert peaks[rows.SAMPLE.label, 2] == peaks[rows.SAMPLE.label, 8] == peaks[rows.SAMPLE.label, 32]
    kept = FLOAT * n * (2 * 33 + 32)
    assert kept <= peaks[rows.ROLLOUT.label, 32] < 3 * kept


# Exponents ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.3, -1.0])
def test_exponents_of_power_laws(power: float) -> None:
    x = [1, 2, 5, 40, 300]
    assert measure.fit_exponent(x, [7e-6 * value**power for value in x]) == pytest.approx(power, abs=1e-10)


def test_the_fit_leaves_out_what_is_below_its_range() -> None:
    x = [1, 2, 4, 8, 16]
    y = [100.0, 100.0, *(value**1.5 for value in x[2:])]
    assert measure.fit_exponent(x, y, start=4) == pytest.approx(1.5)
    assert measure.fit_exponent(x, y) < 0


def test_the_fit_is_least_squares() -> None:
    """Errors of +e, -2e, +e in the logarithm at equal distances cancel in the slope."""
    x, factors = [1.0, 10.0, 100.0], [1.1, 1.1**-2, 1.1]
    assert measure.fit_exponent(x, [a**2 * b for a, b in zip(x, factors, strict=True)]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("x", "y", "start"), [([1, 2], [1, 2], 2), ([1, 2], [0, 2], 0), ([1, 2], [1, float("inf")], 0)]
)
def test_fits_that_cannot_be(x: list[float], y: list[float], start: float) -> None:
    with pytest.raises(ValueError, match="an exponent needs"):
        measure.fit_exponent(x, y, start)


# Aims -----------------------------------------------------------------------------------------------------------------


def cell(row: rows.Row, n: int, microseconds: float, bare: float = 100.0) -> measure.Cell:
    return measure.Cell(row.label, n, 1.0, [1e-6 * microseconds, 1.0], [1e-6 * bare, 2.0], [1e-6 * microseconds])


def curve(quantity: str, row: rows.Row, variable: str, power: float) -> measure.Growth:
    values = (1, 2, 4, 8)
    return measure.Growth(quantity, row.label, variable, {}, values, tuple(float(x) ** power for x in values), 2)


def verdicts(cells: list[measure.Cell], growth: list[measure.Growth]) -> dict[tuple[str, str], bool | None]:
    found = throughput.check_aims(cells, growth)
    assert [v["row"] for v in found if v["passed"] is None] == [v["row"] for v in found if v["measured"] is None]
    return {(v["row"], f"{v['quantity']} {v['at']}"): v["passed"] for v in found if v["passed"] is not None}


def test_aims_are_checked_where_they_apply() -> None:
    cells = [
        cell(rows.VECTOR, 64, 500.0), cell(rows.VECTOR, 1_024, 129.0), cell(rows.VECTOR, 16_384, 131.0),
        cell(rows.TORCHRL_STEP, 1_024, 219.0), cell(rows.TORCHRL_STEP, 64, 221.0),
        cell(rows.TORCHRL_STEP, 16_384, 131.0), cell(rows.SCALAR, 1, 299.0), cell(rows.SB3, 16_384, 401.0),
        cell(rows.SYNC, 64, 9_000.0),
    ]  # fmt: skip
    growth = [
        curve("memory", rows.SAMPLE, "T", 0.01), curve("memory", rows.ROLLOUT, "T", 1.0),
        curve("time", rows.BARE, "N", 1.09), curve("time", rows.ROLLOUT, "T", 1.11), curve("time", rows.BARE, "d", 2.0),
    ]  # fmt: skip
    assert verdicts(cells, growth) == {
        (rows.VECTOR.label, "ratio to bare, N = 1,024"): True,
        (rows.VECTOR.label, "ratio to bare, N = 16,384"): False,
        (rows.TORCHRL_STEP.label, "excess over bare [µs], N = 1,024"): True,
        (rows.TORCHRL_STEP.label, "excess over bare [µs], N = 64"): False,
        (rows.TORCHRL_STEP.label, "ratio to bare, N = 16,384"): False,
        (rows.SCALAR.label, "ratio to bare, N = 1"): True,
        (rows.SB3.label, "ratio to bare, N = 16,384"): False,
        (rows.SAMPLE.label, "memory growth from T = 2 to 8"): False,
        (rows.BARE.label, "time exponent in N, 2 .. 8"): True,
        (rows.ROLLOUT.label, "time exponent in T, 2 .. 8"): False,
    }
    text = report.verdict_table(throughput.check_aims(cells, growth))
    assert {line[-1] for line in text.body} == {"met", "MISSED", "not measured"}


def test_presets_reach_the_places_of_the_aims() -> None:
    for preset in (throughput.CPU, throughput.CUDA):
        assert all(any(aim.low <= n <= aim.high for n in preset.sizes) for aim in throughput.AIMS)
        sweeps = {sweep.variable: sweep for sweep in preset.sweeps}
        assert min(sweeps["N"].values) >= 16_384 and sweeps["T"].values[-1] == 64
        assert all(sum(x >= sweep.fit_from for x in sweep.values) >= 2 for sweep in preset.sweeps)
