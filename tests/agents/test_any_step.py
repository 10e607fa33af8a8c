"""AnyStep: one set of weights for several horizons, which every agent with a Gaussian policy can have."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import PRETRAINING, skip_without_extra, small

from dxmi_rl import AnyStep, DxDP, DxMI, evaluate, list_targets, load_agent, make_agent, make_target, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.checkpoint import save_agent
from dxmi_rl.agents.one_step import distil
from dxmi_rl.agents.policies import FineTunedPolicy
from dxmi_rl.diffusion import make_schedule, schedules
from dxmi_rl.diffusion.denoisers import FirstLevelDenoiser
from dxmi_rl.diffusion.schedules import level_codes, trained_ladder
from dxmi_rl.evaluation.log_weights import fit_kernel
from dxmi_rl.tasks import Task
from dxmi_rl.utils.checks import CheckpointError

HORIZONS = (1, 2, 4)
WITHOUT_POLICY = {"best-of-n",
    "base", "ddpm", "ddim", "edm-heun", "dpm-solver", "vgs", "sb3-ppo", "sb3-a2c", "sb3-sac", "sb3-td3", "torchrl-ppo",
    "torchrl-sac",
}  # fmt: skip
SHARING = [name for name in AGENTS if name not in WITHOUT_POLICY | {"dxmi", "any-step", "any-class"}]


def several(horizons: tuple[int, ...] = HORIZONS, name: str = "gmm9", **changes: Any) -> Task:
    return make_task(name, **{"backward": "learned", "horizon": horizons, **changes})


def any_step(agent: str = "dxdp", task: Task | None = None, seed: int = 0, **settings: Any) -> AnyStep:
    task = several() if task is None else task
    inside = small(agent, task.at(task.horizons[-1])).config
    return AnyStep(task, seed=seed, agent=agent, agent_settings=inside, **settings)


def iterations(agent: Any, n: int) -> Any:
    """Train for n turns of every horizon."""
    each = agent.timesteps_per_iteration // agent.mdp.horizon
    return agent.learn(n * each * sum(agent.task.horizons))


# -- what networks are told ------------------------------------------------------------------------------------------


def test_codes_interpolate_between_noise_levels() -> None:
    schedule = make_schedule("geometric", 9, level_max=8.0, level_min=0.5)
    codes = level_codes(schedule, 0.5, 8.0)
    assert codes.shape == (9, 5) and bool((codes >= 0).all())
    ends = torch.tensor([0.5, 8.0]).log()
    assert torch.allclose(codes[:, :2] @ ends, schedule.levels[:-1].log(), atol=1e-5)
    assert torch.allclose(codes[:-1, 2:4] @ ends, schedule.levels[1:-1].log(), atol=1e-5)
    assert torch.equal(codes[:, 4], torch.eye(9)[-1]) and not bool(codes[-1, 2:4].any())
    assert torch.allclose(codes[:-1].sum(1), torch.tensor(2.0))
    inside = level_codes(schedule, 1.0, 4.0)[:, :2]  # of levels beyond the ends those of the ends
    assert inside[0].tolist() == [0.0, 1.0] and inside[-1].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("schedule", ["karras", "cosine"])
def test_a_horizon_has_the_ladder_of_its_own_task(schedule: str) -> None:
    task = several(name="8gaussians", schedule=schedule)
    for horizon in (1, 2, 3, 4):
        own = make_task("8gaussians", schedule=schedule, horizon=horizon)
        ours = task.at(horizon)
        assert ours.horizons == (horizon,) and ours.config.horizon == horizon
        assert torch.equal(ours.mdp.base.schedule.levels, own.mdp.base.schedule.levels)
        assert torch.equal(ours.mdp.base.sigma, own.mdp.base.sigma)
        assert ours.mdp.energy is task.mdp.energy
        codes = ours.mdp.base.schedule.codes
        assert codes is not None and own.mdp.base.schedule.codes is None
        assert len({tuple(row) for row in codes.tolist()}) == horizon  # every step has its own


DOUBLED = (1, 2, 4, 8, 16)


@pytest.mark.parametrize("name", ["karras", "geometric"])
def test_far_ladders_are_replaced_by_the_nearest_steps_that_were_trained(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against all ladders of three steps between levels even in log l."""
    trained = [make_schedule(name, horizon) for horizon in DOUBLED]
    low, high = (math.log(trained[-1].levels[place]) for place in (-2, 0))

    def steps(ladder: Sequence[float]) -> list[tuple[float, float]]:
        places = [-1.0 if level == 0 else (math.log(level) - low) / (high - low) for level in ladder]
        return list(itertools.pairwise(places))

    known = [step for one in trained for step in steps(one.levels.tolist())]

    def far(ladder: Sequence[float]) -> list[float]:
        return [min(math.dist(step, other) for other in known) for step in steps(ladder)]

    monkeypatch.setattr(schedules, "CHOICES", 61)
    levels = [math.exp(high + (low - high) * place / 60) for place in range(61)]
    inside = itertools.combinations(levels[1:], 2)
    best = min(([levels[0], *two, 0.0] for two in inside), key=lambda ladder: sum(d**2 for d in far(ladder)))
    own = make_schedule(name, 3)
    found = trained_ladder(own, trained)
    assert max(far(own.levels.tolist())) > 0.15 > max(far(best))
    assert found.levels.tolist() == pytest.approx(best) and found.start_std == own.start_std
    alpha = (1 + found.levels**2).rsqrt() if name == "karras" else torch.ones(4)
    torch.testing.assert_close(found.alpha, alpha, atol=2e-3, rtol=0)
    near = make_schedule(name, 6)
    assert max(far(near.levels.tolist())) < 0.15 and trained_ladder(near, trained) is near


