"""Episodes: n episodes of one DenoisingMDP in lockstep, all that the scalar and the vector environment share."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from torch import Tensor
from torch.nn.functional import pad

from dxmi_rl.envs.observations import told_of
from dxmi_rl.envs.rendering import check_renderable, is_renderable, render_samples
from dxmi_rl.mdp import DenoisingMDP, Energy, EnergyError
from dxmi_rl.rollout import Trajectory
from dxmi_rl.targets import Target
from dxmi_rl.tasks import ENERGIES, TASKS, TargetLike, Task, TaskConfig, make_task
from dxmi_rl.tasks.config import OTHER_WORDS
from dxmi_rl.utils.checks import NonFiniteError, all_finite, check_integer, check_real
from dxmi_rl.utils.registry import UnknownNameError

DEFAULT_TASK = "8gaussians"
OBSERVATIONS = ["flat", "dict"]
RENDER_MODES = ["rgb_array"]

TaskLike = TargetLike | Task | DenoisingMDP
Observation = Tensor | dict[str, Tensor]


class Episodes:
    """``count`` episodes of one MDP at the same step t; the arguments are those of ``DenoiseEnv``.

    On the CPU a step that fails changes nothing. Elsewhere non-finite numbers are noted on the device and raised at
    the end of the episode, so that no step waits for it.

    Attributes:
        task: the built task; ``task.mdp`` is held by reference, so ``set_energy`` and a live energy work.
        observation_space, action_space: those of one episode.
        metadata: render modes that this target allows.
        t: current step, 0..T; ``done`` at T.
        returns: rewards so far, ``[count]``.
        energy: E(x_T), ``[count]``, once ``done``.
    """

    def __init__(
        self,
        count: int,
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
        self.count = check_integer("num_envs", count)
        if not isinstance(observation, str) or observation not in OBSERVATIONS:
            raise UnknownNameError("observation", observation, OBSERVATIONS)
        if not (render_mode is None or (isinstance(render_mode, str) and render_mode in RENDER_MODES)):
            raise UnknownNameError("render mode", render_mode, ["None", *RENDER_MODES])
        if not 1e-30 <= check_real("action_bound", action_bound, strict=True) <= 1e30:
            raise ValueError(f"action_bound must lie in [1e-30, 1e30], within float32, got {action_bound!r}.")
        if not isinstance(fit_backward, bool):
            check_integer("fit_backward", fit_backward, minimum=0)
        self.task = build_task(task, target, dim, energy, device, task_changes)
        self.mdp = self.task.mdp
        """That of the present episodes: with several horizons or classes, of the one that they drew."""
        self._mdps = [case.mdp for case in self.task.cases]
        self._place = 0
        self.mdp.check_coordinates(coordinates)
        if render_mode is not None:
            check_renderable(self.task.target)
        self.metadata = {"render_modes": RENDER_MODES if is_renderable(self.task.target) else []}
        self.coordinates, self.layout, self.fit_backward = coordinates, observation, fit_backward
        self.observation_space = self._observation_space()
        self.action_space = self._action_space(float(action_bound))
        self.t = 0
        self._x: Tensor | None = None
        self._visited: list[Tensor] = []
        self._generator = torch.Generator(self.mdp.device)
        self._case_generator = torch.Generator()  # on the CPU: the device is not waited for
        self._finite = torch.ones(len(_FAILURES), dtype=torch.bool, device=self.mdp.device)

    # -- spaces ------------------------------------------------------------------------------------------------

    def _observation_space(self) -> spaces.Space[Any]:
        if self.layout == "dict":
            x = spaces.Box(-np.inf, np.inf, self.mdp.event_shape, np.float32)
            # T + 1 values: the final observation has t = T and must lie in its space (SB3 one-hot encodes it).
            steps = spaces.Discrete(self.mdp.horizon + 1)
            more: dict[str, spaces.Space[Any]] = {"horizon": steps} if self._tells_horizon else {}
            if len(self.task.labels) > 1:
                more["label"] = spaces.Discrete(self.task.labels[-1] + 1)
            return spaces.Dict({"x": x, "t": steps} | more)
        told = len(told_of(self.mdp, 0))
        bound = np.full(self.mdp.dim + told, np.inf, np.float32)
        low, high = -bound, bound.copy()
        low[-told:], high[-told:] = 0.0, 1.0
        return spaces.Box(low, high, dtype=np.float32)

    def _action_space(self, bound: float) -> spaces.Box:
        if self.coordinates == "noise":
            return spaces.Box(-bound, bound, (self.mdp.dim,), np.float32)
        low, high = self.task.target.plot_range
        centre, half = (low + high) / 2, (high - low) / 2
        return spaces.Box(centre - 2 * half, centre + 2 * half, (self.mdp.dim,), np.float32)

    # -- dynamics ----------------------------------------------------------------------------------------------

    @property
    def _tells_horizon(self) -> bool:
        return self.mdp.base.schedule.several_horizons

    @property
    def x(self) -> Tensor:
        """x_t, ``[count, *event_shape]``. Raises ResetNeeded before the first reset and after ``clear``."""
        if self._x is None:
            raise ResetNeeded("no episode is running (before a reset, or after close): call reset() first.")
        return self._x

    @property
    def done(self) -> bool:
        """True when the episodes have ended."""
        return self.t == self.mdp.horizon

    def reset(self, np_random: np.random.Generator) -> None:
        """Start new episodes; all numbers of theirs and of those that follow come from one draw of ``np_random``, or
        two with several horizons or classes.
        """
        self._generator.manual_seed(int(np_random.integers(2**63 - 1)))
        if len(self._mdps) > 1:
            self._case_generator.manual_seed(int(np_random.integers(2**63 - 1)))
        self.start()

    def start(self) -> None:
        """Start new episodes from the running stream of random numbers."""
        if len(self._mdps) > 1:
            self._place = int(torch.randint(len(self._mdps), (), generator=self._case_generator))
            self.mdp = self._mdps[self._place]
        self._x, self.t = self.mdp.reset(self.count, self._generator), 0
        self._visited = [self._x] if self.fit_backward else []
        self.returns = torch.zeros(self.count, device=self.mdp.device)
        if not self._checks_at_once:
            self._finite.fill_(True)

    def clear(self) -> None:
        """Forget the states: a step needs a reset again."""
        self._x, self._visited = None, []

    def step(self, action: Tensor) -> Tensor:
        """Advance by a parsed action: the rewards, ``[count]``. Fits the kernel at the end, when asked to.

        Raises ResetNeeded, NonFiniteError for actions and running rewards, EnergyError for the energy.
        """
        x, t, horizon = self.x, self.t, self.mdp.horizon
        if t == horizon:
            raise ResetNeeded(f"the episode is over (t = {t} = T): call reset().")
        x_next, running, terminal = self.mdp.checked_transition(x, t, action, self.coordinates)
        # In float32, which is what observations and rewards leave in: a larger double becomes infinite there.
        reward = (running if terminal is None else running + terminal).float()
        self._check_finite(action, x_next, running, reward)
        if terminal is not None:
            self._raise_noted()
            if self.fit_backward:
                visited = torch.stack([*self._visited, x_next])
                for _ in range(self.fit_backward):
                    self.mdp.kernel.fit(*Trajectory(visited, torch.empty(0)).transitions())
            self.energy = -terminal
        elif self.fit_backward:
            self._visited.append(x_next)
        # Only now: a step that fails changes nothing.
        self._x, self.t = x_next, t + 1
        self.returns += reward
        return reward

    def observe(self) -> Observation:
        """The observations of all episodes, freshly copied: ``[count, d + 1]``, or a dict of ``x`` and ``t``; with
        several horizons or classes more (``told_of``), or with ``horizon`` or ``label``.
        """
        x, t = self.x, self.t
        if self.layout == "dict":
            told = {"t": t, "horizon": self.mdp.horizon} if self._tells_horizon else {"t": t}
            if len(self.task.labels) > 1:
                told["label"] = self.task.labels[self._place]
            numbers = {
                key: torch.full((self.count,), value, dtype=torch.int64, device=x.device) for key, value in told.items()
            }
            return {"x": x.to(torch.float32, copy=True), **numbers}
        rows = x.flatten(1).float()
        for number in told_of(self.mdp, t):
            rows = append_column(rows, number)
        return rows

    def parse_action(self, action: object, batch_shape: tuple[int, ...]) -> Tensor:
        """A numpy array or tensor ``[*batch_shape, d]`` or ``[*batch_shape, *event_shape]`` as a state-like tensor.

        Raises TypeError for another type or dtype, ValueError for another shape or device. Values are not looked at.
        """
        wanted, event_shape = (*batch_shape, self.mdp.dim), self.mdp.event_shape
        if type(action) is Tensor and action.shape == wanted and self._fits(action):
            return action
        if not isinstance(action, (np.ndarray, Tensor)):
            raise TypeError(f"action must be a numpy array or a torch tensor, got {type(action).__name__}.")
        known = action.dtype.is_floating_point if isinstance(action, Tensor) else action.dtype.type in _NUMPY_FLOATS
        if not known:
            raise TypeError(f"action must have a floating dtype of at most 64 bits, got {action.dtype}.")
        if tuple(action.shape) not in (wanted, (*batch_shape, *event_shape)):
            raise ValueError(f"action must have shape {list(wanted)}, got {list(action.shape)}.")
        if isinstance(action, Tensor) and action.layout != torch.strided:
            raise ValueError(f"action must be a dense tensor, got layout {action.layout}.")
        if isinstance(action, np.ndarray):
            # A copy in native byte order: torch knows no other, and no negative strides.
            native = action.astype(action.dtype.type, order="C", subok=False)
            parsed = torch.from_numpy(native).to(device=self.mdp.device, dtype=self.mdp.dtype)
        elif action.device.type != self.mdp.device.type:
            raise ValueError(f"action must be on device {str(self.mdp.device)!r}, got {str(action.device)!r}.")
        else:
            # In next-state coordinates the action becomes the state: it must not change with the caller's tensor.
            parsed = action.detach().to(self.mdp.dtype, copy=self.coordinates == "next_state")
        return parsed.reshape(self.count, *event_shape)

    def _fits(self, action: Tensor) -> bool:
        """The common case, for which ``parse_action`` would change nothing."""
        return (
            action.dtype == self.mdp.dtype
            and action.layout == torch.strided
            and action.device == self._generator.device
            and not action.requires_grad
            and self.coordinates == "noise"
            and len(self.mdp.event_shape) == 1
            and len(action) == self.count
        )

    def render(self, x: Tensor, t: int) -> np.ndarray:
        """A picture of samples, uint8 ``[400, 400, 3]``."""
        return render_samples(self.task.target, x, self.mdp, t=t)

    # -- inside ------------------------------------------------------------------------------------------------

    @property
    def _checks_at_once(self) -> bool:
        """On the CPU, where looking at a number waits for nothing."""
        return self.mdp.device.type == "cpu"

    def _check_finite(self, action: Tensor, x_next: Tensor, running: Tensor, reward: Tensor) -> None:
        """Raise at once on the CPU; elsewhere note it for the end of the episode, without a synchronisation."""
        suspects = (action, x_next, running, reward)
        if not self._checks_at_once:
            for failure, value in enumerate(suspects):
                self._finite[failure].logical_and_(torch.isfinite(value.float()).all())
        # Whatever is not finite shows in the reward, which holds log qb(x_t | x_{t+1}) unless tau = 0.
        elif not all_finite(reward, *((x_next.float(),) if self.mdp.tau == 0 else ())):
            for value, (error, message) in zip(suspects, _FAILURES, strict=True):
                if not all_finite(value.float()):
                    raise error(message)

    def _raise_noted(self) -> None:
        if self._checks_at_once:
            return  # nothing is noted
        noted = self._finite.tolist()
        if not all(noted):
            self.clear()
            error, message = _FAILURES[noted.index(False)]
            raise error(message)


_NUMPY_FLOATS = (np.float16, np.float32, np.float64)
_FAILURES: list[tuple[type[ValueError], str]] = [
    (NonFiniteError, "action must be finite in float32, it holds NaN, infinite or larger numbers."),
    (NonFiniteError, "the next state is NaN or infinite: the actions led too far away."),
    (NonFiniteError, "the running reward is NaN or infinite: the actions led too far away, or the kernel diverged."),
    (EnergyError, "the energy of the final states is NaN or infinite: check the energy."),
]
"""What can be non-finite, in the order of ``_finite``."""


def append_column(x: Tensor, value: float) -> Tensor:
    """A copy of ``x`` with a last column of ``value``: ``[n, d] -> [n, d + 1]``."""
    if len(x) < 4096 or x.shape[1] > 4 or x.device.type != "cpu":
        return pad(x, (0, 1), value=value)
    result = x.new_full((len(x), x.shape[1] + 1), value)
    for i in range(x.shape[1]):  # twice as fast as short rows, one by one
        result[:, i] = x[:, i]
    return result


def build_task(
    task: TaskLike | None,
    target: TaskLike | None,
    dim: int | tuple[int, ...] | None,
    energy: Energy | str | None,
    device: str | torch.device | None,
    changes: dict[str, Any],
) -> Task:
    """``make_task`` in an environment's words: ``target=`` for ``task``, a bare MDP, and a reward there must be."""
    if target is not None:
        if task is not None:
            raise ValueError("task and target are two names of one argument: pass one of them.")
        task = target
    task = DEFAULT_TASK if task is None else task
    known = list(TaskConfig.__dataclass_fields__)
    for key in changes:
        if key not in known:
            own = ["task", *dict.fromkeys([*_own_arguments(), *known])]
            raise UnknownNameError("environment argument", key, own, near=OTHER_WORDS.get(key, ()))
    if isinstance(task, DenoisingMDP):
        task = _task_of(task)
    # Asked before the task is built, because building one may train a denoiser for minutes.
    if isinstance(task, Task):
        silent = not task.mdp.has_energy
    elif isinstance(task, Target):
        silent = energy is None and not task.has_energy
    elif isinstance(task, str):
        silent = energy is None and changes.get("reward", TASKS[task].reward) is None
    else:
        silent = energy is None and isinstance(task, (np.ndarray, Tensor))
    if silent:
        names = ", ".join(map(repr, ENERGIES)) or "none are known yet"
        what = repr(task) if isinstance(task, str) else repr(getattr(task, "name", "a tensor"))
        raise EnergyError(
            f"{what} has data but no energy, so there is no reward: pass "
            f"energy=, a module or function [batch, *event_shape] -> [batch], or a registered name ({names})."
        )
    return make_task(task, dim=dim, energy=energy, device=device, **changes)


def _own_arguments() -> list[str]:
    parameters = inspect.signature(Episodes.__init__).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def _task_of(mdp: DenoisingMDP) -> Task:
    """A task around a bare MDP: all that is known of its target is a shape and a scale."""
    target = Target(mdp.event_shape, scale=mdp.scale, plot_range=(-4 * mdp.scale, 4 * mdp.scale))
    config = TaskConfig(target, horizon=mdp.horizon, tau=mdp.tau, reward=None)
    return Task(target.name, config, target, mdp, energy_replaced=mdp.has_energy, spec=None)
