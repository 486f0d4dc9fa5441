"""Pictures as Matplotlib figures."""

from __future__ import annotations

from typing import Any

from trimtab.envs.viewers.scene import Circle, Line, Picture, Polygon, Rectangle
from trimtab.errors import require_extra


def to_figure(picture: Picture) -> Any:
    """A figure that is not registered with pyplot, so nothing has to be closed."""
    figures = require_extra("matplotlib.figure", "plot", "Drawing with Matplotlib")
    patches = require_extra("matplotlib.patches", "plot", "Drawing with Matplotlib")
    scale = 5 / max(picture.width, picture.height)
    figure = figures.Figure(figsize=(picture.width * scale, picture.height * scale + 0.4))
    axes = figure.add_subplot()
    axes.set(xlim=(0, picture.width), ylim=(picture.height, 0), aspect="equal")
    axes.set_title(picture.title)
    axes.set_axis_off()
    canvas = Rectangle(0, 0, picture.width, picture.height, picture.background)
    for order, shape in enumerate((canvas, *picture.shapes)):
        if isinstance(shape, Rectangle):
            corner = (shape.x, shape.y)
            patch = patches.Rectangle(corner, shape.width, shape.height, color=shape.fill, lw=0)
        elif isinstance(shape, Circle):
            patch = patches.Circle((shape.x, shape.y), shape.radius, color=shape.fill, lw=0)
        elif isinstance(shape, Polygon):
            patch = patches.Polygon(shape.points, color=shape.fill, lw=0)
        elif isinstance(shape, Line):
            xs, ys = zip(shape.start, shape.end)
            axes.plot(xs, ys, color=shape.color, lw=72 * shape.width * scale, zorder=order)
            continue
        else:
            size = 72 * shape.size * scale * 1.4
            style = {"ha": "center", "va": "center", "zorder": order}
            axes.text(shape.x, shape.y, shape.text, color=shape.color, fontsize=size, **style)
            continue
        patch.set_zorder(order)
        axes.add_patch(patch)
    return figure
