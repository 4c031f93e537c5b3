"""The errors of the gateway, by the status of its response. Each carries the gateway's code and remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping

from apex_memory.errors import ApexError

RETRY_SECONDS = 1.0  # pause after a 503 without `Retry-After`


class Refused(ApexError):
    """The gateway refused the request. `code`, message and remedy are the gateway's, `status` is that of the response."""

    status = 0
    code = ""

    def __init__(
        self, message: str, *, remedy: str = "", status: int = 0, code: str = "", after: float = 0.0
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status or type(self).status
        self.code = code or type(self).code
        self.after = after
        """Seconds after which the same request may succeed; 0 where repeating it does not help."""


class Unauthorized(Refused):
    """The API key is missing or not valid."""

    status, code = 401, "unauthorized"


class Forbidden(Refused):
    """The API key lacks the scope."""

    status, code = 403, "forbidden"


class NotFound(Refused):
    """The document, entity or event does not exist."""

    status, code = 404, "not_found"


class Conflict(Refused):
    """The request contradicts what is stored."""

    status, code = 409, "conflict"


class TooLarge(Refused):
    """The request exceeds a limit of size."""

    status, code = 413, "too_large"


class Rejected(Refused):
    """A value of the request is not acceptable, or its body is malformed."""

    status, code = 422, "rejected"


class Busy(Refused):
    """A store is unavailable, or the gateway is overloaded: repeat the request after `after` seconds."""

    status, code = 503, "unavailable"

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        status: int = 0,
        code: str = "",
        after: float = RETRY_SECONDS,
    ) -> None:
        super().__init__(message, remedy=remedy, status=status, code=code, after=after)


KINDS: Mapping[int, type[Refused]] = {
    400: Rejected,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: Rejected,
    503: Busy,
}


def refusal(status: int, body: bytes, retry_after: str | None = None) -> Refused:
    """Return the error of a response that is no success. `retry_after` is the header of that name."""
    kind = KINDS.get(status, Refused)
    after = _seconds(retry_after) if status == 503 else 0.0
    try:
        problem = json.loads(body)["error"]
        return kind(
            str(problem["message"]),
            remedy=str(problem.get("remedy", "")),
            code=str(problem.get("code", "")),
            status=status,
            after=after,
        )
    except (ValueError, KeyError, TypeError):
        return kind(
            f"the gateway returned status {status}",
            remedy="run `apex doctor`",
            status=status,
            after=after,
        )


def _seconds(header: str | None) -> float:
    """Return the seconds of a `Retry-After`; `RETRY_SECONDS` where it has none."""
    return float(header) if header and header.isascii() and header.isdecimal() else RETRY_SECONDS
