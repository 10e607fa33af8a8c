"""An agent of your own, whole: the cross-entropy method on paths (Kappen and Ruiz 2016, arXiv 1505.01874).

    python examples/own_agent.py                                                    # train it, score it: half a minute
    dxmi-rl compare --preset quick --agent examples/own_agent.py:CrossEntropy       # beside the others

docs/write_an_agent.md walks through it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from dxmi_rl import evaluate, make_agent
from dxmi_rl.agents import AGENTS, Agent, PolicyConfig, ops
from dxmi_rl.agents.base import FinalStateHook, Log
from dxmi_rl.agents.policies import GaussianPolicy, collect, make_policy, policy_optimizer
from dxmi_rl.diffusion.gaussian import gaussian_log_prob


@dataclass(frozen=True)
class CrossEntropyConfig:
    """Settings; CrossEntropy(temperature=4.0) changes single ones."""

    n_trajectories: int = 256  # per iteration
    temperature: float = 2.0  # nats of return that make a step count e times more
    gradient_steps: int = 4  # per rollout
    anneal: bool = True  # cosine learning rates over the budget
    policy: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(depth=2, learning_rate=5e-3, sigma_learning_rate=5e-3)
    )


class CrossEntropy(Agent[CrossEntropyConfig]):
    """Maximum likelihood of one's own steps, weighted by exp(soft return that followed / temperature)."""

    name, Config = "cross-entropy", CrossEntropyConfig
    policy: GaussianPolicy

    def _build(self) -> None:
        self.policy = make_policy(self.mdp, self.config.policy)  # starts as the base sampler
        self.optimizer = policy_optimizer(self.policy, self.config.policy)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.optimizer}  # saved in checkpoints, and annealed

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        episodes = collect(self, self.policy, self.config.n_trajectories, on_final)
        with torch.no_grad():
            soft = ops.soft_rewards(self.mdp, episodes, self.mdp.tau)  # [T, n]
            returns = ops.returns_to_go(soft)
            weights = torch.softmax(returns / self.config.temperature, 1)  # of the n steps at each t
        _, x_next, _ = episodes.transitions()  # time-major, T n rows
        for _ in range(self.config.gradient_steps):
            log_prob = gaussian_log_prob(x_next, *self.policy.moments_along(episodes))
            loss = -(weights.flatten() * log_prob).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return {"policy_loss": loss.detach()}


if __name__ == "__main__":
    AGENTS.add(CrossEntropy.name, CrossEntropy)  # the one line that registers it
    agent = make_agent("cross-entropy", "8gaussians", seed=0).learn(400_000, progress_bar=True)
    for one in (make_agent("base", "8gaussians"), agent):
        print(one, {key: round(value, 3) for key, value in evaluate(one, fit=False, floors=False).items()})
