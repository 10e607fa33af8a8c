"""What agents with a Gaussian policy of their own share: building the policy, collecting rollouts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.agents.base import Agent, FinalStateHook
from dxmi_rl.agents.policy import CorrectionPolicy, FineTunedPolicy, GaussianPolicy, Recorder, WiderPolicy
from dxmi_rl.diffusion import IdentitySampler
from dxmi_rl.mdp import EnergyError
from dxmi_rl.networks import StepConv, StepMLP
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.torch_tools import adam

CACHED_NUMBERS = 640 * 128
"""Rows times width whose gradient a CPU sums up at once: larger layers leave its cache, and take half as long again."""
LARGEST_LOG_RATIO = 20.0
"""Far beyond every clipping; without it one outlier in many dimensions would give an infinite importance ratio."""
POLICIES = ["auto", "correction", "fine-tuned"]


@dataclass(frozen=True)
class GaussianConfig:
    """Settings of every agent with a Gaussian policy of its own."""

    batch_size: int = 256
    """Trajectories per iteration."""
    policy: str = "auto"
    """"correction" (a network on top of the fixed base mean), "fine-tuned" (the pretrained network itself), or "auto":
    fine-tuned for images, correction for vectors."""
    width: int = 64
    """Units per layer of policy and value networks."""
    depth: int = 3
    """Hidden layers (blocks when ``residual``) of policy and value networks."""
    fourier: int = 0
    """Fourier frequencies of the correction network's input."""
    coordinate_width: int = 0
    """Units per layer of a second network of the correction, which sees one coordinate at a time and is shared between
    all; 0: none. Where the energy is nearly a sum over coordinates, in many dimensions, it learns far faster (give the
    learned kernel one, too: ``backward_options={"coordinate_width": 32}``)."""
    value_coordinate_width: int = 0
    """The same for the value network, whose second network then is a mean over coordinates."""
    value_fourier: int | None = None
    """Fourier frequencies of the value network's input; None: 4, but for DxDP in more than 3 dimensions (0 there)."""
    residual: bool = False
    """Residual blocks in the value network."""
    convolutional_value: bool = False
    """The value network of images is a residual convolutional network: ``width`` channels, ``depth`` blocks per stage;
    without ``value_fourier`` and ``value_coordinate_width``."""
    state_dependent_sigma: bool = True
    """The correction network also shapes sigma, per dimension."""
    energy_gradient: bool | None = None
    """The correction network is given grad E at the current state, one more evaluation per transition; None: where the
    base sampler is None, as only the energy says there where to go."""
    fixed_last_sigma: bool = False
    """Keep sigma_{T-1}, the smallest, at the base sampler's."""
    trained_steps: int | None = None
    """Train the last so many steps only; those before stay the base sampler's, as in DPPO (Ren et al. 2024, arXiv
    2409.00588). None, or more than there are: all."""
    policy_learning_rate: float | None = None
    """Peak rate of the policy's mean; None: 1e-3 for a correction, 3e-5 for a fine-tuned network."""
    sigma_learning_rate: float | None = None
    """Peak rate of log sigma; None: 3e-3 for a correction, 3e-4 for a fine-tuned network."""
    value_learning_rate: float = 2e-3
    """Peak rate of the value network."""
    clip_gradient: float = 1.0
    """Largest norm of a policy gradient."""
    kernel_steps: int = 1
    """Fits of the backward kernel per rollout; one that lags behind its policy loosens the bound."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""


@dataclass
class Rollout:
    """One batch of episodes, flattened to T n transitions, time-major.

    ``x``, ``x_next`` ``[T n, *event]``; ``t`` ``[T n]``; ``log_prob`` ``[T n]``; ``reference`` as ``x`` or None.
    """

    trajectory: Trajectory
    x: Tensor
    x_next: Tensor
    t: Tensor
    log_prob: Tensor
    reference: Tensor | None

    def late(self, first: int) -> Rollout:
        """Its transitions from step ``first`` on."""
        rows = first * self.trajectory.x.shape[1]
        reference = None if self.reference is None else self.reference[rows:]
        late = (self.x[rows:], self.x_next[rows:], self.t[rows:], self.log_prob[rows:], reference)
        return Rollout(Trajectory(self.trajectory.x[first:], self.trajectory.log_prob[first:]), *late)


class GaussianAgent(Agent):
    """An agent that samples with a GaussianPolicy in next-state coordinates."""

    policy: GaussianPolicy
    config: Any
    uses_value: bool = True
    """There is a value network; checkpoints hold it only then."""

    def _build(self) -> None:
        config = self.config
        for key in ("batch_size", "width", "depth", "kernel_steps"):
            check_integer(key, getattr(config, key))
        check_real("value_learning_rate", config.value_learning_rate)
        check_real("clip_gradient", config.clip_gradient, strict=True)
        if not self.mdp.has_energy:
            raise EnergyError(
                f"task {self.task.name!r} has no energy to learn from: pass task=make_task({self.task.name!r}, "
                "energy=...), or learn one with dxmi_rl.DxMI."
            )
        if config.policy not in POLICIES:
            raise UnknownNameError("policy", config.policy, POLICIES)
        kind = config.policy
        if kind == "auto":
            kind = "fine-tuned" if len(self.mdp.event_shape) == 3 else "correction"
        self.owns_denoiser = kind == "fine-tuned"
        informed = config.energy_gradient
        if informed is None:
            informed = kind == "correction" and isinstance(self.mdp.base, IdentitySampler)
        self.informed = informed
        if kind == "correction":
            policy: GaussianPolicy = CorrectionPolicy(
                self.mdp, width=config.width, depth=config.depth, fourier=config.fourier,
                state_dependent_sigma=config.state_dependent_sigma, energy_gradient=informed,
                coordinate_width=check_integer("coordinate_width", config.coordinate_width, minimum=0),
            )  # fmt: skip
        elif config.coordinate_width:
            raise ValueError("coordinate_width must be 0 for policy 'fine-tuned', whose network is the pretrained one.")
        elif informed:
            raise ValueError("energy_gradient must be False or None for policy 'fine-tuned', which has no such input.")
        else:
            policy = FineTunedPolicy(self.mdp)
        self.policy = policy.to(self.mdp.device)
        if self.uses_value:
            self.value = self.make_value().to(self.mdp.device)

        # Sigma of a deterministic base is 0 and cannot be learned in log space.
        if not bool(torch.isfinite(self.policy.log_sigma.detach()).all()):
            raise ValueError("a deterministic base sampler (DDIM with eta = 0) cannot start a Gaussian policy.")
        if config.fixed_last_sigma:
            self.policy.hold_last_sigma()
        if config.trained_steps is not None:
            held = self.mdp.horizon - check_integer("trained_steps", config.trained_steps)
            if held > 0:
                self.policy.hold_first_steps(held)
        # A pretrained network is moved gently; a correction starts at zero and has everything to learn.
        rates = (3e-5, 3e-4) if self.owns_denoiser else (1e-3, 3e-3)
        given = (config.policy_learning_rate, config.sigma_learning_rate)
        names = ("policy_learning_rate", "sigma_learning_rate")
        mean_rate, sigma_rate = (
            rate if own is None else check_real(name, own) for name, own, rate in zip(names, given, rates, strict=True)
        )
        self.policy_optimizer = adam(
            [(self.policy.mean_parameters(), mean_rate), ([self.policy.log_sigma], sigma_rate)]
        )
        if self.uses_value:
            self.value_optimizer = adam([(list(self.value.parameters()), config.value_learning_rate)])

    def make_value(self) -> nn.Module:
        """The value network: (x, t) -> ``[batch, 1]`` in units of ``value_unit``."""
        return self.value_network(self.mdp.state_scale[:-1])

    def value_network(self, scale: Tensor) -> StepMLP | StepConv:
        """One with a step for every entry of ``scale``."""
        config = self.config
        if config.convolutional_value:
            for key in ("value_fourier", "value_coordinate_width"):
                if getattr(config, key):
                    raise ValueError(f"{key} must be 0 for a convolutional value, got {getattr(config, key)!r}.")
            return StepConv(self.mdp.event_shape, 1, scale, width=config.width, depth=config.depth)
        return StepMLP(
            self.mdp.dim, 1, scale, width=config.width, depth=config.depth, fourier=self.value_frequencies,
            residual=config.residual, dim=self.mdp.dim, pooled=True,
            coordinate_width=check_integer("value_coordinate_width", config.value_coordinate_width, minimum=0),
        )  # fmt: skip

    @property
    def value_frequencies(self) -> int:
        """``value_fourier``, or what None stands for."""
        chosen = self.config.value_fourier
        return 4 if chosen is None else check_integer("value_fourier", chosen, minimum=0)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        policy: dict[str, torch.optim.Optimizer] = {"policy": self.policy_optimizer}
        return policy | {"value": self.value_optimizer} if self.uses_value else policy

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | ({"value": self.value} if self.uses_value else {})

    @property
    def value_unit(self) -> float:
        """What the value network counts in: tau d, the spread of a soft return; 1 when tau = 0."""
        return self.mdp.tau * self.mdp.dim or 1.0

    def values(self, x: Tensor, t: Tensor | int) -> Tensor:
        """V_t(x): ``[batch]``."""
        return self.value_unit * self.value(x, t).squeeze(1)

    def update_value(self, x: Tensor, t: Tensor, targets: Tensor) -> Tensor:
        """One Adam step on (V_t(x) - target)^2 in units of ``value_unit``: its steps mean the same at every tau."""
        self.value_optimizer.zero_grad(set_to_none=True)
        places = math.prod(self.mdp.event_shape[1:]) if self.config.convolutional_value else 1
        rows = max(1, CACHED_NUMBERS // (self.config.width * places)) if x.device.type == "cpu" else len(x)
        total = targets.new_zeros(())
        for part in range(0, len(x), rows):
            chosen = slice(part, part + rows)
            error = self.value(x[chosen], t[chosen]) - (targets[chosen] / self.value_unit)[:, None]
            loss = error.square().mean(1).sum() / len(x)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.value.parameters(), 10.0)
        self.value_optimizer.step()
        return total

    def step_policy(self, loss: Tensor, transitions: int) -> Tensor:
        """One clipped Adam step on a policy loss over so many transitions."""
        self.policy_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.clip_gradient)
        self.policy_optimizer.step()
        if self.owns_denoiser:  # a policy that is the denoiser pays a call per transition, others none
            self.costs.denoiser_calls += transitions
        return loss.detach()

    def count_references(self, states: int) -> None:
        """Costs of the untrained part of the mean at so many states."""
        self.costs.denoiser_calls += states * self.mdp.base.denoiser_calls
        if self.informed:
            self.costs.energy_evals += states
            self.costs.energy_grad_evals += states

    def wider(self, exploration: float, part: float) -> GaussianPolicy:
        """The policy, wider by so many of the base sampler's sigmas, which fall to 0 over ``part`` of the budget."""
        if not (extra := exploration * max(0.0, 1 - self.progress / part)):
            return self.policy
        further = extra * self.mdp.base.sigma
        further[: self.policy.held_steps] = 0.0
        return WiderPolicy(self.policy, further)

    def episodes(self, policy: Any, n: int) -> Trajectory:
        """The n episodes of a rollout; agents that choose their own starts define it anew."""
        return self.mdp.rollout(policy, n, self.generator)

    def collect(self, on_final: FinalStateHook | None, policy: GaussianPolicy | None = None) -> Rollout:
        """Roll out ``batch_size`` episodes of ``policy`` (the agent's), hand x_T to ``on_final``, fit the kernel."""
        recorder = Recorder(self.policy if policy is None else policy)
        n = self.config.batch_size
        with torch.no_grad():
            trajectory = self.episodes(recorder, n)
            x, x_next, t = trajectory.transitions()
        if on_final is not None:
            on_final(trajectory.final)
        for _ in range(self.config.kernel_steps):
            self.mdp.kernel.fit(x, x_next, t)
        self.costs.timesteps += len(x)
        self.costs.policy_draws += len(x)
        self.costs.energy_evals += n
        self.count_references(len(x))
        return Rollout(trajectory, x, x_next, t, trajectory.log_prob.flatten(), recorder.stacked())


def importance_ratio(log_prob: Tensor, behaviour_log_prob: Tensor) -> Tensor:
    """pi / behaviour from the two log-probs, ``[batch]`` each, bounded by exp(LARGEST_LOG_RATIO)."""
    return (log_prob - behaviour_log_prob).clamp(max=LARGEST_LOG_RATIO).exp()
