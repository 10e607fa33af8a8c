"""Sweeps: killed at any moment, on Ray, on several devices, they end with the numbers of an undisturbed one."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sweep_cases import ROOT, RUNS, read, results, tiny_main, write_tiny

from benchmarks.tuning.tune import Inline
from dxmi_rl.benchmark import attempt, sweep
from dxmi_rl.benchmark.measure import measure
from dxmi_rl.benchmark.plan import Arguments, make_plan
from dxmi_rl.benchmark.presets import load_preset
from dxmi_rl.benchmark.protocol import Row, Run, Sizes, make_runs

DISTURBANCES = 3


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The sweep as a process of its own, in a session of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "benchmarks" / "compare" / "compare.py")
    return subprocess.Popen(
        [sys.executable, script, "--preset", "tiny.toml", *arguments], cwd=folder, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def workers(session: int) -> list[int]:
    """Processes of the session that execute runs: joblib's workers, told by their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if os.getsid(int(folder.name)) == session:
                command = (folder / "cmdline").read_bytes()
                if b"loky" in command and b"resource_tracker" not in command:
                    found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds worker processes in /proc")
def test_killed_at_random_moments(undisturbed: Path, tmp_path: Path) -> None:
    """kill -9 of the sweep or of a worker at three random moments.

    At the end every run is there, none that was finished was repeated, and no worker is left.
    """
    chance = random.Random(0)
    folder, kills, process = tmp_path / "runs" / "tiny", 0, None
    killed_sweeps: list[int] = []
    write_tiny(tmp_path)
    try:
        while kills < DISTURBANCES:
            if process is None or process.poll() is not None:
                if len(list((folder / "results").glob("*.json"))) == RUNS:  # all done: disturb what is done again
                    for file in chance.sample(sorted((folder / "results").glob("*.json")), RUNS // 2):
                        file.unlink()
                process = start(tmp_path, "--jobs", "2")
                while not workers(process.pid) and process.poll() is None:
                    time.sleep(0.02)
            time.sleep(chance.uniform(0.0, 1.5))
            victims = workers(process.pid)
            if victims and chance.random() < 0.6:
                os.kill(chance.choice(victims), signal.SIGKILL)
            elif process.poll() is None:
                process.kill()
                process.wait()
                killed_sweeps.append(process.pid)
            else:
                continue
            kills += 1
        assert 0 < len(killed_sweeps) < DISTURBANCES
        deadline = time.monotonic() + 60
        while any(workers(session) for session in killed_sweeps):
            assert time.monotonic() < deadline, "workers outlive their sweep"
            time.sleep(0.1)
        finished = contents(folder / "results")
        for _ in range(2):  # runs that were killed twice have failed, and are tried again
            process = start(tmp_path, "--jobs", "2")
            if (status := process.wait(timeout=300)) == 0:
                break
        assert status == 0
    finally:
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    after = contents(folder / "results")
    assert {name: after[name] for name in finished} == finished
    assert results(folder) == results(undisturbed) and len(results(folder)) == RUNS
    for file in (undisturbed / "results").glob("*.safetensors"):
        assert load_file(folder / "results" / file.name)["x"].equal(load_file(file)["x"])
    summaries = [[entry["scores"] for entry in read(one / "results.json")["summary"]] for one in (folder, undisturbed)]
    assert summaries[0] == summaries[1]
    assert not [file.name for file in (folder / "results").iterdir() if file.suffix not in (".json", ".safetensors")]


def contents(folder: Path) -> dict[str, bytes]:
    """Results of finished runs, which hold their seconds: a run that is repeated differs."""
    return {file.name: file.read_bytes() for file in folder.glob("*.json")}


def in_the_plane(folder: Path) -> dict[str, Any]:
    """Results of the runs with seed 0 on 8gaussians."""
    return {name: run for name, run in results(folder).items() if (run["task"], run["seed"]) == ("8gaussians", 0)}


def tiny_runs() -> list[Run]:
    preset = load_preset(write_tiny())
    return make_runs(preset.rows, preset.seeds, "cpu", preset.sizes)


@pytest.mark.slow
def test_ray_gives_the_same_numbers(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DXMI_RL_CACHE", str(undisturbed.parents[1] / "cache"))
    assert tiny_main("--jobs", "2", "--ray", "local", "--tasks", "8gaussians", "--seeds", "0", whole=True) == 0
    assert results(tmp_path / "runs" / "tiny") == in_the_plane(undisturbed)


@pytest.mark.slow
def test_a_missing_cluster_is_one_clear_error(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert tiny_main("--ray", "auto") == 2
    assert "ray" in (error := capsys.readouterr().err).lower() and error.startswith("error: ")


@pytest.mark.slow
def test_several_devices_have_one_process_each(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tiny_main("--device", "cpu", "cpu:0", "--tasks", "8gaussians", "--seeds", "0", whole=True) == 0
    found = results(tmp_path / "runs" / "tiny")
    assert {run["device"] for run in found.values()} == {"cpu", "cpu:0"}
    for run in found.values():
        run["device"] = "cpu"
    assert found == in_the_plane(undisturbed)


@pytest.mark.slow
def test_a_device_is_lent_once(tmp_path: Path) -> None:
    with sweep.borrowed_device(["a", "b"], tmp_path) as first, sweep.borrowed_device(["a", "b"], tmp_path) as second:
        assert {first, second} == {"a", "b"}
        waiting = Thread(target=lambda: lent.append(take()), daemon=True)
        lent: list[str] = []

        def take() -> str:
            with sweep.borrowed_device(["a", "b"], tmp_path) as third:
                return third

        waiting.start()
        waiting.join(0.2)
        assert not lent
    waiting.join(5)
    assert lent == ["a"]


@pytest.mark.slow
def test_a_run_that_kills_its_worker_fails_alone(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried twice and reported; the others finish."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "killer.py").write_text(KILLER, encoding="utf-8")
    selection = ("--agents", "base", "ppo", "killer", "--tasks", "8gaussians", "--seeds", "0")
    assert tiny_main("--jobs", "2", "--agent", "killer:Killer", *selection, whole=True) == 1
    everything = read(tmp_path / "runs" / "tiny" / "results.json")
    assert len(everything["runs"]) == 2
    assert [(run["label"], run["error"]) for run in everything["failed"]] == [("killer", sweep.DIED)]
    assert not list((tmp_path / "runs" / "tiny" / "results").glob("*.running"))


KILLER = """
import os, signal
from dxmi_rl.agents import PPO

class Killer(PPO):
    name = "killer"

    def iterate(self, on_final=None):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_that_die_at_once_end_the_sweep(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dying(*arguments: Any) -> Iterator[attempt.Outcome]:
        raise BrokenExecutor("out of memory")
        yield

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "_in_workers", dying)
    assert tiny_main("--agents", "base") == 2
    assert "error: worker processes die before they start a run: out of memory" in capsys.readouterr().err


@pytest.mark.slow
def test_a_worker_that_dies_while_it_prepares_is_one_clear_error(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Inline):
        def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(BrokenExecutor("killed"))
            return future

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "worker_processes", lambda jobs: Broken())
    assert tiny_main("--agents", "base", "dxmi", whole=True) == 2
    assert "error: a worker process died while it prepared tasks: killed" in capsys.readouterr().err


def base_run() -> Run:
    (run,) = [run for run in tiny_runs() if (run.row.label, run.seed) == ("base", 0)]
    return run


@pytest.mark.slow
def test_a_crash_is_tried_once_more(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, calls = base_run(), []

    def flaky(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError("the disk was busy")
        return measure(*arguments)

    monkeypatch.setattr(attempt, "measure", flaky)
    run.failure_file(tmp_path).touch()
    assert attempt.store(run, tmp_path, attempt.attempt(run)).error is None and len(calls) == 2
    assert run.load(tmp_path) is not None and not run.failure_file(tmp_path).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (lambda: sys.exit(3), "SystemExit: 3"),
        (lambda: {"costs": float("inf")}, "ValueError: Out of range float"),
        (lambda: {"costs": np.int64(3)}, "TypeError: Object of type int64"),
    ],
)
def test_what_no_file_can_hold_is_a_failure_of_its_run(
    outcome: Any, error: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = base_run()
    monkeypatch.setattr(attempt, "measure", lambda *arguments: (outcome(), torch.zeros(2, 2)))
    found = attempt.store(run, tmp_path, attempt.attempt(run)).error
    assert found is not None and found.startswith(error) and run.failure_file(tmp_path).exists()


@pytest.mark.slow
def test_runs_that_diverged_stay_in_reports_of_other_selections(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They count as the worst until they are finished, whatever a call executes."""
    monkeypatch.chdir(tmp_path)
    assert tiny_main("--jobs", "1", "--agents", "base", "ppo", "--tasks", "8gaussians") == 0
    folder = tmp_path / "runs" / "tiny"
    lost = [run for run in read(folder / "results.json")["runs"] if run["agent"] == "ppo"]
    write_tiny(tmp_path)
    preset = load_preset(tmp_path / "tiny.toml")
    runs = [run for run in make_runs(preset.rows, preset.seeds, "cpu", preset.sizes) if run.row.agent == "ppo"]
    gone = next(run for run in runs if run.key == lost[0]["key"])
    gone.result_file(folder / "results").unlink()
    attempt.store(gone, folder / "results", attempt.Failure("DivergenceError: ppo diverged", "traces"))
    (folder / "results" / "0123456789abcdef.failed.txt").write_text("of a seed that is no longer asked for")
    capsys.readouterr()
    assert tiny_main("--jobs", "1", "--agents", "base", "--tasks", "8gaussians") == 0
    results = read(folder / "results.json")
    assert [entry["error"] for entry in results["failed"]] == ["DivergenceError: ppo diverged"]
    row = next(row for row in results["summary"] if row["label"] == "ppo")
    assert row["diverged"] == 1 and row["runs"] == len(lost) - 1
    printed = capsys.readouterr().out
    assert "DivergenceError: ppo diverged" in printed and "1 results there are of other settings" in printed
    assert tiny_main("--jobs", "1", "--agents", "ppo", "--tasks", "8gaussians") == 0
    assert read(folder / "results.json")["failed"] == []


@pytest.mark.slow
def test_source_that_changes_under_a_sweep_is_noticed(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = base_run()
    assert run.key and run.code == run.row.code
    monkeypatch.setattr("dxmi_rl.benchmark.protocol.code_digest", lambda modules: "edited")
    ending = attempt.attempt(pickle.loads(pickle.dumps(run)))
    assert isinstance(ending, attempt.Failure) and ending.error.startswith("SourceChangedError: the source is edited")


@pytest.mark.slow
def test_budgets_in_energy_evaluations_and_seconds(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    selection = ("--jobs", "1", "--tasks", "8gaussians", "--seeds", "0")
    assert tiny_main(*selection, "--budget", "1000", "--unit", "energy_evals") == 0
    runs = {run["label"]: run for run in read(tmp_path / "runs" / "tiny" / "results.json")["runs"]}
    for label in ("dxdp", "ppo"):
        costs, curve = runs[label]["costs"], runs[label]["curve"]
        assert 1000 <= costs["energy_evals"] < 1200 and len(curve) == 5
        assert [point["energy_evals"] >= 250 * index for index, point in enumerate(curve)] == [True] * 5
    assert runs["ppo"]["costs"]["timesteps"] == 5 * runs["ppo"]["costs"]["energy_evals"], "it evaluates E once per path"
    assert tiny_main(*selection, "--budget", "0.3", "--unit", "seconds", "--name", "clock") == 0
    for run in read(tmp_path / "runs" / "clock" / "results.json")["runs"]:
        if run["agent"] != "base":  # it stops after the iteration in which the budget ends, on a slow machine, too
            over = [point["seconds"] >= 0.3 for point in run["curve"]]
            assert over == [False] * (len(over) - 1) + [True]


@pytest.mark.slow
def test_best_checkpoint_and_last_iterate(undisturbed: Path) -> None:
    for run in read(undisturbed / "results.json")["runs"]:
        if run["agent"] == "base":
            assert run["best"] == {}
            continue
        key = "kl_bound" if run["task"] == "8gaussians" else "sliced_w2"
        best = min(run["curve"], key=lambda point: point[key])
        assert run["best"]["timesteps"] == best["timesteps"]
        same = best["timesteps"] == run["costs"]["timesteps"]
        assert (run["best"]["scores"][key] == run["scores"][key]) == same


@pytest.mark.slow
def test_sizes_may_leave_out_the_best_checkpoint() -> None:
    small = {"samples": 200, "draws": 1, "trajectories": 200, "fit": False, "floors": False, "curve_points": 2}
    row = Row("ppo", "8gaussians", "ppo", 4000)
    with_best, without = (measure(Run(row, 0, sizes=Sizes(**small, best=best)))[0] for best in (True, False))
    assert with_best["scores"] == without["scores"] and without["best"] == {}
    assert set(with_best["best"]["scores"]) == set(with_best["scores"]) - {"kl_bound_late", "sliced_w2_late"}


@pytest.mark.slow
def test_logs_in_cleanrls_naming(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tiny_main("--jobs", "1", "--tensorboard", "--agents", "ppo", "--seeds", "0") == 0
    (folder,) = (tmp_path / "runs" / "tiny" / "logs").iterdir()
    assert folder.name.startswith("8gaussians__ppo__0__") and list(folder.glob("events.*"))
    lines = (folder / "progress.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 6 and "charts/kl_bound" in lines[0] and "losses/policy_loss" in lines[0]


@pytest.mark.slow
def test_other_code_is_another_run(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished runs of other source are left alone and not taken for the present one's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(undisturbed.parents[1])
        patch.setattr("dxmi_rl.benchmark.protocol.code_digest", lambda modules: "other")
        plan = make_plan(Arguments(preset="tiny.toml", agents=("base",)))
    assert len(plan.missing) == len(plan.selected) == 2
    assert "8 results there are of other settings, seeds or source code" in capsys.readouterr().out
