"""Named tasks: arguments, errors with near names, and what a task without an energy says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dxmi_rl
from dxmi_rl import evaluate, list_tasks, make_agent, make_task
from dxmi_rl.diffusion import (
    Brownian,
    Forward,
    IdentitySampler,
    Learned,
    Mixture,
    PretrainingConfig,
    ReverseSampler,
)
from dxmi_rl.mdp import DenoisingMDP, EnergyError
from dxmi_rl.targets import TARGETS, GaussianMixture, ParticleTarget, TargetError, make_target
from dxmi_rl.tasks import ENERGIES, TASKS, Task, TaskConfig
from dxmi_rl.utils.checks import DivergenceError
from dxmi_rl.utils.registry import UnknownNameError

QUICK = {"iterations": 20, "batch_size": 32, "width": 16}


@pytest.fixture(name="task", params=list_tasks())
def every_task(request: pytest.FixtureRequest) -> Task:
    return make_task(request.param, pretraining=QUICK)


def test_a_task_is_whole(task: Task) -> None:
    assert isinstance(task.mdp, DenoisingMDP)
    assert task.name in list_tasks()
    assert task.mdp.horizon == task.config.horizon >= 1
    assert task.event_shape == task.target.event_shape == task.mdp.event_shape
    assert task.mdp.scale == getattr(task.target, "untilted", task.target).scale
    assert task.mdp.tau == task.config.tau
    assert task.device == torch.device("cpu")
    x = task.mdp.reset(3)
    if task.mdp.has_energy:
        assert task.mdp.energy(x).shape == (3,)
    else:
        with pytest.raises(EnergyError, match="pass energy="):
            task.mdp.energy(x)
    assert make_task(task) is task


def test_a_task_is_rebuilt_from_its_spec(task: Task) -> None:
    assert task.spec is not None
    spec = dict(task.spec)
    again = make_task(spec.pop("name"), **spec)
    assert again.config == task.config
    x, t = task.mdp.reset(6), torch.arange(6) % task.mdp.horizon
    assert torch.equal(again.mdp.base.mean(x, t), task.mdp.base.mean(x, t))
    assert torch.equal(again.mdp.base.sigma, task.mdp.base.sigma)


def test_every_target_has_a_task() -> None:
    assert set(TARGETS.names()) <= set(TASKS.names())


def test_arguments_change_the_task() -> None:
    task = make_task(
        "8gaussians", horizon=7, tau=0.3, backward="brownian", backward_options={"rate": 0.5}, sigma_last=0.2,
        schedule="cosine", schedule_options={"alpha_bar_min": 0.05},
    )  # fmt: skip
    assert (task.mdp.horizon, task.mdp.tau) == (7, 0.3)
    assert isinstance(task.mdp.kernel, Brownian) and task.mdp.kernel.rate == 0.5
    assert float(task.mdp.base.schedule.alpha[0] ** 2) == pytest.approx(0.05, rel=1e-4)
    assert float(task.mdp.base.sigma[-1]) == pytest.approx(0.2)
    assert TASKS["8gaussians"].horizon == 5, "the default is untouched"


@pytest.mark.parametrize(
    ("name", "kind"), [("forward", Forward), ("learned", Learned), ("mixture", Mixture), ("brownian", Brownian)]
)
def test_the_kernel_is_the_one_named(name: str, kind: type) -> None:
    assert type(make_task("8gaussians", backward=name).mdp.kernel) is kind


def test_pretraining_may_change_single_fields() -> None:
    task = make_task("8gaussians-data", pretraining=QUICK)
    assert task.config.pretraining.residual == TASKS["8gaussians-data"].pretraining.residual
    assert task.config.pretraining.iterations == 20
    same = make_task("8gaussians-data", pretraining=task.config.pretraining)
    assert same.config == task.config and same.spec is not None
    assert isinstance(task.config.pretraining, PretrainingConfig)


@pytest.mark.parametrize("track", ["fine-tune", "sample", "energy"])
def test_from_scratch_is_a_random_walk_that_ends_at_the_targets_scale(track: str) -> None:
    task = make_task("8gaussians", base=None, track=track)
    base = task.mdp.base
    assert isinstance(base, IdentitySampler)
    assert task.mdp.start_std == pytest.approx(1.25 * task.target.scale)
    assert float(base.sigma[-1]) == pytest.approx(task.target.smallest_scale)
    wide = make_task(
        "8gaussians", base=None, schedule="geometric", schedule_options={"level_max": 9.0, "level_min": 0.1}
    )
    assert wide.mdp.start_std == 9.0


def test_a_ladder_from_scratch_is_geometric_and_takes_options_one_by_one() -> None:
    widths = {"scale": 2.0, "smallest_scale": 0.1}
    for changes in ({}, {"schedule": "geometric"}, {"schedule_options": {}}):
        task = make_task(Bowl(), dim=2, horizon=3, target_options=widths, **changes)
        assert task.mdp.base.schedule.levels.tolist() == pytest.approx([2.5, 0.5, 0.1, 0.0])
    low = make_task(Bowl(), dim=2, horizon=3, target_options=widths, schedule_options={"level_min": 0.4})
    assert low.mdp.base.schedule.levels.tolist() == pytest.approx([2.5, 1.0, 0.4, 0.0])
    assert low.config.schedule == "geometric"


def test_ddim_takes_eta() -> None:
    base = make_task("8gaussians", base="ddim", eta=0.3).mdp.base
    assert isinstance(base, ReverseSampler) and base.eta == 0.3


class Bowl(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().flatten(1).sum(1)


def test_an_energy_of_your_own() -> None:
    for energy in (Bowl(), lambda x: x.square().sum(1)):
        task = make_task("8gaussians", energy=energy)
        assert task.mdp.energy(torch.ones(1, 2)).tolist() == [2.0]
        assert task.spec is None, "it cannot be rebuilt from JSON"
    assert make_task("8gaussians-data", pretraining=QUICK, energy=Bowl()).mdp.has_energy


def test_a_named_energy_is_built_for_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENERGIES._entries, "bowl", f"{__name__}:bowl_for")
    task = make_task("8gaussians", energy="bowl")
    assert task.mdp.energy(torch.ones(1, 2)).tolist() == [2.0]
    assert task.spec == {"name": "8gaussians", "energy": "bowl"}


def test_a_target_of_your_own() -> None:
    mixture = GaussianMixture(torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]), 0.4, plot_range=(-2, 3))
    task = make_task(mixture, horizon=3)
    assert task.target is mixture and task.spec is None
    assert task.mdp.rollout(_base_policy(task), 5).final.shape == (5, 3)
    assert task.mdp.energy(torch.zeros(2, 3)).tolist() == mixture.energy(torch.zeros(2, 3)).tolist()


def test_an_energy_of_your_own_as_target() -> None:
    module = Bowl()
    for energy, dim in ((module, 3), (lambda x: x.square().flatten(1).sum(1), (1, 2, 2))):
        task = make_task(energy, dim=dim, horizon=3, target_options={"scale": 2.0})
        assert task.config.track == "sample" and isinstance(task.mdp.base, IdentitySampler)
        assert task.mdp.start_std == pytest.approx(2.5) and task.spec is None
        x = torch.randn(4, *task.event_shape)
        assert torch.equal(task.mdp.energy(x), x.square().flatten(1).sum(1))


def test_data_of_your_own_as_target() -> None:
    data = 3 + torch.randn(200, 2)
    task = make_task(data, pretraining=QUICK, energy=Bowl())
    assert task.config.track == "fine-tune" and task.target.has_data
    known = {tuple(row) for row in data.tolist()}
    assert all(tuple(row) in known for row in task.target.data(32).tolist())
    assert task.mdp.rollout(_base_policy(task), 5).final.shape == (5, 2)
    assert not make_task(data.numpy(), pretraining=QUICK).mdp.has_energy


@pytest.mark.parametrize("track", ["sample", "energy"])
def test_tracks_without_a_denoiser_cannot_reach_samples(track: str) -> None:
    """Nothing that hangs on the task gives them, and its energy is the target's."""
    open_target = make_target("8gaussians")
    for name in ("8gaussians", open_target):
        task = make_task(name, track=track)
        assert task.config.base is None and not (task.target.has_sampler or task.target.has_data)
        for draw in (task.target.sample, task.target.data, task.target.test_data):
            with pytest.raises(TargetError, match=r"energy only|no exact sampler"):
                draw(3)
        x = torch.randn(5, 2, requires_grad=True)
        assert torch.equal(task.mdp.energy(x), open_target.energy(x))
        assert task.target.energy(x).requires_grad == (track == "sample")
    with pytest.raises(TargetError, match="energy only"):
        cast(ParticleTarget, make_task("dw4", track=track).target).reference_states()
    assert open_target.has_sampler and open_target.sample(2).shape == (2, 2), "the user's own object is left alone"
    assert make_task("8gaussians", base=None).target.has_sampler, "from scratch on the fine-tune track it may"


