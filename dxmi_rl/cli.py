"""The command line ``dxmi-rl``."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from torch import Tensor

from dxmi_rl.agents import AGENTS, Agent, list_agents, load_agent, make_agent
from dxmi_rl.benchmark.own_agents import OwnAgent, is_own_agent
from dxmi_rl.benchmark.own_tasks import named_task
from dxmi_rl.benchmark.train import Settings, Train
from dxmi_rl.tasks import ENERGIES, list_tasks, make_task
from dxmi_rl.utils.checks import DivergenceError
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.settings import check_given_once, parsed_settings
from dxmi_rl.utils.storage import check_file, save_tensors, write_atomically, write_json

HELP = """Few-step denoising as a reinforcement-learning benchmark.

Every command has --help. Shell completion: dxmi-rl --tyro-write-completion bash FILE (also zsh, tcsh)."""
SAMPLE_FORMATS = (".npy", ".csv", ".safetensors", ".png")


@dataclass(frozen=True)
class Checkpoint:
    """What evaluate and sample start from."""

    agent: Annotated[str, tyro.conf.Positional]
    """A checkpoint of ours (.safetensors) or of Stable-Baselines3 (.zip), or the name of an agent that does not train
    (base)."""
    task: str | None = None
    """Name of the task; a .safetensors checkpoint knows its own. Or one of your own, file.py:NAME, where NAME is an
    energy (with dim=... in task_set), a Target or a built Task; the file's code is run."""
    task_set: Settings = ()
    """Settings of the task, such as horizon=10 backward=learned."""
    trust_checkpoint: bool = False
    """Open a .zip checkpoint, whose pickles can run code while it is loaded."""
    seed: int = 0
    """Seed of all draws."""
    device: str = "cpu"
    """Torch device."""
    horizon: int | None = None
    """Number of steps, where the task has several; the largest by default."""

    def load(self) -> Agent[Any]:
        """The agent on its task. Raises ValueError, TypeError, OSError or ImportError."""
        agent = self._load()
        return agent if self.horizon is None else agent.at(self.horizon)

    def _load(self) -> Agent[Any]:
        changes = parsed_settings("task_set", chain(*self.task_set))
        if Path(self.agent).is_dir() and self.agent not in AGENTS:
            raise ValueError(f"agent must be a checkpoint or a name, got the folder {self.agent!r}.")
        if self.agent.endswith(".safetensors"):
            if self.task is None and changes:
                raise ValueError("task_set needs --task: the checkpoint's own task is as it was trained.")
            task = None if self.task is None else make_task(named_task(self.task), device=self.device, **changes)
            return load_agent(self.agent, task=task, device=self.device)
        built = make_task(named_task(self.task or "8gaussians"), device=self.device, **changes)
        built = built.at(built.horizons[-1] if self.horizon is None else self.horizon)
        own = OwnAgent(self.agent, self.trust_checkpoint) if is_own_agent(self.agent) else None
        if own is not None and not own.trains:
            return own.build(built, self.seed)
        if own is not None or AGENTS[self.agent].trains:
            raise ValueError(f"agent {self.agent!r} is untrained: give a checkpoint that dxmi-rl train wrote.")
        return make_agent(self.agent, built, seed=self.seed)


@dataclass(frozen=True)
class Evaluate(Checkpoint):
    """Score a checkpoint on fixed seeds, with the score of exact samples beside each."""

    samples: int = 10_000
    """Samples per draw of the sample metrics."""
    draws: int = 8
    """Draws that sliced W2 is averaged over."""
    trajectories: int = 100_000
    """Trajectories of the log-weights."""
    fit: bool = True
    """Fit a backward kernel for kl_bound_fit; it takes longest."""
    smc: bool = False
    """Also estimate log Z by particle filters."""
    particles: int | None = None
    """Score samples that are chosen by weight among this many chains each."""
    json: Path | None = None
    """Also write the scores to this file."""

    def __call__(self, command: str) -> int:
        """Print the scores as a table."""
        from rich.console import Console
        from rich.table import Table

        from dxmi_rl.benchmark.tables import LEGEND, MARK, MEANINGS, SCORES, unreliable
        from dxmi_rl.evaluation import evaluate
        from dxmi_rl.evaluation.log_weights import UnreliableScoresWarning

        if self.json is not None:
            check_file("json", self.json)
        agent = self.load()
        with warnings.catch_warnings(action="ignore", category=UnreliableScoresWarning):  # the table says so itself
            scores = evaluate(
                agent, seed=self.seed, samples=self.samples, draws=self.draws, trajectories=self.trajectories,
                fit=self.fit, smc=self.smc, particles=self.particles,
            )  # fmt: skip
        marked = "log_z" in scores and unreliable(scores["ess"])
        title = f"{agent.name} on {agent.task.name}"
        title += "" if self.particles is None else f", samples chosen among {self.particles} chains"
        table = Table("score", "value", "exact samples (floor)", title=title)
        for key, value in scores.items():
            if not key.endswith("_floor"):
                floor = scores.get(f"{key}_floor")
                mark = MARK if marked and key == "log_z" else ""
                cells = (f"{value:.4g}{mark}", "" if floor is None else f"{floor:.4g}")
                table.add_row(f"{key} {SCORES.get(key, '')}".strip(), *cells)
        Console().print(table)
        if marked:
            print(LEGEND)
        for key in (key for key in MEANINGS if key in scores):
            print(f"{key}: {MEANINGS[key]}.")
        if "elbo" in scores:
            kernel = "fitted after training" if "kl_bound_fit" in scores else "of training"
            print(f"elbo, eubo, log_z and ess are taken with the kernel {kernel}.")
        if self.json is not None:
            names = {"agent": agent.name, "task": agent.task.name}
            write_json(self.json, {"command": command, **names, "seed": self.seed, "scores": scores})
        return 0


