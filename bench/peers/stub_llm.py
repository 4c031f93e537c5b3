"""A language model's stand-in: it answers the peers' prompts by rules, the same every time, at once.

It knows the prompts of LightRAG, mem0 and Graphiti. Entities are codes and capitalised names, facts are sentences.
A real model understands more and takes seconds, so recall and rate of a peer with a real model differ from what is
measured with this one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MOST_ENTITIES = 12  # of a text
MOST_FACTS = 24  # of a text
_CODE = r"[A-Z]{1,5}-?[A-Z]{0,3}\d[\w-]*"
_NAME = r"[A-Z][a-z]+(?:(?: & | )[A-Z][a-z]+)*"
_ENTITY = re.compile(rf"\b(?:{_CODE}|{_NAME})\b")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_STARTS = """
The This That These Those They There Then What When Where Which Who Why How Our Your You We It Its If In On At And But
For From Not No Yes Please Can Could Do Does Did Is Are Was Were Will Would I My To Of As An A All Any Subject Date
Message Conversation User Assistant Status Type
"""
_COMMON = frozenset(_STARTS.split())
"""Capitalised words that begin sentences or lines, and name nothing."""


def entities(text: str) -> list[str]:
    """Return the codes and names in a text, in their order, each once."""
    found = dict.fromkeys(match.group() for match in _ENTITY.finditer(text))
    return [name for name in found if name not in _COMMON][:MOST_ENTITIES]


def facts(text: str) -> list[str]:
    """Return the sentences of a text, each behind the text's first line, which says when and about what."""
    head, _, rest = text.partition("\n")
    sentences = [part.strip() for part in _SENTENCE.split(rest) if len(part.strip()) > 3]
    return [f"{head.strip()}: {sentence}" for sentence in sentences][:MOST_FACTS] or [head]


def answer(messages: Sequence[Mapping[str, Any]], response_format: Mapping[str, Any] | None) -> str:
    """Return the answer to a chat request in OpenAI's form."""
    prompt = "\n".join(str(message["content"]) for message in messages)
    schema = (response_format or {}).get("json_schema") or {}
    if schema:
        make = _GRAPHITI.get(schema.get("name", ""))
        return json.dumps(make(prompt) if make else smallest(schema["schema"]))
    if "## New Messages" in prompt:
        return json.dumps(_memories(_between(prompt, "## New Messages", "## Observation Date")))
    if '"high_level_keywords"' in prompt:
        return json.dumps(_keywords(_between(prompt, "User Query:", "---Output---")))
    if "---Input Text---" in str(messages[-1]["content"]):
        return _tuples(_last_fenced(str(messages[-1]["content"])))
    if "<|COMPLETE|>" in prompt:
        return "<|COMPLETE|>"
    return prompt[-400:]  # summaries of descriptions


def smallest(schema: Mapping[str, Any]) -> Any:
    """Return the smallest value of a JSON schema."""
    return _smallest(schema, schema.get("$defs", {}))


def _smallest(schema: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    if "$ref" in schema:
        return _smallest(known[schema["$ref"].rpartition("/")[2]], known)
    for choice in ("anyOf", "allOf", "oneOf"):
        if choice in schema:
            return _smallest(schema[choice][0], known)
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _smallest(properties[name], known) for name in schema.get("required", ())}
    values: dict[str, Any] = {"array": [], "integer": 0, "number": 0, "boolean": False}
    return values.get(kind or "", "")


def _memories(messages: str) -> dict[str, Any]:
    text = messages.strip()
    text = re.sub(r"^\s*\w+:\s*", "", text)
    return {"memory": [{"id": str(n), "text": fact} for n, fact in enumerate(facts(text))]}


def _keywords(question: str) -> dict[str, list[str]]:
    words = re.findall(r"[a-z]{5,}", question)
    return {"high_level_keywords": words[:5], "low_level_keywords": entities(question) or words[:5]}


