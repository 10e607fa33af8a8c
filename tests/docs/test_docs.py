"""docs/: the pages say what the code says, their links lead somewhere, their code runs, their pictures are there."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn

pytest.importorskip("stable_baselines3")
pytest.importorskip("torchrl")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import _docstrings  # noqa: E402
import _environment  # noqa: E402
import _figures  # noqa: E402
import _notes  # noqa: E402
import _reference  # noqa: E402
import make_pages  # noqa: E402

from dxmi_rl import list_targets, list_tasks, make_target  # noqa: E402
from dxmi_rl.diffusion import PretrainingConfig  # noqa: E402
from dxmi_rl.envs import ENV_ID  # noqa: E402
from dxmi_rl.irl import fixed  # noqa: E402
from dxmi_rl.targets import TARGETS, Target  # noqa: E402
from dxmi_rl.tasks import TASKS, TaskConfig  # noqa: E402

ENVIRONMENT = DOCS / "environments" / f"{ENV_ID}.md"
PAGES = [*sorted((DOCS / "targets").glob("*.md")), ENVIRONMENT]
TINY = PretrainingConfig(iterations=2, batch_size=8, width=8, depth=1)


@pytest.fixture(scope="module")
def generated() -> dict[Path, str]:
    return make_pages.pages()


# Up to date -----------------------------------------------------------------------------------------------------------


def test_no_page_is_missing_or_left_over(generated: dict[Path, str]) -> None:
    assert {DOCS / path for path in generated} == set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_is_up_to_date(page: Path, generated: dict[Path, str]) -> None:
    assert page.read_text(encoding="utf-8") == generated[page.relative_to(DOCS)], "run: make docs"


@pytest.mark.parametrize("name", list_targets())
def test_every_target_has_a_page_and_a_picture(name: str) -> None:
    text = (DOCS / "targets" / f"{name}.md").read_text(encoding="utf-8")
    assert f"({name}.png)" in text and f"]({name}.md)" in (DOCS / "targets" / "index.md").read_text(encoding="utf-8")
    picture = DOCS / "targets" / f"{name}.png"
    assert picture.stat().st_size < 150_000
    image = imread(picture)
    panels = 3 if make_target(name).has_energy else 2
    assert image.shape[0] >= 300 and image.shape[1] >= 300 * panels
    width = image.shape[1] // panels
    assert all(image[:, i * width : (i + 1) * width, :3].std() > 0.05 for i in range(panels)), "an empty panel"


def test_notes_and_pictures_belong_to_targets() -> None:
    assert set(_notes.NOTES) <= set(list_targets())
    assert {path.stem for path in (DOCS / "targets").glob("*.png")} == set(list_targets())


@pytest.mark.parametrize("name", list_tasks())
def test_every_task_stands_on_its_targets_page(name: str) -> None:
    target = TASKS[name].target
    assert f'`"{name}"`' in (DOCS / "targets" / f"{target}.md").read_text(encoding="utf-8")


# What the pages say ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_targets())
def test_facts_are_those_of_the_object(name: str, generated: dict[Path, str]) -> None:
    target, text = make_target(name), generated[Path("targets", f"{name}.md")]
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
    assert ("`sliced_w2`" in keys) == (target.has_sampler and target.finite_variance)
    # The stated noise levels of the default task, from x_0 to clean.
    (levels,) = re.findall(r"\| noise levels .*? \| ([^|]*) \|", text)
    assert len(levels.split(", ")) == TASKS[name].horizon + 1 and levels.endswith(", 0")


def test_environment_page_has_gymnasiums_headings_and_every_argument(generated: dict[Path, str]) -> None:
    text = generated[Path("environments", f"{ENV_ID}.md")]
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == list(_environment.HEADINGS)
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for field in TaskConfig.__dataclass_fields__:
        assert f"| `{field}` |" in sections["Arguments"]
    for name in ("coordinates", "observation", "action_bound", "energy", "fit_backward", "render_mode", "device"):
        assert f"`{name}`" in sections["Arguments"]
    env = gym.make(ENV_ID)
    assert str(env.action_space) in text
    env.reset(seed=0)
    infos: list[dict[str, Any]] = [env.step(np.zeros(2, np.float32))[-1] for _ in range(5)]
    assert infos[:-1] == [{}] * 4
    for key in infos[-1]:
        assert f"`{key}`" in sections["Information"]


# Links and code -------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *DOCS.glob("*.md"), ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|``.*?``|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            assert re.fullmatch(r"https://(arxiv\.org/abs/([a-z-]+/\d{7}|\d{4}\.\d{4,5})|github\.com/\S+)", link)
            continue
        path, _, anchor = link.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link
    assert "http" not in re.sub(r"\]\([^)\s]+\)", "", text), "a bare address"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Denoisers and fixed energies that are hardly trained, in a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DXMI_RL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(TASKS, "_entries", {name: replace(TASKS[name], pretraining=TINY) for name in TASKS})
        patch.setattr(fixed, "FIXED_TIMESTEPS", 1)
        yield


SNIPPETS = [
    (f"{page.stem}-{index}", code)
    for page in [*PAGES, DOCS / "anomaly.md", DOCS / "images.md"]
    for index, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("name", "code"), SNIPPETS, ids=[name for name, _ in SNIPPETS])
def test_snippet_runs(name: str, code: str) -> None:
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


def test_every_target_and_interface_has_a_snippet() -> None:
    assert {f"{name}-0" for name in list_targets()} <= {name for name, _ in SNIPPETS}
    assert {"make_vec", "make_sb3_env", "TorchRLEnv", "final_info"} <= set(
        re.findall(r"\w+", " ".join(code for name, code in SNIPPETS if name.startswith(ENV_ID)))
    )


# The parts of the generator -------------------------------------------------------------------------------------------


def test_docstring_parts() -> None:
    class Documented:
        """The first paragraph (arXiv 2407.00626, 2402.06121
        and arXiv physics/0009028).

            code = 1

        Args:
            first: what it is,
                on two lines.
            second, third: two | at once.

        Raises ValueError.
        """

    text = _docstrings.prose(Documented, skip=("Args:", "Raises"))
    assert text.count("](https://arxiv.org/abs/") == 3 and "Args" not in text and "\n    code = 1" in text
    meanings = _docstrings.arguments(Documented)
    assert meanings == {"first": "what it is, on two lines.", "second, third": "two | at once."}
    assert _docstrings.table(("a",), [("b | c",)]).splitlines()[-1] == "| b \\| c |"
    assert _docstrings.summary(Documented).endswith("0009028))")
    assert _docstrings.field_docs(TaskConfig).keys() == TaskConfig.__dataclass_fields__.keys()
    with pytest.raises(ValueError, match="no docstring"):
        _docstrings.blocks(type("Silent", (), {}))


def test_hamiltonian_chains_have_the_right_law() -> None:
    scales = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)

    def energy(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x / scales).square().sum(1) - torch.log(1 + 0.9 * torch.sin(2 * x[:, 1]))

    start = torch.zeros(400, 3, dtype=torch.float64)
    x = _reference.hamiltonian(energy, start, steps=120, leapfrogs=12, step_size=0.02)
    assert x.shape == (400 * 6, 3)
    for i in (0, 2):  # standard error of a standard deviation, with states of one chain counted once
        assert float(x[:, i].std()) == pytest.approx(float(scales[i]), rel=4 / math.sqrt(2 * 400))
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    density = torch.exp(-grid.square() / 2) * (1 + 0.9 * torch.sin(2 * grid))
    mean = float((grid * density).sum() / density.sum())
    assert float(x[:, 1].mean()) == pytest.approx(mean, abs=4 / math.sqrt(400)) and mean > 0.2


@pytest.mark.parametrize(("name", "expected"), [("lj13", -83.0896), ("dw4", -25.7922)])
def test_lowest_energies(name: str, expected: float) -> None:
    with _reference.double_precision():
        value, where = _reference.lowest_energy(make_target(name))
    assert value == pytest.approx(expected, abs=1e-4)
    assert where.shape == (make_target(name).dim,)


def test_funnel_panel_is_the_marginal() -> None:
    shown = _figures.plane_energy(make_target("funnel10"))
    assert shown is not None
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    first = torch.distributions.Normal(0.0, 3.0).log_prob(x[:, 0])
    second = torch.distributions.Normal(0.0, (x[:, 0] / 2).exp()).log_prob(x[:, 1])
    torch.testing.assert_close(shown[1](x), -first - second, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("tiny")
def test_a_new_target_gets_page_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TARGETS, "_entries", {**TARGETS._entries, "new": New})
    monkeypatch.setattr(TASKS, "_entries", {**TASKS._entries, "new": TaskConfig("new", base=None, track="sample")})
    make_pages.main(["new", "--output", str(tmp_path)])
    text = (tmp_path / "targets" / "new.md").read_text(encoding="utf-8")
    assert "A standard normal." in text and "| lowest energy [nats] | 0.0000 |" in text
    assert imread(tmp_path / "targets" / "new.png").shape[0] >= 300
    with pytest.raises(SystemExit):
        make_pages.main(["gmm26"])


class New(Target):
    """A standard normal."""

    has_energy = True

    def __init__(self) -> None:
        super().__init__((3,), scale=1.0, plot_range=(-3.0, 3.0))

    def _energy(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(x, torch.zeros_like(x), reduction="none").sum(1) / 2
