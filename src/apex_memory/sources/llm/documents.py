"""A conversation with a language model, independent of its format: turns in order, each of one speaker."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, groupby, islice
from typing import Any, Literal

from apex_memory.errors import Rejected
from apex_memory.model import File
from apex_memory.sources.fields import RecordFields, remaining_lines
from apex_memory.sources.payloads import as_mapping, as_string, canonical, sequence

MAX_TURNS = 10_000
MAX_CITED = 100  # of one turn; the line of what it cites has 1,000 characters
MAX_TOOL_CHARS = 1_000  # per call or result: enough for the facts, not for a whole web page

_CALL = "a setting of the call"
_CALL_SETTINGS = (
    *("tools", "tool_choice", "parallel_tool_calls", "functions", "thinking", "reasoning_effort"),
    *("temperature", "top_p", "top_k", "n", "seed", "max_tokens", "max_completion_tokens"),
    *("stream", "stream_options", "stop", "stop_sequences", "store", "response_format"),
    *("logprobs", "top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty", "betas"),
)
CONVERSATION_FIELDS = RecordFields(
    "conversation",
    shown={
        "*.messages": "text",
        "*.choices": "text",
        "*.content": "text",
        "*.mapping": "text",
        "*.chat_messages": "text",
        "project.name": "metadata",
        "conversation_id": "text metadata",
        "id": "text",
        "uuid": "text metadata",
        "response.id": "text metadata",
        "response.body.id": "text metadata",
        "model": "metadata",
        "response.model": "metadata",
        "response.body.model": "metadata",
        "title": "title",
        "name": "title",
        "agent.id": "metadata assertion",
        "agent.name": "assertion",
        "user.id": "metadata assertion",
        "user.name": "assertion",
        "metadata": "metadata",
        "*.stop_reason": "text metadata",
        "created_at": "metadata",
        "updated_at": "metadata",
        "create_time": "metadata",
        "update_time": "metadata",
    },
    left_out={
        "format": "the format of the body",
        "object": "the format of the body",
        "*.role": "the speaker of the turn",
        "*.type": "the kind of the record",
        "*.system": "shown with `include_system`",
        "*.usage": "counts of tokens",
        "*.system_fingerprint": "the vendor's build",
        "*.service_tier": _CALL,
        "*.created": "the time of the response",
        "*.current_node": "the branch that is shown",
        "*.default_model_slug": "the model, in the metadata",
        "*.headers": "of recorded HTTP",
        "request.model": "the model of the response, which counts where both are given",
        "*.content_type": "the kind of the words",
        **{f"*.{name}": _CALL for name in _CALL_SETTINGS},
    },
    note="Of a turn: its words, tool calls and results, cut at 1,000 characters; titles and addresses that it cites; thinking and system texts if the settings "
    "include them; names of pictures, sounds and files, and the words of documents that are given as text. Ids of single messages and blocks are left out: a conversation is "
    "found by its own. Of OpenAI's Responses API: `input`, `output`, and why a response is incomplete or failed; `instructions` with "
    "`include_system`; its settings of the call are left out.",
)


def other_lines(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a line for each field of a body that is neither a turn nor shown elsewhere."""
    fields = CONVERSATION_FIELDS
    shown = set(fields.shown)
    # A response that was recorded as text: its words are the last turn.
    if isinstance(body.get("response"), str):
        shown.add("response")
    elif isinstance(as_mapping(body.get("response")).get("body"), str):
        shown.add("response.body")
    lines = remaining_lines(body, shown=shown, left_out=fields.left_out, false_flags=False)
    return tuple(lines)


