"""evaluate: the keys that apply, bounds on the right side of log Z, and nothing changed by looking."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from dxmi_rl import evaluate, evaluation, make_agent, make_task, tasks
from dxmi_rl.agents import AGENTS, Base
from dxmi_rl.agents.wrapped.action_density import ActionDensity
from dxmi_rl.diffusion import KERNELS
from dxmi_rl.evaluation import METRICS, exact_floors, fit_kernel, floors, log_weights, quick_scores
from dxmi_rl.live_energy import EnergyError
from dxmi_rl.targets import GaussianMixture, Modes, ParticleTarget, Target, list_targets, make_target
from dxmi_rl.targets.manywell import ManyWell
from dxmi_rl.tasks import Task
from dxmi_rl.utils.registry import Registry
from dxmi_rl.utils.torch_tools import seeded

NETWORK = {"width": 16, "depth": 2}
SMALL = {"n_trajectories": 64, "policy": NETWORK, "value": NETWORK}
WEIGHTS = {"elbo", "log_z", "ess"}
MARGINAL = {f"{key}{end}" for key in ("kl_marginal", "kl_marginal_forward") for end in ("", "_se", "_bias")}
SAMPLES = {"sliced_w2", "mmd", "modes", "mode_tv"}


def task(name: str = "8gaussians", **changes: Any) -> Task:
    with seeded(0):
        return make_task(name, **changes)


def quick(model: Any, **changes: Any) -> dict[str, float]:
    return evaluate(
        model, **{"samples": 500, "draws": 2, "trajectories": 2000, "fit": False, "floors": False, **changes}
    )


@pytest.fixture(autouse=True)
def short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of kl_bound_fit with 60 steps instead of 4,000."""
    fit = log_weights.fit_kernel
    monkeypatch.setattr(log_weights, "fit_kernel", lambda mdp, policy, *, seed=0: fit(mdp, policy, steps=60, seed=seed))
    monkeypatch.setattr(floors, "FLOOR_PAIRS", 3)


@pytest.mark.slow
def test_keys_of_a_density() -> None:
    scores = quick(Base("8gaussians"), fit=True, floors=True)
    wanted = SAMPLES | {f"{key}_floor" for key in SAMPLES}
    assert scores.keys() == {"kl_bound", "kl_bound_fit", "eubo", "denoiser_calls"} | WEIGHTS | MARGINAL | wanted
    assert all(type(value) in (int, float) and math.isfinite(value) for value in scores.values())
    assert scores["denoiser_calls"] == 5
    assert scores["kl_bound_fit"] == pytest.approx(-scores["elbo"])
    without = quick(Base("8gaussians"))
    assert without.keys() == {"kl_bound", "eubo", "denoiser_calls"} | WEIGHTS | MARGINAL | SAMPLES
    assert without["kl_bound"] == pytest.approx(scores["kl_bound"]) == pytest.approx(-without["elbo"])


@pytest.mark.slow
def test_keys_of_a_learned_energy_on_known_data() -> None:
    with seeded(0):
        built = make_task("8gaussians-data", pretraining={"iterations": 20, "batch_size": 32, "width": 16})
    model = make_agent("dxmi", built, agent_settings=SMALL)
    scores = quick(model, floors=True)
    assert {"auc", "auc_floor", "kl_bound", "eubo"} <= scores.keys()
    assert 0.85 < scores["auc_floor"] < 0.95, "the exact energy, ideal 0.903"
    last = quick(model, policy=model.agent.policy)
    assert last.keys() <= scores.keys()


@pytest.mark.slow
def test_keys_of_images() -> None:
    with seeded(0):
        built = make_task("digits", pretraining={"iterations": 20, "batch_size": 32, "width": 16})
    scores = quick(Base(built), floors=True)
    keys = {"fd", "kd", "precision", "recall", "density", "coverage"}
    assert scores.keys() == keys | {f"{key}_floor" for key in keys} | {"denoiser_calls"}, "no energy, no weights"
    assert scores["fd_floor"] < scores["fd"]


@pytest.mark.slow
def test_keys_of_a_reward_without_normaliser_or_sampler() -> None:
    with seeded(0):
        built = make_task(
            "digits", pretraining={"iterations": 20, "batch_size": 32, "width": 16},
            energy=lambda x: x.flatten(1).square().sum(1),
        )  # fmt: skip
    scores = quick(Base(built))
    assert scores.keys() >= WEIGHTS and not {"kl_bound", "eubo", "auc"} & scores.keys()


