"""Bounds on log Z from log-weights of trajectories, with the kernel of training or one fitted to the policy."""

from __future__ import annotations

import copy
import math
import warnings

import torch
from torch import Tensor

from dxmi_rl.agents.twisting import fit_twist
from dxmi_rl.agents.wrapped.action_density import ActionDensity
from dxmi_rl.diffusion import BackwardKernel, FittedKernel, Learned, Mixture
from dxmi_rl.evaluation import metrics
from dxmi_rl.evaluation.annealing import annealed_importance_sampling
from dxmi_rl.live_energy import LiveEnergy, require_finite_energy
from dxmi_rl.mdp import DenoisingMDP, Energy
from dxmi_rl.rollout import Policy, Trajectory
from dxmi_rl.smc import particle_filter
from dxmi_rl.targets import Target
from dxmi_rl.tasks import Task
from dxmi_rl.utils.checks import all_finite, check_integer
from dxmi_rl.utils.storage import cached_tensors
from dxmi_rl.utils.torch_tools import seeded


class UnreliableScoresWarning(UserWarning):
    """Log-weights that rest on few trajectories, or are infinite."""


FIT_STEPS = 4000
PARTICLES = 1000
"""Chains of one particle filter of ``smc_scores``."""
FIT_TRANSITIONS = 1280
"""Transitions per step of ``fit_kernel``."""


def fit_kernel(
    mdp: DenoisingMDP, policy: Policy, *, steps: int = FIT_STEPS, seed: int = 0, kind: type[Mixture | Learned] = Mixture
) -> FittedKernel:
    """A Mixture, or another ``kind`` of learned kernel, fitted to a finished policy by one recipe for all:
    ``steps`` Adam steps of fresh rollouts of 1,280 transitions each, cosine from 2e-3; the MDP's own
    kernel is left alone. Every policy gets the same ruler: the same network, seed and number of steps.
    """
    check_integer("steps", steps)
    batch = math.ceil(FIT_TRANSITIONS / mdp.horizon)
    generator = torch.Generator(mdp.device).manual_seed(seed)
    with seeded(seed):
        schedule = copy.deepcopy(mdp.base.schedule)
        schedule.codes = None  # a ruler for this horizon alone
        kernel = kind(schedule, mdp.event_shape, mdp.scale).to(mdp.device)
    at_once = 16  # rollouts are cheaper in large batches
    for step in range(steps):
        kernel.set_progress(step / steps)
        if step % at_once == 0:
            with torch.no_grad():
                states = mdp.rollout(policy, batch * at_once, generator).x
        part = states[:, (step % at_once) * batch :][:, :batch]
        kernel.fit(*Trajectory(part, part[:, :, 0]).transitions())
    return kernel


