"""Make the reference states of particle systems, dxmi_rl/data/particles.safetensors, and print how far to trust them.

    python tools/make_references.py                 # all
    python tools/make_references.py dw4             # this one; the others stay

Hamiltonian Monte Carlo in float64, half of the chains from near the lowest energy, half from where annealed importance
sampling ends that started in noise. Printed for the energy, the radius of gyration and the largest distance: the split
R-hat over all chains (Vehtari et al. 2021, arXiv 1903.08008, without ranks), the means of either half of the chains,
and the integrated autocorrelation time in kept states. The states that are shipped are drawn from all of them without
replacement, and turned, mirrored and relabelled at random, as the energy allows. Seeds are fixed; minutes on one core.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from docpages.references import double_precision, hamiltonian, lowest_energy
from torch import Tensor

from dxmi_rl import make_target
from dxmi_rl.evaluation import annealed_importance_sampling
from dxmi_rl.evaluation.particles import random_symmetries
from dxmi_rl.targets import ParticleTarget
from dxmi_rl.targets.particles import REFERENCES
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import load_tensors, save_tensors

CHAINS = 128
"""From either kind of start."""
STATES = 6000
"""Kept for the file."""
STEPS, LEAPFROGS = {"dw4": 20_000, "lj13": 3000}, {"dw4": 10, "lj13": 20}
EVERY = 10


def split_r_hat(values: np.ndarray) -> float:
    """Of ``[states, chains]``: root of the total variance over that within halves of chains."""
    half = len(values) // 2
    parts = np.concatenate([values[:half], values[half : 2 * half]], axis=1)
    within = parts.var(axis=0, ddof=1).mean()
    return float(np.sqrt((half - 1) / half + parts.mean(axis=0).var(ddof=1) / within))


def autocorrelation_time(values: np.ndarray) -> float:
    """Of ``[states, chains]``, in states: 1 + 2 sum of the chains' mean autocorrelations, up to five times itself."""
    centred = values - values.mean()
    variance, total = float(np.square(centred).mean()), 1.0
    for lag in range(1, len(values) // 2):
        total += 2 * float((centred[lag:] * centred[:-lag]).mean()) / variance
        if lag >= 5 * total:
            break
    return total


def make(name: str) -> Tensor:
    """The reference states of one target, ``[STATES, dim]`` in float32."""
    start = time.perf_counter()
    with double_precision():
        target = make_target(name)
        assert isinstance(target, ParticleTarget)
        generator = torch.Generator().manual_seed(1)
        lowest = lowest_energy(target)[1]
        near = lowest + (target.smallest_scale or 0.1) * torch.randn(CHAINS, target.dim, generator=generator)
        annealed = annealed_importance_sampling(
            target.energy, target.event_shape, scale=2 * target.scale, chains=CHAINS, cess=0.995, seed=1
        )
        first = torch.cat([near, annealed.samples.double()])
        chains = hamiltonian(
            target.energy, first, steps=STEPS[name], leapfrogs=LEAPFROGS[name], step_size=0.01, every=EVERY
        ).view(-1, 2 * CHAINS, target.dim)
        flat = chains.flatten(0, 1)
        positions = target.positions(flat)
        distances = (positions[:, target.pairs[0]] - positions[:, target.pairs[1]]).norm(dim=-1)
        told = {
            "energy": target.energy(flat),
            "radius of gyration": positions.square().sum(-1).mean(1).sqrt(),
            "largest distance": distances.amax(1),
        }
        print(f"{name}: {len(chains)} states of {2 * CHAINS} chains, {time.perf_counter() - start:.0f} s")
        for label, value in told.items():
            values = value.view(len(chains), -1).numpy()
            print(
                f"  {label}: R-hat {split_r_hat(values):.4f}, means {values[:, :CHAINS].mean():.4f} (from the lowest "
                f"energy) and {values[:, CHAINS:].mean():.4f} (from noise), standard deviation {values.std():.4f}, "
                f"autocorrelation time {autocorrelation_time(values):.1f} kept states"
            )
        chosen = flat[torch.randperm(len(flat), generator=generator)[:STATES]]
        return target.coordinates(random_symmetries(target.positions(chosen), generator)).float()


def main() -> None:
    """Parse the command line, make and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="target", help="targets; all")
    names = parser.parse_args().names or list(STEPS)
    for name in names:
        if name not in STEPS:
            parser.error(str(UnknownNameError("target", name, list(STEPS))))
    torch.set_num_threads(1)
    kept = load_tensors(REFERENCES)[0] if REFERENCES.exists() else {}
    made = {name: make(name) for name in names}
    save_tensors(REFERENCES, kept | made, {"command": "python tools/make_references.py"})


if __name__ == "__main__":
    main()
