"""Backward kernels: one interface for all of KERNELS, and the closed forms that each must meet."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal

from dxmi_rl.diffusion import (
    KERNELS,
    SCHEDULES,
    BackwardKernel,
    Brownian,
    Forward,
    Learned,
    Mixture,
    Schedule,
    make_kernel,
    make_schedule,
)
from dxmi_rl.utils.registry import UnknownNameError

HORIZON = 4
SHAPES = [(2,), (1, 3, 3)]


@pytest.fixture(name="schedule")
def one_schedule() -> Schedule:
    return make_schedule("karras", HORIZON)


@pytest.fixture(name="shape", params=SHAPES, ids=["vector", "image"])
def event_shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


@pytest.fixture(name="kernel", params=KERNELS.names())
def every_kernel(request: pytest.FixtureRequest, schedule: Schedule, shape: tuple[int, ...]) -> BackwardKernel:
    torch.manual_seed(0)
    kernel = make_kernel(request.param, schedule, shape, 1.3, torch.full((HORIZON,), 0.5))
    kernel.fit(*transitions(shape, 64))  # adaptive kernels leave their closed-form start
    return kernel


def transitions(shape: tuple[int, ...], n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """n made-up transitions at every step, time-major."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(HORIZON * n, *shape, generator=generator)
    x_next = 0.6 * x + 0.4 * torch.randn(x.shape, generator=generator)
    return x, x_next, torch.arange(HORIZON).repeat_interleave(n)


# The interface --------------------------------------------------------------------------------------------------------


def torchs(kernel: BackwardKernel, x_next: Tensor, t: Tensor) -> Distribution:
    """Torch's own distribution of x_t given x_{t+1}, over flattened events."""
    if isinstance(kernel, Mixture):
        log_weight, mean, log_std = kernel.parts(x_next, t)
        return MixtureSameFamily(Categorical(logits=log_weight), Independent(Normal(mean, log_std.exp()), 1))
    mean, log_std = kernel.moments(x_next, t)
    return Independent(Normal(mean.flatten(1), log_std.exp().expand_as(mean).flatten(1)), 1)


def test_log_prob_and_moments_are_torchs(kernel: BackwardKernel, shape: tuple[int, ...]) -> None:
    x, x_next, t = transitions(shape, 8)
    wanted, (mean, log_std) = torchs(kernel, x_next, t), kernel.moments(x_next, t)
    assert torch.allclose(mean.flatten(1), wanted.mean, atol=1e-6)
    assert torch.allclose(log_std.exp().expand_as(mean).flatten(1), wanted.stddev, rtol=1e-5)
    got = kernel.log_prob(x, x_next, t)
    assert got.shape == (len(x),)
    assert torch.allclose(got, wanted.log_prob(x.flatten(1)), rtol=1e-5, atol=1e-4)


def test_an_int_step_is_a_tensor_of_it(kernel: BackwardKernel, shape: tuple[int, ...]) -> None:
    x, x_next, _ = transitions(shape, 4)
    for t in range(HORIZON):
        rows = torch.full((len(x),), t)
        assert torch.allclose(kernel.log_prob(x, x_next, t), kernel.log_prob(x, x_next, rows), rtol=1e-5, atol=1e-5)
        first, second = (kernel.sample(x_next, step, torch.Generator().manual_seed(1)) for step in (t, rows))
        assert torch.allclose(first, second, atol=1e-6)


def test_samples_have_the_moments(kernel: BackwardKernel, shape: tuple[int, ...]) -> None:
    n = 40_000
    generator = torch.Generator().manual_seed(3)
    for t in (0, HORIZON - 1):
        one = torch.randn(1, *shape, generator=torch.Generator().manual_seed(t))
        x_next = one.expand(n, *shape)
        with torch.no_grad():
            mean, log_std = kernel.moments(one, t)
            x = kernel.sample(x_next, t, generator)
        std = log_std.exp().expand_as(mean)[0]
        assert x.shape == (n, *shape)
        assert float(((x.mean(0) - mean[0]) / std).abs().max()) < 5 / math.sqrt(n)
        assert float((x.std(0) / std - 1).abs().max()) < 5 / math.sqrt(2 * n)


def test_sampling_follows_the_generator_and_not_the_global_one(kernel: BackwardKernel, shape: tuple[int, ...]) -> None:
    x_next = torch.zeros(5, *shape)
    torch.manual_seed(0)
    first = kernel.sample(x_next, 1, torch.Generator().manual_seed(7))
    torch.manual_seed(1)
    assert torch.equal(first, kernel.sample(x_next, 1, torch.Generator().manual_seed(7)))


def test_log_prob_differentiates_in_both_states(kernel: BackwardKernel, shape: tuple[int, ...]) -> None:
    kernel = copy.deepcopy(kernel).double()
    x, x_next, t = transitions(shape, 1)
    x, x_next = x.double().requires_grad_(), x_next.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: kernel.log_prob(a, b, t), (x, x_next))


