"""benchmarks/compare/compare.py: one command that can be killed, started again and believed."""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sweep_cases import BATCH, ROOT, RUNS, TINY, in_this_process, read, results, state, tiny_main, write_tiny

from dxmi_rl import make_agent
from dxmi_rl.agents import AGENTS, VGS, AdjointSampling, DxDPConfig, DxDPPaperConfig
from dxmi_rl.benchmark import compare, measure, pictures, plan, presets, protocol, sweep, tables
from dxmi_rl.benchmark import results as results_module
from dxmi_rl.benchmark.attempt import Outcome
from dxmi_rl.benchmark.plan import Arguments, all_rows, make_plan, select
from dxmi_rl.benchmark.presets import load_preset
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.settings import changed


@pytest.mark.slow
def test_results_say_what_ran(undisturbed: Path) -> None:
    everything = read(undisturbed / "results.json")
    assert read(undisturbed.parents[1] / "elsewhere" / "copy.json") == everything
    assert everything["command"].endswith("compare.py --preset tiny.toml --jobs 1 --json elsewhere/copy.json")
    assert len(everything["runs"]) == RUNS and not everything["failed"]
    for run in everything["runs"]:
        trained = run["agent"] != "base"
        assert run["versions"]["torch"] == torch.__version__
        assert run["costs"]["timesteps"] == (1_600 if trained else 0)
        assert len(run["curve"]) == (5 if trained else 1)  # one before training
        assert ("kl_bound_late" in run["scores"]) == trained
        assert bool(run["unaveraged"]) == (run["agent"] == "dxmi")
        assert len(run["sigma_ratios"]) == 5
        assert load_file(undisturbed / "results" / f"{run['key']}.safetensors")["x"].shape == (100, 2)
    dxmi = next(run for run in everything["runs"] if run["agent"] == "dxmi")
    late = [point["auc"] for point in dxmi["curve"] if point["timesteps"] > 1_200]
    assert dxmi["scores"]["auc_late"] == pytest.approx(np.mean(late))
    assert [point["timesteps"] for point in dxmi["curve"]][::4] == [0, 1_600]


@pytest.mark.slow
def test_summary_is_of_the_runs(undisturbed: Path) -> None:
    everything = read(undisturbed / "results.json")
    for entry in everything["summary"]:
        values = [
            run["scores"]["sliced_w2"]
            for run in everything["runs"]
            if (run["task"], run["label"]) == (entry["task"], entry["label"])
        ]
        scores = entry["scores"]["sliced_w2"]
        assert entry["runs"] == len(values) == 2
        assert scores["iqm"] == pytest.approx(np.mean(values))
        assert scores["low"] <= scores["iqm"] <= scores["high"] and scores["floor"] > 0


@pytest.mark.slow
def test_every_key_of_the_docstring_exists(undisturbed: Path) -> None:
    everything = read(undisturbed / "results.json")
    table = compare.__doc__.split("Keys of", 1)[1].split(":\n", 1)[1]
    names = [re.match(r" {4,6}((?:[\w.]+, )*[\w.]+)  ", line) for line in table.splitlines()]
    keys = [key for match in names if match for key in match[1].split(", ")]
    top = {key for key in keys if "." not in key}
    assert top == set(everything)
    for part in ("tasks", "summary", "runs"):
        documented = {key.split(".")[1] for key in keys if key.startswith(f"{part}.")}
        entries = everything[part].values() if part == "tasks" else everything[part]
        assert all(documented == set(entry) for entry in entries), part
    failure = results_module.failure(Outcome(protocol.Run(a_row(), 0), "broken"))
    assert {key.split(".")[1] for key in keys if key.startswith("failed.")} == set(failure)


