"""Office files as their program shows them: final text of tracked moves, lines, whole words, numbers under their formats.

The office reader drops tracked deletions, keeps the old place of moved text, joins lines at breaks, parts words of slides
where their format changes, leaves out headers, footers, notes, comments and shapes, and shows numbers without their formats.
So these parts are read or rewritten before it reads the file.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape, unescape

from apex_memory.pipeline.archives import open_package, read_member, replace_members
from apex_memory.pipeline.file_limits import EventBudget
from apex_memory.pipeline.number_formats import BUILT_IN, show_number

_MOVE_FROM = re.compile(rb"<((?:\w{1,40}:)?)moveFrom(?:\s[^<>]*)?>")
_BREAK_ELEMENT = re.compile(rb"<w:(br|cr)(?:\s[^<>]*)?(?:/>|></w:\1>)")
_BREAK = "\ufdd0"
"""Stands for a break while the office reader reads the file: Unicode leaves this character to programs."""
_MARGIN_PART = re.compile(r"word/(header|footer)\d{0,4}\.xml\Z")
_MARGIN_TEXT = re.compile(
    r"<[wa]:t(?:\s[^<>]*)?>(?P<text>[^<]*)</[wa]:t>|(?P<blank><w:tab\b)|(?P<hyphen><w:noBreakHyphen\b)"
    r"|(?P<end></[wa]:p>|<[wa]:(?:br|cr)\b)"
)
_SLIDE_PART = re.compile(r"ppt/slides/slide\d{1,5}\.xml\Z")
_NOTES_PART = re.compile(r"ppt/notesSlides/notesSlide\d{1,5}\.xml\Z")
_SLIDE_BREAK = re.compile(rb"<a:br(?:\s[^<>]*)?(?:/>|>.{0,3000}?</a:br>)", re.DOTALL)
# Between two runs of a paragraph: end of a text, properties of the next.
_RUN_BORDER = re.compile(
    rb"</a:t>\s*</a:r>\s*<a:r>\s*(?:<a:rPr(?:\s[^<>]*)?(?:/>|>.{0,3000}?</a:rPr>)\s*)?<a:t>",
    re.DOTALL,
)
_LINE_BREAK = re.compile(rb"<text:line-break\s*(?:/>|></text:line-break>)")
_SHOWN_CELL = re.compile(rb"<table:table-cell\s[^<>]*>(?=\s*<text:p\b)")
_CELL_VALUE = re.compile(
    rb'\soffice:(?:value-type|value|currency|(?:date|time|boolean)-value)="[^"]*"'
)
# Blanks beyond the first are an element, and so is a single one between two formats with some programs.
_BLANKS = re.compile(rb"(?<! )<text:s(?:\s[^<>]*)?(?:/>|></text:s>)")
# An escaped character of RTF: `\~` is a no-break blank, `\_` a no-break hyphen, others are themselves.
_RTF_SIGN = re.compile(rb"\\([\\{}~_])")
# A row that stands for the many empty ones between two others. The office reader would write each, or none of the sheet.
_EMPTY_ROWS = re.compile(
    rb"<table:table-row\s[^<>]{0,500}number-rows-repeated=[^<>]*>\s*(?:<table:(?:covered-)?table-cell(?:\s[^<>]*)?/>\s*)*+</table:table-row>"
)
_NOTE = (
    re.compile(rb"<office:annotation(?:\s[^<>]*)?(?<!/)>"),
    re.compile(rb"</office:annotation>"),
)
_OPEN_MARGIN = (
    re.compile(rb"<style:(header|footer)(?:-left|-first)?(?:\s[^<>]*)?(?<!/)>"),
    re.compile(rb"</style:(?:header|footer)(?:-left|-first)?>"),
)
_PARAGRAPH = (re.compile(rb"<text:[ph](?:\s[^<>]*)?(?<!/)>"), re.compile(rb"</text:[ph]>"))
_ELEMENT = re.compile(rb"<[^<>]*>")
# The margins that LibreOffice gives every file have little else: `Page 1`, `???`.
_FIELD = re.compile(
    rb"<text:(?:sheet-name|page-number|page-count|title|date|time|file-name)\b[^<>]*>[^<]*</text:[\w-]+>"
)
_COMMENT_PART = re.compile(
    r"(?:xl/(?:comments|threadedComments|drawings)|ppt/comments|(?:word|ppt|xl)/diagrams)[\w/-]{0,80}\.xml\Z"
)
"""Parts with comments, shapes of a sheet, and the words of a diagram (SmartArt)."""
_COMMENT_TEXT = re.compile(
    r"<(?:\w{1,40}:)?t(?:ext)?(?:\s[^<>]*)?>(?P<text>[^<]*)</"
    r"|(?P<end></(?:\w{1,40}:)?(?:comment|threadedComment|cm|p)>|<a:br\b)"
)
_THREADED = "[Threaded comment]"
"""Begins the note that Excel leaves for programs without threaded comments, beside the comment itself."""
_SHEET_MARGIN = re.compile(r"<(?:\w{1,40}:)?(?:odd|even|first)(?:Header|Footer)>([^<]{1,2000})</")
# Codes of formats, pictures and numbers of pages, and of left, centre and right.
_MARGIN_CODE = re.compile(r'&(?:"[^"]*"|K[0-9A-Fa-f+-]{6}|\d{1,3}|[A-Za-z&])')
_WORD_PART = re.compile(r"word/[\w-]{1,80}\.xml\Z")
_SHEET_PART = re.compile(r"xl/worksheets/[\w-]{1,80}\.xml\Z")
# A cell with a number: attributes, formula, value. Every part is bounded by the next `<`, so the time is linear.
_CELL = re.compile(
    r"<(?P<prefix>(?:\w{1,40}:)?)c(?P<attributes>\s[^<>]*)>\s*"
    r"(?:<(?P=prefix)f(?:\s[^<>]*)?(?:/>|>[^<]*</(?P=prefix)f>)\s*)?"
    r"<(?P=prefix)v>(?P<value>[^<]{1,40})</(?P=prefix)v>\s*</(?P=prefix)c>"
)
_STYLE_ATTRIBUTE = re.compile(r'\ss="(\d{1,6})"')
_TYPE_ATTRIBUTE = re.compile(r'\st="(\w{1,20})"')
_NUMBER_FORMAT = re.compile(r"<(?:\w{1,40}:)?numFmt\s([^<>]*)>")
_CELL_STYLES = re.compile(r"<(?:\w{1,40}:)?cellXfs\b[^<>]*>")
_CELL_STYLES_END = re.compile(r"</(?:\w{1,40}:)?cellXfs>")
_STYLE = re.compile(r"<(?:\w{1,40}:)?xf\s([^<>]*)>")
_ATTRIBUTE = re.compile(r'(\w{1,40})="([^"]*)"')


@dataclass(frozen=True, slots=True)
class RewrittenFile:
    """A file for the office reader, and the texts around its body: headers, and footers or notes, each paragraph once."""

    data: bytes
    header: str = ""
    footer: str = ""


def final_word_file(data: bytes, budget: EventBudget) -> RewrittenFile:
    """Return a Word file without the text that was moved elsewhere, with its breaks marked. Raises `Rejected` for a broken one.

    `with_breaks` makes the marks line ends in the text that is read.
    """
    margins: dict[str, list[str]] = {"header": [], "footer": []}
    with open_package(data, budget) as archive:
        changed: dict[str, bytes] = {}
        for info in archive.infolist():
            if _WORD_PART.match(info.filename):
                part = read_member(archive, info, budget)
                final = _BREAK_ELEMENT.sub(b"<w:t>&#xFDD0;</w:t>", without_moved_text(part))
                if final != part:
                    changed[info.filename] = final
                if margin := _MARGIN_PART.match(info.filename):
                    margins[margin[1]] += _paragraphs(without_moved_text(part))
            elif _COMMENT_PART.match(info.filename):
                margins["footer"] += _comments(read_member(archive, info, budget))
        final_data = replace_members(data, archive, changed, budget) if changed else data
    header, footer = ("\n".join(dict.fromkeys(texts)) for texts in margins.values())
    return RewrittenFile(final_data, header, footer)


def final_presentation(data: bytes, budget: EventBudget) -> RewrittenFile:
    """Return a PowerPoint file with whole words and marked breaks, and the notes of its slides. Raises `Rejected` for a broken one."""
    notes: list[str] = []
    with open_package(data, budget) as archive:
        changed: dict[str, bytes] = {}
        for info in archive.infolist():
            if _SLIDE_PART.match(info.filename):
                part = read_member(archive, info, budget)
                final = _SLIDE_BREAK.sub(b"<a:r><a:t>&#xFDD0;</a:t></a:r>", part)
                changed[info.filename] = _RUN_BORDER.sub(b"", final)
            elif _NOTES_PART.match(info.filename):
                notes += _paragraphs(read_member(archive, info, budget))
            elif _COMMENT_PART.match(info.filename):
                notes += _comments(read_member(archive, info, budget))
        rewritten = replace_members(data, archive, changed, budget)
    return RewrittenFile(rewritten, footer="\n".join(dict.fromkeys(notes)))


def final_open_document(data: bytes, budget: EventBudget) -> RewrittenFile:
    """Return an OpenDocument file with marked breaks, and cells as texts where the file says how they are shown.

    Raises `Rejected` for a broken one.
    """
    margins: dict[str, list[str]] = {"header": [], "footer": []}
    with open_package(data, budget) as archive:
        changed: dict[str, bytes] = {}
        for info in archive.infolist():
            if info.filename == "content.xml":
                part = read_member(archive, info, budget)
                if b"<office:spreadsheet" in part:  # of texts the office reader reads them
                    for _, note in _elements(part, *_NOTE):
                        margins["footer"] += _open_paragraphs(note)
                final = _EMPTY_ROWS.sub(_one_empty_row, _SHOWN_CELL.sub(_text_cell, part))
                final = _BLANKS.sub(b" ", final)
                changed[info.filename] = _LINE_BREAK.sub(b"&#xFDD0;", final)
            elif info.filename == "styles.xml":
                part = read_member(archive, info, budget)
                for margin, content in _elements(part, *_OPEN_MARGIN):
                    if len(re.findall(rb"\w+", _ELEMENT.sub(b" ", _FIELD.sub(b"", content)))) > 1:
                        margins[margin[1].decode()] += _open_paragraphs(content)
        rewritten = replace_members(data, archive, changed, budget)
    header, footer = ("\n".join(dict.fromkeys(texts)) for texts in margins.values())
    return RewrittenFile(rewritten, header, footer)


def _one_empty_row(rows: re.Match[bytes]) -> bytes:
    """Return one row for many empty ones, and rows with a value as they are."""
    is_empty = b"office:value" not in rows[0] and b"table:formula" not in rows[0]
    return b"<table:table-row><table:table-cell/></table:table-row>" if is_empty else rows[0]


def _open_paragraphs(content: bytes) -> list[str]:
    """Return the paragraphs of a margin or a note of an OpenDocument file that hold text."""
    spaced = re.sub(rb"<text:(?:s|tab|line-break)\b", b" <", content)
    paragraphs = (paragraph for _, paragraph in _elements(spaced, *_PARAGRAPH))
    texts = (unescape(_ELEMENT.sub(b"", text).decode("utf-8", "replace")) for text in paragraphs)
    return [text for paragraph in texts if (text := " ".join(paragraph.split()))]


def _elements(
    part: bytes, opening: re.Pattern[bytes], closing: re.Pattern[bytes]
) -> Iterator[tuple[re.Match[bytes], bytes]]:
    """Yield the opening tag and the content of each element, in time linear in the length of the part."""
    position = 0
    while (start := opening.search(part, position)) and (end := closing.search(part, start.end())):
        yield start, part[start.end() : end.start()]
        position = end.end()


def _text_cell(cell: re.Match[bytes]) -> bytes:
    return _CELL_VALUE.sub(b"", cell[0])[:-1] + b' office:value-type="string">'


def with_plain_signs(data: bytes, budget: EventBudget) -> RewrittenFile:
    """Return an RTF file with plain characters for no-break ones, which the office reader shows as `\\~` and `_`."""
    if rb"\bin" in data:  # bytes of pictures, whose number is stated
        return RewrittenFile(data)
    return RewrittenFile(_RTF_SIGN.sub(_plain_sign, data))


def _plain_sign(sign: re.Match[bytes]) -> bytes:
    # As codes, because a control word would take a blank or a hyphen after it as its own.
    return {b"~": rb"\'20", b"_": rb"\'2d"}.get(sign[1], sign[0])


def with_breaks(text: str) -> str:
    """Return the text of a rewritten file with a line end for each break, a blank in the cells of tables."""
    if _BREAK not in text:
        return text
    lines = text.split("\n")
    return "\n".join(line.replace(_BREAK, " " if line.startswith("|") else "\n") for line in lines)


def _paragraphs(part: bytes) -> list[str]:
    """Return the lines of a header, a footer or notes that hold text."""
    pieces: list[str] = []
    for match in _MARGIN_TEXT.finditer(part.decode("utf-8", "replace")):
        text = {"blank": "\t", "hyphen": "\u2011", "end": "\n"}.get(match.lastgroup or "")
        pieces.append(unescape(match["text"] or "") if text is None else text)
    return [line.strip() for line in "".join(pieces).split("\n") if line.strip()]


def without_moved_text(part: bytes) -> bytes:
    """Return a part without its `moveFrom` elements (ECMA-376 part 1, section 17.13.5.22); the same object if it has none."""
    pieces: list[bytes] = []
    end = 0
    for opening in _MOVE_FROM.finditer(part):
        if opening.start() < end or opening[0].endswith(b"/>"):
            continue  # inside the last one; or the mark of a moved paragraph, which holds nothing
        closing = b"</" + opening[1] + b"moveFrom>"
        closed = part.find(closing, opening.end())
        if closed < 0:
            break
        pieces.append(part[end : opening.start()])
        end = closed + len(closing)
    return b"".join([*pieces, part[end:]]) if end else part


def formatted_spreadsheet(data: bytes, budget: EventBudget) -> RewrittenFile:
    """Return an Excel file whose numbers are texts as its sheets show them. Raises `Rejected` for a broken one."""
    notes: list[str] = []
    with open_package(data, budget) as archive:
        codes = _format_codes(archive, budget)
        changed: dict[str, bytes] = {}
        for info in archive.infolist():
            if _SHEET_PART.match(info.filename):
                sheet = read_member(archive, info, budget)
                notes += _sheet_margins(sheet)
                formatted = _formatted_sheet(sheet, codes)
                if formatted is not sheet:
                    changed[info.filename] = formatted
            elif _COMMENT_PART.match(info.filename):
                notes += _comments(read_member(archive, info, budget))
        rewritten = replace_members(data, archive, changed, budget) if changed else data
    return RewrittenFile(rewritten, footer="\n".join(dict.fromkeys(notes)))


def _comments(part: bytes) -> list[str]:
    """Return the texts of a part with comments, shapes or a diagram, a paragraph each."""
    pieces = [
        "\0" if match["end"] else unescape(match["text"])
        for match in _COMMENT_TEXT.finditer(part.decode("utf-8", "replace"))
    ]
    texts = (" ".join(text.split()) for text in "".join(pieces).split("\0"))
    return [text for text in texts if text and not text.startswith(_THREADED)]


def _sheet_margins(sheet: bytes) -> list[str]:
    """Return the headers and footers of a sheet without their codes (ECMA-376 part 1, section 18.3.1.39)."""
    if b"Header>" not in sheet and b"Footer>" not in sheet:
        return []
    margins = _SHEET_MARGIN.findall(sheet.decode("utf-8", "replace"))
    return [text for margin in margins if (text := _margin_text(unescape(margin)))]


def _margin_text(margin: str) -> str:
    shown = _MARGIN_CODE.sub(lambda code: "&" if code[0] == "&&" else " ", margin)
    text = " ".join(shown.split())
    return text if re.search(r"\w", text) else ""


def _format_codes(archive: zipfile.ZipFile, budget: EventBudget) -> list[str]:
    """Return the format code of each cell style, by its number."""
    try:
        info = archive.getinfo("xl/styles.xml")
    except KeyError:
        return []
    styles = read_member(archive, info, budget).decode("utf-8", "replace")
    codes = dict(BUILT_IN)
    for match in _NUMBER_FORMAT.finditer(styles):
        attributes = dict(_ATTRIBUTE.findall(match[1]))
        number = attributes.get("numFmtId", "")
        if number.isdecimal():
            codes[int(number)] = unescape(attributes.get("formatCode", ""))
    begin = _CELL_STYLES.search(styles)
    end = _CELL_STYLES_END.search(styles, begin.end()) if begin else None
    if begin is None or end is None:
        return []
    result: list[str] = []
    for match in _STYLE.finditer(styles, begin.end(), end.start()):
        number = dict(_ATTRIBUTE.findall(match[1])).get("numFmtId", "0")
        # A built-in number without a code here is a date, which the office reader shows itself.
        code = codes.get(int(number), "@") if number.isdecimal() else ""
        result.append("" if number == "0" else code)
    return result


def _formatted_sheet(sheet: bytes, codes: list[str]) -> bytes:
    try:
        text = sheet.decode("utf-8")
    except UnicodeDecodeError:
        return sheet  # another encoding, which no known program writes
    shown_before: dict[tuple[str, str], str | None] = {}

    def show(cell: re.Match[str]) -> str:
        attributes = cell["attributes"]
        if (kind := _TYPE_ATTRIBUTE.search(attributes)) and kind[1] != "n":
            return cell[0]
        style = _STYLE_ATTRIBUTE.search(attributes)
        number = int(style[1]) if style else 0
        code = codes[number] if number < len(codes) else ""
        key = (cell["value"], code)
        if key not in shown_before:
            shown_before[key] = show_number(*key)
        shown = shown_before[key]
        if shown is None or shown == cell["value"]:
            return cell[0]
        prefix = cell["prefix"]
        attributes = _TYPE_ATTRIBUTE.sub("", attributes)
        return (
            f'<{prefix}c{attributes} t="str"><{prefix}v>{escape(shown, quote=False)}'
            f"</{prefix}v></{prefix}c>"
        )

    formatted = _CELL.sub(show, text)
    return sheet if formatted == text else formatted.encode()
