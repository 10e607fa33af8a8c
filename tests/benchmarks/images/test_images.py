"""benchmarks/images/images.py: rows, resumption, tables, keys and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from script_cases import documented

pytest.importorskip("prdc")
from benchmarks.images import images as script
from benchmarks.images import play as play_module
from benchmarks.images.pictures import STYLES
from benchmarks.images.play import Play
from dxmi_rl import make_task
from dxmi_rl.irl import DxMI


@pytest.fixture(name="quick")
def small_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Few samples, hardly pretrained denoisers, small networks."""
    monkeypatch.setattr(play_module, "SAMPLES", 64)

    def task(play: Play, device: str) -> Any:
        changes = play_module.changes_of(play, "task.") | ({} if play.tau is None else {"tau": play.tau})
        pretraining = {"iterations": 5, "width": 16, "batch_size": 16}
        return make_task("digits", horizon=play.horizon, pretraining=pretraining, device=device, **changes)

    for module in (script, play_module):
        monkeypatch.setattr(module, "build_task", task)
    return tmp_path / "runs"


@pytest.mark.slow
def test_a_small_run_gives_table_keys_and_pictures(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["ddim, T = 4", "fastdpm, T = 4", "edm-heun, T = 4", "dxmi, T = 4", "dxmi, tau = 0, T = 4"]
    arguments = ["--rows", *rows, "--seeds", "0", "1", "--budget", "600", "--jobs", "1", "--points", "2"]
    arguments += ["--folder", str(quick)]
    files = ["--json", str(tmp_path / "results.json"), "--pictures", str(tmp_path / "pictures")]
    assert script.main([*arguments, *files]) == 0
    printed = capsys.readouterr().out
    for word in ("training images", "dxmi, tau = 0, T = 4", "FD ↓", "coverage ↑"):
        assert word in printed
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results.keys() == documented(script)
    by_row = {row["row"]: row for row in results["rows"]}
    assert [row["row"] for row in results["rows"]] == [row for row in dict.fromkeys(by_row)]
    assert (by_row["ddim, T = 4"]["calls"], by_row["edm-heun, T = 4"]["calls"]) == (4, 4)
    assert {"fd", "fd_last", "fd_train", "kd", "recall", "coverage"} <= by_row["dxmi, T = 4"]["statistics"].keys()
    assert "fd_last" not in by_row["ddim, T = 4"]["statistics"]
    assert results["floors"]["fd"] < min(row["statistics"]["fd"]["iqm"] for row in results["rows"])
    assert all(len(run["curve"]) == 3 for run in results["runs"] if run["play"]["budget"]), "start, middle and end"
    for name in ("images_digits.png", "images_digits_calls.png"):
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert min(picture.size) > 150

    kept = {path: path.stat().st_mtime_ns for path in quick.glob("*.json")}
    assert script.main(arguments) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in quick.glob("*.json")}, "finished runs are not run again"


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (play,) = [play for play in script.all_plays("digits", [0], 2048) if play.row == "dxmi, T = 4"]
    whole = play_module.run(play, quick)
    learn = DxMI.learn

    def stopped(self: DxMI, total: int, **options: Any) -> Any:
        learn(
            self, total, **options | {"callback": lambda game: options["callback"](game) or game.num_timesteps < 1024}
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(DxMI, "learn", stopped)
    with pytest.raises(KeyboardInterrupt):
        play_module.run(play, tmp_path / "other")
    monkeypatch.setattr(DxMI, "learn", learn)
    again = play_module.run(play, tmp_path / "other")
    assert again["scores"] == whole["scores"]
    assert [point["fd_train"] for point in again["curve"]] == [point["fd_train"] for point in whole["curve"]]


@pytest.mark.slow
def test_ablations_share_runs_with_rows_under_their_own_names(quick: Path, tmp_path: Path) -> None:
    arguments = ["--seeds", "0", "--budget", "200", "--jobs", "1", "--points", "1", "--folder", str(quick)]
    assert script.main([*arguments, "--rows", "dxmi, T = 4"]) == 0
    (kept,) = (file for file in quick.glob("*.json") if "curve" not in file.name)
    before, file = kept.stat().st_mtime_ns, tmp_path / "results.json"
    command = [*arguments, "--ablations", "--seeds", "0", "1", "--json", str(file), "--pictures", str(tmp_path)]
    assert script.main(command) == 0
    assert kept.stat().st_mtime_ns == before
    rows = {row["row"]: row["seeds"] for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
    assert rows == {name: [0, 1] for name in script.ABLATIONS}
    assert [path.name for path in tmp_path.glob("*.png")] == ["images_digits-ablations.png"]
    with Image.open(tmp_path / "images_digits-ablations.png") as picture:
        assert picture.height > 11 * 50, "five rows of samples with their neighbours, and test images"


def test_every_set_has_all_rows_and_keys_differ(tmp_path: Path) -> None:
    plays = [play for data in script.DATA for play in script.all_plays(data, [0, 1])]
    assert len({play.file(tmp_path) for play in plays}) == len(plays)
    assert {play.row for play in script.all_plays("digits", [0])} >= {
        "dxmi, T = 10",
        "dxmi/ppo, T = 4",
        "ddpm, T = 100",
    }


def test_pictures_know_every_agent() -> None:
    assert {f"dxmi/{agent}" for agent in script.INSIDE} | {"dxmi"} <= set(STYLES)


def test_rows_that_say_what_v_is_say_all_of_it() -> None:
    """Recipes differ between networks, so these rows must not rely on theirs."""
    for data, backbone in (("digits", "default"), ("fashion-mnist", "default"), ("mnist5k-14", "mlp")):
        for play in script.all_plays(data, [0], backbone=backbone):
            for name, changes in script.VALUES.items():
                assert set(changes) == {"agent.lookahead_value", "agent.value_steps", "agent.path_correction"}
                assert name not in play.row or changes.items() <= play.changes.items()


def test_games_have_as_many_episodes_whatever_their_horizon() -> None:
    for data, episodes in (("fashion-mnist-14", 62_500), ("digits", 75_000)):
        games = [play for play in script.all_plays(data, [0], backbone="mlp") if play.budget]
        assert {play.horizon for play in games} == {4, 10}
        assert {play.budget / play.horizon for play in games} == {episodes}
        assert {play.budget for play in script.all_plays(data, [0], 1000)} == {0, 1000}


@pytest.mark.parametrize(
    "bad",
    [
        ["--data", "digit"],
        ["--rows", "dxmi"],
        ["--budget", "0"],
        ["--jobs", "0"],
        ["--points", "0"],
        ["--device", "qpu"],
    ],
)
def test_bad_arguments(bad: list[str], tmp_path: Path) -> None:
    assert script.main([*bad, "--folder", str(tmp_path)]) == 2


def test_settings_are_chosen_on_training_images_alone() -> None:
    plays = [script.all_plays("digits", [0], validation=chosen)[0] for chosen in (False, True)]
    scored, chosen = (play_module.images_of(play) for play in plays)
    assert (len(scored.test_bytes), len(chosen.test_bytes)) == (360, 284)
    train = {bytes(image.flatten().numpy()) for image in scored.train_bytes}
    assert {bytes(image.flatten().numpy()) for image in chosen.test_bytes} <= train
