"""No file of the project names a folder of one machine, such as somebody's home."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("farm", "home", "mnt", "root", "tmp", "Users", "work")
MACHINE_PATH = re.compile("/(" + "|".join(FOLDERS) + ")/")


def test_the_pattern_finds_paths_and_nothing_else() -> None:
    for folder in FOLDERS:
        assert MACHINE_PATH.search(f"--json /{folder}/me/results.json")
    for text in ("FOLDER/results.json", "runs/mine", "/usr/lib/R", "work/ and home/", "https://arxiv.org/abs/1"):
        assert not MACHINE_PATH.search(text)


def test_no_file_names_a_folder_of_one_machine() -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the files of the project are not known without git: {error}")
    found = []
    for name in filter(None, listed.split("\0")):
        file = ROOT / name
        if not file.is_file() or b"\0" in (content := file.read_bytes()):  # a link to a folder, deleted, or binary
            continue
        for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
            if match := MACHINE_PATH.search(line):
                found.append(f"{name}:{number}: ...{line[max(0, match.start() - 30) : match.end() + 40]}...")
    assert not found, "write FOLDER instead:\n" + "\n".join(found)
