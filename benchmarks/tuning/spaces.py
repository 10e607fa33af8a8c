"""What benchmarks/tuning/tune.py searches, agent by agent."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dxmi_rl.agents import AGENTS
from dxmi_rl.irl import DxMI


@dataclass(frozen=True)
class Range:
    """A real number between two bounds, log-uniform, in three digits; ``default`` is what None stands for."""

    low: float
    high: float
    default: float | None = None

    def distribution(self, optuna: Any) -> Any:
        """What optuna draws the parameter from."""
        return optuna.distributions.FloatDistribution(self.low, self.high, log=True)

    def encode(self, value: float | None) -> float:
        """optuna's parameter of a setting; raises ValueError for one outside of the space."""
        number = self.default if value is None else value
        if number is None or not self.low <= number <= self.high:
            raise ValueError(f"{value} lies outside of {self}.")
        return number

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
    "batch_size": Steps((32, 64, 128, 256, 512)),
    "kernel_steps": Steps((1, 2, 4)),
    "policy_learning_rate": Range(1e-4, 1e-2, default=1e-3),
    "sigma_learning_rate": Range(3e-4, 3e-2, default=3e-3),
    "value_learning_rate": Range(3e-4, 2e-2),
    "learning_rate": Range(1e-4, 1e-2),
    "clip_gradient": Range(0.1, 10),
    "gae_lambda": Steps((0.8, 0.9, 0.95, 0.98, 1.0)),
    "epochs": Steps((1, 2, 4, 8, 16)),
    "minibatches": Steps((1, 2, 4, 8)),
    "clip_ratio": Range(0.05, 0.5),
}
"""What every agent is searched in whose Config has the field. What the optimum is, and how large networks are, is not
searched."""
NO_CRITIC: dict[str, Space | None] = {"value_learning_rate": None}
OFF_POLICY: dict[str, Space | None] = {
    "gradient_steps": Steps((5, 10, 20)),
    "minibatch_size": Steps((256, 512, 1024)),
    "target_rate": Range(0.005, 0.1),
}
GFLOWNET: dict[str, Space | None] = {
    "updates": Steps((1, 2, 4)),
    "exploration": Steps((0.0, 0.2, 0.5, 1.0, 2.0)),
    "exploration_part": Steps((0.25, 0.5, 0.75, 1.0)),
    "replay": Steps((0, 2_000, 10_000)),
}
SPACES: dict[str, dict[str, Space | None]] = {
    "a2c": {"value_steps": Steps((1, 2, 4, 8))},
    "adjoint-matching": NO_CRITIC | {"sigma_learning_rate": None},
    "detailed-balance": GFLOWNET | {"log_z_learning_rate": Range(0.01, 1)},
    "dxdp": {
        "td_lambda": Steps((0.0, 0.5, 0.8, 0.9, 0.95, 1.0)),
        "value_steps": Steps((2, 4, 8, 16)),
        "policy_steps": Steps((2, 4, 8, 16)),
        "warmup_value_steps": Steps((10, 30, 60)),
        "replay": Steps((1, 2, 4, 8)),
        "value_resampling": Steps((False, True)),
    },
    "grpo": NO_CRITIC | {"group_size": Steps((8, 16, 32))},
    "path-wise": NO_CRITIC,
    "path-wise-vargrad": GFLOWNET | {"path_wise_part": Steps((0.05, 0.1, 0.2, 0.4))},
    "reinforce": NO_CRITIC,
    "sb3-sac": OFF_POLICY,
    "sb3-td3": OFF_POLICY | {"exploration_noise": Range(0.3, 2), "target_noise": Range(0.3, 2)},
    "sft-pg": {"sigma_learning_rate": None},
    "torchrl-sac": OFF_POLICY,
    "trajectory-balance": GFLOWNET | {"log_z_learning_rate": Range(0.01, 1)},
    "vargrad": GFLOWNET,
}
"""Settings of one agent beside the shared ones; None: a shared one that it does not use, or that its paper fixes."""


MANY_UPDATES: dict[str, Any] = {
    "batch_size": 64, "kernel_steps": 4, "epochs": 16, "policy_steps": 16, "value_steps": 8, "updates": 4,
    "gradient_steps": 20, "policy_learning_rate": 2e-3, "learning_rate": 2e-3,
}  # fmt: skip
"""Many small updates per transition, the second trial of every agent: what most depends on, and a random search in
many dimensions finds late."""


FASTER = 2.5
"""By how much the learning rates of the seventeenth trial are larger."""


def second_trial(agent: str) -> dict[str, Any]:
    """Settings of the agent's second trial: its defaults but for those of MANY_UPDATES that it is searched in."""
    space, defaults = search_space(agent), plain_defaults(agent)
    return {key: MANY_UPDATES.get(key, defaults[key]) for key in space}


def seventeenth_trial(agent: str) -> dict[str, Any]:
    """The second at FASTER times its learning rates."""
    settings = second_trial(agent)
    for key, space in search_space(agent).items():
        if key.endswith("learning_rate") and isinstance(space, Range):
            settings[key] = min(space.high, space.decode(FASTER * space.encode(settings[key])))
    return settings


def given_trials(agent: str) -> dict[int, dict[str, Any]]:
    """Settings of the trials that are not proposed, by index: the plain defaults, the second, the seventeenth."""
    return {0: plain_defaults(agent), 1: second_trial(agent), 16: seventeenth_trial(agent)}


def search_space(agent: str) -> dict[str, Space]:
    """What ``agent`` is searched in."""
    own = SPACES.get(agent, {})
    shared = {key: space for key, space in SHARED.items() if key in plain_defaults(agent) and key not in own}
    return shared | {key: space for key, space in own.items() if space is not None}


def plain_defaults(agent: str) -> dict[str, Any]:
    """The agent's settings when nothing is tuned."""
    return dataclasses.asdict(AGENTS[agent].Config())


def list_searched() -> list[str]:
    """Every agent that learns from an energy it is given."""
    return [name for name in AGENTS if AGENTS[name].trains and name != DxMI.name]
