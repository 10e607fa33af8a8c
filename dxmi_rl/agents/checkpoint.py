"""Checkpoints of agents: the whole training state as one safetensors file with a JSON header."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dxmi_rl.costs import Costs
from dxmi_rl.targets import RewardEnergy
from dxmi_rl.tasks import Task, make_task
from dxmi_rl.utils.checks import CheckpointError, check_integer, check_real
from dxmi_rl.utils.storage import check_file, flatten_optimizer, load_tensors, restore_optimizer, save_tensors
from dxmi_rl.utils.torch_tools import restore_generator

if TYPE_CHECKING:
    from dxmi_rl.agents.base import Agent

AnyPath = str | os.PathLike[str]


KEYS: dict[str, type | tuple[type, ...]] = {
    "agent": str, "task": (dict, type(None)), "task_name": str, "task_config": dict, "seed": int, "config": dict,
    "costs": dict, "progress": (int, float),
}  # fmt: skip
"""Metadata of a checkpoint, and their types."""


def saved_modules(agent: Agent[Any]) -> dict[str, nn.Module]:
    """``agent.modules()``, and the backward kernel, which an agent of one's own may have left out.

    Raises TypeError where ``modules`` or ``optimizers`` gives anything else than a dict by name, names that cannot be
    told apart in a file, or parameters that an optimizer trains and no module holds: loading would lose them.
    """
    found, optimizers = agent.modules(), agent.optimizers()
    for name, parts, kind in (("modules", found, nn.Module), ("optimizers", optimizers, torch.optim.Optimizer)):
        if not isinstance(parts, dict) or not all(isinstance(part, kind) for part in parts.values()):
            raise TypeError(
                f"{name} of agent {agent.name!r} must return a dict of name: {kind.__name__}, got {parts!r}."
            )
    if not any(part is agent.mdp.kernel for module in found.values() for part in module.modules()):
        found = found | {"kernel": agent.mdp.kernel}
    for name in found:
        if clash := next((other for other in found if other.startswith(f"{name}.")), None):
            raise TypeError(f"names of modules of agent {agent.name!r} must not begin with another's: {clash!r}.")
    held = {id(part) for module in found.values() for part in module.parameters()}
    for name, optimizer in optimizers.items():
        if any(id(part) not in held for group in optimizer.param_groups for part in group["params"]):
            raise TypeError(
                f"modules of {agent.name!r} must hold all that is trained: optimizer {name!r} has parameters that "
                "none of them holds, and checkpoints would lose them."
            )
    return found


def _not_held(agent: Agent[Any]) -> list[str]:
    """Names of the agent's attributes that are modules with parameters, and that ``modules`` does not hold."""
    held = {id(part) for module in saved_modules(agent).values() for part in module.parameters()}
    own = {name: [*part.parameters()] for name, part in vars(agent).items() if isinstance(part, nn.Module)}
    return [name for name, parts in own.items() if parts and not any(id(part) in held for part in parts)]


def weights(agent: Agent[Any]) -> dict[str, Tensor]:
    """The tensors of all modules, by name, not copied."""
    modules = saved_modules(agent).items()
    return {f"{name}.{key}": value for name, module in modules for key, value in module.state_dict().items()}


def set_weights(agent: Agent[Any], tensors: dict[str, Tensor]) -> None:
    """Put ``weights`` back; raises what torch raises for those that do not fit."""
    for name, module in saved_modules(agent).items():
        part = {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name + ".")}
        module.load_state_dict(part)


def training_state(agent: Agent[Any]) -> dict[str, Tensor]:
    """All tensors of the training state, by name, not copied: of modules, optimizers, the generator and the rest."""
    tensors = {"generator": agent.generator.get_state()} | weights(agent)
    for name, optimizer in agent.all_optimizers().items():
        tensors |= flatten_optimizer(f"optimizer/{name}", optimizer)
    if isinstance(energy := agent.mdp.energy.function, RewardEnergy):
        tensors["reward_beta"] = torch.tensor(energy.beta, dtype=torch.float64)  # AdaptiveBeta moves it
    return tensors | {f"extra/{name}": tensor for name, tensor in agent.extra_tensors().items()}


def set_training_state(agent: Agent[Any], tensors: dict[str, Tensor]) -> None:
    """Put ``training_state`` back; raises what torch raises for one that does not fit."""
    set_weights(agent, tensors)
    for name, optimizer in agent.all_optimizers().items():
        restore_optimizer(f"optimizer/{name}", optimizer, tensors)
    agent.set_extra_tensors({key[6:]: value for key, value in tensors.items() if key.startswith("extra/")})
    if isinstance(energy := agent.mdp.energy.function, RewardEnergy) and "reward_beta" in tensors:
        energy.beta = float(tensors["reward_beta"])
    restore_generator(agent.generator, tensors["generator"])


