"""One step from many: a sampler with T = 1 that is fitted to the samples of one with more steps."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor

from dxmi_rl.agents.base import Agent
from dxmi_rl.agents.policies import CorrectionPolicy, GaussianPolicy
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.rollout import Policy
from dxmi_rl.utils.checks import check_integer, check_seed
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.torch_tools import adam, gradient_step

AgentT = TypeVar("AgentT", bound=Agent[Any])

COUPLINGS = ["transport", "own", "deterministic"]
PAIRS = 50_000
"""Pairs (x_0, x_T)."""
MATCHED = 1000
"""Pairs that are matched together by optimal transport."""
STEPS = 4000
"""Adam steps on the pairs."""
KERNEL_STEPS = 2000
"""Fits of the backward kernel to the student's own steps, afterwards."""
BATCH = 512
"""Pairs of a step, or transitions of a fit."""
LEARNING_RATES = {"correction": 2e-3, "fine-tuned": 3e-4}
"""Peak rates of the mean; they fall to zero as a cosine."""
SIGMA_LEARNING_RATE = 1e-2
"""That of log sigma, which has a long way to go from the base sampler's."""
MAX_GRAD_NORM = 10.0
"""Largest norm of a gradient."""
LAST_NOISE = -40.0
"""log sigma of a teacher whose noise is taken away."""


def distil(
    student: AgentT, teacher: Agent[Any], *, coupling: str = "transport", pairs: int = PAIRS, steps: int = STEPS,
    seed: int = 0,
) -> AgentT:  # fmt: skip
    """Fit a student with one step to samples of a trained teacher, by maximum likelihood of x_T given x_0.

    The loss is -log pi(x_T | x_0) over pairs, and the student's backward kernel is then fitted to its own steps, so its
    ELBO is a bound as always. No energy is asked for. ``learn`` goes on from there, on the energy. A DxMI student also
    gets the energy of a DxMI teacher, and plays on against its one step; it keeps its own sigma. A teacher of several
    numbers of steps teaches with the largest, ``teacher.at(T)`` with T.

        wide = {"width": 256, "energy_gradient": False}
        student = make_agent("path-wise", teacher.task.with_horizon(1), policy=wide)
        distil(student, teacher).learn(energy_evals=100_000)

    Args:
        student: an agent that trains a Gaussian policy on the teacher's task with one step; it is changed and returned.
            The policy must not be given gradients: of E they would cost energies, and those of V change in training.
        teacher: an agent with a density.
        coupling: how starts and samples are paired. "transport": by optimal transport within MATCHED of them, which
            leaves both laws as they are and lets one mean serve each start (cf. Tong et al. 2023, arXiv 2302.00482);
            "own": as the teacher's chains pair them, whose noise the student's mean averages over; "deterministic":
            as its chains without noise do, whose x_T are not its samples.
        pairs: number of pairs.
        steps: Adam steps on the pairs.
        seed: of chains and minibatches.

    Raises ValueError for a student of more steps, other states, starts or energy networks, or that is given gradients
    or does not train, and for a teacher without a density; UnknownNameError for a coupling.
    """
    check_integer("pairs", pairs)
    check_integer("steps", steps)
    generator = torch.Generator(student.mdp.device).manual_seed(check_seed(seed))
    if coupling not in COUPLINGS:
        raise UnknownNameError("coupling", coupling, COUPLINGS)
    teacher = teacher.at(teacher.mdp.horizon)
    policy = _checked_policy(student, teacher)
    _hand_on_energies(student, teacher)
    x, final = _pairs(teacher, coupling, pairs, generator)
    own_sigma = policy.log_sigma.detach().clone()
    with torch.enable_grad():
        _fit_policy(policy, x, final, steps, generator)
    if policy is not student.policy:  # of a game, which has an average of it, too
        with torch.no_grad():
            policy.log_sigma.copy_(own_sigma)  # a game's rates are too low to bring down that of the pairs
        student.policy.load_state_dict(policy.state_dict())
    kernel = student.mdp.kernel
    for step in range(KERNEL_STEPS if kernel.adapts else 0):
        kernel.set_progress(step / KERNEL_STEPS)
        with torch.no_grad():
            chains = student.mdp.rollout(student.density(), BATCH, generator)
        kernel.fit(*chains.transitions())
    return student


