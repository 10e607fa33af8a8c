"""An agent of your own, whole: the cross-entropy method on paths (Kappen and Ruiz 2016, arXiv 1505.01874).

    python examples/own_agent.py                                                    # train it, score it: half a minute
    dxmi-rl compare --preset quick --agent examples/own_agent.py:CrossEntropy       # beside the others

docs/write_an_agent.md walks through it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dxmi_rl import evaluate, make_agent
from dxmi_rl.agents import AGENTS, Agent
from dxmi_rl.agents.base import FinalStateHook
from dxmi_rl.agents.policies import CorrectionPolicy
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.utils.torch_tools import adam


@dataclass(frozen=True)
class CrossEntropyConfig:
    """Settings; CrossEntropy(temperature=4.0) changes single ones."""

    batch_size: int = 256  # trajectories per iteration
    temperature: float = 2.0  # nats of return that make a step count e times more
    updates: int = 4  # gradient steps per rollout
    learning_rate: float = 5e-3
    anneal: bool = True  # cosine learning rate over the budget


class CrossEntropy(Agent):
    """Maximum likelihood of one's own steps, weighted by exp(soft return that followed / temperature)."""

    name, Config = "cross-entropy", CrossEntropyConfig

    def _build(self) -> None:
        policy = CorrectionPolicy(self.mdp, width=64, depth=2, fourier=0, state_dependent_sigma=True)
        self.policy = policy.to(self.mdp.device)  # starts as the base sampler
        parameters = [*self.policy.mean_parameters(), self.policy.log_sigma]
        self.optimizer = adam([(parameters, self.config.learning_rate)])

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.optimizer}  # saved in checkpoints, and annealed

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        with torch.no_grad():
            episodes = self.mdp.rollout(self.policy, self.config.batch_size, self.generator)
            x, x_next, t = episodes.transitions()  # time-major, T n rows each
            base_mean = self.policy.reference(x, t)  # what is not trained is computed once
        if on_final is not None:  # DxMI's step on the energy, which the rewards below are then of
            on_final(episodes.final)
        self.mdp.kernel.fit(x, x_next, t)  # a learned backward kernel adapts; a fixed one does nothing
        with torch.no_grad():
            soft = self.mdp.rewards(episodes) - self.mdp.tau * episodes.log_prob  # [T, n]
            returns = soft.flip(0).cumsum(0).flip(0)
            weights = torch.softmax(returns / self.config.temperature, 1)  # of the n steps at each t
        for _ in range(self.config.updates):
            log_prob = gaussian_log_prob(x_next, *self.policy.moments(x, t, base_mean))
            loss = -(weights.flatten() * log_prob).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.costs.timesteps += len(x)  # what the budget counts
        self.costs.policy_draws += len(x)
        self.costs.energy_evals += len(episodes.final)
        self.costs.denoiser_calls += 2 * len(x) * self.mdp.base.denoiser_calls
        return {"policy_loss": loss.detach()}


if __name__ == "__main__":
    AGENTS.add(CrossEntropy.name, CrossEntropy)  # the one line that registers it
    agent = make_agent("cross-entropy", "8gaussians", seed=0).learn(400_000, progress_bar=True)
    for one in (make_agent("base", "8gaussians"), agent):
        print(one, {key: round(value, 3) for key, value in evaluate(one, fit=False, floors=False).items()})
