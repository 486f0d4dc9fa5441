"""Pictures as RGB arrays, drawn with NumPy so that no plotting library is needed."""

from __future__ import annotations

import math

import numpy as np

from trimtab.envs.viewers.scene import Circle, Line, Picture, Polygon, Rectangle, Text, rgb

# Rows of 3 x 5 glyphs, most significant bit left.
_GLYPHS = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717",
    "6": "74757", "7": "71122", "8": "75757", "9": "75717", "-": "00700", ".": "00002",
    "/": "11244", ":": "02020", "A": "25755", "B": "65656", "C": "34443", "D": "65556",
    "E": "74647", "F": "74644", "G": "34553", "H": "55755", "I": "72227", "J": "11152",
    "K": "55655", "L": "44447", "M": "57755", "N": "65555", "O": "25552", "P": "65644",
    "Q": "25563", "R": "65655", "S": "34216", "T": "72222", "U": "55557", "V": "55552",
    "W": "55775", "X": "55255", "Y": "55222", "Z": "71247",
}  # fmt: skip


def to_pixels(picture: Picture, size: int = 240) -> np.ndarray:
    """An array of shape ``(rows, columns, 3)``, uint8, whose longer side is ``size``."""
    scale = size / max(picture.width, picture.height)
    rows, columns = max(1, round(picture.height * scale)), max(1, round(picture.width * scale))
    image = np.empty((rows, columns, 3), np.uint8)
    image[:] = rgb(picture.background)
    for shape in picture.shapes:
        if isinstance(shape, Rectangle):
            _fill_rectangle(image, shape, scale)
        elif isinstance(shape, Circle):
            _fill_circle(image, shape, scale)
        elif isinstance(shape, Line):
            _draw_line(image, shape, scale)
        elif isinstance(shape, Polygon):
            _fill_polygon(image, shape, scale)
        else:
            _draw_text(image, shape, scale)
    return image


def _span(start: float, end: float, limit: int) -> tuple[int, int]:
    first = min(max(round(start), 0), limit)
    return first, min(max(round(end), first), limit)


def _fill_rectangle(image: np.ndarray, shape: Rectangle, scale: float) -> None:
    top, bottom = _span(shape.y * scale, (shape.y + shape.height) * scale, image.shape[0])
    left, right = _span(shape.x * scale, (shape.x + shape.width) * scale, image.shape[1])
    image[top:bottom, left:right] = rgb(shape.fill)


def _window(image: np.ndarray, box: tuple[float, float, float, float]) -> tuple:
    """The part of the image in a box of pixels, and the coordinates of its pixel centres."""
    left, right = _span(math.floor(box[0]), math.ceil(box[2]), image.shape[1])
    top, bottom = _span(math.floor(box[1]), math.ceil(box[3]), image.shape[0])
    y = np.arange(top, bottom)[:, None] + 0.5
    x = np.arange(left, right)[None, :] + 0.5
    return image[top:bottom, left:right], x, y


def _fill_circle(image: np.ndarray, shape: Circle, scale: float) -> None:
    x, y, radius = shape.x * scale, shape.y * scale, shape.radius * scale
    part, columns, rows = _window(image, (x - radius, y - radius, x + radius, y + radius))
    part[(columns - x) ** 2 + (rows - y) ** 2 <= radius * radius] = rgb(shape.fill)


def _draw_line(image: np.ndarray, shape: Line, scale: float) -> None:
    (x1, y1), (x2, y2) = ((x * scale, y * scale) for x, y in (shape.start, shape.end))
    half = max(shape.width * scale / 2, 0.6)
    box = (min(x1, x2) - half, min(y1, y2) - half, max(x1, x2) + half, max(y1, y2) + half)
    part, columns, rows = _window(image, box)
    length = (x2 - x1) ** 2 + (y2 - y1) ** 2
    along = ((columns - x1) * (x2 - x1) + (rows - y1) * (y2 - y1)) / max(length, 1e-9)
    along = np.clip(along, 0, 1)
    gap = (columns - x1 - along * (x2 - x1)) ** 2 + (rows - y1 - along * (y2 - y1)) ** 2
    part[gap <= half * half] = rgb(shape.color)


def _fill_polygon(image: np.ndarray, shape: Polygon, scale: float) -> None:
    points = np.array(shape.points) * scale
    box = (*points.min(axis=0), *points.max(axis=0))
    part, columns, rows = _window(image, box)
    inside = np.zeros(part.shape[:2], bool)
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0)):
        if y1 != y2:
            crosses = (y1 > rows) != (y2 > rows)
            inside ^= crosses & (columns < (x2 - x1) * (rows - y1) / (y2 - y1) + x1)
    part[inside] = rgb(shape.fill)


def _draw_text(image: np.ndarray, shape: Text, scale: float) -> None:
    dot = max(1, round(shape.size * scale / 5))
    text = shape.text.upper()
    left = shape.x * scale - dot * (4 * len(text) - 1) / 2
    top = shape.y * scale - dot * 2.5
    for number, character in enumerate(text):
        for row, bits in enumerate(_GLYPHS.get(character, "00000")):
            for column in range(3):
                if int(bits) >> (2 - column) & 1:
                    x, y = left + dot * (4 * number + column), top + dot * row
                    cell = Rectangle(x / scale, y / scale, dot / scale, dot / scale, shape.color)
                    _fill_rectangle(image, cell, scale)
