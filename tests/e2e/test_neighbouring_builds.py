"""The previous build works on today's schema, alone and beside today's build."""

from __future__ import annotations

import io
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_memory.app import open_app
from apex_memory.engines.base import free_port
from apex_memory.engines.temporal import Temporal
from apex_memory.rollout import builds
from apex_memory.stores.schema import migrations
from tests.conftest import running
from tests.e2e.build_copy import worker_process
from tests.e2e.conftest import MakeSettings, land, live, state, text_event
from tests.waiting import until

ROOT = Path(__file__).parents[2]
RECORDED = (ROOT / "tests" / "e2e" / "previous_build.txt").read_text(encoding="utf-8").strip()
"""The commit of the previous build, as long as no release is tagged: an early one that knows `-- requires`."""


def git(*arguments: str) -> bytes | None:
    """Return the output of git; None where it fails, or where there is no git."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def previous_commit() -> str | None:
    """Return the last release below HEAD or, without one, the recorded commit; None where the history is not there."""
    tag = git("describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^")
    commit = tag.decode().strip() if tag else RECORDED
    return commit if git("cat-file", "-e", f"{commit}^{{commit}}") is not None else None


@pytest.fixture
def previous(tmp_path: Path) -> Iterator[Path]:
    """The package of the previous build, for PYTHONPATH."""
    commit = previous_commit()
    if commit is None:
        pytest.skip(f"NOT TESTED on the previous build: the repository's history lacks {RECORDED}")
    archive = git("archive", commit, "src/apex_memory")
    assert archive is not None
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(tmp_path / "previous", filter="data")
    yield tmp_path / "previous" / "src"


async def test_the_previous_build_works_on_todays_schema(
    make_settings: MakeSettings, falkordb_url: str, previous: Path, tmp_path: Path
) -> None:
    """On the graph that both builds know."""
    temporal = Temporal(tmp_path / "temporal", free_port(), "", free_port())
    async with running(temporal):
        falkordb = falkordb_url.rpartition("/")[0] + f"/t{uuid.uuid4().hex[:8]}"
        settings = make_settings(graph=falkordb, temporal=temporal.url, sweep_seconds=1)
        names = ("documents", "graph", "vectors", "cache", "temporal", "embedder")
        environment = {f"APEX_{name.upper()}": str(getattr(settings, name)) for name in names}
        environment |= {"APEX_BUILD_ID": "previous", "APEX_SWEEP_SECONDS": "1"}
        environment["APEX_SECRET_KEY"] = settings.secret_key.get_secret_value()
        async with open_app(settings) as app:  # migrates
            row = await app.db.fetch_one("SELECT count(*) AS n FROM migrations")
            assert row and row["n"] == len(migrations())
            log, todays_log = tmp_path / "previous.log", tmp_path / "today.log"

            async def processed(key: str) -> str:
                """Land a document, wait until it is searchable, and return the build that processed it."""
                [landed] = await land(app, text_event(app, key, f"text of {key}"))

                async def done() -> bool:
                    return await state(app, landed) == "done"

                await until(
                    done, lambda: log.read_text(errors="replace")[-2_000:], seconds=90, every=0.2
                )
                assert await live(app, key), "what the previous build wrote is read today"
                [row] = await app.db.fetch("SELECT build FROM inbox WHERE id = %s", (landed.id,))
                return str(row["build"])

            async def both_registered() -> bool:
                return {row.build for row in await builds.listed(app.db)} == {"previous", "today"}

            today = environment | {"APEX_BUILD_ID": "today"}
            async with worker_process(previous, environment, tmp_path / "worker", log=log):
                assert await processed("alone") == "previous"
                async with worker_process(ROOT / "src", today, tmp_path / "today", log=todays_log):
                    await until(
                        both_registered,
                        lambda: todays_log.read_text(errors="replace")[-2_000:],
                        seconds=90,
                        every=0.2,
                    )
                    assert await processed("beside") == "previous", "today's build waits"
            assert (await builds.routing(app.db)).current == "previous"
