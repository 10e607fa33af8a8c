"""Write the pages of the environment and of the targets, and their pictures.

    python docs/make_pages.py                   # all; also: make docs
    python docs/make_pages.py moons rings       # the pages and pictures of these targets only
    python docs/make_pages.py --text            # no pictures

Seeds are fixed. Pictures of data sets need their denoisers, which are trained once (half a minute each on one core) and
kept in the cache; all else takes a minute. tests/test_docs.py compares the text with the code.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from _environment import environment_page
from _pages import index_page, target_page

from dxmi_rl.envs import ENV_ID
from dxmi_rl.targets import list_targets
from dxmi_rl.utils.registry import UnknownNameError

DOCS = Path(__file__).parent


def pages(names: list[str] | None = None) -> dict[Path, str]:
    """File below docs/ -> text: the pages of the targets ``names``, or of all, the index and the environment."""
    if names:
        return {Path("targets", f"{name}.md"): target_page(name) for name in names}
    found = {Path("targets", f"{name}.md"): target_page(name) for name in list_targets()}
    found[Path("targets", "index.md")] = index_page()
    found[Path("environments", f"{ENV_ID}.md")] = environment_page()
    return found


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="target", help="targets whose page and picture to write; all")
    parser.add_argument("--text", action="store_true", help="write no pictures")
    parser.add_argument("--output", type=Path, default=DOCS, help="folder to write into")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in list_targets():
            parser.error(str(UnknownNameError("target", name, list_targets())))
    torch.set_num_threads(1)  # the order of float sums depends on the number of threads
    for path, text in pages(options.names).items():
        file = options.output / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    if options.text:
        return
    from _figures import draw_picture  # matplotlib, which the text needs not

    for name in options.names or list_targets():
        start = time.perf_counter()
        file = options.output / "targets" / f"{name}.png"
        draw_picture(name, file)
        print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB, {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
