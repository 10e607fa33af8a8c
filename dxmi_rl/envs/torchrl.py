"""TorchRLEnv: few-step denoising as a native TorchRL environment."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.error import ResetNeeded
from torch import Tensor

from dxmi_rl.envs.episodes import Episodes, TaskLike, append_column
from dxmi_rl.envs.observations import told_of
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.tasks import Task
from dxmi_rl.utils.checks import check_integer, require
from dxmi_rl.utils.torch_tools import share_optimizer

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
    - "horizon", ``[*batch]``, int64, where the task has several: T of the row's episode, which a reset draws for all
      rows together.
    - "observation", ``[*batch, d + 1]``: [x_t flattened, 1 - t/T], for policies only; ObservationNorm and the like may
      change it (``evaluate`` does not know of them). With several horizons it has one number more, as in DenoiseEnv.
      ``observation="dict"`` leaves it out.
    - "action", ``[*batch, d]``; its box is a hint as in DenoiseEnv, and actions beyond it are never clipped.
    - "reward", ``[*batch, 1]``, in nats.
    - "done" and "terminated", ``[*batch, 1]``: true at t = T. Nothing is ever truncated.

    Where all rows are at one step, as they are unless some were reset alone, the energy is evaluated at the last step
    only, otherwise on all rows at every step. ``step`` knows the numbers of a "t" and a "horizon" that it or ``reset``
    made and nobody changed; it reads any other, for which CUDA must wait.

    Args:
        task: as in DenoiseEnv.
        num_envs: the batch size of all tensordicts is ``[num_envs]`` (batch-locked); None: it is ``[]``, and
            tensordicts of every batch size are understood (batch-unlocked): ``env.reset(TensorDict({}, [64]))``.
        arguments: all other arguments of DenoiseEnv but ``render_mode``. With ``fit_backward`` the kernel is fitted
            to every finished batch of episodes, whose rows must make the steps t = 0..T-1 in order and together.

    ``set_seed`` fixes the starting states; without it they differ from run to run. A closed environment still steps.
    Gamma, lambda and entropy coefficients are those of the other interfaces: 1, 1 and tau.

    Raises what DenoiseEnv raises, MissingExtraError without torchrl, ValueError for several classes. ``step`` raises
    ResetNeeded without a state or at t = T; TypeError or ValueError for entries of another dtype, shape or device;
    NonFiniteError and EnergyError, on CUDA when an episode ends. TorchRL raises RuntimeError for another batch size.
    """

    def __init__(self, task: TaskLike | None = None, *, num_envs: int | None = None, **arguments: Any) -> None:
        if "render_mode" in arguments:
            raise TypeError("TorchRLEnv draws no pictures and takes no render_mode: see dxmi_rl.envs.render_samples.")
        batch = () if num_envs is None else (check_integer("num_envs", num_envs),)
        # One episode that is never played: it checks arguments, builds the task, knows the spaces.
        self._setup = Episodes(1, task, **arguments)
        if len(self.task.labels) > 1:
            raise ValueError(f"TorchRLEnv takes one class, got label={self.task.labels}: pass task.of_class(label).")
        super().__init__(device=self.mdp.device, batch_size=batch)
        self._batch_locked = num_envs is not None  # on the instance: EnvBase keeps it on the class
        self._dtype = self.mdp.base.sigma.dtype
        self._transitions: list[tuple[Tensor, Tensor]] = []
        self._known: dict[str, tuple[Tensor, int, int, int]] = {}
        self._mdps = {horizon: self.task.at(horizon).mdp for horizon in self.task.horizons}
        self._told_of = {horizon: self._told(mdp) for horizon, mdp in self._mdps.items()}
        self._generator = torch.Generator(self.device)
        self._horizon_generator = torch.Generator()
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
            self._told_of = {horizon: told.to(self.device) for horizon, told in self._told_of.items()}
            self._generator = torch.Generator(self.device).manual_seed(self._generator.initial_seed())
            self._horizon_generator.manual_seed(self._horizon_generator.initial_seed())
            self._transitions, self._known = [], {}
        return self

    # -- what EnvBase asks for ---------------------------------------------------------------------------------

    def _set_seed(self, seed: int | None) -> None:
        seed = self._generator.seed() if seed is None else check_integer("seed", seed, minimum=0)
        self._generator.manual_seed(seed)
        self._horizon_generator.manual_seed((seed + 1_000_003) % 2**63)  # other numbers than the states'

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDictBase:
        """New episodes for all rows; EnvBase keeps those that a "_reset" mask asks for."""
        batch = self.batch_size if tensordict is None else tensordict.batch_size
        x = self.mdp.reset(batch.numel(), self._generator).to(self._dtype)
        horizons, draws = self.task.horizons, self._horizon_generator
        horizon = horizons[int(torch.randint(len(horizons), (), generator=draws)) if len(horizons) > 1 else 0]
        if tensordict is None or tensordict.get("_reset", None) is None:
            self._setup._finite.fill_(True)
        done = torch.zeros(*batch, 1, dtype=torch.bool, device=self.device)
        entries = self._entries(x, 0, horizon, batch) | {"done": done, "terminated": done.clone()}
        self._remember(entries, 0, 0, horizon)
        return _tensordict(entries, batch_size=batch, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if tensordict.get("_step", None) is not None:
            return self._step_some(tensordict)
        batch = tensordict.batch_size
        x, t = tensordict.get("x", None), tensordict.get("t", None)
        told = tensordict.get("horizon", None) if len(self._mdps) > 1 else None
        if x is None or t is None or (told is None and len(self._mdps) > 1):
            raise ResetNeeded(
                f"the tensordict has no state {self._state_names}: begin with env.reset(), step from what it gives."
            )
        horizon = self.mdp.horizon
        if told is not None:
            horizon, largest = self._range("horizon", told, batch)
            if horizon != largest:
                return self._step_each(tensordict)
            if horizon not in self._mdps:
                raise ValueError(f"'horizon' must be one of {list(self._mdps)}, got {horizon}.")
        mdp = self._mdps[horizon]
        action = self._parse_action(tensordict.get("action", None), batch)
        first, last = self._steps(t, horizon, batch)
        lockstep = first == last
        _require_tensor("'x'", x)
        if x.shape != (*batch, *mdp.event_shape):
            raise ValueError(f"'x' must have shape {[*batch, *mdp.event_shape]}, got {list(x.shape)}.")
        x = _shaped(x, (batch.numel(), *mdp.event_shape))
        # Shapes and steps are known to be right; all else is left to ``transition``, which raises.
        right = x.dtype == action.dtype and x.device == action.device == self._told_of[horizon].device
        transition = mdp.checked_transition if right else mdp.transition
        x_next, running, terminal = transition(x, first if lockstep else t.reshape(-1), action, self.coordinates)
        reward = running if terminal is None else running + terminal
        ended = last + 1 == horizon
        self._require_finite(action, x_next, running, reward, ended)
        if self._setup.fit_backward:
            self._fit(mdp, x, x_next, first, last)
        t_next = first + 1 if lockstep else t + 1
        entries = self._entries(x_next, t_next, horizon, batch)
        if lockstep:
            done = torch.full((*batch, 1), ended, dtype=torch.bool, device=self.device)
        else:
            done = (entries["t"] == horizon).unsqueeze(-1)
        entries["reward"] = reward.to(self._dtype).reshape(*batch, 1)
        entries["done"], entries["terminated"] = done, done.clone()
        self._remember(entries, first + 1, last + 1, horizon)
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
        }
        for name in self._state_names[1:]:
            state[name] = Categorical(self.mdp.horizon + 1, shape=batch, dtype=torch.int64, device=self.device)
        width = self.mdp.dim + len(told_of(self.mdp, 0))
        observation = {"observation": Unbounded(shape=(*batch, width), **kind)}
        seen = state | (observation if self._setup.layout == "flat" else {})
        self.state_spec = Composite(state, shape=batch, device=self.device).clone()
        self.observation_spec = Composite(seen, shape=batch, device=self.device)
        box = self._setup.action_space
        low, high = (torch.as_tensor(end, **kind).expand(*batch, -1) for end in (box.low, box.high))
        self.action_spec = Bounded(low, high, shape=(*batch, self.mdp.dim), **kind)
        self.reward_spec = Unbounded(shape=(*batch, 1), **kind)

    @property
    def _state_names(self) -> list[str]:
        return ["x", "t", "horizon"] if len(self._mdps) > 1 else ["x", "t"]

    def _told(self, mdp: DenoisingMDP) -> Tensor:
        """``told_of`` of every step: ``[T + 1, 1 or 2]``."""
        return torch.tensor([told_of(mdp, t) for t in range(mdp.horizon + 1)], dtype=self._dtype, device=self.device)

    def _entries(self, x: Tensor, t: int | Tensor, horizon: int, batch: torch.Size) -> dict[str, Tensor]:
        """The observation's entries for states x, one per row, at the step t that all rows share, or ``[*batch]``."""
        entries = {"x": _shaped(x, (*batch, *self.mdp.event_shape))}
        entries["t"] = torch.full(batch, t, device=self.device) if isinstance(t, int) else t
        if len(self._mdps) > 1:
            entries["horizon"] = torch.full(batch, horizon, device=self.device)
        if self._setup.layout == "flat":
            rows = _shaped(x, (batch.numel(), self.mdp.dim))
            if isinstance(t, int):
                for left in told_of(self._mdps[horizon], t):
                    rows = append_column(rows, left)
            else:
                rows = torch.cat([rows, self._told_of[horizon][t.reshape(-1)]], dim=-1)
            entries["observation"] = _shaped(rows, (*batch, rows.shape[1]))
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

    def _steps(self, t: Tensor, horizon: int, batch: torch.Size) -> tuple[int, int]:
        """The first and the last step at which rows are."""
        first, last = self._range("t", t, batch)
        if last == horizon:
            raise ResetNeeded(f"an episode is over (t = {last} = T): reset it before the next step.")
        if first < 0 or last > horizon:
            raise ValueError(f"'t' must lie in 0..{horizon - 1}, got {first}..{last}.")
        return first, last

    def _range(self, name: str, value: Tensor, batch: torch.Size) -> tuple[int, int]:
        """The smallest and the largest number of an entry."""
        known = self._known.get(name)
        if known is not None and value is known[0] and value._version == known[1]:
            return known[2:]
        if _require_tensor(f"{name!r}", value).device.type != self.device.type:
            raise ValueError(f"{name!r} must be on device {str(self.device)!r}, got {str(value.device)!r}.")
        if value.dtype != torch.int64 or value.shape != batch:
            raise TypeError(
                f"{name!r} must be int64 of shape {list(batch)}, got {value.dtype} of shape {list(value.shape)}."
            )
        if not value.numel():
            raise ValueError(f"a step needs at least one row, got batch size {list(batch)}.")
        first, last = (int(end) for end in torch.aminmax(value))
        return first, last

    def _remember(self, entries: dict[str, Tensor], first: int, last: int, horizon: int) -> None:
        """Note what is in entries of ours, so that reading them back costs nothing; versions tell if they changed."""
        self._known = {}
        for name, low, high in (("t", first, last), ("horizon", horizon, horizon)):
            value = entries.get(name)
            if value is not None and not value.is_inference():
                self._known[name] = (value, value._version, low, high)

    def _require_finite(self, action: Tensor, x_next: Tensor, running: Tensor, reward: Tensor, ended: bool) -> None:
        self._setup._check_finite(action, x_next, running, reward)
        if ended:
            try:
                self._setup._raise_noted()
            finally:
                self._setup._finite.fill_(True)

    def _fit(self, mdp: DenoisingMDP, x: Tensor, x_next: Tensor, first: int, last: int) -> None:
        """Collect transitions; fit the kernel to those of a whole batch of episodes, t = 0..T-1."""
        if first == last == 0:
            self._transitions = []
        follows = first == last == len(self._transitions)
        if not follows or (self._transitions and len(x) != len(self._transitions[0][0])):
            raise ValueError("fit_backward=True needs whole episodes: all rows at one step, t = 0..T-1 in order.")
        transitions = [*self._transitions, (x, x_next)]
        if last == mdp.horizon - 1:
            before, after = (torch.cat(states) for states in zip(*transitions, strict=True))
            t = torch.arange(mdp.horizon, device=self.device).repeat_interleave(len(x))
            for _ in range(self._setup.fit_backward):
                mdp.kernel.fit(before, after, t)
            transitions = []
        self._transitions = transitions

    def _step_some(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Step the rows of the mask "_step"; the others stay where they are, with no reward."""
        rows = tensordict.get("_step").reshape(tensordict.batch_size)
        result = self._unmoved(tensordict)
        result[rows] = self._step(tensordict.exclude("_step")[rows])
        return result

    def _step_each(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Step rows of several horizons, one horizon after the other."""
        horizons = tensordict.get("horizon").reshape(-1)
        rows, order = tensordict.reshape(-1), horizons.argsort(stable=True)
        parts = [self._step(rows[horizons == horizon]) for horizon in horizons.unique().tolist()]
        return torch.cat(parts)[order.argsort()].reshape(tensordict.batch_size)

    def _unmoved(self, tensordict: TensorDictBase) -> TensorDictBase:
        """What a step gives for rows that stay where they are."""
        names = self._state_names + (["observation"] if self._setup.layout == "flat" else [])
        for name in names:
            if tensordict.get(name, None) is None:
                raise ResetNeeded(f"a step of some rows needs {names}, the tensordict has no {name!r}: env.reset().")
        result = tensordict.select(*names).clone()
        horizon = result.get("horizon") if "horizon" in names else self.mdp.horizon
        done = (result.get("t") == horizon).unsqueeze(-1)
        result.set("reward", torch.zeros(done.shape, dtype=self._dtype, device=self.device))
        result.set("done", done).set("terminated", done.clone())
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
    """Move a task in place: its target, and its MDPs' base samplers, kernels with their optimizer, and energy."""
    mdps = [task.mdp, *(one.mdp for one in task._built.values() if one.mdp is not task.mdp)]
    parts = [task.target, *(part for mdp in mdps for part in (mdp.energy.function, mdp.base, mdp.kernel))]
    for part in parts:
        if isinstance(part, torch.nn.Module):
            part.to(device)
    optimizers = [mdp.kernel.optimizer for mdp in mdps if mdp.kernel.optimizer is not None]
    for optimizer in optimizers:
        optimizer.load_state_dict(optimizer.state_dict())  # casts it to its parameters' device
        share_optimizer(optimizer, optimizers[0])
    for mdp in mdps:
        mdp.device = device
