"""Agents of your own, named by a text: a class in a module or file, or a checkpoint that is scored as it is."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import zipfile
import zlib
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from gymnasium import spaces
from torch import nn

from dxmi_rl.agents import AGENTS, Agent, load_agent, saved_class
from dxmi_rl.agents.base import FinalStateHook, Log
from dxmi_rl.agents.wrapped.action_density import ActionDensity, check_as_stock, sb3_density, told_coordinates
from dxmi_rl.envs.observations import told_of
from dxmi_rl.irl import DxMI
from dxmi_rl.tasks import Task
from dxmi_rl.utils.checks import CheckpointError, check_integer, require
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import load_tensors

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

SB3_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "PPO": ({"clip_range", "clip_range_vf", "n_epochs"}, {"_last_lstm_states"}),
    "A2C": ({"gae_lambda", "vf_coef"}, {"clip_range", "target_kl"}),
    "SAC": ({"target_entropy", "target_update_interval"}, {"policy_delay", "top_quantiles_to_drop_per_net"}),
    "TD3": ({"policy_delay", "target_policy_noise"}, {"target_entropy"}),
}
"""By algorithm: keys that its checkpoints' ``data`` has, and keys that only its relatives in sb3_contrib have. A2C's
are a part of PPO's; DDPG is TD3 with other settings and loads as such."""


LIBRARIES = ("dxmi_rl", "builtins", "abc", "typing", "torch")
"""Packages whose classes an agent may derive from without being made of them; dxmi_rl's own source counts anyway."""


class UntrustedCheckpointError(ValueError):
    """A checkpoint whose loading can run code, and nobody has said that its source is trusted."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Settings of CheckpointAgent."""

    coordinates: str | None = None
    """Action coordinates that the model was trained in, "noise" or "next_state"; None: told by its action box, which
    is twice the target's plotting range for "next_state"."""


class CheckpointAgent(Agent[CheckpointConfig]):
    """A trained Stable-Baselines3 model as an agent that is scored as it is; ``learn`` changes nothing.

    Its Gaussian is taken before SB3 clips it, squashed actions are accounted for, and a deterministic policy (TD3,
    DDPG) has no density, only samples: all as ``dxmi_rl.evaluate`` treats the model itself.

    Args:
        model: the SB3 algorithm.
        task: as in Agent; with ``seed``, ``device`` and the settings of CheckpointConfig.

    Raises CheckpointError when the spaces of model and task differ, and TypeError as ``sb3_density`` and
    ``check_as_stock`` do.
    """

    name: ClassVar[str] = "checkpoint"
    Config = CheckpointConfig
    trains: ClassVar[bool] = False

    def __init__(self, model: BaseAlgorithm, task: str | Task = "8gaussians", **arguments: Any) -> None:
        self.model = model
        super().__init__(task, **arguments)

    def _build(self) -> None:
        observations, actions = self.model.observation_space, self.model.action_space
        width = self.mdp.dim + len(told_of(self.mdp, 0))
        shapes, wanted = (observations.shape, actions.shape), ((width,), (self.mdp.dim,))
        if shapes != wanted or not isinstance(actions, spaces.Box):
            raise CheckpointError(
                f"the model observes {observations} and acts in {actions}, but task {self.task.name!r} has flat boxes "
                f"of shapes {wanted[0]} and {wanted[1]}: train on this task, with observation='flat'."
            )
        self.coordinates = self.config.coordinates or told_coordinates(actions, self.task.target.plot_range)
        self.policy = self.model.policy
        self.model.policy.set_training_mode(False)
        density = self.density()
        check_as_stock(density)
        self.has_density = density.has_density

    def density(self, policy: nn.Module | None = None) -> ActionDensity:
        return sb3_density(self.policy if policy is None else policy, self.mdp, self.coordinates)

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        return {}


def is_own_agent(text: str) -> bool:
    """Whether ``text`` is a reference of OwnAgent, with a ":" or ending in .zip or .safetensors, and no plain name."""
    return ":" in text or text.endswith((".zip", ".safetensors"))


