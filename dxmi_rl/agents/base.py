"""What every agent can do: learn, sample, predict, save, load."""

from __future__ import annotations

import abc
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from dxmi_rl.agents.tuned import tuned_settings
from dxmi_rl.rollout import Trajectory, draw
from dxmi_rl.targets import Target
from dxmi_rl.tasks import Task, TaskConfig, make_task
from dxmi_rl.utils.checks import CheckpointError, DivergenceError, check_integer, check_real
from dxmi_rl.utils.progress import progress
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import flatten_optimizer, load_tensors, restore_optimizer, save_tensors
from dxmi_rl.utils.torch_tools import seeded

Callback = Callable[["Agent"], bool | None]
FinalStateHook = Callable[[Tensor], None]


@dataclass
class Costs:
    """What training has spent so far; evaluation is not counted."""

    timesteps: int = 0
    """Rollout transitions: the budget."""
    policy_draws: int = 0
    """Next states drawn from the policy, rollouts included."""
    energy_evals: int = 0
    """Evaluations of E on one x, with or without gradient."""
    energy_grad_evals: int = 0
    """Those of them that were differentiated in x."""
    denoiser_calls: int = 0
    """Evaluations of the base or fine-tuned denoiser on one x."""
    seconds: float = 0.0
    """Wall-clock seconds inside ``learn``."""


BUDGET_UNITS = ("timesteps", "energy_evals", "seconds")
"""What a budget can be counted in: fields of Costs."""


def check_budget(**budgets: float | None) -> tuple[str, float]:
    """(unit, amount) of the one budget that is not None; raises TypeError for none or several, ValueError below 1."""
    given = {unit: amount for unit, amount in budgets.items() if amount is not None}
    if len(given) != 1:
        raise TypeError(f"exactly one budget of {', '.join(budgets)} must be given, got {given or None}.")
    unit, amount = next(iter(given.items()))
    if unit == "seconds":
        return unit, check_real(unit, amount, strict=True)
    return unit, check_integer("total_timesteps" if unit == "timesteps" else unit, amount)


