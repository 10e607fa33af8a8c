"""The page of the environment: docstrings, signatures and registries of the package under Gymnasium's headings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

import gymnasium as gym
from _docstrings import arguments, bullets, field_docs, prose, sections, summary, table
from _pages import SOURCE

from dxmi_rl.diffusion import PretrainingConfig
from dxmi_rl.diffusion.kernels import KERNELS
from dxmi_rl.diffusion.schedules import SCHEDULES
from dxmi_rl.envs import ENV_ID, DenoiseEnv, DenoiseVectorEnv, SB3VecEnv, TorchRLEnv
from dxmi_rl.envs.episodes import DEFAULT_TASK
from dxmi_rl.tasks import TaskConfig

HEADINGS = (
    "Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End", "Arguments",
    "Information", "Vectorized environment", "Other interfaces", "Version History",
)  # fmt: skip
"""Gymnasium's order, and ours where it has none."""

VECTORIZED = """```python
import gymnasium as gym
import torch

import dxmi_rl

envs = gym.make_vec("DxMIDenoise-v0", num_envs=1024)  # device="cuda" for a GPU
observations, infos = envs.reset(seed=0)
for _ in range(5):  # one episode of all, T = 5
    actions = torch.randn(1024, 2)  # a policy's; N(0, I) is the base sampler
    observations, rewards, terminations, truncations, infos = envs.step(actions)
print(infos["final_obs"].shape, infos["final_info"]["energy"].mean())
```"""

SB3 = """```python
from stable_baselines3 import PPO

from dxmi_rl.envs import make_sb3_env

env = make_sb3_env("8gaussians", num_envs=256)  # ent_coef is tau, n_steps a multiple of T
options = {"n_steps": 5, "batch_size": 1280, "gamma": 1.0, "gae_lambda": 1.0, "ent_coef": 1.0}
model = PPO("MlpPolicy", env, normalize_advantage=False, device="cpu", **options)
model.learn(5_000)
```"""

TORCHRL = """```python
from dxmi_rl.envs import TorchRLEnv

env = TorchRLEnv("8gaussians", num_envs=256)
rollout = env.rollout(5)  # [256, 5]
print(rollout["next", "reward"].sum(1).mean())
```"""

CLEANRL = """CleanRL's loops take the vector environment with `to_numpy=True` where they build a `SyncVectorEnv` over
`RecordEpisodeStatistics`: the returns and lengths of finished episodes stand under the same keys.

```python
import gymnasium as gym

import dxmi_rl

envs = gym.make_vec("DxMIDenoise-v0", num_envs=256, to_numpy=True)
observations, _ = envs.reset(seed=0)
for step in range(10):
    actions = envs.action_space.sample()
    observations, rewards, terminations, truncations, infos = envs.step(actions)
    if "final_info" in infos:
        episode = infos["final_info"]["episode"]
        print(step, episode["r"].mean(), episode["l"].mean())
```"""


def environment_page() -> str:
    """The page of ``DxMIDenoise-v0``. Raises KeyError when a heading is missing in DenoiseEnv's docstring."""
    before, texts = sections(DenoiseEnv)
    env = gym.make(ENV_ID)
    spaces = [
        ("Action Space", f"`{env.action_space}`"),
        ("Observation Space", f"`{env.observation_space}`"),
        ("Import", f'`import dxmi_rl; gymnasium.make("{ENV_ID}")`, or `gymnasium.make("dxmi_rl:{ENV_ID}")`'),
    ]
    texts["Arguments"] = "\n\n".join(_arguments(texts["Arguments"]))
    texts["Vectorized environment"] = "\n\n".join(
        [prose(DenoiseVectorEnv), bullets(arguments(DenoiseVectorEnv)), VECTORIZED]
    )
    texts["Other interfaces"] = "\n\n".join(
        [
            "### Stable-Baselines3", prose(SB3VecEnv), SB3,
            "### TorchRL", prose(TorchRLEnv), bullets(arguments(TorchRLEnv)), TORCHRL,
            "### CleanRL", CLEANRL,
        ]
    )  # fmt: skip
    unknown = set(texts) - set(HEADINGS)
    if unknown:
        raise KeyError(f"DenoiseEnv's docstring has headings that this page does not know: {sorted(unknown)}.")
    parts = [
        f"# {ENV_ID}",
        f"*{SOURCE}*",
        before,
        "![The default task: energy, exact samples, base sampler](../targets/8gaussians.png)",
        "*The default task, 8 Gaussians in five steps. [All targets](../targets/index.md); "
        "[the method in one page](../method.md).*",
        table(("", "default task"), spaces),
    ]
    for heading in HEADINGS:
        parts += [f"## {heading}", texts[heading]]
    return "\n\n".join(parts) + "\n"


def _arguments(text: str) -> list[str]:
    """The docstring's list, the defaults, the fields of TaskConfig, and the names that they take."""
    own = inspect.signature(DenoiseEnv).parameters.values()
    defaults = {entry.name: entry.default for entry in own if entry.default is not entry.empty}
    shown = ", ".join(f"{name}={value!r}" for name, value in (defaults | {"task": DEFAULT_TASK}).items())
    listed, _, rest = text.partition("\n\n")
    schedules = [(f"`{name}`", _options(SCHEDULES[name]), summary(SCHEDULES[name])) for name in SCHEDULES]
    kernels = [(f"`{name}`", summary(get_type_hints(KERNELS[name])["return"])) for name in KERNELS]
    return [
        listed,
        f"Defaults: `{shown}`.",
        "Fields of `TaskConfig`; these are the class's defaults, and the tasks on the pages of the "
        "[targets](../targets/index.md) have their own:",
        _fields(TaskConfig),
        "`schedule` and its `schedule_options`:",
        table(("schedule", "options", "what it is"), schedules),
        "`backward` kernels:",
        table(("kernel", "what it is"), kernels),
        "`pretraining` of a learned denoiser, a dict of:",
        _fields(PretrainingConfig),
        rest,
    ]


def _fields(config: Any) -> str:
    """The fields of a dataclass with their defaults and docstrings."""
    docs = field_docs(config)
    return table(
        ("field", "default", "meaning"),
        [(f"`{entry.name}`", _default(entry), docs[entry.name]) for entry in fields(config)],
    )


def _default(entry: Field[Any]) -> str:
    if entry.default is not MISSING:
        return f"`{entry.default!r}`"
    if entry.default_factory is MISSING:
        return "-"
    return f"`{entry.default_factory()!r}`" if entry.default_factory is dict else "the table below"


def _options(builder: Callable[..., Any]) -> str:
    parameters = inspect.signature(builder).parameters.values()
    options = [f"`{entry.name}={entry.default!r}`" for entry in parameters if entry.kind is entry.KEYWORD_ONLY]
    return ", ".join(options) or "-"
