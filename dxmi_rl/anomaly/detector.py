"""EnergyDetector: an energy learned against a sampler, as an outlier detector of scikit-learn."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from dxmi_rl.agents import DxDPConfig, PolicyConfig, ValueConfig
from dxmi_rl.anomaly.columns import Array, standardisation, warn_of_small, whitener
from dxmi_rl.diffusion import DenoiserMLP, PretrainingConfig, train_denoiser
from dxmi_rl.irl import DxMI, DxMIConfig, EnergyConfig
from dxmi_rl.irl.training import ENERGY_TRAINERS, train_energy
from dxmi_rl.networks import EnergyDenoiser, EnergyNetwork
from dxmi_rl.targets import DataTarget
from dxmi_rl.tasks import make_task
from dxmi_rl.utils.checks import CheckpointError, check_integer, check_real, check_seed, require, resolve_device
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import JSON, load_tensors, save_tensors
from dxmi_rl.utils.torch_tools import seeded

if TYPE_CHECKING:
    from dxmi_rl.anomaly.pyod_detector import PyodEnergyDetector

STARTS = ["data", "noise"]
SMALLEST_ROWS = 2
ROWS_AT_A_TIME = 8192
CHECKED = 1000
"""Rows that the energy gap is measured on."""
BETWEEN = 5
"""Iterations between two looks at the gap."""
LARGEST_GAP = 1.0
"""Nats."""
BATCH, RATE, AVERAGE = 128, 3e-5, 0.99
"""Rows, learning rate and decay of the average of the energy's training, whichever it is."""


