"""An OpenFeature provider over the shares of this installation, for programs that want to know which way a document goes.

Needs the extra `flags`. Flags of each source: `apex.SOURCE.share` (integer, per cent of the documents that Temporal
processes), `apex.SOURCE.shadow` (boolean), and `apex.SOURCE.path` (string, `temporal` or `direct`), which needs the id of
the document as targeting key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from time import monotonic
from typing import Any, TypedDict, TypeVar
from uuid import UUID

import httpx2
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import (
    FlagNotFoundError,
    GeneralError,
    InvalidContextError,
    TargetingKeyMissingError,
    TypeMismatchError,
)
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
from openfeature.provider import AbstractProvider, Metadata

from apex_memory.inbox.routing import bucket_of
from apex_memory.rollout.subjects import source_subject


class ShareRow(TypedDict):
    """Per cent of a source's documents that Temporal processes, and whether copies of the others are processed too."""

    share: int
    shadow: bool


NEW_SOURCE = ShareRow(share=100, shadow=False)
"""What holds for a source without a row: Temporal processes it."""

READ_SECONDS = 2.0

T = TypeVar("T")
Rows = Mapping[str, ShareRow]
"""The row of every source, by its name."""


class RolloutProvider(AbstractProvider):
    """Flags from the shares that `read` returns, which is called at most every `refresh_seconds`.

    While `read` fails, the last shares hold, with the reason STALE. A provider that raises makes OpenFeature return
    the caller's default: this one does so for unknown flags, a missing or wrong targeting key, and when it never could read.
    """

    def __init__(self, read: Callable[[], Rows], *, refresh_seconds: float = 1.0) -> None:
        super().__init__()
        self._read = read
        self._refresh_seconds = refresh_seconds
        self._rows: Rows | None = None
        self._stale = False
        self._next = float("-inf")
        self._lock = Lock()

    @classmethod
    def of_gateway(cls, url: str, api_key: str, *, refresh_seconds: float = 1.0) -> RolloutProvider:
        """Return a provider over the HTTP API. The key needs the scope `read`."""
        client = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=READ_SECONDS,
        )

        def read() -> Rows:
            sources = _json(client, "/v1/sources")["sources"]
            rows = {row["subject"]: row for row in _json(client, "/v1/rollouts")["rollouts"]}
            return {
                source["name"]: rows.get(source_subject(source["name"]), NEW_SOURCE)
                for source in sources
            }

        return cls(read, refresh_seconds=refresh_seconds)

    def get_metadata(self) -> Metadata:
        return Metadata(name="apex-memory")

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        return self._details(self._row(flag_key, "share")["share"], Reason.STATIC)

    def resolve_boolean_details(
        self,
        flag_key: str,
        default_value: bool,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        return self._details(self._row(flag_key, "shadow")["shadow"], Reason.STATIC)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        row = self._row(flag_key, "path")
        path = "temporal" if bucket_of(_document(evaluation_context)) < row["share"] else "direct"
        return self._details(path, Reason.SPLIT)

    def resolve_float_details(
        self,
        flag_key: str,
        default_value: float,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[float]:
        raise TypeMismatchError(f"{flag_key}: no flag is a float")

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        raise TypeMismatchError(f"{flag_key}: no flag is an object")

    async def resolve_integer_details_async(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        await asyncio.to_thread(self._refresh)
        return self.resolve_integer_details(flag_key, default_value, evaluation_context)

    async def resolve_boolean_details_async(
        self,
        flag_key: str,
        default_value: bool,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        await asyncio.to_thread(self._refresh)
        return self.resolve_boolean_details(flag_key, default_value, evaluation_context)

    async def resolve_string_details_async(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        await asyncio.to_thread(self._refresh)
        return self.resolve_string_details(flag_key, default_value, evaluation_context)

    def _details(self, value: T, reason: Reason) -> FlagResolutionDetails[T]:
        return FlagResolutionDetails(value, reason=Reason.STALE if self._stale else reason)

    def _row(self, flag_key: str, kind: str) -> ShareRow:
        """Return the row of the source that a flag names. Raises `FlagNotFoundError` and `TypeMismatchError`."""
        self._refresh()
        if self._rows is None:
            raise GeneralError("the shares could not be read yet")
        prefix, _, rest = flag_key.partition(".")
        source, _, name = rest.rpartition(".")
        if prefix != "apex" or source not in self._rows or name not in ("share", "shadow", "path"):
            raise FlagNotFoundError(f"{flag_key}: no such flag")
        if name != kind:
            raise TypeMismatchError(f"{flag_key}: the flag has another type")
        return self._rows[source]

    def _refresh(self) -> None:
        """Read the shares again when they are due. While one thread reads, the others wait for it."""
        with self._lock:
            if monotonic() < self._next:
                return
            try:
                self._rows = self._read()
                self._stale = False
            except (httpx2.HTTPError, KeyError, ValueError):
                self._stale = True
            self._next = monotonic() + self._refresh_seconds


def _json(client: httpx2.Client, path: str) -> Any:
    response = client.get(path)
    response.raise_for_status()
    return response.json()


def _document(context: EvaluationContext | None) -> UUID:
    """Return the document that a context names. Raises OpenFeature's errors for one that names none."""
    key = context.targeting_key if context else None
    if not key:
        raise TargetingKeyMissingError("the targeting key is the id of the document")
    try:
        return UUID(key)
    except ValueError:
        raise InvalidContextError("the targeting key is not the id of a document") from None
