"""Faster loops over whole episodes: compiled, or replayed as one CUDA graph."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.costs import Costs, count_denoiser, count_energy, counting
from dxmi_rl.rollout import Episodes, Policy, play

Loop = Callable[[Tensor, Iterable[Tensor]], Episodes]

CACHE_SIZE = 8
"""Compiled loops and captured graphs that are kept; the least recently used one goes first."""


def fast_loop(policy: Policy, start: Tensor, horizon: int, *, whole: bool, compile: bool, graph: bool) -> Loop:
    """A loop like ``play`` for starts of this shape; compiled and captured ones are kept for the next call.

    Raises ValueError for a graph without CUDA, RuntimeError for compiling without a C++ compiler.
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

    Python numbers that the policy holds stay what they were at the capture. Raises RuntimeError for a policy that
    cannot be captured.
    """

    def __init__(self, loop: Loop, start: Tensor, horizon: int) -> None:
        # Buffers made in inference mode could not be filled outside of it.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(start.device):
            self.start = start.clone()
            self.noises = [torch.zeros_like(self.start) for _ in range(horizon)]
            self.costs = Costs()
            # Warm-up on a side stream, as capturing asks for (lazy initialisation must not be recorded).
            stream = torch.cuda.Stream(start.device)
            stream.wait_stream(torch.cuda.current_stream(start.device))
            with torch.cuda.stream(stream), counting(Costs()):
                for _ in range(3):
                    loop(self.start, self.noises)
            torch.cuda.current_stream(start.device).wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self.graph, stream=stream), counting(self.costs):
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
        # A replay makes the calls of the capture, but runs no Python that would count them.
        differentiated = self.costs.energy_grad_evals
        count_energy(differentiated, differentiated=True)
        count_energy(self.costs.energy_evals - differentiated)
        count_denoiser(self.costs.denoiser_calls)
        # Copies: the buffers are overwritten by the next call.
        return [x.clone() for x in self.states], [value.clone() for value in self.log_probs]
