"""Path-wise: the reverse KL differentiated through the whole rollout (PIS: Zhang and Chen 2022, arXiv 2111.15141; DDS:
Vargas et al. 2023, arXiv 2302.13834), or its last steps only (DRaFT-K: Clark et al. 2024, arXiv 2309.17400; AlignProp:
Prabhudesai et al. 2023, arXiv 2310.03739).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.gradients import EnergyGradient
from dxmi_rl.agents.policies import CorrectionPolicy, GaussianPolicy, make_policy, policy_optimizer
from dxmi_rl.agents.settings import PolicyConfig
from dxmi_rl.diffusion.gaussian import gaussian_log_prob, standard_log_prob
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.torch_tools import frozen, gradient_step


@dataclass(frozen=True)
class PathConfig:
    """Settings of gradients through rollouts."""

    last_steps: int | None = None
    """Steps at the end that gradients flow through (DRaFT's K); earlier ones are not trained. None: all of them."""
    checkpointing: bool = False
    """Keep only the states and compute each step again in the backward pass: less memory, more evaluations."""
    score_free: bool = True
    """Leave the direct score of log pi, whose mean is zero, out of the gradient ("sticking the landing", Roeder et al.
    2017, arXiv 1703.09194); one more pass of the network per step."""
    detach_energy_gradient: bool = True
    """Take the grad E that the network is given, if it is, as a constant: biased, but without second derivatives of E,
    which make the gradient far noisier between modes."""

    def __post_init__(self) -> None:
        if self.last_steps is not None:
            check_integer("path.last_steps", self.last_steps)


@dataclass(frozen=True)
class PathWiseConfig:
    """Settings of PathWise."""

    n_trajectories: int = 64
    """Trajectories per iteration."""
    max_grad_norm: float = 0.948
    """Largest norm of a policy gradient."""
    kernel_steps: int = 4
    """Fits of the backward kernel per rollout; one that lags behind its policy loosens the bound."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    path: PathConfig = field(default_factory=PathConfig)
    """Gradients through rollouts."""
    policy: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(learning_rate=0.000259, sigma_learning_rate=0.0206)
    )
    """The policy."""

    def __post_init__(self) -> None:
        for key in ("n_trajectories", "kernel_steps"):
            check_integer(key, getattr(self, key))
        check_real("max_grad_norm", self.max_grad_norm, strict=True)


class PathWise(Agent[PathWiseConfig]):
    """Gradient descent on minus the soft return of reparameterised episodes.

    loss = E[ E(x_T) + tau sum_t ( log pi(x_{t+1} | x_t) - log qb(x_t | x_{t+1}) ) ] / T, which at tau = 1 is the KL
    bound of docs/method.md up to constants: the objective of PIS and DDS with a kernel qb of one's choice. Without the
    direct score of log pi (``path.score_free``) the gradient vanishes on every path at the optimum (but for what
    ``path.detach_energy_gradient`` leaves out of it).

    The first T - K steps of ``path.last_steps`` = K are run without gradients, log sigma of those steps included.
    """

    name: ClassVar[str] = "path-wise"
    needs_gradient: ClassVar[bool] = True
    Config = PathWiseConfig
    policy: GaussianPolicy

    def _build(self) -> None:
        self.require_energy()
        config = self.config
        self.policy = make_policy(self.mdp, config.policy)
        self.policy_optimizer = policy_optimizer(self.policy, config.policy)
        self.path = Path(self.mdp, self.policy, config.path)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer}

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        return path_step(self, self.path, on_final)


def path_step(agent: Agent[Any], path: Path, on_final: FinalStateHook | None) -> Log:
    """One rollout with gradients, and one step of the agent's optimiser "policy" on the loss of ``path``: the log.

    Before the loss, x_T is handed to ``on_final``, which may change the energy, and the backward kernel is fitted.
    """
    mdp, config, n = agent.mdp, agent.config, agent.config.n_trajectories
    if on_final is not None and path.graph_holds_energy:
        # The energy must change before the rollout: the same noise is run once without a graph, for ``on_final`` alone.
        state = agent.generator.get_state()
        on_final(mdp.sample(path.policy, n, agent.generator))
        agent.generator.set_state(state)
    with path.frozen():
        trajectory = mdp.rollout(path, n, agent.generator, differentiable=True)
    agent.costs.timesteps += n * mdp.horizon
    if on_final is not None and not path.graph_holds_energy:
        on_final(trajectory.final.detach())
    for _ in range(config.kernel_steps):
        mdp.kernel.fit(*Trajectory(trajectory.x.detach(), trajectory.log_prob).transitions())
    with path.frozen():  # the backward pass may compute the steps again
        loss = path.loss(trajectory)
        return {"policy_loss": gradient_step(agent.optimizers()["policy"], path.policy, loss, config.max_grad_norm)}


class Path:
    """A policy for ``mdp.rollout`` with gradients: truncated, checkpointed and without the score of log pi.

    Raises ValueError for ``last_steps`` beyond the horizon.
    """

    def __init__(self, mdp: DenoisingMDP, policy: GaussianPolicy, config: PathConfig) -> None:
        if config.last_steps is not None and config.last_steps > mdp.horizon:
            raise ValueError(f"path.last_steps must lie in 1..{mdp.horizon}, the horizon, got {config.last_steps}.")
        self.mdp, self.policy, self.checkpointing = mdp, policy, config.checkpointing
        last_steps = min(config.last_steps or mdp.horizon, mdp.horizon - policy.frozen_steps)
        self.first = mdp.horizon - last_steps
        self.score_free = config.score_free and mdp.tau > 0
        if config.detach_energy_gradient and isinstance(policy, CorrectionPolicy) and policy.gradient is not None:
            policy.gradient = EnergyGradient(mdp.energy, constant=True)
        # Whether the backward pass needs grad E of the rollout: then the energy must not change in between.
        self.graph_holds_energy = policy.sees_gradient and (not config.detach_energy_gradient or config.checkpointing)

    def frozen(self) -> Any:
        """No gradients for the kernel and the energy inside."""
        return frozen([*self.mdp.kernel.parameters(), *self.mdp.energy.parameters()])

    def loss(self, trajectory: Trajectory) -> Tensor:
        """Minus the mean soft return per transition."""
        x, tau, horizon = trajectory.x, self.mdp.tau, self.mdp.horizon
        cost = self.mdp.finite_energy(trajectory.final) + tau * trajectory.log_prob.sum(0)
        for t in range(horizon):
            cost = cost - self.recomputed(self.mdp.running_reward, x[t], x[t + 1], t)
        return cost.mean() / horizon

    def recomputed(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments), which with ``checkpointing`` keeps its arguments only."""
        if not self.checkpointing:
            return function(*arguments)
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)

    def log_prob(self, x: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        """log pi(x_{t+1} | x_t): ``[batch]``."""
        return gaussian_log_prob(x_next, *self.policy.moments(x, t))

    def transport(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x_{t+1} (shape of x) and log pi(x_{t+1} | x_t) ``[batch]``; t is a number, as in every rollout."""
        if t < self.first:
            with torch.no_grad():
                return self.plain_step(x, t, noise)
        step: tuple[Tensor, Tensor]
        step = self.recomputed(self.score_free_step if self.score_free else self.plain_step, x, t, noise)
        return step

    def plain_step(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The reparameterised step."""
        mean, log_std = self.policy.moments(x, t)
        return mean + log_std.exp() * noise, standard_log_prob(noise, log_std)

    def score_free_step(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The same numbers; the gradient of log pi is without its direct part, the score at a fixed (x_t, x_{t+1})."""
        base_mean = self.policy.base_mean(x, t)
        both = None if base_mean is None else torch.cat([base_mean, base_mean.detach()])
        means, log_stds = self.policy.moments(torch.cat([x, x.detach()]), t, both)
        (mean, mean_there), (log_std, log_std_there) = means.chunk(2), log_stds.expand_as(means).chunk(2)
        x_next = mean + log_std.exp() * noise
        score = gaussian_log_prob(x_next.detach(), mean_there, log_std_there)
        return x_next, standard_log_prob(noise, log_std) - (score - score.detach())