def log_weight_scores(
    task: Task, target: Target, density: Policy, energy: Energy, *, trajectories: int, seed: int, fit: bool, smc: bool
) -> dict[str, float]:
    """``elbo``, ``log_z``, ``ess``, ``eubo``, ``kl_bound``, ``kl_bound_fit`` and ``elbo_tau``, those that apply, and
    with ``smc`` those of ``smc_scores``. An infinite ``eubo`` is left out, with a warning.

    With ``fit`` all but ``kl_bound`` use a fitted kernel instead of the kernel of training.
    """
    mdp = task.mdp
    log_z = None if task.energy_replaced else target.log_z
    trajectory = mdp.rollout(density, trajectories, torch.Generator(mdp.device).manual_seed(seed + 2))
    statistics = metrics.log_weight_statistics(_log_weights(mdp, trajectory, energy))
    kernel: BackwardKernel = mdp.kernel
    fit = fit and kernel.draws_backwards  # the base sampler in its place is the aim, and no bound of another kernel's
    scores: dict[str, float] = {}
    if log_z is not None:
        scores["kl_bound"] = log_z - statistics["elbo"]
    if fit:
        kernel = fit_kernel(mdp, density, seed=seed)
        statistics = metrics.log_weight_statistics(mdp.log_weights(trajectory, kernel=kernel, energy=energy))
        if log_z is not None:
            scores["kl_bound_fit"] = log_z - statistics["elbo"]
    scores |= statistics | tempered_elbo(task, statistics["elbo"], energy, trajectory.final)
    # A squashed policy cannot reach everything: its EUBO is infinite.
    bounded = isinstance(density, ActionDensity) and density.squashed is not None
    if target.has_sampler and target.has_energy and not task.energy_replaced and not bounded:
        generator = torch.Generator(mdp.device).manual_seed(seed + 3)
        exact = target.sample(trajectories, generator)
        chains = mdp.backward_rollout(density, exact, generator, kernel=kernel)
        log_w = mdp.log_weights(chains, kernel=kernel, energy=energy)
        if all_finite(log_w):
            scores["eubo"] = metrics.eubo(log_w)
        else:
            lost = int((~log_w.isfinite()).sum())
            warnings.warn(
                f"eubo is infinite or no number: {lost} of {trajectories} chains from exact samples have left the "
                "finite numbers, or end where the policy never starts.", UnreliableScoresWarning, stacklevel=3,
            )  # fmt: skip
    if smc:
        scores |= smc_scores(mdp, density, energy, kernel, systems=max(2, trajectories // PARTICLES), seed=seed)
    return scores


def smc_scores(
    mdp: DenoisingMDP, density: Policy, energy: Energy, kernel: BackwardKernel, *, systems: int, seed: int
) -> dict[str, float]:
    """log Z by ``systems`` particle filters of PARTICLES chains each, with twisting functions fitted to the policy.

    ``smc_log_z``, of the mean of their estimates of Z, with its standard error ``smc_log_z_se``; ``smc_log_z_std``, the
    standard deviation of log Z from one system to the next; ``smc_ess``, the smallest effective sample size (a
    fraction, mean over systems) of all steps; ``smc_origins``, the part of the starts x_0 that still has descendants at
    the end. Where few chains have most of the weight (``smc_ess``), the standard error is too small, too.
    """
    twist = fit_twist((mdp, density), kernel=kernel, energy=energy, temperature=1.0, seed=seed)
    found = particle_filter(
        mdp, density, systems, PARTICLES, twist=twist, kernel=kernel, energy=energy, temperature=1.0,
        generator=torch.Generator(mdp.device).manual_seed(seed + 7),
    )  # fmt: skip
    log_z = torch.logsumexp(found.log_z, dim=0) - math.log(systems)
    error = (found.log_z - log_z).exp().std() / math.sqrt(systems)
    origins = found.origins().sort(dim=1).values
    distinct = 1 + (origins[:, 1:] != origins[:, :-1]).sum(1)
    return {
        "smc_log_z": float(log_z),
        "smc_log_z_se": float(error),
        "smc_log_z_std": float(found.log_z.std()),
        "smc_ess": float(found.ess.mean(1).min()),
        "smc_origins": float(distinct.double().mean()) / PARTICLES,
    }


def _log_weights(mdp: DenoisingMDP, trajectory: Trajectory, energy: Energy) -> Tensor:
    """log w with the MDP's kernel; raises EnergyError where they are not finite for want of a finite energy."""
    log_w = mdp.log_weights(trajectory, energy=energy)
    if not all_finite(log_w):
        require_finite_energy(trajectory.final, LiveEnergy(energy)(trajectory.final).detach())
    return log_w


def quick_bound(task: Task, target: Target, trajectory: Trajectory, energy: Energy) -> dict[str, float]:
    """``kl_bound``, or ``elbo`` where log Z is unknown, with the kernel of training, and ``elbo_tau``."""
    elbo = metrics.log_weight_statistics(_log_weights(task.mdp, trajectory, energy))["elbo"]
    log_z = None if task.energy_replaced else target.log_z
    scores = {"elbo": elbo} if log_z is None else {"kl_bound": log_z - elbo}
    return scores | tempered_elbo(task, elbo, energy, trajectory.final)


def tempered_elbo(task: Task, elbo: float, energy: Energy, final: Tensor) -> dict[str, float]:
    """``elbo_tau``, the ELBO of exp(-E / tau), of the same trajectories.

    Nothing at temperatures 0 and 1, nor where agents are not given this energy but learn one from data.
    """
    tau = task.mdp.tau
    if tau in (0.0, 1.0) or not (task.energy_replaced or task.config.reward):
        return {}
    return {"elbo_tau": elbo + (1 - 1 / tau) * float(energy(final.clone()).double().mean())}


def has_named_energy(task: Task) -> bool:
    """The task was made with a named energy, such as "fixed"."""
    return task.spec is not None and task.spec["energy"] is not None


def tempered_log_z(task: Task) -> float:
    """log of the integral of exp(-E / tau) for a task with a named energy, such as "fixed": what ELBOs are bounded by.

    An estimate by annealed importance sampling (dxmi_rl.evaluation.annealing), measured once and cached on disk. Raises
    ValueError for a task whose energy has no name.
    """
    if not has_named_energy(task):
        raise ValueError(f"task must have a named energy, such as make_task({task.name!r}, energy='fixed').")
    assert task.spec is not None
    key = {"task": task.name, "energy": task.spec["energy"], "task_config": task.fingerprint(), "version": 2}

    def estimate() -> dict[str, Tensor]:
        mdp, target = task.mdp, task.target
        energy = LiveEnergy(mdp.energy.function)  # with its gradient, also on track "energy"
        center: float | Tensor = 0.0
        scale = mdp.scale
        if target.has_samples:  # from where the data are: annealing from elsewhere may miss them
            data = target.data(4000, torch.Generator(mdp.device).manual_seed(4_000_003))
            center = data.mean(0)
            scale = float((data - center).square().mean().sqrt())
        found = annealed_importance_sampling(
            energy, mdp.event_shape, scale=scale, center=center, tau=mdp.tau, chains=1024, device=mdp.device
        )
        return {"log_z": torch.tensor([found.log_z, found.standard_error], dtype=torch.float64)}

    return float(cached_tensors("log_z", key, estimate)["log_z"][0])
