"""Events are refused before the disk of the embedded PostgreSQL is full, and accepted again once there is more space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from apex_memory.config import Settings
from apex_memory.disk_space import RESERVE_BYTES as STORES_RESERVE
from apex_memory.disk_space import DiskSpace
from apex_memory.engines import postgres_space
from apex_memory.engines.postgres_space import (
    LOG_SEGMENT,
    PROCESSING,
    RESERVE_BYTES,
    PostgresSpace,
)
from apex_memory.engines.state import ChildState, Stack, ownership, write_stack
from apex_memory.errors import NoWrites

PORT = 23_456
TOTAL = 100_000_000_000

SetSpace = Callable[[int], None]


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """The settings of the gateway of a stack that runs."""
    with ownership(tmp_path):
        postgres = ChildState(name="postgres", pid=1, port=PORT, ready=True)
        write_stack(
            tmp_path, Stack(pid=1, since=datetime.now(UTC), children={"postgres": postgres})
        )
        yield Settings(data_dir=tmp_path, documents=f"postgresql://apex:pw@127.0.0.1:{PORT}/apex")


@pytest.fixture
def set_space(monkeypatch: pytest.MonkeyPatch) -> SetSpace:
    """Sets the free bytes of every volume."""
    monkeypatch.setattr(postgres_space, "LOOK_SECONDS", 0.0)

    def set_free(free: int, total: int = TOTAL) -> None:
        monkeypatch.setattr(postgres_space, "disk_space", lambda folder: DiskSpace(total, free))

    return set_free


def refuses(space: PostgresSpace) -> bool:
    try:
        space.require()
    except NoWrites as error:
        assert error.store == "documents" and "free space" in error.remedy
        return True
    return False


def test_events_are_refused_while_postgresql_still_can_extend_its_log(
    settings: Settings, set_space: SetSpace
) -> None:
    space = PostgresSpace(settings)
    steps = [
        (RESERVE_BYTES, False),
        (RESERVE_BYTES - 1, True),
        (RESERVE_BYTES + 1, True),  # a quarter more, so that it does not flap
        (RESERVE_BYTES * 5 // 4, False),
        (RESERVE_BYTES + 1, False),
        (0, True),
    ]
    for free, refused in steps:
        set_space(free)
        assert refuses(space) is refused, free
    assert RESERVE_BYTES >= 2 * LOG_SEGMENT
    assert RESERVE_BYTES < STORES_RESERVE, (
        "the graph and the vectors refuse first; events land until here"
    )


def test_what_has_landed_is_processed_until_half_of_that_is_left(
    settings: Settings, set_space: SetSpace
) -> None:
    space = PostgresSpace(settings, share=PROCESSING)
    for free, refused in [
        (RESERVE_BYTES - 1, False),
        (RESERVE_BYTES // 2 - 1, True),
        (RESERVE_BYTES, False),
    ]:
        set_space(free)
        assert refuses(space) is refused, free
    assert RESERVE_BYTES // PROCESSING > LOG_SEGMENT


def test_a_small_volume_keeps_a_tenth(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        postgres_space, "disk_space", lambda folder: DiskSpace(100_000_000, 9_999_999)
    )
    assert refuses(PostgresSpace(settings))
    monkeypatch.setattr(
        postgres_space, "disk_space", lambda folder: DiskSpace(100_000_000, 10_000_000)
    )
    assert not refuses(PostgresSpace(settings))


@pytest.mark.parametrize(
    "documents",
    [
        "postgresql://db.example:5432/apex",
        "postgresql://db.example/apex",
        "postgresql://a.example:5432,b.example:5433/apex?target_session_attrs=read-write",
    ],
)
def test_a_server_by_url_is_not_watched(
    settings: Settings, set_space: SetSpace, documents: str
) -> None:
    set_space(0)
    assert not refuses(PostgresSpace(settings.model_copy(update={"documents": documents})))


def test_a_gateway_without_a_stack_beside_it_watches_nothing(
    tmp_path: Path, set_space: SetSpace
) -> None:
    set_space(0)
    elsewhere = Settings(data_dir=tmp_path, documents=f"postgresql://127.0.0.1:{PORT}/apex")
    assert not refuses(PostgresSpace(elsewhere))


def test_a_volume_that_is_away_refuses_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(folder: Path) -> DiskSpace:
        raise OSError("no such volume")

    monkeypatch.setattr(postgres_space, "disk_space", away)
    assert not refuses(PostgresSpace(settings))
