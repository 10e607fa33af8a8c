"""Write the parts of docs/ that come from the code: agents, targets, the environment. Nothing is trained.

    python tools/make_pages.py              write; also: make docs
    python tools/make_pages.py --check      exit status 1 when a page does not say what the code says

Such a part is a block of a page, between the lines ``<!-- name -->`` and ``<!-- end -->``. Everything else on a page is
written by hand. An agent or a target without a page gets one. Pictures of targets: tools/draw_targets.py.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from docpages import agents, environment, targets

from dxmi_rl.agents import AGENTS
from dxmi_rl.envs import ENV_ID
from dxmi_rl.targets import list_targets

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"(<!-- ([\w-]+) -->\n)(.*?)(<!-- end -->\n)", re.DOTALL)

Blocks = Callable[[], Mapping[str, str]]


def pages() -> dict[Path, tuple[str, Blocks]]:
    """File below docs/ -> (what a new page says, its blocks)."""
    found: dict[Path, tuple[str, Blocks]] = {Path("environments", f"{ENV_ID}.md"): ("", environment.blocks)}
    for part, names in ((agents, AGENTS.names()), (targets, list_targets())):
        folder = part.__name__.rpartition(".")[2]
        for name in names:
            new = part.NEW_PAGE.format(name=name)
            found[Path(folder, f"{name}.md")] = (new, lambda part=part, name=name: part.blocks(name))
    return found


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """A page with its blocks written anew. Raises KeyError for a block that is not in ``blocks``."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{blocks[match[2]]}\n\n{match[4]}", text)


def write(docs: Path = DOCS, *, check: bool = False) -> list[Path]:
    """Bring all pages up to date, or only say which are not: their files below ``docs``."""
    changed = []
    torch.set_num_threads(1)  # the order of float sums depends on the number of threads
    with targets.throwaway_cache():
        for path, (new, blocks) in pages().items():
            file = docs / path
            old = file.read_text(encoding="utf-8") if file.exists() else ""
            text = filled(old or new, blocks())
            if text != old:
                changed.append(path)
                if not check:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(text, encoding="utf-8")
    return changed


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(arguments).check
    changed = write(check=check)
    for path in changed:
        print(f"docs/{path} {'is out of date: run make docs' if check else 'written'}")
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
