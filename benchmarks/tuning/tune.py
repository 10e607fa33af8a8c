"""Search the settings of agents, with the same budget for each, on one held-out task.

    python benchmarks/tuning/tune.py --record benchmarks/results/tuning.json      every agent that trains
    python benchmarks/tuning/tune.py --agents ppo dxdp --trials 10                some, and the record stays

The task is gmm9 (fine-tune track, Learned backward kernel), which no published table uses. Every agent gets --trials
trials of --budget transitions on each of --seeds seeds; the first trial is the agent's defaults, the second the same
many small updates for all, the seventeenth these at 2.5 times the learning rates; the others are proposed by optuna's
tree-structured Parzen estimator from the spaces of benchmarks/tuning/spaces.py. What a trial costs in energy
evaluations and seconds is the agent's affair. A trial's score is the mean over seeds of ``kl_bound`` after
training (dxmi_rl.evaluation.quick_scores, the kernel of training), or of ``sliced_w2`` for agents without a density;
when a seed diverges, or its score is not finite, the trial is worse than any other.

Every training that is finished is kept in --folder, under a digest of settings, seed, sizes and code: the same command
goes on after a kill, and --trials may grow. A search that was stopped proposes the same trials as one that was not.

``--record FILE`` writes how the agents were searched, and their best settings, into the record,
benchmarks/results/tuning.json; the entries of other agents stay. Defaults are then changed by hand, in the agents'
Config: a test checks that they are the settings on record. An entry of the record has command, task, trials, budget,
seeds, score, default (of the defaults before the search) and best as below, scores (one per trial), and settings: those
of the best trial, empty where the defaults won.

Keys of ``--json FILE``:

    command      the command line
    task         what was searched on: name, and arguments of make_task
    trials       trials per agent
    budget       transitions of training, per trial and seed
    seeds        seeds per trial, counted from 0
    device       torch device
    seconds      wall-clock seconds of this call
    versions     of python, torch and optuna
    agents       one entry per agent
      .score     name of the score; lower is better
      .default   score of the defaults, or null when they diverged
      .best      the best score, or null when all trials diverged
      .settings  those of the best trial, empty for the defaults
      .seconds   training and scoring, over all trials, in whichever call
      .trials    one entry per trial: settings, score (or null), scores (one per seed), seconds
"""

from __future__ import annotations

import functools
import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.run_cache import DIVERGED, code_of, kept_result, run_file
from benchmarks.scripts import command_line
from benchmarks.tuning.spaces import given_trials, list_searched, search_space
from dxmi_rl.agents import AGENTS, make_agent
from dxmi_rl.benchmark.protocol import Row
from dxmi_rl.benchmark.sweep import worker_processes
from dxmi_rl.evaluation import quick_scores
from dxmi_rl.irl import DxMI
from dxmi_rl.tasks import make_task
from dxmi_rl.utils.checks import check_integer, require, resolve_device
from dxmi_rl.utils.progress import progress
from dxmi_rl.utils.storage import write_json
from dxmi_rl.utils.torch_tools import seeded

TASK = "gmm9"
TASK_SETTINGS: dict[str, Any] = {"backward": "learned"}
EVALUATION_SEED = 300_000
"""Seed s is scored on seed 300,000 + s: none that training or the benchmark use."""
HELP = """Search the settings of agents, with the same budget for each, on one held-out task (gmm9).

Finished trials are kept: after a kill or Ctrl-C the same command goes on."""


# Trials ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    agents: tuple[str, ...] = ()
    """Agents to search; by default all that learn from an energy they are given."""
    trials: int = 30
    """Trials per agent; the first is its defaults, the second many small updates."""
    budget: int = 150_000
    """Transitions of training, per trial and seed."""
    seeds: int = 2
    """Seeds per trial, counted from 0."""
    device: str = "cpu"
    """Torch device."""
    jobs: int = 1
    """Processes: trainings of different agents, and of different seeds, run side by side."""
    folder: Path = Path("runs/tune")
    """Where finished trainings are kept."""
    record: Path | None = None
    """Write the searches and their best settings into this file, such as benchmarks/results/tuning.json."""
    json: Path | None = None
    """Write everything to this file."""


