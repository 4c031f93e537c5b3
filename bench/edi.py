"""500 EDI files of mixed quality, from a partner's SFTP server and a folder into memory, each acknowledged."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

from apex_memory.app import App
from apex_memory.simulate.edi.simulator import MAILBOXES, EdiSimulator
from apex_memory.simulate.vendor import Chaos
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.base import as_file_source
from apex_memory.sources.pages import InboundFile
from bench.engines import opened, running_engines
from bench.rows import Row, at_least, at_most

FILES = 500


async def edi() -> list[Row]:
    """Pull, land, acknowledge and publish the files; then measure what parsing them alone costs."""
    world = World.make(5, shipments=56)
    simulator = EdiSimulator(world, Clock(world.start), Chaos())
    await simulator.open()
    try:
        files = _put(simulator)
        async with (
            running_engines() as engines,
            opened(
                await engines.fresh(),
                engines.folder,
                sources={"edi": simulator.settings("")},
            ) as app,
        ):
            return await _measured(app, simulator, files)
    finally:
        await simulator.close()


def _put(simulator: EdiSimulator) -> list[bytes]:
    """Fill the mailboxes, up to a tenth with truncated files or no X12 at all; return the files."""
    simulator.clock.advance_to(simulator.world.start + timedelta(days=2))
    simulator.put_files(simulator.clock.now)
    folders = [simulator.folder(mailbox, "inbound") for mailbox in MAILBOXES]
    n = sum(len(list(folder.iterdir())) for folder in folders)
    assert FILES * 0.85 < n < FILES, f"{n} files of partners: choose another number of shipments"
    while n < FILES:
        cut = f"ST*214*0001~B10*PRO{n}*SHP-{n}*NWTR~LX*1~AT7*X3*NS***202611"
        damaged = cut if n % 2 else f"Dear partner, see attachment {n}."
        (folders[n // 2 % 2] / f"damaged-{n}.edi").write_text(damaged)
        n += 1
    paths: list[Path] = []
    for folder in folders:
        paths += sorted(folder.iterdir())
    return [path.read_bytes() for path in paths]


async def _measured(app: App, simulator: EdiSimulator, files: list[bytes]) -> list[Row]:
    source = app.sources["edi"]
    began = time.perf_counter()
    await app.fetcher.pull("edi")  # the first listing
    await app.fetcher.pull("edi")
    picked_up = time.perf_counter() - began
    await app.fetcher.process_files("edi")
    acknowledged = time.perf_counter() - began
    await app.direct.drain("edi")
    seconds = time.perf_counter() - began
    held = await app.db.fetch_one(
        """SELECT (SELECT count(*) FROM documents WHERE source = 'edi') AS documents,
                  (SELECT count(*) FROM dead_letters WHERE source = 'edi') AS dead,
                  (SELECT count(*) FROM inbox WHERE source = 'edi' AND open) AS open"""
    )
    assert held and not held["open"]
    wrong = simulator.expected_outcomes(simulator.clock.now).items() - simulator.outcomes().items()
    assert not wrong, sorted(wrong)[:3]
    began = time.process_time()
    for n, data in enumerate(files):
        for event in as_file_source(source).unpack(InboundFile(f"{n}", data)).events:
            if event.content_type == "application/json":
                source.document(event)
    alone = (time.process_time() - began) / len(files)
    return [
        at_least(
            f"{len(files)} EDI files of mixed quality, to done and acknowledged",
            len(files) / seconds,
            "files/s",
            10,
            f"by SFTP and from a folder, 16 habits of partners' software, some cut off or no X12 at all; {held['documents']} documents, {held['dead']} dead letters, all 997s as expected; picked up after {picked_up:.1f} s, acknowledged after {acknowledged:.1f} s, done after {seconds:.1f} s; default model",
        ),
        at_most(
            "an EDI file parsed, made documents and acknowledged, CPU",
            1000 * alone,
            "ms",
            5,
            f"mean over the same {len(files)} files: tokens, envelopes, checks, events, documents, 997",
        ),
    ]