class Agent(abc.ABC):
    """A few-step sampler that learns on a task, with Stable-Baselines3's verbs.

    Args:
        task: a task's name or a built Task.
        seed: the one seed of initialisation, rollouts and minibatches.
        device: torch device of a task given by name.
        config: the agent's settings, tuned.json's by default; ``settings`` change single fields.

    Subclasses set ``name``, ``Config`` (a frozen dataclass) and define ``_build`` and ``iterate``.
    """

    name: ClassVar[str]
    Config: ClassVar[Any]
    has_density: bool = True
    trains: ClassVar[bool] = True
    needs_denoiser: ClassVar[bool] = False
    """Only tasks whose base sampler has a denoiser will do."""

    def __init__(
        self,
        task: str | Task | Target = "8gaussians",
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        config: Any = None,
        **settings: Any,
    ) -> None:
        self.seed = check_integer("seed", seed, minimum=0)
        with seeded(seed):  # a learned kernel is initialised with its task
            self.task = make_task(task, device=device)
        self.mdp = self.task.mdp
        self.config = self._configure(config, settings)
        self.costs = Costs()
        self.progress = 0.0
        self.generator = torch.Generator(self.mdp.device).manual_seed(seed)
        self.log: dict[str, float] = {}
        with seeded(seed):
            self._build()

    def _configure(self, config: Any, settings: dict[str, Any]) -> Any:
        if config is None:
            config = self._default_config(settings)
        if not isinstance(config, self.Config):
            raise TypeError(f"config of {self.name!r} must be a {self.Config.__qualname__}, got {config!r}.")
        known = [f.name for f in fields(config)]
        for key in settings:
            if key == "energy" or key in TaskConfig.__dataclass_fields__:
                raise TypeError(f"{key!r} belongs to the task: pass task=make_task({self.task.name!r}, {key}=...).")
            if key not in known:
                raise UnknownNameError(f"setting of {self.name!r}", key, known)
        return replace(config, **settings)

    def _default_config(self, settings: dict[str, Any]) -> Any:
        """The tuned settings of an agent that was given none; ``settings`` are the fields that will change."""
        return self.Config(**tuned_settings(type(self), self.task.event_shape, settings))

    # -- to be defined by an algorithm -------------------------------------------------------------------------

    policy: nn.Module
    """The sampling policy; its parameters are what DxMI averages."""

    @abc.abstractmethod
    def _build(self) -> None:
        """Make networks and optimizers."""

    @abc.abstractmethod
    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        """One iteration: a rollout, ``on_final(x_T)`` (DxMI's energy step), the updates. Returns losses to log."""

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers by name; saved in checkpoints."""
        return {}

    def modules(self) -> dict[str, nn.Module]:
        """Modules by name; saved in checkpoints."""
        return {"policy": self.policy, "kernel": self.mdp.kernel}

    @property
    def timesteps_per_iteration(self) -> int:
        """Transitions of one iteration."""
        return self.config.batch_size * self.mdp.horizon

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

        It is rounded up to whole iterations. Learning rates fall to zero over what was spent before and the budget
        together, so one long call learns more than many short ones (``anneal=False`` keeps them constant); continuing
        a loaded checkpoint with ``reset_num_timesteps=False`` and the rest of the budget gives the same numbers as not
        having stopped. Budgets in seconds depend on the machine, and so do their numbers.

        Args:
            callback: called after each iteration with the agent; returning False stops.
            reset_num_timesteps: count timesteps from 0 again.
            progress_bar: show a bar with the time left (silent when not a terminal).
            checkpoint: file that gets the state every ``checkpoint_every`` iterations and at the end.
            checkpoint_minutes: and after the iteration in which so many minutes have gone since it last did.

        Raises TypeError unless exactly one budget is given, ValueError for one that is not positive, DivergenceError
        on a non-finite loss, before it reaches ``checkpoint``.
        """
        unit, budget = check_budget(timesteps=total_timesteps, energy_evals=energy_evals, seconds=seconds)
        check_integer("checkpoint_every", checkpoint_every)
        limit = math.inf
        if checkpoint_minutes is not None:
            limit = 60 * check_real("checkpoint_minutes", checkpoint_minutes, strict=True)
        if reset_num_timesteps:
            self.costs.timesteps = 0
        end = self._spent(unit) + budget
        if not self.trains:
            if unit == "timesteps":
                self.costs.timesteps = end
            return self
        title = f"{self.name} on {self.task.name}"
        with progress(title, end, completed=self._spent(unit), show=progress_bar) as advance:
            iteration, kept = 0, time.monotonic()
            while (before := self._spent(unit)) < end:
                self._set_progress(before / end)
                started = time.perf_counter()
                log = self.iterate()
                self.costs.seconds += time.perf_counter() - started
                if (spent := self._spent(unit)) <= before:
                    raise RuntimeError(f"iterate of agent {self.name!r} must add to costs.{unit}, and did not.")
                iteration += 1
                late = iteration % checkpoint_every == 0 or time.monotonic() - kept >= limit
                due = checkpoint is not None and (late or spent >= end)
                if due or iteration % 50 == 0 or spent >= end:
                    self._note(log)
                if due and checkpoint is not None:
                    self.save(checkpoint)
                    kept = time.monotonic()
                advance(spent)
                if callback is not None and callback(self) is False:
                    if not due:
                        self._note(log)
                        if checkpoint is not None:
                            self.save(checkpoint)
                    break
        return self

    def _spent(self, unit: str) -> Any:
        return getattr(self.costs, unit)

    def sample(self, n: int, *, seed: int | None = None) -> Tensor:
        """Samples x_T of the policy: ``[n, *event_shape]``; ``seed`` fixes them, None continues the agent's stream."""
        return self.mdp.sample(self.density(), n, self._generator(seed))

    def sample_trajectory(self, n: int, *, seed: int | None = None, policy: nn.Module | None = None) -> Trajectory:
        """n whole episodes with their log-probabilities."""
        return self.mdp.rollout(self.density(policy), n, self._generator(seed))

    def _generator(self, seed: int | None) -> torch.Generator:
        return self.generator if seed is None else torch.Generator(self.mdp.device).manual_seed(seed)

    def density(self, policy: nn.Module | None = None) -> Any:
        """The policy, or a copy with other weights, as a density over the next state (rollout.Policy)."""
        return self.policy if policy is None else policy

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        *,
        coordinates: str = "noise",
    ) -> tuple[np.ndarray, Any]:
        """Action for observations of the environment (flat ``[x, 1 - t / T]`` or ``{"x", "t"}``), single or batched.

        Returns (action in ``coordinates``, state), as Stable-Baselines3 does. ``deterministic`` takes the
        noise as zero, which is not a sampler. Raises ValueError for observations of another shape.
        """
        x, t, single = self._parse(observation)
        with torch.no_grad():
            noise = (
                torch.zeros_like(x)
                if deterministic
                else torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
            )
            action = self.mdp.action(x, t, draw(self.density(), x, t, noise), coordinates)
        flat = not isinstance(observation, dict)
        result = (action.flatten(1) if flat else action).cpu().numpy()
        return (result[0] if single else result), state

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the whole training state as one safetensors file with a JSON header, atomically."""
        tensors: dict[str, Tensor] = {"generator": self.generator.get_state()}
        for name, module in self.modules().items():
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        for name, optimizer in self._all_optimizers().items():
            tensors |= flatten_optimizer(f"optimizer/{name}", optimizer)
        for name, tensor in self._extra_tensors().items():
            tensors[f"extra/{name}"] = tensor
        metadata = {
            "agent": self.name,
            "task": self.task.spec,
            "task_name": self.task.name,
            "task_config": self.task.fingerprint(),
            "seed": self.seed,
            "config": asdict(self.config),
            "costs": asdict(self.costs),
            "progress": self.progress,
        }
        return save_tensors(path, tensors, metadata)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, task: str | Task | None = None, device: str | torch.device | None = None
    ) -> Self:
        """Rebuild an agent from ``save``; ``task`` is needed when it was built from objects of yours.

        Raises FileNotFoundError, or CheckpointError for a damaged file or one of another agent or task.
        """
        tensors, metadata = load_tensors(path)
        if metadata.get("agent") != cls.name:
            raise CheckpointError(
                f"{str(path)!r} holds agent {metadata.get('agent')!r}, not {cls.name!r}: load it with that class."
            )
        if task is None:
            if metadata["task"] is None:
                raise CheckpointError(
                    f"{str(path)!r} was trained on a task of your own objects ({metadata['task_name']!r}): pass task=."
                )
            task = make_task(**metadata["task"], device=device)
        elif isinstance(task, str):
            task = make_task(task, device=device)
        if task.name != metadata["task_name"]:
            raise CheckpointError(f"{str(path)!r} was trained on task {metadata['task_name']!r}, not on {task.name!r}.")
        for key, value in task.fingerprint().items():
            if metadata["task_config"].get(key) != value:
                raise CheckpointError(
                    f"{str(path)!r} was trained with {key} = {metadata['task_config'].get(key)}, and the task has "
                    f"{key} = {value}."
                )
        agent = cls(task, seed=metadata["seed"], config=cls.Config(**_untuple(cls.Config, metadata["config"])))
        agent.costs = Costs(**metadata["costs"])
        agent._restore(path, tensors)
        agent.progress = metadata["progress"]
        return agent

    # -- inside ------------------------------------------------------------------------------------------------

    def _restore(self, path: str | os.PathLike[str], tensors: dict[str, Tensor]) -> None:
        try:
            for name, module in self.modules().items():
                part = {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name + ".")}
                module.load_state_dict(part)
            for name, optimizer in self._all_optimizers().items():
                restore_optimizer(f"optimizer/{name}", optimizer, tensors)
            self._set_extra_tensors({k[6:]: v for k, v in tensors.items() if k.startswith("extra/")})
            # The states of CPU and CUDA generators differ in size: a checkpoint moved between them starts a new stream.
            if tensors["generator"].numel() == self.generator.get_state().numel():
                self.generator.set_state(tensors["generator"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(f"{str(path)!r} does not fit {self.name!r} on {self.task.name!r}: {error}") from error

    def _extra_tensors(self) -> dict[str, Tensor]:
        """Further tensors of the training state."""
        return {}

    def _set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``_extra_tensors`` gave."""
        return

    def _all_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers = dict(self.optimizers())
        if self.mdp.kernel.optimizer is not None:
            optimizers["kernel"] = self.mdp.kernel.optimizer
        return optimizers

    def _set_progress(self, progress: float) -> None:
        """Move every learning rate along its schedule: cosine from its peak to zero."""
        self.progress = progress
        self.mdp.kernel.set_progress(progress if self.config.anneal else 0.0)
        factor = self._rate_factor()
        for optimizer in self.optimizers().values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor

    def _rate_factor(self) -> float:
        """Learning rate over its peak, now."""
        return 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress))) if self.config.anneal else 1.0

    def _note(self, log: dict[str, float | Tensor]) -> None:
        self.log = {key: float(value.detach() if isinstance(value, Tensor) else value) for key, value in log.items()}
        bad = [key for key, value in self.log.items() if not math.isfinite(value)]
        # A loss is from before its update: the weights may have gone first.
        if not all(bool(torch.isfinite(p).all()) for p in self.policy.parameters()):
            self.log["policy weights"] = math.nan
            bad.append("policy weights")
        if bad:
            raise DivergenceError(
                f"{self.name} on {self.task.name!r} diverged at timestep {self.costs.timesteps}: {bad[0]} is "
                f"{self.log[bad[0]]}. Lower the learning rates, or raise tau."
            )

    def _parse(self, observation: np.ndarray | dict[str, np.ndarray]) -> tuple[Tensor, Tensor, bool]:
        horizon, device, dim = self.mdp.horizon, self.mdp.device, self.mdp.dim
        if isinstance(observation, dict):
            x = torch.as_tensor(_plain(observation["x"]), dtype=self.mdp.dtype, device=device)
            t = torch.as_tensor(_plain(observation["t"]), device=device).long().reshape(-1)
            single = x.dim() == len(self.mdp.event_shape)
            return x.reshape(-1, *self.mdp.event_shape), t, single
        flat = torch.as_tensor(_plain(observation), dtype=self.mdp.dtype, device=device)
        single = flat.dim() == 1
        if flat.shape[-1] != dim + 1 or flat.dim() > 2:
            raise ValueError(f"observation must have shape [{dim + 1}] or [batch, {dim + 1}], got {list(flat.shape)}.")
        flat = flat.reshape(-1, dim + 1)
        t = ((1 - flat[:, -1]) * horizon).round().long().clamp(0, horizon - 1)
        return flat[:, :-1].reshape(-1, *self.mdp.event_shape), t, single


def _plain(value: Any) -> Tensor | np.ndarray:
    """What torch.as_tensor takes: tensors stay, on their device, and lists become arrays."""
    return value if isinstance(value, Tensor) else np.asarray(value)


def _untuple(config: type, values: dict[str, Any]) -> dict[str, Any]:
    """JSON turned tuples into lists; turn them back, and refuse fields that this version does not know."""
    known = {f.name for f in fields(config)}
    extra = sorted(set(values) - known)
    if extra:
        raise CheckpointError(f"the checkpoint has settings that {config.__qualname__} does not know: {extra}.")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