def train_and_score(agent: str, settings: Mapping[str, Any], seed: int, budget: int, device: str) -> dict[str, Any]:
    """One seed of one trial: name and value of its score (None when it diverged), and seconds."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    scores: dict[str, float] = {}
    with seeded(seed):  # a learned kernel's weights are the task's, not the agent's
        task = make_task(TASK, device=device, **TASK_SETTINGS)
    built = make_agent(agent, task, seed=seed, **settings)
    name = "kl_bound" if built.has_density else "sliced_w2"
    try:
        built.learn(budget)
        scores = quick_scores(built, seed=EVALUATION_SEED + seed)
    except DIVERGED:
        pass
    value = scores.get(name, math.nan)
    return {
        "name": name, "value": value if math.isfinite(value) else None, "seconds": time.perf_counter() - started,
    }  # fmt: skip


CODE = code_of(train_and_score)
"""Digest of what a result depends on in this file."""


def kept_outcome(file: Path, *arguments: Any) -> dict[str, Any]:
    """``train_and_score(*arguments)``, or what the file has of it."""
    return kept_result(file, functools.partial(train_and_score, *arguments))


class Search:
    """The trials of one agent: those that are finished, and the next."""

    def __init__(self, agent: str, arguments: Arguments, optuna: Any) -> None:
        self.agent, self.arguments, self.optuna = agent, arguments, optuna
        self.asked: Any = None
        self.proposed: dict[str, Any] | None = None
        self.space = search_space(agent)
        self.given = {
            index: {key: space.encode(settings[key]) for key, space in self.space.items()}
            for index, settings in given_trials(agent).items()
        }
        self.distributions = {key: space.distribution(optuna) for key, space in self.space.items()}
        self.study = optuna.create_study()
        self.code = Row(agent, TASK, agent, arguments.budget, task_settings=TASK_SETTINGS).code
        while self.left and all(file.is_file() for file in self.files()):  # finished before: proposed again and noted
            self.note([json.loads(file.read_text(encoding="utf-8")) for file in self.files()])

    def files(self) -> list[Path]:
        """Where the outcomes of the next trial are, or will be, one per seed."""
        arguments = self.arguments
        parts = {
            "agent": self.agent, "settings": self.propose(), "task": [TASK, TASK_SETTINGS], "budget": arguments.budget,
            "device": torch.device(arguments.device).type, "package": self.code,
        }  # fmt: skip
        seeds = range(arguments.seeds)
        return [run_file(arguments.folder, parts | {"seed": seed}, code=CODE) for seed in seeds]

    @property
    def finished(self) -> list[Any]:
        """Finished trials in their order."""
        state = self.optuna.trial.TrialState.COMPLETE
        return list(self.study.get_trials(deepcopy=False, states=(state,)))

    @property
    def left(self) -> int:
        """Trials to do."""
        return max(0, self.arguments.trials - len(self.finished))

    def settings(self, index: int, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The agent's settings in trial ``index``: none of them in the first, the defaults'."""
        return {key: self.space[key].decode(value) for key, value in parameters.items()} if index else {}

    def propose(self) -> dict[str, Any]:
        """Settings of the next trial, the same whether the search was stopped before it or not."""
        index = len(self.finished)
        if self.proposed is None and index in self.given:
            self.proposed = self.settings(index, self.given[index])
        elif self.proposed is None:
            self.study.sampler = self.optuna.samplers.TPESampler(seed=index)
            self.asked = self.study.ask(self.distributions)
            self.proposed = self.settings(index, self.asked.params)
        return self.proposed

    def note(self, outcomes: Sequence[Mapping[str, Any]]) -> float:
        """Store the scores of the trial that was proposed last; returns the trial's."""
        values = [outcome["value"] for outcome in outcomes]
        score = math.inf if None in values else sum(values) / len(values)
        attributes = {
            "name": outcomes[0]["name"], "scores": values, "seconds": sum(outcome["seconds"] for outcome in outcomes),
        }  # fmt: skip
        if self.asked is not None:
            for key, value in attributes.items():
                self.asked.set_user_attr(key, value)
            self.study.tell(self.asked, score)
        else:
            given = self.optuna.trial.create_trial(
                params=self.given[len(self.finished)], distributions=self.distributions, value=score,
                user_attrs=attributes,
            )  # fmt: skip
            self.study.add_trial(given)
        self.asked = self.proposed = None
        return score

    def result(self) -> dict[str, Any]:
        """The agent's entry in the results; of equal scores the first is the best."""
        trials = [
            {
                "settings": self.settings(index, trial.params), "score": finite(trial.value),
                "scores": trial.user_attrs["scores"], "seconds": trial.user_attrs["seconds"],
            }
            for index, trial in enumerate(self.finished[: self.arguments.trials])
        ]  # fmt: skip
        best = min(trials, key=lambda trial: math.inf if trial["score"] is None else trial["score"])
        return {
            "score": self.finished[0].user_attrs["name"], "default": trials[0]["score"], "best": best["score"],
            "settings": best["settings"], "seconds": sum(trial["seconds"] for trial in trials), "trials": trials,
        }  # fmt: skip


def finite(value: float) -> float | None:
    """The number, or None for infinity, which JSON has not."""
    return value if math.isfinite(value) else None


class Inline:
    """Runs what is submitted at once, in this process."""

    def shutdown(self, wait: bool = True, *, kill_workers: bool = False) -> None:
        """Nothing, with loky's arguments."""

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        """A future that is done."""
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **options))
        return future


def carry_out_trials(searches: Sequence[Search], executor: Any) -> Iterator[tuple[Search, float]]:
    """Finish all searches, one trial of each at a time; yields (search, score) as trials end."""
    running: dict[Future[Any], Search] = {}
    outcomes: dict[str, list[Future[Any]]] = {}

    def start(search: Search) -> None:
        arguments, own = search.arguments, (search.agent, search.propose())
        futures = [
            executor.submit(kept_outcome, file, *own, seed, arguments.budget, arguments.device)
            for seed, file in enumerate(search.files())
        ]
        outcomes[search.agent] = futures
        running.update(dict.fromkeys(futures, search))

    for search in searches:
        if search.left:
            start(search)
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            search = running.pop(future)
            if all(other.done() for other in outcomes[search.agent]) and search not in running.values():
                score = search.note([other.result() for other in outcomes[search.agent]])
                if search.left:
                    start(search)
                yield search, score


