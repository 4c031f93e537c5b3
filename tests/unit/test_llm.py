"""Conversations with language models: five formats, identity, and documents."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, Event, micros
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.payloads import sample
from apex_memory.sources.registry import load

AT = datetime(2025, 11, 20, 12, tzinfo=UTC)
SOURCE = load({})["llm"]
ASK = {"role": "user", "content": "Where is SHP-100045?"}
TELL = {"role": "assistant", "content": "En route."}
MORE = {"role": "user", "content": "And now?"}


def receive(
    body: Any,
    *,
    at: datetime = AT,
    key: str | None = None,
    content_type: str = "application/json",
    **query: str,
) -> list[Event]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": content_type} | ({"idempotency-key": key} if key else {})
    return list(SOURCE.receive(InboundRequest(raw, headers, query, at)).events)


def received_event(body: Any, **more: Any) -> Event:
    (event,) = receive(body, **more)
    return event


def document_from(body: Any, **more: Any) -> Document:
    return SOURCE.document(received_event(body, **more))


def turns(document: Document) -> list[str]:
    return [document.text[start:end] for start, end in document.passages]


def chat(*messages: object, **more: Any) -> dict[str, Any]:
    return {"conversation_id": "c1", "format": "openai.chat", "messages": [*messages], **more}


def test_the_same_body_is_a_duplicate_and_a_longer_one_a_new_version() -> None:
    first, again = (
        received_event(chat(ASK, TELL)),
        received_event(chat(ASK, TELL), at=AT + timedelta(hours=1)),
    )
    longer = received_event(chat(ASK, TELL, MORE), at=AT + timedelta(hours=2))
    assert first.event_id == again.event_id
    assert first.doc_key == longer.doc_key == "openai:c1"
    assert longer.event_id != first.event_id
    assert longer.version > first.version == micros(AT)


def test_key_order_and_spaces_make_no_new_event() -> None:
    spaced = json.dumps(dict(reversed(chat(ASK, TELL).items())), indent=3).encode()
    assert received_event(spaced) == received_event(chat(ASK, TELL))


def test_stated_times_order_the_versions() -> None:
    stated = chat(ASK, TELL, updated_at="2025-11-03T16:20:05.25Z")
    event = received_event(stated)
    assert micros(event.occurred_at) == 1762186805250000
    assert 0 <= event.version - micros(event.occurred_at) < 1000, "digits below a millisecond"
    assert received_event(stated, at=AT + timedelta(days=1)).event_id == event.event_id
    for more in (1, 8):
        longer = received_event(
            chat(ASK, TELL, *[MORE] * more, updated_at="2025-11-03T16:20:05.25")
        )
        assert longer.version == event.version
        assert longer.event_id > event.event_id  # the tie goes to the longer one
    assert received_event(chat(ASK, updated_at=1762186805.25)).version == event.version


def test_the_idempotency_key_is_the_event_id() -> None:
    assert received_event(chat(ASK), key="k-1").event_id == "k-1"
    many = receive([chat(ASK), chat(TELL)], key="k-1")
    assert [event.event_id for event in many] == ["k-1", "k-1#1"]
    with pytest.raises(Rejected, match="Idempotency-Key"):
        receive([chat(ASK), chat(TELL)], key="k" * 2000)


def test_without_an_id_the_first_turns_identify_it() -> None:
    short, longer = ({"messages": messages} for messages in ([ASK, TELL], [ASK, TELL, MORE]))
    assert received_event(short).doc_key == received_event(longer).doc_key
    assert received_event(short).doc_key.startswith("openai:sha256:")
    other = {"messages": [ASK, {**TELL, "content": "Delivered."}]}
    assert received_event(other).doc_key != received_event(short).doc_key
    assert received_event({**short, "user": "morgan"}).doc_key != received_event(short).doc_key


@pytest.mark.parametrize(
    ("body", "form"),
    [
        ({"messages": [ASK]}, "openai.chat"),
        ({"messages": [ASK], "model": "claude-x"}, "anthropic.messages"),
        ({"messages": [ASK], "system": "Be brief."}, "anthropic.messages"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "anthropic.messages"),
        ({"choices": [{"message": TELL}]}, "openai.chat"),
        ({"type": "message", "role": "assistant", "content": "Hi"}, "anthropic.messages"),
        ({"request": {"messages": [ASK]}, "response": {"type": "message", "content": "Hi"}}, "anthropic.messages"),
        ({"request": {"messages": [ASK]}, "response": {"choices": [{"message": TELL}]}}, "openai.chat"),
        ({"mapping": {}}, "chatgpt.export"),
        ({"chat_messages": []}, "claude.export"),
    ],
)  # fmt: skip
def test_formats_are_found_out(body: dict[str, Any], form: str) -> None:
    assert received_event(body).content_type.endswith(f"; format={form}")


def test_a_format_can_be_named() -> None:
    plain = {"messages": [ASK, TELL]}
    assert received_event(plain, format="anthropic.messages").doc_key.startswith("anthropic:")
    assert received_event(
        {**plain, "format": "openai.chat"}, format="anthropic.messages"
    ).doc_key.startswith("openai:")


def test_many_come_as_array_lines_page_or_wrapped() -> None:
    both = [chat(ASK), chat(TELL, conversation_id="c2")]
    rows = "\n".join(json.dumps(item) for item in both).encode() + b"\n\n"
    expected = receive(both)
    assert [event.doc_key for event in expected] == ["openai:c1", "openai:c2"]
    assert receive(rows, content_type="application/x-ndjson") == expected
    assert receive({"conversations": both}) == expected
    assert receive({"object": "list", "data": both}) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (chat({"role": "user", "content": 5}), r"messages\[0\]\.content: .*string.*list"),
        (chat(ASK, {"content": "x"}), r"messages\[1\]\.role: Field required"),
        (chat(ASK, {"role": "robot", "content": "x"}), r"messages\[1\]\.role: .*'assistant'"),
        ([chat(ASK), chat(ASK, 7)], r"^\[1\]\.messages\[1\]: "),
        (chat(), "messages: expected at least one"),
        (chat(ASK, conversation_id={}), "conversation_id: "),
        (chat(ASK, conversation_id=" "), "conversation_id: "),
        (chat(ASK, updated_at="yesterday"), "updated_at: expected a time"),
        (chat(ASK, format="word"), r"format: expected one of openai\.chat"),
        ({"chat_messages": [{"sender": "dog"}]}, r"chat_messages\[0\]\.sender: .*'human'"),
        ({"mapping": {"a": {"message": 3}}}, r"mapping\.a\.message: "),
        ({"mapping": {"a": {"parent": "b"}, "b": {"parent": "a"}}}, "mapping: .*not a tree"),
        ({"mapping": {"a": {"parent": "a"}}, "current_node": "a"}, "own ancestor"),
        ([ASK, TELL], r"^\[0\]: unknown conversation format"),
        ([], "0 conversations"),
        ([5], r"^\[0\]: expected a conversation"),
        ("hello", "^body: expected a conversation"),
        ({"request": {"messages": [ASK]}, "response": {"body": "oops"}}, r"response\.body: "),
    ],
)
def test_malformed_bodies_are_refused_by_place(body: Any, message: str) -> None:
    with pytest.raises(Rejected, match=message) as refused:
        receive(body)
    assert refused.value.remedy


def test_lines_are_named_too() -> None:
    with pytest.raises(Rejected, match=r"^line 2: not JSON"):
        receive(json.dumps(chat(ASK)).encode() + b"\n{", content_type="application/x-ndjson")


def test_turns_and_depth_are_limited() -> None:
    assert received_event(chat(*[ASK] * 10_000))
    with pytest.raises(Rejected, match="10001 turns"):
        receive(chat(*[ASK] * 10_001))
    deep: Any = "x"
    for _ in range(120):
        deep = [deep]
    with pytest.raises(Rejected, match="deep"):
        receive(chat(ASK, metadata={"x": deep}))


def test_a_talk_with_tools_reads_well() -> None:
    document = document_from(json.loads(sample("llm", "own.json"))[0]["body"])
    assert turns(document) == [
        "User: Where is SHP-100045?",
        'Assistant: [calls track {"shipment":"SHP-100045"}]',
        'Tool track: {"status":"En route","near":"Knoxville TN"}',
        "Assistant: SHP-100045 is en route with Northwind Trucking, near Knoxville TN.",
    ]
    assert document.text.startswith("\n\n".join(turns(document)))
    assert document.title == "Where is SHP-100045?"
    assert document.kind == "conversation"
    assert set(document.assertions) == {
        Assertion(predicate="agent", object="agent:dispatch-agent"),
        Assertion(subject="agent:dispatch-agent", predicate="name", value="Dispatch agent"),
        Assertion(predicate="user", object="email:morgan@brightline.example"),
    }
    assert document.metadata["tools"] == ["track"]


def test_long_results_are_cut_and_titles_too() -> None:
    result = {"role": "tool", "tool_call_id": "x", "content": "9" * 5_000}
    document = document_from(chat({"role": "user", "content": "word " * 50}, result))
    assert len(turns(document)[1]) < 1_100
    assert len(document.title) <= 80 and document.title.endswith("…")


def test_thinking_and_system_are_shown_on_request() -> None:
    body = json.loads(sample("llm", "own.json"))[1]["body"]
    everything = load({"llm": {"include_thinking": True, "include_system": True}})["llm"]
    event = received_event(body)
    quiet, loud = SOURCE.document(event), everything.document(event)
    assert "dock times." in quiet.text and "I need the dock times." not in quiet.text
    assert turns(loud)[0] == "System: You check carrier invoices."
    assert turns(loud)[2] == "Thinking: I need the dock times."


def test_the_recorded_stream_is_put_together() -> None:
    document = document_from(json.loads(sample("llm", "anthropic_exchange.json")))
    assert turns(document)[1] == "Assistant: [12345,67890]"
    assert document.metadata["model"] == "claude-sonnet-4-5-20250929"


@pytest.mark.parametrize("recorded", [lambda stream: {"body": stream}, lambda stream: stream])
def test_a_recorded_stream_of_openai_is_put_together(recorded: Callable[[str], Any]) -> None:
    deltas = [
        {"role": "assistant", "content": ""}, {"content": "It is "}, {"content": "in Tulsa."},
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "track", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"shipment":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"SHP-100045"}'}}]},
    ]  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"id": "chatcmpl-9", "model": "gpt-x", "choices": [{"index": 0, "delta": delta}]}
        for delta in deltas
    ]
    rows.append({"id": "chatcmpl-9", "choices": [{"index": 1, "delta": {"content": "other"}}]})
    rows.append({"id": "chatcmpl-9", "choices": [], "usage": {"total_tokens": 7}})
    stream = "".join(f"data: {json.dumps(row)}\n\n" for row in rows) + "data: [DONE]\n\n"
    document = document_from({"request": {"messages": [ASK]}, "response": recorded(stream)})
    assert turns(document)[-1] == (
        'Assistant: It is in Tulsa.\n[calls track {"shipment":"SHP-100045"}]'
    )
    assert document.metadata["response_id"] == "chatcmpl-9"
    assert "data:" not in document.text


def test_tool_calls_in_a_stream_are_put_together() -> None:
    rows = [
        {"type": "message_start", "message": {"type": "message", "role": "assistant"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "track", "input": {}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '{"id":'}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": " 7}"}},
        {"type": "content_block_delta", "index": [], "delta": {}},
        {"type": "message_stop"},
    ]  # fmt: skip
    stream = "\n\n".join(f"event: x\ndata: {json.dumps(row)}" for row in rows)
    pair = {"request": {"messages": [ASK], "model": "claude-x"}, "response": {"body": stream}}
    assert turns(document_from(pair))[1] == 'Assistant: [calls track {"id": 7}]'


def test_chatgpt_exports_are_read_along_the_current_branch() -> None:
    export = json.loads(sample("llm", "chatgpt_export.json"))
    document = document_from(export)
    assert [turn.partition("\n")[0] for turn in turns(document)] == [
        "User: Analyze the attached fixture and create an artifact.",
        'Assistant: [calls browser.search {"query":"fixture evidence"}]',
        "Tool browser.search: Privacy-safe tool result.",
        "Assistant: Final answer. [Download artifact](sandbox:/mnt/data/fixture-result.zip)",
    ]
    assert "[image]\n[file input.txt]" in document.text
    assert document.metadata["branches"] == 1
    assert document.title == export["title"]
    for hidden in ("Superseded", "reasoning", "fixture profile"):
        assert hidden not in document.text


def test_chatgpt_without_a_current_node_takes_the_latest_leaf() -> None:
    export = json.loads(sample("llm", "chatgpt_export.json"))
    del export["current_node"]
    assert "Final answer" in document_from(export).text
    early = copy.deepcopy(export)
    early["mapping"]["answer-inactive"]["message"]["create_time"] = 1784169999.0
    assert turns(document_from(early))[-1] == "Assistant: Superseded answer."


def test_chatgpt_kinds_of_content() -> None:
    def node(n: int, **message: Any) -> dict[str, Any]:
        return {"parent": f"n{n - 1}", "message": message}

    mapping = {
        "n0": {"parent": None, "message": None},
        "n1": node(1, author={"role": "user"}, content={"content_type": "text", "parts": ["Q"]}),
        "n2": node(2, author={"role": "assistant"}, recipient="python", content={"content_type": "code", "text": "1+1"}),
        "n3": node(3, author={"role": "tool", "name": "python"}, content={"content_type": "execution_output", "text": "2"}),
        "n4": node(4, author={"role": "assistant"}, content={"content_type": "thoughts", "thoughts": [{"content": "hm"}]}),
        "n5": node(5, author={"role": "user"}, weight=0, content={"content_type": "text", "parts": ["hidden"]}),
        "n6": node(6, author=None, content=None),
        "n7": node(7, author={"role": "assistant"}, content={"content_type": "brand_new", "parts": ["A", {"content_type": "audio_x"}, None]}),
    }  # fmt: skip
    assert turns(document_from({"mapping": mapping})) == [
        "User: Q",
        "Assistant: [calls python 1+1]",
        "Tool python: 2",
        "Assistant: A\n[audio]",
    ]


def test_claude_exports_fall_back_to_blocks_and_bring_attachments() -> None:
    document = document_from(json.loads(sample("llm", "own.json"))[5]["body"])
    assert turns(document) == [
        "User: Score Northwind Trucking on SHP-100045.\n[file loads.csv]",
        "Assistant: On time, no damage, one justified detention claim: 92 of 100.",
    ]
    assert [(file.name, file.data[:8]) for file in document.files] == [("loads.csv", b"shipment")]
    assert document.title == "Carrier scorecard"


def test_claude_times_without_zone_are_utc() -> None:
    conversation = {"uuid": "u", "chat_messages": [], "updated_at": "2025-11-05T09:04:30.25"}
    zoned = {**conversation, "updated_at": "2025-11-05T10:04:30.250+01:00"}
    assert received_event(conversation).version == received_event(zoned).version
    assert received_event(conversation).version // 1000 == 1762333470250


def test_without_a_stated_time_the_latest_turn_gives_the_version() -> None:
    message = {"sender": "human", "text": "Hi", "created_at": "2025-11-05T09:00:00Z"}
    first = received_event({"uuid": "u", "chat_messages": [message]})
    assert first.version // 1_000_000 == micros(datetime(2025, 11, 5, 9, tzinfo=UTC)) // 1_000_000
    later = {**message, "created_at": "2025-11-05T09:01:00Z"}
    assert received_event({"uuid": "u", "chat_messages": [message, later]}).version > first.version


def test_an_export_may_hold_empty_talks() -> None:
    document = document_from({"uuid": "u", "name": "Never begun", "chat_messages": []})
    assert (document.title, document.text, document.passages) == (
        "Never begun",
        "Conversation id: u",
        (),
    )


def test_half_an_emoji_is_no_obstacle() -> None:
    body = b'{"messages":[{"role":"user","content":"cut \\ud83d off\\u0000"}]}'
    assert turns(document_from(body)) == ["User: cut \ufffd off\ufffd"]
    assert received_event(body).payload.decode()


FORMATS = {
    "openai.chat": lambda text, at: chat(
        ASK, {"role": "assistant", "content": text}, updated_at=at
    ),
    "anthropic.messages": lambda text, at: {
        **chat(ASK, {"role": "assistant", "content": text}, updated_at=at),
        "format": "anthropic.messages",
    },
    "chatgpt.export": lambda text, at: {
        "conversation_id": "c1",
        "update_time": at,
        "current_node": "a",
        "mapping": {
            "a": {
                "message": {
                    "author": {"role": "assistant"},
                    "content": {"content_type": "text", "parts": [text]},
                }
            }
        },
    },
    "claude.export": lambda text, at: {
        "uuid": "c1",
        "updated_at": at,
        "chat_messages": [{"sender": "assistant", "text": text}],
    },
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("stated", ["2025-11-03T16:20:05Z", "2025-11-03T16:20:05.250Z"])
def test_f5_another_content_with_the_same_stated_time_is_a_newer_version(
    name: str, stated: str
) -> None:
    at = datetime(2025, 11, 3, 16, 21, tzinfo=UTC)
    full = received_event(FORMATS[name]("Card 4411 is at the dock.", stated), at=at)
    again = received_event(
        FORMATS[name]("Card 4411 is at the dock.", stated), at=at + timedelta(minutes=3)
    )
    redacted = received_event(
        FORMATS[name]("Card is at dock.", stated), at=at + timedelta(minutes=5)
    )
    assert again.event_id == full.event_id, "the same again is a duplicate"
    assert redacted.event_id != full.event_id and redacted.doc_key == full.doc_key
    assert (redacted.version, redacted.event_id) > (full.version, full.event_id)


def test_s3_of_one_conversation_twice_in_a_body_the_later_is_the_newer_version() -> None:
    short, long = {"messages": [ASK, TELL]}, {"messages": [ASK, TELL, MORE]}
    for states in ([short, long], [long, short]):
        first, second = receive(states)
        assert first.doc_key == second.doc_key
        assert second.version > first.version


@pytest.mark.parametrize("separator", ["\u2028", "\u0085"])
def test_f17_a_recorded_stream_may_hold_unicode_line_separators(separator: str) -> None:
    events = [
        {"type": "message_start", "message": {"type": "message", "role": "assistant"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"text": f"Dock 4{separator}at noon."},
        },
    ]
    stream = "".join(
        f"event: x\r\ndata: {json.dumps(e, ensure_ascii=False)}\r\n\r\n" for e in events
    )
    body = {"request": {"body": {"messages": [ASK]}}, "response": {"body": stream}}
    assert "at noon." in document_from({**body, "format": "anthropic.messages"}).text


def test_f17_lines_of_ndjson_may_hold_unicode_line_separators() -> None:
    rows = "\n".join(
        json.dumps(chat(ASK, TELL | {"content": f"a{s}b"}), ensure_ascii=False)
        for s in "\u2028\u0085"
    )
    assert len(receive(rows.encode(), content_type="application/x-ndjson")) == 2


def test_f18_a_block_of_an_unknown_type_adds_no_words_and_hides_none() -> None:
    message = {
        "sender": "assistant",
        "text": "It is at dock 4.",
        "content": [{"type": "token_budget"}],
    }
    text = document_from({"uuid": "u", "chat_messages": [message]}).text
    assert text == "Assistant: It is at dock 4.\n\nConversation id: u"


def test_a_compaction_has_its_words() -> None:
    block = {"type": "compaction", "content": "They asked about SHP-100045."}
    message = {"role": "assistant", "content": [block, {"type": "text", "text": "Yes."}]}
    document = document_from({"model": "claude-x", "messages": [ASK, message]})
    assert turns(document)[1] == "Assistant: [compaction] They asked about SHP-100045.\nYes."


@pytest.mark.parametrize("content", [[], [{"type": "text", "text": "I cannot"}]])
def test_a_refusal_is_in_the_text_and_the_metadata(content: list[dict[str, str]]) -> None:
    response = {"id": "msg_01Xy", "type": "message", "role": "assistant", "content": content, "stop_reason": "refusal"}  # fmt: skip
    document = document_from(
        {"request": {"messages": [ASK], "model": "claude-x"}, "response": response}
    )
    assert "Stopped because of: refusal" in document.text
    assert document.metadata["stop_reason"] == "refusal"
    assert turns(document)[-1].startswith("Assistant: ")
    stream = [
        {"type": "message_start", "message": {"id": "msg_01Xy", "type": "message", "role": "assistant"}},
        {"type": "message_delta", "delta": {"stop_reason": "refusal"}},
    ]  # fmt: skip
    raw = "\n\n".join(f"data: {json.dumps(row)}" for row in stream)
    recorded = document_from(
        {"request": {"messages": [ASK], "model": "claude-x"}, "response": {"body": raw}}
    )
    assert "Stopped because of: refusal" in recorded.text
    assert "Response id: msg_01Xy" in recorded.text


def test_ids_of_conversation_and_response_are_in_the_text_outside_the_turns() -> None:
    completion = {"id": "chatcmpl-B9x", "object": "chat.completion", "created": 1762000000, "model": "gpt-x", "choices": [{"index": 0, "message": TELL, "finish_reason": "length"}]}  # fmt: skip
    exchange = {"conversation_id": "conv-77", "request": {"messages": [ASK]}, "response": completion}  # fmt: skip
    for body, ids in (
        (completion, ["chatcmpl-B9x"]),
        ({**completion, "messages": [ASK]}, ["chatcmpl-B9x"]),
        (exchange, ["conv-77", "chatcmpl-B9x"]),
        (chat(ASK, TELL), ["c1"]),
        ({"uuid": "3f0c-claude", "chat_messages": [{"sender": "human", "text": "Hi"}]}, ["3f0c-claude"]),
    ):  # fmt: skip
        document = document_from(body)
        assert all(id in document.text for id in ids)
        assert not any(id in turn for id in ids for turn in turns(document))
    assert "Stopped because of: length" in document_from(completion).text


def test_a_spoken_answer_has_its_words() -> None:
    spoken = {"id": "audio_1", "data": "AAAA", "transcript": "At dock 4."}
    answer = {"role": "assistant", "content": None, "audio": spoken}
    assert turns(document_from(chat(ASK, answer)))[-1] == "Assistant: [audio] At dock 4."
    deltas = [{"audio": {"id": "audio_1", "transcript": "At "}}, {"audio": {"data": "AAAA"}}, {"audio": {"transcript": "dock 4."}}]  # fmt: skip
    rows = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    raw = "\n\n".join(f"data: {json.dumps(row)}" for row in rows)
    recorded = document_from({"request": {"messages": [ASK]}, "response": {"body": raw}})
    assert turns(recorded)[-1] == "Assistant: [audio] At dock 4."


def test_items_of_other_tools_are_calls_with_their_results() -> None:
    items = [
        {"type": "message", "role": "user", "content": "Where is it?"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "SHP-100045"}},
        {"type": "mcp_call", "id": "m_1", "name": "track", "arguments": '{"n":1}', "output": "dock 4"},
        {"type": "file_search_call", "id": "f_1", "queries": ["dock"], "results": [{"text": "dock 4 opens"}]},
        {"type": "custom_tool_call", "call_id": "c_1", "name": "run", "input": "print(4)"},
        {"type": "custom_tool_call_output", "call_id": "c_1", "output": [{"type": "text", "text": "4"}]},
        {"type": "image_generation_call", "id": "i_1", "result": "AAAA"},
        {"type": "mcp_list_tools", "id": "l_1", "tools": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "At dock 4."}]},
    ]  # fmt: skip
    assert turns(document_from({"object": "list", "data": items})) == [
        "User: Where is it?",
        'Assistant: [calls web_search {"query":"SHP-100045","type":"search"}]',
        'Assistant: [calls track {"n":1}]',
        "Tool track: dock 4",
        'Assistant: [calls file_search ["dock"]]',
        'Tool file_search: [{"text":"dock 4 opens"}]',
        "Assistant: [calls run print(4)]",
        'Tool run: [{"text":"4","type":"text"}]',
        "Assistant: [calls image_generation ]",
        "Assistant: At dock 4.",
    ]


def test_s9_a_list_of_openai_items_is_one_conversation() -> None:
    items = [
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Where is it?"}],
        },
        {"type": "function_call", "call_id": "1", "name": "track", "arguments": '{"n":1}'},
        {"type": "function_call_output", "call_id": "1", "output": "dock 4"},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "At dock 4."}],
        },
    ]
    document = document_from({"object": "list", "data": items})
    assert turns(document) == [
        "User: Where is it?",
        'Assistant: [calls track {"n":1}]',
        "Tool track: dock 4",
        "Assistant: At dock 4.",
    ]


def test_w1_the_metadata_of_each_conversation_is_bounded_by_itself() -> None:
    half = {**chat(ASK, TELL), "metadata": {"note": "x" * 40_000}}
    assert len(receive([half, {**half, "conversation_id": "c2"}])) == 2
    large = {**half, "metadata": {"note": "x" * 65_536}}
    with pytest.raises(Rejected, match=r"^\[1\]\.metadata: 65,547 bytes of JSON") as refusal:
        receive([half, large])
    assert "as text or as a file" in refusal.value.remedy


@pytest.mark.parametrize(
    "source",
    [
        {"type": "text", "media_type": "text/plain", "data": "Signed for SHP-100045"},
        {"type": "content", "content": [{"type": "text", "text": "Signed for SHP-100045"}]},
    ],
)
def test_the_words_of_a_document_in_a_chat_are_in_its_text(source: dict[str, Any]) -> None:
    blocks = [{"type": "document", "title": "POD", "source": source}, {"type": "text", "text": "?"}]
    document = document_from(
        {"model": "claude-x", "messages": [{"role": "user", "content": blocks}]}
    )
    assert "[file POD]\nSigned for SHP-100045\n?" in document.text


def test_a_time_far_ahead_does_not_hide_later_states() -> None:
    ahead = received_event(chat(ASK, TELL, updated_at="2099-01-01T00:00:00Z"))
    later = received_event(
        chat(ASK, TELL, MORE, updated_at=(AT + timedelta(minutes=1)).isoformat()),
        at=AT + timedelta(minutes=1),
    )
    assert ahead.doc_key == later.doc_key and ahead.version < later.version


def test_a_clock_that_runs_ahead_a_little_keeps_the_order() -> None:
    """Of two states that arrive the wrong way round, the stated times decide."""
    first, second = AT + timedelta(seconds=10), AT + timedelta(seconds=20)
    newer = received_event(chat(ASK, TELL, MORE, updated_at=second.isoformat()))
    older = received_event(chat(ASK, TELL, updated_at=first.isoformat()), at=AT + timedelta(seconds=1))  # fmt: skip
    assert older.version < newer.version


def test_null_stands_for_a_field_that_is_not_there() -> None:
    call = {"id": None, "type": "function", "function": {"name": "track", "arguments": None}}
    said = {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None}
    body = chat(ASK, said, TELL, choices=None, user=None, model=None, created="", updated_at="")
    assert turns(document_from(body)) == [
        "User: Where is SHP-100045?",
        "Assistant: [calls track ]",
        "Assistant: En route.",
    ]
    with pytest.raises(Rejected, match=r"messages\[0\]\.role: Field required"):
        receive(chat({"role": None, "content": "x"}))


def test_an_item_list_may_hold_calls_of_tools_that_are_not_known() -> None:
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Find SHP-1"}]},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "SHP-1"}},
        {"type": "mcp_call", "id": "m_1", "name": "track", "arguments": '{"id":"SHP-1"}', "output": "late"},
        {"type": "computer_call_output", "call_id": "c_1", "output": {"type": "screenshot"}},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is late."}]},
    ]  # fmt: skip
    document = document_from({"object": "list", "data": items})
    assert turns(document) == [
        "User: Find SHP-1",
        'Assistant: [calls web_search {"query":"SHP-1"}]',
        'Assistant: [calls track {"id":"SHP-1"}]',
        "Tool track: late",
        'Tool: {"type":"screenshot"}',
        "Assistant: It is late.",
    ]


def test_the_time_of_a_completion_may_be_text() -> None:
    event = received_event(chat(ASK, TELL, created="2025-11-01T00:00:00Z"))
    assert event.occurred_at == datetime(2025, 11, 1, tzinfo=UTC)


RESPONSE: dict[str, Any] = {
    "object": "response", "id": "resp_1", "created_at": 1764590400, "status": "completed", "model": "gpt-example",
    "previous_response_id": "resp_0", "instructions": "You are brief.", "tools": [], "text": {"format": {"type": "text"}},
    "output": [
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "call_1", "name": "track", "arguments": '{"id":"SHP-100045"}'},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "En route."}]},
    ],
}  # fmt: skip
ANSWERED = ['Assistant: [calls track {"id":"SHP-100045"}]', "Assistant: En route."]


def test_a_response_of_openai_is_a_conversation_of_its_own() -> None:
    """OpenAI keeps what was before: under the conversation's id the newest turns would take the place of all."""
    event = received_event({**RESPONSE, "conversation": {"id": "conv_1"}})
    document = SOURCE.document(event)
    assert event.doc_key == "openai:resp_1"
    assert event.occurred_at == datetime(2025, 12, 1, 12, tzinfo=UTC)
    assert turns(document) == ANSWERED
    assert "resp_0" in document.text and "conv_1" in document.text
    assert "You are brief." not in document.text and "format" not in document.text
    assert document.text.count("resp_1") == 1


