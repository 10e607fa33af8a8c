"""Samplers that are not trained: the base sampler, its best of N, and solvers of the probability-flow ODE or SDE."""

from dxmi_rl.agents.untrained.base_sampler import Base
from dxmi_rl.agents.untrained.best_of_n import BestOfN
from dxmi_rl.agents.untrained.ddim import DDIM
from dxmi_rl.agents.untrained.ddpm import DDPM
from dxmi_rl.agents.untrained.dpm_solver import DPMSolver
from dxmi_rl.agents.untrained.edm_heun import EDMHeun

__all__ = ["DDIM", "DDPM", "Base", "BestOfN", "DPMSolver", "EDMHeun"]
