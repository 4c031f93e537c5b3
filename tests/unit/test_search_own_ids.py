"""Which words of a question may be vendors' own ids, and which documents and refs they lead to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.model import document_uuid
from apex_memory.search.own_ids import WORDS_MAX, OwnIdFinder
from apex_memory.sources.registry import load

PREFIXES = {
    "frontapp": ("message:", "conversation:"),
    "hubspot": ("deal:", "contact:"),
    "quickbooks": ("9130:Invoice:", "9130:Bill:"),
}
FINDER = OwnIdFinder(PREFIXES, ("conversation:", "vehicle:SAMSARA-"))


def documents(query: str) -> set[str]:
    """Return the words of a query that may be ids, each with a source and prefix that it has."""
    documents = FINDER.of(query).documents
    keys = {
        document_uuid(source, f"{prefix}{word}"): f"{source} {prefix}{word}"
        for word in {ref.removeprefix("id:") for ref in documents.values()}
        for source, prefixes in PREFIXES.items()
        for prefix in ("", *prefixes)
    }
    return {keys[id] for id in documents}


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("cnv_51a", "frontapp conversation:cnv_51a"),
        ("what do we know about msg_88?", "frontapp message:msg_88"),
        ("48100200301", "hubspot deal:48100200301"),
        ("7051", "hubspot contact:7051"),
        ("hubspot id 7051", "hubspot contact:7051"),
        ("record #501", "quickbooks 9130:Invoice:501"),
        ("contact 7051", "hubspot contact:7051"),
        ("is bill 501 paid", "quickbooks 9130:Bill:501"),
        ("bill id: 5", "quickbooks 9130:Bill:5"),
        ("id 7051", "hubspot contact:7051"),
        ("record 7051", "hubspot contact:7051"),
        ("contact no. 7051", "hubspot contact:7051"),
        ("did 2 of 3 trucks with 1 driver mention cnv_51a", "frontapp conversation:cnv_51a"),
    ],
)
def test_an_id_leads_to_the_documents_that_may_have_it(query: str, key: str) -> None:
    assert key in documents(query)


def test_a_kind_before_an_id_means_records_of_that_kind_alone() -> None:
    assert documents("bill 501") == {"quickbooks 9130:Bill:501"}
    assert documents("deal 48100200301") == {"hubspot deal:48100200301"}
    assert FINDER.of("deal 48100200301").refs == []


@pytest.mark.parametrize(
    "query",
    [
        *("where is the truck", "30 pallets for Dallas", "paid $4270 and 1,250 USD", "at 10:30"),
        *("ask dana7@acme.example", "https://example.com/a1b2", "in 2024", "version 1.2.24", ""),
    ],
)
def test_other_words_are_no_ids(query: str) -> None:
    own_ids = FINDER.of(query)
    assert not own_ids.documents and not own_ids.refs


def test_refs_have_the_id_with_and_without_zeros() -> None:
    refs = FINDER.of("control number 000104274").refs
    assert {"id:000104274", "id:104274", "vehicle:SAMSARA-000104274"} <= set(refs)


def test_only_the_first_words_are_looked_up() -> None:
    own_ids = FINDER.of(" ".join(f"cnv_{n}a" for n in range(50)))
    assert len(set(own_ids.documents.values())) == WORDS_MAX


def test_quickbooks_keys_begin_with_the_company() -> None:
    tables = {"quickbooks": {"realm_ids": ["9130"], "client_id": "c"}}
    assert "9130:Invoice:" in load(tables)["quickbooks"].own_key_prefixes()


@given(st.text(max_size=80))
def test_any_question_is_accepted(query: str) -> None:
    FINDER.of(query)
