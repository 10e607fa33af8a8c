"""Particle filters: exact twisting functions, unbiased estimates for any, bookkeeping, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lqg_cases import Quadratic, Steps, lqg_task, solve
from torch import Tensor

from dxmi_rl import make_agent, make_task
from dxmi_rl.costs import Costs, counting
from dxmi_rl.live_energy import EnergyError
from dxmi_rl.smc import particle_filter, weighted_samples
from dxmi_rl.utils.checks import NonFiniteError

LOG_Z = float(Quadratic().log_z or 0.0)


def exact_twist(x: Tensor, t: int) -> Tensor:
    """-V_t of the optimal policy, T included: a twist without variance for it."""
    return -solve().value(x.double(), t).to(x.dtype)


def wrong_twist(x: Tensor, t: int) -> Tensor:
    """Far from any value."""
    return torch.sin(3 * x[:, 0] + t) - 0.3 * (x[:, 1] - 1).abs()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def other_policy() -> Steps:
    """The best policy, moved and widened."""
    policy = Steps(solve())
    policy.shift, policy.std = policy.shift + torch.tensor([0.2, -0.1]), 1.2 * policy.std
    return policy


def test_increments_vanish_with_exact_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one resampling by psi_0 / p_0 all later weights of the best policy are equal."""
    monkeypatch.setattr("dxmi_rl.smc.RESAMPLE_BELOW", 2.0)  # before every step
    found = particle_filter(lqg_task().mdp, Steps(solve()), 3, 500, twist=exact_twist, generator=generator())
    assert float(found.ess[1:].min()) > 0.9999
    assert float(found.log_weights.std(dim=1).max()) < 1e-3


@pytest.mark.parametrize("policy", ["best", "another"])
@pytest.mark.parametrize(("twist", "candidates"), [(None, 1), (exact_twist, 1), (wrong_twist, 1), (wrong_twist, 3)])
def test_the_estimate_of_z_is_unbiased_for_any_twist(policy: str, twist: Any, candidates: int) -> None:
    chosen = Steps(solve()) if policy == "best" else other_policy()
    found = particle_filter(
        lqg_task().mdp, chosen, 4000, 32, twist=twist, candidates=candidates, generator=generator(1)
    )  # fmt: skip
    ratio = (found.log_z - LOG_Z).exp()
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert error < 0.05, "the test must be able to fail"
    assert abs(float(ratio.mean()) - 1) < 4 * error


def test_weighted_particles_are_the_target() -> None:
    """Mean and covariance of exp(-E), from a policy that ends elsewhere, with and without a twist."""
    task, target, policy = lqg_task(), Quadratic(), other_policy()
    mean, variance = -target.b / target.p, 1 / target.p
    for twist in (None, exact_twist):
        found = particle_filter(task.mdp, policy, 200, 500, twist=twist, generator=generator(2))
        weights = torch.softmax(found.log_weights, dim=1)[..., None]
        estimates = (weights * found.x).sum(1)
        errors = estimates.std(0) / math.sqrt(200)
        assert bool(((estimates.mean(0) - mean).abs() < 4 * errors + 0.01).all())
        squares = (weights * (found.x - mean).square()).sum(1).mean(0)
        torch.testing.assert_close(squares, variance, rtol=0.05, atol=0.0)
    plain = task.mdp.sample(policy, 5000, generator())
    drawn = weighted_samples(task.mdp, policy, 5000, 16, exact_twist, generator())
    assert drawn.shape == plain.shape
    assert float((drawn.mean(0) - mean).norm()) < 0.5 * float((plain.mean(0) - mean).norm())


