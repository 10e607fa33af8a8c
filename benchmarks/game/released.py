"""The authors' own trainer as an entrant of the race in benchmarks/game/dxmi_2d.py, from a clone of their repository.

Their ``DxMI_Trainer`` (https://github.com/swyoon/Diffusion-by-MaxEntIRL, models/DxMI/trainer.py) is called in the order
of their train_cifar10.py, on the task's own base sampler, whose denoiser it fine-tunes, with one network for the energy
and all values. They have not released settings for the plane: here entropy and running cost are part of the values, as
in the paper's equations, and the kernel's variances start at the base sampler's. Nothing of theirs is part of this
project.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.agents.policies import FineTunedPolicy
from dxmi_rl.costs import Costs
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.networks import StepMLP
from dxmi_rl.tasks import Task
from dxmi_rl.utils.torch_tools import seeded

BATCH, WIDTH, DEPTH, VALUE_RATE, AVR = 256, 128, 3, 1e-3, 0.99
"""Trajectories per rollout, transitions per policy step; the network of energy and values, its rate; the kernel's."""


def released_trainer(repository: Path) -> ModuleType:
    """Their module models.DxMI.trainer. Raises ValueError for a folder without it, or in which it cannot be loaded."""
    if not trainer_file(repository).is_file():
        raise ValueError(
            f"authors must be a clone of https://github.com/swyoon/Diffusion-by-MaxEntIRL, "
            f"and {str(repository)!r} has no models/DxMI/trainer.py."
        )
    path = str(repository.resolve())
    if sys.path[0] != path:
        sys.path.insert(0, path)
    try:
        module = importlib.import_module("models.DxMI.trainer")
    except ImportError as error:
        raise ValueError(f"authors: the trainer in {path!r} needs a package that is not here: {error}.") from error
    if Path(str(module.__file__)) != trainer_file(repository.resolve()):
        raise ValueError(
            f"authors must be {module.__file__}'s repository, which this process has loaded, got {path!r}."
        )
    return module


def trainer_file(repository: Path) -> Path:
    """Where their trainer is in a clone."""
    return repository / "models" / "DxMI" / "trainer.py"


def digest(repository: Path) -> str:
    """Sixteen hex digits of their trainer and of this file, on which its results depend."""
    content = trainer_file(repository).read_bytes() + Path(__file__).read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


class ReleasedSampler(nn.Module):
    """The task's base sampler with its denoiser and one sigma per step to be trained, as their trainer calls it."""

    trainable_beta = True

    def __init__(self, mdp: DenoisingMDP, generator: torch.Generator) -> None:
        super().__init__()
        self.net = FineTunedPolicy(mdp)
        self.net.log_betas = self.net.log_sigma  # as they call the logarithms of sigma
        self.mdp, self.generator, self.n_timesteps = mdp, generator, mdp.horizon

    def sample_step(self, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        """x_{t+1} with its mean and sigma, differentiable in the parameters."""
        mean, log_sigma = self.net.moments(x, t)
        sigma = log_sigma.exp().expand(len(x), 1)
        noise = torch.randn(x.shape, generator=self.generator, device=x.device)
        return {"sample": mean + sigma * noise, "mean": mean, "sigma": sigma}

    @torch.no_grad()
    def sample(self, n: int) -> dict[str, Any]:
        """n trajectories: lists over time."""
        states, steps = [self.mdp.reset(n, self.generator)], []
        for t in range(self.n_timesteps):
            steps.append(self.sample_step(states[-1], torch.full((n,), t, device=self.mdp.device)))
            states.append(steps[-1]["sample"])
        kept = {key: [step[key] for step in steps] for key in ("mean", "sigma")}
        return {"sample": states[-1], "l_sample": states, **kept}


class EnergyAndValues(StepMLP):
    """V_t(x), t = 0..T, with V_T = E: ``[n, 1]``; counts the evaluations of E."""

    def __init__(self, mdp: DenoisingMDP) -> None:
        super().__init__(mdp.dim, 1, mdp.state_scale, width=WIDTH, depth=DEPTH)
        self.horizon, self.energy_evals = mdp.horizon, torch.zeros((), dtype=torch.long, device=mdp.device)

    def forward(self, x: Tensor, t: Tensor | int) -> Tensor:
        """V_t(x)."""
        if isinstance(t, Tensor):
            self.energy_evals += (t == self.horizon).sum()
        return super().forward(x, t)


class ReleasedGame:
    """Their trainer with 2-D settings: ``iterate`` is one rollout, energy and value steps, and one policy step."""

    def __init__(self, trainer: ModuleType, task: Task, seed: int, tau: float, rates: dict[str, float]) -> None:
        self.trainer, self.task, self.seconds, self.timesteps = trainer, task, 0.0, 0
        mdp = task.mdp
        self.generator = torch.Generator(mdp.device).manual_seed(seed)
        self.data_generator = torch.Generator(mdp.device).manual_seed(seed + 1_000_003)
        self.sampler = ReleasedSampler(mdp, self.generator)
        with seeded(seed):
            self.value = EnergyAndValues(mdp).to(mdp.device)
        self.game = trainer.DxMI_Trainer(
            batchsize=BATCH, tau1=tau, tau2=tau, gamma=1.0, adavelreg=AVR, n_timesteps=mdp.horizon,
            entropy_in_value=0, velocity_in_value=0,
        )  # fmt: skip
        policy = self.sampler.net
        groups = [
            {"params": [policy.log_sigma], "lr": rates["policy.sigma_learning_rate"]},
            {"params": policy.mean_parameters(), "lr": rates["policy.learning_rate"]},
        ]
        value_optimizer = torch.optim.Adam(self.value.parameters(), lr=VALUE_RATE)
        self.game.set_models(None, self.value, self.sampler, torch.optim.Adam(groups), None, value_optimizer)
        self.game.betas_for_q = mdp.base.sigma.square().flip(0)

    def iterate(self) -> None:
        """One iteration; counts its seconds and transitions."""
        begin = time.perf_counter()
        buffer, drawn = self.trainer.reset_buffer(self.task.mdp.device), self.sampler.sample(BATCH)
        self.trainer.append_buffer(buffer, drawn)
        self.game.update_f_v(self.task.target.data(BATCH, self.data_generator), drawn, buffer)
        self.game.update_sampler(buffer, 1)
        self.timesteps += BATCH * self.task.mdp.horizon
        self.seconds += time.perf_counter() - begin

    def costs(self) -> dict[str, float]:
        """What was spent so far: transitions, seconds, evaluations of E."""
        spent = Costs(timesteps=self.timesteps, seconds=self.seconds, energy_evals=int(self.value.energy_evals))
        return dataclasses.asdict(spent)

    def energy(self, x: Tensor) -> Tensor:
        """V_T(x): ``[n]``; not counted."""
        return self.value(x, self.task.mdp.horizon).squeeze(-1)
