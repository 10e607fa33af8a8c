"""How an agent's networks run: in half precision, in parts that fit the memory, on several processes.

Algorithms need no change, as a network still gives the same outputs. Large backbones need all three.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dxmi_rl.agents.base import Agent
from dxmi_rl.diffusion import DenoiserMLP, DenoiserUNet
from dxmi_rl.networks import EnergyNetwork, ParticleMLP, StepConv, StepMLP
from dxmi_rl.utils.checks import check_integer, require, resolve_device
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.torch_tools import PRECISIONS, in_precision

NETWORKS = (DenoiserUNet, DenoiserMLP, EnergyNetwork, StepMLP, StepConv, ParticleMLP)
"""Networks that ``set_execution`` applies to; everything else of an agent (other libraries' networks, sigmas, kernels)
runs in full on every process."""


@dataclass(frozen=True)
class Execution:
    """How one network runs."""

    precision: str = "float32"
    """"float32", or "bfloat16": autocast inside the network; weights, optimizer and outputs keep their type."""
    rows_at_a_time: int | None = None
    """A larger batch runs in parts of this many rows. Only their inputs and outputs are kept for the gradient, which
    costs a second forward pass: gradient accumulation for any algorithm, with the same result. None: in one part."""
    process: int = 0
    """Number of this process, from 0 to ``processes`` - 1."""
    processes: int = 1

    def __call__(self, forward: Any, x: Tensor, *rest: Any) -> Tensor:
        """``forward(x, *rest)``, with x, and whatever else has as many rows, divided into parts."""
        n = len(x)
        if self.processes == 1 or (n < self.processes and not torch.is_grad_enabled()):
            return self._in_parts(forward, x, rest)
        if n < self.processes:
            raise ValueError(f"a batch must have a row for each of the {self.processes} processes, got {n}.")
        own = self.own_rows(n)
        parts = [value[own] if _has_rows(value, n) else value for value in rest]
        scattered: Tensor = _Scatter.apply(x, self)  # type: ignore[no-untyped-call]
        gathered: Tensor = _Gather.apply(self._in_parts(forward, scattered, parts), self, n)  # type: ignore[no-untyped-call]
        return gathered

    def own_rows(self, n: int) -> slice:
        """The part of n rows that this process computes."""
        return slice(self.process * n // self.processes, (self.process + 1) * n // self.processes)

    def _in_parts(self, forward: Callable[..., Tensor], x: Tensor, rest: Sequence[Any]) -> Tensor:
        n = len(x)
        if self.rows_at_a_time is None or n <= self.rows_at_a_time:
            return self._precisely(forward, x, *rest)
        outputs: list[Tensor] = []
        for start in range(0, n, self.rows_at_a_time):
            rows = slice(start, start + self.rows_at_a_time)
            inputs = [x[rows], *(value[rows] if _has_rows(value, n) else value for value in rest)]
            # Networks draw no noise, so there is no generator to put back, which would wait for the device.
            outputs.append(checkpoint(self._precisely, forward, *inputs, use_reentrant=False, preserve_rng_state=False))
        return torch.cat(outputs)

    def _precisely(self, forward: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        with in_precision(self.precision, x.device):
            return forward(x, *rest).to(x.dtype)


def _has_rows(value: Any, n: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == n


class _Scatter(torch.autograd.Function):
    """This process's rows of a tensor that all processes have; the gradient is gathered from all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, execution: Execution) -> Tensor:
        ctx.execution, ctx.n = execution, len(x)
        return x[execution.own_rows(len(x))].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Gather.apply(gradients[0], ctx.execution, ctx.n), None  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    """All rows, put together from those of each process.

    All processes have the same loss, so each takes its own rows of the gradient.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, execution: Execution, n: int) -> Tensor:
        ctx.execution = execution
        whole = y.new_zeros(n, *y.shape[1:])
        whole[execution.own_rows(n)] = y
        # A sum of rows and zeros, so it is exact; and processes may have different numbers of rows.
        torch.distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Scatter.apply(gradients[0], ctx.execution), None, None  # type: ignore[no-untyped-call]


def set_execution(
    agent: Agent[Any], *, precision: str = "float32", rows_at_a_time: int | None = None, share: bool = False
) -> Execution:
    """Set how all networks of an agent run from now on, those of the agent inside DxMI included; returns the setting.

    Args:
        precision: "float32" or "bfloat16" (autocast).
        rows_at_a_time: rows of a batch that a network computes at once; None: all.
        share: split every batch between the processes that ``accelerate launch --multi_gpu`` (also on CPUs) or torchrun
            started, and add up their gradients. Each process has the whole agent and draws all of its noise, so the
            numbers are those of one process up to rounding. Only the work of networks is divided, which for large ones
            is nearly all. Every process must build the agent with the same seed, on its ``own_device``, and call the
            same verbs.

    Checkpoints do not depend on any of these. Agents that AnyStep makes for horizons between run as they would alone.

    Raises UnknownNameError for another precision, ValueError for ``rows_at_a_time`` < 1 or with spectral norms, which
    change in every pass, MissingExtraError without accelerate.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, list(PRECISIONS))
    if rows_at_a_time is not None:
        check_integer("rows_at_a_time", rows_at_a_time)
    process, processes = 0, 1
    if share:
        known = _in_a_group()
        state = require("accelerate", "images").PartialState(cpu=agent.mdp.device.type == "cpu")
        process, processes = state.process_index, state.num_processes
        if not known:
            # A process group that is left open at exit sometimes aborts the process: its threads still run.
            atexit.register(_leave)
    execution = Execution(precision, rows_at_a_time, process, processes)
    told_parameters: set[int] = set()
    for module in agent.modules().values():
        _tell(module, execution, told_parameters)
    return execution