@pytest.mark.slow
@pytest.mark.parametrize("backward", KERNELS.names())
@pytest.mark.parametrize("fit", [False, True])
def test_elbo_and_eubo_bracket_log_z(backward: str, fit: bool) -> None:
    """ELBO <= log Z + 3 s.e., EUBO >= log Z - 3 s.e.; log Z = 0. Standard errors by repeating with other seeds."""
    agent = Base(task(backward=backward))
    runs = [quick(agent, seed=seed, fit=fit, trajectories=4000, draws=1) for seed in range(4)]
    for key, side in (("elbo", 1), ("eubo", -1)):
        values = torch.tensor([run[key] for run in runs])
        assert side * float(values.mean()) <= 3 * float(values.std()) / 2 + 1e-6, key
    assert all(run["elbo"] <= run["log_z"] for run in runs)
    assert all(0 < run["ess"] <= 1 for run in runs)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_the_bounds_close_with_the_number_of_steps() -> None:
    """DDPM of one Gaussian: KL bound, EUBO and ESS go to 0, 0 and 1, and log Z is right at any number of steps."""
    target = GaussianMixture(torch.tensor([[0.5, -1.0]]), 0.8, plot_range=(-4, 4))
    options = {"level_max": 30.0, "level_min": 0.05}
    loose, tight = (quick(Base(make_task(target, horizon=t, schedule_options=options))) for t in (20, 300))
    for key in ("kl_bound", "eubo"):
        assert 0 < tight[key] < 0.3 * loose[key], key
    assert tight["ess"] > max(0.4, loose["ess"])
    assert tight["log_z"] == pytest.approx(0.0, abs=0.05)


def test_evaluation_is_at_temperature_one() -> None:
    hot, cold = (quick(Base(task(tau=tau))) for tau in (0.1, 1.0))
    assert {key: hot[key] for key in cold} == cold and hot.keys() - cold == {"elbo_tau"}


