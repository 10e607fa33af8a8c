"""Class-conditional U-Nets: what they learn, tasks of one class, files and pipelines."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dxmi_rl import DxMI, make_agent, make_task
from dxmi_rl.agents.execution import set_execution
from dxmi_rl.diffusion import DenoiserUNet, PretrainingConfig, pretrained_denoiser
from dxmi_rl.targets import ImageSet, TargetError, make_target
from dxmi_rl.tasks import TaskConfig

diffusers = pytest.importorskip("diffusers")

SHAPE = (3, 8, 8)
QUICK: dict[str, Any] = {"network": "unet", "channels": (16, 16), "iterations": 200, "batch_size": 32}
TINY: dict[str, Any] = {"network": "unet", "channels": (8, 8), "iterations": 2, "batch_size": 4}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path / "cache"))


def squares() -> ImageSet:
    """A bright square on the left, class 0, or on the right, class 1."""
    rows = torch.zeros(64, *SHAPE, dtype=torch.uint8)
    rows[::2, :, 2:6, :4] = 255
    rows[1::2, :, 2:6, 4:] = 255
    labels = torch.arange(64) % 2
    return ImageSet(rows[:48], rows[48:], train_labels=labels[:48], test_labels=labels[48:], name="squares")


@pytest.mark.slow
def test_in_pure_noise_it_shows_the_class_that_it_is_told() -> None:
    """Where an image tells nothing, the best guess is the mean of its class, which is its only picture."""
    target = squares()
    config = PretrainingConfig(**QUICK, learning_rate=4e-3, ema=0.9, conditional=True)
    denoiser = pretrained_denoiser(target, config)
    assert isinstance(denoiser, DenoiserUNet) and denoiser.classes == 2
    noise = torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(32) % 2
    found = denoiser(noise, 0.05, 1.0, labels)
    own, other = target.test_images[labels], target.test_images[1 - labels]
    assert float((found - own).square().mean()) < 0.05 * float((other - own).square().mean())
    again = pretrained_denoiser(target, config)
    assert torch.equal(again(noise, 0.05, 1.0, labels), found)
    for label in (0, 1):
        task = make_task(target, horizon=3, label=label, pretraining=vars(config))
        samples = make_agent("ddpm", task=task, seed=0).sample(16, seed=0)
        distances = [float((samples - target.test_images[k]).square().mean()) for k in (0, 1)]
        assert distances[label] < 0.1 * distances[1 - label]


@pytest.mark.slow
def test_a_task_of_one_class_has_its_images_and_can_be_played(tmp_path: Path) -> None:
    target = squares()
    denoiser = DenoiserUNet(SHAPE, target.scale, channels=(8, 8), classes=2).requires_grad_(False)
    torch.nn.init.normal_(denoiser.net.conv_out.weight, std=0.3)
    tasks = [make_task(target, label=label, denoiser=denoiser, horizon=2) for label in (0, 1)]
    assert [task.mdp.base.denoiser.label for task in tasks] == [0, 1]  # type: ignore[union-attr]
    for label, task in enumerate(tasks):
        assert isinstance(task.target, ImageSet) and task.target.name == f"squares {label}"
        assert task.target.scale == target.scale and task.target.levels == target.levels
        assert torch.equal(task.target.train_images, target.train_images[label::2])
        assert torch.equal(task.target.test_images, target.test_images[label::2])
    assert tasks[0].fingerprint() != tasks[1].fingerprint()
    small = {"agent_settings": {"n_trajectories": 8, "policy_steps": 1, "value.width": 16}, "energy": {"width": 16}}
    game = DxMI(tasks[1], seed=0, **small)
    before = copy.deepcopy(game.agent.policy)  # type: ignore[attr-defined]
    set_execution(game, rows_at_a_time=3)
    game.learn(2 * game.timesteps_per_iteration)
    embedding = [policy.base.denoiser.net.class_embedding.weight for policy in (before, game.agent.policy)]  # type: ignore[attr-defined, union-attr]
    assert not torch.equal(embedding[0][1], embedding[1][1]) and torch.equal(embedding[0][0], embedding[1][0])
    loaded = DxMI.load(game.save(tmp_path / "game.safetensors"), task=tasks[1])
    assert torch.equal(loaded.sample(3, seed=1), game.sample(3, seed=1))
    with pytest.raises(ValueError, match="label = 1, and the task has label = 0"):
        DxMI.load(tmp_path / "game.safetensors", task=tasks[0])


@pytest.mark.slow
def test_files_and_pipelines_have_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), num_class_embeds=5,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    diffusers.DDPMPipeline(unet=net, scheduler=scheduler).save_pretrained(tmp_path / "ddpm")
    denoiser = DenoiserUNet.from_pipeline(tmp_path / "ddpm").requires_grad_(False)
    assert denoiser.classes == 5
    x, alpha = torch.randn(2, *SHAPE), float(scheduler.alphas_cumprod[400]) ** 0.5
    s = (1 - alpha**2) ** 0.5
    with torch.no_grad():
        noise = net(x, 400, torch.tensor([3, 3])).sample
        torch.testing.assert_close(denoiser(x, alpha, s, 3), (x - s * noise) / alpha, rtol=1e-3, atol=1e-3)
    file = denoiser.save(tmp_path / "unet.safetensors")
    loaded = DenoiserUNet.load(file)
    torch.testing.assert_close(loaded(x, alpha, s, 3), denoiser(x, alpha, s, 3), rtol=1e-4, atol=1e-4)
    for path in (tmp_path / "ddpm", file):
        task = make_task(squares(), denoiser=str(path), label=1)
        found = task.mdp.base.denoiser(x, alpha, s)  # type: ignore[union-attr]
        torch.testing.assert_close(found, denoiser(x, alpha, s, 1), rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="label must be a class of the denoiser, 0 to 4, got None"):
            make_task(squares(), denoiser=str(path))


def test_one_denoiser_may_serve_tasks_of_several_classes() -> None:
    denoiser = DenoiserUNet(SHAPE, 0.5, channels=(8, 8), classes=2).requires_grad_(False)
    torch.nn.init.normal_(denoiser.net.conv_out.weight)
    x = torch.randn(2, *SHAPE)
    assert not torch.equal(denoiser(x, 0.8, 0.6, 0), denoiser(x, 0.8, 0.6, 1))
    tasks = [make_task(squares(), denoiser=denoiser, label=label) for label in (0, 1)]
    for label, task in enumerate(tasks):
        assert torch.equal(task.mdp.base.denoiser(x, 0.8, 0.6), denoiser(x, 0.8, 0.6, label))  # type: ignore[union-attr]
    assert denoiser.label is None


@pytest.mark.slow
def test_what_cannot_be_is_refused() -> None:
    plain, told = (DenoiserUNet(SHAPE, 0.5, channels=(8, 8), classes=classes) for classes in (None, 2))
    x = torch.zeros(1, *SHAPE)
    for denoiser, label in ((plain, 1), (told, None)):
        with pytest.raises(ValueError, match="label must be a class if and only if there are any"):
            denoiser(x, 0.8, 0.6, label)
    with pytest.raises(ValueError, match="classes must be >= 1"):
        DenoiserUNet(SHAPE, 0.5, channels=(8, 8), classes=0)
    with pytest.raises(ValueError, match="classes must be None with a config"):
        DenoiserUNet(SHAPE, 0.5, config={"sample_size": 8}, classes=2)
    with pytest.raises(ValueError, match="told no class, got 1"):
        make_task(squares(), denoiser=plain, label=1)
    with pytest.raises(ValueError, match="label must be one of 2 classes, 0 to 1, got 5"):
        told(x, 0.8, 0.6, 5)
    with pytest.raises(ValueError, match="label must be a class of the images with a conditional pretraining"):
        make_task(squares(), pretraining=TINY | {"conditional": True})
    with pytest.raises(ValueError, match=r"denoiser is for images \(3, 8, 8\), and target 'digits 1' has \(1, 8, 8\)"):
        make_task("digits", denoiser=told, label=1)
    negative = ImageSet(squares().train_bytes, squares().test_bytes, train_labels=-torch.arange(48))
    with pytest.raises(ValueError, match="labels must be classes from 0 on"):
        pretrained_denoiser(negative, PretrainingConfig(**TINY, conditional=True))
    with pytest.raises(TargetError, match=r"label must be a class .* got 2, of which .* 2 classes, has 0 and 0"):
        make_task(squares(), label=2, pretraining=TINY)
    with pytest.raises(ValueError, match="label must be >= 0"):
        make_task(squares(), label=-1, pretraining=TINY)
    with pytest.raises(TypeError, match="label must be an integer"):
        make_task(squares(), label="left", pretraining=TINY)
    with pytest.raises(ValueError, match="label must be None for target '8gaussians'"):
        make_task("8gaussians", label=1)
    unlabelled = ImageSet(squares().train_bytes, squares().test_bytes)
    with pytest.raises(TargetError, match="has no labels"):
        make_task(unlabelled, label=1)
    with pytest.raises(ValueError, match="which has no labels"):
        pretrained_denoiser(unlabelled, PretrainingConfig(**TINY, conditional=True))
    with pytest.raises(ValueError, match="energy 'fixed' is that of all classes"):
        make_task("digits", label=1, energy="fixed", pretraining=TINY)


def test_the_digits_have_labels() -> None:
    digits = make_target("digits")
    assert isinstance(digits, ImageSet) and digits.classes == 10
    x, labels = digits.labelled_data(7, torch.Generator().manual_seed(0))
    assert torch.equal(x, digits.data(7, torch.Generator().manual_seed(0))) and labels.shape == (7,)
    threes = digits.of_class(3)
    assert threes.classes == 4 and bool((threes.train_labels == 3).all()) and threes.features == "digits"


def test_keys_contain_everything() -> None:
    """What caches, checkpoints and fixed energies go by also says that there are no classes."""
    assert "conditional=False" in repr(PretrainingConfig(network="unet"))
    assert "conditional=True" in repr(PretrainingConfig(network="unet", conditional=True))
    task = make_task("8gaussians")
    assert task.fingerprint().keys() == TaskConfig.__dataclass_fields__.keys() - {"pretraining"}, "nothing is trained"
    learned = make_task("8gaussians-data", pretraining={"iterations": 2, "batch_size": 8, "width": 8})
    assert "iterations=2" in learned.fingerprint()["pretraining"]
    assert task.fingerprint()["label"] == "None" and "label=None" in repr(task.config)


@pytest.mark.slow
def test_other_labels_are_another_denoiser() -> None:
    """Images, name and settings are the same; what the cache has for the one set must not be the other's."""
    one, config = squares(), PretrainingConfig(**TINY, conditional=True)
    swapped = ImageSet(
        one.train_bytes, one.test_bytes, train_labels=1 - torch.arange(48) % 2, test_labels=1 - torch.arange(16) % 2,
        name=one.name,
    )  # fmt: skip
    finer = ImageSet(one.train_bytes, one.test_bytes, train_labels=torch.arange(48) % 4, name=one.name)
    assert one.digest() == swapped.digest() == finer.digest()
    first, second, third = (pretrained_denoiser(target, config) for target in (one, swapped, finer))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert isinstance(third, DenoiserUNet) and third.classes == 4


@pytest.mark.slow
def test_a_label_is_one_label_however_it_is_given(tmp_path: Path) -> None:
    inner = {"n_trajectories": 8, "policy_steps": 1, "value.width": 16}
    target, small = squares(), {"agent_settings": inner, "energy": {"width": 16}}
    task = make_task(target, label=np.int64(1), pretraining=TINY, horizon=2)
    told = make_task(target, label=1, pretraining=TINY | {"conditional": True}, horizon=2)
    assert task.fingerprint() == told.fingerprint() and task.config.label == 1 and type(task.config.label) is int
    game = DxMI(task, seed=0, **small)
    loaded = DxMI.load(game.save(tmp_path / "game.safetensors"), task=told)
    x = torch.randn(5, *SHAPE)
    before = task.mdp.base.denoiser(x, 0.8, 0.6)  # type: ignore[union-attr]
    set_execution(loaded, rows_at_a_time=2)
    denoiser = loaded.agent.policy.base.denoiser  # type: ignore[attr-defined, union-attr]
    for label in (1, np.int64(1), torch.ones(5, dtype=torch.long)):
        torch.testing.assert_close(denoiser(x, 0.8, 0.6, label=label), before)
