"""Answers of earlier searches, served again while memory is as it was.

An answer depends on its request, on what PostgreSQL shows, on the time that its question names, and on the centre of memory. All
of these are compared before it is served, so that it is never older than what the same request would compute. It is kept in
the process that computed it: build, model and settings are the same there by themselves.
docs/discussions/performance.md says why it is not kept in the cache server.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

import orjson

from apex_memory.model import Filters
from apex_memory.search.requests import SearchRequest
from apex_memory.search.results import SearchResult
from apex_memory.search.snapshot import SnapshotSummary
from apex_memory.search.time_expressions import TimeRange

ENTRIES_MAX = 1_000
BYTES_MAX = 32 << 20
OBJECT_SHARE = 2  # bytes in memory for each byte as JSON; measured: 1.5 for answers of ten hits


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and the time that its text names at the moment: `today` is another day tomorrow."""

    request: SearchRequest
    time: TimeRange | None

    @property
    def is_lasting(self) -> bool:
        """Return whether it stays the same for a while. A time that ends now, as of `latest`, is another one each time."""
        if self.time is None:
            return True
        return all(
            (at.minute, at.second, at.microsecond) == (0, 0, 0)
            for at in (self.time.since, self.time.until)
        )


@dataclass(frozen=True, slots=True)
class AnswerBasis:
    """What an answer depends on besides its question. Equal bases give equal answers."""

    summary: SnapshotSummary
    """What PostgreSQL shows: the version of memory, and which stores are complete."""
    filters: Filters | None
    """The filters of the request, with its scope resolved in the snapshot."""
    centre: int | None
    """Number of the centre of memory that passages were compared by; None if it has to be read anew."""


@dataclass(frozen=True, slots=True)
class _Entry:
    basis: AnswerBasis
    result: SearchResult
    bytes: int


class AnswerCache:
    """The latest answers of this process, of one version of memory, at most so many and so many bytes together."""

    def __init__(self, *, entries: int = ENTRIES_MAX, bytes: int = BYTES_MAX) -> None:
        self._entries_max = entries
        self._bytes_max = bytes
        self._entries: OrderedDict[Question, _Entry] = OrderedDict()
        self._version = ""
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Return the approximate size of all answers in memory."""
        return self._bytes

    def may_hold(self, question: Question) -> bool:
        """Return whether there is an answer, perhaps of another snapshot."""
        return question in self._entries

    def get(self, question: Question, basis: AnswerBasis) -> SearchResult | None:
        """Return a copy of the answer, without how long it took; None if there is none for this basis."""
        entry = self._entries.get(question)
        if entry is None or entry.basis != basis:
            return None
        self._entries.move_to_end(question)
        return _copy(entry.result)

    def put(self, question: Question, basis: AnswerBasis, result: SearchResult) -> None:
        """Keep an answer, unless it is degraded or its question is another one each time. The least used ones make room.

        Answers of another version of memory go: none of them is ever served again, and what was erased stays nowhere.
        """
        if result.degraded or basis.centre is None or not question.is_lasting:
            return
        if basis.summary.version != self._version:
            self._version = basis.summary.version
            self._entries.clear()
            self._bytes = 0
        self._drop(question)
        entry = _Entry(basis, _copy(result), _size_of(question, result))
        self._entries[question] = entry
        self._bytes += entry.bytes
        while len(self._entries) > self._entries_max or self._bytes > self._bytes_max:
            self._drop(next(iter(self._entries)))

    def _drop(self, question: Question) -> None:
        entry = self._entries.pop(question, None)
        if entry:
            self._bytes -= entry.bytes


def _size_of(question: Question, result: SearchResult) -> int:
    """Return about how many bytes both take. Values that JSON lacks count by their text: a search never fails here."""
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    return OBJECT_SHARE * len(orjson.dumps((question, result), default=str, option=options))


def _copy(result: SearchResult) -> SearchResult:
    """Return a result of its own: callers may change its lists. Hits are immutable."""
    return replace(
        result,
        hits=list(result.hits),
        degraded=list(result.degraded),
        took_ms={},
        entities=list(result.entities),
        unknown=list(result.unknown),
    )
