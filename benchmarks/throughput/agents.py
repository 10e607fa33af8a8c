"""What an iteration of the published DxDP costs beside the loop that it replaces, in the plane, on one thread.

    python benchmarks/throughput/agents.py

Two ways to compute the same thing, timed in turn: agent "dxdp-paper" (one regression on all T n transitions, one policy
step), and the same networks and settings as the authors' release has it (a buffer that grows by concatenation, T
regressions in a loop over t, one policy step on 256 random transitions, torch's default Adam, two logged means per t).
T = 5, 256 trajectories, three layers of width 128, 8 Gaussians from scratch: neither calls a denoiser. Keys of
``--json FILE``:

    command            the command line
    machine, versions    what it ran on
    milliseconds       {"dxdp", "loop", "compiled" (with --compile)}: medians over seeds and rounds, processor time
    parts              {part: milliseconds} of DxDP's iteration
    arithmetic         milliseconds of the forward and backward passes alone, on the same sizes
    ratio              DxDP's iteration over the loop's: median of the ratios of paired rounds
    compiled_ratio     the same with torch.compile'd networks (with --compile)
    aims               {aim: [measured, bound, passed]}
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.scripts import command_line, header
from dxmi_rl import make_task
from dxmi_rl.agents import DxDPPaper
from dxmi_rl.agents.policies import collect
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer, resolve_device
from dxmi_rl.utils.storage import write_json
from dxmi_rl.utils.torch_tools import frozen, gradient_step

AIM = 0.8


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the networks and rollouts."""
    rounds: int = 20
    """Paired rounds per seed."""
    iterations: int = 10
    """Iterations per round."""
    device: str = "cpu"
    """Torch device."""
    compile: bool = False
    """Also time DxDP with torch.compile'd networks (the first call takes a minute)."""
    json: Path | None = None
    """File for the results."""


def paper_agent(seed: int, device: str) -> DxDPPaper:
    """The published DxDP on 8 Gaussians from scratch, with its kernel, and no energy's gradient in the policy."""
    task = make_task("8gaussians", base=None, backward="brownian", device=device)
    return DxDPPaper(task, seed=seed, policy={"energy_gradient": False})


class Loop:
    """The same iteration in the order of the authors' release, on an agent's own networks."""

    def __init__(self, agent: DxDPPaper) -> None:
        self.agent, self.mdp = agent, agent.mdp
        self.n = agent.config.n_trajectories
        self.log: dict[str, float] = {}
        agent.policy_optimizer, agent.value.optimizer = (
            torch.optim.Adam([{"params": group["params"], "lr": group["lr"]} for group in optimizer.param_groups])
            for optimizer in (agent.policy_optimizer, agent.value.optimizer)
        )

    def iterate(self) -> None:
        """One rollout, T regressions, one policy step."""
        buffer = self.rollout()
        self.regress(buffer)
        self.improve(buffer)

    def rollout(self) -> dict[str, Tensor]:
        """Transitions, appended to a buffer step by step."""
        agent, mdp = self.agent, self.mdp
        x = mdp.reset(self.n, agent.generator)
        buffer: dict[str, Tensor] = {}
        for t in range(mdp.horizon):
            steps = torch.full((self.n,), t, device=x.device)
            with torch.no_grad():
                mean, log_std = agent.policy.moments(x, steps)
                log_std = log_std.expand_as(mean)
                x_next = mean + log_std.exp() * torch.randn(x.shape, generator=agent.generator, device=x.device)
                log_prob = gaussian_log_prob(x_next, mean, log_std)
            new = {"x": x, "x_next": x_next, "t": steps, "log_prob": log_prob, "mean": mean, "log_std": log_std}
            buffer = {key: torch.cat([buffer[key], value]) if buffer else value for key, value in new.items()}
            x = x_next
        mdp.kernel.fit(buffer["x"], buffer["x_next"], buffer["t"])
        return buffer

    def cost(self, x: Tensor, x_next: Tensor, t: Tensor, log_std: Tensor) -> Tensor:
        """Running cost and minus the entropy, up to a constant."""
        agent = self.agent
        running = -agent.cost_weight * self.mdp.kernel.log_prob(x, x_next, t)
        return running - agent.entropy_weight * log_std.sum(1)

    def future(self, x_next: Tensor, t: Tensor) -> Tensor:
        """V_{t+1}(x'), the energy at the end: two masked evaluations."""
        agent, last = self.agent, t == self.mdp.horizon - 1
        value = x_next.new_zeros(len(x_next))
        if bool(last.any()):
            value = value.masked_scatter(last, self.mdp.energy(x_next[last]))
        if not bool(last.all()):
            value = value.masked_scatter(~last, agent.value(x_next[~last], t[~last] + 1))
        return value

    def regress(self, buffer: dict[str, Tensor]) -> None:
        """One step per t, backwards, each on the transitions of that t."""
        agent, value = self.agent, self.agent.value
        order = torch.randperm(len(buffer["x"]), generator=agent.generator, device=self.mdp.device)
        for t in reversed(range(self.mdp.horizon)):
            rows = order[torch.nonzero(buffer["t"][order] == t).flatten()]
            x, x_next, steps = buffer["x"][rows], buffer["x_next"][rows], buffer["t"][rows]
            with torch.no_grad():
                cost = self.cost(x, x_next, steps, buffer["log_std"][rows])
                target = self.future(x_next, steps) + cost
            loss = mse_loss(value.network(x, steps).squeeze(1), target / value.unit)
            value.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(value.parameters(), 10.0)
            value.optimizer.step()
            self.log |= {f"cost {t}": cost.mean().item(), f"value {t}": target.mean().item()}

    def improve(self, buffer: dict[str, Tensor]) -> None:
        """One reparameterised step on 256 random transitions."""
        agent = self.agent
        rows = torch.randperm(len(buffer["x"]), generator=agent.generator, device=self.mdp.device)[: self.n]
        x, t = buffer["x"][rows], buffer["t"][rows]
        with frozen(agent.value.parameters()):
            mean, log_std = agent.policy.moments(x, t)
            log_std = log_std.expand_as(mean)
            x_next = mean + log_std.exp() * torch.randn(x.shape, generator=agent.generator, device=x.device)
            loss = (self.future(x_next, t) + self.cost(x, x_next, t, log_std)).mean()
            gradient_step(agent.policy_optimizer, agent.policy, loss, agent.config.max_grad_norm)


