"""Value guidance: at sampling time, every state is moved down the gradient of its value (Yoon et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from dxmi_rl.agents.base import Agent, ConfigT
from dxmi_rl.agents.policies import GaussianPolicy
from dxmi_rl.agents.values import Lookahead, ValueFunction
from dxmi_rl.diffusion.gaussian import standard_log_prob
from dxmi_rl.live_energy import Energy, EnergyError
from dxmi_rl.smc import Twist
from dxmi_rl.utils.checks import check_real
from dxmi_rl.utils.torch_tools import input_gradient


class GuidedPolicy:
    """x_{t+1} <- x_{t+1} - weight sigma_t grad V_{t+1}(x_{t+1}) after each draw of ``policy``,
    anything with ``moments``; for ``mdp.sample``.

    ``soft_value(x, t)`` gives V_t ``[batch]`` for t = 1..T, low where samples should go, with V_T = E. ``weight``
    (lambda) is a length per nat: it scales with the data's width over tau.
    What is moved has no simple density: the log-probability that ``transport`` returns is that of the draw before.
    Raises TypeError or ValueError for a weight that is not finite and >= 0.
    """

    def __init__(self, policy: Any, soft_value: Callable[[Tensor, int], Tensor], weight: float) -> None:
        self.policy, self.soft_value = policy, soft_value
        self.weight = check_real("guidance", weight)

    def transport(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x_{t+1} (shape of x), and log pi of the unguided draw ``[batch]``."""
        assert isinstance(t, int), "rollouts count their steps with numbers"
        mean, log_std = self.policy.moments(x, t)
        sigma = log_std.exp()
        draw = mean + sigma * noise
        slope = input_gradient(lambda point: self.soft_value(point, t + 1), draw)
        return draw - self.weight * sigma * slope, standard_log_prob(noise, log_std)

    def log_prob(self, x: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        """Raises TypeError: where a state came from before it was moved is not known."""
        raise TypeError("a guided policy has no density: score the policy without guidance.")


class GuidedAgent(Agent[ConfigT]):
    """An agent that learns soft values, which can guide its samples."""

    policy: GaussianPolicy
    value: ValueFunction
    lookahead: Lookahead | None

    def guided(
        self, weight: float, *, policy: nn.Module | None = None, energy: Energy | None = None
    ) -> GuidedPolicy:  # fmt: skip
        """The policy (or another one) moved by the gradients of V_t, t < T, and at the end of the live energy (or
        another one).
        """
        mdp = self.mdp
        if energy is None and mdp.energy.values_only:
            raise EnergyError("guidance needs the energy's gradient at the last step, and the task gives none.")
        last: Energy = mdp.finite_energy if energy is None else energy
        followed = self.policy if policy is None else policy

        def soft_value(x: Tensor, t: int) -> Tensor:
            if t == mdp.horizon:
                return last(x)
            learned: Tensor = self.value(x, t)
            return learned if self.lookahead is None else learned + self.lookahead(x, t, policy=followed, energy=last)

        return GuidedPolicy(followed, soft_value, weight)

    def sample(
        self, n: int, *, seed: int | None = None, guidance: float = 0.0, particles: int | None = None,
        twist: Twist | None = None,
    ) -> Tensor:  # fmt: skip
        """As an agent's; with ``guidance`` > 0, lambda, samples are moved by the values' gradients (GuidedPolicy).

        Raises ValueError for guidance of particles: what is moved has no density.
        """
        if not guidance:
            return super().sample(n, seed=seed, particles=particles, twist=twist)
        check_unguided(particles, twist)
        return self.mdp.sample(self.guided(guidance), n, self.generator_of(seed))


def check_unguided(particles: int | None, twist: Twist | None) -> None:
    """Raise ValueError for particles or a twist beside guidance."""
    if particles is not None or twist is not None:
        raise ValueError("guidance must be 0 with particles or a twist: what is moved has no density.")
