"""How a child process ends together with its parent, however the parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Return a function to run in a new process after it drops its rights: the parent's death then ends it too.

    `number` is the signal that ends it. Linux only; elsewhere None, and the next start ends leftover processes
    (see `engines.state.leftovers`).
    """
    if sys.platform != "linux":
        return None
    # Looked up before the fork: after it no library may be loaded.
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def end_with_parent() -> None:
        prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the call
            os._exit(1)

    return end_with_parent
