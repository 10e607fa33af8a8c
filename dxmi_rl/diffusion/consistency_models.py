"""Files of github.com/openai/consistency_models, such as its EDM networks, as networks of diffusers.

Such a file is the state dict of a UNetModel: names and tensors, and no settings. These follow from the shapes.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dxmi_rl.utils.checks import CheckpointError, check_integer, require
from dxmi_rl.utils.storage import JSON

GROUPS = 32
"""Groups of every norm."""
FINEST = 32
"""The published networks attend at this height and width, and at all that are smaller."""
RESIDUAL = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
"""Parts of a residual block in diffusers, and in the file."""
ATTENTION = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}
"""Parts of an attention block. The file has q, k and v as one, in this order, each with all heads."""


def read_network(
    path: str | os.PathLike[str], *, size: int | None = None, head_channels: int = 64
) -> tuple[JSON, dict[str, Tensor]]:
    """Settings of diffusers' UNet2DModel, and its weights in 32 bits; arguments and errors as
    ``DenoiserUNet.from_consistency_models``.
    """  # fmt: skip
    state = read_state_dict(path)
    try:
        config, stages = network_settings(state, size=size, head_channels=head_channels)
        with torch.device("meta"):
            wanted = require("diffusers", "images").UNet2DModel.from_config(config).state_dict()
        return config, _converted(state, wanted, stages)
    except CheckpointError as error:
        raise CheckpointError(f"{str(path)!r} holds no network that can be used: {error}") from error


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file of torch.save, by name. Code that it may hold is not run.

    Raises FileNotFoundError, and CheckpointError for a file that is not of a zip's format, is damaged, or holds
    anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at path {str(path)!r}.")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{str(path)!r} is no file of torch.save, which is a zip file: damaged or foreign.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, ValueError, LookupError, TypeError, AttributeError, EOFError,
            pickle.UnpicklingError) as error:  # fmt: skip
        raise CheckpointError(
            f"{str(path)!r} does not hold tensors alone, or is damaged, and was not opened further: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    tensors = dict(found) if isinstance(found, Mapping) else {}
    if not tensors or not all(isinstance(value, Tensor) and value.is_floating_point() for value in tensors.values()):
        raise CheckpointError(f"{str(path)!r} must hold tensors of real numbers by name, and holds something else.")
    return tensors


def network_settings(
    state: Mapping[str, Tensor], *, size: int | None = None, head_channels: int = 64
) -> tuple[JSON, list[bool]]:
    """Settings of UNet2DModel that follow from names and shapes, and which stages attend.

    Raises CheckpointError for tensors of another kind of network.
    """
    blocks = _count(state, "output_blocks")
    rising = sum(_sampler(state, f"output_blocks.{index}") is not None for index in range(blocks))
    stages, per_stage = rising + 1, blocks // (rising + 1)
    if per_stage < 2 or blocks % stages or _count(state, "input_blocks") != blocks:
        raise CheckpointError("its blocks are not those of a UNetModel.")
    firsts = [f"input_blocks.{1 + stage * per_stage}" for stage in range(stages)]
    widths = [_shape(state, f"{first}.0.in_layers.2.weight")[0] for first in firsts]
    attends = [f"{first}.1.qkv.weight" in state for first in firsts]
    base, colours = _shape(state, "input_blocks.0.0.weight")[:2]
    told = _shape(state, "emb_layers.1.weight", f"{firsts[0]}.0.")[0]
    resnet = f"input_blocks.{per_stage}.0.in_layers.2.weight" in state
    classes = _shape(state, "label_emb.weight")[0] if "label_emb.weight" in state else None
    if (made := _shape(state, "out.2.weight")[0]) != colours:
        raise CheckpointError(f"it must give as many channels as it takes, {colours}, and gives {made}; a network that "
                              "also predicts variances is none of EDM.")  # fmt: skip
    if _shape(state, "time_embed.0.weight")[1] != base or widths[0] != base:
        raise CheckpointError(f"its first stage must have as many channels as its time, and {base} in all.")
    if any(width % GROUPS for width in widths):
        raise CheckpointError(f"channels must be multiples of {GROUPS}, and are {widths}.")
    heads = check_integer("head_channels", head_channels)
    attending = [width for width, attend in zip(widths, attends, strict=True) if attend]
    attending.append(widths[-1])  # the middle attends, too
    if unfit := [width for width in attending if width % heads]:
        raise ValueError(f"head_channels must divide the channels of stages that attend, {unfit}, got {heads}.")
    plain = "Resnet{}sampleBlock2D" if resnet else "{}Block2D"
    kinds = ["Attn{}Block2D" if attend else plain for attend in attends]
    return {
        "sample_size": _size(size, attends),
        "in_channels": colours,
        "out_channels": colours,
        "layers_per_block": per_stage - 1,
        "block_out_channels": widths,
        "down_block_types": [kind.format("Down") for kind in kinds],
        "up_block_types": [kind.format("Up") for kind in reversed(kinds)],
        "downsample_type": "resnet" if resnet else "conv",
        "upsample_type": "resnet" if resnet else "conv",
        "attention_head_dim": heads,
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,
        "resnet_time_scale_shift": "scale_shift" if told == 2 * widths[0] else "default",
        "num_class_embeds": classes,
    }, attends


def _size(size: int | None, attends: list[bool]) -> int:
    """Height and width of images, given or as the published networks' attention tells them."""
    if size is None:
        if True not in attends:
            raise ValueError("size must be given for a network whose stages do not attend, got None.")
        return FINEST << attends.index(True)
    side, smallest = check_integer("size", size), 1 << len(attends) - 1
    if side % smallest:
        raise ValueError(f"size must be a multiple of {smallest} for this network, got {side}.")
    return side


