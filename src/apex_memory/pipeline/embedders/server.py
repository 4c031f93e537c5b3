"""Embeddings from a server with OpenAI's `/v1/embeddings`: TEI, Ollama, vLLM, OpenAI and others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx2
import numpy as np

from apex_memory.errors import ApexError, Misconfigured, Rejected, RetryLater, Unavailable
from apex_memory.model import Vectors, slug
from apex_memory.pipeline.embedders.base import unit_rows
from apex_memory.pipeline.embedders.turns import Turns, each, slices_of

# TEI refuses more than 32 texts a request unless it is started with another limit.
_BATCH = 32
_BATCH_CHARS = 64_000
_CONCURRENT = 8  # requests at a time: servers join what waits into batches of their own
_TIMEOUT = httpx2.Timeout(60, connect=5)  # seconds
_WAIT = 5.0  # seconds, if a 429 or 503 names none
_MAX_WAIT = 600.0


Guard = Callable[[Callable[[], Awaitable[Vectors]]], Awaitable[Vectors]]
"""Runs one request with the retries and the breaker of a call to the outside."""


async def unguarded(request: Callable[[], Awaitable[Vectors]]) -> Vectors:
    return await request()


class ServerEmbedder:
    """Vectors by HTTP: requests of 32 texts at most, eight at a time, urgent ones first.

    Each request for passages runs in `guard`; the caller decides by the error's class what comes next.
    A question is one request without retries: the caller waits for it, and has a time limit of its own.
    """

    def __init__(
        self, url: str, *, model: str, dimension: int, key: str, guard: Guard = unguarded
    ) -> None:
        if dimension <= 0:
            raise Misconfigured(
                "embedder_dimension: an embedding server needs it",
                remedy="set APEX_EMBEDDER_DIMENSION to the length of the model's vectors",
            )
        self.id = f"{slug(model) or 'server'}-{dimension}"
        self.dimension = dimension
        self._model = model
        self._url = f"{url.rstrip('/')}/embeddings"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.AsyncClient(timeout=_TIMEOUT, headers=headers)
        self._guard = guard
        self._turns = Turns(_CONCURRENT)

    async def passages(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        slices = slices_of([len(text) for text in texts], most=_BATCH_CHARS, most_texts=_BATCH)

        async def request(part: slice) -> None:
            async with self._turns.turn(urgent=urgent):
                rows[part] = await self._request_or_halves(list(texts[part]))

        await each(slices, request, at_a_time=_CONCURRENT)
        return unit_rows(rows)

    async def query(self, text: str) -> Vectors:
        row: Vectors = unit_rows(await self._request([text]))[0]
        return row

    async def close(self) -> None:
        await self._client.aclose()

    async def _request_or_halves(self, texts: list[str]) -> Vectors:
        """Request texts; in halves where the server refuses so many, or so long ones, at a time."""
        try:
            return await self._guard(lambda: self._request(texts))
        except Rejected:
            if len(texts) == 1:
                raise
        middle = len(texts) // 2
        halves = [
            await self._request_or_halves(texts[:middle]),
            await self._request_or_halves(texts[middle:]),
        ]
        return np.concatenate(halves)

    async def _request(self, texts: list[str]) -> Vectors:
        body: dict[str, Any] = {"input": texts, "encoding_format": "float"}
        if self._model:
            body["model"] = self._model
        try:
            response = await self._client.post(self._url, json=body)
        except httpx2.HTTPError as error:
            raise Unavailable(
                "embedder",
                f"no response ({type(error).__name__})",
                remedy="check that the server at APEX_EMBEDDER runs and can be reached",
            ) from None
        if response.status_code != 200:
            raise _error_of(response)
        return self._rows(response, len(texts))

    def _rows(self, response: httpx2.Response, count: int) -> Vectors:
        try:
            items = sorted(response.json()["data"], key=lambda item: int(item["index"]))
            rows = np.array([item["embedding"] for item in items], dtype=np.float32)
        except (ValueError, KeyError, TypeError):
            raise Unavailable(
                "embedder",
                "the response is not a list of vectors",
                remedy="set APEX_EMBEDDER to the URL without `/embeddings`, as in `http://host/v1`",
            ) from None
        if rows.shape != (count, self.dimension):
            raise Misconfigured(
                f"embedder_dimension: the server returned vectors of shape {rows.shape}, expected {(count, self.dimension)}",
                remedy="set APEX_EMBEDDER_DIMENSION and APEX_EMBEDDER_MODEL to what the server has",
            )
        return rows


def _error_of(response: httpx2.Response) -> ApexError:
    """Return the error that a status other than 200 means. The body is never repeated: it may quote the text."""
    status = response.status_code
    retry_after = response.headers.get("retry-after", "")
    if status == 429 or (status == 503 and retry_after):
        after = min(float(retry_after), _MAX_WAIT) if retry_after.isdecimal() else _WAIT
        return RetryLater(f"the embedder responded with {status}", after=after)
    if status >= 500:
        return Unavailable("embedder", f"status {status}", remedy="see the embedding server's log")
    if status in (400, 413, 422):
        return Rejected(
            f"the embedder refused a text with {status}",
            remedy="lower APEX_CHUNK_CHARS, or see the embedding server's log",
        )
    return Misconfigured(
        f"embedder: the server responded with {status}",
        remedy="correct APEX_EMBEDDER, APEX_EMBEDDER_MODEL or APEX_EMBEDDER_KEY",
    )
