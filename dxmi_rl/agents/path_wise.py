"""Path-wise: the reverse KL differentiated through the whole rollout (PIS: Zhang and Chen 2022, arXiv 2111.15141; DDS:
Vargas et al. 2023, arXiv 2302.13834), or its last steps only (DRaFT-K: Clark et al. 2024, arXiv 2309.17400; AlignProp:
Prabhudesai et al. 2023, arXiv 2310.03739).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dxmi_rl.agents.base import FinalStateHook
from dxmi_rl.agents.gaussian import GaussianAgent, GaussianConfig
from dxmi_rl.agents.policy import CorrectionPolicy, EnergyGradient
from dxmi_rl.diffusion.gaussian import gaussian_log_prob, standard_log_prob
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer
from dxmi_rl.utils.torch_tools import frozen


@dataclass(frozen=True)
class PathWiseConfig(GaussianConfig):
    """Settings of PathWise. It has no value network: ``value_*`` and ``residual`` change nothing."""

    last_steps: int | None = None
    """Steps at the end that gradients flow through (DRaFT's K); earlier ones are not trained. None: all of them."""
    checkpointing: bool = False
    """Keep only the states and compute each step again in the backward pass: less memory, more evaluations."""
    sticking: bool = True
    """log pi at fixed parameters (Roeder et al. 2017, arXiv 1703.09194); one more pass of the network per step."""
    detach_energy_gradient: bool = True
    """Take the grad E that the network is given, if it is, as a constant: biased, but without second derivatives of E,
    which make the gradient far noisier between modes."""


class PathWise(GaussianAgent):
    """Gradient descent on minus the soft return of reparameterised episodes.

    loss = E[ E(x_T) + tau sum_t ( log pi(x_{t+1} | x_t) - log qb(x_t | x_{t+1}) ) ] / T, which at tau = 1 is the KL
    bound of docs/method.md up to constants: the objective of PIS and DDS with a kernel qb of one's choice. With
    ``sticking`` the direct score of log pi, whose mean is zero, is left out: at the optimum the gradient then vanishes
    on every path (but for what ``detach_energy_gradient`` leaves out of it).

    The first T - K steps of ``last_steps`` = K are run without gradients, log sigma of those steps included.
    """

    name: ClassVar[str] = "path-wise"
    Config: ClassVar[type] = PathWiseConfig
    config: PathWiseConfig
    uses_value: bool = False  # the future is differentiated, not estimated

    def _build(self) -> None:
        super()._build()
        steps = self.config.last_steps
        if steps is not None and check_integer("last_steps", steps) > self.mdp.horizon:
            raise ValueError(f"last_steps must lie in 1..{self.mdp.horizon}, the horizon, got {steps}.")
        self.last_steps = min(steps or self.mdp.horizon, self.mdp.horizon - self.policy.held_steps)
        self.sticking = self.config.sticking and self.mdp.tau > 0
        if self.config.detach_energy_gradient and self.informed:
            assert isinstance(self.policy, CorrectionPolicy)
            self.policy.gradient = ConstantEnergyGradient(self.mdp)

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        # A graph through grad E holds the energy, which must not change before it is differentiated: then the same
        # noise is run once without a graph, for ``on_final`` to change the energy.
        held = not self.config.detach_energy_gradient or self.config.checkpointing
        twice = on_final is not None and self.informed and held
        if on_final is not None and twice:
            on_final(self.rehearse())
        with frozen([*self.mdp.kernel.parameters(), *self.mdp.energy_parameters()]):
            trajectory = self.rollout()
        if on_final is not None and not twice:
            on_final(trajectory.final.detach())
        for _ in range(self.config.kernel_steps):
            self.mdp.kernel.fit(*Trajectory(trajectory.x.detach(), trajectory.log_prob).transitions())
        # The backward pass is inside too: it may compute the steps again.
        with frozen([*self.mdp.kernel.parameters(), *self.mdp.energy_parameters()]):
            policy_loss = self.step_policy(self.policy_loss(trajectory), 0)
        return {"policy_loss": policy_loss}

    def rehearse(self) -> Tensor:
        """x_T of the noise that the next ``rollout`` will run."""
        n, state = self.config.batch_size, self.generator.get_state()
        final = self.mdp.sample(self.policy, n, self.generator)
        self.generator.set_state(state)
        self.costs.policy_draws += n * self.mdp.horizon
        self.count_references(n * self.mdp.horizon)
        return final

    def rollout(self) -> Trajectory:
        """``batch_size`` episodes with gradients through their last steps."""
        n, horizon = self.config.batch_size, self.mdp.horizon
        trajectory = self.mdp.rollout(Path(self), n, self.generator, differentiable=True)
        self.costs.timesteps += n * horizon
        self.costs.policy_draws += n * horizon
        # A checkpointed step runs twice, and once more where it differentiates E inside.
        runs = 2 + self.informed if self.config.checkpointing else 1
        tracked = n * self.last_steps
        self.count_references(n * horizon + (runs - 1) * tracked)
        if self.owns_denoiser and self.sticking:
            self.costs.denoiser_calls += runs * tracked
        return trajectory

    def policy_loss(self, trajectory: Trajectory) -> Tensor:
        """Minus the mean soft return per transition."""
        x, tau, horizon = trajectory.x, self.mdp.tau, self.mdp.horizon
        cost = self.mdp.finite_energy(trajectory.final) + tau * trajectory.log_prob.sum(0)
        for t in range(horizon):
            cost = cost - self.recomputed(self.mdp.running_reward, x[t], x[t + 1], t)
        self.costs.energy_evals += len(cost)
        self.costs.energy_grad_evals += len(cost)
        return cost.mean() / horizon

    def recomputed(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments), which with ``checkpointing`` keeps its arguments only."""
        if not self.config.checkpointing:
            return function(*arguments)
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


class Path:
    """The agent's policy for ``mdp.rollout``: truncated, checkpointed and with log pi at fixed parameters."""

    def __init__(self, agent: PathWise) -> None:
        self.agent, self.policy = agent, agent.policy
        self.first = agent.mdp.horizon - agent.last_steps

    def log_prob(self, x: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        """log pi(x_{t+1} | x_t): ``[batch]``."""
        return gaussian_log_prob(x_next, *self.policy.moments(x, t))

    def transport(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x_{t+1} (shape of x) and log pi(x_{t+1} | x_t) ``[batch]``; t is a number, as in every rollout."""
        if t < self.first:
            with torch.no_grad():
                return self.plain(x, t, noise)
        return self.agent.recomputed(self.stuck if self.agent.sticking else self.plain, x, t, noise)

    def plain(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The reparameterised step."""
        mean, log_std = self.policy.moments(x, t)
        return mean + log_std.exp() * noise, standard_log_prob(noise, log_std)

    def stuck(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The same numbers; the gradient of log pi is without its direct part, the score at a fixed (x_t, x_{t+1})."""
        reference = self.policy.reference(x, t)
        references = None if reference is None else torch.cat([reference, reference.detach()])
        means, log_stds = self.policy.moments(torch.cat([x, x.detach()]), t, references)
        (mean, mean_there), (log_std, log_std_there) = means.chunk(2), log_stds.expand_as(means).chunk(2)
        x_next = mean + log_std.exp() * noise
        score = gaussian_log_prob(x_next.detach(), mean_there, log_std_there)
        return x_next, standard_log_prob(noise, log_std) - (score - score.detach())


class ConstantEnergyGradient(EnergyGradient):
    """-grad E as a constant, as the public codes of PIS and DDS take it."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x.detach())
