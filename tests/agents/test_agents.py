"""Agents: every one in AGENTS learns, samples, predicts, saves and loads."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import (
    BATCH,
    PRETRAINING,
    plain_agent,
    plain_config,
    same,
    skip_without_extra,
    small,
    state,
    task_for,
    train,
)
from safetensors.torch import save_file

from dxmi_rl import evaluate, list_agents, make_agent, make_task
from dxmi_rl.agents import AGENTS, PPO, VGS, AdjointSampling, Agent, Base
from dxmi_rl.agents.plain import has_plain_settings
from dxmi_rl.agents.policies import CorrectionPolicy, FineTunedPolicy
from dxmi_rl.agents.settings import WORDS
from dxmi_rl.diffusion import sample_base
from dxmi_rl.evaluation import quick_scores
from dxmi_rl.evaluation.metrics import log_weight_statistics
from dxmi_rl.mdp import EnergyError
from dxmi_rl.targets import GaussianMixture
from dxmi_rl.tasks import TASKS, TaskConfig
from dxmi_rl.utils.checks import CheckpointError, DivergenceError, NonFiniteError
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import load_tensors, save_tensors

GFLOWNETS = ["trajectory-balance", "vargrad", "detailed-balance", "path-wise-vargrad"]


@pytest.fixture(name="name", params=list_agents())
def every_agent(request: pytest.FixtureRequest) -> str:
    skip_without_extra(request.param)
    return request.param


# Every agent ----------------------------------------------------------------------------------------------------------


def test_it_learns_samples_and_predicts(name: str) -> None:
    agent = small(name)
    before = state(agent)
    step = agent.timesteps_per_iteration
    assert agent.learn(2 * step + 1) is agent
    if agent.trains:
        assert agent.num_timesteps == 3 * step, "rounded up to whole iterations"
        assert not same(before, state(agent))
        assert agent.log and all(math.isfinite(value) for value in agent.log.values())
        assert agent.costs.policy_draws >= agent.num_timesteps
        assert agent.costs.energy_evals > 0 and agent.costs.seconds > 0
    else:
        assert same(before, state(agent))
    x = agent.sample(7)
    assert x.shape == (7, 2) and bool(torch.isfinite(x).all()) and not x.requires_grad
    assert torch.equal(agent.sample(5, seed=3), agent.sample(5, seed=3))
    assert not torch.equal(agent.sample(5), agent.sample(5))
    if not agent.has_density:
        return
    trajectory = agent.sample_trajectory(6, seed=1)
    assert (trajectory.x.shape, trajectory.log_prob.shape) == ((6, 6, 2), (5, 6))


def test_predict_takes_every_kind_of_observation(name: str) -> None:
    if not AGENTS[name].trains and name != "base":
        pytest.skip("its steps are not the environment's")
    agent = small(name)
    horizon = agent.mdp.horizon
    x, t = np.array([[0.5, -1.0], [2.0, 0.1]], dtype=np.float32), np.array([0, horizon - 1])
    flat = np.concatenate([x, 1 - t[:, None] / horizon], axis=1).astype(np.float32)
    action, carried = agent.predict(flat, deterministic=True, state="kept")
    assert action.shape == (2, 2) and carried == "kept"
    for row in range(2):
        single, _ = agent.predict(flat[row], deterministic=True)
        assert single.shape == (2,)
        assert single == pytest.approx(action[row], abs=1e-5)
        as_dict, _ = agent.predict({"x": x[row], "t": t[row]}, deterministic=True)
        assert as_dict == pytest.approx(action[row], abs=1e-5)
    batch, _ = agent.predict({"x": x, "t": t}, deterministic=True)
    assert batch == pytest.approx(action, abs=1e-5)
    # Next-state coordinates are the same decision.
    moved, _ = agent.predict(flat, deterministic=True, coordinates="next_state")
    wanted = agent.mdp.next_state(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(action))
    assert moved == pytest.approx(wanted.numpy(), abs=1e-4)
    if agent.has_density:
        noisy = [agent.predict(np.repeat(flat[:1], 500, 0))[0] for _ in range(2)]
        assert noisy[0].std() > 0.5 and not np.array_equal(*noisy), "stochastic unless told otherwise"
    with pytest.raises(ValueError, match=r"observation must have shape \[3\]"):
        agent.predict(np.zeros((2, 5), dtype=np.float32))
    with pytest.raises(UnknownNameError, match="Did you mean 'noise'"):
        agent.predict(flat, coordinates="noize")
    for wrong, error, message in (
        ({"x": x}, ValueError, r"must have \['t'\], got \['x'\]"),
        ({"x": x, "t": t[:1]}, ValueError, "as many t, got 1 t"),
        ({"x": x, "t": t + 9}, ValueError, "one of the steps 0 to 5"),
        ({"x": x, "t": t - 1}, ValueError, "one of the steps 0 to 5"),
        ({"x": x[:0], "t": t[:0]}, ValueError, "got an empty batch"),
        ({"x": x * np.nan, "t": t}, NonFiniteError, "must be finite"),
        (np.concatenate([flat[:, :2], flat[:, 2:] + 0.07], 1), ValueError, "one of the steps 0 to 5"),
    ):
        with pytest.raises(error, match=message):
            agent.predict(wrong)


def test_untrained_it_is_near_the_base_sampler(name: str) -> None:
    """Exactly for policies that start at zero; SB3's start with a small random mean, adjoint sampling's elsewhere."""
    agent = small(name)
    if not agent.has_density:
        pytest.skip("a deterministic sampler: without the base sampler's noise")
    if isinstance(agent, VGS):
        pytest.skip("it starts as the sampler of a Gaussian")
    x = agent.sample(4000, seed=0)
    start = agent.reference if isinstance(agent, AdjointSampling) else agent.mdp.base
    base = sample_base(start, 4000, (2,), torch.Generator().manual_seed(0))
    assert float((x - base).square().mean().sqrt()) < 0.1 * float(base.std())


def test_the_seed_decides_everything(name: str) -> None:
    agents = []
    for seed, noise in ((4, 11), (4, 12), (5, 11)):
        agent = small(name, seed=seed)
        torch.manual_seed(noise)
        np.random.seed(noise)
        agents.append(train(agent, 3))
    first, second, third = agents
    assert same(state(first), state(second)), "whatever the global generators were"
    assert torch.equal(first.sample(3), second.sample(3))
    assert not first.trains or not same(state(first), state(third))


def test_a_task_given_by_name_is_seeded_with_its_agent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS._entries, "learned", TaskConfig("8gaussians", backward="learned"))
    torch.manual_seed(1)
    first = small(name, "learned")
    torch.manual_seed(2)
    assert same(state(first), state(small(name, "learned")))


def test_training_leaves_the_global_generators_alone(name: str) -> None:
    agent = small(name)
    torch.manual_seed(1)
    np.random.seed(1)
    wanted = torch.rand(1), np.random.rand()
    torch.manual_seed(1)
    np.random.seed(1)
    train(agent, 2)
    assert (torch.rand(1), np.random.rand()) == wanted


@pytest.mark.slow
def test_saved_and_loaded_it_is_the_same(name: str, tmp_path: Path) -> None:
    agent = train(small(name), 2)
    path = agent.save(tmp_path / "deep" / "agent.safetensors")
    loaded = type(agent).load(path)
    assert type(loaded) is type(agent)
    assert same(state(agent), state(loaded))
    assert loaded.config == agent.config and loaded.costs == agent.costs and loaded.seed == agent.seed
    assert torch.equal(loaded.sample(5), agent.sample(5)), "even the random stream goes on"
    assert loaded.task.config == agent.task.config


def test_a_fresh_one_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    known = {field.name for field in dataclasses.fields(AGENTS[name].Config)}
    buffers = {"buffer_size": BATCH} if name in GFLOWNETS else {"replay": BATCH} if name == "dxdp" else {}
    assert buffers.keys() <= known
    agent = small(name, **buffers)  # with an empty buffer
    loaded = type(agent).load(agent.save(tmp_path / "agent"))
    assert same(state(agent), state(loaded)) and torch.equal(loaded.sample(5), agent.sample(5))


def test_an_energy_that_fails_is_named(name: str) -> None:
    """One NaN among the energies of a rollout is said to be one, before it reaches a weight."""
    agent = small(name)
    if not agent.trains or name == "dxmi":
        pytest.skip("it does not train on an energy that is given")
    before = state(agent)
    energy = agent.task.target.energy

    def failing(x: torch.Tensor) -> torch.Tensor:
        value = energy(x)
        return torch.where(torch.arange(len(x), device=x.device) == len(x) - 1, torch.nan, value)

    agent.mdp.set_energy(lambda x: failing(x) if len(x) > 2 else energy(x))
    text = r"NaN or infinite in \d+ of \d+ rows, first in row \d+: E is nan, at a state of norm"
    if name in ("sb3-ppo", "sb3-a2c", "torchrl-ppo"):  # whose rollouts are those of an environment
        text = "the energy of the final states is NaN or infinite"
    with pytest.raises(EnergyError, match=f"{name} on '8gaussians' stopped at timestep .*{text}"):
        agent.learn(agent.timesteps_per_iteration)
    after = state(agent)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert all(key.startswith("kernel") for key in changed), changed


class Forgetful(PPO):
    name = "forgetful"

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"policy": self.policy, "value": self.value}


def test_the_kernel_is_saved_whatever_modules_an_agent_names(tmp_path: Path) -> None:
    agent = train(Forgetful(task_for("ppo"), seed=0, config=plain_config("ppo")), 1)
    loaded = Forgetful.load(agent.save(tmp_path / "agent.safetensors"))
    kernels = [one.mdp.kernel.state_dict() for one in (agent, loaded)]
    assert kernels[0] and all(torch.equal(kernels[0][key], kernels[1][key]) for key in kernels[0])
    agent.modules = lambda: ("policy", agent.policy)  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(TypeError, match="modules of agent 'forgetful' must return a dict"):
        agent.save(tmp_path / "other.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["agent.safetensors"]


@pytest.mark.usefixtures("float64")
def test_predict_in_double_precision() -> None:
    agent = small("ppo", make_task("8gaussians"))
    action, _ = agent.predict(np.array([[0.5, -1.0, 1.0]]))
    assert action.dtype == np.float64


def test_resuming_equals_not_having_stopped(name: str, tmp_path: Path) -> None:
    agent = small(name)
    step, path = agent.timesteps_per_iteration, tmp_path / "half"

    def save_half_way(trained: Agent) -> None:
        if trained.num_timesteps == 3 * step:
            trained.save(path)

    if not agent.trains:
        pytest.skip("nothing to resume")
    agent.learn(6 * step, callback=save_half_way)
    resumed = type(agent).load(path)
    assert resumed.num_timesteps == 3 * step
    resumed.learn(3 * step, reset_num_timesteps=False)
    assert resumed.num_timesteps == 6 * step
    different = [key for key, value in state(agent).items() if not torch.equal(value, state(resumed)[key])]
    assert different == []
    assert torch.equal(agent.sample(4), resumed.sample(4))
    costs = [dataclasses.asdict(a.costs) | {"seconds": 0} for a in (agent, resumed)]
    assert costs[0] == costs[1]


def test_checkpoints_keep_all_modules(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(name).save(tmp_path / "agent")


def test_a_module_that_a_checkpoint_does_not_keep_is_warned_of(tmp_path: Path) -> None:
    agent = small("reinforce")
    agent.average = copy.deepcopy(agent.policy)  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="modules of agent 'reinforce' do not return its average: a checkpoint"):
        agent.save(tmp_path / "agent")


SEES_VALUES = {"value_input": True, "energy_model": True, "gradient_weight": 1.0, "replay": 2}


def test_a_copy_is_an_agent_of_its_own(name: str) -> None:
    """Neither trains the other, and both go on alike."""
    own: dict[str, Any] = SEES_VALUES if name == "dxdp" else {}
    if name in ("any-step", "any-class", "dxmi"):
        own = {"agent_settings": SEES_VALUES}
    agent = train(small(name, **own), 1)
    other = copy.deepcopy(agent)
    x = other.sample(4, seed=1)
    assert torch.equal(agent.sample(4, seed=1), x)
    if not agent.trains:
        return
    train(agent, 2, reset_num_timesteps=False)
    assert torch.equal(other.sample(4, seed=1), x)
    assert same(state(train(other, 2, reset_num_timesteps=False)), state(agent))
    assert torch.equal(other.sample(4, seed=1), agent.sample(4, seed=1))


def test_damaged_and_wrong_checkpoints(name: str, tmp_path: Path) -> None:
    agent = small(name)
    kind, path = type(agent), agent.save(tmp_path / "agent")
    with pytest.raises(FileNotFoundError, match="no checkpoint at path"):
        kind.load(tmp_path / "none")
    content = path.read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged or foreign"):
        kind.load(tmp_path / "cut")
    save_file({"x": torch.zeros(1)}, str(tmp_path / "foreign"))
    with pytest.raises(CheckpointError, match="was not written by dxmi_rl"):
        kind.load(tmp_path / "foreign")
    other = next(entry for key in AGENTS if (entry := AGENTS[key]) is not kind)
    with pytest.raises(CheckpointError, match=f"holds agent '{name}', not '{other.name}'"):
        other.load(path)
    with pytest.raises(CheckpointError, match=r"was trained on task .*, not on 'gmm25'"):
        kind.load(path, task="gmm25")
    with pytest.raises(CheckpointError, match="horizon = 5, and the task has horizon = 3"):
        kind.load(path, task=task_for(name, horizon=3))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"epochs_of_old": 4}, {"n_trajectories": "many"}, {"n_trajectories": 0}])
def test_checkpoints_of_other_versions_are_refused(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Settings that went, or that no longer are what they were."""
    tensors, metadata = load_tensors(small(name).save(tmp_path / "agent"))
    old = {"agent_settings": metadata["config"]["agent_settings"] | changes} if name == "dxmi" else changes
    path = save_tensors(tmp_path / "old", tensors, metadata | {"config": metadata["config"] | old})
    with pytest.raises(CheckpointError, match=rf"is it of another version of dxmi_rl\? .*{next(iter(changes))}"):
        AGENTS[name].load(path)


