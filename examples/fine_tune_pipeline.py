"""Fine-tune a diffusers pipeline toward a reward of your own, and see where the reward is hacked.

    python examples/fine_tune_pipeline.py --folder runs/fine_tune                    # makes a small one of digits first
    python examples/fine_tune_pipeline.py --folder runs/fine_tune --pipeline FOLDER  # of pipe.save_pretrained

The folder gets pictures of samples before and on the way, the agent's checkpoint, and the fine-tuned pipeline.
docs/your_own_pipeline.md walks through it.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor

from dxmi_rl import evaluate, make_agent, make_target, make_task
from dxmi_rl.agents import Agent
from dxmi_rl.envs.rendering import render_samples
from dxmi_rl.targets import Target
from dxmi_rl.utils.progress import progress


def reward(images: Tensor) -> Tensor:
    """What is wanted, one number per image: the left half mirrors the right half. A rule, without data."""
    return -(images - images.flip(-1)).square().mean((1, 2, 3))


def contrast(images: Tensor) -> Tensor:
    """What the reward does not see, and what its shortcut would cost: an image that is empty mirrors itself."""
    return images.flatten(1).std(1)


def make_pipeline(folder: Path, *, steps: int) -> None:
    """Something to fine-tune: a DDPM of 8 x 8 digits, trained as diffusers' own example does."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=8, add_attention=False,
        block_out_channels=(16, 32), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    scheduler, digits = DDPMScheduler(), make_target("digits")
    optimizer = torch.optim.Adam(unet.parameters(), lr=2e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    with progress("a pipeline of digits", steps) as advance:
        for step in range(steps):
            clean = digits.data(64, generator)
            noise = torch.randn(clean.shape, generator=generator)
            times = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), generator=generator)
            predicted = unet(scheduler.add_noise(clean, noise, times), times).sample
            optimizer.zero_grad()
            (predicted - noise).square().mean().backward()
            optimizer.step()
            rates.step()
            advance(step + 1)
    DDPMPipeline(unet, scheduler).save_pretrained(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Make or read the pipeline, fine-tune it, write pictures and the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for everything that is written")
    parser.add_argument("--pipeline", type=Path, help="a folder that pipe.save_pretrained wrote; a small one is made")
    parser.add_argument("--agent", default="grpo", help="an agent that starts at the base sampler")
    parser.add_argument("--beta", type=float, default=0.02, help="a small one follows the reward; in its units")
    parser.add_argument("--horizon", type=int, default=4, help="denoising steps")
    parser.add_argument("--rewards", type=int, default=6400, help="evaluations of the reward")
    parser.add_argument("--pretraining", type=int, default=2000, help="training steps of the pipeline that is made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args(argv)
    folder: Path = asked.folder
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = asked.pipeline or folder / "pipeline"
    if asked.pipeline is not None and not pipeline.is_dir():
        parser.error(f"pipeline must be the folder of one, got {str(pipeline)!r}")
    if not pipeline.exists():
        make_pipeline(pipeline, steps=asked.pretraining)

    config = UNet2DModel.load_config(pipeline / "unet")
    shape = (config["in_channels"], config["sample_size"], config["sample_size"])
    images = Target(shape, scale=0.5, plot_range=(-1.0, 1.0))  # all that is known of them
    task = make_task(
        images, denoiser=str(pipeline), schedule="cosine", horizon=asked.horizon, reward=reward, beta=asked.beta,
        backward="base", device=asked.device,
    )  # fmt: skip
    agent = make_agent(asked.agent, task, seed=asked.seed)

    def look(agent: Agent[Any], name: str) -> None:
        x = agent.sample(256, seed=0)
        scores = evaluate(agent, samples=256, trajectories=256)
        print(
            f"{name:>12}: reward {scores['reward']:.4f}, divergence from the pipeline {scores['kl_base']:.2f} nats, "
            f"contrast {float(contrast(x).mean()):.3f}"
        )
        titled = copy.copy(images)
        titled.name = name
        Image.fromarray(render_samples(titled, x[:64].cpu())).save(folder / f"{name}.png")

    seen = 0

    def watch(agent: Agent[Any]) -> None:
        nonlocal seen
        quarter = 4 * agent.costs.energy_evals // asked.rewards
        if quarter > seen:
            seen = quarter
            look(agent, f"after-{agent.costs.energy_evals}")

    look(agent, "before")
    agent.learn(energy_evals=asked.rewards, callback=watch, checkpoint=folder / "agent.safetensors", progress_bar=True)
    fine_tuned = DDPMPipeline.from_pretrained(pipeline)
    fine_tuned.unet.load_state_dict(agent.policy.base.denoiser.net.state_dict())
    fine_tuned.save_pretrained(folder / "fine-tuned")
    return 0


if __name__ == "__main__":
    sys.exit(main())
