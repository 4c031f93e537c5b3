"""Apex errors as Temporal errors, translated in this one place: retry, retry later, or do not retry."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from apex_memory.errors import (
    ApexError,
    Conflict,
    Misconfigured,
    Rejected,
    RetryLater,
    Unauthorized,
)
from apex_memory.telemetry import logger
from apex_memory.telemetry.logs import unforeseen

FINAL = (Rejected, Conflict, Unauthorized, Misconfigured)
BUG_ATTEMPTS = 5  # attempts of a step that raises anything but an `ApexError`, which is a bug


def translate(error: ApexError) -> ApplicationError:
    """Return the error with its remedy, under its class name. Apex errors never hold bodies."""
    return ApplicationError(
        f"{error} — {error.remedy}" if error.remedy else str(error),
        type=type(error).__name__,
        non_retryable=isinstance(error, FINAL),
        next_retry_delay=timedelta(seconds=error.after) if isinstance(error, RetryLater) else None,
    )


class Translation(Interceptor):
    """Interceptor that translates the errors of activities. Every worker needs it."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Translating(next)


class _Translating(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        try:
            return await super().execute_activity(input)
        except ApexError as error:
            info = activity.info()
            logger(component="flows").warning(
                "step failed",
                step=info.activity_type,
                workflow=info.workflow_id,
                attempt=info.attempt,
                error=type(error).__name__,
                reason=str(error)[:300],
            )
            raise translate(error) from None
        except ApplicationError:
            raise
        except Exception as error:  # noqa: BLE001 (the outermost frame of a step; it is raised again without its text)
            raise _bug(error) from None


def _bug(error: Exception) -> ApplicationError:
    """Return an unexpected error as a Temporal error with its class and place only: its message may quote data."""
    info = activity.info()
    logger(component="flows").error(
        "step failed unexpectedly",
        step=info.activity_type,
        attempt=info.attempt,
        **unforeseen(error),
    )
    return ApplicationError(
        f"{type(error).__name__} in {info.activity_type}: see the worker's log",
        type="Bug",
        non_retryable=info.attempt >= BUG_ATTEMPTS,
    )
