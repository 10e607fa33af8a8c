"""PPO in one file, in the manner of CleanRL's ppo_continuous_action, on 8 Gaussians, scored against the base sampler.

    python examples/cleanrl_ppo.py                    # gym.make in a SyncVectorEnv, as CleanRL does it
    python examples/cleanrl_ppo.py --vector numpy     # gym.make_vec: one batch, numpy arrays out
    python examples/cleanrl_ppo.py --vector torch     # the same with tensors, which stay on the device

The loop is the same for all three: SAME_STEP autoreset, and ``infos["final_info"]["episode"]`` when episodes end. What
is different from CleanRL's settings is what the task asks for: gamma = gae_lambda = 1, the entropy coefficient is tau,
advantages and rewards stay unscaled (no NormalizeReward, which would change tau), and num_steps is T.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from _scores import TASK, Budget, make_parser, parse, run
from torch import Tensor, nn
from torch.distributions import Normal

from dxmi_rl import Task
from dxmi_rl.agents.wrapped.action_density import ActionDensity
from dxmi_rl.envs import ENV_ID

BUDGETS = {"ppo": Budget(timesteps=320_000, num_envs=64)}
LEARNING_RATE = 1e-3
"""Falls linearly to 0."""
GAMMA, GAE_LAMBDA = 1.0, 1.0
UPDATE_EPOCHS = 4
NUM_MINIBATCHES = 1
CLIP_COEF = 0.2
VF_COEF = 0.5
MAX_GRAD_NORM = 0.5


def make_envs(arguments: argparse.Namespace) -> gym.vector.VectorEnv:
    """``num_envs`` environments: scalar ones one after the other, or one batch."""
    if arguments.vector is None:

        def thunk() -> gym.Env:
            env = gym.make(ENV_ID, task=TASK)
            env = gym.wrappers.RecordEpisodeStatistics(env)
            return gym.wrappers.ClipAction(env)

        return gym.vector.SyncVectorEnv([thunk] * arguments.num_envs, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    # Statistics of episodes are its own.
    envs = gym.make_vec(
        ENV_ID, arguments.num_envs, task=TASK, device=arguments.device, to_numpy=arguments.vector == "numpy"
    )
    return gym.wrappers.vector.ClipAction(envs)


def layer_init(layer: nn.Linear, std: float = 2**0.5) -> nn.Linear:
    """Orthogonal weights, no bias."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """Critic, and a Gaussian whose mean is near 0 and whose standard deviation is 1 at first: the base sampler."""

    def __init__(self, observation_size: int, action_size: int) -> None:
        super().__init__()

        def network(outputs: int, std: float) -> nn.Sequential:
            return nn.Sequential(
                layer_init(nn.Linear(observation_size, 64)),
                nn.Tanh(),
                layer_init(nn.Linear(64, 64)),
                nn.Tanh(),
                layer_init(nn.Linear(64, outputs), std=std),
            )

        self.critic = network(1, std=1.0)
        self.actor_mean = network(action_size, std=0.01)
        self.actor_logstd = nn.Parameter(torch.zeros(1, action_size))

    def get_value(self, x: Tensor) -> Tensor:
        """``[batch, d + 1]`` -> ``[batch, 1]``."""
        return self.critic(x)

    def get_action_and_value(self, x: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The action (drawn when None), its log-probability, the entropy, the value."""
        mean = self.actor_mean(x)
        law = Normal(mean, self.actor_logstd.expand_as(mean).exp())
        if action is None:
            action = law.sample()
        return action, law.log_prob(action).sum(1), law.entropy().sum(1), self.critic(x)


