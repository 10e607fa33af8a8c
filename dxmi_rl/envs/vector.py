"""DenoiseVectorEnv: thousands of DenoiseEnv in one batch of tensors."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from dxmi_rl.envs.episodes import RENDER_MODES, Episodes, Observation, TaskLike
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.tasks import Task

Array = Tensor | NDArray[np.generic]
Arrays = Array | dict[str, Tensor] | dict[str, NDArray[np.generic]]
"""Observations: of one array, or of two ("x" and "t")."""


class DenoiseVectorEnv(gym.vector.VectorEnv[Arrays, Array, Array]):
    """``num_envs`` copies of DenoiseEnv that step together, as tensors on one device; what ``gym.make_vec`` builds.

    All episodes have length T and start together, so they also end together: on the step that ends them the returned
    observations are already those of new episodes (``AutoresetMode.SAME_STEP``), and

        info = {"final_obs": x_T's observations, "_final_obs": mask,
                "final_info": {"energy": E(x_T), "_energy": mask, "_episode": mask,
                               "episode": {"r": returns, "l": lengths, "t": seconds, "_r", "_l", "_t": masks}}}

    which is what gymnasium's SyncVectorEnv gives over RecordEpisodeStatistics.

    Args:
        task: as in DenoiseEnv.
        num_envs: number of samples made at once.
        to_numpy: numpy arrays out instead of tensors; needed by gymnasium's wrappers that compute in numpy.
        render_mode: None or "rgb_array": one picture of all samples.
        arguments: all other arguments of DenoiseEnv: ``target``, ``dim``, ``coordinates``, ``observation``,
            ``action_bound``, ``energy``, ``fit_backward`` (on whole batches of episodes), ``device`` and the fields of
            TaskConfig.

    Actions ``[num_envs, d]`` may be numpy arrays or tensors on the same device. Raises what DenoiseEnv raises; on
    CUDA non-finite numbers are found at the end of the episode, so that no step waits for the device.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (as gymnasium declares it)
        "render_modes": RENDER_MODES,
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        task: TaskLike | None = None,
        *,
        num_envs: int = 1,
        to_numpy: bool = False,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        if not isinstance(to_numpy, bool):
            raise TypeError(f"to_numpy must be True or False, got {to_numpy!r}.")
        self._episodes = Episodes(num_envs, task, render_mode=render_mode, **arguments)
        self.metadata = self.metadata | self._episodes.metadata
        self.autoreset_mode = AutoresetMode.SAME_STEP
        self.num_envs, self.to_numpy, self.render_mode = self._episodes.count, to_numpy, render_mode
        self.single_observation_space = self._episodes.observation_space
        self.single_action_space = self._episodes.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._finished: Tensor | None = None
        self._length = 0
        self._started = time.perf_counter()

    @property
    def task(self) -> Task:
        """The task: target, configuration, MDP."""
        return self._episodes.task

    @property
    def coordinates(self) -> str:
        """The action coordinates."""
        return self._episodes.coordinates

    @property
    def mdp(self) -> DenoisingMDP:
        """The MDP, held by reference: ``mdp.set_energy(module)`` changes the rewards from the next step on."""
        return self._episodes.mdp

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        """Start all episodes: (observations, {}); one seed for the whole batch.

        Raises ValueError for ``options["reset_mask"]`` unless it resets everything: the episodes run in lockstep.
        """
        if not (options is None or isinstance(options, dict)):
            raise TypeError(f"options must be a dict or None, got {options!r}.")
        mask = (options or {}).get("reset_mask")
        if mask is not None and not (np.shape(mask) == (self.num_envs,) and all(mask)):
            raise ValueError(
                f"options['reset_mask'] must be all True, [{self.num_envs}]: these episodes start and end together."
            )
        super().reset(seed=seed)
        self._finished, self.closed = None, False
        self._episodes.reset(self.np_random)
        self._started = time.perf_counter()
        return self._observed(self._episodes.observe()), {}

    def step(self, actions: Array) -> tuple[Arrays, Array, Array, Array, dict[str, Any]]:
        """One denoising step of all: (observations, rewards, terminations, truncations, info), ``[num_envs, ...]``."""
        episodes = self._episodes
        reward = episodes.step(episodes.parse_action(actions, (self.num_envs,)))
        observation = episodes.observe()
        terminated = self._full(episodes.done)
        info: dict[str, Any] = {}
        self._finished = None
        if episodes.done:
            info = self._final_info(observation)
            self._finished, self._length = episodes.x, episodes.t
            episodes.start()
            self._started = time.perf_counter()
            observation = episodes.observe()
        ends = self._out(terminated), self._out(self._full(False))
        return self._observed(observation), self._out(reward), *ends, self._noted(info)

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """One picture of all samples, uint8 ``[400, 400, 3]``, repeated ``num_envs`` times as gymnasium's tools expect.

        Right after the episodes have ended it shows what they made, x_T, not the new x_0.
        """
        if self.render_mode is None:
            return None
        if self._finished is not None:
            frame = self._episodes.render(self._finished, self._length)
        else:
            frame = self._episodes.render(self._episodes.x, self._episodes.t)
        return (frame,) * self.num_envs

    def close_extras(self, **kwargs: object) -> None:
        """Forget the states."""
        self._episodes.clear()
        self._finished = None

    def _full(self, value: float, dtype: torch.dtype = torch.bool) -> Tensor:
        return torch.full((self.num_envs,), value, dtype=dtype, device=self.mdp.device)

    def _final_info(self, observation: Observation) -> dict[str, Any]:
        mask = self._full(True)
        episode = {
            "r": self._episodes.returns,
            "l": self._full(self._episodes.t, torch.int64),
            "t": self._full(time.perf_counter() - self._started, torch.float32),
            **{"_r": mask, "_l": mask, "_t": mask},
        }
        final = {"energy": self._episodes.energy, "_energy": mask, "episode": episode, "_episode": mask}
        return {"final_obs": observation, "_final_obs": mask, "final_info": final, "_final_info": mask}

    def _out(self, value: Tensor) -> Array:
        """A numpy array, when ``to_numpy``."""
        return value.cpu().numpy() if self.to_numpy else value

    def _observed(self, observation: Observation) -> Arrays:
        if isinstance(observation, Tensor) or not self.to_numpy:
            return self._out(observation) if isinstance(observation, Tensor) else observation
        return {key: value.cpu().numpy() for key, value in observation.items()}

    def _noted(self, info: dict[str, Any]) -> dict[str, Any]:
        """Infos, which are dicts in dicts, with arrays as ``_out`` gives them."""
        return {key: self._noted(item) if isinstance(item, dict) else self._out(item) for key, item in info.items()}