def test_an_untrained_horizon_has_steps_near_trained_ones() -> None:
    task = make_task("8gaussians", horizon=DOUBLED, backward="learned")
    agent = AnyStep(task, agent="ppo", seed=0, agent_settings={"n_trajectories": 4})
    trained = [agent.at(horizon).mdp.base.schedule for horizon in DOUBLED]
    for horizon in range(1, 17):
        found, own = agent.at(horizon).mdp.base.schedule, task.at(horizon).mdp.base.schedule
        assert torch.equal(found.levels, trained_ladder(own, trained).levels) and found.horizon == horizon
        if horizon in DOUBLED:
            assert torch.equal(found.levels, own.levels)
        else:
            assert agent.at(horizon) is agent.at(horizon) and agent.sample(3, seed=0, horizon=horizon).shape == (3, 2)
    for horizon, steps in ((4, 4), (5, 4)):
        with pytest.raises(ValueError, match=rf"schedule must be None, or have {horizon} steps .*got one of {steps}"):
            task.at(horizon, make_schedule("karras", steps))
    levels = agent.at(3).mdp.base.schedule.levels
    assert not torch.equal(levels, task.at(3).mdp.base.schedule.levels)
    codes = agent.at(3).mdp.base.schedule.codes
    assert codes is not None and torch.equal(codes, level_codes(agent.at(3).mdp.base.schedule, 0.15, 10.0))


def test_a_fine_tuned_denoiser_keeps_the_schedules_ladder() -> None:
    task = make_task("8gaussians-data", horizon=(1, 8), energy=lambda x: x.sum(1), pretraining={"iterations": 10})
    for kind, kept in (("fine-tuned", True), ("correction", False)):
        agent = AnyStep(task, agent="ppo", agent_settings={"n_trajectories": 4, "policy": {"kind": kind}})
        assert torch.equal(agent.at(2).mdp.base.schedule.levels, task.at(2).mdp.base.schedule.levels) == kept


