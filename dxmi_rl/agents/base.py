"""What every agent can do: learn, sample, predict, save, load."""

from __future__ import annotations

import abc
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from dxmi_rl.agents.aims import check_cases, require_policy
from dxmi_rl.agents.checkpoint import check_saving, read_checkpoint, restore, save_agent, stops, stored_config, task_of
from dxmi_rl.agents.divergence import SETBACK_FACTOR, GoodState, iterate
from dxmi_rl.agents.prediction import predicted_action
from dxmi_rl.agents.settings import configured
from dxmi_rl.costs import Costs, check_budget, counting
from dxmi_rl.live_energy import EnergyError, SwapNotice
from dxmi_rl.rollout import Policy, Trajectory
from dxmi_rl.smc import Twist, weighted_samples
from dxmi_rl.targets import Target
from dxmi_rl.tasks import Task, make_task
from dxmi_rl.utils.checks import DivergenceError, NonFiniteError, check_seed
from dxmi_rl.utils.progress import progress
from dxmi_rl.utils.settings import changed
from dxmi_rl.utils.torch_tools import keep_freed_memory, seeded

ConfigT = TypeVar("ConfigT")
FinalStateHook = Callable[[Tensor], None]
"""What is done with x_T of a rollout before the agent learns from it: DxMI's energy step."""
Callback = Callable[["Agent[Any]"], bool | None]
Log = dict[str, float | Tensor]
"""Losses of one iteration by name."""
LOG_EVERY = 50
"""Iterations from one look at the losses to the next, which waits for the device."""


