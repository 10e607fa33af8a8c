"""Convolutional denoisers: preconditioning, DDPM pipelines, files, pretraining and tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dxmi_rl import make_task
from dxmi_rl.agents.policies import FineTunedPolicy
from dxmi_rl.diffusion import DenoiserUNet, PretrainingConfig, pretrained_denoiser, pretraining, unet
from dxmi_rl.targets import ImageSet
from dxmi_rl.utils.checks import CheckpointError
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import save_tensors

diffusers = pytest.importorskip("diffusers")

SHAPE = (3, 8, 8)
SMALL: dict[str, Any] = {"channels": (8, 8), "layers": 1}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path / "cache"))


def awake(denoiser: DenoiserUNet) -> DenoiserUNet:
    """With a last layer that is not zero."""
    torch.manual_seed(0)
    nn.init.normal_(denoiser.net.conv_out.weight, std=0.3)
    return denoiser.requires_grad_(False)


def images(n: int = 5) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("preconditioning", unet.PRECONDITIONINGS)
def test_it_starts_at_the_best_linear_denoiser_or_at_no_noise(preconditioning: str) -> None:
    denoiser = DenoiserUNet(SHAPE, 0.5, preconditioning=preconditioning, **SMALL)
    x, alpha, s = images(), 0.8, 0.6
    gain = 0.5**2 / (0.5**2 + (s / alpha) ** 2) if preconditioning != "epsilon" else 1.0
    assert torch.allclose(denoiser(x, alpha, s), gain * x / alpha, atol=1e-6)


@pytest.mark.parametrize("preconditioning", unet.PRECONDITIONINGS)
def test_levels_may_be_numbers_or_one_per_image(preconditioning: str) -> None:
    denoiser = awake(DenoiserUNet(SHAPE, 0.5, preconditioning=preconditioning, **SMALL))
    x, alpha, s = images(3), torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.1, 0.5, 0.99])
    together = denoiser(x, alpha, s)
    alone = torch.cat([denoiser(x[i : i + 1], float(alpha[i]), float(s[i])) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together, x / alpha.view(-1, 1, 1, 1), atol=0.1)


def test_patches_are_pixels_with_more_channels() -> None:
    """With patches of two pixels F has four times the channels, and sees each square of pixels in one place."""
    denoiser = awake(DenoiserUNet(SHAPE, 0.5, patch=2, attention=False, **SMALL))
    config = denoiser.net.config
    assert (config.sample_size, config.in_channels, config.out_channels) == ([4, 4], 12, 12)
    x, alpha, s = images(), 0.8, 0.6
    level, z = s / alpha, x / alpha
    total = (level**2 + 0.5**2) ** 0.5
    squares = (z / total).unflatten(3, (4, 2)).unflatten(2, (4, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    out = denoiser.net(squares, denoiser.times(torch.full((len(x),), level))).sample
    whole = out.unflatten(1, (3, 2, 2)).permute(0, 1, 4, 2, 5, 3).reshape(x.shape)
    assert torch.allclose(denoiser(x, alpha, s), (0.5 / total) ** 2 * z + level * 0.5 / total * whole, atol=1e-6)


def test_what_the_network_is_told_of_the_noise_rises_with_it() -> None:
    denoiser = DenoiserUNet(SHAPE, 0.5, **SMALL)
    times = denoiser.times(torch.tensor([0.0, 0.5, 1e6]))
    assert torch.allclose(times, torch.tensor([0.0, 500.0, 1000.0]), atol=0.01)


@pytest.fixture(name="pipeline")
def ddpm_pipeline(tmp_path: Path) -> tuple[Path, Any, Any]:
    """A small DDPM with random weights, saved as diffusers does it."""
    torch.manual_seed(2)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    diffusers.DDPMPipeline(unet=net, scheduler=scheduler).save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm", net, scheduler


def test_a_pipelines_noise_is_its_own_at_its_own_steps(pipeline: tuple[Path, Any, Any]) -> None:
    """x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, with any other alpha and s of the same ratio, too."""
    folder, net, scheduler = pipeline
    denoiser = DenoiserUNet.from_pipeline(folder).requires_grad_(False)
    x = images()
    for step in (0, 1, 400, 999):
        alpha = float(scheduler.alphas_cumprod[step].double().sqrt())
        s = float((1 - scheduler.alphas_cumprod[step].double()).sqrt())
        with torch.no_grad():
            noise = net(x, step).sample
        assert torch.allclose(denoiser(x, alpha, s), (x - s * noise) / alpha, rtol=1e-3, atol=1e-3 * s / alpha)
        assert torch.allclose(
            denoiser(3 * x, 3 * alpha, 3 * s), denoiser(x, alpha, s), rtol=1e-3, atol=1e-3 * s / alpha
        )
    ratios = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    steps = denoiser.times(ratios[[0, 10, 500, 999]])
    assert torch.allclose(steps, torch.tensor([0.0, 10, 500, 999]), atol=1e-2)
    between = float(denoiser.times((ratios[10:11] * ratios[11:12]).sqrt()))
    assert between == pytest.approx(10.5, abs=1e-2)
    assert denoiser.times(torch.tensor([1e-9, 1e9])).tolist() == [0.0, 999.0]


def test_a_task_starts_from_a_pipeline(pipeline: tuple[Path, Any, Any]) -> None:
    folder, net, _ = pipeline
    task = make_task(image_set(), denoiser=str(folder))
    policy = FineTunedPolicy(task.mdp)
    assert len(list(policy.parameters())) == len(list(net.parameters())) + 1
    assert task.mdp.sample(policy, 2, torch.Generator().manual_seed(0)).shape == (2, *SHAPE)
    with pytest.raises(ValueError, match=r"is for images \(3, 8, 8\), and target .* has \(1, 8, 8\)"):
        make_task("digits", denoiser=str(folder))
    with pytest.raises(UnknownNameError, match=r"denoiser 'nowhere'.*path"):
        make_task("digits", denoiser="nowhere")


def test_what_is_no_pipeline_is_refused(pipeline: tuple[Path, Any, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no DDPMPipeline"):
        DenoiserUNet.from_pipeline(tmp_path)
    file = pipeline[0] / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(settings | {"prediction_type": "v_prediction"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="'v_prediction'"):
        DenoiserUNet.from_pipeline(pipeline[0])


def test_saved_and_loaded_it_is_the_same(pipeline: tuple[Path, Any, Any], tmp_path: Path) -> None:
    x = images()
    patched = awake(DenoiserUNet(SHAPE, 0.5, patch=2, **SMALL))
    for denoiser in (awake(DenoiserUNet(SHAPE, 0.5, **SMALL)), patched, DenoiserUNet.from_pipeline(pipeline[0])):
        file = denoiser.save(tmp_path / "unet.safetensors")
        loaded = DenoiserUNet.load(file)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), denoiser.parameters(), strict=True))
        torch.testing.assert_close(loaded(x, 0.8, 0.6), denoiser(x, 0.8, 0.6), rtol=1e-5, atol=1e-5)
        assert make_task(image_set(), denoiser=str(file)).mdp.base.sigma.shape == (4,)
    save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {"kind": "else"})
    with pytest.raises(CheckpointError, match=r"DenoiserUNet.save"):
        DenoiserUNet.load(tmp_path / "other.safetensors")
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CheckpointError):
        DenoiserUNet.load(file)


@pytest.mark.parametrize(
    ("shape", "changes", "error", "text"),
    [
        ((2,), {}, ValueError, "event_shape must be"),
        (SHAPE, {"channels": ()}, ValueError, "channels must have one number per stage"),
        (SHAPE, {"channels": (12,)}, ValueError, "multiples of 8"),
        (SHAPE, {"channels": (8, 8, 8, 8, 8)}, ValueError, "can be halved 4 times"),
        (SHAPE, {"channels": (8, 0)}, ValueError, ">= 1"),
        (SHAPE, {"layers": 0}, ValueError, "layers must be >= 1"),
        (SHAPE, {"patch": 0}, ValueError, "patch must be >= 1"),
        (SHAPE, {"patch": 3}, ValueError, "patch must divide height and width .8, 8., got 3"),
        (SHAPE, {"patch": 4, "channels": (8, 8, 8)}, ValueError, "height and width .2, 2. can be halved 2 times"),
        (SHAPE, {"preconditioning": "emd"}, UnknownNameError, "'edm'"),
        (SHAPE, {"alphas_cumprod": torch.ones(3)}, ValueError, "must be 'epsilon'"),
        (
            SHAPE,
            {"alphas_cumprod": torch.tensor([0.2, 0.5]), "preconditioning": "epsilon"},
            ValueError,
            "below the one",
        ),
        (SHAPE, {"alphas_cumprod": torch.tensor([0.5, 0.0]), "preconditioning": "epsilon"}, ValueError, "in .0, 1."),
    ],
)
def test_bad_settings(shape: tuple[int, ...], changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        DenoiserUNet(shape, 0.5, **changes)


def image_set() -> ImageSet:
    """Two pictures: a bright square on the left, or on the right."""
    rows = torch.zeros(64, *SHAPE, dtype=torch.uint8)
    rows[::2, :, 2:6, :4] = 255
    rows[1::2, :, 2:6, 4:] = 255
    return ImageSet(rows[:48], rows[48:], name="squares")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"preconditioning": "epsilon"}, {}, {"patch": 2, "channels": (32, 32), "precision": "bfloat16"}]
)
def test_behaviour_cloning_learns_the_pictures(changes: dict[str, Any]) -> None:
    """Of a picture in noise that hides it from an average, but not from a network that knows the two."""
    target = image_set()
    config = PretrainingConfig(
        **{"network": "unet", "channels": (16, 16), "iterations": 250, "batch_size": 32, "learning_rate": 4e-3,
           "ema": 0.9, **changes}
    )  # fmt: skip
    denoiser = pretrained_denoiser(target, config)
    clean, level = target.test_images, 1.0
    noise = level * torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    alpha = (1 + level**2) ** -0.5
    error = float((denoiser(alpha * (clean + noise), alpha, level * alpha) - clean).square().mean())
    linear = target.scale**2 * level**2 / (target.scale**2 + level**2)
    assert error < 0.35 * linear
    again = pretrained_denoiser(target, config)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), denoiser.parameters(), strict=True))


def test_settings_of_the_other_network_do_not_count() -> None:
    """Caches and checkpoints of MLPs stay what they were before there were U-Nets."""
    text = repr(PretrainingConfig(channels=(8,)))
    assert text == repr(PretrainingConfig()) and "channels" not in text and "network" not in text
    assert repr(PretrainingConfig(network="unet", width=7)) == repr(PretrainingConfig(network="unet"))
    assert "channels=(8,)" in repr(PretrainingConfig(network="unet", channels=(8,)))
    for network, left_out in (("mlp", True), ("unet", False)):
        assert ("precision" not in repr(PretrainingConfig(network=network))) is left_out
        assert "precision='bfloat16'" in repr(PretrainingConfig(network=network, precision="bfloat16"))
    with pytest.raises(TypeError, match="channels must be a tuple"):
        PretrainingConfig(channels=8)  # type: ignore[arg-type]


def test_an_unknown_network_or_precision_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"network of pretraining 'unets'.*'unet'"):
        pretrained_denoiser(image_set(), PretrainingConfig(network="unets"))
    with pytest.raises(UnknownNameError, match=r"precision 'bfloat'.*'bfloat16'"):
        pretrained_denoiser(image_set(), PretrainingConfig(network="unet", precision="bfloat"))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_pretraining_that_was_interrupted_goes_on_and_ends_the_same(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PretrainingConfig(network=network, channels=(8, 8), width=8, iterations=6, batch_size=4)
    whole = pretrained_denoiser(image_set(), config)
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(pretraining, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(pretraining, "track", lambda steps, _: (step for step in steps if step < 4 or stop()))

    def stop() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrained_denoiser(image_set(), config)
    (partial,) = (tmp_path / "other").iterdir()
    assert partial.name.startswith("denoiser-partial")
    seen: list[int] = []
    monkeypatch.setattr(pretraining, "track", lambda steps, _: (seen.append(step) or step for step in steps))
    resumed = pretrained_denoiser(image_set(), config)
    assert seen == [4, 5]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert not partial.exists()


@pytest.mark.slow
def test_the_weights_of_four_fifths_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PretrainingConfig(network="unet", channels=(8, 8), iterations=5, batch_size=4)
    weights = []
    for folder, way in (("one", {}), ("two", {"early": True})):
        monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path / folder))
        denoiser = pretrained_denoiser(image_set(), config, **way)
        weights.append((denoiser, pretrained_denoiser(image_set(), config, early=not way)))
    (end, early), (early_first, end_later) = weights
    for a, b in ((end, end_later), (early, early_first)):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(end.parameters(), early.parameters(), strict=True))


def test_a_damaged_partial_pretraining_starts_anew(tmp_path: Path) -> None:
    config = PretrainingConfig(network="unet", channels=(8, 8), iterations=2, batch_size=4)
    file = tmp_path / "partial.safetensors"
    file.write_bytes(b"damaged")
    cloning = pretraining._Cloning(image_set(), config, torch.device("cpu"), file)
    assert cloning.start == 0 and not file.exists()
    cloning.save(file, 1)
    assert pretraining._Cloning(image_set(), config, torch.device("cpu"), file).start == 1
    other = file.rename(tmp_path / "other.safetensors")
    assert pretraining._Cloning(image_set(), config, torch.device("cpu"), other).start == 0, "it is another one's"
