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
from docpages.references import double_precision, lowest_energy

from dxmi_rl import evaluate, make_agent, make_target
from dxmi_rl.envs import ENV_ID
from dxmi_rl.envs.rendering import is_image
from dxmi_rl.targets import TARGETS, LogGaussianCox, ParticleTarget, Target, target_class
from dxmi_rl.tasks import TASKS, Task, make_task

UNTRAINED = {"iterations": 1, "batch_size": 8, "width": 8, "depth": 1}
"""Noise levels and standard deviations do not depend on the denoiser."""
SAMPLES = 100_000

NEW_PAGE = """\
# {name}

<!-- picture -->
<!-- end -->

## Definition

<!-- definition -->
<!-- end -->

## Facts

<!-- facts -->
<!-- end -->

## Example

<!-- example -->
<!-- end -->

## Tasks

<!-- tasks -->
<!-- end -->

## Scoring

<!-- scoring -->
<!-- end -->
"""


def blocks(name: str) -> dict[str, str]:
    """Block -> Markdown of the page of the target ``name``; raises UnknownNameError for another name."""
    target = make_target(name)
    return {
        "picture": f"![{name}]({name}.png)\n\n*{caption(target)}*",
        "definition": definition(name),
        "facts": table(("", ""), facts(target)),
        "example": example(name, target),
        "tasks": tasks(name, target),
        "scoring": scoring(name, target),
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


def caption(target: Target) -> str:
    """What the picture shows; samples of Markov chains are not called exact."""
    config, chains = TASKS[target.name], "of Markov chains (Hamiltonian Monte Carlo; there is no exact sampler)"
    base = "the untrained noise ladder in five steps"
    if config.base is not None:
        kind = "exact" if config.denoiser == "exact" else "learned"
        base = f"the default task's base sampler in five steps, with the {kind} denoiser"
    if isinstance(target, ParticleTarget):
        return (
            "Left to right: the energy of one pair of particles; distances of all pairs and energies above the lowest, "
            f"of 1,000 states {chains} and of 2,000 samples of {base}."
        )
    if isinstance(target, LogGaussianCox):
        return f"Fields, and the pines. The field of lowest energy; a state {chains}; one sample of {base}."
    image = is_image(target.event_shape)
    count = "64" if image else "2,000"
    parts = ["the energy, up to 10 nats above its lowest"] if target.has_energy else []
    if target.has_sampler or target.has_data:
        parts.append(f"{count} exact samples" if target.has_sampler else f"{count} rows of the test data")
    parts.append(f"{count} samples of {base}")
    return f"Left to right: {'; '.join(parts)}.{'' if target.dim == 2 or image else ' Two coordinates are shown.'}"


def example(name: str, target: Target) -> str:
    """Code that makes the target and its environment."""
    size = ", ".join(map(str, target.event_shape))
    has_rows = target.has_sampler or target.has_data
    lines = ["import gymnasium as gym", *([] if has_rows else ["import torch"]), "", "import dxmi_rl", ""]
    lines.append(f'target = dxmi_rl.make_target("{name}")')
    if target.has_sampler:
        lines.append(f"x = target.sample(1000)  # exact samples [1000, {size}]")
    elif target.has_data:
        lines.append(f"x = target.data(1000)  # training rows [1000, {size}]; target.test_data(1000) to score against")
    else:
        lines.append(f"x = target.scale * torch.randn(1000, {size})  # there is no exact sampler")
    if target.has_energy:
        lines += ["energy = target.energy(x)  # [1000], in nats", "", f'env = gym.make("{ENV_ID}", target="{name}")']
        lines.append(f'envs = gym.make_vec("{ENV_ID}", target="{name}", num_envs=1024)  # torch tensors in and out')
        if TASKS[name].track == "fine-tune":
            lines.append(f'task = dxmi_rl.make_task("{name}", track="sample")  # from scratch, from the energy alone')
    else:
        lines += [
            "",
            "# Data only: the reward is an energy of your own, or one that DxMI learns once (minutes) and keeps.",
            f'env = gym.make("{ENV_ID}", target="{name}", energy="fixed")',
            f'dxmi = dxmi_rl.DxMI("{name}", seed=0)  # or learn both together: dxmi.learn(1_000_000)',
        ]
    return "```python\n" + "\n".join(lines) + "\n```"


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
        "\n\nThe base kernel is N(mu_t(x_t), sigma_t² I). Rows in code are arguments of `gym.make` and `make_task`: see "
        "[DxMIDenoise-v0](../environments/DxMIDenoise-v0.md)."
    )


def task_facts(task: Task) -> dict[str, str]:
    """What a built task is made of."""
    config, base, schedule = task.config, task.mdp.base, task.mdp.base.schedule
    scratch = config.base is None
    learned = f"learned: {TASKS[task.name].pretraining.iterations:,} Adam steps, once, cached"
    return {
        "`track`": config.track,
        "`reward`": "the target's energy" if config.reward == "target" else "none: `energy=` is needed, or learned",
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


def scoring(name: str, target: Target) -> str:
    """The scores that ``evaluate`` gives on the default task, found by running it, and what is missing and why."""
    agent = make_agent("base", task=make_task(name, pretraining=UNTRAINED), seed=0)
    keys = list(evaluate(agent, samples=64, draws=1, trajectories=64, fit=False, floors=False))
    if "kl_bound" in keys:
        keys.insert(keys.index("kl_bound") + 1, "kl_bound_fit")
    lines = ["`evaluate` gives: " + ", ".join(f"`{key}`" for key in keys) + "."]
    if not target.has_energy:
        lines.append("With `energy=` it also gives `elbo`, `log_z` and `ess` of that energy; of a DxMI model, `auc`.")
    elif target.log_z is None:
        lines.append("log Z is unknown: compare ELBOs with a fitted kernel (higher is better).")
    if not (target.has_sampler or target.has_data):
        lines.append("There is no exact sampler, so there is no distance to samples, no EUBO and no floor.")
    if not target.finite_variance:
        lines.append(
            "The variance is infinite: `quantile_error`, the mean absolute difference of quantiles over `scale`, "
            "replaces sliced W2."
        )
    return "\n".join(f"- {line}" for line in lines)
