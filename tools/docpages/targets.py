"""Blocks of the targets' pages: docstrings, and facts computed from the objects without training anything."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from unittest.mock import patch

import torch

from docpages.docstrings import markdown, table
from docpages.rankings import ranking
from docpages.references import double_precision, lowest_energy
from dxmi_rl import evaluate, make_agent, make_target
from dxmi_rl.targets import TARGETS, ParticleTarget, Target, target_class
from dxmi_rl.tasks import TASKS, Task, TaskConfig, make_task

UNTRAINED = {"iterations": 1, "batch_size": 8, "width": 8, "depth": 1}
"""Noise levels and standard deviations do not depend on the denoiser."""
SAMPLES = 100_000

NEW_PAGE = """\
# {name}

![{name}]({name}.png)

*To be written: what the picture shows.*

## Definition

<!-- definition -->
<!-- end -->

## Facts

<!-- facts -->
<!-- end -->

## Example

```python
import gymnasium as gym

import dxmi_rl

target = dxmi_rl.make_target("{name}")
env = gym.make("DxMIDenoise-v0", target="{name}")
```

## Tasks

<!-- tasks -->
<!-- end -->

## Scoring

<!-- scores -->
<!-- end -->

## Ranking

<!-- ranking -->
<!-- end -->
"""


def blocks(name: str) -> dict[str, str]:
    """Block -> Markdown of the page of the target ``name``; raises UnknownNameError for another name."""
    target = make_target(name)
    return {
        "definition": definition(name),
        "facts": table(("", ""), facts(target)),
        "tasks": tasks(name, target),
        "scores": scores(name),
        "ranking": ranking(name),
    }  # fmt: skip


def definition(name: str) -> str:
    """The docstrings of the builder, of the class that it builds, and of what that inherits from."""
    builder, kind = TARGETS[name], target_class(name)
    classes = [cls for cls in kind.__mro__ if issubclass(cls, Target) and cls is not Target]
    return "\n\n".join(map(markdown, classes if builder is kind else [builder, *classes]))


def facts(target: Target) -> list[tuple[str, str]]:
    """Rows of the table of facts."""
    shape = " x ".join(map(str, target.event_shape))
    has = {"energy": target.has_energy, "exact sampler": target.has_sampler, "fixed data set": target.has_data}
    has["reference states"] = isinstance(target, ParticleTarget) and target.reference is not None
    narrowest = "unknown" if target.smallest_scale is None else f"{target.smallest_scale:.4g}"
    low, high = target.plot_range
    return [
        ("dimension", f"{target.dim}" if len(target.event_shape) == 1 else f"{shape} = {target.dim}"),
        ("has", ", ".join(key for key, value in has.items() if value)),
        ("log Z", log_z(target)),
        *([energy_fact(target)] if target.has_energy else []),
        ("`scale`: typical width of one coordinate", f"{target.scale:.4g}"),
        ("`smallest_scale`: width of the narrowest mode", narrowest),
        ("`plot_range`", f"[{low:g}, {high:g}]"),
    ]


def log_z(target: Target) -> str:
    """log Z in nats, in words where there is none."""
    if not target.has_energy:
        return "no density"
    return "unknown" if target.log_z is None else f"{target.log_z:.6f}".rstrip("0").rstrip(".")


def energy_fact(target: Target) -> tuple[str, str]:
    """The mean energy of 100,000 exact samples; without a sampler, the lowest energy that L-BFGS finds."""
    with double_precision():
        double = make_target(target.name, **target.options)
        if not target.has_sampler:
            return "lowest energy [nats]", f"{lowest_energy(double)[0]:.4f}"
        with torch.no_grad():
            energy = double.energy(double.sample(SAMPLES, torch.Generator().manual_seed(0)))
        spread = f"{float(energy.mean()):.3g} ± {float(energy.std()):.2g}"
        return "energy of exact samples [nats], mean ± standard deviation", spread


@contextlib.contextmanager
def throwaway_cache() -> Iterator[None]:
    """A cache that is deleted: nobody can use untrained denoisers."""
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, DXMI_RL_CACHE=folder),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


def tasks(name: str, target: Target) -> str:
    """The tasks on this target side by side, and the sample track's where it is not the default."""
    named = {f'`"{key}"`': make_task(key, pretraining=UNTRAINED) for key in TASKS if TASKS[key].target == name}
    if target.has_energy and TASKS[name].track == "fine-tune":
        named[f'`"{name}"`, `track="sample"`'] = make_task(name, track="sample")
    columns = [task_facts(task) for task in named.values()]
    rows = [[label, *(column[label] for column in columns)] for label in columns[0]]
    return table(["", *named], rows) + (
        "\n\nThe base kernel is N(mu_t(x_t), sigma_t² I). Rows in code font are arguments of `gym.make` and "
        "`make_task`: [DxMIDenoise-v0](../environments/DxMIDenoise-v0.md)."
    )


def task_facts(task: Task) -> dict[str, str]:
    """What a built task is made of."""
    config, base, schedule = task.config, task.mdp.base, task.mdp.base.schedule
    scratch = config.base is None
    learned = f"learned: {TASKS[task.name].pretraining.iterations:,} Adam steps, once, cached"
    return {
        "`track`": config.track,
        "`reward`": reward(config),
        "`base`": "None: from scratch, mu_t(x) = x" if scratch else f'"{config.base}"',
        "`denoiser`": "none" if scratch else learned if config.denoiser == "learned" else str(config.denoiser),
        "`horizon` T": f"{task.mdp.horizon}",
        "`schedule`": "geometric ladder" if scratch else config.schedule,
        "noise levels s_t / alpha_t, t = 0..T": ", ".join(f"{level:.4g}" for level in schedule.levels.tolist()),
        "standard deviation of x_0": f"{schedule.start_std:.4g}",
        "sigma_t of the base kernel, t = 0..T-1": ", ".join(f"{sigma:.4g}" for sigma in base.sigma.tolist()),
        "`tau` [nats]": f"{task.mdp.tau:.4g}",
        "`backward` kernel": config.backward,
    }


def reward(config: TaskConfig) -> str:
    """Where the reward of a task comes from."""
    if config.rewarded:
        options = "".join(f", {key} = {value}" for key, value in config.reward_options.items())
        return f"{config.reward}{options}, beta = {config.beta:g}"
    return "the target's energy" if config.reward == "target" else "none: `energy=` is needed, or learned"


def scores(name: str) -> str:
    """The scores that ``evaluate`` gives on the default task, found by running it."""
    agent = make_agent("base", task=make_task(name, pretraining=UNTRAINED), seed=0)
    keys = list(evaluate(agent, samples=64, draws=1, trajectories=64, fit=False, floors=False))
    if "kl_bound" in keys:
        keys.insert(keys.index("kl_bound") + 1, "kl_bound_fit")
    return "`evaluate` gives: " + ", ".join(f"`{key}`" for key in keys) + "."
