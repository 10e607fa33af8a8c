"""Whole episodes of a policy in one loop over t: eager, compiled, or replayed as one CUDA graph."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dxmi_rl.diffusion.kernels import gaussian_log_prob, standard_log_prob

Episodes = tuple[list[Tensor], list[Tensor]]
Loop = Callable[[Tensor, Iterable[Tensor]], Episodes]

CACHE_SIZE = 8
"""Compiled loops and captured graphs that are kept; the least recently used one goes first."""


class GaussianDensity(Protocol):
    """A Gaussian over the next state."""

    def moments(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean (shape of x) and log standard deviation (broadcastable) of x_{t+1} given x_t."""


class TransportDensity(Protocol):
    """Any other density over the next state that standard normal noise is transported to."""

    def transport(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x_{t+1} (shape of x) made from x_t and N(0, I) noise, and its log pi(x_{t+1} | x_t): ``[batch]``."""

    def log_prob(self, x: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        """log pi(x_{t+1} | x_t): ``[batch]``."""


Policy = GaussianDensity | TransportDensity
"""What ``DenoisingMDP.rollout`` takes."""


def log_prob(policy: Any, x: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
    """log pi(x_{t+1} | x_t) of any policy: ``[batch]``."""
    if hasattr(policy, "transport"):
        return policy.log_prob(x, x_next, t)
    return gaussian_log_prob(x_next, *policy.moments(x, t))


def draw(policy: Any, x: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
    """x_{t+1} that any policy makes from x_t and N(0, I) noise, in the shape of x."""
    if hasattr(policy, "transport"):
        return policy.transport(x, t, noise)[0]
    mean, log_std = policy.moments(x, t)
    return mean + log_std.exp() * noise


def play(policy: Any, start: Tensor, noises: Iterable[Tensor], *, whole: bool) -> Episodes:
    """All T + 1 states and T log-probabilities; without ``whole`` only [x_T], so that memory does not grow with T.

    Raises TypeError or ValueError for a policy's answer of another type, dtype, shape or device.
    """
    transported = hasattr(policy, "transport")
    log_probs: list[Tensor] = []
    x, states = start, [start]
    for t, noise in enumerate(noises):
        if transported:
            x, log_density = policy.transport(x, t, noise)
            _check_answer("log-probabilities", log_density, start.shape[:1], start)
        else:
            mean, log_std = policy.moments(x, t)
            _check_answer("means", mean, start.shape, start)
            _check_answer("log standard deviations", log_std, None, start)
            x = mean + log_std.exp() * noise
            log_density = standard_log_prob(noise, log_std) if whole else x
        _check_answer("states", x, start.shape, start)
        if whole:
            states.append(x)
            log_probs.append(log_density)
    return (states, log_probs) if whole else ([x], [])


def _check_answer(name: str, value: object, shape: torch.Size | None, start: Tensor) -> None:
    """Raise TypeError or ValueError for an answer of the policy unlike ``start``; shape None: what broadcasts to it."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        raise TypeError(f"the policy's {name} must be a dense tensor, got {value!r}.")
    if shape is None:
        sizes = zip(reversed(value.shape), reversed(start.shape), strict=False)
        if value.dim() > start.dim() or any(size not in (1, full) for size, full in sizes):
            raise ValueError(f"the policy's {name} must broadcast to {list(start.shape)}, got {list(value.shape)}.")
    elif value.shape != shape:
        raise ValueError(f"the policy's {name} must have shape {list(shape)}, got {list(value.shape)}.")
    elif value.dtype != start.dtype:
        raise TypeError(f"the policy's {name} must have dtype {start.dtype}, got {value.dtype}.")
    if value.device != start.device:
        raise ValueError(f"the policy's {name} must be on device {str(start.device)!r}, got {str(value.device)!r}.")


def fast_loop(policy: Policy, start: Tensor, horizon: int, *, whole: bool, compile: bool, graph: bool) -> Loop:
    """A loop like ``play`` for starts of this shape; compiled and captured ones are kept for the next call.

    Raises ValueError for a graph elsewhere than on CUDA, RuntimeError when there is nothing to compile with.
    """
    if graph and not start.is_cuda:
        raise ValueError(
            f"graph=True needs the MDP on a CUDA device, it is on {str(start.device)!r}: use compile=True."
        )
    loop: Loop = lambda x, noises: play(policy, x, noises, whole=whole)  # noqa: E731
    if compile:
        loop = _kept(("compiled", id(policy), whole), policy, lambda: _compiled(policy, whole))
    if graph:
        name = ("graph", id(policy), *_places(policy), whole, compile, horizon, start.shape, start.dtype, start.device)
        plain = loop
        loop = _kept(name, policy, lambda: _CapturedLoop(plain, start, horizon))
    return loop


def _places(policy: Any) -> list[int]:
    """Where the policy's numbers lie: a graph reads them there, so replaced ones need another graph."""
    module = policy if isinstance(policy, nn.Module) else getattr(policy, "module", None)
    return [] if module is None else [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())]


_CACHE: OrderedDict[tuple[object, ...], tuple[Policy, Loop]] = OrderedDict()


def _kept(name: tuple[object, ...], policy: Policy, make: Callable[[], Loop]) -> Loop:
    # The policy is kept too: while it lives, its id is its own.
    if name not in _CACHE:
        _CACHE[name] = (policy, make())
        if len(_CACHE) > CACHE_SIZE:
            _CACHE.popitem(last=False)
    _CACHE.move_to_end(name)
    return _CACHE[name][1]


def _compiled(policy: Policy, whole: bool) -> Loop:
    # The noise comes from outside: a torch.Generator breaks the graph, and in-graph randn is slower on a CPU.
    inner = torch.compile(lambda x, noises: play(policy, x, noises, whole=whole))

    def loop(start: Tensor, noises: Iterable[Tensor]) -> Episodes:
        try:
            return inner(start, list(noises))
        except Exception as error:
            if "c++ compiler" in str(error).lower():
                raise RuntimeError("compile=True needs a C++ compiler (g++ or clang) for torch.compile.") from error
            raise

    return loop


class _CapturedLoop:
    """The whole loop as one CUDA graph on static buffers; parameters are read where they lie, so training is seen.

    Python numbers on the policy are those of the capture. Raises RuntimeError for a policy that cannot be captured.
    """

    def __init__(self, loop: Loop, start: Tensor, horizon: int) -> None:
        # Buffers made in inference mode could not be filled outside of it.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(start.device):
            self.start = start.clone()
            self.noises = [torch.zeros_like(self.start) for _ in range(horizon)]
            # Warm-up on a side stream, as capturing asks for (lazy initialisation must not be recorded).
            stream = torch.cuda.Stream(start.device)
            stream.wait_stream(torch.cuda.current_stream(start.device))
            with torch.cuda.stream(stream):
                for _ in range(3):
                    loop(self.start, self.noises)
            torch.cuda.current_stream(start.device).wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self.graph, stream=stream):
                    self.states, self.log_probs = loop(self.start, self.noises)
            except RuntimeError as error:
                raise RuntimeError(
                    "graph=True could not capture the policy: it must neither wait for the device nor draw random "
                    "numbers of its own."
                ) from error

    def __call__(self, start: Tensor, noises: Iterable[Tensor]) -> Episodes:
        self.start.copy_(start)
        for buffer, noise in zip(self.noises, noises, strict=True):
            buffer.copy_(noise)
        self.graph.replay()
        # Copies: the buffers are overwritten by the next call.
        return [x.clone() for x in self.states], [value.clone() for value in self.log_probs]
