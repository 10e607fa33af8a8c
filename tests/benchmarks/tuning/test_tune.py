"""benchmarks/tuning/tune.py and its record: searches that go on after a stop; what is on record is sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from agent_cases import same, skip_without_extra, small_settings, state

from benchmarks.scripts import RESULTS
from benchmarks.tuning import spaces, tune
from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.utils.checks import MissingExtraError
from dxmi_rl.utils.settings import changed
from dxmi_rl.utils.torch_tools import seeded

RECORD = RESULTS / "tuning.json"


@pytest.fixture(name="name", params=spaces.list_searched())
def every_searched_agent(request: pytest.FixtureRequest) -> str:
    skip_without_extra(request.param)
    return request.param


# The search -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cheap scores, and batches that a tiny budget fits."""
    pytest.importorskip("optuna")
    cheap = tune.quick_scores
    monkeypatch.setattr(tune, "quick_scores", lambda agent, seed: cheap(agent, seed=seed, samples=200))
    monkeypatch.setitem(spaces.SHARED, "n_trajectories", spaces.Steps((32, 64, 128)))
    monkeypatch.setitem(spaces.MANY_UPDATES, "n_trajectories", 128)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def search(*more: str, trials: int = 2, agents: tuple[str, ...] = ("ppo", "reinforce")) -> int:
    sizes = {"--trials": trials, "--budget": 1000, "--seeds": 1}
    return tune.main(["--agents", *agents, *(str(word) for pair in sizes.items() for word in pair), *more])


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


@pytest.mark.slow
def test_it_searches_stops_goes_on_and_records(
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
    assert search("--record", "record.json", trials=3) == 130
    assert "goes on" in capsys.readouterr().err and not (short / "record.json").exists()
    monkeypatch.setattr(tune, "train_and_score", train)
    assert search("--record", "record.json", "--json", "parts.json", trials=3) == 0
    assert "6 trials, 3 finished before, 3 to do" in capsys.readouterr().out

    whole, parts, content = (read(short / name) for name in ("whole.json", "parts.json", "record.json"))
    for name in ("ppo", "reinforce"):
        first, second = ([t | {"seconds": 0} for t in all["agents"][name]["trials"]] for all in (whole, parts))
        assert first == second, "a stop changes no trial"
        result, entry = parts["agents"][name], content[name]
        scores = [trial["score"] for trial in result["trials"]]
        assert result["trials"][0]["settings"] == {} and result["default"] == scores[0]
        assert result["best"] == min(scores) and len(scores) == 3
        assert result["settings"] == entry["settings"] == result["trials"][scores.index(min(scores))]["settings"]
        assert set(result["trials"][1]["settings"]) == set(spaces.search_space(name))
        assert entry["scores"] == scores and entry["command"] == parts["command"] and entry["trials"] == 3
        assert changed(AGENTS[name].Config(), entry["settings"], "setting")
    assert parts["command"].startswith("python benchmarks/tuning/tune.py --agents ppo reinforce --trials 3")
    assert search("--record", "record.json", trials=3) == 0, "nothing left to do"
    assert search("--record", "record.json", trials=2, agents=("ppo",)) == 2
    assert "other sizes, search these again, too: reinforce" in capsys.readouterr().err


@pytest.mark.slow
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
    assert trials[0] == {} and trials[1] == spaces.second_trial("ppo")
    rates = {"policy.learning_rate": 5e-3, "policy.sigma_learning_rate": 0.01, "value.learning_rate": 3.35e-3}
    assert trials[16] == trials[1] | rates
    assert len({json.dumps(trial) for trial in trials}) == 18


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "score"), [("ppo", "kl_bound"), ("sb3-td3", "sliced_w2")])
def test_the_score(agent: str, score: str, short: Path) -> None:
    skip_without_extra(agent)
    outcome = tune.train_and_score(agent, {"n_trajectories": 128}, 0, 640, "cpu")
    assert outcome["name"] == score and outcome["value"] > 0