def test_edm_is_ancestral_euler_in_exploding_coordinates() -> None:
    """k-diffusion's Euler ancestral step, by hand; and DDIM(eta)'s law after a change of variables."""
    for eta in (1.0, 0.6):
        edm, ddim = (make_task("8gaussians", base=base, eta=eta).mdp for base in ("edm", "ddim"))
        levels = ddim.base.schedule.levels
        assert torch.allclose(edm.base.schedule.alpha, torch.ones(6)) and edm.start_std == pytest.approx(10.0)
        z = 3 * torch.randn(50, 2)
        for t in range(4):
            now, then = float(levels[t]), float(levels[t + 1])
            up = min(then, eta * (then**2 * (now**2 - then**2) / now**2) ** 0.5)
            down = (then**2 - up**2) ** 0.5
            denoised = edm.base.denoiser(z, 1.0, now)
            euler = z + (z - denoised) / now * (down - now)
            torch.testing.assert_close(edm.base.mean(z, t), euler, rtol=1e-4, atol=1e-4)
            assert float(edm.base.sigma[t]) == pytest.approx(up, rel=1e-5)
            alpha, alpha_next = ddim.base.schedule.alpha[t], ddim.base.schedule.alpha[t + 1]
            torch.testing.assert_close(ddim.base.mean(alpha * z, t) / alpha_next, euler, rtol=1e-4, atol=1e-4)
            assert float(ddim.base.sigma[t] / alpha_next) == pytest.approx(up, rel=1e-4)


