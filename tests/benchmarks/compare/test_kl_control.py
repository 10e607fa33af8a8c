"""benchmarks/compare/kl_control.py: a small run has all keys and a picture, and is not repeated."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.compare import kl_control

SIZES = ["--seeds", "0", "--evals", "640", "--horizon", "3", "--agents", "ppo", "diffusion-nft", "--betas", "1", "0.1",
         "--settings", "ppo.n_epochs=2"]  # fmt: skip


@pytest.mark.slow
def test_a_small_run_writes_what_its_docstring_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kl_control, "SAMPLES", 200)
    monkeypatch.setattr(kl_control, "LOOK_CHAINS", 50)
    file, picture = tmp_path / "all.json", tmp_path / "all.png"
    places = ["--json", str(file), "--picture", str(picture), "--folder", str(tmp_path / "runs")]
    arguments = [*SIZES, "--kls", "0.5", *places]
    assert kl_control.main(arguments) == 0
    everything = json.loads(file.read_text(encoding="utf-8"))
    text = str(kl_control.__doc__).split("Keys of", 1)[1]
    listed = {key for line in re.findall(r"^    ([a-z][a-z_, ]*?)  ", text, re.M) for key in line.split(", ")}
    assert listed == set(everything)
    made = {(run["agent"], run["control"], run["level"]) for run in everything["runs"]}
    both = {("ppo", "beta", 1.0), ("ppo", "adaptive", 0.5), ("ppo", "beta", 0.1), ("ppo", "stop", 0.5)}
    assert made == both | {("diffusion-nft", "beta", 0.1), ("diffusion-nft", "stop", 0.5)}
    for run in everything["runs"]:
        assert {"reward", "true_reward", "kl_base"} <= run["scores"].keys()
        assert all(len(row) == 4 for row in run["curve"])
        assert (run["beta"] == run["level"]) == (run["control"] == "beta")
        if run["control"] == "stop":
            assert run["energy_evals"] <= 768
    betas = [row["beta"] for row in everything["exact"]["8gaussians-proxy"]]
    assert betas[0] == 1.0 and betas[-1] == pytest.approx(0.1) and len(betas) == 41
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "8gaussians-proxy: medians over seeds" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert kl_control.main(arguments) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--controls", "adaptiv"], "Did you mean 'adaptive'"),
        (["--betas", "0"], "betas must"),
        (["--settings", "a2c.n_trajectories=8"], "settings must begin with one of agents, got 'a2c.n_trajectories=8'"),
        (["--settings", "ppo.n_epoch=8"], "Did you mean 'n_epochs'"),
        (["--settings", "ppo.n_epochs"], "settings must hold name=value"),
        (["--kls", "-1"], "kls must"),
        (["--tasks", "gmm25"], "tasks must have a reward, got 'gmm25'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert kl_control.main(arguments) == 2
    assert text in capsys.readouterr().err
