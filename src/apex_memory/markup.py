"""HTML to plain text, and HTML and Markdown without their images. All functions take linear time: whoever sends a mail chooses its content."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

_HIDDEN = re.compile(r"<(?:(?P<comment>!--)|(?P<tag>script|style|head|title)\b)", re.IGNORECASE)
_BREAK = re.compile(
    r"<(?:br|hr|/?(?:p|div|tr|li|ul|ol|dl|dt|dd|table|caption|blockquote|pre|h[1-6]|section|article|aside|nav|header|footer"
    r"|main|address|form|fieldset|legend|figure|figcaption|details|summary|option|center))\b[^<>]*>",
    re.IGNORECASE,
)
_CELL = re.compile(r"</?t[dh]\b[^<>]*>", re.IGNORECASE)
_TITLE = re.compile(r"<title(?:\s[^<>]{0,200})?>([^<]{1,1000})</title", re.IGNORECASE)
_TITLE_WITHIN = 20_000  # characters
_TABLE_TAG = re.compile(r"<(/?)(table|thead|tbody|tfoot|tr|td|th)\b", re.IGNORECASE)
# What a start or end tag ends; those of cells end cells alone.
_CELLS = ("td", "th")
_SECTIONS = ("thead", "tbody", "tfoot")
_ENDED_BY = {
    "tr": (*_CELLS, "tr"),
    **dict.fromkeys(("table", *_SECTIONS), (*_CELLS, "tr", *_SECTIONS)),
}
_TAG = re.compile(r"</?[a-z!][^<>]*>", re.IGNORECASE)

# Elements that load something; `svg`, which converters turn into a data URI, and `picture`, of which they read only
# images; and links, which may hold a data URI.
_MEDIA = re.compile(
    r"<(?:(?P<image>img|image|input)|(?P<media>source|video|audio|embed|object|i?frame|track)|(?P<link>a|area)"
    r"|(?P<wrapper>/?(?:svg|picture)))(?=[\s/>])",
    re.IGNORECASE,
)
# Types of fields whose value a page shows.
_SHOWN_FIELDS = frozenset(
    ("", "text", "search", "email", "tel", "url", "number", "date", "time", "month", "week", "datetime-local")
)  # fmt: skip
_ATTRIBUTE = re.compile(
    r"[\s/]*+([^\s/>][^\s/>=]*+)(?:\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)'|([^\s>]*+)))?+"
)
_TAG_END = re.compile(r"[\s/]*+>?")

_MARKDOWN_IMAGE = re.compile(
    r"!\[((?:[^\[\]\\]|\\.|\[[^\[\]]*+\])*+)\]"
    r"\(\s*+(?:<[^<>\n]*+>|[^()\s<]*+(?:\([^()\s]*+\)[^()\s]*+)*+)"
    r"(?:\s++(?:\"[^\"]*+\"|'[^']*+'|\([^()]*+\)))?+\s*+\)",
    re.DOTALL,
)


def plain_text(markup: str) -> str:
    """Return the readable text of HTML."""
    kept: list[str] = []
    position = 0
    while hidden := _HIDDEN.search(markup, position):
        kept.append(markup[position : hidden.start()])
        closing = "-->" if hidden["comment"] else f"</{hidden['tag']}"
        end = re.compile(re.escape(closing), re.IGNORECASE).search(markup, hidden.end())
        position = end.end() if end else len(markup)
        if end and not hidden["comment"]:
            position = markup.find(">", position) + 1 or len(markup)
    text = re.sub(r"\s+", " ", "".join(kept) + markup[position:])
    text = _CELL.sub(" ", _BREAK.sub("\n", text))
    text = html.unescape(_TAG.sub("", text))
    rows = (re.sub(r"[^\S\n]+", " ", row).strip() for row in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(rows)).strip()


def title_of(page: str) -> str:
    """Return the title of an HTML page, which its body need not repeat; empty where its beginning has none."""
    title = _TITLE.search(page, 0, _TITLE_WITHIN)
    return " ".join(html.unescape(title[1]).split()) if title else ""


def with_cell_ends(page: str) -> str:
    """Return HTML whose tables have all end tags, which writers may leave out, and tags in lower case.

    The office reader loses cells, and what follows them, where an end tag is missing or in another case.
    """
    pieces: list[str] = []
    position = 0
    tables: list[list[str]] = []  # of each open table, its open section, row and cell
    for tag in _TABLE_TAG.finditer(page):
        name = tag[2].lower()
        pieces.append(page[position : tag.start()])
        position = tag.start(2) + len(name)
        if name == "table" and not tag[1]:
            tables.append([])
        opened = tables[-1] if tables and (name != "table" or tag[1]) else []
        ended = _ENDED_BY.get(name, _CELLS)
        while opened and opened[-1] in ended:
            element = opened.pop()
            if not (tag[1] and element == name):
                pieces.append(f"</{element}>")
        if name == "table" and tag[1]:
            del tables[-1:]
        elif name != "table" and not tag[1]:
            opened.append(name)
        pieces.append(f"<{tag[1]}{name}")
    return "".join(pieces) + page[position:]


def without_images(markup: str) -> str:
    """Return HTML in which each image is its alternative text, each field its value, and nothing else names a resource to load.

    Data URIs can be megabytes of base 64, and whoever shows the text with remote images reports to their server.
    Links keep their target unless it is a data URI.
    """
    return "".join(_without_images(markup))


def _without_images(markup: str) -> Iterator[str]:
    position = 0
    while tag := _MEDIA.search(markup, position):
        yield markup[position : tag.start()]
        attributes, position = _attributes(markup, tag.end())
        if tag["wrapper"]:
            yield "</span>" if tag["wrapper"].startswith("/") else "<span>"
        elif tag["image"]:
            shown = "alt"
            if tag["image"].lower() == "input":
                kind = attributes.get("type", "text").lower()
                if kind != "image":
                    shown = "value" if kind in _SHOWN_FIELDS else ""
            alternative = attributes.get(shown, "")
            yield f" {alternative.replace('<', '&lt;').replace('>', '&gt;')} "
        elif tag["link"]:
            is_data = attributes.get("href", "").lstrip().lower().startswith("data:")
            yield "<a>" if is_data else markup[tag.start() : position]
    yield markup[position:]


def _attributes(markup: str, position: int) -> tuple[dict[str, str], int]:
    """Return the attributes of a tag whose name ends at `position`, with lower-case names, and the tag's end.

    Quotes and missing ones are read as WHATWG's tokeniser does. The first of equal names counts.
    """
    attributes: dict[str, str] = {}
    while attribute := _ATTRIBUTE.match(markup, position):
        value = attribute[2] or attribute[3] or attribute[4] or ""
        attributes.setdefault(attribute[1].lower(), value)
        position = attribute.end()
    end = _TAG_END.match(markup, position)
    return attributes, end.end() if end else position


def without_image_links(markdown: str) -> str:
    """Return Markdown in which each image (`![text](address)`) is its text."""
    if "![" not in markdown:
        return markdown
    return _MARKDOWN_IMAGE.sub(lambda image: " ".join(image[1].split()), markdown)
