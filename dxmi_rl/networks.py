"""Networks: one multilayer perceptron conditioned on the step or on the noise level, and an energy on top of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SMALLEST_MAP = 4
"""Convolutional networks halve height and width down to this."""
POWER_ITERATIONS = 3
"""Of spectral norms per update: with one, Adam's steps are ahead of the estimate."""


class FourierFeatures(nn.Module):
    """``[batch, d] -> [batch, d (1 + 2 F)]``: x with sin and cos of pi 2^k x / 2, k = 0..F-1 (Tancik et al. 2020).

    With ``fade`` the sines vanish where the mean square of x is well beyond ``fade``: far from the data, where nothing
    trains it, a network should extrapolate as a plain perceptron does, not repeat itself.
    """

    frequencies: Tensor

    def __init__(self, count: int, fade: float | None = None) -> None:
        super().__init__()
        self.fade = fade
        self.register_buffer("frequencies", math.pi / 2 * 2.0 ** torch.arange(count))

    def forward(self, x: Tensor) -> Tensor:
        angles = (x[..., None] * self.frequencies).flatten(-2)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        if self.fade is not None:
            waves = waves / (1 + (x.square().mean(-1, keepdim=True) / self.fade) ** 6)
        return torch.cat([x, waves], dim=-1)


class ResidualBlock(nn.Module):
    """h + W2 silu(W1 norm(h)), width kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class MLP(nn.Module):
    """A perceptron on flattened events with SiLU units and an optional conditioning vector.

    Args:
        inputs: flattened size of one event.
        outputs: size of the output.
        condition: size of the conditioning vector that is concatenated to the input (0: none).
        width: units per layer.
        depth: hidden layers, or residual blocks when ``residual``.
        fourier: number of Fourier frequencies of the input (0: none); sharp low-dimensional functions need them.
        fade: mean square of the input beyond which the Fourier features vanish (None: nowhere).
        residual: pre-norm residual blocks instead of plain layers.
        zero: start at output zero.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        condition: int = 0,
        width: int = 128,
        depth: int = 3,
        fourier: int = 0,
        fade: float | None = None,
        residual: bool = False,
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.features: nn.Module = FourierFeatures(fourier, fade) if fourier else nn.Identity()
        size = inputs * (1 + 2 * fourier) + condition
        layers: list[nn.Module] = [nn.Linear(size, width)]
        if residual:
            layers += [ResidualBlock(width) for _ in range(depth)] + [nn.LayerNorm(width), nn.SiLU()]
        else:
            layers.append(nn.SiLU())
            for _ in range(depth - 1):
                layers += [nn.Linear(width, width), nn.SiLU()]
        last = nn.Linear(width, outputs)
        if zero:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """``[batch, inputs], [batch, condition] -> [batch, outputs]``."""
        hidden = self.features(x)
        if condition is not None:
            hidden = torch.cat([hidden, condition], dim=-1)
        return self.layers(hidden)


