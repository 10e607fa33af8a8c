"""Scores of images on the features that their set names: Frechet and kernel distance, precision and recall."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dxmi_rl.evaluation import feature_metrics
from dxmi_rl.networks.features import load_features
from dxmi_rl.targets import ImageSet
from dxmi_rl.targets.image_set import rows_of_part
from dxmi_rl.utils.checks import check_integer

FD_SAMPLES = 5000
"""At most this many images are scored."""
PAIRED = 10_000
"""At most this many images of either kind enter the scores that look at all pairs."""
_kept_features: dict[tuple[str, str, int, str], Tensor] = {}


def scored_images(target: ImageSet, most: int = FD_SAMPLES) -> int:
    """Number of samples that are scored: ``most``, or as many as there are training images where these are fewer.

    Floors, the scores of training images, then come from as many images as the scores of samplers.
    """
    return min(check_integer("most", most), len(target.train_bytes))


def image_distance(target: ImageSet, x: Tensor, *, train: bool = False) -> float:
    """``fd`` of ``image_scores`` alone; with ``train`` ``fd_train`` instead, which sees no test image."""
    if train:
        network = load_features(target.features, x.device)
        return feature_metrics.frechet_distance(_in_parts(network, x), _joined(network, target.parts(len(x))))
    return feature_metrics.frechet_distance(*_features(target, x))


def image_scores(target: ImageSet, x: Tensor, *, train: bool = False) -> dict[str, float]:
    """``fd``, ``kd``, ``precision``, ``recall``, ``density`` and ``coverage`` of images ``[n, *event_shape]``.

    They compare with n test images, or all where there are fewer, on the target's features. With ``train`` there is
    also ``fd_train``, against n training images. All but ``fd`` and ``fd_train`` are of at most 10,000 images of either
    kind, because they look at all pairs. Raises as ``feature_metrics.frechet_distance``.
    """
    features, real = _features(target, x)
    scores = {"fd": feature_metrics.frechet_distance(features, real)}
    if train:
        network = load_features(target.features, x.device)
        scores["fd_train"] = feature_metrics.frechet_distance(features, _joined(network, target.parts(len(x))))
    some, few = features[:PAIRED], real[:PAIRED]
    scores["kd"] = feature_metrics.kernel_distance(some, few)
    return scores | feature_metrics.neighbour_scores(few, some)


def _features(target: ImageSet, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features of n images and of n test images; the latter are kept for the next call."""
    network = load_features(target.features, x.device)
    key = (target.features, target.test_digest(), len(x), str(x.device))
    if key not in _kept_features:
        _kept_features.clear()
        _kept_features[key] = _joined(network, target.parts(len(x), test=True))
    return _in_parts(network, x), _kept_features[key]


def _in_parts(network: nn.Module, x: Tensor) -> Tensor:
    """Features of images, in parts where there are many, so that memory is that of features."""
    return _joined(network, x.split(rows_of_part(x.shape[1:].numel())))


def _joined(network: nn.Module, parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([network(part) for part in parts])
