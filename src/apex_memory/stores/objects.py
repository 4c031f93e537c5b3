"""Objects in S3-compatible storage: put, get and delete by name, each within a time limit.

`obstore` (the Rust crate object_store) makes the requests, signs them, and repeats those that failed in passing. It is
the extra `s3`. What stands in its errors is not passed on: the body of a response may name an access key.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from apex_memory.config import Settings
from apex_memory.errors import (
    ApexError,
    Misconfigured,
    NotAllowed,
    NotCalled,
    NotFound,
    Rejected,
    Unavailable,
    require_extra,
)
from apex_memory.telemetry import PAYLOAD_OBJECT_SECONDS, PAYLOAD_OBJECTS
from apex_memory.telemetry.exemplars import observe
from apex_memory.tls import ClientTls

if TYPE_CHECKING:
    from obstore.store import S3Store

STORE = "payloads"
CANARY = "apex-ping"  # an object that `ping` reads; it is written when it is missing
CANARY_BODY = b"Apex Memory writes this object to see whether the bucket works.\n"
CONNECT_SECONDS = 3
RETRIES = 2
FIRST_WAIT = timedelta(milliseconds=100)
LONGEST_WAIT = timedelta(seconds=1)
AT_ONCE = 8  # requests of this process under way
AWAY_SECONDS = 1.0  # how long requests are refused at once after one that had no response
REGION = "us-east-1"  # what most services other than AWS take for any region

REMEDY = "check payload_store, its endpoint and its credentials (docs/howto/large-payloads.md); events over payload_threshold_bytes wait until then"

MISSING_REMEDY = "restore it from a version or a backup of the bucket"

# The code in a response, and of one object among those to delete.
_CODE = re.compile(r"(?:<Code>|\(code: )(\w{1,64})")
_STATUS = re.compile(r"status code: (\d{3})")
_NO_BUCKET = "NoSuchBucket"


class ObjectStore:
    """A bucket, and a prefix in it. Safe to repeat: an object is written whole, and its name is used once.

    Methods raise `Unavailable` when the service does not respond in time, and two kinds of it: `NotAllowed` when it
    refuses the credentials, and `NotCalled` where no request was made. Each waits for its turn, and then for the
    response, for at most `seconds`.
    """

    name = STORE

    def __init__(self, bucket: S3Store, *, place: str, seconds: float) -> None:
        self._bucket = bucket
        self._place = place
        self._seconds = seconds
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._away_until = 0.0

    async def put(self, name: str, make: Callable[[], bytes]) -> None:
        """Write an object. It exists whole when this returns. `make` makes its content, in a thread, when its turn comes."""
        import obstore

        async with self._request("put"):
            body = await asyncio.to_thread(make)
            # One request: an upload in parts that is broken off would leave its parts behind.
            await obstore.put_async(self._bucket, name, body, use_multipart=False)

    async def get(self, name: str, *, most: int) -> bytes:
        """Return an object. Raises `NotFound` if there is none, and `Rejected` for one of more than `most` bytes.

        Without permission to list, S3 refuses a missing object like one that may not be read. So an object that is
        refused counts as missing while the canary can be read.
        """
        try:
            return await self._get(name, most)
        except NotAllowed:
            if not await self._reads_canary():
                raise
        raise NotFound(
            "payloads: object not found, or withheld from these credentials", remedy=MISSING_REMEDY
        )

    async def _get(self, name: str, most: int) -> bytes:
        import obstore

        async with self._request("get"):
            response = await obstore.get_async(self._bucket, name)
            size = response.meta["size"]
            if size > most:
                raise Rejected(
                    f"payloads: an object has {size:,} bytes and was written with {most:,}",
                    remedy=MISSING_REMEDY,
                )
            return bytes(await response.bytes_async())

    async def _reads_canary(self) -> bool:
        try:
            await self._get(CANARY, len(CANARY_BODY))
        except ApexError:
            return False
        return True

    async def delete(self, names: Sequence[str]) -> None:
        """Remove objects. One that does not exist is no error."""
        import obstore

        if names:
            async with self._request("delete"):
                await obstore.delete_async(self._bucket, list(names))

    async def ping(self) -> None:
        """Return when the bucket can be read and written. Raises `Unavailable`."""
        try:
            await self._get(CANARY, len(CANARY_BODY))
        except (Rejected, NotAllowed):  # missing, see `get`; or not what was written
            await self.put(CANARY, lambda: CANARY_BODY)
            try:
                await self._get(CANARY, len(CANARY_BODY))
            except NotFound as error:
                raise Unavailable(
                    STORE, "an object just written cannot be read", remedy=REMEDY
                ) from error

    async def version(self) -> str:
        """Return where the objects are: `S3 bucket NAME at HOST`."""
        return self._place

    async def incarnation(self) -> str:
        """Return a constant: which process serves a bucket is nobody's concern."""
        return self._place

    async def close(self) -> None:
        """Do nothing: connections close with the object."""

    @asynccontextmanager
    async def _request(self, operation: str) -> AsyncIterator[None]:
        self._require_response()
        try:
            async with asyncio.timeout(self._seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise NotCalled(
                STORE, f"no turn within {self._seconds:g} s, its requests are slow", remedy=REMEDY
            ) from None
        try:
            self._require_response()  # others may have waited in vain meanwhile
            async with self._call(operation):
                yield
        finally:
            self._slots.release()

    @asynccontextmanager
    async def _call(self, operation: str) -> AsyncIterator[None]:
        import obstore.exceptions

        began = monotonic()
        outcome = "failed"
        try:
            async with asyncio.timeout(self._seconds):
                yield
            outcome = "done"
        except TimeoutError:
            self._away_until = monotonic() + AWAY_SECONDS
            raise Unavailable(
                STORE, f"the object store did not respond within {self._seconds:g} s", remedy=REMEDY
            ) from None
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            if _is_missing(error):
                outcome = "missing"
            elif not _has_response(error):
                self._away_until = monotonic() + AWAY_SECONDS
            # Not in a variable: an error whose frame refers to it keeps the payloads of its frames in memory.
            raise _translated(error) from None
        finally:
            PAYLOAD_OBJECTS.labels(operation, outcome).inc()
            observe(PAYLOAD_OBJECT_SECONDS.labels(operation), monotonic() - began)

    def _require_response(self) -> None:
        """Raise `NotCalled` for a while after a request that had no response."""
        if monotonic() < self._away_until:
            raise NotCalled(STORE, "the object store did not respond a moment ago", remedy=REMEDY)


def _translated(error: Exception) -> NotFound | Unavailable:
    """Return an error of the library as one of ours, without its text."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    text = str(error)
    code = _CODE.search(text)
    if _is_missing(error):
        return NotFound("payloads: object not found", remedy=MISSING_REMEDY)
    status = _STATUS.search(text)
    reason = "no response"
    if code:
        reason = code[1]
    elif status:
        reason = f"status {status[1]}"
    refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    kind = NotAllowed if refused else Unavailable
    return kind(STORE, f"the object store refused or failed ({reason})", remedy=REMEDY)


def _is_missing(error: Exception) -> bool:
    """Return whether there is no such object, in a bucket that exists."""
    code = _CODE.search(str(error))
    return isinstance(error, FileNotFoundError) and not (code and code[1] == _NO_BUCKET)


def _has_response(error: Exception) -> bool:
    """Return whether the service responded, as far as an error of the library tells."""
    return bool(_CODE.search(str(error)) or _STATUS.search(str(error)))


def open_objects(settings: Settings) -> ObjectStore | None:
    """Open the object store that the settings name; None without one. Connects with the first request.

    Raises `Misconfigured` without the extra `s3`, for credentials given by half, and for a `ca_file` that cannot be used.
    """
    if not settings.payload_store:
        return None
    require_extra("obstore", extra="s3", feature="payload_store")
    from obstore.store import S3Store

    url = urlsplit(settings.payload_store)
    endpoint = settings.payload_store_endpoint
    options: dict[str, Any] = {
        "region": settings.payload_store_region or _region(),
        "virtual_hosted_style_request": not endpoint,
    }
    if endpoint:
        options["endpoint"] = endpoint.rstrip("/")
    secret = settings.payload_store_secret.get_secret_value()
    if bool(secret) != bool(settings.payload_store_key_id):
        raise Misconfigured(
            "payload_store_key_id and payload_store_secret belong together",
            remedy="set both, or neither: then the environment of AWS gives the credentials",
        )
    if secret:
        options |= {"access_key_id": settings.payload_store_key_id, "secret_access_key": secret}
    seconds = settings.payload_store_seconds
    trusted: dict[str, Any] = {}
    if settings.ca_file:
        ClientTls(settings.ca_file).context()  # names a file that cannot be used
        trusted["root_certificate"] = settings.ca_file.read_bytes()
    bucket = S3Store(
        url.netloc,
        prefix=url.path.strip("/") or None,
        config=options,  # type: ignore[arg-type]
        client_options={  # type: ignore[arg-type]
            **trusted,
            "allow_http": endpoint.startswith("http://"),
            "timeout": timedelta(seconds=seconds),
            "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, seconds)),
        },
        retry_config={
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=seconds),
            "backoff": {"init_backoff": FIRST_WAIT, "max_backoff": LONGEST_WAIT, "base": 2},
        },
    )
    host = urlsplit(endpoint).hostname if endpoint else "AWS"
    return ObjectStore(bucket, place=f"S3 bucket {url.netloc} at {host}", seconds=seconds)


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or REGION
