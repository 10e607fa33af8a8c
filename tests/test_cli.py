"""dxmi-rl: every command does its work, and says what is wrong in one line."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dxmi_rl import load_agent
from dxmi_rl.agents import PPO, Agent
from dxmi_rl.agents.twisting import fit_twist
from dxmi_rl.benchmark.logs import RunLogger
from dxmi_rl.cli import main
from dxmi_rl.utils.settings import parsed_settings
from dxmi_rl.utils.storage import load_tensors

QUICK = ("--no-fit", "--samples", "200", "--draws", "1", "--trajectories", "500")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``dxmi-rl train`` wrote."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    options = [
        "--set",
        "policy.width=16",
        "n_trajectories=32",
        "--task-set",
        "horizon=4",
        "--task-set",
        "backward=learned",
        "--points",
        "3",
    ]
    assert main(["train", "ppo", "--budget", "2000", "--seed", "3", "--runs", str(runs), *options]) == 0
    (folder,) = runs.iterdir()
    assert folder.name.startswith("8gaussians__ppo__3__")
    return folder / "checkpoint.safetensors"


@pytest.mark.slow
def test_train_logs_and_saves(checkpoint: Path) -> None:
    agent = load_agent(checkpoint)
    assert (agent.name, agent.seed, agent.config.policy.width, agent.mdp.horizon) == ("ppo", 3, 16, 4)
    assert agent.costs.timesteps >= 2000
    rows = (checkpoint.parent / "progress.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 4 and "charts/kl_bound" in rows[0]
    config = json.loads((checkpoint.parent / "config.json").read_text(encoding="utf-8"))
    assert config["settings"]["command"].startswith("dxmi-rl train ppo") and config["config"]["policy"]["width"] == 16
    assert list(checkpoint.parent.glob("events.*"))


@pytest.mark.slow
def test_train_in_other_units(tmp_path: Path) -> None:
    arguments = ["train", "ppo", "--unit", "energy_evals", "--budget", "200", "--set", "n_trajectories=32"]
    assert main([*arguments, "--runs", str(tmp_path), "--no-tensorboard"]) == 0
    (folder,) = tmp_path.iterdir()
    assert 200 <= load_agent(folder / "checkpoint.safetensors").costs.energy_evals < 232
    assert not list(folder.glob("events.*"))


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    task = ["--task", "mine.py:bowl", "--task-set", "dim=2", "horizon=4"]
    options = [*task, "--budget", "512", "--points", "2", "--no-tensorboard"]
    new = ["train", "ppo", *options, "--set", "n_trajectories=32"]
    assert main([*new, "--runs", "whole"]) == 0
    (whole,) = Path("whole").iterdir()
    logged = RunLogger.log

    def stop_half_way(logger: RunLogger, agent: Agent[Any], scores: Mapping[str, float]) -> None:
        logged(logger, agent, scores)
        if agent.costs.timesteps >= 256:
            agent.save(logger.folder / "checkpoint.safetensors")
            raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr(RunLogger, "log", stop_half_way)
        assert main([*new, "--runs", "stopped"]) == 130
    (stopped,) = Path("stopped").iterdir()
    checkpoint = str(stopped / "checkpoint.safetensors")
    going_on = f"train {checkpoint} --budget 512 --unit timesteps --task mine.py:bowl --task-set dim=2 horizon=4"
    assert f"This goes on:\n    dxmi-rl {going_on}\n" in capsys.readouterr().out
    assert main([*going_on.split(), "--points", "2", "--no-tensorboard", "--runs", "resumed"]) == 0
    (resumed,) = Path("resumed").iterdir()
    ends = [load_tensors(folder / "checkpoint.safetensors")[0] for folder in (whole, resumed)]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    texts = [(folder / "progress.csv").read_text(encoding="utf-8").splitlines() for folder in (whole, resumed)]
    elbos = [[row["charts/elbo"] for row in csv.DictReader(text)] for text in texts]
    assert len(elbos[0]) == 3 and elbos[1] == elbos[0][2:], "at 0, half of the budget and its end"
    capsys.readouterr()
    assert main(["train", checkpoint, *task, "--budget", "200"]) == 2
    assert "more than the 256 timesteps that the checkpoint has spent, got 200" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_the_iteration_and_leaves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    iterate = PPO.iterate

    def interrupted(agent: PPO, on_final: Any = None) -> Any:
        log = iterate(agent, on_final)
        if agent.num_timesteps == 3 * 160:
            signal.raise_signal(signal.SIGINT)
        return log

    monkeypatch.setattr(PPO, "iterate", interrupted)
    before = signal.getsignal(signal.SIGINT)
    command = ["train", "ppo", "--budget", "5000", "--set", "n_trajectories=32", "--no-tensorboard"]
    assert main([*command, "--runs", str(tmp_path)]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    (folder,) = tmp_path.iterdir()
    assert load_agent(folder / "checkpoint.safetensors").num_timesteps == 3 * 160
    said = capsys.readouterr().out
    assert "stops after this iteration" in said and f"dxmi-rl train {folder / 'checkpoint.safetensors'}" in said


@pytest.mark.slow
def test_evaluate_prints_scores_beside_their_floors(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(checkpoint), *QUICK, "--json", str(tmp_path / "scores.json")]) == 0
    printed = capsys.readouterr().out
    assert "ppo on 8gaussians" in printed and "exact samples (floor)" in printed
    assert "sliced_w2 ↓" in printed and "Wasserstein" in printed, "the better direction, and what the score is"
    stored = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert stored["scores"]["sliced_w2_floor"] > 0 and f"{stored['scores']['sliced_w2']:.4g}" in printed
    assert main(["evaluate", "base", "--task", "gmm9", *QUICK]) == 0
    assert "base on gmm9" in capsys.readouterr().out


def test_a_checkpoint_of_several_horizons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    several = ["--task", "gmm9", "--task-set", "horizon=[1, 2, 4]"]
    small = ["--set", "n_trajectories=8", "--budget", "60", "--no-tensorboard", "--points", "1"]
    assert main(["train", "ppo", *several, *small]) == 0
    (file,) = tmp_path.rglob("checkpoint.safetensors")
    for horizon in ("1", "3", "4"):
        assert main(["sample", str(file), "--n", "20", "--horizon", horizon, "--out", f"{horizon}.npy"]) == 0
    assert len({(tmp_path / f"{horizon}.npy").read_bytes() for horizon in "134"}) == 3
    assert main(["sample", str(file), "--horizon", "5"]) == 2
    for steps in ("2", "4"):
        scores = tmp_path / f"{steps}.json"
        assert main(["evaluate", "base", *several, "--horizon", steps, *QUICK, "--json", str(scores)]) == 0
        assert json.loads(scores.read_text(encoding="utf-8"))["scores"]["denoiser_calls"] == float(steps)


def test_evaluate_marks_a_log_z_from_few_effective_samples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for ess, marked in ((0.0999, True), (0.1001, False)):
        scores = {"log_z": -0.25, "ess": ess, "elbo": -1.0}
        monkeypatch.setattr("dxmi_rl.evaluation.evaluate", lambda agent, scores=scores, **options: scores)
        assert main(["evaluate", "base", *QUICK]) == 0
        printed = capsys.readouterr().out
        assert ("-0.25 *" in printed) == marked == ("* log_z is unreliable: ess < 0.1." in printed)
        assert f"{ess:.4g}" in printed, "always beside it"


@pytest.mark.parametrize("ending", [".npy", ".csv", ".safetensors", ".png"])
def test_sample_writes_every_format(checkpoint: Path, ending: str, tmp_path: Path) -> None:
    out = tmp_path / f"samples{ending}"
    assert main(["sample", str(checkpoint), "--n", "50", "--seed", "1", "--out", str(out)]) == 0
    expected = load_agent(checkpoint).sample(50, seed=1)
    if ending == ".png":
        assert Image.open(out).size == (400, 400)
        return
    if ending == ".safetensors":
        found = load_tensors(out)[0]["x"]
    else:
        found = torch.from_numpy(np.load(out) if ending == ".npy" else np.loadtxt(out, delimiter=",")).float()
    assert torch.allclose(found, expected, atol=1e-6)


def test_particles(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that are chosen among chains, and log Z by particle filters."""
    monkeypatch.setitem(fit_twist.__kwdefaults__, "steps", 5)
    monkeypatch.setattr("dxmi_rl.evaluation.log_weights.PARTICLES", 20)
    monkeypatch.setattr("dxmi_rl.agents.twisting.ENERGY_STEPS", 20)
    out, scores = tmp_path / "samples.npy", tmp_path / "scores.json"
    assert main(["sample", str(checkpoint), "--n", "50", "--particles", "4", "--seed", "1", "--out", str(out)]) == 0
    agent = load_agent(checkpoint)
    expected = agent.sample(50, seed=1, particles=4, twist=fit_twist(agent, seed=1))
    assert torch.allclose(torch.from_numpy(np.load(out)), expected, atol=1e-6)
    assert main(["sample", str(checkpoint), "--particles", "1", "--out", str(out)]) == 2
    assert main(["evaluate", str(checkpoint), *QUICK, "--smc", "--json", str(scores)]) == 0
    assert "smc_log_z" in json.loads(scores.read_text(encoding="utf-8"))["scores"]


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("agents: base, ") and ", dxdp, dxdp-paper, ppo, " in line for line in lines)
    assert any("standard" in line for line in lines if line.startswith("presets: "))
    assert all("fashion-mnist-14" in line for line in lines if line.startswith(("tasks: ", "targets: ")))


