"""DxMI in the plane: an energy and a five-step sampler, measured exactly, against temperature, loss, agent and start.

    python benchmarks/game/dxmi_2d.py                             everything: hours, may be stopped and continued
    python benchmarks/game/dxmi_2d.py --experiments starts --seeds 0 1
    python benchmarks/game/dxmi_2d.py --experiments tau losses --budget 200000

Experiments, all at T = 5 and with the recipe "plane" of dxmi_rl/irl/recipes but for what they vary; each has
transitions of its own (``BUDGETS``), or all have ``--budget``:

    starts      8 Gaussians from the paper's good and weak noise schedules and from scratch
    tau         tau1 = tau2 in 0, 0.01, 0.03, 0.1, 0.3, from the good and the weak start and from scratch
    losses      contrastive, NCE, N2CE with several gamma or M, and without replay
    agents      other agents inside, at two policy rates, with the same networks, batches and energy steps
    energies    the same network without a sampler (Langevin chains, score matching, NCE) and DxMI at tau = 0
    targets     checkerboard, 2spirals, rings, moons and gmm25, the recipe "plane-fine" with a long average
    weights     8 Gaussians of unequal weights
    guidance    value guidance of the trained game, by its weight lambda
    race        seconds to sliced W2 < 0.1: the authors' settings against others of the same algorithm and networks;
                with ``--authors FOLDER``, a clone of their repository, also their own trainer

Scores: sliced W2 of 10,000 samples to data and AUC of data against uniform noise over the plotting range, as means of
the last quarter of training, for the averaged players and for the last iterates; what the averaged energy is worth at
the end (dxmi_rl.irl.energy_quality); what the game's equilibrium predicts (dxmi_rl.irl.equilibrium). Runs are kept in
``--folder``, one file each. ``--pictures FOLDER`` draws games, animations and scores against tau, lambda and seconds.

Keys of ``--json FILE``:

    command            the command line
    machine, versions    what it ran on
    floors             {target: {sliced_w2, auc}} of exact samples and, where there is one, of the exact energy
    rows               per experiment, label, target, start and tau1: seeds; statistics {score: {iqm, median, ...}},
                       predicted (by the game's theory), costs (means), reached (per seed, the costs at sliced W2 < 0.1
                       held for three points, or null)
    runs               every run: play, scores, curve, reached, costs
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

from benchmarks.game.play import Play, Scorer, kept_files, make_task_of, predicted, run
from benchmarks.game.released import digest, released_trainer
from benchmarks.run_cache import run_all
from benchmarks.scripts import command_line, header
from dxmi_rl.agents import AGENTS
from dxmi_rl.benchmark.protocol import check_seeds
from dxmi_rl.benchmark.results import score_statistics
from dxmi_rl.benchmark.tables import Table, compact, number, print_tables, statistics_text
from dxmi_rl.evaluation import exact_floors
from dxmi_rl.irl import DxMI, recipe
from dxmi_rl.irl.recipe_files import FINE_TASKS
from dxmi_rl.targets import make_target
from dxmi_rl.utils.checks import check_integer, resolve_device
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import load_tensors, write_json

TAUS = (0.0, 0.01, 0.03, 0.1, 0.3)
USUAL_TAU = 0.1
INSIDE = ("ppo", "reinforce", "sft-pg", "path-wise", "sb3-ppo")
PLAIN_RATE, SLOW_RATE = 1e-3, 3e-4
"""Policy rates of other agents inside: a plain one, and one that is slower than the energy's."""
BUDGETS = {
    "starts": 3_000_000, "tau": 600_000, "losses": 600_000, "agents": 600_000, "energies": 600_000,
    "targets": 4_000_000, "weights": 600_000, "guidance": 600_000, "race": 3_000_000,
}  # fmt: skip
"""Transitions of a game."""
RACE_BUDGETS = {"good": 800_000, "weak": 1_200_000}
"""Of a game of ours in the race, by its start: what its rates fall to zero over."""
RACE_SETTINGS = {"ema": 0.98}
"""Averages over some fifty iterations: those of the recipe are for longer games."""
LONG_SETTINGS = {"ema": 0.998}
"""For games of three thousand iterations."""
LOSSES: dict[str, dict[str, Any]] = {
    "contrastive, gamma 0.25": {"gamma": 0.25},
    "contrastive, gamma 0.5": {},
    "contrastive, gamma 1": {"gamma": 1.0},
    "contrastive, gamma 0.5, no replay": {"replay": 0},
    "nce": {"loss": "nce"},
    "n2ce, M 10": {"loss": "n2ce", "noise_ratio": 10.0},
    "n2ce, M 100": {"loss": "n2ce"},
}
UNEQUAL = [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]
GUIDANCE = (0.1, 0.3, 1.0, 3.0)
STARTS = ("good", "weak", "scratch")
FILM_POINTS, RACE_POINTS = 60, 30
AUTHORS: dict[str, Any] = {
    "settings": {
        "agent": "dxdp-paper", "gamma": 1.0, "energy.fourier": 0, "energy_steps": 1, "anneal": False, "ema": 0.0,
        "replay": 0,
    },
    "agent_settings": {"value_steps": 5},
    "task_options": {"backward": "brownian"},
}  # fmt: skip
"""The settings of the authors' release, in which the averages are the last iterates, for this project's networks: the
policy is a correction of the base sampler. Its T regressions of V are five steps of ours."""
AUTHORS_RATES = {
    "good": {"policy.learning_rate": 3e-5, "policy.sigma_learning_rate": 1e-3},
    "weak": {"policy.learning_rate": 1e-3, "policy.sigma_learning_rate": 1e-2},
}
ENERGY_ITERATIONS = 3000
SAMPLER = {
    "sliced_w2_late": "sliced W2 ↓",
    "sliced_w2_last_late": "sliced W2 ↓,\nlast iterate",
    "auc_late": "AUC ↑",
    "auc_last_late": "AUC ↑,\nlast iterate",
    "predicted_bias": "bias in W2,\ntheory",
}
ENERGY = {
    "energy_correlation": "correlation ↑",
    "energy_slope": "slope",
    "predicted_slope": "slope,\ntheory",
    "energy_fisher": "Fisher ↓",
    "energy_nll": "NLL ↓",
    "energy_mode_tv": "mode TV ↓",
    "energy_sliced_w2": "W2 of\ndraws ↓",
    "chains_sliced_w2": "W2 of\nchains ↓",
}
"""Scores of the two tables of an experiment, with their headers."""


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    experiments: tuple[str, ...] = tuple(BUDGETS)
    """Which experiments."""
    starts: tuple[str, ...] = ()
    """Only games on 8 Gaussians from these starts (good, weak, scratch), and those from others; all by default."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of every run."""
    budget: int | None = None
    """Transitions of every game; by default the experiment's own."""
    jobs: int = 2
    """Runs at a time, one thread each."""
    device: str = "cpu"
    """Torch device."""
    folder: Path = Path("runs/dxmi_2d")
    """Where finished runs are kept."""
    json: Path | None = None
    """File for the results."""
    pictures: Path | None = None
    """Folder for pictures."""
    authors: Path | None = None
    """Clone of https://github.com/swyoon/Diffusion-by-MaxEntIRL, whose trainer then enters the race."""


