"""Archives and packed files, made by the programs that people use, are read as what is in them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import mailbox
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Callable
from email.message import EmailMessage
from pathlib import Path

import pytest
import pytest_asyncio

from apex_memory.errors import Rejected
from apex_memory.model import File
from apex_memory.pipeline.archives import archive_members
from apex_memory.pipeline.file_limits import EventBudget, ReaderLimits
from apex_memory.pipeline.parse import Parsed, read_plain_text
from apex_memory.pipeline.reader import FileReader
from tests import documents

BILL = documents.pdf("Shipper: Northwind Trucking LLC")
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def reader() -> AsyncIterator[FileReader]:
    reader = FileReader(processes=1)
    yield reader
    await reader.close()


async def read(reader: FileReader, name: str, data: bytes, media_type: str = "") -> Parsed:
    return (await reader.read_file(File(name, media_type, data))).parsed


def tar(files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


@pytest.mark.parametrize("options", [[], ["-z"], ["-j"], ["-J"], ["--format=v7"], ["--format=pax"]])
async def test_what_tar_packs_is_read_file_by_file(
    reader: FileReader, tmp_path: Path, options: list[str]
) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "loads.csv").write_text("Load,City\nSHP-100045,Köln\n")
    (folder / "bol.pdf").write_bytes(BILL)
    (folder / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "link.csv").symlink_to("loads.csv")
    made = subprocess.run(
        ["tar", "-c", "--sort=name", *options, "-C", tmp_path, "papers"],
        check=True,
        capture_output=True,
    ).stdout
    parsed = await read(reader, "papers", made)
    assert "## loads.csv\n\nLoad,City\nSHP-100045,Köln" in parsed.text
    assert "Shipper: Northwind" in parsed.text
    notes = {note["name"]: note for note in parsed.metadata["members"]}
    assert list(notes) == ["bol.pdf", "loads.csv", "logo.png"], "a link has no bytes of its own"
    assert notes["logo.png"]["unread"].startswith("cannot read .png")
    assert [parsed.text[start:end].split()[1] for start, end in parsed.sections] == [
        "bol.pdf",
        "loads.csv",
    ]


@pytest.mark.parametrize("packing", PACKINGS)
async def test_a_packed_file_is_the_file_in_it(reader: FileReader, packing: str) -> None:
    pack = PACKINGS[packing]
    note = await read(reader, f"note.md.{packing}", pack(b"# Dock seven\n\nopens at six"))
    assert (note.title, note.text) == ("Dock seven", "# Dock seven\n\nopens at six")
    assert (await read(reader, "blob", pack(BILL))).metadata["pages"] == 1
    two = await read(reader, f"log.txt.{packing}", pack(b"first ") + pack(b"second"))
    assert two.text == "first second"
    assert "Dock" in (await read(reader, "a.txt", pack(b"Dock"), "text/plain")).text
    archive = await read(reader, f"papers.tar.{packing}", pack(tar({"a/b.txt": b"Dock seven"})))
    assert archive.text == "## b.txt\n\nDock seven"


async def test_packed_attachments_of_a_mail_are_read(reader: FileReader) -> None:
    report = b'<?xml version="1.0"?><feedback><org_name>northwind.example</org_name></feedback>'
    mail = documents.mail(
        "See attached.",
        subject="Report",
        attachments=[
            ("report.xml.gz", "application/gzip", gzip.compress(report)),
            ("papers.tgz", "application/x-gzip", gzip.compress(tar({"a.txt": b"Dock seven"}))),
            ("half.gz", "application/gzip", gzip.compress(b"words" * 99)[:20]),
        ],
    )
    parsed = await read(reader, "a.eml", mail)
    assert "## report.xml.gz\n\n<?xml" in parsed.text
    assert "## papers.tgz\n\n## a.txt\n\nDock seven" in parsed.text
    half = parsed.metadata["attachments"][2]
    assert half["unread"] == "the archive is damaged or packed by an unknown method"


async def test_a_name_in_an_archive_points_nowhere(reader: FileReader, tmp_path: Path) -> None:
    target = tmp_path / "pwned.txt"
    files = {
        f"../../../..{target}": b"one",
        str(target): b"two",
        "C:\\x\\dock.txt": b"three",
        "..": b"4",
    }
    parsed = await read(reader, "a.tar", tar(files))
    assert [note["name"] for note in parsed.metadata["members"]] == [
        "pwned.txt",
        "pwned.txt",
        "dock.txt",
        "..",
    ]
    assert not target.exists()


async def test_what_follows_the_damage_in_a_tar_archive_has_a_note(reader: FileReader) -> None:
    data = bytearray(tar({"a.txt": b"Dock seven", "b.txt": b"Dock eight", "c.txt": b"Dock nine"}))
    data[1024:1100] = b"x" * 76  # the second header
    parsed = await read(reader, "a.tar", bytes(data))
    assert parsed.text == "## a.txt\n\nDock seven"
    rest = parsed.metadata["members"][1]
    assert rest["name"] == "the rest of the archive" and "damaged" in rest["unread"]
    long = tar({"a.txt": b"Dock seven", "b.txt": b"x" * 5_000})
    parsed = await read(reader, "a.tar", long[:3_000])
    assert parsed.text == "## a.txt\n\nDock seven"
    assert "damaged" in parsed.metadata["members"][1]["unread"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.gz", gzip.compress(b"words", mtime=0)[:-6]),
        ("a.gz", gzip.compress(b"words", mtime=0)[:-8] + bytes(8)),
        ("a.xz", lzma.compress(b"words")[:-6]),
        ("a.bz2", bz2.compress(b"words")[:-6]),
        ("a.tar", b"\x00\x01" * 999),
    ],
)
async def test_a_damaged_file_is_refused(reader: FileReader, name: str, data: bytes) -> None:
    with pytest.raises(Rejected, match="the archive is damaged") as refused:
        await read(reader, name, data)
    assert refused.value.remedy


@pytest.mark.parametrize("size", [-1, -512, 2**63 - 1, 2**70])
async def test_a_size_that_cannot_be_is_a_damage(reader: FileReader, size: int) -> None:
    data = bytearray(tar({"a.txt": b"Dock seven", "b.txt": b"Dock"}, tarfile.GNU_FORMAT))
    header = data[1024:1536]
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[124] |= 0x80
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    with pytest.raises(Rejected, match=r"damaged|limit"):
        parsed = await read(reader, "a.tar", bytes(data))
        raise Rejected(str(parsed.metadata), remedy="")


def test_the_worker_itself_unpacks_nothing() -> None:
    for pack in PACKINGS.values():
        assert read_plain_text(File("a.txt", "text/plain", pack(b"words"))) is None
    assert read_plain_text(File("a.txt", "text/plain", tar({"a.txt": b"words"}))) is None
    assert read_plain_text(File("a.txt", "text/plain", b"BZh9 are three letters")) is not None


def mailbox_file(path: Path, bodies: list[str]) -> bytes:
    box = mailbox.mbox(path)
    for n, body in enumerate(bodies, start=1):
        message = EmailMessage()
        message["Subject"] = f"Load {n}"
        message.set_content(body, cte="base64" if n == 2 else None)
        box.add(message)
    box.close()
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.mbox", "Inbox", "a.txt"])
async def test_mails_of_a_mailbox_are_read_one_by_one(
    reader: FileReader, tmp_path: Path, name: str
) -> None:
    data = mailbox_file(tmp_path / "box", ["From here to Dallas\n", "PRO 223456781 é", "Last"])
    parsed = await read(reader, name, data)
    assert parsed.text.split() == [
        "##",
        "mail",
        "1.eml",
        "Subject:",
        "Load",
        "1",
        "From",
        "here",
        "to",
        "Dallas",
        "##",
        "mail",
        "2.eml",
        "Subject:",
        "Load",
        "2",
        "PRO",
        "223456781",
        "é",
        "##",
        "mail",
        "3.eml",
        "Subject:",
        "Load",
        "3",
        "Last",
    ]
    assert [note["name"] for note in parsed.metadata["members"]] == [
        "mail 1.eml",
        "mail 2.eml",
        "mail 3.eml",
    ]


async def test_the_line_of_a_mailbox_before_one_mail_is_passed_over(
    reader: FileReader, tmp_path: Path
) -> None:
    data = mailbox_file(tmp_path / "box", ["Text"])
    parsed = await read(reader, "a.eml", data)
    assert parsed.title == "Load 1"
    assert "members" not in parsed.metadata


@pytest.mark.parametrize("unit", [b"From a 10:10\nA:\n\n", b"\nFrom ", b">", b">From \n"])
def test_hostile_mailboxes_take_linear_time(unit: bytes) -> None:
    data = b"From a 10:10\nA: b\n\n" + unit * (2_000_000 // len(unit))
    began = time.process_time()
    for _ in archive_members(data, "mbox", EventBudget(ReaderLimits())):
        pass
    assert time.process_time() - began < 5