def test_elbo_tau_is_the_soft_return_in_nats() -> None:
    """ELBO of exp(-E / tau) = E[soft return] / tau - E[log p_0(x_0)]: what agents maximise, up to a constant."""
    agent = Base(task(tau=0.1))
    scores, mdp = quick(agent, fit=False, trajectories=3000), agent.mdp
    trajectory = mdp.rollout(agent.policy, 3000, torch.Generator().manual_seed(2))
    expected = (mdp.soft_return(trajectory) / 0.1 - mdp.start_log_prob(trajectory.x[0])).mean()
    assert scores["elbo_tau"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_elbo_tau_of_a_fixed_energy_has_its_normaliser_as_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A named energy: annealed importance sampling finds log Z of exp(-E / tau), once."""
    monkeypatch.setattr(tasks.build, "ENERGIES", named := Registry("energy"))
    named.add("bowl", f"{__name__}:bowl")
    built = make_task("8gaussians-data", energy="bowl", tau=0.5, pretraining={"iterations": 2, "width": 8})
    scores = quick(Base(built), floors=True, samples=200)
    # exp(-|x|^2 / (2 s^2) / tau) in the plane: Z = 2 pi s^2 tau
    assert scores["elbo_tau_floor"] == pytest.approx(math.log(2 * math.pi * 0.25 * 0.5), abs=0.1)
    assert scores["elbo_tau"] < scores["elbo_tau_floor"]
    monkeypatch.setattr(log_weights, "annealed_importance_sampling", None)  # from the cache now
    assert evaluation.tempered_log_z(built) == scores["elbo_tau_floor"]
    with pytest.raises(ValueError, match="named energy"):
        evaluation.tempered_log_z(task())


def bowl(built: Task) -> torch.nn.Module:
    class Bowl(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum(1) / (2 * 0.25)

    return Bowl()


def test_the_same_seed_gives_the_same_scores() -> None:
    agent = Base("8gaussians")
    assert quick(agent, seed=3) == quick(agent, seed=3)
    assert quick(agent, seed=3) != quick(agent, seed=4)
    assert quick_scores(agent, samples=500) == quick_scores(agent, samples=500)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dxdp", "ppo", "sb3-ppo"])
def test_looking_changes_nothing(name: str) -> None:
    """Train, evaluate, train equals train, train."""
    if name.startswith("sb3"):
        pytest.importorskip("stable_baselines3")
    known = AGENTS[name].Config.__dataclass_fields__
    settings = {key: value for key, value in SMALL.items() if key in known}
    finals = []
    for look in (False, True):
        agent = make_agent(name, task(backward="learned"), seed=0, **settings)
        step = agent.timesteps_per_iteration
        agent.learn(2 * step)
        if look:
            kernel = copy.deepcopy(agent.mdp.kernel.state_dict())
            costs = copy.copy(agent.costs)
            torch.manual_seed(5)
            wanted = torch.rand(1)
            torch.manual_seed(5)
            quick(agent, fit=True, floors=True)
            quick_scores(agent, samples=200)
            assert torch.equal(torch.rand(1), wanted), "the global generator"
            assert all(torch.equal(value, agent.mdp.kernel.state_dict()[key]) for key, value in kernel.items())
            assert agent.costs == costs, "evaluation is not counted"
        agent.learn(2 * step, reset_num_timesteps=False)
        finals.append(agent)
    without, with_look = (agent.sample(8, seed=0) for agent in finals)
    assert torch.equal(without, with_look)
    assert torch.equal(finals[0].generator.get_state(), finals[1].generator.get_state())


@pytest.mark.slow
def test_many_wells_are_counted_beside_exact_samples() -> None:
    agent = Base("manywell32")
    scores = evaluate(agent, seed=1, samples=2000, draws=1, trajectories=500, fit=False)
    target = agent.task.target
    assert isinstance(target, ManyWell)
    generator = torch.Generator().manual_seed(2)  # evaluate draws its samples from seed + 1
    assert scores["well_error"] == target.well_error(agent.mdp.sample(agent.density(), 2000, generator)) > 0.2
    assert 0.005 < scores["well_error_floor"] < 0.03, "the largest of 16 errors with a standard deviation of 0.008"


@pytest.mark.slow
def test_an_sb3_model_is_scored_on_a_task() -> None:
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    from dxmi_rl.envs.sb3 import make_sb3_env

    model = stable_baselines3.PPO("MlpPolicy", make_sb3_env("8gaussians", num_envs=8), n_steps=5, batch_size=40, seed=0)
    scores = quick(model, task="8gaussians")
    base = quick(Base("8gaussians"))
    assert scores.keys() == {*base, "beyond_box"}
    assert scores["beyond_box"] == 0, "N(0, 1) does not leave +-25"
    assert scores["kl_bound"] == pytest.approx(base["kl_bound"], rel=0.3), "untrained it is nearly the base sampler"
    assert quick(model) == scores, "the task is its environment's"
    with pytest.raises(ValueError, match="environment is on task '8gaussians', not on 'gmm25'"):
        quick(model, task="gmm25")
    model.env = None
    with pytest.raises(ValueError, match="task must name the task"):
        quick(model)


def test_bad_input() -> None:
    agent = Base("8gaussians")
    with pytest.raises(TypeError, match="model must be an agent"):
        evaluate(object())
    with pytest.raises(ValueError, match="was built on task '8gaussians', not on 'gmm25'"):
        evaluate(agent, "gmm25")
    for name, least in (("samples", 2), ("draws", 1), ("trajectories", 1)):
        with pytest.raises(ValueError, match=f"{name} must be >= {least}"):
            evaluate(agent, **{name: least - 1})
    with pytest.raises(ValueError, match="steps must be >= 1"):
        fit_kernel(agent.mdp, agent.policy, steps=0)


@pytest.mark.slow
def test_the_fixed_recipe_tightens_the_bound_and_leaves_the_kernel_alone() -> None:
    agent = Base(task(backward="forward"))
    kernel = agent.mdp.kernel
    fitted = fit_kernel(agent.mdp, agent.policy, steps=150)
    assert agent.mdp.kernel is kernel
    trajectory = agent.sample_trajectory(5000, seed=0)
    with torch.no_grad():
        before = float(agent.mdp.log_weights(trajectory).mean())
        agent.mdp.kernel = fitted
        after = float(agent.mdp.log_weights(trajectory).mean())
    assert after > before
    again = fit_kernel(agent.mdp, agent.policy, steps=150)
    assert all(torch.equal(a, b) for a, b in zip(fitted.parameters(), again.parameters(), strict=True)), "one ruler"


def test_floors_are_those_of_exact_samples() -> None:
    found = exact_floors(make_target("8gaussians"), 400)
    assert found.keys() == SAMPLES
    assert found["modes"] == 8
    assert 0 < found["sliced_w2"] < 0.5
    assert exact_floors(make_target("8gaussians"), 400) == found


class Lattice(Target):
    """Points 0, 1, 2, ... 9: a target that states modes and a score of its own."""

    name, has_sampler = "lattice", True

    def __init__(self) -> None:
        super().__init__((1,), scale=3.0, plot_range=(-1.0, 10.0))

    @property
    def modes(self) -> Modes:
        return Modes(torch.arange(10.0)[:, None], 0.1, torch.full((10,), 0.1))

    def own_scores(self, x: Tensor) -> dict[str, float]:
        return {"between": float((x - x.round()).abs().mean())}

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return torch.randint(10, (n, 1), generator=generator).float()


def test_a_new_target_says_how_it_is_scored() -> None:
    """Nothing in evaluation knows it, and every score has a floor."""
    target = Lattice()
    assert target.metrics == ("sliced_w2", "mmd", "modes", "own")
    settings = {"pretraining": {"iterations": 20, "batch_size": 32, "width": 16}}
    with seeded(0):
        scores = quick(Base(make_task(target, **settings)), floors=True, samples=400)
    names = {*SAMPLES, "between"}
    assert names | {f"{name}_floor" for name in names} <= scores.keys()
    assert scores["between"] > scores["between_floor"] == 0 and scores["modes_floor"] == 10


def test_targets_of_one_name_with_other_metrics_have_floors_of_their_own() -> None:
    class Other(Lattice):
        def own_scores(self, x: Tensor) -> dict[str, float]:
            return {"beyond": 7.0}

    assert floors.exact_floors(Lattice(), 50)["between"] == 0
    assert floors.exact_floors(Other(), 50)["beyond"] == 7

    class Few(Lattice):
        metrics = ("mmd",)  # type: ignore[assignment]

    assert floors.exact_floors(Few(), 50).keys() == {"mmd"}


def test_every_target_names_metrics_that_there_are() -> None:
    for name in list_targets():
        target = make_target(name)
        assert set(target.metrics) <= set(METRICS), name
        referenced = isinstance(target, ParticleTarget) and target.reference is not None
        assert bool(target.metrics) == (target.has_samples or referenced), name
    assert make_target("mos10").metrics == ("mmd", "quantile_error")
    assert make_target("manywell32").metrics == ("sliced_w2", "mmd", "own")
    assert make_target("digits").metrics == ("images",)


def test_an_energy_that_was_swapped_is_the_one_that_is_scored_and_a_warning_says_so(tmp_path: Path) -> None:
    given, swapped = make_task("8gaussians", energy=round_bowl), make_task("8gaussians")
    swapped.mdp.set_energy(round_bowl)
    with pytest.warns(UserWarning, match=r"'8gaussians' was swapped by mdp.set_energy"):
        scores = quick(Base(swapped))
    assert scores == quick(Base(given))
    with pytest.warns(UserWarning, match="swapped"):
        assert "kl_bound" not in quick_scores(Base(swapped))
    with pytest.warns(UserWarning, match="into task '8gaussians' is not saved: load the agent with"):
        Base(swapped).save(tmp_path / "swapped.safetensors")
    with warnings.catch_warnings(action="error"):
        Base(given).save(tmp_path / "given.safetensors")


def test_where_the_energy_is_learned_the_targets_own_is_scored() -> None:
    """Nothing was swapped: the task never had the target's energy as its reward."""
    task = make_task("8gaussians-data", pretraining={"iterations": 20, "width": 16, "depth": 1})
    task.mdp.set_energy(round_bowl)
    with warnings.catch_warnings(action="error"):
        assert "kl_bound" in quick_scores(Base(task))


def round_bowl(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(1)


def test_a_wrecked_sampler_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="log-weights rest on few trajectories"):
        quick(Base(make_task("manywell32")))


@pytest.mark.slow
def test_a_log_density_in_place_of_an_energy_is_warned_of() -> None:
    """Samples flee from the density then; those of a right energy, and of a wide base sampler, do not."""

    def energy(x: Tensor) -> Tensor:
        return (x.norm(dim=1) - 2).square() / 0.1

    def task(own: Any) -> Task:
        return make_task(own, dim=2, horizon=4, backward="learned", target_options={"scale": 2.0})

    sizes: dict[str, Any] = {"fit": False, "draws": 1, "samples": 500, "trajectories": 500}
    path_wise = make_agent("path-wise", task(lambda x: -energy(x)), seed=0).learn(40_000)
    with pytest.warns(UserWarning, match=r"samples are [\d.e+]+ from 0 .*scale is 2\. .*minus the log-density"):
        evaluate(path_wise, **sizes)
    for agent in (make_agent("path-wise", task(energy), seed=0).learn(5_000), make_agent("base", task(energy))):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            evaluate(agent, **sizes)
        assert not [one for one in caught if "log-density" in str(one.message)]


def test_a_replaced_energy_is_the_one_that_is_scored() -> None:
    """Its log Z is unknown and the target's samples are not its own: no bound, no distances."""
    task = make_task("8gaussians", energy=lambda x: x.square().sum(1))
    scores = quick(Base(task))
    assert {"elbo", "log_z", "ess"} <= scores.keys()
    assert not {"kl_bound", "sliced_w2", "modes", "eubo"} & scores.keys()


@pytest.mark.slow
def test_coordinates_are_those_of_the_environment_under_any_wrapper() -> None:
    """SB3 wraps environments in many layers; a policy read in other coordinates would get another score in silence."""
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

    from dxmi_rl.envs import ENV_ID, make_sb3_env

    def scores(env: Any) -> dict[str, float]:
        return quick(sb3.PPO("MlpPolicy", env, n_steps=5, batch_size=40, seed=0), task="8gaussians", draws=1)

    def made() -> Any:
        return make_sb3_env("8gaussians", num_envs=8, coordinates="next_state")

    plain = scores(made())
    assert plain["kl_bound"] > 10, "N(0, 1) over next states is far from the base sampler"
    assert scores(VecMonitor(made())) == plain
    assert scores(VecNormalize(made(), norm_obs=False)) == plain
    assert scores(gym.make(ENV_ID, coordinates="next_state")) == plain
    with pytest.raises(TypeError, match="norm_obs=False"):
        scores(VecNormalize(made()))
    for wrapper in (gym.wrappers.NormalizeObservation, lambda env: gym.wrappers.RescaleAction(env, -1.0, 1.0)):
        with pytest.raises(TypeError, match="policy behind a gymnasium"):
            scores(wrapper(gym.make(ENV_ID)))
    assert scores(gym.wrappers.NormalizeReward(gym.make(ENV_ID, coordinates="next_state"))) == plain


@pytest.mark.slow
def test_a_model_is_scored_on_the_steps_that_it_was_trained_on() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    from dxmi_rl.envs import make_sb3_env

    model = sb3.PPO("MlpPolicy", make_sb3_env("8gaussians", horizon=10, num_envs=8), n_steps=10, batch_size=80)
    with pytest.raises(ValueError, match="task must be the model's, with horizon = 10, got one with 5"):
        evaluate(model, make_task("8gaussians"))
    other = make_task("8gaussians", horizon=10, backward="learned")  # the kernel is the ruler's, and not the model's
    assert quick(model, task=other, draws=1)["denoiser_calls"] == 10


@pytest.mark.slow
def test_an_sb3_policy_is_scored_as_it_predicts_and_left_alone() -> None:
    """With its normalisation as in training, scores would depend on the other rows of a batch, and change it."""
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    from dxmi_rl.envs import make_sb3_env

    class Normed(BaseFeaturesExtractor):
        def __init__(self, space: Any) -> None:
            super().__init__(space, 3)
            self.net = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))

        def forward(self, observations: Tensor) -> Tensor:
            return self.net(observations)

    env = make_sb3_env("8gaussians", num_envs=8)
    kind = {"features_extractor_class": Normed}
    model = sb3.PPO("MlpPolicy", env, n_steps=5, batch_size=40, seed=0, policy_kwargs=kind)
    model.policy.set_training_mode(True)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    scores = quick(model, draws=1)
    assert model.policy.training and all(torch.equal(model.policy.state_dict()[key], v) for key, v in before.items())
    model.policy.set_training_mode(False)
    assert quick(model, draws=1) == scores

    class Bounded(ActorCriticPolicy):
        def _get_action_dist_from_latent(self, latent: Tensor) -> Any:
            return self.action_dist.proba_distribution(torch.tanh(self.action_net(latent)), self.log_std - 1)

    with pytest.raises(TypeError, match="Bounded makes another distribution"):
        quick(sb3.PPO(Bounded, env, n_steps=5, batch_size=40, seed=0))


