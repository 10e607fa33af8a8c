"""DenoiseEnv: few-step denoising as a Gymnasium environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from dxmi_rl.envs.episodes import RENDER_MODES, Episodes, Observation, TaskLike
from dxmi_rl.mdp import DenoisingMDP, Energy
from dxmi_rl.tasks import Task

Action = NDArray[np.floating | np.integer]
NumpyObservation = NDArray[np.float32] | dict[str, NDArray[np.generic] | np.generic]


class DenoiseEnv(gym.Env[NumpyObservation, Action]):
    """Turn noise into a sample of a target in T steps.

    ## Description
    The state is (x_t, t), x_t in R^d or an image, t = 0..T. An action fixes the next state x_{t+1}; the transition is
    deterministic, the noise of diffusion is the noise of the policy. A policy that maximises rewards plus tau times
    its entropy samples (nearly) from exp(-E(x) / tau); at tau = 1, from the target. One call of ``step`` is one
    denoising step of one sample: use ``gym.make_vec`` to run thousands at once.

    ## Action Space
    ``Box(d,)``, float32; images are flattened (an array of the event's own shape is understood too).
    `coordinates="noise"`: x_{t+1} = mu_t(x_t) + sigma_t a, where mu_t and sigma_t are the base sampler's, so that an
    N(0, I) policy is the base sampler; the box is +-`action_bound`. `coordinates="next_state"`: a = x_{t+1}; the box
    is twice the target's plotting range. The box is a hint for algorithms that need one: actions beyond it are taken
    as they are, never clipped.

    ## Observation Space
    `observation="flat"`: ``Box(d + 1,)``, float32, [x_t, 1 - t/T], x unbounded, the last entry in [0, 1].
    `observation="dict"`: {"x": Box(event_shape), "t": Discrete(T + 1)}; policies act on t = 0..T-1, and the final
    observation has t = T.

    With several horizons, `horizon=(1, 2, 4)`, every episode draws one of them (many episodes at once the same one) and
    the spaces are those of the largest. The flat observation is then ``Box(d + 2,)``, [x_t, 1 - t/T, 1 - (t+1)/T], the
    last entry 0 at t = T, and the dictionary has "horizon": T, too. ``env.unwrapped.mdp`` is that of the episode.
    With several classes, `label=(0, 1, 2)`, an episode draws one of them in the same way: the flat observation ends
    with it, one-hot, and the dictionary has "label".

    ## Rewards
    r_t = tau log qb(x_t | x_{t+1}) in nats for the backward kernel qb; the last step adds -E(x_T).

    ## Starting State
    x_0 ~ N(0, s_0^2 I), s_0 of the task's noise schedule.

    ## Episode End
    Terminates after exactly T steps; never truncates.

    ## Information
    Empty after ``reset`` and after every step but the last, which has `energy`, E(x_T) in nats, a float.

    ## Arguments
    - `task`: a task's or target's name, a Target, a built Task or DenoisingMDP; or your own energy, a function or
      module ``[batch, dim] -> [batch]``, with its `dim`; or your own data, a tensor ``[rows, *event_shape]`` (with an
      `energy`). `target` is another word for `task`.
    - `coordinates`, `observation`, `action_bound`: see above.
    - `energy`: reward model, a module or function ``[batch, *event_shape] -> [batch]``, or a registered name such as
      "fixed". Data-only targets need it. ``env.unwrapped.mdp.set_energy(module)`` swaps it at any time, and a module
      that is trained in place changes the rewards at once.
    - `fit_backward`: call the backward kernel's ``fit`` on every finished episode; a number: that many times.
    - `render_mode`: None or "rgb_array" (vectors of two coordinates or more, in pairs, and images). Gymnasium's
      ``RecordVideo`` also needs MoviePy: the extra `video`.
    - `device`: where torch computes; "cpu" by default. Observations of this environment are numpy arrays in any case.
    - any field of ``TaskConfig``: `horizon`, `tau`, `backward`, `base`, `schedule`, ...

    Construction raises UnknownNameError (a ValueError) for unknown names and arguments, with the near names;
    ValueError or TypeError for values that are not allowed; EnergyError (a ValueError) when there is no energy.
    ``step`` raises TypeError or ValueError for an action of another type or shape, NonFiniteError for an action or
    running reward and EnergyError for an energy that is NaN or infinite, ResetNeeded when no episode is running.

    ## Version History
    - v0: first version.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (as gymnasium declares it)
        "render_modes": RENDER_MODES,
        "render_fps": 4,
    }

    def __init__(
        self,
        task: TaskLike | None = None,
        *,
        target: TaskLike | None = None,
        dim: int | tuple[int, ...] | None = None,
        coordinates: str = "noise",
        observation: str = "flat",
        action_bound: float = 25.0,
        energy: Energy | str | None = None,
        fit_backward: bool | int = False,
        render_mode: str | None = None,
        device: str | torch.device | None = None,
        **task_changes: Any,
    ) -> None:
        for name in ("num_envs", "to_numpy"):
            if name in task_changes:
                raise ValueError(
                    f"{name} belongs to many episodes at once and this environment plays one: "
                    f"gym.make_vec('DxMIDenoise-v0', {name}={task_changes[name]!r})."
                )
        self._episodes = Episodes(
            1,
            task,
            target=target,
            dim=dim,
            coordinates=coordinates,
            observation=observation,
            action_bound=action_bound,
            energy=energy,
            fit_backward=fit_backward,
            render_mode=render_mode,
            device=device,
            **task_changes,
        )
        self.metadata = self.metadata | self._episodes.metadata
        self.render_mode = render_mode
        self.observation_space = self._episodes.observation_space
        self.action_space = self._episodes.action_space

    @property
    def coordinates(self) -> str:
        """The action coordinates."""
        return self._episodes.coordinates

    @property
    def task(self) -> Task:
        """The task: target, configuration, MDP."""
        return self._episodes.task

    @property
    def mdp(self) -> DenoisingMDP:
        """The MDP, held by reference: ``mdp.set_energy(module)`` changes the rewards from the next step on."""
        return self._episodes.mdp

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NumpyObservation, dict[str, Any]]:
        """Start an episode: (observation, {}). ``options`` are not used; raises TypeError unless a dict or None."""
        if not (options is None or isinstance(options, dict)):
            raise TypeError(f"options must be a dict or None, got {options!r}.")
        super().reset(seed=seed)
        self._episodes.reset(self.np_random)
        return _first_row(self._episodes.observe()), {}

    def step(self, action: Action) -> tuple[NumpyObservation, float, bool, bool, dict[str, Any]]:
        """One denoising step: (observation, reward, terminated, False, info)."""
        episodes = self._episodes
        reward = episodes.step(episodes.parse_action(action, ()))
        info = {"energy": float(episodes.energy)} if episodes.done else {}
        return _first_row(episodes.observe()), float(reward), episodes.done, False, info

    def render(self) -> NDArray[np.uint8] | None:
        """The sample on the energy's contours, or the image: uint8 ``[400, 400, 3]``; None without a render mode."""
        if self.render_mode is None:
            return None
        return self._episodes.render(self._episodes.x, self._episodes.t)

    def close(self) -> None:
        """Forget the state."""
        self._episodes.clear()


def _first_row(observation: Observation) -> NumpyObservation:
    if isinstance(observation, dict):
        return {key: value[0].cpu().numpy()[()] for key, value in observation.items()}
    return observation[0].cpu().numpy()
