"""Several agents with one set of weights: what AnyStep and AnyClass are made of."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.base import Agent, ConfigT, FinalStateHook, Log
from dxmi_rl.utils.settings import changed
from dxmi_rl.utils.torch_tools import share_optimizer, share_parameters


class SharedAgents(Agent[ConfigT]):
    """One agent per case of a task, a number of steps or a class, all with the same weights and the same optimizers.

    Each iteration is for one case, the one that is furthest behind its share of the transitions. Subclasses build the
    agents in ``_build`` and hand them to ``_adopt``.

    Attributes:
        agents: those that are trained, by case.
        trained: transitions of each case so far.
        case: that of the present iteration, or of the last one.
    """

    policy: SharedWeights

    @classmethod
    def _defaults(cls, settings: Mapping[str, Any]) -> Any:
        name = settings.get("agent", cls.Config.agent)
        return cls.Config(agent=name, agent_settings=AGENTS[name].Config())

    def default_config(self, settings: Mapping[str, Any]) -> ConfigT:
        """The defaults of the agent that ``settings`` name."""
        return cast(ConfigT, self._defaults(settings))

    @classmethod
    def parse_config(cls, values: Mapping[str, Any]) -> ConfigT:
        """As an agent's; what is not given is as the agent that ``values`` name has it."""
        return cast(ConfigT, changed(cls._defaults(values), values, f"setting of {cls.name!r}"))

    def _adopt(self, agents: Mapping[int, Agent[Any]], main: int) -> None:
        """Let all agents have the weights of the one of case ``main``."""
        self.agents, self._main, self.case = dict(agents), main, main
        source = self.agents[main]
        self.trained = dict.fromkeys(self.agents, 0)
        self._share()
        self._modules = {
            name: SharedWeights({case: agent.modules()[name] for case, agent in self.agents.items()})
            for name in source.modules()
        }
        self.policy = self._modules["policy"]

    def _share(self, others: Iterable[Agent[Any]] = ()) -> None:
        """Let all agents, and ``others``, have the weights and optimizers of the main one, and what this one has."""
        source = self.agents[self._main]
        weights, optimizers = source.modules(), source.all_optimizers()
        for agent in (*self.agents.values(), *others):
            agent.generator, agent.costs, agent.progress = self.generator, self.costs, self.progress
            if agent is source:
                continue
            for name, module in agent.modules().items():
                share_parameters(module, weights[name])
            for name, optimizer in agent.all_optimizers().items():
                share_optimizer(optimizer, optimizers[name])

    def share_of(self, case: int) -> float:
        """The part of the transitions that a case gets, up to a factor: as many for all, unless a subclass differs."""
        return 1.0

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        case = min(self.trained, key=lambda one: self.trained[one] / self.share_of(one))
        before, self.case = self.costs.timesteps, case
        log = self.agents[case].iterate(on_final)
        self.trained[case] += self.costs.timesteps - before
        return log

    @property
    def timesteps_per_iteration(self) -> int:
        """Transitions of an iteration of the main case."""
        return self.agents[self._main].timesteps_per_iteration

    def _policy_of(self, case: int, agent: Agent[Any], policy: nn.Module | None) -> nn.Module | None:
        """Other weights, as a policy of one case."""
        return policy.at(case, agent.policy) if isinstance(policy, SharedWeights) else policy

    # -- training state ----------------------------------------------------------------------------------------

    def set_progress(self, progress: float) -> None:
        self.progress = progress
        for agent in self.agents.values():
            agent.set_progress(progress)

    def modules(self) -> dict[str, nn.Module]:
        return dict(self._modules)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self.agents[self._main].optimizers()

    def extra_tensors(self) -> dict[str, Tensor]:
        """Of every case, and how much each was trained."""
        tensors = {"trained": torch.tensor(list(self.trained.values()))}
        for case, agent in self.agents.items():
            tensors |= {f"{case}/{name}": value for name, value in agent.extra_tensors().items()}
        return tensors

    def set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.trained = dict(zip(self.trained, tensors["trained"].tolist(), strict=True))
        for case, agent in self.agents.items():
            start = f"{case}/"
            own = {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}
            agent.set_extra_tensors(own)
        self._share()  # optimizers that were restored have other states, and the costs are others


def sample_of_all(
    agents: Iterable[Agent[Any]], n: int, generator: torch.Generator, **options: Any
) -> Tensor:  # fmt: skip
    """Samples of all agents, as many of each, in random order: ``[n, *event_shape]``."""
    parts = list(agents)
    rows = torch.randperm(n, generator=generator, device=generator.device).tensor_split(len(parts))
    seeds = torch.randint(2**31, (len(parts),), generator=generator, device=generator.device).tolist()
    drawn = [agent.sample(len(own), seed=seed, **options) for agent, own, seed in zip(parts, rows, seeds, strict=True)
             if len(own)]  # fmt: skip
    return torch.cat(drawn)[torch.cat(rows).argsort()]


class SharedWeights(nn.Module):
    """One module per case, all with the same parameters, which ``state_dict`` holds once."""

    def __init__(self, parts: dict[int, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({str(case): part for case, part in parts.items()})

    def at(self, case: int, unseen: nn.Module) -> nn.Module:
        """The module of a case; where there is none, a copy of ``unseen`` with these weights."""
        if str(case) in self.parts:
            return self.parts[str(case)]
        part = copy.deepcopy(unseen)
        share_parameters(part, next(iter(self.parts.values())))
        return part

    def state_dict(self, *arguments: Any, **settings: Any) -> dict[str, Any]:  # type: ignore[override]
        """Parameters as "NAME", buffers as "CASE/NAME"."""
        state: dict[str, Any] = {}
        for case, part in self.parts.items():
            weights = _parameter_names(part)
            for name, value in part.state_dict().items():
                state[name if name in weights else f"{case}/{name}"] = value
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any, **settings: Any) -> Any:
        """Put back what ``state_dict`` gave; raises KeyError or RuntimeError for what does not fit."""
        if odd := state_dict.keys() - self.state_dict().keys():
            raise RuntimeError(f"tensors {sorted(odd)} have no place here.")
        for case, part in self.parts.items():
            weights = _parameter_names(part)
            names = list(part.state_dict())
            part.load_state_dict({name: state_dict[name if name in weights else f"{case}/{name}"] for name in names})


def _parameter_names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters(remove_duplicate=False)}
