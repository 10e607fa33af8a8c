"""Fixtures for all tests: a cache of their own, float64, the task names that can be built here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported: with a thread per core, small batches take ten times as long in two processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch


def pytest_configure(config: pytest.Config) -> None:
    """A cache for this run, shared by the workers of xdist, so that tests neither use nor fill the user's own."""
    if "DXMI_RL_CACHE" in os.environ:  # the user's choice, or the controller's, inherited by its workers
        return
    folder = tempfile.TemporaryDirectory(prefix="dxmi_rl-tests-")
    os.environ["DXMI_RL_CACHE"] = folder.name
    config.add_cleanup(folder.cleanup)
    config.add_cleanup(lambda: os.environ.pop("DXMI_RL_CACHE", None))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the target with 1,600 dimensions are slow, wherever targets are parameters."""
    for item in items:
        if "lgcp40" in item.name:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors, networks, targets and schedules in double precision."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory with nothing in it, for this test only."""
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a sweep that nothing happened to; later sweeps of the module share its caches."""
    from sweep_cases import tiny_main

    root = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DXMI_RL_CACHE", str(root / "cache"))
        assert tiny_main("--jobs", "1", "--json", "elsewhere/copy.json") == 0
        yield root / "runs" / "tiny"