@pytest.mark.parametrize(
    "asked",
    ["Where is SHP-100045?", [ASK], [{"type": "message", **ASK}]],
    ids=["text", "message", "item"],
)
def test_a_request_and_its_response_of_openai(asked: object) -> None:
    request = {"model": "gpt-example", "input": asked}
    for body in (
        {"request": request, "response": RESPONSE},
        {"request": {"body": request}, "response": {"body": json.dumps(RESPONSE)}},
        {**request, **RESPONSE},
    ):
        assert turns(document_from(body)) == ["User: Where is SHP-100045?", *ANSWERED]
    stated = received_event({"conversation_id": "c1", "request": request, "response": RESPONSE})
    assert stated.doc_key == "openai:c1", "who states it sends the whole"
    assert turns(document_from(request)) == ["User: Where is SHP-100045?"]


@pytest.mark.parametrize(
    ("request_fields", "response"),
    [
        ({"messages": [ASK]}, {"id": "chatcmpl-1", "choices": [{"message": TELL}]}),
        ({"messages": [ASK], "model": "claude-x"}, {"type": "message", **TELL}),
        ({"messages": [ASK]}, {"body": json.dumps({"choices": [{"message": TELL}]})}),
        ({"messages": [ASK]}, f'data: {json.dumps({"choices": [{"index": 0, "delta": TELL}]})}\n\ndata: [DONE]'),
        ({"messages": [ASK]}, TELL["content"]),
        ({"messages": [ASK], "model": "claude-x"}, TELL["content"]),
        ({"input": ASK["content"]}, TELL["content"]),
    ],
    ids=["completion", "message", "recorded", "stream", "words", "words of Claude", "words to an input"],
)  # fmt: skip
def test_a_response_among_the_fields_of_its_request_is_the_last_turn(
    request_fields: dict[str, Any], response: object
) -> None:
    """As agents log a call: what was asked, with the answer beside it."""
    body = {"conversation_id": "c1", **request_fields, "response": response}
    event = received_event(body)
    assert event.doc_key.endswith(":c1")
    document = SOURCE.document(event)
    assert turns(document) == [f"User: {ASK['content']}", f"Assistant: {TELL['content']}"]
    by_id = {"id": "c2", **request_fields, "response": response}
    assert received_event(by_id).doc_key.endswith(":c2")


