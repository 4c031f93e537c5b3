"""Containers: archives (ZIP, which Office files are too, tar, and mailboxes), packed files, and OLE files (Office up to 2003).

A member's name is shown and never used as a path: nothing is written to disk, and only the last part of a name is kept.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Literal

from apex_memory.errors import Rejected
from apex_memory.model import File
from apex_memory.pipeline.file_limits import BudgetExceeded, EventBudget, budget_exceeded

ZIP = b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
Packing = Literal["gzip", "bzip2", "xz"]
# `bzip2` begins a file with a version, a size and a block, or the end of a file of nothing.
_PACKINGS: Mapping[Packing, re.Pattern[bytes]] = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "bzip2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
}
_INNER_SUFFIXES = {
    **dict.fromkeys((".tgz", ".tbz", ".tbz2", ".txz"), ".tar"),
    **dict.fromkeys((".gz", ".bz2", ".xz"), ""),
    ".svgz": ".svg",
}
"""What the suffix of a packed file's name becomes when it is unpacked."""
# Before each mail of a mailbox stands a line with its sender and its date, which a field of its header follows.
_BETWEEN_MAILS = re.compile(
    rb"(?:\A\s{0,100}|(?<=\n)\r?\n)From [^\r\n]{0,500}\d\d:\d\d[^\r\n]{0,100}\r?\n(?=>?[\w-]{1,80}:)"
)
_QUOTED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)
_PIECE = 1 << 20  # bytes that are unpacked before the limits are looked at
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
    OverflowError,
    lzma.LZMAError,
    tarfile.TarError,
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
        raise _too_many_entries(max_entries)
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


def archive_members(
    data: bytes, kind: str, budget: EventBudget
) -> Iterator[File | tuple[str, Rejected]]:
    """Yield the files of an archive (`zip`, `tar`, `mbox`), one at a time; a file that cannot be unpacked with the reason.

    Raises `Rejected` for a broken archive, `BudgetExceeded` beyond the limits.
    """
    if kind == "mbox":
        members = _mbox_members(data)
    else:
        members = _zip_members(data, budget) if kind == "zip" else _tar_members(data, budget)
    for path, member in members:
        name = PurePosixPath(path.replace("\\", "/")).name[:255] or "unnamed"
        yield (name, member) if isinstance(member, Rejected) else File(name, "", member)


def _zip_members(data: bytes, budget: EventBudget) -> Iterator[tuple[str, bytes | Rejected]]:
    with open_zip(data, max_entries=2 * budget.limits.max_files) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            try:
                yield info.filename, read_member(archive, info, budget)
            except BudgetExceeded:
                raise
            except Rejected as error:
                yield info.filename, error


def _tar_members(data: bytes, budget: EventBudget) -> Iterator[tuple[str, bytes | Rejected]]:
    """Yield the files of a tar archive. Folders, devices and links have no bytes of their own, and are passed over."""
    try:
        archive = tarfile.open(fileobj=io.BytesIO(data), mode="r:", errors="replace")  # noqa: SIM115 -- of memory
    except _BROKEN:
        raise _broken_archive() from None
    entries = 0
    while True:
        try:
            info = archive.next()
        except _BROKEN:
            yield "the rest of the archive", _broken_archive()
            return
        if info is None:
            break
        entries += 1
        if entries > 2 * budget.limits.max_files:
            raise _too_many_entries(2 * budget.limits.max_files)
        if info.isreg():
            yield info.name, _tar_member(archive, info, data, budget)
    # The end is a block of zeros. `tarfile` also ends at a header that is damaged.
    if data[archive.offset : archive.offset + tarfile.BLOCKSIZE].strip(b"\0"):
        yield "the rest of the archive", _broken_archive()


def _mbox_members(data: bytes) -> Iterator[tuple[str, bytes | Rejected]]:
    """Yield the mails of a mailbox (RFC 4155). A line of a mail that begins like the one between two mails has `>` before it."""
    borders = [match.span() for match in _BETWEEN_MAILS.finditer(data)]
    ends = [*(start for start, _ in borders[1:]), len(data)]
    for number, ((_, start), end) in enumerate(zip(borders, ends, strict=True), start=1):
        yield f"mail {number}.eml", _QUOTED_FROM.sub(rb"\1", data[start:end])


def _tar_member(
    archive: tarfile.TarFile, info: tarfile.TarInfo, data: bytes, budget: EventBudget
) -> bytes | Rejected:
    if info.size < 0:
        return _broken_archive()
    # The size of a sparse file is what its holes are filled up to, and may be anything.
    budget.add_unpacked(info.size, packed=len(data))
    try:
        stream = archive.extractfile(info)
        content = stream.read() if stream else b""
    except _BROKEN:
        return _broken_archive()
    return content if len(content) == info.size else _broken_archive()


def is_mbox(data: bytes) -> bool:
    return _BETWEEN_MAILS.match(data) is not None


def packing_of(data: bytes) -> Packing | None:
    """Return how the bytes are packed, by the first of them; None for what is not packed."""
    for packing, pattern in _PACKINGS.items():
        if pattern.match(data):
            return packing
    return None


def is_tar(data: bytes) -> bool:
    """Report whether the first block is the header of a member of a tar archive: its check sum is right."""
    try:
        tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "replace")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def unpacked(file: File, packing: str, budget: EventBudget) -> File:
    """Return the file that is packed in a file. Raises `Rejected` for a damaged one, `BudgetExceeded` beyond the limits.

    No packing states a size to believe, so the bytes are counted while they are unpacked.
    """
    content = io.BytesIO()
    try:
        with _unpacking(io.BytesIO(file.data), packing) as stream:
            while piece := stream.read(_PIECE):
                content.write(piece)
                budget.add_unpacked(len(piece), packed=len(file.data), of=content.tell())
    except _BROKEN:
        raise _broken_archive() from None
    path = PurePosixPath(file.name)
    inner = _INNER_SUFFIXES.get(path.suffix.lower())
    name = file.name if inner is None else path.with_suffix(inner).name
    return File(name, "", content.getvalue())


def _unpacking(data: io.BytesIO, packing: str) -> gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile:
    if packing == "gzip":
        return gzip.GzipFile(fileobj=data)
    return bz2.BZ2File(data) if packing == "bzip2" else lzma.LZMAFile(data)


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


def _too_many_entries(most: int) -> BudgetExceeded:
    return budget_exceeded("reader_max_files", f"an archive has more than {most:,} entries")
