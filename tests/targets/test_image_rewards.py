"""Rewards of images: what each one sees, and the images that it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dxmi_rl import make_target
from dxmi_rl.targets import REWARDS, Target, make_reward
from dxmi_rl.utils.registry import UnknownNameError

COLOUR = Target((3, 16, 16), scale=1.0, plot_range=(-1.0, 1.0))


def test_a_class_is_rewarded_on_its_own_images() -> None:
    digits: Any = make_target("digits")
    for label in (0, 7):
        reward = make_reward("digit-class", digits, label=label)
        found = reward(digits.test_images)
        own = digits.test_labels == label
        assert float(found[own].exp().mean()) > 0.9 > 0.05 > float(found[~own].exp().mean())


@pytest.mark.parametrize("width", [1, 2, 4])
def test_strokes_have_their_width(width: int) -> None:
    grey = Target((1, 64, 64), scale=1.0, plot_range=(-1.0, 1.0))
    x = -torch.ones(2, 1, 64, 64)
    x[0, :, :, 10 : 10 + width] = 1.0
    x[1, :, 20 : 20 + width] = 1.0
    expected = 2 * width * 64 / (2 * 64 + 2 * width)
    assert torch.allclose(make_reward("stroke-width", grey)(x), torch.full((2,), expected), atol=1e-3)
    assert torch.allclose(make_reward("stroke-width", grey)(-torch.ones(1, 1, 64, 64)), torch.zeros(1))


def test_colours_are_compared_by_their_mean() -> None:
    x = torch.zeros(1, 3, 16, 16)
    x[:, 0], x[:, 1] = 1.0, -0.5
    reward = make_reward("mean-color", COLOUR, color=(1.0, -1.0, 0.0))
    assert float(reward(x)) == pytest.approx(-0.25, abs=1e-6)


def test_flat_images_compress_better() -> None:
    pytest.importorskip("PIL")
    reward = make_reward("compressibility", COLOUR)
    flat = torch.zeros(2, 3, 16, 16)
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert float(reward(flat).min()) > float(reward(noise).max()) and reward(flat).shape == (2,)
    grey = Target((1, 28, 28), scale=1.0, plot_range=(-1.0, 1.0))
    assert float(make_reward("compressibility", grey)(torch.zeros(1, 1, 28, 28))) < 0
    finer = make_reward("compressibility", COLOUR, quality=20)
    assert float(finer(noise).min()) > float(reward(noise).max())


def test_measurements_are_log_likelihoods() -> None:
    digits: Any = make_target("digits")
    image, x = digits.test_images[5], digits.test_images[6:8]
    half = make_reward("inpainting", digits, image=5, noise=0.4)
    likelihood = torch.distributions.Normal(image[:, :4], 0.4).log_prob(x[:, :, :4]).flatten(1).sum(1)
    assert torch.allclose(half(x)[0] - half(x)[1], likelihood[0] - likelihood[1], rtol=1e-4)
    assert float(half(image[None])) == 0.0
    changed = image[None].clone()
    changed[:, :, 4:] = 0.0  # what is not seen does not count
    assert float(half(changed)) == 0.0
    blocks = make_reward("super-resolution", digits, image=5, factor=4, noise=0.1)
    means = image.view(1, 2, 4, 2, 4).mean((2, 4))
    wanted = torch.distributions.Normal(means, 0.1).log_prob(x.view(2, 1, 2, 4, 2, 4).mean((3, 5))).flatten(1).sum(1)
    assert torch.allclose(blocks(x)[0] - blocks(x)[1], wanted[0] - wanted[1], rtol=1e-4)
    assert blocks.measured.shape == (1, 1, 2, 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "target", "options", "error", "text"),
    [
        ("digit-class", COLOUR, {"label": 3}, ValueError, "is of images 1 x 8 x 8"),
        ("inpainting", COLOUR, {}, ValueError, "a measurement is of a set of images"),
        ("inpainting", make_target("digits"), {"image": 360}, ValueError, r"image must lie in 0\.\.359"),
        ("inpainting", make_target("digits"), {"noise": 0.0}, ValueError, "noise must"),
        ("super-resolution", make_target("digits"), {"factor": 3}, ValueError, "factor must divide height and width"),
        ("stroke-width", COLOUR, {}, ValueError, "is of images 1 x any x any"),
        ("mean-color", make_target("digits"), {}, ValueError, "is of images 3 x any x any"),
        ("compressibility", make_target("8gaussians"), {}, ValueError, "is of images"),
        ("digit-class", make_target("digits"), {"label": 10}, ValueError, "label must lie in 0..9"),
        ("mean-color", COLOUR, {"color": (2.0, 0.0, 0.0)}, ValueError, "color must be three numbers"),
        ("compressibility", COLOUR, {"quality": 100}, ValueError, "quality must lie in 1..95"),
        ("compressibility", COLOUR, {"qualty": 50}, UnknownNameError, "Did you mean 'quality'"),
        ("stroke-widht", COLOUR, {}, UnknownNameError, "Did you mean 'stroke-width'"),
    ],
)
def test_what_is_refused(name: str, target: Target, options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_reward(name, target, **options)


def test_every_named_reward_is_tried_here() -> None:
    assert set(REWARDS) == {
        "digit-class", "stroke-width", "mean-color", "compressibility", "inpainting", "super-resolution",
    }  # fmt: skip
