"""docs/: the pages say what the code says, their code runs, their pictures are there."""

from __future__ import annotations

import inspect
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import draw_targets
import gymnasium as gym
import make_pages
import numpy as np
import pytest
import torch
from docpages import docstrings, references, targets
from matplotlib.image import imread
from torch import nn

import dxmi_rl
from dxmi_rl import list_targets, list_tasks, make_target
from dxmi_rl.agents import Agent
from dxmi_rl.agents.one_step import distil
from dxmi_rl.agents.twisting import fit_twist
from dxmi_rl.diffusion import PretrainingConfig
from dxmi_rl.envs import ENV_ID
from dxmi_rl.evaluation import log_weights
from dxmi_rl.irl import fixed
from dxmi_rl.targets import TARGETS, Target
from dxmi_rl.tasks import TASKS, TaskConfig
from dxmi_rl.utils.registry import Registry

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ENVIRONMENT = DOCS / "environments" / f"{ENV_ID}.md"
INDEX = (DOCS / "targets" / "index.md").read_text(encoding="utf-8")
TINY = PretrainingConfig(iterations=2, batch_size=8, width=8, depth=1)


def page_of(target: str) -> str:
    return (DOCS / "targets" / f"{target}.md").read_text(encoding="utf-8")


# Up to date -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pages_are_up_to_date() -> None:
    assert make_pages.write(check=True) == [], "run: make docs"


def test_no_page_is_missing_or_left_over() -> None:
    assert {path.stem for path in (DOCS / "targets").glob("*.md")} == {*list_targets(), "index"}, "run: make docs"


def test_blocks_are_filled() -> None:
    text = "# x\n\n<!-- a -->\nold\n<!-- end -->\n\nprose\n<!-- b -->\n<!-- end -->\n"
    filled = "# x\n\n<!-- a -->\n\nA\n\n<!-- end -->\n\nprose\n<!-- b -->\n\nB\n\n<!-- end -->\n"
    assert make_pages.filled(text, {"a": "A", "b": "B"}) == filled
    assert make_pages.filled(filled, {"a": "A", "b": "B"}) == filled
    with pytest.raises(KeyError):
        make_pages.filled(text, {"a": "A"})


@pytest.mark.parametrize("name", list_targets())
def test_every_target_has_a_page_and_a_picture(name: str) -> None:
    assert f"({name}.png)" in page_of(name) and "To be written" not in page_of(name)
    picture = DOCS / "targets" / f"{name}.png"
    assert picture.stat().st_size < 150_000
    image = imread(picture)
    target = make_target(name)
    mixture = hasattr(target, "means") and target.dim > 2  # no plane shows its energy
    panels = 3 if target.has_energy and not mixture else 2
    assert image.shape[0] >= 300 and image.shape[1] >= 300 * panels
    width = image.shape[1] // panels
    assert all(image[:, i * width : (i + 1) * width, :3].std() > 0.05 for i in range(panels)), "an empty panel"


def test_pictures_belong_to_targets() -> None:
    assert {path.stem for path in (DOCS / "targets").glob("*.png")} == set(list_targets())


@pytest.mark.parametrize("name", list_tasks())
def test_every_task_stands_on_its_targets_page(name: str) -> None:
    assert f'`"{name}"`' in page_of(str(TASKS[name].target))


# What the pages say ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_targets())
def test_facts_are_those_of_the_object(name: str) -> None:
    target, text = make_target(name), page_of(name)
    assert re.search(rf"\| dimension \| (.* = )?{target.dim} \|", text)
    assert f"`plot_range` | [{target.plot_range[0]:g}, {target.plot_range[1]:g}]" in text
    (stated,) = re.findall(r"\| log Z \| (.*?) \|", text)
    if target.log_z is not None:
        assert float(stated) == pytest.approx(target.log_z, abs=1e-6)
    else:
        assert stated == ("unknown" if target.has_energy else "no density")
    assert "Raises" not in text
    (keys,) = re.findall(r"`evaluate` gives: (.*)\.\n", text)
    assert ("`kl_bound`" in keys) == (target.log_z is not None)
    assert ("`sliced_w2`" in keys) == (target.has_sampler and not target.heavy_tailed)
    # The stated noise levels of the default task, from x_0 to clean.
    (levels,) = re.findall(r"\| noise levels .*? \| ([^|]*) \|", text)
    assert len(levels.split(", ")) == TASKS[name].horizon + 1 and levels.endswith(", 0")
    for option in inspect.signature(TARGETS[name]).parameters:
        assert f"- `{option}=" in text


@pytest.mark.parametrize("name", list_targets())
def test_the_index_has_the_facts_of_every_target(name: str) -> None:
    target, config = make_target(name), TASKS[name]
    ((header, row),) = [
        (block.splitlines()[0], line)
        for block in re.findall(r"^\| target .*?(?=\n\n)", INDEX, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if line.startswith(f"| [{name}]({name}.md) |")
    ]
    cells = dict(zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (header, row)), strict=True))
    assert int(cells["d"]) == target.dim and int(cells["T"]) == config.horizon
    assert cells["tau"] == f"{config.tau:.4g}" and cells["difficulty"]
    if "log Z" in cells:
        assert cells["log Z"] == targets.log_z(target)
    if "exact samples" in cells:
        assert cells["exact samples"].startswith("yes") == target.has_sampler