@pytest.mark.slow
def test_compare_is_the_benchmark_and_report_writes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    preset = '[sizes]\nsamples = 200\ndraws = 1\ntrajectories = 200\nfit = false\n[[group]]\ntasks = ["8gaussians"]\n'
    (tmp_path / "one.toml").write_text(preset + 'agents = ["base"]\n', encoding="utf-8")
    assert main(["compare", "--preset", "one.toml", "--seeds", "0", "1", "--jobs", "1"]) == 0
    results = json.loads((tmp_path / "runs" / "one" / "results.json").read_text(encoding="utf-8"))
    assert results["command"] == "dxmi-rl compare --preset one.toml --seeds 0 1 --jobs 1"
    page = tmp_path / "runs" / "one" / "report.html"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    capsys.readouterr()
    assert main(["report", "runs/one"]) == 0
    assert page.read_text(encoding="utf-8") == before
    assert main(["report", "runs/one/results.json", "--out", "elsewhere"]) == 0
    assert sorted(file.name for file in (tmp_path / "elsewhere").iterdir()) == [
        "playground.html",
        "report.html",
        "report.md",
        "report.tex",
    ]
    del results["summary"][0]["scores"]["sliced_w2"]["iqm"]
    (tmp_path / "damaged.json").write_text(json.dumps(results), encoding="utf-8")
    assert main(["report", "damaged.json", "--out", "new"]) == 2
    assert "error: 'damaged.json' is damaged: KeyError: 'iqm'." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "pppo"], "Did you mean 'ppo'"),
        (["train", "ppo", "--task", "8gausians"], "Did you mean '8gaussians'"),
        (["train", "ppo", "--set", "widht=3"], "Did you mean 'policy.width' or 'value.width'"),
        (["train", "ppo", "--set", "seed=3"], "'seed' must not be among the settings of 'ppo'"),
        (["train", "ppo", "--set", "width"], "set must hold name=value, got 'width'"),
        (["train", "ppo", "--task-set", "horizon=3", "--task-set", "horizon=4"], "must hold 'horizon' once, got it"),
        (["train", "ppo", "--task-set", "horizn=3"], "Did you mean 'horizon'"),
        (["train", "ppo", "--unit", "hours"], "unknown budget unit 'hours'"),
        (["train", "ppo", "--budget", "0"], "must be >= 1, got 0"),
        (["train", "mine.zip"], "trained already: dxmi-rl evaluate scores it"),
        (["train", "mine.safetensors"], "no checkpoint at path 'mine.safetensors'"),
        (["train", "mine.safetensors", "--seed", "1"], "seed must not be given with a checkpoint, which has its own"),
        (["train", "ppo", "--budget", "0.5"], "budget must be an integer >= 1, got 0.5"),
        (["train", "ppo", "--points", "0"], "points must be >= 1, got 0"),
        (["train", "ppo", "--set", "anneal=off"], "anneal must be True or False, got 'off'"),
        (["compare", "--agent", "a.zip", "--agent", "b.zip"], "--agent must be given once, with all its values"),
        (["evaluate", "ppo"], "'ppo' is untrained"),
        (["evaluate", "."], "agent must be a checkpoint or a name, got the folder '.'"),
        (["evaluate", "none.safetensors"], "no checkpoint at path 'none.safetensors'"),
        (["evaluate", "none.zip"], "none.zip"),
        (["sample", "base", "--out", "x.txt"], "unknown ending of out '.txt'"),
        (["sample", "base", "--n", "0"], "n must be >= 1"),
        (["sample", "base", "--out", "/dev/null/x.npy"], "out must lie in a folder"),
        (["evaluate", "base", "--json", "."], "json must name a file"),
        (["train", "ppo", "--task", ""], "unknown task ''"),
        (["report", "nowhere"], "no results at"),
        (["train", "ppo", "--task", "mine.py:energy"], "no file 'mine.py'"),
        (["compare", "--preset", "quik"], "Did you mean 'quick'"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_with_another_ending_is_no_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pt").write_bytes(b"x")
    assert main(["compare", "--agent", "a.pt"]) == 2
    told = "agent must be FILE.py:Class, or a file that ends with .safetensors or .zip, got 'a.pt'"
    assert told in capsys.readouterr().err


OWN = """
import torch


def bowl(x):
    return x.square().sum(1) / 2
"""


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_task_of_ones_own_is_a_file_and_a_name(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    options = ["--out", "x.png", "--n", "50"] if command == "sample" else list(QUICK)
    task = ["--task", "mine.py:bowl", "--task-set", "dim=16"]
    assert main([command, "base", *task, *options]) == 0
    if command == "sample":
        with Image.open("x.png") as picture:
            assert picture.size == (400, 400)
    else:
        assert "elbo" in capsys.readouterr().out
    for wrong, message in (("mine.py:bowll", "Did you mean 'bowl'"), ("none.py:bowl", "no file 'none.py'")):
        assert main([command, "base", "--task", wrong]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1


def test_divergence_is_one_line_that_names_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wild = ["--set", "policy.learning_rate=1e30", "n_trajectories=16", "anneal=false"]
    assert main(["train", "ppo", "--budget", "2000", "--no-tensorboard", *wild]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and not any("Traceback" in line for line in error)


def test_settings_are_json_or_text() -> None:
    words = ["width=128", "loss=nce", "anneal=false", "sizes=[1, 2]", "text=a=b"]
    found = parsed_settings("set", words)
    assert found == {"width": 128, "loss": "nce", "anneal": False, "sizes": [1, 2], "text": "a=b"}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shell_completion(shell: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--tyro-write-completion", shell, str(tmp_path / "completion")])
    assert stop.value.code in (0, None) and "dxmi" in (tmp_path / "completion").read_text(encoding="utf-8")


def test_sizes_beyond_the_machine_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for n in ("1000000000000000", str(10**30)):
        assert main(["sample", "base", "--n", n]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and len(error.strip().splitlines()) == 1
