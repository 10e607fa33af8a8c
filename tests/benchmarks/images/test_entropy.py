"""benchmarks/images/entropy.py: a small run has all keys and a picture, and is not repeated; what images it shows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from script_cases import documented

from benchmarks.images import entropy, other_images
from dxmi_rl.diffusion import pretrained_denoiser


def test_few_images_of_five_classes_are_left() -> None:
    whole, few = entropy.make_target("digits"), entropy.few_of_five()
    for label in range(10):
        before, after = (int((target.train_labels == label).sum()) for target in (whole, few))
        assert after == before if label not in entropy.FEW else 0.05 * before < after < 0.15 * before
    assert few.scale == whole.scale and len(few.test_bytes) == len(whole.test_bytes)


def test_other_images_are_as_they_are_called() -> None:
    data = entropy.make_target("digits").test_data(50)
    others = other_images.of_digits(data)
    assert all(other.shape[1:] == data.shape[1:] and float(other.abs().max()) <= 1 for other in others.values())
    assert torch.equal(others["inverted"], -data)
    assert torch.equal(others["shifted"][..., 2:], data[..., :-2]) and bool((others["shifted"][..., :2] == -1).all())
    assert torch.equal(others["shuffled"].flatten(1).sort(1).values, data.flatten(1).sort(1).values)
    assert len(others["letters"]) == len(other_images.FONTS) * 21 and len(others["printed digits"]) == 100
    assert bool((others["letters"].flatten(1).amax(1) > 0).all()), "every letter is there"


def test_a_density_is_known_where_the_energy_is_a_gaussians() -> None:
    found = entropy.as_density(lambda x: x.square().flatten(1).sum(1) / 2, 0.5, torch.zeros(1, 2, 2), 0)
    assert found.log_z == pytest.approx(2 * torch.log(torch.tensor(2 * torch.pi * 0.5)).item(), abs=0.15)


@pytest.mark.slow
def test_a_small_run_writes_what_its_docstring_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def short(target: Any, config: Any, **options: Any) -> Any:
        return pretrained_denoiser(target, dataclasses.replace(config, iterations=50, width=32), **options)

    monkeypatch.setattr(entropy, "pretrained_denoiser", short)
    monkeypatch.setattr(entropy, "FITTED", (1.0,))
    monkeypatch.setattr(entropy, "CHAINS", 16)
    file, picture = tmp_path / "all.json", tmp_path / "all.png"
    places = ["--json", str(file), "--picture", str(picture), "--folder", str(tmp_path / "runs")]
    arguments = ["--seeds", "0", "--taus", "0", "1", "--timesteps", "512", "--jobs", "1", *places]
    assert entropy.main(arguments) == 0
    everything = json.loads(file.read_text(encoding="utf-8"))
    assert documented(entropy) >= set(everything)
    assert [(run["kind"], run["tau"]) for run in everything["runs"]] == [
        ("all", 0.0), ("all", 1.0), ("few", 0.0), ("few", 1.0),
    ]  # fmt: skip
    for run in everything["runs"][:2]:
        assert run["auc"]["noise"] > 0.9 and run["fitted_tau"] == 1.0
    assert "likelihood" not in everything["runs"][0]
    known = everything["runs"][1]
    assert known["likelihood"] == known["fitted_likelihood"], "both are at the same temperature"
    assert 0 <= everything["start"]["few"]["share"] <= 1 and 0.4 < everything["data"]["share"] < 0.6
    assert picture.read_bytes().startswith(b"\x89PNG") and "entropy of" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert entropy.main(arguments) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in (
        (["--timesteps", "0"], "timesteps must"),
        (["--kinds", "fews"], "Did you mean 'few'"),
        (["--taus", "-1"], "taus must"),
    ):
        assert entropy.main(arguments) == 2
        assert text in capsys.readouterr().err
