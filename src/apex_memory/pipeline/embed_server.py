"""A server that speaks OpenAI's `/v1/embeddings`: TEI, Ollama, vLLM, OpenAI and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx2
import numpy as np

from apex_memory.errors import ApexError, Misconfigured, Rejected, RetryLater, Unavailable
from apex_memory.model import Vectors, slug
from apex_memory.pipeline.embed import unit_rows

_BATCH = 128  # texts in one request
_TIMEOUT = httpx2.Timeout(60, connect=5)  # seconds
_WAIT = 5.0  # seconds, where a 429 or 503 names none
_MAX_WAIT = 600.0


class ServerEmbedder:
    """Vectors by HTTP. Never retries: that is for the caller, by the error's name."""

    def __init__(self, url: str, *, model: str, dimension: int, key: str) -> None:
        if dimension <= 0:
            raise Misconfigured(
                "embedder_dimension: must be given for an embedding server",
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
            rows[start : start + _BATCH] = await self._ask(list(texts[start : start + _BATCH]))
        return unit_rows(rows)

    async def query(self, text: str) -> Vectors:
        row: Vectors = (await self.passages([text]))[0]
        return row

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, texts: list[str]) -> Vectors:
        body: dict[str, Any] = {"input": texts, "encoding_format": "float"}
        if self._model:
            body["model"] = self._model
        try:
            answer = await self._client.post(self._url, json=body)
        except httpx2.HTTPError as error:
            raise Unavailable(
                "embedder",
                f"no answer ({type(error).__name__})",
                remedy="see that the server at APEX_EMBEDDER runs and can be reached",
            ) from None
        if answer.status_code != 200:
            raise _refusal(answer)
        return self._rows(answer, len(texts))

    def _rows(self, answer: httpx2.Response, count: int) -> Vectors:
        try:
            items = sorted(answer.json()["data"], key=lambda item: int(item["index"]))
            rows = np.array([item["embedding"] for item in items], dtype=np.float32)
        except (ValueError, KeyError, TypeError):
            raise Unavailable(
                "embedder",
                "the answer is not a list of vectors",
                remedy="APEX_EMBEDDER must end where `/embeddings` follows, as in `http://host/v1`",
            ) from None
        if rows.shape != (count, self.dimension):
            raise Misconfigured(
                f"embedder_dimension: the server gave vectors of shape {rows.shape}, expected {(count, self.dimension)}",
                remedy="set APEX_EMBEDDER_DIMENSION and APEX_EMBEDDER_MODEL to what the server has",
            )
        return rows


def _refusal(answer: httpx2.Response) -> ApexError:
    """The error that a status other than 200 stands for. Its body is never repeated: it may quote the text."""
    status = answer.status_code
    asked = answer.headers.get("retry-after", "")
    if status == 429 or (status == 503 and asked):
        after = min(float(asked), _MAX_WAIT) if asked.isdecimal() else _WAIT
        return RetryLater(f"the embedder answered {status}", after=after)
    if status >= 500:
        return Unavailable(
            "embedder", f"answered {status}", remedy="look at the embedding server's own log"
        )
    if status in (400, 413, 422):
        return Rejected(
            f"the embedder answered {status} to a text",
            remedy="lower APEX_CHUNK_CHARS, or see the embedding server's log",
        )
    return Misconfigured(
        f"embedder: the server answered {status}",
        remedy="correct APEX_EMBEDDER, APEX_EMBEDDER_MODEL or APEX_EMBEDDER_KEY",
    )