def test_horizons_of_a_task() -> None:
    task = several()
    assert task.horizons == HORIZONS and task.mdp.horizon == 4 and task.at(4).mdp is task.mdp
    assert make_task("gmm9", horizon=[3]).horizons == (3,) and make_task("gmm9", horizon=(3,)).config.horizon == 3
    assert make_task(**several().spec).fingerprint() == several().fingerprint()  # type: ignore[arg-type]
    one = make_task("gmm9", horizon=3)
    assert one.at(3) is one
    for wrong in (2, 4):
        with pytest.raises(ValueError, match=f"horizon must be 3 on this task, got {wrong}"):
            one.at(wrong)
    for wrong in (0, 5):
        with pytest.raises(ValueError, match="horizon must"):
            task.at(wrong)


@pytest.mark.parametrize("horizon", [(), (2, 2), (4, 2), (0, 1), (1, 0), (-1, 2)])
def test_horizons_that_are_none(horizon: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="horizon must"):
        make_task("gmm9", horizon=horizon)


@pytest.mark.parametrize("horizon", [(1, 2.5), ("1", 2), (True, 2), "4", None])
def test_horizons_of_other_types(horizon: Any) -> None:
    with pytest.raises(TypeError, match="horizon must"):
        make_task("gmm9", horizon=horizon)


# -- one set of weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHARING)
def test_all_horizons_learn_the_same_weights(name: str) -> None:
    agent = iterations(any_step(name, several((2, 3, 4))), 2)
    parts = [agent.agents[horizon] for horizon in (2, 3, 4)]
    source = parts[-1].modules()
    for part in parts[:-1]:
        for key, module in part.modules().items():
            weights = dict(source[key].named_parameters())
            for parameter_name, parameter in module.named_parameters():
                assert parameter is weights[parameter_name], (key, parameter_name)
        for key, optimizer in part.all_optimizers().items():
            assert optimizer.state is parts[-1].all_optimizers()[key].state
    for horizon in (2, 3, 4):
        assert bool(agent.sample(50, seed=0, horizon=horizon).isfinite().all())
        x = agent.sample_trajectory(5, seed=0, horizon=horizon).x
        assert torch.equal(x[-1], agent.sample(5, seed=0, horizon=horizon)) and len(x) == horizon + 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_transitions_are_shared_by_a_power_of_the_horizon(share: float) -> None:
    agent = any_step("ppo", share=share)
    agent.learn(40 * agent.timesteps_per_iteration)
    assert sum(agent.trained.values()) == agent.num_timesteps
    shares = [agent.trained[horizon] / horizon**share for horizon in HORIZONS]
    assert max(shares) < 1.1 * min(shares)
    with pytest.raises(ValueError, match="share"):
        any_step("ppo", share=1.5)


@pytest.mark.parametrize("name", ["dxdp", "ppo"])
def test_training_at_one_horizon_moves_the_others(name: str) -> None:
    agent = any_step(name, several((2, 4)))
    before = {horizon: agent.sample(20, seed=0, horizon=horizon) for horizon in (2, 3, 4)}
    for _ in range(30 if name == "dxdp" else 1):
        agent.agents[2].iterate()
    for horizon, x in before.items():
        assert not torch.equal(x, agent.sample(20, seed=0, horizon=horizon)), horizon


@pytest.mark.parametrize("name", ["dxdp", "ppo", "trajectory-balance"])
def test_with_one_horizon_it_is_the_agent_itself(name: str) -> None:
    task = make_task("gmm9", backward="learned", horizon=3)
    shared, plain = any_step(name, task, seed=3).learn(600), small(name, task, seed=3).learn(600)
    assert torch.equal(shared.sample(20, seed=1), plain.sample(20, seed=1))
    assert shared.costs.energy_evals == plain.costs.energy_evals


