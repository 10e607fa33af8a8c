"""Policies of other libraries, over an environment's actions, as densities over the next state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from dxmi_rl.diffusion.gaussian import standard_log_prob
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.envs.observations import observe, told_of
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.utils.checks import require
from dxmi_rl.utils.torch_tools import evaluation_mode

Gaussian = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Flat observations ``[batch, d + 1]`` -> mean and log standard deviation of the action, both ``[batch, d]``."""


class ActionDensity:
    """a ~ N(m(o), diag e^{2 l(o)}), or a = centre + half tanh(u) with u of that law, pushed through x_{t+1}(x_t, a).

    In noise coordinates x_{t+1} = mu_t(x) + sigma_t a, so log pi(x_{t+1} | x_t) = log pi(a | x_t) - d log sigma_t; a
    squashed action adds -sum log half_i - sum log(1 - tanh^2 u_i) (Haarnoja et al. 2018, arXiv 1801.01290, app. C).

    Attributes:
        squashed: (low, high) of a squashed action, ``[d]`` each, or None.
        bounds: (low, high) that the environment's clipping or squashing imposed in training, or None when unknown.
        has_density: False for deterministic policies; ``transport`` then gives infinity for the log-density.
        module: the network behind it, or None.
    """

    def __init__(
        self,
        gaussian: Gaussian,
        mdp: DenoisingMDP,
        coordinates: str = "noise",
        *,
        squashed: tuple[Tensor, Tensor] | None = None,
        bounds: tuple[Tensor, Tensor] | None = None,
        has_density: bool = True,
        module: nn.Module | None = None,
    ) -> None:
        mdp.check_coordinates(coordinates)
        self._gaussian, self.mdp, self.coordinates = gaussian, mdp, coordinates
        self.squashed, self.has_density, self.module = squashed, has_density, module
        self.bounds = bounds if squashed is None else squashed

    def gaussian(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """m and l of flat observations ``[batch, d + 1]``, with ``module`` in eval mode: ``[batch, d]`` each."""
        with evaluation_mode(self.module):
            return self._gaussian(observation)

    def moments(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of x_{t+1}, in the shape of x. Raises TypeError for a squashed policy."""
        if self.squashed is not None:
            raise TypeError("a squashed policy is no Gaussian over the next state: use transport and log_prob.")
        mean, log_std = (moment.view_as(x) for moment in self.gaussian(observe(self.mdp, x, t)))
        if self.coordinates == "noise":
            log_std = log_std + per_step(self.mdp.base.sigma, t, x).log()
        return self.mdp.next_state(x, t, mean, self.coordinates), log_std

    def transport(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x_{t+1} and log pi(x_{t+1} | x_t), as ``DenoisingMDP.rollout`` asks for."""
        action, log_density = self.act(x, t, noise)
        x_next = self.mdp.next_state(x, t, action.view_as(x), self.coordinates)
        return x_next, log_density - self._log_stretch(x, t)

    def act(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The action ``[batch, d]`` that N(0, I) noise is made into, and its log pi(a | x_t)."""
        mean, log_std = self.gaussian(observe(self.mdp, x, t))
        u = mean + log_std.exp() * noise.flatten(1)
        log_density = standard_log_prob(noise.flatten(1), log_std)
        if self.squashed is None:
            return u, log_density
        low, high = self.squashed
        return (low + high) / 2 + (high - low) / 2 * torch.tanh(u), log_density - self._log_squash(u)

    def log_prob(self, x: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        """log pi(x_{t+1} | x_t): ``[batch]``; minus infinity where a squashed policy cannot go."""
        action = self.mdp.action(x, t, x_next, self.coordinates).flatten(1)
        mean, log_std = self.gaussian(observe(self.mdp, x, t))
        if self.squashed is None:
            return standard_log_prob((action - mean) * torch.exp(-log_std), log_std) - self._log_stretch(x, t)
        low, high = self.squashed
        unit = (2 * action - low - high) / (high - low)
        inside = (unit.abs() < 1).all(1)
        u = torch.atanh(torch.where(inside[:, None], unit, 0.0))
        log_density = standard_log_prob((u - mean) * torch.exp(-log_std), log_std) - self._log_squash(u)
        return torch.where(inside, log_density - self._log_stretch(x, t), -math.inf)

    def squashed_pairs(self, x: Tensor, t: int) -> Callable[[Tensor], Tensor]:
        """``log_prob`` of all pairs of a squashed policy: a function of points y ``[m, d]`` for states x ``[n, d]`` at
        step t that returns ``[m, n]``; the network is asked once per state.
        """
        assert self.squashed is not None
        mean, log_std = self.gaussian(observe(self.mdp, x, t))
        centre, stretch = torch.zeros_like(x), torch.ones_like(x[0, 0])
        if self.coordinates == "noise":
            centre, stretch = self.mdp.base.mean(x, t), self.mdp.base.sigma[t]
        low, high = self.squashed
        half = (high - low) / 2
        constant = -(log_std + (half * stretch).log() + math.log(2 * math.pi) / 2).sum(1)

        def log_density(y: Tensor) -> Tensor:
            unit = ((y[:, None] - centre) / stretch - (low + high) / 2) / half
            inside = (unit.abs() < 1).all(2)
            unit = torch.where(inside[..., None], unit, 0.0)
            above, below = torch.log1p(unit), torch.log1p(-unit)  # their sum is log(1 - tanh^2 u), their difference 2 u
            squares = (((above - below) / 2 - mean) * torch.exp(-log_std)).square()
            return torch.where(inside, constant - (squares / 2 + above + below).sum(2), -math.inf)

        return log_density

    def _log_squash(self, u: Tensor) -> Tensor:
        """log |da / du|, with log(1 - tanh^2 u) = 2 (log 2 - u - softplus(-2 u)) that never underflows."""
        assert self.squashed is not None
        low, high = self.squashed
        return (((high - low) / 2).log() + 2 * (math.log(2) - u - softplus(-2 * u))).sum(1)

    def _log_stretch(self, x: Tensor, t: Tensor | int) -> Tensor | float:
        """log |dx_{t+1} / da|."""
        if self.coordinates == "next_state":
            return 0.0
        return self.mdp.dim * per_step(self.mdp.base.sigma, t, x).log().flatten()


def told_coordinates(actions: Any, plot_range: tuple[float, float]) -> str:
    """The action coordinates that a model's action space tells: "next_state" for that environment's own box, which is
    twice the target's ``plot_range``, else "noise".
    """
    low, high = plot_range
    box = (low + high) / 2 - (high - low), (low + high) / 2 + (high - low)
    whole = np.allclose(actions.low, box[0]) and np.allclose(actions.high, box[1])
    return "next_state" if whole else "noise"


def sb3_density(policy: Any, mdp: DenoisingMDP, coordinates: str = "noise") -> ActionDensity:
    """The policy of an SB3 algorithm (PPO, A2C, SAC, TD3, ...) before SB3 clips its action.

    Raises TypeError for other distributions than a diagonal Gaussian and for other observations than the flat ones.
    """
    distributions = require("stable_baselines3.common.distributions", "sb3")
    width = mdp.dim + len(told_of(mdp, 0))
    if getattr(policy.observation_space, "shape", None) != (width,):
        raise TypeError(
            f"only SB3 policies on flat observations [{width}] of this task have a density here, got "
            f"{policy.observation_space}."
        )
    box = policy.action_space
    limits = tuple(torch.as_tensor(bound, device=mdp.device).flatten() for bound in (box.low, box.high))
    bounds = (limits[0], limits[1])
    actor = getattr(policy, "actor", None)
    if actor is None:  # on-policy: PPO, A2C
        kind = type(policy.action_dist)
        if kind is not distributions.DiagGaussianDistribution:
            raise TypeError(f"only SB3 policies with a diagonal Gaussian have a density here, got {kind.__name__}.")

        def gaussian(observation: Tensor) -> tuple[Tensor, Tensor]:
            # Not by get_distribution: torch's Normal looks at its numbers, for which a GPU must wait.
            features = policy.extract_features(observation, policy.pi_features_extractor)
            mean = policy.action_net(policy.mlp_extractor.forward_actor(features))
            return mean, policy.log_std.expand_as(mean)

        return ActionDensity(_at(policy.device, gaussian), mdp, coordinates, bounds=bounds, module=policy)
    if hasattr(actor, "get_action_dist_params"):  # SAC and its relatives
        if actor.use_sde:
            raise TypeError("only SB3 policies with a diagonal Gaussian have a density here, got use_sde=True.")

        def squashed(observation: Tensor) -> tuple[Tensor, Tensor]:
            mean, log_std, _ = actor.get_action_dist_params(observation)
            return mean, log_std

        return ActionDensity(_at(policy.device, squashed), mdp, coordinates, squashed=bounds, module=policy)
    low, high = (bound.to(policy.device) for bound in bounds)

    def deterministic(observation: Tensor) -> tuple[Tensor, Tensor]:  # TD3, DDPG: actions in [-1, 1]
        action = low + (actor(observation) + 1) / 2 * (high - low)
        return action, torch.full_like(action, -math.inf)

    place = _at(policy.device, deterministic)
    return ActionDensity(place, mdp, coordinates, bounds=bounds, has_density=False, module=policy)


def check_as_stock(density: ActionDensity) -> None:
    """Raise TypeError where the density of an SB3 policy of on-policy algorithms is not the policy's own distribution,
    because its class makes another one of its networks.
    """
    policy: Any = density.module
    if getattr(policy, "actor", None) is not None:  # asked for its own parameters
        return
    width = policy.observation_space.shape[0]
    rows = torch.linspace(-1, 1, 4 * width, device=policy.device).view(4, width)
    with torch.no_grad(), evaluation_mode(policy):
        own = policy.get_distribution(rows).distribution
        mean, log_std = density.gaussian(rows)
    if not (torch.allclose(own.mean, mean, atol=1e-5) and torch.allclose(own.stddev, log_std.exp(), atol=1e-5)):
        raise TypeError(
            f"{type(policy).__name__} makes another distribution of its networks than SB3's own policies do: hand over "
            "an ActionDensity of it."
        )


def _at(device: torch.device, gaussian: Gaussian) -> Gaussian:
    """``gaussian``, which computes on ``device``, for observations on any: SB3 puts small networks where it likes."""

    def moved(observation: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = gaussian(observation.to(device))
        return mean.to(observation.device), log_std.to(observation.device)

    return moved


def torchrl_density(actor: Any, mdp: DenoisingMDP, coordinates: str = "noise") -> ActionDensity:
    """A TorchRL ProbabilisticActor with IndependentNormal or TanhNormal, reading "observation".

    Raises TypeError for other distributions or inputs.
    """
    tensordict = require("tensordict", "torchrl")
    distributions = require("torchrl.modules.distributions", "torchrl")
    if "observation" not in actor.in_keys:
        raise TypeError(f'a TorchRL actor must read "observation", it reads {actor.in_keys}.')

    def distribution(observation: Tensor) -> Any:
        return actor.get_dist(tensordict.TensorDict({"observation": observation}, [len(observation)]))

    device = next((parameter.device for parameter in actor.parameters()), mdp.device)
    with torch.no_grad():
        example = distribution(torch.zeros(1, mdp.dim + len(told_of(mdp, 0)), device=device))

    if isinstance(example, distributions.TanhNormal):

        def squashed(observation: Tensor) -> tuple[Tensor, Tensor]:
            dist = distribution(observation)
            return dist.loc, dist.scale.log()

        low, high = (bound.expand(mdp.dim).to(mdp.device) for bound in (example.low, example.high))
        return ActionDensity(_at(device, squashed), mdp, coordinates, squashed=(low, high), module=actor)
    if not isinstance(example, distributions.IndependentNormal):
        raise TypeError(
            "only TorchRL actors with IndependentNormal or TanhNormal have a density here, got "
            f"{type(example).__name__}."
        )

    def gaussian(observation: Tensor) -> tuple[Tensor, Tensor]:
        dist = distribution(observation)
        return dist.mean, dist.stddev.log()

    space = getattr(actor.spec["action"] if actor.spec is not None else None, "space", None)
    bounds = None
    if space is not None and hasattr(space, "low"):
        low, high = (bound.reshape(-1)[-mdp.dim :].to(mdp.device) for bound in (space.low, space.high))
        bounds = (low, high)
    return ActionDensity(_at(device, gaussian), mdp, coordinates, bounds=bounds, module=actor)
