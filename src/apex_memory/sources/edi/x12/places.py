"""Where files lie: a folder here, or a partner's SFTP server. Both are looked through, read, archived and written to."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import SecretStr

from apex_memory.errors import Misconfigured, RetryLater, Unauthorized, require_extra
from apex_memory.telemetry import VENDOR_CALLS

if TYPE_CHECKING:
    import asyncssh

UNFINISHED = (".tmp", ".part", ".filepart")
CONNECT_SECONDS = 20
CALL_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Entry:
    """A file as a listing shows it: bytes, and seconds since 1970."""

    name: str
    size: int
    changed: float


class Place(Protocol):
    """`inbound`, `archive` and `outbound` of one partner or folder. Raises `RetryLater`, `Unauthorized`, `Misconfigured`."""

    @property
    def name(self) -> str:
        """Stands before the names of files from here, and in the cursor."""

    async def listed(self, *, archived: bool = False) -> list[Entry]: ...

    async def read(self, name: str, *, archived: bool = False) -> bytes: ...

    async def archive(self, name: str, data: bytes) -> None:
        """Move a file out of `inbound`. One of that name there with other content stays."""

    async def write(self, name: str, data: bytes) -> None:
        """Put a file into `outbound`, whole or not at all; one of that name is replaced."""


def archive_name(name: str, data: bytes) -> str:
    """The name in the archive when another file has `name` already: the same content, the same name."""
    path = PurePosixPath(name)
    return f"{path.stem}.{hashlib.sha256(data).hexdigest()[:12]}{path.suffix}"


@dataclass(frozen=True, slots=True)
class Folder:
    inbound: Path
    archived: Path
    outbound: Path | None
    name: str = "folder"

    async def listed(self, *, archived: bool = False) -> list[Entry]:
        folder = self.archived if archived else self.inbound
        with _folder_faults(folder):
            return await asyncio.to_thread(_scan, folder)

    async def read(self, name: str, *, archived: bool = False) -> bytes:
        path = (self.archived if archived else self.inbound) / name
        with _folder_faults(path):
            return await asyncio.to_thread(path.read_bytes)

    async def archive(self, name: str, data: bytes) -> None:
        with _folder_faults(self.archived):
            await asyncio.to_thread(self._archive, name, data)

    async def write(self, name: str, data: bytes) -> None:
        assert self.outbound is not None
        with _folder_faults(self.outbound):
            await asyncio.to_thread(_write, self.outbound, name, data)

    def _archive(self, name: str, data: bytes) -> None:
        self.archived.mkdir(parents=True, exist_ok=True)
        source, target = self.inbound / name, self.archived / name
        if target.exists():
            target = self.archived / archive_name(name, data)
        with suppress(FileNotFoundError):  # another pull was here first
            shutil.move(source, target)


def _scan(folder: Path) -> list[Entry]:
    entries = []
    for item in os.scandir(folder):
        # A link could name any file of this machine.
        with suppress(FileNotFoundError):
            held = item.stat(follow_symlinks=False)
            if stat.S_ISREG(held.st_mode):
                entries.append(Entry(item.name, held.st_size, held.st_mtime))
    return entries


def _write(folder: Path, name: str, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{name}.tmp"
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / name)


@contextmanager
def _folder_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise Misconfigured(
            f"edi: {path} is not there", remedy="check the folders under [sources.edi]"
        ) from None
    except PermissionError:
        raise Misconfigured(
            f"edi: no permission for {path}",
            remedy="let the user that runs the worker read, write and rename there",
        ) from None
    except OSError as error:
        raise RetryLater(
            f"edi: {path}: {error.strerror}", remedy="it is tried again by itself; check the disk"
        ) from None


@dataclass(frozen=True, slots=True)
class Server:
    """How to reach an SFTP server. `known_hosts` pins its key: another one, or none, is refused."""

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
    async def opened(self) -> AsyncIterator[Remote]:
        """A connection, for as long as the block lasts."""
        require_extra(
            "asyncssh",
            extra="sftp",
            feature="sources.edi.sftp_host",
            otherwise="exchange files by folder or by API",
        )
        import asyncssh  # heavy

        options = self._options()
        with _server_faults(self.host):
            async with asyncssh.connect(self.host, self.port, **options) as connection:
                VENDOR_CALLS.labels("edi", "2xx").inc()
                async with connection.start_sftp_client() as sftp:
                    yield Remote(self, sftp)

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
            known = asyncssh.import_known_hosts(self.known_hosts)
        except ValueError:
            raise Misconfigured(
                "sources.edi.sftp_known_hosts: no lines of a known_hosts file",
                remedy="set it to what `ssh-keyscan` shows, once the partner confirmed it",
            ) from None
        # Nothing of this user's own SSH set-up may let us in, or decide whom we trust.
        return {
            "username": self.user,
            "password": self.password.get_secret_value() or None,
            "client_keys": keys,
            "known_hosts": known,
            "config": None,
            "agent_path": None,
            "connect_timeout": CONNECT_SECONDS,
            "login_timeout": CONNECT_SECONDS,
            "keepalive_interval": CONNECT_SECONDS,
        }


@contextmanager
def _server_faults(host: str) -> Iterator[None]:
    """What goes wrong between here and there, by what to do next."""
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
            remedy="it is tried again by itself; ask the partner if it lasts",
        ) from None


class Remote:
    """An open connection as a place."""

    name = "sftp"

    def __init__(self, server: Server, sftp: asyncssh.SFTPClient) -> None:
        self._server, self._sftp = server, sftp

    async def listed(self, *, archived: bool = False) -> list[Entry]:
        folder = self._server.archived if archived else self._server.inbound
        entries = []
        with _server_faults(self._server.host):
            async with asyncio.timeout(CALL_SECONDS):
                for item in await self._sftp.readdir(folder):
                    mode, name = item.attrs.permissions or 0, str(item.filename)
                    if stat.S_ISREG(mode) and "/" not in name:
                        changed = float(item.attrs.mtime or 0)
                        entries.append(Entry(name, item.attrs.size or 0, changed))
        return entries

    async def read(self, name: str, *, archived: bool = False) -> bytes:
        folder = self._server.archived if archived else self._server.inbound
        with _server_faults(self._server.host):
            async with (
                asyncio.timeout(CALL_SECONDS),
                self._sftp.open(f"{folder}/{name}", "rb") as file,
            ):
                data: bytes = await file.read()
                return data

    async def archive(self, name: str, data: bytes) -> None:
        source, folder = f"{self._server.inbound}/{name}", self._server.archived
        with _server_faults(self._server.host):
            async with asyncio.timeout(CALL_SECONDS):
                await self._sftp.makedirs(folder, exist_ok=True)
                target = f"{folder}/{name}"
                if await self._sftp.exists(target):
                    target = f"{folder}/{archive_name(name, data)}"
                await self._replace(source, target)

    async def write(self, name: str, data: bytes) -> None:
        folder = self._server.outbound
        with _server_faults(self._server.host):
            async with asyncio.timeout(CALL_SECONDS):
                await self._sftp.makedirs(folder, exist_ok=True)
                unfinished = f"{folder}/{name}.tmp"
                async with self._sftp.open(unfinished, "wb") as file:
                    await file.write(data)
                await self._replace(unfinished, f"{folder}/{name}")

    async def _replace(self, source: str, target: str) -> None:
        """Rename over what may be there: at once where the server can, else in two steps."""
        import asyncssh  # heavy

        if not await self._sftp.exists(source):
            return  # another pull was here first, or an answer got lost on the way
        try:
            await self._sftp.posix_rename(source, target)
        except asyncssh.SFTPOpUnsupported:
            if await self._sftp.exists(target):
                await self._sftp.remove(target)
            await self._sftp.rename(source, target)