def own_device(device: str | torch.device | None) -> torch.device:
    """This process's device: for "cuda" the GPU with the number that the launcher put into ``LOCAL_RANK``.

    Build tasks and agents on it; otherwise all processes of a machine build them on the first GPU. Other devices are
    returned as they are. Raises ValueError for a device that cannot compute here.
    """
    rank = os.environ.get("LOCAL_RANK")
    if rank is None or str(device) != "cuda":
        return resolve_device(device)
    own = resolve_device(f"cuda:{int(rank)}")
    torch.cuda.set_device(own)
    return own


def _in_a_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _leave() -> None:
    if _in_a_group():
        torch.distributed.destroy_process_group()


def is_main_process() -> bool:
    """Whether this process is the first or the only one, the one that prints and writes files."""
    return not _in_a_group() or torch.distributed.get_rank() == 0


class _Executed(nn.Module):
    """A network that runs as ``executed`` says."""

    executed: _Told

    def forward(self, x: Tensor, *rest: Any, label: Tensor | int | None = None) -> Tensor:
        rest = rest if label is None else (*rest, label)
        return self.executed.execution(super().forward, x, *rest)


@dataclass
class _Told:
    """The setting that a network and the hooks of its parameters share."""

    execution: Execution

    def sum(self, gradient: Tensor) -> Tensor:
        """A parameter's gradient, summed over processes: a hook that runs once per backward pass."""
        if self.execution.processes == 1:
            return gradient
        gradient = gradient.clone()
        torch.distributed.all_reduce(gradient)
        return gradient


def _tell(module: nn.Module, execution: Execution, told_parameters: set[int]) -> None:
    """Set the execution of the outermost networks in a module."""
    if not isinstance(module, NETWORKS):
        for child in module.children():
            _tell(child, execution, told_parameters)
        return
    layers = list(module.modules())
    if execution.rows_at_a_time is not None and any(map(nn.utils.parametrize.is_parametrized, layers)):
        raise ValueError("rows_at_a_time must be None with spectral norms, which change in every pass.")
    if isinstance(module, _Executed):
        module.executed.execution = execution
        return
    kind, told = type(module), _Told(execution)
    # A class of its own, as torch's parametrizations have it: copies run the same way, and weights keep their names.
    module.__class__ = type(kind.__name__, (_Executed, kind), {"__module__": kind.__module__})
    cast(Any, module).executed = told
    for parameter in module.parameters():
        if parameter.requires_grad and id(parameter) not in told_parameters:  # several networks may share it
            parameter.register_hook(told.sum)
            told_parameters.add(id(parameter))
