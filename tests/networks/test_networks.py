"""Networks: what one coordinate of a CoordinateMLP may see, and where policies and kernels with it start."""

from __future__ import annotations

import pytest
import torch
from agent_cases import small

from dxmi_rl import DxMI, load_agent, make_agent, make_task
from dxmi_rl.agents import PPOConfig
from dxmi_rl.agents.policies import CorrectionPolicy
from dxmi_rl.agents.settings import PolicyConfig
from dxmi_rl.diffusion import make_kernel
from dxmi_rl.irl.config import EnergyConfig, make_energy
from dxmi_rl.networks import ConvEncoder, CoordinateMLP, EnergyConv, StepConv, StepMLP


def moved(network: torch.nn.Module) -> torch.nn.Module:
    """The network away from its zero start."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return network


def test_an_output_sees_its_own_coordinate_only() -> None:
    network = moved(CoordinateMLP(4, 2, 3, 5, width=8))
    x, code = torch.randn(1, 8), torch.eye(5)[2]
    jacobian = torch.autograd.functional.jacobian(lambda given: network(given, code)[0], x)[:, 0]
    coordinates_of_outputs, coordinates_of_inputs = torch.arange(12) % 4, torch.arange(8) % 4
    same = coordinates_of_outputs[:, None] == coordinates_of_inputs
    assert (jacobian[same] != 0).all()
    assert (jacobian[~same] == 0).all()


def test_coordinates_and_steps_share_their_weights_but_not_their_bias() -> None:
    network = CoordinateMLP(4, 1, 1, 5, width=8)
    torch.nn.init.normal_(network.last.weight)
    x, codes = torch.ones(5, 4), torch.eye(5)
    assert (network(x, codes) == network(x, codes)[0, 0]).all()
    moved(network)
    assert len(network(x, codes).unique()) == 20


@pytest.mark.parametrize("coordinate_width", [0, 8])
def test_a_step_as_number_and_as_tensor_are_the_same(coordinate_width: int) -> None:
    scale = torch.linspace(2, 1, 5)
    network = moved(StepMLP(4, 6, scale, width=8, depth=2, dim=2, coordinate_width=coordinate_width))
    x = torch.randn(7, 4)
    torch.testing.assert_close(network(x, 3), network(x, torch.full((7,), 3)))


@pytest.mark.parametrize("residual", [False, True])
def test_codes_multiply_the_hidden_units_by_one_at_first(residual: bool) -> None:
    scale, codes = torch.ones(3), torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    gated = StepMLP(4, 2, scale, width=8, depth=2, residual=residual, codes=codes)
    assert len(gated.mlp.gates) == 2 + residual
    assert not StepMLP(4, 2, scale, width=8, depth=2, residual=residual).mlp.gates, "one-hot numbers of one task"
    x = torch.randn(7, 4)
    plain = gated.mlp.layers(torch.cat([x, codes[1].expand(7, -1)], dim=1))
    torch.testing.assert_close(gated(x, 1), plain)
    for gate in gated.mlp.gates:
        gate.weight.data[:, 0] = -1.0  # the first number of a code closes all units
    ends = gated(x, 0)
    torch.testing.assert_close(ends, ends[:1].expand(7, -1))
    assert (gated(x, 2).std(0) > 0).all()


def test_the_joint_and_the_coordinate_part_add_up() -> None:
    scale = torch.linspace(2, 1, 5)
    both = moved(StepMLP(4, 6, scale, width=8, depth=2, dim=2, coordinate_width=8))
    joint = StepMLP(4, 6, scale, width=8, depth=2)
    joint.load_state_dict({key: value for key, value in both.state_dict().items() if "coordinates" not in key})
    x = torch.randn(7, 4)
    assert isinstance(both, StepMLP) and both.coordinates is not None
    torch.testing.assert_close(both(x, 3), joint(x, 3) + both.coordinates(x / scale[3], torch.eye(5)[3]))


def test_a_policy_and_a_kernel_with_it_start_at_the_base_and_at_forward() -> None:
    task = make_task("manywell32", horizon=3, backward="learned", backward_options={"coordinate_width": 8})
    mdp = task.mdp
    policy = CorrectionPolicy(mdp, PolicyConfig(width=8, depth=2, energy_gradient=True, coordinate_width=8))
    forward = make_kernel("forward", mdp.base.schedule, mdp.event_shape, 1.0, mdp.base.sigma)
    x = torch.randn(6, 32)
    for t in range(3):
        mean, log_sigma = policy.moments(x, t)
        torch.testing.assert_close(mean, mdp.base.mean(x, t))
        torch.testing.assert_close(log_sigma, mdp.base.sigma[t].log().expand_as(log_sigma))
        torch.testing.assert_close(mdp.kernel.log_prob(x, 0.9 * x, t), forward.log_prob(x, 0.9 * x, t))


@pytest.mark.parametrize("name", ["path-wise-vargrad", "ppo"])
def test_an_agent_with_it_trains_both_parts_and_resumes(name: str, tmp_path) -> None:
    task = make_task("manywell32", horizon=3, backward="learned", backward_options={"coordinate_width": 8})
    agent = small(name, task, policy={"coordinate_width": 8})
    for _ in range(2):
        agent.iterate()
    for network in (agent.policy.net, agent.mdp.kernel.net):
        assert network.coordinates.last.weight.abs().max() > 0
        assert network.mlp.layers[-1].weight.abs().max() > 0
    agent.save(tmp_path / "agent")
    other = load_agent(tmp_path / "agent")
    assert all((a == b).all() for a, b in zip(agent.policy.parameters(), other.policy.parameters(), strict=True))
    agent.iterate()
    other.iterate()
    assert all((a == b).all() for a, b in zip(agent.policy.parameters(), other.policy.parameters(), strict=True))


def test_pooled_outputs_are_means_over_coordinates() -> None:
    """V(x) = joint(x) + mean_i v_i(x_i): its mixed second derivatives are those of the joint part."""
    scale = torch.ones(5)
    network = moved(StepMLP(4, 1, scale, width=8, depth=2, dim=4, coordinate_width=8, pooled=True))
    assert isinstance(network, StepMLP) and network.coordinates is not None
    x = torch.randn(7, 4)
    parts = network.coordinates(x, torch.eye(5)[3])
    assert parts.shape == (7, 4)
    torch.testing.assert_close(
        network(x, 3), network.mlp(x, torch.eye(5)[3].expand(7, -1)) + parts.mean(1, keepdim=True)
    )
    both = moved(StepMLP(4, 3, scale, width=8, depth=2, dim=4, coordinate_width=8, pooled=True))
    assert both(x, 3).shape == (7, 3), "any number of outputs"


@pytest.mark.parametrize("name", ["dxdp", "ppo"])
def test_values_with_it_are_trained(name: str) -> None:
    agent = small(name, make_task("manywell32", horizon=3), value={"coordinate_width": 8})
    for _ in range(3):
        agent.iterate()
    assert agent.value.network.coordinates.last.weight.abs().max() > 0
    assert agent.value(torch.randn(5, 32), 1).shape == (5,)


def test_widths_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"value\.coordinate_width"):
        make_agent("ppo", "8gaussians", value={"coordinate_width": -1})
    for dim in (None, 3):
        with pytest.raises(ValueError, match="dim must divide 4 inputs and 6 outputs"):
            StepMLP(4, 6, torch.ones(5), width=8, depth=2, dim=dim, coordinate_width=8)
    with pytest.raises(ValueError, match=r"policy\.coordinate_width"):
        make_agent("ppo", "8gaussians", policy={"coordinate_width": -1})
    with pytest.raises(ValueError, match="coordinate_width"):
        make_task("8gaussians", backward="learned", backward_options={"coordinate_width": -1})
    with pytest.raises(ValueError, match=r"policy\.coordinate_width .*changes nothing in a 'fine-tuned' one"):
        make_agent("ppo", "8gaussians", policy={"kind": "fine-tuned", "coordinate_width": 8})
    with pytest.raises(ValueError, match=r"policy\.coordinate_width must be 0 for a fine-tuned network"):
        make_agent("ppo", "8gaussians", config=PPOConfig(policy=PolicyConfig(kind="fine-tuned", coordinate_width=8)))


# Convolutional networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "stages"), [((1, 8, 8), 2), ((3, 28, 28), 3), ((3, 32, 32), 4), ((1, 3, 5), 1)])
def test_an_encoder_halves_images_down_to_four(shape: tuple[int, ...], stages: int) -> None:
    network = ConvEncoder(shape, 2, width=8, depth=1, condition=3)
    assert len(network.stages) == stages
    x, code = torch.randn(5, *shape), torch.eye(3)[[0, 1, 2, 0, 1]]
    whole = network(x, code)
    assert whole.shape == (5, 2)
    torch.testing.assert_close(network(x[2:3], code[2:3]), whole[2:3])  # images do not see each other
    assert not torch.allclose(network(x, code.roll(1, 0)), whole)


def test_a_conv_step_as_number_and_as_tensor_are_the_same() -> None:
    network = StepConv((1, 8, 8), 1, torch.linspace(2, 1, 4), width=8, depth=2)
    x = torch.randn(6, 1, 8, 8)
    torch.testing.assert_close(network(x, 3), network(x, torch.full((6,), 3)))
    assert not torch.allclose(network(x, 3), network(x, 2))


@pytest.mark.slow
def test_a_convolutional_energy_sees_where_things_are() -> None:
    energy = EnergyConv((1, 8, 8), 0.5, width=8, depth=1)
    bar = -torch.ones(2, 1, 8, 8)
    bar[0, :, 2, 1:7] = bar[1, :, 1:7, 2] = 1
    assert energy(bar).shape == (2,) and float((energy(bar)[0] - energy(bar)[1]).abs().detach()) > 1e-5
    held = EnergyConv((1, 8, 8), 0.5, width=8, depth=1, spectral_norm=True)
    norms = [
        float(torch.linalg.matrix_norm(layer.weight.flatten(1), 2).detach())
        for layer in held.train().modules()
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and [held(bar) for _ in range(20)]
    ]
    assert len(norms) == 7 and all(norm == pytest.approx(1, abs=0.02) for norm in norms)


def test_dxmi_trains_with_convolutional_energy_and_values() -> None:
    value = {"width": 8, "depth": 1, "convolutional": True, "residual": False}
    energy = {"width": 8, "depth": 1, "convolutional": True, "residual": False}
    quick = {"iterations": 3, "batch_size": 8, "width": 16}
    game = DxMI(
        make_task("digits", pretraining=quick), seed=0, energy=energy,
        agent_settings={"n_trajectories": 8, "value": value},
    )  # fmt: skip
    before = [parameter.clone() for parameter in game.modules()["agent/value"].parameters()]
    game.learn(64)
    assert isinstance(game.energy, EnergyConv)
    after = game.modules()["agent/value"].parameters()
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    with pytest.raises(ValueError, match=r"energy\.fourier must be off"):
        make_energy(game.task.target, EnergyConfig(convolutional=True, fourier=2))
    with pytest.raises(ValueError, match="needs images"):
        make_energy(make_task("8gaussians").target, EnergyConfig(convolutional=True))
    with pytest.raises(ValueError, match=r"value\.fourier must be 0"):
        DxMI(game.task, agent_settings={"value": value | {"fourier": 3}})
