"""An S3-compatible server for tests: moto's, a process of its own that keeps its objects in memory."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from typing import Any

import httpx2

from apex_memory.engines.base import free_port
from tests.waiting import until

BUCKET = "raw-payloads"
PREFIX = "apex/one"
KEY_ID, SECRET = "test-key-id", "test-secret-key"
SIGNED = {
    "authorization": f"AWS4-HMAC-SHA256 Credential={KEY_ID}/20260101/us-east-1/s3/aws4_request"
}
"""The server looks whether a delete is signed, and at nothing else of the signature."""
_NAMES = re.compile(r"<Key>([^<]+)</Key>")


class BucketServer:
    """The server and its bucket. `start` and `kill` may follow each other; what is killed loses its objects."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: Process | None = None

    def settings(self, **overrides: Any) -> dict[str, Any]:
        """Settings for an installation whose payloads of 2,000 bytes and more go to the bucket."""
        given: dict[str, Any] = {
            "payload_store": f"s3://{BUCKET}/{PREFIX}",
            "payload_store_endpoint": self.url,
            "payload_store_key_id": KEY_ID,
            "payload_store_secret": SECRET,
            "payload_threshold_bytes": 2_000,
            "payload_store_seconds": 2,
        }
        return given | overrides

    async def start(self) -> None:
        command = "from moto.server import main; main()"
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", command, "-p", str(self.port), stdout=DEVNULL, stderr=DEVNULL
        )
        await until(self._makes_bucket, "the bucket exists", seconds=60)

    async def _makes_bucket(self) -> bool:
        try:
            async with httpx2.AsyncClient() as client:
                return (await client.put(f"{self.url}/{BUCKET}")).status_code == 200
        except httpx2.HTTPError:
            return False

    async def empty(self) -> None:
        """Make the server as it was when it started, and start it if it was killed."""
        if self._process is None:
            await self.start()
            return
        async with httpx2.AsyncClient() as client:
            (await client.post(f"{self.url}/moto-api/reset")).raise_for_status()
        await until(self._makes_bucket, "the bucket exists")

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Let the server accept connections and answer none, until `resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def require_credentials(self, required: bool = True) -> None:
        """Refuse every request from now on, since no credentials are registered; accept all again with False."""
        async with httpx2.AsyncClient() as client:
            content = b"0" if required else b"1000000"
            (
                await client.post(f"{self.url}/moto-api/reset-auth", content=content)
            ).raise_for_status()

    async def names(self) -> list[str]:
        """Names of the payloads' objects, without the prefix."""
        async with httpx2.AsyncClient() as client:
            listed = await client.get(f"{self.url}/{BUCKET}", params={"list-type": "2"})
        names = [name.removeprefix(f"{PREFIX}/") for name in _NAMES.findall(listed.text)]
        return [name for name in names if name != "apex-ping"]

    async def body(self, name: str) -> bytes:
        async with httpx2.AsyncClient() as client:
            address = f"{self.url}/{BUCKET}/{PREFIX}/{name}"
            answer = await client.get(address, headers=SIGNED)
        answer.raise_for_status()
        return answer.content

    async def write(self, name: str, body: bytes) -> None:
        async with httpx2.AsyncClient() as client:
            address = f"{self.url}/{BUCKET}/{PREFIX}/{name}"
            (await client.put(address, content=body, headers=SIGNED)).raise_for_status()

    async def deny(self, action: str, name: str) -> None:
        """Refuse an action with an object from now on, such as `GetObject`, also where there is no such object."""
        denied = {
            "Effect": "Deny",
            "Principal": "*",
            "Action": f"s3:{action}",
            "Resource": f"arn:aws:s3:::{BUCKET}/{PREFIX}/{name}",
        }
        policy = {"Version": "2012-10-17", "Statement": [denied]}
        async with httpx2.AsyncClient() as client:
            (
                await client.put(f"{self.url}/{BUCKET}?policy", json=policy, headers=SIGNED)
            ).raise_for_status()

    async def delete(self, name: str) -> None:
        async with httpx2.AsyncClient() as client:
            answer = await client.delete(f"{self.url}/{BUCKET}/{PREFIX}/{name}", headers=SIGNED)
        answer.raise_for_status()
