"""SB3VecEnv: a DenoiseVectorEnv as Stable-Baselines3's VecEnv."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, cast, overload

import numpy as np
from gymnasium.error import NoAsyncCallError

from dxmi_rl.envs.episodes import DEFAULT_TASK, TaskLike
from dxmi_rl.envs.vector import DenoiseVectorEnv
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.tasks import Task
from dxmi_rl.utils.checks import check_integer, require

require("stable_baselines3", "sb3")
from stable_baselines3.common.monitor import Monitor  # noqa: E402 (an optional package)
from stable_baselines3.common.vec_env.base_vec_env import (  # noqa: E402
    VecEnv,
    VecEnvIndices,
    VecEnvObs,
    VecEnvStepReturn,
)


class SB3VecEnv(VecEnv):
    """What Stable-Baselines3's algorithms take: numpy in and out, one info dict per environment.

    Built by ``make_sb3_env``. The sub-environments are rows of one batch, not objects: ``get_attr``, ``set_attr`` and
    ``env_method`` act once on the vector environment, whatever the indices, and repeat its answer. Use gamma = 1,
    gae_lambda = 1 and n_steps a multiple of T. Infos carry Monitor's "episode" entries, so ``evaluate_policy`` needs
    no further wrapper (but pass ``deterministic=False``: a policy's mean is not a sampler).

    Args:
        venv: a DenoiseVectorEnv with ``to_numpy=True``.

    Raises ValueError when the vector environment gives tensors.
    """

    def __init__(self, venv: DenoiseVectorEnv) -> None:
        if not venv.to_numpy:
            raise ValueError("Stable-Baselines3 needs numpy arrays: build the DenoiseVectorEnv with to_numpy=True.")
        self.venv = venv  # before super().__init__, which asks for its render_mode
        super().__init__(venv.num_envs, venv.single_observation_space, venv.single_action_space)
        self._actions: np.ndarray | None = None
        self._began = time.perf_counter()
        # Building a list of dicts is most of the cost of a step: the empty one is built once.
        self._no_infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]

    @property
    def mdp(self) -> DenoisingMDP:
        """The MDP, held by reference: ``mdp.set_energy(module)`` changes the rewards from the next step on."""
        return self.venv.mdp

    @property
    def task(self) -> Task:
        """The task: target, configuration, MDP."""
        return self.venv.task

    @property
    def coordinates(self) -> str:
        """The action coordinates."""
        return self.venv.coordinates

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next reset: seed, seed + 1, ... Raises TypeError or ValueError unless it is an integer >= 0."""
        return super().seed(None if seed is None else check_integer("seed", seed, minimum=0))

    def reset(self) -> VecEnvObs:
        """Start all episodes: the observations. The first of ``seed``'s numbers seeds the whole batch."""
        seed, options = self._seeds[0], self._options[0]
        # Before they are used: bad ones must not stay for all resets to come.
        self._reset_seeds()
        self._reset_options()
        self._actions = None
        observation, _ = self.venv.reset(seed=seed, options=options)
        return cast(VecEnvObs, observation)  # arrays, as the vector environment has to_numpy

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions, ``[num_envs, d]``; ``step_wait`` does the work."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """(observations, rewards, dones, infos). Raises NoAsyncCallError unless ``step_async`` was called before."""
        actions, self._actions = self._actions, None
        if actions is None:
            raise NoAsyncCallError("step_wait() has no actions: call step_async(actions) before each of it.", "step")
        observation, reward, terminated, _, info = self.venv.step(actions)
        if not info:
            return cast(VecEnvStepReturn, (observation, reward, terminated, self._no_infos))
        seconds = round(time.perf_counter() - self._began, 6)
        return cast(VecEnvStepReturn, (observation, reward, terminated, FinalInfos(info, seconds)))

    def close(self) -> None:
        """Close the vector environment."""
        self.venv.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One picture of all samples, in a list."""
        frames = self.venv.render()
        return [None] if frames is None else list(frames[:1])

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the vector environment, once per index."""
        return [getattr(self.venv, attr_name)] * self._count(indices)

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the vector environment, for all."""
        setattr(self.venv, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: object, indices: VecEnvIndices = None, **method_kwargs: object
    ) -> list[Any]:
        """Call a method of the vector environment once; its answer, once per index."""
        return [getattr(self.venv, method_name)(*method_args, **method_kwargs)] * self._count(indices)

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """True for Monitor only, whose "episode" infos are given."""
        return [wrapper_class is Monitor] * self._count(indices)

    def _count(self, indices: VecEnvIndices) -> int:
        return len(list(self._get_indices(indices)))


class FinalInfos(Sequence[dict[str, Any]]):
    """The info dicts of episodes that ended, one per environment, made when they are first looked at.

    Thousands of dicts cost more than the denoising step, and not everybody reads them.
    """

    def __init__(self, info: dict[str, Any], seconds: float) -> None:
        self._info, self._seconds = info, seconds
        self._infos: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._info["_final_obs"])

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self._made()[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._made())

    def _made(self) -> list[dict[str, Any]]:
        if self._infos:
            return self._infos
        final, seconds = self._info["final_obs"], self._seconds
        episodes, energies = (self._info["final_info"][key] for key in ("episode", "energy"))
        rows = (
            [dict(zip(final, row, strict=True)) for row in zip(*final.values(), strict=True)]
            if isinstance(final, dict)
            else final
        )
        self._infos = [
            {
                "terminal_observation": row,
                "episode": {"r": total, "l": length, "t": seconds},
                "TimeLimit.truncated": False,
                "energy": energy,
            }
            for row, total, length, energy in zip(
                rows, episodes["r"].tolist(), episodes["l"].tolist(), energies.tolist(), strict=True
            )
        ]
        return self._infos


def make_sb3_env(task: TaskLike = DEFAULT_TASK, num_envs: int = 64, **kwargs: Any) -> SB3VecEnv:
    """A task as Stable-Baselines3's VecEnv, for instance for ``PPO("MlpPolicy", env, gamma=1.0)``.

    Args:
        task: as in DenoiseEnv.
        num_envs: number of samples made at once.
        kwargs: all other arguments of DenoiseEnv.

    Raises what DenoiseEnv raises, TypeError for ``n_envs``, and MissingExtraError when stable-baselines3 is absent.
    """
    if "n_envs" in kwargs:
        raise TypeError(f"n_envs is called num_envs, as in Gymnasium: pass num_envs={kwargs['n_envs']!r}.")
    return SB3VecEnv(DenoiseVectorEnv(task, num_envs=num_envs, to_numpy=True, **kwargs))