def plays(experiment: str, seeds: Sequence[int], budget: int | None = None, authors: Path | None = None) -> list[Play]:
    """The runs of an experiment; the race's with the trainer of ``authors`` where given. Raises UnknownNameError."""
    rows: list[dict[str, Any]] = []
    if experiment not in BUDGETS:
        raise UnknownNameError("experiment", experiment, list(BUDGETS))
    budget = BUDGETS[experiment] if budget is None else budget
    usual = {"target": "8gaussians", "start": "good", "tau1": USUAL_TAU, "budget": budget}
    if experiment == "starts":
        rows = [usual | {"label": "dxmi", "start": start, "points": FILM_POINTS} for start in STARTS]
        return _all_seeds(experiment, rows, seeds, film=True)
    elif experiment == "tau":
        rows = [usual | {"label": f"tau1 = {tau:g}", "start": start, "tau1": tau} for start in STARTS for tau in TAUS]
    elif experiment == "losses":
        rows = [usual | {"label": label, "settings": settings} for label, settings in LOSSES.items()]
    elif experiment == "agents":
        rows = [usual | {"label": "dxdp"}]
        rows += [usual | _inside(name, rate) for name in INSIDE for rate in (PLAIN_RATE, SLOW_RATE)]
    elif experiment == "energies":
        rows = [usual | {"label": f"dxmi, tau1 = {tau:g}", "tau1": tau} for tau in (USUAL_TAU, 0.0)]
        for method in ("short-run", "persistent", "score-matching", "gaussian-noise"):
            rows.append(usual | {"label": method, "method": method, "start": "-", "budget": ENERGY_ITERATIONS})
    elif experiment == "targets":
        fine = recipe("plane-fine")
        changes = {
            "settings": LONG_SETTINGS | {"energy.fourier": fine.energy.fourier},
            "agent_settings": {"policy.fourier": fine.agent_settings.policy.fourier},
        }
        rows = [usual | changes | {"label": "dxmi", "target": target, "start": "task"} for target in FINE_TASKS]
        return _all_seeds(experiment, rows, seeds, film=True)
    elif experiment == "weights":
        rows = [usual | {"label": "dxmi, unequal weights", "target_options": {"weights": UNEQUAL}}]
    elif experiment == "guidance":
        rows = [usual | {"label": "dxmi", "guidance": GUIDANCE}]
    elif experiment == "race":
        for start, rates in AUTHORS_RATES.items():
            theirs = AUTHORS | {"agent_settings": AUTHORS["agent_settings"] | rates}
            both = usual | {"start": start, "points": RACE_POINTS}
            ours = {"label": "dxmi", "budget": min(budget, RACE_BUDGETS[start]), "settings": RACE_SETTINGS}
            rows += [both | ours, both | theirs | {"label": "authors' settings"}]
            if authors is not None:
                settings = {"repository": str(authors), "digest": digest(authors)}
                released = {"settings": settings, "agent_settings": rates}
                rows.append(both | released | {"label": "authors' trainer", "method": "released"})
    return _all_seeds(experiment, rows, seeds)


