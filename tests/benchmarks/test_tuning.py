"""benchmarks/tune.py and what it freezes: searches that go on after a stop, settings that agents and keys follow."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from agent_cases import PRETRAINING, same, skip_without_extra, small_settings, state

from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import AGENTS, PPO, PPOConfig, tuned
from dxmi_rl.benchmark import protocol
from dxmi_rl.irl import DxMI
from dxmi_rl.irl.recipe_files import recipe
from dxmi_rl.utils.checks import MissingExtraError
from dxmi_rl.utils.torch_tools import seeded

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import _tune_spaces as spaces  # noqa: E402
import tune  # noqa: E402

TUNED = {"policy_learning_rate": 0.004, "value_learning_rate": 0.005, "clip_ratio": 0.4}


@pytest.fixture(name="name", params=spaces.list_searched())
def every_searched_agent(request: pytest.FixtureRequest) -> str:
    skip_without_extra(request.param)
    return request.param


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tuned.json of its own, with settings of ppo."""
    return freeze(tmp_path / "tuned.json", monkeypatch, {"ppo": TUNED})


def freeze(file: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]) -> Path:
    file.write_text(json.dumps({"search": {}, **content}), encoding="utf-8")
    monkeypatch.setattr(tuned, "FILE", file)
    return file


# The search -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cheap scores, and batches that a tiny budget fits."""
    pytest.importorskip("optuna")
    cheap = tune.quick_scores
    monkeypatch.setattr(tune, "quick_scores", lambda agent, seed: cheap(agent, seed=seed, samples=200))
    monkeypatch.setitem(spaces.SHARED, "batch_size", spaces.Steps((128, 256)))
    monkeypatch.setitem(spaces.MANY_UPDATES, "batch_size", 128)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def search(*more: str, trials: int = 2, agents: tuple[str, ...] = ("ppo", "reinforce")) -> int:
    sizes = {"--trials": trials, "--budget": 1000, "--seeds": 1}
    return tune.main(["--agents", *agents, *(str(word) for pair in sizes.items() for word in pair), *more])


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def test_it_searches_stops_goes_on_and_freezes(
    short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search("--folder", "whole", "--json", "whole.json", trials=3) == 0
    assert "6 trials, 0 finished before, 6 to do" in capsys.readouterr().out
    train, calls = tune.train_and_score, []

    def stop_at_the_fourth(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(tune, "train_and_score", stop_at_the_fourth)
    assert search("--freeze", "tuned.json", trials=3) == 130
    assert "goes on" in capsys.readouterr().err and not (short / "tuned.json").exists()
    monkeypatch.setattr(tune, "train_and_score", train)
    assert search("--freeze", "tuned.json", "--json", "parts.json", trials=3) == 0
    assert "6 trials, 2 finished before, 4 to do" in capsys.readouterr().out

    whole, parts, content = (read(short / name) for name in ("whole.json", "parts.json", "tuned.json"))
    for name in ("ppo", "reinforce"):
        first, second = ([t | {"seconds": 0} for t in all["agents"][name]["trials"]] for all in (whole, parts))
        assert first == second, "a stop changes no trial"
        result, entry = parts["agents"][name], content["search"][name]
        scores = [trial["score"] for trial in result["trials"]]
        assert result["trials"][0]["settings"] == {} and result["default"] == scores[0]
        assert result["best"] == min(scores) and len(scores) == 3
        assert result["settings"] == content[name] == result["trials"][scores.index(min(scores))]["settings"]
        assert set(result["trials"][1]["settings"]) == set(spaces.search_space(name))
        assert entry["scores"] == scores and entry["command"] == parts["command"] and entry["trials"] == 3
        assert AGENTS[name].Config(**content[name])
    assert parts["command"].startswith("python benchmarks/tune.py --agents ppo reinforce --trials 3")
    assert search("--freeze", "tuned.json", trials=3) == 0, "nothing left to do"
    assert search("--freeze", "tuned.json", trials=2, agents=("ppo",)) == 2
    assert "other sizes, search these again, too: reinforce" in capsys.readouterr().err


def test_every_key_of_the_docstring_exists(short: Path) -> None:
    assert search("--json", "all.json", trials=1, agents=("ppo",)) == 0
    lines = tune.__doc__.split("Keys of", 1)[1].splitlines()
    keys = {line.split()[0] for line in lines if line.startswith(("    ", "      ."))}
    everything = read(short / "all.json")
    assert {key for key in keys if key[0] != "."} == set(everything)
    assert {key[1:] for key in keys if key[0] == "."} == set(everything["agents"]["ppo"])


def test_diverged_trials_are_worst(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([None, 3.0, None])
    outcome = {"name": "kl_bound", "seconds": 1.0}
    monkeypatch.setattr(tune, "train_and_score", lambda *arguments: outcome | {"value": next(scores)})
    assert search("--json", "all.json", trials=3, agents=("ppo",)) == 0
    result = read(short / "all.json")["agents"]["ppo"]
    assert [trial["score"] for trial in result["trials"]] == [None, 3.0, None]
    assert result["default"] is None and result["best"] == 3.0 and result["settings"]


def test_three_trials_are_given(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults, many small updates, and the seventeenth these at larger rates."""
    outcome = {"name": "kl_bound", "seconds": 1.0, "value": 1.0}
    monkeypatch.setattr(tune, "train_and_score", lambda *arguments: outcome)
    assert search("--json", "all.json", trials=18, agents=("ppo",)) == 0
    trials = [trial["settings"] for trial in read(short / "all.json")["agents"]["ppo"]["trials"]]
    assert trials[0] == {} and trials[1] == spaces.second_trial("ppo") | {"sigma_learning_rate": 3e-3}
    rates = {"policy_learning_rate": 5e-3, "sigma_learning_rate": 7.5e-3, "value_learning_rate": 5e-3}
    assert trials[16] == trials[1] | rates
    assert len({json.dumps(trial) for trial in trials}) == 18


@pytest.mark.parametrize(("agent", "score"), [("ppo", "kl_bound"), ("sb3-td3", "sliced_w2")])
def test_the_score(agent: str, score: str, short: Path) -> None:
    skip_without_extra(agent)
    outcome = tune.train_and_score(agent, {"batch_size": 128}, os.getpid(), 0, 640, "cpu")
    assert outcome["name"] == score and outcome["value"] > 0


def test_a_trial_that_diverges_has_no_score(short: Path) -> None:
    wild = {"policy_learning_rate": 1e30, "batch_size": 128}
    assert tune.train_and_score("ppo", wild, os.getpid(), 0, 6400, "cpu")["value"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agents", "pppo"], "Did you mean 'ppo'"),
        (["--agents", "base"], "agent 'base' has nothing to search"),
        (["--agents", "dxmi"], "agent 'dxmi' has nothing to search"),
        (["--trials", "0"], "trials must be >= 1"),
        (["--seeds", "0"], "seeds must be >= 1"),
        (["--device", "abacus"], "device must name a torch device"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert tune.main(arguments) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_without_optuna_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(module: str, extra: str) -> Any:
        if module == "optuna":
            raise MissingExtraError(f"{module}: {extra}")
        return require(module, extra)

    require = tune.require
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "require", missing)
    assert search() == 2 and "optuna: tune" in capsys.readouterr().err


# The spaces -----------------------------------------------------------------------------------------------------------


def test_given_trials_lie_in_the_spaces(name: str) -> None:
    space = spaces.search_space(name)
    for settings in (spaces.plain_defaults(name), spaces.second_trial(name), spaces.seventeenth_trial(name)):
        for key, one in space.items():
            one.encode(settings[key])


def test_every_agent_that_learns_from_a_given_energy_is_searched() -> None:
    assert set(spaces.SPACES) <= set(spaces.list_searched()) and len(spaces.list_searched()) >= 10
    assert "dxmi" not in spaces.list_searched() and "base" not in spaces.list_searched()


def test_spaces_are_of_settings_and_hold_the_defaults(name: str) -> None:
    optuna = pytest.importorskip("optuna")
    space, defaults = spaces.search_space(name), spaces.plain_defaults(name)
    assert len(space) >= 3
    for key, one in space.items():
        parameter = one.encode(defaults[key])
        assert one.distribution(optuna)._contains(parameter)
        assert defaults[key] is None or one.decode(parameter) == pytest.approx(defaults[key])


@pytest.mark.parametrize("end", [0, -1])
def test_the_ends_of_spaces_can_be_built(name: str, end: int) -> None:
    bounds = {
        key: one.values[end] if isinstance(one, spaces.Steps) else (one.low, one.high)[end]
        for key, one in spaces.search_space(name).items()
    }
    assert make_agent(name, make_task("gmm9"), **{**bounds, "batch_size": 128})


# What is frozen -------------------------------------------------------------------------------------------------------


def test_the_frozen_file_is_sound() -> None:
    content = tuned.load_tuned()
    names = [name for name in content if name != tuned.SEARCH]
    assert set(names) == set(content[tuned.SEARCH]) and set(names) <= set(spaces.list_searched())
    for name in names:
        fields = {field.name for field in dataclasses.fields(AGENTS[name].Config)}
        assert set(content[name]) <= fields
        entry = content[tuned.SEARCH][name]
        assert entry["command"].startswith("python benchmarks/tune.py ") and len(entry["scores"]) == entry["trials"]
        assert entry["scores"][0] == entry["default"]
        assert bool(content[name]) == (entry["best"] != entry["default"])
    sizes = [tuple(json.dumps(entry[key]) for key in tune.SIZES) for entry in content[tuned.SEARCH].values()]
    assert len(set(sizes)) <= 1, "the same budget for every agent"


def test_agents_as_they_are_frozen_learn_and_resume(name: str, tmp_path: Path) -> None:
    if not tuned.load_tuned().get(name):
        pytest.skip("its plain defaults, which other tests try")
    with seeded(0):
        task = make_task("8gaussians", backward="learned")
    agent = make_agent(name, task, **small_settings(name))
    step = agent.timesteps_per_iteration

    def save_half_way(trained: Any) -> None:
        if trained.num_timesteps == step:
            trained.save(tmp_path / "half")

    agent.learn(2 * step, callback=save_half_way)
    resumed = type(agent).load(tmp_path / "half")
    assert same(state(agent), state(resumed.learn(step, reset_num_timesteps=False)))


@pytest.mark.usefixtures("frozen")
def test_agents_start_from_tuned_settings() -> None:
    for agent in (make_agent("ppo", "8gaussians"), PPO("8gaussians")):
        assert agent.config == dataclasses.replace(PPOConfig(), **TUNED)
    changed = make_agent("ppo", "8gaussians", clip_ratio=0.1, width=16)
    assert changed.config == dataclasses.replace(PPOConfig(), **TUNED | {"clip_ratio": 0.1, "width": 16})
    assert PPO("8gaussians", config=PPOConfig()).config == PPOConfig()
    assert make_agent("dxdp", "8gaussians").config == AGENTS["dxdp"].Config()
    assert PPO("8gaussians").policy_optimizer.param_groups[0]["peak"] == 0.004


@pytest.mark.usefixtures("frozen")
def test_a_class_of_the_users_has_no_tuned_settings() -> None:
    class Mine(PPO):
        pass

    assert Mine("8gaussians").config == PPOConfig()


@pytest.mark.usefixtures("frozen")
def test_rates_of_corrections_are_none_of_fine_tuned_networks() -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")
    config = PPO(task, policy="fine-tuned").config
    assert config.policy_learning_rate is None and config.value_learning_rate == 0.005
    digits = tuned.tuned_settings(PPO, (1, 8, 8), {})
    assert digits == {"value_learning_rate": 0.005, "clip_ratio": 0.4}
    assert tuned.tuned_settings(PPO, (1, 8, 8), {"policy": "correction"}) == TUNED


def test_recipes_of_dxmi_do_not_change(frozen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING)
    config = DxMI(task, agent="ppo").agent.config
    assert config == dataclasses.replace(PPOConfig(), **recipe("8gaussians-data", "ppo").agent_settings)


def test_keys_follow_the_tuned_settings_of_their_agent_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys() -> dict[str, str]:
        rows = {
            name: protocol.Row(name, task, name, 4000)
            for name, task in (("dxdp", "gmm25"), ("ppo", "gmm25"), ("dxmi", "8gaussians-data"))
        }
        rows["ppo, clipped"] = dataclasses.replace(rows["ppo"], agent_settings={"clip_ratio": 0.3})
        return {label: protocol.Run(row, 0).key for label, row in rows.items()}

    before = []
    for content in ({}, {"ppo": {"clip_ratio": 0.4}}, {"ppo": {"clip_ratio": 0.4, "epochs": 3}}):
        freeze(tmp_path / f"{len(before)}.json", monkeypatch, content)
        before.append(keys())
    plain, clip, more = before
    assert plain["dxdp"] == clip["dxdp"] == more["dxdp"] and plain["dxmi"] == clip["dxmi"] == more["dxmi"]
    assert len({plain["ppo"], clip["ppo"], more["ppo"]}) == 3
    assert plain["ppo, clipped"] == clip["ppo, clipped"] != more["ppo, clipped"], "what a row sets is not tuned"


def test_the_package_ships_the_file() -> None:
    project = tomllib.loads((BENCHMARKS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    package = BENCHMARKS.parent / "dxmi_rl"
    patterns = project["tool"]["setuptools"]["package-data"]["dxmi_rl"]
    assert any(package / "agents" / "tuned.json" in package.glob(pattern) for pattern in patterns)
