"""What agents see: texts from outside, parts of documents, freshness, errors. No gateway runs."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.cli import main
from apex_memory.client import AsyncApex, Entity, Freshness
from apex_memory.mcp.quoting import quoted, quoted_line
from apex_memory.mcp.tools import (
    GetStatus,
    Remember,
    Toolbox,
    content_id,
    entity_uri,
    facts_of,
    part,
)

AT = datetime(2026, 3, 3, 15, 15, tzinfo=UTC)
IMAGES = st.sampled_from(
    [
        "![proof](https://evil.example/a.png)",
        "![a [b] c](<https://evil.example/b>)",
        '![x](https://evil.example/c "title")',
        "<img src='https://evil.example/d'>",
        '<IMG alt="y" SRC=https://evil.example/e >',
        "<video src=//evil.example/f></video>",
        "<iframe src='https://evil.example/g'></iframe>",
    ]
)


@given(st.lists(st.one_of(IMAGES, st.text(alphabet="abc \n.,;-", max_size=20)), max_size=12))
def test_no_image_keeps_its_address(pieces: list[str]) -> None:
    shown = quoted(" ".join(pieces))
    assert "evil.example" not in shown and "![" not in shown


@given(st.text())
def test_nothing_invisible_is_left(text: str) -> None:
    shown = quoted(text)
    assert not any(
        (ord(char) < 32 and char not in "\n\t")
        or char in "\x7f\u200b\u202e\u2066\ufeff"
        or 0xE0000 <= ord(char) <= 0xE007F
        for char in shown
    )
    assert "\n" not in quoted_line(text)


def test_plain_texts_stay_as_they_are() -> None:
    for text in (
        "Rate: 2.35 $/mi\nfuel 18 %",
        "a < b and [a link](https://vendor.example/x)",
        "नमस्ते \u200d भारत 👩\u200d🔧 क्\u200dष",
        "東京から大阪へ",
    ):
        assert quoted(text) == text


@given(st.text(alphabet="ab\n", max_size=3_000), st.integers(min_value=200, max_value=1_000))
def test_the_parts_of_a_document_are_the_document(text: str, most: int) -> None:
    offset, whole, parts = 0, "", 0
    while True:
        shown, end = part(text, offset, most)
        assert len(shown) <= most
        whole, parts = whole + shown, parts + 1
        if end >= len(text):
            break
        assert end > offset
        offset = end
    assert whole == text and parts <= len(text) // (most // 2) + 1


def test_an_offset_beyond_the_end_is_an_empty_last_part() -> None:
    assert part("abc", 10, 200) == ("", 3)


def test_facts_are_distinct() -> None:
    attribute = {"predicate": "status", "value": "late", "document_id": "d1", "start": None}
    relation = {
        "subject": "shipment:1",
        "predicate": "carrier",
        "object": "company:x",
        "document_id": "d1",
        "start": 1,
    }
    entity = Entity.model_validate(
        {
            "ref": "shipment:1",
            "names": [],
            "neighbours": {},
            "roles": {},
            "documents": [],
            "degraded": [],
            "attributes": [
                attribute,
                attribute | {"document_id": "d2"},
                attribute | {"value": "early"},
            ],
            "relations": [relation, relation | {"document_id": "d2"}],
        }
    )
    attributes, relations = facts_of(entity)
    assert [fact.value for fact in attributes] == ["late", "early"] and len(relations) == 1
    assert attributes[0].document_id == "d1"


def test_the_same_text_has_the_same_id() -> None:
    first, other = Remember(text="a"), Remember(text="a", title="b")
    assert content_id(first) == content_id(Remember(text="a")) != content_id(other)


def test_uris_hold_any_key() -> None:
    assert entity_uri("company:a b/c?d#e") == "apex://entities/company/a%20b%2Fc%3Fd%23e"


def test_no_tool_deletes_and_each_says_what_it_is_for() -> None:
    tools = Toolbox().tools
    assert set(tools) == {
        "search_memory", "get_document", "get_entity", "recent_events", "memory_status", "remember",
    }  # fmt: skip
    for tool in tools.values():
        assert tool.scope in ("read", "ingest") and tool.reads_only is (tool.name != "remember")
        assert len(tool.description) > 80
        fields = tool.arguments.model_json_schema()["properties"]
        assert all(field.get("description") for field in fields.values()), tool.name


@pytest.mark.parametrize(
    ("behind", "known", "current"),
    [([], False, False), ([False], True, True), ([False, True], True, False)],
)
async def test_memory_is_not_current_while_its_freshness_is_unknown(
    behind: list[bool], known: bool, current: bool
) -> None:
    """No state of a source was read: the gateway's statement took too long."""

    class Memory:
        async def status(self) -> object:
            return SimpleNamespace(stores=[], open=0, parked=0, dead_letters=0)

        async def freshness(self, *, now: bool) -> list[Freshness]:
            return [
                Freshness(source="edi", state="idle", last_event_at=None, pulled_at=None, waiting=0, behind=is_behind,
                          reason=None, as_of=AT)
                for is_behind in behind
            ]  # fmt: skip

    status = await Toolbox().memory_status(cast(AsyncApex, Memory()), GetStatus())
    assert (status.freshness_known, status.current) == (known, current)


def test_without_the_sdk_the_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("apex_memory.errors.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["apex", "mcp"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr()
    assert "pip install 'apex-memory[mcp]'" in printed.err and not printed.out