@pytest.mark.slow
def test_report_has_a_table_and_pictures_per_task(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = (undisturbed / "report.md").read_text(encoding="utf-8")
    for task, agents in {"8gaussians": ["base", "dxdp", "ppo"], "8gaussians-data": ["dxmi"]}.items():
        section = report.split(f"## {task}\n", 1)[1].split("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) == 1
        assert [line.split("|")[1].strip() for line in rows[2:]] == [*agents, "exact sampler"]
        for kind in ("samples", "curves"):
            assert (undisturbed / f"{kind}_{task}.png").read_bytes().startswith(b"\x89PNG")
    assert "2 seeds" in report and "<canvas" in (undisturbed / "report.html").read_text(encoding="utf-8")
    assert "\\toprule" in (undisturbed / "report.tex").read_text(encoding="utf-8")
    curves = (undisturbed / "curves.csv").read_text(encoding="utf-8").splitlines()
    assert len(curves) == 1 + 2 * (1 + 3 * 5), "one point of the base sampler, five of the others"
    before = state(undisturbed)
    assert tiny_main("--jobs", "1", "--name", "tiny") == 0  # nothing left to do, and the table again
    printed = capsys.readouterr().out
    assert "8 finished before, 0 to do" in printed and "(exact samples 0" in printed and "…" not in printed
    assert state(undisturbed) == before


FLAKY = """
from pathlib import Path
from dxmi_rl.agents import PPO

class Flaky(PPO):
    name = "flaky"

    def iterate(self, on_final=None):
        if self.seed == 1 and Path("fire").exists():
            raise RuntimeError("the disk is on fire\\nand so is the house")
        return super().iterate(on_final)
"""


@pytest.mark.slow
def test_failed_runs_are_recorded_and_tried_again(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flaky.py").write_text(FLAKY, encoding="utf-8")
    (tmp_path / "fire").touch()
    selection = ("--jobs", "1", "--agent", "flaky:Flaky", "--agents", "flaky", "--tasks", "8gaussians")
    assert tiny_main(*selection) == 1
    folder = tmp_path / "runs" / "tiny"
    everything = read(folder / "results.json")
    failure = everything["failed"][0]
    assert (failure["label"], failure["seed"]) == ("flaky", 1)
    assert failure["error"] == "RuntimeError: the disk is on fire"
    assert len(everything["runs"]) == 1
    trace = folder / "results" / f"{failure['key']}.failed.txt"
    assert trace.read_text(encoding="utf-8").count("\nRuntimeError: the disk is on fire\nand so is the house") == 2
    assert "FAILED 8gaussians  flaky  seed 1: RuntimeError: the disk is on fire" in capsys.readouterr().out
    before = state(folder)
    (tmp_path / "fire").unlink()
    assert tiny_main(*selection) == 0
    assert not trace.exists() and len(read(folder / "results.json")["runs"]) == 2
    assert before.items() <= state(folder).items()


@pytest.mark.slow
def test_commands_of_rows_and_runs_make_them_again(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(undisturbed.parents[1])
    before = read(undisturbed / "results.json")
    for entry, number in ((before["summary"][1], 2), (before["runs"][-1], 1)):
        words = shlex.split(entry["command"])
        assert words[:2] == ["python", "benchmarks/compare/compare.py"]
        with in_this_process():
            assert compare.main([*words[2:], "--jobs", "1"]) == 0
        assert f"{number} runs in runs/tiny-again: 0 finished before, {number} to do" in capsys.readouterr().out
    again, first = results(undisturbed.with_name("tiny-again")), results(undisturbed)
    assert len(again) == 3 and again.items() <= first.items()


@pytest.mark.slow
def test_a_selection_leaves_the_whole_preset_in_the_report(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(undisturbed.parents[1])
    before = read(undisturbed / "results.json")
    assert tiny_main("--name", "tiny", "--agents", "ppo", "--seeds", "0") == 0
    assert "1 runs in runs/tiny: 1 finished before, 0 to do" in capsys.readouterr().out
    after = read(undisturbed / "results.json")
    assert all(after[part] == before[part] for part in ("tasks", "summary", "runs", "seeds"))


@pytest.mark.slow
def test_divergence_is_a_failed_run(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wild = BATCH | {"policy": {"learning_rate": 1e30}, "anneal": False}
    group = {"tasks": ["8gaussians"], "agents": ["dxdp"], "label": "wild", "budget": 1_600, "agent_settings": wild}
    content = TINY | {"group": [group, TINY["group"][0]]}
    assert tiny_main("--jobs", "1", "--seeds", "0", content=content) == 1
    failure = read(tmp_path / "runs" / "tiny" / "results.json")["failed"][0]
    assert failure["label"] == "wild" and re.match(r".*(Divergence|NonFinite|Energy)Error: .+", failure["error"])
    trace = (tmp_path / "runs" / "tiny" / "results" / f"{failure['key']}.failed.txt").read_text(encoding="utf-8")
    assert trace.count("Traceback") == 1, "the same seed would diverge again"
    assert "(1 of 1 runs diverged)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "quik"], "Did you mean 'quick'?"),
        (["--preset", "quick", "--agents", "dxpd"], "Did you mean 'dxdp'"),
        (["--preset", "quick", "--tasks", "8gausians"], "Did you mean '8gaussians'"),
        (["--preset", "kernels", "--agents", "base"], "unknown agent of preset 'kernels' 'base'"),
        (["--tasks", "digits", "--agents", "sb3-ppo"], "none of the agents"),
        (["--name", "../elsewhere"], "plain folder name"),
        (["--budget", "0"], "budget of 'dxdp' must be >= 1, got 0"),
        (["--jobs", "0"], "jobs must be >= 1, got 0"),
        (["--seeds", "1", "1"], "seeds must be distinct"),
        (["--seeds", "-1"], "seed must be >= 0, got -1"),
        (["--device", "abacus"], "device must name a torch device"),
        (["--budget", "nan"], "budget must be finite"),
        (["--unit", "seconds"], "needs a budget"),
        (["--json", "."], "json must name a file"),
        (["--ray", "auto", "--tensorboard"], "not with ray"),
        (["--agent", "none:None"], "unknown module 'none'"),
    ],
)
def test_bad_arguments_end_before_anything_runs(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compare.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("error: ") and not captured.out
    assert not list(tmp_path.iterdir())


def group_of(task: str, agent: str, budget: float = 0, **more: Any) -> dict[str, Any]:
    return {"tasks": [task], "agents": [agent], "budget": budget, **more}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "message"),
    [
        (group_of("8gaussian", "base"), "unknown task '8gaussian'"),
        (group_of("8gaussians", "pppo", 100), "unknown agent 'pppo'"),
        (group_of("8gaussians", "ppo"), "budget of 'ppo' must be >= 1, got 0"),
        (group_of("8gaussians", "ppo", 10.5), "budget of 'ppo' must be an integer >= 1, got 10.5"),
        (group_of("8gaussians", "ppo", 0, unit="seconds"), "budget of 'ppo' must be finite and > 0"),
        (group_of("8gaussians", "ppo", float("inf")), "budget of 'ppo' must be an integer >= 1, got inf"),
        (group_of("8gaussians", "ppo", "9"), "budget of 'ppo' must be an integer >= 1, got '9'"),
        (group_of("8gaussians", "ppo", 9, label=3), "label of tiny.toml must be a str, got 3"),
        (group_of("8gaussians", "ppo", 9, task_settings=3), "task_settings of tiny.toml must be a dict, got 3"),
        ({"tasks": ["8gaussians"], "agents": [3]}, "must have a list 'agents' of names, got [3]"),
        (group_of("8gaussians", "ppo", 9, unit="second"), "Did you mean 'seconds'"),
        (group_of("8gaussians", "base"), "label 'base' is used twice"),
        (group_of("8gaussians", "ppo", 100, agent_settings={"policy": {"widht": 3}}), "Did you mean 'policy.width'"),
        (group_of("8gaussians", "ppo", 100, agent_settings={"width": 3}), "Did you mean 'policy.width'"),
        (group_of("8gaussians", "ppo", 100, task_settings={"horizn": 3}), "Did you mean 'horizon'"),
        (group_of("8gaussians", "ppo", 100, task_setings={}), "Did you mean 'task_settings'"),
        ({"tasks": ["8gaussians"]}, "must have a list 'agents'"),
        (group_of("8gaussians", "*", 100, **{"except": ["pppo"]}), "unknown agent of except of tiny.toml 'pppo'"),
        (group_of("8gaussians", "ppo", 100, **{"except": ["ppo"]}), "has no agents left"),
        (group_of("8gaussians", "ppo", 100, **{"except": "ppo"}), "except of tiny.toml must be a list"),
        (group_of("8gaussians", "ppo", 100, seeds=[]), "seeds must be distinct and at least one"),
        (group_of("8gaussians", "ppo", 100, seeds=[1, 1]), "seeds must be distinct"),
        (group_of("8gaussians", "ppo", 100, seeds=[-1]), "seed must be >= 0, got -1"),
        (group_of("8gaussians", "ppo", 100, seeds=3), "seeds of tiny.toml must be a list"),
        (group_of("8gaussians", "ppo", 100, fit="no"), "fit of tiny.toml must be a bool, got 'no'"),
        (group_of("manywell32", "ddim"), "agent 'ddim' needs a denoiser, and task 'manywell32' has none"),
    ],
)
def test_bad_presets_end_before_anything_runs(
    undisturbed: Path, group: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert tiny_main(content=TINY | {"group": [TINY["group"][0], group]}) == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seeds = [0", "is not a TOML file"),
        ("seeds = [0]", "at least one [[group]]"),
        ("seed = [0]", "Did you mean 'seeds'"),
        ("[sizes]\nsample = 3", "Did you mean 'samples'"),
        ('seeds = 3\n[[group]]\ntasks = ["8gaussians"]\nagents = ["base"]', "seeds of"),
        ("sizes = 3", "sizes of"),
        ("group = 3", "group of"),
        ("group = [1]", "must be tables [[group]], got 1"),
        ('description = 3\n[[group]]\ntasks = ["8gaussians"]\nagents = ["base"]', "description of"),
        ('[sizes]\nbest = "no"\n[[group]]\ntasks = ["8gaussians"]\nagents = ["base"]', "best must be True or False"),
        ('[[group]]\ntasks = ["8gaussians"]\nagents = ["base"]\ntask_settings = {target = ["gmm9"]}', "gmm9"),
        ('[sizes]\ndraws = 0\n[[group]]\ntasks = ["8gaussians"]\nagents = ["base"]', "draws must be >= 1, got 0"),
    ],
)
def test_bad_preset_files(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(content, encoding="utf-8")
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        for row in presets.load_preset(tmp_path / "mine.toml").rows:
            assert row.target, "which is looked up when runs are planned"


def test_the_preset_of_the_docs_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    module = re.search(r"```python\n(.*?class MyAgent.*?)```", (ROOT / "docs" / "own_agents.md").read_text(), re.DOTALL)
    assert module is not None
    (tmp_path / "module_of_the_docs.py").write_text(module[1], encoding="utf-8")  # imported once, for all tests
    monkeypatch.chdir(tmp_path)
    text = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0].replace("my_module", "module_of_the_docs")
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    preset = presets.load_preset("mine.toml")
    assert len(preset.rows) == 8 and preset.sizes.draws == 4
    assert {row.label for row in preset.rows} >= {"base, forward", "ppo, learned"}


@pytest.mark.slow
@pytest.mark.parametrize("name", presets.list_presets())
def test_presets_are_sound(name: str) -> None:
    preset = presets.load_preset(name)
    rows = all_rows(Arguments(preset=name, budget=1_000), preset)
    assert {row.budget for row in rows} <= {0, 1_000} and len(rows) == len(preset.rows) and preset.description
    runs = protocol.make_runs(preset.rows, preset.seeds, "cpu", preset.sizes)
    assert len({run.key for run in runs}) == len(runs) >= (2 if name == "demo" else 5)


def test_the_standard_preset_has_every_agent_that_is_given_an_energy() -> None:
    rows = presets.load_preset("standard").rows
    for task in ("8gaussians", "gmm25", "digits", "manywell32"):
        fits = [name for name in AGENTS if task != "manywell32" or not AGENTS[name].needs_denoiser]
        wanted = set(fits) - {"dxmi", "any-step", "any-class"}
        assert sorted(row.agent for row in rows if row.task == task) == sorted(wanted)


def test_the_ablations_change_something_and_the_papers_is_dxdps() -> None:
    for row in presets.load_preset("ablations").rows:
        config = changed(AGENTS[row.agent].Config(), row.agent_settings, "setting")
        assert (config == DxDPPaperConfig()) == row.label.startswith("paper")
        assert (config == DxDPConfig()) == row.label.startswith("dxdp"), "no other row repeats the defaults"


def a_preset(*groups: dict[str, Any], **changes: Any) -> presets.Preset:
    return presets.read_preset(TINY | {"group": list(groups)} | changes)


def test_every_agent_but_those_that_do_not_apply() -> None:
    every = {"agents": ["*"], "budget": 100}
    plain = [row.agent for row in a_preset({"tasks": ["8gaussians"], **every}).rows]
    without = [row.agent for row in a_preset({"tasks": ["manywell32"], **every}).rows]
    assert {"base", "ddim", "ppo"} <= set(plain) and "dxmi" not in plain
    assert [name for name in plain if name not in without] == [
        "ddpm", "ddim", "edm-heun", "dpm-solver", "awm", "rwr", "diffusion-nft",
    ]  # fmt: skip
    for settings in ({"track": "sample"}, {"base": "none"}):
        group = {"tasks": ["8gaussians"], **every, "task_settings": settings}
        assert [row.agent for row in a_preset(group).rows] == without
    group = {"tasks": ["8gaussians"], **every, "except": ["ppo", "ddim", "dxmi"]}
    assert [row.agent for row in a_preset(group).rows] == [name for name in plain if name not in ("ppo", "ddim")]


def seeds_of(arguments: Arguments, groups: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Seeds by label of what a command line selects of a preset with seeds 0 and 1."""
    write_tiny(content=TINY | {"group": groups})
    runs = make_plan(arguments).selected
    return {label: [run.seed for run in runs if run.row.label == label] for label in {run.row.label for run in runs}}


def test_a_group_may_leave_out_the_fitted_kernel() -> None:
    groups = [group_of("8gaussians", "base", label=str(fit), fit=fit) for fit in (True, False)]
    for sizes, wanted in ({"fit": True}, [True, False]), ({"fit": False}, [False, False]):
        rows = a_preset(*groups).rows
        assert [protocol.Run(row, 0, sizes=protocol.Sizes(**sizes)).fits for row in rows] == wanted


def test_a_row_may_score_samples_chosen_by_weight() -> None:
    """Its run is another run, and its samples and sample scores are others; its chains are the same."""
    settings = {"track": "sample", "horizon": 2, "backward": "learned"}
    groups = [
        group_of("gmm9", "base", task_settings=settings),
        group_of("gmm9", "base", particles=50, task_settings=settings),
    ]
    sizes = protocol.Sizes(samples=300, draws=1, trajectories=100, fit=False, floors=False, kept=50)
    runs = [protocol.Run(row, 0, sizes=sizes) for row in a_preset(*groups).rows]
    (plain, own), (chosen, others) = (measure.measure(run) for run in runs)
    assert runs[0].key != runs[1].key and runs[1].row.plain()["particles"] == 50
    assert runs[1].row.label == "base, chosen among 50 chains"
    assert chosen["scores"]["sliced_w2"] < plain["scores"]["sliced_w2"] and not torch.equal(own, others)
    assert chosen["scores"]["elbo"] == plain["scores"]["elbo"]
    with pytest.raises(ValueError, match="particles of 'base, chosen among 1 chains' must be >= 2, got 1"):
        a_preset(group_of("gmm9", "base", particles=1, task_settings=settings))
    rows = a_preset(group_of("gmm9", "dpm-solver", particles=4)).rows
    with pytest.raises(ValueError, match="particles of 'dpm-solver, chosen among 4 chains' must be left out"):
        sweep.prepare([protocol.Run(row, 0, sizes=sizes) for row in rows], jobs=1)


def test_plain_settings_of_a_comparison() -> None:
    """Rows of agents that were searched change settings and label; what a row sets itself stays."""
    groups = [group_of("8gaussians", "ppo", 100, agent_settings={"n_epochs": 3}), group_of("8gaussians", "base")]
    rows = plan.all_rows(Arguments(config="plain"), a_preset(*groups))
    assert [row.label for row in rows] == ["ppo, plain", "base"]
    assert rows[0].agent_settings["n_epochs"] == 3 and rows[0].agent_settings["clip_range"] == 0.2
    with pytest.raises(UnknownNameError, match="Did you mean 'plain'"):
        plan.all_rows(Arguments(config="plian"), a_preset(group_of("8gaussians", "base")))
    with pytest.raises(UnknownNameError, match="unknown agent 'pppo'"):
        presets.make_row("8gaussians", "pppo", 100, config="plain")


def test_groups_have_seeds_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    groups = [group_of("8gaussians", "base"), group_of("8gaussians", "ddim", seeds=[0, 1, 2, 5])]
    assert seeds_of(Arguments("tiny.toml"), groups) == {"base": [0, 1], "ddim": [0, 1, 2, 5]}
    assert seeds_of(Arguments("tiny.toml", seeds=(7,)), groups) == {"base": [7], "ddim": [7]}
    assert seeds_of(Arguments("tiny.toml", agents=("ddim",)), groups) == {"ddim": [0, 1, 2, 5]}
    more, fewer = (protocol.Run(a_row(seeds=seeds), 0) for seeds in ((0, 1, 2), (0,)))
    assert more.key == fewer.key, "other seeds of a row leave its results valid"


@pytest.mark.slow
def test_a_row_lacks_runs_of_its_own_seeds_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    groups = [group_of("8gaussians", "base"), group_of("8gaussians", "ddim", seeds=[0, 1, 2])]
    assert tiny_main("--jobs", "1", content=TINY | {"group": groups}) == 0
    printed = capsys.readouterr().out
    assert "over 2 to 3 seeds" in printed and "runs)" not in printed and "kl_bound" in printed
    folder = tmp_path / "runs" / "tiny"
    everything = read(folder / "results.json")
    assert [(entry["label"], entry["seeds"]) for entry in everything["summary"]] == [
        ("base", [0, 1]),
        ("ddim", [0, 1, 2]),
    ]
    assert everything["seeds"] == [0, 1, 2] and len(everything["runs"]) == 5
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "over 2 to 3 seeds" in report and "of 3 runs" not in report


def a_row(**changes: Any) -> protocol.Row:
    plain = {"label": "dxdp", "task": "8gaussians", "agent": "dxdp", "budget": 1_600, "agent_settings": BATCH}
    return protocol.Row(**plain | changes)


def test_the_key_holds_what_defines_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = protocol.Run(a_row(), 0)
    others = [
        protocol.Run(a_row(), 1),
        protocol.Run(a_row(agent="ppo"), 0),
        protocol.Run(a_row(), 0, sizes=protocol.Sizes(draws=2)),
        protocol.Run(a_row(budget=4_001), 0),
        protocol.Run(a_row(unit="energy_evals"), 0),
        protocol.Run(a_row(agent_settings=BATCH | {"policy": {"width": 3}}), 0),
        protocol.Run(a_row(task_settings={"tau": 0.5}), 0),
    ]
    assert len({run.key, *(other.key for other in others)}) == len(others) + 1
    assert protocol.Run(a_row(label="another label"), 0).key == run.key
    monkeypatch.setattr(protocol, "code_digest", lambda modules: "other code")
    assert protocol.Run(a_row(), 0).key != run.key


def test_a_damaged_result_is_not_finished(tmp_path: Path) -> None:
    run = protocol.Run(a_row(), 0)
    assert run.load(tmp_path) is None
    run.result_file(tmp_path).write_text('{"scores": ', encoding="utf-8")
    assert run.load(tmp_path) is None


def test_filters_take_agents_and_labels() -> None:
    preset = presets.load_preset("digits")
    by_agent = select(Arguments(preset="digits", agents=("dxmi",)), preset.rows)
    by_label = select(Arguments(preset="digits", agents=("dxmi/ppo", "base")), preset.rows)
    assert [row.label for row in by_agent] == ["dxmi/dxdp", "dxmi/ppo"]
    assert [row.label for row in by_label] == ["base", "ddpm, 100 steps", "dxmi/ppo"]


def test_an_option_that_is_given_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The first of the two values would be lost."""
    assert compare.main(["--agent", "a.zip", "--agent", "b.zip"]) == 2
    assert "--agent must be given once" in capsys.readouterr().err


def test_help_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        compare.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "runs/<name>/" in text
    assert all(f"--{option.replace('_', '-')}" in text for option in Arguments.__dataclass_fields__)
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (8, "8"), (0.12345, "0.123"), (1234.5, "1234"), (-0.00012, "-0.00012"), (3e-7, "3.0e-07")],
)
def test_numbers(value: float, text: str) -> None:
    assert tables.number(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.5"), (9_999, "9999"), (599_040, "599 k"), (4_000_000, "4 M")])
def test_counts(value: float, text: str) -> None:
    assert tables.compact(value) == text


def test_terminals_get_rankings_that_fit_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """The best first, those without the score last, what went wrong below the agent's name."""

    def summary(label: str, value: float | None, **more: Any) -> dict[str, Any]:
        entry = {"iqm": value, "low": -4.0e6, "high": 5.2e6, "method": "expanded percentile bootstrap"}
        scores = {} if value is None else {"kl_bound_fit": entry}
        costs = {**dict.fromkeys(tables.COSTS, 123_456.0), "setbacks": 0.0}
        row = {"task": "t", "label": label, "scores": scores, "costs": costs, "runs": 3, "diverged": 0}
        return row | {"seeds": [0, 1, 2]} | more

    facts = {"score": "kl_bound_fit", "better": "lower", "floor": 0.0, "base": 502.0}
    own = [summary("worse", 3.0), summary("none", None), summary("a-label-of-some-length", 0.5, runs=2, diverged=1)]
    scores: list[dict[str, float]] = [{}, {"kl_bound_fit": 0.1}]
    runs = [{"task": "t", "label": "none", "scores": one} for one in scores]
    for better, first in (("lower", "a-label-of-some-length"), ("higher", "worse")):
        (table,) = tables.ranking_tables({"tasks": {"t": facts | {"better": better}}, "summary": own, "runs": runs})
        assert table.body[0][0].startswith(f" 1  {first}")
        assert table.body[2][0] == "    none\n    (score in 1 of 2 runs)"
        tables.print_tables([table])
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= 100 and "[-4.0e+06, 5.2e+06]" in printed
        assert "(exact samples 0, base sampler 502)" in printed and "(1 of 3 runs diverged)" in printed


@pytest.mark.parametrize(("task", "backward", "key"), [
    ("digits-inpainting", None, "elbo"), ("digits-inpainting", "forward", "elbo"),
    ("digits-inpainting", "learned", "fd"), ("digits", None, "fd"), ("lgcp40", "learned", "elbo"),
])  # fmt: skip
def test_bounds_rank_where_one_kernel_that_is_not_trained_serves_all(task: str, backward: str | None, key: str) -> None:
    """A task with a reward has the base sampler's own, and its ELBO is the aim; lgcp40 has nothing else."""
    settings = {} if backward is None else {"backward": backward}
    row = protocol.Row("base", task, "base", task_settings=settings)
    scores = {"elbo": -3.0} | ({} if task == "lgcp40" else {"fd": 9.0})
    result = {"task": task, "label": "base", "scores": scores, "sizes": {"fit": False}}
    assert results_module._describe([row], [result])["score"] == key


def test_steps_back_are_counted_in_the_label() -> None:
    """The mean over the runs is in the costs, their number in the label; results from before have none."""
    for costs, text in (({"setbacks": 0.6}, "3 steps back in 5 runs"), ({"setbacks": 0.2}, "1 step back in 5 runs")):
        assert tables.setbacks({"runs": 5, "costs": costs}) == text
    assert tables.setbacks({"runs": 5, "costs": {"setbacks": 0.0}}) == tables.setbacks({"runs": 0, "costs": {}}) == ""


def test_rows_differ_in_colour_or_marker() -> None:
    styles = {(index % len(pictures.COLOURS), pictures.marker_of(index)) for index in range(36)}
    assert len(styles) == 36


@pytest.mark.parametrize(("value", "digit"), [(0.2, 2), (50, 5), (3e-5, 3)])
def test_leading_digit(value: float, digit: int) -> None:
    assert pictures.leading_digit(value) == digit


@pytest.mark.parametrize("name", [name for name in AGENTS if name != "dxmi" and not AGENTS[name].needs_denoiser])
def test_sigma_ratios_of_every_agent(name: str) -> None:
    agent = make_agent(name, task="8gaussians", seed=0)
    gaussian = agent.has_density and getattr(agent.density(), "squashed", None) is None
    wanted = [1.0] * 5 if gaussian else []
    if isinstance(agent, AdjointSampling):  # which starts elsewhere
        wanted = (agent.reference.sigma / agent.mdp.base.sigma).tolist()
    if isinstance(agent, VGS):  # whose noise is that of the schedule's kernel
        wanted = (agent.policy.std / agent.mdp.base.sigma).tolist()
    assert measure.sigma_ratios(agent, seed=0, n=50) == pytest.approx(wanted, rel=0.01), "untrained: the base sampler's"


@pytest.mark.slow
def test_targets_without_samples_have_pictures_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    group = {"tasks": ["dw4"], "agents": ["base"], "task_settings": {"horizon": 3}}
    assert tiny_main("--jobs", "1", "--seeds", "0", content=TINY | {"group": [group]}, whole=True) == 0
    assert {"samples_dw4.png", "report.html"} <= {file.name for file in (tmp_path / "runs" / "tiny").iterdir()}


@pytest.mark.slow
def test_a_score_that_some_runs_lack_titles_no_panel(undisturbed: Path) -> None:
    content = read(undisturbed / "results.json")
    row = protocol.Row("base", "8gaussians", "base")
    own = [run for run in content["runs"] if (run["task"], run["label"]) == ("8gaussians", "base")]
    runs = [SimpleNamespace(key=run["key"], samples_file=lambda folder: saved) for run in own]
    saved = next((undisturbed / "results").glob("*.safetensors"))
    title, _ = pictures._median_panel(row, own, runs, undisturbed)  # type: ignore[arg-type]
    key = title.split()[1]
    assert key in own[0]["scores"]
    own.append(own[0] | {"scores": {}})
    assert pictures._median_panel(row, own, runs, undisturbed)[0] == "base"  # type: ignore[arg-type]


def test_a_curve_without_the_tasks_score_is_not_drawn() -> None:
    """An agent without a density among others: its curve has sample metrics only."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    curve = [{"timesteps": float(i), "sliced_w2": 1.0} for i in range(3)]
    style = {"color": "black", "label": "td3"}
    assert pictures._draw_row(axes, [{"curve": curve}], "timesteps", "kl_bound", "o", style) == float("inf")
    assert not axes.lines
    assert pictures._draw_row(axes, [{"curve": curve}], "timesteps", "sliced_w2", "o", style) == 1.0
    assert len(axes.lines) == 1


# What gets in the way of a sweep --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_damaged_result_is_set_aside_and_made_again(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(undisturbed, tmp_path / "runs" / "tiny")
    folder = tmp_path / "runs" / "tiny" / "results"
    before = results(folder.parent)
    first, second = (folder / f"{key}.json" for key, run in before.items() if run["agent"] == "base")
    first.write_bytes(b"\xff\x00" + first.read_bytes()[:20])
    second.with_suffix(".safetensors").unlink()
    assert tiny_main() == 0
    printed = capsys.readouterr().out
    assert printed.count("cannot be read and is set aside") == 3, "two results, and the samples of one"
    assert "6 finished before, 2 to do" in printed
    assert results(folder.parent) == before
    assert len(list(folder.glob("*.damaged"))) == 3


CHANGES = {
    "foreign": {"key": "other"}, "another seed": {"seed": 5}, "a score": {"scores": {"kl_bound": None}},
    "no curve": {"curve": None}, "a number": {"costs": {"timesteps": 1.0}},
}  # fmt: skip


@pytest.mark.parametrize("damage", ["samples", "swapped", "nested", "a folder", "less", *CHANGES])
def test_what_is_no_result_of_a_run_is_set_aside(damage: str, undisturbed: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path)
    preset = load_preset(tmp_path / "tiny.toml")
    run, other = protocol.make_runs(preset.rows[:1], preset.seeds, "cpu", preset.sizes)
    folder = tmp_path / "results"
    shutil.copytree(undisturbed / "results", folder)
    assert run.set_aside_damaged(folder) == [] and run.load(folder) is not None
    if damage == "samples":
        run.samples_file(folder).write_bytes(b"\x00" * 30)
    elif damage == "swapped":
        shutil.copy(other.samples_file(folder), run.samples_file(folder))
    elif damage == "nested":
        run.result_file(folder).write_text("[" * 100_000, encoding="utf-8")
    elif damage == "a folder":
        run.result_file(folder).unlink()
        run.result_file(folder).mkdir()
    elif damage == "less":
        content = read(run.result_file(folder))
        del content["task"]
        run.result_file(folder).write_text(json.dumps(content), encoding="utf-8")
    else:
        content = read(run.result_file(folder)) | CHANGES[damage]
        run.result_file(folder).write_text(json.dumps(content), encoding="utf-8")
    (folder / f"{run.key}.json.damaged").mkdir()  # a name that is taken
    assert len(run.set_aside_damaged(folder)) == 2 and run.load(folder) is None


@pytest.mark.slow
def test_no_flipped_bit_of_a_result_is_believed(undisturbed: Path, tmp_path: Path) -> None:
    """A result with another byte is not finished, wherever that is."""
    write_tiny(tmp_path)
    preset = load_preset(tmp_path / "tiny.toml")
    run = protocol.make_runs(preset.rows[:1], preset.seeds, "cpu", preset.sizes)[0]
    content, chance = run.result_file(undisturbed / "results").read_bytes(), random.Random(0)
    whole = run.load(undisturbed / "results")
    for _ in range(300):
        place = chance.randrange(len(content))
        byte = bytes([content[place] ^ 1 << chance.randrange(8)])
        run.result_file(tmp_path).write_bytes(content[:place] + byte + content[place + 1 :])
        assert run.load(tmp_path) in (None, whole), "only spaces and the like may differ"


def test_two_comparisons_of_one_name_are_one_line(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(undisturbed.parents[1])
    with compare.only_one(undisturbed):
        assert tiny_main() == 2
    error = capsys.readouterr().err
    assert "another process works on" in error and len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_what_is_finished_is_reported_after_ctrl_c(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DXMI_RL_CACHE", str(undisturbed.parents[1] / "cache"))

    def stopped(*arguments: Any, **options: Any) -> Any:
        stream = execute_all(*arguments, **options)
        yield next(stream)
        stream.close()
        raise KeyboardInterrupt

    execute_all = compare.execute_all
    monkeypatch.setattr(compare, "execute_all", stopped)
    selection = ("--jobs", "1", "--agents", "base", "--tasks", "8gaussians", "--seeds", "0", "1", "2")
    assert tiny_main(*selection, whole=True) == 130
    everything = read(tmp_path / "runs" / "tiny" / "results.json")
    assert len(everything["runs"]) == 1 and (tmp_path / "runs" / "tiny" / "report.html").is_file()
    monkeypatch.setattr(compare, "execute_all", execute_all)
    capsys.readouterr()
    assert tiny_main(*selection, whole=True) == 0
    assert "1 finished before, 2 to do" in capsys.readouterr().out


def test_small_budgets_have_small_scores() -> None:
    preset = load_preset("standard")
    tasks = {row.task for row in preset.rows}
    usual = dict.fromkeys(tasks, preset.sizes)
    assert usual == plan._sizes(Arguments("standard"), preset) == plan._sizes(Arguments(budget=20_000), preset)
    small = plan._sizes(Arguments("standard", budget=1000), preset)
    assert small.keys() == tasks and len(set(small.values())) == 1
    assert not small["digits"].fit and not small["digits"].best
    assert small["digits"].trajectories == preset.sizes.trajectories // 10
    assert plan._sizes(Arguments("standard", budget=1000, unit="energy_evals"), preset) == usual
    between = plan._sizes(Arguments("standard", budget=5000), preset)  # a sixth of that of digits
    assert between["digits"] == preset.sizes and between["8gaussians"] == small["8gaussians"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("track", "sample"), ("tau", 2.0), ("target", "gmm9"), ("target_options", {"std": 0.5}), ("reward", "mean")],
)
def test_rows_of_one_table_have_one_track_and_one_target(key: str, value: Any) -> None:
    preset = load_preset("kernels")
    assert plan.all_rows(Arguments("kernels"), preset), "kernels differ, and may"
    rows = [*preset.rows[:-1], replace(preset.rows[-1], task_settings={key: value})]
    with pytest.raises(ValueError, match=f"stand in one table, and have {key} = "):
        plan.all_rows(Arguments("kernels"), replace(preset, rows=rows))


def test_what_is_selected_changes_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = {run.key for run in plan.make_plan(Arguments("standard", budget=5000)).selected}
    for part in ({"tasks": ("8gaussians",)}, {"agents": ("ppo",)}):
        assert {run.key for run in plan.make_plan(Arguments("standard", budget=5000, **part)).selected} < whole


# Diverged runs --------------------------------------------------------------------------------------------------------


def test_intervals_that_say_nothing_are_ranges() -> None:
    found = results_module.score_statistics([1.33, 1.36, 1.44, 7.5e7])
    assert (found["low"], found["high"], found["method"]) == (1.33, 7.5e7, results_module.RANGE)
    usual = results_module.score_statistics([1.33, 1.36, 1.44, 1.5])
    assert usual["method"] != results_module.RANGE and usual["low"] < 1.33
    lost = results_module.score_statistics([1.33, 1.36, 9.0], diverged=1)
    assert (lost["low"], lost["high"], lost["method"]) == (1.33, 9.0, results_module.RANGE)


def test_diverged_runs_have_the_worst_score_of_their_task() -> None:
    runs = [
        {"task": "t", "label": label, "seed": seed, "scores": {"kl": score}}
        for label, seed, score in (("a", 0, 1.0), ("a", 1, 2.0), ("b", 0, 5.0))
    ]
    failed = [
        {"task": "t", "label": "a", "seed": seed, "error": error}
        for seed, error in ((2, "DivergenceError: x"), (3, "NonFiniteError: y"), (4, "OSError: full"))
    ]
    assert results_module.counted_scores(runs, failed, "t", "a", "kl", "lower") == [1.0, 2.0, 5.0, 5.0]
    assert results_module.counted_scores(runs, failed, "t", "a", "kl", "higher") == [1.0, 2.0, 1.0, 1.0]
    assert results_module.counted_scores(runs, failed, "t", "b", "kl", "lower") == [5.0]


def test_a_score_that_some_runs_lack_is_none_of_their_row() -> None:
    """Such a score is left out where it cannot be had, so the mean of the others would flatter."""
    for first in (0, 1):
        runs = [
            {
                "task": "t", "label": "a", "seed": seed, "costs": {},
                "scores": {"elbo": 1.0} | ({"kl": 0.1} if seed == first else {}),
            }
            for seed in (0, 1)
        ]  # fmt: skip
        task = {"score": "kl", "better": "lower", "base": 1.0, "floor": 0.0}
        found = results_module.summarise_runs({"task": "t", "label": "a"}, runs, [], task)
        assert set(found["scores"]) == {"elbo"} and found["normalised"] is None
        assert results_module.counted_scores(runs, [], "t", "a", "kl", "lower") == []
        assert results_module.lacking(runs, "t", "a", "kl") == "score in 1 of 2 runs"
        assert not results_module.lacking(runs, "t", "a", "elbo") and not results_module.lacking(runs, "t", "a", "fd")
