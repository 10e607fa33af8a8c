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
from typing import TYPE_CHECKING, Annotated, Any

from dxmi_rl.utils.checks import DivergenceError
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.settings import parsed_settings

if TYPE_CHECKING:
    from torch import Tensor

    from dxmi_rl.agents import Agent

import tyro

HELP = """Few-step denoising as a reinforcement-learning benchmark.

Every command has --help. Shell completion: dxmi-rl --tyro-write-completion bash FILE (also zsh, tcsh)."""
Settings = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]
"""NAME=VALUE words of an option, which may be given more than once."""
SAMPLE_FORMATS = (".npy", ".csv", ".safetensors", ".png")


@dataclass(frozen=True)
class Train:
    """Train an agent on a task; log and checkpoint go to runs/<task>__<agent>__<seed>__<time>/."""

    agent: Annotated[str, tyro.conf.Positional]
    """Name of the agent (dxmi-rl list), or module:Class or file.py:Class of your own."""
    task: str = "8gaussians"
    """Name of the task."""
    budget: float = 1_000_000
    """How much to train for."""
    unit: str = "timesteps"
    """What the budget counts: timesteps (environment transitions), energy_evals or seconds."""
    seed: int = 0
    """The one seed."""
    device: str = "cpu"
    """Torch device."""
    config: str | None = None
    """plain: the agent's settings from before the search, in place of its defaults."""
    set: Settings = ()
    """Settings of the agent, such as policy.width=128 n_trajectories=512."""
    task_set: Settings = ()
    """Settings of the task, such as horizon=10 backward=learned energy=fixed."""
    points: int = 20
    """Points of the learning curve."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    tensorboard: bool = True
    """Write TensorBoard logs."""
    track: bool = False
    """Track with Weights & Biases."""

    def __call__(self, command: str) -> int:
        """Train; the checkpoint is written during training, too."""
        from dxmi_rl.benchmark.logs import RunLogger
        from dxmi_rl.benchmark.presets import make_row
        from dxmi_rl.benchmark.protocol import check_rows
        from dxmi_rl.evaluation import quick_scores
        from dxmi_rl.tasks import make_task
        from dxmi_rl.utils.checks import check_integer, check_real
        from dxmi_rl.utils.torch_tools import seeded

        if self.agent.endswith((".safetensors", ".zip")):
            raise ValueError(
                f"agent {self.agent!r} is trained already: dxmi-rl evaluate scores it. To train on, load it in Python: "
                "agent = dxmi_rl.load_agent(file), then agent.learn(n, reset_num_timesteps=False)."
            )
        if self.task.rpartition(":")[0].endswith(".py"):
            raise ValueError(
                f"task must be named for training on the command line, got {self.task!r}: train on objects of yours in "
                "Python (docs/your_own_energy.md), and score the checkpoint with dxmi-rl evaluate --task file.py:NAME."
            )
        check_integer("points", self.points)
        check_real("budget", self.budget)
        row = make_row(
            self.task, self.agent, self.budget, unit=self.unit, config=self.config, folder=str(Path.cwd()),
            task_settings=parsed_settings("task_set", chain(*self.task_set)),
            agent_settings=parsed_settings("set", chain(*self.set)),
        )  # fmt: skip
        check_rows([row])
        with seeded(self.seed):
            task = make_task(row.task, device=self.device, **row.task_settings)
        agent = row.build(task, self.seed)
        options = {"command": command, **row.plain()}
        with RunLogger(self.runs, agent, settings=options, tensorboard=self.tensorboard, track=self.track) as logger:
            noted = 0

            def note(agent: Agent[Any]) -> None:
                nonlocal noted
                if getattr(agent.costs, self.unit) >= noted * row.budget / self.points:
                    noted += 1
                    logger.log(agent, quick_scores(agent, seed=500_000 + noted))

            note(agent)
            if agent.trains:
                file = logger.folder / "checkpoint.safetensors"
                amount: dict[str, Any] = {self.unit.replace("timesteps", "total_timesteps"): row.budget}
                agent.learn(**amount, callback=note, progress_bar=True, checkpoint=file)
                print(f"checkpoint: {file}")
            scores = quick_scores(agent)
        print("  ".join(f"{key} {value:.4g}" for key, value in scores.items()))
        print(f"log: {logger.folder}")
        return 0


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
        from dxmi_rl.agents import AGENTS, load_agent, make_agent
        from dxmi_rl.benchmark.own_agents import OwnAgent, is_own_agent
        from dxmi_rl.tasks import make_task

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
    json: Path | None = None
    """Also write the scores to this file."""

    def __call__(self, command: str) -> int:
        """Print the scores as a table."""
        from rich.console import Console
        from rich.table import Table

        from dxmi_rl.benchmark.tables import LEGEND, MARK, unreliable
        from dxmi_rl.evaluation import evaluate
        from dxmi_rl.evaluation.log_weights import UnreliableScoresWarning
        from dxmi_rl.utils.storage import write_json

        if self.json is not None and self.json.is_dir():
            raise ValueError(f"json must name a file to write, got {str(self.json)!r}.")
        agent = self.load()
        with warnings.catch_warnings(action="ignore", category=UnreliableScoresWarning):  # the table says so itself
            scores = evaluate(
                agent, seed=self.seed, samples=self.samples, draws=self.draws, trajectories=self.trajectories,
                fit=self.fit, smc=self.smc,
            )  # fmt: skip
        marked = "log_z" in scores and unreliable(scores["ess"])
        table = Table("score", "value", "exact samples (floor)", title=f"{agent.name} on {agent.task.name}")
        for key, value in scores.items():
            if not key.endswith("_floor"):
                floor = scores.get(f"{key}_floor")
                mark = MARK if marked and key == "log_z" else ""
                table.add_row(key, f"{value:.4g}{mark}", "" if floor is None else f"{floor:.4g}")
        Console().print(table)
        if marked:
            print(LEGEND)
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
        from dxmi_rl.agents import list_agents
        from dxmi_rl.benchmark.presets import list_presets
        from dxmi_rl.diffusion import KERNELS, SCHEDULES
        from dxmi_rl.targets import REWARDS, list_targets
        from dxmi_rl.tasks import ENERGIES, list_tasks

        names = {
            "tasks": list_tasks(optional=True), "targets": list_targets(optional=True), "agents": list_agents(),
            "presets": list_presets(), "schedules": SCHEDULES.names(), "kernels": KERNELS.names(optional=True),
            "rewards": REWARDS.names(), "energies of data": ENERGIES.names(),
        }  # fmt: skip
        for kind, known in names.items():
            print(f"{kind}: {', '.join(known)}")
        return 0


def named_task(text: str) -> Any:
    """What ``text`` names: a task's name stays as it is, ``file.py:NAME`` is the object of that name in the file.

    Raises FileNotFoundError, UnknownNameError for a name that the file has not, and what its code raises.
    """
    source, _, name = text.rpartition(":")
    if not source.endswith(".py"):
        return text
    from dxmi_rl.benchmark.own_agents import load_file

    module = load_file(Path(source))
    if not hasattr(module, name):
        raise UnknownNameError(f"object of {source}", name, [key for key in vars(module) if not key.startswith("_")])
    return getattr(module, name)


def write_samples(agent: Agent[Any], x: Tensor, out: Path, command: str) -> None:
    """Write samples ``[n, *event_shape]`` in the format of the file's ending, atomically."""
    import numpy as np

    from dxmi_rl.utils.storage import save_tensors, write_atomically

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit status 2 and one line for bad arguments, 130 after Ctrl-C."""
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

    commands: dict[str, Callable[..., Any]] = {
        "demo": Demo, "train": Train, "evaluate": Evaluate, "sample": Sample, "list": List, "compare": Compare,
        "report": Report, "zoo": Zoo}  # fmt: skip
    chosen = tyro.extras.subcommand_cli_from_dict(commands, args=argv, prog="dxmi-rl", description=HELP)
    command = shlex.join(["dxmi-rl", *(sys.argv[1:] if argv is None else argv)])
    try:
        return int(chosen(command))
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