def test_environment_page_has_gymnasiums_headings_and_every_argument() -> None:
    text = ENVIRONMENT.read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == [
        "Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End", "Information",
        "Arguments", "Version History", "Settings of the task", "Vectorized environment", "Other interfaces",
    ]  # fmt: skip
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for field in TaskConfig.__dataclass_fields__:
        assert f"| `{field}" in sections["Settings of the task"]
    for name in ("coordinates", "observation", "action_bound", "energy", "fit_backward", "render_mode", "device"):
        assert f"`{name}`" in sections["Arguments"]
    env = gym.make(ENV_ID)
    assert str(env.action_space) in text
    env.reset(seed=0)
    infos: list[dict[str, Any]] = [env.step(np.zeros(2, np.float32))[-1] for _ in range(5)]
    assert infos[:-1] == [{}] * 4
    for key in infos[-1]:
        assert f"`{key}`" in sections["Information"]


# Code -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Denoisers and fixed energies that are hardly trained, in a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DXMI_RL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(TASKS, "_entries", {name: replace(TASKS[name], pretraining=TINY) for name in TASKS})
        patch.setattr(fixed, "FIXED_TIMESTEPS", 1)
        yield


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets of an iteration or a few, evaluations of a few samples, and files in a folder of the test."""
    learn, evaluate = Agent.learn, dxmi_rl.evaluate
    small = {"samples": 200, "draws": 1, "trajectories": 200, "fit": False, "floors": False}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        Agent, "learn", lambda agent, total_timesteps, **options: learn(agent, min(total_timesteps, 2_000))
    )
    monkeypatch.setattr(dxmi_rl, "evaluate", lambda model, **options: evaluate(model, **(options | small)))
    monkeypatch.setitem(fit_twist.__kwdefaults__, "steps", 20)
    for key in ("pairs", "steps"):
        monkeypatch.setitem(distil.__kwdefaults__, key, 100)
    monkeypatch.setattr("dxmi_rl.agents.one_step.KERNEL_STEPS", 20)
    monkeypatch.setattr("dxmi_rl.zoo.pretrained.SIZES", {key: small[key] for key in small if key != "floors"})


CLEANRL = os.environ.get("CLEANRL")
PAGES = [*sorted((DOCS / "targets").glob("*.md")), ENVIRONMENT]
PAGES += [
    DOCS / f"{name}.md"
    for name in (
        "anomaly",
        "clients",
        "images",
        "one_step",
        "particles",
        "quickstart",
        "statistics",
        "your_own_data",
        "your_own_energy",
        "your_own_pipeline",
        "your_own_reward",
        "zoo",
    )
]
SNIPPETS = [
    (f"{page.stem}-{index}", code)
    for page in PAGES
    for index, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.slow
@pytest.mark.usefixtures("tiny", "short")
@pytest.mark.parametrize(("name", "code"), SNIPPETS, ids=[name for name, _ in SNIPPETS])
def test_snippet_runs(name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sbx", "skrl", "stable_baselines3", "tianshou", "torchrl"):
        if {"torchrl": "TorchRLEnv"}.get(module, module) in code:
            pytest.importorskip(module)
    if "runpy" in code:
        if CLEANRL is None:
            pytest.skip("set CLEANRL to a clone of https://github.com/vwxyzjn/cleanrl")
        shutil.copy(Path(CLEANRL, "cleanrl", "ppo_continuous_action.py"), ".")
        monkeypatch.setattr(sys, "argv", sys.argv)
        for wrapper in ("TransformObservation", "NormalizeObservation", "NormalizeReward"):
            monkeypatch.setattr(gym.wrappers, wrapper, getattr(gym.wrappers, wrapper))  # put back what the code changes
    code = re.sub(r"^timesteps = ([\d_]+)", r"timesteps = \1 // 80", code, flags=re.MULTILINE)  # of other libraries
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


def test_all_code_of_the_pages_is_run_somewhere() -> None:
    elsewhere = {"benchmark", "own_agents", "write_an_agent"}  # tests/benchmark, test_write_an_agent.py
    with_code = {page.stem for page in DOCS.glob("*.md") if "```python" in page.read_text(encoding="utf-8")}
    assert with_code <= {page.stem for page in PAGES} | elsewhere


def test_every_target_and_interface_has_a_snippet() -> None:
    assert {f"{name}-0" for name in list_targets()} <= {name for name, _ in SNIPPETS}
    assert {"make_vec", "make_sb3_env", "TorchRLEnv", "final_info"} <= set(
        re.findall(r"\w+", " ".join(code for name, code in SNIPPETS if name.startswith(ENV_ID)))
    )


@pytest.mark.slow
def test_your_own_energy_is_sampled_as_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """In full, but for the kernel's fit: 1,000 steps come within a tenth of a nat of the 4,000 of the page."""
    fit = log_weights.fit_kernel
    monkeypatch.setattr(log_weights, "fit_kernel", lambda *given, **options: fit(*given, **options, steps=1000))
    ((_, code),) = [(name, code) for name, code in SNIPPETS if name == "your_own_energy-0"]
    names: dict[str, Any] = {}
    exec(compile(code, "your_own_energy", "exec"), names)
    text = (DOCS / "your_own_energy.md").read_text(encoding="utf-8")
    stated, error = map(float, re.findall(r"importance sampling has (-\d+\.\d+) ± (\d+\.\d+)", text)[0])
    assert names["found"].log_z == pytest.approx(stated, abs=3 * error)
    (elbo,) = map(float, re.findall(r"ELBO of (-\d+\.\d+)", text))
    assert names["scores"]["elbo"] == pytest.approx(elbo, abs=0.2)
    assert names["scores"]["log_z"] == pytest.approx(stated, abs=3 * error)
    assert float((names["x"].mean(0) - names["found"].samples.mean(0)).abs().max()) < 0.08


