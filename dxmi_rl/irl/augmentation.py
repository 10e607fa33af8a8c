"""Random changes of the images that the energy learns from, as many as it takes to keep it from learning them by heart.

After Karras et al. 2020, "Training generative adversarial networks with limited data" (arXiv 2006.06676).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from dxmi_rl.irl.config import DxMIConfig
from dxmi_rl.targets import Target
from dxmi_rl.utils.checks import check_real

# As the paper's, but for rotations and scalings, which are smaller: a turned digit is another one, or none.
SHIFT = 1 / 8
"""Largest translation over the side, in whole pixels and one at least."""
ZOOM = 0.2
"""Largest binary logarithm of the scaling."""
TURN = math.pi / 18
"""Largest rotation."""
BRIGHTNESS = 0.2
"""Largest change of all values, over half of the target's ``plot_range``."""
CONTRAST = 0.4
"""Largest binary logarithm of the factor about the middle of that range."""
ADJUSTED_OVER = 50_000
"""Rows of data in which p can go from 0 to 1: a tenth of the paper's, as games are shorter."""
LARGEST = 0.7
"""Largest p. From 0.75 on, translations by -1, 0 or 1 pixels (a third each) remove a frequency from small images."""


class Augmentation(nn.Module):
    """Each of some changes happens to each image with probability p, on data and samples alike.

    They are a translation by whole pixels, isotropic scaling, rotation (bilinear; beyond its borders an image goes on
    as its reflection), brightness, contrast and, if asked for, mirroring of every second image; all uniform within the
    constants above. Up to ``LARGEST`` distributions of images that are the same after these changes are the same before
    (section 2.2), so that the game still ends at the data. Unlike in the paper the sampler's reward is the energy of
    images as they are, of which the energy then sees few: on the way there it may call changed images good.
    With a ``wanted`` separation p is adjusted (``adapt``).

    Args:
        target: images, ``event_shape`` (channels, height, width).
        probability: p at the start, in [0, LARGEST].
        wanted: separation in (0, 1) that p is adjusted to; None: p stays.
        flip: mirror images, too.
    """

    probability: Tensor

    def __init__(self, target: Target, probability: float, *, wanted: float | None = None, flip: bool = False) -> None:
        super().__init__()
        self.register_buffer("probability", torch.tensor(float(probability)))
        self.wanted, self.flip = wanted, flip
        low, high = target.plot_range
        self.middle, self.half_range = (low + high) / 2, (high - low) / 2

    @torch.no_grad()
    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Changed images ``[n, channels, height, width]``, without gradient; an unchanged one is so bit for bit."""
        n, (height, width) = len(x), x.shape[2:]
        noise = torch.rand(13, n, generator=generator, device=x.device, dtype=x.dtype)
        chosen = noise[:6] < self.probability
        values = 2 * noise[6:] - 1
        right, down = _whole_pixels(noise[6], width), _whole_pixels(noise[7], height)
        shifted, zoomed, turned, brightened, contrasted = chosen[:5]
        mirrored = chosen[5] & (values[6] > 0) if self.flip else torch.zeros_like(shifted)
        # Where each pixel of the result comes from, in grid_sample's coordinates: the side is 2, whatever its length.
        zoom, angle = torch.exp2(-ZOOM * zoomed * values[2]), TURN * turned * values[3]
        cos, sin, sign = zoom * angle.cos(), zoom * angle.sin(), 1 - 2 * mirrored.to(x.dtype)
        rows = [
            sign * cos, -sign * sin * height / width, -2 * shifted * right / width,
            sin * width / height, cos, -2 * shifted * down / height,
        ]  # fmt: skip
        grid = affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(x.shape), align_corners=False)
        moved = grid_sample(x, grid, padding_mode="reflection", align_corners=False)
        gain = torch.exp2(CONTRAST * contrasted * values[5])
        offset = BRIGHTNESS * self.half_range * brightened * values[4]
        changed = self.middle + _wide(gain) * (moved - self.middle) + _wide(offset)
        untouched = ~(chosen[:5].any(0) | mirrored)
        return torch.where(_wide(untouched), x, changed)

    @torch.no_grad()
    def adapt(self, energy_data: Tensor, energy_policy: Tensor) -> dict[str, float | Tensor]:
        """One adjustment of p from energies ``[n]`` of data and of samples; returns both to log.

        The separation is r = E[sign(E(sample) - E(datum))] over n pairs, 2 AUC - 1: 0 for an energy that cannot tell
        the two apart, 1 for one that always can. Energies have no zero that means anything, so they are compared with
        each other; the paper has r_t = E[sign(D(datum))] instead, whose 0.6 is some 0.77 here (for outputs that are
        Gaussian on both sides). p moves by n / ADJUSTED_OVER, up where r is above ``wanted``, down where it is below,
        and stays in [0, LARGEST]. Nothing waits for the device.
        """
        separation = (energy_policy - energy_data).sign().mean()
        if self.wanted is not None:
            step = len(energy_data) / ADJUSTED_OVER
            self.probability.add_(step * (separation - self.wanted).sign()).clamp_(0, LARGEST)
        return {"separation": separation, "augmentation": self.probability.clone()}


def _whole_pixels(noise: Tensor, side: int) -> Tensor:
    """Translations along a side from uniform numbers in [0, 1)."""
    largest = max(1, int(SHIFT * side))
    return (noise * (2 * largest + 1)).floor() - largest


def _wide(per_image: Tensor) -> Tensor:
    """``[n] -> [n, 1, 1, 1]``."""
    return per_image.view(-1, 1, 1, 1)


def make_augmentation(target: Target, config: DxMIConfig) -> Augmentation | None:
    """What the settings ask for, or None where that is nothing.

    Raises TypeError or ValueError for values that are not allowed and for targets that are no images.
    """
    probability, wanted = check_real("augmentation", config.augmentation), config.augmentation_target
    if probability > LARGEST:
        raise ValueError(f"augmentation must lie in [0, {LARGEST}], got {probability}.")
    if not isinstance(config.augmentation_flip, bool):
        raise TypeError(f"augmentation_flip must be True or False, got {config.augmentation_flip!r}.")
    if wanted is not None and not 0 < check_real("augmentation_target", wanted) < 1:
        raise ValueError(f"augmentation_target must be None or lie in (0, 1), got {wanted}.")
    if not probability and wanted is None:
        if config.augmentation_flip:
            raise ValueError("augmentation_flip must be False without augmentation or augmentation_target.")
        return None
    if len(target.event_shape) != 3:
        setting = f"augmentation = {probability}" if wanted is None else f"augmentation_target = {wanted}"
        raise ValueError(
            f"{setting} is for images, states (channels, height, width), and those of target {target.name!r} are "
            f"{target.event_shape}."
        )
    return Augmentation(target, probability, wanted=wanted, flip=config.augmentation_flip)