def test_a_deep_copy_is_equal_and_independent(kernel: BackwardKernel, shape: tuple[int, ...]) -> None:
    other = copy.deepcopy(kernel)
    x, x_next, t = transitions(shape, 32, seed=1)
    before = kernel.log_prob(x, x_next, t).detach()
    assert torch.equal(other.log_prob(x, x_next, t), before)
    state = copy.deepcopy(kernel.state_dict())
    for _ in range(3):
        other.fit(3 * x, x_next, t)
    assert all(torch.equal(value, kernel.state_dict()[key]) for key, value in state.items())
    # And the copy goes on exactly as the original would have.
    twin = copy.deepcopy(kernel)
    kernel.fit(x, x_next, t)
    twin.fit(x, x_next, t)
    assert torch.equal(kernel.log_prob(x, x_next, t), twin.log_prob(x, x_next, t))


def test_state_survives_saving(kernel: BackwardKernel, shape: tuple[int, ...], schedule: Schedule) -> None:
    name = next(name for name in KERNELS if type(make_plain(name, schedule, shape)) is type(kernel))
    other = make_plain(name, schedule, shape)
    other.load_state_dict(kernel.state_dict())
    x, x_next, t = transitions(shape, 8)
    assert torch.equal(other.log_prob(x, x_next, t), kernel.log_prob(x, x_next, t))


def make_plain(name: str, schedule: Schedule, shape: tuple[int, ...]) -> BackwardKernel:
    return make_kernel(name, schedule, shape, 1.3, torch.full((HORIZON,), 0.5))


def test_fit_never_worsens_much_and_helps_when_it_adapts(kernel: BackwardKernel, shape: tuple[int, ...]) -> None:
    x, x_next, t = transitions(shape, 256, seed=2)
    before = float(kernel.log_prob(x, x_next, t).detach().mean())
    state = [value.clone() for value in kernel.state_dict().values()]
    for _ in range(30):
        kernel.fit(x, x_next, t)
    after = float(kernel.log_prob(x, x_next, t).detach().mean())
    adapted = any(not torch.equal(a, b) for a, b in zip(state, kernel.state_dict().values(), strict=True))
    assert after > before if adapted else after == before


def test_progress_is_accepted(kernel: BackwardKernel) -> None:
    for progress in (0.0, 0.5, 1.0, 1.2):
        kernel.set_progress(progress)


def test_kernels_live_on_the_device_asked_for(kernel: BackwardKernel, shape: tuple[int, ...]) -> None:
    """On "meta" nothing is computed, but a tensor left on the CPU is refused."""
    moved = copy.deepcopy(kernel).to("meta")
    x, t = torch.zeros(3, *shape, device="meta"), torch.zeros(3, dtype=torch.long, device="meta")
    assert moved.log_prob(x, x, t).device.type == "meta"
    assert moved.sample(x, t).device.type == "meta"
    assert all(value.device.type == "meta" for value in moved.state_dict().values())


@pytest.mark.parametrize(("name", "near"), [("brownain", "brownian"), ("foward", "forward"), ("learnt", "learned")])
def test_unknown_kernels_name_the_near_ones(schedule: Schedule, name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown backward kernel '{name}'. Did you mean '{near}'"):
        make_plain(name, schedule, (2,))


@pytest.mark.parametrize("name", KERNELS.names())
def test_unknown_options_are_refused(schedule: Schedule, name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown option of kernel '{name}' 'colour'"):
        make_kernel(name, schedule, (2,), 1.0, torch.ones(HORIZON), colour=1)


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("brownian", {"rate": 1.5}, ValueError, "rate must lie in"),
        ("brownian", {"rate": -0.1}, ValueError, "rate must be finite"),
        ("brownian", {"rate": "fast"}, TypeError, "rate must be a real number"),
        ("learned", {"steps": 0}, ValueError, "steps must be >= 1"),
        ("learned", {"steps": 1.5}, TypeError, "steps must be an integer"),
        ("mixture", {"components": 1}, ValueError, "components must be >= 2"),
    ],
)
def test_bad_options_are_refused(
    schedule: Schedule, name: str, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        make_kernel(name, schedule, (2,), 1.0, torch.ones(HORIZON), **options)


@pytest.mark.parametrize("variance", [[1.0, 0.0], [1.0, -1.0], [[1.0]], [math.nan, 1.0]])
def test_brownian_needs_positive_variances(variance: list[Any]) -> None:
    with pytest.raises(ValueError, match="positive vector"):
        Brownian(torch.tensor(variance))


# Brownian with adaptive velocity regularisation -----------------------------------------------------------------------


def test_brownian_is_a_gaussian_around_the_next_state() -> None:
    variance = torch.tensor([1.0, 0.8, 0.5, 0.3])
    kernel = Brownian(variance)
    x, x_next, t = transitions((2,), 6)
    squared = ((x - x_next) ** 2).sum(1)
    wanted = -squared / (2 * variance[t]) - torch.log(2 * math.pi * variance[t])
    assert torch.allclose(kernel.log_prob(x, x_next, t), wanted, atol=1e-5)


def test_one_step_of_avr_by_hand() -> None:
    """s_t^2 <- a s_t^2 + (1 - a) mean ||x_{t+1} - x_t||^2 / d; a step without data keeps its variance."""
    kernel = Brownian(torch.tensor([1.0, 2.0, 3.0]), rate=0.9)
    x = torch.zeros(3, 2)
    x_next = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 4.0]])
    kernel.fit(x, x_next, torch.tensor([0, 0, 2]))
    assert kernel.variance.tolist() == pytest.approx([0.9 + 0.1 * 1.5, 2.0, 0.9 * 3 + 0.1 * 12.5])


