"""What training needs of torch: fixed seeds, precision, frozen parameters, Adam, averages of weights."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
"""How networks compute: as their weights are, or under autocast."""
_GLOBAL_STREAM = threading.RLock()
_MALLOPT = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}
"""Settings of glibc's malloc, by the environment variable that sets them, and their numbers in malloc.h."""
_KEPT_BYTES = (2**30, 2**25)
"""Blocks of up to so many bytes are kept; older versions of glibc allow the second only."""


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fix torch's generator of the CPU inside, leave it untouched outside (modules are initialised on the CPU).

    The generator belongs to the whole process, so other threads that ask for a seed wait.
    """
    with _GLOBAL_STREAM, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Go on with the stream that ``state`` is of; where it comes from another kind of device, which has states of
    another size, with the present one.
    """
    if state.numel() == generator.get_state().numel():
        generator.set_state(state)


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors on the CPU for the next ones.

    By default glibc gives it back to the system, which clears every page before it hands it out again. With tensors of
    megabytes that takes up to a quarter of the time (docs/speed.md). With another C library nothing changes, nor where
    the environment sets MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_THRESHOLD_.
    """
    if platform.libc_ver()[0] != "glibc" or _MALLOPT.keys() & os.environ.keys():
        return
    mallopt = ctypes.CDLL(None).mallopt
    for setting in _MALLOPT.values():
        any(mallopt(setting, size) for size in _KEPT_BYTES)  # stops at the first that is allowed


def in_precision(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which networks compute so: a name of PRECISIONS."""
    half = PRECISIONS[precision]
    return contextlib.nullcontext() if half is None else torch.autocast(device.type, half)


def all_weights_finite(module: nn.Module) -> bool:
    """Whether no parameter of the module is NaN or infinite; waits for the device."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())


@contextlib.contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """No gradients for these parameters inside; those that had none before have none after."""
    changed = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)


def share_parameters(module: nn.Module, source: nn.Module) -> None:
    """Give ``module`` the very parameters and single numbers of ``source``, by name; its other buffers stay its own.

    Raises ValueError where their names or shapes differ.
    """
    given = dict(source.named_parameters(remove_duplicate=False))
    own = dict(module.named_parameters(remove_duplicate=False))
    shapes, wanted = ({key: list(value.shape) for key, value in part.items()} for part in (own, given))
    if shapes != wanted:
        odd = sorted(key for key in shapes | wanted if shapes.get(key) != wanted.get(key))
        raise ValueError(f"parameters {odd} cannot be shared: their shapes are {shapes} and {wanted}.")
    numbers = {key: value for key, value in source.named_buffers(remove_duplicate=False) if not value.dim()}
    for key, value in (given | numbers).items():
        owner, _, name = key.rpartition(".")
        setattr(module.get_submodule(owner), name, value)


def share_optimizer(optimizer: torch.optim.Optimizer, source: torch.optim.Optimizer) -> None:
    """Let ``optimizer`` step the parameters of ``source`` with the state of ``source``."""
    optimizer.param_groups, optimizer.state = source.param_groups, source.state


def adam(groups: list[tuple[list[nn.Parameter], float]], betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.Adam:
    """Adam over (parameters, peak learning rate) groups; ``peak`` is what ``Agent.set_progress`` scales.

    Fused where torch can: on small networks a plain step costs as much as the backward pass.
    """
    kinds = {parameter.device.type for parameters, _ in groups for parameter in parameters}
    return torch.optim.Adam(
        [{"params": parameters, "lr": rate, "peak": rate} for parameters, rate in groups if parameters],
        fused=kinds <= {"cpu", "cuda"},
        betas=betas,
    )


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


def gradient_step(
    optimizer: torch.optim.Optimizer, module: nn.Module, loss: Tensor, max_grad_norm: float
) -> Tensor:  # fmt: skip
    """One step of ``optimizer`` on a scalar loss, the gradient of ``module`` clipped; returns the loss, detached.

    Only the module's own gradients are computed, whatever else the loss depends on.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    return loss.detach()


def input_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient in x of a function ``[batch, *event_shape] -> [batch]``, as a constant in the shape of x."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(point).sum(), point)
    return slope


@contextlib.contextmanager
def evaluation_mode(function: object) -> Iterator[None]:
    """Put a module into eval mode and back: energies and densities must not depend on dropout or batch statistics."""
    training = [part for part in function.modules() if part.training] if isinstance(function, nn.Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
