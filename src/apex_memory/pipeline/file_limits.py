"""What reading the files of one event may use, however its sender nested and packed them.

All files of an event share one budget: a mail with a hundred attachments gets no more time or memory than a
single file. Processor time and memory are limits of the reader's process (`setrlimit`), which the kernel
enforces inside native parsers too. The limits that are counted are in `EventBudget`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from apex_memory.errors import TooLarge

MAX_CHARACTERS = 2_000_000
"""Longest text of a document, and of all files of an event together. The rest is cut off, and stated as cut."""

_SMALL_MEMBER = 1_000_000  # bytes: below it the compression ratio of a member does not matter


@dataclass(frozen=True, slots=True)
class ReaderLimits:
    """The limits of one event. Each field is the setting `reader_` + its name, except `characters`."""

    seconds: float = 60.0
    cpu_seconds: float = 30.0
    memory_bytes: int = 2 << 30
    """Address space of the process, which is more than it uses: the parsers alone map 300 MB."""
    max_files: int = 1_000
    nesting: int = 10
    """Levels of mails and archives inside one another."""
    mime_nesting: int = 100
    """Levels of multiparts inside one mail. Reading it costs its lines × its levels."""
    unpacked_bytes: int = 250_000_000
    compression_ratio: int = 250
    characters: int = MAX_CHARACTERS


class BudgetExceeded(TooLarge):
    """The files of an event need more than one of its limits; the message names the setting."""


class OfficeReaderMissing(Exception):
    """The files need the office reader, which is an extra of the installation."""


def budget_exceeded(setting: str, reason: str) -> BudgetExceeded:
    return BudgetExceeded(
        f"{reason} (limit `{setting}`)",
        remedy=f"split it, or send its text; a larger `{setting}` allows it",
    )


class EventBudget:
    """Counts what the files of one event use. Lives in the reader's process, for one event."""

    def __init__(
        self,
        limits: ReaderLimits,
        *,
        has_office_reader: bool = True,
        skipped: frozenset[int] = frozenset(),
        before_native: Callable[[int], None] = lambda number: None,
    ) -> None:
        """`skipped` holds the numbers of the native calls that crashed the process in earlier attempts.

        `before_native` is called with the number of each native call before it, so that whoever watches the
        process knows which file ended it.
        """
        self.limits = limits
        self._has_office_reader = has_office_reader
        self._skipped = skipped
        self._before_native = before_native
        self._native_calls = 0
        self._files = 0
        self._unpacked = 0
        self._characters = 0
        self.characters_left_out = 0
        self.files_left_out = 0

    def add_file(self) -> None:
        """Count a file, attachment or member of an archive. Raises `BudgetExceeded`."""
        self._files += 1
        self.check_files(self._files)

    def check_files(self, count: int) -> None:
        if count > self.limits.max_files:
            raise budget_exceeded(
                "reader_max_files", f"more than {self.limits.max_files:,} files in one event"
            )

    def add_unpacked(self, size: int, *, packed: int, of: int | None = None) -> None:
        """Count unpacked bytes: a member of an archive, as its directory declares it, or a piece of a file that now has `of` bytes.

        `packed` is the size of the member, or of the file, before. Raises `BudgetExceeded`.
        """
        self._unpacked += size
        if self._unpacked > self.limits.unpacked_bytes:
            raise budget_exceeded(
                "reader_unpacked_bytes",
                f"more than {self.limits.unpacked_bytes:,} bytes unpacked from the archives of one event",
            )
        whole = size if of is None else of
        if whole > _SMALL_MEMBER and whole > packed * self.limits.compression_ratio:
            raise budget_exceeded(
                "reader_compression_ratio",
                f"a file in an archive grows more than {self.limits.compression_ratio} times when unpacked",
            )

    def take_characters(self, text: str) -> str:
        """Return what is left of a text within the limit of the event, and count it."""
        kept = text[: max(0, self.limits.characters - self._characters)]
        self._characters += len(kept)
        return kept

    @property
    def characters_left(self) -> int:
        return max(0, self.limits.characters - self._characters)

    def start_native(self) -> bool:
        """Announce a native call. Return False for one that crashed the process before.

        Raises `OfficeReaderMissing`.
        """
        if not self._has_office_reader:
            raise OfficeReaderMissing
        number = self._native_calls
        self._native_calls += 1
        if number in self._skipped:
            return False
        self._before_native(number)
        return True