def test_an_energy_that_is_not_finite_is_named() -> None:
    def walled(x: Tensor) -> Tensor:
        return x.square().sum(1).where(x[:, 0] < 1, math.inf)

    for score in (quick, quick_scores):
        with pytest.raises(EnergyError, match=r"the energy is NaN or infinite in \d+ of"):
            score(Base(make_task(walled, dim=2, target_options={"scale": 1.0})))


class Shifted(GaussianMixture):
    """The energy at x - 1 + 1: the mixture's but for rounding."""

    def _energy(self, x: Tensor) -> Tensor:
        return super()._energy((x - 1.0) + 1.0)


class Shifting(GaussianMixture):
    """Shifted, but working in place, by ways that autograd does not see."""

    def _energy(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x.sub_(1.0)
        return super()._energy(x + 1.0)


def test_energies_that_work_in_place_change_no_score() -> None:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    shifted, shifting = (kind(means, 0.3, plot_range=(-3, 3)) for kind in (Shifted, Shifting))
    one, two = (quick(Base(make_task(target))) for target in (shifted, shifting))
    assert two == one
    grid = evaluation.Grid.over((-3, 3), 20)
    first, second = (grid.log_density(target.energy) for target in (shifting, shifting))
    assert torch.equal(first, second), "the grid stays where it is"
    found = [
        evaluation.annealed_importance_sampling(target.energy, (2,), scale=1.0, chains=200).log_z
        for target in (shifted, shifting)
    ]
    assert found[1] == found[0]


@pytest.mark.slow
def test_a_loaded_model_is_read_in_the_coordinates_of_its_action_box(tmp_path: Path) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    from dxmi_rl.envs import make_sb3_env

    env = make_sb3_env("8gaussians", num_envs=8, coordinates="next_state")
    model = sb3.PPO("MlpPolicy", env, n_steps=5, batch_size=40, seed=0)
    model.save(tmp_path / "model.zip")
    loaded = sb3.PPO.load(tmp_path / "model.zip")
    whole, again = quick(model, draws=1), quick(loaded, task="8gaussians", draws=1)
    assert again == whole and again["kl_bound"] > 10


def test_a_task_of_another_configuration_is_refused() -> None:
    """What is scored is the agent's own task: another one of its name would be left aside without a word."""
    agent = make_agent("base", make_task("8gaussians", horizon=3))
    with pytest.raises(ValueError, match="task must be the model's, with horizon = 3, got one with 10"):
        evaluate(agent, make_task("8gaussians", horizon=10))
    assert quick(agent, task=make_task("8gaussians", horizon=3))["denoiser_calls"] == 3
    with pytest.raises(TypeError, match="fit must be True or False"):
        evaluate(agent, fit="no")
    for wrong in (1.5, "a", True):
        with pytest.raises(TypeError, match="seed must be an integer"):
            agent.sample(2, seed=wrong)
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        agent.sample(2, seed=-1)
    assert torch.equal(agent.sample(2, seed=np.int64(3)), agent.sample(2, seed=3))


def test_a_saturated_squashed_policy_is_never_beyond_its_box() -> None:
    task = make_task("8gaussians")
    box = (torch.full((2,), -5.0), torch.full((2,), 5.0))

    def saturated(observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = torch.full_like(observation[:, :2], 12.0)
        return mean, torch.zeros_like(mean)

    assert quick(ActionDensity(saturated, task.mdp, squashed=box), task=task)["beyond_box"] == 0


class Wrong(Base):
    """An agent of one's own, without a density, whose samples are not what was asked for."""

    name = "wrong"
    made: ClassVar[Any] = None

    def sample(self, n: int, **options: Any) -> Any:
        return self.made(n)


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (lambda n: torch.zeros(n // 2, 2), ValueError, "have 500 rows, got 250"),
        (lambda n: torch.zeros(n, 3), ValueError, "have shape"),
        (lambda n: None, TypeError, "be a torch.Tensor, got NoneType"),
        (lambda n: np.zeros((n, 2)), TypeError, "be a torch.Tensor, got ndarray"),
    ],
)
def test_samples_of_ones_own_are_looked_at(
    made: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrong, "made", staticmethod(made))
    agent = Wrong("8gaussians")
    agent.has_density = False
    with pytest.raises(error, match=f"what Wrong.sample returns must .*{message}"):
        quick(agent)
