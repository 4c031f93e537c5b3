"""Errors, named by what the caller does next.

Every error carries a `remedy`: one sentence that tells a person what to do. Stores, sources and the
pipeline raise these; `flows` translates them to Temporal's errors and `gateway` to HTTP responses, in
one place each. Messages hold ids and counts, never payloads or secrets.
"""

import traceback
from importlib.util import find_spec
from pathlib import PurePath

CHANGED_EMBEDDER = (
    "set the former embedder again; a memory keeps its embedder, so for another one start a new memory"
    " (a new APEX_DATA_DIR, or new databases) and send or backfill the documents again"
)
"""The remedy wherever a store's vectors are not the embedder's."""


class ApexError(Exception):
    """Base of all errors that Apex raises. `remedy` says what a person can do."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class RetryLater(ApexError):
    """A transient fault: try the same thing again, not before `after` seconds."""

    def __init__(self, message: str, *, after: float = 1.0, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.after = after


class Deadlock(RetryLater):
    """Two transactions waited for each other, and this one was ended. The same again succeeds, at once."""


class Unavailable(ApexError):
    """A store cannot be reached: park the work until `store` answers. Consumes no attempt."""

    def __init__(self, store: str, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{store}: {message}", remedy=remedy or "run `apex doctor`")
        self.store = store


class NotCalled(Unavailable):
    """The store was not called, since it did not respond to others. This says nothing about the event."""


class NotAllowed(Unavailable):
    """A store refuses the credentials of this installation. No event is to blame, however long it lasts."""


class NoWrites(Unavailable):
    """A store serves reads but accepts writes from nobody: its disk is full, say. No event is to blame, however long it lasts."""


class Rejected(ApexError):
    """The input can never succeed as it is: refuse it, or make it a dead letter."""


class NotFound(Rejected):
    """The named thing does not exist."""


class TooLarge(Rejected):
    """The input exceeds a limit."""


class Conflict(ApexError):
    """Another writer was first, or the request contradicts what is stored."""


class Unauthorized(ApexError):
    """The request has no valid signature or key."""


class Forbidden(Unauthorized):
    """The key is valid but lacks the scope."""


class Misconfigured(ApexError):
    """A setting is missing or invalid; the message names it."""


def as_rejected(error: Exception, place: str) -> Rejected:
    """Return an error with the kind and place of a bug; never its message, which may quote the payload."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return Rejected(
        f"{type(error).__name__} in {place} ({PurePath(frame.filename).name}:{frame.lineno})",
        remedy="this is a bug: report it with the event's id, and redrive the event after an update",
    )


def require_extra(package: str, *, extra: str, feature: str, otherwise: str = "") -> None:
    """Raise `Misconfigured` if an optional package is not installed.

    `extra` is the extra of apex-memory that brings the package, `feature` what needs it, and
    `otherwise` what to do instead of installing it.
    """
    if find_spec(package) is None:
        alternative = f", or {otherwise}" if otherwise else ""
        raise Misconfigured(
            f"{feature}: the package {package} is not installed",
            remedy=f"pip install 'apex-memory[{extra}]'{alternative}",
        )
