"""``dxmi-rl zoo``: what is in the zoo, and whether it still scores as its cards say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dxmi_rl.benchmark.tables import number
from dxmi_rl.utils.progress import track
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.zoo.cards import count
from dxmi_rl.zoo.check import check_pretrained
from dxmi_rl.zoo.pretrained import CHECKED, read_index, zoo_folder


@dataclass(frozen=True)
class Zoo:
    """List the trained agents of the zoo, or score them again."""

    action: Annotated[Literal["list", "check"], tyro.conf.Positional] = "list"
    """list: name them; check: score them again, and compare with their cards."""
    names: tuple[str, ...] = ()
    """Only these; all by default."""
    folder: Path | None = None
    """Where the zoo is: by default $DXMI_RL_ZOO, or zoo/ in a clone of the repository."""

    def __call__(self, command: str) -> int:
        """Print a table, or what is wrong; exit status 1 where something is."""
        entries = read_index(zoo_folder(self.folder))
        for name in self.names:
            if name not in entries:
                raise UnknownNameError("pretrained agent", name, sorted(entries))
        chosen = list(self.names) or list(entries)
        if self.action == "list":
            table = Table("name", "transitions", "score", "", box=SIMPLE_HEAD)
            table.columns[0].no_wrap = True
            for name in chosen:
                entry = entries[name]
                key = next((key for key in CHECKED if key in entry["scores"]), "")
                score = number(entry["scores"][key]["mean"]) if key else ""
                table.add_row(name, count(entry, "timesteps"), key, score)
            Console().print(table)
            return 0
        wrong: list[str] = []
        good = 0
        for name in track(chosen, "zoo"):
            try:
                found = check_pretrained(name, self.folder)
            except (ValueError, OSError, ImportError) as error:  # damaged, missing, of another version or extra
                found = [f"{name}: {error}"]
            wrong += found
            good += not found
            print(f"{name}: {'not ' * bool(found)}as its card says", flush=True)
        for line in wrong:
            print(line)
        print(f"{good} of {len(chosen)} are as their cards say")
        return 1 if wrong else 0
