"""Pictures as coloured half blocks for a terminal."""

from __future__ import annotations

import os

from trimtab.envs.viewers.pixels import to_pixels
from trimtab.envs.viewers.scene import Picture

_SHADES = " .:-=+*#%@"


def to_terminal(picture: Picture, columns: int = 60) -> str:
    """Text of ``columns`` characters a line; plain characters when ``NO_COLOR`` is set."""
    pixels = to_pixels(picture, columns)
    if pixels.shape[0] % 2:
        pixels = pixels[:-1]
    lines = [picture.title] if picture.title else []
    if os.environ.get("NO_COLOR"):
        light = pixels.reshape(-1, 2, pixels.shape[1], 3).mean(axis=(1, 3)) / 256
        lines += ["".join(_SHADES[int((1 - cell) * len(_SHADES))] for cell in row) for row in light]
        return "\n".join(lines)
    for upper, lower in zip(pixels[::2], pixels[1::2]):
        cells = (
            "\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m▀".format(*map(int, top), *map(int, bottom))
            for top, bottom in zip(upper, lower)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)
