"""What kind of document a query is about, by the declarations of the sources."""

from __future__ import annotations

import pytest

from apex_memory.search.topics import Topics
from apex_memory.sources import registry
from apex_memory.stores.bm25 import Words

TOPICS = Topics(
    {name: source.called for name, source in registry.load({}, None).items()}, Words(50)
)


@pytest.mark.parametrize(
    ("query", "source", "kind"),
    [
        ("transfers booked at the bank", "plaid", "bank_transaction"),
        ("overdue receivables", "quickbooks", "invoice"),
        ("what do we owe suppliers, any payable bills", "quickbooks", "bill"),
        ("opportunities in the crm", "hubspot", "deal"),
        ("position of the trucks", "samsara", "vehicle_window"),
        ("internal notes", "frontapp", "comment"),
    ],
)
def test_a_query_prefers_the_kind_that_it_names(query: str, source: str, kind: str) -> None:
    topic = TOPICS.of(query)
    assert kind in topic.kinds
    best = max(topic.share(*named) for named in topic.named)
    assert topic.share(source, kind) == best > 0


def test_a_query_that_names_no_kind_has_no_topic() -> None:
    topic = TOPICS.of("Kestrel Foods in Macon")
    assert topic.words == 0 and topic.kinds == () and topic.share("plaid", "bank_item") == 0


def test_a_kind_is_called_by_its_own_name() -> None:
    assert TOPICS.of("tender responses").share("edi", "tender_response") == 1