def test_a_task_of_your_own_must_be_given_back(name: str, tmp_path: Path) -> None:
    target = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 0.4, plot_range=(-3, 3))
    agent = small(name, make_task(target, horizon=3))
    path = agent.save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match="task of your own objects"):
        type(agent).load(path)
    loaded = type(agent).load(path, task=make_task(target, horizon=3))
    assert torch.equal(loaded.sample(3, seed=0), agent.sample(3, seed=0))


def test_a_failed_save_keeps_the_old_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = small(name)
    path = agent.save(tmp_path / "agent")
    content = path.read_bytes()

    def fail(tensors: Any, file: str, metadata: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("dxmi_rl.utils.storage.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        agent.save(path)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["agent"]


def test_unknown_settings_name_the_near_ones(name: str) -> None:
    known = dataclasses.fields(AGENTS[name].Config)
    near, typo = (f"Did you mean '{known[0].name}'", known[0].name[:-1] + "x") if known else ("Known: none", "x")
    with pytest.raises(UnknownNameError, match=f"unknown setting of .*{near}"):
        small(name, **{typo: 1})
    with pytest.raises(TypeError, match="config of"):
        make_agent(name, task_for(name), config={"width": 3})


@pytest.mark.parametrize(("word", "ours"), WORDS.items())
def test_words_of_stable_baselines3_name_ours(word: str, ours: str) -> None:
    with pytest.raises(TypeError, match=f"'ppo' has no setting '{word}': {re.escape(ours)}"):
        make_agent("ppo", "8gaussians", **{word: 1})


def test_plain_settings_by_name(name: str) -> None:
    if not has_plain_settings(name):
        with pytest.raises(ValueError, match="config must be None for agent"):
            make_agent(name, task_for(name), config="plain")
        return
    assert small(name).config == small(name, config="plain").config
    whole = {key: value for key, value in vars(small(name).config).items() if key in ("policy", "value")}
    assert make_agent(name, task_for(name), config="plain", **whole).config.__dict__.items() >= whole.items()
    with pytest.raises(UnknownNameError, match=r"unknown config 'plian'.*Did you mean 'plain'"):
        make_agent(name, task_for(name), config="plian")


@pytest.mark.parametrize(("total", "error"), [(0, ValueError), (-5, ValueError), (1.5, TypeError), ("many", TypeError)])
def test_bad_budgets(name: str, total: Any, error: type[Exception]) -> None:
    if name != "base" and error is TypeError:
        name = "base"  # the check is the base class's
    with pytest.raises(error, match="total_timesteps must be"):
        small(name).learn(total)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (0.5, TypeError), (None, TypeError)])
