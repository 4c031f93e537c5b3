"""Containers: ZIP archives, which hold Office files too, and OLE files (the binary formats of Office up to 2003)."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from apex_memory.errors import Rejected
from apex_memory.model import File
from apex_memory.pipeline.file_limits import BudgetExceeded, EventBudget, budget_exceeded

ZIP = b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_DIRECTORY_ENTRY = b"PK\x01\x02"
_PARTS_PER_FILE = 20  # an Office file has a part for each sheet, slide and picture
_ENCRYPTED = 0x1
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
)
"""What the standard library raises for an archive that is damaged, encrypted or packed by a method it lacks."""

_OPEN_DOCUMENT = {
    b"application/vnd.oasis.opendocument.text": "odt",
    b"application/vnd.oasis.opendocument.spreadsheet": "ods",
    b"application/vnd.oasis.opendocument.presentation": "odp",
}
# Names of streams (UTF-16) by kind of file. A message may embed the others, so it comes first.
_STREAMS = (
    ("protected", "EncryptedPackage"),
    ("msg", "__properties_version1.0"),
    ("doc", "WordDocument"),
    ("ppt", "PowerPoint Document"),
    ("xls", "Workbook"),
    ("xls", "Book\0"),
)


def is_zip(data: bytes) -> bool:
    return data.startswith((ZIP, _EMPTY_ZIP))


def open_zip(data: bytes, *, max_entries: int) -> zipfile.ZipFile:
    """Open an archive. Raises `Rejected` for a broken one, `BudgetExceeded` for one with too many entries.

    The entries are counted before `ZipFile` makes an object of each: every one begins with the same four bytes.
    """
    if data.count(_DIRECTORY_ENTRY) > max_entries:
        raise budget_exceeded(
            "reader_max_files", f"an archive has more than {max_entries:,} entries"
        )
    try:
        return zipfile.ZipFile(io.BytesIO(data))
    except _BROKEN:
        raise _broken_archive() from None


def open_package(data: bytes, budget: EventBudget) -> zipfile.ZipFile:
    """Open an Office file, whose parts are no files to anybody. Raises like `open_zip`."""
    return open_zip(data, max_entries=_PARTS_PER_FILE * budget.limits.max_files)


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: EventBudget) -> bytes:
    """Return the bytes of a member. Raises `Rejected` for a damaged one, `BudgetExceeded` beyond the limits.

    `zipfile` stops at the size that the directory declares, so the declared size bounds the memory.
    """
    if info.flag_bits & _ENCRYPTED:
        raise Rejected("protected by a password", remedy="send it without a password")
    budget.add_unpacked(info.file_size, packed=info.compress_size)
    try:
        return archive.read(info)
    except _BROKEN:
        raise _broken_archive() from None


def package_kind(data: bytes, budget: EventBudget) -> str:
    """Return the kind of an Office file by the names of its parts; `zip` for another archive."""
    with open_package(data, budget) as archive:
        names = archive.namelist()
        if names[:1] == ["mimetype"]:
            declared = read_member(archive, archive.infolist()[0], budget)
            if kind := _OPEN_DOCUMENT.get(declared.strip()):
                return kind
    for folder, kind in (("word/", "docx"), ("xl/", "xlsx"), ("ppt/", "pptx")):
        if any(name.startswith(folder) for name in names):
            return kind
    return "zip"


def archive_members(data: bytes, budget: EventBudget) -> Iterator[File | tuple[str, Rejected]]:
    """Yield the files of an archive, one at a time; a file that cannot be unpacked with the reason.

    Names are shown and never used as paths: only their last part is kept, so a name cannot point anywhere.
    """
    with open_zip(data, max_entries=2 * budget.limits.max_files) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            name = PurePosixPath(info.filename.replace("\\", "/")).name[:255] or "unnamed"
            try:
                yield File(name, "", read_member(archive, info, budget))
            except BudgetExceeded:
                raise
            except Rejected as error:
                yield name, error


def ole_kind(data: bytes, extension: str) -> str:
    """Return the kind of an OLE file by the names of its streams; `extension` decides if several fit or none.

    `protected` is an Office file of today under a password. An empty string means an unknown kind.
    """
    kinds = [kind for kind, name in _STREAMS if name.encode("utf-16-le") in data]
    if extension in kinds or (not kinds and extension in {"msg", "doc", "xls", "ppt"}):
        return extension
    return kinds[0] if kinds else ""


def replace_members(
    data: bytes, archive: zipfile.ZipFile, changed: Mapping[str, bytes], budget: EventBudget
) -> bytes:
    """Return the archive with other bytes for some members. Members are stored, not packed: it is read at once."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as copy:
        for info in archive.infolist():
            content = changed.get(info.filename)
            copy.writestr(
                info.filename, read_member(archive, info, budget) if content is None else content
            )
    return target.getvalue()


def _broken_archive() -> Rejected:
    return Rejected(
        "the archive is damaged or packed by an unknown method",
        remedy="see that it opens in its own program, and pack it anew",
    )
