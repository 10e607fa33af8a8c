"""What benchmarks/tuning/tune.py searches, agent by agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dxmi_rl.agents import AGENTS, AWM, RWR, VGS, AdjointSampling, DiffusionNFT, DRaFT, DxDPPaper
from dxmi_rl.agents.any_step import AnyStep
from dxmi_rl.irl import DxMI
from dxmi_rl.utils.settings import flat_settings


@dataclass(frozen=True)
class Range:
    """A real number between two bounds, log-uniform, in three digits."""

    low: float
    high: float

    def distribution(self, optuna: Any) -> Any:
        """What optuna draws the parameter from."""
        return optuna.distributions.FloatDistribution(self.low, self.high, log=True)

    def encode(self, value: float) -> float:
        """optuna's parameter of a setting; raises ValueError for one outside of the space."""
        if not self.low <= value <= self.high:
            raise ValueError(f"{value} lies outside of {self}.")
        return value

    def decode(self, parameter: float) -> float:
        """The setting of a parameter."""
        return float(f"{parameter:.3g}")


@dataclass(frozen=True)
class Steps:
    """One of several values in order; neighbours are alike."""

    values: tuple[Any, ...]

    def distribution(self, optuna: Any) -> Any:
        """What optuna draws the parameter from."""
        return optuna.distributions.IntDistribution(0, len(self.values) - 1)

    def encode(self, value: Any) -> int:
        """optuna's parameter of a setting; raises ValueError for one outside of the space."""
        if value not in self.values:
            raise ValueError(f"{value!r} is none of {self.values}.")
        return self.values.index(value)

    def decode(self, parameter: int) -> Any:
        """The setting of a parameter."""
        return self.values[parameter]


Space = Range | Steps

SHARED: dict[str, Space] = {
    "n_trajectories": Steps((16, 32, 64, 128, 256, 512)),
    "kernel_steps": Steps((1, 2, 4, 8, 16)),
    "policy.learning_rate": Range(1e-4, 1e-2),
    "policy.sigma_learning_rate": Range(3e-4, 3e-2),
    "value.learning_rate": Range(3e-4, 2e-2),
    "learning_rate": Range(1e-4, 1e-2),
    "max_grad_norm": Range(0.1, 10),
    "gae_lambda": Steps((0.6, 0.8, 0.9, 0.95, 0.98, 1.0)),
    "n_epochs": Steps((1, 2, 4, 8, 16, 32)),
    "n_minibatches": Steps((1, 2, 4, 8, 16)),
    "clip_range": Range(0.05, 0.5),
}
"""What every agent is searched in whose Config has the setting. What the optimum is, and how large networks are, is not
searched."""
ONE_STEP: dict[str, Space | None] = {"n_trajectories": Steps((2, 4, 8, 16, 32, 64, 128, 256, 512))}
"""Agents with one policy step per rollout make as many as dxdp with batches of 2."""
OFF_POLICY: dict[str, Space | None] = {
    "gradient_steps": Steps((5, 10, 20, 40)),
    "batch_size": Steps((128, 256, 512, 1024, 2048)),
    "target_rate": Range(0.005, 0.1),
}
GFLOWNET: dict[str, Space | None] = {
    "gradient_steps": Steps((1, 2, 4, 8)),
    "exploration": Steps((0.0, 0.2, 0.5, 1.0, 2.0)),
    "exploration_fraction": Steps((0.25, 0.5, 0.75, 1.0)),
    "buffer_size": Steps((0, 2_000, 10_000)),
}
SPACES: dict[str, dict[str, Space | None]] = {
    "a2c": ONE_STEP | {"value_steps": Steps((1, 2, 4, 8, 16))},
    "adjoint-matching": ONE_STEP,
    "detailed-balance": GFLOWNET | {"log_z_learning_rate": Range(0.01, 1)},
    "dxdp": {
        "clip_range": None,
        "td_lambda": Steps((0.0, 0.5, 0.8, 0.9, 0.95, 1.0)),
        "value_steps": Steps((2, 4, 8, 16)),
        "policy_steps": Steps((4, 8, 16, 32)),
        "warmup_value_steps": Steps((10, 30, 60, 120)),
        "replay": Steps((1, 2, 4, 8)),
    },
    "grpo": {"n_trajectories": Steps((32, 64, 128, 256, 512)), "group_size": Steps((4, 8, 16, 32))},
    "path-wise": ONE_STEP,
    "path-wise-vargrad": GFLOWNET | {"path_wise_fraction": Steps((0.05, 0.1, 0.2, 0.4))},
    "reinforce": ONE_STEP,
    "sb3-a2c": ONE_STEP,
    "sb3-sac": OFF_POLICY,
    "sb3-td3": OFF_POLICY | {"exploration_noise": Range(0.3, 2), "target_noise": Range(0.3, 2)},
    "sft-pg": {"policy.sigma_learning_rate": None},
    "torchrl-sac": OFF_POLICY,
    "trajectory-balance": GFLOWNET | {"log_z_learning_rate": Range(0.01, 1)},
    "vargrad": GFLOWNET,
}
"""Settings of one agent beside the shared ones; None: a shared one that is not searched in it."""


