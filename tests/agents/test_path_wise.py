"""Path-wise: gradients against finite differences and by hand, memory, costs, and the way to the closed form."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from agent_cases import PRETRAINING, plain_agent, small, state
from lqg_cases import SMALL, Tabular, errors, flat_gradient, lqg_task, solve
from torch import Tensor

from dxmi_rl import DxMI, make_agent, make_task
from dxmi_rl.agents import PathWise
from dxmi_rl.costs import counting
from dxmi_rl.rollout import Trajectory
from dxmi_rl.tasks import Task
from dxmi_rl.utils.torch_tools import seeded


def learned_task(horizon: int = 5) -> Task:
    with seeded(0):  # the kernel's network
        return make_task("8gaussians", backward="learned", horizon=horizon)


def moved(task: Task | str, n_trajectories: int = 64, **settings: Any) -> PathWise:
    """An agent whose network has left its zero start."""
    agent = small("path-wise", task, n_trajectories=n_trajectories, **settings)
    assert isinstance(agent, PathWise)
    with seeded(0), torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return agent


def rollout(agent: PathWise) -> Trajectory:
    return agent.mdp.rollout(agent.path, agent.config.n_trajectories, agent.generator, differentiable=True)


def loss_of(agent: PathWise) -> Tensor:
    return agent.path.loss(rollout(agent))


def gradient(agent: PathWise, seed: int = 0) -> Tensor:
    agent.generator.manual_seed(seed)
    return flat_gradient(loss_of(agent), agent.policy)


def saved_bytes(agent: PathWise) -> int:
    """Bytes of the distinct tensors that a rollout and its loss keep for the backward pass, parameters left out."""
    own = {p.data_ptr() for module in agent.modules().values() for p in module.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            alive.append(tensor)  # an address is a name only as long as it is not freed
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(agent)
    return sum(kept.values())


# The gradient ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("task", ["8gaussians", "lqg"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_that_of_the_soft_return(task: str, checkpointing: bool) -> None:
    """Central differences on fixed noise; the LQG's policy sees grad E, which is differentiated too."""
    built = lqg_task() if task == "lqg" else make_task(task, backward="forward", tau=0.7)
    agent = moved(built, path={"score_free": False, "checkpointing": checkpointing, "detach_energy_gradient": False})
    assert agent.policy.sees_gradient == (task == "lqg")

    def cost() -> float:
        generator = torch.Generator().manual_seed(0)
        trajectory = agent.mdp.rollout(agent.policy, agent.config.n_trajectories, generator)
        return -float(agent.mdp.soft_return(trajectory).mean()) / agent.mdp.horizon

    found = gradient(agent)
    parameters = list(agent.policy.parameters())
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        direction = [torch.randn(p.shape, generator=generator) for p in parameters]
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                for parameter, d in zip(parameters, direction, strict=True):
                    parameter.add_(step * d)
            values.append(cost())
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.add_(1e-5 * d)
        wanted = (values[0] - values[1]) / 2e-5
        assert float(found @ torch.cat([d.flatten() for d in direction])) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("last_steps", [1, 3, 5])
def test_truncation_detaches_by_hand(last_steps: int) -> None:
    """K = T is the whole gradient; K < T that of the same episodes with the first T - K steps as constants."""
    agent = moved("8gaussians", path={"score_free": False, "last_steps": last_steps})
    found = gradient(agent)
    generator = torch.Generator().manual_seed(0)
    mdp, n = agent.mdp, agent.config.n_trajectories
    x = mdp.reset(n, generator)
    cost = torch.zeros(n)
    for t in range(5):
        noise = torch.randn(n, 2, generator=generator)
        mean, log_std = agent.policy.moments(x, t)
        x_next = mean + log_std.exp() * noise
        log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(x_next).sum(1)
        step_cost = log_prob - mdp.kernel.log_prob(x, x_next, t)
        if t < 5 - last_steps:
            x_next, step_cost = x_next.detach(), step_cost.detach()
        cost, x = cost + step_cost, x_next
    wanted = flat_gradient((cost + mdp.energy(x)).mean() / 5, agent.policy)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)
    if last_steps == 5:
        assert torch.equal(found, gradient(moved("8gaussians", path={"score_free": False})))
    else:
        assert not torch.allclose(found, gradient(moved("8gaussians", path={"score_free": False})), rtol=0.01)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "settings",
    [{}, {"path.score_free": False}, {"path.last_steps": 2}, {"policy.energy_gradient": True}],
)
def test_checkpointing_changes_no_gradient(settings: dict[str, Any]) -> None:
    task = learned_task()
    plain, recomputing = (moved(task, **{"path.checkpointing": on, **settings}) for on in (False, True))
    assert torch.allclose(gradient(plain), gradient(recomputing), rtol=1e-12, atol=1e-14)


