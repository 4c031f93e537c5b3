"""Errors, named by what to do next.

Every error carries a `remedy`: one sentence that tells a person the way out. Stores, sources and
the pipeline raise these; `flows` turns them into Temporal's errors and `gateway` into HTTP
answers, in one place each. Messages hold ids and counts, never payloads or secrets.
"""

from importlib.util import find_spec


class ApexError(Exception):
    """Something went wrong, and `remedy` says what to do about it."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class RetryLater(ApexError):
    """A passing fault: try the same thing again, not before `after` seconds."""

    def __init__(self, message: str, *, after: float = 1.0, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.after = after


class Unavailable(ApexError):
    """A store cannot be reached: park the work until `store` is back. No attempt is consumed."""

    def __init__(self, store: str, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{store}: {message}", remedy=remedy or "run `apex doctor`")
        self.store = store


class Rejected(ApexError):
    """The input can never succeed as it is: refuse it, or file it as a dead letter."""


class NotFound(Rejected):
    """No such thing here."""


class TooLarge(Rejected):
    """The input is over a limit."""


class Conflict(ApexError):
    """Another writer won, or the request contradicts what is stored."""


class Unauthorized(ApexError):
    """No valid signature or key came with the request."""


class Forbidden(Unauthorized):
    """The key is valid, but lacks the scope."""


class Misconfigured(ApexError):
    """A setting is missing or wrong; the message names it. Refused at start."""


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
