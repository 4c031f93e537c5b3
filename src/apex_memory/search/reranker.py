"""A reranker: a model behind a URL that scores the first candidates of a search against the question.

Two protocols are spoken. Without a model name the request is that of Text Embeddings Inference (TEI):
`{"query", "texts"}`, to which it returns `[{"index", "score"}]`. With a model name it is that of Cohere, Jina and vLLM:
`{"model", "query", "documents"}`, to which they return `{"results": [{"index", "relevance_score"}]}`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import httpx2
import orjson

from apex_memory.errors import RetryLater, Unavailable
from apex_memory.search.results import Hit

RERANKED = 50  # candidates of a search that are scored
TEI_TEXTS = 32  # most texts of a request that TEI accepts unless it is started with another limit

MAX_RESPONSE_BYTES = 1_000_000

Scores = list[float]

Guard = Callable[[Callable[[], Awaitable[Scores]]], Awaitable[Scores]]
"""Runs one call behind the circuit breaker of the reranker."""


class Reranker:
    """Scores by HTTP. A call takes `seconds` at most, in which it is not repeated: the search goes on without it."""

    def __init__(self, url: str, *, model: str, key: str, seconds: float, guard: Guard) -> None:
        self._url = url
        self._model = model
        self._seconds = seconds
        self._guard = guard
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A proxy of the environment must not get what is meant for a private network.
        trust = not url.startswith("http://")
        self._client = httpx2.AsyncClient(timeout=seconds, headers=headers, trust_env=trust)
        self.last_failure = ""
        """Why the last call failed, without any of its texts; empty if it succeeded, or there was none."""

    async def scores(self, query: str, texts: Sequence[str]) -> Scores:
        """Return one score for each text, higher for a better answer to the query.

        Raises `Unavailable` for whatever goes wrong, also at once while the breaker is open.
        """
        try:
            return await self._guard(lambda: self._within_limit(query, texts))
        except RetryLater as error:
            raise Unavailable("reranker", str(error)) from None

    async def probe(self) -> None:
        """Return once the reranker has scored a single word, for the probes of its breaker. Raises `Unavailable` otherwise."""
        await self._within_limit("probe", ["probe"])

    async def close(self) -> None:
        await self._client.aclose()

    async def _within_limit(self, query: str, texts: Sequence[str]) -> Scores:
        try:
            async with asyncio.timeout(self._seconds):
                scores = await self._requested(query, texts)
        except TimeoutError:
            error = Unavailable(
                "reranker",
                f"no response within {self._seconds * 1000:g} ms",
                remedy="raise APEX_RERANKER_MILLISECONDS, or give its server a faster machine",
            )
        except Unavailable as failure:
            error = failure
        else:
            self.last_failure = ""
            return scores
        self.last_failure = str(error)
        raise error

    async def _requested(self, query: str, texts: Sequence[str]) -> Scores:
        if self._model:
            body = {"model": self._model, "query": query, "documents": list(texts)}
            return await self._request(body, len(texts))
        parts = [list(texts[n : n + TEI_TEXTS]) for n in range(0, len(texts), TEI_TEXTS)]
        # A text's score does not depend on the other texts, so those of several requests compare.
        requests = [
            asyncio.create_task(
                self._request({"query": query, "texts": part, "truncate": True}, len(part))
            )
            for part in parts
        ]
        try:
            scores = await asyncio.gather(*requests)
        finally:
            for request in requests:  # after the failure of one nobody waits for the others
                request.cancel()
        return list(chain.from_iterable(scores))

    async def _request(self, body: dict[str, Any], count: int) -> Scores:
        try:
            async with self._client.stream("POST", self._url, json=body) as response:
                status, content = response.status_code, await _content(response)
        except httpx2.TimeoutException:
            raise TimeoutError from None
        except httpx2.HTTPError as error:
            raise Unavailable(
                "reranker",
                f"no response ({type(error).__name__})",
                remedy="check that the server at APEX_RERANKER runs and can be reached",
            ) from None
        if status != 200:
            # The body is never repeated: it may quote the texts.
            raise Unavailable(
                "reranker",
                f"status {status}",
                remedy="see the server's log, and check APEX_RERANKER, APEX_RERANKER_MODEL and APEX_RERANKER_KEY",
            )
        return _scores_of(content, count)


async def _content(response: httpx2.Response) -> bytes:
    """Return the body. Raises `Unavailable` as soon as it is larger than any list of scores, counted after decompression."""
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MAX_RESPONSE_BYTES:
            raise Unavailable(
                "reranker",
                f"the response has more than {MAX_RESPONSE_BYTES} bytes",
                remedy="check that APEX_RERANKER names a reranker",
            )
    return bytes(content)


def _scores_of(content: bytes, count: int) -> Scores:
    """Return the scores of a response in the order of the texts. Raises `Unavailable` unless each text has one, and only one."""
    scores: dict[int, float] = {}
    try:
        answer = orjson.loads(content)
        rows = answer["results"] if isinstance(answer, dict) else answer
        for row in rows:
            index = row["index"]
            score = float(row["relevance_score"] if "relevance_score" in row else row["score"])
            if type(index) is int and math.isfinite(score):
                scores[index] = score
        is_whole = len(rows) == count and scores.keys() == set(range(count))
    except (ValueError, KeyError, TypeError, OverflowError):
        is_whole = False
    if not is_whole:
        raise Unavailable(
            "reranker",
            "the response is not a score for each text",
            remedy="set APEX_RERANKER_MODEL for a server of the kind of Cohere, Jina or vLLM, and leave it empty for TEI",
        )
    return [scores[n] for n in range(count)]


def text_of(hit: Hit) -> str:
    """Return what the reranker reads of a hit: title and passage."""
    return f"{hit.title}\n{hit.snippet}" if hit.title else hit.snippet


def reordered(hits: Sequence[Hit], first: int, scores: Sequence[float]) -> list[Hit]:
    """Return hits with those from `first` on in the order of their scores; hits without a score keep their places.

    Ranks and fused scores stay with the places, so that they remain in order; a hit's own score is `reranker` in its legs.
    """
    scored = hits[first : first + len(scores)]
    order = sorted(range(len(scored)), key=lambda n: -scores[n])
    best = [
        replace(scored[n], legs={**scored[n].legs, "reranker": round(scores[n], 6)}) for n in order
    ]
    new = [*hits[:first], *best, *hits[first + len(scored) :]]
    return [
        replace(hit, rank=place.rank, score=place.score)
        for hit, place in zip(new, hits, strict=True)
    ]
