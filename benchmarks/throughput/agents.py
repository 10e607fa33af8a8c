"""What one iteration of DxDP costs beside the loop it replaces: the paper's settings, in the plane, on one thread.

    python benchmarks/throughput/agents.py

Two ways to compute the same thing, timed in turn: ``DxDP.paper()`` (one regression on all T n transitions, one policy
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
from dxmi_rl.agents.gaussian import CACHED_NUMBERS
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.scripts import command_line, header
from dxmi_rl import make_task
from dxmi_rl.agents import DxDP
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.utils.checks import check_integer, require, resolve_device
from dxmi_rl.utils.storage import write_json
from dxmi_rl.utils.torch_tools import frozen

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


def paper_agent(seed: int, device: str) -> DxDP:
    """DxDP with the paper's settings on 8 Gaussians from scratch, with the paper's kernel."""
    task = make_task("8gaussians", base=None, backward="brownian", device=device)
    return DxDP(task, seed=seed, config=DxDP.paper(energy_gradient=False))


class Loop:
    """The same iteration in the order of the authors' release, on an agent's own networks."""

    def __init__(self, agent: DxDP) -> None:
        self.agent, self.mdp = agent, agent.mdp
        self.n = agent.config.batch_size
        self.log: dict[str, float] = {}
        agent.policy_optimizer, agent.value_optimizer = (
            torch.optim.Adam([{"params": group["params"], "lr": group["lr"]} for group in optimizer.param_groups])
            for optimizer in (agent.policy_optimizer, agent.value_optimizer)
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
            value = value.masked_scatter(~last, agent.values(x_next[~last], t[~last] + 1))
        return value

    def regress(self, buffer: dict[str, Tensor]) -> None:
        """One step per t, backwards, each on the transitions of that t."""
        agent = self.agent
        order = torch.randperm(len(buffer["x"]), generator=agent.generator, device=self.mdp.device)
        for t in reversed(range(self.mdp.horizon)):
            rows = order[torch.nonzero(buffer["t"][order] == t).flatten()]
            x, x_next, steps = buffer["x"][rows], buffer["x_next"][rows], buffer["t"][rows]
            with torch.no_grad():
                cost = self.cost(x, x_next, steps, buffer["log_std"][rows])
                target = self.future(x_next, steps) + cost
            loss = mse_loss(agent.value(x, steps).squeeze(1), target / agent.value_unit)
            agent.value_optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(agent.value.parameters(), 10.0)
            agent.value_optimizer.step()
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
            agent.step_policy((self.future(x_next, t) + self.cost(x, x_next, t, log_std)).mean(), len(x))


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


def parts(agent: DxDP, times: int) -> dict[str, float]:
    """Where an iteration of DxDP goes."""
    rollout = agent.collect(None)
    targets = agent.value_targets(rollout)
    part, wanted = agent.pick(rollout, targets, agent.config.policy_trajectories or agent.config.batch_size)
    return {
        "rollout and kernel": processor_ms(lambda: agent.collect(None), times),
        "value targets": processor_ms(lambda: agent.value_targets(rollout), times),
        "value step": processor_ms(lambda: agent.update_value(rollout.x, rollout.t, targets), times),
        "policy step": processor_ms(lambda: agent.update_policy(part, wanted), times),
    }


def arithmetic(agent: DxDP, times: int) -> float:
    """Forward passes of the rollout and the targets, forward and backward ones of the two steps, and nothing else."""
    rollout = agent.collect(None)
    part, _ = agent.pick(rollout, rollout.log_prob, agent.config.policy_trajectories or agent.config.batch_size)
    size, rows = agent.config.batch_size, CACHED_NUMBERS // agent.config.width

    def passes() -> None:
        with torch.no_grad():
            for t in range(agent.mdp.horizon):
                agent.policy.moments(rollout.x[:size], t)
            agent.value(rollout.x, rollout.t)
        for x, t in zip(rollout.x.split(rows), rollout.t.split(rows), strict=True):
            agent.value(x, t).sum().backward()
        mean, _ = agent.policy.moments(part.x, part.t)
        agent.value(mean, part.t).sum().backward()

    return processor_ms(passes, times)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; exit status 1 when the aim is missed, 2 for bad arguments."""
    tyro = require("tyro", "bench")
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
                compiled.value.compile()
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
