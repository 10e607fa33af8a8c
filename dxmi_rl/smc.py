"""Sequential Monte Carlo: chains of a policy that are weighted, and resampled where they are on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dxmi_rl.costs import count_draws
from dxmi_rl.diffusion import BackwardKernel
from dxmi_rl.live_energy import Energy, LiveEnergy, require_finite_energy
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Policy, draw_with_log_prob
from dxmi_rl.utils.checks import NonFiniteError, all_finite, check_integer, check_real

Twist = Callable[[Tensor, int], Tensor]
"""A twisting function, log psi_t(x) of states ``[batch, *event_shape]`` for t = 0..T: ``[batch]``. psi_t stands for the
mean of what the weight of a chain at x_t is multiplied by later on; a constant per step changes nothing."""

RESAMPLE_BELOW = 0.5
"""A system is resampled before a step where its effective sample size, as a fraction, is below this."""
ROWS = 1_024
"""Particles of one batch, about; more systems are run one batch after the other. Small batches, which stay in a
processor's cache, take half the time with networks on pairs of particles, and little memory."""


@dataclass
class Particles:
    """n systems of K weighted particles.

    Attributes:
        x: x_T, ``[n, K, *event_shape]``.
        log_weights: ``[n, K]``; means under the target are weighted means.
        log_z: log of every system's unbiased estimate of Z, ``[n]``.
        ess: effective sample size as a fraction, before every step and of the last weights, ``[T + 1, n]``; with
            ``candidates`` also, as the row before the last, when the K were chosen.
        ancestors: whose continuation each particle is: for every row of ``ess`` but the last, the indices at that row
            of the particles that went on, ``[n, number]``.
    """

    x: Tensor
    log_weights: Tensor
    log_z: Tensor
    ess: Tensor
    ancestors: list[Tensor]

    def origins(self) -> Tensor:
        """The index of the x_0 that every particle comes from: ``[n, K]``."""
        found = self.ancestors[0]
        for after in self.ancestors[1:]:
            found = found.gather(1, after)
        return found

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """One state of every system, by its weights: ``[n, *event_shape]``."""
        chosen = torch.multinomial(torch.softmax(self.log_weights, dim=1), 1, generator=generator).squeeze(1)
        return self.x[torch.arange(len(self.x), device=chosen.device), chosen]


