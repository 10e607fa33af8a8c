"""Whole episodes: one loop gives the same numbers eager, compiled and step by step, in memory that is what is kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dxmi_rl import fast_rollout, rollout
from dxmi_rl.agents.policies import CorrectionPolicy
from dxmi_rl.agents.settings import PolicyConfig
from dxmi_rl.agents.untrained.base_sampler import BasePolicy
from dxmi_rl.costs import Costs, counting
from dxmi_rl.diffusion.gaussian import gaussian_log_prob, standard_log_prob
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Trajectory
from dxmi_rl.tasks import make_task
from dxmi_rl.utils.checks import NonFiniteError


@pytest.fixture(name="mdp")
def default_mdp() -> DenoisingMDP:
    return make_task("8gaussians", horizon=4).mdp


def trained_policy(mdp: DenoisingMDP) -> CorrectionPolicy:
    torch.manual_seed(0)
    policy = CorrectionPolicy(mdp, PolicyConfig(width=8, depth=2))
    with torch.no_grad():
        for parameter in policy.net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return policy


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Shifted(nn.Module):
    """A policy by transport alone: x + |noise|, whose density is a half normal's."""

    def transport(self, x: Tensor, t: int, noise: Tensor) -> tuple[Tensor, Tensor]:
        x_next = x + noise.abs()
        return x_next, self.log_prob(x, x_next, t)

    def log_prob(self, x: Tensor, x_next: Tensor, t: Any) -> Tensor:
        return gaussian_log_prob(x_next - x, torch.zeros_like(x), torch.zeros(())) + x.shape[1] * math.log(2)


@pytest.mark.parametrize("shape", [(), (1, 1), (5, 1), (5, 3)])
def test_standard_log_prob_is_torch_distributions(shape: tuple[int, ...]) -> None:
    log_std = 0.5 * torch.randn(shape)
    mean, x = torch.randn(5, 3), torch.randn(5, 3)
    normal = torch.distributions.Normal(mean, log_std.exp().expand(5, 3))
    wanted = normal.log_prob(x).sum(1)
    torch.testing.assert_close(gaussian_log_prob(x, mean, log_std), wanted)
    torch.testing.assert_close(standard_log_prob((x - mean) / log_std.exp(), log_std), wanted)


def test_log_probs_of_a_rollout_are_those_of_its_transitions(mdp: DenoisingMDP) -> None:
    for policy in (trained_policy(mdp), Shifted()):
        trajectory = mdp.rollout(policy, 32, rng())
        for t in range(4):
            x, x_next = trajectory.x[t], trajectory.x[t + 1]
            wanted = rollout.log_prob(policy, x, x_next, t)
            torch.testing.assert_close(trajectory.log_prob[t], wanted, rtol=1e-4, atol=1e-4)


def test_sample_is_the_end_of_a_rollout(mdp: DenoisingMDP) -> None:
    for policy in (BasePolicy(mdp), trained_policy(mdp), Shifted()):
        assert torch.equal(mdp.sample(policy, 16, rng()), mdp.rollout(policy, 16, rng()).final)


