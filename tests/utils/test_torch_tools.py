"""What training needs of torch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PAGES = """
import resource, torch
from dxmi_rl.utils.torch_tools import keep_freed_memory
keep_freed_memory()
def round_of_tensors():
    parts = [torch.empty(1_000_000).fill_(1.0) for _ in range(8)]
round_of_tensors()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    round_of_tensors()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Prints how many pages of memory the system had to hand out while tensors of 4 MB came and went, 640 MB in all."""


def pages(**environment: str) -> int:
    start = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, check=True, env=start | environment)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is a setting of glibc's malloc")
def test_freed_memory_is_kept_for_the_next_tensors() -> None:
    assert pages() < 100  # a page has 4 KB or, with huge pages, 2 MB


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is a setting of glibc's malloc")
def test_the_environments_own_setting_of_freed_memory_stands() -> None:
    assert pages(MALLOC_TRIM_THRESHOLD_="100000", MALLOC_MMAP_THRESHOLD_="100000") > 300