class Agent(abc.ABC, Generic[ConfigT]):
    """A few-step sampler that learns on a task, with Stable-Baselines3's verbs.

    Args:
        task: a task's name or a built Task; ``agent.task`` is a copy with a learned kernel of its own.
        seed: the one seed of initialisation, rollouts and minibatches.
        device: torch device of a task given by name.
        config: all settings, ``Config()`` by default.
        settings: single settings that differ from ``config``: ``n_trajectories=32``, ``policy={"width": 128}`` or, in a
            dictionary, ``**{"policy.width": 128}``.

    Subclasses set ``name`` and ``Config`` (a frozen dataclass with ``n_trajectories`` and ``anneal``) and define
    ``_build`` and ``iterate``.

    Raises UnknownNameError (with the near names) for unknown settings, TypeError and ValueError for their values.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Any]]
    config: ConfigT
    has_density: bool = True
    trains: ClassVar[bool] = True
    needs_denoiser: ClassVar[bool] = False
    """Whether it works only on tasks whose base sampler has a denoiser."""
    needs_gradient: ClassVar[bool] = False
    """Whether it works only with the gradient of the energy, which track "energy" hides."""
    takes_horizons: ClassVar[bool] = False
    """Whether it works on tasks with several horizons."""
    takes_labels: ClassVar[bool] = False
    """Whether it works on tasks with several classes."""
    held_by_beta: ClassVar[bool] = True
    """Whether a reward's beta holds it near what the reward tilts; otherwise it aims at the largest reward."""

    def __init__(
        self,
        task: str | Task | Target = "8gaussians",
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        config: ConfigT | None = None,
        **settings: Any,
    ) -> None:
        self.seed = seed = check_seed(seed)
        with seeded(seed):
            self.task = make_task(task, device=device)
        check_cases(self)
        with seeded(seed):  # each agent on a built task has a learned kernel of its own, which the seed decides
            self.task = self.task.with_own_kernel()
        self.mdp = self.task.mdp
        self.config = self._configure(config, settings)
        self.costs, self.progress = Costs(), 0.0
        self.generator = torch.Generator(self.mdp.device).manual_seed(seed)
        self.log: dict[str, float] = {}
        self.energy_swapped = SwapNotice(self.mdp.energy)
        with seeded(seed):
            self._build()
        require_policy(self)

    def _configure(self, config: ConfigT | None, settings: Mapping[str, Any]) -> ConfigT:
        start = self.default_config(settings) if config is None else config
        return cast(ConfigT, configured(self, self.task, start, settings))

    def default_config(self, settings: Mapping[str, Any]) -> ConfigT:
        """The settings of an agent that was given none; ``settings`` are the ones that will be changed."""
        return cast(ConfigT, self.Config())

    @classmethod
    def parse_config(cls, values: Mapping[str, Any]) -> ConfigT:
        """The settings that JSON or TOML holds; raises UnknownNameError for unknown ones."""
        return cast(ConfigT, changed(cls.Config(), values, f"setting of {cls.name!r}"))

    # -- to be defined by an algorithm -------------------------------------------------------------------------
    policy: nn.Module
    """The sampling policy; its parameters are what DxMI averages."""

    @abc.abstractmethod
    def _build(self) -> None:
        """Make networks and optimizers."""

    @abc.abstractmethod
    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        """One iteration: a rollout, ``on_final(x_T)`` (DxMI's energy step), the updates. Returns losses to log.
        It adds the transitions of its rollout to ``costs.timesteps``; other costs are counted automatically.
        """

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers by name; annealed over a budget, and saved in checkpoints."""
        return {}

    def modules(self) -> dict[str, nn.Module]:
        """Modules by name; saved in checkpoints. Subclasses with more add them to these."""
        return {"policy": self.policy, "kernel": self.mdp.kernel}

    def extra_tensors(self) -> dict[str, Tensor]:
        """Further tensors of the training state; saved in checkpoints."""
        return {}

    def set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``extra_tensors`` gave."""
        return

    @property
    def timesteps_per_iteration(self) -> int:
        """Transitions of one iteration."""
        n_trajectories: int = getattr(self.config, "n_trajectories")  # noqa: B009 (a type parameter has no fields)
        return n_trajectories * self.mdp.horizon

    @property
    def denoiser_calls(self) -> int:
        """Evaluations of a denoiser that one sample costs."""
        return self.mdp.horizon * self.mdp.base.denoiser_calls

    # -- the verbs ---------------------------------------------------------------------------------------------
    def __repr__(self) -> str:
        return f"{type(self).__name__}(task={self.task.name!r}, seed={self.seed}, num_timesteps={self.num_timesteps})"

    @property
    def num_timesteps(self) -> int:
        """Rollout transitions so far."""
        return self.costs.timesteps

    def learn(
        self,
        total_timesteps: int | None = None,
        *,
        energy_evals: int | None = None,
        seconds: float | None = None,
        callback: Callback | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 50,
        checkpoint_minutes: float | None = None,
    ) -> Self:
        """Train for one more budget: ``total_timesteps`` rollout transitions, or ``energy_evals``, or ``seconds``.

        It is rounded up to whole iterations. Learning rates fall to zero over it (``anneal=False`` keeps them), so one
        long call learns more than many short ones. Other units, and ``reset_num_timesteps=False``, also count what was
        spent before: a loaded checkpoint goes on so with the numbers of not having stopped (but for seconds).

        Args:
            callback: called after each iteration with the agent; False stops (StopAtKL, AdaptiveBeta).
            reset_num_timesteps: count timesteps from 0 again.
            progress_bar: show a bar with the time left (silent when not a terminal).
            checkpoint: file that gets the state every ``checkpoint_every`` iterations and at the end.
            checkpoint_minutes: also save when this many minutes have passed.

        Divergence is states, losses, weights or optimizers' states that are not finite. Training then goes on from the
        last state in which all of them were, 50 iterations old at most, with half the learning rates;
        ``costs.setbacks`` counts how often. Only a good state reaches ``checkpoint``, and one whose samples are finite.

        Raises TypeError unless exactly one budget is given, ValueError for one that is not positive; TypeError or
        OSError, before training, for an unusable ``callback`` or ``checkpoint``; DivergenceError or NonFiniteError
        when training diverges for the sixth time; EnergyError for an energy that fails.
        """
        unit, budget = check_budget(timesteps=total_timesteps, energy_evals=energy_evals, seconds=seconds)
        limit = check_saving(callback, checkpoint, checkpoint_every, checkpoint_minutes)
        if reset_num_timesteps:
            self.costs.timesteps = 0
        end, share = self.spent(unit) + budget, self.mdp.energy.share_from_now(self.costs)
        if not self.trains:
            if unit == "timesteps":
                self.costs.timesteps = int(end)
            return self
        keep_freed_memory()
        with progress(f"{self.name} on {self.task.name}", end, completed=end - budget, show=progress_bar) as advance:
            good, iteration, saved_at = GoodState(self), 0, time.monotonic()
            while (before := self.spent(unit)) < end:
                self.set_progress(before / end)
                started = time.perf_counter()
                try:
                    with counting(self.costs):
                        log = iterate(self)
                except (NonFiniteError, DivergenceError) as error:
                    good.step_back(error)
                    log = None
                finally:
                    self.costs.seconds += time.perf_counter() - started
                if log is None and self.spent(unit) < end:
                    continue
                if (spent := self.spent(unit)) <= before:
                    raise RuntimeError(f"iterate of agent {self.name!r} must add to costs.{unit}, and did not.")
                iteration += 1
                advance(spent, share())
                if done := spent >= end:
                    self.set_progress(1.0)
                save = done or iteration % checkpoint_every == 0 or time.monotonic() - saved_at >= limit
                save = save and checkpoint is not None
                if save or done or iteration % LOG_EVERY == 0:
                    good.look(log or {}, samples=save)
                if callback is not None:
                    done = stops(callback(self)) or done
                    save = checkpoint is not None and (save or done)
                    if save or done:  # at what the callback has changed, too
                        good.look(log or {}, samples=save)
                if save and checkpoint is not None:  # with what the callback has changed
                    self.save(checkpoint)
                    saved_at = time.monotonic()
                if done:
                    break
        return self

    def spent(self, unit: str) -> float:
        """What has been spent so far of one of BUDGET_UNITS."""
        return cast(float, getattr(self.costs, unit))

    def at(self, horizon: int) -> Agent[Any]:
        """The agent with this number of steps: itself, unless its task has several. Raises ValueError for another."""
        self.task.at(horizon)
        return self

    def sample(
        self, n: int, *, seed: int | None = None, particles: int | None = None, twist: Twist | None = None
    ) -> Tensor:
        """Samples x_T of the policy: ``[n, *event_shape]``; ``seed`` fixes them, None continues the agent's stream.

        With ``particles`` each is one of that many chains, drawn by their weights towards exp(-E / tau) at an energy
        each, and resampled on the way with a ``twist`` (``fit_twist``). Raises as ``weighted_samples``.
        """
        if particles is None and twist is None:
            return self._sample(n, self.generator_of(seed))
        return weighted_samples(self.mdp, self.density(), n, particles, twist, self.generator_of(seed))

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.mdp.sample(self.density(), n, generator)

    def sample_trajectory(self, n: int, *, seed: int | None = None, policy: nn.Module | None = None) -> Trajectory:
        """n whole episodes with their log-probabilities."""
        return self.mdp.rollout(self.density(policy), n, self.generator_of(seed))

    def generator_of(self, seed: int | None) -> torch.Generator:
        """A generator with this seed, or the agent's own."""
        return self.generator if seed is None else torch.Generator(self.mdp.device).manual_seed(check_seed(seed))

    def density(self, policy: nn.Module | None = None) -> Policy:
        """The policy, or a copy with other weights, as a density over the next state (rollout.Policy)."""
        return cast(Policy, self.policy if policy is None else policy)

    def predict_values(self, x: Tensor, t: Tensor | int) -> Tensor | None:
        """The soft return from x_t on that the agent's value function expects: ``[batch]``; None where it has none."""
        return None

    def predict(
        self, observation: np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]], state: Any = None,
        episode_start: Any = None, deterministic: bool = False, *, coordinates: str = "noise",
    ) -> tuple[np.ndarray[Any, Any], Any]:  # fmt: skip
        """Action for observations of the environment, flat or as dictionaries, single or batched.

        Returns (action in ``coordinates``, state), as Stable-Baselines3 does. ``deterministic`` takes the
        noise as zero, which is not a sampler. Raises as ``parse_observation``.
        """
        generator = None if deterministic else self.generator
        return predicted_action(self.mdp, self.density(), observation, generator, coordinates), state

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the whole training state as one safetensors file with a JSON header, atomically."""
        return save_agent(self, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, task: str | Task | None = None, device: str | torch.device | None = None
    ) -> Self:
        """Rebuild an agent from ``save``; ``task`` is needed when it was built from objects of yours.

        Raises FileNotFoundError, or CheckpointError for a damaged file or one of another agent, task or version.
        """
        tensors, metadata = read_checkpoint(path, cls)
        config = stored_config(path, metadata, cls)
        agent = cls(task_of(path, metadata, task, device), seed=metadata["seed"], config=config)
        restore(agent, path, tensors, metadata)
        return agent

    # -- for algorithms ----------------------------------------------------------------------------------------
    def require_energy(self, *, gradient: bool = False) -> None:
        """Raise EnergyError when the task has no reward to learn from, or none of the ``gradient`` it needs."""
        if not self.mdp.has_energy:
            raise EnergyError(
                f"task {self.task.name!r} has no energy to learn from: pass task=make_task({self.task.name!r}, "
                "energy=...), or learn one with dxmi_rl.DxMI."
            )
        points = torch.zeros(2, *self.mdp.event_shape, dtype=self.mdp.dtype, device=self.mdp.device)
        if (gradient or self.needs_gradient) and not self.mdp.energy.has_gradient(points):
            own = "" if self.needs_gradient else ", with these settings,"
            why = self.mdp.energy.failure or "which the task does not give"
            raise EnergyError(f"agent {self.name!r}{own} needs the energy's gradient, {why}.")

    def all_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """``optimizers`` and that of a learned kernel, which has a schedule of its own."""
        kernel = self.mdp.kernel.optimizer
        return self.optimizers() | ({} if kernel is None else {"kernel": kernel})

    def set_progress(self, progress: float) -> None:
        """Move every learning rate along its schedule to this part of the budget: cosine from its peak to zero."""
        self.progress = progress
        kernel, caution = self.mdp.kernel, SETBACK_FACTOR**self.costs.setbacks
        kernel.set_progress(progress if getattr(self.config, "anneal", True) else 0.0)
        for group in [] if kernel.optimizer is None else kernel.optimizer.param_groups:
            group["lr"] *= caution
        factor = self.rate_factor()
        for optimizer in self.optimizers().values():
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("peak", group["lr"]) * factor

    def rate_factor(self) -> float:
        """Learning rate over its peak, now."""
        caution: float = SETBACK_FACTOR**self.costs.setbacks
        annealed = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        return caution * (annealed if getattr(self.config, "anneal", True) else 1.0)
