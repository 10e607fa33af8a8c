"""Fixtures for all tests: a cache of their own, float64, the task names that can be built here."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported: with a thread per core, small batches take ten times as long in two processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

SESSION = "DXMI_RL_TESTS"
"""Environment variable that every process of a test session inherits: its folder of temporary files."""
OF_OTHERS = (
    "pytest-of-", "ray", "SB3-", "torchinductor", "torchelastic", "org.chromium", "matplotlib-", "wandb-", "cache",
)  # fmt: skip
"""Parts of the names of temporary files that libraries leave, and the cache of the session."""
PATIENCE = 20.0
"""Seconds that processes have to end after the last test."""


def pytest_configure(config: pytest.Config) -> None:
    """Temporary files and a cache of this run, shared by the workers of xdist: tests do not fill the user's own."""
    if SESSION in os.environ:  # a worker
        return
    folder = tempfile.mkdtemp(prefix="dxmi-")
    os.environ |= {SESSION: folder, "TMPDIR": folder}
    tempfile.tempdir = None
    os.environ.setdefault("DXMI_RL_CACHE", os.path.join(folder, "cache"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session when a process or a temporary file of ours is left, after the last test of the last worker."""
    if hasattr(session.config, "workerinput"):
        return
    deadline = time.monotonic() + PATIENCE
    while (processes := left_processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    names = [path.name for path in Path(os.environ[SESSION]).iterdir()]
    files = [name for name in names if not any(part in name for part in OF_OTHERS)]
    if processes or files:
        print(f"\nleft by the tests: processes {processes}, temporary files {files}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def left_processes() -> list[str]:
    """Command lines of processes that this test session has started and that are no longer below its own."""
    found, marker = {}, f"{SESSION}={os.environ[SESSION]}\0".encode()
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if marker in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if command:  # an empty one has ended, and waits for its parent
                    found[int(folder.name)] = command
    return [command for process, command in found.items() if not is_below(process, os.getpid(), parents)]


def is_below(process: int, ancestor: int, parents: dict[int, int]) -> bool:
    """Whether a process is the other one or descends from it."""
    while process not in (0, 1, ancestor):
        process = parents.get(process, 0)
    return process == ancestor


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
    """The folder of a sweep that nothing happened to; later sweeps of the module share its caches.

    It is made once per session, by the first worker that needs it; every module has a copy.
    """
    root = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        shutil.copytree(undisturbed_sweep(patch), root, dirs_exist_ok=True)
        patch.chdir(root)
        patch.setenv("DXMI_RL_CACHE", str(root / "cache"))
        yield root / "runs" / "tiny"


def undisturbed_sweep(patch: pytest.MonkeyPatch) -> Path:
    """The folder that ``undisturbed`` is a copy of."""
    from sweep_cases import tiny_main

    folder = Path(os.environ[SESSION]) / "cache-undisturbed"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "runs" / "tiny" / "report.html").exists():
            patch.chdir(folder)
            patch.setenv("DXMI_RL_CACHE", str(folder / "cache"))
            assert tiny_main("--jobs", "1", "--json", "elsewhere/copy.json", whole=True) == 0
    return folder