def _tuples(text: str) -> str:
    """Return LightRAG's rows of entities and relations."""
    names = entities(text)
    head = text.strip().partition("\n")[0]
    rows = [("entity", name, "Other", f"{name} in {head}") for name in names]
    pairs = [
        ("relation", source, target, "mentioned together", fact)
        for source, target, fact in _pairs(text, names)
    ]
    lines = ["<|#|>".join(row) for row in (*rows, *pairs)]
    return "\n".join([*lines, "<|COMPLETE|>"])


def _pairs(text: str, names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return (source, target, fact) for each fact that names an entity; the source is the text's first entity."""
    pairs: dict[tuple[str, str], str] = {}
    body_facts = facts(text)
    for fact in body_facts:
        sentence = fact.partition(": ")[2] or fact
        named = [name for name in names if name in sentence] or list(names[:1])
        source, target = (named[0], named[-1]) if len(named) > 1 else (names[0], named[0])
        if source != target:
            pairs.setdefault((source, target), fact)
        elif len(names) > 1:
            pairs.setdefault((names[0], names[1]), fact)
    return [(source, target, fact) for (source, target), fact in pairs.items()]


def _extracted_entities(prompt: str) -> Any:
    names = entities(_text_of(prompt))
    return {"extracted_entities": [{"name": name, "entity_type_id": 0} for name in names]}


def _extracted_edges(prompt: str) -> Any:
    listed = _json_between(prompt, "<ENTITIES>", "</ENTITIES>")
    names = [item["name"] if isinstance(item, dict) else str(item) for item in listed]
    return {"edges": _edges(_text_of(prompt), names)}


def _combined(prompt: str) -> Any:
    text = _text_of(prompt)
    return {**_extracted_entities(prompt), "edges": _edges(text, entities(text))}


def _edges(text: str, names: Sequence[str]) -> list[dict[str, Any]]:
    if not names:
        return []
    return [
        {
            "source_entity_name": source,
            "target_entity_name": target,
            "relation_type": "MENTIONED_WITH",
            "fact": fact,
        }
        for source, target, fact in _pairs(text, names)
    ]


def _resolutions(prompt: str) -> Any:
    known = _json_between(prompt, "<EXISTING ENTITIES>", "</EXISTING ENTITIES>")
    candidates = {item["name"].lower(): item["candidate_id"] for item in known}
    return {
        "entity_resolutions": [
            {
                "id": item["id"],
                "name": item["name"],
                "duplicate_candidate_id": candidates.get(item["name"].lower(), -1),
            }
            for item in _json_between(prompt, "<ENTITIES>", "</ENTITIES>")
        ]
    }


def _timestamps(prompt: str) -> Any:
    listed = _json_between(prompt, "<FACTS>", "</FACTS>")
    return {"timestamps": [{} for _ in listed]}


_GRAPHITI: Mapping[str, Callable[[str], Any]] = {
    "ExtractedEntities": _extracted_entities,
    "ExtractedEdges": _extracted_edges,
    "CombinedExtraction": _combined,
    "NodeResolutions": _resolutions,
    "BatchEdgeTimestamps": _timestamps,
}


def _text_of(prompt: str) -> str:
    """Return the text that a prompt of Graphiti asks about."""
    for name in ("CURRENT MESSAGES", "CURRENT MESSAGE", "CURRENT_MESSAGE", "TEXT"):
        if f"<{name}>" in prompt:
            return _between(prompt, f"<{name}>", f"</{name}>").strip()
    return ""


def _between(text: str, start: str, end: str) -> str:
    """Return what stands between the last `start` and the next `end`."""
    return text.rpartition(start)[2].partition(end)[0]


def _json_between(text: str, start: str, end: str) -> list[Any]:
    try:
        found = json.loads(_between(text, start, end))
    except ValueError:
        return []
    return found if isinstance(found, list) else []


def _last_fenced(text: str) -> str:
    return text.rpartition("---Input Text---")[2].strip().strip("`").strip()
