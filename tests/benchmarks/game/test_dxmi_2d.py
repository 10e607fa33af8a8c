"""benchmarks/game/dxmi_2d.py: starts and settings are what they are called; runs are kept; tables have all keys."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from PIL import Image
from script_cases import documented

from benchmarks.game import dxmi_2d
from benchmarks.game import play as play_module
from benchmarks.game.play import Play
from benchmarks.game.released import ReleasedGame, released_trainer
from dxmi_rl import make_target
from dxmi_rl.agents import DxDPPaperConfig, PolicyConfig
from dxmi_rl.diffusion import Brownian
from dxmi_rl.irl import DxMIConfig, recipe
from dxmi_rl.utils.settings import flat_settings

SMALL_AGENT = {"n_trajectories": 64, "policy.width": 16, "value.width": 16}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Few samples and points; games start from scratch, as nothing is pretrained there."""
    for name, value in {"SAMPLES": 200, "POINTS": 4, "CHAIN_STEPS": 3}.items():
        monkeypatch.setattr(play_module, name, value)
    monkeypatch.setattr(dxmi_2d, "ENERGY_ITERATIONS", 20)
    monkeypatch.setattr(dxmi_2d, "exact_floors", lambda target: {"sliced_w2": 0.05})
    monkeypatch.setattr(dxmi_2d, "predicted", lambda play: {"predicted_slope": 1.0})
    monkeypatch.setattr(dxmi_2d, "FILM_POINTS", 3)
    monkeypatch.setattr(dxmi_2d, "TAUS", (0.0, 0.1))
    plain = dxmi_2d.plays

    def small(experiment: str, seeds: Any, budget: int | None, authors: Path | None = None) -> list[Play]:
        changes: dict[str, Any] = {"agent_settings": SMALL_AGENT}
        played = []
        for play in plain(experiment, seeds, budget, authors):
            start = "scratch" if play.method == "dxmi" else play.start
            own = changes if play.method != "released" else {}
            played.append(play_module.dataclasses.replace(play, start=start, **own))
        return played

    monkeypatch.setattr(dxmi_2d, "plays", small)
    return tmp_path / "runs"


@pytest.mark.slow
def test_a_small_run_of_everything_it_prints(quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    arguments = ["--experiments", "energies", "guidance", "--seeds", "0", "--budget", "1500"]
    arguments += ["--jobs", "1", "--folder", str(quick), "--json", str(file)]
    assert dxmi_2d.main(arguments) == 0
    results = json.loads(file.read_text(encoding="utf-8"))
    assert results.keys() == documented(dxmi_2d)
    assert results["command"].startswith("python benchmarks/game/dxmi_2d.py --experiments energies guidance ")
    printed = capsys.readouterr().out
    for word in ("energies: samplers", "guidance: energies", "Exact samples of 8gaussians", "score-matching"):
        assert word in printed
    scores = results["runs"][0]["scores"]
    late = {"sliced_w2_late", "sliced_w2_last_late", "auc_late", "auc_last_late"}
    assert late | {"energy_slope"} <= scores.keys()
    guided = [run for run in results["runs"] if run["play"]["experiment"] == "guidance"]
    assert {f"guided_{weight:g}" for weight in dxmi_2d.GUIDANCE} <= guided[0]["scores"].keys()
    alone = [row for row in results["rows"] if row["label"] == "persistent"]
    assert alone[0]["statistics"]["energy_kl"]["iqm"] > 0 and alone[0]["costs"]["energy_grad_evals"] > 0

    kept = {path: path.stat().st_mtime_ns for path in quick.glob("*.json")}
    assert dxmi_2d.main(arguments) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in quick.glob("*.json")}, "finished runs are not run again"


@pytest.mark.slow
def test_pictures_of_games_and_scores(quick: Path, tmp_path: Path) -> None:
    arguments = ["--experiments", "starts", "tau", "guidance", "race", "--seeds", "3", "--budget", "1000"]
    folder = tmp_path / "pictures"
    assert dxmi_2d.main([*arguments, "--jobs", "1", "--folder", str(quick), "--pictures", str(folder)]) == 0
    names = {"game_8gaussians-scratch.png", "game_8gaussians-scratch.gif", "tau.png", "guidance.png", "race.png"}
    assert {path.name for path in folder.iterdir()} == names
    for file in folder.iterdir():
        with Image.open(file) as picture:
            assert min(picture.size) > 200
            assert getattr(picture, "n_frames", 1) == (4 if file.suffix == ".gif" else 1)
    assert len(list(quick.glob("*-history.safetensors"))) == 1, "only games with pictures are kept"


