"""DxDP's energy model, gradient targets and tempering, each by an oracle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import PRETRAINING, same, state
from dxdp_cases import T, at_the_optimum, dxdp, exact_gradient, play, policy_gradients
from lqg_cases import Quadratic, lqg_agent, lqg_task, solve
from torch import Tensor, nn

from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import DxDP, ValueConfig
from dxmi_rl.agents.adjoint import adjoint_along_paths
from dxmi_rl.agents.checkpoint import save_agent
from dxmi_rl.agents.energy_model import ROWS, EnergyModel
from dxmi_rl.agents.gradients import EnergyGradient
from dxmi_rl.agents.policies import CorrectionPolicy, Recorder
from dxmi_rl.costs import Costs, counting
from dxmi_rl.live_energy import LiveEnergy
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.torch_tools import input_gradient, seeded

PARTS = {"energy_model": True, "gradient_weight": 1.0, "tempering": 0.3}


class Wrong(nn.Module):
    """E plus a wave: an energy model that misses a part of the energy."""

    def forward(self, x: Tensor) -> Tensor:
        return Quadratic()._energy(x) + 0.5 * torch.sin(x[..., 0] - 0.7 * x[..., 1])

    def add(self, x: Tensor, energy: Tensor, gradient: Tensor | None) -> None:
        """It does not learn."""


# The energy model -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("correction", [True, False])
def test_the_corrected_gradient_is_exact_with_a_wrong_energy_model(
    correction: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In closed form, from 600,000 trajectories."""
    settings = {"n_trajectories": 2000, "td_lambda": 1.0, "correction": correction, "energy_model": True}
    agent, policy, _ = lqg_agent(monkeypatch, "dxdp", **settings)
    assert isinstance(agent, DxDP)
    agent.energy_model = Wrong()  # type: ignore[assignment]
    found, wanted = policy_gradients(agent, policy, 300), exact_gradient(policy)
    z = (found.mean(0) - wanted) / (found.std(0) / math.sqrt(300))
    if correction:  # 30 coordinates
        assert int((z.abs() > 3).sum()) <= 1, z
        assert float(z.square().sum()) < 30 + 4 * math.sqrt(60)
    else:
        assert float(z.square().sum()) > 1000


