"""The log-Gaussian Cox process posterior of the Finnish pines on a 40 x 40 grid: 1,600 dimensions, exact energy."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.targets.base import Target
from dxmi_rl.targets.extension import exp_below
from dxmi_rl.utils.checks import check_flag, check_real

FINPINES = Path(__file__).parents[1] / "data" / "finpines.json"
GRID = 40
VARIANCE = 1.91
LENGTHSCALE = 1 / 33
"""Of the exponential kernel, in the unit square."""
POINTS = 126
MEAN = math.log(POINTS) - VARIANCE / 2
"""Prior mean of the log intensity, so that the prior expects 126 points."""
SCALES, WHITE_SCALES = (1.23, 0.63), (0.96, 0.43)
"""Typical and smallest width of the posterior along a coordinate or direction, of fields and of white noise."""


def load_finpines() -> Tensor:
    """The 126 pines ``[126, 2]`` in the unit square, float64: the window [-5, 5] x [-8, 2] metres, moved and scaled."""
    content = json.loads(FINPINES.read_text())
    (left, right), (bottom, top) = content["window"]
    points = torch.tensor(content["points"], dtype=torch.float64)
    corners = torch.tensor([[left, bottom], [right, top]], dtype=torch.float64)
    return (points - corners[0]) / (corners[1] - corners[0])


@functools.cache
def _prior() -> tuple[Tensor, Tensor]:
    """Cholesky factor of the prior's covariance K, and its inverse: ``[1600, 1600]`` each."""
    cells = torch.cartesian_prod(*[torch.arange(GRID, dtype=torch.float64, device="cpu")] * 2)
    factor = torch.linalg.cholesky(VARIANCE * torch.exp(-torch.cdist(cells, cells) / (GRID * LENGTHSCALE)))
    identity = torch.eye(GRID**2, dtype=torch.float64, device="cpu")
    return factor, torch.linalg.solve_triangular(factor, identity, upper=False)


class LogGaussianCox(Target):
    """Posterior of the log intensity mu + x, x in R^1600, given the counts y of the finpines data in 40 x 40 cells.

    States x are the field less its prior mean mu, as samplers start at 0; the literature's states are mu + x, with the
    same log Z. Prior N(0, K) of x, ``K_ij = 1.91 exp(-33 |i - j| / 40)`` for cells i, j = (column, row) in steps of
    the grid (a lengthscale of 1/33 of the window), mu = log 126 - 1.91 / 2; likelihood
    ``prod_i exp((mu + x_i) y_i - exp(mu + x_i) / 1600)`` (Poisson without its y_i! and cell areas, which are 1 and
    constant). ``E(x) = -log N(x; 0, K) - log likelihood``, the prior normalised; index 40 column + row. With
    ``whitened`` the field is L x, L the Cholesky factor of K, and ``E(x) = -log N(x; 0, I) - log likelihood``: the same
    posterior and log Z, in coordinates that the prior leaves independent.
    Moller et al. 1998 (doi 10.1111/1467-9469.00115); discretised as in Heng et al. 2020 (arXiv 1708.08396) and AFT
    (2102.07501). Its log Z is not known: the literature reports about 501.8 and 512.6. No exact sampler.

    Args:
        linear_above: log intensity beyond which exp goes on along its tangent, so that energies and gradients stay
            finite. At 16 one cell costs 5,554 nats, which makes such fields rarer than e^-5000; at most 60.
        whitened: whether x is the white noise of the field. The literature's figures are of fields.

    Raises TypeError or ValueError for linear_above outside (0, 60], TypeError for whitened that is no bool.
    """

    has_energy: ClassVar[bool] = True
    counts: Tensor
    factor: Tensor
    """L, or its inverse where x is the field."""

    def __init__(self, *, linear_above: float = 16.0, whitened: bool = False) -> None:
        if check_real("linear_above", linear_above, strict=True) > 60:
            raise ValueError(f"linear_above must lie in (0, 60], where float32 does not overflow, got {linear_above}.")
        self.linear_above = linear_above
        self.whitened = check_flag("whitened", whitened)
        scale, smallest = WHITE_SCALES if whitened else SCALES
        super().__init__((GRID**2,), scale=scale, smallest_scale=smallest, plot_range=(-5.0, 5.0))
        factor, inverse = _prior()
        self.half_log_det = 0.0 if whitened else float(factor.diagonal().log().sum())
        column, row = (load_finpines() * GRID).long().clamp_max(GRID - 1).T
        counts = torch.bincount(GRID * column + row, minlength=GRID**2)
        dtype = torch.get_default_dtype()
        self.register_buffer("counts", counts.to(dtype))
        self.register_buffer("factor", (factor if whitened else inverse).to(dtype, copy=True))

    def _energy(self, x: Tensor) -> Tensor:
        other = x @ self.factor.T.to(x.dtype)
        white, field = (x, MEAN + other) if self.whitened else (other, MEAN + x)
        log_prior = -0.5 * white.square().sum(1) - self.half_log_det - self.dim / 2 * math.log(2 * math.pi)
        log_likelihood = (field * self.counts.to(x.dtype) - exp_below(field, self.linear_above) / self.dim).sum(1)
        return -log_prior - log_likelihood
