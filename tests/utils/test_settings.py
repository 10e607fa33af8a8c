"""Settings: single fields changed by name, at any depth, and errors that know what was meant; entry points."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dxmi_rl.agents import AGENTS
from dxmi_rl.utils.registry import Registry, UnknownNameError
from dxmi_rl.utils.settings import changed, check_given_once, flat_settings, parsed_settings, setting_names


@dataclass(frozen=True)
class Network:
    width: int = 64
    levels: tuple[float, ...] = (0.5, 1.0)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be >= 1, got {self.width}.")


@dataclass(frozen=True)
class WideNetwork(Network):
    extra: int = 0


@dataclass(frozen=True)
class Inner:
    policy: Network = field(default_factory=Network)
    steps: int = 3


@dataclass(frozen=True)
class Config:
    rate: float | None = 1e-3
    policy: Network = field(default_factory=Network)
    value: Network = field(default_factory=lambda: Network(width=8))
    inner: Inner = field(default_factory=Inner)


def change(settings: dict[str, Any], config: Config | None = None) -> Config:
    return changed(Config() if config is None else config, settings, "setting of 'test'")


@dataclass(frozen=True)
class Flags:
    anneal: bool = True
    baseline: bool | None = None


@dataclass(frozen=True)
class Around:
    inside: Flags = field(default_factory=Flags)


@pytest.mark.parametrize("value", ["False", "off", 0, 1.0, [True]])
def test_a_flag_is_true_or_false(value: Any) -> None:
    """A text counts as true, whatever it says."""
    for name, allowed in (("anneal", "True or False"), ("baseline", "True, False or None")):
        with pytest.raises(TypeError, match=f"inside.{name} must be {allowed}, got "):
            changed(Around(), {f"inside.{name}": value}, "setting of 'test'")
    assert changed(Around(), {"inside.baseline": False}, "setting of 'test'").inside.baseline is False


@pytest.mark.parametrize("name", [name for name in AGENTS if name != "dxmi"])
def test_flags_of_agents_are_true_or_false(name: str) -> None:
    config = AGENTS[name].Config()
    for key, value in flat_settings(config).items():
        if isinstance(value, bool):
            with pytest.raises(TypeError, match=f"{key} must be True"):
                changed(config, {key: "off"}, f"setting of {name!r}")


def test_words_of_a_command_line() -> None:
    words = ["a=False", "b=None", "c=true", "d=off", "e=1e-3"]
    assert parsed_settings("set", words) == {"a": False, "b": None, "c": True, "d": "off", "e": 1e-3}
    check_given_once(["compare", "--agent", "a", "b", "--set", "c=1", "--set", "d=1"], ["--set"])
    for words in (["--agent", "a", "--agent", "b"], ["--task-set=1", "--task_set", "2"]):
        with pytest.raises(ValueError, match=f"{words[0].split('=')[0]} must be given once"):
            check_given_once(words)


# Names ----------------------------------------------------------------------------------------------------------------


def test_names_and_values_of_all_depths() -> None:
    wanted = {
        "rate": 1e-3, "policy.width": 64, "policy.levels": (0.5, 1.0), "value.width": 8, "value.levels": (0.5, 1.0),
        "inner.policy.width": 64, "inner.policy.levels": (0.5, 1.0), "inner.steps": 3,
    }  # fmt: skip
    assert flat_settings(Config()) == wanted and setting_names(Config()) == list(wanted)


# Changes --------------------------------------------------------------------------------------------------------------


def test_nothing_changed_is_equal() -> None:
    assert change({}) == Config()


@pytest.mark.parametrize(
    "settings",
    [
        {"policy.width": 32, "inner.policy.width": 4},
        {"policy": {"width": 32}, "inner": {"policy": {"width": 4}}},
        {"policy": {"width": 32}, "inner": {"policy.width": 4}},
        {"policy": {"width": 32}, "inner.policy": {"width": 4}},
        {"policy": Network(32), "inner": Inner(Network(4))},
        {"policy": Network(width=99), "policy.width": 32, "inner.policy": Network(4)},
        {"policy.width": 32, "policy": Network(width=99), "inner": {"policy": Network(4)}},
        {"policy": {"width": 99}, "policy.width": 32, "inner.policy.width": 4},
    ],
)
def test_fields_inside_are_changed_in_every_spelling(settings: dict[str, Any]) -> None:
    """What is said of one field holds, whatever is said of the config around it; the rest stays."""
    start = Config(rate=None, inner=Inner(steps=3))
    assert change(settings, start) == Config(rate=None, policy=Network(32), inner=Inner(Network(4)))
    assert start == Config(rate=None), "the old one is as it was"


def test_none_is_a_value_and_lists_are_tuples() -> None:
    found = change({"rate": None, "policy.levels": [2.0], "inner": {"policy": {"levels": [3.0, 4.0]}}})
    assert found.rate is None
    assert found.policy.levels == (2.0,) and found.inner.policy.levels == (3.0, 4.0)


def test_json_and_back() -> None:
    config = change({"rate": None, "value.levels": (7.0,), "inner.policy.width": 5})
    text = json.loads(json.dumps(asdict(config)))
    assert text["inner"]["policy"]["width"] == 5
    assert change(text) == config


@pytest.mark.parametrize("name", list(AGENTS))
def test_json_and_back_for_every_agent(name: str) -> None:
    config = AGENTS[name].Config()
    assert AGENTS[name].parse_config(json.loads(json.dumps(asdict(config)))) == config
    flat = flat_settings(config)
    assert AGENTS[name].parse_config(json.loads(json.dumps(flat))) == config, "as the command line says it"


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("width", "'policy.width' or 'value.width' or 'inner.policy.width'"),
        ("steps", "'inner.steps'"),
        ("policy.widht", "'policy.width'"),
        ("polcy.width", "'policy.width'"),
        ("policy_width", "'policy.width'"),
        ("rat", "'rate'"),
        ("rate.width", "'value.width'"),
        ("inner.policy.widht", "'inner.policy.width'"),
    ],
)
def test_unknown_names_answer_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        change({name: 3})
    message = str(caught.value)
    assert message.startswith(f"unknown setting of 'test' {name!r}.") and f"Did you mean {near}" in message, message


def test_what_is_no_config_is_refused() -> None:
    with pytest.raises(TypeError, match="policy must be a Network or a mapping, got 3"):
        change({"policy": 3})
    with pytest.raises(TypeError, match="policy must be a Network or a mapping, got WideNetwork"):
        change({"policy": WideNetwork()})
    with pytest.raises(TypeError, match=r"inner\.policy must be a Network or a mapping, got None"):
        change({"inner.policy": None})
    with pytest.raises(ValueError, match="width must be >= 1, got 0"):
        change({"inner.policy.width": 0})
    for config in (Config, {"rate": 1}, None):
        with pytest.raises(TypeError, match="setting of 'test': a config must be a dataclass"):
            changed(config, {}, "setting of 'test'")


# Registries -----------------------------------------------------------------------------------------------------------


def test_entry_points_are_imported_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_module.py").write_text("class Thing:\n    made = [0]\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[Any] = Registry("thing")
    registry.add("early", 1)
    registry.add_entry_point("late", "late_module:Thing")
    registry.add_entry_point("broken", "late_module:Nothing")
    assert registry.names() == list(registry) == ["early", "late", "broken"] and "late" in registry
    assert "late_module" not in sys.modules, "names need no import"
    with pytest.raises(UnknownNameError, match="Did you mean 'late'"):
        registry["lat"]
    thing = registry["late"]
    assert thing.__name__ == "Thing" and registry["late"] is thing is sys.modules["late_module"].Thing
    with pytest.raises(AttributeError, match="Nothing"):
        registry["broken"]
    with pytest.raises(ValueError, match="thing 'late' is registered already"):
        registry.add_entry_point("late", "late_module:Thing")
    monkeypatch.delitem(sys.modules, "late_module")


def test_optional_entries_are_found_by_name_only() -> None:
    registry: Registry[int] = Registry("thing")
    registry.add("here", 1)
    registry.add("elsewhere", 2, optional=True)
    assert list(registry) == registry.names() == ["here"]
    assert registry.names(optional=True) == ["here", "elsewhere"] and registry["elsewhere"] == 2
    with pytest.raises(UnknownNameError, match="Known: here, elsewhere"):
        registry["nowhere"]


def test_dxmi_is_an_agent_that_is_imported_late() -> None:
    """It is built on the other agents, so the list of agents cannot import it first."""
    from dxmi_rl.irl import DxMI

    assert AGENTS["dxmi"] is DxMI and list(AGENTS)[-1] == "dxmi"


def test_an_unknown_name_survives_a_pool_of_workers() -> None:
    error = UnknownNameError("thing", "x", ["y", "z"], near=["z"])
    assert str(error) == "unknown thing 'x'. Did you mean 'z'? Known: y, z."
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UnknownNameError and str(again) == str(error)
    assert "Known: none" in str(UnknownNameError("thing", 3, []))
