"""Scores of a sampler on a task: log-weights, distances to exact samples with their floors, Frechet distance."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.agents import Agent
from dxmi_rl.agents.wrapped.action_density import ActionDensity, sb3_density, torchrl_density
from dxmi_rl.diffusion import BackwardKernel, Learned
from dxmi_rl.evaluation import metrics
from dxmi_rl.evaluation.annealing import annealed_importance_sampling
from dxmi_rl.mdp import DenoisingMDP, Policy
from dxmi_rl.networks.features import load_features
from dxmi_rl.rollout import Trajectory
from dxmi_rl.targets import GaussianMixture, Target
from dxmi_rl.targets.image_set import ImageSet
from dxmi_rl.targets.manywell import ManyWell
from dxmi_rl.tasks import Task, make_task, reference_target
from dxmi_rl.utils.checks import check_integer
from dxmi_rl.utils.storage import cached_tensors

FIT_STEPS = 4000
FIT_TRANSITIONS = 1280
MMD_SAMPLES = 2000
FLOOR_PAIRS = 20
FD_SAMPLES = 5000


def fit_kernel(mdp: DenoisingMDP, policy: Policy, *, steps: int = FIT_STEPS, seed: int = 0) -> Learned:
    """A Learned kernel fitted to a finished policy by the fixed recipe of docs/method.md.

    ``steps`` Adam steps of fresh rollouts of 1,280 transitions each, cosine from 2e-3; the MDP's own kernel is left
    alone. Every policy gets the same ruler: the same network, seed and number of steps.
    """
    check_integer("steps", steps)
    batch = math.ceil(FIT_TRANSITIONS / mdp.horizon)
    generator = torch.Generator(mdp.device).manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # networks are initialised on the CPU
        torch.default_generator.manual_seed(seed)
        kernel = Learned(mdp.base.schedule, mdp.event_shape, mdp.scale).to(mdp.device)
    at_once = 16  # rollouts are cheaper in large batches
    for step in range(steps):
        kernel.set_progress(step / steps)
        if step % at_once == 0:
            with torch.no_grad():
                states = mdp.rollout(policy, batch * at_once, generator).x
        part = states[:, (step % at_once) * batch :][:, :batch]
        kernel.fit(*Trajectory(part, part[:, :, 0]).transitions())
    return kernel


def evaluate(
    model: Any,
    task: str | Task | None = None,
    *,
    coordinates: str | None = None,
    policy: nn.Module | None = None,
    seed: int = 0,
    samples: int = 10_000,
    draws: int = 8,
    trajectories: int = 100_000,
    fit: bool = True,
    floors: bool = True,
) -> dict[str, float]:
    """Score an agent, or a Stable-Baselines3 policy on ``task``, on fixed seeds; nothing is trained or adapted.

    Args:
        model: an agent of this package, an SB3 algorithm (PPO, A2C, SAC, TD3, ...) or a TorchRL ProbabilisticActor with
            IndependentNormal or TanhNormal, or an ActionDensity that you made on ``task.mdp`` of the built ``task``.
            What the environment clips is not clipped here; squashed actions are accounted for; deterministic policies
            get the sample metrics only.
        task: needed for a TorchRL actor, and for an SB3 model that has no environment of ours, such as a loaded one.
        coordinates: action coordinates that a model of another library was trained in; None: those of its
            environment, else "noise". Its observations must be flat.
        policy: other weights of the agent's policy, such as DxMI's last iterate ``agent.agent.policy``.
        seed: seed of all draws.
        samples: samples per draw of the sample metrics (``sliced_w2``, ``mode_tv``, ``auc``).
        draws: number of draws that ``sliced_w2`` is averaged over.
        trajectories: number of trajectories of the log-weights.
        fit: also fit a Learned kernel (seconds to minutes) and report ``kl_bound_fit``, ``elbo``, ``log_z`` and
            ``ess``, ``eubo`` with it; otherwise these use the kernel of training.
        floors: also report ``<metric>_floor``, the score of exact samples (mean of 20 pairs, cached on disk).

    Returns:
        A flat dict of the keys that apply: ``kl_bound``, ``kl_bound_fit`` (log Z - ELBO, nats; energy at temperature
        1), ``elbo``, ``eubo``, ``log_z``, ``ess`` (a fraction; below 0.1 log_z is unreliable), ``elbo_tau`` (the ELBO
        of exp(-E / tau), which a task of another temperature than 1 asks for; with ``energy="fixed"`` its
        ``elbo_tau_floor`` is that density's log Z by annealed importance sampling, minutes, once), ``sliced_w2``,
        ``mmd``, ``modes``, ``mode_tv``, ``well_error`` (ManyWell.well_error), ``auc`` (of a learned energy, data
        against uniform noise over the plotting range; its ``auc_floor`` is the exact energy's), ``beyond_box`` (models
        of other libraries: fraction of action coordinates beyond the box that training clipped to),
        ``quantile_error`` (in place of ``sliced_w2`` where the variance is infinite; in units of the target's scale),
        ``fd``, ``kd``, ``precision``, ``recall``, ``density``, ``coverage`` (images; on features the target names),
        ``denoiser_calls`` (per sample). Keys that do not apply are absent.

    Raises TypeError for another model, ValueError for a missing task or bad sizes.
    """
    for name, value in {"samples": samples, "draws": draws, "trajectories": trajectories}.items():
        check_integer(name, value)
    task, density = _resolve(model, task, policy, coordinates)
    mdp, target = task.mdp, _scoring_target(task)
    scores: dict[str, float] = {}
    with torch.no_grad():
        energy = _energy_to_score(model, task)
        if density is not None and energy is not None and getattr(density, "has_density", True):
            scores |= _log_weight_scores(task, target, density, energy, trajectories, seed, fit)
        if isinstance(density, ActionDensity) and density.bounds is not None:
            scores["beyond_box"] = _beyond_box(density, samples, seed)
        generator, seeds = torch.Generator(mdp.device).manual_seed(seed + 1), itertools.count(seed + 10)

        def draw(n: int) -> Tensor:
            return mdp.sample(density, n, generator) if density is not None else model.sample(n, seed=next(seeds))

        if isinstance(target, ImageSet):
            scores |= image_scores(target, draw(FD_SAMPLES))
        elif _has_samples(target) and not _aims_elsewhere(task):
            scores |= _sample_scores(target, draw, samples, draws, seed)
        if hasattr(model, "score"):
            scores["auc"] = _auc(model.score, target, samples, seed)
        if floors:
            scores |= _floors(target, samples, scores)
    if floors and "elbo_tau" in scores and _has_named_energy(task):
        scores["elbo_tau_floor"] = tempered_log_z(task)
    own = isinstance(model, Agent)
    scores["denoiser_calls"] = float(model.denoiser_calls if own else mdp.horizon * mdp.base.denoiser_calls)
    return scores


def quick_scores(
    agent: Agent, *, seed: int = 0, samples: int = 10_000, policy: nn.Module | None = None
) -> dict[str, float]:
    """Cheap scores for learning curves: one draw, 200 projections, the kernel of training, no floors."""
    task, target, mdp = agent.task, _scoring_target(agent.task), agent.mdp
    scores: dict[str, float] = {}
    with torch.no_grad():
        number = FD_SAMPLES if isinstance(target, ImageSet) else samples
        energy = _energy_to_score(agent, task)
        if agent.has_density:
            trajectory = agent.sample_trajectory(number, seed=seed, policy=policy)
            final = trajectory.final
        else:
            final = agent.sample(number, seed=seed)
        if agent.has_density and energy is not None:
            elbo = metrics.log_weight_statistics(_log_weights(mdp, mdp.kernel, trajectory, energy))["elbo"]
            log_z = None if task.energy_replaced else target.log_z
            scores |= {"kl_bound": log_z - elbo} if log_z is not None else {"elbo": elbo}
            scores |= _tempered(task, elbo, energy, final)
        if isinstance(target, ImageSet):
            scores["fd"] = image_distance(target, final)
        elif _has_samples(target) and target.finite_variance and not _aims_elsewhere(task):
            exact = _exact(target, samples, seed).flatten(1)
            scores["sliced_w2"] = metrics.sliced_w2(final.flatten(1), exact, projections=200, seed=seed)
        if hasattr(agent, "score"):
            scores["auc"] = _auc(agent.score, target, samples, seed)
    return scores


def _resolve(
    model: Any, task: str | Task | None, policy: nn.Module | None, coordinates: str | None
) -> tuple[Task, Policy | None]:
    named = task.name if isinstance(task, Task) else task
    if isinstance(model, Agent):
        if named is not None and named != model.task.name:
            raise ValueError(f"the agent was built on task {model.task.name!r}, not on {named!r}.")
        return model.task, model.density(policy) if model.has_density else None
    if isinstance(model, ActionDensity):
        if not isinstance(task, Task) or task.mdp is not model.mdp:
            raise ValueError(f"task must be the built Task whose mdp the ActionDensity was made on, got {named!r}.")
        return task, model
    kind = _kind(model)
    own, found = _home(model)
    if own is not None and named is not None and named != own.name:
        raise ValueError(f"the model's environment is on task {own.name!r}, not on {named!r}.")
    if isinstance(task, Task) or (own is None and task is not None):
        built = make_task(task)
    elif own is not None:
        built = own
    else:
        raise ValueError("task must name the task that a model of SB3 or TorchRL is scored on, got None.")
    coordinates = coordinates or found or "noise"
    if kind == "sb3":
        return built, sb3_density(model.policy, built.mdp, coordinates)
    return built, torchrl_density(model, built.mdp, coordinates)


def _home(model: Any) -> tuple[Task | None, str | None]:
    """Task and action coordinates of an SB3 model's environment, where it still has one and it is one of ours.

    Raises TypeError for observations that a wrapper has normalised: the policy is no function of the state alone.
    """
    env = getattr(model, "env", None)
    if getattr(env, "norm_obs", False):  # SB3's wrappers hand on the attributes of what they wrap
        raise TypeError("a policy on VecNormalize's observations has no density here: use norm_obs=False.")
    while env is not None and not isinstance(getattr(env, "task", None), Task):
        if hasattr(env, "remotes"):  # SubprocVecEnv: the task stays in its process
            return None, str(env.get_attr("coordinates")[0])
        env = env.venv if hasattr(env, "venv") else env.envs[0].unwrapped if hasattr(env, "envs") else None
    return (None, None) if env is None else (env.task, str(env.coordinates))


def _kind(model: Any) -> str:
    if hasattr(getattr(model, "policy", None), "observation_space"):
        return "sb3"
    if hasattr(model, "get_dist") and hasattr(model, "in_keys"):
        return "torchrl"
    raise TypeError(
        "model must be an agent, an algorithm of Stable-Baselines3 or a ProbabilisticActor of TorchRL, got "
        f"{type(model).__name__}."
    )


def _scoring_target(task: Task) -> Target:
    """The target with its samples, which a task of the sample track keeps from its policies."""
    if task.config.track == "sample":
        return reference_target(task.config).to(task.device)
    return task.target


def _has_samples(target: Target) -> bool:
    return target.has_sampler or target.has_data


def _beyond_box(density: ActionDensity, n: int, seed: int) -> float:
    """Fraction of action coordinates, over n episodes, that the training environment would have clipped."""
    assert density.bounds is not None
    if density.squashed is not None:
        return 0.0  # by construction; recovered from the next state, an action at the edge may round beyond it
    mdp, (low, high) = density.mdp, density.bounds
    generator = torch.Generator(mdp.device).manual_seed(seed + 5)
    x, beyond = mdp.reset(n, generator), torch.zeros((), device=mdp.device)
    for t in range(mdp.horizon):
        noise = torch.randn(x.shape, generator=generator, device=mdp.device)
        x_next, _ = density.transport(x, t, noise)
        action = mdp.action(x, t, x_next, density.coordinates).flatten(1)
        beyond += ((action < low) | (action > high)).float().mean()
        x = x_next
    return float(beyond) / mdp.horizon


def _energy_to_score(model: Any, task: Task) -> Any:
    """The reward that was given; else the density's own; a model that is still being trained is no yardstick."""
    if task.energy_replaced:
        return task.mdp.energy
    if task.target.has_energy:
        return task.target.energy
    return task.mdp.energy if task.mdp.has_energy and not hasattr(model, "score") else None


def _aims_elsewhere(task: Task) -> bool:
    """An energy was put in place of the target's own, so its samples are no longer the aim; data sets remain one."""
    return task.energy_replaced and task.config.reward is not None


def _log_weights(mdp: DenoisingMDP, kernel: BackwardKernel, trajectory: Trajectory, energy: Any) -> Tensor:
    """log w under another kernel and energy than the MDP's own."""
    other = copy.copy(mdp)
    other.kernel, other._energy = kernel, energy
    return other.log_weights(trajectory)


def _tempered(task: Task, elbo: float, energy: Any, final: Tensor) -> dict[str, float]:
    """``elbo_tau``, the ELBO of exp(-E / tau), of the same trajectories.

    Nothing at temperatures 0 and 1, nor where agents are not given this energy but learn one from data.
    """
    tau = task.mdp.tau
    if tau in (0.0, 1.0) or not (task.energy_replaced or task.config.reward):
        return {}
    return {"elbo_tau": elbo + (1 - 1 / tau) * float(energy(final).double().mean())}


def _has_named_energy(task: Task) -> bool:
    return task.spec is not None and task.spec["energy"] is not None


def tempered_log_z(task: Task) -> float:
    """log of the integral of exp(-E / tau) for a task with a named energy, such as "fixed": what ELBOs are bounded by.

    An estimate by annealed importance sampling (dxmi_rl.evaluation.annealing), measured once and cached on disk. Raises
    ValueError for a task whose energy has no name.
    """
    if not _has_named_energy(task):
        raise ValueError(f"task must have a named energy, such as make_task({task.name!r}, energy='fixed').")
    energy = task.mdp.energy.function
    assert task.spec is not None and energy is not None
    key = {"task": task.name, "energy": task.spec["energy"], "task_config": task.fingerprint(), "version": 1}

    def estimate() -> dict[str, Tensor]:
        mdp, target = task.mdp, task.target
        center: float | Tensor = 0.0
        scale = mdp.scale
        if target.has_data or target.has_sampler:  # from where the data are: annealing from elsewhere may miss them
            data = target.data(4000, torch.Generator(mdp.device).manual_seed(4_000_003))
            center = data.mean(0)
            scale = float((data - center).square().mean().sqrt())
        found = annealed_importance_sampling(
            energy, mdp.event_shape, scale=scale, center=center, tau=mdp.tau, chains=1024, device=mdp.device
        )
        return {"log_z": torch.tensor([found.log_z, found.standard_error], dtype=torch.float64)}

    return float(cached_tensors("log_z", key, estimate)["log_z"][0])


def _log_weight_scores(
    task: Task, target: Target, density: Policy, energy: Any, trajectories: int, seed: int, fit: bool
) -> dict[str, float]:
    mdp = task.mdp
    log_z = None if task.energy_replaced else target.log_z
    trajectory = mdp.rollout(density, trajectories, torch.Generator(mdp.device).manual_seed(seed + 2))
    statistics = metrics.log_weight_statistics(_log_weights(mdp, mdp.kernel, trajectory, energy))
    kernel: BackwardKernel = mdp.kernel
    scores: dict[str, float] = {}
    if log_z is not None:
        scores["kl_bound"] = log_z - statistics["elbo"]
    if fit:
        kernel = fit_kernel(mdp, density, seed=seed)
        statistics = metrics.log_weight_statistics(_log_weights(mdp, kernel, trajectory, energy))
        if log_z is not None:
            scores["kl_bound_fit"] = log_z - statistics["elbo"]
    scores |= statistics | _tempered(task, statistics["elbo"], energy, trajectory.final)
    # A squashed policy cannot reach everything: its EUBO is infinite.
    bounded = isinstance(density, ActionDensity) and density.squashed is not None
    if target.has_sampler and target.has_energy and not task.energy_replaced and not bounded:
        generator = torch.Generator(mdp.device).manual_seed(seed + 3)
        other = copy.copy(mdp)
        other.kernel, other._energy = kernel, energy
        chains = other.backward_rollout(density, target.sample(trajectories, generator), generator)
        scores["eubo"] = metrics.eubo(other.log_weights(chains))
    return scores


def _exact(target: Target, n: int, seed: int) -> Tensor:
    """Fixed exact samples, disjoint in seed from everything a policy draws; test rows of a data set."""
    if not target.has_sampler:
        return target.test_data(n)
    return target.sample(n, torch.Generator(target.device).manual_seed(1_000_003 + seed))


def _sample_scores(target: Target, draw: Any, samples: int, draws: int, seed: int) -> dict[str, float]:
    pairs = [(draw(samples).flatten(1), _exact(target, samples, seed + i).flatten(1)) for i in range(draws)]
    x, exact = pairs[-1]
    scores = {"mmd": metrics.mmd(x[:MMD_SAMPLES], exact[:MMD_SAMPLES])}
    if target.finite_variance:
        distances = [metrics.sliced_w2(*pair, seed=seed + i) for i, pair in enumerate(pairs)]
        scores["sliced_w2"] = sum(distances) / draws
    else:
        scores["quantile_error"] = metrics.quantile_error(x, exact) / target.scale
    if isinstance(target, GaussianMixture):
        scores |= metrics.mode_statistics(x, target.means, target.std, target.weights)
    if isinstance(target, ManyWell):
        scores["well_error"] = target.well_error(x)
    return scores


def _auc(score: Any, target: Target, samples: int, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed + 4)
    low, high = target.plot_range
    data = target.test_data(samples, None) if target.has_data else _exact(target, samples, seed)
    noise = low + (high - low) * torch.rand(samples, *target.event_shape, generator=generator).to(data.device)
    return metrics.auc(-score(data), -score(noise))


PAIRED = 10_000
"""Rows of scores that look at all pairs."""
_kept_features: dict[tuple[str, str, int, str], Tensor] = {}


def _features(target: ImageSet, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features of images and of as many test images; the latter are kept for the next call."""
    network = load_features(target.features, x.device)
    key = (target.features, target.test_digest(), len(x), str(x.device))
    if key not in _kept_features:
        _kept_features.clear()
        _kept_features[key] = network(target.test_data(len(x)))
    return network(x), _kept_features[key]


def image_distance(target: ImageSet, x: Tensor) -> float:
    """``fd`` of ``image_scores`` alone."""
    return metrics.frechet_distance(*_features(target, x))


def image_scores(target: ImageSet, x: Tensor, *, train: bool = False) -> dict[str, float]:
    """``fd``, ``kd``, ``precision``, ``recall``, ``density`` and ``coverage`` of images ``[n, *event_shape]``.

    Against as many test images, or all where there are fewer, on the target's features; with ``train`` also
    ``fd_train``, against as many training images. All but these two are of no more than 10,000 images of either kind,
    as they look at all pairs. Raises as ``metrics.frechet_distance``.
    """
    features, real = _features(target, x)
    scores = {"fd": metrics.frechet_distance(features, real)}
    if train:
        network = load_features(target.features, x.device)
        scores["fd_train"] = metrics.frechet_distance(features, network(target.train_data(len(x))))
    some, few = features[:PAIRED], real[:PAIRED]
    return scores | {"kd": metrics.kernel_distance(some, few)} | metrics.neighbour_scores(few, some)


def _floors(target: Target, samples: int, scores: dict[str, float]) -> dict[str, float]:
    """Floors of the metrics in ``scores``: exact samples against exact samples, or training against test images."""
    if isinstance(target, ImageSet):
        return {f"{key}_floor": value for key, value in image_scores(target, target.train_data(FD_SAMPLES)).items()}
    if not _has_samples(target):
        return {}
    floors = exact_floors(target, samples)
    if "auc" in scores and target.has_energy:
        floors["auc"] = _auc(target.energy, target, samples, 0)
    if isinstance(target, ManyWell) and "well_error" in scores:
        errors = [target.well_error(_exact(target, samples, seed)) for seed in range(FLOOR_PAIRS)]
        floors["well_error"] = sum(errors) / FLOOR_PAIRS
    return {f"{key}_floor": value for key, value in floors.items() if key in scores}


def exact_floors(target: Target, samples: int = 10_000) -> dict[str, float]:
    """Mean over 20 pairs of independent exact sets of sliced W2, MMD, modes and mode TV; cached on disk."""
    name = f"{target.name}-{target.digest()}"
    return dict(_cached_floors(name, samples, lambda: _measure_floors(target, samples)))


@functools.cache
def _floor_memory() -> dict[tuple[str, int], dict[str, float]]:
    return {}


def _cached_floors(name: str, samples: int, measure: Any) -> dict[str, float]:
    memory = _floor_memory()
    if (name, samples) not in memory:
        key = {"target": name, "samples": samples, "pairs": FLOOR_PAIRS, "version": 1}
        tensors = cached_tensors(
            "floor", key, lambda: {k: torch.tensor(v, dtype=torch.float64) for k, v in measure().items()}
        )
        memory[name, samples] = {k: float(v) for k, v in tensors.items()}
    return memory[name, samples]


def _measure_floors(target: Target, samples: int) -> dict[str, float]:
    generator = torch.Generator(target.device).manual_seed(2_000_003)

    def draw(n: int, generator: torch.Generator | None) -> Tensor:
        return target.data(n, generator).flatten(1)

    def floor(metric: Any, n: int) -> float:
        if target.has_sampler:
            return metrics.exact_floor(metric, draw, n, FLOOR_PAIRS, generator)
        test = target.test_data(n).flatten(1)
        return metrics.exact_floor(lambda x, _: metric(x, test), draw, n, FLOOR_PAIRS, generator)

    floors = {"sliced_w2": floor(metrics.sliced_w2, samples)} if target.finite_variance else {}
    floors["mmd"] = floor(metrics.mmd, min(samples, MMD_SAMPLES))
    if not target.finite_variance:
        floors["quantile_error"] = floor(metrics.quantile_error, samples) / target.scale
    if isinstance(target, GaussianMixture):
        sets = [
            metrics.mode_statistics(target.sample(samples, generator), target.means, target.std, target.weights)
            for _ in range(FLOOR_PAIRS)
        ]
        floors |= {key: sum(entry[key] for entry in sets) / FLOOR_PAIRS for key in ("modes", "mode_tv")}
    return floors