def _inside(agent: str, rate: float) -> dict[str, Any]:
    """Another agent in DxDP's game: the energy's settings of its recipe, networks of the same size, batches."""
    theirs = recipe("plane")
    settings: dict[str, Any] = {key: getattr(theirs, key) for key in ("energy_steps", "gamma", "replay")}
    inside = theirs.agent_settings
    own: dict[str, Any] = {"n_trajectories": inside.n_trajectories}
    if agent.startswith("sb3-"):
        own |= {"width": inside.policy.width, "learning_rate": rate}
    else:
        own |= {"policy.width": inside.policy.width, "policy.fourier": inside.policy.fourier}
        own["policy.learning_rate"] = rate
        own |= {} if agent == "sft-pg" else {"policy.sigma_learning_rate": 3 * rate}  # whose sigma is fixed
        own |= {"value.width": inside.value.width} if hasattr(AGENTS[agent].Config(), "value") else {}
    return {"label": f"{agent}, rate {rate:g}", "settings": settings | {"agent": agent}, "agent_settings": own}


def _all_seeds(experiment: str, rows: Sequence[dict[str, Any]], seeds: Sequence[int], film: bool = False) -> list[Play]:
    """Every row with every seed; with ``film`` the first seed's games are kept for pictures."""
    kept = {"keep": True, "points": FILM_POINTS}
    return [
        Play(experiment=experiment, seed=seed, **(row | (kept if film and seed == seeds[0] else {})))
        for row in rows
        for seed in seeds
    ]


def play_all(chosen: Sequence[Play], arguments: Arguments) -> list[dict[str, Any]]:
    """Play what is not there yet, ``jobs`` at a time; the results, in order."""
    files = [play.file(arguments.folder) for play in chosen]
    distinct: dict[Path, Play] = {}  # experiments share games
    for file, play in zip(files, chosen, strict=True):
        distinct.setdefault(file, play)
    own = [(play, arguments.folder, arguments.device) for play in distinct.values()]
    results = dict(zip(distinct, run_all(run, own, arguments.jobs, "games"), strict=True))
    return [results[file] | {"play": dataclasses.asdict(play)} for file, play in zip(files, chosen, strict=True)]