@pytest.mark.parametrize("name", ["dxdp", "ppo", "path-wise", "trajectory-balance"])
def test_resumed_training_is_undisturbed_training(name: str, tmp_path: Path) -> None:
    whole, half = (any_step(name) for _ in range(2))
    budget = 4 * whole.timesteps_per_iteration
    whole.learn(budget, callback=lambda agent: None)
    half.learn(budget, callback=lambda agent: agent.num_timesteps < budget / 2)
    half.save(tmp_path / "half.safetensors")
    again = load_agent(tmp_path / "half.safetensors")
    assert isinstance(again, AnyStep) and again.task.horizons == HORIZONS
    for horizon in (1, 2, 3, 4):  # before and after the rest
        assert torch.equal(again.sample(9, seed=1, horizon=horizon), half.sample(9, seed=1, horizon=horizon))
    again.learn(budget - again.num_timesteps, reset_num_timesteps=False)
    for horizon in (1, 2, 3, 4):
        assert torch.equal(again.sample(9, seed=1, horizon=horizon), whole.sample(9, seed=1, horizon=horizon))


def test_weights_are_saved_once(tmp_path: Path) -> None:
    agent = any_step("dxdp")
    state = agent.policy.state_dict()
    weights = [name for name in state if "/" not in name]
    assert len(weights) == len(dict(agent.agents[4].policy.named_parameters()))
    assert {name.partition("/")[0] for name in state if "/" in name} == {"1", "2", "4"}
    with pytest.raises(RuntimeError, match="no place"):
        agent.policy.load_state_dict(state | {"more": torch.zeros(1)})
    agent.save(tmp_path / "agent.safetensors")
    with pytest.raises(CheckpointError, match="horizon"):
        AnyStep.load(tmp_path / "agent.safetensors", task=several((1, 2, 8)))


@pytest.mark.slow
def test_particles_and_denoisers_share_theirs() -> None:
    particles = several((2, 3), "dw4")
    learned = several((2, 3), "8gaussians-data", pretraining=PRETRAINING, energy=lambda x: x.square().sum(1))
    for task, settings in ((particles, {}), (learned, {"policy": {"kind": "fine-tuned"}})):
        found = iterations(AnyStep(task, agent="dxdp", agent_settings={"n_trajectories": 8, **settings}), 1)
        assert bool(found.sample(3, horizon=2).isfinite().all())


@pytest.mark.slow
def test_a_short_training_helps_every_horizon() -> None:
    task = several((2, 4), "8gaussians")
    base = {horizon: make_agent("base", task.at(horizon)) for horizon in (2, 4)}
    agent = AnyStep(task, seed=0).learn(10_000)
    sizes: dict[str, Any] = {"fit": False, "floors": False, "draws": 1, "samples": 2000, "trajectories": 4000}
    for horizon, start in base.items():
        ours, theirs = evaluate(agent, horizon=horizon, **sizes), evaluate(start, **sizes)
        assert ours["kl_bound"] < 0.8 * theirs["kl_bound"], horizon


# -- interfaces ------------------------------------------------------------------------------------------------------


def test_make_agent_wraps_on_several_horizons() -> None:
    agent = make_agent("ppo", several(), seed=2, n_trajectories=16)
    assert isinstance(agent, AnyStep) and agent.config.agent == "ppo"
    assert agent.config.agent_settings.n_trajectories == 16 and agent.seed == 2
    with pytest.raises(ValueError, match=r"takes one horizon, got \(1, 2, 4\): use AnyStep"):
        DxDP(several())


@pytest.mark.parametrize("name", [*sorted(WITHOUT_POLICY), "dxmi", "any-step", "any-class"])
def test_agents_without_a_policy_of_ours_are_refused(name: str) -> None:
    skip_without_extra(name)
    with pytest.raises(ValueError, match=rf"agent must train a Gaussian policy of this package, got '{name}'"):
        AnyStep(several((2, 3)), agent=name)


def test_agents_that_do_not_train_take_the_largest_horizon() -> None:
    assert make_agent("base", several()).mdp.horizon == 4


