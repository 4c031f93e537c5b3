"""W6: whatever the files of an event hold, reading them ends within its budget, with a reason that names the limit."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import lzma
import struct
import tarfile
import time
import zipfile
import zlib
from asyncio.subprocess import Process
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import pytest

from apex_memory.errors import Rejected
from apex_memory.model import File
from apex_memory.pipeline import reader as reader_module
from apex_memory.pipeline import reader_process
from apex_memory.pipeline.file_limits import EventBudget, ReaderLimits
from apex_memory.pipeline.parse import Parsed, check_mime_parts, parse
from apex_memory.pipeline.reader import FileReader
from tests import documents

SMALL = ReaderLimits(seconds=100, cpu_seconds=3)
HARMLESS = File("bol.pdf", documents.PDF, documents.pdf("Shipper: Northwind"))


def looping_pdf() -> bytes:
    """A PDF whose form draws itself 40 times in each of its 40 copies, and so on: no end, from a kilobyte."""
    count = 12
    forms = [
        b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /F %d 0 R >> >> /Length %d >>\n"
        b"stream\n%s\nendstream" % (6 + min(n + 1, count - 1), len(b"/F Do " * 40), b"/F Do " * 40)
        for n in range(count)
    ]
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 5 0 R /Resources << /XObject << /F 6 0 R >> >> >>",
        b"<< /Title (loop) >>",
        b"<< /Length 5 >>\nstream\n/F Do\nendstream",
        *forms,
    ]
    return documents.pdf_file(objects)


def mail_with(name: str, kind: str, data: bytes, *, copies: int) -> bytes:
    return documents.mail(
        "See attached.",
        subject="s",
        attachments=[(f"{n}{name}", kind, data) for n in range(copies)],
    )


def nested_mime(depth: int, lines: int) -> bytes:
    head = b"From: a@b.example\nSubject: deep\n"
    for n in range(depth):
        head += b'Content-Type: multipart/mixed; boundary="b%d"\n\n--b%d\n' % (n, n)
    return head + b"Content-Type: text/plain\n\n" + b"x\n" * lines


def zip_of(count: int, *, body: bytes = b"x", name: str = "a.txt") -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(count):
            archive.writestr(f"{n}{name}", body)
    return target.getvalue()


def many_empty_entries(count: int) -> bytes:
    """A ZIP archive of directory entries alone, made without `zipfile`, which would take minutes."""
    entry = (
        struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
        + b"a"
    )
    begin = b"PK\x03\x04" + bytes(26)
    directory = entry * count
    end = struct.pack(
        "<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), len(begin), 0
    )
    return begin + directory + end


def nested_zip(depth: int) -> bytes:
    data = zip_of(1, body=b"innermost words")
    for _ in range(depth):
        data = zip_of(1, body=data, name=".zip")
    return data


def tar_of(count: int) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for n in range(count):
            archive.addfile(tarfile.TarInfo(f"{n}.txt"))
    return target.getvalue()


def sparse_tar(size: int) -> bytes:
    """A tar archive of one file that is a hole of `size` bytes, as GNU tar writes it with `--sparse`."""
    info = tarfile.TarInfo("hole.txt")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % size
    return with_checksum(header) + bytes(1024)


def with_checksum(header: bytearray) -> bytes:
    """The header of a member of a tar archive with the right check sum."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def hungry_xz() -> bytes:
    """A text packed with a dictionary of 4 GB, or so its header says, which is all of it that the reader needs."""
    packed = bytearray(lzma.compress(b"words " * 1_000))
    size = 4 * (packed[12] + 1)
    assert (
        packed[14] == 0x21
    )  # the only filter is LZMA2; its property is the size of the dictionary
    packed[16] = 40
    packed[12 + size - 4 : 12 + size] = zlib.crc32(packed[12 : 12 + size - 4]).to_bytes(4, "little")
    return bytes(packed)


def nested_gzip(depth: int) -> bytes:
    data = b"innermost words"
    for _ in range(depth):
        data = gzip.compress(data)
    return data


