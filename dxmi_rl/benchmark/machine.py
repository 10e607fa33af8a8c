"""What a number was measured on: versions, processor, and the digest of the source."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path

import numpy as np
import torch

import dxmi_rl
from dxmi_rl.benchmark.code import PACKAGE
from dxmi_rl.utils.storage import JSON


@functools.cache
def source_digest() -> str:
    """Digest of all of the package's source."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions that a number depends on."""
    return {
        "dxmi_rl": dxmi_rl.__version__,
        "source": source_digest(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


@functools.cache
def machine(device: str) -> JSON:
    """Where it ran: system, processor, number of cores, GPU or None."""
    gpu = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None
    return {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count(), "gpu": gpu}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