MANY_UPDATES: dict[str, Any] = {
    "n_trajectories": 64, "kernel_steps": 4, "n_epochs": 16, "policy_steps": 16, "value_steps": 8,
    "policy.learning_rate": 2e-3, "learning_rate": 2e-3,
}  # fmt: skip
"""Many small updates per transition, the second trial of every agent, with as many ``gradient_steps`` as its space has:
what most depends on, and a random search in many dimensions finds late."""


FASTER = 2.5
"""By how much the learning rates of the seventeenth trial are larger."""


def second_trial(agent: str) -> dict[str, Any]:
    """Settings of the agent's second trial: its defaults but for those of MANY_UPDATES that it is searched in."""
    space, settings = search_space(agent), defaults(agent) | MANY_UPDATES
    if isinstance(steps := space.get("gradient_steps"), Steps):
        settings["gradient_steps"] = max(steps.values)
    return {key: settings[key] for key in space}


def seventeenth_trial(agent: str) -> dict[str, Any]:
    """The second at FASTER times its learning rates."""
    settings = second_trial(agent)
    for key, space in search_space(agent).items():
        if key.endswith("learning_rate") and isinstance(space, Range):
            settings[key] = min(space.high, space.decode(FASTER * space.encode(settings[key])))
    return settings


def given_trials(agent: str) -> dict[int, dict[str, Any]]:
    """Settings of the trials that are not proposed, by index: the defaults, the second, the seventeenth."""
    return {0: defaults(agent), 1: second_trial(agent), 16: seventeenth_trial(agent)}


def search_space(agent: str) -> dict[str, Space]:
    """What ``agent`` is searched in."""
    own = SPACES.get(agent, {})
    shared = {key: space for key, space in SHARED.items() if key in defaults(agent) and key not in own}
    return shared | {key: space for key, space in own.items() if space is not None}


def defaults(agent: str) -> dict[str, Any]:
    """The agent's settings, by name, when none are given."""
    return flat_settings(AGENTS[agent].Config())


def list_searched() -> list[str]:
    """Every agent that learns from an energy it is given, but for "dxdp-paper", whose settings are its paper's, and
    "adjoint-sampling", "awm", "diffusion-nft", "draft", "rwr" and "vgs", whose settings have not been searched.
    """
    others = (
        DxMI.name, AnyStep.name, "any-class", DxDPPaper.name, AdjointSampling.name, AWM.name, DiffusionNFT.name,
        DRaFT.name, RWR.name, VGS.name,
    )  # fmt: skip
    return [name for name in AGENTS if AGENTS[name].trains and name not in others]
