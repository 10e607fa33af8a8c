"""Networks: one multilayer perceptron conditioned on the step or on the noise level, and an energy on top of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """``[batch, d] -> [batch, d (1 + 2 F)]``: x with sin and cos of pi 2^k x / 2, k = 0..F-1 (Tancik et al. 2020).

    With ``fade`` the sines vanish where the mean square of x is well beyond ``fade``: far from the data, where nothing
    trains it, a network should extrapolate as a plain perceptron does, not repeat itself. Sines may be blurred: made as
    small as noise of standard deviation ``blur`` ``[batch, 1]`` on x makes their mean.
    """

    frequencies: Tensor

    def __init__(self, count: int, fade: float | None = None) -> None:
        super().__init__()
        self.fade = fade
        self.register_buffer("frequencies", math.pi / 2 * 2.0 ** torch.arange(count))

    def forward(self, x: Tensor, blur: Tensor | None = None) -> Tensor:
        angles = (x[..., None] * self.frequencies).flatten(-2)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        if blur is not None:
            waves = waves * torch.exp(-0.5 * (blur * self.frequencies).square()).repeat(1, 2 * x.shape[-1])
        if self.fade is not None:
            waves = waves / (1 + (x.square().mean(-1, keepdim=True) / self.fade) ** 6)
        return torch.cat([x, waves], dim=-1)


class ResidualBlock(nn.Module):
    """h + W2 silu(W1 norm(h)), width kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.body(x)
        return x + change


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
        gated: the conditioning vector also multiplies every unit, by 1 at first.
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
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.features = FourierFeatures(fourier, fade) if fourier else None
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
        gates = [nn.Linear(condition, width, bias=False) for _ in range((depth + residual) * gated)]
        for gate in gates:
            nn.init.zeros_(gate.weight)
        self.gates = nn.ModuleList(gates)

    def forward(self, x: Tensor, condition: Tensor | None = None, blur: Tensor | None = None) -> Tensor:
        """``[batch, inputs], [batch, condition] -> [batch, outputs]``; ``blur`` as in FourierFeatures."""
        hidden: Tensor = x if self.features is None else self.features(x, blur)
        if condition is not None:
            hidden = torch.cat([hidden, condition], dim=-1)
        gates = iter(self.gates)
        for layer in self.layers:
            hidden = layer(hidden)
            if isinstance(layer, nn.Linear | ResidualBlock) and (gate := next(gates, None)) is not None:
                hidden = hidden * (1 + gate(condition))
        return hidden


class CoordinateMLP(nn.Module):
    """One small perceptron for every coordinate of x, which sees that coordinate only; it starts at output zero.

    Args:
        dim: number d of coordinates.
        inputs: numbers c per coordinate.
        outputs: numbers o per coordinate.
        steps: numbers in the code of a step; a bias of the first layer tells the steps and the coordinates apart.
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
        """``[batch, c d], [batch, steps] -> [batch, o d]``; code may be ``[steps]`` for the whole batch."""
        place = (code @ self.place).view(-1, self.shape[1], self.first.out_features)
        hidden = nn.functional.silu(self.first(x.view(-1, *self.shape).transpose(1, 2)) + place)
        hidden = nn.functional.silu(self.hidden(hidden))
        out: Tensor = self.last(hidden)
        return out.transpose(1, 2).flatten(1)


def step_codes(input_scale: Tensor, codes: Tensor | None) -> Tensor:
    """What a network is told of each of its steps, ``[steps, C]``: ``codes``, or the steps' numbers, one-hot."""
    return torch.eye(len(input_scale), dtype=input_scale.dtype) if codes is None else codes.clone()


class StepMLP(nn.Module):
    """An MLP of (x, t), t = 0..steps-1 one-hot or as ``codes[t]``; x is divided by ``input_scale[t]`` first. With
    ``codes``, where one network serves several horizons or classes, they multiply the hidden units, too.

    Takes x ``[batch, *event]`` (flattened inside) and t as a LongTensor ``[batch]`` or an int; returns
    ``[batch, outputs]``. With ``coordinate_width`` the output of a ``CoordinateMLP`` over ``dim`` coordinates is added;
    inputs and outputs are then multiples of ``dim``, the coordinate running fastest; ValueError if they are not. With
    ``pooled`` it has all outputs for every coordinate and their mean over coordinates is added, as values need it.
    """

    input_scale: Tensor
    codes: Tensor
    blur: Tensor | None

    def __init__(
        self, inputs: int, outputs: int, input_scale: Tensor, *, width: int, depth: int, fourier: int = 0,
        residual: bool = False, zero: bool = False, dim: int | None = None, coordinate_width: int = 0,
        pooled: bool = False, fade: float | None = None, blur: Tensor | None = None, codes: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        several = codes is not None
        codes = step_codes(input_scale, codes)
        steps = codes.shape[1]
        self.coordinates: CoordinateMLP | None = None
        if coordinate_width:
            if dim is None or inputs % dim or (outputs % dim and not pooled):
                raise ValueError(f"dim must divide {inputs} inputs and {outputs} outputs, got {dim!r}.")
            own_outputs = outputs if pooled else outputs // dim
            self.coordinates = CoordinateMLP(dim, inputs // dim, own_outputs, steps, width=coordinate_width)
        self.pool = (outputs, dim) if pooled and dim is not None else None
        self.mlp = MLP(
            inputs, outputs, condition=steps, width=width, depth=depth, fourier=fourier, fade=fade, residual=residual,
            zero=zero, gated=several,
        )  # fmt: skip
        self.register_buffer("input_scale", input_scale.clone())
        self.register_buffer("blur", blur)
        self.register_buffer("codes", codes)

    @property
    def last(self) -> nn.Linear:
        """The MLP's last layer."""
        last = self.mlp.layers[-1]
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, x: Tensor, t: Tensor | int) -> Tensor:
        code = self.codes[t]
        x = x.flatten(1) / (self.input_scale[t] if isinstance(t, int) else self.input_scale[t, None])
        blur = None if self.blur is None else self.blur[t].expand(len(x))[:, None]
        out: Tensor = self.mlp(x, code.expand(len(x), -1), blur)
        if self.coordinates is None:
            return out
        parts: Tensor = self.coordinates(x, code)
        return out + (parts if self.pool is None else parts.view(-1, *self.pool).mean(2))

    @staticmethod
    def soft_clip(x: Tensor, limit: float) -> Tensor:
        """x / sqrt(1 + (x / limit)^2): x where it is small, never beyond ``limit``."""
        return x / torch.hypot(torch.ones_like(x), x / limit)
