"""The table of `docs/benchmarks.md` from the figures of `latest.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {
    "apex": "Apex",
    "chroma": "Chroma",
    "llamaindex": "LlamaIndex + Qdrant",
    "mem0": "mem0",
    "lightrag": "LightRAG",
    "graphiti": "Graphiti + FalkorDB",
}


def table(systems: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of two tables in Markdown: rates with recall, and what a kill does. A column a system."""
    loaded = [system for system in systems if "documents/s" in system]
    killed = [system for system in systems if "kill" in system]
    return [
        *_lines(
            loaded,
            [[name, *(_cell(make, system) for system in loaded)] for name, make in _RATES.items()],
        ),
        "",
        *_lines(
            killed,
            [[name, *(make(system["kill"]) for system in killed)] for name, make in _KILL.items()],
        ),
    ]


def _lines(systems: Sequence[Mapping[str, Any]], rows: Sequence[Sequence[str]]) -> list[str]:
    head = ["", *(TITLES[system["name"]] for system in systems)]
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def _cell(make: Any, system: Mapping[str, Any]) -> str:
    try:
        text: str = make(system)
    except KeyError:
        return "–"  # not measured
    return text


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}"


def _ratio(system: Mapping[str, Any]) -> str:
    beside = system.get("apex documents/s beside")
    return f"{system['documents/s, first hundred'] / beside:.2f} ×" if beside else "1"


def _figure(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _by_type(kind: str) -> Any:
    return lambda system: _figure(system["recall@5 by type"][kind])


_RATES: Mapping[str, Any] = {
    "documents/s": lambda system: f"{system['documents/s']:.1f}",
    "… against Apex just before": _ratio,
    "processor time a document, ms": lambda system: _ms(system["cpu seconds a document"]),
    "calls of a language model a document": lambda system: (
        f"{system.get('chat calls a document', 0):.1f}"
    ),
    "prompt characters a document": lambda system: (
        f"{system.get('chat characters a document', 0):,.0f}"
    ),
    "write → found, p50, ms": lambda system: _ms(system["write to found p50"]),
    "write → found, slowest, ms": lambda system: _ms(system["write to found p99"]),
    "… not found 10 s after the write returned": lambda system: (
        f"{system['written singly, not found']} of {system['written singly']}"
    ),
    "search p50, ms": lambda system: _ms(system["search p50"]),
    "search p99, ms": lambda system: _ms(system["search p99"]),
    "processor time a search, ms": lambda system: _ms(system["cpu seconds a search"]),
    "evidence recall@5": lambda system: _figure(system["recall@5"]),
    "… of the half that Apex was not tuned on": lambda system: _figure(system["recall@5 held"]),
    "… identifier": _by_type("identifier"),
    "… paraphrase": _by_type("paraphrase"),
    "… two-source": _by_type("two-source"),
    "… who-said": _by_type("who-said"),
    "… when": _by_type("when"),
}

_KILL: Mapping[str, Any] = {
    "taken over at the kill": lambda kill: f"{kill['taken over']} of {kill['documents']}",
    "finished at the kill": lambda kill: str(kill["finished at the kill"]),
    "start after it, s": lambda kill: f"{kill['restart']:.1f}",
    "acknowledged and not found": lambda kill: str(len(kill["acknowledged, not found"])),
    "unfinished, but found": lambda kill: str(len(kill["unfinished, answered"])),
    "finished without a second send": lambda kill: str(kill["finished without the caller"]),
    "after a second send: missing": lambda kill: str(len(kill["missing at the end"])),
    "… with fewer records": lambda kill: str(len(kill["fewer records"])),
    "… with more records": lambda kill: str(len(kill["more records"])),
}
