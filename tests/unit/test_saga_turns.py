"""Whose words a chunk holds, and which chunks are of one turn."""

from __future__ import annotations

from datetime import UTC, date, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from apex_memory.model import TURNS, Chunk
from apex_memory.saga.turns import turns_by_chunk
from apex_memory.speakers import speaker_refs


def manifest(turns: list[Any], *spans: tuple[int, int]) -> Any:
    chunks = [Chunk(n, start, end) for n, (start, end) in enumerate(spans)]
    metadata = {TURNS: turns} if turns else {}
    occurred_at = datetime(2024, 1, 23, 8, tzinfo=UTC)
    return SimpleNamespace(metadata=metadata, chunks=chunks, occurred_at=occurred_at)


def test_chunks_of_one_turn_have_its_speaker_and_follow_each_other() -> None:
    turns = [[0, 30, "Moira Kestrel", None], [32, 40, "assistant", None], [42, 50, "Bob", None]]
    chunks = turns_by_chunk(manifest(turns, (0, 10), (11, 30), (32, 40), (42, 50), (60, 70)))
    assert [chunk.continues for chunk in chunks] == [False, True, False, False, False]
    moira = ["speaker:moira", "speaker:kestrel"]
    assert [list(chunk.speakers) for chunk in chunks] == [moira, moira, [], ["speaker:bob"], []]


def test_a_chunk_has_the_day_of_its_turn_or_of_its_document() -> None:
    turns = [[0, 10, "Moira", "2024-01-20T23:30:00-06:00"], [12, 20, "Bob", None]]
    chunks = turns_by_chunk(manifest(turns, (0, 10), (12, 20), (60, 70)))
    assert [chunk.day for chunk in chunks] == [date(2024, 1, 21), date(2024, 1, 23), None]


def test_a_document_without_turns_has_no_speakers() -> None:
    assert all(not c.continues and not c.speakers for c in turns_by_chunk(manifest([], (0, 9))))


@pytest.mark.parametrize(
    ("speaker", "words"),
    [
        ("Dana Ortiz <dana@harbor.example>", ["dana", "ortiz", "dana@harbor.example"]),
        ("dana.ortiz@harbor.example", ["dana", "ortiz", "dana.ortiz@harbor.example"]),
        ("tool track", []),
        ("Łukasz", ["łukasz"]),
        ("J. R.", []),
    ],
)
def test_a_speaker_is_found_by_the_words_of_the_name(speaker: str, words: list[str]) -> None:
    turns = [[0, 9, speaker, None]]
    [chunk] = turns_by_chunk(manifest(turns, (0, 9)))
    assert list(chunk.speakers) == [f"speaker:{word}" for word in words]


def test_a_name_in_a_question_finds_the_speaker() -> None:
    assert speaker_refs("Caroline's") == ["speaker:caroline"]