# The parts of the generator -------------------------------------------------------------------------------------------


def test_docstring_parts() -> None:
    class Documented:
        """The first paragraph (arXiv 2407.00626, 2402.06121
        and arXiv physics/0009028).

            code = 1

        Args:
            first: what it is,
                on two lines.

        A sentence. Raises ValueError and
        more.
        """

    text = docstrings.markdown(Documented)
    assert text.count("](https://arxiv.org/abs/") == 3 and "Args" not in text and "\n    code = 1" in text
    assert text.endswith("A sentence.")
    assert docstrings.table(("a",), [("b | c",)]).splitlines()[-1] == "| b \\| c |"
    assert docstrings.summary(Documented).endswith("0009028))")
    with pytest.raises(ValueError, match="no docstring"):
        docstrings.paragraphs(type("Silent", (), {}))


@pytest.mark.slow
def test_hamiltonian_chains_have_the_right_law() -> None:
    scales = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)

    def energy(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x / scales).square().sum(1) - torch.log(1 + 0.9 * torch.sin(2 * x[:, 1]))

    start = torch.zeros(400, 3, dtype=torch.float64)
    x = references.hamiltonian(energy, start, steps=120, leapfrogs=12, step_size=0.02)
    assert x.shape == (400 * 6, 3)
    for i in (0, 2):  # standard error of a standard deviation, with states of one chain counted once
        assert float(x[:, i].std()) == pytest.approx(float(scales[i]), rel=4 / math.sqrt(2 * 400))
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    density = torch.exp(-grid.square() / 2) * (1 + 0.9 * torch.sin(2 * grid))
    mean = float((grid * density).sum() / density.sum())
    assert float(x[:, 1].mean()) == pytest.approx(mean, abs=4 / math.sqrt(400)) and mean > 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("lj13", -83.0896), ("lj55", -491.6413), ("dw4", -25.7922)])
def test_lowest_energies(name: str, expected: float) -> None:
    with references.double_precision():
        value, where = references.lowest_energy(make_target(name))
    assert value == pytest.approx(expected, abs=1e-4)
    assert where.shape == (make_target(name).dim,)


def test_funnel_panel_is_the_marginal() -> None:
    shown = draw_targets.plane_energy(make_target("funnel10"))
    assert shown is not None
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    first = torch.distributions.Normal(0.0, 3.0).log_prob(x[:, 0])
    second = torch.distributions.Normal(0.0, (x[:, 0] / 2).exp()).log_prob(x[:, 1])
    torch.testing.assert_close(shown[1](x), -first - second, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_a_new_target_gets_page_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TARGETS, "_entries", {**TARGETS._entries, "new": New})
    monkeypatch.setattr(make_pages, "list_targets", lambda: ["new"])
    monkeypatch.setattr(TASKS, "_entries", {**TASKS._entries, "new": TaskConfig("new", base=None, track="sample")})
    monkeypatch.setattr(make_pages, "AGENTS", Registry("agent"))
    environment = tmp_path / ENVIRONMENT.relative_to(DOCS)
    environment.parent.mkdir()
    environment.write_bytes(ENVIRONMENT.read_bytes())
    assert make_pages.write(tmp_path) == [Path("targets", "new.md")]
    text = (tmp_path / "targets" / "new.md").read_text(encoding="utf-8")
    assert "A standard normal." in text and "| lowest energy [nats] | 0.0000 |" in text
    assert make_pages.write(tmp_path) == []
    draw_targets.main(["new", "--output", str(tmp_path)])
    assert imread(tmp_path / "new.png").shape[0] >= 300
    with pytest.raises(SystemExit):
        draw_targets.main(["gmm26"])


class New(Target):
    """A standard normal."""

    has_energy = True

    def __init__(self) -> None:
        super().__init__((3,), scale=1.0, plot_range=(-3.0, 3.0))

    def _energy(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(x, torch.zeros_like(x), reduction="none").sum(1) / 2
