"""TorchRLEnv: few-step denoising as a native TorchRL environment."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.error import ResetNeeded
from torch import Tensor

from dxmi_rl.envs.episodes import Episodes, TaskLike, append_column
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.tasks import Task
from dxmi_rl.utils.checks import check_integer, require

require("torchrl", "torchrl")
from tensordict import TensorDict, TensorDictBase  # noqa: E402 (an optional package)
from torchrl.data import Bounded, Categorical, Composite, Unbounded  # noqa: E402
from torchrl.envs import EnvBase  # noqa: E402


class TorchRLEnv(EnvBase):  # type: ignore[misc]  # a class of a library without types
    """DenoiseEnv as a batch of tensordicts: what TorchRL's collectors, losses and transforms take.

    The environment is stateless: ``step`` reads everything from the tensordict that it is given, so that an episode
    can be continued, replayed or branched from any of its tensordicts, and rows may be at different steps. Entries:

    - "x", ``[*batch, *event_shape]``, and "t", ``[*batch]``, int64, 0..T: the MDP's state. A transform that changes
      them in place changes the state; give it ``out_keys``.
    - "observation", ``[*batch, d + 1]``: [x_t flattened, 1 - t/T], for policies only; ObservationNorm and the like may
      change it. ``observation="dict"`` leaves it out.
    - "action", ``[*batch, d]``; its box is a hint as in DenoiseEnv, and actions beyond it are never clipped.
    - "reward", ``[*batch, 1]``, in nats.
    - "done" and "terminated", ``[*batch, 1]``: true at t = T. Nothing is ever truncated.

    Where all rows are at one step, as they are unless some were reset alone, the energy is evaluated at the last step
    only, otherwise on all rows at every step. ``step`` knows the t of a "t" that it or ``reset`` made and nobody
    changed; it reads any other, for which CUDA must wait.

    Args:
        task: as in DenoiseEnv.
        num_envs: the batch size of all tensordicts is ``[num_envs]`` (batch-locked); None: it is ``[]``, and
            tensordicts of every batch size are understood (batch-unlocked): ``env.reset(TensorDict({}, [64]))``.
        arguments: all other arguments of DenoiseEnv but ``render_mode``. With ``fit_backward`` the kernel is fitted
            to every finished batch of episodes, whose rows must make the steps t = 0..T-1 in order and together.

    ``set_seed`` fixes the starting states, whatever torch's global generator does; without it they differ from run to
    run. ``close`` has nothing to let go of: a closed environment still steps. Gamma, lambda and entropy coefficients
    are those of the other interfaces: 1, 1 and tau.

    Raises what DenoiseEnv raises, and MissingExtraError when torchrl is absent. ``step`` raises ResetNeeded without a
    state or at t = T; TypeError or ValueError for entries of another dtype, shape or device; NonFiniteError and
    EnergyError as DenoiseVectorEnv does: on the CPU at once, on CUDA when an episode ends. TorchRL itself raises
    RuntimeError for another batch size than a locked one.
    """

    def __init__(self, task: TaskLike | None = None, *, num_envs: int | None = None, **arguments: Any) -> None:
        if "render_mode" in arguments:
            raise TypeError("TorchRLEnv draws no pictures and takes no render_mode: see dxmi_rl.envs.render_samples.")
        batch = () if num_envs is None else (check_integer("num_envs", num_envs),)
        # One episode that is never played: it checks the arguments, builds the task and knows the spaces.
        self._setup = Episodes(1, task, **arguments)
        super().__init__(device=self.mdp.device, batch_size=batch)
        self._batch_locked = num_envs is not None  # on the instance: EnvBase keeps it on the class
        self._dtype = self.mdp.base.sigma.dtype
        self._transitions: list[tuple[Tensor, Tensor]] = []
        self._known: tuple[Tensor, int, int, int] | None = None
        steps = torch.arange(self.mdp.horizon + 1, dtype=torch.float64, device=self.device)
        self._time_left = (1 - steps / self.mdp.horizon).to(self._dtype).unsqueeze(1)
        self._generator = torch.Generator(self.device)
        self._set_seed(None)
        self._make_specs(torch.Size(batch))

    @property
    def task(self) -> Task:
        """The task: target, configuration, MDP."""
        return self._setup.task

    @property
    def mdp(self) -> DenoisingMDP:
        """The MDP, held by reference: ``mdp.set_energy(module)`` changes the rewards from the next step on."""
        return self._setup.mdp

    @property
    def coordinates(self) -> str:
        """The action coordinates."""
        return self._setup.coordinates

    def to(self, device: str | torch.device) -> TorchRLEnv:
        """Move the environment in place, with the task that it holds and a reward model that is a module.

        The generator of starting states begins again at its seed.
        """
        previous = self.device
        super().to(device)
        if self.device != previous:
            _move(self.task, self.device)
            self._setup._finite = self._setup._finite.to(self.device)
            self._time_left = self._time_left.to(self.device)
            self._generator = torch.Generator(self.device).manual_seed(self._generator.initial_seed())
            self._transitions, self._known = [], None
        return self

    # -- what EnvBase asks for ---------------------------------------------------------------------------------

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(check_integer("seed", seed, minimum=0))

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDictBase:
        """New episodes for all rows; EnvBase keeps those that a "_reset" mask asks for."""
        batch = self.batch_size if tensordict is None else tensordict.batch_size
        x = self.mdp.reset(batch.numel(), self._generator).to(self._dtype)
        if tensordict is None or tensordict.get("_reset", None) is None:
            self._setup._finite.fill_(True)
        done = torch.zeros(*batch, 1, dtype=torch.bool, device=self.device)
        entries = self._entries(x, 0, batch) | {"done": done, "terminated": done}
        self._remember(entries["t"], 0, 0)
        return _tensordict(entries, batch_size=batch, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if tensordict.get("_step", None) is not None:
            return self._step_some(tensordict)
        batch, mdp = tensordict.batch_size, self.mdp
        x, t = tensordict.get("x", None), tensordict.get("t", None)
        if x is None or t is None:
            raise ResetNeeded(
                "the tensordict has no state ('x' and 't'): begin with env.reset(), step from what it gives."
            )
        action = self._parse_action(tensordict.get("action", None), batch)
        first, last = self._steps(t, batch)
        lockstep = first == last
        _require_tensor("'x'", x)
        if x.shape != (*batch, *mdp.event_shape):
            raise ValueError(f"'x' must have shape {[*batch, *mdp.event_shape]}, got {list(x.shape)}.")
        x = _shaped(x, (batch.numel(), *mdp.event_shape))
        # Shapes and steps are known to be right; all else is left to ``transition``, which raises.
        right = x.dtype == action.dtype and x.device == action.device == self._time_left.device
        transition = mdp.checked_transition if right else mdp.transition
        x_next, running, terminal = transition(x, first if lockstep else t.reshape(-1), action, self.coordinates)
        reward = running if terminal is None else running + terminal
        ended = last + 1 == mdp.horizon
        self._require_finite(action, x_next, running, reward, ended)
        if self._setup.fit_backward:
            self._fit(x, x_next, first, last)
        t_next = first + 1 if lockstep else t + 1
        entries = self._entries(x_next, t_next, batch)
        if lockstep:
            done = torch.full((*batch, 1), ended, dtype=torch.bool, device=self.device)
        else:
            done = (entries["t"] == mdp.horizon).unsqueeze(-1)
        entries["reward"] = reward.to(self._dtype).reshape(*batch, 1)
        entries["done"] = entries["terminated"] = done
        self._remember(entries["t"], first + 1, last + 1)
        return _tensordict(entries, batch_size=batch, device=self.device)

    def _step_proc_data(self, next_tensordict_out: TensorDictBase) -> TensorDictBase:
        """EnvBase completes shapes and done entries here; ``_step`` gives all of them already."""
        return next_tensordict_out

    # -- inside ------------------------------------------------------------------------------------------------

    def _make_specs(self, batch: torch.Size) -> None:
        """All but the done specs, which EnvBase makes: "done" and "terminated"."""
        kind: dict[str, Any] = {"dtype": self._dtype, "device": self.device}
        state = {
            "x": Unbounded(shape=(*batch, *self.mdp.event_shape), **kind),
            "t": Categorical(self.mdp.horizon + 1, shape=batch, dtype=torch.int64, device=self.device),
        }
        observation = {"observation": Unbounded(shape=(*batch, self.mdp.dim + 1), **kind)}
        seen = state | (observation if self._setup.layout == "flat" else {})
        self.state_spec = Composite(state, shape=batch, device=self.device).clone()
        self.observation_spec = Composite(seen, shape=batch, device=self.device)
        box = self._setup.action_space
        low, high = (torch.as_tensor(end, **kind).expand(*batch, -1) for end in (box.low, box.high))
        self.action_spec = Bounded(low, high, shape=(*batch, self.mdp.dim), **kind)
        self.reward_spec = Unbounded(shape=(*batch, 1), **kind)

    def _entries(self, x: Tensor, t: int | Tensor, batch: torch.Size) -> dict[str, Tensor]:
        """The observation's entries for states x, one per row, at the step t that all rows share, or ``[*batch]``."""
        entries = {"x": _shaped(x, (*batch, *self.mdp.event_shape))}
        entries["t"] = torch.full(batch, t, device=self.device) if isinstance(t, int) else t
        if self._setup.layout == "flat":
            rows = _shaped(x, (batch.numel(), self.mdp.dim))
            if isinstance(t, int):
                rows = append_column(rows, 1 - t / self.mdp.horizon)
            else:
                rows = torch.cat([rows, self._time_left[t.reshape(-1)]], dim=-1)
            entries["observation"] = _shaped(rows, (*batch, self.mdp.dim + 1))
        return entries

    def _parse_action(self, action: Tensor | None, batch: torch.Size) -> Tensor:
        if action is None:
            raise ValueError("the tensordict has no 'action'.")
        _require_tensor("action", action)
        if not action.dtype.is_floating_point:
            raise TypeError(f"action must have a floating dtype, got {action.dtype}.")
        wanted = (*batch, self.mdp.dim)
        if action.shape not in (wanted, (*batch, *self.mdp.event_shape)):
            raise ValueError(f"action must have shape {list(wanted)}, got {list(action.shape)}.")
        # In next-state coordinates the action becomes the state: it must not change with the caller's tensor.
        parsed = action.detach().to(self._dtype, copy=self.coordinates == "next_state")
        return _shaped(parsed, (batch.numel(), *self.mdp.event_shape))

    def _steps(self, t: Tensor, batch: torch.Size) -> tuple[int, int]:
        """The first and the last step at which rows are."""
        if self._known is not None and t is self._known[0] and t._version == self._known[1]:
            first, last = self._known[2:]
        elif _require_tensor("'t'", t).device.type != self.device.type:
            raise ValueError(f"'t' must be on device {str(self.device)!r}, got {str(t.device)!r}.")
        elif t.dtype != torch.int64 or t.shape != batch:
            raise TypeError(f"'t' must be int64 of shape {list(batch)}, got {t.dtype} of shape {list(t.shape)}.")
        elif not t.numel():
            raise ValueError(f"a step needs at least one row, got batch size {list(batch)}.")
        else:
            first, last = (int(end) for end in torch.aminmax(t))
        if last == self.mdp.horizon:
            raise ResetNeeded(f"an episode is over (t = {last} = T): reset it before the next step.")
        if first < 0 or last > self.mdp.horizon:
            raise ValueError(f"'t' must lie in 0..{self.mdp.horizon - 1}, got {first}..{last}.")
        return first, last

    def _remember(self, t: Tensor, first: int, last: int) -> None:
        """Note what is in a "t" of ours, so that reading it back costs nothing; its version tells if it was changed."""
        self._known = None if t.is_inference() else (t, t._version, first, last)

    def _require_finite(self, action: Tensor, x_next: Tensor, running: Tensor, reward: Tensor, ended: bool) -> None:
        self._setup._check_finite(action, x_next, running, reward)
        if ended:
            try:
                self._setup._raise_noted()
            finally:
                self._setup._finite.fill_(True)

    def _fit(self, x: Tensor, x_next: Tensor, first: int, last: int) -> None:
        """Collect transitions; fit the kernel to those of a whole batch of episodes, t = 0..T-1."""
        if first == last == 0:
            self._transitions = []
        follows = first == last == len(self._transitions)
        if not follows or (self._transitions and len(x) != len(self._transitions[0][0])):
            raise ValueError("fit_backward=True needs whole episodes: all rows at one step, t = 0..T-1 in order.")
        transitions = [*self._transitions, (x, x_next)]
        if last == self.mdp.horizon - 1:
            before, after = (torch.cat(states) for states in zip(*transitions, strict=True))
            t = torch.arange(self.mdp.horizon, device=self.device).repeat_interleave(len(x))
            for _ in range(self._setup.fit_backward):
                self.mdp.kernel.fit(before, after, t)
            transitions = []
        self._transitions = transitions

    def _step_some(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Step the rows of the mask "_step"; the others stay where they are, with no reward."""
        names = ["x", "t", "observation"] if self._setup.layout == "flat" else ["x", "t"]
        for name in names:  # the rows that stay keep theirs
            if tensordict.get(name, None) is None:
                raise ResetNeeded(f"a step of some rows needs {names}, the tensordict has no {name!r}: env.reset().")
        rows = tensordict.get("_step").reshape(tensordict.batch_size)
        result = tensordict.select(*names).clone()
        done = (result.get("t") == self.mdp.horizon).unsqueeze(-1)
        result.set("reward", torch.zeros(done.shape, dtype=self._dtype, device=self.device))
        result.set("done", done).set("terminated", done.clone())
        result[rows] = self._step(tensordict.exclude("_step")[rows])
        return result


_tensordict = getattr(TensorDict, "_new_unsafe", TensorDict)
"""TensorDict of entries that need no validation."""


def _shaped(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``x.reshape(shape)``, which costs a microsecond also where there is nothing to do."""
    return x if x.shape == shape else x.reshape(shape)


def _require_tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        found = f"layout {value.layout}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a dense tensor, got {found}.")
    return value


def _move(task: Task, device: torch.device) -> None:
    """Move a task in place: its target, and its MDP's base sampler, kernel with optimizer, and energy."""
    mdp = task.mdp
    parts = [task.target, mdp.base, mdp.kernel, mdp.energy.function]
    for part in parts:
        if isinstance(part, torch.nn.Module):
            part.to(device)
    if mdp.kernel.optimizer is not None:
        mdp.kernel.optimizer.load_state_dict(mdp.kernel.optimizer.state_dict())  # casts it to its parameters' device
    mdp.device = device
