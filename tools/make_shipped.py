"""Train the denoisers and the energy of dxmi_rl/shipped again: those of the named data sets, which everybody shares.

    python tools/make_shipped.py    # ten minutes of one core

A file is found by a digest of the settings and the data that it was made with: where one of them changes, it is made
by the user again, until this is run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[1])

from dxmi_rl import list_tasks, make_task
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.tasks import TASKS
from dxmi_rl.utils import storage
from dxmi_rl.utils.storage import JSON

KINDS = ("denoiser", "energy")
"""Files of a cache that are shipped; not those of denoisers after four fifths of the training."""


SMALL = {"pretraining": {"width": 80}}
"""Digits as the zoo's game plays on them (tools/make_zoo.py)."""


def tasks() -> list[tuple[str, JSON]]:
    """Named tasks whose denoiser is learned, that of the zoo, and the one whose energy is; with their settings."""
    named = [(name, dict[str, Any]()) for name in list_tasks() if TASKS[name].denoiser == "learned"]
    return [*named, ("digits", SMALL), ("digits", {"energy": "fixed"})]


def make(folder: Path) -> list[Path]:
    """Make all parts in ``folder``, which is the cache meanwhile, with nothing read from SHIPPED."""
    shipped, storage.SHIPPED = storage.SHIPPED, folder
    kept = os.environ.get("DXMI_RL_CACHE")
    os.environ["DXMI_RL_CACHE"] = str(folder)
    try:
        with one_thread():
            for name, settings in tasks():
                make_task(name, **settings)
    finally:
        storage.SHIPPED = shipped
        os.environ.pop("DXMI_RL_CACHE")
        if kept is not None:
            os.environ["DXMI_RL_CACHE"] = kept
    return sorted(file for kind in KINDS for file in folder.glob(f"{kind}-{'?' * 16}.safetensors"))


def main(argv: Sequence[str] | None = None) -> int:
    """Make them, and put them in the place of those that were there."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        made = make(Path(temporary))
        storage.SHIPPED.mkdir(parents=True, exist_ok=True)
        for file in made:
            shutil.copy(file, storage.SHIPPED)
            print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB")
        for old in {file.name for file in storage.SHIPPED.iterdir()} - {file.name for file in made}:
            (storage.SHIPPED / old).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