def bowl_for(task: Task) -> nn.Module:
    assert task.name == "8gaussians" and not task.mdp.has_energy
    return Bowl()


def _base_policy(task: Task) -> Any:
    from dxmi_rl.agents.untrained.base_sampler import BasePolicy

    return BasePolicy(task.mdp)


@pytest.mark.parametrize(
    ("name", "changes", "error", "text"),
    [
        ("8gausians", {}, UnknownNameError, "unknown task '8gausians'. Did you mean '8gaussians'"),
        ("8gausians", {"dim": 2}, UnknownNameError, "unknown task '8gausians'. Did you mean '8gaussians'"),
        (None, {}, TypeError, "data as a tensor or numpy array, or a Task, got NoneType"),
        (gym.make("DxMIDenoise-v0"), {}, TypeError, "got OrderEnforcing. Use env.unwrapped.task"),
        ("8gaussians", {"dim": 2}, ValueError, "dim belongs to an energy of your own"),
        (lambda x: x.sum(1), {}, ValueError, "dim must say the dimension"),
        (lambda x: x.sum(1), {"dim": 0}, ValueError, "dim must be >= 1"),
        (lambda x: x, {"dim": 2}, EnergyError, r"must return a tensor of shape \[2\]"),
        (lambda x: x.sum(1), {"dim": 2, "base": "ddpm"}, ValueError, "base must be None"),
        (
            lambda x: x.sum(1),
            {"dim": 2, "schedule": "cosine"},
            ValueError,
            "schedule must be 'geometric' without a denoi",
        ),
        ("gmm25", {"track": "sample", "schedule": "flow"}, ValueError, r"\(base None\), got 'flow'"),
        ("8gaussians", {"T": 3}, UnknownNameError, "unknown task argument 'T'. Did you mean 'horizon'"),
        ("gmm25", {"target_options": {"st": 1}}, UnknownNameError, "option of target 'gmm25'"),
        ("8gaussians", {"horizn": 3}, UnknownNameError, "unknown task argument 'horizn'. Did you mean 'horizon'"),
        (
            "8gaussians",
            {"scale": 1.0},
            UnknownNameError,
            "unknown task argument 'scale'. Did you mean 'target_options'",
        ),
        ("8gaussians", {"target": "gmm26"}, UnknownNameError, "Did you mean 'gmm25'"),
        ("8gaussians", {"schedule": "karass"}, UnknownNameError, "Did you mean 'karras'"),
        ("8gaussians", {"backward": "learnd"}, UnknownNameError, "Did you mean 'learned'"),
        ("8gaussians", {"base": "ddpn"}, UnknownNameError, "Did you mean 'ddpm'"),
        ("8gaussians", {"denoiser": "exat"}, UnknownNameError, "Did you mean 'exact'"),
        ("8gaussians", {"track": "finetune"}, UnknownNameError, "Did you mean 'fine-tune'"),
        ("8gaussians", {"energy": "fixd"}, UnknownNameError, "unknown energy 'fixd'"),
        ("8gaussians", {"horizon": 0}, ValueError, "horizon must be >= 1, got 0"),
        ("8gaussians", {"horizon": -2}, ValueError, "horizon must be >= 1"),
        ("8gaussians", {"horizon": 5.0}, TypeError, "horizon must be an integer"),
        ("8gaussians", {"horizon": "5"}, TypeError, "horizon must be an integer"),
        ("8gaussians", {"tau": -0.1}, ValueError, "tau must be finite and >= 0"),
        ("8gaussians", {"eta": -1.0}, ValueError, "eta must be finite"),
        ("8gaussians", {"reward": "tarqet"}, UnknownNameError, "unknown reward 'tarqet'"),
        ("8gaussians", {"track": "sample", "base": "ddpm"}, ValueError, "base must be None"),
        ("8gaussians", {"schedule_options": {"rhoo": 1.0}}, UnknownNameError, "Did you mean 'rho'"),
        ("8gaussians", {"backward_options": {"steps": 1}}, UnknownNameError, "option of kernel 'forward' 'steps'"),
        ("8gaussians", {"backward": "learned", "backward_options": {"widht": 3}}, UnknownNameError, "mean 'width'"),
        ("8gaussians", {"target_options": 3}, TypeError, "target_options must be a dict, got 3"),
        ("8gaussians", {"schedule_options": None}, TypeError, "schedule_options must be a dict, got None"),
        ("8gaussians", {"denoiser": 3}, TypeError, "denoiser must be a name, a path or a module, got 3"),
        ("8gaussians", {"device": "gpu"}, ValueError, "device must name a torch device"),
        ("8gaussians", {"energy": 3}, TypeError, "energy must be a module or function"),
        ("digits", {"denoiser": "exact"}, ValueError, "denoiser 'exact' needs a Gaussian mixture"),
        ("8gaussians-data", {"pretraining": {"iteration": 5}}, UnknownNameError, "Did you mean 'iterations'"),
    ],
)
def test_bad_arguments_are_refused(name: Any, changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_task(name, **changes)


def test_a_built_task_takes_no_arguments() -> None:
    task = make_task("8gaussians")
    for changes in ({"horizon": 3}, {"tau": 1.0}, {"energy": Bowl()}):
        with pytest.raises(ValueError, match="takes no further arguments"):
            make_task(task, **changes)


def test_a_data_task_asked_for_the_targets_energy() -> None:
    with pytest.raises(ValueError, match=r"digits.*has no energy"):
        make_task("digits", reward="target", pretraining=QUICK)


def test_missing_data_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(dxmi_rl.utils.checks.MissingExtraError, match=r"digits' needs scikit-learn: pip install"):
        make_task("digits")


def test_adding_a_target_is_one_registry_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS._entries, "pair", lambda: GaussianMixture(torch.eye(2), 0.5, plot_range=(-2, 2)))
    monkeypatch.setitem(TASKS._entries, "pair", TaskConfig("pair"))
    assert make_target("pair").name == "pair"
    assert make_task("pair").mdp.has_energy