def test_a_field_that_is_called_response_and_is_none_is_a_line_of_its_own() -> None:
    document = document_from({"messages": [ASK, TELL], "response": {"status": "sent"}})
    assert "sent" in document.text


def test_a_recorded_stream_of_openais_responses() -> None:
    done = [{"type": "response.output_item.done", "item": item} for item in RESPONSE["output"]]
    begun: dict[str, Any] = {"type": "response.created", "response": {**RESPONSE, "output": [], "status": "in_progress"}}  # fmt: skip
    delta: dict[str, Any] = {"type": "response.output_text.delta", "delta": "En "}
    for rows in ([begun, delta, *done], [begun, *done, {"type": "response.completed", "response": RESPONSE}]):  # fmt: skip
        raw = "\n\n".join(f"event: {row['type']}\ndata: {json.dumps(row)}" for row in rows)
        event = received_event({"request": {"input": "Where is SHP-100045?"}, "response": raw})
        assert event.doc_key == "openai:resp_1"
        assert turns(SOURCE.document(event)) == ["User: Where is SHP-100045?", *ANSWERED]


def test_why_a_response_is_incomplete_is_in_the_text() -> None:
    cut = {**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}  # fmt: skip
    assert "Stopped because of: max_output_tokens" in document_from(cut).text
    failed = {**RESPONSE, "status": "failed", "output": [], "input": "Hi", "error": {"code": "server_error", "message": "It broke."}}  # fmt: skip
    assert "It broke." in document_from(failed).text


