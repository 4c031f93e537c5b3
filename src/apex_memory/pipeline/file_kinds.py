"""What a file is: by its first bytes where they are plain, then by its type, its extension, and its content."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from apex_memory.errors import Rejected
from apex_memory.model import File
from apex_memory.pipeline.archives import (
    OLE,
    is_mbox,
    is_tar,
    is_zip,
    ole_kind,
    package_kind,
    packing_of,
)
from apex_memory.pipeline.file_limits import EventBudget
from apex_memory.pipeline.signed_messages import is_cms

SUPPORTED = (
    "PDF, DOCX, XLSX, PPTX, DOC, XLS, PPT, ODT, ODS, ODP, RTF, HTML, MSG, EML, MBOX, ZIP, TAR, GZ, BZ2, XZ, P7M, "
    "SVG, Markdown, text, CSV, JSON, XML, X12"
)

_OPEN_XML = "application/vnd.openxmlformats-officedocument"
_OPEN_DOCUMENT = "application/vnd.oasis.opendocument"
TYPES = {
    "pdf": "application/pdf",
    "docx": f"{_OPEN_XML}.wordprocessingml.document",
    "xlsx": f"{_OPEN_XML}.spreadsheetml.sheet",
    "pptx": f"{_OPEN_XML}.presentationml.presentation",
    "odt": f"{_OPEN_DOCUMENT}.text",
    "ods": f"{_OPEN_DOCUMENT}.spreadsheet",
    "odp": f"{_OPEN_DOCUMENT}.presentation",
    "doc": "application/msword",
    "xls": "application/vnd.ms-excel",
    "ppt": "application/vnd.ms-powerpoint",
    "rtf": "application/rtf",
    "html": "text/html",
    "msg": "application/vnd.ms-outlook",
    "mail": "message/rfc822",
    "mbox": "application/mbox",
    "zip": "application/zip",
    "tar": "application/x-tar",
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "cms": "application/pkcs7-mime",
    "svg": "image/svg+xml",
}
"""The media type of each kind but `text`."""

NAMES = {
    "pdf": "a PDF",
    "docx": "a Word document (.docx)",
    "xlsx": "an Excel workbook (.xlsx)",
    "pptx": "a PowerPoint presentation (.pptx)",
    "odt": "an OpenDocument text (.odt)",
    "ods": "an OpenDocument spreadsheet (.ods)",
    "odp": "an OpenDocument presentation (.odp)",
    "doc": "a Word 97-2003 document (.doc)",
    "xls": "an Excel 97-2003 workbook (.xls)",
    "ppt": "a PowerPoint 97-2003 presentation (.ppt)",
    "rtf": "rich text (.rtf)",
    "html": "an HTML page",
    "msg": "an Outlook message (.msg)",
}
"""What people call the kinds that the office reader reads."""

_KIND_BY_TYPE = {media_type: kind for kind, media_type in TYPES.items()} | {
    "application/xhtml+xml": "html",
    "message/global": "mail",
    "message/news": "mail",
    "application/x-zip-compressed": "zip",
    "application/x-gzip": "gzip",
    "application/x-compressed-tar": "gzip",
    "application/bzip2": "bzip2",
    "application/x-pkcs7-mime": "cms",
    "text/rtf": "rtf",
    "application/json": "text",
    "application/x-ndjson": "text",
    "application/xml": "text",
    "application/edi-x12": "text",
    "application/yaml": "text",
    "application/toml": "text",
}
_KIND_BY_EXTENSION = {
    **{kind: kind for kind in TYPES if kind != "mail"},
    "htm": "html", "xhtml": "html", "eml": "mail", "mht": "mail", "mhtml": "mail",
    "gz": "gzip", "tgz": "gzip", "bz2": "bzip2", "tbz": "bzip2", "tbz2": "bzip2", "txz": "xz",
    "p7m": "cms",
    **dict.fromkeys(
        (
            "txt", "text", "log", "md", "markdown", "csv", "tsv", "json", "jsonl", "ndjson", "xml", "yaml", "yml",
            "edi", "x12", "ini", "cfg", "conf", "properties", "toml",
        ),
        "text",
    ),
}  # fmt: skip
# The last three are text, and a PDF may begin after other bytes.
_WITH_SIGNATURE = frozenset(TYPES) - {"pdf", "html", "mail", "svg"}
_BINARY_TYPES = ("image/", "audio/", "video/", "font/")
_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s{0,100}<(?:!doctype html|html|head|body|table)\b", re.IGNORECASE
)
_MIME = re.compile(rb"\s{0,100}MIME-Version[ \t]*:", re.IGNORECASE)  # a saved web page (.mht)
_STARTS = {b"%PDF-": "pdf", b"{\\rtf": "rtf"}
_TNEF = b"\x78\x9f\x3e\x22"
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_HIGH = re.compile(rb"[\x80-\xff]")
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_SNIFFED = 65_536  # bytes at the start of a file that show whether it is text


def kind_of(file: File, budget: EventBudget) -> str:
    """Return a kind of `TYPES`, or `text`. Raises `Rejected`, which names the format, for a file that cannot be read.

    Takes time linear in the size of the file. The list of an archive's members is read within the budget.
    """
    kind = _kind_by_bytes(file, budget)
    if not kind:
        kind = _kind_by_type(file) or _KIND_BY_EXTENSION.get(extension_of(file)) or ""
        # Programs export pages and tables of text under the names of Office files, whose first bytes would be others.
        if not kind or kind in _WITH_SIGNATURE:
            kind = _kind_by_content(file) or kind
    if not kind:
        raise Rejected(
            f"cannot read {shown(file)}; supported: {SUPPORTED}",
            remedy="send it in one of these formats",
        )
    if kind == "protected":
        raise Rejected(
            f"{shown(file)} is an Office file protected by a password",
            remedy="save it without a password, and send it again",
        )
    return kind


def is_plain_text(file: File) -> bool:
    """Report whether type or extension stand for text, and the first bytes for nothing else."""
    if file.data.startswith((*_STARTS, OLE)):
        return False
    if is_zip(file.data) or packing_of(file.data) or is_tar(file.data) or is_mbox(file.data):
        return False
    return (_kind_by_type(file) or _KIND_BY_EXTENSION.get(extension_of(file))) == "text"


def extension_of(file: File) -> str:
    """Return the extension of a file's name in lower case, without the dot."""
    return PurePosixPath(file.name.lower()).suffix.removeprefix(".")