def save_agent(agent: Agent[Any], path: AnyPath, *, weights_only: bool = False) -> Path:
    """Write the agent's training state, costs, settings and task, atomically.

    With ``weights_only`` the state of optimizers, generators and replayed data is left out: the file is about a third
    of the size, and an agent that is loaded from it goes on learning with fresh ones.
    """
    check_file("path", path)
    if agent.task.energy_swapped and not hasattr(agent, "score"):
        warnings.warn(
            f"the energy that mdp.set_energy has put into task {agent.task.name!r} is not saved: load the agent with "
            "task=make_task(..., energy=...), or set it again.", stacklevel=3,
        )  # fmt: skip
    if lost := _not_held(agent):
        warnings.warn(
            f"modules of agent {agent.name!r} do not return its {', '.join(lost)}: a checkpoint does not keep them, "
            "nor does the best one of a comparison.", stacklevel=3,
        )  # fmt: skip
    metadata = {
        "agent": agent.name,
        "task": agent.task.spec,
        "task_name": agent.task.name,
        "task_config": agent.task.fingerprint(),
        "seed": agent.seed,
        "config": asdict(agent.config),
        "costs": asdict(agent.costs),
        "progress": agent.progress,
    }
    if weights_only:
        return save_tensors(path, weights(agent), metadata | {"weights_only": True})
    return save_tensors(path, training_state(agent), metadata)


def check_saving(callback: object, checkpoint: object, every: int, minutes: float | None) -> float:
    """The seconds after which ``learn`` saves, infinity for no ``minutes``; raises for arguments of it that could not
    be used, before the training that would be lost: TypeError, ValueError, or the OSError of ``check_file``.
    """
    check_integer("checkpoint_every", every)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {callback!r}.")
    if checkpoint is not None:
        check_file("checkpoint", checkpoint)
    return math.inf if minutes is None else 60 * check_real("checkpoint_minutes", minutes, strict=True)


def stops(answer: object) -> bool:
    """Whether a callback of ``learn`` ends the training: it returns False, which may be numpy's or torch's."""
    if isinstance(answer, Tensor):
        return answer.dtype == torch.bool and answer.numel() == 1 and not bool(answer)
    return isinstance(answer, (bool, np.bool_)) and not answer


def read_checkpoint(path: AnyPath, kind: type[Agent[Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a checkpoint of this agent.

    Raises FileNotFoundError, or CheckpointError for a damaged file or one of another agent.
    """
    tensors, metadata = load_tensors(path)
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{str(path)!r} has a damaged header: its metadata are no dict.")
    if metadata.get("agent") != kind.name:
        raise CheckpointError(
            f"{str(path)!r} holds agent {metadata.get('agent')!r}, not {kind.name!r}: load it with that class."
        )
    for key, wanted in KEYS.items():
        if not isinstance(metadata.get(key, ...), wanted):
            raise CheckpointError(f"{str(path)!r} has a damaged header: {key} is {metadata.get(key, 'missing')!r}.")
    return tensors, metadata


def task_of(
    path: AnyPath, metadata: dict[str, Any], task: str | Task | None, device: str | torch.device | None
) -> Task:
    """The task that a checkpoint was trained on, built anew unless it is given.

    Warns of another ``energy=``. Raises CheckpointError for one of the user's own objects that is not given, and for
    another task.
    """
    if task is None:
        if metadata["task"] is None:
            raise CheckpointError(
                f"{str(path)!r} was trained on a task of your own objects, or on one horizon of several "
                f"({metadata['task_name']!r}): pass task=, or --task on the command line."
            )
        task = make_task(**metadata["task"], device=device)
    elif isinstance(task, str):
        task = make_task(task, device=device)
    elif not isinstance(task, Task):
        raise TypeError(f"task must be a built Task or the name of one, got {task!r}.")
    if task.name != metadata["task_name"]:
        raise CheckpointError(f"{str(path)!r} was trained on task {metadata['task_name']!r}, not on {task.name!r}.")
    then, now = metadata["task_config"], task.fingerprint()
    if then.get("energy=") != now.pop("energy=", None):  # one that learns may have moved on
        warnings.warn(
            f"{str(path)!r} was trained on another energy than the task has: pass task=make_task({task.name!r}, "
            "energy=...) with the same one.", stacklevel=4,
        )  # fmt: skip
    # The target's digest comes last: where its options differ, they say more.
    for key, value in sorted(now.items(), key=lambda item: item[0] == "target"):
        if then.get(key) != value:
            what = "target (name and digest of its values)" if key == "target" else key
            raise CheckpointError(
                f"{str(path)!r} was trained with {what} = {then.get(key)}, and the task has {key} = {value}."
            )
    return task


def stored_config(path: AnyPath, metadata: dict[str, Any], kind: type[Agent[Any]]) -> Any:
    """The settings of a checkpoint; raises CheckpointError for those that this version does not know or allow."""
    try:
        return kind.parse_config(metadata["config"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} holds settings that this {kind.name!r} does not take; is it of another version of dxmi_rl? "
            f"{error}"
        ) from error


def restore(agent: Agent[Any], path: AnyPath, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Put the stored training state into an agent; raises CheckpointError when it does not fit."""
    try:
        vars(agent.costs).update(vars(Costs(**metadata["costs"])))  # in place: agents inside share them
        agent.set_progress(metadata["progress"])  # before the tensors, which have the rates of optimizers
        (set_weights if metadata.get("weights_only") is True else set_training_state)(agent, tensors)
        if metadata["task_config"].get("energy=") != agent.task.fingerprint().get("energy="):
            agent.mdp.energy.swaps += 1  # what the agent kept of another energy is asked for again
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{str(path)!r} does not fit {agent.name!r} on {agent.task.name!r}: {error}") from error
