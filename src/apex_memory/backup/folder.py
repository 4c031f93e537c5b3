"""A backup on disk: a folder with a file for each table, and a manifest that names and checks them.

A table's file is the output of `COPY … (FORMAT binary)`, compressed with gzip. The manifest is written last, and the
folder gets its name when all of it is on disk: a folder of that name is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ValidationError

from apex_memory.durable_files import sync
from apex_memory.errors import Conflict, Misconfigured, NotFound, Rejected

MANIFEST = "manifest.json"
BLOCK = 1 << 20  # bytes read, compressed or sent at once
LEVEL = 3  # of zlib: half the time of the default, for files some percent larger; vectors do not compress at any
DAMAGED = "use another backup; this one was damaged after it was written"


class TableCopy(BaseModel):
    """The copy of one table: rows, and bytes and SHA-256 of its compressed file."""

    name: str
    columns: list[str]
    rows: int
    bytes: int
    sha256: str

    @property
    def file(self) -> str:
        return f"{self.name}.copy.gz"


class Sequence(BaseModel):
    """The last value that a sequence has given out, by the column that it belongs to."""

    table: str
    column: str
    value: int


class Backup(BaseModel):
    """The manifest of a backup."""

    format: Literal[1] = 1
    created_at: datetime
    version: str
    """The version of Apex that wrote the backup."""
    build: str
    server: str
    """The version of PostgreSQL that it was written from."""
    installation: UUID
    embedder: str | None
    """What the vectors were made with; None before the first start."""
    dimension: int | None
    migrations: list[str]
    """The schema: names of the migrations that made it."""
    secret_keys: list[str]
    """Ids of the keys that the secrets are sealed with. The keys themselves are not in a backup."""
    tables: list[TableCopy]
    sequences: list[Sequence]
    partitions: list[date]
    """The days that the table `readings` has a partition for."""
    checksum: str = ""
    """SHA-256 of the manifest without this field."""

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)

    @property
    def bytes(self) -> int:
        return sum(table.bytes for table in self.tables)

    def sealed(self) -> Backup:
        """Return the manifest with its checksum."""
        return self.model_copy(update={"checksum": self._digest()})

    def is_intact(self) -> bool:
        return self.checksum == self._digest()

    def _digest(self) -> str:
        content = self.model_dump_json(exclude={"checksum"})
        return hashlib.sha256(content.encode()).hexdigest()


class TableFile:
    """A table's file while it is written: compresses, counts and hashes. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = _new_file(path)
        self._compressor = zlib.compressobj(LEVEL, wbits=31)
        self._hash = hashlib.sha256()
        self._waiting = bytearray()
        self.bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add a part of the table. Rows are small, so they are compressed some thousands at once."""
        self._waiting += data
        if len(self._waiting) >= BLOCK:
            self._write(self._compressor.compress(self._waiting))
            self._waiting.clear()

    def finish(self) -> str:
        """Write the rest, make the file durable, and return its SHA-256."""
        self._write(self._compressor.compress(self._waiting))
        self._write(self._compressor.flush())
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._hash.hexdigest()

    def _write(self, compressed: bytes) -> None:
        self._file.write(compressed)
        self._hash.update(compressed)
        self.bytes += len(compressed)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to write a backup to. It becomes `path` at the end of the block, and is removed on an exception.

    Raises `Conflict` if `path` exists or another process writes it. What a killed process left is removed.
    """
    draft = path.with_name(f"{path.name}.partial")
    with _locked(draft):
        if path.exists():
            raise Conflict(f"{path} exists already", remedy="name a new folder for each backup")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        try:
            yield draft
            sync(draft)
            draft.rename(path)
            sync(path.parent)
        except BaseException:  # also when interrupted: half a backup must not look like one
            shutil.rmtree(draft, ignore_errors=True)
            raise


@contextmanager
def _locked(draft: Path) -> Iterator[None]:
    """Hold the lock of a draft. Its file stands beside the draft, and goes with the holder."""
    file = draft.with_name(f"{draft.name}.lock")
    lock = _lock(file)
    # A holder that ended after this process had opened its file has removed that file: such a lock excludes nobody.
    while not _is_at(lock, file):
        lock.close()
        lock = _lock(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.close()


def _lock(file: Path) -> BinaryIO:
    """Open and lock the file. Raises `Conflict` while another process holds it, `Misconfigured` if it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("wb")
    except OSError as error:
        raise Misconfigured(
            f"{file.parent}: cannot write there ({error.strerror})", remedy="name another folder"
        ) from None
    try:
        fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise Conflict(
            f"another process writes {file.with_suffix('')}",
            remedy="wait until that backup has ended",
        ) from None
    return handle


def _is_at(handle: BinaryIO, file: Path) -> bool:
    """Return whether the open file still is the one at this path."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), file.stat())
    except FileNotFoundError:
        return False


def write_manifest(folder: Path, backup: Backup) -> None:
    """Write the manifest, durably: the last file of a backup."""
    with _new_file(folder / MANIFEST) as file:
        file.write(backup.sealed().model_dump_json(indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_backup(folder: Path) -> Backup:
    """Return the manifest of a backup. Raises `NotFound` where there is none, and `Rejected` for one that is damaged."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"{folder} is not a backup: it has no {MANIFEST}",
            remedy="name a folder that `apex backup` wrote; a name that ends in .partial is an unfinished one",
        ) from None
    except UnicodeDecodeError:
        raise Rejected(f"{folder / MANIFEST} is damaged: it is not UTF-8", remedy=DAMAGED) from None
    try:
        backup = Backup.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        if first["loc"] == ("format",):
            raise Rejected(
                f"{folder / MANIFEST}: this version does not know the format of the backup",
                remedy="restore it with the version of Apex that wrote it, or a later one",
            ) from None
        raise Rejected(
            f"{folder / MANIFEST} is damaged: {place}: {first['msg']}", remedy=DAMAGED
        ) from None
    if not backup.is_intact():
        raise Rejected(
            f"{folder / MANIFEST} is damaged: its checksum does not match", remedy=DAMAGED
        )
    return backup


def verify_backup(folder: Path) -> Backup:
    """Read the whole backup, and return its manifest. Raises `Rejected` for a file that is missing, cut or changed."""
    backup = read_backup(folder)
    for table in backup.tables:
        path = folder / table.file
        if not path.is_file():
            raise Rejected(f"{folder}: {table.file} is missing", remedy=DAMAGED)
        size = path.stat().st_size
        if size != table.bytes:
            raise Rejected(
                f"{path} has {size:,} bytes, and {table.bytes:,} were written", remedy=DAMAGED
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != table.sha256:
            raise Rejected(f"{path} is damaged: its checksum does not match", remedy=DAMAGED)
    return backup


def read_table(folder: Path, table: TableCopy) -> Iterator[bytes]:
    """Yield the rows of a table's file in blocks. Raises `Rejected` for a file that is cut or damaged."""
    decompressor = zlib.decompressobj(wbits=31)
    with (folder / table.file).open("rb") as file:
        compressed = file.read(BLOCK)
        while compressed and not decompressor.eof:
            try:
                block = decompressor.decompress(compressed, BLOCK)
            except zlib.error:
                raise Rejected(f"{folder / table.file} is damaged", remedy=DAMAGED) from None
            if block:
                yield block
            compressed = decompressor.unconsumed_tail or file.read(BLOCK)
    if not decompressor.eof:
        raise Rejected(f"{folder / table.file} is cut", remedy=DAMAGED)


def _new_file(path: Path) -> BinaryIO:
    """Create a file that only its owner can read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
