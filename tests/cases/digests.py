"""Digests of two iterations of training: the numbers that moving code must not change.

    python tests/cases/digests.py [PART OF A NAME ...]    compare the cases with what is on record
    python tests/cases/digests.py --record                write the record anew, of this machine
    python tests/cases/digests.py --record PART ...       only these cases, on the record's machine

A case names an agent, a task and every setting. Its digest is over all trained parameters and a few samples, so it is
equal only if the arithmetic is. Machines differ in the last bit, and training amplifies that. So on others the case
runs in double precision, and the norms of the parameters, and of how far training has moved them, must be those of a
double run on record. Agents of Stable-Baselines3, which need single precision, are compared by their single norms, less
tightly. Record anew only with a change that is meant to move numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import AGENTS, Agent
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
    """The tasks of the cases; their denoisers are hardly trained."""
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


def digest(tensors: Iterable[Tensor]) -> list[Any]:
    """A digest that knows no names and no order, and the norm of all numbers."""
    parts, square = [], 0.0
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        parts.append(hashlib.sha256(str(tuple(plain.shape)).encode() + plain.numpy().tobytes()).hexdigest())
        square += float(plain.double().square().sum())
    return [hashlib.sha256("".join(sorted(parts)).encode()).hexdigest()[:16], square**0.5]


def run(case: Case, *, double: bool = False) -> dict[str, Any]:
    """The digests of one case, by module, and of four samples; in ``double`` precision, which sb3 agents refuse."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    try:
        return _run(case)
    finally:
        torch.set_default_dtype(before)


def _run(case: Case) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the task's learned kernel, which the agent's own one starts as
    task = build_task(case.task)
    agent = make_agent(case.agent, task, seed=3, config=config_of(case))
    agent.mdp.kernel.load_state_dict(task.mdp.kernel.state_dict())
    before = {name: [one.detach().clone() for one in parts] for name, parts in parameters_of(agent).items()}
    agent.learn(2 * agent.timesteps_per_iteration)
    found: dict[str, Any] = {}
    for name, parts in parameters_of(agent).items():
        moved = zip(parts, before.get(name, []), strict=False)
        found[name] = [
            *digest(parts),
            math.sqrt(sum(float((a.detach() - b).double().square().sum()) for a, b in moved)),
        ]
    found["sample"] = [*digest([agent.sample(4, seed=5)]), 0.0]
    costs = asdict(agent.costs)
    del costs["seconds"], costs["setbacks"]  # none here
    return {"modules": found, "costs": costs}


def parameters_of(agent: Agent[Any]) -> dict[str, list[Tensor]]:
    """All parameters by module, without modules that have none."""
    found = {
        name: list(module.parameters()) if isinstance(module, nn.Module) else list(module.values(True, True))
        for name, module in sorted(agent.modules().items())
    }
    return {name: parts for name, parts in found.items() if parts}


def config_of(case: Case) -> Any:
    return AGENTS[case.agent].parse_config(case.settings)


def read_record() -> tuple[str, dict[str, Any]]:
    """The machine of the record, and its cases."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return record["machine"], record["cases"]


def differences(entry: dict[str, Any], there: str) -> list[str]:
    """Runs the case of a record's entry: what differs from it. Digests are compared on the record's machine only."""
    case, wrong = Case(**entry["case"]), []
    double = there != machine() and "double" in entry
    found = run(case, double=double)
    if found["costs"] != entry["costs"]:
        wrong.append(f"costs: {found['costs']} instead of {entry['costs']}")
    for name, wanted in (entry["double"] if double else entry["modules"]).items():
        digest_, norm, change = found["modules"].get(name, ("none", math.nan, math.nan))
        if double:
            equal = math.isclose(norm, wanted[0], rel_tol=1e-8) and math.isclose(
                change, wanted[1], rel_tol=1e-8, abs_tol=1e-12
            )
        elif there == machine():
            equal = digest_ == wanted[0]
        else:
            equal = math.isclose(norm, wanted[1], rel_tol=1e-3)
            equal = equal and math.isclose(change, wanted[2], rel_tol=2e-2, abs_tol=1e-6)
        if not equal:
            wrong.append(f"{name}: {(digest_, norm, change)}, instead of {wanted}")
    return wrong


def recorded(case: Case) -> dict[str, Any]:
    """An entry of the record."""
    entry = {"case": asdict(case), **run(case)}
    if not case.agent.startswith("sb3-") and not str(case.settings.get("agent", "")).startswith("sb3-"):
        entry["double"] = {name: parts[1:] for name, parts in run(case, double=True)["modules"].items()}
    return entry


def main(arguments: list[str]) -> int:
    """Compare or record; the number of cases that differ."""
    different = 0
    there, cases = read_record()
    record = arguments[:1] == ["--record"]
    parts = arguments[1:] if record else arguments
    chosen = {key: entry for key, entry in cases.items() if not parts or any(part in key for part in parts)}
    if record:
        if parts and there != machine():
            raise SystemExit(f"The record is of {there}, this is {machine()}: record all cases.")
        write_record(machine(), cases | {key: recorded(Case(**entry["case"])) for key, entry in chosen.items()})
        return 0
    for key, entry in chosen.items():
        wrong = differences(entry, there)
        different += bool(wrong)
        print(key, "; ".join(wrong) or "equal", flush=True)
    print(different, "differ")
    return different


def write_record(machine_: str, cases: dict[str, Any]) -> None:
    """One case per line."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in cases.items())
    RECORD.write_text(f'{{"machine": {json.dumps(machine_)},\n"cases": {{\n{lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