def test_a_trial_that_diverges_has_no_score(short: Path) -> None:
    wild = {"policy.learning_rate": 1e30, "n_trajectories": 128}
    assert tune.train_and_score("ppo", wild, 0, 6400, "cpu")["value"] is None


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
    for settings in (spaces.defaults(name), spaces.second_trial(name), spaces.seventeenth_trial(name)):
        for key, one in space.items():
            one.encode(settings[key])


def test_every_agent_that_learns_from_a_given_energy_is_searched() -> None:
    assert set(spaces.SPACES) <= set(spaces.list_searched()) and len(spaces.list_searched()) >= 10
    assert not {"dxmi", "base", "dxdp-paper"} & set(spaces.list_searched())


def test_spaces_are_of_settings_and_hold_the_defaults(name: str) -> None:
    optuna = pytest.importorskip("optuna")
    space, defaults = spaces.search_space(name), spaces.defaults(name)
    assert len(space) >= 3
    for key, one in space.items():
        parameter = one.encode(defaults[key])
        assert one.distribution(optuna)._contains(parameter)
        assert one.decode(parameter) == defaults[key]


@pytest.mark.parametrize("end", [0, -1])
def test_the_ends_of_spaces_can_be_built(name: str, end: int) -> None:
    bounds = {
        key: one.values[end] if isinstance(one, spaces.Steps) else (one.low, one.high)[end]
        for key, one in spaces.search_space(name).items()
    }
    assert make_agent(name, make_task("gmm9"), **{**bounds, "n_trajectories": 128})


# The record -----------------------------------------------------------------------------------------------------------


def test_the_record_is_sound() -> None:
    content = read(RECORD)
    assert set(content) <= set(spaces.list_searched())
    for name, entry in content.items():
        assert set(entry["settings"]) <= set(spaces.search_space(name))
        assert entry["command"].startswith("python benchmarks/tuning/tune.py ")
        assert len(entry["scores"]) == entry["trials"] and entry["scores"][0] == entry["default"]
        assert min(score for score in entry["scores"] if score is not None) == entry["best"]
        assert bool(entry["settings"]) == (entry["best"] != entry["default"])
    sizes = [tuple(json.dumps(entry[key]) for key in tune.SIZES) for entry in content.values()]
    assert len(set(sizes)) == 1, "the same budget for every agent"


CHANGED_SINCE = {
    "dxdp": (
        "n_trajectories", "kernel_steps", "policy.learning_rate", "policy.sigma_learning_rate", "value.learning_rate",
        "value_steps",
    ),
}  # fmt: skip
"""Settings whose defaults are no longer those that the search found (docs/tuning.md says why)."""


def test_the_defaults_are_the_settings_on_record(name: str) -> None:
    settings, defaults = read(RECORD)[name]["settings"], spaces.defaults(name)
    different = {key for key in settings if settings[key] != defaults[key]}
    assert different == set(CHANGED_SINCE.get(name, ()))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(read(RECORD)))
def test_no_setting_on_record_lies_at_an_end_of_its_range_that_could_go_on(name: str) -> None:
    """Numbers of steps end at 1, what can be left out at 0; others would be searched again in a larger range."""
    settings = spaces.defaults(name) | read(RECORD)[name]["settings"]
    for key, space in spaces.search_space(name).items():
        value = settings[key]
        if isinstance(space, spaces.Range):
            assert 1.05 * space.low < value < space.high / 1.05, key
        else:
            assert value in (0, 1) or value not in (space.values[0], space.values[-1]), key


def test_agents_learn_and_resume_with_the_settings_on_record(name: str, tmp_path: Path) -> None:
    settings = read(RECORD).get(name, {}).get("settings")
    if not settings:
        pytest.skip("its plain defaults, which other tests try")
    with seeded(0):
        task = make_task("8gaussians", backward="learned")
    agent = make_agent(name, task, **settings | small_settings(name))
    step = agent.timesteps_per_iteration

    def save_half_way(trained: Any) -> None:
        if trained.num_timesteps == step:
            trained.save(tmp_path / "half")

    agent.learn(2 * step, callback=save_half_way)
    resumed = type(agent).load(tmp_path / "half")
    assert same(state(agent), state(resumed.learn(step, reset_num_timesteps=False)))
