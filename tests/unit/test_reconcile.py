"""Stages that a store holds and PostgreSQL does not know: few of them are removed after a day, many are left alone."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from apex_memory.model import Tally
from apex_memory.saga import recovery
from apex_memory.saga.recovery import UNKNOWN_AGE, Recovery
from apex_memory.stores.base import StageTally
from apex_memory.stores.postgres import Postgres

pytestmark = pytest.mark.engine


class _Walked:
    """Stands in for a store of any size: `reconcile` walks over it and deletes, and nothing here is committed."""

    name = "graph"

    def __init__(self, stages: Sequence[UUID]) -> None:
        self.stages = set(stages)

    async def walk(self) -> AsyncIterator[StageTally]:
        for stage in sorted(self.stages):
            yield StageTally(stage, Tally(1, 1))

    async def delete_stages(self, stages: Sequence[UUID]) -> None:
        self.stages -= set(stages)


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


async def _known(db: Postgres, count: int) -> list[UUID]:
    stages = [uuid.uuid4() for _ in range(count)]
    await db.execute(
        """INSERT INTO stages (stage_id, inbox_id, doc_id, version, event_id, manifest_id, state, owner, lease_until,
                               chunks, chunks_sum, edges, edges_sum)
           SELECT s, s, s, 1, 'e', s, 'superseded', s, now(), 1, 1, 0, 0 FROM unnest(%b::uuid[]) AS s""",
        (stages,),
    )
    return stages


async def _a_day_later(db: Postgres) -> None:
    await db.execute(
        "UPDATE flags SET changed_at = changed_at - %s", (UNKNOWN_AGE + timedelta(hours=1),)
    )


def _recovery(db: Postgres, store: _Walked) -> Recovery:
    stores: Any = store
    publication: Any = None
    return Recovery(db, stores, stores, publication)


async def test_a_store_of_another_database_is_left_alone(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third is unknown. Each page holds fewer unknown stages than one of a hundred of all that were walked before it."""
    monkeypatch.setattr(recovery, "PAGE", 10)
    known, unknown = await _known(db, 4_000), [uuid.uuid4() for _ in range(2_000)]
    store = _Walked([*known, *unknown])
    for _ in range(3):
        result = await _recovery(db, store).reconcile("graph")
        assert (result.removed, result.left) == (0, 2_000)
        await _a_day_later(db)
    assert store.stages == {*known, *unknown}


async def test_few_unknown_stages_go_after_a_day(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PAGE", 10)
    monkeypatch.setattr(recovery, "STRAYS_MAX", 4)  # that one walk removes
    known, unknown = await _known(db, 1_000), [uuid.uuid4() for _ in range(7)]
    store = _Walked([*known, *unknown])
    removed = []
    for _ in range(4):
        result = await _recovery(db, store).reconcile("graph")
        removed.append((result.removed, result.left))
        await _a_day_later(db)
    assert removed == [(0, 7), (4, 3), (3, 0), (0, 0)]
    assert store.stages == set(known)
    assert not await db.fetch("SELECT FROM flags")


async def test_all_unknown_stages_go_at_once_on_request(db: Postgres) -> None:
    known, unknown = await _known(db, 10), [uuid.uuid4() for _ in range(20)]
    store = _Walked([*known, *unknown])
    result = await _recovery(db, store).reconcile("graph", prune_unknown=True)
    assert (result.removed, result.left) == (20, 0)
    assert store.stages == set(known)
