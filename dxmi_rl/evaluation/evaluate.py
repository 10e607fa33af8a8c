"""Scores of a sampler on a task: bounds on log Z, and distances of its samples to exact ones, with their floors."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.agents import Agent
from dxmi_rl.agents.wrapped.action_density import ActionDensity
from dxmi_rl.evaluation.floors import floors_of
from dxmi_rl.evaluation.log_weights import (
    UnreliableScoresWarning,
    has_named_energy,
    log_weight_scores,
    quick_bound,
    tempered_log_z,
)
from dxmi_rl.evaluation.marginal import POINTS, has_marginal, marginal_scores, resolved_scores
from dxmi_rl.evaluation.models import beyond_box, resolve, sampled
from dxmi_rl.evaluation.sample_scores import SampleSets, auc, metrics_of
from dxmi_rl.evaluation.tilted import class_scores, quick_reward_scores, reward_scores
from dxmi_rl.mdp import Energy
from dxmi_rl.rollout import Trajectory
from dxmi_rl.smc import weighted_samples
from dxmi_rl.targets import EnergyTarget, RewardEnergy, Target
from dxmi_rl.tasks import Task, reference_target
from dxmi_rl.tasks.config import FROM_SCRATCH
from dxmi_rl.utils.checks import check_flag, check_integer, check_seed

MIN_ESS = 0.1
"""An importance-weighted log Z from fewer effective samples, as a fraction, is unreliable."""
DISTANT = 2.0
"""Samples of an energy of the user's own this many times ``scale`` away from 0 are not what was described."""


