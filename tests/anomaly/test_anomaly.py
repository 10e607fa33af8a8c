"""EnergyDetector: scikit-learn's interface, what it finds, and what it refuses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import check_estimator

from dxmi_rl.anomaly import EnergyDetector
from dxmi_rl.anomaly.columns import FLOOR, standardisation
from dxmi_rl.networks import EnergyDenoiser
from dxmi_rl.utils.checks import CheckpointError
from dxmi_rl.utils.registry import UnknownNameError

RNG = np.random.default_rng(0)
QUICK: dict[str, Any] = {"pretraining_iterations": 20, "epochs": 1, "width": 16}


def ring(n: int) -> np.ndarray:
    """Rows on a ring in two of three dimensions."""
    angle = RNG.uniform(0, 2 * np.pi, n)
    plane = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * RNG.standard_normal((n, 2))
    return np.concatenate([plane, 0.5 * plane[:, :1] + 0.05 * RNG.standard_normal((n, 1))], 1)


ROWS = ring(400)
OUTLIERS = RNG.uniform(-1.5, 1.5, (200, 3))


@pytest.fixture(scope="module", name="fitted")
def fitted_once() -> EnergyDetector:
    return EnergyDetector(epochs=60, width=64).fit(ROWS)


@pytest.mark.slow
def test_it_is_an_estimator_of_scikit_learn() -> None:
    results = check_estimator(EnergyDetector(**QUICK), on_skip=None)
    assert len(results) > 30
    assert {result["status"] for result in results} <= {"passed", "skipped"}


@pytest.mark.slow
def test_the_game_finds_outliers_that_the_denoiser_does_not(fitted: EnergyDetector) -> None:
    rows, labels = np.concatenate([ring(200), OUTLIERS]), np.repeat([0, 1], 200)
    start = EnergyDetector(epochs=0, width=64).fit(ROWS)
    before, after = (roc_auc_score(labels, -detector.score_samples(rows)) for detector in (start, fitted))
    assert after > 0.97 and after > before + 0.02


@pytest.mark.slow
def test_predictions_follow_contamination(fitted: EnergyDetector) -> None:
    assert np.mean(fitted.predict(ROWS) == -1) == pytest.approx(0.1, abs=0.01)
    scores = fitted.decision_function(ROWS)
    assert np.array_equal(fitted.predict(ROWS), np.where(scores < 0, -1, 1))
    assert np.allclose(scores, fitted.score_samples(ROWS) - fitted.offset_)


@pytest.mark.slow
@pytest.mark.parametrize("training", ["dxmi", "persistent", "short-run", "score-matching", "gaussian-noise"])
def test_every_training_moves_the_energy_and_repeats_itself(training: str) -> None:
    start, one, two = (EnergyDetector(**QUICK | {"training": training} | more) for more in ({"epochs": 0}, {}, {}))
    for detector in (start, one, two):
        detector.fit(ROWS[:60])
    assert start.n_iter_ == 0 < one.n_iter_
    assert np.array_equal(one.score_samples(ROWS), two.score_samples(ROWS))
    assert not np.array_equal(one.score_samples(ROWS), start.score_samples(ROWS))


@pytest.mark.slow
def test_starting_from_noise_and_without_entropy_are_other_games() -> None:
    changes = ({}, {"start": "noise"}, {"tau": 0.0}, {"seed": 1})
    scores = [EnergyDetector(**QUICK | change).fit(ROWS).score_samples(ROWS) for change in changes]
    for other in scores[1:]:
        assert not np.array_equal(scores[0], other)


@pytest.mark.slow
def test_the_game_ends_when_samples_are_easy_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = QUICK | {"epochs": 6}
    whole = EnergyDetector(**settings).fit(ROWS)
    monkeypatch.setattr("dxmi_rl.anomaly.detector.LARGEST_GAP", -1e9)
    short = EnergyDetector(**settings).fit(ROWS)
    full = EnergyDetector(**settings, early_stopping=False).fit(ROWS)
    assert (short.n_iter_, whole.n_iter_) == (5, full.n_iter_)


@pytest.mark.slow
def test_feature_maps_are_scored_by_place() -> None:
    maps = ROWS[: 5 * 24].reshape(5, 4, 6, 3).transpose(0, 3, 1, 2).copy()
    detector = EnergyDetector(**QUICK).fit(maps)
    vectors = EnergyDetector(**QUICK).fit(ROWS[: 5 * 24])
    assert detector.n_features_in_ == 3
    places = detector.score_maps(maps)
    assert places.shape == (5, 4, 6)
    assert np.allclose(places.reshape(-1), vectors.score_samples(ROWS[: 5 * 24]))
    assert np.allclose(detector.score_samples(maps), places.reshape(5, -1).min(1))
    with pytest.raises(ValueError, match="must be feature maps"):
        detector.score_maps(ROWS)


@pytest.mark.slow
def test_folds_are_for_rows_that_hold_outliers(tmp_path: Path) -> None:
    """Of two hundred digits one energy knows all by heart, those of other kinds too; the mean of two does not."""
    random = np.random.default_rng(0)
    images, classes = load_digits(return_X_y=True)
    others = random.permutation(np.flatnonzero(classes != 3))[:20]
    rows = np.concatenate([images[others], images[classes == 3]])
    labels = np.arange(len(rows)) < 20
    one, two = (EnergyDetector(epochs=0, folds=folds, pretraining_iterations=1000).fit(rows) for folds in (1, 2))
    found = {detector: roc_auc_score(labels, -detector.score_samples(rows)) for detector in (one, two)}
    assert found[two] > 0.9 > 0.7 > found[one]

    first, second = two.energy_.members
    x = torch.from_numpy((rows - two.mean_) / two.scale_).float()
    assert np.allclose(two.score_samples(rows), -(first(x) + second(x)).numpy() / 2, rtol=1e-4)
    known = np.stack([member(x[:20]).numpy() for member in (first, second)])
    assert (known.max(0) > 2 * known.min(0)).mean() > 0.8, "an outlier is known to the one that has seen it"
    two.save(tmp_path / "two.safetensors")
    assert np.array_equal(
        EnergyDetector.load(tmp_path / "two.safetensors").score_samples(rows), two.score_samples(rows)
    )


@pytest.mark.slow
def test_folds_of_maps_are_of_whole_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = np.random.default_rng(0).standard_normal((7, 3, 4, 5))
    seen: list[torch.Tensor] = []
    learned = EnergyDetector._learned
    monkeypatch.setattr(
        EnergyDetector, "_learned", lambda self, rows: seen.append(rows.train_rows) or learned(self, rows)
    )
    detector = EnergyDetector(**QUICK, folds=3).fit(maps)
    assert detector.score_maps(maps).shape == (7, 4, 5) and len(detector.data_scale_) == 3
    places = detector._standardised(np.moveaxis(maps, 1, -1).reshape(-1, 3)).view(7, 20, 3)
    known = np.array([[sum(bool((row == part).all(1).any()) for row in one) for one in places] for part in seen])
    assert ((known == 0).sum(0) == 1).all(), "every map is left out of one part, whole"
    assert (np.sort(known, 0)[1:] > 10).all(), "and in the others but for the rows that a target holds out"
    with pytest.raises(ValueError, match="folds must be at most a half of the 7 rows"):
        EnergyDetector(**QUICK, folds=4).fit(maps)


@pytest.mark.slow
def test_it_comes_back_from_a_file(fitted: EnergyDetector, tmp_path: Path) -> None:
    file = fitted.save(tmp_path / "detector.safetensors")
    loaded = EnergyDetector.load(file)
    assert np.array_equal(loaded.decision_function(ROWS), fitted.decision_function(ROWS))
    assert loaded.get_params() == fitted.get_params() and loaded.n_iter_ == fitted.n_iter_
    assert not hasattr(loaded, "feature_names_in_")
    tensors, metadata = fitted.state()
    metadata["settings"].pop("folds")  # as in files of before there were folds
    old = EnergyDetector.from_state(tensors, metadata)
    assert np.array_equal(old.score_samples(ROWS), fitted.score_samples(ROWS))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        EnergyDetector.load(file)
    with pytest.raises(NotFittedError):
        EnergyDetector().save(tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


@pytest.mark.slow
def test_it_is_one_of_pyods(fitted: EnergyDetector) -> None:
    pytest.importorskip("pyod")
    ready = fitted.to_pyod()
    assert np.allclose(ready.decision_function(OUTLIERS), -fitted.score_samples(OUTLIERS))
    trained = clone(EnergyDetector(**QUICK, contamination=0.2)).to_pyod().fit(ROWS)
    assert np.mean(trained.labels_) == pytest.approx(0.2, abs=0.01)
    assert trained.predict(OUTLIERS).mean() > trained.predict(ROWS).mean()


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (np.full((10, 3), np.nan), "NaN"),
        (np.full((10, 3), np.inf), "infinity"),
        (np.ones((10, 3)), "copies of one row"),
        (np.ones((1, 3)), "minimum of 2"),
        (np.ones((4, 3, 2)), r"got shape \[4, 3, 2\]"),
        (np.array([["a", "b"], ["c", "d"]]), "could not convert"),
    ],
)
def test_bad_rows_are_refused(rows: np.ndarray, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        EnergyDetector(**QUICK).fit(rows)


@pytest.mark.slow
def test_other_widths_are_refused(fitted: EnergyDetector) -> None:
    with pytest.raises(ValueError, match="2 features, but EnergyDetector is expecting 3"):
        fitted.score_samples(ROWS[:, :2])


def test_constant_columns_do_no_harm() -> None:
    rows = np.concatenate([ROWS, np.ones((len(ROWS), 1))], 1)
    detector = EnergyDetector(**QUICK).fit(rows)
    assert np.isfinite(detector.score_samples(rows)).all()
    mean, scale = standardisation(rows)
    assert scale[3] == pytest.approx(FLOOR * np.sqrt((rows.std(0) ** 2).mean())) and mean[3] == 1


def test_names_of_columns_come_back_from_a_file(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rows = pandas.DataFrame(ROWS, columns=["x", "y", "z"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = EnergyDetector(**QUICK).fit(rows)
        loaded = EnergyDetector.load(detector.save(tmp_path / "detector.safetensors"))
        assert np.array_equal(loaded.score_samples(rows), detector.score_samples(rows))
    for one in (detector, loaded):
        with pytest.raises(ValueError, match="feature names should match"):
            one.score_samples(rows[["y", "x", "z"]])


def test_rows_beyond_all_numbers_are_outliers() -> None:
    detector = EnergyDetector(**QUICK).fit(ROWS)
    far = np.array([[sign * size] * 3 for size in (1e6, 1e19, 1e20, 1e30, 1e39, 1e300) for sign in (-1, 1)])
    assert (detector.predict(far) == -1).all() and np.isfinite(detector.decision_function(far)).all()
    maps = np.concatenate([ROWS[:4, :, None, None], far[-2:, :, None, None]])
    assert detector.score_maps(maps)[:4].min() > detector.score_maps(maps)[4:].max()


def test_columns_that_hardly_count_are_named() -> None:
    rows = ROWS * [1.0, 100.0, 100.0]
    with pytest.warns(UserWarning, match=r"columns \[0\] of X vary little.*StandardScaler"):
        EnergyDetector(**QUICK | {"epochs": 0}).fit(rows)


@pytest.mark.slow
def test_whitened_rows_are_uncorrelated_and_small_variances_count(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    plane = generator.standard_normal((400, 2)) @ np.array([[1.0, 0.0, 0.7], [0.0, 1.0, 0.7]])
    rows = plane + 0.02 * generator.standard_normal((400, 3))
    ten_deviations = 0.2 * np.array([0.57, 0.57, -0.58]) * generator.choice([-1, 1], (100, 1))
    off = rows[:100] + ten_deviations
    detector = EnergyDetector(**QUICK, whitening=True).fit(rows)
    spread, before = (np.cov(x.T, bias=True) for x in (detector._standardised(rows).numpy(), rows / detector.scale_))
    variances = np.linalg.eigvalsh(before)
    assert np.allclose(spread, np.diag(variances / (variances + 0.01 * variances.mean())), atol=1e-4)
    settings = {"epochs": 0, "pretraining_iterations": 600, "width": 32}
    found = [EnergyDetector(**settings, whitening=on).fit(rows) for on in (True, False)]
    aucs = [roc_auc_score(np.arange(500) < 100, -one.score_samples(np.concatenate([off, rows]))) for one in found]
    assert aucs[0] > 0.95 and aucs[0] > aucs[1] + 0.05
    loaded = EnergyDetector.load(found[0].save(tmp_path / "detector.safetensors"))
    assert np.array_equal(loaded.score_samples(off), found[0].score_samples(off))
    with pytest.raises(ValueError, match="whitening needs more rows than features, got 3 of 3"):
        EnergyDetector(**QUICK, whitening=True).fit(rows[:3])


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"contamination": 0.0}, ValueError),
        ({"contamination": 0.6}, ValueError),
        ({"start": "dta"}, UnknownNameError),
        ({"training": "langevin"}, UnknownNameError),
        ({"tau": -1.0}, ValueError),
        ({"epochs": -1}, ValueError),
        ({"horizon": 0}, ValueError),
        ({"folds": 0}, ValueError),
        ({"seed": 2**32}, ValueError),
    ],
)
def test_settings_that_are_not_allowed(setting: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(setting))):
        EnergyDetector(**QUICK | setting).fit(ROWS)


def test_the_energy_is_what_a_denoiser_takes_out() -> None:
    energy = EnergyDenoiser(HalfWay(), 2.0, levels=(0.5, 1.0))
    x = torch.tensor([[2.0, 0.0], [4.0, 4.0]])
    # x - D = x / 2, over c = 2: (0.5, 0) and (1, 1); two levels of gain one.
    assert energy(x).tolist() == pytest.approx([2 * 0.125, 2 * 1.0])
    energy.log_gain.data[1] = np.log(3.0)
    energy.bias.data += 0.5
    assert energy(x).tolist() == pytest.approx([4 * 0.125 + 0.5, 4 * 1.0 + 0.5])
    by_level = EnergyDenoiser(HalfWay(), 2.0, levels=(0.5, 0.1), power=2.0)
    assert by_level(x).tolist() == pytest.approx([104 * 0.125, 104 * 1.0], rel=1e-5), "gains 4 and 100"


class HalfWay(torch.nn.Module):
    def forward(self, x: torch.Tensor, alpha: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return x / 2