BOMBS: dict[str, tuple[Callable[[], File], str]] = {
    "zip with a million entries": (
        lambda: File("a.zip", "", many_empty_entries(1_000_000)),
        "reader_max_files",
    ),
    "docx with a million entries": (
        lambda: File("a.docx", documents.DOCX, many_empty_entries(1_000_000)),
        "reader_max_files",
    ),
    "zip with two thousand texts": (
        lambda: File("a.zip", "", zip_of(2_100)),
        "reader_max_files",
    ),
    "zip of one huge member": (
        lambda: File("a.zip", "", zip_of(1, body=bytes(251_000_000))),
        "reader_unpacked_bytes",
    ),
    "zip of zeros": (
        lambda: File("a.zip", "", zip_of(1, body=bytes(30_000_000))),
        "reader_compression_ratio",
    ),
    "tar with two thousand entries": (
        lambda: File("a.tar", "", tar_of(2_100)),
        "reader_max_files",
    ),
    "tar of a hole of 8 GB": (
        lambda: File("a.tar", "", sparse_tar((8 << 30) - 1)),
        "reader_unpacked_bytes",
    ),
    "tar of a hole of 200 MB": (
        lambda: File("a.tar", "", sparse_tar(200_000_000)),
        "reader_compression_ratio",
    ),
    "gzip of zeros": (
        lambda: File("a.txt.gz", "", gzip.compress(bytes(30_000_000))),
        "reader_compression_ratio",
    ),
    "bzip2 of zeros": (
        lambda: File("a.txt.bz2", "", bz2.compress(bytes(30_000_000))),
        "reader_compression_ratio",
    ),
    "xz of zeros": (
        lambda: File("a.txt.xz", "", lzma.compress(bytes(30_000_000))),
        "reader_compression_ratio",
    ),
    "xz that needs 4 GB of memory": (
        lambda: File("a.txt.xz", "", hungry_xz()),
        "reader_memory_bytes",
    ),
    "gzip twenty deep": (
        lambda: File("a.txt.gz", "", nested_gzip(20)),
        "reader_nesting",
    ),
    "mail nested 900 deep": (
        lambda: File("a.eml", "", nested_mime(900, 100_000)),
        "reader_mime_nesting",
    ),
    "mail with a thousand attachments": (
        lambda: File("a.eml", "", mail_with(".txt", "text/plain", b"x", copies=1_001)),
        "reader_max_files",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
async def test_w6_a_bomb_ends_with_the_name_of_its_limit(name: str) -> None:
    make, setting = BOMBS[name]
    file = make()
    reader = FileReader(processes=1)
    began = time.monotonic()
    try:
        with pytest.raises(Rejected, match=f"limit `{setting}`") as refused:
            await reader.read_file(file)
        assert setting in refused.value.remedy
        assert time.monotonic() - began < 120
        assert "Northwind" in (await reader.read_file(HARMLESS)).parsed.text
    finally:
        await reader.close()


async def test_w6_all_attachments_share_one_budget_of_processor_time() -> None:
    mail = File("a.eml", "", mail_with(".pdf", documents.PDF, looping_pdf(), copies=4))
    assert len(mail.data) < 100_000
    reader = FileReader(SMALL, processes=1)
    began = time.monotonic()
    try:
        with pytest.raises(Rejected, match=r"3 s of processor time \(limit `reader_cpu_seconds`\)"):
            await reader.read_file(mail)
    finally:
        await reader.close()
    assert time.monotonic() - began < 120


async def test_w6_a_neighbour_is_read_while_a_bomb_runs() -> None:
    bomb = File("a.pdf", "", looping_pdf())
    reader = FileReader(SMALL, processes=2)
    try:
        await asyncio.gather(*[reader.read_file(HARMLESS) for _ in range(2)])  # both processes run
        burning = asyncio.create_task(reader.read_file(bomb))
        await asyncio.sleep(0)  # one turn of the loop, in which it is sent
        await reader.read_file(HARMLESS)
        await reader.read_file(File("note.txt", "text/plain", b"plain words"))
        assert not burning.done(), "the bomb ended first, so this test shows nothing"
        with pytest.raises(Rejected, match="reader_cpu_seconds"):
            await burning
    finally:
        await reader.close()


async def test_w6_memory_is_bounded_and_given_back() -> None:
    reader = FileReader(
        replace(SMALL, memory_bytes=700_000_000, unpacked_bytes=10**10, compression_ratio=10**6),
        processes=1,
    )
    try:
        await reader.read_file(HARMLESS)
        process = psutil.Process(reader._idle[0].pid)
        hungry = File("a.zip", "", zip_of(1, body=bytes(600_000_000)))
        with pytest.raises(Rejected, match="limit `reader_memory_bytes`"):
            await reader.read_file(hungry)
        assert not process.is_running() or process.memory_info().rss < 600_000_000
        assert "Northwind" in (await reader.read_file(HARMLESS)).parsed.text
    finally:
        await reader.close()


async def test_w6_a_file_that_crashes_the_reader_is_left_out_of_its_mail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kills = 0
    receive = reader_module._receive

    async def kill_in_first_native_call(process: Process) -> dict[str, Any]:
        nonlocal kills
        message = await receive(process)
        if message.get("native") == 0:
            process.kill()  # as a stack overflow in native code does
            kills += 1
        return message

    monkeypatch.setattr(reader_module, "_receive", kill_in_first_native_call)
    mail = documents.mail(
        "See attached.",
        subject="s",
        attachments=[
            ("loop.pdf", documents.PDF, looping_pdf()),
            ("bol.pdf", documents.PDF, HARMLESS.data),
        ],
    )
    reader = FileReader(processes=1)
    try:
        parsed = (await reader.read_file(File("a.eml", "", mail))).parsed
    finally:
        await reader.close()
    assert kills == 2
    notes = {note["name"]: note for note in parsed.metadata["attachments"]}
    assert notes["loop.pdf"]["unread"] == "the file crashed the reader twice"
    assert "See attached." in parsed.text
    assert "Northwind" in parsed.text


def test_w6_honest_mails_are_not_too_deep() -> None:
    budget = EventBudget(ReaderLimits(mime_nesting=5))
    mail = documents.mail(
        "See it.", subject="s", html="<p>See it.</p>", attachments=[("a.txt", "text/plain", b"x")]
    )
    check_mime_parts(mail, budget)
    quoted = b"".join(b'Content-Type: multipart/mixed; boundary="q%d"\n' % n for n in range(500))
    check_mime_parts(documents.mail(quoted.decode(), subject="s"), budget)
    budget = EventBudget(ReaderLimits(mime_nesting=5))
    siblings = b'boundary="all"\n' + b"".join(
        b'--all\nContent-Type: multipart/mixed; boundary="s%d"\n\n--s%d\n\nx\n--s%d--\n' % (n, n, n)
        for n in range(500)
    )
    check_mime_parts(siblings, budget)
    with pytest.raises(Rejected, match="reader_mime_nesting"):
        check_mime_parts(nested_mime(6, 1), budget)
    with pytest.raises(Rejected, match="reader_max_files"):
        check_mime_parts(siblings, EventBudget(ReaderLimits(max_files=400)))


async def test_w6_nested_archives_end_at_the_limit() -> None:
    reader = FileReader(ReaderLimits(nesting=3), processes=1)
    try:
        read = await reader.read_file(File("a.zip", "", nested_zip(2)))
        assert "innermost words" in read.parsed.text
        with pytest.raises(Rejected, match="reader_nesting"):
            await reader.read_file(File("a.zip", "", nested_zip(4)))
    finally:
        await reader.close()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
async def test_w6_all_packed_files_share_one_budget_of_bytes(
    pack: Callable[[bytes], bytes],
) -> None:
    text = b"".join(b"%d " % n for n in range(200_000))
    attached = [(f"{n}.txt.x", "application/x", pack(text)) for n in range(3)]
    mail = documents.mail("See attached.", subject="s", attachments=attached)
    for limit, fits in ((4_500_000, True), (3_500_000, False)):
        budget = EventBudget(ReaderLimits(unpacked_bytes=limit, characters=10_000_000))
        file = File("a.eml", "", mail)
        if fits:
            parse(file, budget)
        else:
            with pytest.raises(Rejected, match="reader_unpacked_bytes"):
                parse(file, budget)


async def test_w6_base64_in_base64_is_bounded_too() -> None:
    data = documents.mail("innermost words", subject="s")
    for n in range(14):
        attached = [(f"{n}.eml", "application/octet-stream", data)]
        data = documents.mail("see it", subject="s", attachments=attached)
    reader = FileReader(processes=1)
    try:
        read = await reader.read_file(File("a.eml", "", data))
    finally:
        await reader.close()
    assert "reader_nesting" in str(read.parsed.metadata)


def test_w6_a_bug_of_a_parser_costs_its_event_and_quotes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(file: File, budget: EventBudget) -> Parsed:
        raise KeyError("hunter2")

    monkeypatch.setattr(reader_process, "parse", fail)
    request: dict[str, object] = {"text": None, "has_office_reader": True, "skipped": []}
    answer = reader_process._answer(request, [HARMLESS], ReaderLimits(), lambda n: None)
    assert answer["error"]["message"].startswith("KeyError in the reader (test_reader_limits.py:")
    assert "report it" in answer["error"]["remedy"] and "hunter2" not in str(answer)


async def test_a_reader_is_kept_though_the_worker_that_started_it_is_large() -> None:
    ballast = bytearray(b"x" * 700_000_000)  # what a worker with a large model has
    reader = FileReader(processes=1)
    try:
        assert "Northwind" in (await reader.read_file(HARMLESS)).parsed.text
        [process] = reader._idle
        assert "Northwind" in (await reader.read_file(HARMLESS)).parsed.text
        assert reader._idle == [process]
    finally:
        await reader.close()
    assert len(ballast) == 700_000_000
