"""Every process of a data folder runs a part of each second and is stopped for the rest, as if the machine were slower."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.e2e.stack import belonging

PERIOD_SECONDS = 1.0


@contextmanager
def slowed_to(share: float, data_dir: Path) -> Iterator[None]:
    """Let every process of a data folder run for this share of each second, also those that start meanwhile."""
    over = threading.Event()
    thread = threading.Thread(target=_alternate, args=(share, data_dir, over))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _signal(belonging(data_dir), signal.SIGCONT)


def _alternate(share: float, data_dir: Path, over: threading.Event) -> None:
    while not over.is_set():
        pids = belonging(data_dir)
        _signal(pids, signal.SIGSTOP)
        over.wait((1 - share) * PERIOD_SECONDS)
        _signal(pids, signal.SIGCONT)
        # The fault itself: of each period they run for this share.
        over.wait(share * PERIOD_SECONDS)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
