"""500 EDI files of mixed quality, from a partner's SFTP server and a folder into memory, each answered."""

from __future__ import annotations

import time
from datetime import timedelta

from apex_memory.app import App
from apex_memory.simulate.edi.simulator import PLACES, EdiSimulator
from apex_memory.simulate.vendor import Chaos
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.pages import InboundFile
from bench.engines import opened, running_engines
from bench.rows import Row, at_least, at_most

FILES = 500


async def edi() -> list[Row]:
    """Pull, land, answer and publish the files; then what taking them apart alone costs."""
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
    """Fill the mailboxes, a tenth of it with what is cut off or no X12 at all; answers the files."""
    simulator.clock.advance_to(simulator.world.start + timedelta(days=2))
    simulator.post(simulator.clock.now)
    inboxes = [simulator.folder(place, "inbound") for place in PLACES]
    n = sum(len(list(folder.iterdir())) for folder in inboxes)
    assert FILES * 0.85 < n < FILES, f"{n} files of partners: choose another number of shipments"
    while n < FILES:
        cut = f"ST*214*0001~B10*PRO{n}*SHP-{n}*NWTR~LX*1~AT7*X3*NS***202611"
        damaged = cut if n % 2 else f"Dear partner, see attachment {n}."
        (inboxes[n // 2 % 2] / f"damaged-{n}.edi").write_text(damaged)
        n += 1
    return [path.read_bytes() for folder in inboxes for path in sorted(folder.iterdir())]


async def _measured(app: App, simulator: EdiSimulator, files: list[bytes]) -> list[Row]:
    source = app.sources["edi"]
    began = time.perf_counter()
    await app.fetcher.pull("edi")  # the first look
    await app.fetcher.pull("edi")
    picked = time.perf_counter() - began
    await app.fetcher.process_files("edi")
    answered = time.perf_counter() - began
    await app.direct.drain("edi")
    seconds = time.perf_counter() - began
    held = await app.db.fetch_one(
        """SELECT (SELECT count(*) FROM documents WHERE source = 'edi') AS documents,
                  (SELECT count(*) FROM dead_letters WHERE source = 'edi') AS dead,
                  (SELECT count(*) FROM inbox WHERE source = 'edi' AND open) AS open"""
    )
    assert held and not held["open"]
    wrong = simulator.expected_answers(simulator.clock.now).items() - simulator.answers().items()
    assert not wrong, sorted(wrong)[:3]
    began = time.process_time()
    for n, data in enumerate(files):
        for event in source.unpack(InboundFile(f"{n}", data)).events:
            if event.content_type == "application/json":
                source.document(event)
    alone = (time.process_time() - began) / len(files)
    return [
        at_least(
            f"{len(files)} EDI files of mixed quality, to done and answered",
            len(files) / seconds,
            "files/s",
            10,
            f"by SFTP and from a folder, 16 habits of partners' software, some cut off or no X12 at all; {held['documents']} documents, {held['dead']} dead letters, all 997s as expected; picked up after {picked:.1f} s, answered after {answered:.1f} s, done after {seconds:.1f} s; MiniLM",
        ),
        at_most(
            "an EDI file taken apart, told and answered, CPU",
            1000 * alone,
            "ms",
            5,
            f"mean over the same {len(files)} files: tokens, envelopes, checks, events, documents, 997",
        ),
    ]