def test_the_public_names() -> None:
    assert set(dxmi_rl.__all__) <= {*dir(dxmi_rl), *dxmi_rl._HOMES}
    for name in dxmi_rl.__all__:
        assert getattr(dxmi_rl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'make_tsak'"):
        dxmi_rl.make_tsak  # type: ignore[attr-defined]


@pytest.mark.slow
def test_importing_the_package_is_light() -> None:
    """gym.make should not pay for agents, SB3 or scikit-learn."""
    heavy = ["stable_baselines3", "sklearn", "torchrl", "dxmi_rl.agents"]
    code = f"import dxmi_rl, sys; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_numbers_of_numpy_are_numbers_and_pretraining_is_settings() -> None:
    task = make_task("8gaussians", tau=np.float32(0.5), horizon=np.int64(3))
    assert (task.mdp.tau, task.mdp.horizon, type(task.config.tau)) == (0.5, 3, float)
    assert task.spec is not None and make_task(**task.spec).mdp.tau == 0.5
    with pytest.raises(TypeError, match="pretraining must be a dict or a PretrainingConfig, got 3"):
        make_task("8gaussians", pretraining=3)


@pytest.mark.parametrize("shape", [(2,), (7,)])
def test_data_of_your_own_have_the_temperature_of_named_data(shape: tuple[int, ...]) -> None:
    task = make_task(torch.randn(50, *shape), pretraining=QUICK)
    assert task.mdp.tau == pytest.approx(0.1 / math.prod(shape))
    assert make_task("8gaussians-data", pretraining=QUICK).mdp.tau == pytest.approx(0.1 / 2)


def test_eta_belongs_to_ddim_and_edm() -> None:
    for base in ("ddpm", None):
        with pytest.raises(ValueError, match="eta belongs to base 'ddim', 'edm' and 'flow-sde'"):
            make_task("8gaussians", base=base, eta=0.5)


@pytest.mark.parametrize(("shift", "factor"), [(50.0, 1.0), (0.0, 30.0), (0.0, 0.01)])
def test_data_that_the_noise_levels_do_not_fit_are_warned_of(shift: float, factor: float) -> None:
    rows = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="do not fit noise levels from 10 to 0.15: subtract the mean") as found:
        make_task(shift + factor * rows, pretraining=QUICK)
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_task(rows, pretraining=QUICK)


