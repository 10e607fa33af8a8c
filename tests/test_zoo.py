"""The zoo: what is put in comes out, scores as its card says, and damage is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import same, small, state, task_for
from sklearn.metrics import roc_auc_score

import dxmi_rl
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.checkpoint import save_agent
from dxmi_rl.anomaly import EnergyDetector
from dxmi_rl.cli import main
from dxmi_rl.utils.checks import CheckpointError
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.zoo import (
    add_pretrained,
    add_pretrained_detector,
    check_pretrained,
    detectors,
    list_pretrained,
    load_pretrained,
    load_pretrained_detector,
    pretrained,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "SIZES", {"samples": 500, "draws": 1, "trajectories": 500, "fit": False})
        for name in ("ppo", "dxdp"):
            agent = small(name).learn(1000)
            add_pretrained(agent, f"{name}-8gaussians", folder, command=f"make {name}")
    return folder


@pytest.fixture
def zoo(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to damage."""
    folder = tmp_path / "zoo"
    shutil.copytree(made, folder)
    monkeypatch.setenv("DXMI_RL_ZOO", str(folder))
    monkeypatch.setattr(pretrained, "SIZES", {"samples": 500, "draws": 1, "trajectories": 500, "fit": False})
    return folder


@pytest.mark.slow
def test_what_is_put_in_comes_out(zoo: Path) -> None:
    assert list_pretrained() == dxmi_rl.list_pretrained(zoo) == ["dxdp-8gaussians", "ppo-8gaussians"]
    agent = dxmi_rl.load_pretrained("ppo-8gaussians")
    wanted = small("ppo").learn(1000)
    assert same(state(agent), state(wanted)) and agent.costs.energy_evals == wanted.costs.energy_evals
    assert torch.equal(agent.sample(5, seed=0), wanted.sample(5, seed=0))
    before = state(agent)["policy.net.mlp.layers.0.weight"]
    moved = (state(agent.learn(2000))["policy.net.mlp.layers.0.weight"] - before).norm() / before.norm()
    assert moved > 0.01, "it goes on learning, at rates of a budget of its own"
    files = {file.name for file in zoo.iterdir()}
    assert {"index.json", "README.md", "ppo-8gaussians.md", "ppo-8gaussians.png"} <= files
    text = (zoo / "ppo-8gaussians.md").read_text(encoding="utf-8")
    entry = json.loads((zoo / "index.json").read_text(encoding="utf-8"))["agents"]["ppo-8gaussians"]
    assert entry["sha256"] in text and "make ppo" in text and "`kl_marginal`" in text and "T = 5" in text
    assert "(dxdp-8gaussians.md)" in (zoo / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in AGENTS if AGENTS[name].trains and not name.startswith("any-")])
def test_weights_are_all_that_samples_need(name: str, tmp_path: Path) -> None:
    """Of every agent, also those of other libraries; the file has no optimizer's state."""
    for extra in ("sb3", "torchrl"):
        if name.startswith(extra):
            pytest.importorskip({"sb3": "stable_baselines3", "torchrl": "torchrl"}[extra])
    agent = small(name, task_for(name))
    agent.learn(agent.timesteps_per_iteration)
    save_agent(agent, tmp_path / "whole.safetensors")
    save_agent(agent, tmp_path / "weights.safetensors", weights_only=True)
    whole, weights = ((tmp_path / f"{kind}.safetensors").stat().st_size for kind in ("whole", "weights"))
    assert weights < 0.7 * whole
    again = AGENTS[name].load(tmp_path / "weights.safetensors")
    assert torch.equal(again.sample(5, seed=0), agent.sample(5, seed=0))
    spent = again.costs.timesteps
    again.learn(again.timesteps_per_iteration, reset_num_timesteps=False)
    assert again.costs.timesteps > spent