def _checked_policy(student: Agent[Any], teacher: Agent[Any]) -> GaussianPolicy:
    """The student's policy, inside a game that of its agent."""
    policy = student.modules().get("agent/policy", student.policy)
    if student.mdp.horizon != 1 or len(student.task.horizons) > 1 or not isinstance(policy, GaussianPolicy):
        raise ValueError(
            "student must have a Gaussian policy on one step, such as on teacher.task.with_horizon(1); got "
            f"{student!r}, of {student.mdp.horizon} steps."
        )
    if policy.sees_gradient or not policy.mean_parameters():
        raise ValueError(
            f"student must train a policy that is given no gradients, policy={{'energy_gradient': False}}; got "
            f"{student!r}."
        )
    if not teacher.has_density or not hasattr(teacher.density(), "moments"):
        raise ValueError(f"teacher must have a Gaussian policy, and agent {teacher.name!r} has none.")
    own, given = student.mdp, teacher.mdp
    if (own.event_shape, own.start_std, own._start) != (given.event_shape, given.start_std, given._start):
        raise ValueError(
            f"student must have the teacher's states and starts, {list(given.event_shape)} of deviation "
            f"{given.start_std:g}, got {list(own.event_shape)} of {own.start_std:g}, or other noised data."
        )
    return policy


class _WithoutNoise:
    """The means of a policy."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def moments(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        mean, log_std = self.policy.moments(x, t)
        return mean, torch.full_like(log_std, LAST_NOISE)


@torch.no_grad()
def _pairs(teacher: Agent[Any], coupling: str, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x_0 and x_T, ``[pairs, *event_shape]`` each."""
    policy: Policy = teacher.density()
    if coupling == "deterministic":
        policy = _WithoutNoise(policy)
    chains = [teacher.mdp.rollout(policy, len(rows), generator) for rows in torch.arange(pairs).split(10 * MATCHED)]
    x, final = (torch.cat([chain.x[place] for chain in chains]) for place in (0, -1))
    if coupling == "transport":
        final = torch.cat([_matched(*parts) for parts in zip(x.split(MATCHED), final.split(MATCHED), strict=True)])
    return x, final


def _matched(x: Tensor, final: Tensor) -> Tensor:
    """``final`` in the order of the assignment to ``x`` of least total squared distance."""
    from scipy.optimize import linear_sum_assignment

    distances = torch.cdist(x.flatten(1).double(), final.flatten(1).double()).square()
    _, order = linear_sum_assignment(distances.cpu().numpy())
    return final[torch.as_tensor(order, device=final.device)]


def _fit_policy(policy: GaussianPolicy, x: Tensor, final: Tensor, steps: int, generator: torch.Generator) -> None:
    kind = "correction" if isinstance(policy, CorrectionPolicy) else "fine-tuned"
    rates = [LEARNING_RATES[kind], SIGMA_LEARNING_RATE]
    optimizer = adam([(policy.mean_parameters(), rates[0]), ([policy.log_sigma], rates[1])])
    for step in range(steps):
        rows = torch.randint(len(x), (BATCH,), generator=generator, device=x.device)
        mean, log_std = policy.moments(x[rows], 0)
        loss = -gaussian_log_prob(final[rows], mean, log_std.expand_as(mean)).mean()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        gradient_step(optimizer, policy, loss, MAX_GRAD_NORM)


def _hand_on_energies(student: Agent[Any], teacher: Agent[Any]) -> None:
    """Inside games: the student's energies are the teacher's; its anchor, which the teacher may not have, the average.

    Raises ValueError for networks of other shapes.
    """
    own, given = student.modules(), teacher.modules()
    if "average_energy" not in own or "average_energy" not in given:
        return
    sources = {"energy": "energy", "average_energy": "average_energy"}
    sources["anchor"] = "anchor" if "anchor" in given else "average_energy"
    pairs = [(own[name], given[source].state_dict()) for name, source in sources.items() if name in own]
    for module, state in pairs:
        shapes = [{key: value.shape for key, value in part.items()} for part in (module.state_dict(), state)]
        if shapes[0] != shapes[1]:
            raise ValueError("student must have an energy network like the teacher's; theirs have other shapes.")
    for module, state in pairs:
        module.load_state_dict(state)
