"""examples/: every script trains, scores and writes what it documents, here with budgets that teach nothing."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("torchrl")

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import _scores  # noqa: E402
import cleanrl_ppo  # noqa: E402
import train_sb3  # noqa: E402
import train_torchrl  # noqa: E402

from dxmi_rl.evaluation import log_weights  # noqa: E402

CASES = [
    *((train_sb3, ["--algorithm", name]) for name in train_sb3.BUDGETS),
    *((train_torchrl, ["--algorithm", name]) for name in train_torchrl.BUDGETS),
    (cleanrl_ppo, []),
    (cleanrl_ppo, ["--vector", "numpy"]),
    (cleanrl_ppo, ["--vector", "torch"]),
]


@pytest.fixture(autouse=True)
def small_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples, and kernels fitted for 20 steps instead of 4,000."""
    fit = log_weights.fit_kernel
    monkeypatch.setattr(log_weights, "fit_kernel", lambda mdp, policy, *, seed: fit(mdp, policy, steps=20, seed=seed))
    monkeypatch.setattr(_scores, "SIZES", {"draws": 1, "samples": 200, "trajectories": 200})


def test_every_script_is_tested() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py") if not path.stem.startswith("_")}
    assert {module.__name__ for module, _ in CASES} == scripts - {"own_agent", "fine_tune_pipeline"}, (
        "they have tests of their own"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("module", "options"), CASES, ids=[" ".join([m.__name__, *o[1:]]) for m, o in CASES])
def test_script(module: ModuleType, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "scores.json"
    arguments = [*options, "--timesteps", "95", "--num-envs", "8", "--seeds", "3", "4", "--json", str(file)]
    assert module.main(arguments) == 0
    everything = json.loads(file.read_text(encoding="utf-8"))
    assert everything["seeds"] == [3, 4] and [entry["seed"] for entry in everything["runs"]] == [3, 4]
    assert everything["tau"] == 1.0 and everything["horizon"] == 5
    assert f"examples/{module.__name__}.py" in everything["command"] and "--timesteps 95" in everything["command"]
    for entry in everything["runs"]:
        assert entry["timesteps"] >= 95, "never fewer than asked for"
        assert all(math.isfinite(value) for value in entry["scores"].values())
        assert 0 <= entry["scores"]["beyond_box"] <= 1
    first, second = (entry["scores"]["kl_bound"] for entry in everything["runs"])
    assert first != second != everything["base"]["kl_bound"]
    listed = re.findall(r"^ {4,6}(\S+(?:, \S+)*)  +\S", _scores.__doc__ or "", re.MULTILINE)
    documented = {name for names in listed for name in names.split(", ")}
    assert documented == {*everything, *(f"runs.{key}" for key in everything["runs"][0])}
    printed = capsys.readouterr().out
    assert "base sampler" in printed and "seed 3" in printed and "of 2 seeds." in printed


@pytest.mark.parametrize("module", [train_sb3, train_torchrl, cleanrl_ppo], ids=lambda module: module.__name__)
def test_command_line(module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--seeds", "--device", "--json", "--timesteps", "--num-envs"))
    for wrong in (["--timesteps", "0"], ["--num-envs", "-1"], ["--seeds", "-1"], ["--device", "abacus"]):
        with pytest.raises(SystemExit) as stopped:
            module.main(wrong)
        assert stopped.value.code == 2
        assert wrong[0].lstrip("-") in capsys.readouterr().err


@pytest.mark.slow
def test_one_seed_one_result(tmp_path: Path) -> None:
    scores = []
    for repetition in range(2):
        file = tmp_path / f"{repetition}.json"
        train_torchrl.main(["--algorithm", "sac", "--timesteps", "100", "--num-envs", "8", "--json", str(file)])
        scores.append(json.loads(file.read_text(encoding="utf-8"))["runs"][0]["scores"])
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_a_pipeline_is_fine_tuned_from_folder_to_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diffusers = pytest.importorskip("diffusers")
    import fine_tune_pipeline

    arguments = ["--folder", str(tmp_path), "--horizon", "2", "--rewards", "128", "--pretraining", "2"]
    assert fine_tune_pipeline.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "before: reward" in printed and "after-128: reward" in printed and "contrast" in printed
    assert {"before.png", "after-64.png", "after-128.png", "agent.safetensors"} <= {f.name for f in tmp_path.iterdir()}
    before, after = (
        diffusers.DDPMPipeline.from_pretrained(tmp_path / name).unet.state_dict() for name in ("pipeline", "fine-tuned")
    )
    assert before.keys() == after.keys() and any(not before[key].equal(after[key]) for key in before)
    other = ["--folder", str(tmp_path / "again"), "--pipeline", str(tmp_path / "fine-tuned"), *arguments[2:6]]
    assert fine_tune_pipeline.main([*other, "--agent", "draft"]) == 0, "and what was written can be fine-tuned again"
