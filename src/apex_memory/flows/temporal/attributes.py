"""The search attributes that filter runs in the Temporal UI: ApexSource, ApexPriority, ApexOutcome."""

from __future__ import annotations

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import (
    AddSearchAttributesRequest,
    ListSearchAttributesRequest,
)
from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError, RPCStatusCode

from apex_memory.errors import Misconfigured
from apex_memory.telemetry import logger

SOURCE = SearchAttributeKey.for_keyword("ApexSource")
PRIORITY = SearchAttributeKey.for_keyword("ApexPriority")
OUTCOME = SearchAttributeKey.for_keyword("ApexOutcome")
"""`idle`, `working`, or the most severe outcome of an event in the run: `done`, `parked`, `dead`."""

REFUSED = (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED)
KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD


def attributes_of(source: str, priority: int) -> TypedSearchAttributes:
    """Return the search attributes of a new run."""
    return TypedSearchAttributes(
        [
            SearchAttributePair(SOURCE, source),
            SearchAttributePair(PRIORITY, f"P{priority}"),
            SearchAttributePair(OUTCOME, "idle"),
        ]
    )


async def ensure_attributes(client: Client) -> None:
    """Create missing search attributes. Raises `Misconfigured` where that is not allowed, for example on Temporal Cloud.

    Where even their list is not shown, they were made beforehand, or the first start of a workflow says so.
    """
    operator = client.operator_service
    try:
        listed = await operator.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace)
        )
    except RPCError as error:
        if error.status not in REFUSED:
            raise
        logger(component="worker").warning(
            "search attributes are not shown to this key; they must be there as Keyword",
            names=[key.name for key in (SOURCE, PRIORITY, OUTCOME)],
        )
        return
    names = {key.name for key in (SOURCE, PRIORITY, OUTCOME)} - set(listed.custom_attributes)
    if not names:
        return
    request = AddSearchAttributesRequest(
        namespace=client.namespace, search_attributes=dict.fromkeys(names, KEYWORD)
    )
    try:
        await operator.add_search_attributes(request)
    except RPCError as error:
        if error.status not in REFUSED:
            raise
        raise Misconfigured(
            f"temporal: the namespace lacks search attributes ({', '.join(sorted(names))})",
            remedy="create them there as Keyword, then start the worker again",
        ) from error