def test_checkpointing_keeps_states_only() -> None:
    """What is kept does not grow with the network, and per step it is a few states and not its activations."""
    sizes = {}
    for checkpointing in (False, True):
        for width in (32, 128):
            for horizon in (5, 10):
                settings = {"policy": {"width": width}, "path": {"checkpointing": checkpointing}}
                agent = small("path-wise", learned_task(horizon), n_trajectories=256, **settings)
                assert isinstance(agent, PathWise)
                sizes[checkpointing, width, horizon] = saved_bytes(agent)
    state_bytes = 256 * 2 * 4
    per_step = {(on, width): (sizes[on, width, 10] - sizes[on, width, 5]) / 5 for on, width, _ in sizes}
    assert per_step[True, 128] == per_step[True, 32] < 5 * state_bytes, per_step
    assert per_step[False, 128] > 2 * per_step[False, 32] > 20 * per_step[True, 32], per_step
    assert sizes[True, 128, 10] < 0.1 * sizes[False, 128, 10], sizes


# Without the score of log pi ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_without_the_score_the_gradient_has_the_same_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 1e5 episodes: within three standard errors, and less noise."""
    estimates = {}
    for score_free in (False, True):
        agent, policy = lqg_path_wise(monkeypatch, score_free, 1000)
        agent.generator.manual_seed(1 + score_free)  # independent episodes
        estimates[score_free] = torch.stack([flat_gradient(loss_of(agent), policy) for _ in range(100)])
    plain, without = estimates[False], estimates[True]
    standard_error = ((plain.var(0) + without.var(0)) / 100).sqrt()
    z = (plain.mean(0) - without.mean(0)) / standard_error
    # 30 coordinates: 3 standard errors for nearly all, and as a whole no more than chance.
    assert int((z.abs() > 3).sum()) <= 1, z
    assert float(z.square().sum()) < 30 + 4 * math.sqrt(60)
    assert float(plain.mean(0).abs().max()) > 20 * float(standard_error.max()), "the gradient is not just noise"