def test_a_mixture_that_the_noise_levels_do_not_fit_is_warned_of() -> None:
    wide = GaussianMixture(60.0 * torch.eye(2), 1.0, plot_range=(-10, 70))
    with pytest.warns(UserWarning, match="samples of .* and standard deviation .* do not fit noise levels"):
        make_task(wide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_task(wide, schedule_options={"level_max": 65.0, "level_min": 1.0}, schedule="karras")


def test_log_z_of_an_energy_of_your_own() -> None:
    log_z = math.log(math.pi)
    task = make_task(Bowl(), dim=2, horizon=2, target_options={"log_z": log_z})
    scores = evaluate(make_agent("base", task), fit=False, draws=1, samples=100, trajectories=1000)
    assert scores["kl_bound"] == pytest.approx(log_z - scores["elbo"])
    with pytest.raises(ValueError, match="log_z must be finite"):
        make_task(Bowl(), dim=2, target_options={"log_z": math.inf})


def test_options_of_own_targets_are_checked() -> None:
    for key in ("energy", "event_shape"):  # other arguments give these
        with pytest.raises(UnknownNameError, match=f"option of a target of an energy '{key}'"):
            make_task(Bowl(), dim=2, target_options={key: 3})
    with pytest.raises(UnknownNameError, match="Did you mean 'scale'"):
        make_task(lambda x: x.square().sum(1), dim=2, target_options={"scal": 1.0})
    with pytest.raises(UnknownNameError, match="option of a target of data"):
        make_task(torch.randn(50, 2), target_options={"scal": 1.0})
    with pytest.raises(ValueError, match=r"smallest_scale must be at most scale, 1, got 5\."):
        make_task(lambda x: x.square().sum(1), dim=2, target_options={"scale": 1.0, "smallest_scale": 5.0})


def test_a_denoiser_of_your_own_adds_no_noise_of_its_own() -> None:
    """Dropout is off: the mean is a function, and log_prob a density."""

    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))

        def forward(self, x: Tensor, alpha: Tensor, s: Tensor) -> Tensor:
            return cast(Tensor, self.layer(x))

    task = make_task("8gaussians", denoiser=Noisy())
    x = torch.randn(4, 2)
    assert torch.equal(task.mdp.base.mean(x, 0), task.mdp.base.mean(x, 0))