def test_bad_seeds(seed: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="seed must be"):
        make_agent("base", "8gaussians", seed=seed)


def test_callbacks_and_checkpoints(tmp_path: Path) -> None:
    agent, seen = small("ppo"), []
    step, path = agent.timesteps_per_iteration, tmp_path / "agent"

    def stop_at_three(agent: Agent) -> bool:
        seen.append(agent.num_timesteps)
        return len(seen) < 3

    agent.learn(10 * step, callback=stop_at_three, checkpoint=path, checkpoint_every=2)
    assert seen == [step, 2 * step, 3 * step]
    assert PPO.load(path).num_timesteps == 3 * step, "the end is kept, too"
    agent.learn(step)
    assert agent.num_timesteps == step, "a new budget"


def test_checkpoints_by_the_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iterations that take a minute each, kept every two minutes: after the second, the fourth and the last."""
    agent, path, now, saved = small("ppo"), tmp_path / "agent", [0.0], []
    step = agent.timesteps_per_iteration
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    iterate, save = agent.iterate, agent.save
    monkeypatch.setattr(agent, "iterate", lambda: now.append(now.pop() + 60) or iterate())
    monkeypatch.setattr(agent, "save", lambda file: saved.append(agent.num_timesteps) or save(file))
    agent.learn(5 * step, checkpoint=path, checkpoint_minutes=2)
    assert saved == [2 * step, 4 * step, 5 * step]
    with pytest.raises(ValueError, match="checkpoint_minutes must be"):
        agent.learn(step, checkpoint=path, checkpoint_minutes=0)


@pytest.mark.parametrize("name", ["ppp", "dxpd", 3])
def test_unknown_agents(name: Any) -> None:
    with pytest.raises(UnknownNameError, match="unknown agent"):
        make_agent(name)
    if name == "dxpd":
        with pytest.raises(UnknownNameError, match="Did you mean 'dxdp'"):
            make_agent(name)


@pytest.mark.parametrize("name", ["dxdp", "ppo"])
@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"n_trajectories": 0}, ValueError, "n_trajectories must be >= [12]"),
        ({"policy.width": 2.5}, TypeError, r"policy\.width must be an integer"),
        ({"policy": {"width": 0}}, ValueError, r"policy\.width must be >= 1"),
        ({"value.width": 0}, ValueError, r"value\.width must be >= 1"),
        ({"policy.learning_rate": -1e-3}, ValueError, r"policy\.learning_rate must be finite"),
        ({"value.learning_rate": float("nan")}, ValueError, r"value\.learning_rate"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be finite and > 0"),
        ({"policy.kind": "corection"}, UnknownNameError, "Did you mean 'correction'"),
        ({"policy.kind": "fine-tuned"}, ValueError, "base sampler with a denoiser network"),
        ({"width": 8}, UnknownNameError, "Did you mean 'policy.width' or 'value.width'"),
        ({"policy": "fine-tuned"}, TypeError, "policy must be a PolicyConfig or a mapping, got 'fine-tuned'"),
    ],
)
def test_bad_settings(name: str, settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_agent(name, "8gaussians", **settings)


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("dxdp", {"td_lambda": 1.5}, "td_lambda must lie in"),
        ("dxdp", {"value_steps": 0}, "value_steps must be >= 1"),
        ("dxdp-paper", {"tau1": -1.0}, "tau1 must be finite"),
        ("ppo", {"gae_lambda": -0.1}, "gae_lambda must be finite"),
        ("ppo", {"clip_range": 0.0}, "clip_range must be finite and > 0"),
        ("ppo", {"n_epochs": 0}, "n_epochs must be >= 1"),
        ("sb3-ppo", {"n_minibatches": 0}, "n_minibatches must be >= 1"),
    ],
)
def test_bad_settings_of_one_agent(name: str, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_agent(name, "8gaussians", **settings)


@pytest.mark.parametrize("name", ["dxdp", "ppo"])
def test_a_deterministic_base_cannot_start_a_policy(name: str) -> None:
    with pytest.raises(ValueError, match="deterministic base sampler"):
        make_agent(name, make_task("8gaussians", base="ddim", eta=0.0))


def test_a_deterministic_base_is_a_baseline_without_a_density() -> None:
    agent = make_agent("base", make_task("8gaussians", base="ddim", eta=0.0))
    x = agent.sample(500, seed=0)
    assert bool(torch.isfinite(x).all())
    scores = evaluate(agent, samples=500, draws=1, floors=False)
    assert "sliced_w2" in scores and not {"elbo", "kl_bound", "kl_bound_fit", "log_z", "ess"} & scores.keys()


@pytest.mark.parametrize("name", ["dxdp", "ppo"])
def test_divergence_keeps_the_last_good_checkpoint(name: str, tmp_path: Path) -> None:
    """An energy that explodes after the third iteration: steps back, then an error, and a checkpoint from before it."""
    agent, path, factor = small(name), tmp_path / "agent", [1.0]
    energy = agent.task.target.energy
    agent.mdp.set_energy(lambda x: factor[0] * energy(x))
    step = agent.timesteps_per_iteration

    before = {}

    def explode(agent: Agent) -> None:
        if agent.num_timesteps == 3 * step:
            factor[0] = 1e30
            before.update(state(agent))

    with pytest.raises((DivergenceError, EnergyError)):
        agent.learn(20 * step, callback=explode, checkpoint=path, checkpoint_every=1)
    good = state(type(agent).load(path))
    assert before and all(torch.equal(good[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", ["dxdp", "ppo"])
def test_a_policy_that_owns_the_denoiser(name: str) -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")
    agent = small(name, task, policy={"kind": "fine-tuned"})
    assert isinstance(agent.policy, FineTunedPolicy)
    before = [p.clone() for p in agent.policy.base.denoiser.parameters()]
    fixed = [p.clone() for p in agent.mdp.base.parameters()]
    agent.learn(4 * agent.timesteps_per_iteration)
    assert not all(torch.equal(a, b) for a, b in zip(before, agent.policy.base.denoiser.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(fixed, agent.mdp.base.parameters(), strict=True))


def test_the_base_denoiser_is_paid_for_once() -> None:
    """A correction agent calls it in the rollout only; the count is what was called."""
    agent = small("ppo", n_epochs=3)
    denoiser = agent.policy.base.denoiser
    calls = []
    denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    agent.learn(2 * agent.timesteps_per_iteration)
    assert sum(calls) == agent.costs.denoiser_calls == agent.num_timesteps


# PPO against reference algebra ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("dxdp", 120_000), ("ppo", 120_000)])
def test_a_short_run_beats_the_base_sampler(name: str, steps: int) -> None:
    base = quick_scores(Base("8gaussians"))["kl_bound"]
    agent = plain_agent(name, "8gaussians", seed=0)
    trained = quick_scores(agent.learn(steps))["kl_bound"]
    assert trained < 0.75 * base, (trained, base)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "target", "steps", "settings"),
    [
        ("ppo", "8gaussians", 200_000, {}),
        (
            "dxdp", "gmm25", 80_000,
            {
                "n_trajectories": 64, "policy_steps": 8, "value_steps": 4, "kernel_steps": 4,
                "policy.learning_rate": 2e-3,
            },
        ),
    ],
)  # fmt: skip
def test_log_z_of_a_trained_policy(agent: str, target: str, steps: int, settings: dict[str, Any]) -> None:
    """|log Z| <= 0.05 from 2e5 trajectories of a trained policy under the Learned kernel; the truth is 0."""
    trained = plain_agent(agent, make_task(target, horizon=8, backward="learned"), seed=0, **settings)
    trained.learn(steps)
    with torch.no_grad():
        statistics = log_weight_statistics(trained.mdp.log_weights(trained.sample_trajectory(200_000, seed=123)))
    assert abs(statistics["log_z"]) <= 0.05, statistics
    assert statistics["ess"] > 0.02, statistics


def test_policies_are_corrections_of_vectors_and_owners_of_images() -> None:
    assert isinstance(small("ppo").policy, CorrectionPolicy)


VALUED = [name for name in AGENTS if AGENTS[name].predict_values is not Agent.predict_values]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(VALUED) - {"any-class", "any-step", "dxdp", "dxdp-paper", "dxmi"}))
def test_predicted_values_are_returns(name: str) -> None:
    """The better a state, the more: they rise as the energy falls."""
    agent = train(small(name), 60)
    x = agent.sample_trajectory(2000, seed=1).x[-2]
    with torch.no_grad():
        found = agent.predict_values(x, agent.mdp.horizon - 1)
        assert found is not None and found.shape == (2000,)
        assert float(torch.corrcoef(torch.stack([found, -agent.mdp.energy(x)]))[0, 1]) > 0.1


def test_values_that_are_costs_are_predicted_with_the_other_sign() -> None:
    x = torch.randn(7, 2)
    for name in ("dxdp", "dxdp-paper"):
        agent: Any = small(name)
        costs = agent.values if name == "dxdp" else agent.value
        assert torch.equal(agent.predict_values(x, 3), -costs(x, 3))
    game: Any = small("dxmi")
    assert torch.equal(game.predict_values(x, 3), game.agent.predict_values(x, 3))
    shared = make_agent("dxdp", make_task("8gaussians", horizon=(2, 4)), seed=0)
    assert torch.equal(shared.predict_values(x, 3), shared.at(4).predict_values(x, 3))
    assert small("grpo").predict_values(x, 3) is None