def test_the_race_is_against_the_authors_settings() -> None:
    """The published DxDP with the table's rates, AVR, three layers without frequencies, constant rates, no averages."""
    theirs = [play for play in dxmi_2d.plays("race", [0], 1000) if play.label != "dxmi"]
    assert [play.start for play in theirs] == ["good", "weak"]
    game = play_module.make_game(dataclasses.replace(theirs[1], start="scratch"))
    policy = PolicyConfig(width=128, state_dependent_sigma=False, learning_rate=1e-3, sigma_learning_rate=1e-2)
    assert game.agent.config == DxDPPaperConfig(value_steps=5, policy=policy)
    assert game.agent.name == "dxdp-paper" and isinstance(game.mdp.kernel, Brownian)
    plain = {"energy_steps": 1, "gamma": 1.0, "energy_learning_rate": 1e-3, "ema": 0.0, "agent_settings": ANY}
    assert game.config == DxMIConfig(recipe="plane", agent="dxdp-paper", **plain)


def test_other_agents_play_the_same_game() -> None:
    """DxDP's energy steps, gamma and replay, equal batches and networks; two rates each."""
    played = [dataclasses.replace(play, start="scratch") for play in dxmi_2d.plays("agents", [0], 1000)]
    games = {play.label: play_module.make_game(play) for play in played}
    assert len(games) == 1 + 2 * len(dxmi_2d.INSIDE)
    first = games["dxdp"].config
    for label, game in games.items():
        own = game.config
        assert (own.energy_steps, own.gamma, own.replay) == (first.energy_steps, first.gamma, first.replay), label
        inside = game.agent.config
        widths = [inside.width] if label.startswith("sb3") else [inside.policy.width]
        widths += [inside.value.width] if hasattr(inside, "value") else []
        assert inside.n_trajectories == 256 and set(widths) == {128}, label
    rates = [games[f"reinforce, rate {rate:g}"].agent.config.policy.learning_rate for rate in (1e-3, 3e-4)]
    assert rates == [1e-3, 3e-4]


def test_every_play_starts_from_its_recipe() -> None:
    """That of 8 Gaussians for the play's agent, with the play's changes alone; other losses have their own gamma."""
    for experiment in dxmi_2d.BUDGETS:
        for play in (play for play in dxmi_2d.plays(experiment, [0], 1000) if play.method == "dxmi"):
            config = play_module.config_of(play)
            name = "plane" if config.agent in ("dxdp", "dxdp-paper") else "plane-other-agents"
            start = recipe(name, config.agent)
            found = {"game": (config, start), "agent": (config.agent_settings, start.agent_settings)}
            for part, allowed in (("game", set(play.settings)), ("agent", set(play.agent_settings))):
                now, before = (flat_settings(one) for one in found[part])
                different = {key for key in now if now[key] != before[key] and not key.startswith("agent_settings.")}
                assert different <= allowed | ({"gamma"} if play.settings.get("loss") else set()), (play.label, part)
    nce = next(play for play in dxmi_2d.plays("losses", [0]) if play.label == "nce")
    assert play_module.config_of(nce).gamma is None


def test_starts_are_what_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def stop(name: str, **changes: Any) -> None:
        seen[name] = changes
        raise RuntimeError

    monkeypatch.setattr(play_module, "make_task", stop)
    for start, schedule in (("good", "quadratic"), ("weak", "sigmoid"), ("scratch", None), ("task", None)):
        with pytest.raises(RuntimeError):
            play_module.make_game(Play("starts", "dxmi", "8gaussians", start, 0.1, 0, 100))
        changes = seen["8gaussians-data"]
        assert changes["tau"] == 0.05 and changes.get("schedule") == schedule
        assert ("base" in changes) == (start == "scratch")
    with pytest.raises(RuntimeError):
        play_module.make_game(Play("targets", "dxmi", "gmm25", "task", 0.1, 0, 100))
    assert seen["gmm25"]["denoiser"] == "learned" and seen["gmm25"]["reward"] is None