def _count(state: Mapping[str, Tensor], kind: str) -> int:
    """How many blocks of this kind there are; 0 where their numbers have gaps."""
    found = {key.split(".")[1] for key in state if key.startswith(f"{kind}.")}
    return len(found) if found == {str(index) for index in range(len(found))} else 0


def _sampler(state: Mapping[str, Tensor], block: str) -> int | None:
    """Which layer of an output block doubles height and width; None: it has none."""
    return next(
        (layer for layer in (1, 2) for part in ("in_layers.0.weight", "conv.weight")
         if f"{block}.{layer}.{part}" in state), None,
    )  # fmt: skip


def _shape(state: Mapping[str, Tensor], name: str, before: str = "") -> tuple[int, ...]:
    if (name := before + name) not in state:
        raise CheckpointError(f"it has no tensor {name!r}.")
    if len(shape := tuple(state[name].shape)) < 2:
        raise CheckpointError(f"its tensor {name!r} must have two dimensions or more, and has shape {list(shape)}.")
    return shape


def _places(stages: list[bool], per_stage: int) -> dict[str, str]:
    """Where the blocks of diffusers are in the file."""
    places = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "class_embedding": "label_emb", "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }  # fmt: skip
    for stage in range(len(stages)):
        for down, old, new in ((True, "input_blocks", "down_blocks"), (False, "output_blocks", "up_blocks")):
            first = stage * per_stage + down
            for layer in range(per_stage):
                places[f"{new}.{stage}.resnets.{layer}"] = f"{old}.{first + layer}.0"
                places[f"{new}.{stage}.attentions.{layer}"] = f"{old}.{first + layer}.1"
        places[f"down_blocks.{stage}.downsamplers.0"] = f"input_blocks.{(stage + 1) * per_stage}.0"
        after = 2 if stages[-1 - stage] else 1
        places[f"up_blocks.{stage}.upsamplers.0"] = f"output_blocks.{(stage + 1) * per_stage - 1}.{after}"
    return places


def _converted(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], stages: list[bool]
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors under diffusers' names. Raises CheckpointError for what is missing, left over or of other shapes."""
    places = _places(stages, _count(state, "output_blocks") // len(stages))
    found, used = {}, set()
    for name, like in wanted.items():
        place, part, kind = _place(name, places)
        old = f"{place}{part}.{kind}"
        used.add(old)
        if old not in state:
            raise CheckpointError(f"it has no tensor {old!r}.")
        tensor, shape = state[old], tuple(like.shape)
        if ".attentions." in name and part != ".norm":
            shape = (3 * shape[0] if part == ".qkv" else shape[0], *shape[1:], *[1] * (2 * (kind == "weight")))
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"its tensor {old!r} must have shape {list(shape)}, and has {list(tensor.shape)}.")
        if part == ".qkv":
            tensor = tensor.chunk(3)["qkv".index(name.split(".")[-2][-1])]
        found[name] = tensor.reshape(like.shape).float()
    if over := sorted(set(state) - used):
        raise CheckpointError(f"it has tensors too many: {', '.join(over[:3])}{', ...' if over[3:] else ''}.")
    return found


def _place(name: str, places: Mapping[str, str]) -> tuple[str, str, str]:
    """Block, part and kind (weight or bias) in the file of a tensor of diffusers."""
    start, kind = name.rsplit(".", 1)
    if start in places:
        return places[start], "", kind
    block = next(block for block in places if start.startswith(f"{block}."))
    part = start[len(block) + 1 :]
    if part == "conv":  # of a sampler without a residual block
        return places[block], ".op" if "downsamplers" in block else ".conv", kind
    return places[block], f".{(ATTENTION if '.attentions.' in block else RESIDUAL)[part]}", kind
