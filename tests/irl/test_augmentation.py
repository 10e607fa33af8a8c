"""Random changes of the images that the energy sees: what they do, when there are more of them, and who sees them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_cases import same, small, state
from target_cases import seeded
from torch import Tensor

from dxmi_rl import load_agent, make_task
from dxmi_rl.irl import DxMI, augmentation, fixed
from dxmi_rl.irl.augmentation import ADJUSTED_OVER, BRIGHTNESS, CONTRAST, LARGEST, TURN, ZOOM, Augmentation
from dxmi_rl.targets import Target
from dxmi_rl.tasks import Task

HEIGHT, WIDTH = 24, 16
OFF = ("ZOOM", "TURN", "BRIGHTNESS", "CONTRAST")


class Pictures(Target):
    """Images of which only shape and range matter here."""

    has_data = True

    def __init__(self, plot_range: tuple[float, float] = (-1.0, 1.0)) -> None:
        super().__init__((1, HEIGHT, WIDTH), scale=0.5, plot_range=plot_range)


def changed(x: Tensor, probability: float, *, seed: int = 0, plot_range: Any = (-1.0, 1.0), **options: Any) -> Tensor:
    return Augmentation(Pictures(plot_range), probability, **options)(x, seeded(seed))


def coordinates() -> Tensor:
    """Of every pixel from the middle, in pixels: (to the right, down), ``[2, HEIGHT, WIDTH]``."""
    down, right = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([right - (WIDTH - 1) / 2, down - (HEIGHT - 1) / 2])


# What is done to images -----------------------------------------------------------------------------------------------


def test_no_probability_changes_nothing() -> None:
    x = torch.randn(50, 1, HEIGHT, WIDTH)
    assert torch.equal(changed(x, 0.0), x)


@pytest.mark.parametrize("flip", [False, True])
def test_as_many_images_change_as_are_chosen(flip: bool) -> None:
    """Each of five changes with p, and a mirror image with p / 2; a translation may be by nothing."""
    n, p = 4000, 0.1
    x = torch.randn(n, 1, HEIGHT, WIDTH)
    untouched = (changed(x, p, flip=flip) == x).flatten(1).all(1).float().mean()
    wanted = (1 - p) ** 5 * (1 - p / 2 if flip else 1)
    assert float(untouched) == pytest.approx(wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / n))


def test_a_point_lands_on_a_whole_pixel_anywhere_within_an_eighth(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OFF:
        monkeypatch.setattr(augmentation, name, 0.0)
    n, row, column = 7000, 9, 12
    x = torch.zeros(n, 1, HEIGHT, WIDTH)
    x[:, 0, row, column] = 1.0
    landed = changed(x, 1.0)[:, 0]
    where = landed.flatten(1).argmax(1)
    torch.testing.assert_close(landed, torch.nn.functional.one_hot(where, HEIGHT * WIDTH).view_as(landed).float())
    counts = torch.bincount(where, minlength=HEIGHT * WIDTH).view(HEIGHT, WIDTH)
    near = counts[row - 3 : row + 4, column - 2 : column + 3]  # an eighth of 24 and of 16
    assert int(near.sum()) == n
    chi2 = float(((near - n / 35) ** 2 / (n / 35)).sum())
    assert chi2 < 34 + 4 * math.sqrt(2 * 34)


def test_beyond_its_border_an_image_goes_on_as_its_reflection(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OFF:
        monkeypatch.setattr(augmentation, name, 0.0)
    x = torch.randn(200, 1, HEIGHT, WIDTH)
    padded = torch.cat([x[..., :2].flip(3), x, x[..., -2:].flip(3)], 3)
    padded = torch.cat([padded[:, :, :3].flip(2), padded, padded[:, :, -3:].flip(2)], 2)
    found = changed(x, 1.0)
    windows = padded.unfold(2, HEIGHT, 1).unfold(3, WIDTH, 1).flatten(2, 3)  # [n, 1, 35, HEIGHT, WIDTH]
    nearest = (windows - found[:, :, None]).abs().flatten(3).amax(3).amin(2)
    assert float(nearest.max()) < 1e-4


def test_geometry_is_a_similarity_within_its_bounds() -> None:
    """Bilinear interpolation of the coordinates is exact, so that in the middle they say where every pixel is from."""
    n = 600
    with pytest.MonkeyPatch.context() as patch:
        for name in ("BRIGHTNESS", "CONTRAST"):
            patch.setattr(augmentation, name, 0.0)
        sources = changed(coordinates().expand(n, 2, HEIGHT, WIDTH), 1.0, flip=True)[..., 9:15, 6:10].flatten(2).mT
    rows = coordinates()[:, 9:15, 6:10].flatten(1)
    design = torch.cat([rows, torch.ones(1, rows.shape[1])]).T.expand(n, -1, -1)
    fitted = torch.linalg.lstsq(design, sources).solution  # [n, 3, 2]
    residual = design @ fitted - sources
    assert float(residual.abs().max()) < 1e-3
    linear, shift = fitted[:, :2].mT, fitted[:, 2]
    assert float((shift - shift.round()).abs().max()) < 1e-3 and float(shift[:, 0].abs().max()) < 2.01
    assert 2.5 < float(shift[:, 1].abs().max()) < 3.01
    scales = torch.linalg.det(linear).abs().sqrt()
    torch.testing.assert_close(linear @ linear.mT, scales.square().view(-1, 1, 1) * torch.eye(2), atol=1e-3, rtol=0)
    mirrored = torch.linalg.det(linear) < 0
    assert 0.4 < float(mirrored.float().mean()) < 0.6
    exponents, angles = scales.log2(), torch.atan2(linear[:, 1, 0], linear[:, 1, 1])
    for values, largest in ((exponents, ZOOM), (angles, TURN)):
        assert 0.95 * largest < float(values.abs().max()) < largest + 1e-3
        assert float(values.mean()) == pytest.approx(0.0, abs=4 * largest / math.sqrt(3 * n))
        assert float(values.std()) == pytest.approx(largest / math.sqrt(3), rel=0.1)


def test_without_flip_nothing_is_mirrored() -> None:
    right = coordinates()[:1].expand(400, 1, HEIGHT, WIDTH)
    found = changed(right, 1.0, plot_range=(-20.0, 20.0))
    assert bool((found[:, 0, 12, 11] > found[:, 0, 12, 4]).all())


def test_brightness_and_contrast_are_about_the_middle_of_the_range() -> None:
    """Geometry does nothing to an image of one value."""
    n, low, high = 4000, 2.0, 10.0
    middle, quarter = (torch.full((n, 1, HEIGHT, WIDTH), value) for value in (6.0, 8.0))
    offset, value = (changed(x, 1.0, plot_range=(low, high)).flatten(1) for x in (middle, quarter))
    assert float((offset - offset[:, :1]).abs().max()) < 1e-5
    offset, gain = offset[:, 0] - 6, (value[:, 0] - offset[:, 0]) / 2
    largest = BRIGHTNESS * (high - low) / 2
    assert 0.99 * largest < float(offset.abs().max()) <= largest + 1e-5
    assert float(offset.std()) == pytest.approx(largest / math.sqrt(3), rel=0.05)
    assert 0.99 * CONTRAST < float(gain.log2().abs().max()) < CONTRAST + 1e-4
    assert float(gain.log2().mean()) == pytest.approx(0.0, abs=4 * CONTRAST / math.sqrt(3 * n))


def test_nothing_is_read_back_from_the_device() -> None:
    """On the "meta" device there are no numbers to look at."""
    model = Augmentation(Pictures(), 0.3, wanted=0.5, flip=True).to("meta")
    x = torch.zeros(6, 1, HEIGHT, WIDTH, device="meta")
    assert model(x).shape == x.shape
    assert model.adapt(x[:, 0, 0, 0], x[:, 0, 0, 0])["augmentation"].device.type == "meta"


# How many are changed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("above", "direction"), [(4, 1), (3, -1), (0, -1)])
def test_p_rises_while_the_energy_separates_and_falls_otherwise(above: int, direction: int) -> None:
    """Of four samples ``above`` have more energy than the datum beside them: r = above / 2 - 1, and 0.6 is wanted."""
    model = Augmentation(Pictures(), 0.5, wanted=0.6)
    data, policy = torch.tensor([-5.0, 0.0, 3.0, 100.0]), torch.tensor([-6.0, -1.0, 2.0, 99.0])
    policy[:above] += 2
    log = model.adapt(data, policy)
    assert float(log["separation"]) == above / 2 - 1
    assert float(log["augmentation"]) == float(model.probability) == pytest.approx(0.5 + direction * 4 / ADJUSTED_OVER)


def test_p_stays_a_probability_or_where_it_was_set() -> None:
    data, policy = torch.zeros(ADJUSTED_OVER // 10), torch.ones(ADJUSTED_OVER // 10)
    model, still = Augmentation(Pictures(), 0.65, wanted=0.6), Augmentation(Pictures(), 0.65)
    assert [float(model.adapt(*pair)["augmentation"]) for pair in ((data, policy), (policy, data))] == [
        pytest.approx(LARGEST), pytest.approx(0.6),
    ]  # fmt: skip
    for _ in range(11):
        model.adapt(policy, data)
    assert float(model.probability) == 0.0
    assert float(still.adapt(data, policy)["separation"]) == 1.0 and float(still.probability) == pytest.approx(0.65)


# In the game ----------------------------------------------------------------------------------------------------------


def digits(**changes: Any) -> Task:
    return make_task("digits", pretraining={"iterations": 5, "width": 16, "batch_size": 16}, **changes)


def game(**settings: Any) -> DxMI:
    built = small("dxmi", digits(), **settings)
    assert isinstance(built, DxMI)
    return built


def test_by_default_there_is_none() -> None:
    model = game()
    assert model.augmentation is None and "augmentation" not in model.modules()
    model.iterate()
    assert not {"augmentation", "separation"} & model.update_energy(model.past["past"]).keys()


def test_at_probability_zero_the_loss_is_the_plain_one_bit_for_bit() -> None:
    plain, augmented = game(), game(augmentation_target=0.6)
    samples = torch.randn(32, 1, 8, 8, generator=seeded(3))
    logs = [model.update_energy(samples) for model in (plain, augmented)]
    assert torch.equal(logs[0]["energy_loss"], logs[1]["energy_loss"])
    assert same(dict(plain.energy.state_dict()), dict(augmented.energy.state_dict()))


def test_the_energy_and_its_gradient_penalty_see_changed_data_and_samples() -> None:
    model, seen = game(augmentation=0.5, gradient_penalty=1.0), []
    assert model.augmentation is not None
    model.augmentation.forward = lambda x, generator: x.new_full(x.shape, 7.0)  # type: ignore[method-assign]
    model.energy.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.update_energy(torch.zeros(32, 1, 8, 8))
    (x,) = seen
    assert x.shape == (64, 1, 8, 8) and bool((x == 7).all()) and x.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"gradient_penalty": 1.0, "anchor": 0.9, "replay": 2}])
def test_p_follows_the_energy_of_the_game(settings: dict[str, Any]) -> None:
    """Up against samples that are noise, down against samples that are data."""
    model = game(augmentation_target=0.5, augmentation=0.2, energy_learning_rate=3e-3, **settings)
    assert model.augmentation is not None

    def steps(samples: Tensor) -> float:
        model.past["past"] = samples
        before = float(model.augmentation.probability)
        for _ in range(60):
            model.update_energy(samples)
        return float(model.augmentation.probability) - before

    for _ in range(60):  # the energy learns noise first
        model.update_energy(3 * torch.randn(32, 1, 8, 8, generator=seeded(0)))
    assert steps(3 * torch.randn(32, 1, 8, 8, generator=seeded(1))) > 0
    assert steps(model.task.target.data(512, seeded(2))) < 0


@pytest.mark.slow
def test_a_resumed_game_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = {"augmentation": 0.3, "augmentation_target": 0.6, "augmentation_flip": True}
    whole, stopped = game(**settings), game(**settings)
    budget = 6 * whole.timesteps_per_iteration
    whole.learn(budget)
    stopped.learn(budget, callback=lambda agent: agent.num_timesteps < budget / 2, checkpoint=tmp_path / "game")
    again = load_agent(tmp_path / "game", task=digits())
    assert isinstance(again, DxMI) and again.augmentation is not None
    assert float(again.augmentation.probability) not in (0.0, 0.3)
    again.learn(budget - again.num_timesteps, reset_num_timesteps=False)
    assert same(state(whole), state(again)) and whole.log == again.log
    assert whole.log["augmentation"] == float(whole.augmentation.probability)  # type: ignore[union-attr]


def test_keys_of_fixed_energies_say_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Augmentation, too: a change of any is another energy, and another horizon is the same one."""
    keys: list[dict[str, Any]] = []

    def stop(kind: str, key: dict[str, Any], build: Any) -> Any:
        keys.append(key)
        raise KeyboardInterrupt

    monkeypatch.setattr(fixed, "cached_tensors", stop)
    other_recipe = dataclasses.replace(fixed.fixed_recipe("digits"), augmentation=0.1)
    for task, recipe in ((digits(), None), (digits(horizon=2), None), (digits(), other_recipe)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            if recipe is not None:
                patch.setattr(fixed, "fixed_recipe", lambda name, recipe=recipe: recipe)
            fixed.fixed_energy(task)
    assert keys[0] == keys[1] != keys[2]
    assert keys[0]["config"] == dataclasses.asdict(fixed.fixed_recipe("digits"))
    assert {"augmentation", "augmentation_target", "augmentation_flip"} < keys[0]["config"].keys()


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"augmentation": 0.8}, ValueError, r"augmentation must lie in \[0, 0.7\], got 0.8"),
        ({"augmentation": 0.5, "augmentation_flip": 1}, TypeError, "augmentation_flip must be True or False, got 1"),
        ({"augmentation": -0.1}, ValueError, "augmentation must be finite and >= 0"),
        ({"augmentation": "1"}, TypeError, "augmentation must be a real number"),
        ({"augmentation_target": 0.0}, ValueError, r"augmentation_target must be None or lie in \(0, 1\), got 0.0"),
        ({"augmentation_target": 1.0}, ValueError, r"augmentation_target must be None or lie in \(0, 1\)"),
        ({"augmentation_flip": True}, ValueError, "augmentation_flip must be False without augmentation"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        game(**settings)


@pytest.mark.parametrize("settings", [{"augmentation": 0.2}, {"augmentation_target": 0.6}])
def test_vectors_are_no_images(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"{name} = {value} is for images.*'8gaussians' are \(2,\)"):
        small("dxmi", **settings)
