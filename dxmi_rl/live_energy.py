"""The reward model of a DenoisingMDP: any module or function E(x), which may be trained or swapped while it is used."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dxmi_rl.costs import Costs, count_energy, is_counting
from dxmi_rl.utils.checks import NonFiniteError, all_finite
from dxmi_rl.utils.torch_tools import evaluation_mode

Energy = Callable[[Tensor], Tensor]
"""E(x) in nats: ``[batch, *event_shape] -> [batch]``."""


class EnergyError(ValueError):
    """There is no energy, or it fails: an exception of its own, another shape, device or kind of numbers, a non-finite
    value.
    """


class LiveEnergy:
    """E(x) of a module or function, held by reference; its answers are checked and its calls are counted.

    Attributes:
        function: the module or function, or None before there is one.
        values_only: give no gradients, whatever the function has: a black box.
    """

    def __init__(self, function: Energy | None = None, values_only: bool = False) -> None:
        self.function = function
        self.values_only = values_only
        self.differentiable: bool | None = None
        """Whether the function has a gradient in x, found out by ``has_gradient``, or by an answer without."""
        self.failure = ""
        """How the gradient fails, where it does."""
        self.swaps = 0
        """How often ``set`` has put another function in its place."""
        self.seconds = 0.0
        """Time that the function has taken in training, but for what CUDA does beside."""

    def __call__(self, x: Tensor) -> Tensor:
        """E(x): ``[batch]``, in the dtype of x; modules in eval mode, gradients flow when autograd is on.

        The function gets a copy of x, so that one that works in place, by whatever means, changes nothing of ours.
        Raises EnergyError when there is none, or it raises, or returns another shape, device or kind of numbers.
        """
        if self.function is None:
            raise EnergyError("this task has no energy: pass energy=, a module or function [batch, ...] -> [batch].")
        graph = torch.is_grad_enabled() and not self.values_only
        count_energy(len(x), differentiated=graph and x.requires_grad and self.differentiable is not False)
        started = time.perf_counter()
        with evaluation_mode(self.function), torch.set_grad_enabled(graph):
            try:
                value = self.function(x.clone())
            except Exception as error:
                if not len(x) or type(error).__module__ == "torch.utils.checkpoint":  # no norms; no failure
                    raise
                norms = x.detach().flatten(1).norm(dim=1)
                raise EnergyError(
                    f"the energy fails for a batch of shape {list(x.shape)}, states of norm {float(norms.min()):.3g} "
                    f"to {float(norms.max()):.3g}: {type(error).__name__}: {error}"
                ) from error
        if is_counting():
            self.seconds += time.perf_counter() - started
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise EnergyError(f"the energy must return a tensor of shape [{len(x)}], got {found}.")
        if graph and x.requires_grad and not value.requires_grad:
            self.differentiable = False
        if not value.dtype.is_floating_point or value.device != x.device:
            raise EnergyError(
                f"the energy must return floating numbers on {str(x.device)!r}, got {value.dtype} on "
                f"{str(value.device)!r}."
            )
        return value.to(x.dtype, copy=True)  # of one that may be overwritten by the next call

    def share_from_now(self, costs: Costs) -> Callable[[], str]:
        """What a progress bar says of an energy that takes more than half of the time from now on, such as a slow
        reward; ``costs`` are those of the agent that trains.
        """
        before, started = self.seconds, costs.seconds

        def said() -> str:
            share = (self.seconds - before) / max(costs.seconds - started, 1e-9)
            return f"{min(1.0, share):.0%} of the time in the energy" if share > 0.5 else ""

        return said

    def set(self, function: Energy, points: Tensor) -> None:
        """Swap the reward model after a trial on ``points``; a failure leaves the present one.

        Raises EnergyError when it fails there or returns what ``__call__`` refuses, TypeError when it is not callable.
        """
        if not callable(function):
            raise TypeError(f"energy must be a module or function, got {function!r}.")
        previous, self.function, self.differentiable, self.failure = self.function, function, None, ""
        try:
            with torch.no_grad():
                self(points)
        except Exception as error:
            self.function = previous
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise EnergyError(
                f"the energy was tried on a batch of {len(points)} zeros, shape {list(points.shape)}, for which it "
                f"must return shape [{len(points)}]; but {reason}"
            ) from error
        self.swaps += 1

    def gradient(self, x: Tensor, create_graph: bool = False) -> Tensor:
        """grad E(x): ``[batch, *event_shape]``, a constant unless ``create_graph`` keeps the graph of x.

        One differentiated evaluation of E per row, whatever autograd's mode. Raises EnergyError, also for a function
        that has no gradient.
        """
        with torch.enable_grad():
            create_graph = create_graph and x.requires_grad
            point = x if create_graph else x.detach().requires_grad_()
            energy = self(point)
            if self.values_only:
                raise EnergyError("the task gives no gradient of its energy, and it is asked for.")
            gradient = None
            if energy.requires_grad:  # perhaps by weights of its own alone
                gradient = _gradient(energy, point, create_graph=create_graph, allow_unused=True)
            if gradient is None:
                raise EnergyError(
                    "the energy has no gradient in x, and it is asked for: choose an agent or settings without, "
                    "such as policy={'energy_gradient': False}, or track='energy'."
                )
        return gradient

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """E(x) ``[batch]`` and grad E(x) ``[batch, *event_shape]``, as constants: one evaluation per row.

        The gradient is None for a function that has none: one that fails on a tensor that requires gradients, or whose
        answer does not depend on it. Raises EnergyError when values or gradients are not finite.
        """
        differentiable, gradient = self.has_gradient(x[:2]), None
        with torch.enable_grad():
            point = x.detach().requires_grad_(differentiable)
            energy = self(point)
            if differentiable:
                gradient = _gradient(energy, point)
        require_finite_energy(x, energy.detach(), gradient)
        return energy.detach(), gradient

    def has_gradient(self, x: Tensor) -> bool:
        """Whether E has a gradient that may be used; the present function is tried once on x, uncounted."""
        if self.differentiable is None:
            self.differentiable = not self.values_only and self._has_gradient(x)
        return self.differentiable

    def _has_gradient(self, x: Tensor) -> bool:
        """Try it on x; a function that fails there twice, and not without gradients, has none."""
        assert self.function is not None
        for _ in range(2):  # a failure that does not come again is no property of the function
            with torch.enable_grad(), evaluation_mode(self.function):
                point = x.detach().clone().requires_grad_()
                try:
                    (gradient,) = torch.autograd.grad(self.function(point.clone()).sum(), point, allow_unused=True)
                except Exception as error:  # whatever a black box raises
                    self.failure = f"which fails: {type(error).__name__}: {error}"
                    continue
                return gradient is not None
        with torch.no_grad(), evaluation_mode(self.function):
            self.function(x.clone())  # what is wrong with it without gradients, too, is raised
        return False

    def parameters(self) -> list[nn.Parameter]:
        """Parameters of the reward model; empty for a function."""
        return list(self.function.parameters()) if isinstance(self.function, nn.Module) else []


def _gradient(energy: Tensor, point: Tensor, create_graph: bool = False, allow_unused: bool = False) -> Tensor | None:
    """dE / dx by torch.autograd.grad; raises EnergyError where it cannot go back through the energy."""
    try:
        (gradient,) = torch.autograd.grad(energy.sum(), point, create_graph=create_graph, allow_unused=allow_unused)
    except Exception as error:  # such as an energy that overwrites what its own gradient needs
        raise EnergyError(f"the energy's gradient fails: {type(error).__name__}: {error}") from error
    return gradient


class SwapNotice:
    """Called, it says whether ``mdp.set_energy`` has put another energy in place since the last call."""

    def __init__(self, energy: LiveEnergy) -> None:
        self._energy, self._seen = energy, energy.swaps

    def __call__(self) -> bool:
        before, self._seen = self._seen, self._energy.swaps
        return before != self._seen


def require_finite(*rewards: Tensor) -> None:
    """Raise EnergyError when energies, their gradients or rewards are NaN or infinite (waits for the device)."""
    if not all_finite(*rewards):
        raise EnergyError("the rewards of a rollout are NaN or infinite: check the energy or reward, and tau.")


def require_finite_energy(x: Tensor, energy: Tensor, gradient: Tensor | None = None) -> None:
    """Raise EnergyError where E at states x, or its gradient, is NaN or infinite (waits for the device); it names the
    first such row, the state's norm and the value. NonFiniteError where the norm is infinite: then it is the policy.
    """
    if all_finite(energy) and (gradient is None or all_finite(gradient)):
        return
    bad, what = ~energy.isfinite(), "energy"
    if gradient is not None and not bool(bad.any()):
        bad, what = ~gradient.flatten(1).isfinite().all(1), "energy's gradient"
    row = int(bad.nonzero()[0])
    if not bool(x[row].detach().norm().isfinite()):
        raise NonFiniteError("the policy left the finite numbers: the norm of a final state is NaN or infinite.")
    raise EnergyError(
        f"the {what} is NaN or infinite in {int(bad.sum())} of {len(x)} rows, first in row {row}: E is "
        f"{float(energy[row]):.6g}, at a state of norm {float(x[row].detach().norm()):.3g}. Check the energy or reward."
    )
