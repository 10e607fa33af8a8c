"""Twisting functions for sequential Monte Carlo that are fitted to a finished policy."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.agents.base import Agent
from dxmi_rl.agents.energy_model import EnergyModel
from dxmi_rl.agents.settings import ValueConfig
from dxmi_rl.agents.values import MAX_VALUE_GRAD_NORM, ValueFunction, value_network
from dxmi_rl.diffusion import BackwardKernel
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.live_energy import Energy, LiveEnergy
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Policy
from dxmi_rl.smc import weighable
from dxmi_rl.utils.checks import check_integer, check_seed
from dxmi_rl.utils.torch_tools import adam, gradient_step, seeded

STEPS = 2000
"""Adam steps of ``fit_twist``."""
BATCH = 128
"""Chains per step."""
LEARNING_RATE = 3e-3
"""Peak rate; it falls to zero as a cosine."""
ENERGY_EVALS = 2000
"""Energies that psi_T is fitted to where there is no model of the energy."""
ENERGY_STEPS = 1000
"""Adam steps of that fit."""
AT_ONCE = 16
"""Batches of chains that are rolled out together."""
KNEE = 3.0
"""Errors, in nats, beyond which the loss grows linearly: few chains have weights that are far off."""


class FittedTwist(nn.Module):
    """log psi_t(x) = log N(x; 0, scale_t^2 I) + network(x, t) for t < T, and -E_hat(x) / temperature for t = T.

    A twist for ``particle_filter`` and ``Agent.sample`` of the ``horizon`` and ``temperature`` that it was fitted to;
    scale_t is the MDP's ``state_scale``.

    Attributes:
        energy_evals: energies that were asked for to fit it.
    """

    def __init__(
        self, mdp: DenoisingMDP, config: ValueConfig, last: ValueFunction, temperature: float
    ) -> None:  # fmt: skip
        super().__init__()
        self.horizon, self.temperature, self.unit = mdp.horizon, temperature, float(mdp.dim)
        self.network = value_network(mdp, config).to(mdp.device)
        self.register_buffer("log_scale", mdp.state_scale.log(), persistent=False)
        self.last = last
        self.energy_evals = 0

    log_scale: Tensor

    def forward(self, x: Tensor, t: Tensor | int) -> Tensor:
        """log psi_t(x): ``[batch]``; a LongTensor t holds steps before T."""
        if isinstance(t, int) and t == self.horizon:
            log_psi: Tensor = -self.last(x, 0) / self.temperature
            return log_psi
        learned: Tensor = self.network(x, t)
        rough = gaussian_log_prob(x, torch.zeros_like(x), per_step(self.log_scale, t, x))
        return rough + self.unit * learned.squeeze(1)


def fit_twist(
    model: Agent[Any] | tuple[DenoisingMDP, Policy], *, kernel: BackwardKernel | None = None,
    energy: Energy | None = None, temperature: float | None = None, steps: int = STEPS, seed: int = 0,
) -> FittedTwist:  # fmt: skip
    """Twisting functions that make the weights of a policy's chains as even as they can be, step by step.

    The loss is the sum over steps of the variance, over chains of the policy, of the weight's increments log psi_{t+1}
    + log qb - log pi - log psi_t, and of log psi_0 - log p_0; errors beyond KNEE nats count linearly. E_hat stands for
    the energy, so chains cost no energies: it is the agent's own where it has one of the energy that it has now (DxDP),
    else a model fitted to ENERGY_EVALS energies, and gradients where there are some, at x_T of the policy.

    Soft values are no substitute: they are means of the log of what psi is the mean of, and their errors of a few nats
    put all weight on few chains.

    Args:
        model: a trained agent, or an MDP and a policy with a density; of one for several horizons, ``agent.at(T)``.
        kernel: the backward kernel of the weights; None: the MDP's.
        energy: in place of the MDP's, and of a model of it that the agent has; None: for games the averaged one.
        temperature: of the target; None: ``mdp.tau``.
        steps: Adam steps, of BATCH chains each.
        seed: of the networks and the chains.

    Raises ValueError for a temperature of 0, an agent without a density and bad sizes, TypeError where episodes start
    at noised data.
    """
    check_integer("steps", steps)
    check_seed(seed)
    if isinstance(model, Agent):
        if not model.has_density:
            raise ValueError(f"particles need the density of a policy, and agent {model.name!r} has none.")
        model = model.at(model.mdp.horizon)
        mdp, policy = model.mdp, model.density()
        config = getattr(model.config, "value", None)
        energy_model = getattr(model, "energy_model", None)
        energy = getattr(model, "average_energy", None) if energy is None else energy
    else:
        (mdp, policy), config, energy_model = model, None, None
    temperature = weighable(mdp, temperature)
    config = config if isinstance(config, ValueConfig) else ValueConfig()
    config = replace(config, fourier=None) if config.fourier else config  # fewer frequencies in many dimensions
    generator = torch.Generator(mdp.device).manual_seed(seed)
    evaluations = 0
    with torch.enable_grad(), seeded(seed):
        if energy is None and isinstance(energy_model, EnergyModel) and energy_model.current:
            last = copy.deepcopy(energy_model.value)  # the agent's own goes on learning
        else:
            fitted, evaluations = EnergyModel(mdp, config), ENERGY_EVALS
            final = mdp.sample(policy, ENERGY_EVALS, generator)
            live = mdp.energy if energy is None else LiveEnergy(energy)
            fitted.add(final, *live.value_and_gradient(final))
            fitted.fit(ENERGY_STEPS, generator)
            last = fitted.value
        twist = FittedTwist(mdp, config, last, temperature)
        twist.energy_evals = evaluations
        _fit(twist, mdp, policy, mdp.kernel if kernel is None else kernel, steps, generator)
    return twist.requires_grad_(False)


def _fit(
    twist: FittedTwist, mdp: DenoisingMDP, policy: Policy, kernel: BackwardKernel, steps: int,
    generator: torch.Generator,
) -> None:  # fmt: skip
    optimizer, horizon = adam([(list(twist.network.parameters()), LEARNING_RATE)]), mdp.horizon
    for step in range(steps):
        if step % AT_ONCE == 0:  # rollouts are cheaper in large batches
            with torch.no_grad():
                chains = mdp.rollout(policy, BATCH * AT_ONCE, generator)
                x, x_next, t = chains.transitions()
                ratios = kernel.log_prob(x, x_next, t).view(horizon, -1) - chains.log_prob
                last, start = twist(chains.final, horizon), mdp.start_log_prob(chains.x[0])
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = slice(step % AT_ONCE * BATCH, (step % AT_ONCE + 1) * BATCH)
        states = chains.x[:-1, rows].flatten(0, 1)
        steps_of = torch.arange(horizon, device=states.device).repeat_interleave(BATCH)
        log_psi = torch.cat([twist(states, steps_of).view(horizon, -1), last[None, rows]])
        increments = torch.cat([(log_psi[0] - start[rows])[None], ratios[:, rows] + log_psi[1:] - log_psi[:-1]])
        errors = (increments - increments.mean(1, keepdim=True)) / KNEE
        loss = (torch.hypot(torch.ones_like(errors), errors) - 1).sum(0).mean()
        gradient_step(optimizer, twist.network, loss, MAX_VALUE_GRAD_NORM)
