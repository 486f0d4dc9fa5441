"""Pictures as SVG text."""

from __future__ import annotations

from xml.sax.saxutils import escape

from trimtab.envs.viewers.scene import Circle, Line, Picture, Polygon, Rectangle, Shape


def to_svg(picture: Picture, size: int = 360) -> str:
    """SVG text whose longer side has ``size`` pixels."""
    scale = size / max(picture.width, picture.height)
    top = 22 if picture.title else 0
    width, height = picture.width * scale, picture.height * scale + top
    title = ""
    if picture.title:
        title = (
            f'<text x="{width / 2:.1f}" y="15" text-anchor="middle" font-size="13" '
            f'font-family="sans-serif">{escape(picture.title)}</text>'
        )
    body = svg_body(picture, scale)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.1f} {height:.1f}" '
        f'width="{width:.0f}" height="{height:.0f}">{title}'
        f'<g transform="translate(0 {top})">{body}</g></svg>'
    )


def svg_body(picture: Picture, scale: float) -> str:
    """The canvas and its shapes, without the enclosing element."""
    canvas = Rectangle(0, 0, picture.width, picture.height, picture.background)
    return "".join(_element(shape, scale) for shape in (canvas, *picture.shapes))


def _element(shape: Shape, scale: float) -> str:
    def number(value: float) -> str:
        return f"{value * scale:.2f}".rstrip("0").rstrip(".")

    if isinstance(shape, Rectangle):
        return (
            f'<rect x="{number(shape.x)}" y="{number(shape.y)}" width="{number(shape.width)}" '
            f'height="{number(shape.height)}" fill="{shape.fill}"/>'
        )
    if isinstance(shape, Circle):
        return (
            f'<circle cx="{number(shape.x)}" cy="{number(shape.y)}" r="{number(shape.radius)}" '
            f'fill="{shape.fill}"/>'
        )
    if isinstance(shape, Line):
        (x1, y1), (x2, y2) = shape.start, shape.end
        return (
            f'<line x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}" '
            f'stroke="{shape.color}" stroke-width="{number(shape.width)}"/>'
        )
    if isinstance(shape, Polygon):
        points = " ".join(f"{number(x)},{number(y)}" for x, y in shape.points)
        return f'<polygon points="{points}" fill="{shape.fill}"/>'
    return (
        f'<text x="{number(shape.x)}" y="{number(shape.y + shape.size / 2)}" '
        f'text-anchor="middle" font-family="sans-serif" font-size="{number(shape.size * 1.4)}" '
        f'fill="{shape.color}">{escape(shape.text)}</text>'
    )
