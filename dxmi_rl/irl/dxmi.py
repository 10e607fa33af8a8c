"""DxMI: maximum-entropy inverse RL of a few-step sampler with an energy-based model (Yoon et al. 2024, algorithm 1)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dxmi_rl.agents import AGENTS, Base
from dxmi_rl.agents.any_class import AnyClass, AnyClassConfig
from dxmi_rl.agents.any_step import AnyStep, AnyStepConfig
from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.guidance import GuidedAgent, check_unguided
from dxmi_rl.agents.shared import SharedAgents, SharedWeights, sample_of_all
from dxmi_rl.costs import count_energy
from dxmi_rl.envs.observations import observed_horizon, observed_label
from dxmi_rl.irl.augmentation import make_augmentation
from dxmi_rl.irl.config import DxMIConfig, with_new_energy
from dxmi_rl.irl.losses import ENERGY_LOSSES
from dxmi_rl.irl.recipe_files import recipe, recipe_for
from dxmi_rl.networks import EnergyDenoiser, EnergyPerHorizon
from dxmi_rl.rollout import Policy, Trajectory
from dxmi_rl.smc import Twist, weighted_samples
from dxmi_rl.utils.checks import check_batch
from dxmi_rl.utils.settings import changed
from dxmi_rl.utils.torch_tools import adam, average_towards, restore_generator


class DxMI(Agent[DxMIConfig]):
    """An energy and a sampler trained together as a minimax game; another agent trains the sampler.

    Each iteration: (1) the agent rolls out; (2) energy steps on data against its x_T; (3) the agent updates on
    the new energy, which is the environment's live reward. ``energy`` is the trained E_phi (low on data); the averages
    over the last iterations, ``policy`` and ``average_energy``, are what is used: the two players circle around the
    equilibrium.

    With the contrastive loss and no anchor the energy stays within about +-1 / (2 gamma), so the temperature must be
    well below 1: tau = 0.1 / d, the paper's, in tasks that have only data, yours included, 0.03 / d in tasks of image
    sets. ``dxmi_rl.irl.equilibrium`` computes where the game ends, and ``dxmi_rl.evaluation.energy_quality`` scores the
    energy.

    On a task with several classes one policy and one energy serve all: each iteration is for one class, and the energy,
    which must be one that starts as the denoiser, is told which. ``of_class(c)`` is the game of one class. With several
    numbers of steps one policy serves all, and each has an energy of its own (EnergyPerHorizon).

    Raises ValueError when the target has no data, or the inner agent cannot be trained inside the loop.
    """

    name: ClassVar[str] = "dxmi"
    takes_horizons: ClassVar[bool] = True
    takes_labels: ClassVar[bool] = True
    Config = DxMIConfig

    def _configure(self, config: DxMIConfig | None, settings: Mapping[str, Any]) -> DxMIConfig:
        if config is not None and "recipe" in settings:
            raise TypeError(f"a recipe is a config of its own: give config or recipe={settings['recipe']!r}, not both.")
        return super()._configure(config, settings)

    def default_config(self, settings: Mapping[str, Any]) -> DxMIConfig:
        """The recipe that ``settings`` name, or the one of the task and the chosen agent."""
        agent = settings.get("agent", "dxdp")
        found = recipe(settings.get("recipe") or recipe_for(self.task, agent, settings), agent)
        if settings.get("loss", found.loss) != found.loss:  # whose gamma is not the recipe's
            found = replace(found, gamma=None)
        return found

    @classmethod
    def parse_config(cls, values: Mapping[str, Any]) -> DxMIConfig:
        agent = values.get("agent", "dxdp")
        start = DxMIConfig(agent=agent, agent_settings=AGENTS[agent].Config())
        return changed(start, values, f"setting of {cls.name!r}")

    def _build(self) -> None:
        config, target = self.config, self.task.target
        if not (target.has_data or target.has_sampler):
            raise ValueError(f"DxMI imitates data, and target {target.name!r} has neither data nor a sampler.")
        augmentation = make_augmentation(target, config)
        self.augmentation = None if augmentation is None else augmentation.to(self.mdp.device)
        if self.task.config.rewarded:
            raise ValueError("task must have no reward: DxMI learns the energy, and would not use the reward.")
        self.loss = ENERGY_LOSSES[config.loss]
        self.loss.resolved(config.gamma, config.noise_ratio)
        if config.agent in (self.name, AnyStep.name, AnyClass.name):
            raise ValueError(f"agent must train a sampler; {config.agent!r} cannot be nested.")
        inner = AGENTS[config.agent]
        if not (inner.trains or inner is Base):
            raise ValueError(f"agent must train a sampler, or be 'base': {config.agent!r} has no policy to average.")
        self.data_noise = config.data_noise
        if self.data_noise is None:
            self.data_noise = round(float(self.mdp.base.sigma[-1]), 6)
        self.task, self.energy = with_new_energy(self.task, config)
        self.agent: Agent[Any]
        if len(self.task.horizons) > 1:
            # With as many transitions for all, the energies of long chains would take too few steps.
            shared = AnyStepConfig(agent=config.agent, agent_settings=config.agent_settings, share=0.4)
            self.agent = AnyStep(self.task, seed=self.seed, config=shared)
        elif len(self.task.labels) > 1:
            several = AnyClassConfig(agent=config.agent, agent_settings=config.agent_settings)
            self.agent = AnyClass(self.task, seed=self.seed, config=several)
        else:
            self.agent = inner(self.task, seed=self.seed, config=config.agent_settings)
        self.task, self.mdp, self.has_density = self.agent.task, self.agent.mdp, self.agent.has_density
        self.generator.manual_seed(self.seed + 1_000_003)  # the data must not share the agent's stream of noise
        self.costs = self.agent.costs
        self.policy = copy.deepcopy(self.agent.policy).requires_grad_(False)
        self.average_energy = copy.deepcopy(self.energy).requires_grad_(False)
        self.anchor = copy.deepcopy(self.energy).requires_grad_(False) if config.anchor else None
        # Until there are past samples, x_0 takes their place: noise, which is no data either.
        rows = self.timesteps_per_iteration // self.mdp.horizon
        self.past, self.energy_optimizers = {}, {}
        for name, energy in self._energies().items():
            self.past[f"past{name}"] = self.mdp.reset(rows, self.generator)
            optimizer = adam([(list(energy.parameters()), config.energy_learning_rate)], betas=(0.5, 0.999))
            self.energy_optimizers[f"energy{name}"] = optimizer

    def _of_case(self, energy: nn.Module) -> nn.Module:
        """The energy of the present iteration's class or number of steps, where there are several."""
        if not isinstance(self.agent, SharedAgents):
            return energy
        assert isinstance(energy, (EnergyDenoiser, EnergyPerHorizon))
        return energy.of_case(self.agent.case)

    def __repr__(self) -> str:
        recipe = f", recipe={self.config.recipe!r}" if self.config.recipe else ""
        inside = f"agent={self.config.agent!r}{recipe}, seed={self.seed}, num_timesteps={self.num_timesteps}"
        return f"DxMI(task={self.task.name!r}, {inside})"

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        energy_log = Log()

        def energy_step(final: Tensor) -> None:
            for _ in range(self.config.energy_steps):
                energy_log.update(self.update_energy(final))
            if self.config.replay:
                past = f"past{self._name()}"
                self.past[past] = torch.cat([self.past[past], final])[-self.config.replay * len(final) :]
            if on_final is not None:
                on_final(final)

        log = self.agent.iterate(energy_step)
        self._average()
        return log | energy_log

    def update_energy(self, final: Tensor) -> Log:
        """One Adam step on the energy's loss: as many data as samples x_T, present and replayed."""
        config, final = self.config, self._with_past(final)
        task = self.task.of_class(self.agent.case) if isinstance(self.agent, AnyClass) else self.task
        data = task.target.data(len(final), self.generator)
        if self.data_noise:
            noise = torch.randn(data.shape, generator=self.generator, device=data.device)
            data = data + self.data_noise * noise
        x = torch.cat([data, final])
        if self.augmentation is not None:
            x = self.augmentation(x, self.generator)
        x.requires_grad_(config.gradient_penalty > 0)
        energy = self._of_case(self.energy.train())(x)
        added = energy if self.anchor is None else energy - self._of_case(self.anchor)(x)
        data_part, policy_part = added.chunk(2)
        loss = self.loss(data_part, policy_part, config.gamma, config.noise_ratio)
        if config.gradient_penalty:
            (slopes,) = torch.autograd.grad(added.sum(), x, create_graph=True)
            squares = (self.task.target.scale * slopes).square().flatten(1).sum(1)
            loss = loss + config.gradient_penalty * squares.mean()
        optimizer = self.energy_optimizers[f"energy{self._name()}"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        self.energy.eval()
        count_energy(len(x) * (1 if self.anchor is None else 2), differentiated=config.gradient_penalty > 0)
        energy_data, energy_policy = energy.detach().chunk(2)
        log: Log = {"energy_loss": loss.detach(), "energy_gap": (energy_policy - energy_data).mean()}
        return log if self.augmentation is None else log | self.augmentation.adapt(energy_data, energy_policy)

    def _with_past(self, final: Tensor) -> Tensor:
        """``final`` and as many rows of earlier rollouts' final states."""
        if not self.config.replay:
            return final
        past, n = self.past[f"past{self._name()}"], len(final)
        return torch.cat([final, past[torch.randint(len(past), (n,), generator=self.generator, device=final.device)]])

    def _energies(self) -> dict[str, nn.Module]:
        """The energies that are trained apart: one, named "", or one for each number of steps, named "/T"."""
        if not isinstance(self.energy, EnergyPerHorizon):
            return {"": self.energy}
        return {f"/{horizon}": self.energy.of_case(horizon) for horizon in self.task.horizons}

    def _name(self) -> str:
        """Of the energy of the present iteration."""
        return f"/{self.agent.case}" if isinstance(self.agent, AnyStep) else ""

    @torch.no_grad()
    def _average(self) -> None:
        steps = self.agent.case if isinstance(self.agent, AnyStep) else self.mdp.horizon
        ema = self.config.ema ** (steps / self.mdp.horizon)  # as much per transition, whatever the number of steps
        average_towards(self.policy, self.agent.policy, ema)
        average_towards(self.average_energy, self.energy, ema)
        if self.anchor is not None:
            average_towards(self.anchor, self.energy, self.config.anchor)

    @property
    def timesteps_per_iteration(self) -> int:
        return self.agent.timesteps_per_iteration

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return dict(self.energy_optimizers)

    def modules(self) -> dict[str, nn.Module]:
        inner = {f"agent/{name}": module for name, module in self.agent.modules().items()}
        own = {"policy": self.policy, "energy": self.energy, "average_energy": self.average_energy}
        options = {"anchor": self.anchor, "augmentation": self.augmentation}
        return own | {name: module for name, module in options.items() if module is not None} | inner

    def at(self, horizon: int) -> DxMI:
        """The game with an agent of this number of steps: itself, unless its task has several, which AnyStep trains.

        Raises ValueError for another.
        """
        if isinstance(self.agent, AnyStep):
            return self._with(self.agent.at(horizon), horizon)
        self.task.at(horizon)
        return self

    def of_class(self, label: int) -> DxMI:
        """The game of one of several classes. Raises ValueError for another."""
        if not isinstance(self.agent, AnyClass):
            self.task.of_class(label)
            return self
        return self._with(self.agent.of_class(label), label)

    def _with(self, agent: Agent[Any], case: int) -> DxMI:
        """The game with the agent and the energies of one case."""
        found = copy.copy(self)
        for key in ("energy", "average_energy", "anchor"):
            if (energy := getattr(self, key)) is not None:
                setattr(found, key, energy.of_case(case))
        for name, energy in self._energies().items():
            if energy is found.energy:  # one number of steps of several
                found.past = {"past": self.past[f"past{name}"]}
                found.energy_optimizers = {"energy": self.energy_optimizers[f"energy{name}"]}
        found.agent = agent
        found.task, found.mdp, found.has_density = agent.task, agent.mdp, agent.has_density
        assert isinstance(self.policy, SharedWeights)
        found.policy = self.policy.at(case, agent.policy)
        return found

    def predict_values(self, x: Tensor, t: Tensor | int) -> Tensor | None:
        return self.agent.predict_values(x, t)

    def sample(
        self, n: int, *, seed: int | None = None, guidance: float = 0.0, horizon: int | None = None,
        particles: int | None = None, twist: Twist | None = None, label: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Samples x_T ``[n, *event_shape]`` of the averaged policy; with ``guidance`` > 0, lambda, moved by the
        gradients of the inner agent's values and, at the end, of the averaged energy (GuidedPolicy). ``horizon`` is the
        number of steps, as in ``at``; None: the largest. ``label`` is the class; None: as many of each. ``particles``
        are as an agent's, with the averaged energy.

        Raises ValueError for guidance where the inner agent has no soft values ("dxdp" and "dxdp-paper" have), or of
        particles.
        """
        options: dict[str, Any] = {"guidance": guidance, "particles": particles, "twist": twist}
        if label is not None:
            return self.of_class(label).sample(n, seed=seed, **options)
        if isinstance(self.agent, AnyClass):
            parts = [self.of_class(one) for one in self.task.labels]
            return sample_of_all(parts, n, self.generator_of(seed), **options)
        if horizon is not None or isinstance(self.agent, AnyStep):
            return self.at(self.mdp.horizon if horizon is None else horizon).sample(n, seed=seed, **options)
        if not guidance:
            if particles is None and twist is None:
                return super().sample(n, seed=seed)
            generator, energy = self.generator_of(seed), self.average_energy
            return weighted_samples(self.mdp, self.density(), n, particles, twist, generator, energy)
        check_unguided(particles, twist)
        if not isinstance(self.agent, GuidedAgent):
            raise ValueError(
                f"guidance must be 0 with agent {self.agent.name!r}: only 'dxdp' and 'dxdp-paper' learn soft values."
            )
        guided = self.agent.guided(guidance, policy=self.policy, energy=self.average_energy)
        return self.mdp.sample(guided, n, self.generator_of(seed))

    def sample_trajectory(
        self, n: int, *, seed: int | None = None, policy: nn.Module | None = None, horizon: int | None = None,
        label: int | None = None,
    ) -> Trajectory:  # fmt: skip
        """n episodes of the averaged policy (pass ``policy=dxmi.agent.policy`` for the last iterate).

        Raises ValueError without a class where there are several.
        """
        case = horizon if label is None else label
        if case is not None:
            found = self.at(case) if label is None else self.of_class(label)
            if isinstance(policy, SharedWeights):
                policy = policy.at(case, found.agent.policy)
            return found.sample_trajectory(n, seed=seed, policy=policy)
        if isinstance(self.agent, AnyClass):
            raise ValueError(f"label must be a class for whole episodes, one of {self.task.labels}, got None.")
        return super().sample_trajectory(n, seed=seed, policy=policy)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False, *,
        coordinates: str = "noise",
    ) -> tuple[np.ndarray[Any, Any], Any]:  # fmt: skip
        """As an agent's, of the averaged policy; with several horizons or classes for observations of one of them."""
        found = self
        if isinstance(self.agent, AnyStep):
            found = self.at(observed_horizon(self.mdp, observation))
        elif isinstance(self.agent, AnyClass):
            found = self.of_class(observed_label(self.mdp, self.task.labels, observation))
        if found is not self:
            return found.predict(observation, state, episode_start, deterministic, coordinates=coordinates)
        return super().predict(observation, state, episode_start, deterministic, coordinates=coordinates)

    def density(self, policy: nn.Module | None = None) -> Policy:
        return self.agent.density(self.policy if policy is None else policy)

    def score(self, x: Tensor | np.ndarray[Any, Any]) -> Tensor:
        """Anomaly score, the averaged energy: ``[n, *event_shape] -> [n]``, low on data; with several classes the
        lowest of theirs. Raises as ``check_batch``.
        """
        x = check_batch("x", torch.as_tensor(x, dtype=self.mdp.dtype, device=self.mdp.device), self.mdp.event_shape)
        energies = [self.average_energy]
        if isinstance(self.agent, AnyClass):
            energies = [self.of_class(label).average_energy for label in self.task.labels]
        with torch.no_grad():
            return torch.stack([energy(x) for energy in energies]).amin(0)

    def set_progress(self, progress: float) -> None:
        super().set_progress(progress)
        self.agent.set_progress(progress)

    def all_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        inner = {f"agent/{name}": optimizer for name, optimizer in self.agent.all_optimizers().items()}
        return {**self.optimizers(), **inner}

    def extra_tensors(self) -> dict[str, Tensor]:
        inner = {f"agent/{name}": tensor for name, tensor in self.agent.extra_tensors().items()}
        return {"agent_generator": self.agent.generator.get_state(), **self.past, **inner}

    def set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        restore_generator(self.agent.generator, tensors["agent_generator"])
        self.past = {name: tensors[name].to(self.mdp.device) for name in self.past}
        self.agent.costs, self.agent.progress = self.costs, self.progress
        self.agent.set_extra_tensors({k[6:]: v for k, v in tensors.items() if k.startswith("agent/")})
