"""The gateway's own short history of metrics: of itself and of the other processes that run from its data folder.

It is there so that `/ops` shows something where no Prometheus runs. It holds only what panels read, half an hour of it, and is
lost with the process.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time

import httpx2

from apex_memory.engines.cards import ProcessCard, running_processes
from apex_memory.gateway.ops.panels import lines
from apex_memory.gateway.ops.queries import Matcher, matches
from apex_memory.telemetry import logger
from apex_memory.telemetry.exposition import exposition

STEP_SECONDS = 10.0
SAMPLES = 180  # half an hour
MOST_SERIES = 5_000
SCRAPE_SECONDS = 5.0
_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Key = tuple[str, tuple[tuple[str, str], ...]]
"""Name and sorted labels of a series."""


def wanted() -> frozenset[str]:
    """Return the names of the series that some panel reads from the history."""
    names: set[str] = set()
    for _, panel, line in lines():
        if not panel.needs_prometheus:
            names.update(line.query.metrics())
    return frozenset(names)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Samples up to one moment; a `queries.History`."""

    times: Sequence[float]
    series: Mapping[str, Sequence[tuple[Mapping[str, str], Sequence[float]]]]
    """Labels and values by name."""

    def select(
        self, metric: str, matchers: Sequence[Matcher]
    ) -> Iterator[tuple[Mapping[str, str], Sequence[float]]]:
        """Yield labels and values of the matching series of a metric."""
        for labels, values in self.series.get(metric, ()):
            if matches(labels, matchers):
                yield labels, values


class MetricsHistory:
    """Samples of the last half an hour, taken every ten seconds while `watch` runs."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._wanted = wanted()
        self._series: dict[Key, deque[float]] = {}
        self._times: deque[float] = deque(maxlen=SAMPLES)

    @property
    def newest(self) -> float:
        """The time of the last sample; 0 before the first."""
        return self._times[-1] if self._times else 0.0

    def snapshot(self, names: Collection[str]) -> Snapshot:
        """Return a copy of the series with these names, which another thread may read."""
        series: dict[str, list[tuple[Mapping[str, str], Sequence[float]]]] = {}
        for (name, labels), values in self._series.items():
            if name in names:
                series.setdefault(name, []).append((dict(labels), list(values)))
        return Snapshot(list(self._times), series)

    async def watch(self) -> None:
        """Take samples for ever."""
        async with httpx2.AsyncClient(timeout=SCRAPE_SECONDS, trust_env=False) as http:
            while True:
                samples = await self._scrape(http)
                self.add(time(), samples)
                await asyncio.sleep(STEP_SECONDS)

    def add(self, at: float, samples: Mapping[Key, float]) -> None:
        """Add the samples of one moment. A series without a sample has NaN there, and is dropped when it has no other."""
        before = len(self._times)
        if before == SAMPLES:
            before -= 1  # the oldest time is dropped
        self._times.append(at)
        for key in samples.keys() - self._series.keys():
            if len(self._series) < MOST_SERIES:
                self._series[key] = deque([math.nan] * before, maxlen=SAMPLES)
        for key, values in list(self._series.items()):
            values.append(samples.get(key, math.nan))
            if key not in samples and all(map(math.isnan, values)):
                del self._series[key]

    async def _scrape(self, http: httpx2.AsyncClient) -> dict[Key, float]:
        """Return the samples of this process and of the others that respond."""
        cards = await asyncio.to_thread(running_processes, self._data_dir)
        others = [card for card in cards if card.process not in ("gateway", "temporal")]
        texts = await asyncio.gather(*(_text(http, card) for card in others))
        own, _ = await asyncio.to_thread(exposition, "")
        samples: dict[Key, float] = {}
        samples.update(parse(own.decode().splitlines(), self._wanted, "gateway"))
        for card, text in zip(others, texts, strict=True):
            labels = (card.process, str(card.pid))
            samples.update(parse(text.splitlines(), self._wanted, *labels))
        return samples


async def _text(http: httpx2.AsyncClient, card: ProcessCard) -> str:
    """Return the metrics of another process; empty when it does not respond."""
    try:
        response = await http.get(card.metrics)
    except httpx2.HTTPError as error:
        logger(component="ops").debug("not scraped", process=card.process, reason=str(error))
        return ""
    return response.text if response.is_success else ""


def parse(
    exposed: Iterable[str], names: frozenset[str], process: str, instance: str = ""
) -> Iterator[tuple[Key, float]]:
    """Yield the samples of these names from lines of Prometheus' text format.

    Labels `process` and `instance` tell processes apart: two workers have a series each.
    """
    for text in exposed:
        name = text.partition("{")[0].partition(" ")[0]
        if name not in names:
            continue
        match = _SAMPLE.match(text)
        if match is None:
            continue
        labels = dict(_LABEL.findall(match[2] or ""))
        labels.setdefault("process", process)
        labels["instance"] = instance
        yield (name, tuple(sorted(labels.items()))), float(match[3])
