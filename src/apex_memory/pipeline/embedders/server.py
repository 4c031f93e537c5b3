"""Embeddings from a server with OpenAI's `/v1/embeddings`: TEI, Ollama, vLLM, OpenAI and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx2
import numpy as np

from apex_memory.errors import ApexError, Misconfigured, Rejected, RetryLater, Unavailable
from apex_memory.model import Vectors, slug
from apex_memory.pipeline.embedders.base import unit_rows

_BATCH = 128  # texts in one request
_TIMEOUT = httpx2.Timeout(60, connect=5)  # seconds
_WAIT = 5.0  # seconds, if a 429 or 503 names none
_MAX_WAIT = 600.0


class ServerEmbedder:
    """Vectors by HTTP. It never retries: the caller decides by the error's class."""

    def __init__(self, url: str, *, model: str, dimension: int, key: str) -> None:
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

    async def passages(self, texts: Sequence[str]) -> Vectors:
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for start in range(0, len(texts), _BATCH):
            rows[start : start + _BATCH] = await self._request(list(texts[start : start + _BATCH]))
        return unit_rows(rows)

    async def query(self, text: str) -> Vectors:
        row: Vectors = (await self.passages([text]))[0]
        return row

    async def close(self) -> None:
        await self._client.aclose()

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
