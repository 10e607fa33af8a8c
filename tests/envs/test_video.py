"""Gymnasium's RecordVideo writes films of episodes."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from dxmi_rl.envs import ENV_ID

moviepy = pytest.importorskip("moviepy")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["8gaussians", "digits-stroke"])
def test_record_video(task: str, tmp_path: Path) -> None:
    env = gym.make(ENV_ID, task=task, render_mode="rgb_array")
    env = gym.wrappers.RecordVideo(env, str(tmp_path), episode_trigger=lambda episode: True)
    env.reset(seed=0)
    over, steps = False, 0
    while not over:
        _, _, terminated, truncated, _ = env.step(0 * env.action_space.sample())
        over, steps = terminated or truncated, steps + 1
    picture = env.render()
    env.close()
    (file,) = tmp_path.glob("*.mp4")
    with moviepy.VideoFileClip(str(file)) as clip:
        assert clip.n_frames == steps + 1 and tuple(clip.size) == np.shape(picture)[1::-1]
        frames = list(clip.iter_frames())
    assert np.ptp(frames[0]) > 100 and not np.array_equal(frames[0], frames[-1]), "states are drawn, and move"