class Still:
    """Keeps the second coordinate, so that x_T tells where it comes from."""

    def moments(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        return x, torch.tensor([-1.0, -20.0]).expand_as(x)


class Recorded:
    """Plays chains that were played before, whatever it is given but for the start."""

    def __init__(self, x: Tensor, log_prob: Tensor) -> None:
        self.x, self.chain_log_prob = x, log_prob

    def transport(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[int(t) + 1], self.chain_log_prob[int(t)]

    def log_prob(self, x: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        return self.chain_log_prob[int(t)]


@pytest.mark.parametrize("candidates", [1, 3])
def test_ancestors_lead_back_to_the_starts(candidates: int) -> None:
    mdp = lqg_task().mdp
    found = particle_filter(mdp, Still(), 5, 40, twist=wrong_twist, candidates=candidates, generator=generator(3))
    starts = mdp.reset(5 * 40 * candidates, generator(3)).view(5, -1, 2)
    origins = found.origins()
    assert origins.shape == (5, 40) and len(found.ancestors) == len(found.ess) - 1
    torch.testing.assert_close(starts[..., 1].gather(1, origins), found.x[..., 1], atol=1e-4, rtol=0)
    on_the_way = found.ancestors[: mdp.horizon]
    assert any(len(row.unique()) < len(row) for rows in on_the_way for row in rows), "some were resampled"


def test_systems_are_independent_of_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """More systems than fit one batch: as many results, each finite, and reproducible."""
    monkeypatch.setattr("dxmi_rl.smc.ROWS", 100)
    arguments: dict[str, Any] = {"twist": wrong_twist, "candidates": 2}
    first, again = (
        particle_filter(lqg_task().mdp, Steps(solve()), 7, 20, generator=generator(4), **arguments) for _ in range(2)
    )
    assert first.x.shape == (7, 20, 2) and first.ess.shape == (5 + 2, 7) and first.log_z.shape == (7,)
    assert torch.equal(first.x, again.x) and torch.equal(first.log_z, again.log_z)


def test_energies_are_asked_for_the_chosen_alone() -> None:
    mdp = lqg_task().mdp
    with counting(costs := Costs()):
        particle_filter(mdp, Steps(solve()), 3, 10, twist=exact_twist, candidates=5, generator=generator())
    assert costs.energy_evals == 30 and costs.policy_draws == 3 * 10 * 5 * 5


def test_without_a_twist_it_is_importance_sampling() -> None:
    """Nothing is resampled, and the weights are those of whole chains (``mdp.log_weights``)."""
    mdp, policy = lqg_task().mdp, other_policy()
    found = particle_filter(mdp, policy, 1, 300, generator=generator(5))
    assert all(torch.equal(rows[0], torch.arange(300)) for rows in found.ancestors)
    chains = mdp.rollout(policy, 300, generator(6))
    one = particle_filter(mdp, Recorded(chains.x, chains.log_prob), 1, 300, generator=generator(6))  # the same starts
    torch.testing.assert_close(one.log_weights[0], mdp.log_weights(chains), atol=1e-4, rtol=0)
    log_mean = torch.logsumexp(mdp.log_weights(chains).double(), 0) - math.log(300)
    assert float(one.log_z) == pytest.approx(float(log_mean), abs=1e-5)


class OfAnother:
    """A twist that says what it was fitted to."""

    def __init__(self, key: str, value: float) -> None:
        setattr(self, key, value)

    def __call__(self, x: Tensor, t: int) -> Tensor:
        return x[:, 0]


class OneMean:
    """A policy that forgets the batch."""

    def moments(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        return x[:1], torch.zeros(1, 2)


def first_is_nan(x: Tensor, t: int) -> Tensor:
    """One candidate has no weight that is a number."""
    log_psi = wrong_twist(x, t)
    log_psi[0] = math.nan
    return log_psi


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must"),
        ({"particles": 1}, ValueError, "particles must"),
        ({"candidates": 0}, ValueError, "candidates must"),
        ({"candidates": 2}, ValueError, "candidates must be 1 without a twist"),
        ({"temperature": 0.0}, ValueError, "temperature must"),
        ({"twist": lambda x, t: x}, ValueError, "the twist must return a tensor of shape"),
        ({"twist": lambda x, t: 1.0}, ValueError, "the twist must return a tensor of shape"),
        ({"twist": lambda x, t: x[:, 0] * math.nan}, NonFiniteError, "states or weights of particles are NaN"),
        ({"twist": first_is_nan, "candidates": 3}, NonFiniteError, "states or weights of particles are NaN"),
        ({"twist": OfAnother("horizon", 4)}, ValueError, "twist must be of horizon 5, got one of 4"),
        ({"twist": OfAnother("temperature", 0.5)}, ValueError, "twist must be of temperature 1, got one of 0.5"),
        ({"policy": object()}, TypeError, "policy must have moments"),
        ({"policy": OneMean()}, ValueError, "the policy's means must have shape"),
        ({"energy": lambda x: x[:, 0] * math.nan}, EnergyError, "energy is NaN or infinite"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"n": 2, "particles": 4, "policy": Steps(solve()), "generator": generator()} | arguments
    with pytest.raises(error, match=message):
        particle_filter(lqg_task().mdp, **given)


def test_agents_give_weighted_samples() -> None:
    agent = make_agent("base", "8gaussians", seed=0)
    plain, weighted = agent.sample(500, seed=1), agent.sample(500, seed=1, particles=32)
    assert plain.shape == weighted.shape and torch.equal(weighted, agent.sample(500, seed=1, particles=32))
    energy = agent.mdp.energy
    assert float(energy(weighted).mean()) < float(energy(plain).mean())


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ({}, {"particles": 1}, "particles must"),
        ({}, {"twist": exact_twist}, "particles must say how many"),
        ({"tau": 0.0}, {"particles": 4}, "tau must be > 0"),
    ],
)
def test_agents_refuse(task: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    agent = make_agent("base", make_task("8gaussians", **task))
    with pytest.raises(ValueError, match=message):
        agent.sample(10, **arguments)


def test_agents_without_a_density_have_no_particles() -> None:
    with pytest.raises(TypeError, match="has no density"):
        make_agent("edm-heun", "8gaussians").sample(10, particles=4)
    with pytest.raises(ValueError, match="policy must have a density"):
        make_agent("sb3-td3", "8gaussians").sample(10, particles=4)
    with pytest.raises(NonFiniteError, match="has no noise and so no density"):
        make_agent("base", make_task("8gaussians", base="ddim", eta=0.0)).sample(10, particles=4)


def test_guidance_and_particles_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="guidance must be 0 with particles"):
        make_agent("dxdp", "8gaussians").sample(10, guidance=0.1, particles=4)  # type: ignore[call-arg]