def summarise(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per setting: statistics over seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        play = result["play"]
        target = play["target"] + (f" {play['target_options']}" if play["target_options"] else "")
        key = (play["experiment"], play["label"], target, play["start"], play["tau1"])
        groups.setdefault(key, []).append(result)
    rows = []
    for (experiment, label, target, start, tau1), own in groups.items():
        keys = [key for key in own[0]["scores"] if all(key in result["scores"] for result in own)]
        rows.append(
            {
                "experiment": experiment, "label": label, "target": target, "start": start, "tau1": tau1,
                "made_of": (own[0]["play"]["target"], own[0]["play"]["target_options"]),
                "seeds": [result["play"]["seed"] for result in own],
                "statistics": {key: score_statistics([result["scores"][key] for result in own]) for key in keys},
                "costs": {
                    key: sum(result["costs"][key] for result in own) / len(own)
                    for key in ("seconds", "energy_evals", "energy_grad_evals")
                },
                "reached": [result["reached"] for result in own],
                "predicted": predicted(Play(**own[0]["play"])),
            }
        )  # fmt: skip
    return rows


def floors(target: str, options: dict[str, Any]) -> dict[str, float]:
    """Sliced W2 of exact samples to exact samples (mean of 20 pairs), and the exact energy's AUC where there is one."""
    built = make_target(target, **options)
    found = {"sliced_w2": exact_floors(built)["sliced_w2"]}
    return found | ({"auc": Scorer(built, 0).auc(built.energy)} if built.has_energy else {})


def tables(rows: Sequence[dict[str, Any]], found: dict[str, dict[str, float]]) -> list[Table]:
    """Two tables per experiment: of the samplers, with their costs, and of the energies."""
    made = []
    for experiment in dict.fromkeys(row["experiment"] for row in rows):
        own = [row for row in rows if row["experiment"] == experiment]
        guided = {key: key.replace("_", " ") for key in own[0]["statistics"] if key.startswith("guided_")}
        for part, columns in ((f"{experiment}: samplers", SAMPLER | guided), (f"{experiment}: energies", ENERGY)):
            keys = [key for key in columns if any(key in row["statistics"] or key in row["predicted"] for row in own)]
            costs = ["W2 < 0.1\nheld after", "train\nseconds", "energy\nevals"] if columns is not ENERGY else []
            header = ["setting", *(columns[key] for key in keys), *costs]
            body = [[_name(row), *(_cell(row, key) for key in keys), *_costs(row)] for row in own]
            body = [line[: len(header)] for line in body]
            caption = "Interquartile means over seeds with 95 % intervals. " + " ".join(map(_floor, found.items()))
            made.append(Table(part, header, body, len(keys), caption))
    return made


def _name(row: dict[str, Any]) -> str:
    return f"{row['label']}\n{row['target']}" + ("" if row["start"] == "-" else f", {row['start']}")


def _costs(row: dict[str, Any]) -> list[str]:
    when = sorted(entry["seconds"] for entry in row["reached"] if entry)
    typical = f"\n{number(when[len(when) // 2])} s" if when else ""
    held = f"{len(when)} of {len(row['seeds'])}{typical}"
    return [held, number(row["costs"]["seconds"]), compact(row["costs"]["energy_evals"])]


def _floor(entry: tuple[str, dict[str, float]]) -> str:
    return (
        f"Exact samples of {entry[0]}: " + ", ".join(f"{key} {number(value)}" for key, value in entry[1].items()) + "."
    )


def _cell(row: dict[str, Any], key: str) -> str:
    if key in row["predicted"]:
        return number(row["predicted"][key])
    return statistics_text(row["statistics"].get(key))


def draw_all(results: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], arguments: Arguments) -> None:
    """Pictures of what was run, into ``arguments.pictures``."""
    from benchmarks.game import pictures

    assert arguments.pictures is not None
    for result in results:
        play = Play(**result["play"])
        if play.keep:
            name = f"{play.target}-{play.start}" if play.experiment == "starts" else play.target
            checkpoint, film = kept_files(play.file(arguments.folder))
            title = f"{name}: DxMI, seed {play.seed}, {play.budget:,} transitions"
            game = DxMI.load(checkpoint, task=make_task_of(play, arguments.device), device=arguments.device)
            pictures.draw_game(game, arguments.pictures / f"game_{name}.png", title)
            frames, _ = load_tensors(film)
            square = game.task.target.plot_range
            pictures.animate(frames, arguments.pictures / f"game_{name}.gif", square, game.mdp.tau, title)
    by_experiment = {name: [row for row in rows if row["experiment"] == name] for name in arguments.experiments}
    if by_experiment.get("tau"):
        pictures.draw_against_tau(by_experiment["tau"], arguments.pictures / "tau.png")
    if by_experiment.get("guidance"):
        pictures.draw_guidance(by_experiment["guidance"][0], GUIDANCE, arguments.pictures / "guidance.png")
    if by_experiment.get("race"):
        raced = [result for result in results if result["play"]["experiment"] == "race"]
        pictures.draw_race(raced, arguments.pictures / "race.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Play, print, write; 2 for arguments that are not allowed."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        if arguments.budget is not None:
            check_integer("budget", arguments.budget)
        check_integer("jobs", arguments.jobs)
        check_seeds(arguments.seeds)
        resolve_device(arguments.device)
        for start in arguments.starts:
            if start not in STARTS:
                raise UnknownNameError("start", start, list(STARTS))
        if arguments.authors is not None:
            released_trainer(arguments.authors)
        given = (arguments.seeds, arguments.budget, arguments.authors)
        chosen = [play for name in arguments.experiments for play in plays(name, *given)]
        left_out = set(STARTS) - set(arguments.starts or STARTS)
        chosen = [play for play in chosen if play.start not in left_out]
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results = play_all(chosen, arguments)
    rows = summarise(results)
    made_of = {row["target"]: row.pop("made_of") for row in rows}
    found = {name: floors(*parts) for name, parts in made_of.items()}
    print_tables(tables(rows, found))
    if arguments.pictures is not None:
        draw_all(results, rows, arguments)
    if arguments.json is not None:
        content = header(command_line(__file__, argv), arguments.device)
        write_json(arguments.json, content | {"floors": found, "rows": rows, "runs": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
