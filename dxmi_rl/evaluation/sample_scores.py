"""Scores of samples against exact ones: the metrics that a target names in ``Target.metrics``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from dxmi_rl.evaluation import images, metrics, particles
from dxmi_rl.mdp import Energy
from dxmi_rl.targets import ImageSet, ParticleTarget, Target
from dxmi_rl.utils.registry import Registry

MMD_SAMPLES = 2000


def exact_samples(target: Target, n: int, seed: int) -> Tensor:
    """n fixed exact samples, from a seed that no policy draws from; of a data set its test rows."""
    if not target.has_sampler:
        return target.test_data(n)
    return target.sample(n, torch.Generator(target.device).manual_seed(1_000_003 + seed))


@dataclass
class SampleSets:
    """What a sampler is scored by: sets of its samples beside sets of exact ones, drawn when a metric asks for them."""

    target: Target
    draw: Callable[[int], Tensor]
    """``draw(n) -> [n, *event_shape]``: samples of the sampler, other ones in every call."""
    samples: int
    """Samples per set."""
    draws: int
    """Number of pairs of sets."""
    seed: int

    @functools.cached_property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Samples and exact samples, ``[samples, *event_shape]`` each, ``draws`` times."""
        seeds = range(self.seed, self.seed + self.draws)
        return [(self.draw(self.samples), exact_samples(self.target, self.samples, seed)) for seed in seeds]

    @functools.cached_property
    def last(self) -> Tensor:
        """The last set of samples."""
        return self.pairs[-1][0] if self.target.has_samples else self.draw(self.samples)


class Metric:
    """One or more scores of samples, registered in METRICS under the name that targets list in ``Target.metrics``.

    Attributes:
        cached: floors are kept on disk.
    """

    cached: bool = True

    @property
    def quick_samples(self) -> int | None:
        """Number of samples that ``quick`` needs; None: any."""
        return None

    def has_floor(self, target: Target) -> bool:
        """Whether there are exact samples, or what comes near them, that ``floor`` scores."""
        return target.has_samples

    def floor_key(self, target: Target) -> str:
        """What floors on disk depend on beside the target's digest, sizes and seeds."""
        return type(self).__name__

    def score(self, sets: SampleSets) -> dict[str, float]:
        """The scores of a sampler."""
        raise NotImplementedError

    def quick(self, target: Target, x: Tensor, seed: int) -> dict[str, float]:
        """Cheap scores of one set of samples ``[n, *event_shape]`` for learning curves; none by default."""
        return {}

    def floor(self, target: Target, samples: int, pairs: int, generator: torch.Generator) -> dict[str, float]:
        """The same scores of exact samples, means over ``pairs`` pairs of sets; of data, training against test rows."""
        raise NotImplementedError


class _SlicedW2(Metric):
    def score(self, sets: SampleSets) -> dict[str, float]:
        pairs = enumerate(sets.pairs)
        distances = [metrics.sliced_w2(x.flatten(1), y.flatten(1), seed=sets.seed + i) for i, (x, y) in pairs]
        return {"sliced_w2": sum(distances) / sets.draws}

    def quick(self, target: Target, x: Tensor, seed: int) -> dict[str, float]:
        exact = exact_samples(target, len(x), seed).flatten(1)
        return {"sliced_w2": metrics.sliced_w2(x.flatten(1), exact, projections=200, seed=seed)}

    def floor(self, target: Target, samples: int, pairs: int, generator: torch.Generator) -> dict[str, float]:
        return {"sliced_w2": _floor_of_pairs(metrics.sliced_w2, target, samples, pairs, generator)}


class _Mmd(Metric):
    def score(self, sets: SampleSets) -> dict[str, float]:
        x, exact = sets.pairs[-1]
        return {"mmd": metrics.mmd(x[:MMD_SAMPLES].flatten(1), exact[:MMD_SAMPLES].flatten(1))}

    def floor(self, target: Target, samples: int, pairs: int, generator: torch.Generator) -> dict[str, float]:
        return {"mmd": _floor_of_pairs(metrics.mmd, target, min(samples, MMD_SAMPLES), pairs, generator)}


class _QuantileError(Metric):
    """In units of the target's scale."""

    def score(self, sets: SampleSets) -> dict[str, float]:
        x, exact = sets.pairs[-1]
        return {"quantile_error": metrics.quantile_error(x.flatten(1), exact.flatten(1)) / sets.target.scale}

    def floor(self, target: Target, samples: int, pairs: int, generator: torch.Generator) -> dict[str, float]:
        error = _floor_of_pairs(metrics.quantile_error, target, samples, pairs, generator)
        return {"quantile_error": error / target.scale}


