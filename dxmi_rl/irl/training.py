"""Energies without a sampler: contrastive divergence by Langevin chains, score matching, noise-contrastive estimation.

They are what DxMI's energy is compared with: the same network, the same data, at temperature 1 (contrastive divergence
but for the small bias of its ``gamma``).
"""

from __future__ import annotations

import abc
import copy
import math
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.irl.config import EnergyConfig, make_energy
from dxmi_rl.irl.losses import ENERGY_LOSSES
from dxmi_rl.networks import EnergyNetwork
from dxmi_rl.targets import Target, TargetError
from dxmi_rl.utils.checks import DivergenceError, check_integer, check_real
from dxmi_rl.utils.progress import progress
from dxmi_rl.utils.registry import Registry
from dxmi_rl.utils.settings import changed
from dxmi_rl.utils.torch_tools import average_towards, seeded

FITTED_ROWS = 10_000
"""Data from which the Gaussian of noise-contrastive estimation is fitted."""


@dataclass(frozen=True)
class EnergyTrainingConfig:
    """Settings of ``train_energy``; each method has those of all and the ones that it ``uses``."""

    energy: EnergyConfig = field(default_factory=EnergyConfig)
    """The energy's network."""
    iterations: int = 2000
    """Adam steps."""
    batch_size: int = 256
    """Data per step, and as many samples, chains or noisy data."""
    learning_rate: float = 1e-3
    """Peak rate; cosine to zero."""
    ema: float = 0.995
    """Decay of the averaged network that is returned."""
    langevin_steps: int = 60
    """Steps of a short-run chain, and of a persistent chain between two updates."""
    langevin_noise: float = 0.1
    """Standard deviation of a Langevin step's noise over the target's scale."""
    gamma: float = 0.01
    """Weight of the energy's squared magnitude in contrastive divergence, which keeps energies from drifting; with
    chains of the right law the energy's slope on -log p_data is then about 1 / (1 + 4 gamma)."""
    chains: int = 10_000
    """Persistent chains that are kept."""
    restarts: float = 0.05
    """Part of the persistent chains in a batch that starts anew."""
    noise_level: float = 0.1
    """Standard deviation of score matching's noise over the target's scale."""

    def __post_init__(self) -> None:
        for key in ("iterations", "batch_size", "langevin_steps", "chains"):
            check_integer(key, getattr(self, key))
        for key in ("learning_rate", "langevin_noise", "noise_level"):
            check_real(key, getattr(self, key), strict=True)
        for key in ("ema", "restarts"):
            if not 0 <= check_real(key, getattr(self, key)) < 1:
                raise ValueError(f"{key} must lie in [0, 1), got {getattr(self, key)}.")
        check_real("gamma", self.gamma)


@dataclass(frozen=True)
class TrainedEnergy:
    """An averaged network at temperature 1, and what it took."""

    energy: EnergyNetwork
    energy_evals: int
    energy_grad_evals: int
    """Of them differentiated with respect to x."""
    seconds: float


