"""Mailboxes that exchange files with partners: a local folder, or an SFTP server. Each is listed, read, archived and written."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import SecretStr

from apex_memory.errors import Misconfigured, RetryLater, Unauthorized, require_extra
from apex_memory.telemetry import VENDOR_CALLS

if TYPE_CHECKING:
    import asyncssh

UNFINISHED_SUFFIXES = (".tmp", ".part", ".filepart")
CONNECT_SECONDS = 20
CALL_SECONDS = 120


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file as a listing shows it. `size` is in bytes, `modified_at` in seconds since 1970."""

    name: str
    size: int
    modified_at: float


class Mailbox(Protocol):
    """The folders `inbound`, `archive` and `outbound` of one partner.

    Every method raises `RetryLater`, `Unauthorized` or `Misconfigured`.
    """

    @property
    def name(self) -> str:
        """Stands before the names of files from here, and in the cursor."""

    async def list_files(self, *, archived: bool = False) -> list[FileEntry]:
        """Return the regular files in `inbound`, or in `archive`."""

    async def read(self, entry: FileEntry, *, archived: bool = False) -> bytes | None:
        """Return the content of a file; None where it is no longer the regular file of the listing, or not of its size.

        No more than that size is read: a file can have grown, and a listing can be wrong.
        """

    async def archive(self, name: str, data: bytes) -> None:
        """Move a file out of `inbound`. A file of that name in `archive` with other content stays."""

    async def write(self, name: str, data: bytes) -> None:
        """Put a file into `outbound`, whole or not at all; a file of that name is replaced."""


def archive_name(name: str, data: bytes) -> str:
    """Return the name in the archive where another file has `name` already: the same content, the same name."""
    path = PurePosixPath(name)
    return f"{path.stem}.{hashlib.sha256(data).hexdigest()[:12]}{path.suffix}"


@dataclass(frozen=True, slots=True)
class FolderMailbox:
    """Three local folders."""

    inbound: Path
    archived: Path
    outbound: Path | None
    name: str = "folder"

    async def list_files(self, *, archived: bool = False) -> list[FileEntry]:
        folder = self.archived if archived else self.inbound
        with _folder_errors(folder):
            return await asyncio.to_thread(_scan, folder)

    async def read(self, entry: FileEntry, *, archived: bool = False) -> bytes | None:
        path = (self.archived if archived else self.inbound) / entry.name
        with _folder_errors(path):
            return await asyncio.to_thread(_read, path, entry.size)

    async def archive(self, name: str, data: bytes) -> None:
        with _folder_errors(self.archived):
            await asyncio.to_thread(self._archive, name, data)

    async def write(self, name: str, data: bytes) -> None:
        assert self.outbound is not None
        with _folder_errors(self.outbound):
            await asyncio.to_thread(_write, self.outbound, name, data)

    def _archive(self, name: str, data: bytes) -> None:
        self.archived.mkdir(parents=True, exist_ok=True)
        source, target = self.inbound / name, self.archived / name
        if target.exists():
            target = self.archived / archive_name(name, data)
        with suppress(FileNotFoundError):  # a concurrent pull archived it
            shutil.move(source, target)


def _scan(folder: Path) -> list[FileEntry]:
    entries = []
    for item in os.scandir(folder):
        # Links are not followed: one could name any file of this machine.
        with suppress(FileNotFoundError):
            status = item.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                entries.append(FileEntry(item.name, status.st_size, status.st_mtime))
    return entries


def _read(path: Path, size: int) -> bytes | None:
    """Return the content of a regular file of `size` bytes; None for anything else that has this name by now."""
    try:
        # A link is not followed, and a pipe is not waited for: whoever may write to the folder can put one here.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            return None
        raise
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            return None
        data = file.read(size + 1)
    return data if len(data) == size else None


def _write(folder: Path, name: str, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{name}.tmp"
    unfinished.unlink(missing_ok=True)
    with unfinished.open("xb") as file:  # follows no link that somebody put here
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / name)


