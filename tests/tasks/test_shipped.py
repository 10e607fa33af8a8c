"""dxmi_rl/shipped: what named tasks are made of is there, and nobody trains it again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import make_shipped
import pytest

from dxmi_rl import load_pretrained, make_target, make_task
from dxmi_rl.diffusion import pretraining
from dxmi_rl.irl import fixed
from dxmi_rl.tasks import TASKS
from dxmi_rl.utils import storage


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_digits_are_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any, **__: Any) -> None:
        raise AssertionError("it trains")

    monkeypatch.setattr(pretraining, "_Cloning", no)
    monkeypatch.setattr(fixed, "DxMI", no)
    make_task("digits", energy="fixed")
    load_pretrained("dxmi-digits")
    assert not cache.exists()


def test_all_learned_denoisers_are_there_with_the_settings_of_today() -> None:
    """Not by the digests of their data, in whose last bits processors may differ."""
    shipped = [storage.load_tensors(file)[1] for file in storage.SHIPPED.glob("denoiser-*.safetensors")]
    kept = ("iterations", "width", "depth", "fourier")
    found = {(key["target"], key.get("conditional", False), *(key[one] for one in kept)) for key in shipped}
    wanted = set()
    for name, changes in make_shipped.tasks():
        settings = replace(TASKS[name].pretraining, **changes.get("pretraining", {}))
        target = make_target(str(TASKS[name].target)).name
        wanted.add((target, settings.conditional, *(getattr(settings, one) for one in kept)))
    assert found == wanted and len(shipped) == len(wanted)


def test_they_are_made_again(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made"
    monkeypatch.setattr(storage, "SHIPPED", made)
    monkeypatch.setattr(make_shipped, "tasks", lambda: [("moons", {}), ("digits", {"energy": "fixed"})])
    energy = next(Path(make_shipped.__file__).parents[1].glob("dxmi_rl/shipped/energy-*"))

    def make(name: str, **options: Any) -> None:
        if options:
            shutil.copy(energy, storage.SHIPPED)
        else:
            make_task(name, pretraining={"iterations": 2})

    monkeypatch.setattr(make_shipped, "make_task", make)
    assert make_shipped.main([]) == 0
    assert sorted(file.name.split("-")[0] for file in made.iterdir()) == ["denoiser", "energy"]
    assert not cache.exists() and made == storage.SHIPPED