def evaluate(
    model: Any,
    task: str | Task | None = None,
    *,
    coordinates: str | None = None,
    policy: nn.Module | None = None,
    horizon: int | None = None,
    seed: int = 0,
    samples: int = 10_000,
    draws: int = 8,
    trajectories: int = 100_000,
    fit: bool = True,
    smc: bool = False,
    particles: int | None = None,
    floors: bool = True,
) -> dict[str, float]:
    """Score an agent, or a Stable-Baselines3 policy on ``task``, on fixed seeds; the model itself is left alone.

    Args:
        model: an agent of this package, an SB3 algorithm (PPO, A2C, SAC, TD3, ...) or a TorchRL ProbabilisticActor with
            IndependentNormal or TanhNormal, or an ActionDensity that you made on ``task.mdp`` of the built ``task``.
            What the environment clips is not clipped here; squashed actions are accounted for; deterministic policies
            get the sample metrics only.
        task: needed for a TorchRL actor, and for an SB3 model that has no environment of ours, such as a loaded one.
        coordinates: action coordinates that a model of another library was trained in; None: those of its
            environment, else as an SB3 model's action box tells, else "noise". Its observations must be flat, and no
            wrapper or transform, such as TorchRL's ObservationNorm, may have changed them or its actions; nothing is
            known of those of a TorchRL actor or a loaded model.
        policy: other weights of the agent's policy, such as DxMI's last iterate ``agent.agent.policy``.
        horizon: number of steps, where the task has several; None: the largest.
        seed: seed of all draws.
        samples: samples per draw of the sample metrics (``sliced_w2``, ``mode_tv``, ``auc``).
        draws: number of draws that ``sliced_w2`` is averaged over.
        trajectories: number of trajectories of the log-weights.
        fit: also train a kernel of its own on the finished policy, a mixture of Gaussians per step, for 4,000
            steps (``fit_kernel``: half a minute in the plane, minutes on images), and report ``kl_bound_fit``,
            ``elbo``, ``log_z``, ``ess`` and ``eubo`` with it; otherwise these use the kernel of training.
        smc: also estimate log Z by particle filters with fitted twisting functions (``smc_scores``; half a minute).
        particles: the sample metrics score samples that are each chosen by weight among this many chains
            (``Agent.sample``), at an energy each; scores of chains and of x_T's density stay the policy's own.
        floors: also report ``<metric>_floor``, the score of exact samples (mean of 20 pairs, cached on disk).

    Returns:
        A flat dict of the keys that apply: ``kl_bound``, ``kl_bound_fit`` (log Z - ELBO, nats; energy at temperature
        1), ``kl_marginal`` and ``kl_marginal_forward`` (the divergences of x_T itself in the plane, both ways, with
        their standard errors ``..._se`` and what is left of their bias, ``..._bias``: ``marginal_scores``; absent, with
        a warning, where the bias is large), ``elbo``,
        ``eubo`` (they measure chains: a policy with a high EUBO may cover every mode), ``log_z``, ``ess`` (a fraction;
        below 0.1 log_z is unreliable), ``smc_log_z``, ``smc_log_z_se``, ``smc_log_z_std``, ``smc_ess``,
        ``smc_origins`` (with ``smc``), ``elbo_tau`` (the ELBO
        of exp(-E / tau), which a task of another temperature than 1 asks for; with ``energy="fixed"`` its
        ``elbo_tau_floor`` is that density's log Z by annealed importance sampling, minutes, once), ``sliced_w2``,
        ``mmd``, ``modes``, ``mode_tv``, ``well_error`` (ManyWell.well_error), ``auc`` (of a learned energy, data
        against uniform noise over the plotting range; its ``auc_floor`` is the exact energy's), ``beyond_box`` (models
        of other libraries: fraction of action coordinates beyond the box that training clipped to),
        ``quantile_error`` (in place of ``sliced_w2`` where tails are heavy; in units of the target's scale),
        ``reward``, ``true_reward``, ``over_optimisation``, ``kl_untilted``, ``kl_base`` (of a reward:
        ``reward_scores``), ``class_accuracy`` (several classes: ``class_scores``), ``energy_w2``, ``energy_tv``,
        ``distance_tv``, ``w2``, ``w2_aligned`` (particles; ``particle_scores``), ``fd``, ``kd``, ``precision``,
        ``recall``, ``density``, ``coverage`` (images; on features the target names), ``denoiser_calls`` (per sample).
        Keys that do not apply are absent.

    Raises TypeError for another model, ValueError for a missing task, bad sizes, ``smc`` or ``particles`` of a model
    without density or energy, and ``particles`` of one that learns its energy or where no score is of samples. Warns
    where ``ess`` or ``smc_ess`` is below 0.1, where ``eubo`` is infinite and left out, where samples of an energy of
    your own lie far beyond its ``scale``, and where ``mdp.set_energy`` has swapped the energy, which is then the one
    that is scored.
    """
    samples, draws = check_integer("samples", samples, minimum=2), check_integer("draws", draws)
    trajectories, seed = check_integer("trajectories", trajectories), check_seed(seed)
    if particles is not None:
        check_integer("particles", particles, minimum=2)
    for name, flag in (("fit", fit), ("smc", smc), ("floors", floors)):
        check_flag(name, flag)
    if horizon is not None and isinstance(model, Agent):
        if policy is not None:
            raise ValueError("policy must be None with a horizon: pass agent.at(horizon) and a policy of its own.")
        model = model.at(horizon)
    task, density = resolve(model, task, policy, coordinates, horizon)
    if policy is not None and density is None:
        raise ValueError("policy must be None for an agent without a density; of several classes, pass of_class(c).")
    task = _with_its_energy(model, task)
    mdp, target = task.mdp, scoring_target(task)
    scores: dict[str, float] = {}
    with torch.no_grad():
        energy = _energy_to_score(model, task)
        known = density if getattr(density, "has_density", True) else None
        if known is not None and energy is not None:
            scores |= log_weight_scores(
                task, target, known, energy, trajectories=trajectories, seed=seed, fit=fit, smc=smc
            )  # fmt: skip
        elif smc or particles is not None:
            name, off = ("smc", False) if smc else ("particles", None)
            raise ValueError(f"{name} must be {off} for a model without density, or without an energy to weight it by.")
        of_samples = isinstance(task.mdp.energy.function, RewardEnergy) or (
            not _aims_elsewhere(task) and target.metrics
        )
        if particles is not None and not of_samples:
            raise ValueError("particles must be None where no score is of samples, as for an energy of your own.")
        if particles is not None and hasattr(model, "score"):
            raise ValueError("particles must be None for a model that learns its energy: weights are by the target's.")
        if isinstance(density, ActionDensity) and density.bounds is not None:
            scores["beyond_box"] = beyond_box(density, samples, seed)
        generator, seeds = torch.Generator(mdp.device).manual_seed(seed + 1), itertools.count(seed + 10)

        def draw(n: int) -> Tensor:
            if particles is not None and known is not None and energy is not None:
                return weighted_samples(mdp, known, n, particles, None, generator, energy)
            return mdp.sample(density, n, generator) if density is not None else sampled(model, n, next(seeds))

        if not _aims_elsewhere(task):
            if known is not None and has_marginal(target, known):  # with all states: fewer would flatter
                found = marginal_scores(mdp, known, target, seed=seed + 6, points=min(POINTS, samples))
                scores |= resolved_scores(found)
            sets = SampleSets(target, draw, samples, draws, seed)
            for metric in metrics_of(target):
                scores |= metric.score(sets)
        sizes = {"samples": samples, "chains": trajectories, "seed": seed + 8}
        if len(task.labels) > 1:
            scores |= class_scores(model, **sizes)
        else:
            own_kl = scores if particles is None else {}  # the marginal's KL is not that of chosen samples
            scores |= reward_scores(task, target, known, draw, own_kl, **sizes)
        if hasattr(model, "score"):
            scores["auc"] = auc(model.score, target, samples, seed)
        if floors and not _aims_elsewhere(task):
            scores |= floors_of(scores, target, samples)
        if isinstance(target, EnergyTarget) and not task.energy_replaced:
            _warn_of_distant(draw(min(samples, 1000)), target.scale)
    if floors and "elbo_tau" in scores and has_named_energy(task):
        scores["elbo_tau_floor"] = tempered_log_z(task)
    for key, estimate in {"ess": "log_z", "smc_ess": "smc_log_z"}.items():
        if scores.get(key, 1.0) < MIN_ESS:
            warnings.warn(
                f"the log-weights rest on few trajectories: {key} = {scores[key]:.2g}. {estimate} is unreliable below "
                f"{MIN_ESS:g}. Whether samples are far from the target, too, the other scores tell.",
                UnreliableScoresWarning, stacklevel=2,
            )  # fmt: skip
    own = isinstance(model, Agent)
    calls = model.denoiser_calls if own else mdp.horizon * mdp.base.denoiser_calls
    scores["denoiser_calls"] = float(calls * (particles or 1))
    return scores


