"""What training spends, counted where the calls are made: by the energy, by the denoiser, by rollouts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch.optim.optimizer import register_optimizer_step_post_hook

from dxmi_rl.utils.checks import check_integer, check_real


@dataclass
class Costs:
    """What training has spent so far; evaluation and sampling are not counted."""

    timesteps: int = 0
    """Rollout transitions, which ``total_timesteps`` of ``learn`` counts."""
    policy_draws: int = 0
    """Next states drawn from the policy, rollouts included."""
    energy_evals: int = 0
    """Evaluations of E on one x, with or without gradient."""
    energy_grad_evals: int = 0
    """The part of ``energy_evals`` that was differentiated in x."""
    gradient_steps: int = 0
    """Steps of optimizers: of policies, values, energies and learned kernels together."""
    denoiser_calls: int = 0
    """Evaluations of the base or fine-tuned denoiser on one x."""
    seconds: float = 0.0
    """Wall-clock seconds inside ``learn``."""
    setbacks: int = 0
    """Times that training diverged and went on from its last good state, with half the learning rates."""


BUDGET_UNITS = ("timesteps", "energy_evals", "seconds")
"""What a budget can be counted in: fields of Costs."""


def check_budget(**budgets: float | None) -> tuple[str, float]:
    """(unit, amount) of the one budget that is not None; raises TypeError for none or several, ValueError below 1.

    Whole numbers may be written as floats, such as 1e5.
    """
    given = {unit: amount for unit, amount in budgets.items() if amount is not None}
    if len(given) != 1:
        raise TypeError(
            f"exactly one budget of total_timesteps, energy_evals, seconds must be given, got {given or None}."
        )
    unit, amount = next(iter(given.items()))
    if unit == "seconds":
        return unit, check_real(unit, amount, strict=True)
    if isinstance(amount, float) and amount.is_integer():
        amount = int(amount)
    return unit, check_integer("total_timesteps" if unit == "timesteps" else unit, amount)


# A plain list, not a context variable: checkpointed steps are evaluated again in the backward pass's own threads.
_COUNTERS: list[Costs] = []


@contextlib.contextmanager
def counting(costs: Costs) -> Iterator[None]:
    """Calls made inside are added to ``costs``, and not to the counters around this one.

    There is one stack for the whole process: agents that learn at the same time in several threads are not told apart.
    """

    def count_step(*_: object) -> None:
        if _COUNTERS[-1] is costs:
            costs.gradient_steps += 1

    hook = register_optimizer_step_post_hook(count_step)  # also sees the optimizers of other libraries
    _COUNTERS.append(costs)
    try:
        yield
    finally:
        _COUNTERS.pop()
        hook.remove()


def is_counting() -> bool:
    """Whether the present call is part of a training."""
    return bool(_COUNTERS)


def count_energy(rows: int, differentiated: bool = False) -> None:
    """Note ``rows`` evaluations of the energy, ``differentiated`` in x or not."""
    if _COUNTERS:
        _COUNTERS[-1].energy_evals += rows
        if differentiated:
            _COUNTERS[-1].energy_grad_evals += rows


def count_denoiser(rows: int) -> None:
    """Note ``rows`` evaluations of a base or fine-tuned denoiser."""
    if _COUNTERS:
        _COUNTERS[-1].denoiser_calls += rows


def count_draws(rows: int) -> None:
    """Note ``rows`` next states drawn from a policy."""
    if _COUNTERS:
        _COUNTERS[-1].policy_draws += rows