@torch.no_grad()
def particle_filter(
    mdp: DenoisingMDP,
    policy: Policy,
    n: int,
    particles: int,
    *,
    twist: Twist | None = None,
    candidates: int = 1,
    kernel: BackwardKernel | None = None,
    energy: Energy | None = None,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
) -> Particles:
    """n systems of ``particles`` chains of ``policy``, each weighted towards exp(-E / temperature), Z its integral.

    Weights start as psi_0(x_0) / p_0(x_0) and are multiplied by psi_{t+1}(x_{t+1}) qb(x_t | x_{t+1}) / (psi_t(x_t)
    pi(x_{t+1} | x_t)) at every step, psi_T = exp(-E / temperature). Before a step a system of few effective particles
    is resampled (systematically, RESAMPLE_BELOW). The product telescopes to the weight of a chain, so the estimate of Z
    is unbiased for any psi (Del Moral 2004; twisted: Guarniero et al. 2017, arXiv 1511.06286; Heng et al. 2020, arXiv
    1708.08396).

    Args:
        twist: log psi_t, such as a FittedTwist. None: chains are weighted at their ends, which is importance sampling.
        candidates: chains per particle. They are run to the end with psi_T of the twist in place of the energy, and as
            many as ``particles`` are chosen by their weights; the energy is asked for these alone.
        kernel: the backward kernel qb; None: the MDP's.
        energy: in place of the MDP's.
        temperature: of the target; None: ``mdp.tau``, which agents aim at; 1 is that of ``evaluate``'s log Z.

    Raises ValueError for a policy without a density, n < 1, particles < 2, candidates < 1, candidates without a twist,
    a temperature that is not positive, or a twist of another shape, horizon or temperature; TypeError for what is no
    policy and where episodes start at noised data; EnergyError for energies and NonFiniteError for states or twists
    that are NaN or infinite.
    """
    check_integer("n", n)
    check_integer("particles", particles, minimum=2)
    check_integer("candidates", candidates)
    temperature = weighable(mdp, temperature)
    if not (hasattr(policy, "moments") or hasattr(policy, "transport")):
        raise TypeError(f"policy must have moments(x, t) or transport(x, t, noise), got {policy!r}.")
    if not getattr(policy, "has_density", True):
        raise ValueError("policy must have a density, which particles are weighted by; this one is deterministic.")
    for key, wanted in {"horizon": mdp.horizon, "temperature": temperature}.items():
        if (found := getattr(twist, key, wanted)) != wanted:
            raise ValueError(f"the twist must be of {key} {wanted:g}, got one of {found:g}.")
    if candidates > 1 and twist is None:
        raise ValueError(f"candidates must be 1 without a twist, which would choose among them, got {candidates}.")
    live = mdp.energy if energy is None else LiveEnergy(energy)
    per_batch = max(1, ROWS // (particles * candidates))
    parts = []
    for first in range(0, n, per_batch):
        systems = _Systems(mdp, policy, min(per_batch, n - first), particles * candidates, twist, kernel, generator)
        parts.append(systems.run(live, temperature, particles))
    return Particles(
        torch.cat([part.x for part in parts]), torch.cat([part.log_weights for part in parts]),
        torch.cat([part.log_z for part in parts]), torch.cat([part.ess for part in parts], dim=1),
        [torch.cat(step) for step in zip(*(part.ancestors for part in parts), strict=True)],
    )  # fmt: skip


def weighted_samples(
    mdp: DenoisingMDP, policy: Policy, n: int, particles: int | None, twist: Twist | None,
    generator: torch.Generator | None, energy: Energy | None = None,
) -> Tensor:  # fmt: skip
    """n states of exp(-E / tau), each drawn from a system of ``particles``: ``[n, *event_shape]``.

    Raises as ``particle_filter``, and ValueError for a twist without particles.
    """
    if particles is None:
        raise ValueError("particles must say how many chains each sample is chosen from, with a twist; got None.")
    return particle_filter(mdp, policy, n, particles, twist=twist, energy=energy, generator=generator).draw(generator)


def weighable(mdp: DenoisingMDP, temperature: float | None = None) -> float:
    """The temperature of the target that chains are weighted towards, ``mdp.tau`` for None.

    Raises ValueError for one that is not positive, TypeError where episodes start at noised data.
    """
    if temperature is None and mdp.tau == 0:
        raise ValueError("tau must be > 0 for particles, which are weighted by exp(-E / tau), got 0.")
    mdp.start_log_prob(torch.zeros(1, *mdp.event_shape, device=mdp.device, dtype=mdp.dtype))  # unknown: it raises
    return check_real("temperature", mdp.tau if temperature is None else temperature, strict=True)


class _Systems:
    """Systems of N chains each on their way."""

    def __init__(
        self, mdp: DenoisingMDP, policy: Policy, n: int, number: int, twist: Twist | None,
        kernel: BackwardKernel | None, generator: torch.Generator | None,
    ) -> None:  # fmt: skip
        self.mdp, self.policy, self.twist, self.generator = mdp, policy, twist, generator
        self.kernel = mdp.kernel if kernel is None else kernel
        self.n, self.number = n, number
        self.x = mdp.reset(n * number, generator)
        self.twisted = self._twist(0)
        self.log_weights = (self.twisted - mdp.start_log_prob(self.x)).view(n, number)
        self.log_z = torch.zeros_like(self.log_weights[:, 0], dtype=torch.float64)
        self.ess: list[Tensor] = []
        self.ancestors: list[Tensor] = []

    def run(self, energy: LiveEnergy, temperature: float, particles: int) -> Particles:
        """All steps, and ``particles`` of each system at the end."""
        horizon = self.mdp.horizon
        for t in range(horizon):
            self._resample(self.number, RESAMPLE_BELOW if self.twist is not None else 0.0)
            self._step(t)
        if particles < self.number:
            self._reweight(self._twist(horizon))
            self._resample(particles, math.inf)
        final = energy(self.x)
        require_finite_energy(self.x, final)
        self._reweight(-final / temperature)
        self.ess.append(_effective(self.log_weights))
        self.log_z += _log_mean(self.log_weights)
        if not all_finite(self.x, self.log_z):
            raise NonFiniteError(
                "states or weights of particles are NaN or infinite: the policy or the twist left the finite numbers, "
                "or the policy has no noise and so no density."
            )
        return Particles(
            self.x.unflatten(0, (self.n, particles)),
            self.log_weights,
            self.log_z,
            torch.stack(self.ess),
            self.ancestors,
        )

    def _step(self, t: int) -> None:
        """x_{t+1}, and its twist, which the energy's takes the place of at the end."""
        start = self.x
        noise = torch.randn(start.shape, generator=self.generator, device=self.x.device, dtype=self.x.dtype)
        count_draws(len(noise))
        self.x, log_prob = draw_with_log_prob(self.policy, start, t, noise)
        self.log_weights = self.log_weights + (self.kernel.log_prob(start, self.x, t) - log_prob).view(self.n, -1)
        if t < self.mdp.horizon - 1:
            self._reweight(self._twist(t + 1))

    def _reweight(self, log_psi: Tensor) -> None:
        """Put the twist of these states in place of the one before."""
        self.log_weights = self.log_weights + (log_psi - self.twisted).view(self.n, -1)
        self.twisted = log_psi

    def _twist(self, t: int) -> Tensor:
        if self.twist is None:
            return self.x.new_zeros(len(self.x))
        log_psi = self.twist(self.x.clone(), t)  # one that works in place must not move particles
        if not isinstance(log_psi, Tensor) or log_psi.shape != self.x.shape[:1]:
            shape = list(log_psi.shape) if isinstance(log_psi, Tensor) else type(log_psi).__name__
            raise ValueError(f"the twist must return a tensor of shape [{len(self.x)}], got {shape}.")
        return log_psi.to(self.x.dtype)

    def _resample(self, number: int, below: float) -> None:
        """``number`` particles of every system whose effective sample size is below ``below``; the others stay."""
        ess = _effective(self.log_weights)
        self.ess.append(ess)
        some = ~(ess >= below)[:, None]  # also where weights are NaN, which log Z then is
        chosen = systematic(torch.softmax(self.log_weights.double(), dim=1), number, self.generator)
        chosen = torch.where(some, chosen, torch.arange(number, device=self.x.device))
        self.log_z += torch.where(some[:, 0], _log_mean(self.log_weights), 0.0)
        kept = torch.where(some, 0.0, self.log_weights.gather(1, chosen))
        rows = (chosen + self.number * torch.arange(self.n, device=self.x.device)[:, None]).flatten()
        self.x, self.twisted, self.log_weights, self.number = self.x[rows], self.twisted[rows], kept, number
        self.ancestors.append(chosen)


def systematic(weights: Tensor, number: int, generator: torch.Generator | None) -> Tensor:
    """Systematic resampling: ``number`` indices for each row of ``weights`` ``[rows, n]``.

    One that has a share w of the row's weight comes number w times on average, and never a whole time more or less.
    """
    uniform = torch.rand(len(weights), 1, generator=generator, device=weights.device, dtype=weights.dtype)
    places = (torch.arange(number, device=weights.device) + uniform) / number
    cumulative = weights.cumsum(1)
    return torch.searchsorted(cumulative / cumulative[:, -1:], places, right=True).clamp_max(weights.shape[1] - 1)


def _effective(log_weights: Tensor) -> Tensor:
    """Effective sample size of every row, as a fraction: ``[n]``."""
    return 1 / (torch.softmax(log_weights, dim=1).square().sum(1) * log_weights.shape[1])


def _log_mean(log_weights: Tensor) -> Tensor:
    """log of the mean weight of every row, in double: ``[n]``."""
    return torch.logsumexp(log_weights.double(), dim=1) - math.log(log_weights.shape[1])