@pytest.mark.slow
def test_it_learns_values_and_gradients() -> None:
    """On points that it was not given: within 3 % of the spread."""
    task = lqg_task()
    with seeded(0):
        model = EnergyModel(task.mdp, ValueConfig(fourier=0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * ROWS, 2, generator=generator)
    energy, gradient = task.mdp.energy.value_and_gradient(x)
    model.add(x[:ROWS], energy[:ROWS], None if gradient is None else gradient[:ROWS])
    model.fit(2000, generator)
    assert gradient is not None
    rest = slice(ROWS, None)
    with torch.no_grad():
        missed = (model(x[rest]) - energy[rest]).square().mean().sqrt() / energy.std()
    slope_missed = (input_gradient(model, x[rest]) - gradient[rest]).square().mean().sqrt() / gradient.std()
    assert float(missed) < 0.03 and float(slope_missed) < 0.03


def test_rows_are_bounded_and_the_oldest_leave() -> None:
    model = EnergyModel(lqg_task().mdp, ValueConfig(width=8, depth=1))
    x = torch.arange(2.0 * (ROWS + 10)).view(-1, 2)
    for part in x.split(1000):
        model.add(part, part[:, 0], part)
    for kept in (model.x, model.gradient):
        assert torch.equal(kept, x[-ROWS:])
    assert torch.equal(model.energy, x[-ROWS:, 0])
    model.clear()
    assert len(model.x) == len(model.energy) == len(model.gradient) == 0


def test_the_energy_is_asked_once_per_trajectory() -> None:
    agent = dxdp(**PARTS, replay=3)
    n = agent.config.n_trajectories
    agent.learn(3 * T * n)
    assert agent.costs.energy_evals == agent.costs.energy_grad_evals == 3 * n


def test_an_energy_without_a_gradient() -> None:
    """Values only, and counted so; one that fails on tensors with gradients is asked without."""

    def black_box(x: Tensor) -> Tensor:
        return torch.as_tensor(np.square(x.numpy()).sum(1))

    agent = dxdp(make_task("8gaussians", energy=black_box, backward="learned"), **PARTS)
    n = agent.config.n_trajectories
    agent.learn(2 * T * n)
    assert (agent.costs.energy_evals, agent.costs.energy_grad_evals) == (2 * n, 0)
    assert agent.energy_model is not None and len(agent.energy_model.gradient) == 0
    kept = agent.memory.trajectories
    assert kept is not None and kept.value_gradient is not None


def test_gradient_targets_of_an_energy_without_a_gradient_need_a_model() -> None:
    with pytest.raises(ValueError, match="agent 'dxdp', with these settings, needs the energy's gradient"):
        dxdp(make_task("8gaussians", energy=lambda x: torch.zeros(len(x))), gradient_weight=1.0)


def test_a_lookahead_takes_no_gradient_targets() -> None:
    with pytest.raises(ValueError, match="gradient_weight must be 0"):
        dxdp(lookahead_value=True, gradient_weight=1.0)


def test_resuming_equals_not_having_stopped(tmp_path: Path) -> None:
    settings = {**PARTS, "value_input": True, "replay": 2}
    whole, part = dxdp(**settings), dxdp(**settings)
    step = whole.timesteps_per_iteration
    whole.learn(6 * step)
    part.learn(6 * step, callback=lambda agent: agent.num_timesteps < 3 * step)
    resumed = DxDP.load(part.save(tmp_path / "part.safetensors"))
    assert torch.equal(resumed.sample(5, seed=1), part.sample(5, seed=1)), "its input is V's gradient"
    resumed.learn(3 * step, reset_num_timesteps=False)
    assert same(state(resumed), state(whole))


@pytest.mark.parametrize("policy", ["correction", "fine-tuned"])
def test_one_step_and_a_denoiser_of_its_own(policy: str) -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target", horizon=1)
    agent = dxdp(task, **PARTS, policy={"kind": policy})
    agent.learn(3 * agent.timesteps_per_iteration)
    assert agent.log["energy_model_loss"] > 0


def test_value_and_gradient_of_energies() -> None:
    x = torch.randn(5, 2)
    with torch.no_grad():
        value, gradient = LiveEnergy(lambda x: x.square().sum(1)).value_and_gradient(x)
    assert torch.allclose(value, x.square().sum(1)) and gradient is not None and torch.allclose(gradient, 2 * x)
    for flat in (lambda x: torch.zeros(len(x)), lambda x: torch.ones(len(x), requires_grad=True)):
        assert LiveEnergy(flat).value_and_gradient(x)[1] is None

    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("no energy today")

    with pytest.raises(RuntimeError, match="no energy today"):
        LiveEnergy(fails).value_and_gradient(x)


def test_when_the_energy_moves_kept_energies_follow() -> None:
    task = make_task("8gaussians", backward="learned")
    agent = dxdp(task, **PARTS, replay=3)
    agent.iterate()

    def move(x: Tensor) -> None:
        task.mdp.set_energy(lambda x: (x - 1).square().sum(1))

    agent.iterate(on_final=move)
    kept = agent.memory.trajectories
    assert kept is not None and kept.energy is not None and agent.energy_model is not None
    assert torch.allclose(kept.energy, (kept.final - 1).square().sum(1))
    assert len(agent.energy_model.x) == agent.config.n_trajectories
    assert kept.value_gradient is None or kept.n == agent.config.n_trajectories, "adjoints of the old energy are gone"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dxdp", "adjoint-sampling", "trajectory-balance"])
def test_what_is_kept_follows_an_energy_that_was_swapped(name: str) -> None:
    """Between two iterations, where no game says so: kept rows are asked for again, or forgotten."""
    task = make_task("gmm9", track="sample", backward="learned")
    buffer: dict[str, Any] = {"buffer_size": 64, "replay_fraction": 0.5} if name == "trajectory-balance" else {}
    agent: Any = make_agent(name, task, seed=0, n_trajectories=8, **buffer)
    for _ in range(3):
        agent.iterate()
    agent.mdp.set_energy(lambda x: (x - 1).square().sum(1))
    agent.iterate()
    if name == "dxdp":
        kept = agent.memory.trajectories
        parts = [(kept.final, kept.energy), (agent.energy_model.x, agent.energy_model.energy)]
    elif name == "trajectory-balance":
        parts = [(agent.buffer.x[:32], agent.buffer.energy[:32])]
    else:
        assert torch.allclose(agent.gradient, 2 * (agent.final - 1), atol=1e-5) and len(agent.final) == 8
        return
    for x, energy in parts:
        assert len(x) and torch.allclose(energy, (x - 1).square().sum(1), rtol=1e-4)


# Gradient targets -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mixing", [0.0, 0.7, 1.0])
def test_at_the_optimum_every_path_gives_the_gradient(mixing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, solution = at_the_optimum(monkeypatch, n_trajectories=40), solve()
    trajectory = play(agent)

    def slope(t: int) -> Tensor:
        return solution.p[t] * trajectory.x[t] + solution.b[t]

    found = adjoint_along_paths(agent.mdp, agent.policy, agent.value, trajectory, slope(T), mixing)
    wanted = torch.stack([slope(t) for t in range(T)])
    assert torch.allclose(found, wanted, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_the_adjoint_is_the_derivative_of_the_soft_return() -> None:
    """At fixed noise, by central differences in x_t, for a policy with a state-dependent sigma and a learned kernel."""
    task = make_task("8gaussians", backward="learned")
    agent = dxdp(task, moved=True)
    with torch.no_grad():
        for parameter in task.mdp.kernel.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    mdp, recorder = task.mdp, Recorder(agent.policy)
    with torch.no_grad():
        trajectory = mdp.rollout(recorder, 4, agent.generator)
    trajectory.base_mean = torch.stack(recorder.base_means)
    _, last = mdp.energy.value_and_gradient(trajectory.final)
    assert last is not None
    found = adjoint_along_paths(mdp, agent.policy, agent.values, trajectory, last, 1.0)
    noise = []
    with torch.no_grad():
        for t in range(T):
            mean, log_std = agent.policy.moments(trajectory.x[t], t)
            noise.append((trajectory.x[t + 1] - mean) * torch.exp(-log_std))

        def cost(x: Tensor, first: int) -> Tensor:
            total = torch.zeros(len(x))
            for t in range(first, T):
                mean, log_std = agent.policy.moments(x, t)
                x_next = mean + log_std.exp() * noise[t]
                total = total - mdp.tau * log_std.expand_as(x).sum(1) - mdp.running_reward(x, x_next, t)
                x = x_next
            return total + mdp.energy(x)

        for t in range(T):
            for i in range(2):
                step = torch.zeros(4, 2)
                step[:, i] = 1e-5
                wanted = (cost(trajectory.x[t] + step, t) - cost(trajectory.x[t] - step, t)) / 2e-5
                assert torch.allclose(found[t, :, i], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("float64")
def test_the_mean_adjoint_is_the_gradient_of_the_policys_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a linear policy on the LQG that is not optimal, from one x_0: within 4 standard errors of the closed form."""
    agent, policy, exact = lqg_agent(monkeypatch, "dxdp")
    n = 20_000
    start = torch.tensor([1.3, -0.4]).expand(n, 2)
    with torch.no_grad():
        trajectory: Trajectory = agent.mdp.rollout(policy, n, torch.Generator().manual_seed(0), start=start)
    last = Quadratic().p * trajectory.final + Quadratic().b
    found = adjoint_along_paths(agent.mdp, policy, exact, trajectory, last, 1.0)[0]
    wanted = exact.p[0] * start[0] + exact.b[0]
    z = (found.mean(0) - wanted) / (found.std(0) / math.sqrt(n))
    assert float(z.abs().max()) < 4


# The gradient of V as the policy's input ------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["ddpm", None])
def test_the_policy_sees_the_gradient_of_the_next_value(base: str | None) -> None:
    """-step_scale_t grad V_{t+1}(mu_base) / tau, softly clipped at 1; V_T is the energy model, so E is not asked."""
    agent = dxdp(make_task("8gaussians", base=base, tau=0.5), **PARTS, value_input=True)
    agent.iterate()
    x, model = torch.randn(7, 2), agent.energy_model
    assert model is not None
    with counting(spent := Costs()):
        for t in (0, T - 1):
            with torch.no_grad():
                stacked = agent.policy.base_mean(x, t)
            assert stacked is not None
            mean, pull = stacked.unbind(1)
            point = mean.clone().requires_grad_()
            value = 0.1 * model(point) if t == T - 1 else agent.value(point, t + 1)  # tempered at the start
            (slope,) = torch.autograd.grad(value.sum(), point)
            wanted = -agent.policy.step_scale[t] * slope / 0.5
            assert torch.allclose(pull, wanted / (1 + wanted.square()).sqrt(), atol=1e-5)
            by_row = agent.policy.base_mean(x, torch.full((7,), t))
            assert by_row is not None and torch.allclose(by_row, stacked, atol=1e-5)
    assert spent.energy_evals == 0


@pytest.mark.parametrize("settings", [{"policy.energy_gradient": True}, {"value_input": False}])
def test_grad_e_may_take_its_place(settings: dict[str, Any]) -> None:
    agent = dxdp("manywell32", **{**PARTS, "value_input": True, **settings})
    assert isinstance(agent.policy, CorrectionPolicy) and isinstance(agent.policy.gradient, EnergyGradient)


def test_a_sampler_from_the_energy_alone_asks_once_per_trajectory() -> None:
    agent = dxdp("manywell32", **PARTS, value_input=True)
    n = agent.config.n_trajectories
    agent.learn(2 * T * n)
    assert agent.costs.energy_evals == agent.costs.energy_grad_evals == 2 * n


# Tempering ------------------------------------------------------------------------------------------------------------


def test_the_weight_of_the_energy_rises_to_one() -> None:
    agent = dxdp(tempering=0.5)
    weights = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        agent.set_progress(progress)
        weights.append(agent.energy_weight)
    assert weights == pytest.approx([0.1, 0.55, 1.0, 1.0])
    fixed = dxdp(tempering=0.0)
    assert fixed.energy_weight == 1.0


def test_a_later_budget_does_not_temper_again(tmp_path: Path) -> None:
    agent = dxdp(make_task("8gaussians", backward="learned"), tempering=0.5, n_trajectories=8, warmup_iterations=0)
    seen: list[float] = []

    def note(agent: Any) -> None:
        seen.append(agent.energy_weight)

    agent.learn(160, callback=note)
    assert seen[0] < 0.2 and seen[-1] == 1.0
    save_agent(agent, tmp_path / "weights.safetensors", weights_only=True)
    agent.save(tmp_path / "agent.safetensors")
    for name in ("agent", "weights"):
        agent = DxDP.load(tmp_path / f"{name}.safetensors")
        seen.clear()
        agent.learn(160, callback=note)
        assert seen == [1.0] * 4


def test_a_budget_of_one_iteration_ends_the_tempering() -> None:
    """Many short calls do not go on aiming at a tenth of the energy."""
    agent = dxdp(make_task("8gaussians", backward="learned"), n_trajectories=8)
    agent.learn(1)
    assert agent.energy_weight == 1.0


def test_the_energy_is_asked_where_chains_end_only() -> None:
    """Of states at several steps; it may be no number elsewhere."""
    task = make_task("8gaussians", backward="learned", horizon=3)
    agent = dxdp(task, energy_model=False)
    x = torch.tensor([[0.0, 0.0], [9.0, 9.0], [1.0, 0.0]])

    def energy(x: Tensor) -> Tensor:
        assert len(x), "never an empty batch"
        return (4 - x.square().sum(1)).sqrt()

    agent.mdp.set_energy(energy)
    with counting(agent.costs):
        values = agent.next_value(x, torch.tensor([2, 0, 2]))
        agent.next_value(x, torch.tensor([0, 1, 1]))
    assert bool(values.isfinite().all())
    assert agent.costs.energy_evals == 2
    assert float(values[2]) == pytest.approx(agent.energy_weight * 3**0.5)