def test_settings_are_checked_as_for_one_horizon() -> None:
    with pytest.raises(ValueError, match=r"policy\.fine_tuning_rate belongs to a policy of kind 'fine-tuned'"):
        make_agent("ppo", several(), policy={"fine_tuning_rate": 1e-4})
    with pytest.raises(TypeError, match="'horizon' belongs to the task"):
        make_agent("ppo", several(), horizon=3)


@pytest.mark.parametrize("schedule", ["quadratic", "var-linear", "var-quadratic", "sigmoid"])
def test_schedules_that_begin_elsewhere_are_refused(schedule: str) -> None:
    with pytest.raises(ValueError, match=r"schedule must be one of .* with several horizons"):
        several((2, 4), "8gaussians", schedule=schedule)


def test_kernels_that_are_fitted_step_by_step_are_refused() -> None:
    with pytest.raises(ValueError, match="backward 'brownian' is fitted step by step"):
        several(backward="brownian")


@pytest.mark.slow
def test_frozen_steps() -> None:
    """Trained last steps: all of a short horizon, the last ones of a long one."""
    task = several((2, 4), "8gaussians-data", pretraining=PRETRAINING, energy=lambda x: x.square().sum(1))
    for kind in ("correction", "fine-tuned"):
        settings = {"n_trajectories": 8, "policy": {"kind": kind, "trained_steps": 2}}
        agent = iterations(AnyStep(task, agent="ppo", agent_settings=settings), 2)
        base = make_agent("base", task.at(4))
        ours, theirs = (one.sample_trajectory(50, seed=0).x for one in (agent.at(4), base))
        assert torch.equal(ours[:3], theirs[:3]) and not torch.equal(ours[3], theirs[3])