def test_avr_converges_to_the_maximum_likelihood_variance() -> None:
    kernel = Brownian(torch.tensor([5.0, 0.01, 1.0, 2.0]), rate=0.9)
    x, x_next, t = transitions((3,), 500)
    for _ in range(300):
        kernel.fit(x, x_next, t)
    wanted = (x_next - x).square().mean(1).view(HORIZON, -1).mean(1)
    assert torch.allclose(kernel.variance, wanted, rtol=1e-4)
    best = float(kernel.log_prob(x, x_next, t).mean())
    for factor in (0.95, 1.05):
        assert float(Brownian(wanted * factor).log_prob(x, x_next, t).mean()) < best, "no other variance is likelier"


@pytest.mark.parametrize(("rate", "moves"), [(1.0, False), (0.0, True)])
def test_the_ends_of_the_rate(rate: float, moves: bool) -> None:
    kernel = Brownian(torch.ones(HORIZON), rate=rate)
    x, x_next, t = transitions((2,), 100)
    kernel.fit(x, x_next, t)
    wanted = (x_next - x).square().mean(1).view(HORIZON, -1).mean(1)
    assert torch.allclose(kernel.variance, wanted if moves else torch.ones(HORIZON))


# Forward --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", SCHEDULES.names())
def test_forward_composes_to_the_noising_process(name: str) -> None:
    """From x_clean down to x_t the kernels compose to N(alpha_t x_clean, s_t^2 I): the definition of the process."""
    schedule = make_schedule(name, 6)
    kernel = Forward(schedule)
    clean = torch.tensor([[1.7, -0.4]])
    mean, variance = schedule.alpha[-1] * clean, torch.zeros(())
    for t in reversed(range(6)):
        mean, log_std = kernel.moments(mean, t)
        variance = schedule.forward_kernel()[0][t] ** 2 * variance + (2 * log_std).exp()
        assert torch.allclose(mean, schedule.alpha[t] * clean, rtol=1e-9)
        assert float(variance) == pytest.approx(float(schedule.s[t] ** 2), rel=1e-9)


def test_forward_is_the_posterior_of_noised_data() -> None:
    """Least squares of x_t on x_{t+1} over pairs drawn through x_clean gives its gain and variance.

    x_{t+1} is built from x_clean and x_t from x_{t+1}'s own eps: x_t = alpha_t x_clean + s_t eps_t with
    cov(x_t, x_{t+1} | x_clean) = a_t s_{t+1}^2, which is what makes the process Markov in this direction.
    """
    schedule = make_schedule("karras", 5)
    generator = torch.Generator().manual_seed(0)
    n, t = 200_000, 2
    gain, variance = (float(part[t]) for part in schedule.forward_kernel())
    clean = 2 * torch.randn(n, generator=generator)
    s, s_next = float(schedule.s[t]), float(schedule.s[t + 1])
    first, second = torch.randn(2, n, generator=generator)
    correlation = gain * s_next / s
    x_next = schedule.alpha[t + 1] * clean + s_next * first
    x = schedule.alpha[t] * clean + s * (correlation * first + math.sqrt(1 - correlation**2) * second)
    slope = float((x * x_next).sum() / x_next.square().sum())
    residual = float((x - slope * x_next).var())
    mean, log_std = Forward(schedule).moments(torch.ones(1, 1), t)
    assert (gain, variance) == pytest.approx((float(mean), float(log_std.exp() ** 2)), rel=1e-5)
    assert slope == pytest.approx(gain, rel=0.01)
    assert residual == pytest.approx(variance, rel=0.02)


# Learned --------------------------------------------------------------------------------------------------------------


def test_learned_starts_as_forward(schedule: Schedule) -> None:
    x, x_next, t = transitions((2,), 8)
    learned = Learned(schedule, (2,), 1.0)
    assert torch.allclose(learned.log_prob(x, x_next, t), Forward(schedule).log_prob(x, x_next, t), atol=1e-5)