@dataclass(frozen=True)
class OwnAgent:
    """What a text such as ``my_module:MyAgent``, ``folder/file.py:MyAgent``, ``model.zip`` or ``x.safetensors`` names.

    It holds plain text only, so that a worker process gets it by pickle and finds class or file again by itself;
    nothing is imported or opened before a property or method needs it.

    Raises TypeError or ValueError for a text that is no such reference.
    """

    reference: str
    """The text. ``module:Class`` and ``file.py:Class`` are trained; ``.zip`` (Stable-Baselines3) and ``.safetensors``
    (``Agent.save``) are scored as they are."""
    trust_checkpoint: bool = False
    """Allow a ``.zip``, whose pickles can run any code while it is loaded."""
    folder: str = field(default_factory=os.getcwd, repr=False, compare=False)
    """Where modules and relative paths are looked for: the current folder of the process that made this."""

    def __post_init__(self) -> None:
        if not isinstance(self.reference, str):
            raise TypeError(f"reference must be a text, got {self.reference!r}.")
        object.__setattr__(self, "folder", os.path.abspath(self.folder))
        source, _, name = self.reference.rpartition(":")
        dotted = source.endswith(".py") or all(part.isidentifier() for part in source.split("."))
        if not self._is_checkpoint and not (source and dotted and name.isidentifier()):
            allowed = "'module:Class', 'file.py:Class' or a file ending in .zip or .safetensors"
            raise ValueError(f"reference must be {allowed}, got {self.reference!r}.")

    @property
    def _is_checkpoint(self) -> bool:
        return self.reference.endswith((".zip", ".safetensors"))

    @property
    def label(self) -> str:
        """Name in tables: the class's ``name``, or the file's without its ending. Raises as ``check`` for a class."""
        return Path(self.reference).stem if self._is_checkpoint else self._agent_class().name

    @property
    def trains(self) -> bool:
        """Whether it is trained before it is scored: never for checkpoints. Raises as ``check`` for a class."""
        return not self._is_checkpoint and self._agent_class().trains

    @property
    def class_name(self) -> str:
        """The class's name; empty for checkpoints."""
        return "" if self._is_checkpoint else self.reference.rpartition(":")[2]

    @property
    def learns_energy(self) -> bool:
        """Whether it needs no energy to learn from, as DxMI, or does not learn. Raises as ``check``."""
        return not self.trains or issubclass(self._agent_class(), DxMI)

    @property
    def trained_on(self) -> str | None:
        """Name of the task that a ``.safetensors`` was trained on; None for anything else. Raises as ``check``."""
        if not self.reference.endswith(".safetensors"):
            return None
        self.check()
        name: str | None = load_tensors(self._path(self.reference))[1].get("task_name")
        return name

    @property
    def digest(self) -> str:
        """What decides its numbers: 16 hex digits of the SHA-256 of the checkpoint, or of the class's source files.

        These are the files of the class and of the classes of yours that it derives from; other modules that they
        import do not count. Raises as ``check``.
        """
        if self._is_checkpoint:
            return _sha256(self._path(self.reference))
        own = [cls for cls in self._agent_class().__mro__ if cls.__module__.split(".")[0] not in LIBRARIES]
        files = {getattr(sys.modules[cls.__module__], "__file__", None): None for cls in own}
        if None in files:
            raise ValueError(f"{self.reference!r} has no source file: put the class in a module.")
        digests = [_source_digest(Path(file)) for file in files if file is not None]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()[:16]

    @property
    def modules(self) -> list[str]:
        """Modules of this package that its numbers depend on: of its class and the classes that derives from.

        Raises as ``check``.
        """
        if self.reference.endswith(".zip"):
            return [CheckpointAgent.__module__]
        cls = self._saved_class() if self._is_checkpoint else self._agent_class()
        return [parent.__module__ for parent in cls.__mro__ if parent.__module__.startswith("dxmi_rl.")]

    def check(self) -> None:
        """Raise now what ``build`` would raise on any task.

        Raises FileNotFoundError; UnknownNameError (with the near names) for a missing module or class; TypeError for
        what is no complete Agent; ValueError for a name that is taken; CheckpointError for a damaged or foreign file,
        or one of an agent that is not registered; UntrustedCheckpointError for a ``.zip`` without
        ``trust_checkpoint``; MissingExtraError without stable-baselines3; and whatever the user's module raises.
        """
        is_zip = self.reference.endswith(".zip")
        (self._sb3_class if is_zip else self._saved_class if self._is_checkpoint else self._agent_class)()

    def build(self, task: Task, seed: int, **settings: Any) -> Agent[Any]:
        """The agent on ``task``; ``settings`` are those of its config (a ``.zip`` knows ``coordinates`` only).

        A checkpoint comes as it was trained, with ``seed`` for what it samples, and trains no more.

        Raises as ``check``; TypeError for settings of a ``.safetensors``; CheckpointError for one of another task.
        """
        if not self._is_checkpoint:
            return self._agent_class()(task, seed=seed, **settings)
        if self.reference.endswith(".zip"):
            return CheckpointAgent(self._sb3_model(task), task, seed=seed, **settings)
        if settings:
            raise TypeError(f"{self.reference!r} was trained with settings of its own, got {sorted(settings)}.")
        agent = load_agent(self._path(self.reference), task=task)
        # The stored seed and stream are those of training: several seeds would all score the same draws.
        agent.seed = check_integer("seed", seed, minimum=0)
        agent.generator.manual_seed(seed)
        agent.trains = False  # type: ignore[misc]
        return agent

    def _agent_class(self) -> type[Agent[Any]]:
        source, _, name = self.reference.rpartition(":")
        module = self._file_module(source) if source.endswith(".py") else self._named_module(source)
        if not hasattr(module, name):
            agents = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Agent) and v != Agent]
            raise UnknownNameError(f"class of {source}", name, agents)
        return _complete(self.reference, getattr(module, name))

    def _named_module(self, name: str) -> ModuleType:
        sys.path[:0] = [] if self.folder in sys.path else [self.folder]
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and one that it imports is not
            raise UnknownNameError("module", name, sorted(p.stem for p in Path(self.folder).glob("*.py"))) from error
        here = Path(self.folder, *name.split(".")).with_suffix(".py")
        found = getattr(module, "__file__", None)
        if here.is_file() and not (found and here.samefile(found)):
            raise ValueError(f"module {name!r} is {found} already, not {here}: rename yours, or say 'file.py:Class'.")
        return module

    def _file_module(self, path: str) -> ModuleType:
        return load_file(self._path(path))

    def _path(self, text: str) -> Path:
        file = Path(self.folder) / Path(text).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"no file {str(file)!r}, which agent {self.reference!r} names.")
        return file

    def _saved_class(self) -> type[Agent[Any]]:
        return saved_class(self._path(self.reference))

    def _sb3_class(self) -> type[BaseAlgorithm]:
        """The SB3 algorithm that wrote the file, from its JSON alone: nothing is unpickled."""
        name = _sb3_algorithm(self._path(self.reference))
        if not self.trust_checkpoint:
            raise UntrustedCheckpointError(
                f"{self.reference!r} is a checkpoint of Stable-Baselines3 ({name}). Such files hold pickles, which can "
                "run any code while they are loaded: if you trust where it comes from, pass --trust-checkpoint "
                "(trust_checkpoint=True in Python)."
            )
        found: type[BaseAlgorithm] = getattr(require("stable_baselines3", "sb3"), name)
        return found

    def _sb3_model(self, task: Task) -> BaseAlgorithm:
        algorithm = self._sb3_class()
        try:
            return algorithm.load(self._path(self.reference), device=task.device)
        except Exception as error:  # whatever its pickles and its version of SB3 come upon
            raise CheckpointError(f"SB3 could not load {self.reference!r}: {type(error).__name__}: {error}") from error


