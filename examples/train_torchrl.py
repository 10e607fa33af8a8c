"""TorchRL's PPO, A2C and SAC losses on 8 Gaussians, scored against the base sampler.

    python examples/train_torchrl.py --algorithm sac --seeds 0 1 2

Needs ``pip install 'dxmi_rl[torchrl]'``. What matters on this environment, whatever the algorithm:

- The task is a soft return: sum of rewards + tau times the policy's entropy, over T steps without discount. So
  gamma = 1, and the entropy coefficient, or SAC's fixed alpha, is tau. Advantages stay unscaled.
- Actions are the noise of the base sampler: N(0, I) is the base sampler. All actors start there, with a last layer of
  zeros.
- SAC squashes its actions to the box (TanhNormal), so the box is made small enough to be filled, action_bound=5, and
  the standard deviation starts at 1/5 of it.
- An actor plays its mean unless asked otherwise; inside a Collector, and for ``dxmi_rl.evaluate``, it draws.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from _scores import Budget, make_parser, parse, run
from torch import Tensor, nn

from dxmi_rl import Task
from dxmi_rl.utils.checks import MissingExtraError, require

BUDGETS = {
    "ppo": Budget(timesteps=1_024_000, num_envs=256),
    "a2c": Budget(timesteps=1_280_000, num_envs=256),
    "sac": Budget(timesteps=320_000, num_envs=256),
}
RATES = {"ppo": 1e-3, "a2c": 3e-3, "sac": 3e-3}
"""Adam's learning rates at the start; they fall linearly to 0."""
PASSES = {"ppo": 4, "a2c": 1}
"""Gradient steps on each rollout."""
WIDTH = 64
SAC_BOX = 5.0
"""Standard deviations of the base sampler's noise that SAC can reach."""


def train(arguments: argparse.Namespace, task: Task, seed: int) -> tuple[Any, int]:
    """Train one seed: the actor and the number of transitions."""
    torch.manual_seed(seed)
    train_one = train_sac if arguments.algorithm == "sac" else train_on_policy
    return train_one(arguments, task, seed)


def train_on_policy(arguments: argparse.Namespace, task: Task, seed: int) -> tuple[Any, int]:
    """PPO or A2C on rollouts of one whole episode in every environment."""
    from torchrl.collectors import Collector
    from torchrl.modules import IndependentNormal, ValueOperator
    from torchrl.objectives import A2CLoss, ClipPPOLoss
    from torchrl.objectives.value import GAE

    from dxmi_rl.envs import TorchRLEnv

    env = TorchRLEnv(task, num_envs=arguments.num_envs)
    env.set_seed(seed)
    actor = make_actor(env, IndependentNormal, std=1.0)
    critic = ValueOperator(make_network(task.mdp.dim + 1, 1).to(task.device), in_keys=["observation"])
    advantages = GAE(gamma=1.0, lmbda=1.0, value_network=critic)
    kind = {"ppo": ClipPPOLoss, "a2c": A2CLoss}[arguments.algorithm]
    loss = kind(actor, critic, entropy_coeff=task.mdp.tau, critic_coeff=0.5, loss_critic_type="l2")
    batch, iterations = whole_episodes(arguments, task)
    step = Step(loss, RATES[arguments.algorithm], iterations * PASSES[arguments.algorithm], max_norm=0.5)
    for data in Collector(env, actor, frames_per_batch=batch, total_frames=batch * iterations):
        advantages(data)
        flat = data.flatten()
        for _ in range(PASSES[arguments.algorithm]):
            step(flat)
    return actor, batch * iterations


