"""AnyClass: one set of weights for several classes; environments and games of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_cases import small
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from dxmi_rl import AnyClass, DxMI, evaluate, load_agent, make_agent, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.any_class import AnyClassConfig
from dxmi_rl.envs import DenoiseEnv, DenoiseVectorEnv
from dxmi_rl.envs.observations import observe, observed_label
from dxmi_rl.networks import EnergyDenoiser
from dxmi_rl.targets import ImageSet
from dxmi_rl.tasks import TASKS, Task

LABELS = (1, 4, 7)
PRETRAINING = {"iterations": 200, "batch_size": 64, "width": 32}
LAYOUTS = ["flat", "dict"]


def classes(**changes: Any) -> Task:
    parts = {"label": LABELS, "reward": "digit-class", "backward": "base", "pretraining": PRETRAINING}
    return make_task("digits", **(parts | changes))


def games() -> Task:
    return make_task("digits", label=LABELS, pretraining=PRETRAINING)


def any_class(agent: str = "dpok", seed: int = 0) -> AnyClass:
    task = classes()
    inside = small(agent, task.of_class(1)).config
    return AnyClass(task, seed=seed, config=AnyClassConfig(agent=agent, agent_settings=inside))


def iterations(agent: Any, n: int) -> Any:
    """Train for n turns of every class."""
    return agent.learn(n * len(LABELS) * agent.timesteps_per_iteration)


# -- tasks -----------------------------------------------------------------------------------------------------------


def test_a_class_has_its_images_its_denoiser_and_its_reward() -> None:
    task = classes()
    assert task.labels == LABELS and task.mdp is task.of_class(1).mdp and len(task.cases) == 3
    x = task.target.data(50)
    for label in LABELS:
        own = task.of_class(label)
        alone = make_task("digits", label=label, reward="digit-class", backward="base", pretraining=PRETRAINING)
        assert own.labels == (label,) and own.target.name == alone.target.name == f"digits {label}"
        assert own.mdp.base.denoiser.label == label  # type: ignore[union-attr]
        steps = torch.zeros(50, dtype=torch.int64)
        assert torch.equal(own.mdp.base.mean(x, steps), alone.mdp.base.mean(x, steps))
        assert torch.equal(own.mdp.energy(x), alone.mdp.energy(x))
        assert own.of_class(label) is own
    first, second = (task.of_class(label).mdp for label in LABELS[:2])
    assert not torch.equal(first.energy(x), second.energy(x)) and first.base.denoiser.net is second.base.denoiser.net  # type: ignore[union-attr]
    assert torch.equal(first.base.schedule.class_code, torch.eye(3)[0])  # type: ignore[arg-type]
    assert second.base.schedule.codes.shape == (4, 7)  # type: ignore[union-attr]
    assert make_task(**task.spec).fingerprint() == task.fingerprint()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"label must be one of the task's classes, \[1, 4, 7\], got 2"):
        task.of_class(2)


def test_a_reward_of_ones_own_is_told_the_class() -> None:
    def brightness(x: Tensor, label: int) -> Tensor:
        return label * x.flatten(1).mean(1)

    task = classes(reward=brightness)
    x = task.target.data(20)
    for label in LABELS:
        assert torch.allclose(task.of_class(label).mdp.energy(x), -label * x.flatten(1).mean(1))
    told_none = classes(reward=lambda x: x.flatten(1).mean(1))
    assert torch.equal(told_none.of_class(1).mdp.energy(x), told_none.of_class(7).mdp.energy(x))


def test_an_energy_of_ones_own_is_that_of_all_classes() -> None:
    task = make_task("digits", label=LABELS, energy=lambda x: x.flatten(1).mean(1), pretraining=PRETRAINING)
    x = task.target.data(20)
    assert torch.equal(task.of_class(7).mdp.energy(x), x.flatten(1).mean(1))
    task.mdp.set_energy(lambda x: 0 * x.flatten(1).sum(1) + 5.0)
    assert torch.equal(task.of_class(7).mdp.energy(x), torch.full((20,), 5.0))


def test_some_classes_are_a_set_of_their_own() -> None:
    whole, some = make_task("digits-classes").target, classes().target
    assert isinstance(whole, ImageSet) and isinstance(some, ImageSet)
    assert whole.name == "digits" and some.name == "digits 1, 4, 7" and some.scale == whole.scale
    assert set(some.train_labels.tolist()) == set(some.test_labels.tolist()) == set(LABELS)  # type: ignore[union-attr]
    assert classes().mdp.base.denoiser.classes == 10  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="label must be a class with two training and two test images, got 12"):
        classes(label=(0, 12))
    with pytest.raises(ValueError, match="reward_options must have no 'label' with several classes"):
        classes(reward_options={"label": 3})


def test_a_module_as_a_reward_stays_one() -> None:
    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = torch.nn.Dropout(0.5)

        def forward(self, x: Tensor, label: int) -> Tensor:
            dropped: Tensor = self.dropout(x)
            return label * dropped.flatten(1).mean(1)

    task = classes(reward=Noisy())
    x = task.target.data(20)
    assert torch.allclose(task.of_class(4).mdp.energy(x), -4 * x.flatten(1).mean(1), atol=1e-5)  # in eval mode


def test_another_horizon_keeps_the_classes() -> None:
    task = classes().with_horizon(3)
    assert task.mdp.horizon == 3 and task.mdp is task.of_class(1).mdp
    for layout in LAYOUTS:
        env = DenoiseEnv(task, observation=layout)
        assert env.reset(seed=0)[0] in env.observation_space
    alone = classes().of_class(4).with_horizon(3)
    assert torch.equal(alone.mdp.base.schedule.class_code, torch.eye(3)[1])  # type: ignore[arg-type]
    assert "of (1, 4, 7)" in alone.fingerprint()["label"]


@pytest.mark.parametrize("label", [(), (3, 3), (4, 1), (-1, 2), -1])
def test_classes_that_are_none(label: Any) -> None:
    with pytest.raises(ValueError, match="label must"):
        make_task("digits", label=label)


@pytest.mark.parametrize("label", [(1, 2.5), ("1", 2), "4", True])
def test_classes_of_other_types(label: Any) -> None:
    with pytest.raises(TypeError, match="label must"):
        make_task("digits", label=label)


def test_what_does_not_go_with_classes() -> None:
    assert make_task("digits", label=[3], pretraining=PRETRAINING).labels == (3,)
    with pytest.raises(ValueError, match="label must be one class with several horizons"):
        classes(horizon=(2, 4))
    with pytest.raises(ValueError, match="label must be one class without a denoiser"):
        make_task("digits-classes", track="energy")
    with pytest.raises(ValueError, match="label must be None for target '8gaussians'"):
        make_task("8gaussians", label=(0, 1))
    with pytest.raises(ValueError, match="agent must have a Gaussian policy of this package, got 'sb3-ppo'"):
        make_agent("sb3-ppo", classes())
    with pytest.raises(ValueError, match="agent must work on one class, got 'dxmi'"):
        AnyClass(classes(), agent="dxmi")
    with pytest.raises(ValueError, match="agent 'ppo' takes one class"):
        AGENTS["ppo"](classes())


# -- one set of weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dpok", "dxdp", "ppo", "dxdp-paper", "adjoint-matching", "diffusion-nft"])
def test_all_classes_learn_the_same_weights(name: str) -> None:
    agent = iterations(any_class(name), 2)
    assert len(set(agent.trained.values())) == 1 and sum(agent.trained.values()) == agent.num_timesteps
    source = agent.agents[1].modules()
    for part in agent.agents.values():
        for key, module in part.modules().items():
            weights = dict(source[key].named_parameters())
            for parameter_name, parameter in module.named_parameters():
                assert parameter is weights[parameter_name], (key, parameter_name)
    for label in LABELS:
        assert bool(agent.sample(30, seed=0, label=label).isfinite().all())
        assert torch.equal(agent.of_class(label).sample(5, seed=0), agent.sample(5, seed=0, label=label))


def test_values_and_energy_models_are_told_the_class() -> None:
    config = AnyClassConfig(agent="dxdp", agent_settings=AGENTS["dxdp"].Config(n_trajectories=16))
    agent = iterations(AnyClass(classes(), config=config), 2)
    x = agent.mdp.reset(20, torch.Generator().manual_seed(0))
    first, second = (agent.of_class(label) for label in LABELS[:2])
    assert not torch.equal(first.predict_values(x, 1), second.predict_values(x, 1))
    assert not torch.equal(first.energy_model(x), second.energy_model(x))


def test_samples_of_all_are_as_many_of_each() -> None:
    agent = any_class("base")
    x = agent.sample(100, seed=3)
    assert x.shape == (100, 1, 8, 8) and torch.equal(x, agent.sample(100, seed=3))
    assert len(agent.sample(2, seed=0)) == 2  # fewer than classes
    seen = {label: agent.of_class(label).sample(40, seed=None) for label in LABELS}
    assert all(len(part) == 40 for part in seen.values())


@pytest.mark.parametrize("name", ["dpok", "dxdp"])
def test_a_resumed_run_is_the_undisturbed_one(name: str, tmp_path: Path) -> None:
    whole, agent = any_class(name), any_class(name)
    budget = 12 * whole.timesteps_per_iteration
    whole.learn(budget)
    stop = budget // 2
    agent.learn(budget, callback=lambda one: one.num_timesteps < stop, checkpoint=tmp_path / "a.safetensors")
    loaded = load_agent(tmp_path / "a.safetensors")
    loaded.learn(budget - loaded.num_timesteps, reset_num_timesteps=False)
    assert torch.equal(loaded.sample(20, seed=1), whole.sample(20, seed=1))


@pytest.mark.filterwarnings("ignore::dxmi_rl.evaluation.log_weights.UnreliableScoresWarning")
def test_scores_are_means_over_classes() -> None:
    agent = make_agent("base", "digits-classes")
    scores = evaluate(agent, samples=300, floors=False)
    assert scores["class_accuracy"] > 0.98 and {"fd", "recall"} <= scores.keys() and "reward" not in scores
    tuned = make_agent("base", classes())
    scores = evaluate(tuned, samples=300, trajectories=300, floors=False)
    rewards = [evaluate(tuned.of_class(label), samples=100, trajectories=100, floors=False, seed=8)["reward"]
               for label in LABELS]  # fmt: skip
    assert scores["reward"] == pytest.approx(float(np.mean(rewards)), rel=0.3)
    assert scores["kl_base"] == pytest.approx(0.0, abs=1e-2)


# -- environments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkers(layout: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*A Box observation space m.* value is -?infinity")
        warnings.filterwarnings("ignore", ".*we recommend using a symmetric and normalized")
        warnings.filterwarnings("ignore", "We recommend you to use a symmetric and normalized Box action space")
        warnings.filterwarnings("ignore", "It seems that your observation .* is an image")
        warnings.filterwarnings("ignore", "The minimal resolution for an image")
        check_env(gym.make("DxMIDenoise-v0", task=classes(), observation=layout).unwrapped)
        checker = pytest.importorskip("stable_baselines3.common.env_checker")
        if layout == "flat":
            checker.check_env(DenoiseEnv(classes(), observation=layout))


def test_what_observations_tell() -> None:
    task = classes()
    env, other = DenoiseEnv(task), DenoiseEnv(task, observation="dict")
    agent, drawn = any_class("base"), set()
    for seed in range(20):
        flat, named = env.reset(seed=seed)[0], other.reset(seed=seed)[0]
        label = int(named["label"])
        drawn.add(label)
        assert flat.shape == (64 + 1 + 3,) and list(flat[-3:]) == [float(label == one) for one in LABELS]
        assert observed_label(env.mdp, LABELS, flat) == observed_label(other.mdp, LABELS, named) == label
        assert env.mdp is task.of_class(label).mdp
        x = torch.as_tensor(flat[None, :64]).view(1, 1, 8, 8)
        assert np.allclose(observe(env.mdp, x, 0)[0], flat)
        assert agent.predict(flat)[0].size == agent.predict(named)[0].size == 64
    assert drawn == set(LABELS)


def test_many_episodes_share_a_class() -> None:
    env = DenoiseVectorEnv(classes(), num_envs=5, observation="dict")
    observation, _ = env.reset(seed=0)
    assert len(set(observation["label"].tolist())) == 1
    seen = set[int]()
    for _ in range(40):
        observation, reward, *_ = env.step(torch.zeros(5, 64))
        seen |= set(observation["label"].tolist())
        assert reward.shape == (5,)
    assert seen == set(LABELS)
    mixed = {"x": observation["x"], "t": observation["t"], "label": torch.tensor([1, 1, 4, 4, 7])}
    with pytest.raises(ValueError, match=r"observations must be of one class of \[1, 4, 7\], got \[1, 4, 7\]"):
        any_class("base").predict(mixed)


def test_torchrl_takes_one_class() -> None:
    torchrl = pytest.importorskip("dxmi_rl.envs.torchrl")
    with pytest.raises(ValueError, match=r"TorchRLEnv takes one class, got label=\(1, 4, 7\)"):
        torchrl.TorchRLEnv(classes())
    torchrl.TorchRLEnv(classes().of_class(4))


# -- games -----------------------------------------------------------------------------------------------------------


def test_one_game_serves_all_classes(tmp_path: Path) -> None:
    game = DxMI(games(), seed=0, **{"agent_settings": {"n_trajectories": 16}})
    x = game.task.target.data(30)
    with torch.no_grad():
        assert len({float(game.of_class(label).energy(x).sum()) for label in LABELS}) == 3
    game.learn(12 * game.timesteps_per_iteration)
    inner = game.agent
    assert isinstance(inner, AnyClass) and len(set(inner.trained.values())) == 1
    energies = torch.stack([game.of_class(label).average_energy(x) for label in LABELS])
    assert torch.equal(game.score(x), energies.amin(0))
    for label in LABELS:
        one = game.of_class(label)
        assert isinstance(one.energy, EnergyDenoiser) and one.energy.log_gain is game.energy.log_gain  # type: ignore[attr-defined]
        assert torch.equal(one.mdp.energy(x), one.energy(x))
        assert torch.equal(one.sample(5, seed=0), game.sample(5, seed=0, label=label))
        assert one.has_density and not game.has_density
    game.save(tmp_path / "game.safetensors")
    loaded = load_agent(tmp_path / "game.safetensors")
    assert torch.equal(loaded.sample(20, seed=1), game.sample(20, seed=1))
    with pytest.raises(ValueError, match="policy must be None for an agent without a density"):
        evaluate(game, policy=game.agent.policy, samples=20)
    with pytest.raises(ValueError, match="label must be a class for whole episodes"):
        game.sample_trajectory(3)
    assert game.sample_trajectory(3, label=4, seed=0).x.shape == (5, 3, 1, 8, 8)


def test_data_are_those_of_the_present_class(monkeypatch: pytest.MonkeyPatch) -> None:
    game = DxMI(games(), seed=0, **{"agent_settings": {"n_trajectories": 16}})
    asked = list[str]()
    kept = ImageSet.data
    monkeypatch.setattr(ImageSet, "data", lambda self, *parts: asked.append(self.name) or kept(self, *parts))
    game.learn(3 * game.timesteps_per_iteration)
    assert asked == [f"digits {label}" for label in LABELS]


def test_games_that_cannot_tell_classes() -> None:
    with pytest.raises(ValueError, match="label must be one class for an energy that is no denoiser"):
        DxMI(games(), **{"energy.denoiser": False})
    with pytest.raises(ValueError, match="label must be one class for an energy that is no denoiser, and with replay"):
        DxMI(games(), replay=2)
    with pytest.raises(ValueError, match="'any-class' cannot be nested"):
        DxMI(games(), agent="any-class")


def test_the_named_task() -> None:
    config = TASKS["digits-classes"]
    assert config.label == tuple(range(10)) and config.pretraining.conditional


def test_around_an_agent_that_does_not_train_nothing_is_learned(tmp_path: Path) -> None:
    agent = make_agent("base", classes())
    assert not agent.trains
    agent.learn(1000, checkpoint=tmp_path / "a.safetensors")
    assert agent.num_timesteps == 1000 and not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="exactly one budget"):
        agent.learn()