@pytest.mark.parametrize("track", ["sample", "energy"])
def test_an_energy_of_your_own_is_not_copied(track: str) -> None:
    """Trained in place it changes the reward; it may hold what cannot be copied."""

    class Simulator(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(1.0))
            self.lock = threading.Lock()

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x.square().sum(1)

    energy = Simulator()
    task = make_task(energy, dim=2, track=track)
    x = torch.ones(1, 2)
    assert float(task.mdp.energy(x)) == 2
    energy.weight.data.fill_(10.0)
    assert float(task.mdp.energy(x)) == float(task.target.energy(x)) == 20


def test_options_are_copied() -> None:
    """What the caller does to his dictionary later changes nothing; numbers of numpy inside are numbers."""
    options = {"level_max": 10.0, "level_min": 0.15}
    task = make_task(
        "8gaussians", schedule_options=options, backward="learned", backward_options={"width": np.int64(8)}
    )
    options["level_max"] = 99.0
    assert task.spec is not None and task.spec["schedule_options"]["level_max"] == 10.0
    shorter = task.with_horizon(np.int64(3))  # type: ignore[arg-type]
    assert float(shorter.mdp.base.schedule.levels[0]) == pytest.approx(10.0)
    json.dumps(shorter.spec)


def test_a_base_sampler_with_a_step_without_noise_is_deterministic() -> None:
    assert make_task("8gaussians", sigma_last=0.0).mdp.base.deterministic
    with pytest.raises(ValueError, match="sigma_last = 0"):
        make_agent("ppo", make_task("8gaussians", sigma_last=0.0))


@pytest.mark.parametrize(
    "settings", [{"ema": 7.0}, {"level_min": 5.0, "level_max": 1.0}, {"learning_rate": 0.0}, {"level_min": -1.0}]
)
def test_bad_settings_of_a_pretraining(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        PretrainingConfig(**settings)  # type: ignore[arg-type]


def test_a_pretraining_that_diverges_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path))
    with pytest.raises(DivergenceError, match="diverged"):
        make_task(torch.randn(50, 2), pretraining={"iterations": 20, "learning_rate": 1e25})
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_fixed_energy_is_that_of_the_task_as_it_is() -> None:
    with pytest.raises(ValueError, match="target_options must be empty"):
        make_task("8gaussians", energy="fixed", target_options={"weights": [1.0] * 7 + [9.0]})
