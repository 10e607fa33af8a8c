"""EpisodeReplay: what off-policy agents learn from, with rewards of the present energy and kernel."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dxmi_rl.mdp import DenoisingMDP


class Transitions(NamedTuple):
    """A minibatch, time-major, with equally many rows of each step t."""

    x: Tensor
    """x_t: ``[rows, *event]``."""
    x_next: Tensor
    """x_{t+1}: ``[rows, *event]``."""
    t: Tensor
    """``[rows]``, 0..T-1."""
    action: Tensor
    """In the coordinates of the agent's environment: ``[rows, d]``."""
    reward: Tensor
    """In nats, of the MDP as it is now: ``[rows]``."""
    last: Tensor
    """t = T - 1, after which there is no value: bool ``[rows]``."""


class EpisodeReplay:
    """The last ``capacity`` whole episodes, on the MDP's device; nothing in here waits for it.

    Rewards are computed when transitions are drawn, since kernel and energy move. The running reward is always computed
    anew. The energy of x_T is evaluated again only when the energy has changed since the episode came, so that a fixed
    energy is paid for once. A change is seen in the parameters and buffers of the energy's module; an energy that is a
    plain function cannot be watched and counts as changed.

    Args:
        mdp: the MDP of these episodes.
        capacity: number of episodes; batches of episodes must divide it.
    """

    def __init__(self, mdp: DenoisingMDP, capacity: int) -> None:
        self.mdp, self.capacity = mdp, capacity
        kind: dict[str, Any] = {"dtype": mdp.dtype, "device": mdp.device}
        self.x = torch.zeros(mdp.horizon + 1, capacity, *mdp.event_shape, **kind)
        self.action = torch.zeros(mdp.horizon, capacity, mdp.dim, **kind)
        self.energy = torch.zeros(capacity, **kind)
        self.size = self.position = 0
        self.current = 0
        """Number of the latest episodes whose stored energy is the present one's value."""
        self._seen: object = None

    def add(self, x: Tensor, action: Tensor) -> None:
        """Keep n episodes, ``[T + 1, n, *event]`` and ``[T, n, d]``, and evaluate their n energies.

        Raises EnergyError when one is not finite.
        """
        n = x.shape[1]
        rows = slice(self.position, self.position + n)
        with torch.no_grad():
            energy = self.mdp.finite_energy(x[-1])
        self.x[:, rows], self.action[:, rows], self.energy[rows] = x, action, energy
        self.size = min(self.size + n, self.capacity)
        self.position = (self.position + n) % self.capacity
        seen = _look_at(self.mdp)
        known = seen is not None and seen == self._seen
        self._seen, self.current = seen, min((self.current if known else 0) + n, self.size)

    @property
    def stale(self) -> bool:
        """Whether some stored values are an earlier energy's; ``draw`` then evaluates the energy at its last steps."""
        return self._seen is None or self.current < self.size

    def draw(self, per_step: int, generator: torch.Generator) -> Transitions:
        """``per_step`` transitions of each of the T steps, uniform over the episodes."""
        horizon, device = self.mdp.horizon, self.mdp.device
        episode = torch.randint(self.size, (horizon, per_step), generator=generator, device=device)
        step = torch.arange(horizon, device=device)
        t = step.repeat_interleave(per_step)
        x, x_next = (self.x[step[:, None] + ahead, episode].flatten(0, 1) for ahead in (0, 1))
        action = self.action[step[:, None], episode].flatten(0, 1)
        with torch.no_grad():
            reward = self.mdp.running_reward(x, x_next, t)
            energy = self.mdp.energy(x_next[-per_step:]) if self.stale else self.energy[episode[-1]]
        reward[-per_step:] -= energy
        return Transitions(x, x_next, t, action, reward, t == horizon - 1)

    def tensors(self) -> dict[str, Tensor]:
        """The episodes and where the next ones go."""
        filled = {
            "x": self.x[:, : self.size],
            "action": self.action[:, : self.size],
            "energy": self.energy[: self.size],
        }
        return filled | {"places": torch.tensor([self.size, self.position, self.current])}

    def set_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``tensors`` gave; the energy must be what it was then."""
        self.size, self.position, self.current = tensors["places"].tolist()
        self.x[:, : self.size] = tensors["x"].to(self.x)
        self.action[:, : self.size] = tensors["action"].to(self.x)
        self.energy[: self.size] = tensors["energy"].to(self.x)
        self._seen = _look_at(self.mdp)


def _look_at(mdp: DenoisingMDP) -> object:
    """A fingerprint that changes when the energy is swapped or trained in place; None when that cannot be seen."""
    energy = mdp.energy.function
    owner = getattr(energy, "__self__", energy)  # of a method such as a target's
    if not isinstance(owner, nn.Module):
        return None
    tensors = [tensor.detach() for tensor in (*owner.parameters(), *owner.buffers())]
    # By their values: version counters do not see a fused optimizer's step.
    numbers = [tensor.double() for tensor in tensors]
    sums = [part for number in numbers for part in (number.sum(), number.square().sum())]
    return energy, tuple(torch.stack(sums).tolist()) if sums else ()