class LiveBytes(TorchDispatchMode):
    """The largest number of bytes that are alive at once, among tensors made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, Any] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        import weakref

        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = (weakref.ref(storage), storage.nbytes())
        self.alive = {key: pair for key, pair in self.alive.items() if pair[0]() is not None}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def peak_bytes(horizon: int, whole: bool) -> int:
    mdp = make_task("8gaussians", horizon=horizon).mdp
    policy = BasePolicy(mdp)
    with LiveBytes() as mode:
        (mdp.rollout if whole else mdp.sample)(policy, 1000, rng())
    return mode.peak


def test_memory_of_samples_does_not_grow_with_the_horizon() -> None:
    # One state is 8,000 bytes; the tables of the schedule, seen through views, grow by 28 numbers each.
    assert abs(peak_bytes(32, whole=False) - peak_bytes(4, whole=False)) < 1000
    assert peak_bytes(32, whole=True) > 4 * peak_bytes(4, whole=True), "the meter sees what a whole rollout keeps"


@pytest.mark.slow
def test_compiled_rollouts_give_the_same_numbers(mdp: DenoisingMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    # Inductor takes 20 s; the eager backend traces the same graph, which is what can go wrong here.
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: original(function, backend="eager", fullgraph=True))
    for policy in (trained_policy(mdp), Shifted()):
        costs = Costs(), Costs()
        with counting(costs[0]):
            eager = mdp.rollout(policy, 16, rng())
        with counting(costs[1]):
            compiled = mdp.rollout(policy, 16, rng(), compile=True)
        assert costs[0] == costs[1] and costs[0].policy_draws == 4 * 16
        torch.testing.assert_close(compiled.x, eager.x)
        torch.testing.assert_close(compiled.log_prob, eager.log_prob)
        torch.testing.assert_close(mdp.sample(policy, 16, rng(), compile=True), eager.final)


@pytest.mark.slow
def test_compiled_rollouts_see_training_and_carry_gradients(mdp: DenoisingMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: original(function, backend="aot_eager", fullgraph=True))
    policy = trained_policy(mdp)

    def gradient(**how: bool) -> Tensor:
        trajectory = mdp.rollout(policy, 16, rng(), differentiable=True, **how)
        (value,) = torch.autograd.grad(mdp.rewards(trajectory).sum(), policy.log_sigma)
        return value

    torch.testing.assert_close(gradient(compile=True), gradient(), rtol=1e-3, atol=1e-3)
    before = mdp.sample(policy, 16, rng(), compile=True)
    with torch.no_grad():
        policy.log_sigma.add_(0.5)
    after = mdp.sample(policy, 16, rng(), compile=True)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, mdp.sample(policy, 16, rng()))


def test_few_compiled_loops_are_kept(mdp: DenoisingMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(torch, "compile", lambda function: made.append(function) or function)
    policies = [BasePolicy(mdp) for _ in range(fast_rollout.CACHE_SIZE + 1)]
    for policy in [*policies, policies[-1]]:
        mdp.sample(policy, 4, rng(), compile=True)
    assert len(made) == len(policies) and len(fast_rollout._CACHE) == fast_rollout.CACHE_SIZE
    fast_rollout._CACHE.clear()


def test_what_cannot_be_rolled_out(mdp: DenoisingMDP) -> None:
    policy = BasePolicy(mdp)
    with pytest.raises(ValueError, match=r"graph=True needs the MDP on a CUDA device, it is on 'cpu'"):
        mdp.rollout(policy, 4, graph=True)
    with pytest.raises(ValueError, match="no gradients"):
        mdp.rollout(policy, 4, graph=True, differentiable=True)
    for n in (0, -1):
        with pytest.raises(ValueError, match="n must be >= 1"):
            mdp.sample(policy, n)

    class Lost(BasePolicy):
        def moments(self, x: Tensor, t: Any, base_mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
            mean, log_std = super().moments(x, t, base_mean)
            return mean / 0, log_std

    for call in (mdp.rollout, mdp.sample):
        with pytest.raises(NonFiniteError, match="states are NaN or infinite"):
            call(Lost(mdp), 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_give_the_same_numbers_without_waiting() -> None:
    mdp = make_task("8gaussians", horizon=4, device="cuda").mdp
    policy = trained_policy(mdp).cuda()
    generator = torch.Generator("cuda")
    eager = mdp.rollout(policy, 64, generator.manual_seed(0))
    for compile in (False, True):
        for _ in range(2):
            graph = mdp.rollout(policy, 64, generator.manual_seed(0), graph=True, compile=compile)
            torch.testing.assert_close(graph.x, eager.x, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(graph.log_prob, eager.log_prob, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        policy.log_sigma.add_(0.5)
    moved = mdp.sample(policy, 64, generator.manual_seed(0), graph=True)
    torch.testing.assert_close(moved, mdp.sample(policy, 64, generator.manual_seed(0)))
    assert not torch.allclose(moved, eager.final)


def test_replaced_parameters_lie_elsewhere() -> None:
    """A CUDA graph reads parameters where they lay when it was captured; its key must change when they move."""
    mdp = make_task("8gaussians", horizon=4).mdp
    policy = trained_policy(mdp)
    before = fast_rollout._places(policy)
    assert before
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    assert fast_rollout._places(policy) == before, "trained in place"
    parameter = next(policy.parameters())
    parameter.data = parameter.data.clone()
    assert fast_rollout._places(policy) != before


# The container --------------------------------------------------------------------------------------------------------


def episodes(n: int, horizon: int = 4, *, first: int = 0, base_mean: bool = True, offset: float = 0.0) -> Trajectory:
    """x is (100 t + episode, offset), log pi and base means say which transition they are of."""
    t, episode = torch.arange(first, first + horizon + 1.0)[:, None], torch.arange(float(n))
    number = 100 * t + episode + offset
    x = torch.stack([number, torch.full_like(number, offset)], dim=2)
    return Trajectory(x, -number[:-1], 2 * x[:-1] if base_mean else None, first)


def rows_of(trajectory: Trajectory) -> list[tuple[float, float, float, float | None, int]]:
    """(x_t, x_{t+1}, log pi, base mean, t) of every transition, in their first coordinate."""
    x, x_next, t = trajectory.transitions()
    means = trajectory.base_means()
    known = [None] * len(x) if means is None else means[:, 0].tolist()
    columns = (x[:, 0].tolist(), x_next[:, 0].tolist(), trajectory.log_prob.flatten().tolist(), known, t.tolist())
    return list(zip(*columns, strict=True))


def test_transitions_are_time_major() -> None:
    trajectory = episodes(3, horizon=2)
    assert (trajectory.horizon, trajectory.n, trajectory.final[:, 0].tolist()) == (2, 3, [200.0, 201.0, 202.0])
    assert rows_of(trajectory) == [
        (0, 100, 0, 0, 0), (1, 101, -1, 2, 0), (2, 102, -2, 4, 0),
        (100, 200, -100, 200, 1), (101, 201, -101, 202, 1), (102, 202, -102, 204, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("base_mean", [False, True])
@pytest.mark.parametrize(
    ("chosen", "kept"),
    [(torch.tensor([4, 0, 4]), [4, 0, 4]), (slice(-2, None), [3, 4]), (slice(-9, None), [0, 1, 2, 3, 4])],
)
def test_selected_episodes_are_whole(chosen: Tensor | slice, kept: list[int], base_mean: bool) -> None:
    whole = episodes(5, first=1, base_mean=base_mean)
    part = whole.select(chosen)
    assert (part.n, part.horizon, part.first) == (len(kept), 4, 1)
    rows = rows_of(whole)
    assert rows_of(part) == [rows[5 * step + episode] for step in range(4) for episode in kept]


@pytest.mark.parametrize("base_mean", [False, True])
def test_from_a_step_on(base_mean: bool) -> None:
    whole = episodes(3, base_mean=base_mean)
    late = whole.from_step(1).from_step(3)
    assert (late.first, late.horizon, late.n) == (3, 1, 3)
    assert rows_of(late) == rows_of(whole)[9:]
    assert torch.equal(late.final, whole.final) and rows_of(whole.from_step(0)) == rows_of(whole)
    for first, wrong in ((4, whole), (-1, whole), (1, whole.from_step(2))):
        with pytest.raises(ValueError, match=rf"first must lie in {wrong.first}\.\.3, got {first}"):
            wrong.from_step(first)


def test_episodes_of_two_batches_are_joined_step_by_step() -> None:
    one, two = episodes(2, first=1), episodes(3, first=1, offset=50.0)
    both = one.cat(two)
    assert (both.n, both.horizon, both.first) == (5, 4, 1)
    assert rows_of(both.select(slice(2))) == rows_of(one) and rows_of(both.select(slice(2, None))) == rows_of(two)
    for a, b in ((one, episodes(3, first=1, base_mean=False)), (episodes(2, first=1, base_mean=False), two)):
        assert a.cat(b).base_mean is None, "half of them is no use"
    for other in (episodes(2), episodes(2, horizon=3, first=1)):
        with pytest.raises(ValueError, match=r"other must have the steps 1\.\.4, got [01]\.\.3"):
            one.cat(other)


def test_a_rollout_goes_on_from_a_start_that_is_given(mdp: DenoisingMDP) -> None:
    policy, start = trained_policy(mdp), torch.randn(5, 2, generator=rng(3))
    trajectory = mdp.rollout(policy, 5, rng(), start=start)
    assert torch.equal(trajectory.x[0], start)
    generator, x = rng(), start
    for t in range(4):
        mean, log_std = policy.moments(x, t)
        x = mean + log_std.exp() * torch.randn(5, 2, generator=generator)
        torch.testing.assert_close(trajectory.x[t + 1], x.detach())
    for wrong in (start[:4], start.double(), torch.zeros(5, 3)):
        with pytest.raises((TypeError, ValueError), match="start must have"):
            mdp.rollout(policy, 5, start=wrong)
