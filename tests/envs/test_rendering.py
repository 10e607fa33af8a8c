"""Pictures of samples."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from dxmi_rl.envs import DenoiseEnv, DenoiseVectorEnv, draw_samples, make_sb3_env, render_samples, rendering
from dxmi_rl.targets import GaussianMixture, Target, make_target
from dxmi_rl.tasks import TaskConfig, make_task


def colours(frame: np.ndarray, colour: tuple[int, int, int], tolerance: int = 40) -> int:
    """Number of pixels near a colour."""
    return int((np.abs(frame.astype(int) - colour).max(-1) < tolerance).sum())


VERMILION = (0xD5, 0x5E, 0x00)


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 257, 400])
def test_points_lie_where_the_samples_are(size: int) -> None:
    target = make_target("8gaussians")
    x = torch.tensor([[2.0, 2.0]]).expand(5, 2)
    frame = render_samples(target, x, size=size)
    assert frame.shape == (size, size, 3) and frame.dtype == np.uint8
    rows, columns = np.nonzero(np.abs(frame.astype(int) - VERMILION).max(-1) < 40)
    assert rows.mean() < size / 2 < columns.mean()  # upper right
    assert not np.array_equal(frame, render_samples(target, -x, size=size))


@pytest.mark.slow
def test_contours_follow_the_energy_of_the_mdp() -> None:
    task = make_task("8gaussians")
    x = torch.full((1, 2), 100.0)  # outside the picture
    own = render_samples(task.target, x, task.mdp, t=5)
    assert np.array_equal(own[40:], render_samples(task.target, x)[40:])  # all but the title
    task.mdp.set_energy(lambda x: x.square().sum(1))
    assert not np.array_equal(own[40:], render_samples(task.target, x, task.mdp, t=5)[40:])
    task.mdp.set_energy(lambda x: torch.where(x[:, 0] > 0, torch.inf, x[:, 1]))
    render_samples(task.target, x, task.mdp)
    task.mdp.set_energy(lambda x: x[:, 0] * 0)  # constant: nothing to contour
    assert colours(render_samples(task.target, x, task.mdp), VERMILION) == 0


@pytest.mark.parametrize(("shape", "count"), [((1, 8, 8), 1), ((1, 8, 8), 30), ((3, 5, 7), 70)])
def test_images_become_a_grid(shape: tuple[int, ...], count: int) -> None:
    target = Target(shape, scale=1.0, plot_range=(-1.0, 1.0))
    axes = Figure().add_subplot()
    draw_samples(axes, target, torch.zeros(count, *shape))
    (image,) = axes.get_images()
    columns = int(np.ceil(np.sqrt(min(count, 64))))
    assert image.get_array().shape[1] == columns * (shape[2] + 1) - 1
    assert render_samples(target, torch.randn(count, *shape), t=3).shape == (400, 400, 3)


def test_axes_are_labelled_and_square() -> None:
    axes = Figure().add_subplot()
    draw_samples(axes, make_target("gmm25"), torch.zeros(10, 2))
    assert axes.get_xlabel() and axes.get_ylabel() and axes.get_aspect() == 1.0


def test_any_two_coordinates_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    target, x = Target((3,), scale=1.0, plot_range=(-1.0, 1.0)), torch.randn(10, 3)
    axes = Figure().add_subplot()
    draw_samples(axes, target, x, coordinates=(2, 0))
    assert np.array_equal(axes.lines[0].get_xydata(), x[:, [2, 0]].numpy()) and "3" in axes.get_xlabel()
    for bad in ((0, 3), (1, 1), (-1, 0)):
        with pytest.raises(ValueError, match="coordinates must be two from 0 to 2, got"):
            draw_samples(axes, target, x, coordinates=bad)
    drawn: list[tuple[int, int]] = []
    monkeypatch.setattr(rendering, "draw_samples", lambda *_, coordinates: drawn.append(coordinates))
    for size in (2, 3, 4, 5, 32):
        render_samples(Target((size,), scale=1.0, plot_range=(-1.0, 1.0)), torch.randn(2, size))
    pairs = [(0, 1), (0, 1), (1, 2), (0, 1), (2, 3), (0, 1), (2, 3), (3, 4), (0, 1), (2, 3), (4, 5), (6, 7)]
    assert drawn == pairs


def test_pyplot_is_left_alone() -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    render_samples(make_target("8gaussians"), torch.zeros(3, 2))
    assert plt.get_fignums() == before


@pytest.mark.slow
def test_environments_render() -> None:
    env = gym.make("DxMIDenoise-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (400, 400, 3)
    venv = DenoiseVectorEnv(num_envs=3, render_mode="rgb_array", horizon=1)
    venv.reset(seed=0)
    start = venv.render()
    assert isinstance(start, tuple) and len(start) == 3
    venv.step(torch.zeros(3, 2))
    assert not np.array_equal(start[0], venv.render()[0])  # x_T, not the new x_0
    venv.reset(seed=0)
    assert np.array_equal(start[0], venv.render()[0])
    assert DenoiseEnv().render() is None and DenoiseVectorEnv().render() is None


def test_sb3_renders_one_picture_of_the_batch() -> None:
    pytest.importorskip("stable_baselines3")
    env = make_sb3_env(num_envs=3, render_mode="rgb_array")
    env.reset()
    assert env.render_mode == "rgb_array" and env.render().shape == (400, 400, 3)


@pytest.mark.parametrize("make", [DenoiseEnv, DenoiseVectorEnv])
def test_one_coordinate_cannot_be_drawn(make: Any) -> None:
    target = GaussianMixture(torch.zeros(1, 1), 1.0, plot_range=(-2.0, 2.0))
    with pytest.raises(ValueError, match="render_mode=None"):
        make(target, render_mode="rgb_array")
    with pytest.raises(ValueError, match="two coordinates or more"):
        render_samples(target, torch.zeros(1, 1))
    assert make(target).metadata["render_modes"] == []
    assert isinstance(make(target).task.config, TaskConfig)


@pytest.mark.parametrize("dim", [3, 16])
def test_more_coordinates_are_drawn_in_pairs(dim: int) -> None:
    """Every pair of the first eight coordinates that the picture has shows its own points."""
    target = GaussianMixture(torch.zeros(1, dim), 1.0, plot_range=(-4.0, 4.0))
    x = torch.zeros(50, dim)
    before = render_samples(target, x)
    assert before.shape == (400, 400, 3)
    for pair in range(min(4, dim // 2)):
        moved = x.clone()
        moved[:, 2 * pair] = 3.0
        assert (render_samples(target, moved) != before).any()
    assert "rgb_array" in DenoiseEnv(target).metadata["render_modes"]
