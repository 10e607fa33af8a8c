"""What runs keep of their denoising paths: states, and the energy, value and log-weight of each."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import small, train
from numpy.typing import NDArray

from dxmi_rl import make_agent, make_target, make_task
from dxmi_rl.benchmark.measure import paths


def numbers(kept: dict[str, Any], key: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(kept[key]), "<f4").reshape(kept["shape"][:2])


@pytest.mark.parametrize("tau", [1.0, 0.4])
def test_numbers_are_those_of_the_states(tau: float) -> None:
    agent = train(small("ppo", make_task("8gaussians", backward="learned", tau=tau)), 3)
    kept, trajectory = paths(agent, seed=5), agent.sample_trajectory(300, seed=5)
    energy, value, log_weight = (numbers(kept, key) for key in ("energy", "value", "log_weight"))
    with torch.no_grad():
        for t, x in enumerate(trajectory.x):
            assert np.allclose(energy[t], agent.mdp.energy(x), rtol=1e-5)
            expected = -agent.mdp.energy(x) if t == 5 else agent.predict_values(x, t)
            assert expected is not None and np.allclose(value[t], expected, rtol=1e-4, atol=1e-5)
        start = agent.mdp.start_log_prob(trajectory.x[0])
        whole = agent.mdp.log_weights(trajectory) + (1 - 1 / tau) * agent.mdp.energy(trajectory.final)
    assert np.allclose(log_weight[0], -start, rtol=1e-5)
    assert np.allclose(log_weight[5], whole, rtol=1e-4, atol=1e-4)


def test_what_is_lacking_is_left_out() -> None:
    assert not {"value", "log_weight"} & set(paths(make_agent("dpm-solver", "8gaussians"), seed=0))
    assert "value" not in paths(make_agent("base", "8gaussians"), seed=0)
    assert "energy" not in paths(make_agent("base", "8gaussians-data"), seed=0)
    task = make_task("8gaussians")
    task.mdp.start_from(make_target("8gaussians").sample)
    assert "log_weight" not in paths(make_agent("base", task), seed=0), "the density of the start is unknown"