@contextmanager
def _folder_errors(path: Path) -> Iterator[None]:
    """Translate the errors of the file system by what to do next."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise Misconfigured(
            f"edi: {path} does not exist", remedy="check the folders under [sources.edi]"
        ) from None
    except PermissionError:
        raise Misconfigured(
            f"edi: no permission for {path}",
            remedy="let the user that runs the worker read, write and rename there",
        ) from None
    except OSError as error:
        raise RetryLater(
            f"edi: {path}: {error.strerror}",
            remedy="it is retried automatically; check the disk",
        ) from None


@dataclass(frozen=True, slots=True)
class SftpServer:
    """How to reach an SFTP server. `known_hosts` pins its key: another key, or none, is refused."""

    host: str
    port: int
    user: str
    password: SecretStr
    key: SecretStr
    passphrase: SecretStr
    known_hosts: str
    inbound: str
    archived: str
    outbound: str

    @asynccontextmanager
    async def open(self) -> AsyncIterator[SftpMailbox]:
        """Connect, for as long as the block lasts."""
        require_extra(
            "asyncssh",
            extra="sftp",
            feature="sources.edi.sftp_host",
            otherwise="exchange files by folder or by API",
        )
        import asyncssh  # heavy

        options = self._options()
        with _server_errors(self.host):
            async with AsyncExitStack() as stack:
                # Not by `connect_timeout`: it waits by `asyncio.wait_for`, which up to Python 3.11 loses a cancellation
                # at the moment of success.
                async with asyncio.timeout(CONNECT_SECONDS):
                    connecting = asyncssh.connect(self.host, self.port, **options)
                    connection = await stack.enter_async_context(connecting)
                    VENDOR_CALLS.labels("edi", "2xx").inc()
                    # Names are bytes. One that is no UTF-8 must not fail the listing of all others.
                    client = connection.start_sftp_client(path_errors="surrogateescape")
                    sftp = await stack.enter_async_context(client)
                yield SftpMailbox(self, sftp)

    def _options(self) -> dict[str, Any]:
        import asyncssh  # heavy

        key, phrase = self.key.get_secret_value(), self.passphrase.get_secret_value()
        try:
            keys = [asyncssh.import_private_key(key, phrase or None)] if key else None
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError):
            raise Misconfigured(
                "sources.edi.sftp_key: no private key, or its passphrase does not fit",
                remedy="set it to the whole text of the key file, and sftp_key_passphrase",
            ) from None
        try:
            known_hosts = asyncssh.import_known_hosts(self.known_hosts)
        except ValueError:
            raise Misconfigured(
                "sources.edi.sftp_known_hosts: no lines of a known_hosts file",
                remedy="set it to the output of `ssh-keyscan`, once the partner confirmed it",
            ) from None
        # The SSH set-up of the user that runs the worker must neither authenticate us nor decide whom we trust.
        return {
            "username": self.user,
            "password": self.password.get_secret_value() or None,
            "client_keys": keys,
            "known_hosts": known_hosts,
            "config": None,
            "agent_path": None,
            "login_timeout": CONNECT_SECONDS,
            "keepalive_interval": CONNECT_SECONDS,
        }


@contextmanager
def _server_errors(host: str) -> Iterator[None]:
    """Translate the errors of SSH and SFTP by what to do next."""
    import asyncssh  # heavy

    try:
        yield
    except asyncssh.HostKeyNotVerifiable:
        raise Unauthorized(
            f"edi: the key of {host} is not the pinned one",
            remedy="ask the partner whether it changed, then set sources.edi.sftp_known_hosts",
        ) from None
    except (asyncssh.PermissionDenied, asyncssh.SFTPPermissionDenied):
        raise Unauthorized(
            f"edi: {host} refuses our user or key",
            remedy="check sources.edi.sftp_user, its password or key, and what it may do there",
        ) from None
    except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
        raise Misconfigured(
            f"edi: {host} has no such folder or file",
            remedy="check sources.edi.sftp_inbound, sftp_archive and sftp_outbound",
        ) from None
    except (asyncssh.Error, OSError, TimeoutError) as error:
        VENDOR_CALLS.labels("edi", "unreachable").inc()
        raise RetryLater(
            f"edi: {host}: {type(error).__name__}",
            after=5,
            remedy="it is retried automatically; ask the partner if it persists",
        ) from None


class SftpMailbox:
    """Three folders of an SFTP server, over an open connection."""

    name = "sftp"

    def __init__(self, server: SftpServer, sftp: asyncssh.SFTPClient) -> None:
        self._server, self._sftp = server, sftp

    async def list_files(self, *, archived: bool = False) -> list[FileEntry]:
        folder = self._server.archived if archived else self._server.inbound
        entries = []
        with _server_errors(self._server.host):
            async with asyncio.timeout(CALL_SECONDS):
                for item in await self._sftp.readdir(folder):
                    mode, name = item.attrs.permissions or 0, str(item.filename)
                    if stat.S_ISREG(mode) and not {"/", "\0"} & set(name):
                        modified_at = float(item.attrs.mtime or 0)
                        entries.append(FileEntry(name, item.attrs.size or 0, modified_at))
        return entries

    async def read(self, entry: FileEntry, *, archived: bool = False) -> bytes | None:
        folder = self._server.archived if archived else self._server.inbound
        with _server_errors(self._server.host):
            async with (
                asyncio.timeout(CALL_SECONDS),
                self._sftp.open(f"{folder}/{entry.name}", "rb") as file,
            ):
                data: bytes = await file.read(entry.size + 1)
        return data if len(data) == entry.size else None

    async def archive(self, name: str, data: bytes) -> None:
        source, folder = f"{self._server.inbound}/{name}", self._server.archived
        with _server_errors(self._server.host):
            async with asyncio.timeout(CALL_SECONDS):
                await self._sftp.makedirs(folder, exist_ok=True)
                target = f"{folder}/{name}"
                if await self._sftp.exists(target):
                    target = f"{folder}/{archive_name(name, data)}"
                await self._replace(source, target)

    async def write(self, name: str, data: bytes) -> None:
        folder = self._server.outbound
        with _server_errors(self._server.host):
            async with asyncio.timeout(CALL_SECONDS):
                await self._sftp.makedirs(folder, exist_ok=True)
                unfinished = f"{folder}/{name}.tmp"
                async with self._sftp.open(unfinished, "wb") as file:
                    await file.write(data)
                await self._replace(unfinished, f"{folder}/{name}")

    async def _replace(self, source: str, target: str) -> None:
        """Rename over an existing target: atomically where the server can, else in two steps."""
        import asyncssh  # heavy

        if not await self._sftp.exists(source):
            return  # a concurrent pull renamed it, or the response to our own rename was lost
        try:
            await self._sftp.posix_rename(source, target)
        except asyncssh.SFTPOpUnsupported:
            if await self._sftp.exists(target):
                await self._sftp.remove(target)
            await self._sftp.rename(source, target)
