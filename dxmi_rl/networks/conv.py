"""Convolutional networks of images, plain and of (x, t)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from dxmi_rl.networks.mlp import step_codes

SMALLEST_MAP = 4
"""Convolutional networks halve height and width down to this."""


class ConvBlock(nn.Module):
    """h + conv(silu(conv(silu(h)) + condition)), 3 x 3, in ``outputs`` channels; h is projected where they differ."""

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip: nn.Module = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.condition = nn.Linear(condition, outputs, bias=False) if condition else None

    def forward(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        hidden = self.first(nn.functional.silu(x))
        if self.condition is not None and code is not None:
            hidden = hidden + self.condition(code)[:, :, None, None]
        skipped: Tensor = self.skip(x)
        change: Tensor = self.second(nn.functional.silu(hidden))
        return skipped + change


class ConvEncoder(nn.Module):
    """A residual convolutional network of images, ``[batch, *event], [batch, condition] -> [batch, outputs]``.

    A stage has ``depth`` blocks, and between stages height and width are halved (an odd row or column is left out), as
    often as the smaller stays at four or more; the first stage has ``width`` channels and all others twice as many. The
    last map is averaged over space. There are no norms, which would let images of a batch see each other.

    Args:
        event_shape: ``(channels, height, width)``.
        outputs: size of the output.
        condition: size of the conditioning vector that all blocks see (0: none).

    Raises ValueError for another event_shape.
    """

    def __init__(
        self, event_shape: tuple[int, ...], outputs: int, *, width: int, depth: int, condition: int = 0
    ) -> None:  # fmt: skip
        super().__init__()
        if len(event_shape) != 3:
            raise ValueError(f"a convolutional network needs images (channels, height, width), got {event_shape}.")
        colours, *sides = event_shape
        stages = 1 + max(0, math.floor(math.log2(min(sides) / SMALLEST_MAP)))
        self.first = nn.Conv2d(colours, width, 3, padding=1)
        sizes = [width, *[2 * width] * (stages - 1)]
        self.stages = nn.ModuleList(
            nn.ModuleList(
                ConvBlock(sizes[max(0, stage - (block == 0))], sizes[stage], condition) for block in range(depth)
            )
            for stage in range(stages)
        )
        self.last = nn.Linear(sizes[-1], outputs)

    def forward(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        hidden = self.first(x)
        for index, stage in enumerate(self.stages):
            if index:
                hidden = nn.functional.avg_pool2d(hidden, 2)
            for block in stage:  # type: ignore[attr-defined]
                hidden = block(hidden, code)
        out: Tensor = self.last(nn.functional.silu(hidden).mean((2, 3)))
        return out


class StepConv(nn.Module):
    """A ConvEncoder of (x, t), with ``codes`` as ``StepMLP``: x is divided by ``input_scale[t]`` first."""

    input_scale: Tensor
    codes: Tensor

    def __init__(
        self, event_shape: tuple[int, ...], outputs: int, input_scale: Tensor, *, width: int, depth: int,
        codes: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        codes = step_codes(input_scale, codes)
        self.net = ConvEncoder(event_shape, outputs, width=width, depth=depth, condition=codes.shape[1])
        self.register_buffer("input_scale", input_scale.clone())
        self.register_buffer("codes", codes)

    @property
    def last(self) -> nn.Linear:
        """The last layer."""
        return self.net.last

    def forward(self, x: Tensor, t: Tensor | int) -> Tensor:
        scale = self.input_scale[t] if isinstance(t, int) else self.input_scale[t].view(-1, 1, 1, 1)
        out: Tensor = self.net(x / scale, self.codes[t].expand(len(x), -1))
        return out
