"""What traces cost: the same documents in turns, with traces off and with a tenth of the events traced.

Processor time decides, of this process with its export and of all engines: beside other work on the same machine it is
steadier than the clock, and where the processor is the limit both say the same.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from opentelemetry import trace
from opentelemetry.context import Context

from apex_memory.app import App
from apex_memory.model import Event
from apex_memory.telemetry import traces
from apex_memory.telemetry.export import exporting
from bench.corpus import Corpus, GivenEmbedder, random_pool
from bench.cpu import spent, usage
from bench.engines import opened, running_engines
from bench.rows import Row, at_most

DOCUMENTS = 256
PAIRS = 8
CHEAPEST = 3
SHARE = "0.1"


async def tracing() -> list[Row]:
    """Measure the cost of traces at 10 %, in per cent of the processor time of a document."""
    corpus = Corpus()
    with _environment() as names, exporting("bench"):
        tracer = trace.get_tracer("apex_memory")
        traces.set_tracer(None)
        async with running_engines() as engines:
            pids = {**engines.pids, "client": os.getpid()}
            async with opened(
                await engines.fresh(), engines.folder, GivenEmbedder(random_pool())
            ) as app:
                await _carry(app, corpus, 0)
                used: dict[bool, list[float]] = {False: [], True: []}
                rates: dict[bool, list[float]] = {False: [], True: []}
                for pair in range(PAIRS):
                    # The second of a pair finds a fuller memory: which one that is alternates.
                    for n, is_on in enumerate((False, True) if pair % 2 else (True, False)):
                        traces.set_tracer(tracer if is_on else None)
                        before, began = usage(pids), time.perf_counter()
                        await _carry(app, corpus, 1 + 2 * pair + n)
                        rates[is_on].append(DOCUMENTS / (time.perf_counter() - began))
                        cpu = spent(before, usage(pids))
                        used[is_on].append(sum(item.total for item in cpu.values()))
                traces.set_tracer(None)
    off, on = (statistics.median(rates[is_on]) for is_on in (False, True))
    least = {is_on: statistics.mean(sorted(used[is_on])[:CHEAPEST]) for is_on in used}
    each = {is_on: 1000 * seconds / DOCUMENTS for is_on, seconds in least.items()}
    return [
        at_most(
            "tracing's cost",
            100 * (least[True] / least[False] - 1),
            "%",
            3,
            f"processor time of {DOCUMENTS} documents, landed each in a span and drained on the direct path, of all processes: "
            f"traces at 10 % to a receiver against off, the {CHEAPEST} cheapest of {PAIRS} alternating turns of each ({each[True]:.2f} and {each[False]:.2f} ms a document); by the clock {off:.0f} and {on:.0f} documents/s; "
            f"{', '.join(names)}",
        )
    ]


async def _carry(app: App, corpus: Corpus, turn: int) -> None:
    """Land documents as requests of one event each would, and drain them."""
    for page in corpus.events(turn * DOCUMENTS, DOCUMENTS, name=f"turn-{turn}"):
        await app.inbox.land(_received(page))
    drained = await app.direct.drain("documents")
    assert drained == DOCUMENTS, drained


def _received(page: Sequence[Event]) -> list[Event]:
    events = []
    for event in page:
        with traces.span("receive documents", parent=Context(), source="documents"):
            events.append(replace(event, trace_parent=traces.trace_carrier()))
    return events


@contextmanager
def _environment() -> Iterator[list[str]]:
    """Run a receiver of traces, and name it to this process and those it starts."""
    sink = subprocess.Popen(
        [sys.executable, "-m", "bench.otlp_sink"], stdout=subprocess.PIPE, text=True
    )
    assert sink.stdout
    given = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink.stdout.readline().strip()}",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": SHARE,
    }
    before = dict(os.environ)
    os.environ.update(given)
    try:
        yield [f"{name}={value}" for name, value in given.items() if "SAMPLER" in name]
    finally:
        os.environ.clear()
        os.environ.update(before)
        sink.kill()
        sink.wait()
        sink.stdout.close()