def test_every_horizon_has_its_local_searches() -> None:
    settings = {"n_trajectories": 8, "buffer_size": 64, "local_search_every": 2, "local_search_steps": 1}
    agent = AnyStep(several((2, 3)), agent="trajectory-balance", agent_settings=settings)
    searches = {2: 0, 3: 0}
    for horizon in searches:
        inner: Any = agent.agents[horizon]

        def counted(*arguments: Any, horizon: int = horizon, search: Any = inner.search, **options: Any) -> Any:
            searches[horizon] += 1
            return search(*arguments, **options)

        counted.tensors, counted.restore = inner.search.tensors, inner.search.restore  # type: ignore[attr-defined]
        inner.search = counted
    iterations(agent, 6)
    assert searches == {horizon: agent.trained[horizon] // (8 * horizon) // 2 for horizon in searches}
    assert min(searches.values()) > 1


def test_log_z_starts_once() -> None:
    agent: Any = any_step("trajectory-balance", several((2, 3)))
    agent.agents[2].log_z.start(torch.tensor(1.5))
    agent.agents[3].log_z.start(torch.tensor(9.0))
    assert float(agent.agents[2].log_z.value) == float(agent.agents[3].log_z.value) == 1.5


def test_horizons_outside_the_range() -> None:
    agent = any_step()
    for wrong in (0, 5):
        with pytest.raises(ValueError, match="horizon must"):
            agent.sample(3, horizon=wrong)
        with pytest.raises(ValueError, match="horizon must"):
            evaluate(agent, horizon=wrong)
    with pytest.raises(ValueError, match="policy must be None with a horizon"):
        evaluate(agent, horizon=2, policy=agent.policy)
    plain = small("ppo", make_task("gmm9", horizon=3))
    assert plain.at(3) is plain
    with pytest.raises(ValueError, match="horizon must be 3"):
        plain.at(2)


def test_the_fitted_kernel_is_that_of_the_horizon_alone() -> None:
    task, alone = several().at(3), make_task("gmm9", backward="learned", horizon=3)
    policy = small("ppo", alone).policy
    ours, theirs = (fit_kernel(found.mdp, policy, steps=2).state_dict() for found in (task, alone))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("layout", ["flat", "dict"])
def test_predict_knows_the_horizon_of_an_observation(layout: str) -> None:
    agent = iterations(any_step(), 1)
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    for horizon, t in ((1, 0), (2, 1), (3, 1), (4, 3)):
        if layout == "flat":
            left = np.full((5, 2), [1 - t / horizon, 1 - (t + 1) / horizon], np.float32)
            observation: Any = np.concatenate([x, left], 1)
        else:
            observation = {"x": x, "t": np.full(5, t), "horizon": np.full(5, horizon)}
        action, _ = agent.predict(observation, deterministic=True, coordinates="next_state")
        mean, _ = agent.at(horizon).policy.moments(torch.as_tensor(x), t)
        assert np.allclose(action, mean.detach().numpy(), atol=1e-6), (horizon, t)
    mixed = {"x": x, "t": np.zeros(5), "horizon": np.array([2, 2, 2, 4, 4])}
    with pytest.raises(ValueError, match="observations must be of one horizon"):
        agent.predict(mixed)
    with pytest.raises(ValueError, match="observation must have 'horizon'"):
        agent.predict({"x": x, "t": np.zeros(5)})
    with pytest.raises(ValueError, match="observation must be of an episode of 3 steps, got one of 4"):
        agent.at(3).predict(observation)
    assert agent.predict(np.concatenate([x, np.zeros((5, 2), np.float32)], 1))[0].shape == (5, 2)  # at t = T


# -- bounds ----------------------------------------------------------------------------------------------------------

KNOWN = [name for name in list_targets() if make_target(name).log_z is not None]


@pytest.mark.parametrize("name", KNOWN)
def test_no_elbo_exceeds_a_known_log_z(name: str) -> None:
    """At T = 1 as well, where one Gaussian step and a Learned kernel are the whole chain."""
    agent = iterations(any_step("dxdp", several((1, 3), name, track="sample")), 3)
    log_z = make_target(name).log_z
    assert log_z is not None
    for horizon in (1, 2, 3):
        view = agent.at(horizon)
        trajectory = view.sample_trajectory(500, seed=5)
        log_weights = view.mdp.log_weights(trajectory).detach().double()
        error = float(log_weights.std()) / math.sqrt(500)
        assert float(log_weights.mean()) <= log_z + 3 * error + 1e-3, horizon


@pytest.mark.parametrize("inside", ["path-wise", "dxdp", "ppo"])
def test_the_first_step_of_a_fine_tuned_network_has_weights_of_its_own(inside: str) -> None:
    """One step leaps where no other does: what it learns does not move the steps of longer chains."""
    task = several((1, 2, 4), "8gaussians-data", pretraining=PRETRAINING, energy=lambda x: x.square().sum(1))
    settings = {"n_trajectories": 8, "policy": {"kind": "fine-tuned"}}
    agent = AnyStep(task, agent=inside, agent_settings=settings)
    policy = agent.at(4).policy
    assert isinstance(policy, FineTunedPolicy) and isinstance(policy.base.denoiser, FirstLevelDenoiser)
    x = torch.randn(6, 2)
    assert all(torch.allclose(policy.moments(x, t)[0], task.mdp.base.mean(x, t), atol=1e-6) for t in range(4))
    agent.learn(8 * (1 + 2 + 4))
    assert agent.trained[4]  # by momentum alone they would go on
    before = [policy.moments(x, t)[0].detach() for t in range(4)]
    agent.set_progress(0.5)  # at the end of a budget rates are zero
    agent.agents[1].iterate()
    moved = [not torch.equal(policy.moments(x, t)[0], before[t]) for t in range(4)]
    assert moved == [True, False, False, False]
    mixed = torch.tensor([0, 1, 2, 3, 0, 2])
    apart = torch.cat([policy.base.mean(x[row : row + 1], int(t)) for row, t in enumerate(mixed)])
    assert torch.allclose(policy.base.mean(x, mixed), apart, atol=1e-6)
    assert policy.base.mean(x[:0], mixed[:0]).shape == (0, 2)


# -- DxMI ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dxmi_with_several_horizons(tmp_path: Path) -> None:
    game = DxMI(several((2, 4), "8gaussians", reward=None), seed=0, agent_settings={"n_trajectories": 32})
    assert isinstance(game.agent, AnyStep) and game.config.recipe == "plane"
    game.learn(3 * 32 * 6)
    samples = {horizon: game.sample(20, seed=1, horizon=horizon) for horizon in (2, 3, 4)}
    assert all(bool(x.isfinite().all()) for x in samples.values())
    assert torch.equal(game.sample(20, seed=1), samples[4])
    last = game.agent.at(2).sample(20, seed=1)
    assert not torch.equal(samples[2], last)  # the averaged weights are others
    assert set(evaluate(game, horizon=3, samples=200, draws=1, fit=False, floors=False)) >= {"sliced_w2"}
    game.save(tmp_path / "game.safetensors")
    again, more = (DxMI.load(tmp_path / "game.safetensors") for _ in range(2))
    for horizon, x in samples.items():
        assert torch.equal(again.sample(20, seed=1, horizon=horizon), x)
    game.learn(32 * 6, reset_num_timesteps=False)
    more.learn(32 * 6, reset_num_timesteps=False)
    for horizon in samples:
        assert torch.equal(more.sample(20, seed=1, horizon=horizon), game.sample(20, seed=1, horizon=horizon))
    x = np.ones((4, 2), np.float32)
    left = np.full((4, 2), [0.5, 0.0], np.float32)  # t = 1 of 2
    action, _ = game.predict(np.concatenate([x, left], 1), deterministic=True, coordinates="next_state")
    mean, _ = game.at(2).policy.moments(torch.as_tensor(x), 1)
    assert np.allclose(action, mean.detach().numpy(), atol=1e-6)
    assert not torch.equal(game.sample(20, seed=1, guidance=0.1), game.sample(20, seed=1))
    assert len(game.sample_trajectory(5, seed=1, horizon=2).x) == 3
    last_iterate = game.sample_trajectory(20, seed=1, horizon=2, policy=game.agent.policy).final
    assert torch.equal(last_iterate, game.agent.at(2).sample(20, seed=1))
    with pytest.raises(ValueError, match="horizon must"):
        game.sample(3, horizon=0)
    for inside, settings in {"dxdp": {"energy_model": True}, "trajectory-balance": {}}.items():
        with pytest.raises(ValueError, match=r"agent must not have .* with several numbers of steps"):
            DxMI(several((2, 4), "8gaussians", reward=None), agent=inside, agent_settings=settings)
    with pytest.raises(ValueError, match="cannot be nested"):
        DxMI(several((2, 4), "8gaussians", reward=None), agent="any-step")


def test_every_number_of_steps_of_a_game_has_an_energy_of_its_own() -> None:
    game = DxMI(several((2, 4), "8gaussians", reward=None), seed=0, agent_settings={"n_trajectories": 32})
    x = torch.randn(8, 2)
    assert isinstance(game.agent, AnyStep) and game.past.keys() == {"past/2", "past/4"}
    game.learn(32 * 2)  # the first iteration is of two steps
    assert game.agent.trained == {2: 64, 4: 0}
    untrained = game.at(4).energy(x).detach()
    assert not torch.equal(game.at(2).energy(x), untrained)
    game.learn(32 * 4, reset_num_timesteps=False)
    assert game.agent.trained == {2: 64, 4: 128} and not torch.equal(game.at(4).energy(x), untrained)
    for horizon in (2, 4):
        assert torch.equal(game.task.at(horizon).mdp.energy(x), game.at(horizon).energy(x))
        assert torch.equal(game.agent.at(horizon).mdp.energy(x), game.at(horizon).energy(x))
    assert game.at(3).energy is game.at(4).energy and game.task.at(3).mdp.energy.function is game.at(4).energy
    scores = [game.at(horizon).score(x) for horizon in (2, 4)]
    assert not torch.equal(*scores) and torch.allclose(game.score(x), (scores[0] + scores[1]) / 2)


def test_a_game_goes_on_with_one_number_of_steps() -> None:
    settings = {"agent_settings": {"n_trajectories": 32}, "anchor": 0.9, "replay": 2}
    game = DxMI(several((2, 4), "8gaussians", reward=None), seed=0, **settings).learn(3 * 32 * 6)
    x, four = torch.randn(8, 2), game.at(4)
    before = game.at(2).energy(x).detach(), four.energy(x).detach()
    four.learn(32 * 4 * 2, reset_num_timesteps=False)
    assert torch.equal(game.at(2).energy(x), before[0]) and not torch.equal(game.at(4).energy(x), before[1])


def test_energies_of_several_horizons_stay_with_their_horizon() -> None:
    game = DxMI(several((2, 4), "8gaussians", reward=None), seed=0, agent_settings={"n_trajectories": 32})
    game.learn(3 * 32 * 6)
    for horizon, expected in ((2, 2), (3, 4), (4, 4), (6, 4)):
        assert game.task.with_horizon(horizon).mdp.energy.function is game.at(expected).energy
    own = game.task.with_own_energy()
    own.mdp.set_energy(lambda x: x.sum(1))
    x = torch.randn(3, 2)
    assert torch.equal(own.at(4).mdp.energy(x), x.sum(1)) and torch.equal(game.task.mdp.energy(x), game.at(4).energy(x))
    student = DxMI(make_task("8gaussians", horizon=1, reward=None), seed=1, agent_settings={"n_trajectories": 32})
    distil(student, game, pairs=64, steps=2)  # of the largest number of steps
    assert torch.equal(student.energy(x), game.at(4).energy(x))


def test_averages_of_a_game_move_as_much_per_transition() -> None:
    game = DxMI(several((1, 4), "8gaussians", reward=None), seed=0, ema=0.6, agent_settings={"n_trajectories": 32})
    for steps in (1, 4):
        before = [parameter.clone() for parameter in game.policy.parameters()]
        game.learn(32 * steps, reset_num_timesteps=False)
        moved = [old.lerp(new, 1 - 0.6 ** (steps / 4))
                 for old, new in zip(before, game.agent.policy.parameters(), strict=True)]  # fmt: skip
        assert game.agent.case == steps
        assert all(torch.allclose(*pair) for pair in zip(game.policy.parameters(), moved, strict=True))


def test_weights_alone_are_enough_to_sample_and_to_go_on(tmp_path: Path) -> None:
    """The agents inside are told how much was trained."""
    agent = any_step()
    iterations(agent, 2)
    save_agent(agent, tmp_path / "weights.safetensors", weights_only=True)
    again = AnyStep.load(tmp_path / "weights.safetensors")
    for horizon in (1, 3, 4):
        assert torch.equal(again.sample(5, seed=0, horizon=horizon), agent.sample(5, seed=0, horizon=horizon))
    spent = again.costs.timesteps
    again.learn(1, reset_num_timesteps=False)
    assert again.costs.timesteps > spent


def test_a_horizon_between_tempers_no_more_than_its_neighbours() -> None:
    """DxDP's energies have their full weight after the first budget, at every number of steps."""
    agent = AnyStep(several(), agent_settings={"n_trajectories": 8, "tempering": 0.6})
    iterations(agent, 1)
    agent.set_progress(0.0)  # a second budget begins
    assert [agent.at(horizon).energy_weight for horizon in (2, 3, 4)] == [1.0] * 3
