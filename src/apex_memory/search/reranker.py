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

from apex_memory.errors import RetryLater, Unavailable
from apex_memory.search.results import Hit

RERANKED = 50  # candidates of a search that are scored
TEI_TEXTS = 32  # most texts of a request that TEI accepts unless it is started with another limit

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
        self._client = httpx2.AsyncClient(timeout=seconds, headers=headers)
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
        """Score one word: whether the reranker is well again. For the probes of its breaker, which raise its errors."""
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
        scores = await asyncio.gather(
            *(
                self._request({"query": query, "texts": part, "truncate": True}, len(part))
                for part in parts
            )
        )
        return list(chain.from_iterable(scores))

    async def _request(self, body: dict[str, Any], count: int) -> Scores:
        try:
            response = await self._client.post(self._url, json=body)
        except httpx2.TimeoutException:
            raise TimeoutError from None
        except httpx2.HTTPError as error:
            raise Unavailable(
                "reranker",
                f"no response ({type(error).__name__})",
                remedy="check that the server at APEX_RERANKER runs and can be reached",
            ) from None
        if response.status_code != 200:
            # The body is never repeated: it may quote the texts.
            raise Unavailable(
                "reranker",
                f"status {response.status_code}",
                remedy="see the server's log, and check APEX_RERANKER, APEX_RERANKER_MODEL and APEX_RERANKER_KEY",
            )
        return _scores_of(response, count)


def _scores_of(response: httpx2.Response, count: int) -> Scores:
    """Return the scores of a response in the order of the texts. Raises `Unavailable` unless each text has one."""
    scores: dict[int, float] = {}
    try:
        answer = response.json()
        for row in answer["results"] if isinstance(answer, dict) else answer:
            score = float(row["relevance_score"] if "relevance_score" in row else row["score"])
            if math.isfinite(score):
                scores[int(row["index"])] = score
    except (ValueError, KeyError, TypeError):
        scores.clear()
    if scores.keys() != set(range(count)):
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
