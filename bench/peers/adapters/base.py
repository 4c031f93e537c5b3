"""What an adapter is: how a peer loads documents, answers a question, and says what it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

QUERY_MODEL = "e5-query"
PASSAGE_MODEL = "e5-passage"
CHAT_MODEL = "stub"
DIMENSION = 384
CANDIDATES = 30
"""Passages, facts or memories asked for, so that five different documents are among them."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document as all systems get it. `at` is ISO 8601; it also stands in the first line of the text."""

    key: str
    at: str
    title: str
    text: str


Acknowledge = Callable[[str], None]
"""Called with a document's key as soon as the peer says that the document is stored and searchable."""


class Adapter(Protocol):
    packages: Sequence[str]
    """The distributions whose versions the report names."""

    async def open(self, folder: Path, models: str) -> None:
        """Open the peer on a folder. `models` is the base URL of the model server, ending with `/v1`."""

    async def load(self, documents: Sequence[Document], acknowledge: Acknowledge) -> None:
        """Write documents in the way that the peer recommends for many, with its default parallelism."""

    async def search(self, question: str) -> Sequence[str]:
        """Return the keys of the documents of the peer's hits, best first. Keys may repeat."""

    async def records(self) -> Mapping[str, int]:
        """Return how many records of the stores belong to each document, by key."""

    async def progress(self) -> Mapping[str, bool] | None:
        """Return the documents that the peer has taken over, by key: whether it says that they are finished.

        None if it keeps no such list: then a document is taken over when its write returns.
        """

    async def resume(self) -> None:
        """Do what the peer's documentation says to do after a crash; nothing if it says nothing."""

    async def close(self) -> None: ...