class MeanEnergy(nn.Module):
    """The mean of energies: ``[n, features] -> [n]``."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class EnergyDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]  # classes without types
    """Outlier detection by the energy E of a sampler and an energy trained together (DxMI, Yoon et al. 2024).

    ``fit`` centres and scales the columns, trains a denoiser, and plays DxMI from there: a few-step sampler that starts
    as the denoiser, and an energy that starts as what the denoiser takes out of a row (``EnergyDenoiser``). The game is
    as long as there are rows, as few of them are soon known by heart, and ends when samples have become easy to tell
    from data: from there on the energy would only learn the sampler's mistakes.

    Rows are vectors ``[rows, features]``, or feature maps ``[rows, channels, height, width]``, whose locations are
    taken as vectors of their own.

    Scores follow scikit-learn: the larger, the more normal; ``predict`` gives 1 for inliers and -1 for outliers.
    Results are the same for the same seed on the same machine.

    Args:
        contamination: part of the training rows that ``predict`` calls outliers, in (0, 0.5].
        training: "dxmi", or how the energy is trained without a sampler, from the same start: "short-run" or
            "persistent" Langevin chains, "score-matching", or "gaussian-noise" (NCE; dxmi_rl.irl.train_energy).
        start: the sampler starts from noised "data", or from "noise".
        tau: temperature per dimension, the paper's tau1 = tau2; 0 is a GAN in all but name.
        horizon: steps of the sampler.
        epochs: how often the energy sees every row; 0 leaves it at its start.
        max_iterations: iterations of the game, at most.
        early_stopping: end the game when held-out rows and samples differ by more than one nat in mean energy.
        pretraining_iterations: Adam steps of the denoiser.
        width: units per layer of denoiser, energy, policy and value.
        folds: for training rows that hold outliers, which one energy knows by heart: with 2 or more, rows are divided
            into as many parts at random, an energy is trained without each, and E is the mean of all.
        whitening: turn and scale the standardised rows so that their columns are uncorrelated, with variance one, but
            for directions of less than a hundredth of the mean variance, which stay smaller. For the features of
            networks, where what is unusual hides in directions of small variance; rows must be more than columns. What
            a column does that is constant in training then counts ten times.
        seed: the one seed.
        device: torch device, "cpu" by default.
        progress_bar: show how far ``fit`` is (silent when not a terminal).

    Attributes:
        energy_: the trained energy network, of standardised (and whitened) rows; the mean of several with ``folds``.
        mean_, scale_: of the columns, ``[features]``.
        whitener_: what standardised rows are multiplied with, ``[features, features]``; None without ``whitening``.
        offset_: ``decision_function`` is ``score_samples`` less this.
        n_iter_: iterations of the game, or steps of another training; with ``folds`` the largest.
        n_features_in_: columns; channels of feature maps.

    Raises ValueError for NaN, infinite, too few or constant rows, other widths than in ``fit`` and settings that are
    not allowed; DivergenceError when the game diverges.
    """

    energy_: EnergyNetwork | MeanEnergy
    data_scale_: float | list[float]

    def __init__(
        self, *, contamination: float = 0.1, training: str = "dxmi", start: str = "data", tau: float = 0.1,
        horizon: int = 4, epochs: int = 12, max_iterations: int = 600, early_stopping: bool = True,
        pretraining_iterations: int = 1500, width: int = 128, folds: int = 1, whitening: bool = False,
        seed: int = 0, device: str | None = None, progress_bar: bool = False,
    ) -> None:  # fmt: skip
        self.contamination = contamination
        self.training = training
        self.start = start
        self.tau = tau
        self.horizon = horizon
        self.epochs = epochs
        self.max_iterations = max_iterations
        self.early_stopping = early_stopping
        self.pretraining_iterations = pretraining_iterations
        self.width = width
        self.folds = folds
        self.whitening = whitening
        self.seed = seed
        self.device = device
        self.progress_bar = progress_bar

    # -- scikit-learn's verbs ----------------------------------------------------------------------------------

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn what is normal from rows ``[rows, features]`` or maps ``[rows, channels, height, width]``."""
        self._check_settings()
        values = self._checked(X, reset=True)
        rows = _locations(values)
        self.mean_, self.scale_ = standardisation(rows)
        if values.ndim == 2:
            warn_of_small(rows, self.scale_)
        self.whitener_ = whitener((rows - self.mean_) / self.scale_) if self.whitening else None
        self._learn(self._standardised(rows), len(values))
        self.offset_ = float(np.quantile(self.score_samples(X), self.contamination))
        return self

    def score_samples(self, X: ArrayLike) -> Array:
        """-E of every row, in nats up to a constant: ``[rows]``; of maps the lowest over their locations. The lowest
        number of its type where a row is so far out that E overflows.
        """
        check_is_fitted(self)
        values = self._checked(X, reset=False)
        scores = self._scores(_locations(values))
        return scores if values.ndim == 2 else scores.reshape(len(values), -1).min(1)

    def score_maps(self, X: ArrayLike) -> Array:
        """-E of every location of feature maps: ``[rows, height, width]``. Raises ValueError for what are no maps."""
        check_is_fitted(self)
        values = self._checked(X, reset=False)
        if values.ndim != 4:
            raise ValueError(f"X must be feature maps [rows, channels, height, width], got shape {list(values.shape)}.")
        return self._scores(_locations(values)).reshape(len(values), *values.shape[2:])

    def decision_function(self, X: ArrayLike) -> Array:
        """``score_samples`` less ``offset_``: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """1 for inliers, -1 for outliers: ``[rows]``."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    # -- others' -----------------------------------------------------------------------------------------------

    def to_pyod(self) -> PyodEnergyDetector:
        """This detector, fitted or not, as one of pyod's, whose scores are larger for outliers.

        Raises MissingExtraError without pyod (extra ``anomaly``).
        """
        require("pyod", "anomaly")
        from dxmi_rl.anomaly.pyod_detector import PyodEnergyDetector

        return PyodEnergyDetector(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write settings and what was learned as one safetensors file, atomically.

        Raises NotFittedError before ``fit``.
        """
        tensors, metadata = self.state()
        return save_tensors(path, tensors, {"detector": "energy"} | metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | None = None) -> Self:
        """What ``save`` wrote. Raises FileNotFoundError, and CheckpointError for a damaged or foreign file."""
        tensors, metadata = load_tensors(path)
        if metadata.get("detector") != "energy":
            raise CheckpointError(f"{str(path)!r} does not hold a detector that EnergyDetector.save wrote.")
        try:
            return cls.from_state(tensors, metadata, device)
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{str(path)!r} is a damaged detector: {error}") from error

    def state(self) -> tuple[dict[str, Tensor], JSON]:
        """Tensors and JSON-able settings from which ``from_state`` makes this detector. Raises NotFittedError."""
        check_is_fitted(self)
        tensors = {f"energy.{key}": value for key, value in self.energy_.state_dict().items()}
        tensors |= {"mean": torch.from_numpy(self.mean_), "scale": torch.from_numpy(self.scale_)}
        if self.whitener_ is not None:
            tensors["whitener"] = torch.from_numpy(self.whitener_)
        learned = {key: getattr(self, key) for key in ("offset_", "n_iter_", "n_features_in_", "data_scale_")}
        if hasattr(self, "feature_names_in_"):
            learned["feature_names_in_"] = self.feature_names_in_.tolist()
        return tensors, {"settings": self.get_params(), "learned": learned}

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], metadata: JSON, device: str | None = None) -> Self:
        """The detector of a ``state``. Raises KeyError, TypeError, RuntimeError or ValueError for a damaged one."""
        detector = cls(**metadata["settings"] | {"device": device})
        for key, value in metadata["learned"].items():
            setattr(detector, key, np.array(value, dtype=object) if key == "feature_names_in_" else value)
        detector.mean_, detector.scale_ = tensors["mean"].numpy(), tensors["scale"].numpy()
        detector.whitener_ = tensors["whitener"].numpy() if detector.whitening else None
        scales = detector.data_scale_
        energy: EnergyNetwork | MeanEnergy
        if isinstance(scales, list):
            energy = MeanEnergy([EnergyDenoiser(detector._new_denoiser(scale), scale) for scale in scales])
        else:
            energy = EnergyDenoiser(detector._new_denoiser(scales), scales)
        energy.load_state_dict({key[7:]: value for key, value in tensors.items() if key.startswith("energy.")})
        detector.energy_ = energy.to(resolve_device(device)).requires_grad_(False).eval()
        return detector

    # -- inside ------------------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        if not 0 < check_real("contamination", self.contamination) <= 0.5:
            raise ValueError(f"contamination must lie in (0, 0.5], got {self.contamination}.")
        if self.start not in STARTS:
            raise UnknownNameError("start", self.start, STARTS)
        check_real("tau", self.tau)
        check_seed(self.seed)
        if self.training != "dxmi" and self.training not in ENERGY_TRAINERS:
            raise UnknownNameError("training", self.training, ["dxmi", *ENERGY_TRAINERS])
        check_integer("epochs", self.epochs, minimum=0)
        for key in ("horizon", "pretraining_iterations", "width", "max_iterations", "folds"):
            check_integer(key, getattr(self, key))

    def _checked(self, X: ArrayLike, *, reset: bool) -> Array:
        values: Array = validate_data(
            self, X, reset=reset, dtype=np.float64, allow_nd=True, ensure_min_samples=SMALLEST_ROWS if reset else 1
        )
        if values.ndim not in (2, 4):
            shape = list(values.shape)
            raise ValueError(f"X must be [rows, features] or [rows, channels, height, width], got shape {shape}.")
        return values

    def _standardised(self, rows: Array) -> Tensor:
        rows = (rows - self.mean_) / self.scale_
        if self.whitener_ is not None:
            rows = rows @ self.whitener_
        return torch.from_numpy(rows).to(torch.get_default_dtype())

    def _scores(self, rows: Array) -> Array:
        weight = next(self.energy_.parameters())  # its device and dtype
        with torch.no_grad():
            parts = [self.energy_(part.to(weight)) for part in self._standardised(rows).split(ROWS_AT_A_TIME)]
        energy, largest = torch.cat(parts), torch.finfo(parts[0].dtype).max
        return -energy.nan_to_num(largest, largest, largest).cpu().numpy().astype(np.float64)

    def _pretraining(self) -> PretrainingConfig:
        return PretrainingConfig(
            iterations=self.pretraining_iterations, width=self.width, depth=2, level_min=0.05, level_max=3.0,
            seed=self.seed,
        )  # fmt: skip

    def _new_denoiser(self, scale: float) -> DenoiserMLP:
        config, shape = self._pretraining(), (self.n_features_in_,)
        return DenoiserMLP(shape, scale, width=config.width, depth=config.depth, residual=config.residual)

    def _config(self) -> DxMIConfig:
        agent = DxDPConfig(
            n_trajectories=BATCH, td_lambda=0.9, value_steps=2, policy_steps=2, replay=1, correction=False,
            warmup_iterations=0, max_grad_norm=1.0, kernel_steps=1, anneal=False, energy_model=False,
            gradient_weight=0.0, tempering=0.0, value_input=False,
            policy=PolicyConfig(
                kind="correction", width=self.width, depth=2, learning_rate=2e-3, sigma_learning_rate=1e-2
            ),
            value=ValueConfig(width=self.width, depth=2, fourier=0, learning_rate=1e-3),
        )  # fmt: skip
        return DxMIConfig(
            agent="dxdp", agent_settings=agent, energy=EnergyConfig(denoiser=True), loss="nce",
            energy_learning_rate=RATE, gradient_penalty=0.01, ema=AVERAGE, anneal=False,
        )  # fmt: skip

    def _learn(self, rows: Tensor, n: int) -> None:
        """Learn from standardised rows, those of n vectors or maps in turn."""
        if self.folds == 1:
            self.energy_, self.data_scale_, self.n_iter_ = self._learned(DataTarget(rows))
            return
        if n < SMALLEST_ROWS * self.folds:
            raise ValueError(f"folds must be at most a half of the {n} rows of X, got {self.folds}.")
        part = torch.from_numpy(np.random.default_rng(self.seed).permutation(n) % self.folds)
        part = part.repeat_interleave(len(rows) // n)
        learned = [self._learned(DataTarget(rows[part != left_out])) for left_out in range(self.folds)]
        energies, scales, iterations = zip(*learned, strict=True)
        self.energy_, self.data_scale_, self.n_iter_ = MeanEnergy(energies), list(scales), max(iterations)

    def _learned(self, rows: DataTarget) -> tuple[EnergyNetwork, float, int]:
        """The energy of standardised rows, their standard deviation, and how many iterations it took."""
        target = rows.to(resolve_device(self.device))
        denoiser = train_denoiser(rows, self._pretraining()).to(target.device)
        iterations = min(self.max_iterations, math.ceil(self.epochs * len(rows.train_rows) / BATCH))
        energy: EnergyNetwork
        if not iterations:
            energy = EnergyDenoiser(denoiser, target.scale).to(target.device)
        elif self.training == "dxmi":
            game = self._game(target, denoiser)
            held_out = target.test_data(CHECKED)

            def goes_on(_: object) -> bool:
                if not self.early_stopping or game.num_timesteps // game.timesteps_per_iteration % BETWEEN:
                    return True
                gap = game.score(game.sample(len(held_out))).mean() - game.score(held_out).mean()
                return bool(gap < LARGEST_GAP)

            game.learn(iterations * game.timesteps_per_iteration, callback=goes_on, progress_bar=self.progress_bar)
            energy, iterations = game.average_energy, game.num_timesteps // game.timesteps_per_iteration
        else:
            energy = train_energy(
                target, self.training, seed=self.seed, progress_bar=self.progress_bar, denoiser=denoiser,
                energy={"denoiser": True}, iterations=iterations, batch_size=BATCH, learning_rate=RATE, ema=AVERAGE,
            ).energy  # fmt: skip
        return energy.requires_grad_(False).eval(), target.scale, iterations

    def _game(self, target: DataTarget, denoiser: nn.Module) -> DxMI:
        scale = target.scale
        levels = {"level_max": 1.5 if self.start == "data" else 10.0, "level_min": 0.15}
        options = {key: scale * level for key, level in levels.items()} | {"scale": scale}
        with seeded(int(self.seed)):
            task = make_task(
                target, horizon=self.horizon, tau=self.tau / target.dim, denoiser=denoiser, schedule="karras",
                schedule_options=options, sigma_last=0.05 * scale, device=target.device,
            )  # fmt: skip
        if self.start == "data":
            task.mdp.start_from(target.data)
        return DxMI(task, seed=self.seed, config=self._config())


def _locations(values: Array) -> Array:
    """Rows: vectors as they are, of maps ``[rows, channels, height, width]`` all locations."""
    return values if values.ndim == 2 else np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])
