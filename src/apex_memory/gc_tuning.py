"""How often a process that runs for long looks for garbage."""

from __future__ import annotations

import gc


def collect_garbage_seldom() -> None:
    """Call once, when the start is over: what it made is not looked at again, and what comes after seldom.

    A batch makes a hundred thousand objects that are gone when it is. Looking through them every 700, as
    the interpreter does by default, took a quarter of all that a document cost (docs/discussions/performance.md),
    and a look through everything at once kept webhooks waiting.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