def train_sac(arguments: argparse.Namespace, task: Task, seed: int) -> tuple[Any, int]:
    """SAC: two gradient steps for each step of all environments, on transitions of the replay buffer."""
    from torchrl.collectors import Collector
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.modules import TanhNormal, ValueOperator
    from torchrl.objectives import SACLoss, SoftUpdate

    from dxmi_rl.envs import TorchRLEnv

    env = TorchRLEnv(task, num_envs=arguments.num_envs, action_bound=SAC_BOX)
    env.set_seed(seed)
    actor = make_actor(env, TanhNormal, std=1 / SAC_BOX)
    critic = ValueOperator(Quality(task.mdp.dim).to(task.device), in_keys=["observation", "action"])
    loss = SACLoss(
        actor,
        critic,
        num_qvalue_nets=2,
        alpha_init=task.mdp.tau,
        fixed_alpha=True,
        loss_function="l2",
        action_spec=env.action_spec_unbatched,
    )
    loss.make_value_estimator(gamma=1.0)
    targets = SoftUpdate(loss, tau=0.02)  # tau of the target networks, not the temperature
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(50_000, device=task.device), batch_size=512)
    batch, iterations = whole_episodes(arguments, task)
    updates = 2 * task.mdp.horizon
    step = Step(loss, RATES["sac"], iterations * updates)
    seen = ["observation", "action", *(("next", key) for key in ("observation", "reward", "done", "terminated"))]
    for data in Collector(env, actor, frames_per_batch=batch, total_frames=batch * iterations):
        buffer.extend(data.select(*seen).flatten())
        for _ in range(updates):
            step(buffer.sample())
            targets.step()
    return actor, batch * iterations


class Step:
    """One gradient step on a TorchRL loss, with a learning rate that falls linearly to 0.

    Gradients are clipped to the norm ``max_norm``; not SAC's, whose critics would set the actor's scale.
    """

    def __init__(self, loss: nn.Module, rate: float, steps: int, max_norm: float | None = None) -> None:
        self.loss, self.max_norm = loss, max_norm
        self.parameters = [parameter for parameter in loss.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=rate)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.0, total_iters=steps)

    def __call__(self, data: Any) -> None:
        """Sum the losses, whose names begin with "loss_", and step on their gradient."""
        losses = self.loss(data)
        self.optimizer.zero_grad()
        sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.optimizer.step()
        self.schedule.step()


class Quality(nn.Module):
    """Q(observation, action)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.network = make_network(2 * dim + 1, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """``[batch, d + 1]``, ``[batch, d]`` -> ``[batch, 1]``."""
        return self.network(torch.cat([observation, action], dim=-1))


def make_network(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, outputs)
    )


def make_actor(env: Any, distribution: type, std: float) -> Any:
    """A ProbabilisticActor that starts with mean 0 and standard deviation ``std`` (before any squashing)."""
    from tensordict.nn import NormalParamExtractor, TensorDictModule
    from torchrl.modules import ProbabilisticActor, TanhNormal

    network = make_network(env.mdp.dim + 1, 2 * env.mdp.dim)
    with torch.no_grad():
        network[-1].weight.zero_()
        network[-1].bias.zero_()
    network = nn.Sequential(network, NormalParamExtractor(scale_mapping=f"biased_softplus_{std}")).to(env.device)
    box = env.action_spec_unbatched.space
    return ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=distribution,
        distribution_kwargs={"low": box.low, "high": box.high} if distribution is TanhNormal else {},
        spec=env.action_spec_unbatched,
        return_log_prob=True,
    )


def whole_episodes(arguments: argparse.Namespace, task: Task) -> tuple[int, int]:
    """Transitions per iteration, one episode in every environment, and the number of iterations."""
    batch = arguments.num_envs * task.mdp.horizon
    return batch, math.ceil(arguments.timesteps / batch)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; its exit status."""
    parser = make_parser(__doc__, BUDGETS)
    arguments = parse(parser, BUDGETS, argv)
    os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")  # before the import
    # A Collector asks for it whatever the policy; only recurrent ones need it.
    warnings.filterwarnings("ignore", "The env passed to Collector is missing transforms", FutureWarning)
    try:
        require("torchrl", "torchrl")
    except MissingExtraError as error:
        parser.error(str(error))
    run(arguments, "TorchRL", ["tensordict", "torchrl"], train, "train_torchrl.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