class CoordinateMLP(nn.Module):
    """One small perceptron for every coordinate of x, which sees that coordinate only; it starts at output zero.

    Args:
        dim: number d of coordinates.
        inputs: numbers c per coordinate.
        outputs: numbers o per coordinate.
        steps: number of steps; a bias of the first layer tells the steps and the coordinates apart.
        width: units per layer.
    """

    def __init__(self, dim: int, inputs: int, outputs: int, steps: int, *, width: int) -> None:
        super().__init__()
        self.shape = (inputs, dim)
        self.first = nn.Linear(inputs, width, bias=False)
        self.place = nn.Parameter(torch.zeros(steps, dim * width))
        self.hidden = nn.Linear(width, width)
        self.last = nn.Linear(width, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """``[batch, c d], [batch, steps] -> [batch, o d]``; code is one-hot, or ``[steps]`` for the whole batch."""
        place = (code @ self.place).view(-1, self.shape[1], self.first.out_features)
        hidden = nn.functional.silu(self.first(x.view(-1, *self.shape).transpose(1, 2)) + place)
        hidden = nn.functional.silu(self.hidden(hidden))
        return self.last(hidden).transpose(1, 2).flatten(1)


class StepMLP(nn.Module):
    """An MLP of (x, t), t = 0..steps-1 one-hot; x is divided by ``input_scale[t]`` first.

    Takes x ``[batch, *event]`` (flattened inside) and t as a LongTensor ``[batch]`` or an int; returns
    ``[batch, outputs]``. With ``coordinate_width`` the output of a ``CoordinateMLP`` over ``dim`` coordinates is added;
    inputs and outputs are then multiples of ``dim``, the coordinate running fastest; ValueError if they are not. With
    ``pooled`` it has all outputs for every coordinate and their mean over coordinates is added, as values need it.
    """

    input_scale: Tensor
    codes: Tensor

    def __init__(
        self, inputs: int, outputs: int, input_scale: Tensor, *, width: int, depth: int, fourier: int = 0,
        residual: bool = False, zero: bool = False, dim: int | None = None, coordinate_width: int = 0,
        pooled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        steps = len(input_scale)
        self.coordinates: CoordinateMLP | None = None
        if coordinate_width:
            if dim is None or inputs % dim or (outputs % dim and not pooled):
                raise ValueError(f"dim must divide {inputs} inputs and {outputs} outputs, got {dim!r}.")
            own_outputs = outputs if pooled else outputs // dim
            self.coordinates = CoordinateMLP(dim, inputs // dim, own_outputs, steps, width=coordinate_width)
        self.pool = (outputs, dim) if pooled and dim is not None else None
        self.mlp = MLP(
            inputs, outputs, condition=steps, width=width, depth=depth, fourier=fourier, residual=residual, zero=zero
        )
        self.register_buffer("input_scale", input_scale.clone())
        self.register_buffer("codes", torch.eye(steps, dtype=input_scale.dtype))

    @property
    def last(self) -> nn.Linear:
        """The MLP's last layer."""
        last = self.mlp.layers[-1]
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, x: Tensor, t: Tensor | int) -> Tensor:
        code = self.codes[t]
        x = x.flatten(1) / (self.input_scale[t] if isinstance(t, int) else self.input_scale[t, None])
        out = self.mlp(x, code.expand(len(x), -1))
        if self.coordinates is None:
            return out
        parts = self.coordinates(x, code)
        return out + (parts if self.pool is None else parts.view(-1, *self.pool).mean(2))


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
        return self.skip(x) + self.second(nn.functional.silu(hidden))


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
        return self.last(nn.functional.silu(hidden).mean((2, 3)))


class StepConv(nn.Module):
    """A ConvEncoder of (x, t), t = 0..steps-1 one-hot, as ``StepMLP``: x is divided by ``input_scale[t]`` first."""

    input_scale: Tensor
    codes: Tensor

    def __init__(
        self, event_shape: tuple[int, ...], outputs: int, input_scale: Tensor, *, width: int, depth: int
    ) -> None:  # fmt: skip
        super().__init__()
        self.net = ConvEncoder(event_shape, outputs, width=width, depth=depth, condition=len(input_scale))
        self.register_buffer("input_scale", input_scale.clone())
        self.register_buffer("codes", torch.eye(len(input_scale), dtype=input_scale.dtype))

    @property
    def last(self) -> nn.Linear:
        """The last layer."""
        return self.net.last

    def forward(self, x: Tensor, t: Tensor | int) -> Tensor:
        scale = self.input_scale[t] if isinstance(t, int) else self.input_scale[t].view(-1, 1, 1, 1)
        return self.net(x / scale, self.codes[t].expand(len(x), -1))


class EnergyNetwork(nn.Module):
    """An energy-based model E_phi of x / ``scale``: ``[batch, *event] -> [batch]``.

    With ``spectral_norm`` every layer is divided by its largest singular value; ``train()`` mode improves the
    estimate of it in each call, ``eval()`` mode keeps it.

    Attributes:
        limits: (low, high) that x is clipped to first, or None. Beyond them the energy has no slope.
    """

    limits: tuple[float, float] | None = None

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def seen(self, x: Tensor) -> Tensor:
        """What the energy sees of x."""
        return x if self.limits is None else x.clamp(*self.limits)

    def bound_slopes(self) -> None:
        """Give every layer spectral norm one, of a convolution that of its kernel as a matrix."""
        for layer in [module for module in self.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]:
            nn.utils.parametrizations.spectral_norm(layer, n_power_iterations=POWER_ITERATIONS)


class EnergyMLP(EnergyNetwork):
    """An MLP on flattened events. Raises ValueError for ``spectral_norm`` with ``residual``, whose norms have gains
    that it does not bound.
    """

    def __init__(
        self, dim: int, scale: float, *, width: int = 128, depth: int = 3, fourier: int = 0, residual: bool = False,
        spectral_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(scale)
        # 1.8: data have mean square one in these units, and a mode at the rim not much more.
        self.mlp = MLP(dim, 1, width=width, depth=depth, fourier=fourier, fade=1.8, residual=residual)
        if spectral_norm and residual:
            raise ValueError("spectral_norm must be False for residual blocks: the gains of their norms have no bound.")
        if spectral_norm:
            self.bound_slopes()

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.seen(x).flatten(1) / self.scale).squeeze(-1)


class EnergyConv(EnergyNetwork):
    """A ConvEncoder of images. With ``spectral_norm`` the slope is held down, not bounded by one: blocks add up."""

    def __init__(
        self, event_shape: tuple[int, ...], scale: float, *, width: int, depth: int, spectral_norm: bool = False
    ) -> None:  # fmt: skip
        super().__init__(scale)
        self.net = ConvEncoder(event_shape, 1, width=width, depth=depth)
        if spectral_norm:
            self.bound_slopes()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.seen(x) / self.scale).squeeze(-1)


class EnergyDenoiser(EnergyNetwork):
    """What a denoiser D takes out of x that has no noise: sum_k g_k |x - D(x, l_k)|^2 / (d c^2) + b, at few levels l_k.

    D is small on the data that it was trained on, so the energy is low there before it is trained: an autoencoder's
    reconstruction error (as in Yoon et al. 2021, arXiv 2105.05735), with D for autoencoder. D, the gains g and b
    (start: 0) are trained; copies of D are taken.

    Args:
        denoiser: D(x, alpha, s), such as the base sampler's.
        scale: c, the data's standard deviation.
        levels: l_k / c.
        power: p; the gains start at (l_k / c)^-p. 0: all levels count alike, and the noisiest say most, as what they
            take out is largest; 2: each in units of its own noise, so that faint noise in x counts.
    """

    levels: Tensor

    def __init__(
        self, denoiser: nn.Module, scale: float, *, levels: Sequence[float] = (0.5, 1.0, 2.0), power: float = 0.0
    ) -> None:  # fmt: skip
        super().__init__(scale)
        self.denoiser = copy.deepcopy(denoiser).requires_grad_(True)
        self.register_buffer("levels", scale * torch.tensor(levels))
        self.log_gain = nn.Parameter(-power * torch.tensor(levels).log())
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        n, copies = len(x), len(self.levels)
        rows = self.seen(x).repeat(copies, *[1] * (x.dim() - 1))
        level = self.levels.to(x.dtype).repeat_interleave(n)
        errors = ((rows - self.denoiser(rows, torch.ones_like(level), level)) / self.scale).flatten(1)
        return self.log_gain.exp() @ errors.square().mean(1).view(copies, n) + self.bias


@torch.no_grad()
def average_towards(average: nn.Module, current: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) current, for parameters; spectral norms are estimated anew."""
    parameters: list[Tensor] = list(average.parameters())
    if not parameters:
        return
    torch._foreach_lerp_(parameters, list(current.parameters()), 1 - decay)
    for layer in average.modules():
        if nn.utils.parametrize.is_parametrized(layer):
            layer.train()
            _ = layer.weight  # iterates on singular vectors of its own
            layer.eval()