def test_every_experiment_has_its_own_budget() -> None:
    assert dxmi_2d.Arguments.experiments == tuple(dxmi_2d.BUDGETS)
    assert {play.budget for play in dxmi_2d.plays("tau", [0])} == {dxmi_2d.BUDGETS["tau"]}
    assert {play.budget for play in dxmi_2d.plays("tau", [0], 77)} == {77}


def test_every_experiment_has_its_runs_and_shares_games_with_others() -> None:
    keys = {}
    for experiment in dxmi_2d.Arguments.experiments:
        chosen = dxmi_2d.plays(experiment, [0, 1], 1000)
        assert len(chosen) >= 2 and {play.experiment for play in chosen} == {experiment}
        keys[experiment] = {play.file(Path()) for play in chosen}
        assert len(keys[experiment]) == len(chosen)
    assert len(keys["tau"] & keys["losses"]) == len(keys["tau"] & keys["agents"]) == 2, "the recipe's game, per seed"
    assert len(keys["tau"] & keys["energies"]) == 4, "and that at tau = 0"


@pytest.mark.slow
def test_games_from_some_starts_only(quick: Path) -> None:
    arguments = ["--experiments", "tau", "--starts", "scratch", "--seeds", "0", "--budget", "1000"]
    assert dxmi_2d.main([*arguments, "--jobs", "1", "--folder", str(quick)]) == 0, "there play all from scratch"
    assert len(list(quick.glob("*.json"))) == 2, "the same game for two temperatures"


def test_reached_needs_to_hold() -> None:
    curve = [
        {"timesteps": float(i), "seconds": 2.0 * i, "energy_evals": 3.0 * i, "sliced_w2": value}
        for i, value in enumerate([0.5, 0.09, 0.2, 0.09, 0.08, 0.07, 0.3])
    ]
    assert play_module.reached(curve, "sliced_w2", 0.1) == {"timesteps": 3.0, "seconds": 6.0, "energy_evals": 9.0}
    assert play_module.reached(curve[:5], "sliced_w2", 0.1) is None


@pytest.mark.slow
def test_the_prediction_is_the_games_end() -> None:
    """At tau = 0.05 and gamma = 1, DESIGN's 0.83 and 0.025; none with tau = 0; no bias with an anchor."""
    play = Play("tau", "dxmi", "8gaussians", "scratch", 0.1, 0, 100, settings={"gamma": 1.0})
    found = play_module.predicted(play)
    assert found["predicted_slope"] == pytest.approx(0.83, abs=0.01)
    assert found["predicted_bias"] == pytest.approx(0.025, abs=0.004)
    anchored = dataclasses.replace(play, settings={"gamma": 1.0, "anchor": 0.9})
    assert play_module.predicted(anchored) == {"predicted_slope": 1.0, "predicted_bias": 0.0}
    assert play_module.predicted(dataclasses.replace(play, tau1=0.0)) == {}
    assert play_module.predicted(dataclasses.replace(play, settings={"loss": "nce"}))["predicted_slope"] == (
        pytest.approx(1 / 1.05, abs=0.002)
    )


@pytest.mark.parametrize(
    "bad", [["--experiments", "start"], ["--starts", "bad"], ["--budget", "0"], ["--jobs", "0"], ["--device", "qpu"]]
)
def test_bad_arguments(bad: list[str], tmp_path: Path) -> None:
    assert dxmi_2d.main([*bad, "--folder", str(tmp_path)]) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_critics_energy_is_scored_on_its_best_scale() -> None:
    target = make_target("8gaussians")
    scores = play_module.quality(lambda x: 0.01 * target.energy(x), target, 0, tau=0.0)
    assert scores["energy_slope"] == pytest.approx(1, abs=1e-3)


STUB = """
import torch

CALLS = []

def reset_buffer(device):
    CALLS.append("reset")
    return {"state": []}

def append_buffer(buffer, drawn):
    CALLS.append("append")
    buffer["state"] += drawn["l_sample"][:-1]

class DxMI_Trainer:
    def __init__(self, batchsize, tau1, tau2, gamma, adavelreg, n_timesteps, entropy_in_value, velocity_in_value):
        self.settings = dict(locals())
        self.settings.pop("self")

    def set_models(self, f, v, sampler, optimizer, optimizer_fstar, optimizer_v):
        assert f is None and optimizer_fstar is None
        self.v, self.sampler, self.optimizer, self.optimizer_v = v, sampler, optimizer, optimizer_v

    def step(self, optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def update_f_v(self, data, drawn, buffer):
        CALLS.append("energy")
        t = torch.full((len(data),), self.settings["n_timesteps"])
        self.step(self.optimizer_v, (self.v(data, t) - self.v(drawn["sample"], t)).mean())

    def update_sampler(self, buffer, n_generator):
        CALLS.append("sampler")
        assert n_generator == 1
        t = torch.zeros(len(buffer["state"][0]), dtype=torch.long)
        self.step(self.optimizer, self.v(self.sampler.sample_step(buffer["state"][0], t)["sample"], t + 1).mean())
"""


