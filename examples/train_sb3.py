"""Stable-Baselines3's PPO, A2C and SAC on 8 Gaussians, scored against the base sampler.

    python examples/train_sb3.py --algorithm sac --seeds 0 1 2

Needs ``pip install 'dxmi_rl[sb3]'``. What matters on this environment, whatever the algorithm:

- The task is a soft return: sum of rewards + tau times the policy's entropy, over T steps without discount. So
  gamma = 1 and the entropy coefficient is tau. On-policy, advantages stay unscaled (normalize_advantage=False), or the
  entropy term would be worth something else in every batch.
- Episodes have T steps and all end together: n_steps is a multiple of T.
- Actions are the noise of the base sampler: N(0, I) is the base sampler, which is where PPO and A2C start.
- SAC squashes its actions to the box, so the box is made small enough to be filled, action_bound=5, and the
  actor's standard deviation starts at 1/5 of it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _scores import Budget, make_parser, parse, run

from dxmi_rl import Task
from dxmi_rl.utils.checks import MissingExtraError, require

BUDGETS = {
    "ppo": Budget(timesteps=1_024_000, num_envs=256),
    "a2c": Budget(timesteps=1_280_000, num_envs=256),
    "sac": Budget(timesteps=512_000, num_envs=256),
}
NETWORKS = [64, 64]
"""Hidden layers of actor and critics."""
SAC_BOX = 5.0
"""Standard deviations of the base sampler's noise that SAC can reach."""


def train(arguments: argparse.Namespace, task: Task, seed: int) -> tuple[Any, int]:
    """Train one seed: the SB3 model and the number of transitions."""
    sb3 = require("stable_baselines3", "sb3")
    make = {"ppo": make_ppo, "a2c": make_a2c, "sac": make_sac}[arguments.algorithm]
    model = make(sb3, task, arguments.num_envs, seed)
    model.learn(arguments.timesteps)
    return model, model.num_timesteps


def make_ppo(sb3: Any, task: Task, num_envs: int, seed: int) -> Any:
    """PPO: four passes over each rollout of whole episodes."""
    from dxmi_rl.envs import make_sb3_env

    horizon = task.mdp.horizon
    return sb3.PPO(
        "MlpPolicy",
        make_sb3_env(task, num_envs=num_envs),
        learning_rate=falling(1e-3),
        n_steps=horizon,
        batch_size=max(2, num_envs * horizon),
        n_epochs=4,
        gamma=1.0,
        gae_lambda=1.0,
        ent_coef=task.mdp.tau,
        normalize_advantage=False,
        policy_kwargs={"net_arch": NETWORKS},
        seed=seed,
        device=task.device,
    )


def make_a2c(sb3: Any, task: Task, num_envs: int, seed: int) -> Any:
    """A2C: one step on each rollout of whole episodes."""
    from dxmi_rl.envs import make_sb3_env

    return sb3.A2C(
        "MlpPolicy",
        make_sb3_env(task, num_envs=num_envs),
        learning_rate=falling(3e-3),
        n_steps=task.mdp.horizon,
        gamma=1.0,
        gae_lambda=1.0,
        ent_coef=task.mdp.tau,
        normalize_advantage=False,
        policy_kwargs={"net_arch": NETWORKS},
        seed=seed,
        device=task.device,
    )


def make_sac(sb3: Any, task: Task, num_envs: int, seed: int) -> Any:
    """SAC with a fixed temperature: two gradient steps for each step of all environments."""
    from dxmi_rl.envs import make_sb3_env

    model = sb3.SAC(
        "MlpPolicy",
        make_sb3_env(task, num_envs=num_envs, action_bound=SAC_BOX),
        learning_rate=falling(3e-3),
        buffer_size=50_000,
        learning_starts=task.mdp.horizon * num_envs,
        batch_size=512,
        tau=0.02,  # of the target networks, not the temperature
        gamma=1.0,
        train_freq=1,
        gradient_steps=2,
        ent_coef=task.mdp.tau,
        policy_kwargs={"net_arch": NETWORKS},
        seed=seed,
        device=task.device,
    )
    with torch.no_grad():  # near the base sampler: a fresh SAC has standard deviation 1 before the squashing
        model.actor.log_std.bias.fill_(math.log(1 / SAC_BOX))
    return model


def falling(rate: float) -> Callable[[float], float]:
    """A learning rate that falls linearly to 0; SB3 passes what remains of the budget, 1 to 0."""
    return lambda remaining: rate * remaining


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; its exit status."""
    parser = make_parser(__doc__, BUDGETS)
    arguments = parse(parser, BUDGETS, argv)
    try:
        require("stable_baselines3", "sb3")
    except MissingExtraError as error:
        parser.error(str(error))
    run(arguments, "Stable-Baselines3", ["stable_baselines3"], train, "train_sb3.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
