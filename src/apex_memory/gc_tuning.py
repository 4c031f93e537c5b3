"""Garbage collection of long-running processes."""

from __future__ import annotations

import gc


def collect_garbage_seldom() -> None:
    """Freeze the objects that exist now, and collect later ones seldom. Call it once, at the end of a start.

    A batch creates a hundred thousand objects and frees them at its end. The interpreter's default of a
    collection every 700 objects took a quarter of the cost of a document (docs/discussions/performance.md),
    and a collection over everything kept webhooks waiting.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