def shown(file: File) -> str:
    """Return a file for people: its extension or type, never its name, which may say too much for a log."""
    extension = PurePosixPath(file.name).suffix[:12]
    if extension and extension.isascii():
        return extension
    return file.content_type[:80] or "a file without a type"


def _kind_by_bytes(file: File, budget: EventBudget) -> str:
    for start, kind in _STARTS.items():
        if file.data.startswith(start):
            return kind
    if file.data.startswith(OLE):
        kind = ole_kind(file.data, extension_of(file))
        if not kind:
            raise Rejected(
                f"{shown(file)} is an OLE file of an unknown kind; supported: {SUPPORTED}",
                remedy="send it in one of these formats",
            )
        return kind
    if is_zip(file.data):
        return package_kind(file.data, budget)
    if file.data.startswith(_TNEF):
        raise Rejected(
            "the file is in Outlook's own format (TNEF, winmail.dat), which is not read: "
            "have its sender's Outlook or Exchange send HTML instead of rich text",
            remedy="have its sender's Outlook or Exchange send HTML instead of rich text",
        )
    return packing_of(file.data) or _kind_of_container(file)


def _kind_of_container(file: File) -> str:
    if is_cms(file.data):
        return "cms"
    if is_tar(file.data):
        return "tar"
    return "mbox" if is_mbox(file.data) and not _is_mail(file) else ""


def _is_mail(file: File) -> bool:
    """Report whether a file is declared to be one mail, before whose header the line of a mailbox may stand."""
    return "mail" in (_kind_by_type(file), _KIND_BY_EXTENSION.get(extension_of(file)))


def _kind_by_type(file: File) -> str:
    declared = file.content_type.partition(";")[0].strip().lower()
    # What messages hold about a message, such as a delivery report, is text (RFC 3464).
    is_text = declared.startswith(("text/", "message/"))
    return _KIND_BY_TYPE.get(declared) or ("text" if is_text else "")


def _kind_by_content(file: File) -> str:
    """Return `html`, `mail` or `text` for a file whose type and extension say nothing or are wrong, where it is one."""
    start = file.data[:_SNIFFED]
    if file.content_type.lower().startswith(_BINARY_TYPES):
        return ""
    if _HTML.match(start[:500]):
        return "html"
    if _MIME.match(start):
        return "mail"
    return "text" if _looks_like_text(start) else ""


def _looks_like_text(start: bytes) -> bool:
    """Report whether the first bytes of a file are text: with a byte order mark, in UTF-8, or in an older charset."""
    if start.startswith(_MARKS):
        return True
    if _CONTROL.search(start):
        return False
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        is_cut_character = len(start) == _SNIFFED and error.start >= len(start) - 3
        # An older charset has few letters above ASCII; compressed and encrypted data have half of their bytes there.
        has_few_letters = len(start) >= 32 and len(_HIGH.findall(start)) * 4 <= len(start)
        return is_cut_character or has_few_letters
    return True