Speaker = Literal["user", "assistant", "tool", "system", "thinking"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker's turn. `name` is the tool's, or the person's or agent's where the message gives one.

    `cited` has the titles and addresses that the turn cites outside its words. Turns of system and thinking are left out
    unless a setting includes them.
    """

    speaker: Speaker
    text: str
    name: str = ""
    at: datetime | None = None
    cited: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What stands before the turn's words: `Moira`, `User`, `Tool track`."""
        if self.name and self.speaker in ("user", "assistant"):
            return self.name
        return f"{self.speaker.capitalize()} {self.name}".strip()

    @property
    def shown(self) -> str:
        """The turn's words, and behind them what it cites: `[cites Fuel prices https://eia.example/diesel]`."""
        # Each is looked up in the whole text, so only as many as an answer has.
        distinct = islice(dict.fromkeys(self.cited), MAX_CITED)
        cited = "; ".join(each for each in distinct if each not in self.text)
        return f"{self.text.strip()}\n[cites {short(cited)}]" if cited else self.text.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation. `updated` is the stated time of the last change, if any; `branches` counts its other branches."""

    provider: str
    id: str | None
    turns: tuple[Turn, ...]
    title: str = ""
    model: str = ""
    started: datetime | None = None
    updated: datetime | None = None
    branches: int = 0
    agent: tuple[str, str] | None = None
    user: tuple[str, str] | None = None
    files: tuple[File, ...] = ()
    metadata: Mapping[str, Any] | None = None
    response_id: str = ""
    """The vendor's id of the last response, such as `chatcmpl-…` or `msg_…`."""
    stop_reason: str = ""
    """Why the model stopped, as the vendor states it."""
    other_lines: tuple[str, ...] = ()
    """A line for each field of the body that nothing else shows."""

    @property
    def key(self) -> str:
        """`provider:id`. Without an id, the hash of the first question and answer, which later versions share."""
        if self.id is not None:
            return f"{self.provider}:{self.id}"
        first = [
            [turn.speaker, turn.text]
            for turn in self.turns
            if turn.speaker in ("user", "assistant")
        ]
        opening = canonical([self.agent, self.user, first[:2]])
        return f"{self.provider}:sha256:{hashlib.sha256(opening).hexdigest()}"

    @property
    def last_at(self) -> datetime | None:
        """The time of the last change: as stated, else that of the latest turn."""
        return self.updated or max((turn.at for turn in self.turns if turn.at), default=None)


def turns_of(
    speaker: Speaker,
    parts: Iterable[object],
    tools: dict[str, str],
    at: datetime | None = None,
) -> list[Turn]:
    """Return the turns of one message from content parts of OpenAI, Anthropic or Claude exports, whose types do not clash.

    A tool's result inside a user's message is the tool's turn. `tools` maps call ids to tool names; calls in this
    message are added to it. A part of an unknown type has the words of its content; one without is in the raw event alone.
    """
    every = (_turn(speaker, part, tools, at) for part in parts)
    spoken = (turn for turn in every if turn.text.strip())
    return [
        _joined_turn(list(turns))
        for _, turns in groupby(spoken, key=lambda turn: (turn.speaker, turn.name))
    ]


def _joined_turn(turns: Sequence[Turn]) -> Turn:
    """Return the parts of one speaker as one turn, joined once: a message may have 100,000 of them."""
    text = "\n".join(turn.text for turn in turns)
    cited = tuple(chain.from_iterable(turn.cited for turn in turns))
    return Turn(turns[0].speaker, text, turns[0].name, turns[0].at, cited)


def call_text(name: str, arguments: object) -> str:
    """Return a tool call as text: `[calls track {"shipment":"SHP-100045"}]`."""
    return f"[calls {name or 'a tool'} {short(arguments)}]"


def short(value: object) -> str:
    """Return a tool's arguments or result as one readable string, cut at 1,000 characters."""
    if isinstance(value, list) and any("text" in as_mapping(item) for item in value):
        value = "\n".join(as_string(as_mapping(item).get("text")) for item in value)
    text = value.strip() if isinstance(value, str) else canonical(value).decode()
    return text if len(text) <= MAX_TOOL_CHARS else text[:MAX_TOOL_CHARS] + "…"


def limited(turns: Sequence[Turn], place: str) -> tuple[Turn, ...]:
    if len(turns) > MAX_TURNS:
        raise Rejected(
            f"{place}: {len(turns)} turns, more than {MAX_TURNS}", remedy="split the conversation"
        )
    return tuple(turns)


def _turn(speaker: Speaker, part: object, tools: dict[str, str], at: datetime | None) -> Turn:
    if isinstance(part, str):
        return Turn(speaker, part.strip(), at=at)
    block = as_mapping(part)
    kind = as_string(block.get("type"))
    if kind.endswith("tool_use"):
        name = as_string(block.get("name"))
        tools[as_string(block.get("id"))] = name
        return Turn(speaker, call_text(name, block.get("input")), at=at)
    if kind.endswith("tool_result"):
        result = short(block.get("content"))
        text = f"failed: {result}" if block.get("is_error") else result
        name = as_string(block.get("name")) or tools.get(as_string(block.get("tool_use_id")), "")
        return Turn("tool", text, name, at)
    if kind in ("thinking", "reasoning", "redacted_thinking"):
        return Turn(
            "thinking", as_string(block.get("thinking")) or as_string(block.get("text")), at=at
        )
    cited = (*cited_sources(block.get("citations")), *cited_sources(block.get("annotations")))
    return Turn(speaker, _content_text(kind, block), at=at, cited=cited)


def cited_sources(citations: object) -> tuple[str, ...]:
    """Return what an answer cites, each as its title and address, from the citations of OpenAI's or Anthropic's formats."""
    sources: list[str] = []
    for citation in map(as_mapping, sequence(citations)):
        # The names stand one level deeper in Chat Completions (`url_citation`) and in ChatGPT's exports (`metadata`).
        source = {**citation, **as_mapping(citation.get("metadata")), **as_mapping(citation.get("url_citation"))}  # fmt: skip
        titles = (as_string(source.get(name)) for name in _TITLES_OF_CITED)
        addresses = (as_string(source.get(name)) for name in ("url", "source"))
        parts = (next(filter(None, titles), ""), next(filter(None, addresses), ""))
        sources.append(" ".join(" ".join(parts).split()))
    return tuple(filter(None, sources))


_TITLES_OF_CITED = ("title", "document_title", "filename")


def _content_text(kind: str, block: Mapping[str, Any]) -> str:
    if kind == "refusal":
        return f"[refuses] {as_string(block.get('refusal'))}"
    if isinstance(block.get("text"), str):
        return as_string(block["text"]).strip()
    inner = as_mapping(block.get(kind.removeprefix("input_")))
    if "audio" in kind:
        return f"[audio] {as_string(inner.get('transcript'))}".rstrip()
    if "image" in kind:
        label = "image"
    elif kind in ("file", "document", "input_file"):
        label = "file"
    else:
        return _unknown_block_text(kind, block)
    names = [as_string(block.get(field)) for field in _NAME_FIELDS]
    names += [as_string(inner.get(field)) for field in _NAME_FIELDS]
    name = next(filter(None, names), "")
    shown = f"[{label} {name}]" if name else f"[{label}]"
    words = _document_words(as_mapping(block.get("source")))
    return f"{shown}\n{words}" if words else shown


def _document_words(source: Mapping[str, Any]) -> str:
    """Return the words of a document that Anthropic's format holds as text; empty for one in base 64 or by address."""
    if source.get("type") == "text":
        return as_string(source.get("data")).strip()
    return "\n".join(
        as_string(as_mapping(part).get("text")).strip() for part in parts_of(source.get("content"))
    ).strip()


def _unknown_block_text(kind: str, block: Mapping[str, Any]) -> str:
    """Return the words of a block of another type, such as a `compaction`; empty for a block that is only data."""
    words = [as_string(block.get(field)).strip() for field in ("content", "summary")]
    words += [
        as_string(as_mapping(part).get("text")).strip() for part in sequence(block.get("content"))
    ]
    text = "\n".join(filter(None, words))
    return f"[{kind}] {text}" if text else ""


_NAME_FIELDS = ("filename", "file_name", "title", "name")


def parts_of(content: object) -> Sequence[object]:
    """Return content as parts: a text is one part, nothing is none."""
    return (content,) if isinstance(content, str) else sequence(content)