URL = "https://eia.example/diesel"
PRICES = {"url": URL, "title": "Fuel prices"}
SHOWN = f"Assistant: It rose.\n[cites Fuel prices {URL}]"


def recorded_stream(*rows: Mapping[str, Any]) -> dict[str, Any]:
    raw = "\n\n".join(f"data: {json.dumps(row)}" for row in rows)
    return {"request": {"messages": [ASK]}, "response": {"body": raw}}


@pytest.mark.parametrize(
    "body",
    [
        # Chat Completions, whole and as a stream; Responses; Anthropic, whole and as a stream; an export of ChatGPT
        chat(ASK, {**TELL, "content": "It rose.", "annotations": [{"type": "url_citation", "url_citation": PRICES}]}),
        recorded_stream(
            {"choices": [{"index": 0, "delta": {"content": "It rose."}}]},
            {"choices": [{"index": 0, "delta": {"annotations": [{"type": "url_citation", "url_citation": PRICES}]}}]},
        ),
        {"id": "resp_1", "object": "response", "output": [
            {"type": "message", "role": "assistant", "content": [
                {"type": "output_text", "text": "It rose.", "annotations": 2 * [{"type": "url_citation", **PRICES}]}]}]},
        {"type": "message", "role": "assistant", "content": [
            {"type": "text", "text": "It rose.", "citations": [{"type": "web_search_result_location", **PRICES, "cited_text": "up"}]}]},
        recorded_stream(
            {"type": "message_start", "message": {"type": "message", "role": "assistant"}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "It rose."}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": PRICES}},
        ),
        {"title": "t", "current_node": "a", "mapping": {"a": {"message": {
            "author": {"role": "assistant"}, "content": {"content_type": "text", "parts": ["It rose."]},
            "metadata": {"citations": [{"metadata": PRICES}]}}}}},
    ],
)  # fmt: skip
def test_what_an_answer_cites_is_in_its_text_once(body: dict[str, Any]) -> None:
    assert turns(document_from(body))[-1] == SHOWN


