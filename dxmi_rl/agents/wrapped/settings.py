"""Settings that agents of other libraries share."""

from __future__ import annotations

from dataclasses import dataclass

from dxmi_rl.utils.checks import check_fraction, check_integer, check_real


@dataclass(frozen=True)
class OnPolicyConfig:
    """Settings of every on-policy agent of another library."""

    n_trajectories: int = 64
    """Trajectories per iteration, one per environment."""
    learning_rate: float = 2e-3
    """Peak rate of the library's optimizers."""
    gae_lambda: float = 0.95
    """Mixing of n-step advantages; the discount is 1."""
    kernel_steps: int = 1
    """Fits of a learned kernel per iteration."""
    width: int = 64
    """Units of each of the two hidden layers of actor and critics."""
    anneal: bool = True
    """Cosine learning rate over ``learn``'s budget."""

    def __post_init__(self) -> None:
        for key in ("n_trajectories", "width", "kernel_steps"):
            check_integer(key, getattr(self, key))
        check_real("learning_rate", self.learning_rate)
        check_fraction("gae_lambda", self.gae_lambda)


@dataclass(frozen=True)
class ReplayConfig:
    """Settings of every off-policy agent of another library."""

    n_trajectories: int = 32
    """Trajectories per iteration."""
    learning_rate: float = 8e-3
    """Peak rate of actor and critics."""
    gradient_steps: int = 20
    """Gradient steps per iteration."""
    batch_size: int = 256
    """Transitions per gradient step, rounded up to a multiple of T: every step t has as many."""
    buffer_size: int = 50_000
    """Transitions that are kept, rounded down to whole iterations, but at least one iteration."""
    kernel_steps: int = 1
    """Fits of a learned kernel per iteration."""
    target_rate: float = 0.03
    """Rate at which target networks follow (the libraries' ``tau``, which is no temperature)."""
    action_bound: float = 5.0
    """Half width of the box that actions are squashed to, in standard deviations of the base sampler's noise."""
    width: int = 64
    """Units of each of the two hidden layers of actor and critics."""
    anneal: bool = True
    """Cosine learning rate over ``learn``'s budget."""

    def __post_init__(self) -> None:
        for key in ("n_trajectories", "width", "gradient_steps", "batch_size", "buffer_size", "kernel_steps"):
            check_integer(key, getattr(self, key))
        check_real("learning_rate", self.learning_rate)
        check_real("action_bound", self.action_bound, 2.0)  # less has no room for the base sampler
        if not 0 < check_real("target_rate", self.target_rate) <= 1:
            raise ValueError(f"target_rate must lie in (0, 1], got {self.target_rate!r}.")
