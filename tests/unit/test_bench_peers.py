"""The comparison with other memories: recall, the stand-in for a language model, the tables. No peer is needed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.peers.documents import evenly
from bench.peers.measure import recall
from bench.peers.report import TITLES, table
from bench.peers.stub_llm import answer, entities, facts, smallest

PEERS = Path(__file__).parents[2] / "bench" / "peers"
TEXT = (
    "2025-09-17 09:00 UTC, INV-88412\n\n"
    "Kestrel Freightways, Toledo. Invoice INV-88412 for SHP-201101. The driver was Luis Ferrante."
)


def schema_request(name: str, prompt: str) -> Any:
    schema = {"name": name, "schema": {"type": "object"}}
    form = {"type": "json_schema", "json_schema": schema}
    return json.loads(answer([{"role": "user", "content": prompt}], form))


def test_recall_counts_different_documents_up_to_the_cut() -> None:
    retrieved = ["a", "a", "b", "c", "a", "d", "e", "f"]
    assert recall(retrieved, frozenset({"e"})) == 1
    assert recall(retrieved, frozenset({"f"})) == 0
    assert recall(retrieved, frozenset({"b", "f"})) == 0.5
    assert recall(retrieved, frozenset({"f"}), at=6) == 1
    assert recall([], frozenset({"a"})) == 0


def test_documents_are_picked_at_equal_distances() -> None:
    assert evenly([str(n) for n in range(10)], 5) == ["0", "2", "4", "6", "8"]


def test_entities_are_codes_and_names_but_no_first_words_of_sentences() -> None:
    assert entities(TEXT) == [
        "INV-88412",
        "Kestrel Freightways",
        "Toledo",
        "Invoice",
        "SHP-201101",
        "Luis Ferrante",
    ]


def test_every_fact_stands_behind_the_first_line() -> None:
    made = facts(TEXT)
    assert len(made) == 3
    assert all(fact.startswith("2025-09-17 09:00 UTC, INV-88412: ") for fact in made)
    assert made[1].endswith("Invoice INV-88412 for SHP-201101.")


def test_lightrag_gets_rows_whose_relations_join_its_own_entities() -> None:
    prompt = f"---Task---\nExtract.\n---Input Text---\n```\n{TEXT}\n```"
    *lines, last = answer([{"role": "user", "content": prompt}], None).splitlines()
    rows = [line.split("<|#|>") for line in lines]
    names = {row[1] for row in rows if row[0] == "entity"}
    relations = [row for row in rows if row[0] == "relation"]
    assert last == "<|COMPLETE|>"
    assert names == set(entities(TEXT))
    assert relations and all({row[1], row[2]} <= names and len(row) == 5 for row in relations)


def test_a_question_of_lightrag_becomes_keywords() -> None:
    prompt = 'Return "high_level_keywords".\n---Real Data---\nUser Query: driver of SHP-202219\n\n---Output---\nOutput:'
    made = json.loads(answer([{"role": "user", "content": prompt}], {"type": "json_object"}))
    assert made == {"high_level_keywords": ["driver"], "low_level_keywords": ["SHP-202219"]}


def test_mem0_gets_the_facts_of_the_new_messages_alone() -> None:
    prompt = f"## Last k Messages\nuser: old\n\n## New Messages\nuser: {TEXT}\n\n## Observation Date\n2026-01-01"
    made = json.loads(answer([{"role": "user", "content": prompt}], {"type": "json_object"}))
    assert [memory["text"] for memory in made["memory"]] == facts(TEXT)


def test_graphiti_gets_edges_between_the_entities_that_it_lists() -> None:
    listed = json.dumps([{"name": "INV-88412"}, {"name": "SHP-201101"}])
    prompt = (
        f"<CURRENT_MESSAGE>\n{TEXT}\n</CURRENT_MESSAGE>\n<ENTITIES>\n{listed}\n</ENTITIES>\n"
        "<EXAMPLE>none</EXAMPLE>"
    )
    edges = schema_request("ExtractedEdges", prompt)["edges"]
    ends = {(edge["source_entity_name"], edge["target_entity_name"]) for edge in edges}
    assert ends == {("INV-88412", "SHP-201101")}


def test_graphiti_joins_an_entity_with_a_known_one_of_the_same_name_only() -> None:
    new = json.dumps([{"id": 0, "name": "Toledo"}, {"id": 1, "name": "Akron"}])
    known = json.dumps([{"candidate_id": 7, "name": "TOLEDO"}])
    prompt = (
        f"<ENTITIES>\n{new}\n</ENTITIES>\n<EXISTING ENTITIES>\n{known}\n</EXISTING ENTITIES>\n"
        "Each of the above ENTITIES …"
    )
    made = schema_request("NodeResolutions", prompt)["entity_resolutions"]
    assert [item["duplicate_candidate_id"] for item in made] == [7, -1]


def test_an_unknown_schema_gets_its_smallest_value() -> None:
    item = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    schema = {
        "type": "object",
        "properties": {
            "items": {"type": "array"},
            "one": {"$ref": "#/$defs/Item"},
            "word": {"enum": ["a", "b"]},
            "more": {"type": "string"},
        },
        "required": ["items", "one", "word"],
        "$defs": {"Item": item},
    }
    assert smallest(schema) == {"items": [], "one": {"n": 0}, "word": "a"}


@pytest.fixture
def latest() -> Any:
    return json.loads((PEERS / "latest.json").read_text())


def test_the_page_shows_the_tables_of_the_latest_run(latest: Any) -> None:
    page = (PEERS.parents[1] / "docs" / "benchmarks.md").read_text()
    missing = [line for line in table(latest["systems"]) if line not in page.splitlines()]
    assert not missing, "make peers ARGS=--report prints the tables for docs/benchmarks.md"


def test_the_page_names_the_versions_that_were_measured(latest: Any) -> None:
    page = (PEERS.parents[1] / "docs" / "benchmarks.md").read_text()
    pins = (PEERS / "requirements.in").read_text()
    for system in latest["systems"]:
        for package, version in system.get("versions", {}).items():
            assert f"{package} {version}" in page
            if system["name"] != "apex":
                assert f"{package}=={version}" in pins.replace("[falkordb]", "")


def test_every_adapter_is_a_system_of_the_tables() -> None:
    modules = {file.stem for file in (PEERS / "adapters").glob("*.py")}
    assert modules - {"__init__", "__main__", "base"} == TITLES.keys() - {"apex"}