def _warn_of_distant(x: Tensor, scale: float) -> None:
    """Say so where samples lie far beyond the ``scale`` that an energy of the user's own was given with."""
    size = float(x.square().mean().sqrt())
    if not size <= DISTANT * scale:
        warnings.warn(
            f"samples are {size:.3g} from 0 (root mean square per coordinate), and the target's scale is {scale:g}. "
            "Does the energy fall with distance? It must be minus the log-density. If it is right, and samples are "
            "so far out, give their standard deviation as scale (target_options).", stacklevel=3,
        )  # fmt: skip


def quick_scores(
    agent: Agent[Any], *, seed: int = 0, samples: int = 10_000, policy: nn.Module | None = None
) -> dict[str, float]:
    """Cheap scores for learning curves: one draw, 200 projections, the kernel of training, no floors."""
    task, target = _with_its_energy(agent, agent.task), scoring_target(agent.task)
    known = metrics_of(target)
    number = max((metric.quick_samples for metric in known if metric.quick_samples is not None), default=samples)
    scores: dict[str, float] = {}
    trajectory: Trajectory | None = None
    with torch.no_grad():
        energy = _energy_to_score(agent, task)
        if agent.has_density:
            trajectory = agent.sample_trajectory(number, seed=seed, policy=policy)
            final = trajectory.final
            if energy is not None:
                scores |= quick_bound(task, target, trajectory, energy)
        else:
            final = agent.sample(number, seed=seed)
        if not _aims_elsewhere(task):
            for metric in known:
                scores |= metric.quick(target, final, seed)
        scores |= quick_reward_scores(task, target, final, trajectory)
        if hasattr(agent, "score"):
            scores["auc"] = auc(agent.score, target, samples, seed)
    return scores


def _with_its_energy(model: object, task: Task) -> Task:
    """The task as it is scored: where ``mdp.set_energy`` has put another energy in place of the target's own, that one
    counts, as if the task had been made with it; a warning says so. A model with an energy of its own is DxMI.
    """
    if hasattr(model, "score") or not task.energy_swapped:
        return task
    warnings.warn(
        f"the energy of task {task.name!r} was swapped by mdp.set_energy: scores are those of the new one, and what "
        "belongs to the target's own energy or samples is left out.", stacklevel=3,
    )  # fmt: skip
    return dataclasses.replace(task, energy_replaced=True)


def scoring_target(task: Task) -> Target:
    """The target with its samples, which a task without a denoiser keeps from its policies."""
    if task.config.track in FROM_SCRATCH:
        return reference_target(task.config, task.device)
    return task.target


def _energy_to_score(model: object, task: Task) -> Energy | None:
    """The energy to score by: a given reward, else the target's own; none while the model still learns it."""
    if task.energy_replaced:
        return task.mdp.energy
    if task.target.has_energy:
        return task.target.energy
    return task.mdp.energy if task.mdp.has_energy and not hasattr(model, "score") else None


def _aims_elsewhere(task: Task) -> bool:
    """An energy was put in place of the target's own, so its samples are no longer the aim; data sets remain one."""
    return task.energy_replaced and task.config.reward is not None and task.target.has_energy
