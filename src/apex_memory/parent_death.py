"""How a child process ends together with its parent, however the parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """A function to run in a new process, after it dropped its rights: the parent's death ends it too.

    Linux only; elsewhere None, and the next start ends what is left (see `leftovers`).
    """
    if sys.platform != "linux":
        return None
    # Looked up here: after a fork nothing may be loaded.
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return tie
