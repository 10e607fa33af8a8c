"""Networks for identical particles: invariant numbers and equivariant vectors of a configuration."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dxmi_rl.networks.mlp import StepMLP, step_codes

RADII = 16
"""Radial features of a distance."""
FARTHEST = 4.0
"""Largest distance that radial features tell apart, in units of the input's scale."""


def zero_mean_basis(particles: int) -> Tensor:
    """The Helmert matrix ``[N, N - 1]``: orthonormal columns that sum to zero. Positions with mean zero are B y."""
    basis = torch.zeros(particles, particles - 1, dtype=torch.float64)
    for k in range(1, particles):  # column k: the first k particles against particle k + 1
        basis[:k, k - 1], basis[k, k - 1] = 1, -k
        basis[:, k - 1] /= math.sqrt(k * (k + 1))
    return basis.to(torch.get_default_dtype())


def check_without_coordinates(name: str, coordinate_width: int) -> None:
    """Raise ValueError for coordinate-wise networks of particles, which would tell directions in space apart."""
    if coordinate_width:
        raise ValueError(f"{name} must be 0 for particles, whose network has none, got {coordinate_width}.")


_act = nn.functional.silu


class Messages(nn.Module):
    """One round of a ParticleMLP: numbers of pairs and particles, and a vector per particle.

    Args:
        vectors: input vectors per particle; the first are the positions.
        steps: numbers of a step's code.
        width: units per layer of the particles' perceptron; the pairs' have half as many.
        first: there is no round before this one, whose numbers it would be given.
        gives_vectors: whether ``vector`` can be called.
    """

    def __init__(self, vectors: int, steps: int, width: int, *, first: bool, gives_vectors: bool) -> None:
        super().__init__()
        self.gives_vectors = gives_vectors
        narrow = max(1, width // 2)  # there are far more pairs than particles
        self.pair = nn.Linear(1 + RADII + 2 * (vectors - 1) + (0 if first else narrow), narrow)
        self.pair_step = nn.Linear(steps, narrow, bias=False)
        self.pair_hidden = nn.Linear(narrow, narrow)
        self.particle = nn.Linear(narrow + (0 if first else width), width)
        self.particle_step = nn.Linear(steps, width, bias=False)
        self.particle_hidden = nn.Linear(width, width)
        if not first:
            self.pair_particle = nn.Linear(width, narrow, bias=False)
        if gives_vectors:
            self.weight, self.weight_last = nn.Linear(narrow, narrow), nn.Linear(narrow, vectors)
            self.weight_particle = nn.Linear(width, narrow, bias=False)

    def forward(
        self, features: list[Tensor], before: tuple[Tensor, Tensor] | None, pairs: Tensor, mean: Tensor, code: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Numbers of pairs ``[batch, pairs, width // 2]`` and particles ``[batch, N, width]``.

        ``features`` are those of pairs, ``before`` what the round before gave, and ``mean`` averages over the pairs of
        each particle.
        """
        if before is None:
            pair = self.pair(torch.cat(features, -1))
        else:
            pair = self.pair(torch.cat([*features, before[0]], -1)) + _of_both(self.pair_particle(before[1]), pairs)
        pair = _act(self.pair_hidden(_act(pair + self.pair_step(code))))
        particle = mean @ pair if before is None else torch.cat([mean @ pair, before[1]], -1)
        particle = _act(self.particle_hidden(_act(self.particle(particle) + self.particle_step(code))))
        return pair, particle

    def vector(self, numbers: tuple[Tensor, Tensor], differences: Tensor, pairs: Tensor, total: Tensor) -> Tensor:
        """A vector per particle, ``[batch, N, d]``: the mean of its pairs' weighted ``differences``."""
        pair, particle = numbers
        weights = self.weight_last(_act(self.weight(pair) + _of_both(self.weight_particle(particle), pairs)))
        moved: Tensor = total @ (weights.transpose(1, 2)[..., None] * differences).sum(1)
        return moved


def _of_both(particle: Tensor, pairs: Tensor) -> Tensor:
    """Numbers of particles ``[batch, N, c]``, summed over the two of every pair: ``[batch, pairs, c]``."""
    return particle[:, pairs[0]] + particle[:, pairs[1]]


class ParticleMLP(nn.Module):
    """A network of (x, t) for N identical particles in d dimensions, in the place of a StepMLP.

    Every pair of particles has features: its distance, as a smooth histogram (Schuett et al. 2017, arXiv 1706.08566),
    and for every further input vector the component along the pair and the length of the difference. A perceptron of
    them, the same for all pairs, is averaged over the pairs of each particle, then another over the particles. Sums of
    pair differences, weighted by numbers that depend on the pair and its two particles, are the vectors it gives. So
    numbers do not change under translations, rotations, reflections and permutations, and vectors turn along.

    That is one round, and knows nothing of three particles at once. Each of ``depth`` rounds is given what the one
    before found: its numbers, and its vectors as one more input (Satorras et al. 2021, arXiv 2102.09844).

    Args:
        particles: (N, d).
        inputs: vectors c per state: x, and c - 1 others. All are coordinates in the zero-mean subspace (``targets``).
        outputs: numbers o per coordinate, or numbers of a value.
        input_scale: x is divided by ``input_scale[t]`` first, ``[steps]``.
        width: units per layer of the particles' perceptron; the pairs' have half as many.
        depth: rounds.
        pooled: all outputs are invariant numbers, ``[batch, o]``; else the first is a vector, the others numbers that
            are the same for every coordinate, ``[batch, o (N - 1) d]`` with the coordinate running fastest.
        zero: start at output zero.
        codes: as in StepMLP.
    """

    basis: Tensor
    pairs: Tensor
    gather: Tensor
    radii: Tensor
    input_scale: Tensor
    codes: Tensor

    def __init__(
        self, particles: tuple[int, int], inputs: int, outputs: int, input_scale: Tensor, *, width: int,
        depth: int = 1, pooled: bool = False, zero: bool = False, codes: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        count, self.space = particles
        self.inputs, self.pooled = inputs, pooled
        codes = step_codes(input_scale, codes)
        self.numbers = outputs if pooled else outputs - 1
        self.register_buffer("basis", zero_mean_basis(count))
        self.register_buffer("pairs", torch.triu_indices(count, count, offset=1))
        members = nn.functional.one_hot(self.pairs, count).to(self.basis.dtype).transpose(1, 2) / (count - 1)
        self.register_buffer("gather", torch.stack([members[0] + members[1], members[0] - members[1]]))
        self.register_buffer("radii", torch.linspace(0, FARTHEST, RADII))
        self.register_buffer("input_scale", input_scale.clone())
        self.register_buffer("codes", codes)
        rounds = [
            Messages(inputs + k, codes.shape[1], width, first=k == 0, gives_vectors=not pooled or k < depth - 1)
            for k in range(depth)
        ]
        self.rounds = nn.ModuleList(rounds)
        ends = [] if pooled else [rounds[-1].weight_last]
        if self.numbers:
            self.last = nn.Linear(width, self.numbers)
            ends.append(self.last)
        for layer in ends if zero else ():
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor | int) -> Tensor:
        """x is ``[batch, c (N - 1) d]``, t a LongTensor ``[batch]`` or an int; see ``pooled`` for what it returns."""
        code = self.codes[t].unsqueeze(-2)
        vectors = x.view(len(x), self.inputs, len(self.basis) - 1, self.space)
        vectors = self.basis @ (vectors / self.input_scale[t].view(-1, 1, 1, 1))  # [batch, c, N, d]
        differences = self._differences(vectors)
        distance = _lengths(differences[:, :1])
        offset = (distance - self.radii) * ((RADII - 1) / FARTHEST)
        # Never below e^-30: products with denormal numbers are thirty times slower.
        features = [distance, torch.exp((-0.5 * offset.square()).clamp_min(-30.0))]
        direction, others = differences[:, :1] / distance[:, None], differences[:, 1:]
        numbers: tuple[Tensor, Tensor] | None = None
        moved: Tensor | None = None
        for messages in self.rounds:
            assert isinstance(messages, Messages)
            if moved is not None:
                others = self._differences(moved[:, None])
                differences = torch.cat([differences, others], 1)
            if others.shape[1]:
                features += [(others * direction).sum(-1).transpose(1, 2), _lengths(others)]
            numbers = messages(features, numbers, self.pairs, self.gather[0], code)
            if messages.gives_vectors:
                moved = messages.vector(numbers, differences, self.pairs, self.gather[1])
        assert numbers is not None
        parts = [] if self.pooled or moved is None else [(self.basis.T @ moved).flatten(1)]
        if self.numbers:
            last = self.last(numbers[1].mean(1))
            parts.append(last if self.pooled else last.repeat_interleave(x.shape[1] // self.inputs, dim=1))
        return torch.cat(parts, dim=1)

    def _differences(self, vectors: Tensor) -> Tensor:
        """Of the particles of every pair, ``[batch, c, N, d]`` -> ``[batch, c, pairs, d]``."""
        return vectors[:, :, self.pairs[0]] - vectors[:, :, self.pairs[1]]

    def soft_clip(self, x: Tensor, limit: float) -> Tensor:
        """x ``[batch, (N - 1) d]`` with each particle's v made v / sqrt(1 + |v|^2 / limit^2), and their mean 0."""
        vectors = self.basis @ x.view(len(x), -1, self.space)
        vectors = vectors / limit
        length = torch.ones_like(vectors[..., :1])
        for coordinate in vectors.split(1, dim=-1):
            length = torch.hypot(length, coordinate)  # of any size: squares of it may be infinite
        return (self.basis.T @ (limit * vectors / length)).flatten(1)


def _lengths(differences: Tensor) -> Tensor:
    """Of ``[batch, c, pairs, d]``: ``[batch, pairs, c]``, at least 1e-6, so that they have gradients."""
    return differences.square().sum(-1).clamp_min(1e-12).sqrt().transpose(1, 2)


def step_network(
    particles: tuple[int, int] | None, dim: int, inputs: int, outputs: int, input_scale: Tensor, *, width: int,
    depth: int, fourier: int, coordinate_width: int, codes: Tensor | None = None,
) -> StepMLP | ParticleMLP:  # fmt: skip
    """A network with ``inputs`` and ``outputs`` numbers per coordinate that starts at zero: a ParticleMLP for
    ``particles``, else a StepMLP. Raises ValueError for a coordinate_width with particles.
    """
    if particles is not None:
        check_without_coordinates("policy.coordinate_width", coordinate_width)
        return ParticleMLP(particles, inputs, outputs, input_scale, width=width, depth=depth, zero=True, codes=codes)
    return StepMLP(
        inputs * dim, outputs * dim, input_scale, width=width, depth=depth, fourier=fourier, zero=True, dim=dim,
        coordinate_width=coordinate_width, codes=codes,
    )  # fmt: skip
