"""Drawing of the documentation's pictures: boxes, arrows and lines of text as an SVG that works in light and dark.

A picture brings its own background, and its colours follow the reader's system setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from textwrap import wrap

_STYLE = """
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: #1f2933; }
  .title { font-size: 14px; font-weight: 600; }
  .note { font-size: 12px; fill: #52606d; }
  .small { font-size: 11px; fill: #52606d; }
  .panel { fill: #fbfcfd; stroke: #d9e2ec; }
  .plain { fill: #ffffff; stroke: #9fb3c8; }
  .accent { fill: #e6f0ff; stroke: #3f7cd6; }
  .store { fill: #e8f7ef; stroke: #2f9e6b; }
  .band { fill: #fff6e0; stroke: #d69e2e; }
  .arrow { stroke: #52606d; fill: none; stroke-width: 1.6; }
  .dashed { stroke-dasharray: 4 4; stroke: #d69e2e; }
  .head { fill: #52606d; }
  .headband { fill: #d69e2e; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e9f0; }
    .note, .small { fill: #a9b7c6; }
    .panel { fill: #161b22; stroke: #30363d; }
    .plain { fill: #21262d; stroke: #57667a; }
    .accent { fill: #16304f; stroke: #5b9bf0; }
    .store { fill: #12372a; stroke: #46b683; }
    .band { fill: #3d3016; stroke: #d6a637; }
    .arrow { stroke: #a9b7c6; }
    .head { fill: #a9b7c6; }
    .dashed { stroke: #d6a637; }
    .headband { fill: #d6a637; }
  }
"""

_CORNER = 8  # radius of a box, px
_TITLE_LINE, _NOTE_LINE = 18, 15  # line heights, px


@dataclass(frozen=True, slots=True)
class Box:
    """A box at (x, y) with a bold title and lines of text under it. Sizes are in px; `kind` names a style class."""

    x: float
    y: float
    width: float
    height: float
    title: str
    lines: Sequence[str] = ()
    kind: str = "plain"

    @property
    def center(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height


@dataclass(slots=True)
class Picture:
    """An SVG of a fixed size that parts are added to, in the order in which they are drawn."""

    width: int
    height: int
    title: str
    _parts: list[str] = field(default_factory=list)

    def box(self, box: Box) -> Box:
        """Draw a box with its text centred in it; return it, so that arrows can start and end there."""
        self._parts.append(
            f'<rect class="{box.kind}" x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" '
            f'height="{box.height:g}" rx="{_CORNER}"/>'
        )
        middle, _ = box.center
        text_height = _TITLE_LINE + _NOTE_LINE * len(box.lines)
        y = box.y + (box.height - text_height) / 2 + 13
        self.text(middle, y, box.title, kind="title", anchor="middle")
        for line in box.lines:
            y += _NOTE_LINE
            self.text(middle, y + 2, line, kind="note", anchor="middle")
        return box

    def text(
        self, x: float, y: float, text: str, *, kind: str = "note", anchor: str = "start"
    ) -> None:
        """Draw one line of text; `y` is its baseline, `anchor` is `start`, `middle` or `end`."""
        self._parts.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        """Draw an arrow along the points, with its head at the last one."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        style, head = ("arrow dashed", "headband") if dashed else ("arrow", "head")
        self._parts.append(f'<polyline class="{style}" points="{path}" marker-end="url(#{head})"/>')

    def render(self) -> str:
        """Return the picture as the text of an SVG file."""
        markers = "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path class="{name}" d="M0,0 L8,4 L0,8 z"/></marker>'
            for name in ("head", "headband")
        )
        frame = (
            f'<rect class="panel" x="0.5" y="0.5" width="{self.width - 1}" height="{self.height - 1}" '
            f'rx="{_CORNER + 4}"/>'
        )
        body = "\n".join([frame, *self._parts])
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n"
            f"<defs>{markers}</defs>\n{body}\n</svg>\n"
        )


def wrapped(text: str, width: float, *, most: int, pixels_per_character: float = 6.1) -> list[str]:
    """Split text into at most `most` lines that fit `width` px; a cut text ends with an ellipsis."""
    columns = max(8, int(width / pixels_per_character))
    lines = wrap(text, columns)
    if len(lines) > most:
        lines = lines[:most]
        lines[-1] = lines[-1][: columns - 1].rstrip(" ,;:") + "…"
    return lines
