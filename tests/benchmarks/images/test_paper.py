"""The paper's games of images: counted at full size, played in small."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("prdc")

from benchmarks.images import paper
from dxmi_rl.diffusion import DenoiserUNet
from dxmi_rl.irl.paper import PAPER_PRESETS, PaperPreset, make_game, preset_cost
from dxmi_rl.targets import ImageSet, StoredRows

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)


def tiny(name: str, classes: int | None = None) -> PaperPreset:
    """A preset with its own settings, but a small backbone and small images."""
    preset = PAPER_PRESETS[name]
    small = DenoiserUNet((3, 8, 8), 0.5, channels=(8, 8), preconditioning=preset.preconditioning, classes=classes)
    backbone = {key: value for key, value in dict(small.net.config).items() if not key.startswith("_")}
    return dataclasses.replace(preset, event_shape=(3, 8, 8), backbone=backbone, n_trajectories=4, iterations=3)


@pytest.mark.slow
def test_backbones_have_their_size() -> None:
    known = {"cifar10-t10": 35_746_307, "imagenet64-t10": 296e6, "lsun-bedroom-t4": 527e6}
    for name, parameters in known.items():
        found = preset_cost(PAPER_PRESETS[name]).networks["denoiser"].parameters
        assert found == pytest.approx(parameters, rel=1e-9 if name.startswith("cifar") else 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PAPER_PRESETS))
def test_costs_add_up(name: str) -> None:
    preset = PAPER_PRESETS[name]
    cost = preset_cost(preset)
    weights = sum(network.parameters for network in cost.networks.values())
    assert 16 * weights < cost.state_bytes < 28 * weights
    calls = preset.n_trajectories * preset.task["horizon"] + 3 * preset.n_trajectories
    assert cost.iteration_flops > calls * cost.networks["denoiser"].flops
    assert cost.hours(1e15, 0.5) == pytest.approx(cost.iteration_flops * preset.iterations / 5e14 / 3600)


@pytest.mark.slow
def test_a_game_keeps_what_the_count_says(tmp_path: Path) -> None:
    preset = tiny("cifar10-t4")
    task = preset.make_task(ImageSet(BYTES[:15], BYTES[15:]), preset.make_backbone().save(tmp_path / "b.safetensors"))
    game = make_game(task, preset)
    game.learn(game.timesteps_per_iteration)
    networks = [game.agent.value, game.energy, game.agent.policy.base.denoiser]  # type: ignore[attr-defined, union-attr]
    cost = preset_cost(preset)
    own = sum(sum(p.numel() for p in network.parameters()) for network in networks)
    assert own == pytest.approx(sum(network.parameters for network in cost.networks.values()), rel=0.02)
    assert game.agent.entropy_weight == pytest.approx(0.1 / 192) and game.agent.cost_weight == pytest.approx(0.01 / 192)  # type: ignore[attr-defined]
    assert game.agent.policy.log_sigma[-1].exp().item() == pytest.approx(0.001)  # type: ignore[index, union-attr]


@pytest.fixture(name="script")
def tiny_presets(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(paper, "PAPER_PRESETS", {name: tiny(name) for name in ("cifar10-t4", "imagenet64-t4")})
    monkeypatch.setattr(paper, "samples_of", lambda target: 6)
    return paper


@pytest.mark.slow
@pytest.mark.parametrize(("name", "label"), [("cifar10-t4", None), ("imagenet64-t4", 1)])
def test_the_paper_games_can_be_played(
    name: str, label: int | None, script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    labels = np.arange(20) % 2
    target = ImageSet(BYTES[:15], BYTES[15:], train_labels=labels[:15], test_labels=labels[15:])
    if label is not None:  # images that stay on disk
        np.savez(tmp_path / "images.npz", images=np.tile(BYTES, (2, 1, 1, 1)), labels=np.tile(labels, 2))
        target = script.load_target(name, tmp_path / "images.npz", tiny(name), "lite0")
        assert isinstance(target.train_bytes, StoredRows)
    monkeypatch.setattr(script, "load_target", lambda *_: target)
    monkeypatch.setattr(script, "score", lambda game, seed, samples: {"fd": 1.0, "samples": samples})
    monkeypatch.setattr(script.evaluation, "image_distance", lambda target, x: 1.0)
    backbone = tiny(name, classes=None if label is None else 2).make_backbone().save(tmp_path / "backbone.safetensors")
    command = ["--presets", name, "--data", str(tmp_path), "--denoiser", str(backbone), "--precision", "float32"]
    command += ["--folder", str(tmp_path / "runs"), "--json", str(tmp_path / "out.json"), "--rows-at-a-time", "3"]
    if label is not None:
        assert script.main(command) == 2, "the backbone has classes, and is told none"
        command += ["--label", str(label)]
    assert script.main(command) == 0
    run = json.loads((tmp_path / "out.json").read_text())["runs"][0]
    assert run["iterations"] == 3 and len(run["curve"]) == 4 and run["features"] == "lite0" and run["samples"] == 2000
    (picture,) = (tmp_path / "runs").glob("*.png")
    with Image.open(picture) as grid:
        assert grid.size == (6 * 10 + 2, 12)
    assert run["scores"] == {"fd": 1.0, "samples": 2000}
    assert run["costs"]["timesteps"] == 3 * 4 * 4
    before = torch.get_rng_state()
    assert script.main(command) == 0, "it is finished, and only scored again"
    assert torch.equal(before, torch.get_rng_state())
    assert json.loads((tmp_path / "out.json").read_text())["runs"][0]["costs"]["timesteps"] == 3 * 4 * 4


@pytest.mark.slow
def test_a_dry_run_plays_cifar10_only(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.json"
    assert script.main(["--dry-run", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert list(found["dry_runs"]) == ["cifar10-t4"] and set(found["costs"]) == {"cifar10-t4", "imagenet64-t4"}
    assert found["dry_runs"]["cifar10-t4"]["n_trajectories"] == 2
    assert "one iteration with 2 trajectories" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--presets", "cifar10-t4"], "a game needs one preset, --data and --denoiser"),
        (["--dry-run", "--n-trajectories", "0"], "n_trajectories"),
        (["--dry-run", "--samples", "3"], "samples"),
        (["--presets", "cifar10-t4", "--data", ".", "--denoiser", ".", "--features", "inceptions"], "'inception'"),
        (["--presets", "cifar10-t4", "--data", ".", "--denoiser", ".", "--features", "inception"], "DXMI_RL_INCEPTION"),
        (["--presets", "cifar10-t4", "--data", ".", "--denoiser", "."], "CIFAR-10 is not at folder"),
        (["--dry-run", "--utilisation", "0"], "utilisation"),
    ],
)
def test_errors_are_said(
    arguments: list[str], text: str, script: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DXMI_RL_INCEPTION", raising=False)
    assert script.main(arguments) == 2
    assert text in capsys.readouterr().err


def test_images_are_a_folder_or_an_array_file(tmp_path: Path) -> None:
    preset = tiny("imagenet64-t4")
    np.savez(tmp_path / "images.npz", images=BYTES, labels=np.arange(20) % 2)
    (tmp_path / "folder").mkdir()
    for index, image in enumerate(BYTES[:6]):
        Image.fromarray(image.transpose(1, 2, 0)).resize((11, 9)).save(tmp_path / "folder" / f"{index}.png")
    for path, rows in ((tmp_path / "images.npz", 20), (tmp_path / "folder", 6)):
        target = paper.load_target("imagenet64-t4", path, preset, "inception")
        assert target.event_shape == (3, 8, 8) and target.name == "imagenet64" and target.features == "inception"
        assert len(target.train_bytes) + len(target.test_bytes) == rows