def processor_ms(run: Callable[[], object], times: int) -> float:
    """Milliseconds of processor time per call (wall-clock on a GPU, which is waited for)."""
    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    started = clock()
    for _ in range(times):
        run()
    if cuda:
        torch.cuda.synchronize()
    return 1000 * (clock() - started) / times


def rollout(agent: DxDPPaper) -> Trajectory:
    """The rollout of an iteration, with the fit of its kernel."""
    return collect(agent, agent.policy, agent.config.n_trajectories, kernel_steps=agent.config.kernel_steps)


def parts(agent: DxDPPaper, times: int) -> dict[str, float]:
    """Where an iteration of DxDP goes."""
    trajectory = rollout(agent)
    x, _, t = trajectory.transitions()
    targets = agent.value_targets(trajectory).flatten()
    return {
        "rollout and kernel": processor_ms(lambda: rollout(agent), times),
        "value targets": processor_ms(lambda: agent.value_targets(trajectory), times),
        "value step": processor_ms(lambda: agent.value.fit(x, t, targets), times),
        "policy step": processor_ms(lambda: agent.update_policy(trajectory), times),
    }


def arithmetic(agent: DxDPPaper, times: int) -> float:
    """Forward passes of the rollout and the targets, forward and backward ones of the two steps, and nothing else."""
    network, trajectory = agent.value.network, rollout(agent)
    x, _, t = trajectory.transitions()
    few, _, few_t = trajectory.select(slice(agent.config.policy_trajectories)).transitions()
    rows = agent.value.rows_at_once or len(x)

    def passes() -> None:
        with torch.no_grad():
            for step in range(agent.mdp.horizon):
                agent.policy.moments(trajectory.x[step], step)
            network(x, t)
        for x_part, t_part in zip(x.split(rows), t.split(rows), strict=True):
            network(x_part, t_part).sum().backward()
        mean, _ = agent.policy.moments(few, few_t)
        network(mean, few_t).sum().backward()

    return processor_ms(passes, times)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; exit status 1 when the aim is missed, 2 for bad arguments."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        check_integer("rounds", arguments.rounds)
        check_integer("iterations", arguments.iterations)
        resolve_device(arguments.device)
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    times: dict[str, list[float]] = {"dxdp": [], "loop": []}
    if arguments.compile:
        times["compiled"] = []
    with one_thread():
        for seed in arguments.seeds:
            agent = paper_agent(seed, arguments.device)
            loop = Loop(paper_agent(seed, arguments.device))
            runs: dict[str, Callable[[], object]] = {"dxdp": agent.iterate, "loop": loop.iterate}
            if arguments.compile:
                compiled = paper_agent(seed, arguments.device)
                compiled.policy.net.compile()  # type: ignore[operator]
                compiled.value.network.compile()
                runs["compiled"] = compiled.iterate
            for run in runs.values():  # first calls, and compilation
                processor_ms(run, 3)
            for _ in range(arguments.rounds):
                for name, run in runs.items():
                    times[name].append(processor_ms(run, arguments.iterations))
        found = parts(agent, arguments.rounds * arguments.iterations)
        floor = arithmetic(agent, arguments.rounds * arguments.iterations)

    def ratio(name: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times["loop"], strict=True))

    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, milliseconds in medians.items():
        print(f"{name}: {milliseconds:.2f} ms per iteration, {ratio(name):.2f} of the loop")
    for name, milliseconds in found.items():
        print(f"  {name}: {milliseconds:.2f} ms")
    print(f"arithmetic alone: {floor:.2f} ms")
    aims = {"DxDP's iteration over the loop's": [ratio("dxdp"), AIM, ratio("dxdp") <= AIM]}
    for aim, (measured, bound, passed) in aims.items():
        print(f"{aim}: {measured:.2f} (aim {bound:g}) {'passed' if passed else 'MISSED'}")
    if arguments.json is not None:
        results = header(command_line(__file__, argv), arguments.device)
        results |= {"milliseconds": medians, "parts": found, "arithmetic": floor, "ratio": ratio("dxdp"), "aims": aims}
        if arguments.compile:
            results["compiled_ratio"] = ratio("compiled")
        write_json(arguments.json, results)
    return 0 if all(passed for _, _, passed in aims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
