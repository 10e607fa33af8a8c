"""What agents keep of earlier rollouts: whole trajectories, or final states by reward rank with local search (Sendera
et al. 2024, arXiv 2402.05098, section 4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dxmi_rl.mdp import DenoisingMDP, Energy
from dxmi_rl.rollout import Trajectory

RANK_SOFTNESS = 0.01
"""k of the rank weights 1 / (k N + rank), as in the paper's code; the best hundredth gets 15 % of the draws."""
ACCEPTANCE = 0.574
"""Acceptance rate at which MALA moves fastest (Roberts and Rosenthal 1998)."""
ADAPTATION = 0.2
"""Change of log h per step and unit of acceptance."""


class KeptRollouts:
    """The trajectories of the last rollouts, the latest last.

    Attributes:
        trajectories: all of them in one batch; None before the first.
    """

    PARTS = ("x", "log_prob", "base_mean", "energy", "value_gradient")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.trajectories: Trajectory | None = None

    def add(self, latest: Trajectory) -> Trajectory:
        """Append trajectories, the oldest leave; returns all that are kept."""
        if self.trajectories is not None and latest.n < self.capacity:
            latest = self.trajectories.cat(latest).select(slice(-self.capacity, None))
        self.trajectories = latest
        return latest

    def pick(self, n: int, targets: Tensor, generator: torch.Generator) -> tuple[Trajectory, Tensor]:
        """n of the kept trajectories, with the same columns of ``targets`` ``[T, N]``; all if there are no more."""
        kept = self.trajectories
        assert kept is not None
        if n >= kept.n:
            return kept, targets
        chosen = torch.randperm(kept.n, generator=generator, device=targets.device)[:n]
        return kept.select(chosen), targets[:, chosen]

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must keep."""
        parts = {} if self.trajectories is None else {key: getattr(self.trajectories, key) for key in self.PARTS}
        return {key: value for key, value in parts.items() if value is not None}

    def restore(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Put back what ``tensors`` gave."""
        self.trajectories = None
        if "x" in tensors:
            parts = {key: tensors[key].to(device) for key in self.PARTS if key in tensors}
            self.trajectories = Trajectory(parts.pop("x"), parts.pop("log_prob"))
            for key, value in parts.items():
                setattr(self.trajectories, key, value)


class ReplayBuffer:
    """The last ``capacity`` states x_T with their energies, drawn by the rank of their reward."""

    def __init__(self, mdp: DenoisingMDP, capacity: int) -> None:
        self.capacity = capacity
        self.x = torch.zeros(capacity, *mdp.event_shape, dtype=mdp.dtype, device=mdp.device)
        self.energy = torch.zeros(capacity, dtype=mdp.dtype, device=mdp.device)
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, x: Tensor, energy: Tensor) -> None:
        """Append x ``[n, *event]`` and E(x) ``[n]``, n <= capacity; the oldest leave."""
        rows = torch.arange(self.added, self.added + len(x), device=x.device) % self.capacity
        self.x[rows], self.energy[rows] = x, energy
        self.added += len(x)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Rows ``[n]``, with replacement, with probability proportional to 1 / (k N + rank)."""
        size = len(self)
        order = self.energy[:size].argsort(stable=True)
        weights = 1 / (RANK_SOFTNESS * size + torch.arange(size, device=order.device))
        return order[torch.multinomial(weights, n, replacement=True, generator=generator)]

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must keep."""
        size = len(self)
        return {
            "replay/x": self.x[:size],
            "replay/energy": self.energy[:size],
            "replay/added": torch.tensor(self.added),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""
        self.added = int(tensors["replay/added"])
        size = len(self)
        self.x[:size], self.energy[:size] = tensors["replay/x"].to(self.x), tensors["replay/energy"].to(self.x)


class LocalSearch:
    """Metropolis-adjusted Langevin chains on exp(-E / tau), one step size for all, adapted to the best acceptance.

    x' = x - h / 2 grad U(x) + sqrt(h) noise, U = E / tau, accepted with probability min(1, a),
    log a = U(x) - U(x') + log q(x | x') - log q(x' | x); then log h moves by ``ADAPTATION`` (mean acceptance - 0.574).
    ``steps`` of them take ``steps + 1`` differentiated energy evaluations per chain; ``start`` is the first sqrt(h).
    """

    def __init__(self, energy: Energy, tau: float, start: Tensor, steps: int) -> None:
        self.energy, self.tau, self.steps = energy, tau, steps
        self.log_step = 2 * start.log()
        self.acceptance = torch.zeros_like(self.log_step)

    def __call__(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The chains' ends and their energies, from starts ``[n, *event]``."""
        energy, gradient = self._energy_and_gradient(x)
        for _ in range(self.steps):
            step = self.log_step.exp()
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            uniform = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)
            proposal = x - 0.5 * step * gradient + step.sqrt() * noise
            new_energy, new_gradient = self._energy_and_gradient(proposal)
            back = (x - proposal + 0.5 * step * new_gradient).flatten(1).square().sum(1) / (2 * step)
            log_ratio = (energy - new_energy) / self.tau - back + 0.5 * noise.flatten(1).square().sum(1)
            probability = log_ratio.clamp(max=0).exp().nan_to_num(0.0)  # a proposal without an energy is refused
            accepted = uniform < probability
            rows = accepted.view(-1, *[1] * (x.dim() - 1))
            x, gradient = torch.where(rows, proposal, x), torch.where(rows, new_gradient, gradient)
            energy = torch.where(accepted, new_energy, energy)
            self.acceptance = probability.mean()
            self.log_step = self.log_step + ADAPTATION * (self.acceptance - ACCEPTANCE)
        return x, energy

    def _energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E ``[n]`` and grad E / tau ``[n, *event]`` from one evaluation."""
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            energy = self.energy(point)
            (gradient,) = torch.autograd.grad(energy.sum(), point)
        return energy.detach(), gradient / self.tau

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must keep."""
        return {"local_search/log_step": self.log_step}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""
        self.log_step = tensors["local_search/log_step"].to(self.log_step)