class _Modes(Metric):
    """Of targets that have ``modes``."""

    def score(self, sets: SampleSets) -> dict[str, float]:
        return self._of(sets.target, sets.last)

    def floor(self, target: Target, samples: int, pairs: int, generator: torch.Generator) -> dict[str, float]:
        return _mean([self._of(target, target.data(samples, generator)) for _ in range(pairs)])

    @staticmethod
    def _of(target: Target, x: Tensor) -> dict[str, float]:
        modes = target.modes
        assert modes is not None
        return metrics.mode_statistics(x.flatten(1), modes.centers, modes.std, modes.weights)


class _Own(Metric):
    """``Target.own_scores``."""

    cached = False  # other targets of the same name may define others

    def score(self, sets: SampleSets) -> dict[str, float]:
        return sets.target.own_scores(sets.last)

    def floor(self, target: Target, samples: int, pairs: int, generator: torch.Generator) -> dict[str, float]:
        if target.has_sampler:
            return _mean([target.own_scores(exact_samples(target, samples, seed)) for seed in range(pairs)])
        return _mean([target.own_scores(target.data(samples, generator)) for _ in range(pairs)])


class _Images(Metric):
    """Of 5,000 images of an ImageSet, or as many as its training set has, once; training images give the floor."""

    cached = False

    @property
    def quick_samples(self) -> int:
        return images.FD_SAMPLES

    def score(self, sets: SampleSets) -> dict[str, float]:
        known = cast(ImageSet, sets.target)
        return images.image_scores(known, sets.draw(images.scored_images(known)))

    def quick(self, target: Target, x: Tensor, seed: int) -> dict[str, float]:
        known = cast(ImageSet, target)
        return {"fd": images.image_distance(known, x[: images.scored_images(known)])}

    def floor(self, target: Target, samples: int, pairs: int, generator: torch.Generator) -> dict[str, float]:
        known = cast(ImageSet, target)
        return images.image_scores(known, known.train_data(images.FD_SAMPLES))


class _Particles(Metric):
    """Of ParticleTargets with reference states; the first 2,000 of these are compared with, the others give floors."""

    def has_floor(self, target: Target) -> bool:
        return True

    def floor_key(self, target: Target) -> str:
        states = cast(ParticleTarget, target).reference_states().double()
        return f"{type(self).__name__} {float(states.sum()):.8g} {float(states.square().sum()):.8g}"

    def score(self, sets: SampleSets) -> dict[str, float]:
        known = cast(ParticleTarget, sets.target)
        return particles.particle_scores(known, sets.last, known.reference_states(), sets.seed)

    def quick(self, target: Target, x: Tensor, seed: int) -> dict[str, float]:
        known, n = cast(ParticleTarget, target), min(len(x), particles.STATES)
        return particles.energy_scores(known, x[:n], known.reference_states()[:n])

    def floor(self, target: Target, samples: int, pairs: int, generator: torch.Generator) -> dict[str, float]:
        known = cast(ParticleTarget, target)
        first, *others = known.reference_states().split(particles.STATES)
        return _mean([particles.particle_scores(known, other[:samples], first) for other in others])


METRICS: Registry[Metric] = Registry("metric")
METRICS.add("sliced_w2", _SlicedW2())
METRICS.add("mmd", _Mmd())
METRICS.add("quantile_error", _QuantileError())
METRICS.add("modes", _Modes())
METRICS.add("own", _Own())
METRICS.add("images", _Images())
METRICS.add("particles", _Particles())


def metrics_of(target: Target) -> list[Metric]:
    """The metrics that the target names. Raises UnknownNameError for a name that is not registered."""
    return [METRICS[name] for name in target.metrics]


def auc(score: Energy, target: Target, samples: int, seed: int) -> float:
    """Area under the ROC curve of an energy: data against uniform noise over the plotting range."""
    generator = torch.Generator().manual_seed(seed + 4)
    low, high = target.plot_range
    data = target.test_data(samples, None) if target.has_data else exact_samples(target, samples, seed)
    noise = low + (high - low) * torch.rand(samples, *target.event_shape, generator=generator).to(data.device)
    return metrics.auc(-score(data), -score(noise))


def _floor_of_pairs(
    metric: Callable[[Tensor, Tensor], float], target: Target, n: int, pairs: int, generator: torch.Generator
) -> float:
    """Mean over pairs of exact sets; of a data set, over training batches against its test rows."""

    def draw(n: int, generator: torch.Generator | None) -> Tensor:
        return target.data(n, generator).flatten(1)

    if target.has_sampler:
        return metrics.exact_floor(metric, draw, n, pairs, generator)
    test = target.test_data(n).flatten(1)
    return metrics.exact_floor(lambda x, _: metric(x, test), draw, n, pairs, generator)


def _mean(entries: list[dict[str, float]]) -> dict[str, float]:
    return {key: sum(entry[key] for entry in entries) / len(entries) for key in entries[0]}
