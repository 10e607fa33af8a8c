"""Rewards of images with values in [-1, 1]: class, width of strokes, colour, size of the JPEG file, measurements."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dxmi_rl.networks.features import load_features
from dxmi_rl.targets.base import Target
from dxmi_rl.targets.image_set import ImageSet
from dxmi_rl.utils.checks import check_integer, check_real, require


class DigitClass(nn.Module):
    """log p(label | x) of the digits' classifier, in nats: at beta = 1 the aim is the samples of one class.

    Raises ValueError for other images than 8 x 8 digits and a label outside 0..9.
    """

    def __init__(self, target: Target, *, label: int) -> None:
        super().__init__()
        _check_shape("digit-class", target, (1, 8, 8))
        self.label = check_integer("label", label, minimum=0)
        if self.label > 9:
            raise ValueError(f"label must lie in 0..9, got {label}.")
        self.classifier = copy.deepcopy(load_features("digits", target.device))  # moves with this, and others' stay

    def forward(self, x: Tensor) -> Tensor:
        """r(x), ``[batch]``."""
        logits: Tensor = self.classifier.logits(x)  # type: ignore[operator]
        return logits.log_softmax(1)[:, self.label]


class StrokeWidth(nn.Module):
    """Mean width of bright strokes on dark ground, in pixels: twice the area of the ink over its perimeter.

    With ink u = (x + 1) / 2 the area is the sum of u, and the perimeter the sum of |differences| of neighbours, beyond
    the border u = 0. A long bar of n pixels has a width of n. Raises ValueError for coloured images.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        _check_shape("stroke-width", target, (1, None, None))

    def forward(self, x: Tensor) -> Tensor:
        """r(x), ``[batch]``."""
        ink = nn.functional.pad((x[:, 0] + 1) / 2, (1, 1, 1, 1))
        perimeter = sum(ink.diff(dim=axis).abs().sum((1, 2)) for axis in (1, 2))
        return 2 * ink.sum((1, 2)) / (perimeter + 1e-3)


class MeanColor(nn.Module):
    """Minus the squared distance of the mean colour to ``color``, three numbers in [-1, 1] (red by default).

    Raises ValueError for images without colours.
    """

    color: Tensor

    def __init__(self, target: Target, *, color: Sequence[float] = (1.0, -1.0, -1.0)) -> None:
        super().__init__()
        _check_shape("mean-color", target, (3, None, None))
        wanted = torch.as_tensor(color, dtype=target.anchor.dtype)
        if wanted.shape != (3,) or not bool((wanted.abs() <= 1).all()):
            raise ValueError(f"color must be three numbers in [-1, 1], got {color!r}.")
        self.register_buffer("color", wanted.to(target.device))

    def forward(self, x: Tensor) -> Tensor:
        """r(x), ``[batch]``."""
        return -(x.mean((2, 3)) - self.color.to(x.dtype)).square().sum(1)


class Compressibility(nn.Module):
    """Minus the size of the image's JPEG file in kilobytes (DDPO, arXiv 2305.13301): a black box, without gradient.

    Args:
        quality: JPEG's, 1 to 95.

    Raises ValueError for what is no image, MissingExtraError without pillow.
    """

    def __init__(self, target: Target, *, quality: int = 95) -> None:
        super().__init__()
        _check_shape("compressibility", target, (None, None, None))
        require("PIL", "images")
        self.quality = check_integer("quality", quality)
        if self.quality > 95:
            raise ValueError(f"quality must lie in 1..95, got {quality}.")

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """r(x), ``[batch]``."""
        from PIL import Image

        pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        sizes = []
        for picture in pixels:
            file = io.BytesIO()
            Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(
                file, "JPEG", quality=self.quality
            )
            sizes.append(len(file.getvalue()))
        return -torch.tensor(sizes, dtype=x.dtype, device=x.device) / 1000


class Measurement(nn.Module):
    """Log-likelihood of a linear measurement, up to a constant: r(x) = -|A (x - y)|^2 / (2 noise^2).

    y is test image number ``image``; at beta = 1 the aim is the posterior of images given what was measured of it.

    Raises ValueError for targets without test images, an image that is not there, and noise <= 0.
    """

    measured: Tensor

    def __init__(self, target: Target, *, image: int = 0, noise: float) -> None:
        super().__init__()
        if not isinstance(target, ImageSet):
            raise ValueError(f"a measurement is of a set of images, and target {target.name!r} is none.")
        held, place = target.test_images, check_integer("image", image, minimum=0)
        if place >= len(held):
            raise ValueError(f"image must lie in 0..{len(held) - 1}, the test images of {target.name!r}, got {image}.")
        self.noise = check_real("noise", noise, strict=True)
        self.register_buffer("measured", self.measure(held[place : place + 1]))

    def measure(self, x: Tensor) -> Tensor:
        """A x: ``[batch, *event_shape] -> [batch, ...]``."""
        raise NotImplementedError(f"{type(self).__name__} must define measure.")

    def forward(self, x: Tensor) -> Tensor:
        """r(x), ``[batch]``."""
        errors = (self.measure(x) - self.measured.to(x.dtype)).flatten(1)
        return -errors.square().sum(1) / (2 * self.noise**2)


class Inpainting(Measurement):
    """The upper half of a held-out image is known, up to noise of standard deviation ``noise`` in every value."""

    def __init__(self, target: Target, *, image: int = 0, noise: float = 0.5) -> None:
        super().__init__(target, image=image, noise=noise)

    def measure(self, x: Tensor) -> Tensor:
        return x[:, :, : x.shape[2] // 2]


class SuperResolution(Measurement):
    """The means of blocks of ``factor`` x ``factor`` values of a held-out image are known, up to noise.

    Raises ValueError also for a factor that does not divide height and width.
    """

    def __init__(self, target: Target, *, image: int = 0, factor: int = 2, noise: float = 0.25) -> None:
        self.factor = check_integer("factor", factor)
        if any(side % self.factor for side in target.event_shape[1:]):
            raise ValueError(f"factor must divide height and width, {list(target.event_shape[1:])}, got {factor}.")
        super().__init__(target, image=image, noise=noise)

    def measure(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, self.factor)


def _check_shape(name: str, target: Target, wanted: tuple[int | None, ...]) -> None:
    shape = target.event_shape
    if len(shape) != 3 or any(size not in (None, own) for own, size in zip(shape, wanted, strict=True)):
        sizes = " x ".join("any" if size is None else str(size) for size in wanted)
        raise ValueError(f"reward {name!r} is of images {sizes}, and target {target.name!r} has {list(shape)}.")