def forget_the_stub() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "models"]:
        del sys.modules[name]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with a stand-in of the authors' trainer."""
    folder = tmp_path / "clone" / "models" / "DxMI"
    folder.mkdir(parents=True)
    for part in (folder, folder.parent):
        (part / "__init__.py").touch()
    (folder / "trainer.py").write_text(STUB, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "clone"
    forget_the_stub()


@pytest.mark.slow
def test_the_authors_trainer_enters_the_race(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called in its order and with the table's settings, and trains the denoiser and log sigma at the rates."""
    monkeypatch.setattr(play_module, "SAMPLES", 200)
    monkeypatch.setattr(play_module, "CHAIN_STEPS", 3)
    play = next(play for play in dxmi_2d.plays("race", [0], 4000, clone) if play.method == "released")
    options = {"pretraining": {"iterations": 2, "width": 8, "depth": 1}}
    play = dataclasses.replace(play, points=2, task_options=options)
    assert play.start == "good" and play.agent_settings == dxmi_2d.AUTHORS_RATES["good"]
    trainer = released_trainer(clone)
    game = ReleasedGame(trainer, play_module.make_task_of(play), 0, 0.1, play.agent_settings)
    paper = {"batchsize": 256, "tau1": 0.1, "tau2": 0.1, "gamma": 1.0, "adavelreg": 0.99, "n_timesteps": 5}
    assert game.game.settings == paper | {"entropy_in_value": 0, "velocity_in_value": 0}
    sigma = game.sampler.net.base.sigma
    assert game.game.betas_for_q.tolist() == sigma.square().flip(0).tolist(), "theirs begin at the data"
    before = {name: value.clone() for name, value in game.sampler.net.state_dict().items()}
    game.iterate()
    assert trainer.CALLS == ["reset", "append", "energy", "sampler"]
    after = game.sampler.net.state_dict()
    assert game.costs()["timesteps"] == 5 * 256 and game.costs()["energy_evals"] == 512
    moved = {name: float((after[name] - value).abs().max()) for name, value in before.items()}
    assert moved["log_sigma"] == pytest.approx(1e-3, rel=1e-2), "Adam's first step is its rate"
    assert max(value for name, value in moved.items() if "denoiser" in name) == pytest.approx(3e-5, rel=1e-2)

    result = play_module.run(play, tmp_path / "runs")
    assert result["costs"]["seconds"] > 0 and len(result["curve"]) == 3
    assert {"sliced_w2_late", "auc_late", "energy_fisher"} <= result["scores"].keys()
    again = play_module.run(play, tmp_path / "again")
    assert again["scores"] == result["scores"]
    (clone / "models" / "DxMI" / "trainer.py").write_text(STUB + "# changed", encoding="utf-8")
    other = next(play for play in dxmi_2d.plays("race", [0], 4000, clone) if play.method == "released")
    same = dataclasses.replace(play, points=other.points, task_options={})
    assert same.file(tmp_path) != other.file(tmp_path)
    moved = dataclasses.replace(same, settings=play.settings | {"repository": "elsewhere"})
    assert moved.file(tmp_path) == same.file(tmp_path)


def test_a_folder_that_is_no_clone_is_refused(
    clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    arguments = ["--experiments", "race", "--folder", str(tmp_path / "runs"), "--authors", str(tmp_path)]
    assert dxmi_2d.main(arguments) == 2 and "models/DxMI/trainer.py" in capsys.readouterr().err
    released_trainer(clone)
    shutil.copytree(clone / "models", tmp_path / "models")
    with pytest.raises(ValueError, match="which this process has loaded"):
        released_trainer(tmp_path)
    forget_the_stub()
    (clone / "models" / "DxMI" / "trainer.py").write_text("import no_such_package", encoding="utf-8")
    with pytest.raises(ValueError, match="needs a package that is not here"):
        released_trainer(clone)