def load_file(file: Path) -> ModuleType:
    """The module of a Python file, whose code is run once. What that raises is ImportError, unless it is bad input."""
    if not file.is_file():
        raise FileNotFoundError(f"no file {str(file)!r}.")
    # Under a name of its own: a file called random.py or agents.py must not stand for the module of that name.
    name = f"{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    folder, spec = str(file.resolve().parent), importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    sys.path[:0] = [] if folder in sys.path else [folder]
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, (ValueError, TypeError, ImportError, OSError, KeyboardInterrupt)):
            raise
        raise ImportError(f"running {str(file)!r} failed: {type(error).__name__}: {error}") from error
    return module


def _complete(reference: str, cls: object) -> type[Agent[Any]]:
    if not (isinstance(cls, type) and issubclass(cls, Agent)):
        raise TypeError(f"{reference!r} must be a subclass of dxmi_rl.agents.Agent, got {cls!r}.")
    missing = [*sorted(cls.__abstractmethods__), *(key for key in ("name", "Config") if not hasattr(cls, key))]
    if missing:
        raise TypeError(f"agent {reference!r} must define {', '.join(missing)}.")
    if not isinstance(cls.name, str) or not cls.name:
        raise TypeError(f"name of agent {reference!r} must be a text, got {cls.name!r}.")
    if not isinstance(cls.Config, type) or not is_dataclass(cls.Config):
        raise TypeError(f"Config of agent {reference!r} must be a dataclass, got {cls.Config!r}.")
    if cls.name in AGENTS and AGENTS[cls.name] is not cls:
        raise ValueError(f"name {cls.name!r} of agent {reference!r} is taken: give the class a name of its own.")
    return cls


def _sb3_algorithm(file: Path) -> str:
    """Name of the algorithm of a checkpoint: a key of SB3_KEYS. Raises CheckpointError."""
    try:
        with zipfile.ZipFile(file) as archive:
            if (entry := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"its entry {entry!r} is damaged")
            data = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{str(file)!r} is no checkpoint of Stable-Baselines3, or damaged: {error}") from error
    data = data if isinstance(data, dict) else {}
    policy = data.get("policy_class")
    home = str(policy.get("__module__")) if isinstance(policy, dict) else ""
    names = [name for name, (own, foreign) in SB3_KEYS.items() if own <= data.keys() and not foreign & data.keys()]
    if len(names) != 1 or home.split(".")[0] == "sb3_contrib":
        raise CheckpointError(f"{str(file)!r} must be a checkpoint of {', '.join(SB3_KEYS)}: its keys are another's.")
    return names[0]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


# Remembered, as loaded classes are: a source that is edited meanwhile is not what computes the numbers.
_source_digest = functools.cache(_sha256)