@pytest.mark.slow
def test_learned_recovers_a_linear_gaussian_posterior() -> None:
    """x_t ~ N(0, 1), x_{t+1} = b_t x_t + c_t eps: x_t | x_{t+1} = N(b x' / (b^2 + c^2), c^2 / (b^2 + c^2))."""
    schedule = make_schedule("karras", 2, level_max=3.0, level_min=0.5)
    b, c = torch.tensor([0.9, -0.5]), torch.tensor([0.5, 0.3])
    torch.manual_seed(0)
    kernel = Learned(schedule, (2,), 1.0, width=32, learning_rate=5e-3)
    generator = torch.Generator().manual_seed(0)

    def batch(n: int) -> tuple[Tensor, Tensor, Tensor]:
        t = torch.arange(2).repeat_interleave(n)
        x, noise = torch.randn(2, 2 * n, 2, generator=generator)
        return x, b[t, None] * x + c[t, None] * noise, t

    x, x_next, t = batch(4000)
    start = float(-kernel.log_prob(x, x_next, t).detach().mean())
    steps = 500
    for step in range(steps):
        kernel.set_progress(step / steps)
        kernel.fit(*batch(256))
    total = (b**2 + c**2)[t, None]
    mean, log_std = (part.detach() for part in kernel.moments(x_next, t))
    wanted_mean, wanted_std = b[t, None] * x_next / total, (c**2 / (b**2 + c**2)).sqrt()[t, None]
    end = float(-kernel.log_prob(x, x_next, t).detach().mean())
    best = float(-Independent(Normal(wanted_mean, wanted_std.expand_as(x)), 1).log_prob(x).mean())
    assert end < start
    assert end - best < 0.02
    assert float((mean - wanted_mean).square().mean().sqrt() / wanted_mean.std()) < 0.07
    assert float((log_std.exp() / wanted_std - 1).square().mean().sqrt()) < 0.07


@pytest.mark.slow
def test_a_mixture_recovers_a_posterior_with_two_modes() -> None:
    """x_t = +-1 with noise 0.2, x_{t+1} = x_t + noise of 1: two modes, which no single Gaussian can have."""
    schedule, inner, outer = make_schedule("karras", 1), 0.2, 1.0
    generator = torch.Generator().manual_seed(0)

    def batch(n: int) -> tuple[Tensor, Tensor, Tensor]:
        sign = torch.randint(2, (n, 1), generator=generator) * 2.0 - 1
        first, second = torch.randn(2, n, 1, generator=generator)
        x = sign + inner * first
        return x, x + outer * second, torch.zeros(n, dtype=torch.long)

    def fitted(kind: type[Learned]) -> float:
        torch.manual_seed(0)
        kernel, steps = kind(schedule, (1,), 1.0, width=32, learning_rate=5e-3), 500
        for step in range(steps):
            kernel.set_progress(step / steps)
            kernel.fit(*batch(256))
        return float(kernel.log_prob(x, x_next, t).detach().mean())

    x, x_next, t = batch(20_000)
    signs, total = torch.tensor([-1.0, 1.0]), inner**2 + outer**2
    means = (inner**2 * x_next + outer**2 * signs) / total  # of x_t given its sign and x_{t+1}
    evidence = Categorical(logits=-((x_next - signs) ** 2) / (2 * total))
    exact = MixtureSameFamily(evidence, Normal(means, inner * outer / math.sqrt(total))).log_prob(x[:, 0]).mean()
    assert float(exact) - 0.02 < fitted(Mixture) < float(exact) + 0.005
    assert fitted(Learned) < float(exact) - 0.3


@pytest.mark.parametrize("kind", [Learned, Mixture])
def test_learned_cannot_be_blown_up_by_an_outlier(schedule: Schedule, kind: type[Learned]) -> None:
    kernel = kind(schedule, (2,), 1.0)
    x, x_next, t = transitions((2,), 16)
    x[0] = 1e6
    for _ in range(20):
        kernel.fit(x, x_next, t)
    assert all(bool(torch.isfinite(p).all()) for p in kernel.parameters())
    log_std = kernel.parts(x_next, t)[2] if isinstance(kernel, Mixture) else kernel.moments(x_next, t)[1][:, None]
    assert float((log_std.detach() - kernel.start.moments(x_next, t)[1][:, None]).abs().max()) <= 4


def test_learned_anneals_its_rate(schedule: Schedule) -> None:
    kernel = Learned(schedule, (2,), 1.0, learning_rate=1e-2)
    assert kernel.optimizer is not None
    rates = []
    for progress in (0.0, 0.5, 1.0):
        kernel.set_progress(progress)
        rates.append(kernel.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2, 5e-3, 0.0])