def train(arguments: argparse.Namespace, task: Task, seed: int) -> tuple[Any, int]:
    """Train one seed: the policy as a density over next states, and the number of transitions."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    device = task.device
    envs = make_envs(arguments)
    space, action_space = envs.single_observation_space, envs.single_action_space
    assert isinstance(action_space, gym.spaces.Box) and space.shape is not None
    num_steps, num_envs = task.mdp.horizon, arguments.num_envs
    batch_size = num_steps * num_envs
    num_iterations = -(-arguments.timesteps // batch_size)

    agent = Agent(space.shape[0], action_space.shape[0]).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE, eps=1e-5)

    # Storage.
    obs = torch.zeros((num_steps, num_envs, *space.shape), device=device)
    actions = torch.zeros((num_steps, num_envs, *action_space.shape), device=device)
    logprobs, rewards, dones, values = (torch.zeros((num_steps, num_envs), device=device) for _ in range(4))

    # Start the game.
    next_obs, _ = envs.reset(seed=seed)
    next_obs = torch.as_tensor(next_obs, device=device)
    next_done = torch.zeros(num_envs, device=device)
    global_step = 0
    for iteration in range(num_iterations):
        optimizer.param_groups[0]["lr"] = (1 - iteration / num_iterations) * LEARNING_RATE

        # Rollout.
        for step in range(num_steps):
            global_step += num_envs
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                action, logprobs[step], _, value = agent.get_action_and_value(next_obs)
            actions[step], values[step] = action, value.flatten()
            given = action if arguments.vector == "torch" else action.cpu().numpy()
            next_obs, reward, terminations, truncations, infos = envs.step(given)
            rewards[step] = torch.as_tensor(reward, device=device)
            next_obs = torch.as_tensor(next_obs, dtype=torch.float32, device=device)
            next_done = torch.as_tensor(terminations | truncations, dtype=torch.float32, device=device)

            if "final_info" in infos and iteration % max(1, num_iterations // 10) == 0:
                over = infos["final_info"]["_episode"]
                episodic_return = infos["final_info"]["episode"]["r"][over].mean()
                print(f"global_step={global_step}, episodic_return={float(episodic_return):.2f}", flush=True)

        # Advantages (Schulman et al. 2016, arXiv 1506.02438, eq. 16), with a value of 0 after the end.
        with torch.no_grad():
            next_value = agent.get_value(next_obs).flatten()
            advantages = torch.zeros_like(rewards)
            last = torch.zeros(num_envs, device=device)
            for t in reversed(range(num_steps)):
                goes_on = 1 - (next_done if t == num_steps - 1 else dones[t + 1])
                following = next_value if t == num_steps - 1 else values[t + 1]
                delta = rewards[t] + GAMMA * following * goes_on - values[t]
                advantages[t] = last = delta + GAMMA * GAE_LAMBDA * goes_on * last
            returns = advantages + values

        # Update (Schulman et al. 2017, arXiv 1707.06347, eq. 7 and 9).
        b_obs, b_actions = obs.flatten(0, 1), actions.flatten(0, 1)
        b_logprobs, b_advantages, b_returns = logprobs.flatten(), advantages.flatten(), returns.flatten()
        for _ in range(UPDATE_EPOCHS):
            for rows in torch.randperm(batch_size, device=device).chunk(NUM_MINIBATCHES):
                _, newlogprob, entropy, newvalue = agent.get_action_and_value(b_obs[rows], b_actions[rows])
                ratio = (newlogprob - b_logprobs[rows]).exp()
                clipped = ratio.clamp(1 - CLIP_COEF, 1 + CLIP_COEF)
                policy_loss = -torch.min(b_advantages[rows] * ratio, b_advantages[rows] * clipped).mean()
                value_loss = 0.5 * (newvalue.flatten() - b_returns[rows]).square().mean()
                loss = policy_loss - task.mdp.tau * entropy.mean() + VF_COEF * value_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)
                optimizer.step()
    envs.close()

    # For the scores: the Gaussian over actions as a density over next states.
    def gaussian(observation: Tensor) -> tuple[Tensor, Tensor]:
        mean = agent.actor_mean(observation)
        return mean, agent.actor_logstd.expand_as(mean)

    low, high = (torch.as_tensor(bound, device=device) for bound in (action_space.low, action_space.high))
    return ActionDensity(gaussian, task.mdp, bounds=(low, high)), global_step


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; its exit status."""
    parser = make_parser(__doc__, BUDGETS)
    parser.add_argument("--vector", choices=["numpy", "torch"], help="gym.make_vec, giving these (SyncVectorEnv)")
    arguments = parse(parser, BUDGETS, argv)
    run(arguments, "CleanRL-style", [], train, "cleanrl_ppo.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
