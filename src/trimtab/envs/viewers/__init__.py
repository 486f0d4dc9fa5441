"""One small set of shapes drawn as SVG, pixels, terminal blocks, Matplotlib or an animation."""

from __future__ import annotations

from typing import Any

from trimtab.envs.viewers.animation import animate_pictures as animate_pictures
from trimtab.envs.viewers.pixels import to_pixels as to_pixels
from trimtab.envs.viewers.scene import Circle as Circle
from trimtab.envs.viewers.scene import Line as Line
from trimtab.envs.viewers.scene import Picture as Picture
from trimtab.envs.viewers.scene import Polygon as Polygon
from trimtab.envs.viewers.scene import Rectangle as Rectangle
from trimtab.envs.viewers.scene import Text as Text
from trimtab.envs.viewers.scene import mosaic as mosaic
from trimtab.envs.viewers.svg import to_svg as to_svg
from trimtab.envs.viewers.terminal import to_terminal as to_terminal
from trimtab.errors import unknown_name


def render_picture(picture: Picture, mode: str) -> Any:
    """Draw a picture: ``rgb_array``, ``svg``, ``ansi`` or ``matplotlib``.

    Raises:
        UnknownNameError: there is no such mode.
    """
    if mode == "rgb_array":
        return to_pixels(picture)
    if mode == "svg":
        return to_svg(picture)
    if mode == "ansi":
        return to_terminal(picture)
    if mode == "matplotlib":
        from trimtab.envs.viewers.matplotlib import to_figure

        return to_figure(picture)
    raise unknown_name("render mode", mode, ("rgb_array", "svg", "ansi", "matplotlib"))
