"""Images that an energy of digits is asked to tell from digits: noise, changed digits, printed characters."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import torch
from matplotlib import get_data_path
from torch import Tensor

from dxmi_rl.utils.checks import require

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "STIXGeneral", "STIXGeneralBol",
)  # fmt: skip
"""Files that come with matplotlib."""
LETTERS = "".join(letter for letter in string.ascii_uppercase if letter not in "BIOSZ")
"""Capitals that look like no digit."""


def printed(text: str) -> Tensor:
    """Characters in all fonts, white on black, as the digits are: ``[len(FONTS) * len(text), 1, 8, 8]`` in [-1, 1]."""
    image, draw, font = (require(f"PIL.{name}", "images") for name in ("Image", "ImageDraw", "ImageFont"))
    found = list[Tensor]()
    for name in FONTS:
        type_ = font.truetype(str(Path(get_data_path(), "fonts", "ttf", f"{name}.ttf")), 96)
        for letter in text:
            page = image.new("L", (192, 192))
            draw.Draw(page).text((48, 24), letter, fill=255, font=type_)
            glyph = page.crop(page.getbbox())
            height, width = 8, max(1, min(8, round(8 * glyph.width / glyph.height)))
            small = torch.from_numpy(np.array(glyph.resize((width, height), image.Resampling.BOX), dtype=np.float32))
            left = (8 - width) // 2
            whole = torch.nn.functional.pad(small, (left, 8 - width - left))
            found.append((whole / 255 * 2 - 1)[None])
    return torch.stack(found)


def of_digits(data: Tensor) -> dict[str, Tensor]:
    """What is no digit, or no digit as these are: as many images as ``data``, or all printed ones."""
    generator = torch.Generator().manual_seed(0)
    shifted = torch.full_like(data, -1.0)
    shifted[..., 2:] = data[..., :-2]
    orders = torch.rand(len(data), 64, generator=generator).argsort(1)
    return {
        "noise": 2 * torch.rand(data.shape, generator=generator) - 1,
        "inverted": -data,
        "shuffled": data.flatten(1).gather(1, orders).view_as(data),
        "shifted": shifted,
        "letters": printed(LETTERS),
        "printed digits": printed(string.digits),
    }