@pytest.mark.usefixtures("float64")
def test_without_the_score_there_is_no_noise_at_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the soft return is -V_0(x_0) on every path, whatever the later states: nothing is left to differentiate."""
    solution = solve()
    norms = {}
    for score_free in (False, True):
        agent, policy = lqg_path_wise(monkeypatch, score_free, 10)
        with torch.no_grad():
            policy.gain.copy_(torch.stack(solution.gain))
            policy.shift.copy_(torch.stack(solution.shift))
            policy.log_sigma.copy_(torch.stack(solution.std).log())
        norms[score_free] = float(flat_gradient(loss_of(agent), policy).norm())
    assert norms[True] < 1e-12 and norms[False] > 0.05, norms


def lqg_path_wise(monkeypatch: pytest.MonkeyPatch, score_free: bool, n_trajectories: int) -> tuple[PathWise, Tabular]:
    agent = plain_agent("path-wise", lqg_task(), path={"score_free": score_free}, n_trajectories=n_trajectories)
    assert isinstance(agent, PathWise)
    policy = Tabular()
    monkeypatch.setattr(agent.path, "policy", policy)
    return agent, policy


def test_leaving_the_score_out_changes_no_number() -> None:
    losses = []
    for score_free in (False, True):
        agent = moved("8gaussians", path={"score_free": score_free})
        losses.append(float(loss_of(agent).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# grad E as an input ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
def test_a_detached_energy_gradient_is_a_constant() -> None:
    """By hand for one step: the pull in the mean is there, and not differentiated."""
    gradients = {}
    for detach in (False, True):
        agent = moved(lqg_task(), path={"score_free": False, "detach_energy_gradient": detach, "last_steps": 2})
        gradients[detach] = gradient(agent)
    plain, constant = (moved(lqg_task(), path={"detach_energy_gradient": detach}) for detach in (False, True))
    x = torch.randn(10, 2, requires_grad=True)
    a, b = plain.policy.base_mean(x, 1), constant.policy.base_mean(x, 1)
    assert a is not None and b is not None and torch.equal(a, b)
    (pull,) = torch.autograd.grad(a[:, 1].sum(), x, retain_graph=True)
    assert float(pull.abs().min()) > 0
    (mean,) = torch.autograd.grad(b[:, 0].sum(), x, retain_graph=True)
    assert torch.equal(mean, torch.ones_like(x)), "the base mean, here x itself, is differentiated"
    assert not torch.allclose(gradients[False], gradients[True], rtol=1e-3)
    assert torch.equal(plain.sample(20, seed=0), constant.sample(20, seed=0)), "the same policy"


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_finds_the_optimal_policy() -> None:
    agent = plain_agent(
        "path-wise", lqg_task(), seed=0, **SMALL, **{"policy.learning_rate": 1e-2, "policy.sigma_learning_rate": 3e-3}
    )
    assert isinstance(agent, PathWise)
    agent.learn(500_000)
    error = errors(agent)
    assert error["mean"] < 0.015, error
    assert error["sigma"] < 0.01, error


def test_a_step_touches_only_policy_and_kernel() -> None:
    agent = moved(learned_task())
    before = state(agent)
    agent.iterate()
    changed = {key.split(".")[0] for key, value in state(agent).items() if not torch.equal(value, before[key])}
    assert changed == {"policy", "kernel"}
    assert all(p.requires_grad for p in agent.mdp.kernel.net.parameters())  # type: ignore[union-attr]
    assert set(agent.modules()) == {"policy", "kernel"} and set(agent.optimizers()) == {"policy"}
    assert not hasattr(agent, "value")


def test_truncated_steps_are_not_trained() -> None:
    agent = small("path-wise", path={"last_steps": 2})
    before = agent.policy.log_sigma.detach().clone()
    agent.learn(3 * agent.timesteps_per_iteration)
    moved_by = (agent.policy.log_sigma.detach() - before).abs()
    assert float(moved_by[:3].max()) == 0 < float(moved_by[3:].min())


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"policy.energy_gradient": True}, {"policy.energy_gradient": True, "path.checkpointing": True}],
)
def test_it_trains_inside_dxmi(settings: dict[str, Any]) -> None:
    """The energy changes between the rollout and the loss, also where the policy itself looks at it."""
    task = make_task("8gaussians-data", pretraining=PRETRAINING)
    inner = {"n_trajectories": 32, "policy.width": 16, **settings}
    trainer = small("dxmi", task, agent="path-wise", agent_settings=inner)
    assert isinstance(trainer, DxMI)
    before = state(trainer)
    trainer.learn(3 * trainer.timesteps_per_iteration)
    after = state(trainer)
    for part in ("agent/policy", "energy"):
        assert any(not torch.equal(after[k], v) for k, v in before.items() if k.startswith(part))
    assert all(p.requires_grad for p in trainer.energy.parameters())


def test_the_loss_in_dxmi_is_on_the_new_energy() -> None:
    """on_final gets the samples of the very episodes that are differentiated on the energy that it leaves."""
    for sees_gradient in (False, True):
        settings = {"policy": {"energy_gradient": sees_gradient}, "path": {"detach_energy_gradient": False}}
        agent, other = (moved("8gaussians", **settings) for _ in range(2))
        agent.generator.manual_seed(0)
        seen: list[Tensor] = []

        def swap(final: Tensor, agent: PathWise = agent, seen: list[Tensor] = seen) -> None:
            seen.append(final)
            agent.mdp.set_energy(lambda x: x.square().sum(1))

        old = copy.deepcopy(agent.policy)
        log = agent.iterate(swap)
        assert not seen[0].requires_grad
        other.generator.manual_seed(0)
        if sees_gradient:
            other.mdp.set_energy(lambda x: x.square().sum(1))
        else:
            assert torch.equal(other.sample(64, seed=0), seen[0])
        trajectory = other.mdp.rollout(old if not sees_gradient else other.policy, 64, other.generator)
        other.mdp.set_energy(lambda x: x.square().sum(1))
        wanted = -other.mdp.soft_return(trajectory).mean() / 5
        assert float(log["policy_loss"]) == pytest.approx(float(wanted), rel=1e-4)


# Costs and settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("sees_gradient", [False, True])
@pytest.mark.parametrize("in_dxmi", [False, True])
def test_costs_are_what_was_called(checkpointing: bool, sees_gradient: bool, in_dxmi: bool) -> None:
    settings = {"path": {"checkpointing": checkpointing}, "policy": {"energy_gradient": sees_gradient}}
    agent = small("path-wise", make_task("8gaussians"), **settings)
    rows = {"energy": 0, "denoiser": 0}
    energy = agent.task.target.energy

    def counted(x: Tensor) -> Tensor:
        rows["energy"] += len(x)
        return energy(x)

    agent.mdp.set_energy(counted)
    rows["energy"] = 0

    def count(module: Any, inputs: Any, output: Any) -> None:
        rows["denoiser"] += len(inputs[0])

    agent.policy.base.denoiser.register_forward_hook(count)  # type: ignore[union-attr]
    with counting(agent.costs):
        agent.iterate((lambda final: None) if in_dxmi else None)
    costs = agent.costs
    assert costs.timesteps == agent.timesteps_per_iteration
    assert costs.policy_draws == costs.timesteps * (1 + (in_dxmi and sees_gradient and checkpointing))
    assert costs.energy_evals == costs.energy_grad_evals == rows["energy"]
    assert costs.denoiser_calls == rows["denoiser"]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("score_free", [False, True])
def test_costs_of_a_policy_that_owns_the_denoiser(checkpointing: bool, score_free: bool) -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")
    path = {"checkpointing": checkpointing, "score_free": score_free, "last_steps": 3}
    agent = small("path-wise", task, policy={"kind": "fine-tuned"}, path=path)
    rows = [0]

    def count(module: Any, inputs: Any, output: Any) -> None:
        rows[0] += len(inputs[0])

    agent.policy.base.denoiser.register_forward_hook(count)  # type: ignore[union-attr]
    with counting(agent.costs):
        agent.iterate()
    assert agent.costs.denoiser_calls == rows[0] > 0


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"path": {"last_steps": 0}}, ValueError, "path.last_steps must be >= 1"),
        ({"path": {"last_steps": 6}}, ValueError, r"path.last_steps must lie in 1\.\.5, the horizon, got 6"),
        ({"path": {"last_steps": 2.5}}, TypeError, "path.last_steps must be an integer"),
        ({"n_trajectories": 0}, ValueError, "n_trajectories must be >= 1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_agent("path-wise", "8gaussians", **settings)


def test_without_temperature_it_descends_the_energy() -> None:
    """tau = 0: DRaFT's own objective."""
    agent = small("path-wise", make_task("8gaussians", tau=0.0), n_trajectories=64)
    assert isinstance(agent, PathWise) and not agent.path.score_free
    agent.generator.manual_seed(0)
    trajectory = rollout(agent)
    loss = agent.path.loss(trajectory)
    assert float(loss.detach()) == pytest.approx(
        float(agent.mdp.energy(trajectory.final).mean().detach()) / 5, rel=1e-6
    )
    agent.learn(2 * agent.timesteps_per_iteration)
