"""benchmarks/anomaly/images.py: sets, methods, keys, pictures, and that a stopped command goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.anomaly import images as script
from dxmi_rl.anomaly import AnomalyImages

RNG = np.random.default_rng(0)


def small(seed: int) -> AnomalyImages:
    """Noise, in half of the test images with a bright square."""
    images = np.random.default_rng(seed).integers(100, 120, (20, 1, 16, 16)).astype(np.uint8)
    masks = np.zeros((10, 16, 16), bool)
    masks[5:, 4:8, 8:12] = True
    images[10:, 0][masks] = 200
    return AnomalyImages("small", images[:10], images[10:], np.arange(10) >= 5, masks, ("good",) * 5 + ("spot",) * 5)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small set, a network that only averages, and short trainings."""
    monkeypatch.setattr(script, "all_sets", lambda arguments: {"small": small, "unmarked": unmarked})
    monkeypatch.setattr(script.Remembered, "__init__", remember)
    settings = {"pretraining_iterations": 10, "width": 8, "max_iterations": 2}
    monkeypatch.setattr(script, "ENERGIES", {name: settings | given for name, given in script.ENERGIES.items()})


def unmarked(seed: int) -> AnomalyImages:
    found = small(seed)
    return AnomalyImages("unmarked", found.train, found.test, found.anomalous, None, found.kinds)


def remember(self: Any, size: int, device: str) -> None:
    def network(x: torch.Tensor) -> list[torch.Tensor]:
        return [torch.nn.functional.avg_pool2d(x[:, :2], size) for size in (2, 4)]

    self.maps = script.FeatureMaps(network, layers=(0, 1), device=device)
    self.known, self.seconds = {}, 0.0


@pytest.mark.slow
def test_a_run_gives_tables_keys_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = tmp_path / "results.json", tmp_path / "runs"
    methods = ["energy", "energy, NCE", "gaussian", "padim", "patchcore", *script.CONTROLS]
    command = ["--sets", "small", "unmarked", "--seeds", "0", "--methods", *methods, "--folder", str(folder)]
    assert script.main([*command, "--json", str(file), "--pictures", str(tmp_path)]) == 0
    found = json.loads(file.read_text(encoding="utf-8"))
    assert script.__doc__ is not None
    for key in found:
        assert f"    {key}" in script.__doc__ or f", {key} " in script.__doc__
    assert len(found["runs"]) == 2 * len(methods)
    assert found["sets"]["small"]["images"] == {"train": 10, "test": 10, "anomalous": 5}
    assert found["methods"]["patchcore"]["auroc"] == found["methods"]["pixels"]["auroc"] == 1
    assert found["methods"]["padim"]["aupro"] > 0.9
    assert "aupro" not in found["sets"]["unmarked"]["scores"]["energy"]
    assert "pixel_auroc" not in found["methods"]["pixels"]
    assert {file.name for file in tmp_path.glob("*.png")} == {"anomaly_small.png", "anomaly_unmarked.png"}
    printed = capsys.readouterr().out
    assert "means over sets" in printed and "AUPRO" in printed


def test_textures_are_enlarged_and_keys_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [script.size_of(name) for name in ("texture grass", "elpv mono", "mvtec bottle")] == [448, 256, 256]
    before = [script.result_file(tmp_path, name, "padim", 0, "cpu") for name in ("texture grass", "elpv mono")]
    monkeypatch.setattr(script, "TEXTURE_SIZE", 256)
    after = [script.result_file(tmp_path, name, "padim", 0, "cpu") for name in ("texture grass", "elpv mono")]
    assert before[0] != after[0] and before[1] == after[1]


def test_features_are_those_that_the_detector_computes() -> None:
    images = small(0).train
    remembered = script.Remembered(16, "cpu")
    for _ in range(2):
        found = script.FeatureMaps(remembered, layers=range(2))(images)
        assert np.array_equal(found, remembered.maps(images))
    assert len(remembered.known) == 1


def test_finished_fits_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = script.run("small", small, ["padim", "mean grey"], 0, "cpu", tmp_path)

    def refuse(*_: Any) -> Any:
        raise AssertionError("fitted again")

    monkeypatch.setattr(script, "fit", refuse)
    assert script.run("small", refuse, ["padim", "mean grey"], 0, "cpu", tmp_path) == first


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--sets", "smal"], "Did you mean 'small'"),
        (["--sets", "small", "--methods", "padm"], "Did you mean 'padim'"),
        (["--seeds", "0", "0"], "seeds must be distinct"),
        (["--device", "tpu9"], "device"),
    ],
)
def test_errors_are_said(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert script.main([*arguments, "--folder", str(tmp_path)]) == 2
    assert text in capsys.readouterr().err


def test_every_method_is_built() -> None:
    for name in set(script.METHODS) - set(script.CONTROLS):
        detector = script.place_detector(name, 3, "cpu", 10)
        assert detector.get_params().get("seed", 3) == 3
    assert script.place_detector("patchcore", 0, "cpu", 101).coreset == 0.01


def test_sets_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "bottle").mkdir()
    (tmp_path / "split_csv").mkdir()
    found = script.all_sets(script.Arguments(mvtec=tmp_path, visa=tmp_path))
    assert {"mvtec bottle", "visa bottle", "texture brick", "elpv mono"} <= set(found)
    assert not any("split_csv" in name for name in found)