# Results --------------------------------------------------------------------------------------------------------------


SIZES = ("task", "trials", "budget", "seeds")
"""What searches must agree in: settings must have had the same chance."""


def check_sizes(content: Mapping[str, Any], agents: Sequence[str], everything: Mapping[str, Any]) -> None:
    """Raises ValueError when other agents of the record were searched with another budget."""
    others = {name: entry for name, entry in content.items() if name not in agents}
    other = [name for name, entry in others.items() if any(entry[key] != everything[key] for key in SIZES)]
    if other:
        raise ValueError(f"the file has searches of other sizes, search these again, too: {', '.join(other)}.")


def recorded(content: Mapping[str, Any], everything: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the record with the results in it; raises as ``check_sizes``."""
    check_sizes(content, list(everything["agents"]), everything)
    entries = {
        name: {
            "command": everything["command"], **{key: everything[key] for key in SIZES},
            **{key: result[key] for key in ("score", "default", "best")},
            "scores": [trial["score"] for trial in result["trials"]], "settings": result["settings"],
        }
        for name, result in everything["agents"].items()
    }  # fmt: skip
    return dict(sorted({**content, **entries}.items()))


def print_results(everything: Mapping[str, Any], console: Console) -> None:
    """One line per agent."""
    title = f"{everything['trials']} trials of {everything['budget']:,} transitions on {everything['task']['name']}"
    table = Table("agent", "score", "default", "best", "diverged", "seconds", title=title)
    table.add_column("best settings", overflow="fold")
    for name, result in everything["agents"].items():
        show = ["-" if result[key] is None else f"{result[key]:.4g}" for key in ("default", "best")]
        diverged = sum(trial["score"] is None for trial in result["trials"])
        settings = "\n".join(f"{key} {value}" for key, value in result["settings"].items()) or "the defaults"
        table.add_row(name, result["score"], *show, str(diverged), f"{result['seconds']:.0f}", settings)
    console.print(everything["command"], markup=False)
    console.print(table)


# The command line -----------------------------------------------------------------------------------------------------


def check(arguments: Arguments) -> list[str]:
    """The agents to search; raises ValueError or TypeError for a command line that cannot be carried out."""
    for name in ("trials", "budget", "seeds", "jobs"):
        check_integer(name, getattr(arguments, name))
    resolve_device(arguments.device)
    for agent in arguments.agents:
        if not AGENTS[agent].trains or agent == DxMI.name:
            raise ValueError(f"agent {agent!r} has nothing to search: choose from {', '.join(list_searched())}.")
    return list(dict.fromkeys(arguments.agents)) or list_searched()


def read_record(file: Path) -> dict[str, Any]:
    """The present content of the record, if there is one: an entry per agent."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content


def search_all(arguments: Arguments, agents: Sequence[str], command: str, optuna: Any) -> dict[str, Any]:
    """Finish all trials: the content of ``--json``."""
    started = time.perf_counter()
    sizes = {"trials": arguments.trials, "budget": arguments.budget, "seeds": arguments.seeds}
    everything: dict[str, Any] = {
        "command": command, "task": {"name": TASK, **TASK_SETTINGS}, **sizes, "device": arguments.device,
    }  # fmt: skip
    if arguments.record is not None:  # an error now rather than after hours
        check_sizes(read_record(arguments.record), agents, everything)
    searches = [Search(agent, arguments, optuna) for agent in agents]
    total = arguments.trials * len(searches)
    done = total - sum(search.left for search in searches)
    print(f"{total} trials, {done} finished before, {total - done} to do", flush=True)
    executor: Any = Inline()
    if arguments.jobs > 1:
        executor = worker_processes(arguments.jobs)
    with progress("trials", total, completed=done) as advance:
        try:
            for search, score in carry_out_trials(searches, executor):
                done += 1
                number = len(search.finished)
                print(f"[{done}/{total}] {search.agent} trial {number}: {score:.4g}", flush=True)
                advance(done)
        finally:
            executor.shutdown(kill_workers=True)
    return everything | {
        "seconds": time.perf_counter() - started,
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "optuna": optuna.__version__,
        },
        "agents": {search.agent: search.result() for search in searches},
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and search. Exit status: 1 when a process died, 2 for bad arguments, 130 after Ctrl-C."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=HELP)
    command = command_line(__file__, argv)
    try:
        agents = check(arguments)
        optuna = require("optuna", "tune")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        everything = search_all(arguments, agents, command, optuna)
        if arguments.record is not None:
            write_json(arguments.record, recorded(read_record(arguments.record), everything))
        if arguments.json is not None:
            write_json(arguments.json, everything)
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenExecutor as error:
        print(f"error: {error}; the same command goes on from here.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here.", file=sys.stderr)
        return 130
    print_results(everything, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
