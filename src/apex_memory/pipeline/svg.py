"""The text of a drawing (SVG 2): texts, titles, descriptions, and pages inside it, in the order of the file.

Programs that draw diagrams put labels into a page (`foreignObject`), beside a shortened text for other readers (`switch`).
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.parsers import expat

from apex_memory.errors import Rejected

_SHOWN = frozenset({"text", "title", "desc", "foreignObject"})
_NEVER_SHOWN = frozenset({"script", "style", "template"})
_OWN_LINE = frozenset(
    {"address", "article", "blockquote", "br", "dd", "div", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li",
     "ol", "p", "pre", "section", "table", "tr", "ul"}
)  # fmt: skip
_CELLS = frozenset({"td", "th"})
_MAX_TITLE = 1_000  # characters
_MOVES = frozenset({"y", "dy"})


@dataclass(frozen=True, slots=True)
class Drawing:
    """The text of a drawing, a line each, its title, and how many characters beyond the limit are left out."""

    text: str
    title: str
    left_out: int


def read_svg(page: str, *, most_characters: int) -> Drawing:
    """Return the text of a drawing. Raises `Rejected` for one that is no XML.

    Takes time linear in its size. Expat stops at entities that grow beyond 100 times (CVE-2013-0340), and files outside are not read.
    """
    reader = _SvgReader(most_characters)
    parser = expat.ParserCreate("utf-8", "}")
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.add
    try:
        parser.Parse(page.encode("utf-8", "replace"), True)
    except expat.ExpatError as error:
        raise Rejected(
            f"the drawing cannot be read as SVG ({expat.ErrorString(error.code)}, line {error.lineno})",
            remedy="see that it opens in a browser",
        ) from None
    lines = (" ".join(line.split()) for line in "".join(reader.pieces).split("\n"))
    return Drawing("\n".join(filter(None, lines)), " ".join(reader.title.split()), reader.left_out)


class _SvgReader:
    """Collects the characters inside the elements that a drawing shows, or shows when it is pointed at."""

    def __init__(self, most_characters: int) -> None:
        self.pieces: list[str] = []
        self.title = ""
        self.left_out = 0
        self._is_title = False
        self._left = most_characters
        self._open: list[str] = []
        self._shown: list[int] = []
        self._decided: set[int] = set()
        self._hidden = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        local = name.rpartition("}")[2]
        parent = len(self._open)
        self._open.append(local)
        depth = len(self._open)
        if self._hidden:
            return
        if local in _NEVER_SHOWN or parent in self._decided:
            self._hidden = depth
        elif local in _SHOWN:
            self._shown.append(depth)
            self.pieces.append("\n")
        elif self._shown:
            if local in _OWN_LINE or not _MOVES.isdisjoint(attributes):  # a line of a text
                self.pieces.append("\n")
            elif local in _CELLS:
                self.pieces.append(" ")
        # Of the children of a `switch` the first that suits is shown. One for a language suits some readers only.
        if parent and self._open[-2] == "switch" and "systemLanguage" not in attributes:
            self._decided.add(parent)
        self._is_title = local == "title" and depth == 2

    def end(self, name: str) -> None:
        depth = len(self._open)
        self._decided.discard(depth)
        if self._hidden == depth:
            self._hidden = 0
        elif self._shown and not self._hidden:
            if self._shown[-1] == depth:
                self._shown.pop()
                self.pieces.append("\n")
            elif self._open[-1] in _OWN_LINE:
                self.pieces.append("\n")
        self._open.pop()
        self._is_title = False

    def add(self, text: str) -> None:
        if not self._shown or self._hidden:
            return
        # Line ends in a text are blanks.
        piece = text[: self._left].replace("\n", " ")
        self._left -= len(piece)
        self.left_out += len(text) - len(piece)
        if piece:
            self.pieces.append(piece)
        if self._is_title:
            self.title = (self.title + piece)[:_MAX_TITLE]