@pytest.mark.parametrize(
    ("annotations", "shown"),
    [
        ([{"type": "file_citation", "filename": "rates.pdf", "file_id": "f"}], "Assistant: En route.\n[cites rates.pdf]"),
        ([{"url": f"https://x.example/{n}" + "x" * 90} for n in range(99)], None),
        (["x", None, {"url": 7}, {}], "Assistant: En route."),
        ("x", "Assistant: En route."),
    ],
)  # fmt: skip
def test_odd_and_long_citations(annotations: Any, shown: str | None) -> None:
    text = turns(document_from(chat(ASK, {**TELL, "annotations": annotations})))[-1]
    assert len(text) < 1_100 and (shown is None or text == shown)


def test_an_address_that_stands_in_the_answer_is_not_repeated() -> None:
    answer = {**TELL, "content": f"See {URL}.", "annotations": [{"url_citation": {"url": URL}}]}
    assert turns(document_from(chat(ASK, answer)))[-1] == f"Assistant: See {URL}."


def test_what_is_cited_does_not_change_which_conversation_it_is() -> None:
    def sent(**more: Any) -> Event:
        answer = {**TELL, **more}
        return received_event({"format": "openai.chat", "messages": [ASK, answer]})

    assert sent().doc_key == sent(annotations=[{"url_citation": PRICES}]).doc_key
