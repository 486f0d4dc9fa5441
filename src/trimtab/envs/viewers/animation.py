"""Sequences of pictures as HTML with a slider, as animated SVG, or as a GIF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab.envs.viewers.pixels import to_pixels
from trimtab.envs.viewers.scene import Picture
from trimtab.envs.viewers.svg import svg_body, to_svg
from trimtab.errors import InputError, require_extra
from trimtab.files import atomic_file

_PAGE = """<!doctype html>
<meta charset="utf-8"><title>Episode</title>
<style>body{font-family:sans-serif;text-align:center}.frame{display:none}.frame.on{display:block}
svg{margin:auto}</style>
<button id="play">pause</button> <input id="at" type="range" min="0" max="LAST" value="0">
<output id="number">0</output>
<div>FRAMES</div>
<script>
const frames=document.querySelectorAll(".frame"),at=document.getElementById("at"),
number=document.getElementById("number"),play=document.getElementById("play");
let running=true;
function show(i){frames.forEach((f,k)=>f.classList.toggle("on",k==i));at.value=i;number.value=i}
at.oninput=()=>{running=false;play.textContent="play";show(+at.value)};
play.onclick=()=>{running=!running;play.textContent=running?"pause":"play"};
setInterval(()=>{if(running)show((+at.value+1)%frames.length)},INTERVAL);show(0);
</script>
"""


def animate_pictures(
    pictures: Sequence[Picture], path: str | Path | None = None, interval_ms: int = 200
) -> str | Path:
    """Animate pictures.

    Args:
        pictures: the frames.
        path: where to write, ``.html``, ``.svg`` or ``.gif``; None returns HTML text.
        interval_ms: time a frame is shown.

    Raises:
        InputError: there are no frames, or the suffix is another one.
    """
    if not pictures:
        raise InputError("An animation needs at least one state.")
    if path is None:
        return _html(pictures, interval_ms)
    path = Path(path)
    if path.suffix == ".gif":
        images = require_extra("PIL.Image", "plot", "Writing a GIF")
        frames = [images.fromarray(to_pixels(picture)) for picture in pictures]
        with atomic_file(path) as temporary:
            frames[0].save(
                temporary,
                format="GIF",
                save_all=True,
                append_images=frames[1:],
                duration=interval_ms,
                loop=0,
            )
        return path
    if path.suffix not in (".html", ".svg"):
        raise InputError(f"{path.name} should end in .html, .svg or .gif.")
    text = _html if path.suffix == ".html" else _moving_svg
    with atomic_file(path) as temporary:
        temporary.write_text(text(pictures, interval_ms))
    return path


def _html(pictures: Sequence[Picture], interval_ms: int) -> str:
    frames = "".join(f'<div class="frame">{to_svg(picture)}</div>' for picture in pictures)
    page = _PAGE.replace("LAST", str(len(pictures) - 1)).replace("INTERVAL", str(interval_ms))
    return page.replace("FRAMES", frames)


def _moving_svg(pictures: Sequence[Picture], interval_ms: int) -> str:
    """Frames on top of each other, shown one at a time by declarative animation."""
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    scale = 360 / max(width, height)
    total = len(pictures) * interval_ms / 1000
    groups = []
    for number, picture in enumerate(pictures):
        start, end = number / len(pictures), (number + 1) / len(pictures)
        times = f"0;{start:.5f};{end:.5f}" if number else f"0;{end:.5f}"
        values = "hidden;visible;hidden" if number else "visible;hidden"
        shown = (
            f'<animate attributeName="visibility" values="{values}" keyTimes="{times}" '
            f'calcMode="discrete" dur="{total}s" repeatCount="indefinite"/>'
        )
        first = "visible" if number == 0 else "hidden"
        groups.append(f'<g visibility="{first}">{svg_body(picture, scale)}{shown}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * scale:.1f} '
        f'{height * scale:.1f}">{"".join(groups)}</svg>'
    )