def test_it_is_checked(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_pretrained("ppo-8gaussians") == []
    assert main(["zoo", "check"]) == 0
    assert "2 of 2 are as their cards say" in capsys.readouterr().out
    index = json.loads((zoo / "index.json").read_text(encoding="utf-8"))
    index["agents"]["ppo-8gaussians"]["scores"]["kl_bound"] = {"mean": -5.0, "std": 0.1}
    (zoo / "index.json").write_text(json.dumps(index), encoding="utf-8")
    (wrong,) = check_pretrained("ppo-8gaussians")
    assert wrong.startswith("ppo-8gaussians: kl_bound is ")
    assert main(["zoo", "check", "--names", "ppo-8gaussians"]) == 1
    assert "0 of 1 are as their cards say" in capsys.readouterr().out
    assert main(["zoo"]) == 0
    assert "dxdp-8gaussians" in capsys.readouterr().out


def test_damage_is_found(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'ppo-8gaussians'"):
        load_pretrained("ppo-8gausians")
    file = zoo / "ppo-8gaussians.safetensors"
    whole = file.read_bytes()
    other = (zoo / "dxdp-8gaussians.safetensors").read_bytes()
    for content in (whole[:-5], whole[:200] + b"x" + whole[201:], b"", other):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is not the file that index\.json has the checksum of"):
            load_pretrained("ppo-8gaussians")
    assert main(["zoo", "check"]) == 1 and "1 of 2 are as their cards say" in capsys.readouterr().out
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks file 'ppo-8gaussians\.safetensors'"):
        load_pretrained("ppo-8gaussians")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"format": 99, "agents": {}}', '{"format": 1, "agents": []}',
     '{"format": 1, "agents": {"a": {"file": "../../etc/passwd", "sha256": "", "scores": {}}}}',
     '{"format": 1, "agents": {"a": {"file": "a.safetensors"}}}',
     '{"format": 1, "agents": {"a": {"file": 3, "sha256": "", "scores": {}}}}',
     '{"format": 1, "agents": {"a": {"file": "a", "sha256": "", "scores": {}}}}',
     '{"format": 1, "agents": {"a": {"file": "a", "sha256": "", "agent": "", "task": "", "timesteps": 1, '
     '"energy_evals": 1, "seconds": 1, "scores": {"kl": {"mean": NaN, "std": 1}}}}}'],
)  # fmt: skip
def test_a_foreign_index_is_refused(zoo: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (zoo / "index.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="is no index of a zoo"):
        list_pretrained()
    assert main(["zoo", "list"]) == 2 and "no index of a zoo" in capsys.readouterr().err


def test_where_there_is_no_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DXMI_RL_ZOO", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set DXMI_RL_ZOO to a copy of it"):
        load_pretrained("ppo-8gaussians")


def test_what_may_not_be_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent: Any = dxmi_rl.make_agent("a2c", seed=0)
    for name in ("", "a/b", "..", "index", "README"):
        with pytest.raises(ValueError, match="name must be a plain file name"):
            add_pretrained(agent, name, tmp_path, command="")
    own = dxmi_rl.make_agent("a2c", dxmi_rl.make_task(lambda x: x.square().sum(1), dim=2))
    with pytest.raises(ValueError, match="it holds objects or files of yours"):
        add_pretrained(own, "own", tmp_path, command="")
    monkeypatch.setattr(pretrained, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="must have at most 1,000 bytes"):
        add_pretrained(agent, "large", tmp_path / "zoo", command="")
    assert not (tmp_path / "zoo").exists()


def test_what_cannot_be_put_in_leaves_the_agent_that_has_the_name(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = small("a2c")
    before = {file.name: file.read_bytes() for file in zoo.iterdir()}
    monkeypatch.setattr(pretrained, "card_scores", lambda agent: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        add_pretrained(agent, "ppo-8gaussians", zoo, command="")
    monkeypatch.setattr(pretrained, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="at most 1,000 bytes"):
        add_pretrained(agent, "ppo-8gaussians", zoo, command="")
    assert {file.name: file.read_bytes() for file in zoo.iterdir()} == before


def test_a_score_that_is_no_number_is_wrong(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "evaluated", lambda *given, **options: {"kl_bound": float("nan")})
    assert any("kl_bound is nan" in line for line in check_pretrained("ppo-8gaussians"))


OURS = pretrained.zoo_folder(Path(__file__).parents[1] / "zoo")


def test_the_repositorys_zoo_has_nothing_that_does_not_belong_to_it() -> None:
    endings = (".safetensors", ".md", ".png")
    names = {name + ending for name in list_pretrained(OURS) for ending in endings}
    assert {file.name for file in OURS.iterdir()} == names | {"index.json", "README.md"}


@pytest.mark.parametrize("name", list_pretrained(OURS))
def test_all_of_the_repository_can_be_loaded(name: str) -> None:
    if name.startswith("detector-"):
        scores = load_pretrained_detector(name, folder=OURS).score_samples(detectors.table_of(name[9:])[1])
        assert bool(np.isfinite(scores).all())
    else:
        assert bool(load_pretrained(name, folder=OURS).sample(2, seed=0).isfinite().all())


@pytest.mark.slow
def test_detectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted, rows, outlier = detectors.table_of("cancer")
    assert len(fitted) == 178 and len(rows) == 179 + 212 and outlier.sum() == 212
    detector = EnergyDetector(pretraining_iterations=50, max_iterations=2, width=16).fit(fitted)
    given: dict[str, Any] = {"table": "cancer", "command": "make it", "seconds": 1.0}
    entry = add_pretrained_detector(detector, "mine", tmp_path, **given)
    agent = small("ppo").learn(1000)
    add_pretrained(agent, "an-agent", tmp_path, command="")
    again = load_pretrained_detector("mine", folder=tmp_path)
    assert np.array_equal(again.score_samples(rows), detector.score_samples(rows))
    assert entry["scores"]["auroc"]["mean"] == roc_auc_score(outlier, -detector.score_samples(rows))
    assert check_pretrained("mine", tmp_path) == []
    assert 'load_pretrained_detector("mine")' in (tmp_path / "mine.md").read_text(encoding="utf-8")
    assert (tmp_path / "mine.png").is_file() and "(mine.md)" in (tmp_path / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="'mine' is a detector: load_pretrained_detector loads it"):
        load_pretrained("mine", folder=tmp_path)
    with pytest.raises(ValueError, match="'an-agent' is an agent: load_pretrained loads it"):
        load_pretrained_detector("an-agent", folder=tmp_path)
    with pytest.raises(UnknownNameError, match="Did you mean 'cancer'"):
        add_pretrained_detector(detector, "other", tmp_path, **given | {"table": "canser"})
    assert main(["zoo", "--folder", str(tmp_path)]) == 0 and "auroc" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", list_pretrained(OURS)[::8])
def test_agents_of_the_repository_score_as_their_cards_say(name: str) -> None:
    """On whatever machine this runs; ``dxmi-rl zoo check`` is about all of them."""
    assert check_pretrained(name, OURS) == []