@dataclass(frozen=True)
class Sample(Checkpoint):
    """Draw samples from a checkpoint into a file."""

    n: int = 10_000
    """Number of samples."""
    particles: int | None = None
    """Choose every sample among this many chains, with fitted twisting functions."""
    out: Path = Path("samples.npy")
    """File to write; its ending says how: .npy, .csv (one flattened sample per line), .safetensors, or .png (a picture
    of the first 2,000)."""

    def __call__(self, command: str) -> int:
        """Write the samples."""
        from dxmi_rl.agents.twisting import fit_twist

        if self.out.suffix not in SAMPLE_FORMATS:
            raise UnknownNameError("ending of out", self.out.suffix, list(SAMPLE_FORMATS))
        check_file("out", self.out)
        agent = self.load()
        chains = self.particles
        twist = None if chains is None or chains < 2 else fit_twist(agent, seed=self.seed)  # sample refuses fewer
        x = agent.sample(self.n, seed=self.seed, particles=chains, twist=twist).cpu()
        write_samples(agent, x, self.out, command)
        print(f"{list(x.shape)} samples of {agent.name} on {agent.task.name}: {self.out}")
        return 0


@dataclass(frozen=True)
class List:
    """List tasks, targets, agents, presets and what else has a name."""

    def __call__(self, command: str) -> int:
        """Print one line per kind."""
        from dxmi_rl.benchmark.presets import list_presets
        from dxmi_rl.diffusion import KERNELS, SCHEDULES
        from dxmi_rl.targets import REWARDS, list_targets

        names = {
            "tasks": list_tasks(optional=True), "targets": list_targets(optional=True), "agents": list_agents(),
            "presets": list_presets(), "schedules": SCHEDULES.names(), "kernels": KERNELS.names(optional=True),
            "rewards": REWARDS.names(), "energies of data": ENERGIES.names(),
        }  # fmt: skip
        for kind, known in names.items():
            print(f"{kind}: {', '.join(known)}")
        return 0


def write_samples(agent: Agent[Any], x: Tensor, out: Path, command: str) -> None:
    """Write samples ``[n, *event_shape]`` in the format of the file's ending, atomically."""
    if out.suffix == ".safetensors":
        save_tensors(out, {"x": x}, {"command": command, "task": agent.task.name, "agent": agent.name})
        return

    def write(file: Path) -> None:
        with file.open("wb") as stream:
            if out.suffix == ".npy":
                np.save(stream, x.numpy())
            elif out.suffix == ".csv":
                np.savetxt(stream, x.flatten(1).numpy(), delimiter=",")
            else:
                from PIL import Image

                from dxmi_rl.envs.rendering import render_samples

                Image.fromarray(render_samples(agent.task.target, x[:2000], agent.mdp)).save(stream, format="png")

    write_atomically(out, write)


QUICK_TO_LOAD: dict[str, Callable[..., Any]] = {"train": Train, "evaluate": Evaluate, "sample": Sample, "list": List}
"""Commands without matplotlib and scikit-learn."""


def _all_commands() -> dict[str, Callable[..., Any]]:
    from dxmi_rl.benchmark import compare
    from dxmi_rl.benchmark.demo import Demo
    from dxmi_rl.benchmark.plan import Arguments
    from dxmi_rl.benchmark.report.command import Report
    from dxmi_rl.zoo.command import Zoo

    @dataclass(frozen=True)
    class Compare(Arguments):
        __doc__ = compare.HELP

        def __call__(self, command: str) -> int:
            return compare.compare(self, command)

    return {"demo": Demo, **QUICK_TO_LOAD, "compare": Compare, "report": Report, "zoo": Zoo}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit status 2 and one line for bad arguments, 130 after Ctrl-C."""
    words = sys.argv[1:] if argv is None else argv
    commands = QUICK_TO_LOAD if words and words[0] in QUICK_TO_LOAD else _all_commands()
    chosen = tyro.extras.subcommand_cli_from_dict(commands, args=argv, prog="dxmi-rl", description=HELP)
    try:
        check_given_once(words, ("--set", "--task-set"))
        return int(chosen(shlex.join(["dxmi-rl", *words])))
    except (ValueError, TypeError, ImportError, OSError, RuntimeError, MemoryError, OverflowError) as error:
        known = isinstance(error, DivergenceError) or re.search("alloc|memory", str(error))
        if isinstance(error, RuntimeError) and not known:
            raise  # nothing that a user asked for explains it
        print(f"error: {(str(error).strip() or type(error).__name__).splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