class EnergyTrainer(abc.ABC):
    """One way to train an energy on data, in the state that it keeps between steps."""

    uses: ClassVar[tuple[str, ...]] = ()
    """Fields of the config that only some methods have."""

    def __init__(self, target: Target, config: EnergyTrainingConfig, generator: torch.Generator) -> None:
        self.target, self.config, self.generator = target, config, generator
        self.energy_evals = self.energy_grad_evals = 0

    @abc.abstractmethod
    def loss(self, energy: EnergyNetwork, data: Tensor) -> Tensor:
        """The scalar to descend, from a batch of data ``[n, *event_shape]``."""

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal noise in the shape of ``like``."""
        return torch.randn(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)

    def count(self, evaluations: int, *, differentiated: bool = False) -> None:
        """Add to the costs."""
        self.energy_evals += evaluations
        self.energy_grad_evals += evaluations * differentiated


class ShortRun(EnergyTrainer):
    """Contrastive divergence with chains that start from noise at every step (Nijkamp et al. 2019, arXiv 1904.09770).

    x <- x - s^2 / 2 grad E(x) + s noise, ``langevin_steps`` times from N(0, scale^2 I), then a step on
    E_data[E] - E_chains[E] + gamma (E_data[E^2] + E_chains[E^2]). The chains are too short to forget their start, and
    so the energy's shape depends on it.
    """

    uses: ClassVar[tuple[str, ...]] = ("langevin_steps", "langevin_noise", "gamma")

    def loss(self, energy: EnergyNetwork, data: Tensor) -> Tensor:
        samples = self.negatives(energy, data)
        energy_data, energy_samples = energy(torch.cat([data, samples])).chunk(2)
        self.count(2 * len(data))
        return ENERGY_LOSSES["contrastive"](energy_data, energy_samples, self.config.gamma)

    def negatives(self, energy: EnergyNetwork, data: Tensor) -> Tensor:
        """Ends of chains, as many as data."""
        return self.langevin(energy, self.starts(data))

    def starts(self, like: Tensor) -> Tensor:
        """Where chains start."""
        return self.target.scale * self.noise(like)

    def langevin(self, energy: EnergyNetwork, x: Tensor) -> Tensor:
        """``langevin_steps`` unadjusted steps at temperature 1."""
        size = self.config.langevin_noise * self.target.scale
        for _ in range(self.config.langevin_steps):
            point = x.requires_grad_()
            (gradient,) = torch.autograd.grad(energy(point).sum(), point)
            x = (x - 0.5 * size**2 * gradient + size * self.noise(x)).detach()
        self.count(self.config.langevin_steps * len(x), differentiated=True)
        return x


class Persistent(ShortRun):
    """Contrastive divergence with chains that go on from step to step (Tieleman 2008; Du and Mordatch 2019, arXiv
    1903.08689): ``chains`` of them are kept, and a part ``restarts`` of every batch starts anew from noise.
    """

    uses: ClassVar[tuple[str, ...]] = (*ShortRun.uses, "chains", "restarts")

    def __init__(self, target: Target, config: EnergyTrainingConfig, generator: torch.Generator) -> None:
        super().__init__(target, config, generator)
        if config.chains < config.batch_size:
            raise ValueError(f"chains must be >= batch_size = {config.batch_size}, got {config.chains}.")
        self.chains = self.starts(torch.empty(config.chains, *target.event_shape, device=target.device))

    def negatives(self, energy: EnergyNetwork, data: Tensor) -> Tensor:
        rows = torch.randperm(len(self.chains), generator=self.generator, device=data.device)[: len(data)]
        x = self.chains[rows]
        fresh = torch.rand(len(x), generator=self.generator, device=x.device) < self.config.restarts
        x = torch.where(fresh.view(-1, *[1] * (x.dim() - 1)), self.starts(x), x)
        self.chains[rows] = x = self.langevin(energy, x)
        return x


class ScoreMatching(EnergyTrainer):
    """Denoising score matching at one noise level (Vincent 2011): E |s grad E(x + s eps) - eps|^2.

    It models the data with noise of standard deviation s = ``noise_level`` scale, and says nothing about the masses of
    modes that lie far apart.
    """

    uses: ClassVar[tuple[str, ...]] = ("noise_level",)

    def loss(self, energy: EnergyNetwork, data: Tensor) -> Tensor:
        size, noise = self.config.noise_level * self.target.scale, self.noise(data)
        point = (data + size * noise).requires_grad_()
        (gradient,) = torch.autograd.grad(energy(point).sum(), point, create_graph=True)
        self.count(len(data), differentiated=True)
        return (size * gradient - noise).square().flatten(1).sum(1).mean()


class GaussianNoise(EnergyTrainer):
    """Noise-contrastive estimation against a Gaussian with the data's mean and covariance (Gutmann and Hyvarinen 2010).

    With log r = -E - log q: E_data[softplus(-log r)] + E_q[softplus(log r)], q the Gaussian; at the optimum E = -log
    p_data, normalised.
    """

    def __init__(self, target: Target, config: EnergyTrainingConfig, generator: torch.Generator) -> None:
        super().__init__(target, config, generator)
        rows = target.data(FITTED_ROWS, generator).flatten(1)
        covariance = rows.T.cov() + (1e-3 * target.scale) ** 2 * torch.eye(rows.shape[1], device=rows.device)
        # From the lower half: rounding can make a product with itself less symmetric than the distribution allows.
        lower = torch.linalg.cholesky(covariance)
        self.gaussian = torch.distributions.MultivariateNormal(rows.mean(0), scale_tril=lower)

    def loss(self, energy: EnergyNetwork, data: Tensor) -> Tensor:
        standard = self.noise(data).flatten(1)
        noise = self.gaussian.loc + standard @ self.gaussian.scale_tril.T
        both = torch.cat([data.flatten(1), noise])
        logit = energy(both.view(-1, *data.shape[1:])) + self.gaussian.log_prob(both)
        self.count(len(both))
        return ENERGY_LOSSES["nce"](*logit.chunk(2))


ENERGY_TRAINERS: Registry[type[EnergyTrainer]] = Registry("way to train an energy")
ENERGY_TRAINERS.add("short-run", ShortRun)
ENERGY_TRAINERS.add("persistent", Persistent)
ENERGY_TRAINERS.add("score-matching", ScoreMatching)
ENERGY_TRAINERS.add("gaussian-noise", GaussianNoise)


def train_energy(
    target: Target, method: str = "persistent", *, seed: int = 0, progress_bar: bool = False,
    denoiser: nn.Module | None = None, **settings: Any,
) -> TrainedEnergy:  # fmt: skip
    """Train an energy network on the target's data, on its device, by one of ``ENERGY_TRAINERS``.

    ``settings`` are fields of EnergyTrainingConfig, such as ``iterations`` or ``energy={"fourier": 3}``; an energy with
    ``denoiser=True`` starts from ``denoiser``.

    Raises UnknownNameError for unknown names, TypeError and ValueError for values that are not allowed, TargetError for
    a target without data, DivergenceError on a non-finite loss.
    """
    kind = ENERGY_TRAINERS[method]
    special = {key for trainer in ENERGY_TRAINERS for key in ENERGY_TRAINERS[trainer].uses}
    for key in settings:
        if key in special and key not in kind.uses:
            raise ValueError(f"setting {key!r} means nothing to method {method!r}.")
    if not (target.has_data or target.has_sampler):
        raise TargetError(f"target {target.name!r} has neither data nor a sampler to train an energy on.")
    config = changed(EnergyTrainingConfig(), settings, "setting of train_energy")
    generator = torch.Generator(target.device).manual_seed(check_integer("seed", seed, minimum=0))
    with seeded(seed):
        energy = make_energy(target, config.energy, denoiser).to(target.device)
    average = copy.deepcopy(energy).requires_grad_(False)
    optimizer = torch.optim.Adam(energy.parameters(), lr=config.learning_rate)
    started = time.perf_counter()
    trainer = kind(target, config, generator)
    energy.train()
    with progress(f"{method} on {target.name}", config.iterations, show=progress_bar) as advance:
        for step in range(config.iterations):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.iterations))
            loss = trainer.loss(energy, target.data(config.batch_size, generator))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            average_towards(average, energy, config.ema)
            if (step + 1) % 100 == 0 or step + 1 == config.iterations:
                if not math.isfinite(value := float(loss.detach())):
                    raise DivergenceError(f"{method} on {target.name!r} diverged by step {step}: loss {value}.")
                advance(step + 1)
    seconds = time.perf_counter() - started
    return TrainedEnergy(average, trainer.energy_evals, trainer.energy_grad_evals, seconds)
