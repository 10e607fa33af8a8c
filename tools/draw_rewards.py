"""Draw docs/pictures/image_rewards.png: samples of digits' reward tasks before and after training.

    python tools/draw_rewards.py    # five minutes of one core

It prints the mean reward of both. DPOK, 10,000 evaluations of the reward, seed 0; the same noise in both columns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from dxmi_rl import make_agent, make_task
from dxmi_rl.benchmark.pictures import save_figure
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.targets import ImageSet, RewardEnergy

FILE = Path(__file__).parents[1] / "docs" / "pictures" / "image_rewards.png"
NAMES = ("digits-class", "digits-stroke", "digits-inpainting", "digits-super-resolution")
SHOWN, SAMPLES = 32, 2000


def show(axes: Axes, x: Tensor, title: str) -> None:
    """Images in rows of eight."""
    framed = torch.nn.functional.pad(x.squeeze(1), (0, 1, 0, 1), value=0.2)
    rows = framed.unflatten(0, (-1, min(8, len(x)))).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    axes.imshow(rows.cpu(), cmap="gray", vmin=-1, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


def main() -> None:
    """Train, print, draw."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    figure = Figure(figsize=(9.6, 1.85 * len(NAMES)), layout="constrained")
    for line, name in zip(figure.subplots(len(NAMES), 3), NAMES, strict=True):
        task = make_task(name)
        energy, target = task.mdp.energy.function, task.target
        assert isinstance(energy, RewardEnergy) and isinstance(target, ImageSet)
        agents = {"before": make_agent("base", task), "after": make_agent("dpok", task, seed=0)}
        with one_thread():
            agents["after"].learn(energy_evals=10_000)
        if hasattr(energy.reward, "measured"):
            show(line[0], target.test_images[:1], f"{name}: what is measured")
        else:
            show(line[0], target.test_images[:SHOWN], f"{name}: test images")
        for axes, (when, agent) in zip(line[1:], agents.items(), strict=True):
            x = agent.sample(SAMPLES, seed=0)
            with torch.no_grad():
                reward = float(energy.rewards(x).double().mean())
            print(f"{name}, {when}: mean reward {reward:.3f}", flush=True)
            show(axes, x[:SHOWN], f"{when}: mean reward {reward:.2f}")
    FigureCanvasAgg(figure)
    save_figure(figure, FILE, dpi=90)


if __name__ == "__main__":
    main()
