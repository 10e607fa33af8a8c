"""Two iterations of every trained agent, and of DxMI's recipes, give the numbers on record (tests/cases/digests.py)."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from agent_cases import skip_without_extra
from digests import Case, build_task, config_of, differences, read_record

from dxmi_rl import DxMI

THERE, CASES = read_record()
QUICK = ("dxdp 8gaussians", "dxdp-paper 8gaussians-brownian paper", "ppo 8gaussians", "dxmi 8gaussians-data dxdp")
OWN_RECIPES = ("dxdp", "ppo", "sft-pg", "a2c", "grpo", "path-wise", "vargrad")
"""Cases of DxMI that are named after an agent are what ``DxMI(task, agent=...)`` runs."""


@pytest.mark.parametrize("key", [key if key in QUICK else pytest.param(key, marks=pytest.mark.slow) for key in CASES])
def test_numbers_are_those_on_record(key: str) -> None:
    case = Case(**CASES[key]["case"])
    skip_without_extra(case.agent)
    skip_without_extra(case.settings.get("agent", ""))
    if case.task == "images-unet":
        pytest.importorskip("diffusers")
    assert differences(CASES[key], THERE) == []


@pytest.mark.parametrize("task", ["8gaussians-data", "digits-data", "images"])
@pytest.mark.parametrize("agent", OWN_RECIPES)
def test_recipes_are_what_the_record_ran(task: str, agent: str) -> None:
    if (key := f"dxmi {task} {agent}") not in CASES:
        pytest.skip("not on record")
    wanted = config_of(Case(**CASES[key]["case"]))
    found = DxMI(build_task(task), agent=agent)
    settings = asdict(found.config) | {"recipe": ""}
    if found.config.data_noise is None:
        settings["data_noise"] = found.data_noise
    if found.config.energy.clip is None:
        settings["energy"]["clip"] = found.energy.limits is not None
    assert settings == asdict(wanted)
