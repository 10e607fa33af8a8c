"""EDM networks in the file format of openai/consistency_models: the same numbers as their own code, and bad files."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from unet_model import UNetModel, edm_denoised

from dxmi_rl import make_task
from dxmi_rl.diffusion import DenoiserUNet
from dxmi_rl.diffusion.consistency_models import network_settings
from dxmi_rl.irl.paper import PAPER_PRESETS
from dxmi_rl.targets import ImageSet
from dxmi_rl.utils.checks import CheckpointError

pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {
    "channels": 32, "mult": (1, 2, 2), "blocks": 1, "attend": (1, 2), "head_channels": 16, "classes": 4,
    "scaled": True, "resblock_updown": True,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "imagenet64-t4": {
        "channels": 192, "mult": (1, 2, 3, 4), "blocks": 3, "attend": (1, 2, 3), "head_channels": 64, "classes": 1000,
        "scaled": True, "resblock_updown": True,
    },
    "lsun-bedroom-t4": {
        "channels": 256, "mult": (1, 1, 2, 2, 4, 4), "blocks": 2, "attend": (3, 4, 5), "head_channels": 64,
        "classes": None, "scaled": False, "resblock_updown": True,
    },
}  # fmt: skip
"""What scripts/launch.sh of that repository says of edm_imagenet64_ema.pt and edm_bedroom256_ema.pt."""


def made(**changes: Any) -> UNetModel:
    """A network with random numbers everywhere, also where training starts at zero or one."""
    torch.manual_seed(0)
    net = UNetModel(**(SMALL | changes)).eval().requires_grad_(False)
    for name, weight in net.named_parameters():
        fan = weight[0].numel() if weight.dim() > 1 else 100
        nn.init.normal_(weight, mean=float(weight.dim() == 1 and name.endswith("weight")), std=fan**-0.5)
    return net


def write(net: UNetModel, folder: Path, **changes: Any) -> Path:
    torch.save(net.state_dict() | changes, folder / "edm.pt")
    return folder / "edm.pt"


def x_and_levels(size: int = 8) -> tuple[Tensor, Tensor]:
    sigma = torch.tensor([0.002, 0.5, 80.0])
    noise = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    return noise * (1 + sigma.view(3, 1, 1, 1)), sigma


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"classes": None},
        {"classes": None, "scaled": False},
        {"resblock_updown": False},
        {"resblock_updown": False, "scaled": False, "attend": (0,), "mult": (1, 1)},
        {"attend": (), "head_channels": 64},
        {"attend": (0, 2), "head_channels": 32, "blocks": 2},
        {"mult": (1,), "attend": (0,), "blocks": 2},
    ],
    ids=str,
)
def test_the_numbers_are_those_of_their_code(changes: dict[str, Any], tmp_path: Path) -> None:
    net, (x, sigma) = made(**changes), x_and_levels()
    heads = (SMALL | changes)["head_channels"]
    denoiser = DenoiserUNet.from_consistency_models(write(net, tmp_path), size=8, head_channels=heads)
    denoiser.requires_grad_(False).eval()
    y = None if denoiser.classes is None else torch.tensor([3, 0, 1])
    times = 250 * sigma.log()
    told = (x, times) if y is None else (x, times, y)
    out, wanted = denoiser.net(*told).sample, net(*told)
    assert float(wanted.std()) > 0.1, "the networks say something"
    assert torch.allclose(out, wanted, atol=1e-5)
    clean = edm_denoised(net, x, sigma, y)
    assert torch.allclose(denoiser(x, 1.0, sigma, y), clean, atol=1e-5)
    alpha = (1 + sigma**2).rsqrt()
    scaled = denoiser(x * alpha.view(-1, 1, 1, 1), alpha, sigma * alpha, y)
    assert torch.allclose(scaled, clean, atol=1e-4), "at any alpha and s of that ratio"


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    x, sigma = x_and_levels()
    denoiser = DenoiserUNet.from_consistency_models(write(made(), tmp_path), size=8, head_channels=16)
    loaded = DenoiserUNet.load(denoiser.save(tmp_path / "unet.safetensors"))
    assert loaded.preconditioning == "edm-log" and loaded.classes == 4 and loaded.scale == 0.5
    assert torch.equal(loaded(x, 1.0, sigma, 2), denoiser(x, 1.0, sigma, 2))


def test_times_are_logarithms() -> None:
    denoiser = DenoiserUNet((3, 8, 8), 0.5, channels=(8, 8), preconditioning="edm-log")
    times = denoiser.times(torch.tensor([0.0, 0.002, 1.0, 80.0]))
    assert torch.isfinite(times).all() and times[0] < -20_000
    assert torch.allclose(times[1:], torch.tensor([-1553.652, 0.0, 1095.507]), atol=1e-2)


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    net = made()
    file = write(net.half(), tmp_path)
    denoiser = DenoiserUNet.from_consistency_models(file, size=8, head_channels=16)
    assert {weight.dtype for weight in denoiser.parameters()} == {torch.float32}
    assert torch.equal(denoiser.net.conv_in.weight, net.input_blocks[0][0].weight.float())


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_preset_has_the_published_network(name: str) -> None:
    """What the shapes of a file tell, image size included, is what the preset counts and plays with."""
    with torch.device("meta"):
        state = UNetModel(**PUBLISHED[name]).state_dict()
        config, _ = network_settings(state)
        preset = PAPER_PRESETS[name]
        backbone = preset.make_backbone()
    assert config == {**config, **preset.backbone} and preset.preconditioning == "edm-log"
    assert sum(p.numel() for p in backbone.parameters()) == sum(tensor.numel() for tensor in state.values())
    assert (config["in_channels"], config["sample_size"], config["sample_size"]) == preset.event_shape


@pytest.mark.slow
def test_a_task_starts_from_a_file(tmp_path: Path) -> None:
    """With 64 channels per head and attention from 32 x 32 on, as the published ones have."""
    net = made(mult=(2, 2), channels=32, attend=(1,), head_channels=64)
    with pytest.raises(CheckpointError, match="as many channels as its time"):
        DenoiserUNet.from_consistency_models(write(net, tmp_path))
    file = write(made(mult=(1, 2), attend=(1,), head_channels=64), tmp_path)
    rows = torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4) % 2
    target = ImageSet(rows[:4], rows[4:], train_labels=labels, test_labels=labels)
    task = make_task(target, denoiser=str(file), label=1, horizon=2)
    assert task.mdp.base.denoiser.preconditioning == "edm-log"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"is for images \(3, 64, 64\), and target .* has \(3, 8, 8\)"):
        make_task(ImageSet(rows[:4, :, :8, :8], rows[4:, :, :8, :8]), denoiser=str(file))


# Files that are refused -----------------------------------------------------------------------------------------------


class Code:
    """Unpickled, it would write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.file, "run"))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    for content in ({"out.0.weight": Code(tmp_path / "trace")}, Code(tmp_path / "trace")):
        torch.save(content, tmp_path / "code.pt")
        with pytest.raises(CheckpointError, match="does not hold tensors alone"):
            DenoiserUNet.from_consistency_models(tmp_path / "code.pt")
    (tmp_path / "edm-cifar10-32x32-uncond-vp.pkl").write_bytes(pickle.dumps({"ema": Code(tmp_path / "trace")}))
    with pytest.raises(CheckpointError, match="is no file of"):
        DenoiserUNet.from_consistency_models(tmp_path / "edm-cifar10-32x32-uncond-vp.pkl")
    assert not (tmp_path / "trace").exists()


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at path .*none.pt"):
        DenoiserUNet.from_consistency_models(tmp_path / "none.pt")
    file = write(made(), tmp_path)
    whole = file.read_bytes()
    for content, text in (
        (b"nothing", "no file of torch.save"),
        (whole[: len(whole) // 2], "no file of torch.save"),
        (whole[:200] + bytes(500) + whole[700:], "damaged"),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=text):
            DenoiserUNet.from_consistency_models(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "no tensors")
    with pytest.raises(CheckpointError, match="does not hold tensors alone, or is damaged"):
        DenoiserUNet.from_consistency_models(file)
    for other in ({}, [torch.zeros(1)], {"step": 3}, {"index": torch.arange(3)}):
        torch.save(other, file)
        with pytest.raises(CheckpointError, match="must hold tensors of real numbers by name"):
            DenoiserUNet.from_consistency_models(file)


QKV = "middle_block.1.qkv.weight"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"out.2.bias": None}, "has no tensor 'out.2.bias'"),
        ({"input_blocks.0.0.weight": None}, "has no tensor 'input_blocks.0.0.weight'"),
        ({"input_blocks.2.0.emb_layers.1.weight": None}, "has no tensor 'input_blocks.2.0.emb_layers.1.weight'"),
        ({"input_blocks.5.0.out_layers.3.bias": None}, "has no tensor 'input_blocks.5.0.out_layers.3.bias'"),
        ({"extra.weight": torch.zeros(1), "extra.bias": torch.zeros(1)}, "too many: extra.bias, extra.weight.$"),
        ({"input_blocks.9.0.weight": torch.zeros(1)}, "not those of a UNetModel"),
        ({"output_blocks.5.0.in_layers.2.weight": torch.zeros(3, 3)}, r"must have shape \[32, 64, 3, 3\].* \[3, 3\]"),
        ({QKV: torch.zeros(192, 64, 1)}, r"must have shape \[192, 64, 1, 1\], and has \[192, 64, 1\]"),
        ({"time_embed.0.weight": torch.zeros(())}, "'time_embed.0.weight' must have two dimensions or more"),
        ({"input_blocks.0.0.weight": torch.zeros(5)}, "must have two dimensions or more"),
        ({"out.2.weight": torch.zeros(6, 32, 3, 3)}, "also predicts variances"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_do_not_fit_are_named(change: dict[str, Tensor | None], text: str, tmp_path: Path) -> None:
    state = {key: value for key, value in (made().state_dict() | change).items() if value is not None}
    torch.save(state, tmp_path / "edm.pt")
    with pytest.raises(CheckpointError, match=text):
        DenoiserUNet.from_consistency_models(tmp_path / "edm.pt", size=8, head_channels=16)


@pytest.mark.parametrize(
    ("changes", "given", "error", "text"),
    [
        ({}, {"head_channels": 24}, ValueError, r"head_channels must divide .*\[64, 64, 64\], got 24"),
        ({}, {"head_channels": 0}, ValueError, "head_channels must be >= 1"),
        ({"attend": (), "head_channels": 64}, {}, ValueError, "size must be given"),
        ({}, {"size": 6, "head_channels": 16}, ValueError, "size must be a multiple of 4 for this network, got 6"),
        ({}, {"size": 8.0, "head_channels": 16}, TypeError, "size must be an integer"),
    ],
)
def test_what_shapes_do_not_tell_is_checked(
    changes: dict[str, Any], given: dict[str, Any], error: type[Exception], text: str, tmp_path: Path
) -> None:
    file = write(made(**changes), tmp_path)
    with pytest.raises(error, match=text):
        DenoiserUNet.from_consistency_models(file, **given)


def test_the_size_is_told_by_the_attention(tmp_path: Path) -> None:
    for attend, size in (((1, 2), 64), ((0,), 32), ((2,), 128)):
        file = write(made(attend=attend, head_channels=32), tmp_path)
        assert DenoiserUNet.from_consistency_models(file, head_channels=32).net.config.sample_size == size
