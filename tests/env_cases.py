"""What the tests of the environments share: tasks made quick, one episode, the base sampler's distribution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dxmi_rl.checks import MissingExtraError
from dxmi_rl.diffusion import sample_base
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.tasks import TASKS, list_tasks, make_task

ID = "DxMIDenoise-v0"


class Bowl(nn.Module):
    """A fixed energy for tasks without one, with a weight that can be trained in place."""

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.flatten(1).square().sum(1)


@pytest.fixture(scope="module", autouse=True)
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DXMI_RL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def arguments(name: str) -> dict[str, Any]:
    """A task's arguments with what it lacks: an energy, a quickly trained denoiser."""
    config, extra = TASKS[name], {}
    if config.denoiser == "learned" and config.base is not None:
        extra["pretraining"] = {"iterations": 20, "batch_size": 32, "width": 16}
    if config.reward is None:
        extra["energy"] = Bowl()
    return {"task": name, **extra}


@pytest.fixture(name="task", params=list_tasks())
def every_task(request: pytest.FixtureRequest) -> dict[str, Any]:
    kwargs = arguments(request.param)
    try:
        make_task(kwargs["task"], **{key: value for key, value in kwargs.items() if key != "task"})
    except MissingExtraError as error:
        pytest.skip(str(error))
    return kwargs


def play(env: Any, actions: np.ndarray, seed: int) -> tuple[list[Any], list[Any]]:
    """Observations and rewards of one episode of a scalar environment."""
    observation, _ = env.reset(seed=seed)
    observations, rewards = [observation], []
    for action in actions:
        observation, reward, *_ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    return observations, rewards


def is_base_sampler(final: np.ndarray, mdp: DenoisingMDP) -> bool:
    """Are samples like the base sampler's? Kolmogorov-Smirnov tests of 7 projections and of the energy against fresh
    ones; wrong once in 10,000 times (asymptotic KS law, Bonferroni over the 8 tests)."""
    from scipy.stats import ks_2samp

    base = sample_base(mdp.base, len(final), mdp.event_shape, torch.Generator().manual_seed(1))
    directions = np.random.default_rng(0).standard_normal((7, final.shape[1]))
    pairs = [(final @ d, base.numpy() @ d) for d in directions]
    pairs.append((mdp.energy(torch.from_numpy(final)).numpy(), mdp.energy(base).numpy()))
    return min(ks_2samp(*pair, method="asymp").pvalue for pair in pairs) > 1e-4 / len(pairs)
