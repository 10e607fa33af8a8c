"""Digests of what two iterations of training give: the numbers that moving code must not change.

    python tests/record_digests.py            compare with what is on record
    python tests/record_digests.py --record   write the record of this machine

A case names an agent, a task and every setting. Its digest is over all trained parameters and a few samples, so it is
equal only if the arithmetic is. Machines differ in the last bit: elsewhere the norms on record are compared instead.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.networks import EnergyMLP
from dxmi_rl.targets import ImageSet

RECORD = Path(__file__).with_name("digests.json")
TINY = {"iterations": 20, "batch_size": 32, "width": 32, "depth": 1}


@dataclass
class Case:
    """One run of two iterations."""

    agent: str
    task: str
    settings: dict[str, Any]


def machine() -> str:
    """What must agree for digests to be comparable."""
    model = "unknown"
    if Path("/proc/cpuinfo").exists():
        names = {line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith(("model name", "stepping", "microcode"))}  # fmt: skip
        model = " ".join(sorted(names))
    return f"{model}, torch {torch.__version__}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def build_task(name: str) -> Any:
    """The tasks of the cases; all but "digits-fixed" need no training of denoisers worth the name."""
    match name:
        case "8gaussians":
            return make_task("8gaussians", backward="learned")
        case "8gaussians-brownian":
            return make_task("8gaussians", backward="brownian")
        case "gmm25-sample":
            return make_task("gmm25", track="sample", backward="learned")
        case "manywell32":
            return make_task("manywell32", backward="learned")
        case "manywell32-coordinates":
            return make_task("manywell32", backward="learned", backward_options={"coordinate_width": 8})
        case "digits-fixed":
            return make_task("digits", energy="fixed")
        case "digits":
            with torch.random.fork_rng():
                torch.manual_seed(0)
                energy = EnergyMLP(64, 0.5, width=32, depth=2)
            return make_task("digits", energy=energy, pretraining=TINY)
        case "digits-data":
            return make_task("digits", pretraining=TINY)
        case "8gaussians-data" | "checkerboard":
            return make_task(name, pretraining=TINY)
        case "images" | "images-unet":
            images = torch.Generator().manual_seed(0)
            bytes_ = torch.randint(0, 256, (40, 1, 8, 8), generator=images, dtype=torch.uint8)
            tiny: dict[str, Any] = {"network": "mlp", **TINY}
            if name == "images-unet":
                tiny = {"iterations": 2, "batch_size": 8, "channels": (8, 8), "attention": False}
            return make_task(ImageSet(bytes_[:32], bytes_[32:], name="random"), pretraining=tiny)
    raise ValueError(name)


def digest(tensors: Iterator[Tensor]) -> tuple[str, float]:
    """A digest that knows no names and no order, and the norm of all numbers."""
    parts, square = [], 0.0
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        parts.append(hashlib.sha256(str(tuple(plain.shape)).encode() + plain.numpy().tobytes()).hexdigest())
        square += float(plain.double().square().sum())
    return hashlib.sha256("".join(sorted(parts)).encode()).hexdigest()[:16], square**0.5


def run(case: Case) -> dict[str, Any]:
    """The digests of one case, by module, and of four samples."""
    torch.set_num_threads(1)
    torch.manual_seed(0)  # networks of learned kernels start with their task
    task = build_task(case.task)
    agent = make_agent(case.agent, task, seed=3, config=config_of(case))
    agent.learn(2 * agent.timesteps_per_iteration)
    found: dict[str, Any] = {}
    for name, module in sorted(agent.modules().items()):
        parameters = list(module.parameters()) if isinstance(module, nn.Module) else list(module.values(True, True))
        if parameters:
            found[name] = digest(iter(parameters))
    found["sample"] = digest(iter([agent.sample(4, seed=5)]))
    costs = asdict(agent.costs)
    del costs["seconds"]
    return {"modules": found, "costs": costs}


def config_of(case: Case) -> Any:
    return AGENTS[case.agent].parse_config(case.settings)


def compare(keys: list[str] | None = None) -> dict[str, str]:
    """Cases whose digests are not those on record, with what differs."""
    record = json.loads(RECORD.read_text())
    wrong: dict[str, str] = {}
    for key, entry in record["cases"].items():
        if keys and not any(part in key for part in keys):
            continue
        try:
            found = run(Case(**entry["case"]))
        except Exception as error:
            wrong[key] = f"{type(error).__name__}: {error}"
        else:
            found = json.loads(json.dumps(found))
            parts = [part for part in ("modules", "costs") if found[part] != entry[part]]
            if parts:
                wrong[key] = str(
                    {part: [k for k in entry[part] if found[part].get(k) != entry[part][k]] for part in parts}
                )
        print(key, wrong.get(key, "equal"), flush=True)
    return wrong


if __name__ == "__main__":
    different = compare(sys.argv[1:])
    print(len(different), "differ")
