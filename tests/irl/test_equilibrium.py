"""The game's end on a grid: each player's best answer, closed forms, and what a learned game comes near to."""

from __future__ import annotations

import math

import pytest
import torch

from dxmi_rl.irl import equilibrium
from dxmi_rl.utils.registry import UnknownNameError

CELL = 0.02


def log_density() -> torch.Tensor:
    """0.7 N(-1, 0.5^2) + 0.3 N(1.5, 0.3^2) on [-4, 4]."""
    x = torch.arange(-4, 4, CELL, dtype=torch.float64)
    parts = [
        torch.distributions.Normal(m, s).log_prob(x) + math.log(w) for m, s, w in ((-1, 0.5, 0.7), (1.5, 0.3, 0.3))
    ]
    return torch.logaddexp(*parts)


CASES = [
    ("contrastive", 1.0, 0.05),
    ("contrastive", None, 0.3),
    ("contrastive", 0.1, 1.0),
    ("nce", None, 0.2),
    ("n2ce", 0.0, 2.0),
]


@pytest.mark.parametrize(("loss", "gamma", "tau"), CASES)
def test_each_player_answers_the_other(loss: str, gamma: float | None, tau: float) -> None:
    log_data = log_density()
    found = equilibrium(log_data, CELL, tau=tau, loss=loss, gamma=gamma)
    p_data, p_policy = log_data.exp(), found.log_policy.exp()
    assert float(p_policy.sum() * CELL) == pytest.approx(1, abs=1e-9)
    if loss == "contrastive":
        wanted = (p_policy - p_data) / (2 * (1.0 if gamma is None else gamma) * (p_policy + p_data))
    else:
        wanted = found.log_policy - log_data
    torch.testing.assert_close(found.energy, wanted, rtol=1e-6, atol=1e-9)
    softmax = -found.energy / tau - torch.logsumexp(-found.energy / tau, 0) - math.log(CELL)
    torch.testing.assert_close(found.log_policy, softmax, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_nce_tempers_the_data(tau: float) -> None:
    """p_pi proportional to p_data^(1 / (1 + tau)), hence E / tau has slope 1 / (1 + tau) on -log p_data."""
    log_data = log_density()
    found = equilibrium(log_data, CELL, tau=tau, loss="nce")
    tempered = log_data / (1 + tau)
    torch.testing.assert_close(found.log_policy, tempered - torch.logsumexp(tempered, 0) - math.log(CELL))


@pytest.mark.parametrize("gamma_tau", [0.01, 0.1])
def test_the_contrastive_slope_is_that_of_first_order(gamma_tau: float) -> None:
    """Where the mass is; further out tanh saturates."""
    log_data = log_density()
    found = equilibrium(log_data, CELL, tau=gamma_tau, gamma=1.0)
    weights = log_data.exp() * CELL
    x = -log_data - (weights * -log_data).sum()
    slope = float((weights * x * found.energy / gamma_tau).sum() / (weights * x * x).sum())
    assert slope == pytest.approx(1 / (1 + 4 * gamma_tau), rel=0.03)


def test_without_temperature_the_sampler_is_the_data() -> None:
    found = equilibrium(log_density(), CELL, tau=1e-4)
    inside = log_density() > -8
    assert float((found.log_policy - log_density())[inside].abs().max()) < 0.01


@pytest.mark.parametrize(("loss", "tau"), [("contrastive", 0.3), ("nce", 1.0)])
def test_with_an_anchor_the_game_ends_at_the_data(loss: str, tau: float) -> None:
    """A tabular game: E is the anchor plus the loss's optimum, the sampler its answer, the anchor follows E."""
    log_data = log_density()
    anchor = torch.zeros_like(log_data)
    log_policy = torch.full_like(log_data, -math.log(8.0))
    for _ in range(200):
        u = log_policy - log_data
        energy = anchor + ((u / 2).tanh() / 2 if loss == "contrastive" else u)
        answer = -energy / tau - torch.logsumexp(-energy / tau, 0) - math.log(CELL)
        log_policy = torch.logaddexp(log_policy + math.log(0.9), answer + math.log(0.1))  # a sampler that lags
        anchor = anchor + 0.05 * (energy - anchor)
    kept = log_data > -8
    assert float((log_data.exp() * (log_data - log_policy)).sum() * CELL) < 1e-3
    offset = (energy + tau * log_data)[kept]
    assert float(offset.max() - offset.min()) < 0.1 * tau * float(log_data[kept].max() - log_data[kept].min())
    without = equilibrium(log_data, CELL, tau=tau, loss=loss)
    assert float((log_data.exp() * (log_data - without.log_policy)).sum() * CELL) > 1e-2


def test_what_has_no_equilibrium_here() -> None:
    with pytest.raises(ValueError, match="tau must be"):
        equilibrium(log_density(), CELL, tau=0.0)
    with pytest.raises(ValueError, match="gamma must be > 0 for loss 'contrastive'"):
        equilibrium(log_density(), CELL, tau=0.1, gamma=0.0)
    with pytest.raises(ValueError, match="gamma must be > 0"):
        equilibrium(log_density(), CELL, tau=0.1, loss="nce", gamma=1.0)
    with pytest.raises(ValueError, match="finite vector"):
        equilibrium(torch.tensor([0.0, -math.inf]), 1.0, tau=0.1)
    with pytest.raises(ValueError, match="must have mass 1 over the cells"):
        equilibrium(log_density(), CELL / 2, tau=0.1)
    with pytest.raises(UnknownNameError, match="Did you mean 'contrastive'"):
        equilibrium(log_density(), CELL, tau=0.1, loss="contrastiv")
